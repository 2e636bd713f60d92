"""Linear transforms of the rows of an array, and their adjoints: by one matrix, or a Fourier transform in two steps."""

from dataclasses import dataclass

import numpy as np

from minifit.patches import slices

SPLIT = 2  # cost of a multiplication in a spectrum's two steps, of small matrices, beside one of a large matrix


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
        return sum(self.m[part].T @ rows(part) for part in slices(0, len(self.m), most))


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
        y, z = self._between(x), empty_rows(len(self), x.shape[1], x.dtype)
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
            for part in slices(0, columns, max(1, most // f)):
                z = rows(slice(start + part.start * f, start + part.stop * f))
                y = self._between(z) if y is None else y
                first = part.start * h if matrix is self.real else (reals + 2 * part.start) * h
                at = y[first : first + (part.stop - part.start) * size].reshape(-1, size, z.shape[1])
                np.matmul(matrix.T, z.reshape(len(at), f, -1), out=at)
            start += columns * f
        return self._rows_adjoint(y)

    def _between(self, x):
        """Room for the maps between the two steps, (L2 H, n)."""
        return empty_rows(len(self.along) * self.real.shape[1], x.shape[1], x.dtype)

    def _columns(self, y, z):
        """Pairs the columns of y (L2 H, n) with their frequencies in z: (matrix, (columns, L, n), (columns, M, n))."""
        n, first, real = z.shape[1], self._reals * self.real.shape[1], self._reals * len(self.real)
        for matrix, at, below in ((self.real, y[:first], z[:real]), (self.paired, y[first:], z[real:])):
            if len(at):
                yield matrix, at.reshape(-1, matrix.shape[1], n), below.reshape(-1, len(matrix), n)

    def _rows_adjoint(self, y):
        (l2, wide), h, n = self.along.shape, self.real.shape[1], y.shape[1]
        x = empty_rows(h * wide, n, y.dtype)
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


def empty_rows(count, length, dtype):
    """Returns an empty (count, length) array with gaps between its rows.

    Rows that start at multiples of a power of two share a few lines of the cache, which halves the speed of a product.
    """
    return np.empty((count, length + 16), dtype)[:, :length]


def _product(matrix, rows):
    return np.matmul(matrix, rows, out=empty_rows(len(matrix), rows.shape[1], rows.dtype))
