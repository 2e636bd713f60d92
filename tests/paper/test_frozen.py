"""Frozen networks: the same function, whose convolutions transform their filters once."""

import gc

import numpy as np
import pytest

from minifit import fast_convolution as filtering
from minifit.composites import Branches, Mean, Sequential, frozen
from minifit.convolution import choose
from minifit.layers import Conv2d, Dropout, Flatten, Linear, Maxout


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


def test_weights_that_train_are_transformed_anew(plan):
    net, x = network(np.random.default_rng(0)), np.random.default_rng(1).normal(size=(9, 16, 16, 32))
    before = net(x)
    for p in net.params.values():
        p *= 2
    assert not np.allclose(net(x), before)
