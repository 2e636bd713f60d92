"""How many examples Hypothesis draws: HYPOTHESIS_PROFILE=long looks further than the ordinary suite.

The ordinary profile is derandomised: what turns a test red is then a change of the code and never the day's luck, and a
failure is the same on every machine. The long one draws anew each time, and prints how to repeat what it finds.
"""

import os

from hypothesis import HealthCheck, settings

slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("ordinary", max_examples=5, derandomize=True, deadline=None, suppress_health_check=slow)
settings.register_profile("long", max_examples=100, deadline=None, suppress_health_check=slow, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ordinary"))
