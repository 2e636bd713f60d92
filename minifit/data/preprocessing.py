"""From stored bytes to what networks see: pixels in [0, 1], or global contrast normalisation and ZCA whitening.

Whitening is how pylearn2, and with it the paper, prepares CIFAR's images.

The statistics come from the training images that are given and from nothing else. It is they that are cached, and not
the whitened images: 76 MB against 740, and most of the time, since to apply them is one matrix product. They are
cached as they are applied, so that a resumed run sees the same bits, which an eigendecomposition repeated on another
machine, or with more threads, does not promise.
"""

import fcntl
import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from minifit import UserError, __version__
from minifit.lab import files as checkpoints

SLICE = 1000  # images that are handled at once: in float64, 25 MB of CIFAR


def unit(images):
    """Bytes to float32 in [0, 1], with no float64 array on the way."""
    return np.divide(images, np.float32(255), dtype=np.float32)


def contrast(images, scale=55.0):
    """Global contrast normalisation of each image over all its pixels and channels: y = (x - mean(x)) / d.

    d = ||x - mean(x)|| / scale, but 1 where that is below 1e-8    (pylearn2's global_contrast_normalize)

    images (N, H, W, C), bytes or any multiple of them    y float32 (N, H, W, C), zeros for an image of one colour
    """
    y = np.empty(images.shape, np.float32)
    for part in _slices(images):
        # In float64, where the mean of equal pixels is exactly their value: what is left of them would be scaled up.
        x = images[part].reshape(len(images[part]), -1).astype(np.float64)
        x -= x.mean(axis=1, keepdims=True)
        divisor = np.sqrt(np.einsum("nd,nd->n", x, x)) / scale
        divisor[divisor < 1e-8] = 1.0
        y[part] = (x / divisor[:, None]).reshape(images[part].shape)
    return y


@dataclass(frozen=True)
class ZCA:
    """The affine map that makes the pixels of training images uncorrelated and changes them least otherwise.

    y = (x - mean) matrix,    matrix = (covariance + regularisation I)^(-1/2), which is symmetric
    x = y inverse + mean,     inverse = (covariance + regularisation I)^(1/2)

    Along an eigenvector of the covariance with eigenvalue e, y has the variance e / (e + regularisation).

    mean (D,)    matrix, inverse (D, D)    all float32, D = H*W*C

    Bell & Sejnowski 1997; pylearn2's ZCA, with all components and the covariance divided by N.
    """

    mean: np.ndarray
    matrix: np.ndarray
    inverse: np.ndarray

    @classmethod
    def fit(cls, images, regularisation=0.1):
        """From images (N, H, W, C), in float64, a slice at a time."""
        if len(images) == 0:
            raise ValueError("ZCA.fit: no images")
        x = images.reshape(len(images), -1)
        mean = sum(x[part].sum(axis=0, dtype=np.float64) for part in _slices(x)) / len(x)
        covariance = np.zeros((x.shape[1], x.shape[1]))
        for part in _slices(x):
            centred = x[part] - mean
            covariance += centred.T @ centred
        covariance /= len(x)
        e, v = np.linalg.eigh(covariance)  # covariance = v diag(e) v.T
        # A covariance has no eigenvalue below 0, but for rounding.
        scale = np.sqrt(np.maximum(e, 0) + regularisation)
        return cls(*(a.astype(np.float32) for a in (mean, (v / scale) @ v.T, (v * scale) @ v.T)))

    def apply(self, images, out=None):
        """Whitened images, float32 (N, H, W, C); `out` may be the images themselves."""
        return _affine(images, lambda x: (x - self.mean) @ self.matrix, out)

    def undo(self, images, out=None):
        """What `apply` was given."""
        return _affine(images, lambda y: y @ self.inverse + self.mean, out)


def whitened(train, others, cache, scale=55.0, regularisation=0.1):
    """`contrast`, then ZCA fitted on `train`: the images of `train`, and a list of those of each of `others`.

    train and each of others (N, H, W, C)    cache: the HDF5 file of the statistics; None: fit them and keep nothing

    A file that was not made from these very images with these parameters is replaced, and so is a damaged one.
    """
    x = contrast(train, scale)
    settings = {"scale": scale, "regularisation": regularisation, "minifit": __version__}
    if cache is None:
        zca = ZCA.fit(x, regularisation)
    else:
        source = {"images": _sha256(train), "shape": list(train.shape), "dtype": str(train.dtype)}
        zca = _kept(Path(cache), {**source, **settings}, lambda: ZCA.fit(x, regularisation))
    # x is ours: whitened in place, the images are never in memory twice over
    return zca.apply(x, out=x), [zca.apply(y, out=y) for y in (contrast(other, scale) for other in others)]


def _kept(path, source, fit):
    """The ZCA that `path` holds if it was fitted on `source`; otherwise fit(), which `path` then holds."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.with_name(f".{path.name}.lock"), "w") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX)  # of two runs that start together, one fits and the other waits for it
            zca = _load(path, source)
            if zca is None:
                zca = fit()
                sha256 = {name: _sha256(array) for name, array in asdict(zca).items()}
                checkpoints.save(path, {"fitted on": source, "sha256": sha256}, zca=asdict(zca))
    except OSError as error:
        raise UserError(f"{path}: the cache of the whitening cannot be kept ({error.strerror or error})") from None
    return zca


def _load(path, source):
    """The ZCA in `path`; None where there is none, or one fitted on something else, or damaged."""
    try:
        record, groups = checkpoints.load(path)
        arrays = groups["zca"]
        if record["fitted on"] != source or record["sha256"] != {name: _sha256(a) for name, a in arrays.items()}:
            return None
        return ZCA(**arrays)
    except (UserError, KeyError, TypeError):
        return None


def _affine(images, change, out):
    """change(rows of pixels) of all images, a slice at a time."""
    out = np.empty(images.shape, np.float32) if out is None else out
    for part in _slices(images):
        out[part] = change(images[part].reshape(len(images[part]), -1)).reshape(images[part].shape)
    return out


def _slices(images):
    return [slice(start, start + SLICE) for start in range(0, len(images), SLICE)]


def _sha256(array):
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()
