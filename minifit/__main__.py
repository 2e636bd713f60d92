"""`python -m minifit` is `python run.py`, from any folder."""

import sys

from minifit.lab import cli

if __name__ == "__main__":
    sys.exit(cli.main(sys.argv[1:]))
