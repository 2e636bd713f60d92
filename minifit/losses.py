"""The losses: each returns (loss, gradient with respect to its first argument), mean over the batch.

The normalisation is part of the specification: mean over examples, sum over features, no tau^2. A logit of -inf masks a
class: the class has no probability, and adds nothing to a loss unless it is the label.
"""

from math import log

import numpy as np

from minifit.backend import array_module
from minifit.layers import sigmoid


def log_softmax(logits):
    """log softmax over the last axis. Each row is shifted by its own maximum, so logits may have any size."""
    xp = array_module(logits)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - xp.log(xp.exp(shifted).sum(axis=-1, keepdims=True))


def cross_entropy(logits, labels):
    """H(y, softmax(a)) = -log softmax(a)[y], mean over the batch.

    logits (N, K), K of 2 or more    labels (N,) integers in [0, K)
    """
    n, _ = _check("cross_entropy", logits, labels)
    xp = array_module(logits, labels)
    log_p = log_softmax(logits)
    hit = (labels[:, None] == xp.arange(logits.shape[1])).astype(logits.dtype)  # (N, K), one-hot
    return -_weighed(xp, hit, log_p).sum() / n, (_probabilities(xp, log_p) - hit) / n


def squared_hinge(logits, labels, gamma=0.0):
    """[sum_j max(0, 1 - s_j a_j)^2 - gamma]_+, mean over the batch; s_j = 1 for the label, -1 for every other class.

    logits (N, K), K of 2 or more    labels (N,)    gamma: an example that costs no more than this costs nothing

    Deeply-supervised nets (Lee et al. 2015): each class against the rest, as in their code.
    """
    n, _ = _check("squared_hinge", logits, labels)
    if not gamma >= 0:
        raise ValueError(f"squared_hinge: gamma {gamma}; wanted 0 or more")
    xp = array_module(logits, labels)
    sign = 2 * (labels[:, None] == xp.arange(logits.shape[1])).astype(logits.dtype) - 1  # (N, K)
    short = xp.maximum(1 - sign * logits, 0)
    excess = (short * short).sum(axis=1) - gamma  # (N,)
    return xp.maximum(excess, 0).sum() / n, (-2 / n) * sign * short * (excess > 0)[:, None]


def distillation_loss(logits, teacher_logits, labels, tau, lam, student_tau=None):
    """H(y, P_S) + lam H(P_T^tau, P_S^tau), with P^tau = softmax(a / tau).   FitNets, eqs. 1 and 2.

    logits, teacher_logits (N, K)    labels (N,)    tau > 0, lam >= 0 Python floats

    student_tau: another temperature for P_S; in the released code it is in effect 1.
    """
    n, _ = _check("distillation_loss", logits, labels)
    if teacher_logits.shape != logits.shape:
        raise ValueError(f"distillation_loss: logits {logits.shape} and teacher's {teacher_logits.shape} differ")
    if not tau > 0:
        raise ValueError(f"distillation_loss: tau {tau} is not positive")
    student_tau = tau if student_tau is None else student_tau
    if not student_tau > 0:
        raise ValueError(f"distillation_loss: student_tau {student_tau} is not positive")
    if not lam >= 0:
        raise ValueError(f"distillation_loss: lam {lam}; wanted 0 or more")
    xp = array_module(logits, teacher_logits)
    hard, dhard = cross_entropy(logits, labels)
    p_teacher = _probabilities(xp, log_softmax(teacher_logits / tau))
    log_p = log_softmax(logits / student_tau)
    soft = -_weighed(xp, p_teacher, log_p).sum() / n
    loss = hard + lam * soft if lam else hard  # soft may be infinite
    return loss, dhard + (lam / (student_tau * n)) * (_probabilities(xp, log_p) - p_teacher)


def hint_loss(guided, hint, reduction="sum"):
    """1/2 ||hint - guided||^2, summed over features, mean over the batch.   FitNets, eq. 3.

    guided, hint (N, ...)

    reduction: "sum", or "mean" over the features too. (The released code averages over all of them but the rows.)
    """
    if reduction not in ("sum", "mean"):
        raise ValueError(f"hint_loss: reduction {reduction!r}; wanted sum or mean")
    if guided.shape != hint.shape:
        raise ValueError(f"hint_loss: guided {guided.shape} and hint {hint.shape} differ")
    if not guided.ndim:
        raise ValueError("hint_loss: guided () is no batch; wanted (N, ...)")
    if not len(guided):
        raise ValueError("hint_loss: an empty batch has no mean")
    error = guided - hint
    n = error.size if reduction == "mean" else len(error)
    return 0.5 * (error * error).sum() / n, error / n


def reconstruction_loss(logits, x):
    """-x log p - (1 - x) log(1 - p), p = sigm(a), summed over features, mean over the batch.   Bengio et al. 2006.

    logits, x (N, ...): x in [0, 1], probabilities or pixels
    """
    if logits.shape != x.shape:
        raise ValueError(f"reconstruction_loss: logits {logits.shape} and x {x.shape} differ")
    if not logits.ndim:
        raise ValueError("reconstruction_loss: logits () are no batch; wanted (N, ...)")
    n = len(logits)
    if not n:
        raise ValueError("reconstruction_loss: an empty batch has no mean")
    xp = array_module(logits, x)
    # log(1 + exp(a)) - x a, written so that exp never overflows
    softplus = xp.maximum(logits, 0) + xp.log1p(xp.exp(xp.minimum(logits, -logits)))
    return (softplus - x * logits).sum() / n, (sigmoid(logits) - x) / n


def _probabilities(xp, log_p):
    """exp(log_p), but 0 below the square root of the type's smallest normal number: 1e-19 in float32.

    Smaller gradients, of a network that is sure of an image, become subnormal on their way back. Processors may compute
    far more slowly with subnormal numbers.
    """
    return xp.exp(log_p) * (log_p > np.finfo(log_p.dtype).minexp * log(2) / 2)


def _weighed(xp, p, log_p):
    """p log_p, but 0 where p is 0: there 0 times -inf is not a number."""
    return p * xp.where(p != 0, log_p, 0)


def _check(name, logits, labels):
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(f"{name}: logits {logits.shape} and labels {labels.shape}; wanted (N, K) and (N,)")
    if logits.shape[1] < 2:
        raise ValueError(f"{name}: logits {logits.shape}; wanted two classes or more")
    if not len(logits):
        raise ValueError(f"{name}: an empty batch has no mean")
    if labels.dtype.kind not in "iu":
        raise ValueError(f"{name}: labels are {labels.dtype}, wanted integers")
    if not ((labels >= 0) & (labels < logits.shape[1])).all():
        raise ValueError(f"{name}: a label is outside 0..{logits.shape[1] - 1}")
    return logits.shape
