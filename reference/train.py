"""One step of each stage of Algorithm 1, the gradient being taken by differences: there is no backward code at all.

A layer is an operation of `reference.ops` with its arguments after the input, a network is a list of layers, and of
lists of layers where several operations make one layer of the paper, so that `student[:4]` is {W_S^1 .. W_S^4}:

    [[(conv2d, w, b, 1), (maxout, 2), (maxpool2d, 2, 2)], [(flatten,), (linear, w, b)]]

An optimiser is a function `update(w, g, state) -> w, state` of one array, and `state` holds one such state an array:

    def update(w, g, state):
        return sgd(w, g, state, lr=0.1, momentum=0.9)
"""

import numpy as np

from reference.losses import cross_entropy, distillation_loss, hint_loss, reconstruction_loss
from reference.ops import forward

# f'(0) = (8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12h + O(h^4)
FIVE_POINTS = ((1, 8), (2, -1))


def weights(network):
    """All weights and biases of the network in one list, from the first layer to the last.

    Every array of floats is one; dropout's mask is an array of booleans, and so is not.
    """
    if isinstance(network, np.ndarray):
        return [network] if network.dtype.kind == "f" else []
    if isinstance(network, (list, tuple)):
        return [array for part in network for array in weights(part)]
    return []


def with_weights(network, arrays):
    """The same network with these arrays, in the order of `weights`, in place of its own."""
    remaining = iter(arrays)

    def rebuild(part):
        if isinstance(part, np.ndarray):
            return next(remaining) if part.dtype.kind == "f" else part
        if isinstance(part, (list, tuple)):
            return type(part)(rebuild(inner) for inner in part)
        return part

    return rebuild(network)


def initial_state(*networks):
    """The state from which both optimisers start: a zero for every weight of the networks."""
    return [np.zeros(array.shape) for network in networks for array in weights(network)]


def gradient(loss, arrays, h=1e-4):
    """d(loss)/d(array) for every array, by the five-point formula at each element in turn.

    loss(arrays) -> float    the gradients have the arrays' shapes

    Where a maximum changes hands within 2h, the loss has a kink and the quotient is not its derivative: the answers
    at h and h/2 then differ.
    """
    arrays = [np.array(array, dtype=np.float64) for array in arrays]
    gradients = [np.zeros(array.shape) for array in arrays]
    for array, slope in zip(arrays, gradients, strict=True):
        for i in np.ndindex(array.shape):
            centre = array[i]
            difference = 0.0
            for steps, factor in FIVE_POINTS:
                array[i] = centre + steps * h
                ahead = loss(arrays)
                array[i] = centre - steps * h
                difference += factor * (ahead - loss(arrays))  # exactly 0 where the loss does not move
            array[i] = centre
            slope[i] = difference / (12 * h)
    return gradients


def hint_step(student, regressor, teacher, x, guided, hint, state, update, h=1e-4):
    """One step of stage 1, towards argmin L_HT(W_Guided, W_r).   FitNets, Algorithm 1, lines 1, 2, 4 and 5; eq. 3.

    x (N, ...)    guided, hint: how many layers of the student and of the teacher    regressor: a network
    state: `initial_state(student[:guided], regressor)` before the first step

    Returns student, regressor, state, and the loss before the step.
    """
    w_hint = teacher[:hint]
    w_guided = student[:guided]
    target = forward(w_hint, x)  # the teacher is only ever asked: nothing below can reach its weights

    def loss(arrays):
        return hint_loss(forward(with_weights(w_guided + regressor, arrays), x), target)

    arrays = weights(w_guided + regressor)  # W_r is optimised together with W_Guided
    arrays, state, value = _step(loss, arrays, state, update, h)
    trained = with_weights(w_guided + regressor, arrays)
    return trained[:guided] + student[guided:], trained[guided:], state, value


def distillation_step(student, teacher, x, labels, tau, lam, state, update, h=1e-4):
    """One step of stage 2, towards argmin L_KD(W_S) over all of W_S.   FitNets, Algorithm 1, line 6; eq. 2.

    x (N, ...)    labels (N,)    state: `initial_state(student)` before the first step

    Returns student, state, and the loss before the step.
    """
    teacher_logits = forward(teacher, x)

    def loss(arrays):
        return distillation_loss(forward(with_weights(student, arrays), x), teacher_logits, labels, tau, lam)

    arrays, state, value = _step(loss, weights(student), state, update, h)
    return with_weights(student, arrays), state, value


def labels_step(student, x, labels, state, update, h=1e-4):
    """One step on labels alone, without a teacher, towards argmin H(y, P_S).   FitNets, 3.3.

    x (N, ...)    labels (N,)    state: `initial_state(student)` before the first step

    Returns student, state, and the loss before the step.
    """

    def loss(arrays):
        return cross_entropy(forward(with_weights(student, arrays), x), labels)

    arrays, state, value = _step(loss, weights(student), state, update, h)
    return with_weights(student, arrays), state, value


def reconstruction_step(layer, below, x, state, update, h=1e-4):
    """One step of a layer that reconstructs what the layers below it give, which stay.   Bengio et al., 2006.

    x (N, ...)    layer: a network of one `autoassociator`    state: `initial_state(layer)` before the first step

    Returns layer, state, and the loss before the step.
    """
    seen = forward(below, x)

    def loss(arrays):
        return reconstruction_loss(forward(with_weights(layer, arrays), seen), seen)

    arrays, state, value = _step(loss, weights(layer), state, update, h)
    return with_weights(layer, arrays), state, value


def _step(loss, arrays, state, update, h):
    gradients = gradient(loss, arrays, h)
    updated = [update(w, g, s) for w, g, s in zip(arrays, gradients, state, strict=True)]
    return [w for w, _ in updated], [s for _, s in updated], loss(arrays)
