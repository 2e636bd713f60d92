"""Shares out the work on one minibatch among several processes.

Processes, not threads: these networks' operations are so short that threads would queue for the interpreter lock. The
processes are forked, so they inherit the data and the network. They share arrays in anonymous memory, which vanishes
with the last process, however it ends.
"""

import ctypes
import mmap
import multiprocessing
import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from functools import partial, wraps
from math import prod

import numpy as np
from threadpoolctl import threadpool_limits

from minifit.backend import refuse_more_than_memory

PATIENCE = 5  # seconds that a worker may take to end
MEMORY = "a worker process ran out of memory"
stopping = []  # not empty after Ctrl-C, which Python drops in a destructor or while a library calls back


def stop(*_):
    """What Ctrl-C does."""
    stopping.append(True)
    raise KeyboardInterrupt


def heed():
    """Raises KeyboardInterrupt again after Ctrl-C, in case Python has dropped the first one."""
    if stopping:
        raise KeyboardInterrupt


def available():
    """Returns the number of cores that this process may use, by its affinity and its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = file.read().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return cores


def shared(shape, dtype=np.float32):
    """Returns an array of zeros in memory that forked processes share."""
    size = max(1, prod(shape) * np.dtype(dtype).itemsize)
    refuse_more_than_memory(f"numbers {tuple(shape)} for all processes would", size, "a smaller run would fit")
    return np.frombuffer(mmap.mmap(-1, size), dtype, prod(shape)).reshape(shape)


class WorkerLost(Exception):
    """Says how a worker process ended while it was needed."""


class Team:
    """`count` processes, including this one, that run the same functions on different jobs.

        with Team(2, {"square": square}) as team:
            team.run("square", [3, 4, 5])    # [9, 16, 25], whoever computed which

    Jobs and results are pickled, so they should be small. Arrays travel through `shared` memory, which the functions
    know from before the fork.
    """

    def __init__(self, count, functions):
        self.functions = functions
        self.pipes, self.processes = [], []
        self.count = count if hasattr(os, "fork") else 1

    def __enter__(self):
        self.blas = threadpool_limits(1, user_api="blas")
        keep_freed_memory()
        try:
            self._fork()
        except BaseException:  # the system refuses one more process
            self.__exit__(*sys.exc_info())
            raise
        return self

    def _fork(self):
        context = multiprocessing.get_context("fork") if self.count > 1 else None
        for _ in range(self.count - 1):
            ours, theirs = context.Pipe()
            arguments = theirs, [*self.pipes, ours], os.getpid()
            process = context.Process(target=self._serve, args=arguments, daemon=True)
            # Workers inherit the blocked signal: only the parent answers Ctrl-C, and then closes the pipes.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                process.start()
                self.pipes.append(ours)
                self.processes.append(process)
                theirs.close()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def __exit__(self, *exception):
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            if exception[0] is not None:
                process.terminate()
        end(self.processes)
        self.pipes, self.processes = [], []
        self.blas.restore_original_limits()

    def run(self, name, jobs):
        """Returns [function(job) for job in jobs], computed by the whole team."""
        jobs = list(jobs)
        results = [None] * len(jobs)
        for i in range(1, self.count):
            self._ask(i, lambda pipe, i=i: pipe.send((name, jobs[i :: self.count])))
        results[0 :: self.count] = [self.functions[name](job) for job in jobs[0 :: self.count]]
        for i in range(1, self.count):
            answer, error = self._ask(i, lambda pipe: pipe.recv())
            if error == MEMORY:
                raise MemoryError(MEMORY)
            if error:
                raise RuntimeError(f"a worker process failed:\n{error}")
            results[i :: self.count] = answer
        return results

    def add(self, rows):
        """rows[0] + rows[1] + ..., added in this order into rows[0]; job k of the last run has written row k."""
        total = rows[0]
        for k in range(1, len(rows)):
            total += rows[k]
        return total

    def spread(self, arrays, places):
        """Hands every process what job k of the last run has written to arrays[i][places[k]]; here they share it."""

    def _ask(self, i, what):
        try:
            return what(self.pipes[i - 1])
        except (EOFError, OSError):
            process = self.processes[i - 1]
            end([process])
            status = process.exitcode
            how = f"ended with status {status}" if status >= 0 else f"was ended by {signal.Signals(-status).name}"
            hint = ", as happens when memory runs out" if status == -signal.SIGKILL else ""
            raise WorkerLost(f"a worker process {how}{hint}") from None

    def _serve(self, pipe, others, parent):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # whatever the parent does with it
        for other in others:
            other.close()  # an inherited end would keep a pipe open after the parent's death
        while True:
            try:
                name, jobs = pipe.recv()
            except (EOFError, OSError):
                os._exit(0)
            try:
                answer = [], None
                for job in jobs:
                    if os.getppid() != parent:  # nobody waits for the answer
                        os._exit(0)
                    answer[0].append(self.functions[name](job))
            except MemoryError:
                answer = None, MEMORY
            except Exception:
                answer = None, traceback.format_exc()
            try:
                pipe.send(answer)
            except OSError:
                os._exit(0)


def end(processes):
    """Waits until these processes have ended, and kills those that do not, such as stopped ones."""
    deadline = time.monotonic() + PATIENCE
    try:
        for process in processes:
            process.join(max(0, deadline - time.monotonic()))
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join(PATIENCE)


class Alone:
    """The only process of a run. `ranks.Ranks` does the same for several, each with a team of its own."""

    rank, size, launcher = 0, 1, ""
    begun = False  # whether a run is under way, so that there is something to go on with

    def team(self, count, functions):
        return Team(count, functions)

    def first(self, function):
        """What function() returns in the first process, which alone calls it; its exception is raised by all."""
        return function()

    def each(self, function):
        """function(), called by every process; an exception that one raises is raised by all."""
        return function()

    def agree(self, what):
        """UserError where processes do not find the same in the dictionary that what() returns."""

    def lead(self, command):
        """What command() returns in the first process, while the others do the jobs that it gives to `places`."""
        return command()

    def places(self):
        """The other processes, as `jobs.run_jobs` takes them."""
        return []

    def end(self, line, status, file):
        """Says the last line of a command, if there is one, and gives back its exit status."""
        if line:
            with suppress(OSError):  # of a full disk or a closed terminal
                print(line, file=file, flush=True)
        return status


ranks = Alone()  # of the command that this process carries out; `ranks.join` replaces it


def several():
    """Whether mpiexec, or srun, has started this process as one of several."""
    sizes = (os.environ.get(name, "1") for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE"))
    return any(size != "1" for size in sizes) or "PMIX_RANK" in os.environ


def team(count, functions):
    """The team of a run: `count` processes here, and as many at every other rank."""
    return ranks.team(count, functions)


def first(function):
    """Lets the first rank alone do what a function does, and every rank have its result or its exception."""

    @wraps(function)
    def asked(*arguments, **options):
        return ranks.first(partial(function, *arguments, **options))

    return asked


def end_with(parent):
    """Lets Linux end this process when its parent ends, which has this id."""
    set_parent_death_signal = 1  # from linux/prctl.h
    _glibc("prctl", set_parent_death_signal, signal.SIGTERM)
    if os.getppid() != parent:  # it has ended already
        os._exit(1)


def keep_freed_memory():
    """Asks glibc to keep freed memory for the next array of that size, until `return_freed_memory`.

    By default glibc maps and unmaps large arrays (above 32 MiB at most) each time, and the page faults cost more than
    the arithmetic. Without glibc neither function does anything.
    """
    trim_threshold, mmap_max = -1, -4  # from malloc.h
    _glibc("mallopt", trim_threshold, 2**31 - 1)
    _glibc("mallopt", mmap_max, 0)


def return_freed_memory():
    """Returns the memory that `keep_freed_memory` kept to the system."""
    _glibc("malloc_trim", 0)


def _glibc(function, *arguments):
    if sys.platform == "linux":
        getattr(ctypes.CDLL(None), function, lambda *_: None)(*arguments)
