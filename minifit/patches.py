"""Rearranges arrays. Unfold and fold are an adjoint pair, <unfold(x), p> = <x, fold(p)>, and define convolution."""

import numpy as np

from minifit import kernels
from minifit.backend import array_module


def pad_borders(x, pad):
    """x (N, H, W, C) -> (N, H + 2 pad, W + 2 pad, C), zeros around."""
    if not pad:
        return x
    xp = array_module(x)
    n, h, w, c = x.shape
    padded = xp.zeros((n, h + 2 * pad, w + 2 * pad, c), x.dtype)
    padded[:, pad : pad + h, pad : pad + w] = x
    return padded


def images_innermost(x):
    """x (N, H, W, C) -> (H, W, C, N), contiguous. Copies x only if it lies in memory in another order."""
    return array_module(x).ascontiguousarray(x.transpose(1, 2, 3, 0))


def unfold(x, r, s, pad=0):
    """Copies the patch of x under every position of an R x S kernel into a row.

    x (N, H, W, C) -> (N, P, Q, R, S, C)   P = H + 2 pad - R + 1, Q = W + 2 pad - S + 1
    """
    if array_module(x) is not np:
        return kernels.unfold(x, r, s, pad)
    return np.ascontiguousarray(view_patches(x, r, s, pad))  # moves S*C contiguous numbers at a time


def view_patches(x, r, s, pad=0):
    """The same as a view of x, or of a padded copy, in NumPy."""
    x = pad_borders(x, pad)
    (n, h, w, c), (step_n, step_h, step_w, step_c) = x.shape, x.strides
    shape, steps = (n, h - r + 1, w - s + 1, r, s, c), (step_n, step_h, step_w, step_h, step_w, step_c)
    if x.flags.c_contiguous:  # the shorter way
        return np.ndarray(shape, x.dtype, x, 0, steps)
    return np.lib.stride_tricks.as_strided(x, shape, steps)


def fold(patches, shape, pad=0):
    """The adjoint of unfold: adds every patch back where it came from.

    patches (N, P, Q, R, S, C) -> (N, H, W, C) = shape
    """
    if array_module(patches) is not np:
        return kernels.fold(patches, shape, pad)
    n, h, w, c = shape
    _, p, q, r, s, _ = patches.shape
    padded = np.zeros((n, h + 2 * pad, w + 2 * pad, c), patches.dtype)
    for i in range(r):
        for j in range(s):
            padded[:, i : i + p, j : j + q] += patches[:, :, :, i, j]
    return padded[:, pad : pad + h, pad : pad + w]


def parts(z, pieces, axis=-1):
    """Splits z along an axis into `pieces` equal parts, which are views."""
    before, k = (slice(None),) * (axis % z.ndim), z.shape[axis] // pieces
    return [z[(*before, slice(i * k, (i + 1) * k))] for i in range(pieces)]


def largest(z, pieces, axis=-1, out=None):
    """Takes the maximum of these parts, element by element. Two or more parts are written into `out`, if given."""
    y, *others = parts(z, pieces, axis)
    if not others:
        return y.copy()
    for part in others:
        y = out = array_module(z).maximum(y, part, out=out)
    return y


def slices(start, stop, most):
    """Cuts a range into slices of at most so many."""
    return [slice(i, min(i + most, stop)) for i in range(start, stop, most)]


def equal_slices(start, stop, most):
    """Cuts a range into the fewest slices of at most so many, all of nearly equal length."""
    if start >= stop:
        return []
    return slices(start, stop, -(-(stop - start) // -(-(stop - start) // most)))
