"""Data sets: `load(name)` and the one form they all take. Each is a module that returns its images as stored bytes."""

import hashlib
from dataclasses import dataclass, field

import numpy as np

from minifit import UserError
from minifit.data import cifar, digits, mnist


@dataclass(frozen=True)
class Dataset:
    """Images as stored, uint8 (N, H, W, C), in the source's order, and their labels int64 (N,)."""

    name: str  # what results may call it
    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    digests: dict = field(default_factory=dict, init=False, repr=False, compare=False)  # by sizes

    def parts(self, train, validation, test):
        """{"train": (images, labels), "validation": ..., "test": ...}: the first training images, the last, and the
        first test images (None: all)."""
        if len(self.images) < train + validation or len(self.test_images) < (test or 1):
            raise UserError(
                f"{self.name} has {len(self.images)} training and {len(self.test_images)} test images; --train "
                f"{train}, --validation {validation} and --test {test or 'all'} want more"
            )
        last, tests = len(self.images) - validation, test or len(self.test_images)
        return {
            "train": (self.images[:train], self.labels[:train]),
            "validation": (self.images[last:], self.labels[last:]),
            "test": (self.test_images[:tests], self.test_labels[:tests]),
        }

    def digest(self, train, validation, test):
        """A fingerprint of the images and labels of `parts`, computed once per sizes."""
        sizes = train, validation, test
        if sizes not in self.digests:
            sha = hashlib.sha256()
            for part in self.parts(*sizes).values():
                for array in part:
                    sha.update(np.ascontiguousarray(array))
            self.digests[sizes] = sha.hexdigest()[:16]
        return self.digests[sizes]


def load(name, data_dir=None, progress=True, train=None, test=None, **settings):
    """The Dataset called `name`: "mnist", "cifar10" or "cifar100", read from `data_dir`, or found, or downloaded; or
    "digits", drawn here.

    train, test: how many images are wanted, if not any number: as many are drawn, while what is read is read whole
    settings: of digits, `seed`; of the others, `mirrors`
    """
    if name == "mnist":
        name, images, labels, test_images, test_labels = mnist.load(data_dir, progress, **settings)
    elif name in cifar.SETS:
        name, images, labels, test_images, test_labels = cifar.load(name, data_dir, progress, **settings)
    elif name == "digits":
        if data_dir is not None:
            raise UserError(f"--data-dir {data_dir}: digits are drawn here, not read; leave it out")
        settings |= {part: count for part, count in (("train", train), ("test", test)) if count is not None}
        name, images, labels, test_images, test_labels = digits.load(**settings)
    else:
        raise UserError(f"there is no data set {name!r}: choose mnist, digits, cifar10 or cifar100")
    return Dataset(name, images, labels.astype(np.int64), test_images, test_labels.astype(np.int64))
