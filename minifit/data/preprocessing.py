"""Prepares stored bytes for networks: as pixels in [0, 1], or by contrast normalisation, local normalisation or ZCA.

Whitening is how pylearn2, and with it the paper, prepares CIFAR's images; local normalisation is for SVHN's.

A preparation is called with a slice of stored images, (n, H, W, C), and gives float32 (n, H, W, C). The arrays of
`prepare.on(xp)` are the library's, and so must the images be.
"""

from dataclasses import dataclass
from math import prod

import numpy as np

from minifit.backend import array_module

SLICE = 1000  # images that `fit` handles at once: in float64, 25 MB of CIFAR


@dataclass(frozen=True)
class Unit:
    """Bytes to float32 in [0, 1], with no float64 array on the way."""

    def __call__(self, images):
        return array_module(images).divide(images, np.float32(255), dtype=np.float32)

    def on(self, xp):
        """The same for arrays of the library xp."""
        return self


@dataclass(frozen=True)
class Local:
    """`contrast` of norm 1, then `local_contrast` of all channels, or of the first few and not of the others.

    pylearn2 normalised all three in May 2013, behind the published 2.47 % on SVHN; since January 2014 a misplaced
    return leaves all but the first, red, as they are.
    """

    channels: int | None = None  # None: all

    def __call__(self, images):
        x, n = contrast(images, scale=1.0), self.channels
        y = local_contrast(x[..., :n])
        return y if n is None else array_module(y).concatenate([y, x[..., n:]], axis=-1)

    def on(self, xp):
        """The same for arrays of the library xp."""
        return self


@dataclass(frozen=True)
class Whitened:
    """`contrast`, then ZCA whitening."""

    zca: "ZCA"
    scale: float = 55.0

    def __call__(self, images):
        return self.zca.apply(contrast(images, self.scale))

    def on(self, xp):
        """The same for arrays of the library xp."""
        return Whitened(ZCA(xp.asarray(self.zca.mean), xp.asarray(self.zca.matrix)), self.scale)


def fit(images, scale=55.0, regularisation=0.1):
    """Returns the Whitened with the statistics of these training images, (N, H, W, C).

    At most SLICE images are in memory as floats at a time.
    """
    return Whitened(ZCA.fit(images, regularisation, lambda part: contrast(part, scale)), scale)


def contrast(images, scale=55.0):
    """Global contrast normalisation of each image over all its pixels and channels: y = (x - mean(x)) / d.

    d = ||x - mean(x)|| / scale, but 1 where that is below 1e-8    (pylearn2's global_contrast_normalize)

    images (N, H, W, C), bytes or any multiple of them    y float32 (N, H, W, C), zeros for an image of one colour
    """
    # In float64 the mean of equal pixels is exactly their value. Otherwise the rounding error would be scaled up.
    x = rows(images).astype(np.float64)
    x -= x.mean(axis=1, keepdims=True)
    xp = array_module(x)
    d = xp.sqrt(xp.einsum("nd,nd->n", x, x)) / scale
    return (x / xp.where(d < 1e-8, 1.0, d)[:, None]).astype(np.float32).reshape(images.shape)


def local_contrast(x, size=7, sigma=2.0, threshold=1e-4):
    """Local contrast normalisation of each channel of each image: y = (x - G * x) / max(d, mean(d), threshold).

    d = sqrt(G * x^2), of x itself; its mean is over the channel of the image. G is a Gaussian of size x size whose sum
    is 1; beyond the border of the image x is 0.    (pylearn2's LeCunLCN; after Jarrett et al. 2009)

    x, y (N, H, W, C)
    """
    xp, planes = array_module(x), x.transpose(0, 3, 1, 2)
    down, across = (xp.asarray(_blur(extent, size, sigma).astype(x.dtype)) for extent in x.shape[1:3])

    def blurred(a):
        return down @ a @ across.T  # a Gaussian is the product of one down the columns and one across the rows

    d = xp.sqrt(blurred(planes * planes))
    divisor = xp.maximum(xp.maximum(d, d.mean(axis=(2, 3), keepdims=True)), x.dtype.type(threshold))
    return xp.ascontiguousarray(((planes - blurred(planes)) / divisor).transpose(0, 2, 3, 1))


def _blur(extent, size, sigma):
    """The matrix (extent, extent) that convolves a column with a Gaussian of sum 1, zeros beyond its ends."""
    g = np.exp(-((np.arange(size) - size // 2) ** 2) / (2 * sigma**2))
    padded = np.zeros((extent, extent + size - 1))
    for i in range(extent):
        padded[i, i : i + size] = g / g.sum()
    return padded[:, size // 2 : size // 2 + extent]


def rows(images):
    """Images (N, H, W, C) as rows of pixels (N, D)."""
    return images.reshape(len(images), prod(images.shape[1:]))


@dataclass(frozen=True)
class ZCA:
    """The affine map that makes the pixels of training images uncorrelated and changes them least otherwise.

    y = (x - mean) matrix,    matrix = (covariance + regularisation I)^(-1/2), which is symmetric

    Along an eigenvector of the covariance with eigenvalue e, y has the variance e / (e + regularisation).

    mean (D,)    matrix (D, D)    both float32, D = H*W*C

    Bell & Sejnowski 1997; pylearn2's ZCA, with all components and the covariance divided by N.
    """

    mean: np.ndarray
    matrix: np.ndarray

    @classmethod
    def fit(cls, images, regularisation=0.1, change=np.asarray):
        """From change(images), (N, H, W, C), in float64, a slice at a time."""
        if len(images) == 0:
            raise ValueError("ZCA.fit: no images")

        def slices():
            for start in range(0, len(images), SLICE):
                yield rows(change(images[start : start + SLICE]))

        mean = sum(x.sum(axis=0, dtype=np.float64) for x in slices()) / len(images)
        covariance = np.zeros((len(mean), len(mean)))
        for x in slices():
            centred = x - mean
            covariance += centred.T @ centred
        covariance /= len(images)
        e, v = np.linalg.eigh(covariance)  # covariance = v diag(e) v.T
        # A covariance has no eigenvalue below 0, except by rounding.
        scale = np.sqrt(np.maximum(e, 0) + regularisation)
        return cls(mean.astype(np.float32), ((v / scale) @ v.T).astype(np.float32))

    def apply(self, images):
        """Whitened images, float32 (N, H, W, C)."""
        x = rows(images) - self.mean
        # A product of one row rounds otherwise than one of several: a slice of one image must not show either.
        y = x @ self.matrix if len(x) != 1 else (array_module(x).concatenate([x, x]) @ self.matrix)[:1]
        return y.reshape(images.shape)
