"""Checks that backward is the derivative of forward, by three oracles that only call forward, and one comparison.

The check takes a map, f(arrays) -> (y, pull), with arrays = {name: array} and pull(dy) = {name: gradient}. A loss is a
map whose y is one number. For each array a and a direction v, backward claims that <dy, y> changes at the rate <da, v>.
An oracle measures dy/dt along a + t v instead:

    differences    (f(-2h) - 8 f(-h) + 8 f(h) - f(2h)) / 12h with h = 1e-4, to 1e-8: for every map
    complex step   Im f(a + i h v) / h with h = 1e-30: nothing is subtracted, so to 1e-13
    adjoint        f(a + v) - f(a), to 1e-13: for maps affine in each array, where it says <dy, A v> = <A'dy, v>

Both numbers are sums. Tolerances are relative to the magnitudes in the sum, so that cancellation cannot help. Each
tolerance has an absolute floor for gradients that are nearly 0: 1e-10 for differences, 1e-14 for the other two.

The complex step needs a map that is analytic around a, piece by piece. Maxout, max-pooling and ReLU are, because NumPy
orders complex numbers by their real parts first. The complex step decides nothing where real parts tie
(tests/paper/test_kinks.py tests ties), nor on a device, whose library promises no such order. Differences work
everywhere, except where the winner of a maximum changes within 2h. There the answers at h and h/2 differ.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isfinite

import numpy as np

from minifit.backend import array_module

STEP = 1e-4
IMAGINARY_STEP = 1e-30


class GradientError(AssertionError):
    """Backward is not the derivative of forward."""


class KinkCrossed(Exception):
    """The oracle disagrees with itself: the winner of a maximum changes within the step. The draw decides nothing."""


@dataclass(frozen=True)
class Comparison:
    """The rate d<dy, y>/dt along one direction in one array, as backward claims it and as an oracle measures it."""

    name: str
    oracle: str
    claimed: float
    measured: float
    scale: float
    tolerance: float

    @property
    def error(self):
        """The error relative to the scale, which includes the absolute floor; infinite for a NaN."""
        error = abs(self.claimed - self.measured) / self.scale
        return error if isfinite(error) else inf

    @property
    def ratio(self):
        return self.error / self.tolerance

    def __str__(self):
        return (
            f"d{self.name}: backward says {self.claimed!r}, {self.oracle} {self.measured!r}; "
            f"relative error {self.error:.1e}, tolerance {self.tolerance:.0e}"
        )


def check(f, arrays, rng, affine=False, coordinates=0):
    """Returns all comparisons, or raises GradientError for the first that fails."""
    made = []
    for comparison in comparisons(f, arrays, rng, affine, coordinates):
        if not comparison.ratio <= 1:
            raise GradientError(str(comparison))
        made.append(comparison)
    return made


def comparisons(f, arrays, rng, affine=False, coordinates=0):
    """Yields a Comparison by every oracle that applies, for every array.

    rng draws dy and one direction per array. An array of at most `coordinates` elements is also compared along each of
    its coordinates, by the oracles to 1e-13 that apply, else by differences. Raises KinkCrossed if differences decide
    nothing, GradientError if gradients are missing or have another shape.
    """
    xp = array_module(*arrays.values())
    y, pull = f(arrays)
    dy = xp.asarray(direction(y.shape, rng), dtype=y.dtype)
    grads = pull(dy)
    shapes, wanted = ({name: a.shape for name, a in group.items()} for group in (grads, arrays))
    if shapes != wanted:
        raise GradientError(f"backward returns gradients of shapes {shapes}; wanted {wanted}")
    oracles = [differences, *([complex_step] if xp is np else []), *([adjoint] if affine else [])]
    for name, a in arrays.items():
        ways = [(direction(a.shape, rng), oracles)]
        if a.size <= coordinates:
            ways += [(v, oracles[1:] or oracles) for v in np.eye(a.size).reshape(-1, *a.shape)]
        for v, asked in ways:
            v = xp.asarray(v)
            claimed, magnitude = float((grads[name] * v).sum()), float(abs(grads[name] * v).sum())
            for oracle in asked:
                yield oracle(Along(f, arrays, name, v), dy, claimed, magnitude)


@dataclass(frozen=True)
class Along:
    """t -> y at arrays[name] + t v. For a complex t every array is complex: layers are promised one type."""

    f: Callable
    arrays: dict
    name: str
    v: object

    def __call__(self, t):
        arrays = {name: a + 0 * t for name, a in self.arrays.items()}
        return self.f(arrays | {self.name: self.arrays[self.name] + t * self.v})[0]


def differences(y, dy, claimed, magnitude):
    """Compares by five-point differences. Answers at h and h/2 that differ mean a kink. A NaN fails before that."""
    half, one, two = (y(t) - y(-t) for t in (STEP / 2, STEP, 2 * STEP))
    rate, again = (8 * one - two) / (12 * STEP), (8 * half - one) / (6 * STEP)
    made = _comparison("differences", y, dy, rate, claimed, magnitude, rtol=1e-8, atol=1e-10)
    apart = float(abs(dy * (rate - again)).sum())
    if made.error < inf and apart > made.tolerance * made.scale:
        raise KinkCrossed(f"d{y.name}: differences at h and h/2 are {apart:.1e} apart where backward says {claimed!r}")
    return made


def complex_step(y, dy, claimed, magnitude):
    rate = y(IMAGINARY_STEP * 1j).imag / IMAGINARY_STEP
    return _comparison("complex step", y, dy, rate, claimed, magnitude, rtol=1e-13, atol=1e-14)


def adjoint(y, dy, claimed, magnitude):
    return _comparison("adjoint", y, dy, y(1) - y(0), claimed, magnitude, rtol=1e-13, atol=1e-14)


def direction(shape, rng):
    """Draws signs, and magnitudes in [0.5, 1.5], so that every element of a gradient counts."""
    return rng.uniform(0.5, 1.5, shape) * rng.choice([-1.0, 1.0], shape)


def _comparison(oracle, y, dy, rate, claimed, magnitude, rtol, atol):
    # The larger magnitude of both sides: a gradient that lacks a part must not make its own error look like a kink.
    measured, summed = float((dy * rate).sum()), float(abs(dy * rate).sum())
    return Comparison(y.name, oracle, claimed, measured, max(magnitude, summed) + atol / rtol, rtol)
