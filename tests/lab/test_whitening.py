"""The file that keeps what whitening takes of the training images: used, replaced, and never half of another."""

import multiprocessing
from dataclasses import replace

import h5py
import numpy as np
import pytest
from test_preprocessing import bytes_ as photographs
from test_preprocessing import locally, whitened

import minifit.data
from minifit import UserError
from minifit.data import Dataset, preprocessing
from minifit.experiments import MNIST
from minifit.lab import files, sets


def bytes_(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 4, 5, 3), np.uint8)


def whitening(path, images, *parameters, **named):
    return sets.whitening(path, images, files.digest([images]), *parameters, **named)


@pytest.fixture
def fits(monkeypatch):
    """The sets that were fitted, in order."""
    fitted = []

    def counted(images, *parameters):
        fitted.append(images)
        return preprocessing.fit(images, *parameters)

    monkeypatch.setattr(sets, "fit", counted)
    return fitted


def same(one, two):
    assert one.scale == two.scale
    np.testing.assert_array_equal(one.zca.mean, two.zca.mean)
    np.testing.assert_array_equal(one.zca.matrix, two.zca.matrix)


def test_a_cache_is_made_used_and_left_alone(tmp_path, fits):
    train, cache = bytes_(100), tmp_path / "new" / "zca.h5"
    first = whitening(cache, train)
    stamp = cache.stat().st_mtime_ns
    same(whitening(cache, train), first)
    assert len(fits) == 1 and cache.stat().st_mtime_ns == stamp
    same(first, preprocessing.fit(train))


def test_a_cache_says_what_it_was_fitted_on(tmp_path):
    whitening(tmp_path / "zca.h5", bytes_(100))
    record, groups = files.load(tmp_path / "zca.h5")
    fitted = record["fitted on"]
    assert fitted["shape"] == [100, 4, 5, 3] and fitted["scale"] == 55 and fitted["regularisation"] == 0.1
    assert fitted["images"] == files.digest([bytes_(100)]) and list(groups["zca"]) == ["matrix", "mean"]


def test_the_images_of_a_run_are_digested_once(tmp_path, monkeypatch):
    seen, images, labels = [], bytes_(30), np.arange(30) % 10
    monkeypatch.setattr(minifit.data, "slices", lambda rows: seen.append(len(rows)) or [rows])
    monkeypatch.setattr(files, "digest", None)
    dataset = Dataset("noise", images, labels, bytes_(5, 1), labels[:5])
    config = replace(MNIST, preprocessing="whitened", train=20, validation=10, test=5)
    held = sets.Sets(dataset, config, tmp_path)
    assert dataset.digest(20, 10, 5) in held.statistics.name and held.prepare(images).shape == images.shape
    assert seen == [20, 10, 5]


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
    train, cache = bytes_(100), tmp_path / "zca.h5"
    whitening(cache, train)
    other, parameters = OTHERWISE[change][0](train), OTHERWISE[change][1]
    same(whitening(cache, other, **parameters), preprocessing.fit(other, **parameters))
    assert len(fits) == 2
    same(whitening(cache, other, **parameters), preprocessing.fit(other, **parameters))
    assert len(fits) == 2


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
    files.save(path, {"identity": "a stage's weights"}, weights={"w": np.zeros(3)})


def no_record(path):
    files.save(path, {}, **files.load(path)[1])


@pytest.mark.parametrize("damage", [cut, empty, no_hdf5, one_number, an_array_less, other_contents, no_record])
def test_a_damaged_cache_is_rebuilt(tmp_path, fits, damage):
    train, cache = bytes_(100), tmp_path / "zca.h5"
    first = whitening(cache, train)
    whole = cache.read_bytes()
    damage(cache)
    same(whitening(cache, train), first)
    assert len(fits) == 2 and cache.read_bytes() == whole


def test_a_cache_that_cannot_be_kept_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for cache in (tmp_path / "file" / "zca.h5", tmp_path):
        with pytest.raises(UserError) as caught:
            whitening(cache, bytes_(10))
        assert str(cache) in str(caught.value) and "\n" not in str(caught.value)


def test_of_three_runs_that_start_together_one_fits_and_all_see_the_same(tmp_path):
    train, context = bytes_(100), multiprocessing.get_context("fork")
    ready, results = context.Barrier(3), context.Queue()

    def run():
        fitted = []
        sets.fit = lambda *arguments: fitted.append(1) or preprocessing.fit(*arguments)
        ready.wait(20)
        prepare = whitening(tmp_path / "zca.h5", train)
        results.put((len(fitted), prepare))

    processes = [context.Process(target=run) for _ in range(3)]
    for process in processes:
        process.start()
    got = [results.get(timeout=20) for _ in processes]
    for process in processes:
        process.join()
    assert sum(count for count, _ in got) == 1
    for _, prepare in got:
        same(prepare, preprocessing.fit(train))


@pytest.mark.parametrize("name", ["unit", "local", "local-red", "whitened"])
def test_each_setting_gives_its_preparation(name, tmp_path):
    train, test = photographs(30), photographs(4, seed=1)
    wanted = {
        "unit": test / 255.0,
        "local": locally(test, (0, 1, 2)),
        "local-red": locally(test, (0,)),
        "whitened": whitened(train[:20], test, 55.0, 0.1),  # the other ten validate
    }[name]
    labels = np.arange(30) % 10
    config = replace(MNIST, preprocessing=name, train=20, validation=10, test=4)
    made = sets.Sets(Dataset("a set", train, labels, test, labels[:4]), config, tmp_path)
    x, _, _ = made["test"].batch(np.arange(4))
    np.testing.assert_allclose(x, wanted, rtol=0, atol=1e-5 * max(1, abs(wanted).max()))
