"""Ties and kinks on small integers, values at the ends of the scale, and shapes that must be refused."""

from math import ceil

import numpy as np
import pytest
import strict
from hypothesis import given
from hypothesis import strategies as st
from properties import FAR, far_logits_are_scipys, ties_go_to_the_first
from scipy import special

from minifit import composites, layers, networks, problems
from minifit.composites import Autoassociator, Branches, Mean, Sequential
from minifit.layers import (
    Binary,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAverage,
    Linear,
    Log,
    Maxout,
    MaxPool2d,
    ReLU,
    Scale,
    Softmax,
)
from minifit.losses import (
    cross_entropy,
    distillation_loss,
    hint_loss,
    log_softmax,
    reconstruction_loss,
    squared_hinge,
)
from minifit.regressors import pieces_of, regressor, weights

SEEDS = st.integers(0, 2**32 - 1)


def integers(seed, *shape, high=3):
    return np.random.default_rng(seed).integers(0, high, shape).astype(float)


TIES = [case for case in problems.CASES if problems.asks(case) in ("Maxout", "MaxPool2d")]


@pytest.mark.parametrize("case", TIES, ids=lambda case: case.name)
@given(data=st.data(), seed=SEEDS)
def test_a_tie_sends_the_whole_gradient_to_the_first_of_the_tied_inputs(case, data, seed):
    rng = np.random.default_rng(seed)
    ties_go_to_the_first(case.draw(lambda low, high: data.draw(st.integers(low, high)), rng), rng)


@pytest.mark.parametrize(
    ("values", "size", "stride", "dx"),
    [
        ([5, 5, 5, 5], 2, 2, [1, 0, 2, 0]),
        ([5, 5, 5, 5], 3, 1, [1, 2, 0, 0]),
        ([1, 5, 1, 5, 1], 3, 2, [0, 1, 0, 2, 0]),
        ([1, 2, 5, 2, 1], 3, 2, [0, 0, 3, 0, 0]),  # both windows choose the shared input
        ([1, 2, 5, 2, 1], 3, 1, [0, 0, 6, 0, 0]),  # all three do, each at another offset
        ([1, 2, 3, 4, 5], 2, 2, [0, 1, 0, 2, 3]),  # the last window is cut off
        ([7, 7, 7], 5, 2, [1, 0, 0]),  # a window larger than the map
        ([9, 1, 2, 8], 1, 3, [1, 0, 0, 2]),  # a stride beyond the window: inputs that nobody sees
    ],
)
def test_pooling_along_a_line_can_be_followed_by_hand(values, size, stride, dx):
    x = np.array(values, float).reshape(1, -1, 1, 1)
    y, cache = MaxPool2d(size, stride).forward(x)
    dy = 1 + np.arange(y.size, dtype=float).reshape(y.shape)
    np.testing.assert_array_equal(MaxPool2d(size, stride).backward(dy, cache)[0].ravel(), dx)


def test_maxout_pieces_are_a_unit_count_apart():
    layer = Maxout(2)
    y, cache = layer.forward(np.array([[1.0, 8.0, 3.0, 4.0]]))  # units (1, 3) and (8, 4)
    np.testing.assert_array_equal(y, [[3, 8]])
    np.testing.assert_array_equal(layer.backward(np.array([[5.0, 7.0]]), cache)[0], [[0, 7, 5, 0]])


def test_relu_has_slope_0_at_0():
    layer = ReLU()
    y, cache = layer.forward(np.array([[-2.0, -0.0, 0.0, 3.0]]))
    np.testing.assert_array_equal(y, [[0, 0, 0, 3]])
    np.testing.assert_array_equal(layer.backward(np.ones((1, 4)), cache)[0], [[0, 0, 0, 1]])


def test_ties_through_a_whole_block_go_to_the_first_piece_of_the_first_position():
    w, b = np.zeros((1, 1, 1, 4)), np.zeros(4)
    block = Sequential([Conv2d(w, b), Maxout(2), MaxPool2d(2, 2)])
    y, cache = block.forward(1 + np.arange(4.0).reshape(1, 2, 2, 1))
    _, grads = block.backward(np.ones(y.shape), cache)
    np.testing.assert_array_equal(grads["0.b"], [1, 1, 0, 0])
    np.testing.assert_array_equal(grads["0.w"].ravel(), [1, 1, 0, 0])  # the first position holds a 1


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_softmax_and_log_softmax_are_scipys_for_logits_of_any_size(dtype):
    far, exact = FAR.astype(dtype), 4 * np.finfo(dtype).eps
    np.testing.assert_allclose(log_softmax(far), special.log_softmax(FAR, axis=1), rtol=exact)
    for tau in (1e-3, 1.0, 1e3):
        far_logits_are_scipys(problems.of_layer(Softmax(tau), far), None)


def test_softmax_is_over_the_last_axis_and_at_temperature_1_unless_told():
    x, dy = np.random.default_rng(0).normal(size=(2, 3, 4, 5)), np.random.default_rng(1).normal(size=(2, 3, 4, 5))
    y, cache = Softmax().forward(x)
    np.testing.assert_allclose(y, special.softmax(x, axis=-1), rtol=1e-14)
    np.testing.assert_allclose(log_softmax(x), special.log_softmax(x, axis=-1), rtol=1e-13)
    dx, _ = Softmax().backward(dy, cache)
    row, _ = Softmax().backward(dy[:, 1, 2], Softmax().forward(x[:, 1, 2])[1])
    np.testing.assert_allclose(dx[:, 1, 2], row, rtol=1e-13)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_cross_entropy_of_sure_logits_is_exact(dtype):
    labels = np.array([1, 0, 2])
    loss, dlogits = cross_entropy(FAR.astype(dtype), labels)
    assert loss == pytest.approx((20_000 + 20_000 + np.log(3)) / 3, rel=1e-6 if dtype == np.float32 else 1e-15)
    wanted = np.array([[1, -1, 0], [-1, 0, 1], [1 / 3, 1 / 3, -2 / 3]]) / 3
    np.testing.assert_allclose(dlogits, wanted, atol=np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("tau", [1e-3, 1e3])
@pytest.mark.parametrize("scale", [1e-4, 1.0])
def test_distillation_is_eq_2_at_extreme_temperatures(tau, scale, dtype):
    logits, teacher, labels, lam = scale * FAR, scale * FAR[::-1], np.array([0, 2, 1]), 2.5
    loss, dlogits = distillation_loss(logits.astype(dtype), teacher.astype(dtype), labels, tau, lam)
    p_teacher, log_p = special.softmax(teacher / tau, axis=1), special.log_softmax(logits / tau, axis=1)
    hard = -special.log_softmax(logits, axis=1)[np.arange(3), labels].mean()
    rtol = 1e-13 if dtype == np.float64 else 1e-5
    np.testing.assert_allclose(loss, hard - lam * (p_teacher * log_p).sum(axis=1).mean(), rtol=rtol)
    dhard = (special.softmax(logits, axis=1) - np.eye(3)[labels]) / 3
    dsoft = lam / tau / 3 * (special.softmax(logits / tau, axis=1) - p_teacher)
    np.testing.assert_allclose(dlogits, dhard + dsoft, rtol=rtol, atol=rtol * lam / tau)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_probabilities_whose_square_is_no_normal_number_send_no_gradient(dtype):
    tiny = np.finfo(dtype).tiny
    edge = -np.log(tiny) / 2
    gaps = np.concatenate([[0], edge + np.array([-20, -1e-2, 1e-2, 1, 20]), 2 * edge + np.array([-1, 1, 9, 20])])
    logits, labels = -gaps.astype(dtype)[None], np.array([0])
    _, hard = cross_entropy(logits, labels)
    teacher = logits[:, ::-1]
    _, soft = distillation_loss(2 * logits, 2 * teacher, labels, tau=2.0, lam=2.0)  # lam / tau = 1
    with np.errstate(under="ignore"):
        p = np.exp(-gaps)
    p[gaps > edge] = 0
    exact = {"rtol": 4 * edge * np.finfo(dtype).eps, "atol": 0}  # of the logits' own rounding
    np.testing.assert_allclose(hard[0, 1:], p[1:], **exact)
    np.testing.assert_allclose(soft[0, 1:-1], (p - p[::-1])[1:-1], **exact)
    for gradient in (hard, soft):
        assert not ((gradient != 0) & (abs(gradient) < tiny**0.5)).any()


def test_sure_images_send_nothing_subnormal_back_through_a_network():
    network = networks.build(networks.MNIST_FITNET)
    networks.initialise(network, np.random.default_rng(0))
    x = np.random.default_rng(1).random((64, 28, 28, 1)).astype(np.float32)
    labels = network(x).argmax(axis=-1)
    network.params["6.1.w"] *= 100 / np.sort(np.ptp(network(x), axis=-1))[32]  # logits up to 100 apart, or further
    logits, caches = network.forward(x)
    _, dy = cross_entropy(logits, labels)
    for layer, cache in reversed(list(zip(network, caches, strict=True))):
        dy, grads = layer.backward(dy, cache)
        for array in (dy, *grads.values()):
            assert array.any()
            assert not ((array != 0) & (abs(array) < np.finfo(np.float32).tiny)).any()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_masked_class_adds_nothing_to_a_loss_unless_it_is_wanted(dtype):
    logits, labels = np.array([[1.0, -np.inf, 2.0, 0.5], [0.0, 3.0, -np.inf, -np.inf]], dtype), np.array([2, 1])
    masked, rows = np.isinf(logits), [(row[np.isfinite(row)][None], np.array([1])) for row in logits]
    for loss in (cross_entropy, lambda a, y: distillation_loss(a, 2 * a, y, 3.0, 4.0)):
        value, d = loss(logits, labels)
        np.testing.assert_allclose(value, sum(loss(*row)[0] for row in rows) / 2, rtol=1e-6)
        assert not d[masked].any() and np.isfinite(d).all()
    finite = np.where(masked, 0, logits)
    assert np.isfinite(distillation_loss(finite, logits, labels, 3.0, 4.0)[0])  # masked for the teacher alone
    assert distillation_loss(logits, finite, labels, 3.0, 4.0)[0] == np.inf  # what the student rules out, it expects
    assert distillation_loss(logits, finite, labels, 3.0, 0.0)[0] == cross_entropy(logits, labels)[0]  # unless lam is 0
    assert cross_entropy(logits, np.array([1, 1]))[0] == np.inf


def test_an_example_whose_hinge_is_just_what_it_may_cost_has_no_gradient():
    logits, labels = np.array([[0.5, -1.0, -2.0], [0.5, -1.0, 0.0]]), np.array([0, 0])
    loss, d = squared_hinge(logits, labels, gamma=0.25)  # the first costs 1/4, the second 5/4
    assert loss == 0.5
    np.testing.assert_array_equal(d, [[0, 0, 0], [-0.5, 0, 1]])
    assert squared_hinge(logits, labels)[0] == 0.75  # unless told, every cost counts


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_logarithm_of_what_underflows_is_that_of_the_smallest_number_and_has_slope_0(dtype):
    tiny = np.finfo(dtype).tiny
    x = np.array([0, tiny / 2, tiny, 1, 2], dtype)
    y, cache = Log().forward(x)
    np.testing.assert_allclose(y, np.log([tiny, tiny, tiny, 1, 2]), rtol=1e-6)
    np.testing.assert_array_equal(Log().backward(np.ones(5, dtype), cache)[0], [0, 0, 1 / tiny, 1, 0.5])


def test_noise_reaches_every_part_of_a_composite():
    x = np.ones((4, 50))
    first, second = (np.random.default_rng(1) for _ in range(2))
    both = [Dropout(0.5)(x, first), Dropout(0.5)(x, first)]
    mean = Mean([Dropout(0.5), Dropout(0.5)])
    branches = Branches(Sequential([Dropout(0.5), ReLU(), Dropout(0.5)]), {1: Dropout(0.5)})
    np.testing.assert_array_equal(mean.forward(x, second)[0], (both[0] + both[1]) / 2)
    np.testing.assert_array_equal(mean(x, np.random.default_rng(1)), (both[0] + both[1]) / 2)
    last = both[0] * Dropout(0.5)(x, first)
    for outputs in (branches(x, np.random.default_rng(1)), branches.forward(x, np.random.default_rng(1))[0]):
        head, trunk = outputs
        np.testing.assert_array_equal(head, both[0] * both[1])
        np.testing.assert_array_equal(trunk, last)


def test_only_the_axes_that_are_summed_over_may_not_be_empty():
    assert Softmax()(np.zeros((2, 0, 3))).shape == (2, 0, 3)
    assert GlobalAverage()(np.zeros((2, 3, 3, 0))).shape == (2, 0)
    np.testing.assert_array_equal(Softmax()(np.zeros(4)), [0.25] * 4)


def test_dropout_that_keeps_everything_draws_nothing():
    x, rng = np.ones((3, 4)), np.random.default_rng(0)
    np.testing.assert_array_equal(Dropout(1)(x, rng), x)
    assert rng.random() == np.random.default_rng(0).random()


def test_maps_of_one_pixel_are_maps():
    x = np.array([[[[2.0, -3.0]]]])
    w = np.arange(1.0, 19.0).reshape(3, 3, 2, 1)
    np.testing.assert_array_equal(Conv2d(w, np.ones(1), pad=1)(x).ravel(), [1 + 2 * w[1, 1, 0, 0] - 3 * w[1, 1, 1, 0]])
    np.testing.assert_array_equal(MaxPool2d(4, 2)(x), x)
    np.testing.assert_array_equal(Maxout(2)(x), [[[[2.0]]]])


@pytest.mark.parametrize("ceil", [True, False])
@pytest.mark.parametrize("size", range(1, 10))
def test_pooling_without_a_gradient_takes_the_same_largest(size, ceil):
    doubled = set()
    for stride in range(1, 5):
        for extent in range(1 if ceil else size, 14):
            x = np.random.default_rng(extent).normal(size=(2, extent, extent + 1, 3))
            layer = MaxPool2d(size, stride, ceil)
            np.testing.assert_array_equal(layer(x), layer.forward(x)[0])
            doubled.add(bool(layers._doubled(size, stride, extent, layer._count(extent), 1)[0]))
    assert doubled == ({True, False} if size > 1 else {False})


# name of what must refuse, what it must say, and the attempt
W, W4, B = np.zeros((3, 3, 2, 4)), np.zeros((4, 4, 2, 4)), np.zeros(4)
SHAPE = 5, 4, 3
REFUSED = [
    (r"Linear: input \(2, 3\); wanted \(N, 4\)", lambda: Linear(np.zeros((4, 5)), np.zeros(5))(np.zeros((2, 3)))),
    (r"Linear: input \(2, 4, 1\)", lambda: Linear(np.zeros((4, 5)), np.zeros(5))(np.zeros((2, 4, 1)))),
    (r"Linear: w \(4, 5\) and b \(1,\)", lambda: Linear(np.zeros((4, 5)), np.zeros(1))),
    (r"Linear: w \(4,\)", lambda: Linear(np.zeros(4), np.zeros(()))),
    (r"Conv2d: input \(1, 5, 5, 1\); wanted \(N, H, W, 2\)", lambda: Conv2d(W, B)(np.zeros((1, 5, 5, 1)))),
    (r"Conv2d: input \(1, 2, 5, 2\); .* 3x3 kernel, pad 0", lambda: Conv2d(W, B)(np.zeros((1, 2, 5, 2)))),
    (r"Conv2d: input \(1, 5, 2, 2\); .* 3x3 kernel, pad 0", lambda: Conv2d(W, B)(np.zeros((1, 5, 2, 2)))),
    (r"Conv2d: input \(1, 1, 5, 2\); .* pad 1", lambda: Conv2d(W4, B, pad=1)(np.zeros((1, 1, 5, 2)))),
    (r"Conv2d: input \(1, 5, 1, 2\); .* pad 1", lambda: Conv2d(W4, B, pad=1)(np.zeros((1, 5, 1, 2)))),
    (r"Conv2d: input \(5, 5, 2\)", lambda: Conv2d(W, B)(np.zeros((5, 5, 2)))),
    (r"Conv2d: w \(3, 3, 2, 4\) and b \(1,\)", lambda: Conv2d(W, np.zeros(1))),
    (r"Conv2d: w \(3, 4\)", lambda: Conv2d(np.zeros((3, 4)), B)),
    (r"Conv2d: pad -1; wanted an integer", lambda: Conv2d(W, B, pad=-1)),
    (r"Conv2d: pad 1.5; wanted an integer", lambda: Conv2d(W, B, pad=1.5)),
    (r"Maxout: input \(2, 5\) does not divide into 2 pieces", lambda: Maxout(2)(np.zeros((2, 5)))),
    (r"Maxout: 0 pieces", lambda: Maxout(0)),
    (r"Maxout: 2.5 pieces; wanted an integer", lambda: Maxout(2.5)),
    (r"MaxPool2d: input \(2, 5\)", lambda: MaxPool2d(2, 2)(np.zeros((2, 5)))),
    (r"MaxPool2d: input \(1, 0, 5, 2\)", lambda: MaxPool2d(2, 2)(np.zeros((1, 0, 5, 2)))),
    (r"MaxPool2d: input \(1, 5, 0, 2\)", lambda: MaxPool2d(2, 2)(np.zeros((1, 5, 0, 2)))),
    (r"MaxPool2d: input \(1, 2, 5, 2\)", lambda: MaxPool2d(3, 2, ceil=False)(np.zeros((1, 2, 5, 2)))),
    (r"MaxPool2d: input \(1, 5, 2, 2\)", lambda: MaxPool2d(3, 2, ceil=False)(np.zeros((1, 5, 2, 2)))),
    (r"MaxPool2d: size 0, stride 1", lambda: MaxPool2d(0, 1)),
    (r"MaxPool2d: size 1, stride 0", lambda: MaxPool2d(1, 0)),
    (r"MaxPool2d: size 2.5, stride 1; wanted integers", lambda: MaxPool2d(2.5, 1)),
    (r"MaxPool2d: size 2, stride 1.0; wanted integers", lambda: MaxPool2d(2, 1.0)),
    (r"Conv2d: input \(9, 5, 0, 2\); .* at least one pixel", lambda: Conv2d(W, B, 2)(np.zeros((9, 5, 0, 2)))),
    (r"Conv2d: input \(9, 0, 5, 2\); .* at least one pixel", lambda: Conv2d(W, B, 2)(np.zeros((9, 0, 5, 2)))),
    (r"Conv2d: input \(2, 0, 0, 2\); .* at least one pixel", lambda: Conv2d(W, B, 2).forward(np.zeros((2, 0, 0, 2)))),
    (r"Softmax: input \(2, 0\); wanted .* at least one class", lambda: Softmax()(np.zeros((2, 0)))),
    (r"Softmax: input \(\)", lambda: Softmax()(np.zeros(()))),
    (r"Branches: heads at \[0\]; wanted depths .* 1 to 2", lambda: Branches(Sequential([ReLU()] * 2), {0: ReLU()})),
    (r"Branches: heads at \[3\]", lambda: Branches(Sequential([ReLU()] * 2), {3: ReLU()})),
    (r"Mean: no layers", lambda: Mean([])),
    (r"Mean: outputs \(2, 3\), \(2, 1\) differ", lambda: Mean([ReLU(), Maxout(3)])(np.zeros((2, 3)))),
    (r"Scale: input \(2, 4\); wanted \(N, 3\)", lambda: Scale(np.ones(3), np.ones(3))(np.zeros((2, 4)))),
    (r"Scale: input \(2, 3, 1\); wanted \(N, 3\)", lambda: Scale(np.ones(3), np.ones(3))(np.zeros((2, 3, 1)))),
    (r"Scale: scale \(3,\) and shift \(1,\)", lambda: Scale(np.ones(3), np.ones(1))),
    (r"Scale: scale \(1, 3\) and shift \(1, 3\)", lambda: Scale(np.ones((1, 3)), np.ones((1, 3)))),
    (
        r"Autoassociator: an encoder of parameters \['0.0.w', '0.0.b'\]; wanted one w and one b",
        lambda: Autoassociator(Sequential([Sequential([Linear(np.zeros((3, 2)), np.zeros(2))])]), np.zeros(3)),
    ),
    (r"GlobalAverage: input \(2, 3, 3\)", lambda: GlobalAverage()(np.zeros((2, 3, 3)))),
    (r"GlobalAverage: input \(2, 0, 3, 4\)", lambda: GlobalAverage()(np.zeros((2, 0, 3, 4)))),
    (r"GlobalAverage: input \(2, 3, 0, 4\)", lambda: GlobalAverage()(np.zeros((2, 3, 0, 4)))),
    (r"Binary: input \(2, 2\)", lambda: Binary()(np.zeros((2, 2)))),
    (r"Binary: input \(2, 1, 1\)", lambda: Binary()(np.zeros((2, 1, 1)))),
    (r"Log: tau 0.0 is not positive", lambda: Log(0.0)),
    (r"Log: tau nan is not positive", lambda: Log(float("nan"))),
    (r"Softmax: tau 0.0 is not positive", lambda: Softmax(0.0)),
    (r"Softmax: tau -1.0 is not positive", lambda: Softmax(-1.0)),
    (r"Softmax: tau nan is not positive", lambda: Softmax(float("nan"))),
    (r"Dropout: keep 0 is not in \(0, 1\]", lambda: Dropout(0)),
    (r"Dropout: keep 1.5 is not in \(0, 1\]", lambda: Dropout(1.5)),
    (r"Conv2d: w \(0, 3, 1, 2\)", lambda: Conv2d(np.zeros((0, 3, 1, 2)), np.zeros(2))),
    (r"Conv2d: w \(3, 3, 0, 2\)", lambda: Conv2d(np.zeros((3, 3, 0, 2)), np.zeros(2))),
    (r"Conv2d: w \(3, 3, 2, 0\)", lambda: Conv2d(np.zeros((3, 3, 2, 0)), np.zeros(0))),
    (r"Conv2d: pad True; wanted an integer", lambda: Conv2d(np.zeros((1, 1, 1, 2)), np.zeros(2), pad=True)),
    (r"cross_entropy: logits \(2, 3\) and labels \(3,\)", lambda: cross_entropy(np.zeros((2, 3)), np.zeros(3, int))),
    (
        r"cross_entropy: logits \(2, 3\) and labels \(2, 1\)",
        lambda: cross_entropy(np.zeros((2, 3)), np.zeros((2, 1), int)),
    ),
    (r"cross_entropy: logits \(2, 1\); wanted two classes", lambda: cross_entropy(np.zeros((2, 1)), np.zeros(2, int))),
    (r"cross_entropy: logits \(2, 0\); wanted two classes", lambda: cross_entropy(np.zeros((2, 0)), np.zeros(2, int))),
    (
        r"distillation_loss: logits \(2, 1\); wanted two classes",
        lambda: distillation_loss(np.zeros((2, 1)), np.zeros((2, 1)), np.zeros(2, int), 3.0, 1.0),
    ),
    (r"squared_hinge: logits \(2, 3\) and labels \(3,\)", lambda: squared_hinge(np.zeros((2, 3)), np.zeros(3, int))),
    (r"squared_hinge: gamma -1.0", lambda: squared_hinge(np.zeros((2, 3)), np.zeros(2, int), -1.0)),
    (r"squared_hinge: gamma nan", lambda: squared_hinge(np.zeros((2, 3)), np.zeros(2, int), float("nan"))),
    (
        r"reconstruction_loss: logits \(2, 3\) and x \(2, 1\) differ",
        lambda: reconstruction_loss(np.zeros((2, 3)), np.zeros((2, 1))),
    ),
    (r"reconstruction_loss: logits \(\) are no batch", lambda: reconstruction_loss(np.zeros(()), np.zeros(()))),
    (r"reconstruction_loss: an empty batch", lambda: reconstruction_loss(np.zeros((0, 3)), np.zeros((0, 3)))),
    (r"hint_loss: reduction 'max'; wanted", lambda: hint_loss(np.zeros((2, 1)), np.zeros((2, 1)), "max")),
    (r"cross_entropy: logits \(2,\)", lambda: cross_entropy(np.zeros(2), np.zeros(2, int))),
    (r"cross_entropy: labels are float64", lambda: cross_entropy(np.zeros((2, 3)), np.zeros(2))),
    (r"cross_entropy: a label is outside 0..2", lambda: cross_entropy(np.zeros((2, 3)), np.array([0, 3]))),
    (r"cross_entropy: a label is outside 0..2", lambda: cross_entropy(np.zeros((2, 3)), np.array([0, -1]))),
    (
        r"distillation_loss: logits \(2, 3\) and teacher's \(1, 3\) differ",
        lambda: distillation_loss(np.zeros((2, 3)), np.zeros((1, 3)), np.array([0, 1]), 3.0, 1.0),
    ),
    (
        r"distillation_loss: tau 0 is not positive",
        lambda: distillation_loss(np.zeros((2, 3)), np.zeros((2, 3)), np.array([0, 1]), 0, 1.0),
    ),
    (
        r"distillation_loss: student_tau 0 is not positive",
        lambda: distillation_loss(np.zeros((2, 3)), np.zeros((2, 3)), np.array([0, 1]), 3.0, 1.0, 0),
    ),
    (
        r"distillation_loss: lam -0.5; wanted 0 or more",
        lambda: distillation_loss(np.zeros((2, 3)), np.zeros((2, 3)), np.array([0, 1]), 3.0, -0.5),
    ),
    (
        r"distillation_loss: lam nan; wanted 0 or more",
        lambda: distillation_loss(np.zeros((2, 3)), np.zeros((2, 3)), np.array([0, 1]), 3.0, float("nan")),
    ),
    (
        r"distillation_loss: a label is outside 0..2",
        lambda: distillation_loss(np.zeros((2, 3)), np.zeros((2, 3)), np.array([0, 5]), 3.0, 1.0),
    ),
    (r"hint_loss: guided \(2, 1\) and hint \(2, 3\) differ", lambda: hint_loss(np.zeros((2, 1)), np.zeros((2, 3)))),
    (r"hint_loss: guided \(\) is no batch", lambda: hint_loss(np.zeros(()), np.zeros(()))),
    (
        r"regressor none: guided \(5, 4, 3\) and hint \(5, 4, 2\) differ; conv or fc would fit",
        lambda: regressor("none", SHAPE, (5, 4, 2), 2),
    ),
    (r"and hint \(6, 4, 3\) differ; fc would fit", lambda: regressor("none", SHAPE, (6, 4, 3), 2)),
    (r"and hint \(60,\) differ; fc would fit", lambda: regressor("none", SHAPE, (60,), 2)),
    (
        r"regressor fc: training its 1,620,000,000,000,000,000 weights would take .* GiB, .*; conv would fit",
        lambda: regressor("fc", (10**4, 10**4, 9), (10**4, 10**4, 9), 2),
    ),
    (
        r"GiB, and this machine has .*; conv would fit",
        lambda: regressor("fc", (10**4, 10**4, 1), (10**4, 10**4, 1), None),
    ),
    (
        r"GiB, and this machine has .*; a smaller guided map",
        lambda: regressor("fc", (10**4, 10**4, 9), (10**5, 10**4, 9), 2),
    ),
    (r"regressor 'deconv': wanted", lambda: regressor("deconv", SHAPE, (5, 4, 2), 2)),
    (r"regressor conv: guided \(60,\)", lambda: regressor("conv", (60,), SHAPE, 2)),
    (r"regressor conv: guided .* and hint \(60,\)", lambda: regressor("conv", SHAPE, (60,), 2)),
    (r"regressor conv: hint \(6, 4, 3\) is larger", lambda: regressor("conv", SHAPE, (6, 4, 3), 2)),
    (r"regressor conv: hint \(5, 5, 3\) is larger", lambda: regressor("conv", SHAPE, (5, 5, 3), 2)),
    (r"needs a maxout or ReLU", lambda: pieces_of(Sequential([Flatten(), MaxPool2d(2, 2)]))),
]


@pytest.mark.parametrize(("message", "attempt"), REFUSED, ids=[message.replace("\\", "") for message, _ in REFUSED])
def test_what_would_broadcast_or_be_cut_off_is_refused_by_name_and_shape(message, attempt):
    with pytest.raises(ValueError, match=message):
        attempt()


@pytest.mark.parametrize("images", [2, 9])
@pytest.mark.parametrize("kernel", [(1, 1, 2, 4), (3, 3, 2, 4), (3, 3, 24, 48), (5, 5, 4, 6)], ids=str)
@pytest.mark.parametrize("types", ["fd", "df", "ff", "dd", "bf", "ld"])
def test_the_type_of_a_convolution_is_its_inputs_and_weights_whatever_the_method(types, kernel, images):
    of_x, of_w = types
    x = integers(0, images, 9, 8, kernel[2]).astype(of_x)
    layer = Conv2d(integers(1, *kernel).astype(of_w), integers(2, kernel[3]).astype(of_w), pad=1)
    both = np.result_type(x.dtype, of_w)
    y, cache = layer.forward(x)
    assert y.dtype == both == Sequential([layer, Maxout(2)])(x).dtype
    np.testing.assert_allclose(y, Conv2d(*(p.astype("d") for p in layer.params.values()), 1)(x.astype("d")), atol=1e-3)
    for of_dy in "fd":
        dx, grads = layer.backward(np.ones(y.shape, of_dy), cache)
        alone = layer.weight_gradients(np.ones(y.shape, of_dy), cache)
        types = {a.dtype for a in (dx, *grads.values(), *alone.values())}
        assert types == {np.result_type(both, of_dy)}


@pytest.mark.parametrize("types", ["ffd", "fdf", "dff"])
@pytest.mark.parametrize("images", [2, 9])
def test_the_widest_type_of_input_weights_and_biases_is_that_of_a_convolution(types, images):
    of_x, of_w, of_b = types
    layer = Conv2d(np.ones((3, 3, 2, 4), of_w), np.ones(4, of_b), 1)
    assert layer(np.ones((images, 5, 5, 2), of_x)).dtype == np.float64


@given(st.integers(1, 9), st.integers(1, 6), st.integers(1, 6))
def test_max_pooling_has_as_many_outputs_as_its_docstring_says(h, size, stride):
    y = MaxPool2d(size, stride)(np.zeros((1, h, 1, 1)))
    assert y.shape[1] == min(1 + max(0, ceil((h - size) / stride)), ceil(h / stride))
    assert "P = min(1 + max(0, ceil((H - size) / stride)), ceil(H / stride))" in MaxPool2d.__doc__


def test_parameters_have_the_same_names_with_and_without_dropout():
    for network in (networks.MNIST_TEACHER, networks.CIFAR10_TEACHER):
        plain = networks.build(network)
        for keep in (
            {"dropout_keep_input": 0.8},
            {"dropout_keep": 0.5},
            {"dropout_keep_input": 0.8, "dropout_keep": 0.5},
        ):
            noisy = networks.build(network, **keep)
            assert list(noisy.params) == list(plain.params)
            assert [w.max_norm for w in composites.weights(noisy)] == [w.max_norm for w in composites.weights(plain)]
            y, cache = noisy[0].forward(np.zeros((1, *network.input), np.float32), np.random.default_rng(0))
            assert noisy[0].weight_gradients(y, cache).keys() == plain[0].params.keys()


def test_integers_of_numpy_are_integers():
    one, two = np.int64(1), np.int32(2)
    x = integers(0, 2, 5, 4, 2)
    for given_, plain in ((Conv2d(W, B, one), Conv2d(W, B, 1)), (MaxPool2d(two, one), MaxPool2d(2, 1))):
        np.testing.assert_array_equal(given_(x), plain(x))
    np.testing.assert_array_equal(Maxout(two)(x), Maxout(2)(x))


@pytest.mark.parametrize("on_host", range(3))
def test_losses_of_arrays_of_two_libraries_are_refused(on_host):
    arrays = [strict.asarray(a) for a in (np.zeros((2, 3)), np.zeros((2, 3)), np.array([0, 2]))]
    arrays[on_host] = arrays[on_host].get()
    logits, teacher_logits, labels = arrays
    with pytest.raises(TypeError, match="arrays of one library"):
        distillation_loss(logits, teacher_logits, labels, 3.0, 1.0)
    for loss in (cross_entropy, squared_hinge) if on_host != 1 else ():
        with pytest.raises(TypeError, match="arrays of one library"):
            loss(logits, labels)
    if on_host != 2:
        with pytest.raises(TypeError, match="arrays of one library"):
            reconstruction_loss(logits, teacher_logits)


@pytest.mark.parametrize("kind", ["conv", "fc"])
@pytest.mark.parametrize("pieces", [None, 1, 3])
def test_a_regressor_is_of_zeros_until_it_is_drawn_and_its_filters_have_the_largest_norm_it_is_given(kind, pieces):
    made = regressor(kind, (6, 5, 4), (4, 4, 7), pieces, max_norm=0.9)
    w, b = made.params.values()
    assert w.shape[-1] == b.size == (pieces or 1) * (7 if kind == "conv" else 4 * 4 * 7)
    assert w.dtype == b.dtype == np.float32
    assert not w.any() and not b.any()
    assert [w.max_norm for w in composites.weights(made)] == [0.9, None]  # of w and of b
    assert made(np.zeros((2, 6, 5, 4), np.float32)).shape == (2, 4, 4, 7)


def test_weights_are_drawn_in_order_and_in_place_no_wider_than_told_and_biases_stay_0():
    network = networks.build(networks.MNIST_FITNET)
    before = dict(network.params)
    for init_range in (0.005, 0.5, None):
        networks.initialise(network, np.random.default_rng(0), init_range)
        rng = np.random.default_rng(0)
        for name, p in network.params.items():
            assert p is before[name]
            if name.endswith("b"):
                assert not p.any()
                continue
            scale = np.prod(p.shape[:-1]) ** -0.5
            drawn = rng.uniform(-init_range, init_range, p.shape) if init_range else rng.normal(0, scale, p.shape)
            np.testing.assert_array_equal(p, drawn.astype(np.float32))


@pytest.mark.parametrize("pieces", [None, 1, 3])
@pytest.mark.parametrize("guided", [(6, 5, 4), (6, 3, 4), (3, 5, 4), (3, 3, 4), (4, 4, 1), (60,)], ids=str)
@pytest.mark.parametrize("hint", [(4, 4, 7), (4, 4, 1), (28,)], ids=str)
@pytest.mark.parametrize("kind", ["conv", "fc", "none"])
def test_a_regressors_size_is_known_before_it_is_made_and_0_where_none_fits(kind, guided, hint, pieces):
    try:
        made = regressor(kind, guided, hint, pieces)
    except ValueError:
        assert weights(kind, guided, hint, pieces) == 0
    else:
        sizes = [w.size for name, w in made.params.items() if name.endswith("w")]
        assert weights(kind, guided, hint, pieces) == sum(sizes)


def test_a_block_has_the_pieces_of_its_last_non_linearity():
    assert pieces_of(Sequential([Maxout(2), Flatten(), Maxout(5), MaxPool2d(2, 2)])) == 5
    assert pieces_of(Sequential([Maxout(2), ReLU(), MaxPool2d(2, 2)])) is None
