"""SGD with momentum, RMSProp and max-norm, and the schedules of their rates over the epochs.

`step(name, w, g, lr_scale)` updates an array in place by its gradient. Optimisers know names of arrays, but no layers.
lr_scale: factor of the learning rate, for an array with a learning rate of its own.
"""

from dataclasses import dataclass

import numpy as np

from minifit import kernels
from minifit.backend import array_module
from minifit.settings import ABOVE_0, BELOW_1, Ramp, at_least, one_of, setting

LARGE, PART = 2**20, 2**15  # an array of more elements than LARGE is updated PART of them at a time


class SGD:
    """v <- momentum v - lr g;   w <- w + v."""

    def __init__(self, lr, momentum=0.0):
        self.lr, self.momentum, self.state = lr, momentum, {}

    def step(self, name, w, g, lr_scale=1.0):
        xp, lr = array_module(w), self.lr * lr_scale
        if name not in self.state:
            self.state[name] = xp.zeros_like(w)
        v = self.state[name]
        if xp is not np:
            return kernels.sgd(w, v, g, lr, self.momentum)
        for w_part, v_part, g_part in _parts(w, v, g):
            v_part *= self.momentum
            v_part -= lr * g_part
            w_part += v_part


class RMSProp:
    """m <- decay m + (1 - decay) g^2, from 0 and without bias correction;   w <- w - lr g / max(sqrt(m), floor).

    The released code uses pylearn2's RMSProp, with this decay and this floor. The floor keeps steps small where
    gradients vanish, so it decides whether a network that starts at U(-.005, .005) moves at all.
    """

    def __init__(self, lr, decay=0.9, floor=1e-5):
        self.lr, self.decay, self.floor, self.state = lr, decay, floor, {}

    def step(self, name, w, g, lr_scale=1.0):
        xp, lr = array_module(w), self.lr * lr_scale
        if name not in self.state:
            self.state[name] = xp.zeros_like(w)
        m = self.state[name]
        if xp is not np:
            return kernels.rmsprop(w, m, g, lr, self.decay, self.floor)
        for w_part, m_part, g_part in _parts(w, m, g):
            m_part *= self.decay
            m_part += (1 - self.decay) * g_part * g_part
            w_part -= lr * g_part / np.maximum(np.sqrt(m_part), self.floor)


def update(optimizer, weights, grads):
    """Updates each array in place: a step at its own rate, and then the limit of its norm.

    weights: (name, array, lr_scale, max_norm or None) of each, as composites.weights has them    grads: {name: array}
    """
    for name, w, lr_scale, limit in weights:
        optimizer.step(name, w, grads[name], lr_scale)
        if limit:
            max_norm(w, limit)


def average(mean, weights, updates, decay):
    """mean <- mean + max(1 - decay, 1 / updates) (w - mean) for each array, in place, after so many updates.

    The first 1 / (1 - decay) updates count alike; then older ones are forgotten exponentially. Polyak & Juditsky 1992.

    mean, weights: {name: array}; mean is empty before the first update
    """
    for name, w in weights.items():
        m = mean.setdefault(name, w.copy())
        m += max(1 - decay, 1 / updates) * (w - m)


def _parts(*arrays):
    """Yields views of some elements of all arrays at a time, so that what is computed of them stays in a core's cache.

    Small arrays, and those with gaps, are yielded whole.
    """
    n = arrays[0].size
    if n <= LARGE or not all(a.flags.c_contiguous for a in arrays):
        yield arrays
        return
    flat = [a.reshape(-1) for a in arrays]
    for start in range(0, n, PART):
        yield [a[start : start + PART] for a in flat]


def max_norm(w, limit):
    """Scales every filter whose norm exceeds `limit` back to `limit`, in place.

    The last axis of w, (R, S, C, K) or (D, E), counts the filters. Each piece of a maxout unit is one filter.
    """
    if array_module(w) is not np:
        return kernels.max_norm(w, limit)
    norm = np.sqrt((w * w).sum(axis=tuple(range(w.ndim - 1))))
    w *= np.minimum(1, limit / np.maximum(norm, limit / 2))


@dataclass(frozen=True)
class Schedule:
    """How a network is trained: an update has the learning rate lr * lr_scale(epoch) / lr_decay^(updates before it)."""

    optimizer: str = setting("update weights by SGD with momentum, or by RMSProp", one_of("sgd", "rmsprop"))
    lr: float = setting("update weights at this learning rate", ABOVE_0)
    epochs: int = setting("train for at most this many epochs", at_least(1), common=True)
    patience: int = setting("stop after this many epochs without a better validation result", at_least(1))
    batch: int = setting(
        "average the gradient over this many images per update", at_least(1), default=128
    )  # [A.1.2], [A.2]
    lr_scale: Ramp = setting("multiply the learning rate by this factor in each epoch", at_least(0), default=Ramp(1.0))
    lr_decay: float = setting("divide the learning rate by this after every update", at_least(1), default=1.0)
    momentum: Ramp = setting("give SGD this momentum in each epoch; RMSProp has none", BELOW_1, default=Ramp(0.0))
    average: float | None = setting(
        "validate and keep the running mean of the weights, in which each update multiplies the share of older ones by "
        "X, such as 0.999; auto: the weights themselves",
        BELOW_1,
        default=None,
    )

    def make(self):
        """Returns the optimiser, set for the first epoch."""
        return RMSProp(self.lr) if self.optimizer == "rmsprop" else SGD(self.lr, self.momentum.first)

    def adjust(self, optimizer, epoch, updates):
        """Sets the rate and momentum of the next update. epoch: its epoch, from 1; updates: how many came before."""
        optimizer.lr = self.lr * self.lr_scale(epoch) * self.lr_decay**-updates
        if self.optimizer == "sgd":
            optimizer.momentum = self.momentum(epoch)
