"""Reading SVHN: the published format as scipy writes it, the paper's split, and every way that a file can be wrong."""

import hashlib
import io
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
import scipy.io
from changes import changed
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import nobody

from minifit import UserError, data
from minifit.data import stored, svhn
from minifit.data.stored import Rows

NAMES = list(svhn.FILES)
SIZES = {"train_32x32.mat": 4100, "extra_32x32.mat": 2100, "test_32x32.mat": 30}


@pytest.fixture(autouse=True)
def nothing_from_this_machine(monkeypatch, tmp_path):
    monkeypatch.delenv("MINIFIT_DATA", raising=False)
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / "cache" / project)
    monkeypatch.setenv("HTTPS_PROXY", nobody())
    monkeypatch.setenv("HTTP_PROXY", nobody())


def pictures(count, seed=0):
    """(X, y) as the files have them: (32, 32, 3, N), and labels from 1 to 10 in a column."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (32, 32, 3, count), np.uint8), (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, {file: (X, y)}): three small files, of which one is not compressed."""
    folder, arrays = tmp_path_factory.mktemp("svhn"), {}
    for seed, (name, count) in enumerate(SIZES.items()):
        arrays[name] = X, y = pictures(count, seed)
        scipy.io.savemat(folder / name, {"X": X, "y": y}, do_compression=not name.startswith("extra"))
    return folder, arrays


def images_of(arrays, *names):
    return np.concatenate([arrays[name][0].transpose(3, 0, 1, 2) for name in names])


def labels_of(arrays, *names):
    return np.concatenate([arrays[name][1][:, 0] for name in names]) % 10


def test_images_and_labels_are_those_of_the_files_in_another_order(made):
    folder, arrays = made
    loaded = data.load("svhn", folder)
    images, labels = images_of(arrays, *NAMES[:2]), labels_of(arrays, *NAMES[:2])
    assert isinstance(loaded.images, Rows) and loaded.images.shape == (6200, 32, 32, 3)
    order = loaded.images.index
    assert sorted(order) == list(range(6200))
    np.testing.assert_array_equal(loaded.images[:], images[order])
    np.testing.assert_array_equal(loaded.labels, labels[order])
    np.testing.assert_array_equal(loaded.test_images[:], images_of(arrays, NAMES[2]))
    np.testing.assert_array_equal(loaded.test_labels, labels_of(arrays, NAMES[2]))
    fingerprint = hashlib.sha256(
        b"".join(hashlib.sha256((folder / name).read_bytes()).digest() for name in NAMES)
    ).hexdigest()[:8]
    assert loaded.name == f"a set in SVHN's format ({fingerprint})"


def test_the_last_6000_validate_400_of_each_class_from_the_training_file_and_200_from_the_extra_one(made):
    folder, _ = made
    loaded = data.load("svhn", folder)
    train, validation = loaded.images.index[:-6000], loaded.images.index[-6000:]
    first = validation < SIZES[NAMES[0]]
    labels = loaded.labels[-6000:]
    assert np.bincount(labels[first]).tolist() == [400] * 10 and np.bincount(labels[~first]).tolist() == [200] * 10
    assert (np.diff(train) < 0).any(), "in random order, so that the first images are of both files"
    assert len(np.unique(loaded.labels[:100])) == 10 and (train[:100] < SIZES[NAMES[0]]).any()
    parts = loaded.parts(200, 6000, None)
    assert [len(labels) for _, labels in parts.values()] == [200, 6000, 30]
    again = data.load("svhn", folder)
    np.testing.assert_array_equal(again.images.index, loaded.images.index)


def test_only_the_official_bytes_are_called_svhn(made, monkeypatch):
    folder, _ = made
    sums = {name: (hashlib.sha256((folder / name).read_bytes()).hexdigest(), 0) for name in NAMES}
    monkeypatch.setattr(svhn, "FILES", sums)
    assert data.load("svhn", folder).name == "SVHN"


def test_a_missing_file_and_a_failed_download_are_one_line(tmp_path, made, monkeypatch):
    with pytest.raises(UserError, match=r"has no train_32x32\.mat, extra_32x32\.mat, test_32x32\.mat \(there or in"):
        data.load("svhn", tmp_path)
    folder, _ = made
    monkeypatch.setattr(svhn, "MIRRORS", ())
    with pytest.raises(UserError, match=r"SVHN is not in .* and its download failed"):
        data.load("svhn", mirrors=(nobody() + "/",), progress=False)
    monkeypatch.setenv("MINIFIT_DATA", str(folder.parent))
    inside = folder.parent / "svhn"
    if folder.name != "svhn" and not inside.exists():
        inside.symlink_to(folder)
    assert len(data.load("svhn").test_images) == 30


def matrix(name, kind, shape, content, compressed=False, claimed=None):
    """One matrix element, whose numbers may claim another length."""

    def element(number, body):
        return struct.pack("<II", number, len(body)) + body + bytes(-len(body) % 8)

    inside = element(6, bytes([9, 0, 0, 0, 0, 0, 0, 0])) + element(5, np.array(shape, "<i4").tobytes())
    inside += element(1, name) + struct.pack("<II", kind, len(content) if claimed is None else claimed)
    inside += content + bytes(-len(content) % 8)
    whole = struct.pack("<II", 14, len(inside)) + inside
    return struct.pack("<II", 15, len(z := zlib.compress(whole))) + z if compressed else whole


HEADER = b"MATLAB 5.0 MAT-file, by hand".ljust(124) + b"\x00\x01IM"
X3, Y3 = matrix(b"X", 2, (32, 32, 3, 3), bytes(9216)), matrix(b"y", 2, (3, 1), bytes([1, 2, 10]))
PACKED = zlib.compress(X3)
scipy.io.savemat(COMPLEX := io.BytesIO(), {"y": np.array([[1], [2 + 3j], [10]])})
scipy.io.savemat(WORD := io.BytesIO(), {"about": "digits"})
BOMB = zlib.compress(struct.pack("<II", 14, 2**31) + bytes(2**20))
WRONG = {
    "empty": (b"", "not a MATLAB file of level 5, little-endian: it begins with b''"),
    "a page": (b"<html>" * 100, "not a MATLAB file of level 5"),
    "big-endian": (HEADER[:124] + b"\x01\x00MI", "not a MATLAB file of level 5, little-endian"),
    "no y": (HEADER + X3, "has no y in it; wanted X and y, and found X"),
    "two X": (HEADER + X3 + matrix(b"X", 2, (2048, 1024, 1, 1), bytes(2**21)) + Y3, "has two of 'X'; wanted X and y"),
    "no X": (HEADER + Y3, "has no X in it"),
    "nothing": (HEADER, "has no X in it; wanted X and y, and found nothing"),
    "cut in X": (HEADER + X3[:4000], "cut off: .* bytes of an element are missing"),
    "cut in a tag": (HEADER + X3 + Y3[:5], "cut off"),
    "grey": (HEADER + matrix(b"X", 2, (32, 32, 3), bytes(3072)) + Y3, r"X is \(32, 32, 3\); wanted \(32, 32, 3, N\)"),
    "turned": (HEADER + matrix(b"X", 2, (3, 32, 32, 3), bytes(9216)) + Y3, r"X is \(3, 32, 32, 3\); wanted"),
    "floats": (
        HEADER + matrix(b"X", 9, (32, 32, 3, 1), bytes(24576)) + matrix(b"y", 2, (1, 1), b"\1"),
        "X has numbers",
    ),
    "other count": (
        HEADER + X3 + matrix(b"y", 2, (2, 1), b"\1\2"),
        r"y is \(2, 1\); wanted \(3, 1\), a label for each",
    ),
    "label 0": (HEADER + X3 + matrix(b"y", 2, (3, 1), b"\1\0\1"), "label 0, where 1 to 10 are the classes"),
    "label 11": (HEADER + X3 + matrix(b"y", 2, (3, 1), b"\1\2\x0b"), "label 11, where 1 to 10 are the classes"),
    "label nan": (HEADER + X3 + matrix(b"y", 9, (3, 1), struct.pack("<3d", 1, np.nan, 2)), "label nan, where"),
    "label half": (HEADER + X3 + matrix(b"y", 9, (3, 1), struct.pack("<3d", 1, 1.5, 2)), r"label 1\.5, where"),
    "claims more": (
        HEADER + matrix(b"X", 2, (32, 32, 3, 2**20), bytes(9216), claimed=2**31 - 8) + Y3,
        "are claimed by an element that has",
    ),
    "claims it all": (
        HEADER + matrix(b"X", 2, (32, 32, 3, 2**20), bytes(99), claimed=3 * 2**30),
        "are claimed by an element",
    ),
    "bomb": (HEADER + struct.pack("<II", 15, len(BOMB)) + BOMB, "claims 2,147,483,648 bytes and has"),
    "bytes behind zlib": (HEADER + struct.pack("<II", 15, len(PACKED) + 50) + PACKED + bytes(50), "has no y in it"),
    "a bomb that claims a long file": (HEADER + struct.pack("<II", 15, 2**32 - 8) + BOMB, "cut off: 4,294,"),
    "cut in the end of zlib": ((HEADER + struct.pack("<II", 15, len(PACKED)) + PACKED)[:-2], "cut off"),
    "an end of zlib is missing": (
        HEADER + struct.pack("<II", 15, len(PACKED) - 3) + PACKED[:-3],
        "cut off: the end of",
    ),
    "not zlib": (HEADER + struct.pack("<II", 15, 40) + bytes(40), "damaged"),
    "a cell": (HEADER + struct.pack("<II", 14, 16) + struct.pack("<IIII", 6, 8, 1, 0), "damaged"),
    "an element of its own": (
        HEADER + struct.pack("<II", 9, 16) + bytes(16),
        "damaged: an element of type 9 at byte 128",
    ),
    "complex": (HEADER + X3 + COMPLEX.getvalue()[128:], "'y': found no matrix of real numbers; wanted X, uint8"),
    "negative": (HEADER + matrix(b"X", 2, (32, -32, 3, 3), bytes(9216)) + Y3, "found no matrix of real numbers"),
    "a word besides": (HEADER + X3 + Y3 + WORD.getvalue()[128:], "'about': found no matrix of real numbers; wanted X"),
}


def read(path):
    """What `load` does with one file of the three."""
    return stored.guarded(whole, path)


def whole(path):
    labels = svhn._labels(path)
    return labels, np.concatenate(list(svhn._images(path, len(labels))))


@pytest.mark.parametrize("compressed", [False, True])
def test_the_smallest_files_are_read(tmp_path, compressed):
    X, y = pictures(1)
    path = tmp_path / "a.mat"
    content = matrix(b"y", 2, y.shape, y.tobytes(), compressed), matrix(b"X", 2, X.shape, X.tobytes("F"), compressed)
    path.write_bytes(HEADER + b"".join(content))
    labels, images = read(path)
    assert labels.tolist() == [1]
    np.testing.assert_array_equal(images, X.transpose(3, 0, 1, 2))


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_one_line(name, tmp_path):
    content, line = WRONG[name]
    path = tmp_path / "train_32x32.mat"
    path.write_bytes(content)
    with pytest.raises(UserError, match=line) as caught:
        read(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "a.mat"
    contents = []
    for compressed in (False, True):
        X, y = pictures(3)
        scipy.io.savemat(path, {"X": X, "y": y}, do_compression=compressed)
        contents.append(path.read_bytes())
    return path, contents


@settings(max_examples=60, deadline=None)
@given(draw=st.data())
def test_a_damaged_file_is_read_or_is_one_line(draw, small):
    """Numbers of the structure changed, bytes changed, or a file cut: never another exception."""
    path, contents = small
    path.write_bytes(changed(draw.draw, draw.draw(st.sampled_from(contents)), 300))
    with suppress(UserError):
        labels, images = whole(path)
        assert len(labels) == len(images) and set(labels.tolist()) <= {*range(10)}


@settings(max_examples=40, deadline=None)
@given(draw=st.data())
def test_a_file_of_any_structure_is_read_or_is_one_line(draw, tmp_path_factory):
    """Matrices of any name, kind and shape, in any order, each of which may claim more or less than it has."""
    draw, path = draw.draw, tmp_path_factory.mktemp("fuzz") / "a.mat"
    shapes = st.one_of(
        st.lists(st.integers(-1, 40), max_size=5), st.builds(lambda n: [32, 32, 3, n], st.integers(-1, 2**31 - 1))
    )
    shapes = st.one_of(shapes, st.just([32, 32, 3, 2]), st.just([2, 1]))
    content = HEADER
    for _ in range(draw(st.integers(0, 4))):
        name, kind, shape = draw(st.sampled_from([b"X", b"y", b"", b"z"])), draw(st.integers(0, 16)), draw(shapes)
        numbers = draw(st.sampled_from([bytes(6144), b"\1\2", bytes(16), b""]))
        claimed = draw(st.one_of(st.none(), st.integers(0, 2**32 - 1)))
        content += matrix(name, kind, shape, numbers, draw(st.booleans()), claimed)
    path.write_bytes(content)
    try:
        labels, images = whole(path)
    except UserError as error:
        assert "\n" not in str(error) and str(path) in str(error)
    else:
        assert len(labels) == len(images) and images.shape[1:] == (32, 32, 3) and {*labels.tolist()} <= {*range(10)}


def test_some_structures_are_read(tmp_path):
    """Else the test above could not tell a reader from one that refuses everything."""
    (tmp_path / "a.mat").write_bytes(HEADER + Y3 + matrix(b"z", 9, (1, 1), bytes(8), True) + X3)
    assert read(tmp_path / "a.mat")[0].tolist() == [1, 2, 0]
