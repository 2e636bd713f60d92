"""What a GPU would compute in many launches, in one each: patches, maxout, pooling, updates, augmentation, masks.

Of finite numbers a kernel gives what the NumPy code gives beside which it is called: in patches, layers, optimizers and
data.augment. Its text is the body, in C++, of a loop over the elements of its outputs, whose number is `i`; `raw`
arrays are indexed. The library compiles it when it is first called. `index` is an unsigned type of 32 bits where that
is enough: a GPU divides these several times as fast.
"""

from functools import cache

import numpy as np

from minifit.backend import array_module

# Name: inputs, outputs, body.
KERNELS = {
    "unfold": (
        "raw T x, int32 H, int32 W, int32 C, int32 P, int32 Q, int32 R, int32 S, int32 pad",
        "T y",
        """
        const int c = index(i) % C;
        index j = index(i) / C;
        const int s = j % S; j /= S;
        const int r = j % R; j /= R;
        const int w = j % Q + s - pad; j /= Q;
        const int h = j % P + r - pad; j /= P;
        y = h >= 0 && h < H && w >= 0 && w < W ? x[((j * H + h) * W + w) * C + c] : T(0);
        """,
    ),
    "fold": (
        "raw T y, int32 H, int32 W, int32 C, int32 P, int32 Q, int32 R, int32 S, int32 pad",
        "T x",
        """
        const int c = index(i) % C;
        index j = index(i) / C;
        const int w = j % W; j /= W;
        const int h = j % H; j /= H;
        T sum = 0;
        for (int r = 0; r < R; ++r) {
            const int p = h + pad - r;
            if (p < 0 || p >= P) continue;
            for (int s = 0; s < S; ++s) {
                const int q = w + pad - s;
                if (q >= 0 && q < Q) sum += y[((((j * P + p) * Q + q) * R + r) * S + s) * C + c];
            }
        }
        x = sum;
        """,
    ),
    "augment": (
        "raw T x, raw int32 choices, int32 H, int32 W, int32 C",
        "T y",
        """
        const int c = index(i) % C;
        index j = index(i) / C;
        int w = j % W; j /= W;
        int h = j % H; j /= H;
        h -= choices[j * 3 + 1];
        w -= choices[j * 3 + 2];
        const bool inside = h >= 0 && h < H && w >= 0 && w < W;
        if (choices[j * 3]) w = W - 1 - w;
        y = inside ? x[((j * H + h) * W + w) * C + c] : T(0);
        """,
    ),
    "mask": (
        "uint64 key, float64 keep, T kept",
        "T mask",
        """
        unsigned long long z = key + (i + 1) * 0x9E3779B97F4A7C15ull;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
        mask = ((z ^ (z >> 31)) >> 11) * (1.0 / 9007199254740992.0) < keep ? kept : T(0);
        """,
    ),
    "maxout": (
        "raw T z, int32 K, int32 pieces",
        "T y, uint16 winner",
        """
        const index first = index(i) / K * pieces * K + index(i) % K;
        T largest = z[first];
        int found = 0;
        for (int m = 1; m < pieces; ++m) {
            const T other = z[first + index(m) * K];
            if (other > largest || other != other) { largest = other; found = m; }
        }
        y = largest;
        winner = found;
        """,
    ),
    "maxout_backward": (
        "raw T dy, raw uint16 winner, int32 K, int32 pieces",
        "T dz",
        """
        const index row = index(i) / K;
        const index j = row / pieces * K + index(i) % K;
        dz = winner[j] == row % pieces ? dy[j] : T(0);
        """,
    ),
    "pool": (
        "raw T x, int32 H, int32 W, int32 C, int32 P, int32 Q, int32 size, int32 stride",
        "T y, int32 winner",
        """
        const int c = index(i) % C;
        index j = index(i) / C;
        const int left = j % Q * stride; j /= Q;
        const int top = j % P * stride; j /= P;
        T largest = x[((j * H + top) * W + left) * C + c];
        int found = 0;
        for (int h = top; h < min(top + size, H); ++h) {
            for (int w = left; w < min(left + size, W); ++w) {
                const T other = x[((j * H + h) * W + w) * C + c];
                if (other > largest || other != other) { largest = other; found = (h - top) * size + w - left; }
            }
        }
        y = largest;
        winner = found;
        """,
    ),
    "pool_backward": (
        "raw T dy, raw int32 winner, int32 H, int32 W, int32 C, int32 P, int32 Q, int32 size, int32 stride",
        "T dx",
        """
        const int c = index(i) % C;
        index j = index(i) / C;
        const int w = j % W; j /= W;
        const int h = j % H; j /= H;
        T sum = 0;
        for (int p = max(0, h - size + stride) / stride; p < P && p * stride <= h; ++p) {
            for (int q = max(0, w - size + stride) / stride; q < Q && q * stride <= w; ++q) {
                const index window = ((j * P + p) * Q + q) * C + c;
                if (winner[window] == (h - p * stride) * size + w - q * stride) sum += dy[window];
            }
        }
        dx = sum;
        """,
    ),
    "max_norm": (
        "T squares, T limit",
        "T w",
        "w *= min(T(1), limit / max(sqrt(squares), limit / 2));",
    ),
    "rmsprop": (
        "T g, T lr, T decay, T rest, T least",
        "T w, T m",
        """
        m = decay * m + rest * g * g;
        w -= lr * g / max(sqrt(m), least);
        """,
    ),
    "sgd": (
        "T g, T lr, T momentum",
        "T w, T v",
        """
        v = momentum * v - lr * g;
        w += v;
        """,
    ),
}


def kernel(name, largest):
    """The kernel of that name.   largest: the array with most elements among its own"""
    return _compiled(array_module(largest), name, largest.size >= 2**32)


@cache
def _compiled(xp, name, large):
    inputs, outputs, body = KERNELS[name]
    index = "typedef unsigned long long index;" if large else "typedef unsigned int index;"
    return xp.ElementwiseKernel(inputs, outputs, index + body, f"minifit_{name}")


def unfold(x, r, s, pad):
    """patches.unfold"""
    xp, x, dtype = array_module(x), array_module(x).ascontiguousarray(x), x.dtype
    if x.shape[3] * dtype.itemsize % 16 == 0:
        x = x.view(np.complex128)  # the same bytes, 16 at a time: they are only moved
    n, h, w, c = x.shape
    p, q = h + 2 * pad - r + 1, w + 2 * pad - s + 1
    y = xp.empty((n, p, q, r, s, c), x.dtype)
    return kernel("unfold", y)(x, h, w, c, p, q, r, s, pad, y).view(dtype)


def fold(y, shape, pad):
    """patches.fold"""
    x = array_module(y).empty(shape, y.dtype)
    _, h, w, c = shape
    return kernel("fold", y)(y, h, w, c, *y.shape[1:5], pad, x)


def augment(x, choices):
    """data.augment.apply"""
    xp = array_module(x)
    choices, y = xp.asarray(choices.astype(np.int32)), xp.empty(x.shape, x.dtype)
    return kernel("augment", x)(x, choices, *x.shape[1:], y)


def mask(rng, x, keep, scale):
    """A mask for layers.Dropout: `scale` with probability `keep`, else 0. Element i is number i of SplitMix64.

    Steele, Lea and Flood 2014. The generator gives the start, so that a run can be repeated.
    """
    drawn = array_module(x).empty(x.shape, x.dtype)
    return kernel("mask", drawn)(np.uint64(rng.integers(2**63)), keep, scale, drawn)


def maxout(z, pieces):
    """(y, cache) of layers.Maxout."""
    xp, shape = array_module(z), (*z.shape[:-1], z.shape[-1] // pieces)
    y, winner = xp.empty(shape, z.dtype), xp.empty(shape, np.uint16)
    kernel("maxout", z)(z, shape[-1], pieces, y, winner)
    return y, winner


def maxout_backward(dy, winner, pieces):
    """dx of layers.Maxout."""
    k = dy.shape[-1]
    dz = array_module(dy).empty((*dy.shape[:-1], pieces * k), dy.dtype)
    return kernel("maxout_backward", dz)(dy, winner, k, pieces, dz)


def pool(x, p, q, size, stride):
    """(y, cache) of layers.MaxPool2d with P x Q windows."""
    xp, (n, h, w, c) = array_module(x), x.shape
    y, winner = xp.empty((n, p, q, c), x.dtype), xp.empty((n, p, q, c), np.int32)
    kernel("pool", x)(x, h, w, c, p, q, size, stride, y, winner)
    return y, (x.shape, winner)


def pool_backward(dy, cache, size, stride):
    """dx of layers.MaxPool2d."""
    (n, h, w, c), winner = cache
    dx = array_module(dy).empty((n, h, w, c), dy.dtype)
    return kernel("pool_backward", dx)(dy, winner, h, w, c, *dy.shape[1:3], size, stride, dx)


def max_norm(w, limit):
    """optimizers.max_norm"""
    squares = (w * w).sum(axis=tuple(range(w.ndim - 1)))
    kernel("max_norm", w)(squares, limit, w)


def rmsprop(w, m, g, lr, decay, floor):
    """A step of optimizers.RMSProp."""
    kernel("rmsprop", w)(g, lr, decay, 1 - decay, floor, w, m)


def sgd(w, v, g, lr, momentum):
    """A step of optimizers.SGD."""
    kernel("sgd", w)(g, lr, momentum, w, v)
