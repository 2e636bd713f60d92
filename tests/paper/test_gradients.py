"""The contract of layers, losses and methods as properties: of every row of the audit, with shapes from Hypothesis."""

import inspect
import pkgutil
from importlib import import_module
from types import FunctionType

import joint
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import EVERY_PROBLEM, all_close, below, close

import minifit
from minifit import audit, baselines, losses, problems
from minifit.composites import leaves
from minifit.fitnets import gradient
from minifit.layers import Layer, ReLU
from minifit.patches import fold, unfold
from minifit.regressors import KINDS

SEEDS = st.integers(0, 2**32 - 1)
CASES = problems.cases()
METHODS = [case for case in CASES if case.name.startswith("method")]
LAYERS = [
    case
    for case in problems.CASES
    if isinstance(case.draw(lambda low, high: low, np.random.default_rng(0)).subject, Layer)
]
NOISY = [
    case for case in problems.CASES if case.name in ("Dropout", "Dropout not rescaled", "block dropout conv maxout")
]


def every(cases):
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


def whole_numbers(data):
    return lambda low, high: data.draw(st.integers(low, high))


def without_a_row():
    """Lists the layers, losses, kinds of regressor and methods in minifit that no row of the audit checks."""
    for module in pkgutil.walk_packages(minifit.__path__, "minifit."):
        import_module(module.name)  # a layer may be anywhere
    kinds = [kind for kind in below(Layer) if kind.backward is not Layer.backward]  # the others are never trained
    names = [kind.__name__ for kind in kinds if kind.__module__.startswith("minifit.")]
    for name, function in inspect.getmembers(losses, inspect.isfunction):
        own = function.__module__ == losses.__name__ and not name.startswith("_") and "__mutmut" not in name
        names += [name] if own and name != "log_softmax" else []  # which has no gradient to check
    names += dict.fromkeys(problems.regressor_name(kind, pieces) for kind in KINDS for pieces in (2, 1, None))
    names += [method.name for method in baselines.METHODS]
    asked = set(map(problems.asks, problems.cases()))
    return [name for name in names if name not in asked]


def test_every_layer_loss_and_method_has_a_row():
    assert without_a_row() == []


@pytest.mark.parametrize("kind", sorted(set(map(problems.asks, CASES))))
def test_a_kind_of_row_that_is_dropped_is_noticed(kind, monkeypatch):
    left = [case for case in CASES if problems.asks(case) != kind]
    monkeypatch.setattr(problems, "cases", lambda: left)
    assert without_a_row() == [kind]


def test_a_layer_without_a_row_is_noticed_wherever_in_minifit_it_is(monkeypatch):
    class Later(ReLU):
        pass

    monkeypatch.setattr(Later, "__module__", "minifit.lab.training")
    assert without_a_row() == ["Later"]


def test_a_public_function_of_losses_needs_a_row(monkeypatch):
    new = FunctionType((lambda: None).__code__, vars(losses), "new")
    monkeypatch.setattr(losses, "new", new, raising=False)
    assert without_a_row() == ["new"]


def test_a_new_method_is_audited_in_the_variants_that_change_it(monkeypatch):
    monkeypatch.setattr(baselines, "METHODS", (*baselines.METHODS, joint.METHOD))
    assert without_a_row() == []
    rows = [case for case in problems.cases() if problems.asks(case) == "joint"]
    assert [case.name for case in rows] == ["method joint" + variant for variant in problems.VARIANTS]
    results = audit.run(draws=1, only="method joint") + audit.run(draws=1, only="method joint ")
    assert [result.failure for result in results] == [None] * len(rows)
    assert {array.split()[0] for result in results for array in result.worst} == {"joint"}
    for case in rows:
        for holds in EVERY_PROBLEM[:-2]:
            for problem in problems.problems_of(case, lambda low, high: high, np.random.default_rng(0)):
                holds(problem, np.random.default_rng(1))


@every(CASES)
@given(data=st.data(), seed=SEEDS)
def test_backward_is_the_derivative_of_forward(case, data, seed):
    for comparison in audit.examine(case, whole_numbers(data), np.random.default_rng(seed)):
        assert comparison.ratio <= 1, comparison


@every(CASES)
@given(data=st.data(), seed=SEEDS)
def test_of_every_row(case, data, seed):
    for problem in problems.problems_of(case, whole_numbers(data), np.random.default_rng(seed)):
        for holds in EVERY_PROBLEM:
            holds(problem, np.random.default_rng(seed))


@every(LAYERS)
@given(data=st.data(), seed=SEEDS)
def test_calling_a_layer_is_its_forward_and_weight_gradients_are_its_backwards(case, data, seed):
    rng = np.random.default_rng(seed)
    problem = case.draw(whole_numbers(data), rng)
    layer, x = problem.subject, problem.arrays["x"]
    y, cache = layer.forward(x, np.random.default_rng(seed))
    alone = problems.joined(layer(x, np.random.default_rng(seed)))
    if layer.children:  # a convolution may be evaluated with its maxout
        close(alone, problems.joined(y))
    else:
        np.testing.assert_array_equal(alone, problems.joined(y))
    dy = problems.parted(rng.normal(size=problems.joined(y).shape), y)
    all_close(layer.weight_gradients(dy, cache), layer.backward(dy, cache)[1])


@every(LAYERS)
@given(data=st.data(), seed=SEEDS)
def test_a_visit_sees_every_leaf_in_order_with_its_input_and_gives_y(case, data, seed):
    problem = case.draw(whole_numbers(data), np.random.default_rng(seed))
    layer, seen = problem.subject, []
    y = layer.visit(problem.arrays["x"], lambda leaf, x: seen.append((leaf, leaf(x))))
    alone = problems.joined(layer(problem.arrays["x"]))
    if layer.children:
        close(problems.joined(y), alone)
    else:
        np.testing.assert_array_equal(problems.joined(y), alone)
    assert set(map(id, leaves(layer))) == {id(leaf) for leaf, _ in seen}


@every(METHODS)
@given(data=st.data(), seed=SEEDS)
def test_a_minibatchs_gradient_is_the_sum_of_its_microbatches_each_times_its_share(case, data, seed):
    for problem in problems.problems_of(case, whole_numbers(data), np.random.default_rng(seed)):
        stage, (x, target, labels) = problem.subject, problem.examples
        n, cut = len(x), data.draw(st.integers(1, len(x)))
        parts = [
            gradient(stage, x[i], problems.each(lambda a, i=i: a[i], target), labels[i], 3, share=len(x[i]) / n)
            for i in ([slice(0, cut), slice(cut, n)] if cut < n else [slice(n)])
        ]
        loss, grads = gradient(stage, x, target, labels, 3)
        close(sum(part for part, _ in parts), loss)
        all_close({name: sum(g[name] for _, g in parts) for name in grads}, grads)


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
