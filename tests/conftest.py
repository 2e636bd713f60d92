"""How many examples Hypothesis draws: HYPOTHESIS_PROFILE=long looks further than the ordinary suite, mutants is quick.

The ordinary profile is derandomised: what turns a test red is then a change of the code and never the day's luck, and a
failure is the same on every machine. The long one draws anew each time, and prints how to repeat what it finds.

Processes that share the tests (pytest-xdist) have one BLAS thread each, and so have the commands that they start.
"""

import os
import sys

from hypothesis import HealthCheck, Phase, settings

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when NumPy is imported, which no test has done yet

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # each of the commands that tests start would compile minifit anew

slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("ordinary", max_examples=5, derandomize=True, deadline=None, suppress_health_check=slow)
settings.register_profile("long", max_examples=100, deadline=None, suppress_health_check=slow, print_blob=True)
quick = [Phase.explicit, Phase.generate]  # a mutant is dead at its first example, and nobody reads the smallest
settings.register_profile("mutants", settings.get_profile("ordinary"), phases=quick)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ordinary"))


def pytest_sessionstart(session):
    """mutmut runs sessions in one process and its forks: the second finds what the first has left."""
    from minifit import convolution, layers

    for planned in (convolution._chosen, convolution._planned, convolution._made, convolution._groups, layers._doubled):
        planned.cache_clear()  # planned by the original's code
    sys.setrecursionlimit(4000)  # Hypothesis wraps a test's settings once more for every parameter, in every session
