"""Runs several commands as processes, some at the same time or one per rank; one Ctrl-C stops all."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from queue import Queue
from threading import Lock

PARENT = "MINIFIT_PARENT"  # the variable that tells a job's process with whose end it ends
PATIENCE = 30  # seconds that a process may take to end after Ctrl-C


@dataclass(frozen=True)
class Job:
    """A name that is printed before each line, and commands that run one after another."""

    name: str
    commands: list
    after: str | None = None  # the name of a job before it in the list, which ends before this one begins


def alone(environment):
    """Returns the environment without the variables that tell a process that mpiexec has started it."""
    return {name: value for name, value in environment.items() if not name.startswith(("PMI", "OMPI_", "PRTE_"))}


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
                text=True,
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
                for line in process.stdout:
                    if line.strip() and not stopping:
                        with lock:
                            tell(f"{job.name} | {line.rstrip()}")
            status = process.wait()
            live.discard(process)
            last = status or last
        return last

    places, futures = Queue(), {}
    for place in (*[follow] * max(1, min(at_once, len(jobs))), *elsewhere):
        places.put(place)

    def perform(job):
        if job.after in futures:
            wait([futures[job.after]])
        place = places.get()
        try:
            return place(job, stopping)
        finally:
            places.put(place)

    with ThreadPoolExecutor(places.qsize()) as pool:
        for job in jobs:
            futures[job.name] = pool.submit(perform, job)
        try:
            wait(futures.values())
        except KeyboardInterrupt:
            with lock:
                stopping.append(True)
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
    return {name: future.result() for name, future in futures.items()}
