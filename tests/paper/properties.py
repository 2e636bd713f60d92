"""What every layer, loss and stage must do, as functions of a problem (minifit.problems), and the reference's view.

Each raises AssertionError, or lets the library's own error through where something given is written to.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from scipy import special

from minifit import baselines, fitnets, gradcheck, greedy
from minifit.composites import Autoassociator, Branches, Mean, Sequential, leaves
from minifit.layers import (
    Bias,
    Binary,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAverage,
    Layer,
    Linear,
    Log,
    Maxout,
    MaxPool2d,
    ReLU,
    Reshape,
    Scale,
    Sigmoid,
    Softmax,
)
from minifit.problems import EPOCH, each, joined
from reference import losses, ops, optimizers, train

FAR = np.array([[1e4, -1e4, 0.0], [-1e4, 0.0, 1e4], [-1e4, -1e4, -1e4]])
LAYOUTS = {}  # {name: the same array, laid out otherwise in memory}


def layout(change):
    LAYOUTS[change.__name__] = change
    return change


@layout
def columns_first(a):
    return np.asfortranarray(a)


@layout
def every_other(a):
    wide = np.zeros([2 * n for n in a.shape], a.dtype)
    view = wide[(slice(None, None, 2),) * a.ndim]
    view[...] = a
    return view


@layout
def backwards(a):
    flip = (slice(None, None, -1),) * a.ndim
    return a[flip].copy()[flip]


def frozen(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def single(a):
    return a.astype(np.float32) if a.dtype.kind == "f" else a


def close(actual, expected, rtol=1e-12):
    """Equal to rounding: within rtol of the largest magnitude, or of 1."""
    assert np.shape(actual) == np.shape(expected)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=rtol * max(1.0, np.max(np.abs(expected), initial=0)))


def all_close(actual, expected, rtol=1e-12):
    assert actual.keys() == expected.keys()
    for name, a in actual.items():
        close(a, expected[name], rtol)


def same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, a in actual.items():
        np.testing.assert_array_equal(a, expected[name])


def given(problem):
    """Every array that a problem hands over, as bytes."""
    return [each(lambda a: a.tobytes(), a) for a in (*problem.arrays.values(), *problem.examples)]


def backward_is_the_derivative_of_forward(problem, rng):
    gradcheck.check(problem, problem.arrays, rng, coordinates=8)


def backward_is_linear_in_dy(problem, rng):
    y, pull = problem(problem.arrays)
    one, other = rng.normal(size=y.shape), rng.normal(size=y.shape)
    of_one, of_other = pull(one), pull(other)
    all_close(pull(2 * one - 3 * other), {name: 2 * g - 3 * of_other[name] for name, g in of_one.items()})
    same(pull(0 * one), {name: 0 * g for name, g in of_one.items()})


def nothing_passed_in_is_written_to(problem, rng):
    problem = problem.map(frozen)
    before = given(problem)
    y, pull = problem(problem.arrays)
    dy, y_before = frozen(np.asarray(rng.normal(size=y.shape))), np.copy(y)
    if isinstance(y, np.ndarray):
        y.flags.writeable = False
    same(pull(dy), pull(dy))  # the cache is as it was
    np.testing.assert_array_equal(y, y_before)
    assert given(problem) == before


def examples_do_not_meet(problem, rng):
    """A batch is its examples: one by one they give the same rows, and a loss is their mean."""
    x = problem.examples[0] if problem.examples and "x" not in problem.arrays else problem.arrays["x"]
    n = len(x)
    problem = problem.take(slice(None))
    y, pull = problem(problem.arrays)
    dy = np.asarray(rng.normal(size=y.shape))
    grads, alone = pull(dy), []
    for i in range(n):
        one = problem.take(slice(i, i + 1))
        y_i, pull_i = one(one.arrays)
        alone.append((y_i, pull_i(dy / n if dy.ndim == 0 else dy[i : i + 1])))
    close(y, np.concatenate([y_i for y_i, _ in alone]) if dy.ndim else sum(y_i for y_i, _ in alone) / n)
    for name, g in grads.items():
        parts = [g_i[name] for _, g_i in alone]
        close(g, np.concatenate(parts) if name == "x" else sum(parts))


def float32_stays_float32(problem, rng):
    problem = problem.map(single)
    y, pull = problem(problem.arrays)
    grads = pull(np.asarray(rng.normal(size=y.shape), np.float32))
    assert {name: a.dtype for name, a in ({"y": y} | grads).items()} == dict.fromkeys(["y", *grads], np.dtype("f4"))


def memory_layout_does_not_matter(problem, rng):
    y, pull = problem(problem.arrays)
    dy = np.asarray(rng.normal(size=y.shape))
    grads = pull(dy)
    for change in LAYOUTS.values():
        other = problem.map(change)
        y_other, pull_other = other(other.arrays)
        close(y_other, y)
        all_close(pull_other(change(dy) if dy.ndim else dy), grads)


def the_same_noise_gives_the_same_bits(problem, rng):
    (y, pull), (again, pull_again) = problem(problem.arrays), problem(problem.arrays)
    np.testing.assert_array_equal(y, again)
    dy = np.asarray(rng.normal(size=y.shape))
    same(pull(dy), pull_again(dy))


def every_parameter_has_a_gradient_of_its_shape(problem, rng):
    y, pull = problem(problem.arrays)
    grads = pull(np.asarray(rng.normal(size=y.shape)))
    assert {name: g.shape for name, g in grads.items()} == {name: a.shape for name, a in problem.arrays.items()}


def an_empty_batch_gives_no_gradient_or_is_refused(problem, rng):
    y, _ = problem(problem.arrays)
    none = replace(problem.take(slice(0)), seed=problem.seed)
    if not isinstance(problem.subject, Layer):
        with pytest.raises(ValueError, match="an empty batch has no mean"):
            none(none.arrays)
        return
    nothing, pull = none(none.arrays)
    assert nothing.shape == (0, *y.shape[1:])
    same(pull(nothing), {name: np.zeros(a.shape) for name, a in none.arrays.items()})


def equals_the_reference(problem, rng):
    close(quiet(problem)(problem.arrays)[0], by_reference(problem)(problem.arrays))


def a_single_example_equals_the_reference(problem, rng):
    equals_the_reference(problem.take(slice(1)), rng)


EVERY_PROBLEM = [
    backward_is_linear_in_dy,
    nothing_passed_in_is_written_to,
    examples_do_not_meet,
    float32_stays_float32,
    memory_layout_does_not_matter,
    the_same_noise_gives_the_same_bits,
    every_parameter_has_a_gradient_of_its_shape,
    an_empty_batch_gives_no_gradient_or_is_refused,
    equals_the_reference,
    a_single_example_equals_the_reference,
]


def ties_go_to_the_first(problem, rng):
    """Of maxout and max-pooling, on small integers: each output's first largest input takes all of its dy."""
    layer, x = problem.subject, rng.integers(0, 3, problem.arrays["x"].shape).astype(float)
    y, cache = layer.forward(x)
    dy = rng.integers(1, 9, y.shape).astype(float)
    y_by_hand, dx = np.zeros(y.shape), np.zeros(x.shape)
    for i in np.ndindex(y.shape):
        first = max(met_by(layer, i, x.shape), key=lambda j: x[j])  # max keeps the first of equals
        y_by_hand[i] = x[first]
        dx[first] += dy[i]
    np.testing.assert_array_equal(y, y_by_hand)
    np.testing.assert_array_equal(layer.backward(dy, cache)[0], dx)


def met_by(layer, i, shape):
    """The inputs that output i is the largest of: the pieces of its unit, or its window in reading order."""
    if isinstance(layer, Maxout):
        return [(*i[:-1], k) for k in range(i[-1], shape[-1], shape[-1] // layer.pieces)]
    n, p, q, c = i
    rows, columns = (range(k * layer.stride, k * layer.stride + layer.size) for k in (p, q))
    return [(n, h, w, c) for h in rows for w in columns if h < shape[1] and w < shape[2]]


def far_logits_are_scipys(problem, rng):
    layer, dtype = problem.subject, problem.arrays["x"].dtype
    with np.errstate(invalid="ignore"):
        y, cache = layer.forward(FAR.astype(dtype))
    exact = 4 * np.finfo(dtype).eps
    np.testing.assert_allclose(y, special.softmax(FAR / layer.tau, axis=1), rtol=64 * exact)
    dx, _ = layer.backward(np.ones_like(y), cache)
    np.testing.assert_allclose(dx, np.zeros_like(y), atol=exact / layer.tau)


def max_norm_is_the_references(max_norm, w, limit):
    expected = optimizers.max_norm(w, limit)
    max_norm(w, limit)
    close(w, expected)


def as_reference(layer):
    """A layer without noise, or a Sequential of such layers, as a network of reference.train."""
    if isinstance(layer, Sequential):
        return [as_reference(inner) for inner in layer]
    if isinstance(layer, Branches):
        heads = [(i, [as_reference(head)]) for i, head in layer.heads.items()]
        return ops.branches, as_reference(layer.trunk), heads
    if isinstance(layer, Mean):
        return ops.mean, [[as_reference(inner)] for inner in layer.children.values()]
    if isinstance(layer, Autoassociator):
        affine = next(leaf for leaf in leaves(layer) if "w" in leaf.params)
        return ops.autoassociator, *layer.params.values(), getattr(affine, "pad", None)
    p = layer.params
    if isinstance(layer, Bias):
        return ops.bias, p["b"]
    if isinstance(layer, Linear):
        return ops.linear, p["w"], p["b"]
    if isinstance(layer, Conv2d):
        return ops.conv2d, p["w"], p["b"], layer.pad
    if isinstance(layer, Maxout):
        return ops.maxout, layer.pieces
    if isinstance(layer, MaxPool2d):
        return ops.maxpool2d, layer.size, layer.stride, layer.ceil
    if isinstance(layer, Softmax):
        return ops.softmax, layer.tau
    if isinstance(layer, Scale):
        return ops.scale, p["scale"], p["shift"]
    if isinstance(layer, Log):
        return ops.log, layer.tau
    if isinstance(layer, Reshape):
        return ops.reshape, layer.shape
    simple = {
        Binary: ops.binary,
        ReLU: ops.relu,
        Sigmoid: ops.sigmoid,
        Flatten: ops.flatten,
        GlobalAverage: ops.global_average,
    }
    return [] if isinstance(layer, Dropout) else (simple[type(layer)],)


def by_reference(problem):
    """arrays -> y, from the reference's forward and losses alone, and without noise."""
    subject, examples = problem.subject, problem.examples
    network = subject if isinstance(subject, Layer) else getattr(subject, "network", Sequential([]))

    def f(arrays):
        x = arrays["x"] if "x" in arrays else examples[0]
        weights = [a for name, a in arrays.items() if name != "x"]
        y = train.forward(train.with_weights([as_reference(network)], weights), x)
        if isinstance(subject, Layer):
            return joined(y)
        if isinstance(subject, fitnets.Stage):
            target = x if subject.target is None else train.forward([as_reference(subject.target)], x)
            return loss_by_reference(subject.loss)(y, target, examples[-1])
        return getattr(losses, getattr(subject, "stands_for", subject.__name__))(y, *examples, **problem.settings)

    return f


def loss_by_reference(loss):
    """The loss of a stage, in epoch EPOCH."""
    if isinstance(loss, fitnets.Distillation):
        eq_2 = loss.tau, loss.lam(EPOCH), loss.student_tau
        return lambda y, target, labels: losses.distillation_loss(y, target, labels, *eq_2)
    if isinstance(loss, fitnets.Hint):
        return lambda y, target, labels: losses.hint_loss(y, target, loss.reduction)
    if isinstance(loss, baselines.Mimic):
        return lambda y, target, labels: losses.hint_loss(y / np.array(loss.spread), target / np.array(loss.spread))
    if isinstance(loss, baselines.SquaredHinge):
        return lambda y, target, labels: losses.squared_hinge(y, labels, loss.gamma)
    if isinstance(loss, baselines.Outputs):
        return partial(outputs_by_reference, loss)
    if isinstance(loss, greedy.Reconstruction):
        return lambda y, seen, labels: losses.reconstruction_loss(y, seen)
    return lambda y, target, labels: losses.cross_entropy(y, labels)


def outputs_by_reference(loss, ys, targets, labels):
    """The last output's loss, and the weighed ones of the others; targets: the images, where there is no teacher."""
    targets = targets if isinstance(targets, tuple) else [None] * len(ys)
    values = [loss_by_reference(of)(y, t, labels) for of, y, t in zip(loss.losses, ys, targets, strict=True)]
    return loss.weight(EPOCH) * sum(values[:-1]) + values[-1]


def quiet(problem):
    return replace(problem, seed=None)


def below(kind):
    """Returns all subclasses, direct and indirect."""
    return [found for subclass in kind.__subclasses__() for found in (subclass, *below(subclass))]
