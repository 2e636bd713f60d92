"""Runs several commands as processes, some at the same time or one per rank; one Ctrl-C stops all."""

import locale
import os
import re
import select
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock, Thread

PARENT = "MINIFIT_PARENT"  # the variable that tells a job's process with whose end it ends
PATIENCE = 30  # seconds that a process may take to end after Ctrl-C, and its output to end after the process
LOOK = 1  # seconds between two looks at a process that prints nothing


@dataclass(frozen=True)
class Job:
    """A name that is printed before each line, and commands that run one after another."""

    name: str
    commands: list
    after: str | None = None  # the name of a job before it in the list, which ends before this one begins


def alone(environment):
    """Returns the environment without the variables that tell a process that mpiexec has started it."""
    return {name: value for name, value in environment.items() if not name.startswith(("PMI", "OMPI_", "PRTE_"))}


def lines(process):
    """What a process prints. After its end, what it has begun may print, or hold the pipe, for PATIENCE seconds."""
    last, limit, encoding = b"", None, locale.getpreferredencoding(False)
    while limit is None or time.monotonic() < limit:
        if limit is None and process.poll() is not None:
            limit = time.monotonic() + PATIENCE
        if select.select([process.stdout], [], [], LOOK)[0]:
            if not (more := os.read(process.stdout.fileno(), 1 << 16)):
                break
            *whole, last = re.split(rb"[\r\n]", last + more)
            yield from (line.decode(encoding, "backslashreplace") for line in whole)
    yield last.decode(encoding, "backslashreplace")


def run_jobs(jobs, at_once, tell, elsewhere=()):
    """Runs the jobs, passes on their output, and returns {name: exit status}.

    A failing command stops nothing. A job's status is that of its last failing command; 1 if it cannot be started. The
    processes have sessions of their own, so Ctrl-C reaches them once, from here. If this process dies, they end too:
    at once on Linux, at their next printed line on other systems.

    elsewhere: places at other ranks, each for one job at a time: functions (job, stopping) -> exit status
    """
    lock, live, stopping = Lock(), set(), []

    def begin(command):
        with lock:
            if stopping:
                return None
            process = subprocess.Popen(
                [sys.executable, *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=alone(os.environ) | {PARENT: str(os.getpid())},
            )
            live.add(process)
            return process

    def follow(job, stopping):
        last = 0
        for command in job.commands:
            try:
                process = begin(command)
            except OSError as error:  # the system refuses one more process
                last = 1
                with lock:
                    tell(f"{job.name} | cannot be started: {error.strerror or error}")
                continue
            if process is None:
                return 128 + signal.SIGINT
            with process.stdout:
                for line in lines(process):
                    with lock:
                        if line.strip() and not stopping:
                            tell(f"{job.name} | {line.rstrip()}")
            status = process.wait()
            live.discard(process)
            last = status or last
        return last

    left, ended = iter(jobs), {job.name: Future() for job in jobs}

    def work(place):
        while True:
            with lock:
                job = next(left, None)
            if job is None:
                return
            if job.after in ended:
                wait([ended[job.after]])
            try:
                ended[job.name].set_result(place(job, stopping))
            except BaseException as error:
                ended[job.name].set_exception(error)

    try:
        for place in (*[follow] * max(1, min(at_once, len(jobs))), *elsewhere):
            Thread(target=work, args=(place,), daemon=True).start()  # the end of Python does not wait for it
        wait(ended.values())
    except BaseException:
        held = lock.acquire(timeout=PATIENCE)  # where nobody reads what is printed, a thread never gives it back
        stopping.append(True)
        if held:
            lock.release()
        processes = list(live)
        for process in processes:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + PATIENCE
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0, deadline - time.monotonic()))
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with its workers, one of which may be stopped
        raise
    return {name: future.result() for name, future in ended.items()}
