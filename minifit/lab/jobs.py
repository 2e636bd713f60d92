"""Runs several commands as processes, some of them at the same time; one Ctrl-C stops all."""

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock

PATIENCE = 30  # seconds that a process may take to end after Ctrl-C


@dataclass(frozen=True)
class Job:
    """A name that is printed before each line, and commands that run one after another."""

    name: str
    commands: list


def run_jobs(jobs, at_once, tell):
    """Runs the jobs, passes on their output, and returns {name: exit status}.

    A failing command stops nothing. A job's status is that of its last failing command. The processes have sessions of
    their own, so Ctrl-C reaches them once, from here. If this process dies, they end at their next printed line.
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
            )
            live.add(process)
            return process

    def follow(job):
        last = 0
        for command in job.commands:
            process = begin(command)
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

    with ThreadPoolExecutor(max(1, at_once)) as pool:
        futures = {job.name: pool.submit(follow, job) for job in jobs}
        try:
            wait(futures.values())
        except KeyboardInterrupt:
            with lock:
                stopping.append(True)
            processes = list(live)
            for process in processes:
                with suppress(ProcessLookupError):
                    process.send_signal(signal.SIGINT)
            for process in processes:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(PATIENCE)
                process.kill()
            raise
    return {name: future.result() for name, future in futures.items()}
