"""Data sets: `load(name)` returns any of them as a Dataset. Each has a module that returns images as stored bytes."""

import hashlib
from dataclasses import dataclass, field

import numpy as np

from minifit import UserError
from minifit.data import cifar, digits, faces, mnist, own, svhn
from minifit.data.stored import part
from minifit.files import slices


@dataclass(frozen=True)
class Dataset:
    """Images as stored, uint8 (N, H, W, C), in the source's order, and their labels int64 (N,).

    Images are in memory or, as stored.Rows, in a file.
    """

    name: str  # what results may call it
    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    groups: np.ndarray | None = None  # the group of each image; images of one group stay on one side of any split
    test_groups: np.ndarray | None = None
    digests: dict = field(default_factory=dict, init=False, repr=False, compare=False)  # sizes -> digest

    def parts(self, train, validation, test):
        """Returns {"train": (images, labels), "validation": ..., "test": ...}: the first training images, the last
        training images, and the first test images (None: all)."""
        if len(self.images) < train + validation or len(self.test_images) < (test or 1):
            raise UserError(
                f"{self.name} has {len(self.images)} training and {len(self.test_images)} test images; --train "
                f"{train}, --validation {validation} and --test {test or 'all'} want more"
            )
        last, tests = len(self.images) - validation, test or len(self.test_images)
        if self.groups is not None and len(shared := np.intersect1d(self.groups[:train], self.groups[last:])):
            raise UserError(
                f"{self.name}: with --train {train} and --validation {validation}, group {shared[0]} lies in both; a "
                f"little less of --train would part them"
            )
        return {
            "train": (part(self.images, slice(train)), self.labels[:train]),
            "validation": (part(self.images, slice(last, None)), self.labels[last:]),
            "test": (part(self.test_images, slice(tests)), self.test_labels[:tests]),
        }

    def digest(self, train, validation, test):
        """Returns a fingerprint of the images and labels of `parts`, computed once for the same sizes."""
        sizes = train, validation, test
        if sizes not in self.digests:
            sha = hashlib.sha256()
            for images, labels in self.parts(*sizes).values():
                for rows in slices(images):
                    sha.update(np.ascontiguousarray(rows))
                sha.update(np.ascontiguousarray(labels))
            self.digests[sizes] = sha.hexdigest()[:16]
        return self.digests[sizes]


def load(name, data_dir=None, progress=True, train=None, test=None, file=None, **settings):
    """Returns the Dataset called `name`: reads it from `data_dir`, finds it, downloads it, or draws it.

    train, test: how many digits to draw; other sets are read whole
    file: the file of faces or of own data    settings: `seed` for digits, `mirrors` for downloads
    """
    groups = ()
    if name in FILES:
        if data_dir is not None:
            raise UserError(f"--data-dir {data_dir}: {name} is read from --data FILE; leave --data-dir out")
        if file is None:
            raise UserError(f"{name}: wanted --data FILE, {FILES[name].WANTED}")
        *arrays, groups = FILES[name].load(file)
    elif name == "digits":
        if data_dir is not None:
            raise UserError(f"--data-dir {data_dir}: digits are drawn here, not read; leave --data-dir out")
        settings |= {part: count for part, count in (("train", train), ("test", test)) if count is not None}
        arrays = digits.load(**settings)
    elif name in cifar.SETS:
        arrays = cifar.load(name, data_dir, progress, **settings)
    elif name in PUBLISHED:
        arrays = PUBLISHED[name].load(data_dir, progress, **settings)
    else:
        known = ", ".join([*PUBLISHED, *cifar.SETS, "digits", *FILES])
        raise UserError(f"there is no data set {name!r}: choose one of {known}")
    title, images, labels, test_images, test_labels = arrays
    return Dataset(title, images, labels.astype(np.int64), test_images, test_labels.astype(np.int64), *groups)


PUBLISHED = {"mnist": mnist, "svhn": svhn}
FILES = {"faces": faces, "own": own}
