"""Figures over seeds: mean and sample standard deviation, and the paired differences of two methods."""

from math import sqrt

import numpy as np
from scipy import stats

CONFIDENCE = 0.95  # of the intervals
ROUNDING = 1e-12  # of the figures: a spread of their differences that is no larger is none


def spread(values):
    """{n, mean, sd} of some figures; sd is the sample's, divided by n - 1, and None of fewer than two."""
    n = len(values)
    return {
        "n": n,
        "mean": float(np.mean(values)) if n else None,
        "sd": float(np.std(values, ddof=1)) if n > 1 else None,
    }


def paired(one, other):
    """What `one` has more than `other`, a pair a seed: {n, mean, sd, low, high, p}.

    low, high: the 95 % interval of the mean difference by Student's t with n - 1 degrees of freedom
    p: of the two-sided paired t-test
    Of one pair all but n and mean are None; of equal differences, which show no spread to tell from, low, high and p.
    """
    differences = np.subtract(one, other)
    found = spread(differences) | dict.fromkeys(("low", "high", "p"))
    n, mean, sd = found["n"], found["mean"], found["sd"]
    if n > 1 and sd > ROUNDING * np.abs([one, other]).max():
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * sd / sqrt(n)
        p = float(2 * stats.t.sf(abs(mean) * sqrt(n) / sd, n - 1))
        found |= {"low": mean - half, "high": mean + half, "p": p}
    return found


def side(difference):
    """ "lower" or "higher" where all of a paired difference's interval is; else "undecided"."""
    if difference["low"] is not None and difference["high"] < 0:
        return "lower"
    return "higher" if difference["low"] is not None and difference["low"] > 0 else "undecided"


def order(*differences):
    """What paired differences say of an order in which each should be lower: "shown", "refuted" or "undecided"."""
    sides = set(map(side, differences))
    return "shown" if sides == {"lower"} else "refuted" if "higher" in sides else "undecided"
