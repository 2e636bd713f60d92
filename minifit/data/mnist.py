"""MNIST: find, download and read the four files in LeCun's idx format.

An idx file is two zero bytes, the type of its elements (8: unsigned bytes), its number of dimensions, each
dimension as four bytes, most significant first, and then the elements.
"""

import gzip
import hashlib
import io
import math
import zlib

import numpy as np

from minifit import UserError
from minifit.data import files

# Each file, with the MD5 of the published .gz and the SHA-256 of its content.
FILES = {
    "train-images-idx3-ubyte": (
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    "train-labels-idx1-ubyte": (
        "d53e105ee54ea40749a09fcbcd1e9432",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    "t10k-images-idx3-ubyte": (
        "9fb629c4189551a2d022fa330f9573f3",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    "t10k-labels-idx1-ubyte": (
        "ec29112dd5afa0611ce80d1b7f02629c",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
}
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)


def load(data_dir=None, progress=True, mirrors=MIRRORS):
    """Returns the set's name, images uint8 (N, 28, 28, 1) and labels uint8 (N,), then the same two for testing.

    Only the official bytes are called MNIST, because look-alikes come in files of the same names.
    """
    paths = find(data_dir, progress, mirrors)
    with files.reading(*paths):
        (images, labels, test_images, test_labels), digests = zip(*map(_read, paths, (3, 1, 3, 1)), strict=True)
        _check(images, labels, *paths[:2])
        _check(test_images, test_labels, *paths[2:])

    name = "MNIST"
    if digests != tuple(sha256 for _, sha256 in FILES.values()):
        fingerprint = hashlib.sha256("".join(digests).encode()).hexdigest()[:8]
        name = f"a set in MNIST's format ({fingerprint})"
    return name, images[..., None], labels, test_images[..., None], test_labels


def find(data_dir=None, progress=True, mirrors=MIRRORS):
    """Returns the paths of the four files, in the order of FILES; files.find searches for them."""
    wanted = f"{', '.join(FILES)}, raw or .gz,"
    return files.find("MNIST", _search, lambda folder: download(folder, progress, mirrors), wanted, "mnist", data_dir)


def _search(folder):
    """Returns (paths of the FILES in `folder`, or in its subfolder mnist if that has more, the missing ones)."""
    candidates = []
    for place in (folder, folder / "mnist"):
        paths = {}
        for name in FILES:
            stems = (name, name.replace("-idx", ".idx"))
            path = files.existing(place / (stem + end) for stem in stems for end in ("", ".gz"))
            if path is not None:
                paths[name] = path
        candidates.append(paths)
    paths = max(candidates, key=len)
    missing = ", ".join(name for name in FILES if name not in paths)
    return list(paths.values()), missing and f"{missing} (raw or .gz, there or in its folder mnist)"


def download(folder, progress=True, mirrors=MIRRORS):
    """Downloads the missing ones of the four .gz files into `folder`; returns the paths of all."""
    return files.download({f"{name}.gz": f"md5:{md5}" for name, (md5, _) in FILES.items()}, mirrors, folder, progress)


def _read(path, dimensions):
    """Returns the array of an idx file, raw or gzipped under any name, and the SHA-256 of its unzipped bytes."""
    content = files.read(path)
    if content.startswith(b"\x1f\x8b"):
        content = _unzipped(path, content, 4 + 4 * dimensions)
    if len(content) < 4 or not content.startswith(b"\0\0\x08"):
        raise UserError(f"{path}: not an idx file of bytes: it begins with {content[:16]!r}")
    if content[3] != dimensions:
        raise UserError(f"{path}: {content[3]} dimensions instead of {dimensions}")
    start = 4 + 4 * dimensions
    shape = tuple(int(size) for size in np.frombuffer(content[4:start].ljust(4 * dimensions, b"\0"), ">u4"))
    size = start + math.prod(shape)
    if len(content) != size:
        fault = "cut off" if len(content) < size else "bytes left over"
        raise UserError(f"{path}: {fault}: {len(content)} bytes, but shape {shape} takes {size}")
    if size == start and dimensions > 1:  # and the other extents may be more than an array can have
        raise UserError(f"{path}: no images in it")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape), hashlib.sha256(content).hexdigest()


def _unzipped(path, content, start):
    """Inflates an idx file no further than one byte more than its header, of `start` bytes, claims."""
    try:
        with gzip.open(io.BytesIO(content)) as unzipped:
            header = unzipped.read(start)
            claimed = math.prod(int(size) for size in np.frombuffer(header[4:].ljust(start - 4, b"\0"), ">u4"))
            files.believable(path, claimed, len(content))
            return header + unzipped.read(claimed + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: damaged gzip: {error}") from None


def _check(images, labels, images_path, labels_path):
    """Raises UserError unless there are images of 28x28 pixels, and as many labels from 0 to 9."""
    if images.shape[1:] != (28, 28):
        raise UserError(f"{images_path}: images of {images.shape[1]}x{images.shape[2]} instead of 28x28")
    if len(labels) != len(images):
        raise UserError(f"{labels_path}: {len(labels)} labels for the {len(images)} images in {images_path.name}")
    if labels.max() > 9:
        raise UserError(f"{labels_path}: label {labels.max()}, where 0 to 9 are the classes")
