"""A training step by one rank and by several, and by a model up to a thousand: python -m benchmarks.ranks

Measured: the step's time, its parts, the bytes that move, and what the way between two ranks is like. The model then
predicts the step by several ranks here, which shows its error, and by up to 1,000 on networks whose figures are stated.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from math import ceil, log2
from pathlib import Path

import numpy as np

from benchmarks.contestants import Minifit
from benchmarks.step import machine, positive, table
from minifit import networks
from minifit.lab import parallel

NAMES = ("MNIST_TEACHER", "MNIST_FITNET", "CIFAR10_TEACHER", "FITNET_1", "FITNET_2", "FITNET_3", "FITNET_4")
NETWORKS = {getattr(networks, name).name: getattr(networks, name) for name in NAMES}
WAYS = {"10 Gbit/s Ethernet": (50e-6, 1.25e9), "100 Gbit/s InfiniBand": (5e-6, 12.5e9)}  # seconds, bytes a second
CALL = 5e-6  # seconds that Python takes to post a message
RANKS = (1, 2, 4, 8, 16, 64, 256, 1000)
BACKWARD = 2 / 3  # of a step's arithmetic, during which sums of later layers could already travel
SIZE, TIMES = 2**23, 30  # bytes of the message that tells the bandwidth; how often each message goes to and fro


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ranks", description=__doc__.partition(":")[0] + ".")
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=[*NETWORKS])
    parser.add_argument("--ranks", type=positive, nargs="+", default=[2], help="measure so many ranks beside one")
    parser.add_argument("--batch", type=positive, default=128)
    parser.add_argument("--repeats", type=positive, default=20, help="steps, whose median counts")
    parser.add_argument("--as-rank", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.as_rank:
        return as_rank(options)
    print(machine(), flush=True)
    measurements = {n: measured(n, options) for n in [1, *options.ranks]}
    print(f"\nMeasured, batch {options.batch}, one worker per rank:\n")
    print(table(*measured_table(measurements, options)))
    for way, figures in WAYS.items():
        print(f"\nPredicted for {way}, batch {options.batch}: milliseconds of a step (efficiency)\n")
        print(table(*predicted_table(measurements[1], *figures, options.batch)))
    print("\nThe batch that keeps each of so many ranks half busy (efficiency 50 %)\n")
    print(table(*batch_table(measurements[1], options.batch)))
    return 0


def measured(n, options):
    """{network: figures} of a step by n ranks."""
    beside = Path(sys.executable).with_name("mpiexec")
    start = [str(beside) if beside.exists() else "mpiexec", "-n", str(n)] if n > 1 else []
    words = ["--as-rank", "--batch", str(options.batch), "--repeats", str(options.repeats), "--network"]
    command = [*start, sys.executable, "-m", "benchmarks.ranks", *words, *options.network]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def as_rank(options):
    """What a rank does: the steps of all networks; rank 0 prints what it took."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if parallel.several():
        from minifit.lab import ranks

        ranks.join("benchmarks.ranks")
    way = to_and_fro(parallel.ranks) if parallel.ranks.size > 1 else None
    figures = {name: steps(NETWORKS[name], options) | {"way": way} for name in options.network}
    print(json.dumps(figures), flush=True)
    return 0


def to_and_fro(ranks):
    """(seconds, bytes a second) of the way between ranks 0 and 1, from messages that go to and fro."""
    took = {}
    for size in (1, SIZE):
        message, times = np.zeros(size, np.uint8), []
        for _ in range(TIMES):
            ranks.meet()
            began = time.perf_counter()
            if ranks.rank == 0:
                ranks.world.Send(message, 1)
                ranks.world.Recv(message, 1)
            elif ranks.rank == 1:
                ranks.world.Recv(message, 0)
                ranks.world.Send(message, 0)
            times.append((time.perf_counter() - began) / 2)
        took[size] = float(np.median(times))
    return took[1], SIZE / max(1e-9, took[SIZE] - took[1])


class Counted:
    """The communicator of the ranks, which counts the bytes that this rank sends and receives of gradients."""

    def __init__(self, world):
        self.world, self.sent, self.received = world, 0, 0

    def __getattr__(self, name):
        return getattr(self.world, name)

    def Isend(self, array, *place):
        self.sent += array.nbytes
        return self.world.Isend(array, *place)

    def Irecv(self, array, *place):
        self.received += array.nbytes
        return self.world.Irecv(array, *place)

    def Iallgatherv(self, mine, whole):
        array, (counts, _) = whole
        part = counts[self.world.rank] * array.itemsize
        self.sent += part * (self.world.size - 1)  # by a ring, each rank passes on as much as it receives in the end
        self.received += array.nbytes - part
        return self.world.Iallgatherv(mine, whole)


def steps(network, options):
    """Median seconds of a step and of its parts, the bytes that moved in one, and what the model needs to know."""
    took, image = {"step": [], "run": [], "add": []}, []
    with Minifit(network, options.batch, network.microbatch, 1) as ours:
        team = ours.parallel.team
        local = getattr(team, "local", team)
        timed(local, "run", took["run"])
        timed(team, "add", took["add"])
        ours._step()  # which fetches memory and plans convolutions
        world = Counted(getattr(parallel.ranks, "world", None))
        for times in took.values():
            times.clear()
        parallel.ranks.world = world
        for _ in range(options.repeats):
            began = time.perf_counter()
            ours._step()
            took["step"].append(time.perf_counter() - began)
        parallel.ranks.world = world.world
        figures = {name: float(np.median(times)) for name, times in took.items()}
        timed(local, "run", image)
        for i in range(options.repeats):
            ours.parallel.gradient(np.arange(1), 1, i)
        lanes, weights = ours.parallel.lanes, sum(p.size for p in ours.layers.params.values())
    moved = {"sent": world.sent // options.repeats, "received": world.received // options.repeats}
    known = {"lanes": lanes, "microbatch": network.microbatch, "bytes": 4 * weights}
    figures["image"] = float(np.median(image))  # one alone, which shows what a microbatch costs beside its images
    return figures | moved | known


def timed(owner, name, times):
    """Lets a method note how long each call takes."""
    method = getattr(owner, name)

    def call(*arguments):
        began = time.perf_counter()
        result = method(*arguments)
        times.append(time.perf_counter() - began)
        return result

    setattr(owner, name, call)


def share(one, batch, ranks, most=None):
    """(lanes, lanes of rank 0, its images) of a minibatch.   most: lanes, by default those that minifit has"""
    parts = [min(one["microbatch"], batch - i) for i in range(0, batch, one["microbatch"])]
    lanes = min(most or one["lanes"], len(parts))
    return lanes, len(range(0, lanes, ranks)), sum(sum(parts[lane::lanes]) for lane in range(0, lanes, ranks))


def arithmetic(one, images, batch):
    """Seconds for images in microbatches, where a minibatch of `batch` takes those measured."""
    most = one["microbatch"]
    each = max(0.0, (one["run"] * most / batch - one["image"]) / max(1, most - 1))
    return ceil(images / most) * max(0.0, one["image"] - each) + images * each


def predicted(one, batch, measured_at, ranks, latency, bandwidth):
    """Seconds of a step as minifit makes it.   one: measured of one rank, with the batch `measured_at`"""
    lanes, rank_lanes, images = share(one, batch, ranks)
    rest = one["step"] - one["run"] - one["add"]  # the optimiser, and the examples that every rank chooses
    computing = arithmetic(one, images, measured_at) + one["add"] / ranks + rest
    if ranks == 1:
        return computing
    size, rounds = one["bytes"], ceil(log2(ranks))
    out, back = rank_lanes * size * (ranks - 1) / ranks, (lanes - rank_lanes) * size / ranks
    messages = rank_lanes * (ranks - 1) + lanes - rank_lanes
    reducing = latency + CALL * messages + max(out, back) / bandwidth
    gathering = latency * rounds + size * (ranks - 1) / ranks / bandwidth
    meeting = 2 * rounds * latency + 3 * CALL  # the losses: their sizes, and themselves
    return computing + meeting + reducing + gathering


def lifted(one, batch, measured_at, ranks, latency, bandwidth):
    """Seconds of a step with a lane at every rank, sums by a tree in the order of lanes, and both at once."""
    rest = one["step"] - one["run"] - one["add"]
    computing = arithmetic(one, max(1, batch / ranks), measured_at)
    moving = 2 * ceil(log2(ranks)) * (latency + CALL) + 2 * one["bytes"] * (ranks - 1) / ranks / bandwidth
    return computing + rest + max(latency * (ranks > 1), moving - BACKWARD * computing)


def needed(of, one, measured_at, ranks, *way):
    """The smallest batch, of powers of 2, at which so many ranks have an efficiency of a half; None below 2^24."""
    for power in range(3, 25):
        alone, together = (of(one, 2**power, measured_at, n, *way) for n in (1, ranks))
        if alone / together / ranks >= 0.5:
            return 2**power
    return None


def milliseconds(seconds):
    return f"{1e3 * seconds:.{0 if seconds >= 0.1 else 1}f}"


def measured_table(measurements, options):
    several = [n for n in measurements if n > 1]
    header = ["network", "weights MB", "1 rank ms"]
    for n in several:
        header += [f"{n} ranks ms", "1 / it", "moved MB", "way us, GB/s", "model ms", "its error, %"]
    rows = []
    for name, one in measurements[1].items():
        row = [name, f"{one['bytes'] / 1e6:.2f}", milliseconds(one["step"])]
        for n in several:
            figures = measurements[n][name]
            model = predicted(one, options.batch, options.batch, n, *figures["way"])
            moved = f"{(figures['sent'] + figures['received']) / 1e6:.2f}"
            row += [milliseconds(figures["step"]), f"{one['step'] / figures['step']:.2f}", moved]
            row += [f"{1e6 * figures['way'][0]:.0f}, {figures['way'][1] / 1e9:.1f}", milliseconds(model)]
            row += [f"{100 * (model / figures['step'] - 1):+.0f}"]
        rows.append(row)
    return header, rows


def predicted_table(one, latency, bandwidth, batch):
    rows = []
    for name, measurement in one.items():
        for of in (predicted, lifted):
            times = [of(measurement, batch, batch, n, latency, bandwidth) for n in RANKS]
            cells = [f"{milliseconds(t)} ({times[0] / t / n:.0%})" for t, n in zip(times, RANKS, strict=True)]
            rows.append(
                [name, f"as it is, {share(measurement, batch, 1)[0]} lanes" if of is predicted else "lifted", *cells]
            )
    return ["network", "sum", *map(str, RANKS)], rows


def batch_table(one, batch):
    header, rows = ["network", "network of ranks", "as it is, 2", "4", "8", "lifted, 8", "64", "1000"], []
    for name, measurement in one.items():
        for way, figures in WAYS.items():
            batches = [needed(predicted, measurement, batch, n, *figures) for n in (2, 4, 8)]
            batches += [needed(lifted, measurement, batch, n, *figures) for n in (8, 64, 1000)]
            rows.append([name, way, *(f"{b:,}" if b else "never" for b in batches)])
    return header, rows


if __name__ == "__main__":
    sys.exit(main())
