"""The losses of the paper as plain sums: mean over the batch, sum over features; the value alone, a float.

Sizes: N batch; E classes. A class whose logit is -inf has no probability, and 0 times its log counts as 0.
"""

import math

import numpy as np

from reference.ops import softmax


def cross_entropy(logits, labels):
    """H(y, P) = -log P[label], P = softmax(logits), mean over the batch.

    logits (N, E)    labels (N,), integers from 0 to E - 1
    """
    logits = np.asarray(logits, dtype=np.float64)
    N, E = logits.shape
    if E < 2 or np.shape(labels) != (N,) or not all(0 <= label < E for label in labels):
        raise ValueError(f"cross_entropy: logits {logits.shape} need two classes and {N} labels from 0 to {E - 1}")
    return sum(-_log_softmax(row)[label] for row, label in zip(logits, labels, strict=True)) / N


def squared_hinge(logits, labels, gamma=0.0):
    """[sum_j max(0, 1 - s_j a_j)^2 - gamma]_+, mean over the batch; s_j = 1 for the label, else -1.   Lee et al., 2015.

    logits (N, E)    labels (N,)
    """
    logits = np.asarray(logits, dtype=np.float64)
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        costs = [max(0.0, 1 - (1 if e == label else -1) * value) ** 2 for e, value in enumerate(row)]
        total += max(0.0, sum(costs) - gamma)
    return total / len(logits)


def distillation_loss(logits, teacher_logits, labels, tau, lam, student_tau=None):
    """L_KD = H(y, P_S) + lam H(P_T^tau, P_S^tau), mean over the batch.   FitNets, eq. 2.

    logits, teacher_logits (N, E)    labels (N,)

    P^tau = softmax(. / tau). The labels' term is at tau = 1 and has weight 1; lam weighs the teacher's term alone,
    and no tau^2 makes up for the temperature's effect on the size of the gradient. student_tau: the student's own
    temperature, where it is not the teacher's.
    """
    logits = np.asarray(logits, dtype=np.float64)
    if np.shape(teacher_logits) != logits.shape:
        raise ValueError(f"distillation_loss: logits {logits.shape} and teacher's {np.shape(teacher_logits)} differ")
    soft = 0.0
    for row, p_teacher in zip(logits, softmax(teacher_logits, tau), strict=True):
        log_p_student = _log_softmax(row / (tau if student_tau is None else student_tau))
        soft += sum(-p * log_p for p, log_p in zip(p_teacher, log_p_student, strict=True) if p)
    return float(cross_entropy(logits, labels) + lam * soft / len(logits))


def hint_loss(guided, hint, reduction="sum"):
    """L_HT = 1/2 ||hint - guided||^2, summed over features, mean over the batch.   FitNets, eq. 3.

    guided, hint (N, ...): the regressor's output on the guided layer, and the teacher's hint layer
    reduction: "sum" over features, or "mean"
    """
    guided, hint = np.asarray(guided, dtype=np.float64), np.asarray(hint, dtype=np.float64)
    if guided.shape != hint.shape:
        raise ValueError(f"hint_loss: guided {guided.shape} and hint {hint.shape} differ")
    total = 0.0
    for i in np.ndindex(guided.shape):
        total += 0.5 * (hint[i] - guided[i]) ** 2
    return float(total / {"sum": len(guided), "mean": guided.size}[reduction])


def reconstruction_loss(logits, x):
    """-x log p - (1 - x) log(1 - p), p = 1 / (1 + exp(-logit)), summed over features, mean over the batch.

    logits, x (N, ...): a reconstruction before its sigmoid, and what it should be.   Bengio et al., 2006
    """
    logits, x = np.asarray(logits, dtype=np.float64), np.asarray(x, dtype=np.float64)
    if logits.shape != x.shape:
        raise ValueError(f"reconstruction_loss: logits {logits.shape} and x {x.shape} differ")
    total = 0.0
    for i in np.ndindex(x.shape):
        log_p, log_rest = _log_softmax([logits[i], 0.0])  # a sigmoid is a softmax beside a logit of 0
        total -= x[i] * log_p + (1 - x[i]) * log_rest
    return float(total / len(x))


def _log_softmax(row):
    # shifted by this row's own maximum: the sum then lies between 1 and E, however large the logits are
    highest = max(row)
    log_sum = math.log(sum(math.exp(value - highest) for value in row))
    return [float(value - highest - log_sum) for value in row]
