"""The gradient audit: one row for every layer, composite, regressor, loss and method, with the result of its check.

`minifit.problems` has the table of rows and draws their problems. `minifit.gradcheck` checks every problem. A row with
kinks is drawn again if the oracle says that a draw crossed one. A comparison that misses its tolerance is made again
with more digits, so that a rounding error is not taken for a wrong gradient.
"""

import time
from contextlib import suppress
from dataclasses import dataclass
from zlib import crc32

import numpy as np

from minifit import UserError
from minifit.backend import array_module
from minifit.gradcheck import Comparison, GradientError, KinkCrossed, comparisons
from minifit.problems import cases, problems_of

TRIES = 60  # draws of a network before its row fails because every draw crossed a kink
COORDINATES = 8  # arrays with at most this many elements are also compared along every coordinate
KEY = (
    "worst relative error of dx and each parameter by differences|complex step|adjoint, beside their tolerances;\n"
    "relative to magnitude + 1e-2|1e-1|1e-1, so that absolute errors of 1e-10|1e-14|1e-14 pass whatever the magnitude"
)


def compared(problem, affine, rng):
    """Yields the comparisons of a problem. One that misses its tolerance is made again with more digits.

    A gradient can be a difference of nearly equal numbers, such as P - y of a sure network. Its rounding error may then
    exceed 1e-13, as in 2 of the 102,131 comparisons of seeds 0 to 29. NumPy's extended precision has 2000 times smaller
    rounding errors on x86, and a wrong gradient is as wrong there as before.
    """
    state, more = rng.bit_generator.state, {}
    for i, comparison in enumerate(comparisons(problem, problem.arrays, rng, affine, COORDINATES)):
        if not comparison.ratio <= 1 and not more and array_module(*problem.arrays.values()) is np:
            longer = problem.map(lambda a: a.astype(np.longdouble) if a.dtype == np.float64 else a)
            again = np.random.default_rng()
            again.bit_generator.state = state
            with suppress(KinkCrossed):  # the draw will cross it too, later
                more.update(enumerate(comparisons(longer, longer.arrays, again, affine, COORDINATES)))
        yield comparison if comparison.ratio <= 1 else more.get(i, comparison)


def examine(case, integer, rng, xp=np):
    """Returns the comparisons of the first draw without a kink; only the failing ones if any failed before a kink."""
    tries = TRIES if case.kinks else 1
    for _ in range(tries):
        outcomes = []
        try:
            for problem in problems_of(case, integer, rng):
                for comparison in compared(problem.map(xp.asarray), case.affine, rng):
                    outcomes.append(comparison)
            return outcomes
        except KinkCrossed as error:
            crossed = error
        failed = [comparison for comparison in outcomes if not comparison.ratio <= 1]
        if failed:
            return failed
    raise GradientError(f"no draw of {tries} kept clear of kinks: {crossed}")


@dataclass(frozen=True)
class Result:
    """The result of one row's draws: {array: {oracle: its worst Comparison}}, and the first failure."""

    row: str
    draws: int
    seconds: float
    worst: dict[str, dict[str, Comparison]]
    failure: str | None

    @property
    def ratio(self):
        return max((c.ratio for oracles in self.worst.values() for c in oracles.values()), default=0.0)


def run(draws=15, seed=0, only=None, xp=np):
    """Returns one Result per row: all rows, or the row called `only`, or else the rows whose names begin with it.

    Draw i of seed s is draw 0 of seed s + i, whatever the other rows are. A failure names the seed that repeats it.
    """
    if draws < 1:
        raise UserError(f"--draws {draws}: wanted at least 1")
    if seed < 0:
        raise UserError(f"--seed {seed}: wanted 0 or more")
    rows = cases()
    chosen = [case for case in rows if case.name == only] or [case for case in rows if case.name.startswith(only or "")]
    if not chosen:
        raise UserError(f"--row {only}: no such row; the rows are {', '.join(case.name for case in rows)}")
    return [_run(case, draws, seed, xp) for case in chosen]


def _run(case, draws, seed, xp):
    worst, failure, began = {}, None, time.perf_counter()
    for s in range(seed, seed + draws):
        rng = np.random.default_rng([s, crc32(case.name.encode())])
        outcomes = []
        try:
            outcomes = examine(case, lambda low, high, rng=rng: int(rng.integers(low, high, endpoint=True)), rng, xp)
            wrong = [str(c) for c in outcomes if not c.ratio <= 1]
        except Exception as error:  # whatever stops a row is that row's failure, and the next row's turn
            wrong = [f"{type(error).__name__}: {error}"]
        for c in outcomes:
            oracles = worst.setdefault(c.name, {})
            oracles[c.oracle] = max(oracles.get(c.oracle, c), c, key=lambda c: c.error)
        if wrong and not failure:
            device = "" if xp is np else f" --backend {xp.__name__}"
            failure = f"{case.name}: {wrong[0]}\n  again with --row {case.name!r} --seed {s} --draws 1{device}"
    return Result(case.name, draws, time.perf_counter() - began, worst, failure)


def table(results):
    """Formats the results as text: one line per row, the failures, and the worst ratio of error to tolerance."""
    width = max(len(r.row) for r in results)
    lines = [KEY, f"{'row':{width}}  draws  seconds  tolerance"]
    for r in results:
        cells = [f"d{name} {'|'.join(f'{c.error:.0e}' for c in oracles.values())}" for name, oracles in r.worst.items()]
        rows = ["  ".join(cells[i : i + 3]) for i in range(0, len(cells), 3)] or [""]
        tolerances = {oracle: c.tolerance for oracles in r.worst.values() for oracle, c in oracles.items()}
        tolerance = "|".join(f"{t:.0e}".replace("e-0", "e-") for t in tolerances.values())
        start = f"{r.row:{width}}  {r.draws:5}  {r.seconds:7.2f}  {tolerance:16}  "
        lines.append(f"{start}{'FAILED  ' if r.failure else ''}{rows[0]}")
        lines += [" " * len(start) + row for row in rows[1:]]
    failures = [r.failure for r in results if r.failure]
    worst = max(results, key=lambda r: r.ratio)
    passed = f"{len(results) - len(failures)} of {len(results)} rows pass"
    return "\n".join(
        [*lines, *failures, f"{passed}; worst ratio of error to tolerance: {worst.ratio:.2g} ({worst.row})"]
    )
