"""The command line of minifit. `python run.py` lists the commands; `python -m minifit` is the same."""

import sys

from minifit.__main__ import command_line


def main(arguments):
    from minifit.lab import cli

    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(command_line()(sys.argv[1:]))
