"""The command line of minifit. `python run.py` lists the commands; `python -m minifit` is the same."""

import os
import resource
import signal
import sys

LEAST = 512  # MiB of memory: with less, OpenBLAS may wait for ever while SciPy is imported

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:

    def stop(*_):
        """What Ctrl-C does during the imports, which take a second; later, the command line's own handler answers."""
        os.write(1, b"\nstopped; nothing had begun\n")
        os._exit(130)

    signal.signal(signal.SIGINT, stop)

if __name__ == "__main__" and 0 <= resource.getrlimit(resource.RLIMIT_AS)[0] < LEAST * 2**20:
    sys.exit(f"run.py: memory is limited to less than {LEAST} MiB, which minifit needs to begin (ulimit -v)")

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # minifit computes in processes; OpenBLAS's threads only take memory

try:
    from minifit.lab import cli
except (ImportError, MemoryError, OSError) as error:  # a library is missing, or finds no memory
    if __name__ != "__main__":
        raise
    said = [line for line in str(error).splitlines() if line.strip()] or ["memory ran out"]
    missing = "; pip install -e . installs what is needed" * isinstance(error, ImportError)
    sys.exit(f"run.py: cannot start: {said[-1].strip()}{missing}")


def main(arguments):
    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
