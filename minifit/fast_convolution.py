"""Faster methods with the same results: stacked rows for few channels, Winograd's and Fourier's filtering for more.

`convolution` describes a method and chooses one. Winograd's and Fourier's filtering need fewer multiplications than the
definition. Each is three linear transforms, made here, and both are applied in one way, whose backward pass is its
exact transpose.
"""

from dataclasses import dataclass, field
from weakref import ref

import numpy as np

from minifit.patches import images_innermost, largest

SMALL = 10**6  # OpenBLAS on AVX-512 multiplies without packing the matrices first, up to this many multiplications
STACK = 2**18  # most numbers in the stacked rows, or in their outputs, at a time
TRANSFORMED = 2**18  # most numbers in the transforms of a block of images ...
ROWS = 128  # ... or more, so that matrix products have at least this many rows
SPLIT = 2  # cost of a multiplication in a spectrum's two steps, of small matrices, beside one of a large matrix
BLOCK = 2**22  # most numbers in the transformed gradient of the filters at a time; limits the memory


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
        # dx correlates dy, fully padded, with the filters turned by half a circle.
        r, s, _, _ = w.shape
        turned = w[::-1, ::-1].transpose(0, 1, 3, 2)
        dx = _correlate(images_innermost(dy), turned, r - 1 - self.pad, s - 1 - self.pad)
        return _images_outermost(dx), self.weight_gradient(dy, cache, w)

    def weight_gradient(self, dy, cache, w):
        # With x as (H, C, W, N), the R C rows that a row of outputs meets under one column of the kernel lie one after
        # another, each a run of pixels and images. dy has the same pixels and images below one another.
        (r, s, c, k), (h, wide, _, n) = w.shape, cache.shape
        x, dy = np.ascontiguousarray(cache.transpose(0, 2, 1, 3)), np.ascontiguousarray(dy.transpose(1, 2, 0, 3))
        dw, rows = np.zeros((s, r * c, k), dy.dtype), list(_spans(h, r, self.pad))
        step_w, step_c, step_h = (x.itemsize * n * count for count in (1, wide, wide * c))
        for tap in range(s):
            first, last = max(0, self.pad - tap), min(dy.shape[1], wide + self.pad - tap)
            for pixels in _equal(first, last, max(1, SMALL // (r * c * n * k))):
                length = (pixels.stop - pixels.start) * n
                for taps, outputs in rows:
                    shape = outputs.stop - outputs.start, (taps.stop - taps.start) * c, length
                    offset = (outputs.start - self.pad + taps.start) * step_h + (pixels.start - self.pad + tap) * step_w
                    x_rows = np.ndarray(shape, x.dtype, x, offset, (step_h, step_c, x.itemsize))
                    products = x_rows @ dy[outputs, pixels].reshape(shape[0], length, k)  # (R C, Q' N) (Q' N, K)
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


@dataclass(frozen=True, eq=False)
class Matrix:
    """A transform of the rows of an array by one matrix, y = m x, and its adjoint.   m (M, L)   x (L, n)   y (M, n)

    ones: the last column of m is for the bias, and the adjoint leaves it out
    """

    m: np.ndarray
    ones: bool = False

    def __len__(self):
        return len(self.m)

    @property
    def cost(self):
        """Multiplications for one column of x, without the bias."""
        return len(self.m) * (self.m.shape[1] - self.ones)

    def __call__(self, x):
        return _product(self.m, x)

    def adjoint(self, y):
        return _product((self.m[:, :-1] if self.ones else self.m).T, y)

    def adjoint_by_parts(self, rows, most):
        """The adjoint of y, of which rows(slice) gives at most so many rows at a time."""
        return sum(self.m[part].T @ rows(part) for part in _slices(0, len(self.m), most))


@dataclass(frozen=True, eq=False)
class Spectrum:
    """A discrete Fourier transform of real maps x (H W, n) in two steps, first along their rows, then along columns.

    Of the L2 frequencies along a row one, or two if L2 is even, have real values. The others are conjugate pairs, and
    one of each pair is enough: its real and its imaginary part.
    """

    along: np.ndarray  # (L2, W): the real values, then two parts for each pair
    real: np.ndarray  # (F0, H): what is taken of the transform of a column of real values
    paired: np.ndarray  # (F1, 2 H): the same of complex values, of which the H real parts come first

    def __len__(self):
        return self._reals * len(self.real) + self._pairs * len(self.paired)

    @property
    def _reals(self):
        return 2 - len(self.along) % 2

    @property
    def _pairs(self):
        return (len(self.along) - 1) // 2

    @property
    def cost(self):
        """Multiplications for one column of x, times SPLIT."""
        columns = self._reals * self.real.size + self._pairs * self.paired.size
        return SPLIT * (self.real.shape[1] * self.along.size + columns)

    def __call__(self, x):
        y, z = self._between(x), _rows(len(self), x.shape[1], x.dtype)
        (l2, wide), h = self.along.shape, self.real.shape[1]
        maps, by_row = x.reshape(h, wide, -1), y.reshape(l2, h, -1).transpose(1, 0, 2)
        np.matmul(self.along, maps, out=by_row)  # H times (L2, W) (W, n)
        for matrix, at, below in self._columns(y, z):
            np.matmul(matrix, at, out=below)
        return z

    def adjoint(self, z):
        return self.adjoint_by_parts(lambda part: z[part], len(self))

    def adjoint_by_parts(self, rows, most):
        """The adjoint of z, of which rows(slice) gives the frequencies of one or more columns at a time."""
        y, h, reals, start = None, self.real.shape[1], self._reals, 0
        for matrix, columns in ((self.real, reals), (self.paired, self._pairs)):
            f, size = matrix.shape
            for part in _slices(0, columns, max(1, most // f)):
                z = rows(slice(start + part.start * f, start + part.stop * f))
                y = self._between(z) if y is None else y
                first = part.start * h if matrix is self.real else (reals + 2 * part.start) * h
                at = y[first : first + (part.stop - part.start) * size].reshape(-1, size, z.shape[1])
                np.matmul(matrix.T, z.reshape(len(at), f, -1), out=at)
            start += columns * f
        return self._rows_adjoint(y)

    def _between(self, x):
        """Room for the maps between the two steps, (L2 H, n)."""
        return _rows(len(self.along) * self.real.shape[1], x.shape[1], x.dtype)

    def _columns(self, y, z):
        """Pairs the columns of y (L2 H, n) with their frequencies in z: (matrix, (columns, L, n), (columns, M, n))."""
        n, first, real = z.shape[1], self._reals * self.real.shape[1], self._reals * len(self.real)
        for matrix, at, below in ((self.real, y[:first], z[:real]), (self.paired, y[first:], z[real:])):
            if len(at):
                yield matrix, at.reshape(-1, matrix.shape[1], n), below.reshape(-1, len(matrix), n)

    def _rows_adjoint(self, y):
        (l2, wide), h, n = self.along.shape, self.real.shape[1], y.shape[1]
        x = _rows(h * wide, n, y.dtype)
        np.matmul(self.along.T, y.reshape(l2, h, n).transpose(1, 0, 2), out=x.reshape(h, wide, n))
        return x


@dataclass(frozen=True, eq=False)
class Inverse:
    """The adjoint of a spectrum as a transform. The last row of z is the bias of every pixel.

    A spectrum whose first row is 1 / size everywhere has an adjoint to which size times a number adds that number.
    """

    spectrum: Spectrum
    size: int

    @property
    def cost(self):
        return self.spectrum.cost

    def __call__(self, z):
        z[0] += self.size * z[-1]
        return self.spectrum.adjoint(z[:-1])

    def adjoint(self, y):
        return self.spectrum(y)


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
            dz = self._products(dy[images])
            dv = _rows(*v.shape, dy.dtype)
            np.matmul(dz, u.transpose(0, 2, 1), out=_split(dv, shape[3]))  # F times (T, K) (K, C)
            dx[images] = self._cut_adjoint(self.b.adjoint(dv), dx[images].shape)
            dw += self._filters(dz, v, w)
        return dx, dw

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
        z = _rows(f + 1, v.shape[1] // c * k, v.dtype)
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
        rows = _rows(l1 * l2, n * t1 * t2 * c, x.dtype)
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
        rows = _rows(m1 * m2, n * t1 * t2 * k, dy.dtype)
        tiles = _split(rows, k).reshape(m1, m2, n, t1, t2, k)
        tiles[...] = dy.reshape(n, t1, m1, t2, m2, k).transpose(2, 4, 0, 1, 3, 5)
        return rows


def _rows(count, length, dtype):
    """Returns an empty (count, length) array with gaps between its rows.

    Rows that start at multiples of a power of two share a few lines of the cache, which halves the speed of a product.
    """
    return np.empty((count, length + 16), dtype)[:, :length]


def _split(rows, c):
    """(F, T C) -> (F, T, C), without a copy."""
    return rows.reshape(len(rows), rows.shape[1] // c, c)


def _product(matrix, rows):
    return np.matmul(matrix, rows, out=_rows(len(matrix), rows.shape[1], rows.dtype))


def _slices(start, stop, most):
    """Cuts a range into slices of at most so many."""
    return [slice(i, min(i + most, stop)) for i in range(start, stop, most)]


def _equal(start, stop, most):
    """Cuts a range into the fewest slices of at most so many, all of nearly equal length."""
    if start >= stop:
        return []
    return _slices(start, stop, -(-(stop - start) // -(-(stop - start) // most)))


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
