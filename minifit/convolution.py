"""How a convolution is computed: the definition, unfolded or stacked, or minimal filtering where that multiplies less.

Every method has the same functions, and gives the same numbers up to rounding:

    y, kept = method.forward(x, w, b)         x (N, H, W, C)   w (R, S, C, K)   b (K,)   y (N, P, Q, K)
    dx, dw = method.backward(dy, kept, w)
    dw = method.weight_gradient(dy, kept, w)
    y = method.maxout(x, w, b, pieces)        y (N, P, Q, K / pieces): forward and maxout, and no backward to follow
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from minifit.backend import array_module
from minifit.fast_convolution import fourier, fourier_multiplications, winograd
from minifit.patches import fold, images_innermost, largest, unfold

SMALL = 10**6  # multiplications of a matrix product up to which OpenBLAS does not pack the matrices first
STACK = 2**18  # numbers of stacked rows, or of their outputs, that are made at a time
FEW = 8  # images, below which their numbers are too short a run


def choose(x, w, pad):
    """The method for this input: the one place that decides, by counting multiplications.

    A GPU is given the definition: there one large product is quick and many small ones are slow.
    """
    if array_module(x) is not np or not len(x):
        return Unfolded(pad)
    stacked = len(x) >= FEW and len(x) * w.size <= SMALL
    return _planned(Stacked(pad) if stacked else Unfolded(pad), x.shape[1:3], w.shape, pad, x.dtype)


def _fewest(definition, size, kernel, pad, dtype):
    # Padding so wide that windows hold nothing else is left to the definition, which gives them exact zeros: on these,
    # pieces with equal biases tie as they should.
    method, fewest = definition, definition.weight * multiplications(size, kernel, pad)
    if pad >= min(kernel[:2]):
        return definition
    if kernel[:2] == (3, 3):
        other = winograd(size, kernel[:2], pad, dtype)
        if other.multiplications(kernel) < fewest:
            method, fewest = other, other.multiplications(kernel)
    if fourier_multiplications(size, kernel, pad) < fewest:
        method = fourier(size, kernel[:2], pad, dtype)
    return method


_planned = lru_cache(maxsize=1024)(_fewest)


def multiplications(size, kernel, pad):
    """Of the definition, for an image of that size (H, W)."""
    r, s, c, k = kernel
    return (size[0] + 2 * pad - r + 1) * (size[1] + 2 * pad - s + 1) * r * s * c * k


@dataclass(frozen=True)
class Unfolded:
    """The definition: a row of the unfolded input times w.reshape(R*S*C, K)."""

    pad: int
    weight = 1.5  # of one of its multiplications, beside those of minimal filtering: it copies the input R*S times

    def forward(self, x, w, b):
        r, s, c, k = w.shape
        patches = unfold(x, r, s, self.pad)  # (N, P, Q, R, S, C)
        n, p, q = patches.shape[:3]
        y = patches.reshape(n * p * q, r * s * c) @ w.reshape(r * s * c, k)
        y += b
        return y.reshape(n, p, q, k), x

    def maxout(self, x, w, b, pieces):
        return largest(self.forward(x, w, b)[0], pieces)

    def backward(self, dy, kept, w):
        r, s, c, k = w.shape
        dpatches = dy.reshape(-1, k) @ w.reshape(r * s * c, k).T  # (N P Q, K) (K, R S C)
        dx = fold(dpatches.reshape(*dy.shape[:3], r, s, c), kept.shape, self.pad)
        return dx, self.weight_gradient(dy, kept, w)

    def weight_gradient(self, dy, kept, w):
        # The patches are made again rather than kept: they are R*S times the input, and copying is cheap.
        r, s, c, k = w.shape
        dy = dy.reshape(-1, k)
        patches = unfold(kept, r, s, self.pad).reshape(len(dy), r * s * c)
        return (patches.T @ dy).reshape(w.shape)


@dataclass(frozen=True)
class Stacked:
    """The definition for few channels and several images, which lie innermost in memory: x as (H, W, C, N).

    R rows of the map, stacked, are copied once, for a few rows of the output at a time: (P', W, R C, N), and below them
    a row of ones, which b is multiplied by. The windows along a row then overlap in memory and need no copy, and every
    output pixel is a small matrix product, (K, S (R C + 1)) (S (R C + 1), N). All that is done to the output element by
    element runs over long stretches of memory, however few the channels.
    """

    pad: int
    weight = 0.6  # of one of its multiplications, beside those of minimal filtering: it copies less

    def forward(self, x, w, b):
        x = images_innermost(x)
        return _images_outermost(_correlate(x, w, self.pad, self.pad, b)), x

    def maxout(self, x, w, b, pieces):
        return _images_outermost(_correlate(images_innermost(x), w, self.pad, self.pad, b, pieces))

    def backward(self, dy, kept, w):
        # The gradient of x is the correlation of dy, padded to the full, with the filters turned by half a circle.
        r, s, _, _ = w.shape
        turned = w[::-1, ::-1].transpose(0, 1, 3, 2)
        dx = _correlate(images_innermost(dy), turned, r - 1 - self.pad, s - 1 - self.pad)
        return _images_outermost(dx), self.weight_gradient(dy, kept, w)

    def weight_gradient(self, dy, kept, w):
        r, s, c, k = w.shape
        dw, spans = np.zeros((s, r * c * k), dy.dtype), list(_spans(kept.shape[1], s, self.pad))
        for rows, stacked in _stacks(kept, r, self.pad, k):
            dy_rows = np.ascontiguousarray(dy[:, rows].transpose(1, 2, 0, 3))  # (P', Q, N, K)
            for taps, pixels in spans:
                windows = _windows(stacked, taps, pixels, self.pad)
                parts = np.empty((windows.shape[1], windows.shape[2], k), dy.dtype)
                ones = np.ones(len(parts), dy.dtype)
                for x_row, dy_row in zip(windows, dy_rows[:, pixels], strict=True):
                    np.matmul(x_row, dy_row, out=parts)  # Q times (S R C, N) (N, K)
                    dw[taps] += (ones @ parts.reshape(len(parts), -1)).reshape(-1, r * c * k)
        return dw.reshape(s, r, c, k).transpose(1, 0, 2, 3)


def _correlate(x, w, pad_rows, pad_columns, b=None, pieces=1):
    """x (H, W, C, N), w (R, S, C, K) -> (P, Q, K, N), or the largest of its pieces, (P, Q, K / pieces, N).

    Negative padding leaves out rows or columns at each border.
    """
    r, s, c, k = w.shape
    x = x[max(0, -pad_rows) : x.shape[0] - max(0, -pad_rows), max(0, -pad_columns) : x.shape[1] - max(0, -pad_columns)]
    (h, wide, _, n), pad_rows, pad_columns = x.shape, max(0, pad_rows), max(0, pad_columns)
    p, q = h + 2 * pad_rows - r + 1, wide + 2 * pad_columns - s + 1
    y = np.empty((p, q, k // pieces, n), x.dtype)
    filters = w.transpose(1, 0, 2, 3).reshape(s, r * c, k)
    if b is not None:
        filters = np.concatenate([filters, np.zeros((s, 1, k), w.dtype)], axis=1)
    spans = []
    for taps, pixels in _spans(wide, s, pad_columns):
        part = filters[taps].reshape(-1, k)
        if b is not None:
            part = part.copy()
            part[r * c] = b
        spans.append((taps, pixels, part.T))
    for rows, stacked in _stacks(x, r, pad_rows, k, b is not None):
        z = y[rows] if pieces == 1 else np.empty((len(stacked), q, k, n), x.dtype)
        if pad_columns >= s:  # then some windows meet nothing; backward never pads so wide
            z[...] = b[:, None]
        for taps, pixels, part in spans:
            np.matmul(part, _windows(stacked, taps, pixels, pad_columns), out=z[:, pixels])
        if pieces > 1:
            largest(z, pieces, axis=2, out=y[rows])
    return y


def _stacks(x, r, pad, k, biased=False):
    """x (H, W, C, N) -> (rows, (P', W, R C, N)): R rows of the map above one another, zeros beyond its border.

    Some rows of the output at a time: a core's cache holds their stack, or their K channels, until they have been used.
    biased: with ones below, (P', W, R C + 1, N)
    """
    h, w, c, n = x.shape
    high = r * c + biased
    p, some = h + 2 * pad - r + 1, max(1, STACK // (w * max(high, k) * n))
    for start in range(0, p, some):
        stop = min(start + some, p)
        inside = start >= pad and stop <= h + pad - r + 1
        stacked = (np.empty if inside else np.zeros)((stop - start, w, high, n), x.dtype)
        for i in range(r):
            first = max(start, pad - i)
            last = max(first, min(stop, h + pad - i))
            stacked[first - start : last - start, :, i * c : (i + 1) * c] = x[first + i - pad : last + i - pad]
        if biased:
            stacked[:, :, r * c] = 1
        yield slice(start, stop), stacked


def _spans(wide, s, pad):
    """Which of the S columns of a kernel meet the map, and at which of the Q outputs of a row: pairs (taps, pixels)."""
    q = wide + 2 * pad - s + 1
    first, last = min(pad, q), max(min(pad, q), wide + pad - s + 1)  # outputs whose windows lie within the map
    for start, stop in [*((i, i + 1) for i in range(first)), (first, last), *((i, i + 1) for i in range(last, q))]:
        taps = slice(max(0, pad - start), min(s, wide + pad - start))
        if start < stop and taps.start < taps.stop:
            yield taps, slice(start, stop)


def _windows(stacked, taps, pixels, pad):
    """What these taps cover, at these outputs, of stacked rows (P, W, D, N): (P, Q', S' D, N), in shared memory."""
    p, _, d, n = stacked.shape
    step_p, step_q, step_d, step_n = stacked.strides
    shape = p, pixels.stop - pixels.start, (taps.stop - taps.start) * d, n
    offset = (pixels.start - pad + taps.start) * step_q
    return np.ndarray(shape, stacked.dtype, stacked, offset, (step_p, step_q, step_d, step_n))


def _images_outermost(y):
    """(P, Q, K, N) -> (N, P, Q, K), without a copy."""
    return y.transpose(3, 0, 1, 2)
