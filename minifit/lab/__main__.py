"""`python -m minifit.lab` is `python run.py`, from any folder."""

import os
import resource
import signal
import sys

LEAST = 512  # MiB of memory: with less, OpenBLAS may wait for ever while SciPy is imported


def command_line():
    """Imports the command line, which takes a second, and returns its `main`; ends with one line where it cannot."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, stop)  # later, the command line's own handler answers
    if 0 <= resource.getrlimit(resource.RLIMIT_AS)[0] < LEAST * 2**20:
        sys.exit(f"run.py: memory is limited to less than {LEAST} MiB, which minifit needs to begin (ulimit -v)")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # minifit computes in processes, and threads only take memory
    try:
        from minifit.lab import cli
    except (ImportError, MemoryError, OSError) as error:  # a library is missing, or finds no memory
        lines = [line for line in str(error).splitlines() if line.strip()] or ["memory ran out"]
        missing = "; pip install -e . installs what is needed" * isinstance(error, ImportError)
        sys.exit(f"run.py: cannot start: {lines[-1].strip()}{missing}")
    return cli.main


def stop(*_):
    """What Ctrl-C does during the imports."""
    os.write(1, b"\nstopped; nothing had begun\n")
    os._exit(130)


if __name__ == "__main__":
    sys.exit(command_line()(sys.argv[1:]))
