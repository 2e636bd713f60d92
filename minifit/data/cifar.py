"""CIFAR-10 and CIFAR-100: find, download and read the binary version (Krizhevsky, 2009), which needs no unpickling.

A file has one record per image: the labels, one byte each (CIFAR-10: the class; CIFAR-100: the superclass, then the
class), and 3 x 32 x 32 pixels: the red, green and blue planes one after the other, each row by row.
"""

import gzip
import hashlib
import os
import tarfile
import zlib
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import PurePosixPath

import numpy as np

from minifit import UserError
from minifit.data import files
from minifit.files import opened

SIZE = 32  # pixels a side


@dataclass(frozen=True)
class Published:
    """One of the two sets, as published."""

    title: str
    folder: str  # where we look for it and keep it
    archive: str
    checksum: str  # of the archive
    inside: str  # the archive's own folder
    train: dict[str, str]  # {file: SHA-256}
    test: str
    tests: str  # the pattern of files that may take its place, with fewer images
    test_sha256: str
    classes: tuple[int, ...]  # the number of classes of each label of a record; the last label is used


CIFAR10 = Published(
    title="CIFAR-10",
    folder="cifar10",
    archive="cifar-10-binary.tar.gz",
    checksum="sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    inside="cifar-10-batches-bin",
    train={
        "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
        "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
        "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
        "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
        "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    },
    test="test_batch.bin",
    tests="test_batch*.bin",
    test_sha256="8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
    classes=(10,),
)
CIFAR100 = Published(
    title="CIFAR-100",
    folder="cifar100",
    archive="cifar-100-binary.tar.gz",
    checksum="sha256:58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    inside="cifar-100-binary",
    train={"train.bin": "f31298fc616915fa142368359df1c4ca2ae984d6915ca468b998a5ec6aeebf29"},
    test="test.bin",
    tests="test.bin",
    test_sha256="d8b1e6b7b3bee4020055f0699b111f60b1af1e262aeb93a0b659061746f8224a",
    classes=(20, 100),
)
SETS = {"cifar10": CIFAR10, "cifar100": CIFAR100}
MIRRORS = (  # two addresses of the authors' own server
    "https://www.cs.toronto.edu/~kriz/",
    "https://cave.cs.toronto.edu/kriz/",
)


def load(name, data_dir=None, progress=True, mirrors=MIRRORS):
    """Returns the set's name, images uint8 (N, 32, 32, 3) and labels uint8 (N,), then the same two for testing.

    Only the official bytes are called CIFAR. The test file may be another one, with fewer images; the name then says
    how many, and identifies the file.
    """
    published = SETS[name]
    source = find(published, data_dir, progress, mirrors)
    with files.reading(*(source.values() if isinstance(source, dict) else [source])):
        read = {file: _read(published, place, content) for file, place, content in _contents(published, source)}
        test, missing = _choose(published, read, source)
        if missing:
            raise UserError(f"{source}: has no {', '.join(missing)} in it")

    images, labels, digests = zip(*(read[file] for file in published.train), strict=True)
    test_images, test_labels, test_digest = read[test]
    title = published.title
    if digests != tuple(published.train.values()):
        fingerprint = hashlib.sha256("".join([*digests, test_digest]).encode()).hexdigest()[:8]
        title = f"a set in {title}'s format ({fingerprint})"
    elif test_digest != published.test_sha256:
        title = f"{title} with {len(test_images):,} test images ({test_digest[:8]})"
    return title, np.concatenate(images), np.concatenate(labels), test_images, test_labels


def find(published, data_dir=None, progress=True, mirrors=MIRRORS):
    """Returns the path of the archive, or {file: path} of its files; files.find searches for them."""
    return files.find(
        published.title,
        lambda folder: _search(published, folder),
        lambda folder: download(published, folder, progress, mirrors),
        published.archive,
        published.folder,
        data_dir,
    )


def download(published, folder, progress=True, mirrors=MIRRORS):
    """Downloads the archive into `folder` and returns its path."""
    return files.download({published.archive: published.checksum}, mirrors, folder, progress)[0]


def _search(published, folder):
    """Returns (the loose files in `folder`, or else the archive, as for `find`; in words what is missing or "")."""
    near = (folder, folder / published.folder)
    lacks = None
    for place in (place / inside for place in near for inside in (".", published.inside)):
        paths = {path.name: path for path in sorted(place.glob("*.bin"))}
        test, missing = _choose(published, paths, place)
        if not missing:
            return {file: paths[file] for file in [*published.train, test]}, ""
        lacks = min(lacks or missing, missing, key=len)
    archive = files.existing(place / published.archive for place in near)
    if archive is not None:
        return archive, ""
    subfolders = f"there or in its folders {published.folder} and {published.inside}"
    return None, f"{published.archive}, and of its files lacks {', '.join(lacks)} ({subfolders})"


def _choose(published, names, place):
    """Returns (the test file among the files `names` in `place` or None, the list of missing files).

    A test file that has only some of the images may say in its name how many, as test_batch_9968.bin does.
    """
    missing = [name for name in published.train if name not in names]
    tests = [name for name in names if fnmatch(name, published.tests)]
    if not tests:
        return None, [*missing, published.tests]
    if published.test in tests:
        tests = [published.test]
    if len(tests) > 1 and not missing:
        raise UserError(f"{place}: {' and '.join(tests)}: only one of them can be the test set")
    return tests[0], missing


def _contents(published, source):
    """Yields the name, the place (for messages) and the bytes of each file of a set, one after the other."""
    if isinstance(source, dict):
        for name, path in source.items():
            yield name, path, files.read(path)
        return
    wanted, seen = (*published.train, published.tests), set()
    try:
        with opened(source) as file, gzip.open(file) as zipped:
            unzipped = files.Limited(zipped, source, os.fstat(file.fileno()).st_size)
            with tarfile.open(fileobj=unzipped, mode="r|") as archive:
                for member in archive:
                    name = PurePosixPath(member.name).name
                    if member.isfile() and any(fnmatch(name, pattern) for pattern in wanted):
                        if name in seen or member.sparse is not None:
                            raise UserError(f"{source}: names {name} twice" if name in seen else f"{source}: has holes")
                        seen.add(name)
                        yield name, f"{source}: {member.name}", archive.extractfile(member).read()
            while unzipped.read(1 << 20):  # to the end, where gzip has its checksum
                pass
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{source}: damaged archive: {error}") from None
    except OSError as error:
        raise UserError(f"{source}: {error.strerror}") from None


def _read(published, place, content):
    """Images, labels and the SHA-256 of a file."""
    size = len(published.classes) + 3 * SIZE * SIZE
    if not content:
        raise UserError(f"{place}: no images in it")
    if len(content) % size:
        raise UserError(
            f"{place}: cut off or no {published.title} file: its {len(content)} bytes are not whole records of {size}; "
            f"it begins with {content[:16]!r}"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, size)
    for column, classes in enumerate(published.classes):
        label, record = records[:, column].max(), records[:, column].argmax()
        if label >= classes:
            raise UserError(f"{place}: label {label} in record {record}, where 0 to {classes - 1} are the classes")
    planes = records[:, len(published.classes) :].reshape(-1, 3, SIZE, SIZE)
    images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    return images, records[:, len(published.classes) - 1].copy(), hashlib.sha256(content).hexdigest()
