"""Several processes on the slices of one minibatch.

Processes, not threads: these networks' operations are so short that threads would queue for the interpreter lock. They
are forked, so that they inherit the data and the network, and share what they must in anonymous memory, which vanishes
with the last of them however it ends.
"""

import ctypes
import mmap
import multiprocessing
import os
import signal
import sys
import traceback
from math import prod

import numpy as np
from threadpoolctl import threadpool_limits


def available():
    """The cores this process may use: affinity and, in a container, its quota."""
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
    """Zeros in memory that forked processes share."""
    size = max(1, prod(shape) * np.dtype(dtype).itemsize)
    return np.frombuffer(mmap.mmap(-1, size), dtype, prod(shape)).reshape(shape)


class Team:
    """`count` processes, this one included, that run the same functions on different jobs.

        with Team(2, {"square": square}) as team:
            team.run("square", [3, 4, 5])    # [9, 16, 25], whoever computed which

    Jobs and results are small and pickled; arrays travel through `shared` memory that the functions close over.
    """

    def __init__(self, count, functions):
        self.functions = functions
        self.pipes, self.processes = [], []
        self.count = count if hasattr(os, "fork") else 1

    def __enter__(self):
        self.blas = threadpool_limits(1, user_api="blas")
        keep_freed_memory()
        context = multiprocessing.get_context("fork") if self.count > 1 else None
        for _ in range(self.count - 1):
            ours, theirs = context.Pipe()
            process = context.Process(target=self._serve, args=(theirs, [*self.pipes, ours]), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)
        return self

    def __exit__(self, *exception):
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            if exception[0] is not None:
                process.terminate()
            process.join()
        self.pipes, self.processes = [], []
        self.blas.restore_original_limits()

    def run(self, name, jobs):
        """[function(job) for job in jobs], shared out among the team."""
        jobs, results = list(jobs), [None] * len(jobs)
        for i, pipe in enumerate(self.pipes, start=1):
            pipe.send((name, jobs[i :: self.count]))
        results[0 :: self.count] = [self.functions[name](job) for job in jobs[0 :: self.count]]
        for i, pipe in enumerate(self.pipes, start=1):
            try:
                results[i :: self.count] = self._receive(pipe)
            except EOFError:
                raise RuntimeError(f"a worker process ended (exit code {self.processes[i - 1].exitcode})") from None
        return results

    def _receive(self, pipe):
        answer, error = pipe.recv()
        if error:
            raise RuntimeError(f"a worker process failed:\n{error}")
        return answer

    def _serve(self, pipe, others):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes the pipe
        for other in others:
            other.close()  # an inherited end would keep a pipe open after the parent's death
        while True:
            try:
                name, jobs = pipe.recv()
            except (EOFError, OSError):
                os._exit(0)
            try:
                answer = [self.functions[name](job) for job in jobs], None
            except Exception:
                answer = None, traceback.format_exc()
            try:
                pipe.send(answer)
            except OSError:
                os._exit(0)


def keep_freed_memory():
    """Asks glibc to keep freed arrays for the next one of their size.

    By default an array above 32 MiB at the most is mapped and unmapped each time, and its page faults cost more than
    the arithmetic done on it. Elsewhere than on glibc this does nothing.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return
    trim_threshold, mmap_max = -1, -4  # from malloc.h
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(mmap_max, 0)
