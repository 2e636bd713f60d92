"""Algorithm 1 of FitNets and the baselines it is compared with: one function a stage, named as in Table 4.

    teacher     the wide and shallow network, on labels
    backprop    the student on labels alone: standard back-propagation
    kd          the student on eq. 2 from its random start: knowledge distillation
    hint        Algorithm 1, lines 1-5: the student up to its guided layer, on eq. 3
    fitnet      Algorithm 1, line 6: the whole student on eq. 2, from where the hint stage left it

Each says what is trained, on which loss, against which output of the teacher. `training.fit` does the rest, and knows
none of it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from minifit.layers import Sequential
from minifit.losses import cross_entropy, distillation_loss, hint_loss

NAMES = ("teacher", "backprop", "kd", "hint", "fitnet")


@dataclass(frozen=True)
class Stage:
    """What one stage trains: argmin over network's parameters of the mean of loss(network(x), target(x), labels)."""

    name: str
    network: Sequential  # everything that may move
    target: Sequential | None  # the part of the teacher whose output the loss compares with; it never moves
    loss: Callable  # (prediction, target, labels, epoch) -> (loss, d(loss)/d(prediction))
    classifies: bool = True  # its network ends in logits, so that it is judged by its errors and not by its loss
    norms: dict | None = None  # {parameter name: largest norm of a filter}
    rates: dict | None = None  # {parameter name: times the learning rate}
    noise: bool = True  # whether dropout drops, where the network has any


def teacher(network, norms=None, rates=None):
    """The teacher, on labels."""
    return Stage("teacher", network, None, _on_labels, norms=norms, rates=rates)


def teacher_all(network, norms=None, rates=None):
    """The trained teacher, on labels still but without its dropout: pylearn2's last phase, over all images."""
    return Stage("teacher_all", network, None, _on_labels, norms=norms, rates=rates, noise=False)


def backprop(student, norms=None, rates=None):
    """The student alone, on labels."""
    return Stage("backprop", student, None, _on_labels, norms=norms, rates=rates)


def kd(student, teacher, tau, lam, norms=None, rates=None, name="kd", student_tau=None):
    """The student on eq. 2, all of W_S.   lam: epoch -> lambda    student_tau: the student's own tau, if it has one"""

    def loss(logits, teacher_logits, labels, epoch):
        return distillation_loss(logits, teacher_logits, labels, tau, lam(epoch), student_tau)

    return Stage(name, student, teacher, loss, norms=norms, rates=rates)


def hint(student, teacher, regressor, guided, hint, norms=None, rates=None, name="hint", mean=False):
    """Lines 1-5 of Algorithm 1: W_Guided* = argmin L_HT(W_Guided, W_r).   guided, hint: the indices g and h

    mean: eq. 3 over the number of features

    The slices share their layers, so that line 5, copying W_Guided* back into the student, has already happened.
    """
    w_hint = teacher[:hint]  # line 1
    w_guided = student[:guided]  # line 2

    def loss(prediction, hint, labels, epoch):
        return hint_loss(prediction, hint, mean)

    return Stage(name, w_guided + regressor, w_hint, loss, classifies=False, norms=norms, rates=rates)  # lines 3, 4


def fitnet(student, teacher, tau, lam, norms=None, rates=None, student_tau=None):
    """Line 6: W_S* = argmin L_KD(W_S) over the whole student, from where the hint stage left it."""
    return kd(student, teacher, tau, lam, norms, rates, "fitnet", student_tau)


def gradient(stage, x, target, labels, epoch, rng=None, share=1.0):
    """(loss, grads) of a stage on some examples, times the share of the minibatch that they are.

    No layer mixes examples: a minibatch's gradient is the sum of its slices', each times its share.
    """
    prediction, cache = stage.network.forward(x, rng if stage.noise else None)
    loss, dprediction = stage.loss(prediction, target, labels, epoch)
    return share * loss, stage.network.weight_gradients(share * dprediction, cache)


def measure(stage, x, target, labels, epoch):
    """(loss, errors) on some examples, without noise: the mean loss, and how many are misclassified."""
    prediction = stage.network(x)
    loss, _ = stage.loss(prediction, target, labels, epoch)
    errors = (prediction.argmax(axis=-1) != labels).sum() if stage.classifies else 0
    return loss, errors


def linear(first, last, start, end):
    """epoch -> a value that goes linearly from `first` at epoch `start` to `last` at epoch `end`, and stays there."""

    def value(epoch):
        done = float(np.clip((epoch - start) / (end - start), 0, 1)) if end > start else float(epoch >= start)
        return first + (last - first) * done

    return value


def _on_labels(logits, target, labels, epoch):
    return cross_entropy(logits, labels)
