"""The contract of DESIGN.md as properties, over every row of the audit's table and shapes that Hypothesis draws."""

from types import FunctionType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import EVERY_PROBLEM, all_close, close

from minifit import audit, fitnets, losses
from minifit.fitnets import Stage, gradient
from minifit.layers import Layer, ReLU
from minifit.patches import fold, unfold

SEEDS = st.integers(0, 2**32 - 1)
LAYERS = [
    case
    for case in audit.CASES
    if isinstance(case.draw(lambda low, high: low, np.random.default_rng(0)).subject, Layer)
]
STAGES = [case for case in audit.CASES if case.name.startswith("stage")]
NOISY = [case for case in audit.CASES if case.name in ("Dropout", "Dropout not rescaled", "block dropout conv maxout")]


def every(cases):
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


def whole_numbers(data):
    return lambda low, high: data.draw(st.integers(low, high))


def test_every_layer_loss_and_stage_has_a_row():
    assert audit.without_a_row() == []


@pytest.mark.parametrize("kind", sorted(set(map(audit.asks, audit.CASES))))
def test_a_kind_of_row_that_is_dropped_is_noticed(kind, monkeypatch):
    monkeypatch.setattr(audit, "CASES", [case for case in audit.CASES if audit.asks(case) != kind])
    assert audit.without_a_row() == [kind]


def test_a_layer_without_a_row_is_noticed_wherever_in_minifit_it_is(monkeypatch):
    class Later(ReLU):
        pass

    monkeypatch.setattr(Later, "__module__", "minifit.lab.training")
    assert audit.without_a_row() == ["Later"]


def test_a_public_function_of_losses_or_fitnets_needs_a_row_or_a_reason(monkeypatch):
    for module in (losses, fitnets):
        monkeypatch.setattr(module, "new", FunctionType((lambda: None).__code__, vars(module), "new"), raising=False)
    assert audit.without_a_row() == ["new", "new"]


@every(audit.CASES)
@given(data=st.data(), seed=SEEDS)
def test_backward_is_the_derivative_of_forward(case, data, seed):
    for comparison in audit.examine(case, whole_numbers(data), np.random.default_rng(seed)):
        assert comparison.ratio <= 1, comparison


@pytest.mark.parametrize("holds", EVERY_PROBLEM, ids=lambda holds: holds.__name__)
@every(audit.CASES)
@given(data=st.data(), seed=SEEDS)
def test_of_every_row(case, holds, data, seed):
    rng = np.random.default_rng(seed)
    holds(case.draw(whole_numbers(data), rng), rng)


@every(LAYERS)
@given(data=st.data(), seed=SEEDS)
def test_calling_a_layer_is_its_forward_and_weight_gradients_are_its_backwards(case, data, seed):
    rng = np.random.default_rng(seed)
    problem = case.draw(whole_numbers(data), rng)
    layer, x = problem.subject, problem.arrays["x"]
    y, cache = layer.forward(x, np.random.default_rng(seed))
    np.testing.assert_array_equal(layer(x, np.random.default_rng(seed)), y)
    dy = rng.normal(size=y.shape)
    all_close(layer.weight_gradients(dy, cache), layer.backward(dy, cache)[1])


@every(STAGES)
@given(data=st.data(), seed=SEEDS)
def test_a_minibatchs_gradient_is_the_sum_of_its_slices_each_times_its_share(case, data, seed):
    rng = np.random.default_rng(seed)
    problem = case.draw(whole_numbers(data), rng)
    x, target, labels = problem.examples
    n, cut = len(x), data.draw(st.integers(1, len(x)))
    slices = [slice(0, cut), slice(cut, n)] if cut < n else [slice(n)]
    parts = [
        gradient(problem.subject, x[i], target if target is None else target[i], labels[i], 3, share=len(x[i]) / n)
        for i in slices
    ]
    loss, grads = gradient(problem.subject, x, target, labels, 3)
    close(sum(part for part, _ in parts), loss)
    all_close({name: sum(g[name] for _, g in parts) for name in grads}, grads)
    assert isinstance(problem.subject, Stage)


@every(NOISY)
@given(seed=SEEDS)
def test_noise_is_what_the_generator_gives_and_none_is_none(case, seed):
    problem = case.draw(lambda low, high: high, np.random.default_rng(seed))
    layer, x = problem.subject, problem.arrays["x"]
    one, other = layer(x, np.random.default_rng(seed)), layer(x, np.random.default_rng(seed + 1))
    assert (one != other).any()
    np.testing.assert_array_equal(layer(x), layer(x))


@given(data=st.data(), seed=SEEDS)
def test_fold_is_exactly_the_adjoint_of_unfold(data, seed):
    integer, rng = whole_numbers(data), np.random.default_rng(seed)
    r, s, pad = integer(1, 4), integer(1, 4), integer(0, 3)
    h, w = (integer(max(1, size - 2 * pad), max(1, size - 2 * pad) + 4) for size in (r, s))
    x = rng.integers(-9, 10, (integer(1, 3), h, w, integer(1, 3))).astype(float)
    patches = unfold(x, r, s, pad)
    p = rng.integers(-9, 10, patches.shape).astype(float)
    assert (patches * p).sum() == (x * fold(p, x.shape, pad)).sum()
