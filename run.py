"""The command line of minifit. `python run.py` lists the commands; `python -m minifit` is the same."""

import os
import signal
import sys

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:

    def stop(*_):
        """What Ctrl-C does during the imports, which take a second; later, the command line's own handler answers."""
        os.write(1, b"\nstopped; nothing had begun\n")
        os._exit(130)

    signal.signal(signal.SIGINT, stop)

from minifit.lab import cli


def main(arguments):
    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
