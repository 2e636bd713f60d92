"""Data of the user's own: three kinds of files with the same images, and every way in which one can be wrong."""

import io
import os
import struct
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
from changes import changed
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from minifit import UserError, data
from minifit.data import own
from minifit.data.stored import Array, Rows

REAL = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("pooch.os_cache", lambda project: folder / project)
    return folder


def some(count=30, shape=(7, 5, 3), classes=3, seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)
    return images, np.sort(np.arange(count) % classes)


def hdf5(path, **fields):
    with h5py.File(path, "w") as file:
        for name, value in fields.items():
            file[name] = value
    return path


def packed(path, **fields):
    with h5py.File(path, "w") as file:
        for name, value in fields.items():
            file.create_dataset(name, data=value, compression="gzip", chunks=True)
    return path


def npz(path, **fields):
    np.savez(path, **fields)
    return path


def npz_packed(path, **fields):
    np.savez_compressed(path, **fields)
    return path


def pictures(path, images, labels, mode=None, ending="png"):
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = path / f"class {label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.squeeze(), mode).save(folder / f"{i:04}.{ending}")
    (path / ".hidden").write_text("is not looked at")
    return path


KINDS = {"a.h5": hdf5, "packed.h5": packed, "a.npz": npz, "packed.npz": npz_packed}


@pytest.mark.parametrize("kind", [*KINDS, "folder"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_every_kind_of_file_gives_the_same_images_and_the_same_order(kind, channels, tmp_path):
    images, labels = some(shape=(7, 5, channels))
    if kind == "folder":
        path = pictures(tmp_path / kind, images, labels)
    else:
        path = KINDS[kind](tmp_path / kind, images=images, labels=labels)
    loaded = data.load("own", file=path)
    assert isinstance(loaded.images, Rows) and loaded.labels.dtype == np.int64
    assert loaded.name == f"{path.name} (1/5 of each class drawn for testing, seed 0)"
    order, tests = loaded.images.index, loaded.test_images.index
    np.testing.assert_array_equal(loaded.images[:], images[order])
    np.testing.assert_array_equal(loaded.labels, labels[order])
    np.testing.assert_array_equal(loaded.test_images[:], images[tests])
    np.testing.assert_array_equal(loaded.test_labels, labels[tests])
    assert sorted([*order, *tests]) == list(range(30))
    wanted = own.split(own.stratified(labels, np.random.default_rng(0)), labels)
    for found, indices in zip((order, tests), wanted, strict=True):
        np.testing.assert_array_equal(found, indices)


@pytest.mark.parametrize("kind", KINDS)
def test_a_test_part_is_taken_as_it_is(kind, tmp_path):
    (images, labels), (tests, answers) = some(), some(count=8, seed=1)
    fields = {"images": images, "labels": labels.astype(np.uint8), "test_images": tests, "test_labels": answers}
    loaded = data.load("own", file=KINDS[kind](tmp_path / kind, **fields))
    assert loaded.name == kind and len(loaded.images) == 30
    np.testing.assert_array_equal(loaded.test_images[:], tests)
    np.testing.assert_array_equal(loaded.test_labels, answers)


@given(st.lists(st.integers(1, 60), min_size=2, max_size=5), st.integers(0, 99))
def test_every_stretch_of_the_order_has_about_its_share_of_each_class(sizes, seed):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    order = own.stratified(labels, np.random.default_rng(seed))
    assert sorted(order) == list(range(len(labels)))
    for start in range(0, len(labels), 7):
        stretch = labels[order[start:]]
        for label, size in enumerate(sizes):
            share = size * len(stretch) / len(labels)
            assert abs((stretch == label).sum() - share) <= len(sizes)


@given(st.lists(st.integers(5, 40), min_size=2, max_size=5), st.integers(0, 99))
def test_a_fifth_of_each_class_is_for_testing_and_both_parts_keep_the_order(sizes, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    order = own.stratified(labels, np.random.default_rng(seed))
    train, test = own.split(order, labels)
    assert np.bincount(labels[test]).tolist() == [size // 5 for size in sizes]
    place = np.argsort(order)
    assert sorted([*train, *test]) == list(range(len(labels)))
    assert (np.diff(place[train]) > 0).all() and (np.diff(place[test]) > 0).all()
    for label in range(len(sizes)):
        assert place[train][labels[train] == label].max() < place[test][labels[test] == label].min()


def test_more_images_than_a_data_set_has_are_refused_before_they_are_copied():
    found = {"images": Array((2**24, 1, 1, 1), np.dtype(np.uint8)), "labels": Array((2**24,), np.dtype(np.uint8))}
    own.check("a.npz", found)
    found = {name: Array((2**24 + 1, *a.shape[1:]), a.dtype) for name, a in found.items()}
    with pytest.raises(UserError, match=r"a\.npz: images: found .*; wanted at most 16,777,216 images"):
        own.check("a.npz", found)
    found = {"images": Array((2, 2**14, 2**13, 1), np.dtype(np.uint8)), "labels": Array((2,), np.dtype(np.uint8))}
    with pytest.raises(UserError, match=r"a\.npz: images: found .*; wanted at most 67,108,864 bytes per image"):
        own.check("a.npz", found)


@pytest.mark.parametrize("shape", [(1, 70_000, 1), (5000, 3, 4), (1, 1, 2)])
def test_images_have_any_size(shape, tmp_path):
    images, labels = some(shape=shape, count=10, classes=2)
    loaded = data.load("own", file=npz(tmp_path / "a.npz", images=images, labels=labels))
    np.testing.assert_array_equal(loaded.images[:], images[loaded.images.index])


def test_many_classes_take_no_longer_than_few(monkeypatch):
    """The labels are searched once for all classes, and not once for each."""
    labels, searches, search = np.repeat(np.arange(9_000), 5), [], np.flatnonzero
    monkeypatch.setattr(own.np, "flatnonzero", lambda x: searches.append(1) or search(x))
    train, test = own.split(own.stratified(labels, np.random.default_rng(0)), labels)
    assert len(searches) == 2 and sorted(labels[test]) == [*range(9_000)] and len(train) == 4 * 9_000


def test_pictures_of_every_kind_become_bytes(tmp_path):
    images, labels = some(shape=(6, 4, 3), count=10, classes=2)
    for ending in ("png", "bmp", "ppm", "tiff"):
        loaded = data.load("own", file=pictures(tmp_path / ending, images, labels, ending=ending))
        np.testing.assert_array_equal(loaded.images[:], images[loaded.images.index])
    folder = tmp_path / "palette"
    for label in "ab":
        (folder / label).mkdir(parents=True)
        for i in range(5):
            Image.fromarray(images[i]).quantize(4).save(folder / label / f"{i}.png")
    assert data.load("own", file=folder).images.shape == (8, 6, 4, 3)


@pytest.mark.parametrize("ending", ["png", "bmp", "tiff", "gif", "ppm"])
@pytest.mark.parametrize("shape", [(16, 16), (16, 16, 3), (5, 5, 3), (160, 16, 3), (16, 160)])
def test_pictures_of_16_pixels_are_not_taken_for_16_bits(shape, ending, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (10, *shape), np.uint8)
    loaded = data.load("own", file=pictures(tmp_path / "p", images, np.arange(10) // 5, ending=ending))
    assert loaded.images.shape[:3] == (8, *shape[:2])


def test_the_photograph_of_a_cameras_file_of_several_is_read(tmp_path):
    for label in "ab":
        (tmp_path / label).mkdir()
        for i in range(5):
            photograph, preview = Image.new("RGB", (8, 6), (200, 10, i)), Image.new("RGB", (4, 3))
            photograph.save(tmp_path / label / f"{i}.jpg", "MPO", save_all=True, append_images=[preview])
    loaded = data.load("own", file=tmp_path)
    assert loaded.images.shape == (8, 6, 8, 3) and loaded.images[:][..., 0].min() > 190


def test_a_photograph_is_read_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    images, labels = np.random.default_rng(0).integers(0, 256, (10, 4, 6, 3), np.uint8), np.repeat([0, 1], 5)
    folder = pictures(tmp_path / "p", images, labels)
    expected = data.load("own", file=folder).images[:]
    for path in folder.glob("*/*.png"):
        Image.fromarray(np.rot90(np.asarray(Image.open(path))).copy()).save(path, exif=exif)
    np.testing.assert_array_equal(data.load("own", file=folder).images[:], expected)


IMAGES, LABELS = some()
WRONG = {
    "no images": ({"labels": LABELS}, "has no images; wanted images uint8"),
    "no labels": ({"images": IMAGES}, "has no labels; wanted"),
    "grey without channels": (
        {"images": IMAGES[..., 0], "labels": LABELS},
        r"images: found uint8 \(30, 7, 5\); wanted uint8 \(N, H, W, C\), none of them 0 and C of 1 to 4; a grey",
    ),
    "a class of few": (
        {"images": IMAGES, "labels": np.repeat([0, 1, 2], [13, 13, 4])},
        "labels: found 4 of class 2; wanted 5 of each at least, or test_images and test_labels",
    ),
    "a label beyond all classes": (
        {"images": IMAGES, "labels": np.r_[LABELS[1:].astype(np.uint64), np.uint64(2**64 - 1)]},
        r"labels: found \d{19,20}; wanted classes 0, 1, 2",
    ),
    "a test label beyond all classes": (
        {"images": IMAGES, "labels": LABELS, "test_images": IMAGES[:2], "test_labels": np.array([0, 2**64 - 1], "u8")},
        r"test_labels: found \d{19,20}; wanted classes 0, 1, 2",
    ),
    "labels of two parts": (
        {"images": IMAGES, "labels": np.zeros(30, [("a", "i4"), ("b", "i4")])},
        r"labels: found .*; wanted whole numbers \(30,\)",
    ),
    "five channels": (
        {"images": np.zeros((30, 2, 2, 5), np.uint8), "labels": LABELS},
        r"images: found uint8 \(30, 2, ",
    ),
    "floats": ({"images": IMAGES / 255, "labels": LABELS}, r"images: found float64 \(30, 7, 5, 3\); wanted uint8"),
    "no pixels": ({"images": IMAGES[:, :0], "labels": LABELS}, r"images: found uint8 \(30, 0, 5, 3\)"),
    "no image": ({"images": IMAGES[:0], "labels": LABELS[:0]}, r"images: found uint8 \(0, 7, 5, 3\)"),
    "fewer labels": (
        {"images": IMAGES, "labels": LABELS[1:]},
        r"labels: found int64 \(29,\); wanted whole numbers \(30",
    ),
    "one-hot": ({"images": IMAGES, "labels": np.eye(3)[LABELS]}, r"labels: found float64 \(30, 3\); wanted whole num"),
    "half labels": ({"images": IMAGES, "labels": LABELS / 2}, r"labels: found float64 \(30,\); wanted whole numbers"),
    "negative": ({"images": IMAGES, "labels": LABELS - 1}, "labels: found -1; wanted classes 0, 1, 2"),
    "from 1": ({"images": IMAGES, "labels": LABELS + 1}, "labels: found none of 0; wanted images of each class from 0"),
    "a gap": ({"images": IMAGES, "labels": LABELS * 2}, "labels: found none of 1; wanted images of each class"),
    "huge label": ({"images": IMAGES, "labels": LABELS * 10**9}, "labels: found 2000000000; wanted classes 0, 1, 2"),
    "one class": ({"images": IMAGES, "labels": LABELS * 0}, "labels: found one class; wanted 2 at least"),
    "tests without labels": (
        {"images": IMAGES, "labels": LABELS, "test_images": IMAGES},
        "test_images and no test_lab",
    ),
    "labels without tests": (
        {"images": IMAGES, "labels": LABELS, "test_labels": LABELS},
        "test_labels and no test_ima",
    ),
    "other tests": (
        {"images": IMAGES, "labels": LABELS, "test_images": IMAGES[:, 1:], "test_labels": LABELS},
        r"test_images: found uint8 \(30, 6, 5, 3\); wanted \(N, 7, 5, 3\), as images",
    ),
    "unknown class in tests": (
        {"images": IMAGES, "labels": LABELS, "test_images": IMAGES, "test_labels": LABELS + 1},
        "test_labels: found 3; wanted 0 to 2, the classes of labels",
    ),
}


def refused(path, line):
    with pytest.raises(UserError, match=line) as caught:
        data.load("own", file=path)
    assert "\n" not in str(caught.value) and Path(path).name in str(caught.value)


@pytest.mark.parametrize("kind", ["a.h5", "packed.npz"])
@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_one_line_with_file_field_found_and_wanted(name, kind, tmp_path):
    fields, line = WRONG[name]
    refused(KINDS[kind](tmp_path / kind, **fields), line)


def test_a_foreign_or_missing_file_is_one_line(tmp_path):
    (tmp_path / "a.txt").write_text("hello, world")
    refused(tmp_path / "a.txt", r"begins with b'hello, w'; wanted an HDF5 file or \.npz with images and labels, or a")
    (tmp_path / "none.h5").write_bytes(b"")
    refused(tmp_path / "none.h5", "begins with b''; wanted")
    refused(tmp_path / "missing.h5", "No such file or directory; wanted")
    with pytest.raises(UserError, match="own: wanted --data FILE, an HDF5 file or"):
        data.load("own")
    with pytest.raises(UserError, match=r"--data-dir .*: own are read from --data FILE|own .* --data FILE"):
        data.load("own", tmp_path, file=tmp_path / "a.txt")


def test_hdf5_that_only_claims_or_lies_elsewhere_is_one_line(tmp_path):
    claims = tmp_path / "claims.h5"
    with h5py.File(claims, "w") as file:
        file.create_dataset("images", (10**7, 100, 100, 3), np.uint8, chunks=(1, 100, 100, 3))
        file["labels"] = LABELS
    refused(claims, "images: claims 300,000,000,000 bytes and has 0; wanted at most 100 times as many; drawings")
    bomb = tmp_path / "bomb.h5"
    with h5py.File(bomb, "w") as file:
        shape = (2**10, 256, 256, 3)
        file.create_dataset("images", shape, np.uint8, chunks=(16, 256, 256, 3), compression="gzip", fillvalue=0)
        file["images"][:16] = 0
        file["labels"] = np.arange(2**10) % 2
    refused(bomb, "images: claims 201,326,592 bytes and has")
    chunk = tmp_path / "chunk.h5"
    with h5py.File(chunk, "w") as file:
        size = (2**27, 1, 1, 1)
        file.create_dataset("images", (2, 1, 1, 1), np.uint8, maxshape=(None, 1, 1, 1), chunks=size, compression="gzip")
        file["labels"] = np.arange(2)
    refused(chunk, "images has chunks of")
    hdf5(tmp_path / "other.h5", images=IMAGES, labels=LABELS)
    os.mkfifo(tmp_path / "pipe.h5")  # of which a read has no end
    links = {
        "link.h5": {"images": h5py.ExternalLink("other.h5", "images")},
        "pipe link.h5": {"images": h5py.ExternalLink("pipe.h5", "images")},
        "two links.h5": {"images": h5py.SoftLink("/there"), "there": h5py.ExternalLink("other.h5", "images")},
        "nowhere.h5": {"images": h5py.SoftLink("/nowhere")},
    }
    for name, items in links.items():
        with h5py.File(tmp_path / name, "w") as file:
            file["labels"] = LABELS
            for item, link in items.items():
                file[item] = link
        refused(tmp_path / name, "images is a link; wanted a data set of this file")
    with h5py.File(tmp_path / "external.h5", "w") as file:
        file.create_dataset("images", (2, 1, 1, 1), np.uint8, external=[("/etc/passwd", 0, 2)])
        file["labels"] = np.arange(2)
    refused(tmp_path / "external.h5", "images is in other files; wanted a data set of this file")
    with h5py.File(tmp_path / "nothing.h5", "w") as file:
        file["images"] = h5py.Empty("u1")
        file["labels"] = LABELS
    refused(tmp_path / "nothing.h5", "images is empty; wanted a data set of this file")
    with h5py.File(tmp_path / "group.h5", "w") as file:
        file.create_group("images")
        file["labels"] = LABELS
    refused(tmp_path / "group.h5", "images is no data set; wanted a data set of this file")
    with h5py.File(tmp_path / "unwritten.h5", "w") as file:
        file.create_dataset("images", IMAGES.shape, np.uint8)
        file["labels"] = LABELS
    refused(
        tmp_path / "unwritten.h5", r"images: found no numbers of the uint8 \(30, 7, 5, 3\) that it claims; wanted all"
    )
    whole = hdf5(tmp_path / "cut.h5", images=IMAGES, labels=LABELS)
    whole.write_bytes(whole.read_bytes()[:-500])
    refused(whole, "cut.h5: damaged, or no HDF5 file: .*; wanted an HDF5 file with images and labels")
    for field, found in (("images", r"uint8 \(30, 7, 5, 3\)"), ("labels", r"int64 \(30,\)")):
        with h5py.File(tmp_path / f"{field}.h5", "w") as file:
            for name, values in (("images", IMAGES), ("labels", LABELS)):
                file.create_dataset(name, data=values, chunks=values.shape, fletcher32=name == field)
            place = file[field].id.get_chunk_info(0).byte_offset
        content = bytearray((tmp_path / f"{field}.h5").read_bytes())
        content[place] ^= 1  # which the checksum notices
        (tmp_path / f"{field}.h5").write_bytes(content)
        refused(tmp_path / f"{field}.h5", rf"\.h5: {field}: damaged: .*; wanted {found}, as the file says")


def test_npz_that_only_claims_or_is_no_array_of_numbers_is_one_line(tmp_path):
    path = tmp_path / "a.npz"

    def archive(**members):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in members.items():
                file.writestr(f"{name}.npy", content)

    def array(value, **more):
        buffer = io.BytesIO()
        np.save(buffer, value, **more)
        return buffer.getvalue()

    labels = array(LABELS)
    archive(images=array(IMAGES)[:-4], labels=labels)
    refused(path, r"images: found uint8 \(30, 7, 5, 3\) in 3,274 bytes; wanted 3,150|images: cut off; wanted uint8")
    archive(images=array(np.zeros((2**12, 256, 256, 1), np.uint8)), labels=labels)
    refused(path, "images: claims 268,435,584 bytes and has")
    archive(images=array(np.array([{}, []], object), allow_pickle=True), labels=labels)
    refused(path, r"images: found object \(2,\); wanted uint8 \(N, H, W, C\)")
    archive(images=b"no array", labels=labels)
    refused(path, r"images: damaged, or no array of numbers: .*; wanted uint8 \(N, H, W, C\)")
    archive(images=array(IMAGES).replace(b"NUMPY\x01", b"NUMPY\x03"), labels=labels)
    refused(path, r"a\.npz: images: found an array of version \(3, 0\); wanted \(1, 0\) or \(2, 0\)")
    archive(images=array(IMAGES), labels=array(np.r_[LABELS[1:].astype(np.uint64), np.uint64(2**64 - 1)]))
    refused(path, "labels: found 18446744073709551615; wanted classes 0, 1, 2")
    archive(images=array(np.asfortranarray(IMAGES)), labels=labels)
    refused(path, "images: found columns first in memory; wanted np.ascontiguousarray of it")
    head = array(IMAGES[:1])
    archive(images=head.replace(b"(1, 7", b"(9, 7"), labels=labels)
    refused(path, r"images: found uint8 \(9, 7, 5, 3\) in .* bytes; wanted 945 bytes")
    archive(images=head.replace(b"(1, 7", b"(-1,7"), labels=labels)
    refused(path, r"images: damaged: found \(-1, 7, 5, 3\); wanted uint8 \(N, H, W, C\)")
    archive(images=array(IMAGES), labels=labels)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 255
    path.write_bytes(content)
    refused(path, "a.npz")
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    refused(path, r"damaged, or no \.npz: File is not a zip file; wanted an HDF5 file or")


def deep_png():
    """A PNG of one pixel, with 16 bits for each of red, green and blue."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(7))) + chunk(b"IEND", b"")


def test_folders_that_do_not_fit_are_one_line(tmp_path):
    def new(name, images=IMAGES[:4], labels=(0, 0, 1, 1)):
        return pictures(tmp_path / name, images, labels)

    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "found 0 folders; wanted one folder of pictures per class")
    refused(new("one", labels=(0, 0, 0, 0)), "found 1 folders; wanted one folder of pictures per class")
    (new("stray") / "notes.txt").write_text("")
    refused(tmp_path / "stray", "found notes.txt, which is no folder")
    (new("bare") / "zzz").mkdir()
    refused(tmp_path / "bare", "found nothing in zzz")
    (new("text") / "class 1" / "b.txt").write_text("no picture")
    with pytest.raises(UserError, match=r"b\.txt: found no picture; wanted PNG, JPEG"):
        data.load("own", file=tmp_path / "text")
    Image.fromarray(IMAGES[0][:, :3]).save(new("sizes") / "class 1" / "b.png")
    with pytest.raises(UserError, match=r"b\.png: found a picture \(7, 3, 3\); wanted \(7, 5, 3\), as the first one"):
        data.load("own", file=tmp_path / "sizes")
    Image.fromarray(IMAGES[0][..., 0]).save(new("kinds") / "class 1" / "b.png")
    with pytest.raises(UserError, match=r"b\.png: found a picture \(7, 5, 1\); wanted \(7, 5, 3\)"):
        data.load("own", file=tmp_path / "kinds")
    Image.fromarray(IMAGES[0].astype(np.int32)[..., 0]).save(new("deep") / "class 0" / "0.tiff")
    with pytest.raises(UserError, match=r"0\.tiff: found a picture of kind I; wanted one of L, LA, RGB, RGBA"):
        data.load("own", file=tmp_path / "deep")
    Image.fromarray(IMAGES[0]).save(new("packed") / "class 0" / "0.tiff", compression="tiff_lzw")
    with pytest.raises(UserError, match=r"0\.tiff: found a compressed TIFF; wanted an uncompressed one"):
        data.load("own", file=tmp_path / "packed")
    cut = new("cut") / "class 1" / "0002.png"
    cut.write_bytes(cut.read_bytes()[:60])
    with pytest.raises(UserError, match=r"0002\.png: found a damaged picture \(.*\); wanted PNG, JPEG"):
        data.load("own", file=tmp_path / "cut")
    Image.new("L", (9000, 9000)).save(new("large") / "class 0" / "0.png")
    with pytest.raises(UserError, match=r"0\.png: found \(9000, 9000, 1\); wanted at most 67,108,864 bytes of pixels"):
        data.load("own", file=tmp_path / "large")
    frames = [Image.fromarray(IMAGES[i]).quantize(4) for i in range(3)]
    frames[0].save(new("moving") / "class 0" / "0.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match=r"0\.gif: found 3 pictures in it; wanted one"):
        data.load("own", file=tmp_path / "moving")
    (new("bits") / "class 0" / "0.png").write_bytes(deep_png())
    with pytest.raises(UserError, match=r"0\.png: found 16 bits per channel; wanted 8"):
        data.load("own", file=tmp_path / "bits")
    (new("deep ppm") / "class 0" / "0.ppm").write_bytes(b"P6\n1 1\n65535\n" + bytes(6))
    with pytest.raises(UserError, match=r"0\.ppm: found 16 bits per channel; wanted 8"):
        data.load("own", file=tmp_path / "deep ppm")
    for label in "ab":
        (tmp_path / "bomb" / label).mkdir(parents=True)
        Image.new("RGB", (4000, 4000)).save(tmp_path / "bomb" / label / "0.png")
    refused(tmp_path / "bomb", "bomb: pixels: claims 96,000,000 bytes and has .*; wanted at most 100 times as many")
    os.symlink(tmp_path / "nowhere", new("link") / "class 1" / "b.png")
    with pytest.raises(UserError, match=r"b\.png"):
        data.load("own", file=tmp_path / "link")
    os.symlink("b.png", new("loop") / "class 1" / "b.png")
    with pytest.raises(UserError, match=r"b\.png: Too many levels of symbolic links; wanted a file"):
        data.load("own", file=tmp_path / "loop")
    os.mkfifo(new("pipe") / "class 1" / "b.png")
    with pytest.raises(UserError, match=r"b\.png: a pipe or a device, not a file; wanted a picture"):
        data.load("own", file=tmp_path / "pipe")


def test_drawings_may_compress_better_than_photographs(tmp_path, monkeypatch):
    """A white page of 300x300 has 270,000 bytes, and its PNG a few hundred."""
    for label in "ab":
        (tmp_path / "pages" / label).mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (300, 300), (255, 255, i)).save(tmp_path / "pages" / label / f"{i}.png")
    monkeypatch.setattr(own, "PLENTY", 2**20)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.png")) * 100 < 10 * 300 * 300 * 3
    with monkeypatch.context() as patch:
        patch.setattr(own, "DRAWING", 2**17)
        refused(tmp_path / "pages", "pixels: claims 2,700,000 bytes and has .* must be stored uncompressed")
    assert data.load("own", file=tmp_path / "pages").images.shape == (8, 300, 300, 3)
    monkeypatch.setattr(own, "DRAWING", 2**17)
    for path in tmp_path.rglob("*.png"):
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()
    assert data.load("own", file=tmp_path / "pages").images.shape == (8, 300, 300, 3)


def test_hdf5_after_a_block_of_others_is_read(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", userblock_size=1024) as file:
        file["images"], file["labels"] = IMAGES, LABELS
    loaded = data.load("own", file=path)
    np.testing.assert_array_equal(loaded.images[:], IMAGES[loaded.images.index])


@pytest.mark.parametrize("kind", [*KINDS, "folder"])
@settings(max_examples=25, deadline=None)
@given(draw=st.data())
def test_damaged_files_are_read_or_are_one_line(kind, draw, tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / kind
    if kind == "folder":
        damaged = pictures(path, IMAGES[::10], (0, 0, 1)) / "class 1" / "0002.png"
    else:
        damaged = KINDS[kind](path, images=IMAGES, labels=LABELS)
    damaged.write_bytes(changed(draw.draw, damaged.read_bytes()))
    with suppress(UserError):
        loaded = data.load("own", file=path)
        assert loaded.images[:].shape == loaded.images.shape and len(loaded.labels) == len(loaded.images)


@settings(max_examples=40, deadline=None)
@given(draw=st.data())
def test_npz_of_any_structure_is_read_or_is_one_line(draw, tmp_path_factory):
    """Fields of any shape and type, under any of the names."""
    path = tmp_path_factory.mktemp("fuzz") / "a.npz"
    shapes = st.one_of(st.lists(st.integers(0, 5), max_size=5), st.lists(st.integers(1, 4), min_size=4, max_size=4))
    types = st.sampled_from(["u1", "i1", "i8", "f4", "U3", "?", "c8"])
    fields = {}
    for name in draw.draw(st.sets(st.sampled_from(own.FIELDS))):
        fields[name] = np.ones(draw.draw(shapes), draw.draw(types))
    np.savez(path, **fields)
    with suppress(UserError):
        loaded = data.load("own", file=path)
        assert loaded.images.ndim == 4 and loaded.labels.max() >= 1


@settings(max_examples=30, deadline=None)
@given(draw=st.data())
def test_pictures_of_any_structure_are_read_or_are_one_line(draw, tmp_path_factory):
    """Folders of pictures, of which one may have another kind, size or format, or be no picture of its name."""
    draw, folder = draw.draw, tmp_path_factory.mktemp("fuzz") / "pictures"
    mode, other = (draw(st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "F"])) for _ in "ab")
    odd, ending = draw(st.integers(0, 19)), draw(st.sampled_from(["png", "bmp", "tiff", "gif", "webp", "ppm", "jpeg"]))
    for i in range(10):
        (folder / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        size = (3, 4) if i != odd else draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
        picture = Image.new(other if i == odd else mode, size)
        for kind in ending, "png", "tiff":
            with suppress(OSError, ValueError, KeyError):  # a format that has no such mode
                picture.save(folder / "ab"[i % 2] / f"{i}.x", kind)
                break
    try:
        loaded = data.load("own", file=folder)
    except UserError as error:
        assert "\n" not in str(error) and str(folder) in str(error)
    else:
        assert loaded.images.shape[:3] == (8, 4, 3) and len(loaded.test_images) == 2


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_npz_that_names_a_member_twice_is_one_line(tmp_path):
    path = tmp_path / "twice.npz"
    np.savez(path, images=np.zeros((4, 5, 5, 1), np.uint8), labels=np.array([0, 1, 0, 1]))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("labels.npy", archive.read("labels.npy"))
    refused(path, "labels: found twice; wanted it once")
