"""What share of an epoch the layers take: python -m benchmarks.epoch

Whole stages of an experiment, an epoch each, as run.py trains them: data, the teacher's outputs, microbatches, masks,
optimiser, max-norm, validation, test, log and checkpoint. The methods of every layer, and of the network, which is one,
are timed in every process; what is left of the processes' time is everything else, waiting for one another included.
"""

import argparse
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.step import machine, positive, table
from minifit import data, experiments
from minifit.lab.parallel import available, shared
from minifit.lab.plan import chosen, walk
from minifit.lab.runner import set_up, task_of, trained
from minifit.layers import Layer

METHODS = ("forward", "backward", "weight_gradients", "__call__")
PARTS = ("train", "validation", "test")
SLOTS = 64  # of the processes' clocks, by their number


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.epoch", description=__doc__.partition(":")[0] + ".")
    parser.add_argument("--experiment", choices=experiments.EXPERIMENTS, default="mnist")
    parser.add_argument("--data-dir", help="where the data set lies; else as for run.py")
    parser.add_argument("--workers", type=positive, nargs="+", default=sorted({1, available()}))
    parser.add_argument("--train", type=positive, help="train, validate and test on at most so many images")
    options = parser.parse_args(arguments)
    print(machine(), flush=True)
    clock = timed_layers()
    rows = [row for count in options.workers for row in stages(options, count, clock)]
    print("\n" + table(["stage", "workers", "seconds", "images/s", "in layers, %"], rows))


def timed_layers():
    """Shared seconds, one number a process, to which every call of a layer's method adds the time it took."""
    clock, inside = shared((SLOTS,), np.float64), []

    def timed(method):
        def call(*arguments):
            if inside:  # a method that a layer's own method calls
                return method(*arguments)
            inside.append(method)
            start = time.perf_counter()
            try:
                return method(*arguments)
            finally:
                clock[os.getpid() % SLOTS] += time.perf_counter() - start
                inside.pop()

        return call

    for kind in kinds(Layer):
        for name in METHODS:
            if name in vars(kind):
                setattr(kind, name, timed(vars(kind)[name]))
    return clock


def kinds(kind):
    """A class and all that inherit from it."""
    yield kind
    for below in kind.__subclasses__():
        yield from kinds(below)


def stages(options, count, clock):
    """A row for each stage: how long it takes `count` workers, and how much of their time is spent in layers."""
    experiment = experiments.EXPERIMENTS[options.experiment]
    config = experiment.presets["default"]
    once = {name: replace(getattr(config, name), epochs=1) for name in ("teacher", "stage1", "student")}
    if options.train:
        config = replace(config, **{part: min(options.train, getattr(config, part) or options.train) for part in PARTS})
    config = replace(config, **once, teacher_all=0)
    sizes = {"train": config.train + config.validation, "test": config.test}
    dataset = data.load(experiment.data, data_dir=options.data_dir, progress=False, **sizes)
    with tempfile.TemporaryDirectory() as folder:
        about = Path(folder), options.experiment, "default", experiment, config, 0, dataset
        run, rows = set_up(*about, np, count, progress=False), []

        def train(stage):
            clock[:] = 0
            began = time.perf_counter()
            record, _ = trained(run, stage)
            seconds = time.perf_counter() - began
            share = 100 * clock.sum() / (count * seconds)
            rows.append([stage.key, str(count), f"{seconds:.1f}", f"{config.train / seconds:.0f}", f"{share:.0f}"])
            return record

        with run.directory:
            walk(chosen()[-1], task_of(run), train)
        return rows


if __name__ == "__main__":
    main()
