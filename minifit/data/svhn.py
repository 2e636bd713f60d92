"""SVHN: find, download and read the three files of its cropped digits (Netzer et al. 2011), MATLAB's level 5.

A file is 128 bytes of header and then elements: the type and the length of each in four bytes, and its content. Two
elements are matrices, X uint8 (32, 32, 3, N) and y (N, 1); each may be compressed. MATLAB's first axis is the innermost
one: the bytes of X are one image after the other, by channel, column and row.

The files are read as streams, because X has 1.6 GB, and copied to a file of the cache as rows (N, 32, 32, 3).
"""

import hashlib
import os
import struct
import zlib
from math import prod

import numpy as np

from minifit import UserError
from minifit.data import files, stored

# Each file with its SHA-256 and the number of its images.
FILES = {
    "train_32x32.mat": ("435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8", 73_257),
    "extra_32x32.mat": ("a133a4beb38a00fcdda90c9489e0c04f900b660ce8a316a5e854838379a71eb3", 531_131),
    "test_32x32.mat": ("cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b", 26_032),
}
MIRRORS = ("http://ufldl.stanford.edu/housenumbers/",)
SIZE, CLASSES, SEED = 32, 10, 322  # the seed is pylearn2's
VALIDATION = {"train": 400, "extra": 200}  # images of each class; Sermanet et al. 2012, and with them the paper

COMPRESSED, MATRIX = 15, 14  # types of elements
COMPLEX = 8  # a flag of a matrix
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
BLOCK = 2**20  # bytes that are read at once


def load(data_dir=None, progress=True, mirrors=MIRRORS):
    """Returns the set's name, images (N, 32, 32, 3), labels (N,), and the same two for testing. Digit 0 is class 0.

    The training images are in random order. The paper's 6,000 validation images come last: 400 of each class from the
    training file and 200 from the extra one.
    """
    paths = find(data_dir, progress, mirrors)
    with files.reading(*paths):
        copy = stored.copied(paths[0].parent, paths, _copy, paths)
    fields = stored.hdf5(copy, ("images", "labels", "test_images", "test_labels", "digests", "train"))
    images, tests = (stored.Rows(copy, fields[name].offset, fields[name].shape) for name in ("images", "test_images"))
    labels, test_labels = fields["labels"].values, fields["test_labels"].values
    digests = fields["digests"].values.astype(np.uint8).tobytes()
    name = "SVHN"
    if digests != b"".join(bytes.fromhex(sha256) for sha256, _ in FILES.values()):
        name = f"a set in SVHN's format ({hashlib.sha256(digests).hexdigest()[:8]})"
    order = _order(labels, int(fields["train"].values[0]))
    return name, images.part(order), labels[order], tests, test_labels


def _order(labels, train):
    """Returns the images' indices in random order, validation last.   train: how many are from the training file"""
    rng = np.random.RandomState(SEED)  # pylearn2's generator, asked in its order
    chosen = []
    for start, part, each in ((0, labels[:train], VALIDATION["train"]), (train, labels[train:], VALIDATION["extra"])):
        for digit in (*range(1, CLASSES), 0):
            of_class = np.flatnonzero(part == digit)
            rng.shuffle(of_class)
            chosen.append(start + of_class[:each])
    validation = np.zeros(len(labels), bool)
    validation[np.concatenate(chosen)] = True
    return np.concatenate([rng.permutation(np.flatnonzero(part)) for part in (~validation, validation)])


def find(data_dir=None, progress=True, mirrors=MIRRORS):
    """Returns the paths of the three files, in the order of FILES; files.find searches for them."""
    fetch = {name: f"sha256:{sha256}" for name, (sha256, _) in FILES.items()}
    return files.find(
        "SVHN",
        _search,
        lambda folder: files.download(fetch, mirrors, folder, progress),
        ", ".join(FILES),
        "svhn",
        data_dir,
    )


def _search(folder):
    """Returns (paths of the FILES in `folder`, or in its subfolder svhn if that has more, the missing ones)."""
    places = folder, folder / "svhn"
    paths = max(([place / name for name in FILES if (place / name).is_file()] for place in places), key=len)
    missing = ", ".join(name for name in FILES if name not in {path.name for path in paths})
    return paths, missing and f"{missing} (there or in its folder svhn)"


def _copy(place, copy, paths):
    """Writes the images and labels of the three files to the file `copy`."""
    labels = [_labels(path) for path in paths]
    train, extra, test = map(len, labels)
    shape = SIZE, SIZE, 3
    shapes = {"images": (train + extra, *shape), "test_images": (test, *shape), "digests": (96,), "train": (1,)}
    shapes |= {"labels": (train + extra,), "test_labels": (test,)}
    with stored.Copy(copy, shapes) as out:
        digests = []
        for path, its_labels in zip(paths, labels, strict=True):
            part = "test_" * (path.name == paths[2].name)
            out.write(f"{part}labels", its_labels)
            for block in _images(path, len(its_labels)):
                out.write(f"{part}images", block)
            with open(path, "rb") as file:
                digests.append(np.frombuffer(hashlib.file_digest(file, "sha256").digest(), np.uint8))
        out.write("digests", np.concatenate(digests))
        out.write("train", np.array([train]))


def _labels(path):
    """Returns the labels of a file, with 0 for 10. UserError unless it has as many images."""
    with open(path, "rb") as file:
        shapes = {}
        for name, kind, shape, content in _matrices(path, file):
            if name in shapes:
                raise UserError(f"{path}: has two of {name[:20]!r}; wanted X and y")
            shapes[name] = shape
            if name == "y":
                labels = _numbers(path, kind, shape, content)
            else:
                content.skip()
    for name in ("X", "y"):
        if name not in shapes:
            raise UserError(f"{path}: has no {name} in it; wanted X and y, and found {', '.join(shapes) or 'nothing'}")
    images, given = shapes["X"], shapes["y"]
    if images[:3] != (SIZE, SIZE, 3) or len(images) != 4 or not images[3]:
        raise UserError(f"{path}: X is {images}; wanted ({SIZE}, {SIZE}, 3, N)")
    if given not in ((images[3], 1), (1, images[3])):
        raise UserError(f"{path}: y is {given}; wanted ({images[3]}, 1), a label for each image")
    wrong = labels[~np.isin(labels, np.arange(1, CLASSES + 1))]
    if len(wrong):
        raise UserError(f"{path}: label {wrong[0]}, where 1 to {CLASSES} are the classes")
    return labels.astype(np.int64) % CLASSES


def _images(path, count):
    """Yields the images of a file, a block at a time, as rows (n, 32, 32, 3)."""
    with open(path, "rb") as file:
        for name, kind, shape, content in _matrices(path, file):
            if name != "X":
                content.skip()
                continue
            if kind != "u1":
                raise UserError(f"{path}: X has numbers of kind {kind}; wanted bytes, u1")
            left, size = count, prod(shape[:3])
            while left:
                n = min(left, BLOCK // size)
                block = np.frombuffer(content.take(n * size), np.uint8).reshape(n, 3, SIZE, SIZE)
                yield block.transpose(0, 3, 2, 1)
                left -= n
            content.skip()


def _matrices(path, file):
    """Yields (name, kind of numbers, shape, content) of every matrix; its content must be taken or skipped."""
    header = file.read(128)
    if header[124:] != b"\x00\x01IM":
        raise UserError(f"{path}: not a MATLAB file of level 5, little-endian: it begins with {header[:16]!r}")
    while tag := file.read(8):
        kind, length = struct.unpack("<II", tag.ljust(8, b"\0"))
        if kind not in (COMPRESSED, MATRIX):
            raise UserError(f"{path}: damaged: an element of type {kind} at byte {file.tell() - len(tag)}")
        if (missing := length - (os.fstat(file.fileno()).st_size - file.tell())) > 0:
            raise UserError(f"{path}: cut off: {missing:,} bytes of an element are missing")
        here = _Content(path, file, length, packed=kind == COMPRESSED)
        if kind == COMPRESSED:
            kind, inside = struct.unpack("<II", here.take(8))
            if kind != MATRIX:
                raise UserError(f"{path}: damaged: a compressed element of type {kind}")
            files.believable(path, inside, length)
            here.left = inside
        _, flags = here.element()
        _, dimensions = here.element()
        _, name = here.element()
        shape = tuple(int(n) for n in np.frombuffer(dimensions[: len(dimensions) // 4 * 4], "<i4"))
        number, size, small = here.tag()
        real = len(flags) == 8 and flags[0] in range(6, 16) and not flags[1] & COMPLEX
        if not real or not shape or min(shape) < 0 or number not in NUMBERS:
            message = "found no matrix of real numbers; wanted X, uint8 (32, 32, 3, N), and y, (N, 1)"
            raise UserError(f"{path}: {name[:20].decode('latin-1')!r}: {message}")
        form = NUMBERS[number]
        if small is None and size > here.left:
            raise UserError(f"{path}: damaged: {size:,} bytes are claimed by an element that has {here.left:,}")
        if size != prod(shape) * int(form[1]):
            raise UserError(f"{path}: {name[:20]!r} has {size:,} bytes, but {shape} of kind {form} take more or fewer")
        if small:
            here.pending = small
        yield name.decode("latin-1"), form, shape, here


def _numbers(path, form, shape, content):
    count = prod(shape)
    if count > 2**24:
        raise UserError(f"{path}: y is {shape}: more labels than images in any such file")
    y = np.frombuffer(content.take(count * int(form[1])), f"<{form}")
    content.skip()
    return y


class _Content:
    """The bytes of one element of a file, unpacked as they are taken; never more than BLOCK of them at once."""

    def __init__(self, path, file, length, packed):
        self.path, self.file, self.there, self.pending = path, file, length, b""
        self.left = 8 if packed else length  # bytes of content that may be taken; of a packed one, its tag at first
        self.inflate = zlib.decompressobj() if packed else None

    def take(self, count):
        """Returns the next bytes. UserError if there are fewer."""
        parts, wanted = [self.pending[:count]], count - len(self.pending[:count])
        self.pending = self.pending[count:]
        if wanted > self.left:
            raise UserError(f"{self.path}: damaged: {wanted} bytes are wanted of an element that has {self.left}")
        self.left -= wanted
        while wanted:
            block = self._more(min(wanted, BLOCK))
            if not block:
                raise UserError(f"{self.path}: cut off: {wanted:,} bytes of an element are missing")
            parts.append(block)
            wanted -= len(block)
        return b"".join(parts)

    def _more(self, most):
        if self.inflate is None:
            return self._read(most)
        while not self.inflate.eof:  # behind which it would keep its last input for ever
            try:
                packed = self.inflate.unconsumed_tail or self._read(BLOCK)
                block = self.inflate.decompress(packed, most)
            except zlib.error as error:
                raise UserError(f"{self.path}: damaged: {error}") from None
            if block or not packed:
                return block
        return b""

    def _read(self, most):
        block = self.file.read(min(most, self.there))
        self.there -= len(block)
        return block

    def tag(self):
        """Returns (type, length, content) of the next element; content is None unless the tag itself contains it."""
        kind, length = struct.unpack("<II", word := self.take(8))
        if kind >> 16:
            return kind & 0xFFFF, kind >> 16, word[4 : 4 + (kind >> 16)]
        return kind, length, None

    def element(self):
        """Returns (type, content) of the next element, a short one."""
        kind, length, small = self.tag()
        if small is not None:
            return kind, small
        if length > 256:
            raise UserError(f"{self.path}: damaged: {length:,} bytes where a name or a shape should be")
        return kind, self.take(length + -length % 8)[:length]

    def skip(self):
        """Skips the rest of the element."""
        while self.left or self.pending:
            self.take(min(self.left, BLOCK) or len(self.pending))
        if self.inflate and self._more(1):
            raise UserError(f"{self.path}: damaged: an element has more content than it says")
        if self.inflate and not self.inflate.eof:
            raise UserError(f"{self.path}: cut off: the end of a compressed element is missing")
        while self._read(BLOCK):
            pass
