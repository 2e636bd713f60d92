"""Data sets: `load(name)` and the one form they all take. Each is a module that returns its images as stored bytes."""

from dataclasses import dataclass

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
