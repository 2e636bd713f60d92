"""Faster methods with the same results for many channels: Winograd's and Fourier's filtering.

`convolution` describes a method and chooses one. Both need fewer multiplications than the definition. Each is three
linear transforms, made here, and both are applied in one way, whose backward pass is its exact transpose.
"""

from dataclasses import dataclass, field
from weakref import ref

import numpy as np

from minifit.patches import largest
from minifit.transforms import SPLIT, Inverse, Matrix, Spectrum, empty_rows

TRANSFORMED = 2**18  # most numbers in the transforms of a block of images ...
ROWS = 128  # ... or more, so that matrix products have at least this many rows
BLOCK = 2**22  # most numbers in the transformed gradient of the filters at a time; limits the memory


@dataclass(frozen=True, eq=False)
class Filtered:
    """Minimal filtering. A convolution is bilinear in a tile x of its input and in w, so three matrices can express it,

        y = A ((G w) . (B x)) + b     B (F, L1 L2)   G (F, R S)   A (m1 m2, F)   . element by element

    with F products per tile where the definition takes m1 m2 R S. With channels, each of the F products is a small
    matrix product over C. Every step is linear in x and in w, and the backward pass is the exact transpose.
    """

    a: Matrix | Inverse  # of the products and, in the last row, the bias
    b: Matrix | Spectrum
    g: Matrix | Spectrum
    pad: int
    tile: tuple[int, int]  # L1, L2: inputs a tile reads
    step: tuple[int, int]  # m1, m2: outputs a tile gives
    grid: tuple[int, int]  # tiles of a map
    outputs: tuple[int, int]  # P, Q
    kept: dict = field(default_factory=dict)  # the transforms of read-only filters, while the filters exist

    def multiplications(self, kernel):
        _, _, c, k = kernel
        return self.grid[0] * self.grid[1] * (self.b.cost * c + len(self.b) * c * k + self.a.cost * k)

    def forward(self, x, w, b):
        u, blocks = self._filters_transformed(w), []
        y = np.empty((len(x), *self.outputs, w.shape[3]), x.dtype)
        for images in self._blocks(len(x), max(w.shape[2:])):
            v = self.b(self._cut(x[images]))  # (F, T C), T = N' tiles
            self._join(self._outputs(v, u, b), y[images])
            blocks.append((images, v))
        return y, (x.shape, u, blocks)

    def maxout(self, x, w, b, pieces):
        u = self._filters_transformed(w)
        y = np.empty((len(x), *self.outputs, w.shape[3] // pieces), x.dtype)
        for images in self._blocks(len(x), max(w.shape[2:])):
            z = self._outputs(self.b(self._cut(x[images])), u, b)
            self._join(largest(z, pieces), y[images])
        return y

    def backward(self, dy, cache, w):
        shape, u, blocks = cache
        dx, dw = np.empty(shape, dy.dtype), np.zeros(w.shape, dy.dtype)
        for images, v in blocks:
            dx[images], of_block = self._gradients(dy[images], v, u, w, dx[images].shape)
            dw += of_block
        return dx, dw

    def _gradients(self, dy, v, u, w, shape):
        """backward for a block of images."""
        dz = self._products(dy)
        dw = self._filters(dz, v, w)
        dv = empty_rows(*v.shape, dy.dtype)
        np.matmul(dz, u.transpose(0, 2, 1), out=_split(dv, shape[3]))  # F times (T, K) (K, C)
        del dz  # the transforms are large
        return self._cut_adjoint(self.b.adjoint(dv), shape), dw

    def weight_gradient(self, dy, cache, w):
        return sum(self._filters(self._products(dy[images]), v, w) for images, v in cache[2])

    def _blocks(self, n, channels):
        """Slices n images into blocks whose transforms fit a core's cache."""
        tiles = self.grid[0] * self.grid[1]
        length = max(-(-ROWS // tiles), TRANSFORMED // (len(self.b) * tiles * channels))
        return [slice(i, i + length) for i in range(0, n, length)]

    def _filters_transformed(self, w):
        (r, s, c, k), key = w.shape, id(w)
        if key in self.kept and not w.flags.writeable:
            return self.kept[key][1]
        u = _split(self.g(w.reshape(r * s, c * k)), k)  # (F, C, K)
        if not w.flags.writeable:
            self.kept[key] = ref(w, lambda _: self.kept.pop(key)), u
        return u

    def _outputs(self, v, u, b):
        """v (F, T C), u (F, C, K), b (K,) -> (m1 m2, T, K)"""
        f, c, k = u.shape
        z = empty_rows(f + 1, v.shape[1] // c * k, v.dtype)
        np.matmul(_split(v, c), u, out=_split(z[:f], k))  # F times (T, C) (C, K)
        _split(z[f:], k)[...] = b
        return _split(self.a(z), k)

    def _products(self, dy):
        """The gradient with respect to the F products, (F, T, K)."""
        return _split(self.a.adjoint(self._join_adjoint(dy)), dy.shape[3])

    def _filters(self, dz, v, w):
        c, k = w.shape[2:]

        def du(part):
            products = np.matmul(_split(v[part], c).transpose(0, 2, 1), dz[part])  # F times (C, T) (T, K)
            return products.reshape(len(products), c * k)

        return self.g.adjoint_by_parts(du, max(1, BLOCK // (c * k))).reshape(w.shape)

    def _cut(self, x):
        """x (N, H, W, C) -> (L1 L2, T C): the inputs of every tile."""
        n, h, w, c = x.shape
        (l1, l2), (m1, m2), (t1, t2) = self.tile, self.step, self.grid
        rows = empty_rows(l1 * l2, n * t1 * t2 * c, x.dtype)
        if self.grid == (1, 1) and self.tile == (h, w):  # one tile, which is the map
            tiles = x.transpose(1, 2, 0, 3)
        else:
            whole = np.zeros((n, (t1 - 1) * m1 + l1, (t2 - 1) * m2 + l2, c), x.dtype)
            whole[:, self.pad : self.pad + h, self.pad : self.pad + w] = x
            step_n, step_h, step_w, step_c = whole.strides
            shape, steps = (l1, l2, n, t1, t2, c), (step_h, step_w, step_n, m1 * step_h, m2 * step_w, step_c)
            tiles = np.ndarray(shape, x.dtype, whole, 0, steps)
        _split(rows, c).reshape(l1, l2, *tiles.shape[2:])[...] = tiles
        return rows

    def _cut_adjoint(self, rows, shape):
        n, h, w, c = shape
        (l1, l2), (m1, m2), (t1, t2) = self.tile, self.step, self.grid
        if self.grid == (1, 1) and self.tile == (h, w):
            return np.ascontiguousarray(_split(rows, c).reshape(h, w, n, c).transpose(2, 0, 1, 3))
        tiles = _split(rows, c).reshape(l1, l2, n, t1, t2, c)
        whole = np.empty((n, (t1 - 1) * m1 + l1, (t2 - 1) * m2 + l2, c), rows.dtype)
        whole[:, t1 * m1 :] = whole[:, :, t2 * m2 :] = 0
        for i in range(l1):
            for j in range(l2):
                inputs = whole[:, i : i + (t1 - 1) * m1 + 1 : m1, j : j + (t2 - 1) * m2 + 1 : m2]
                if i < m1 and j < m2:  # the first to reach these inputs
                    inputs[...] = tiles[i, j]
                else:
                    inputs += tiles[i, j]
        return whole[:, self.pad : self.pad + h, self.pad : self.pad + w]

    def _join(self, tiles, y):
        """(m1 m2, T, K) -> y (N, P, Q, K): joins the outputs of the tiles and drops those beyond the border."""
        (m1, m2), (t1, t2), (p, q) = self.step, self.grid, self.outputs
        tiles = tiles.reshape(m1, m2, len(y), t1, t2, -1).transpose(2, 3, 0, 4, 1, 5)
        if (p, q) == (t1 * m1, t2 * m2):
            y.reshape(tiles.shape)[...] = tiles
        else:
            y[...] = np.ascontiguousarray(tiles).reshape(len(y), t1 * m1, t2 * m2, -1)[:, :p, :q]

    def _join_adjoint(self, dy):
        n, p, q, k = dy.shape
        (m1, m2), (t1, t2) = self.step, self.grid
        if (p, q) != (t1 * m1, t2 * m2):
            whole = np.zeros((n, t1 * m1, t2 * m2, k), dy.dtype)
            whole[:, :p, :q] = dy
            dy = whole
        rows = empty_rows(m1 * m2, n * t1 * t2 * k, dy.dtype)
        tiles = _split(rows, k).reshape(m1, m2, n, t1, t2, k)
        tiles[...] = dy.reshape(n, t1, m1, t2, m2, k).transpose(2, 4, 0, 1, 3, 5)
        return rows


def _split(rows, c):
    """(F, T C) -> (F, T, C), without a copy."""
    return rows.reshape(len(rows), rows.shape[1] // c, c)


# Reciprocal pairs keep the powers near 1: half the rounding error of the usual 0, 1, -1, 2, -2.
POINTS = (0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5))


def winograd(size, kernel, pad, dtype, m=4, points=POINTS):
    """F(m x m, R x S) on tiles of the map, by Toom and Cook's matrices.   Lavin and Gray 2016.

    size (H, W), kernel (R, S) with R = S; m + R - 2 points, and infinity.

    Two polynomials are multiplied by evaluating both at n points, multiplying the values and interpolating:
    g h = V_n^-1 (V_r g . V_m h). For a fixed g this is linear in h, and its transpose correlates n inputs with g.
    """
    r = kernel[0]
    n = m + r - 1

    def evaluate(coefficients):
        return np.array([[p**i for i in range(coefficients)] for p in points] + [[0] * (coefficients - 1) + [1]], float)

    matrices = evaluate(m).T, np.linalg.inv(evaluate(n)).T, evaluate(r)
    outputs = tuple(extent + 2 * pad - r + 1 for extent in size)
    grid = tuple(-(-extent // m) for extent in outputs)
    a, b, g = (np.kron(matrix, matrix).astype(dtype) for matrix in matrices)
    a = np.concatenate([a, np.ones((len(a), 1), dtype)], axis=1)
    return Filtered(Matrix(a, ones=True), Matrix(b), Matrix(g), pad, (n, n), (m, m), grid, outputs)


def fourier_products(size, pad):
    """Counts the products of `fourier`, F, without making its matrices."""
    l1, l2 = (extent + pad for extent in size)
    real = (2 - l1 % 2) * (2 - l2 % 2)
    return real + 3 * (l1 * l2 - real) // 2


def fourier_multiplications(size, kernel, pad):
    """Counts the multiplications of `fourier` without making its matrices."""
    (h, w), (r, s, c, k) = size, kernel
    l1, l2 = h + pad, w + pad
    real, pair = 2 - l1 % 2 + 3 * ((l1 - 1) // 2), 3 * l1

    def cost(high, wide):
        return SPLIT * high * (l2 * wide + (2 - l2 % 2) * real + (l2 - 1) // 2 * 2 * pair)

    outputs = h + 2 * pad - r + 1, w + 2 * pad - s + 1
    return cost(h, w) * c + fourier_products(size, pad) * c * k + cost(*outputs) * k


def fourier(size, kernel, pad, dtype):
    """The discrete Fourier transform of the whole map as one tile: for large filters on small maps.

    Correlation is Y = X conj(W) at each frequency, if the transforms are long enough that wrapped values meet zeros.
    One complex product takes three real ones: Y = (k1 - k3) + i (k1 - k2) with k1 = W_r (X_r + X_i),
    k2 = X_r (W_r + W_i), k3 = X_i (W_r - W_i). The input is real, so half of the frequencies suffice.
    """
    outputs = tuple(extent + 2 * pad - taps + 1 for extent, taps in zip(size, kernel, strict=True))
    # Outputs read from -pad to H - 1 + pad. With length H + pad both ends wrap around to zeros, not to the map.
    lengths = tuple(extent + pad for extent in size)

    def spectrum(extents, parts, first=0, shares=(1.0, 1.0)):
        """parts (3, 2): what is taken of a value X_r + i X_i of a pair   shares: factors of real values and of pairs"""
        (turned_r, turned_i), (along_r, along_i) = (
            _waves(length, np.arange(extent) + first) for length, extent in zip(lengths, extents, strict=True)
        )
        single1, single2 = (f for f in ([0, length // 2][: 2 - length % 2] for length in lengths))
        pairs1, pairs2 = (range(1, (length + 1) // 2) for length in lengths)
        along = np.concatenate([along_r[single2], *(np.stack([along_r[f], along_i[f]]) for f in pairs2)])
        parts = np.array(parts, float)

        def taken(of_r, of_i):  # (frequencies, n) -> (3 frequencies, n)
            return np.concatenate([p * of_r + q * of_i for p, q in parts])

        of_real = taken(turned_r[pairs1], turned_i[pairs1])
        real = np.concatenate([shares[0] * turned_r[single1], shares[1] * of_real])
        # (c - i s) (y_r + i y_i): columns for y_r, then for y_i
        of_r, of_i = np.hstack([turned_r, -turned_i]), np.hstack([turned_i, turned_r])
        return Spectrum(along.astype(dtype), real.astype(dtype), (shares[1] * taken(of_r, of_i)).astype(dtype))

    whole = lengths[0] * lengths[1]
    b = spectrum(size, [(1, 1), (1, 0), (0, 1)])
    g = spectrum(kernel[:2], [(1, 0), (1, 1), (1, -1)], first=-pad)
    a = spectrum(outputs, [(1, 1), (0, -1), (-1, 0)], shares=(1 / whole, 2 / whole))
    return Filtered(Inverse(a, whole), b, g, pad, size, outputs, (1, 1), outputs)


def _waves(length, positions):
    """(cos, -sin) of 2 pi f x / length for every frequency f and position x, (length, positions) each."""
    angles = 2 * np.pi * (np.arange(length)[:, None] * positions % length) / length
    return np.cos(angles), -np.sin(angles)
