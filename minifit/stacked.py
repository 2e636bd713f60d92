"""The definition of a convolution for few channels and several images, in stacked rows."""

from dataclasses import dataclass

import numpy as np

from minifit.patches import equal_slices, images_innermost, largest, slices

SMALL = 10**6  # OpenBLAS on AVX-512 multiplies without packing the matrices first, up to this many multiplications
STACK = 2**18  # most numbers in the stacked rows, or in their outputs, at a time


@dataclass(frozen=True)
class Stacked:
    """The definition for few channels and several images. The images lie innermost in memory: x as (H, W, C, N).

    For a few rows of the output at a time, R rows of the map are copied above one another, (P', W, R C, N), with a row
    of ones below them for the bias. The windows along a row then overlap in memory and need no copy. Each output pixel
    is a small matrix product, (K, S (R C + 1)) (S (R C + 1), N). Operations on single elements of the output run over
    long stretches of memory, however few the channels are.
    """

    pad: int
    weight = 0.65  # cost of one multiplication beside one of minimal filtering: this method copies less

    def forward(self, x, w, b):
        x = images_innermost(x)
        return _images_outermost(_correlate(x, w, self.pad, self.pad, b)), x

    def maxout(self, x, w, b, pieces):
        return _images_outermost(_correlate(images_innermost(x), w, self.pad, self.pad, b, pieces))

    def backward(self, dy, cache, w):
        # dx correlates dy, fully padded, with the filters turned by half a circle. It is last: dw takes more memory.
        r, s, _, _ = w.shape
        dw, turned = self.weight_gradient(dy, cache, w), w[::-1, ::-1].transpose(0, 1, 3, 2)
        dx = _correlate(images_innermost(dy), turned, r - 1 - self.pad, s - 1 - self.pad)
        return _images_outermost(dx), dw

    def weight_gradient(self, dy, cache, w):
        # With x as (H, C, W, N), the R C rows that a row of outputs meets under one column of the kernel lie one after
        # another, each a run of pixels and images. dy has the same pixels and images below one another. Both are
        # copied for a few rows of outputs at a time.
        (r, s, c, k), (h, wide, _, n), (_, p, q, _) = w.shape, cache.shape, dy.shape
        dw, spans = np.zeros((s, r * c, k), dy.dtype), list(_spans(h, r, self.pad))
        for block in slices(0, p, max(1, STACK // (2 * k * max(q * n, r * c)))):
            top = max(0, block.start - self.pad)
            x = np.ascontiguousarray(cache[top : max(top, block.stop - self.pad + r - 1)].transpose(0, 2, 1, 3))
            dy_rows = np.ascontiguousarray(dy[:, block].transpose(1, 2, 0, 3))
            step_w, step_c, step_h = (x.itemsize * n * count for count in (1, wide, wide * c))
            for tap in range(s):
                first, last = max(0, self.pad - tap), min(q, wide + self.pad - tap)
                for pixels in equal_slices(first, last, max(1, SMALL // (r * c * n * k))):
                    length = (pixels.stop - pixels.start) * n
                    left = (pixels.start - self.pad + tap) * step_w
                    for taps, start, stop in _within(block, spans):
                        shape = stop - start, (taps.stop - taps.start) * c, length
                        offset = (start - self.pad + taps.start - top) * step_h + left
                        x_rows = np.ndarray(shape, x.dtype, x, offset, (step_h, step_c, x.itemsize))
                        dy_part = dy_rows[start - block.start : stop - block.start, pixels].reshape(-1, length, k)
                        products = x_rows @ dy_part  # (R C, Q' N) (Q' N, K)
                        dw[tap, taps.start * c : taps.stop * c] += products.sum(axis=0)
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
        if pad_columns >= s:  # some windows meet padding only; backward never pads so wide
            z[...] = b[:, None]
        for taps, pixels, part in spans:
            np.matmul(part, _windows(stacked, taps, pixels, pad_columns), out=z[:, pixels])
        if pieces > 1:
            largest(z, pieces, axis=2, out=y[rows])
    return y


def _stacks(x, r, pad, k, biased=False):
    """x (H, W, C, N) -> (rows, (P', W, R C, N)): stacks R rows of the map, with zeros beyond its border.

    Yields a few rows of the output at a time, so that their stack and their K channels stay in a core's cache.
    biased: adds a row of ones below, (P', W, R C + 1, N)
    """
    h, w, c, n = x.shape
    high = r * c + biased
    p, step = h + 2 * pad - r + 1, max(1, STACK // (w * max(high, k) * n))
    for start in range(0, p, step):
        stop = min(start + step, p)
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
    """Yields pairs (taps, pixels): the columns of a kernel that meet the map at these of the Q outputs of a row."""
    q = wide + 2 * pad - s + 1
    first, last = min(pad, q), max(min(pad, q), wide + pad - s + 1)  # outputs whose windows lie within the map
    for start, stop in [*((i, i + 1) for i in range(first)), (first, last), *((i, i + 1) for i in range(last, q))]:
        taps = slice(max(0, pad - start), min(s, wide + pad - start))
        if start < stop and taps.start < taps.stop:
            yield taps, slice(start, stop)


def _within(block, spans):
    """Yields (taps, start, stop) for the outputs of these spans that lie in a block."""
    for taps, outputs in spans:
        start, stop = max(outputs.start, block.start), min(outputs.stop, block.stop)
        if start < stop:
            yield taps, start, stop


def _windows(stacked, taps, pixels, pad):
    """Views stacked rows (P, W, D, N) as the windows under these taps at these outputs: (P, Q', S' D, N)."""
    p, _, d, n = stacked.shape
    step_p, step_q, step_d, step_n = stacked.strides
    shape = p, pixels.stop - pixels.start, (taps.stop - taps.start) * d, n
    offset = (pixels.start - pad + taps.start) * step_q
    return np.ndarray(shape, stacked.dtype, stacked, offset, (step_p, step_q, step_d, step_n))


def _images_outermost(y):
    """(P, Q, K, N) -> (N, P, Q, K), without a copy."""
    return y.transpose(3, 0, 1, 2)
