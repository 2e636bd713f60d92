"""`python -m minifit` is `python run.py`, from any folder."""

import os
import sys

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as in run.py

from minifit.lab import cli

if __name__ == "__main__":
    sys.exit(cli.main(sys.argv[1:]))
