"""Kills runs at random moments and demands the files of a run that nobody killed.

    python tests/lab/kill.py 200               200 kills of one process, over the stages of all methods
    python tests/lab/kill.py 200 fitnet nin    the same, over the stages of these methods
    python tests/lab/kill.py 100 --ranks       100 kills of one of two ranks, which mpiexec starts

A run is killed up to once in each of its epochs, a random moment after the epoch before was logged, and started again
until it ends. Then its files of stages must be the same, byte for byte, and its records the same apart from times. The
networks are small.
"""

import collections
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import faults  # noqa: E402
from test_ranks import MPIEXEC  # noqa: E402

from minifit import UserError, baselines, experiments  # noqa: E402
from minifit.lab import cli, train  # noqa: E402

LONGEST = 100  # seconds that a run may take
OF_THE_DAY = {"seconds", "commit"}


def methods():
    """Returns the names of the methods that the small networks suit."""
    found = []
    with faults.small():
        asked = train.parse("digits", [])
        for method in baselines.METHODS:
            with contextlib.suppress(UserError):
                train.goals_of(experiments.EXPERIMENTS["digits"], asked, [method])
                found.append(method.name)
    return found


def forked(folder, words):
    """Starts a command in a fork of this process, which has imported everything; returns its id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.chdir(folder)
        silent = os.open(os.devnull, os.O_RDWR)
        os.dup2(silent, 1)
        os.dup2(os.open("said", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        with faults.small():
            status = cli.main(words)
    finally:
        sys.stderr.flush()
        os._exit(status)


def logged(folder):
    """Returns how many epochs a run has logged."""
    log = folder / "runs/digits/seed0/metrics.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def moment(folder, lines, seconds):
    """Waits until a run has logged this many epochs, and for some seconds more; yields while it waits."""
    while logged(folder) < lines:
        yield
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        yield


def ended(poll, waiting):
    """Returns the exit status of a process; None if it is still at work at the end of `waiting`."""
    began = time.monotonic()
    for _ in waiting:
        if (status := poll()) is not None:
            return status
        if time.monotonic() > began + LONGEST:
            return None
        time.sleep(0.002)
    return None


def one_process(folder, words, waiting):
    """Runs a command, and kills it at the end of `waiting`; returns its status, None where it was killed."""
    child = forked(folder, words)

    def poll():
        done, status = os.waitpid(child, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if done else None

    status = ended(poll, waiting)
    if status is None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return status


def two_ranks(folder, words, waiting):
    """As `one_process`, with mpiexec; one rank is killed."""
    command = [MPIEXEC, "-n", "2", sys.executable, str(ROOT / "tests/lab/ranks.py"), *words]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with open(folder / "said", "a") as said:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=said)
        status = ended(process.poll, waiting)
        if status is None:
            ranks = ranks_of(process.pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(random.choice(ranks) if ranks else process.pid, signal.SIGKILL)
            process.wait(LONGEST)
    return status


def ranks_of(pid):
    """Returns the ranks that a launcher has begun, itself or by others; not the watcher that a rank begins."""
    found = []
    with contextlib.suppress(OSError):
        for begun in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in begun.read_text().split():
                is_rank = b"ranks.py" in Path(f"/proc/{child}/cmdline").read_bytes()
                found += [int(child)] if is_rank else ranks_of(child)
    return found


def left(folder):
    """Returns what a run has left: the bytes of its weights, its records without times, and the names of all files."""
    run = folder / "runs/digits/seed0"
    found = {path.name: path.read_bytes() for path in run.glob("*.h5")}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((run / "summary.json").read_text())
    found["metrics"] = [without(line) for line in lines]
    found["summary"] = {name: without(stage) for name, stage in summary["stages"].items()}
    found["names"] = sorted(path.name for path in run.iterdir() if path.suffix != ".png")
    return found


def seconds(folder):
    """Returns how long each epoch of a run took."""
    log = (folder / "runs/digits/seed0/metrics.jsonl").read_text()
    return [json.loads(line)["seconds"] for line in log.splitlines()]


def without(record):
    return {name: value for name, value in record.items() if name not in OF_THE_DAY}


def at(folder):
    """Returns the stage in which a run is, by its last line."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return json.loads((folder / "runs/digits/seed0/metrics.jsonl").read_text().splitlines()[-1])["stage"]
    return "the start"


def main(words):
    wanted, start = int(words[0]), two_ranks if "--ranks" in words else one_process
    named = [word for word in words[1:] if word != "--ranks"]
    command = ["digits", "--runs", "runs", "--method", *(named or methods())]
    command += [] if start is two_ranks else ["--workers", "2"]
    seed = random.randrange(2**32)
    rng, kills, runs, places = random.Random(seed), 0, 0, collections.Counter()
    print(f"random.Random({seed}): {' '.join(command)}", flush=True)
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "whole"
        whole.mkdir()
        began = time.time()
        status = start(whole, command, moment(whole, 0, LONGEST))
        if status != 0:
            sys.exit(f"the run that nobody kills ended with {status}: {(whole / 'said').read_text()}")
        took, right = time.time() - began, left(whole)
        planned = (whole / "runs/digits/seed0/config.json").stat().st_mtime - began
        stages = [line["stage"] for line in right["metrics"]]
        first, *others = seconds(whole)
        times = [planned + first, *others, 0.1]  # until the next epoch is logged
        print(f"a run takes {took:.0f} s and leaves {len(stages)} epochs", flush=True)
        while kills < wanted:
            folder, runs = Path(place) / str(runs), runs + 1
            folder.mkdir()
            for lines in sorted(rng.sample(range(len(stages) + 1), min(len(stages) + 1, wanted - kills))):
                if lines and logged(folder) >= lines:
                    continue  # the kill before came later than planned
                status = start(folder, command, moment(folder, lines, rng.uniform(0, times[lines])))
                if status is not None:
                    break
                kills += 1
                places[at(folder)] += 1
                print(f"{kills}: killed in {at(folder)}", flush=True)
            else:
                status = start(folder, command, moment(folder, 0, LONGEST))
            if status != 0:
                sys.exit(f"after {kills} kills it ended with {status}: {(folder / 'said').read_text()}")
            found = left(folder)
            wrong = [name for name in right | found if right.get(name) != found.get(name)]
            if wrong:
                sys.exit(f"after {kills} kills these differ: {', '.join(wrong)}")
    missed = [name for name in dict.fromkeys(stages) if name not in places]
    print(f"{len(places.keys() & {*stages})} stages of {len({*stages})} met; not met: {', '.join(missed) or 'none'}")
    print(f"{kills} kills of {runs} runs, in {', '.join(f'{n} of {name}' for name, n in places.items())}: same files")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["200"]))
