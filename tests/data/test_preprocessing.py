"""Contrast normalisation and whitening: by hand, by formulas without an eigendecomposition, and the cache's honesty."""

import multiprocessing
import os

import h5py
import numpy as np
import pytest

from minifit import UserError
from minifit.lab import files as checkpoints
from minifit.data import cifar, preprocessing
from minifit.data.preprocessing import ZCA, contrast, whitened

REAL = os.environ.get("MINIFIT_DATA")


def bytes_(count, seed=0, shape=(4, 5, 3)):
    """Images of bytes whose neighbours agree, as neighbours in photographs do."""
    rng = np.random.default_rng(seed)
    rough = rng.normal(0, 40, (count, *shape)).cumsum(axis=1).cumsum(axis=2)
    x = np.clip(128 + rough - rough.mean(axis=(1, 2, 3), keepdims=True), 0, 255).astype(np.uint8)
    x.flags.writeable = False
    return x


def spread(count, seed=0, shape=(3, 4, 2), least=1e-3, most=1e4):
    """float32 images around a mean, with variances from `least` to `most` along oblique axes."""
    rng = np.random.default_rng(seed)
    size = int(np.prod(shape))
    axes, _ = np.linalg.qr(rng.standard_normal((size, size)))
    x = rng.standard_normal((count, size)) * np.sqrt(np.geomspace(least, most, size)) @ axes.T + rng.normal(0, 3, size)
    x = x.astype(np.float32).reshape(count, *shape)
    x.flags.writeable = False
    return x


def covariance(images):
    """Divided by N."""
    return np.cov(images.reshape(len(images), -1).astype(np.float64), rowvar=False, bias=True)


def test_contrast_by_hand():
    x = np.array([[1, 2, 3, 6], [10, 20, 30, 60]], np.uint8).reshape(2, 2, 2, 1)
    deviations = np.array([-2, -1, 0, 3]).reshape(2, 2, 1)
    np.testing.assert_allclose(contrast(x, scale=np.sqrt(14)), [deviations, deviations], rtol=1e-6)
    np.testing.assert_allclose(contrast(x), np.stack(2 * [55 / np.sqrt(14) * deviations]), rtol=1e-6)


def test_contrast_gives_each_image_mean_0_and_norm_55_over_all_its_channels():
    y = contrast(bytes_(20))
    assert y.dtype == np.float32 and y.shape == (20, 4, 5, 3)
    np.testing.assert_allclose(y.mean(axis=(1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(y.reshape(20, -1), axis=1), 55, rtol=1e-6)
    assert abs(y.mean(axis=(1, 2))).max() > 0.1, "not channel by channel"


def test_contrast_of_bytes_and_of_pixels_between_0_and_1_is_the_same():
    x = bytes_(20)
    np.testing.assert_allclose(contrast(np.divide(x, np.float32(255))), contrast(x), atol=2e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_an_image_of_one_colour_becomes_zeros(dtype):
    levels = np.arange(256) if dtype == np.uint8 else np.arange(256) / dtype(255)
    x = np.broadcast_to(levels.astype(dtype)[:, None, None, None], (256, 32, 32, 3))
    assert abs(contrast(x)).max() <= (1e-12 if dtype == np.float64 else 0), "and not its rounding errors, scaled up"


def test_an_image_with_next_to_no_contrast_is_not_scaled_up():
    x = np.array([0, 1e-9, 0, -1e-9]).reshape(1, 2, 2, 1)
    np.testing.assert_allclose(contrast(x), x, rtol=1e-6)
    assert abs(contrast(1e3 * x)).max() > 30


def test_images_do_not_meet_in_contrast_and_slices_do_not_show(monkeypatch):
    x = bytes_(10)
    whole = contrast(x)
    np.testing.assert_array_equal(contrast(x[4:5]), whole[4:5])
    monkeypatch.setattr(preprocessing, "SLICE", 3)
    np.testing.assert_array_equal(contrast(x), whole)


def test_whitening_by_hand():
    """Two pixels, independent, with variances 4 - 0.1 and 1 - 0.1 about (5, -2): divided by 2 and by 1."""
    a, b = np.sqrt(3.9), np.sqrt(0.9)
    x = np.array([[5 + a, -2 + b], [5 + a, -2 - b], [5 - a, -2 + b], [5 - a, -2 - b]])
    zca = ZCA.fit(x.reshape(4, 1, 2, 1).astype(np.float32))
    np.testing.assert_allclose(zca.mean, [5, -2], rtol=1e-6)
    np.testing.assert_allclose(zca.matrix, [[0.5, 0], [0, 1]], atol=1e-6)
    np.testing.assert_allclose(zca.inverse, [[2, 0], [0, 1]], atol=1e-6)


@pytest.mark.parametrize("count", [4, 500])
@pytest.mark.parametrize("regularisation", [0.1, 2.0])
def test_the_matrix_is_the_symmetric_inverse_root_of_the_regularised_covariance(count, regularisation):
    """A root that is symmetric and positive is the only one. With 4 images, N and N - 1 differ by a third."""
    x = spread(count, least=0.01, most=100)
    zca = ZCA.fit(x, regularisation)
    regularised = covariance(x) + regularisation * np.eye(24)
    matrix, inverse = zca.matrix.astype(np.float64), zca.inverse.astype(np.float64)
    np.testing.assert_allclose(matrix @ regularised @ matrix, np.eye(24), atol=1e-4)
    np.testing.assert_allclose(inverse @ inverse, regularised, rtol=1e-5, atol=1e-4)
    for root in (zca.matrix, zca.inverse):
        assert root.dtype == np.float32
        np.testing.assert_allclose(root, root.T, atol=1e-6 * abs(root).max())
        assert np.linalg.eigvalsh(root).min() > 0


def test_the_whitened_covariance_is_the_identity_where_it_should_be_and_follows_the_formula_elsewhere():
    x = spread(2000)
    c, w = covariance(x), covariance(ZCA.fit(x).apply(x))
    np.testing.assert_allclose(w, c @ np.linalg.inv(c + 0.1 * np.eye(24)), atol=1e-4)  # no eigenvectors involved

    e, v = np.linalg.eigh(c)
    along = v.T @ w @ v
    np.testing.assert_allclose(along, np.diag(e / (e + 0.1)), atol=1e-4)
    large, small = e > 100, e < 0.01
    assert large.sum() >= 5 and small.sum() >= 3
    np.testing.assert_allclose(along[large][:, large], np.eye(large.sum()), atol=2e-3)
    assert along[small][:, small].max() < 0.1


def test_whitened_training_images_have_mean_0():
    x = spread(2000, most=100)
    assert abs(ZCA.fit(x).apply(x).mean(axis=0)).max() < 1e-5


@pytest.mark.parametrize("other", [0, 1])
def test_undo_gives_back_what_apply_was_given(other):
    zca = ZCA.fit(spread(300))
    x = spread(50, seed=other)
    np.testing.assert_allclose(zca.undo(zca.apply(x)), x, atol=1e-4 * abs(x).max())


def test_whitening_keeps_its_type_shape_and_arguments_and_may_work_in_place(monkeypatch):
    x = spread(30)
    zca = ZCA.fit(x)
    y = zca.apply(x)
    assert y.dtype == np.float32 and y.shape == x.shape
    mine = x.copy()
    assert zca.apply(mine, out=mine) is mine
    np.testing.assert_array_equal(mine, y)
    monkeypatch.setattr(preprocessing, "SLICE", 7)
    np.testing.assert_allclose(ZCA.fit(x).apply(x), y, atol=1e-4)


def test_fewer_images_than_pixels_and_a_pixel_that_never_changes_do_no_harm():
    x = spread(5).copy()
    x[:, 0, 0, 0] = 7
    y = ZCA.fit(x).apply(x)
    assert np.isfinite(y).all() and abs(y[:, 0, 0, 0]).max() < 1e-5
    one = ZCA.fit(x[:1])
    np.testing.assert_allclose(one.matrix, np.eye(24) / np.sqrt(0.1), rtol=1e-6)
    with pytest.raises(ValueError, match="no images"):
        ZCA.fit(x[:0])


def test_the_sum_over_all_pixels_that_contrast_removes_stays_removed():
    train, _ = whitened(bytes_(200), [], None)
    np.testing.assert_allclose(train.sum(axis=(1, 2, 3)), 0, atol=1e-3)


def test_whitened_is_contrast_and_then_zca_fitted_on_the_training_images_alone():
    train, validation, test = bytes_(100), bytes_(20, seed=1), bytes_(30, seed=2)
    zca = ZCA.fit(contrast(train))
    got, others = whitened(train, [validation, test], None)
    for images, wanted in zip([got, *others], [train, validation, test], strict=True):
        np.testing.assert_array_equal(images, zca.apply(contrast(wanted)))
    again, (_, changed) = whitened(train, [validation, 255 - test], None)
    np.testing.assert_array_equal(again, got)
    assert (changed != others[1]).any()
    fewer, _ = whitened(train[:90], [], None)
    assert (fewer != got[:90]).any(), "and on all of them"


@pytest.fixture
def fits(monkeypatch):
    """The sets that ZCA was fitted on, in order."""
    sets, fit = [], ZCA.fit

    def counted(images, *parameters):
        sets.append(images)
        return fit(images, *parameters)

    monkeypatch.setattr(ZCA, "fit", counted)
    return sets


def same(one, two):
    np.testing.assert_array_equal(one[0], two[0])
    for a, b in zip(one[1], two[1], strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_cache_is_made_used_and_left_alone(tmp_path, fits):
    train, test = bytes_(100), bytes_(10, seed=1)
    cache = tmp_path / "new" / "zca.h5"
    first = whitened(train, [test], cache)
    stamp = cache.stat().st_mtime_ns
    same(whitened(train, [test], str(cache)), first)
    _, none = whitened(train, [], cache)
    assert none == [] and len(fits) == 1 and cache.stat().st_mtime_ns == stamp
    same(whitened(train, [test], None), first)


def test_a_cache_says_what_it_was_fitted_on(tmp_path):
    whitened(bytes_(100), [], tmp_path / "zca.h5")
    record, groups = checkpoints.load(tmp_path / "zca.h5")
    fitted = record["fitted on"]
    assert fitted["shape"] == [100, 4, 5, 3] and fitted["scale"] == 55 and fitted["regularisation"] == 0.1
    assert len(fitted["images"]) == 64 and list(groups["zca"]) == ["inverse", "matrix", "mean"]


def one_pixel(x):
    x = x.copy()
    x[3, 1, 2, 0] ^= 1
    return x


OTHERWISE = {
    "one pixel": (one_pixel, {}),
    "one image less": (lambda x: x[:-1], {}),
    "another order": (lambda x: x[::-1], {}),
    "another shape of the same bytes": (lambda x: x.reshape(100, 5, 4, 3), {}),
    "another type": (lambda x: x.view(np.int8), {}),
    "another scale": (lambda x: x, {"scale": 1.0}),
    "another regularisation": (lambda x: x, {"regularisation": 0.2}),
}


@pytest.mark.parametrize("change", OTHERWISE)
def test_a_cache_fitted_on_something_else_is_rebuilt(tmp_path, fits, change):
    train, test, cache = bytes_(100), bytes_(10, seed=1), tmp_path / "zca.h5"
    whitened(train, [], cache)
    other, parameters = OTHERWISE[change][0](train), OTHERWISE[change][1]
    test = test.reshape(10, *other.shape[1:])
    wanted = whitened(other, [test], None, **parameters)
    same(whitened(other, [test], cache, **parameters), wanted)
    assert len(fits) == 3, "once for the first cache, once without a cache, once for the second"
    same(whitened(other, [test], cache, **parameters), wanted)
    assert len(fits) == 3


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def empty(path):
    path.write_bytes(b"")


def no_hdf5(path):
    path.write_bytes(b"<html>")


def one_number(path):
    with h5py.File(path, "r+") as file:
        file["zca/matrix"][3, 4] += 1


def an_array_less(path):
    with h5py.File(path, "r+") as file:
        del file["zca/mean"]


def other_contents(path):
    checkpoints.save(path, {"identity": "a stage's weights"}, weights={"w": np.zeros(3)})


def no_record(path):
    with h5py.File(path, "r+") as file:
        del file.attrs["record"]


@pytest.mark.parametrize("damage", [cut, empty, no_hdf5, one_number, an_array_less, other_contents, no_record])
def test_a_damaged_cache_is_rebuilt(tmp_path, fits, damage):
    train, test, cache = bytes_(100), bytes_(10, seed=1), tmp_path / "zca.h5"
    first = whitened(train, [test], cache)
    whole = cache.read_bytes()
    damage(cache)
    same(whitened(train, [test], cache), first)
    assert len(fits) == 2 and cache.read_bytes() == whole


def test_a_cache_that_cannot_be_kept_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for cache in (tmp_path / "file" / "zca.h5", tmp_path):
        with pytest.raises(UserError) as caught:
            whitened(bytes_(10), [], cache)
        assert str(cache) in str(caught.value) and "\n" not in str(caught.value)


def test_of_two_runs_that_start_together_one_fits_and_both_see_the_same(tmp_path):
    train, test = bytes_(100), bytes_(10, seed=1)
    context = multiprocessing.get_context("fork")
    ready, results, fit = context.Barrier(3), context.Queue(), ZCA.fit

    def run():
        fitted = []
        ZCA.fit = lambda *arguments: fitted.append(1) or fit(*arguments)
        ready.wait(20)
        images, others = whitened(train, [test], tmp_path / "zca.h5")
        results.put((len(fitted), images, others))

    processes = [context.Process(target=run) for _ in range(3)]
    for process in processes:
        process.start()
    got = [results.get(timeout=20) for _ in processes]
    for process in processes:
        process.join()
    assert sum(count for count, _, _ in got) == 1
    for _, *images in got:
        same(images, whitened(train, [test], None))


@pytest.fixture(scope="module")
def real():
    try:
        return cifar.load("cifar10", REAL)[1] if REAL else pytest.skip("MINIFIT_DATA is not set")
    except UserError as error:
        if "lacks" in str(error):
            pytest.skip("MINIFIT_DATA names no folder with CIFAR-10")
        raise


def test_photographs_are_whitened_by_the_formula_and_come_back(real):
    """The middles of CIFAR-10's images, 8x8 of them, so that it takes a second; all of their pixels behave alike."""
    x = contrast(real[:, 12:20, 12:20])
    zca = ZCA.fit(x)
    y = zca.apply(x)
    c = covariance(x)
    np.testing.assert_allclose(covariance(y), c @ np.linalg.inv(c + 0.1 * np.eye(192)), atol=1e-4)
    e, v = np.linalg.eigh(c)
    large = e > 100
    assert large.sum() >= 3 and e[0] < 1e-3
    np.testing.assert_allclose((v.T @ covariance(y) @ v)[large][:, large], np.eye(large.sum()), atol=2e-3)
    np.testing.assert_allclose(zca.undo(y), x, atol=1e-3)
