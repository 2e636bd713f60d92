"""A data set of your own: an HDF5 file, an .npz archive, or a folder of pictures.

An HDF5 file or .npz has `images` uint8 (N, H, W, C) and `labels` (N,), the classes being 0, 1, 2 ...; it may have
`test_images` and `test_labels`. A folder has one folder of pictures for each class, in the order of their names. Images
may have any size, up to 64 MiB each, and 1 to 4 channels.
"""

import zipfile
from pathlib import Path

import numpy as np

from minifit import UserError
from minifit.data import stored
from minifit.data.files import PLENTY, believable
from minifit.data.images import picture
from minifit.data.stored import Array, Rows
from minifit.files import opened

WANTED = "an HDF5 file or .npz with images and labels, or a folder with one folder of pictures per class"
FIELDS = ("images", "labels", "test_images", "test_labels")
HDF5, ZIP = b"\x89HDF\r\n\x1a\n", b"PK\x03\x04"
NEEDED = {"images": "uint8 (N, H, W, C)", "labels": "whole numbers (N,)"}
NEEDED |= {f"test_{name}": wanted for name, wanted in NEEDED.items()}
DRAWING = 2**20  # bytes of pixels that any picture may have, however small its file: 512 x 512 in four channels
TEST_SHARE, SEED = 5, 0  # without a test part, a fifth of each class is one; every run has the same
MOST_CLASSES, MOST_IMAGES = 2**31, 2**24
CHANNELS = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}


def load(path):
    """Returns the set's name, images (N, H, W, C) and labels (N,), the same two for testing, and no groups.

    The training images are in a random order in which every stretch has its share of each class.
    """
    path = Path(path)
    source, fields = _opened(path)
    check(path, fields)
    images, labels = _images(source, fields["images"]), fields["labels"].values.astype(np.int64)
    order = stratified(labels, np.random.default_rng(SEED))
    if "test_images" in fields:
        tests, test_labels = _images(source, fields["test_images"]), fields["test_labels"].values.astype(np.int64)
        _check_classes(path, labels)
        if test_labels.max() > labels.max():
            wanted = f"0 to {labels.max()}, the classes of labels"
            raise UserError(f"{path}: test_labels: found {test_labels.max()}; wanted {wanted}")
        return path.name, images.part(order), labels[order], tests, test_labels, ()
    _check_classes(path, labels)
    if (counts := np.bincount(labels)).min() < TEST_SHARE:
        few = f"found {counts.min()} of class {counts.argmin()}"
        raise UserError(f"{path}: labels: {few}; wanted {TEST_SHARE} of each at least, or test_images and test_labels")
    name = f"{path.name} (1/{TEST_SHARE} of each class drawn for testing, seed {SEED})"
    train, test = split(order, labels)
    return name, images.part(train), labels[train], images.part(test), labels[test], ()


def split(order, labels):
    """Returns (training, test) indices in this order: of each class the last fifth, rounded down, is for testing."""
    test = np.zeros(len(order), bool)
    for places in of_classes(labels[order]):
        test[places[len(places) - len(places) // TEST_SHARE :]] = True
    return order[~test], order[test]


def stratified(labels, rng):
    """Returns the images' indices in a random order in which every stretch has about its share of each class."""
    place = np.empty(len(labels))
    for places in of_classes(labels):
        of_class = rng.permutation(places)
        place[of_class] = (np.arange(len(of_class)) + rng.random()) / len(of_class)
    return np.argsort(place, kind="stable")


def of_classes(labels):
    """Returns the places of each label that there is, in increasing order, for each label in increasing order."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def _opened(path):
    """Returns (file, {field: Array}). The file is the path itself, or a copy whose images can be read row by row."""
    if path.is_dir():
        files = _pictures(path)
        copy = stored.copied(path, list(files), _copy_pictures, files)
        return copy, stored.hdf5(copy, FIELDS)
    try:
        with opened(path) as file:
            start, hdf5 = file.read(8), _is_hdf5(file)
    except OSError as error:
        raise UserError(f"--data {path}: {error.strerror}; wanted {WANTED}") from None
    if start.startswith(ZIP):
        fields = stored.guarded(_npz, path)
        check(path, fields)
        copy = stored.copied(path, [path], _copy_npz)
        return copy, stored.hdf5(copy, FIELDS)
    if not hdf5:
        raise UserError(f"{path}: begins with {start!r}; wanted {WANTED}")
    fields = stored.hdf5(path, FIELDS)
    check(path, fields)
    return stored.in_one_piece(path, fields)


def _is_hdf5(file):
    """Whether a file begins as HDF5 does, or after a block of 512, 1024, 2048 ... bytes that HDF5 leaves to others."""
    size = file.seek(0, 2)
    for place in (0, *(512 << k for k in range(size.bit_length()))):
        if place < size:
            file.seek(place)
            if file.read(len(HDF5)) == HDF5:
                return True
    return False


def _images(path, array):
    return Rows(path, array.offset, array.shape)


def check(path, fields):
    """Raises UserError if a field is missing, or has a wrong shape or type."""
    for name in ("images", "labels"):
        if name not in fields:
            raise UserError(f"{path}: has no {name}; wanted images uint8 (N, H, W, C) and labels (N,)")
    if ("test_images" in fields) != ("test_labels" in fields):
        has, lacks = ("test_images", "test_labels")[:: 1 if "test_images" in fields else -1]
        raise UserError(f"{path}: has {has} and no {lacks}; wanted both or neither")
    for prefix in ("", "test_"):
        if f"{prefix}images" not in fields:
            continue
        images, labels = fields[f"{prefix}images"], fields[f"{prefix}labels"]
        shape, size = images.shape, int(np.prod(images.shape[1:], dtype=object))
        if images.dtype != "uint8" or len(shape) != 4 or not 1 <= shape[3] <= 4 or not all(shape):
            grey = "; a grey image has C = 1" if len(shape) == 3 else ""
            wanted = f"wanted uint8 (N, H, W, C), none of them 0 and C of 1 to 4{grey}"
            raise UserError(f"{path}: {prefix}images: found {images}; {wanted}")
        if shape[0] > MOST_IMAGES:
            raise UserError(f"{path}: {prefix}images: found {images}; wanted at most {MOST_IMAGES:,} images")
        if size > PLENTY:
            raise UserError(f"{path}: {prefix}images: found {images}; wanted at most {PLENTY:,} bytes per image")
        if labels.dtype.kind not in "iu" or labels.shape != shape[:1]:
            raise UserError(f"{path}: {prefix}labels: found {labels}; wanted whole numbers ({shape[0]},)")
        if labels.values is not None:
            check_labels(f"{path}: {prefix}labels", labels.values)
    if "test_images" in fields and fields["test_images"].shape[1:] != fields["images"].shape[1:]:
        wanted = f"(N, {str(fields['images'].shape[1:])[1:]}, as images"
        raise UserError(f"{path}: test_images: found {fields['test_images']}; wanted {wanted}")


def check_labels(place, labels):
    for label in (labels.min(), labels.max()):
        if not 0 <= int(label) < MOST_CLASSES:
            raise UserError(f"{place}: found {label}; wanted classes 0, 1, 2 ...")


def _check_classes(path, labels):
    """Raises UserError unless there are at least two classes, and images of each."""
    if labels.max() >= len(labels):
        raise UserError(f"{path}: labels: found {labels.max()}; wanted classes 0, 1, 2 ... with images of each")
    counts = np.bincount(labels)
    if len(counts) < 2:
        raise UserError(f"{path}: labels: found one class; wanted 2 at least")
    if not counts.all():
        missing = int(np.flatnonzero(counts == 0)[0])
        raise UserError(
            f"{path}: labels: found none of {missing}; wanted images of each class from 0 to {len(counts) - 1}"
        )


def _npz(path):
    """{field: Array} of an .npz."""
    with _zip(path) as archive:
        return {name: _header(path, archive, name)[0] for name in FIELDS if f"{name}.npy" in archive.namelist()}


def _zip(path):
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise UserError(f"{path}: damaged, or no .npz: {error}; wanted {WANTED}") from None
    names = archive.namelist()
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1] if len({*names}) < len(names) else ()
    if twice:
        raise UserError(f"{path}: {twice[0].removesuffix('.npy')}: found twice; wanted it once")
    return archive


def _header(path, archive, name):
    """(Array, the open member, at its first number) of a field of an .npz."""
    info, place = archive.getinfo(f"{name}.npy"), f"{path}: {name}"
    believable(place, info.file_size, info.compress_size)
    try:
        member = archive.open(info)
        version = np.lib.format.read_magic(member)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, columns_first, dtype = read[version](member) if version in read else ((), False, None)
    except (ValueError, KeyError, RuntimeError, NotImplementedError, zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{place}: damaged, or no array of numbers: {error}; wanted {NEEDED[name]}") from None
    if dtype is None:
        raise UserError(f"{place}: found an array of version {version}; wanted (1, 0) or (2, 0)")
    if any(extent < 0 for extent in shape):
        raise UserError(f"{place}: damaged: found {shape}; wanted {NEEDED[name]}")
    if columns_first and len(shape) > 1:
        raise UserError(f"{place}: found columns first in memory; wanted np.ascontiguousarray of it")
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if dtype.hasobject:
        raise UserError(f"{place}: found {dtype} {shape}; wanted {NEEDED[name]}")
    if size > info.file_size:
        raise UserError(f"{place}: found {dtype} {shape} in {info.file_size:,} bytes; wanted {size:,} bytes")
    return Array(shape, dtype), member


def _copy_npz(path, copy):
    with _zip(path) as archive:
        fields = {name: _header(path, archive, name) for name in FIELDS if f"{name}.npy" in archive.namelist()}
        with stored.Copy(copy, {name: array.shape for name, (array, _) in fields.items()}) as out:
            for name, (array, member) in fields.items():
                row = int(np.prod(array.shape[1:])) * array.dtype.itemsize
                left, step = array.shape[0], max(1, stored.SLICE // row)
                while left:
                    n = min(step, left)
                    try:
                        content = member.read(n * row)
                    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError) as error:
                        raise UserError(f"{path}: {name}: damaged: {error or 'cut off'}; wanted {array}") from None
                    if len(content) != n * row:
                        raise UserError(f"{path}: {name}: cut off; wanted {array}")
                    rows = np.frombuffer(content, array.dtype).reshape(n, *array.shape[1:])
                    if name.endswith("labels"):
                        check_labels(f"{path}: {name}", rows)
                    out.write(name, rows)
                    left -= n


def _pictures(folder):
    """{path: class} of the pictures of a folder, by the names of classes and files; names that begin with . are not."""

    def inside(path):
        return sorted(p for p in path.iterdir() if not p.name.startswith("."))

    try:
        classes = [path for path in inside(folder) if path.is_dir()]
        stray = next((path for path in inside(folder) if not path.is_dir()), None)
        files = {path: label for label, of_class in enumerate(classes) for path in inside(of_class)}
        empty = next((path for path in classes if not inside(path)), None)
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from None
    if stray is not None or empty is not None or len(classes) < 2:
        what = f"{stray.name}, which is no folder" if stray else f"nothing in {empty.name}" if empty else None
        raise UserError(f"{folder}: found {what or f'{len(classes)} folders'}; wanted one folder of pictures per class")
    return files


def _copy_pictures(folder, copy, files):
    """Writes pictures of one size and kind to the file `copy`."""
    first = _picture(next(iter(files)))
    shape, total = first.shape, len(files) * first.size
    believable(
        f"{folder}: pixels", total, sum(path.stat().st_size for path in files), max(PLENTY, DRAWING * len(files))
    )
    with stored.Copy(copy, {"images": (len(files), *shape), "labels": (len(files),)}) as out:
        for path, label in files.items():
            out.write("images", _picture(path, shape)[None])
            out.write("labels", np.array([label]))


def _picture(path, wanted=None):
    """The pixels of a picture, uint8 (H, W, C)."""
    with picture(path) as image:
        if image.mode not in CHANNELS:
            raise UserError(f"{path}: found a picture of kind {image.mode}; wanted one of {', '.join(CHANNELS)}")
        shape = (image.height, image.width, CHANNELS[image.mode])
        if np.prod(shape, dtype=object) > PLENTY:
            raise UserError(f"{path}: found {shape}; wanted at most {PLENTY:,} bytes of pixels")
        if wanted and shape != wanted:
            raise UserError(f"{path}: found a picture {shape}; wanted {wanted}, as the first one")
        return np.asarray(image).reshape(shape)
