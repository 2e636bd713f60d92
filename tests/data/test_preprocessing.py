"""Contrast, local contrast and whitening: by hand, by the reference's loops, and without an eigendecomposition."""

import os
import tracemalloc

import numpy as np
import pytest
import scipy.linalg
import strict

from minifit import UserError
from minifit.data import cifar, preprocessing
from minifit.data.preprocessing import ZCA, Local, Unit, Whitened, contrast, fit, local_contrast
from reference import preprocessing as reference

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


def test_images_do_not_meet_in_contrast():
    x = bytes_(10)
    np.testing.assert_array_equal(contrast(x[4:5]), contrast(x)[4:5])


def test_whitening_by_hand():
    """Two pixels, independent, with variances 4 - 0.1 and 1 - 0.1 about (5, -2): divided by 2 and by 1."""
    a, b = np.sqrt(3.9), np.sqrt(0.9)
    x = np.array([[5 + a, -2 + b], [5 + a, -2 - b], [5 - a, -2 + b], [5 - a, -2 - b]])
    zca = ZCA.fit(x.reshape(4, 1, 2, 1).astype(np.float32))
    np.testing.assert_allclose(zca.mean, [5, -2], rtol=1e-6)
    np.testing.assert_allclose(zca.matrix, [[0.5, 0], [0, 1]], atol=1e-6)


@pytest.mark.parametrize("count", [4, 500])
@pytest.mark.parametrize("regularisation", [0.1, 2.0])
def test_the_matrix_is_the_symmetric_inverse_root_of_the_regularised_covariance(count, regularisation):
    """A root that is symmetric and positive is the only one. With 4 images, N and N - 1 differ by a third."""
    x = spread(count, least=0.01, most=100)
    zca = ZCA.fit(x, regularisation)
    regularised = covariance(x) + regularisation * np.eye(24)
    matrix = zca.matrix.astype(np.float64)
    np.testing.assert_allclose(matrix @ regularised @ matrix, np.eye(24), atol=1e-4)
    assert zca.matrix.dtype == zca.mean.dtype == np.float32
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-6 * abs(matrix).max())
    assert np.linalg.eigvalsh(matrix).min() > 0


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


def test_whitening_keeps_its_type_shape_and_arguments():
    x = spread(30)
    y = ZCA.fit(x).apply(x)
    assert y.dtype == np.float32 and y.shape == x.shape
    np.testing.assert_array_equal(x, spread(30))


def test_the_slices_of_a_fit_do_not_show(monkeypatch):
    x = spread(30)
    whole = ZCA.fit(x)
    monkeypatch.setattr(preprocessing, "SLICE", 7)
    np.testing.assert_allclose(ZCA.fit(x).apply(x), whole.apply(x), atol=1e-4)


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
    x = bytes_(200)
    np.testing.assert_allclose(fit(x)(x).sum(axis=(1, 2, 3)), 0, atol=1e-3)


def test_a_fit_is_contrast_and_then_zca_of_the_training_images():
    train, test = bytes_(100), bytes_(20, seed=1)
    prepare, zca = fit(train), ZCA.fit(contrast(train))
    for images in (train, test):
        np.testing.assert_array_equal(prepare(images), zca.apply(contrast(images)))
    np.testing.assert_array_equal(
        fit(train, 7.0, 0.3)(test), ZCA.fit(contrast(train, 7.0), 0.3).apply(contrast(test, 7.0))
    )
    assert (fit(train[:90])(test) != prepare(test)).any(), "of all of them"


def test_a_fit_keeps_no_more_than_a_slice_of_floats(monkeypatch):
    monkeypatch.setattr(preprocessing, "SLICE", 50)
    x = np.random.default_rng(0).integers(0, 256, (10_000, 4, 4, 3), np.uint8)
    tracemalloc.start()
    fit(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < x.size, "and so no float for every byte"


def test_unit_is_bytes_over_255_in_float32():
    x = np.arange(256, dtype=np.uint8).reshape(2, 8, 8, 2)
    y = Unit()(x)
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, x.astype(np.float32) / np.float32(255))


# Of one pixel, narrower than the local window of 7x7 along one side or both, as large, and larger.
SIZES = (1, 1), (1, 9), (9, 1), (2, 3), (6, 5), (7, 7), (8, 11)
every_size = pytest.mark.parametrize("size", SIZES, ids=lambda size: "{}x{}".format(*size))
every_channel = pytest.mark.parametrize("channels", [1, 2, 3, 4])


@every_size
@every_channel
def test_contrast_is_the_references(size, channels):
    x = bytes_(3, shape=(*size, channels))
    np.testing.assert_allclose(contrast(x), reference.contrast(x, 55.0), rtol=1.2e-7, atol=0)  # float32's last bit
    np.testing.assert_allclose(contrast(x, 0.3), reference.contrast(x, 0.3), rtol=1.2e-7, atol=0)


@every_size
@every_channel
def test_local_contrast_is_the_references(size, channels):
    """Of four images one is dark in a part, one is so faint that the threshold divides it, and one is black."""
    x = np.random.default_rng(channels).normal(size=(4, *size, channels))
    x[1, : size[0] // 2] *= 0.01
    x[2] *= 5e-5
    x[3] = 0
    np.testing.assert_allclose(local_contrast(x), reference.local_contrast(x), rtol=0, atol=1e-12)
    single = local_contrast(x.astype(np.float32))
    assert single.dtype == np.float32 and single.flags.c_contiguous
    np.testing.assert_allclose(single, reference.local_contrast(x), rtol=0, atol=2e-6)


@pytest.mark.parametrize("changes", [{"size": 1}, {"size": 4}, {"size": 5, "sigma": 0.8}, {"threshold": 0.9}], ids=str)
def test_local_contrast_with_another_window_or_threshold_is_the_references(changes):
    x = np.random.default_rng(0).normal(size=(2, 6, 4, 2))
    got, wanted = local_contrast(x, **changes), reference.local_contrast(x, **changes)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-12)
    assert abs(got - local_contrast(x)).max() > 1e-3


def test_local_contrast_by_hand():
    """A window of 3 and a single pixel of 8 beside the border: what leaves the image is lost, and nothing returns."""
    near, g = np.exp(-1 / 2), 1 / (1 + 2 * np.exp(-1 / 2))  # the Gaussian is g, and near * g beside its middle
    x = np.zeros((1, 1, 4, 1))
    x[0, 0, 1] = 8
    blurred = 8 * g * g * np.array([near, 1, near, 0])
    d = 8 * g * np.sqrt([near, 1, near, 0])
    wanted = ([0, 8, 0, 0] - blurred) / np.maximum(d, d.mean())
    np.testing.assert_allclose(local_contrast(x, size=3, sigma=1.0).ravel(), wanted, rtol=1e-12)


def locally(images, channels):
    """Contrast of norm 1, then locally in each of these channels alone, by the reference."""
    y = reference.contrast(images)
    for channel in channels:
        y[..., [channel]] = reference.local_contrast(y[..., [channel]])
    return y


@every_size
@every_channel
@pytest.mark.parametrize("local", [None, 1, 2])
def test_local_normalises_all_channels_or_the_first_few_and_leaves_the_others(size, channels, local):
    x = bytes_(2, shape=(*size, channels))
    y = Local(local)(x)
    assert y.dtype == np.float32 and y.shape == x.shape
    np.testing.assert_allclose(y, locally(x, range(channels)[:local]), rtol=0, atol=2e-6)


def whitened(train, images, scale, regularisation):
    """By the definitions: the reference's contrast, sums of products, and a root by Schur's decomposition."""
    x, y = (reference.contrast(part, scale).reshape(len(part), -1) for part in (train, images))
    mean = sum(x) / len(x)
    covariance = sum(np.outer(row - mean, row - mean) for row in x) / len(x)
    root = scipy.linalg.sqrtm(covariance + regularisation * np.eye(len(mean)))
    return np.stack([np.linalg.solve(root, row - mean) for row in y]).reshape(images.shape)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (6, 5)], ids=lambda size: "{}x{}".format(*size))
@every_channel
def test_whitened_is_the_references_contrast_and_the_inverse_root_of_its_covariance(size, channels):
    train, test = (bytes_(count, seed, (*size, channels)) for count, seed in ((30, 0), (4, 1)))
    for scale, regularisation in ((55.0, 0.1), (3.0, 0.7)):
        wanted = whitened(train, test, scale, regularisation)
        got = fit(train, scale, regularisation)(test)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * max(1, abs(wanted).max()))
    np.testing.assert_array_equal(fit(train)(test), fit(train, 55.0, 0.1)(test))


PREPARATIONS = {
    "unit": Unit(),
    "local": Local(),
    "local-red": Local(1),
    "whitened": fit(bytes_(100)),
    "another scale": fit(bytes_(100), scale=3.0),
}


@pytest.mark.parametrize("name", PREPARATIONS)
def test_a_preparation_takes_images_by_the_slice(name):
    prepare, x = PREPARATIONS[name], bytes_(40, seed=1)
    whole = prepare(x)
    assert whole.dtype == np.float32 and whole.shape == x.shape and prepare(x[:0]).shape == (0, *x.shape[1:])
    for size in (1, 7, 16):
        slices = [prepare(x[i : i + size]) for i in range(0, len(x), size)]
        np.testing.assert_allclose(np.concatenate(slices), whole, atol=1e-5)
    np.testing.assert_array_equal(prepare(x[:1]), prepare(x[:2])[:1])


@pytest.mark.parametrize("name", PREPARATIONS)
def test_a_preparation_on_another_library_is_the_same(name):
    prepare, x = PREPARATIONS[name], bytes_(20, seed=1)
    np.testing.assert_allclose(prepare.on(strict)(strict.asarray(x)).get(), prepare(x), atol=1e-5)
    with pytest.raises(TypeError):
        Whitened(PREPARATIONS["whitened"].zca)(strict.asarray(x))


@pytest.fixture(scope="module")
def real():
    try:
        return cifar.load("cifar10", REAL)[1] if REAL else pytest.skip("MINIFIT_DATA is not set")
    except UserError as error:
        if "lacks" in str(error):
            pytest.skip("MINIFIT_DATA names no folder with CIFAR-10")
        raise


def test_photographs_are_whitened_by_the_formula(real):
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
