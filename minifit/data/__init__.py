"""Data sets: `load(name)` and the one form they all take. Each is a module that returns its images as stored bytes."""

from dataclasses import dataclass

import numpy as np

from minifit import UserError
from minifit.data import cifar, digits, mnist


@dataclass(frozen=True)
class Dataset:
    """Images float32 (N, H, W, C) with pixels in [0, 1], in the source's order, and their labels int64 (N,)."""

    name: str  # what results may call it
    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def load(name, data_dir=None, progress=True, **settings):
    """The Dataset called `name`: "mnist", "cifar10" or "cifar100", read from `data_dir`, or found, or downloaded; or
    "digits", drawn here.

    settings: of digits, the counts `train` and `test`, and `seed`
    """
    if name == "mnist":
        name, images, labels, test_images, test_labels = mnist.load(data_dir, progress, **settings)
    elif name in cifar.SETS:
        name, images, labels, test_images, test_labels = cifar.load(name, data_dir, progress, **settings)
    elif name == "digits":
        if data_dir is not None:
            raise UserError(f"--data-dir {data_dir}: digits are drawn here, not read; leave it out")
        name, images, labels, test_images, test_labels = digits.load(**settings)
    else:
        raise UserError(f"there is no data set {name!r}: choose mnist, digits, cifar10 or cifar100")
    return Dataset(name, _unit(images), labels.astype(np.int64), _unit(test_images), test_labels.astype(np.int64))


def _unit(images):
    """Bytes to float32 in [0, 1], with no float64 array on the way."""
    return np.divide(images, np.float32(255), dtype=np.float32)
