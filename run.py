"""The command line of minifit. `python run.py` lists the commands; `python -m minifit.lab` is the same."""

import sys

from minifit.lab.__main__ import command_line


def main(arguments):
    from minifit.lab import cli

    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(command_line()(sys.argv[1:]))
