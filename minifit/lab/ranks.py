"""Several processes at one run, the ranks that mpiexec starts: the second implementation of `parallel.Alone`.

Every rank walks through the same stages, reads its own data, and makes the same steps on the sum of all gradients.
Rank 0 alone reads and writes the run directory, and tells the others what they ask of it.
"""

import atexit
import os
import pickle
import signal
import sys
import time
from contextlib import suppress
from functools import partial
from queue import Queue
from threading import Thread

import numpy as np
from mpi4py import MPI
from mpi4py.futures import MPICommExecutor

from minifit import UserError
from minifit.lab import parallel
from minifit.lab.jobs import run_jobs
from minifit.lab.mpi import RankTeam, by_rank
from minifit.lab.parallel import Alone, Team
from minifit.lab.watchdog import Lifeline, launcher, start

PATIENCE = 3  # seconds in which all ranks come to the same error, or else they do not
LATE = 30  # seconds in which all ranks come to the end of a command, where none has work left
SPIN, PAUSE = 1e-3, 2e-4  # seconds: wait so long without rest, then look again after each pause
LAST = 0.5  # seconds in which all ranks exit with the same status
LOOK = 0.05  # seconds between two looks at the jobs of other ranks
GO_ON = "The last finished epoch is kept. To go on, start the same command again: {command}"


given = Queue()  # the job that rank 0 has given to this rank, with a queue for its exit status


def here(job):
    """Runs one job of rank 0's, and returns its exit status.

    mpi4py calls it in a thread. The work is done by the main thread, which Ctrl-C reaches.
    """
    status = Queue()
    given.put((job, status))
    return status.get()


def join(words):
    """Makes this process a rank of the command with these words."""
    sizes = (os.environ.get(name, "1") for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"))
    if MPI.COMM_WORLD.size == 1 and any(size != "1" for size in sizes):
        library = MPI.Get_library_version().partition("\n")[0].partition(",")[0]
        raise UserError(f"mpiexec belongs to another MPI than mpi4py, which uses {library}: use that one's mpiexec")
    if MPI.COMM_WORLD.size > 1:
        parallel.ranks = Ranks(MPI.COMM_WORLD, words)


class Ranks(Alone):
    """This process among the ranks."""

    def __init__(self, world, words):
        self.world, self.ending, self.rank, self.size = world.Dup(), world.Dup(), world.rank, world.size
        self.launcher, self.aside = f"mpiexec -n {self.size} ", False
        self.go_on = GO_ON.format(command=f"{self.launcher}python run.py {words}")
        hosts, launchers = zip(*world.allgather((MPI.Get_processor_name(), launcher())), strict=True)
        self.names = [f"rank {rank} of {self.size}, on {host}" for rank, host in enumerate(hosts)]
        lost = f"run.py: {{who}}, is lost, as when it is killed or its memory runs out. {self.go_on}"
        near = next((rank for rank, pid in enumerate(launchers) if pid), 0)  # who can reach the launcher's stderr
        self.line = Lifeline(*world.bcast(start(lost) if self.rank == near else None, near), self.names[self.rank])
        atexit.register(self._leave)
        signal.signal(signal.SIGTERM, parallel.stop)  # what Ctrl-C and a time limit become on the way
        if self.rank:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115

    def team(self, count, functions):
        local = Team(count, functions)
        return local if self.aside else RankTeam(self, local)

    def first(self, function):
        if self.aside:
            return function()
        answer = None
        if self.rank == 0:
            self.aside = True
            try:
                answer = function(), None
            except Exception as error:
                answer = None, error
            finally:
                self.aside = False
        self.meet()
        result, error = self._tell(answer)
        if error:
            raise error
        return result

    def each(self, function):
        if self.rank:
            self.meet()  # rank 0 goes first: what it downloads is there for the others
        result, error = None, None
        try:
            result = function()
        except UserError as caught:
            error = str(caught)
        finally:
            if not self.rank:
                self.meet()
        errors = self.gather(error)
        if any(errors):
            raise UserError(errors[0] if len({*errors}) == 1 else by_rank(self.names, errors))
        return result

    def agree(self, what):
        if self.aside:
            return
        mine, *others = self.gather(what())
        for who, theirs in zip(self.names[1:], others, strict=True):
            for name in {**mine, **theirs}:
                if (here := mine.get(name)) != (there := theirs.get(name)):
                    raise UserError(f"{who}, has {name} {there}, and rank 0 has {here}; all ranks need the same")

    def lead(self, command):
        if self.rank:
            answer = self._last(busy=self._follow().is_alive)
        else:
            self.aside, self.jobs = True, MPICommExecutor(self.world, 0).__enter__()  # its __exit__ has no limit
            try:
                answer = command()
            except (UserError, SystemExit) as error:
                answer = error
            closing = Thread(target=self.jobs.shutdown, daemon=True)
            closing.start()
            answer = self._last(answer, closing.is_alive)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _follow(self):
        """Does the jobs that rank 0 gives to this rank, until it sends its answer. Returns the thread that listened."""

        def listen():
            with MPICommExecutor(self.world, 0):
                pass  # it listens until rank 0 closes its own

        listener = Thread(target=listen, daemon=True)
        listener.start()
        while not self.ending.iprobe(0):
            if given.empty():
                self.pause(LOOK)
                continue
            job, status = given.get()
            status.put(run_jobs([job], 1, partial(print, file=sys.__stdout__, flush=True))[job.name])
        return listener

    def _last(self, answer=None, busy=lambda: False):
        """Hands rank 0's answer to all ranks, and returns it. The command ends where a rank does not come for it.

        busy: whether this rank has something else to end
        """
        sent = [] if self.rank else [self.ending.issend(answer, rank) for rank in range(1, self.size)]

        def late():
            ranks = [rank for rank, message in enumerate(sent, 1) if not message.Test()]
            ranks += [0] * (self.rank > 0 and not self.ending.iprobe(0))
            return [self.names[rank] for rank in ranks] or ["another rank"] * busy()

        limit = time.monotonic() + LATE * (1 if self.rank == 0 else 2)  # rank 0, which knows the names, speaks first
        while (names := late()) and time.monotonic() < limit:
            self.pause(PAUSE)
        if names and not isinstance(answer, Exception):  # whose line says more
            self.line.say(f"run.py: {'; '.join(names)}, does not end, as when it is stopped")
            self._abort(1)
        return self.ending.recv(source=0) if self.rank else answer

    def places(self):
        def place(job, stopping):
            future = self.jobs.submit(here, job)
            while not future.done() and not stopping:
                self.pause(LOOK)
            return 128 + signal.SIGINT if stopping else future.result()

        return [place] * (self.size - 1)

    def end(self, line, status, file):
        if self.begun and status != 130:
            line = f"{line}. {self.go_on}"
        self._ignore_signals()  # mpiexec may send both: the first has begun this end
        if not self._together(PATIENCE):  # the others are still at work, and wait for this one
            self.line.say(f"run.py: {self.names[self.rank]}: {line.removeprefix('run.py: ').strip()}")
            self._abort(status)
        if self.rank == 0:
            with suppress(OSError):
                print(line, file=file, flush=True)
        self.line.leave()
        if not self._together(LATE):
            self._abort(status)
        with suppress(OSError):  # the system refuses one more process
            if os.fork() == 0:  # it holds this rank's connection to MPICH, which kills other ranks when one is closed
                time.sleep(LAST)
                os._exit(0)
        os._exit(status)  # MPI's own end would wait for what an exception has left unfinished

    def _together(self, seconds):
        """Whether all ranks come here within so many seconds."""
        together, limit = self.ending.Ibarrier(), time.monotonic() + seconds
        while not (met := together.Test()) and time.monotonic() < limit:
            time.sleep(PAUSE)
        return met

    def _abort(self, status):
        """Ends all ranks, also those that are stopped."""
        MPI.COMM_WORLD.Abort(status)
        os._exit(status)  # MPICH may come back before it has ended this rank

    def _ignore_signals(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)

    def _leave(self):
        """The good end of this process."""
        self._ignore_signals()
        self._last()
        self.line.leave()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(2 * LATE)  # MPI's own end, which comes next, has no limit, and hears no exception

    def gather(self, value):
        """What every rank has. It is sent without MPI's own waiting, during which Ctrl-C is not heard."""
        mine, sizes = pickle.dumps(value), np.empty(self.size, "i")
        self.wait(self.world.Iallgather(np.array([len(mine)], "i"), sizes))
        whole, ends = bytearray(sizes.sum()), np.cumsum(sizes)
        self.wait(self.world.Iallgatherv(mine, (whole, sizes, MPI.BYTE)))
        return [pickle.loads(whole[end - size : end]) for size, end in zip(sizes, ends, strict=True)]

    def _tell(self, value):
        """What rank 0 has, sent likewise."""
        held = bytearray() if self.rank else bytearray(pickle.dumps(value))
        size = np.array([len(held)])
        self.wait(self.world.Ibcast(size))
        held = held or bytearray(size[0])
        self.wait(self.world.Ibcast(held))
        return pickle.loads(held)

    def meet(self):
        self.wait(self.world.Ibarrier())

    def wait(self, *requests):
        """Waits as `MPI.Request.Waitall` does, but leaves the core to others, and ends where a rank is lost."""
        began = time.perf_counter()
        while not MPI.Request.Testall(requests):
            if time.perf_counter() - began > SPIN:
                self.pause(PAUSE)

    def pause(self, seconds):
        """A moment of waiting; the end, where another rank is lost."""
        time.sleep(seconds)
        if self.line.lost():
            os._exit(1)
