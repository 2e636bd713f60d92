"""Several processes at one run, the ranks that mpiexec starts: the second implementation of Alone and Team.

Every rank walks through the same stages and reads its own data. Of a minibatch each computes some lanes. Then rank r
receives the r-th part of every lane, adds these parts in the order of the lanes, and hands the sum to all: the same
additions in the same order as in one process. Every rank makes the same step on it. Rank 0 alone reads and writes the
run directory.
"""

import atexit
import os
import sys
import time
import traceback
from functools import partial
from itertools import pairwise

from mpi4py import MPI

from minifit import UserError
from minifit.lab import parallel
from minifit.lab.jobs import run_jobs
from minifit.lab.lifeline import Lifeline, start
from minifit.lab.parallel import Alone, WorkerLost

PATIENCE = 3  # seconds in which all ranks come to the same end, or else they do not
SPIN, PAUSE, LONG = 1e-3, 2e-4, 0.05  # seconds: wait so long without rest, then pause and look again; for a job, long
GO_ON = "The last finished epoch is kept. To go on, start the same command again: {command}"


def join(words):
    """Makes this process a rank of the command with these words."""
    if MPI.COMM_WORLD.size == 1 and "1" not in (os.environ.get("PMI_SIZE"), os.environ.get("OMPI_COMM_WORLD_SIZE")):
        library = MPI.Get_library_version().split("\n")[0]
        raise UserError(f"mpiexec belongs to another MPI than mpi4py, which uses {library}: use that one's mpiexec")
    if MPI.COMM_WORLD.size > 1:
        parallel.ranks = Ranks(MPI.COMM_WORLD, words)


class Ranks(Alone):
    """This process among the ranks."""

    def __init__(self, world, words):
        self.world, self.ending, self.rank, self.size = world.Dup(), world.Dup(), world.rank, world.size
        self.launcher, self.aside, self.begun = f"mpiexec -n {self.size} ", False, False
        self.go_on = GO_ON.format(command=f"{self.launcher}python run.py {words}")
        hosts = enumerate(world.allgather(MPI.Get_processor_name()))
        self.names = [f"rank {rank} of {self.size}, on {host}" for rank, host in hosts]
        lost = f"run.py: {{who}}, is lost, as when it is killed or its memory runs out. {self.go_on}"
        self.line = Lifeline(*world.bcast(None if self.rank else start(lost)), self.names[self.rank])
        atexit.register(self.line.leave)
        if self.rank:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115

    def team(self, count, functions):
        local = parallel.Team(count, functions)
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
        result, error = self.world.bcast(answer)
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
            raise UserError(errors[0] if len({*errors}) == 1 else told(self.names, errors))
        return result

    def agree(self, what):
        if self.aside:
            return
        mine, *others = self.gather(what())
        for who, theirs in zip(self.names[1:], others, strict=True):
            for name in {**mine, **theirs}:
                if (here := mine.get(name)) != (there := theirs.get(name)):
                    raise UserError(f"{who}, has {name} {there}, and rank 0 has {here}; all ranks need the same")
        self.begun = True

    def lead(self, command):
        if self.rank:
            while not isinstance(answer := self.job(), int | Exception):
                statuses = run_jobs([answer], 1, partial(print, file=sys.__stdout__, flush=True))
                self.world.send(statuses[answer.name], 0)
        else:
            self.aside = True
            try:
                answer = command()
            except UserError as error:
                answer = error
            for rank in range(1, self.size):
                self.world.send(answer, rank)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def job(self):
        """The next job from rank 0, or how the command has ended."""
        while not self.world.iprobe(0):
            self.pause(LONG)
        return self.world.recv(source=0)

    def places(self):
        def place(rank, job, stopping):
            self.world.send(job, rank)
            answer = self.world.irecv(source=rank)
            while not (found := answer.test())[0] and not stopping:
                self.pause(LONG)
            return 130 if stopping else found[1]

        return [partial(place, rank) for rank in range(1, self.size)]

    def end(self, line, status, file):
        if self.begun and status != 130:
            line = f"{line}. {self.go_on}"
        together, limit = self.ending.Ibarrier(), time.monotonic() + PATIENCE
        while not together.Test() and time.monotonic() < limit:
            time.sleep(PAUSE)
        if not together.Test():  # the others are still at work, and wait for this one
            self.line.say(f"run.py: {self.names[self.rank]}: {line.removeprefix('run.py: ').strip()}")
            MPI.COMM_WORLD.Abort(status)
        if self.rank == 0:
            print(line, file=file, flush=True)
        self.line.leave()
        self.wait(self.ending.Ibarrier())
        os._exit(status)  # MPI's own end would wait for what an exception has left unfinished

    def gather(self, value):
        """What every rank has."""
        self.meet()
        return self.world.allgather(value)

    def meet(self):
        self.wait(self.world.Ibarrier())

    def wait(self, *requests):
        """Waits as `MPI.Request.Waitall` does, but leaves the core to others, and ends where a rank is lost."""
        began = time.perf_counter()
        while not MPI.Request.Testall(requests):
            if time.perf_counter() - began > SPIN:
                self.pause(PAUSE)

    def pause(self, seconds):
        time.sleep(seconds)
        if self.line.lost():
            os._exit(1)


class RankTeam:
    """The teams of all ranks as one: jobs are dealt to the ranks, and at each to its own processes."""

    def __init__(self, ranks, local):
        self.ranks, self.local = ranks, local

    def __enter__(self):
        self.local.__enter__()
        return self

    def __exit__(self, *exception):
        self.local.__exit__(*exception)

    def run(self, name, jobs):
        jobs, answer, error = list(jobs), None, None
        try:
            answer = self.local.run(name, jobs[self.ranks.rank :: self.ranks.size])
        except (UserError, WorkerLost) as caught:
            error = str(caught)
        except Exception:
            error = traceback.format_exc()
        answers, errors = zip(*self.ranks.gather((answer, error)), strict=True)
        if any(errors):
            raise WorkerLost(told(self.ranks.names, errors))
        results = [None] * len(jobs)
        for rank, found in enumerate(answers):
            results[rank :: self.ranks.size] = found
        return results

    def add(self, rows):
        world, rank, size = self.ranks.world, self.ranks.rank, self.ranks.size
        cuts = [rows.shape[1] * r // size for r in range(size + 1)]
        spans, requests = [slice(*cut) for cut in pairwise(cuts)], []
        for lane, row in enumerate(rows):
            if lane % size == rank:
                requests += [world.Isend(row[spans[r]], r, lane) for r in range(size) if r != rank]
            else:
                requests.append(world.Irecv(row[spans[rank]], lane % size, lane))
        self.ranks.wait(*requests)
        self.local.add(rows[:, spans[rank]])
        whole = rows[0], ([span.stop - span.start for span in spans], cuts[:-1])
        self.ranks.wait(world.Iallgatherv(MPI.IN_PLACE, whole))
        return rows[0]

    def spread(self, parts):
        size = self.ranks.size
        self.ranks.wait(*(self.ranks.world.Ibcast(a, k % size) for k, arrays in enumerate(parts) for a in arrays))


def told(names, errors):
    """The first error, with the rank that had it."""
    return next(f"{name}: {error}" for name, error in zip(names, errors, strict=True) if error)
