"""The command line: each command is a function, every setting is an option, every error is one line."""

import errno
import os
import shlex
import shutil
import signal
import sys
import textwrap
import traceback
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from minifit import UserError, experiments
from minifit.backend import BACKENDS, use
from minifit.lab import commands as on_files
from minifit.lab import parallel, publish, report, tables, train
from minifit.lab.files import versions
from minifit.lab.jobs import PARENT
from minifit.lab.options import HELP, WIDTH, nearest, read, show_help
from minifit.lab.parallel import WorkerLost
from minifit.lab.training import TrainingError
from minifit.settings import at_least, one_of, setting

ABOUT = """minifit trains the FitNets of Romero et al. (ICLR 2015), compares methods,
and audits every gradient.

python run.py digits                   all stages on digits drawn by minifit
python run.py mnist --stage hint       stage 1 of Algorithm 1, and its teacher
python run.py mnist --preset paper     the paper's settings
python run.py cifar10-fitnet1          CIFAR-10; all experiments are listed below
python run.py compare mnist            five seeds compared, in --results DIR
python run.py compare RUN RUN ...      run directories that exist, compared
mpiexec -n 4 python run.py mnist       the same, by four processes: see MPI.md
python run.py results mnist            pages and pictures again, from the records
python run.py tables                   the paper's tables, beside our results
python run.py networks                 the networks' weights and multiplications
python run.py audit                    every gradient against the forward pass
python run.py export FILE.h5 OUT       a trained network as ONNX or safetensors
python run.py predict FILE.h5 PICTURE  the class of a picture
python run.py inspect FILE.onnx        the hints that a teacher of yours can give
python run.py speed cifar10            how much faster FitNets are, measured
python run.py mnist --help             the common settings; --help-all: all
"""
COMPARE = (
    "Compares run directories that exist. python run.py compare EXPERIMENT ... trains what it compares, and has more "
    "options: python run.py compare EXPERIMENT --help."
)


@dataclass(frozen=True, kw_only=True)
class Written:
    """Where a comparison is written."""

    results: Path = setting("use this folder of tables and pictures", default=Path("results"), common=True)
    html: bool = setting("also write the page as report.html", default=False, common=True)


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The options of the audit."""

    row: str | None = setting(
        "check this row, or all rows whose names begin with NAME; auto: all rows", default=None, common=True
    )
    draws: int = setting("draw this many problems for each row", at_least(1), default=15, common=True)
    seed: int = setting("draw other problems", at_least(0), default=0, common=True)
    backend: str = setting(
        "compute with this library: NumPy on the CPU, CuPy on a GPU", one_of(*BACKENDS), default="numpy", common=True
    )


def compare(words):
    """Trains several seeds of several arms and compares them; or compares existing run directories."""
    named = [*takewhile(lambda word: word[:1] != "-", words)]
    if {*named[:1]} & {*experiments.EXPERIMENTS}:
        return train.compare(words[0], words[1:], say)
    asked = read_alone("compare RUN RUN ...", COMPARE, words[len(named) :], Written())
    for folder in named or [""]:
        if not (Path(folder) / "config.json").exists():
            known(folder, experiments.EXPERIMENTS, "an experiment or a run directory")
    command = f"python run.py compare {shlex.join(words)}"
    return publish.compare_runs(named, asked.results, command, asked.html, say)


def results(words):
    """Writes the pages and pictures of a results folder again, without training."""
    name, *rest = words or [""]
    about = "Writes the pages and pictures of a results folder again from its records, without training."
    asked = read_alone("results EXPERIMENT", about, words if {*words} & HELP else rest, Written())
    known(name, experiments.EXPERIMENTS, "an experiment")
    return publish.again(asked.results / name, asked.html, say)


def show_networks(words):
    """Prints the weights and multiplications of the paper's networks beside the published counts."""
    if HELP & {*words}:
        say("python run.py networks: counts the weights and multiplications of the paper's networks")
        return 0
    if words:
        raise UserError(f"networks takes no options, but was given {shlex.join(words)}")
    tables.network_counts(say)
    return 0


def show_tables(words):
    about = "Prints the paper's tables: each row with the published figure and ours, or the command that trains ours."
    tables.tables(read_alone("tables", about, words, Written()).results, say)
    return 0


def audit(words):
    from minifit import audit

    asked = read_alone("audit", "Checks every gradient against the derivative of its forward pass.", words, Audit())
    results = audit.run(asked.draws, asked.seed, asked.row, use(asked.backend))
    say(audit.table(results))
    return 1 if any(result.failure for result in results) else 0


def read_alone(command, about, words, start):
    """Reads the options of a command that has no experiment."""
    if HELP & {*words}:
        show_help(f"run.py {command}", about, start, words, {})
    return read(words, start)


def main(words):
    """Runs a command and returns its exit status."""
    commands = {"compare": compare, "results": results, "networks": show_networks, "audit": audit}
    commands |= {"tables": show_tables}
    commands |= {name: lambda words, do=do: do(words, say) for name, do in on_files.COMMANDS.items()}
    name, *rest = words or ["--help"]
    try:
        surroundings()
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, parallel.stop)
        if name in HELP:
            listed = textwrap.fill(", ".join(experiments.EXPERIMENTS), WIDTH, break_on_hyphens=False)
            say(f"{ABOUT}\nThe experiments:\n{listed}")
            return 0
        if parallel.several():
            join(words)
        if parallel.ranks.size > 1 and name in commands and name != "compare":
            raise UserError(f"{name}: is the work of one process; start it without mpiexec")
        parallel.ranks.agree(lambda: {"the command": name})
        if name in commands:
            parallel.ranks.agree(lambda: versions() | {"the words": shlex.join(words)})
            return parallel.ranks.lead(lambda: commands[name](rest))
        known(name, [*experiments.EXPERIMENTS, *commands])
        return train.train(name, rest, say)
    except UserError as error:
        line = str(error).replace("\n", "\\n")  # of a word, or of a file's name
        return parallel.ranks.end(f"run.py: {line}", 2, sys.stderr)
    except PermissionError as error:
        return parallel.ranks.end(f"run.py: {refused(error)}", 2, sys.stderr)
    except (TrainingError, WorkerLost) as error:
        return parallel.ranks.end(f"run.py: {error}", 1, sys.stderr)
    except KeyboardInterrupt:
        advice = "to begin again" if name in ("networks", "audit") else "the last finished epoch is kept. To go on"
        again = f"{parallel.ranks.launcher}python run.py {shlex.join(words)}"
        return parallel.ranks.end(f"\nstopped; {advice}: {again}", 130, sys.stdout)
    except BrokenPipeError:  # as in `run.py networks | head`
        silence()
        return parallel.ranks.end("", 1, sys.stdout)
    except (MemoryError, OSError, ImportError) as error:
        silence()
        return parallel.ranks.end(f"run.py: {refused(error)}", 1, sys.stderr)
    except Exception:
        if parallel.ranks.size == 1:
            raise
        return parallel.ranks.end(traceback.format_exc(), 1, sys.stderr)


def surroundings():
    """Makes a command independent of where it was started: of closed streams, of their encoding, of a notebook."""
    parallel.stopping.clear()
    if parent := os.environ.pop(PARENT, None):
        parallel.end_with(int(parent))
    os.environ.pop("MPLBACKEND", None)  # pictures are drawn to files
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file to be opened would take its place, and be printed into
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", errors="backslashreplace"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def silence():
    """Throws away what standard output did not take, or Python would try again at its end."""
    with suppress(OSError, ValueError):  # not a file
        sys.stdout.flush()
        return
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def refused(error):
    """Says in one line what the system refused."""
    if isinstance(error, MemoryError):
        return f"memory ran out ({' '.join(str(error).split()) or 'the system refuses more'})"
    if isinstance(error, ImportError):  # of a library that is loaded when it is needed
        return f"a library cannot be loaded ({' '.join(str(error).split())})"
    where = f"{error.filename}: " if error.filename else ""
    more = ": the system refuses one more process or more memory" if error.errno in (errno.EAGAIN, errno.ENOMEM) else ""
    return f"{where}{error.strerror or ' '.join(str(error).split())}{more}"


def join(words):
    """Makes this process one of those that mpiexec has started."""
    names = "PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK"
    first = "0" in (os.environ.get(name) for name in names)
    try:
        from minifit.lab import ranks
    except (ImportError, RuntimeError) as error:
        if not first:  # all would say the same
            sys.exit(2)
        raise UserError(
            f"mpiexec has started several processes, which need mpi4py and its MPI ({error}): pip install mpi4py "
            "mpich; on a cluster, pip install --no-binary mpi4py mpi4py, with the cluster's MPI loaded"
        ) from None
    ranks.join(shlex.join(words))


def known(name, names, what="an experiment or a command"):
    """Raises UserError for a name that is not among `names`."""
    if name not in names:
        message = f"{name!r} is not {what}" if name else f"wanted {what}"
        raise UserError(message + nearest(name, names, f": choose {', '.join(names)}"))


def say(text):
    """Prints a text; in a terminal, its lines break between words."""
    try:
        print(report.fitted(text, shutil.get_terminal_size().columns) if sys.stdout.isatty() else text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from None
