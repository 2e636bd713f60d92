"""The teams of several ranks, which mpiexec starts, as one: the second implementation of `parallel.Team`'s interface.

Of a minibatch each rank computes some lanes. Then rank r receives the r-th part of every lane, adds these parts in the
order of the lanes, and hands the sum to all: the same additions in the same order as in one process.
"""

import traceback
from itertools import pairwise

from mpi4py import MPI

from minifit import UserError
from minifit.lab.parallel import WorkerLost


class RankTeam:
    """The teams of all ranks as one: jobs are dealt to the ranks, and at each to its own processes."""

    def __init__(self, ranks, local):
        self.ranks, self.local = ranks, local

    @property
    def processes(self):
        return self.local.processes

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
            raise WorkerLost(by_rank(self.ranks.names, errors))
        results = [None] * len(jobs)
        for rank, share in enumerate(answers):
            results[rank :: self.ranks.size] = share
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

    def spread(self, arrays, places):
        parts = [(array[place], k % self.ranks.size) for k, place in enumerate(places) for array in arrays]
        self.ranks.wait(*(self.ranks.world.Ibcast(part, root) for part, root in parts))


def by_rank(names, errors):
    """The first error, with the rank that had it."""
    return next(f"{name}: {error}" for name, error in zip(names, errors, strict=True) if error)
