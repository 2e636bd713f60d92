# ruff: noqa: F401, F811  (a fixture that is imported is an argument too)
"""The kernels against the NumPy code that they stand for: on integers, where ties abound and sums are exact."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_cupy import xp

from minifit import kernels, patches
from minifit.backend import array_module, to_host
from minifit.data import augment
from minifit.layers import Dropout, Maxout, MaxPool2d

SIZES = st.integers(1, 6)
FEW = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=[False, True], ids=["32 bits", "64 bits"])
def wide(request, monkeypatch):
    """Indices of 64 bits belong to arrays of 2^32 elements; here small ones have them too."""
    if request.param:
        monkeypatch.setattr(
            kernels, "kernel", lambda name, largest: kernels._compiled(array_module(largest), name, True)
        )


def test_indices_of_64_bits_begin_where_32_end(monkeypatch):
    monkeypatch.setattr(kernels, "_compiled", lambda xp, name, large: large)
    assert [kernels.kernel("fold", np.broadcast_to(np.float32(0), n)) for n in (2**32 - 1, 2**32)] == [False, True]


def same(found, expected):
    found = to_host(found)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_array_equal(found, expected)


def integers(seed, shape, dtype):
    return np.random.default_rng(seed).integers(-2, 3, shape).astype(dtype)


@given(st.data())
@FEW
def test_unfold_and_fold(xp, wide, data):
    n, h, w, c = (data.draw(SIZES, name) for name in "NHWC")  # 4 channels of 4 bytes move 16 bytes at a time
    pad = data.draw(st.integers(0, 3), "pad")
    r, s = (data.draw(st.integers(1, min(5, size + 2 * pad)), name) for name, size in (("R", h), ("S", w)))
    x = integers(0, (n, h, w, c), data.draw(st.sampled_from([np.float32, np.float64])))
    expected = patches.unfold(x, r, s, pad)
    same(patches.unfold(xp.asarray(x), r, s, pad), expected)
    y = integers(1, expected.shape, x.dtype)
    same(patches.fold(xp.asarray(y), x.shape, pad), patches.fold(y, x.shape, pad))


@given(st.data())
@FEW
def test_maxpool(xp, wide, data):
    shape = tuple(data.draw(SIZES, name) for name in "NHWC")
    size, stride = (data.draw(st.integers(1, 5), name) for name in ("size", "stride"))
    layer = MaxPool2d(size, stride, ceil=min(shape[1:3]) < size or data.draw(st.booleans(), "ceil"))
    compare(layer, integers(2, shape, np.float32), xp)


@given(st.data())
@FEW
def test_maxout(xp, wide, data):
    pieces = data.draw(SIZES, "pieces")
    shape = (*data.draw(st.lists(SIZES, min_size=1, max_size=3), "shape"), pieces * data.draw(SIZES, "K"))
    compare(Maxout(pieces), integers(3, shape, np.float32), xp)


def compare(layer, x, xp):
    y, cache = layer.forward(x)
    dy = integers(4, y.shape, x.dtype)
    found, cache_there = layer.forward(xp.asarray(x))
    same(found, y)
    same(layer(xp.asarray(x)), y)
    same(layer.backward(xp.asarray(dy), cache_there)[0], layer.backward(dy, cache)[0])


@given(st.data())
@FEW
def test_flips_and_crops(xp, wide, data):
    n, h, w, _ = shape = tuple(data.draw(SIZES, name) for name in "NHWC")
    x = integers(5, shape, data.draw(st.sampled_from([np.float32, np.uint8])))
    pad = data.draw(st.integers(0, min(h, w) - 1), "pad")
    choices = augment.draw(np.random.default_rng(6), n, pad=pad)
    same(augment.apply(xp.asarray(x), choices), augment.apply(x, choices))


@pytest.mark.parametrize("rescale", [True, False])
def test_dropout_draws_the_numbers_of_splitmix64(xp, rescale):
    layer, x = Dropout(0.8, rescale), integers(8, (50, 7, 9), np.float32)
    y, cache = layer.forward(xp.asarray(x), np.random.default_rng(9))
    z = np.uint64(np.random.default_rng(9).integers(2**63)) + np.arange(1, x.size + 1, dtype=np.uint64) * np.uint64(
        0x9E3779B97F4A7C15
    )
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    kept = (z >> np.uint64(11)) * 2.0**-53 < 0.8
    assert abs(kept.mean() - 0.8) < 4 * (0.16 / x.size) ** 0.5
    mask = np.float32(1.25 if rescale else 1) * kept.reshape(x.shape)
    same(y, x * mask)
    same(layer.backward(xp.asarray(x), cache)[0], x * mask)
    other = layer.forward(xp.asarray(x), np.random.default_rng(10))[0]
    assert (to_host(other) != to_host(y)).any()


@pytest.mark.parametrize("layer", [Maxout(3), MaxPool2d(2, 2)], ids=["maxout", "pool"])
def test_what_is_not_a_number_is_not_lost(xp, layer):
    x = np.zeros((1, 4, 4, 6), np.float32)
    for i in range(0, x.size, 5):
        x.flat[i] = np.nan
    np.testing.assert_array_equal(np.isnan(to_host(layer.forward(xp.asarray(x))[0])), np.isnan(layer.forward(x)[0]))


def test_arrays_with_gaps_are_indexed_by_their_elements(xp):
    x = integers(7, (2, 6, 5, 8), np.float32)
    there = xp.asarray(x)[:, ::2, :, ::2]
    same(patches.unfold(there, 2, 2), patches.unfold(x[:, ::2, :, ::2], 2, 2))
    same(MaxPool2d(2, 2).forward(there)[0], MaxPool2d(2, 2).forward(x[:, ::2, :, ::2])[0])
    same(Maxout(2).forward(there)[0], Maxout(2).forward(x[:, ::2, :, ::2])[0])
