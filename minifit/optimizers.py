"""SGD with momentum, RMSProp and max-norm: step(params, grads), in place. They know arrays by name, and no layers.

rates: {name: times the learning rate} of the arrays that learn at a rate of their own.
"""

from minifit.backend import array_module


class SGD:
    """v <- momentum v - lr g;   w <- w + v."""

    def __init__(self, lr, momentum=0.0, rates=None):
        self.lr, self.momentum, self.rates = lr, momentum, rates or {}
        self.state = {}

    def step(self, params, grads):
        for name, w in params.items():
            v = self.state.setdefault(name, array_module(w).zeros_like(w))
            v *= self.momentum
            v -= self.lr * self.rates.get(name, 1.0) * grads[name]
            w += v


class RMSProp:
    """m <- decay m + (1 - decay) g^2, from 0 and without bias correction;   w <- w - lr g / max(sqrt(m), floor).

    Decay and floor are pylearn2's, whose rule the released code uses. The floor bounds the step where gradients vanish,
    and decides whether a network started at U(-.005, .005) moves at all.
    """

    def __init__(self, lr, decay=0.9, floor=1e-5, rates=None):
        self.lr, self.decay, self.floor, self.rates = lr, decay, floor, rates or {}
        self.state = {}

    def step(self, params, grads):
        for name, w in params.items():
            xp, g = array_module(w), grads[name]
            m = self.state.setdefault(name, xp.zeros_like(w))
            m *= self.decay
            m += (1 - self.decay) * g * g
            w -= self.lr * self.rates.get(name, 1.0) * g / xp.maximum(xp.sqrt(m), self.floor)


def max_norm(w, limit):
    """Scales every filter whose norm exceeds `limit` back onto it, in place.

    The last axis counts the filters (M*K of them: each piece of a maxout unit has a norm of its own), for w
    (R, S, C, K) and w (D, E) alike.
    """
    xp = array_module(w)
    norm = xp.sqrt((w * w).sum(axis=tuple(range(w.ndim - 1))))
    w *= xp.minimum(1, limit / xp.maximum(norm, limit / 2))
