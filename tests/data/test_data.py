"""Reading and drawing data sets: the published format, every way a file can be wrong, and the digits drawn here."""

import gzip
import hashlib
import os
from dataclasses import replace

import numpy as np
import pytest
from changes import changed
from hypothesis import given, settings
from hypothesis import strategies as st

from minifit import UserError, data
from minifit.data import digits, files, mnist

IMAGES, LABELS, TEST_IMAGES, TEST_LABELS = mnist.FILES
REAL = os.environ.get("MINIFIT_DATA")


@pytest.fixture(autouse=True)
def nothing_from_this_machine(monkeypatch, tmp_path):
    """No test meets the files or the cache of whoever runs it, nor the network."""

    def no_download(*_):
        raise UserError("the test asked for a download")

    monkeypatch.delenv("MINIFIT_DATA", raising=False)
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / "cache" / project)
    monkeypatch.setattr(mnist, "download", no_download)


def idx(array):
    """LeCun's format, spelled out: zero, zero, unsigned byte, dimensions; big-endian sizes; elements."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.astype(np.uint8).tobytes()


def small_set(train=7, test=3, seed=0):
    rng = np.random.default_rng(seed)
    return {
        IMAGES: rng.integers(0, 256, (train, 28, 28)),
        LABELS: rng.integers(0, 10, train),
        TEST_IMAGES: rng.integers(0, 256, (test, 28, 28)),
        TEST_LABELS: rng.integers(0, 10, test),
    }


def write(folder, arrays, respell=str):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        file = respell(name)
        (folder / file).write_bytes(gzip.compress(idx(array)) if file.endswith(".gz") else idx(array))
    return folder


def refusal(folder):
    """The one line with which a folder is refused."""
    with pytest.raises(UserError) as caught:
        data.load("mnist", folder)
    line = str(caught.value)
    assert "\n" not in line
    return line


SPELLINGS = {
    "raw": lambda name: name,
    "gz": lambda name: f"{name}.gz",
    "dot": lambda name: name.replace("-idx", ".idx"),
    "dot gz": lambda name: name.replace("-idx", ".idx") + ".gz",
}


@pytest.mark.parametrize("subfolder", [".", "mnist"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_what_was_written_is_what_is_read(tmp_path, spelling, subfolder):
    arrays = small_set()
    write(tmp_path / subfolder, arrays, SPELLINGS[spelling])
    loaded = data.load("mnist", tmp_path)
    for images, labels, stored in (
        (loaded.images, loaded.labels, (arrays[IMAGES], arrays[LABELS])),
        (loaded.test_images, loaded.test_labels, (arrays[TEST_IMAGES], arrays[TEST_LABELS])),
    ):
        assert images.dtype == np.uint8 and labels.dtype == np.int64
        assert images.shape == (len(labels), 28, 28, 1)
        np.testing.assert_array_equal(images[..., 0], stored[0])
        np.testing.assert_array_equal(labels, stored[1])


def test_spellings_may_be_mixed_and_a_gz_may_already_be_unpacked(tmp_path):
    arrays = small_set()
    ways = iter(SPELLINGS.values())
    write(tmp_path, arrays, lambda name: next(ways)(name))
    (tmp_path / f"{LABELS}.gz").write_bytes(idx(arrays[LABELS]))
    np.testing.assert_array_equal(data.load("mnist", tmp_path).labels, arrays[LABELS])


def test_a_folder_of_a_files_name_does_not_hide_the_file(tmp_path):
    write(tmp_path, small_set(), SPELLINGS["dot"])
    (tmp_path / IMAGES).mkdir()
    assert len(data.load("mnist", tmp_path).images) == 7


def test_a_data_dir_is_the_only_place_searched_then_the_environment_then_the_cache(tmp_path, monkeypatch):
    cached = write(tmp_path / "cache" / "minifit" / "mnist", small_set(train=1))
    assert len(data.load("mnist").images) == 1

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("MINIFIT_DATA", str(tmp_path / "elsewhere"))
    assert len(data.load("mnist").images) == 1, "an environment without the files falls through to the cache"
    write(tmp_path / "elsewhere" / "mnist", small_set(train=2))
    assert len(data.load("mnist").images) == 2

    assert len(data.load("mnist", write(tmp_path / "given", small_set(train=3))).images) == 3
    (tmp_path / "empty").mkdir()
    line = refusal(tmp_path / "empty")
    assert str(tmp_path / "empty") in line and all(name in line for name in mnist.FILES)
    assert "not a folder" in refusal(tmp_path / "absent")
    assert "not a folder" in refusal(cached / IMAGES)


def test_only_what_is_missing_is_called_missing(tmp_path):
    write(tmp_path / "mnist", small_set())
    (tmp_path / "mnist" / LABELS).unlink()
    line = refusal(tmp_path)
    assert LABELS in line and IMAGES not in line and TEST_LABELS not in line


def test_without_files_and_network_the_line_says_where_it_looked_and_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("MINIFIT_DATA", str(tmp_path / "elsewhere"))
    line = refusal(None)
    for part in (tmp_path / "elsewhere", tmp_path / "cache", "asked for a download", *mnist.FILES, "run.py digits"):
        assert str(part) in line


def test_an_environment_that_names_no_folder_is_refused_although_the_cache_has_the_set(tmp_path, monkeypatch):
    cached = write(tmp_path / "cache" / "minifit" / "mnist", small_set())
    for nowhere in (tmp_path / "absent", cached / IMAGES):
        monkeypatch.setenv("MINIFIT_DATA", str(nowhere))
        assert refusal(None) == f"MINIFIT_DATA names {nowhere}, which is not a folder"
    assert len(data.load("mnist", cached).images) == 7, "a data dir goes before it"


HEADER = bytes([0, 0, 8, 3, 0, 0, 0, 7, 0, 0, 0, 28, 0, 0, 0, 28])
GOOD = idx(small_set()[IMAGES])
WRONG = {
    "empty": (b"", "not an idx file of bytes: it begins with b''"),
    "an error page": (b"<!DOCTYPE html>\n<h1>404</h1>", "not an idx file of bytes: it begins with b'<!DOCTYPE"),
    "two bytes": (b"\0\0", "not an idx file"),
    "three bytes": (b"\0\0\x08", "not an idx file"),
    "wrong magic": (b"\1" + GOOD[1:], "not an idx file"),
    "floats": (b"\0\0\x0d" + GOOD[3:], "not an idx file of bytes"),
    "labels for images": (idx(np.zeros(7)), "1 dimensions instead of 3"),
    "cut header": (HEADER[:10], "cut off: 10 bytes"),
    "header alone": (HEADER, "cut off: 16 bytes, but shape (7, 28, 28) takes 5504"),
    "cut": (GOOD[:-1], "cut off: 5503 bytes"),
    "trailing byte": (GOOD + b"\0", "bytes left over: 5505 bytes"),
    "no images": (idx(np.zeros((0, 28, 28))), "no images"),
    "none of any size": (HEADER[:4] + b"\xff" * 8 + bytes(4), "no images"),
    "other size": (idx(np.zeros((7, 32, 30))), "32x30 instead of 28x28"),
    "four billion": (HEADER[:4] + b"\xff" * 12, "cut off"),
    "cut gzip": (gzip.compress(GOOD)[:-100], "damaged gzip"),
    "cut gzip trailer": (gzip.compress(GOOD)[:-3], "damaged gzip"),
    "gzip magic alone": (b"\x1f\x8b", "damaged gzip"),
    "flipped gzip bit": (gzip.compress(GOOD)[:-6] + b"\0\0\0\0\0\0", "damaged gzip"),
    "garbled gzip": (gzip.compress(GOOD)[:12] + b"\xff" * 500, "damaged gzip"),
    "gzip and more": (gzip.compress(GOOD) + b"more", "damaged gzip"),
    "zipped error page": (gzip.compress(b"<html>"), "not an idx file"),
}


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_file_is_one_line_with_its_name_and_the_reason(tmp_path, wrong, ending):
    content, reason = WRONG[wrong]
    write(tmp_path, small_set())
    (tmp_path / IMAGES).unlink()
    (tmp_path / (IMAGES + ending)).write_bytes(content)
    line = refusal(tmp_path)
    assert line.startswith(f"{tmp_path / (IMAGES + ending)}: ") and reason in line


def test_of_a_damaged_file_in_the_cache_the_line_says_how_to_get_another(tmp_path):
    cached = write(tmp_path / "cache" / "minifit" / "mnist", small_set())
    write(tmp_path / "given", small_set())
    for folder in (cached, tmp_path / "given"):
        (folder / LABELS).write_bytes(b"half")
    advice = "; remove it to download it again"
    assert refusal(None).startswith(f"{cached / LABELS}: not an idx file") and refusal(None).endswith(advice)
    assert "remove" not in refusal(tmp_path / "given")


@pytest.mark.parametrize("name, array, reason", [
    (LABELS, np.zeros(8), "8 labels for the 7 images"),
    (TEST_LABELS, np.zeros(0), "0 labels for the 3 images"),
    (TEST_LABELS, np.array([1, 26, 9]), "label 26"),
    (LABELS, np.zeros((7, 28, 28)), "3 dimensions instead of 1"),
])  # fmt: skip
def test_wrong_labels_are_one_line_with_their_name_and_the_reason(tmp_path, name, array, reason):
    write(tmp_path, {**small_set(), name: array})
    line = refusal(tmp_path)
    assert line.startswith(f"{tmp_path / name}: ") and reason in line


def test_a_folder_in_place_of_a_file_is_one_line(tmp_path):
    write(tmp_path, small_set())
    (tmp_path / LABELS).unlink()
    (tmp_path / LABELS).mkdir()
    assert str(tmp_path / LABELS) in refusal(tmp_path)


def test_an_unreadable_file_is_one_line(tmp_path):
    write(tmp_path, small_set())
    (tmp_path / LABELS).chmod(0)
    if os.access(tmp_path / LABELS, os.R_OK):
        pytest.skip("this user may read everything")
    assert str(tmp_path / LABELS) in refusal(tmp_path)


def test_a_read_that_fails_is_one_line(tmp_path, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    write(tmp_path, small_set())
    monkeypatch.setattr(files, "opened", denied)
    assert refusal(tmp_path) == f"{tmp_path / IMAGES}: Permission denied"


def test_only_the_official_bytes_are_called_mnist(tmp_path, monkeypatch):
    arrays = small_set()
    write(tmp_path / "a", arrays)
    write(tmp_path / "zipped", arrays, SPELLINGS["gz"])
    write(tmp_path / "b", small_set(seed=1))
    names = [data.load("mnist", tmp_path / folder).name for folder in ("a", "zipped", "b")]
    assert all(name.startswith("a set in MNIST's format (") for name in names)
    assert names[0] == names[1] != names[2]

    official = {name: ("", hashlib.sha256(idx(array)).hexdigest()) for name, array in arrays.items()}
    monkeypatch.setattr(mnist, "FILES", official)
    assert [data.load("mnist", tmp_path / folder).name for folder in ("a", "zipped")] == ["MNIST", "MNIST"]
    assert data.load("mnist", tmp_path / "b").name == names[2]


def test_the_real_mnist_is_recognised():
    if not REAL or mnist._search(files.Path(REAL))[1]:
        pytest.skip("MINIFIT_DATA names no folder with MNIST")
    loaded = data.load("mnist", REAL)
    assert loaded.name == "MNIST"
    assert loaded.images.shape == (60000, 28, 28, 1) and loaded.test_images.shape == (10000, 28, 28, 1)
    assert loaded.labels[:5].tolist() == [5, 0, 4, 1, 9]


def test_an_unknown_set_is_one_line_that_lists_the_known_ones():
    with pytest.raises(UserError, match="'cifar': choose one of mnist, svhn, cifar10, cifar100, digits, faces, own"):
        data.load("cifar")


def test_drawn_digits_have_the_form_of_every_set():
    drawn = data.load("digits", train=60, test=20)
    assert drawn.name == "digits"
    assert drawn.images.shape == (60, 28, 28, 1) and drawn.images.dtype == np.uint8
    assert drawn.test_images.shape == (20, 28, 28, 1) and drawn.test_labels.dtype == np.int64
    assert 0 <= drawn.images.min() < 26 and 229 < drawn.images.max() <= 255


def test_a_folder_for_digits_is_one_line_because_they_are_drawn(tmp_path):
    with pytest.raises(UserError, match=r"--data-dir .*: digits are drawn here, not read"):
        data.load("digits", tmp_path, train=4, test=4)


@pytest.mark.parametrize("setting, value", [("train", 0), ("test", -1), ("seed", -1)])
def test_a_count_or_seed_that_cannot_be_is_one_line(setting, value):
    with pytest.raises(UserError, match=f"{setting} is {value}"):
        data.load("digits", **{setting: value})


def test_the_same_seed_draws_the_same_digits_and_another_seed_others():
    images, labels = digits.draw(300, seed=5)
    again, labels_again = digits.draw(300, seed=5)
    np.testing.assert_array_equal(images, again)
    np.testing.assert_array_equal(labels, labels_again)
    other, other_labels = digits.draw(300, seed=6)
    assert (images != other).any(axis=(1, 2)).all() and (labels != other_labels).any()


def test_asking_for_more_digits_keeps_the_first_ones():
    few, few_labels = digits.draw(7, seed=1)
    more, more_labels = digits.draw(digits.BLOCK + 7, seed=1)
    np.testing.assert_array_equal(more[:7], few)
    np.testing.assert_array_equal(more_labels[:7], few_labels)


def test_no_digit_is_drawn_twice_for_training_and_testing_alike():
    drawn = data.load("digits", train=1200, test=1200, seed=0)
    both = np.concatenate([drawn.images, drawn.test_images]).reshape(2400, -1)
    assert len({image.tobytes() for image in both}) == 2400


def test_every_class_is_drawn_equally_often_in_no_order():
    _, labels = digits.draw(2 * digits.BLOCK, seed=0)
    assert np.bincount(labels, minlength=10).tolist() == [digits.BLOCK // 5] * 10
    assert (np.diff(labels.astype(int)) == 0).sum() > digits.BLOCK / 10, "neighbours agree as often as by chance"


def test_ink_is_white_on_black_and_stays_on_the_page():
    images, _ = digits.draw(500, seed=2)
    assert (images.max(axis=(1, 2)) > 100).all(), "every image has ink"
    border = np.ones((28, 28), bool)
    border[1:-1, 1:-1] = False
    assert images[:, border].mean() < 16, "and its border is nearly empty"


def test_classes_can_be_told_apart_but_not_by_their_means_alone():
    images, labels = digits.draw(2000, seed=0)
    x, (t, wanted) = images.reshape(2000, -1).astype(float), digits.draw(1000, seed=0, stream=1)
    means = np.stack([x[labels == digit].mean(axis=0) for digit in range(10)])
    distances = ((t.reshape(1000, 1, -1) - means) ** 2).sum(axis=2)
    accuracy = (distances.argmin(axis=1) == wanted).mean()
    assert 0.5 < accuracy < 0.8


def test_a_data_set_is_cut_into_the_first_the_last_and_the_first_test_images():
    dataset = data.load("digits", train=10, test=6)
    parts = dataset.parts(6, 3, 4)
    assert {name: len(images) for name, (images, _) in parts.items()} == {"train": 6, "validation": 3, "test": 4}
    np.testing.assert_array_equal(parts["validation"][0], dataset.images[7:])
    np.testing.assert_array_equal(parts["validation"][1], dataset.labels[7:])
    np.testing.assert_array_equal(parts["test"][1], dataset.test_labels[:4])
    assert len(dataset.parts(10, 0, None)["test"][0]) == 6 and len(dataset.parts(10, 0, None)["validation"][0]) == 0
    for sizes in ((8, 3, 4), (6, 3, 7)):
        with pytest.raises(UserError, match="10 training and 6 test images; --train"):
            dataset.parts(*sizes)


def test_a_digest_is_of_the_images_and_labels_in_use_and_computed_once():
    dataset = data.load("digits", train=10, test=6)
    arrays = [a for part in dataset.parts(6, 3, 4).values() for a in part]
    wanted = hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest()[:16]
    assert dataset.digest(6, 3, 4) == wanted
    assert len({dataset.digest(*sizes) for sizes in ((6, 3, 4), (7, 3, 4), (6, 2, 4), (6, 3, 5), (6, 3, None))}) == 5
    labels = dataset.labels.copy()
    labels[0] += 1
    assert replace(dataset, labels=labels).digest(6, 3, 4) != wanted
    dataset.images.flags.writeable = True
    dataset.images[0] += 1
    assert dataset.digest(6, 3, 4) == wanted


def test_the_digest_of_mnist_is_the_one_that_published_runs_have():
    try:
        dataset = data.load("mnist", REAL) if REAL else pytest.skip("MINIFIT_DATA is not set")
    except UserError:
        pytest.skip("MINIFIT_DATA names no folder with MNIST")
    if dataset.name != "MNIST":
        pytest.skip("MINIFIT_DATA holds another set in MNIST's format")
    assert dataset.digest(50_000, 10_000, 10_000) == "94d51b72971cee86"


def test_a_gz_inflates_no_further_than_its_header_claims(tmp_path, monkeypatch):
    write(tmp_path, small_set())
    bomb = gzip.compress(idx(np.zeros((2, 28, 28), np.uint8)) + bytes(2**22))
    (tmp_path / IMAGES).write_bytes(bomb)
    asked, read = [], gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda self, n=-1: (asked.append(n), read(self, n))[1])
    assert "bytes left over" in refusal(tmp_path) and max(asked) == 2 * 28 * 28 + 1 and min(asked) > 0
    header = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (2**20, 28, 28))
    (tmp_path / IMAGES).write_bytes(gzip.compress(header))
    assert "claims 822,083,584 bytes and has" in refusal(tmp_path)


def test_a_file_is_believed_up_to_a_hundred_times_its_bytes_and_a_small_one_further():
    files.believable("a", 100 * 2**20, 2**20)
    files.believable("a", files.PLENTY, 0)
    for claimed, there in ((100 * 2**20 + 1, 2**20), (files.PLENTY + 1, 0)):
        with pytest.raises(UserError, match=f"a: claims {claimed:,} bytes and has {there:,}; wanted at most 100 times"):
            files.believable("a", claimed, there)


@pytest.mark.parametrize("spelling", ["raw", "gz"])
@settings(max_examples=40)
@given(draw=st.data())
def test_damaged_files_are_read_or_are_one_line(spelling, draw, tmp_path_factory):
    """Any of the four files, its header and sizes above all, before it is zipped or afterwards."""
    folder, arrays = tmp_path_factory.mktemp("fuzz"), small_set()
    write(folder, arrays, SPELLINGS[spelling])
    name = draw.draw(st.sampled_from(sorted(arrays)))
    content, zipped = idx(arrays[name]), spelling == "gz"
    inside = not zipped or draw.draw(st.booleans())
    content = changed(draw.draw, content if inside else gzip.compress(content), 16)
    (folder / SPELLINGS[spelling](name)).write_bytes(gzip.compress(content) if inside and zipped else content)
    try:
        loaded = data.load("mnist", folder)
    except UserError as error:
        assert "\n" not in str(error) and str(folder) in str(error)
        return
    for images, labels in ((loaded.images, loaded.labels), (loaded.test_images, loaded.test_labels)):
        assert images.shape == (len(labels), 28, 28, 1) and len(labels) and labels.max() < 10
    assert loaded.name.startswith("a set in MNIST's format")


@settings(max_examples=40)
@given(kind=st.integers(0, 255), sizes=st.lists(st.integers(0, 2**32 - 1), max_size=5), tail=st.binary(max_size=99))
def test_an_idx_file_of_any_structure_is_read_or_is_one_line(kind, sizes, tail, tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / IMAGES
    header = bytes([0, 0, kind if kind > 20 else 8, len(sizes)]) + b"".join(n.to_bytes(4, "big") for n in sizes)
    for content in (header + tail, gzip.compress(header + tail)):
        path.write_bytes(content)
        try:
            found, _ = mnist._read(path, 3)
        except UserError as error:
            assert "\n" not in str(error) and str(path) in str(error)
        else:
            assert found.shape == tuple(sizes) and found.tobytes() == tail
