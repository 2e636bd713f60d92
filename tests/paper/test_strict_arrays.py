"""The stand-in for CuPy itself: each of its rules bites, and what CuPy allows passes."""

import math

import numpy as np
import pytest
import strict

from minifit.backend import array_module, to_host

HOST = np.arange(6.0, dtype=np.float32).reshape(2, 3)


def device(array=HOST):
    return strict.asarray(array)


def assign(target, index, value):
    target[index] = value


def change(target, value):
    target += value


# What a NumPy-only habit does -> the error it must meet. h is a host array and d the same one on the device.
HABITS = {
    "np.asarray(d)": lambda h, d: np.asarray(d),
    "np.array([d])": lambda h, d: np.array([d]),
    "np.maximum(d, 0)": lambda h, d: np.maximum(d, 0),
    "np.sum(d)": lambda h, d: np.sum(d),
    "np.concatenate([d, d])": lambda h, d: np.concatenate([d, d]),
    "np.testing.assert_array_equal(d, h)": lambda h, d: np.testing.assert_array_equal(d, h),
    "h[...] = d": lambda h, d: assign(h.copy(), ..., d),
    "d[...] = h": lambda h, d: assign(d, ..., h),
    "d[0] = [1.0, 2.0, 3.0]": lambda h, d: assign(d, 0, [1.0, 2.0, 3.0]),
    "d + h": lambda h, d: d + h,
    "h + d": lambda h, d: h + d,
    "h @ d.T": lambda h, d: h @ d.T,
    "d == h": lambda h, d: d == h,
    "d += h": lambda h, d: change(d, h),
    "h += d": lambda h, d: change(h.copy(), d),
    "d + a host 0-d array": lambda h, d: d + np.array(1.0),
    "d * [1.0]": lambda h, d: d * [1.0],
    "d == None": lambda h, d: d == None,  # noqa: E711
    "for row in d": lambda h, d: list(d),
    "a, b = d": lambda h, d: (lambda a, b: a)(*d),
    "sum(d)": lambda h, d: sum(d),
    "1.0 in d": lambda h, d: 1.0 in d,
    "d[[0, 1]]": lambda h, d: d[[0, 1]],
    "d[[0.0, 1.0]]": lambda h, d: d[[0.0, 1.0]],
    "d[1.0]": lambda h, d: d[1.0],
    "d[True]": lambda h, d: d[True],
    "d[h > 1]": lambda h, d: d[h > 1],
    "d[np.array([0])]": lambda h, d: d[np.array([0])],
    "h[d > 1]": lambda h, d: h[d > 1],
    "range(d[0, 1])": lambda h, d: range(d.astype(int)[0, 1]),
    "d[: d[0, 1]]": lambda h, d: d[: d.astype(int)[0, 1]],
    "hash(d)": lambda h, d: hash(d),
    "math.sqrt(d)": lambda h, d: math.sqrt(d),
    "xp.maximum(d, h)": lambda h, d: strict.maximum(d, h),
    "xp.exp([1.0])": lambda h, d: strict.exp([1.0]),
    "xp.exp(d, where=mask)": lambda h, d: strict.exp(d, where=d > 1),
    "xp.exp(d, out=h)": lambda h, d: strict.exp(d, out=h.copy()),
    "xp.where(d > 1, h, d)": lambda h, d: strict.where(d > 1, h, d),
    "xp.where(d > 1, [1.0], d)": lambda h, d: strict.where(d > 1, [1.0], d),
    "xp.concatenate([d, h])": lambda h, d: strict.concatenate([d, h]),
    "xp.matmul(h, d)": lambda h, d: strict.matmul(h, d),
    "xp.einsum(..., h)": lambda h, d: strict.einsum("ij,ij->i", d, h),
    "xp.einsum(..., out=d)": lambda h, d: strict.einsum("ij->i", d, out=d[:, 0]),
    "xp.ascontiguousarray(h)": lambda h, d: strict.ascontiguousarray(h),
    "xp.zeros(d)": lambda h, d: strict.zeros(d[0, 1].astype(int)),
    "xp.arange(10, device=...)": lambda h, d: strict.arange(10, device="cpu"),
    "d.sum(where=mask)": lambda h, d: d.sum(where=d > 1),
    "d.max(initial=0)": lambda h, d: d.max(initial=0),
    "d.sum(out=h)": lambda h, d: d.sum(axis=0, out=h[0].copy()),
    "xp.empty_like(d, dtype, order, size)": lambda h, d: strict.empty_like(d, np.float32, "C", 6),
    "d.reshape(d.size) of a device number": lambda h, d: d.reshape(d[1, 2].astype(int) + 1),
    "xp.lib.stride_tricks.sliding_window_view(h, 2)": lambda h, d: strict.lib.stride_tricks.sliding_window_view(
        h, 2, 0
    ),
    "sliding_window_view(writeable=True)": lambda h, d: strict.lib.stride_tricks.sliding_window_view(
        d, 2, 0, writeable=1
    ),
}


@pytest.mark.parametrize("habit", HABITS)
def test_a_numpy_only_habit_is_a_type_error(habit):
    with pytest.raises(TypeError):
        HABITS[habit](HOST.copy(), device())


@pytest.mark.parametrize("name", ["pad", "vectorize", "apply_along_axis", "errstate", "random", "nditer", "float128"])
def test_the_library_has_only_the_names_in_its_tables(name):
    with pytest.raises(AttributeError, match=name):
        getattr(strict, name)


@pytest.mark.parametrize("name", ["setflags", "ctypes", "newbyteorder", "__array_interface__", "__index__", "tostring"])
def test_an_array_has_only_the_methods_in_its_table(name):
    with pytest.raises(AttributeError, match=name):
        getattr(device(), name)


def test_an_array_cannot_be_made_read_only():
    assert device().flags.c_contiguous
    with pytest.raises(AttributeError):
        device().flags.writeable = False


@pytest.mark.parametrize("index", [2, -3, (0, 3), (slice(None), 3)])
def test_an_index_out_of_range_raises(index):
    with pytest.raises(IndexError):
        device()[index]
    with pytest.raises(IndexError):
        device()[index] = 0


def test_an_index_array_out_of_range_raises_although_the_device_would_wrap_around():
    for index in (2, -3):
        with pytest.raises(IndexError):
            device()[strict.asarray([index])]
    with pytest.raises(IndexError, match="integers or booleans"):
        device()[strict.asarray([0.0])]


def test_a_dtype_that_no_device_knows_is_refused():
    for array in (np.array(["a"]), np.array([None]), np.zeros(1, np.longdouble)):
        with pytest.raises(ValueError, match="unsupported dtype"):
            strict.asarray(array)


def test_scalars_of_python_and_of_numpy_pass():
    d = device()
    for result in (d + 1, 1 + d, d * np.float32(2), np.float32(2) * d, d / 2.0, 2.0 / (d + 1), strict.maximum(0, d)):
        assert isinstance(result, strict.ndarray)
        assert result.dtype == np.float32
    d[0, np.int64(1)] = np.float64(7)
    assert d[0, 1].get() == 7


def test_types_are_promoted_as_by_cupy():
    d = device()
    assert (d * strict.asarray(2.0)).dtype == np.float64  # a 0-d array is an array, whatever its shape
    assert (np.float64(2) * d).dtype == np.float64
    assert (d * 2.0).dtype == (d > 1).astype(np.float32).dtype == (d * (d > 1)).dtype == np.float32
    with pytest.raises(TypeError):
        change(strict.zeros(3, np.int64), 0.5)


def test_a_reduction_is_a_device_array_and_only_asking_for_its_value_waits():
    strict.SYNCHRONISATIONS.clear()
    d = device()
    for result in (d.sum(), d.max(), d.mean(), d.std(), d.argmax(), d.any(), d.all(), d[0, 0], d.sum() / 2, -d.sum()):
        assert isinstance(result, strict.ndarray)
        assert result.shape == ()
    assert strict.SYNCHRONISATIONS == []
    assert (float(d.sum()), int(d.argmax()), bool(d.all()), d.max().item(), f"{d.mean():.1f}") == (
        15,
        5,
        False,
        5,
        "2.5",
    )
    assert math.isfinite(d.sum())
    assert strict.SYNCHRONISATIONS == ["float", "int", "bool", "item", "format", "float"]
    with pytest.raises(ValueError, match="ambiguous"):
        bool(d > 1)


def test_a_boolean_index_waits_for_the_device_to_count():
    strict.SYNCHRONISATIONS.clear()
    d = device()
    d[d > 3] = 0
    assert d[d > 1].shape == (2,)
    assert strict.SYNCHRONISATIONS == ["mask", "mask"]
    strict.copyto(d, 9, where=d == 0)
    strict.where(d > 1, d, 0)
    assert strict.SYNCHRONISATIONS == ["mask", "mask"]
    assert d.tolist() == [[9, 1, 2], [3, 9, 9]]


def test_views_share_memory_and_copies_do_not():
    d = device()
    for view in (
        d[:, 1:],
        d[0, 0],
        d.T,
        d.reshape(-1),
        d.reshape(3, 2),
        d.transpose(1, 0),
        d.ravel(),
        d[None],
        d[..., 0],
    ):
        before = float(d.sum())
        view += 1
        assert float(d.sum()) == before + view.size
    for copy in (
        d.copy(),
        d.T.reshape(-1),
        d.astype(np.float32),
        d[strict.asarray([0, 1])],
        strict.ascontiguousarray(d.T),
    ):
        before = float(d.sum())
        copy += 1
        assert float(d.sum()) == before
    assert strict.asarray(d) is d


def test_in_place_operators_write_in_place():
    d = alias = device()
    d += 1
    d *= 2
    d -= d[0]
    d /= strict.asarray(np.float32(2))
    assert alias is d
    np.testing.assert_array_equal(d.get(), [[0, 0, 0], [3, 3, 3]])
    target = strict.empty((2, 3), np.float32)
    assert strict.maximum(d, 1, out=target) is target
    assert strict.matmul(d[:, :2], d[:, 1:].T, out=target[:, :2]).tolist() == [[0, 0], [0, 18]]


def test_host_and_device_share_nothing():
    host = HOST.copy()
    d = strict.asarray(host)
    back = d.get()
    host[...] = 0
    back[...] = -1
    np.testing.assert_array_equal(d.get(), HOST)


def test_array_module_finds_the_library_and_refuses_a_mixture():
    d = device()
    assert array_module(d, d) is strict
    assert type(to_host(d)) is np.ndarray
    with pytest.raises(TypeError, match="numpy and strict"):
        array_module(d, HOST)


def test_the_operators_compute_what_numpy_computes():
    x, y = HOST + 1, HOST[::-1] + 2
    a, b = strict.asarray(x), strict.asarray(y)
    for host, dev in (
        (x - y, a - b),
        (2 - x, 2 - a),
        (x**2, a**2),
        (2**x, 2**a),
        (x // 2, a // 2),
        (7 % x, 7 % a),
        (-x, -a),
        (abs(-x), abs(-a)),
        (~(x > y) | (x == y), ~(a > b) | (a == b)),
        ((x >= y) ^ (x < y) & (x != y), (a >= b) ^ (a < b) & (a != b)),
        (x @ y.T, a @ b.T),
        (np.einsum("ij,kj->ik", x, y, optimize=True), strict.einsum("ij,kj->ik", a, b, optimize=True)),
        (np.stack([x, y], axis=1), strict.stack([a, b], axis=1)),
        (x.std(axis=0, keepdims=True), a.std(axis=0, keepdims=True)),
        (np.arange(3), strict.arange(3)),
        (np.zeros((2, 3), np.int8), strict.zeros((2, 3), strict.int8)),
    ):
        np.testing.assert_array_equal(dev.get(), host)
        assert dev.dtype == host.dtype
