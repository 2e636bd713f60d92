"""Chooses how to compute a convolution: by its definition, unfolded, or by a method with fewer multiplications.

All methods have these functions and give the same numbers up to rounding:

    y, cache = method.forward(x, w, b)        x (N, H, W, C)   w (R, S, C, K)   b (K,)   y (N, P, Q, K)
    dx, dw = method.backward(dy, cache, w)
    dw = method.weight_gradient(dy, cache, w)
    y = method.maxout(x, w, b, pieces)        y (N, P, Q, K / pieces), for evaluation
"""

from dataclasses import dataclass
from functools import lru_cache
from math import inf, prod

import numpy as np

from minifit.backend import array_module
from minifit.fast_convolution import fourier, fourier_multiplications, fourier_products, winograd
from minifit.patches import fold, largest, unfold, view_patches
from minifit.stacked import SMALL, Stacked

FEW = 8  # with fewer images, the runs of memory in `Stacked` are too short
MOVED = 40  # cost of a number in the transformed filters, which is written to memory and read once, in multiplications
ONE_TILE = (
    1.15  # cost of a multiplication of Fourier's beside one of Winograd's, whose products take four tiles and more
)
CALLS = 3 * 10**6  # cost of the longer way through the interpreter


def choose(x, w, pad, evaluating=False):
    """Returns the method for this input, by counting multiplications. Only this function decides.

    A GPU gets the definition: there one large product is fast, and many small ones are slow. Its memory is fast too,
    and large, so that patches are kept.
    evaluating: nobody needs gradients; then the method for fewer than FEW images depends on their number
    """
    if array_module(x) is not np:
        return Kept(pad)
    return _chosen(x.shape, w.shape, pad, x.dtype, evaluating)


def _choose(shape, kernel, pad, dtype, evaluating):
    n, few = shape[0], evaluating and shape[0] < FEW
    if not n:
        return Unfolded(pad)
    stacked = n >= FEW and n * prod(kernel) <= SMALL
    definition = Stacked(pad) if stacked else Few(pad) if few else Unfolded(pad)
    return _planned(definition, shape[1:3], kernel, pad, dtype, n if few else inf)


_chosen = lru_cache(maxsize=1024)(_choose)


def _fewest(definition, size, kernel, pad, dtype, images):
    # With padding this wide, some windows hold nothing but padding. The definition gives exact zeros there, so that
    # pieces with equal biases tie, as they should.
    method, fewest = definition, definition.weight * multiplications(size, kernel, pad)
    if pad >= min(kernel[:2]):
        return definition
    if kernel[:2] == (3, 3):
        other = _made(winograd, size, kernel[:2], pad, dtype)
        cost = other.multiplications(kernel) + once(len(other.b), kernel) / images
        if cost < fewest:
            method, fewest = other, cost
    products = fourier_products(size, pad)
    if ONE_TILE * fourier_multiplications(size, kernel, pad) + once(products, kernel) / images < fewest:
        method = _made(fourier, size, kernel[:2], pad, dtype)
    return method


_planned = lru_cache(maxsize=1024)(_fewest)
_made = lru_cache(maxsize=1024)(lambda make, *geometry: make(*geometry))  # the same for any number of images


def multiplications(size, kernel, pad):
    """Counts the multiplications of the definition for an image of this size (H, W)."""
    r, s, c, k = kernel
    return (size[0] + 2 * pad - r + 1) * (size[1] + 2 * pad - s + 1) * r * s * c * k


def once(products, kernel):
    """What minimal filtering costs beside its multiplications, however many the images: the filters' transforms."""
    r, s, c, k = kernel
    return products * (r * s + MOVED) * c * k + CALLS


@dataclass(frozen=True)
class Unfolded:
    """The definition: multiplies each row of the unfolded input with w.reshape(R*S*C, K)."""

    pad: int
    weight = 1.5  # cost of one multiplication beside one of minimal filtering: this method copies the input R*S times

    def forward(self, x, w, b):
        r, s, c, k = w.shape
        patches = unfold(x, r, s, self.pad)  # (N, P, Q, R, S, C)
        n, p, q = patches.shape[:3]
        y = patches.reshape(n * p * q, r * s * c) @ w.reshape(r * s * c, k)
        y += b
        return y.reshape(n, p, q, k), x

    def maxout(self, x, w, b, pieces):
        return largest(self.forward(x, w, b)[0], pieces)

    def backward(self, dy, cache, w):
        r, s, c, k = w.shape
        dpatches = dy.reshape(-1, k) @ w.reshape(r * s * c, k).T  # (N P Q, K) (K, R S C)
        dx = fold(dpatches.reshape(*dy.shape[:3], r, s, c), cache.shape, self.pad)
        return dx, self.weight_gradient(dy, cache, w)

    def weight_gradient(self, dy, cache, w):
        # Patches are R*S times as large as the input, and copying is cheap, so they are made again and not kept.
        r, s, c, k = w.shape
        dy = dy.reshape(-1, k)
        patches = unfold(cache, r, s, self.pad).reshape(len(dy), r * s * c)
        return (patches.T @ dy).reshape(w.shape)


class Few(Unfolded):
    """The definition, whose evaluation of a maxout layer takes few images and many small products.

    Each piece has products of its own, so that the pieces lie apart and their maximum runs along memory. A one beside
    each patch brings the bias. No product has more than SMALL multiplications; where that takes less than a row of the
    map at a time, this is Unfolded.
    """

    def maxout(self, x, w, b, pieces):
        r, s, c, k = w.shape
        patches = view_patches(x, r, s, self.pad)
        n, p, q = patches.shape[:3]
        groups = _groups(n * p, q * (r * s * c + 1) * (k // pieces))
        if not groups:
            return super().maxout(x, w, b, pieces)
        filters = np.concatenate([w.reshape(r * s * c, k), b[None]]).reshape(-1, pieces, k // pieces)
        if c > 1:
            rows = np.empty((n * p * q, len(filters)), x.dtype)
            rows[:, :-1].reshape(patches.shape)[...] = patches
        else:  # S contiguous numbers are few: Q are copied at a time
            rows = np.empty((len(filters), n * p * q), x.dtype).T
            rows.T[:-1].reshape(r, s, n, p, q)[...] = patches[..., 0].transpose(3, 4, 0, 1, 2)
        rows[:, -1] = 1
        rows = rows.reshape(groups, -1, len(filters))
        z = rows @ filters.transpose(1, 0, 2)[:, None]  # a piece and a group at a time: (rows, R S C + 1) (..., K / M)
        return largest(z, pieces, axis=0).reshape(n, p, q, k // pieces)


def _fewest_groups(rows, cost):
    """The fewest equal groups of rows whose products have at most SMALL multiplications; 0 if a row has more."""
    return next((n for n in range(1, rows + 1) if not rows % n and rows // n * cost <= SMALL), 0)


_groups = lru_cache(maxsize=1024)(_fewest_groups)


class Kept(Unfolded):
    """The definition, with the patches kept for the gradient."""

    def forward(self, x, w, b):
        r, s, c, k = w.shape
        patches = unfold(x, r, s, self.pad)
        n, p, q = patches.shape[:3]
        rows = patches.reshape(n * p * q, r * s * c)
        y = rows @ w.reshape(r * s * c, k)
        y += b
        return y.reshape(n, p, q, k), (rows, x.shape)

    def backward(self, dy, cache, w):
        r, s, c, k = w.shape
        dpatches = dy.reshape(-1, k) @ w.reshape(r * s * c, k).T
        dx = fold(dpatches.reshape(*dy.shape[:3], r, s, c), cache[1], self.pad)
        return dx, self.weight_gradient(dy, cache, w)

    def weight_gradient(self, dy, cache, w):
        return (cache[0].T @ dy.reshape(-1, w.shape[3])).reshape(w.shape)
