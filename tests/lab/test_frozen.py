"""Frozen networks: the same function, whose convolutions transform their filters once."""

import gc
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from minifit import fast_convolution as filtering
from minifit.composites import Branches, Mean, Sequential, frozen
from minifit.convolution import choose
from minifit.data.preprocessing import Unit
from minifit.lab import sets as lab_sets
from minifit.lab import training
from minifit.lab.sets import Examples
from minifit.layers import Conv2d, Dropout, Flatten, Layer, Linear, Maxout


def network(rng):
    conv = Conv2d(rng.normal(size=(3, 3, 32, 64)), rng.normal(size=64), pad=1)
    head = Linear(rng.normal(size=(32 * 256, 3)), rng.normal(size=3))
    return Sequential([Dropout(0.5), Sequential([conv, Maxout(2)]), Flatten(), head])


KINDS = {
    "Sequential": network,
    "Mean": lambda rng: Mean([network(rng), network(rng)]),
    "Branches": lambda rng: Branches(network(rng), {2: Flatten()}),
}


def parts(y):
    return y if isinstance(y, tuple) else (y,)


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_a_frozen_network_is_the_same_function_with_the_same_weights_read_only(make):
    net, x = make(np.random.default_rng(0)), np.random.default_rng(1).normal(size=(9, 16, 16, 32))
    still = frozen(net)
    for _ in range(2):
        for y, expected in zip(parts(still(x)), parts(net(x)), strict=True):
            np.testing.assert_array_equal(y, expected)
    assert still.params.keys() == net.params.keys()
    for name, p in still.params.items():
        assert np.shares_memory(p, net.params[name]) and net.params[name].flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            p += 1


@pytest.fixture
def plan():
    x, w = np.zeros((9, 16, 16, 32)), np.zeros((3, 3, 32, 64))
    method = choose(x, w, 1)
    assert isinstance(method, filtering.Filtered)
    gc.collect()
    method.kept.clear()
    return method


def test_only_frozen_filters_are_transformed_once_and_only_while_they_exist(plan):
    net, x = network(np.random.default_rng(0)), np.random.default_rng(1).normal(size=(9, 16, 16, 32))
    net(x)
    assert not plan.kept
    still = frozen(net)
    still(x)
    ((_, transformed),) = plan.kept.values()
    still(x)
    assert next(iter(plan.kept.values()))[1] is transformed
    del still
    gc.collect()
    assert not plan.kept


def test_two_frozen_networks_keep_their_own_transforms(plan):
    nets = [network(np.random.default_rng(seed)) for seed in range(2)]
    x, still = np.random.default_rng(1).normal(size=(9, 16, 16, 32)), [frozen(net) for net in nets]
    for _ in range(2):
        for one, net in zip(still, nets, strict=True):
            np.testing.assert_array_equal(one(x), net(x))
    assert len(plan.kept) == 2


def test_filters_that_are_not_read_only_are_transformed_anew(plan):
    rng = np.random.default_rng(0)
    conv, x = Conv2d(rng.normal(size=(3, 3, 32, 64)), np.zeros(64), pad=1), rng.normal(size=(9, 16, 16, 32))
    net, w = Sequential([conv, Maxout(2)]), conv.params["w"]
    y = net(x)
    for read_only in (False, True, False):
        w *= 2
        y, w.flags.writeable = 2 * y, not read_only
        np.testing.assert_array_equal(net(x), y)  # a factor of 2 rounds nothing
        np.testing.assert_array_equal(net(x), y)
        w.flags.writeable = True


class Elsewhere(Layer):
    """A teacher from elsewhere, which cannot be copied in full."""

    def __init__(self):
        self.session, self.params = threading.Lock(), {"w": np.ones(3)}

    def __call__(self, x, rng=None):
        return x + 1


@pytest.mark.parametrize(
    "wrap", [lambda one: one, lambda one: Sequential([one, Flatten()]), lambda one: Mean([one, one])]
)
def test_a_layer_that_holds_what_cannot_be_copied_is_frozen_all_the_same(wrap):
    one, x = Elsewhere(), np.zeros((2, 3))
    np.testing.assert_array_equal(frozen(wrap(one))(x), x + 1)
    assert all(not p.flags.writeable for p in frozen(wrap(one)).params.values()) and one.params["w"].flags.writeable


def test_the_teacher_of_a_stage_is_frozen_once_for_all_its_sets_and_then_let_go(monkeypatch):
    rng, made = np.random.default_rng(0), []
    monkeypatch.setattr(training, "frozen", lambda layer: made.append(frozen(layer)) or made[-1])
    teacher, student = network(rng), network(rng)
    images, labels = np.zeros((3, 16, 16, 32), np.uint8), np.zeros(3, int)
    sets = {part: Examples(images, labels, Unit(), teacher) for part in ("train", "validation")}
    stage = SimpleNamespace(network=student)
    parallel = training.DataParallel(stage, sets, 4, 1)
    assert len(made) == 1 and all(s.teacher is made[0] for s in parallel.sets.values())
    with parallel:
        pass
    assert not parallel.sets and sets["train"].teacher is teacher


def test_kept_outputs_are_those_of_a_frozen_network(monkeypatch):
    teacher, seen = network(np.random.default_rng(0)), []
    monkeypatch.setattr(lab_sets, "frozen", lambda layer: seen.append(layer) or frozen(layer))
    images = np.random.default_rng(1).integers(0, 256, (70, 16, 16, 32), np.uint8)
    kept = lab_sets.outputs(teacher, Examples(images, np.zeros(70, int), Unit()), 1)
    assert seen == [teacher]
    np.testing.assert_array_equal(kept[:64], teacher(Unit()(images[:64])))
