"""Whole stages, minifit's beside a PyTorch script that does the same: python -m benchmarks.stages

A step of a stage is more than that of a network: the minibatch is gathered, prepared and augmented, the frozen teacher
answers, the student learns by the stage's loss and its optimiser, and max-norm follows. Loss and gradients of both
sides are compared before anything is timed.
"""

import argparse
import importlib.util
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from itertools import product
from math import ceil
from pathlib import Path
from statistics import geometric_mean

import numpy as np

from benchmarks import step
from benchmarks.contestants import Ceiling, Child
from benchmarks.step import FORMATS, machine, positive, ratios, table, take_turns
from benchmarks.work import SEED
from minifit import data, experiments, fitnets, networks
from minifit.composites import leaves, weights
from minifit.data.preprocessing import ZCA, Whitened
from minifit.lab.parallel import available
from minifit.lab.plan import chosen, microbatch, noted, walk
from minifit.lab.runner import set_up, task_of
from minifit.lab.training import DataParallel
from minifit.optimizers import update
from minifit.task import Task

EXPERIMENTS = "mnist", "cifar10-fitnet1", "cifar10-fitnet4"
SCHEDULES = "teacher", "stage1", "student"
IMAGES = 6400  # that a stage is timed on: the steps of one epoch
TURN = 5  # steps
CHECKED = 8  # images
ROOT = Path(__file__).parents[1]


def taught(name, preset="default"):
    """{key: stage} of an experiment's default methods, without those that learn from labels alone."""
    experiment = experiments.EXPERIMENTS[name]
    task = Task(
        {"teacher": experiment.teacher, "student": experiment.student}, experiment.presets[preset], 0, draw=False
    )
    return {key: stage for key, (_, stage) in noted(chosen(), task).items() if stage.target}


STAGES = tuple(taught("mnist"))


def main(arguments=None):
    options = parse(arguments)
    print(machine(), flush=True)
    if options.whole:
        return print(whole(options.whole, options))
    rows, header = [], None
    for name, key in product(options.experiment, options.stage):
        print(f"{name}, {key} ...", file=sys.stderr, flush=True)
        header, row = compared(name, key, options)
        print(table(header, [row]), file=sys.stderr, flush=True)
        rows.append(row)
    print("\n" + table(header, rows))
    for column in ("ratio", "ratio, both kept"):
        speedups = [float(row[header.index(column)]) for row in rows if row[header.index(column)] != "-"]
        if speedups:
            print(f"\nGeometric mean of {len(speedups)} in the column {column!r}: {geometric_mean(speedups):.2f}")
    return None


def parse(arguments):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stages", description=__doc__.partition(":")[0] + ".")
    parser.add_argument("--experiment", nargs="+", choices=experiments.EXPERIMENTS, default=EXPERIMENTS, metavar="NAME")
    parser.add_argument("--preset", choices=("default", "paper"), default="default")
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS, help="of PyTorch's memory")
    parser.add_argument("--workers", type=positive, default=available(), help="processes, and PyTorch's threads")
    parser.add_argument("--steps", type=positive, default=50, help="steps of every contestant that are timed")
    parser.add_argument("--images", type=positive, default=IMAGES, help="how many noise images there are")
    what = "in place of stages: the seconds of all stages of an experiment, mnist if none is named"
    parser.add_argument("--whole", nargs="?", const="mnist", choices=experiments.EXPERIMENTS, metavar="NAME", help=what)
    parser.add_argument("--epochs", type=positive, default=2, help="of every stage, for --whole")
    parser.add_argument("--train", type=positive, help="images, for --whole; else as the preset says")
    parser.add_argument("--data-dir", help="where the data set lies, for --whole; else as for run.py")
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("torch") is None:
        parser.error("PyTorch is not installed")
    return options


def noise_run(name, preset, count, workers, folder, xp=np):
    """A run of the experiment on noise; its networks have random weights, and no two biases are equal."""
    experiment = experiments.EXPERIMENTS[name]
    config, image = experiment.presets[preset], experiment.student.input
    memory = config.targets_memory * count / config.train  # so that the same outputs are kept
    config = replace(config, train=count, validation=1, test=1, targets_memory=memory)
    rng = np.random.default_rng(SEED)
    pixels = rng.integers(0, 256, (count + 1, *image), np.uint8)
    labels = rng.integers(experiment.student.blocks[-1].classes, size=count + 1)
    dataset = data.Dataset("noise", pixels, labels, pixels[:1], labels[:1])
    run = set_up(folder, name, preset, experiment, config, 0, dataset, xp, workers, progress=False)
    if config.preprocessing == "whitened":  # any statistics are as fast as those of images
        d = int(np.prod(image))
        matrix = np.eye(d, dtype=np.float32) + rng.normal(0, 1e-3, (d, d)).astype(np.float32)
        run.sets.prepare = Whitened(ZCA(np.zeros(d, np.float32), matrix))
    return run


def started(run, key, dtype=np.float32):
    """The stage of a run with random weights."""
    rng, task = np.random.default_rng(SEED), replace(run.task, dtype=dtype)
    _, stage = noted(run.plan.keys, task)[key]
    for layers in filter(None, (stage.target, stage.network)):
        networks.initialise(layers, rng)
        for leaf in leaves(layers):
            if "b" in leaf.params:
                leaf.params["b"][...] = task.xp.asarray(0.1 * rng.standard_normal(leaf.params["b"].shape))
    return stage


class Stage:
    """Steps of a stage as minifit.lab.training takes them."""

    def __init__(self, name, preset, key, count, workers, xp=np, batch=None):
        """batch: images of a step; None: as many as the stage takes"""
        self.folder = tempfile.TemporaryDirectory()
        run = noise_run(name, preset, count, workers, Path(self.folder.name), xp)
        self.stage, self.draw = started(run, key), run.sets.draw
        self.batch = batch or self.stage.schedule.batch
        examples = run.sets.taught("train", self.stage.target, workers)
        self.keeps = examples.teacher is not None and not callable(examples.teacher)
        self.optimizer, self.rng = self.stage.schedule.make(), np.random.default_rng(SEED)
        self.parallel = DataParallel(self.stage, {"train": examples}, microbatch(run.task, self.stage), workers)
        self.updated = list(weights(self.stage.network))
        self.size, self.order = count, iter(())

    def __enter__(self):
        self.parallel.__enter__()
        return self

    def __exit__(self, *exception):
        self.parallel.__exit__(*exception)
        self.folder.cleanup()

    def kept(self):
        """Whether the teacher's outputs were computed before training."""
        return self.keeps

    def steps(self, count):
        return timed(self._step, count)

    def _step(self):
        indices, self.order = following(self.order, self.size, self.batch, self.rng)
        choices = self.draw(self.rng, len(indices)) if self.draw else None
        _, grads = self.parallel.gradient(indices, 1, int(self.rng.integers(2**63)), choices)
        update(self.optimizer, self.updated, grads)


class Script:
    """The same steps by the PyTorch script, in each memory format, with the teacher at each step or kept outputs."""

    def __init__(self, name, preset, key, count, threads, keeps):
        import torch

        from benchmarks import script

        torch.set_num_threads(threads)
        with tempfile.TemporaryDirectory() as folder:
            self.run = noise_run(name, preset, count, threads, Path(folder))
        if self.run.task.settings.crops:
            raise ValueError(f"{name}, {preset}: the script has no crops")
        x, labels = prepared(self.run.sets["train"])
        self.key, self.stage, self.torch = key, started(self.run, key), torch
        self.scripts = {
            (format, cache): script.Script(self.stage, x, labels, format, self.run.task.settings.flips, cache)
            for format, cache in product(FORMATS, {False, keeps})
        }
        self.rng, self.order = np.random.default_rng(SEED), iter(())

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def check(self):
        """The largest relative error of the loss and gradients of some images, in float64 and in both formats."""
        from benchmarks import script, twin

        stage = started(self.run, self.key, np.float64)
        x, labels = prepared(self.run.sets["train"], CHECKED)
        x = x.astype(np.float64)
        ours = fitnets.gradient(stage, x, stage.target and stage.target(x), labels, epoch=1)
        scripts = [(format, script.Script(stage, x, labels, format)) for format in FORMATS]
        return max(twin.agree(ours, s.agreed(x, labels), f"{self.key}, {format}") for format, s in scripts)

    def steps(self, format, cache, count):
        chosen = self.scripts[format, cache]
        return timed(lambda: self._step(chosen), count)

    def _step(self, chosen):
        size, batch = len(chosen.x), self.stage.schedule.batch
        indices, self.order = following(self.order, size, batch, self.rng)
        chosen.step(self.torch.from_numpy(indices))


def prepared(examples, count=None, at_once=500):
    """(images as networks see them, labels) of the first images of a set."""
    count = len(examples) if count is None else count
    parts = [examples.batch(slice(i, min(i + at_once, count)))[0] for i in range(0, count, at_once)]
    return np.concatenate(parts), np.asarray(examples.labels[:count])


def following(order, size, batch, rng):
    """(the numbers of the next whole minibatch, what is left): a new order where the last one ends."""
    indices = next(order, None)
    if indices is None:
        whole = max(1, size // batch)
        order = iter(np.array_split(rng.permutation(size)[: whole * batch], whole))
        indices = next(order)
    return indices, order


def timed(step, count):
    """Seconds of a step, the mean of so many."""
    began = time.perf_counter()
    for _ in range(count):
        step()
    return (time.perf_counter() - began) / count


def compared(name, key, options):
    """(header, row): the images a second of a stage, by minifit and by the script."""
    arguments = name, options.preset, key, options.images, options.workers
    batch = batch_of(name, key, options)
    with ExitStack() as stack:
        ours = stack.enter_context(Child(Stage, *arguments))
        keeps = ours("kept")
        theirs = stack.enter_context(Child(Script, *arguments, keeps))
        theirs("check")
        ceiling = stack.enter_context(Child(Ceiling, options.workers))
        contestants = {"minifit": lambda: ours("steps", TURN)}
        for format, cache in product(options.formats, sorted({False, keeps})):
            label = f"{format}, kept" if cache else format
            contestants[label] = lambda format=format, cache=cache: theirs("steps", format, cache, TURN)
        times = take_turns({**contestants, "ceiling": lambda: ceiling("step", step.TURN)}, ceil(options.steps / TURN))
    row = [f"{name}, {key}", *(rate(times[label], batch) for label in ("minifit", *options.formats))]
    header = ["stage", "minifit images/s", *(f"PyTorch {format} images/s" for format in options.formats)]
    labels = [label for label in times if label.endswith("kept")]
    best = min(labels, key=lambda label: np.median(times[label])) if labels else None
    more = [rate(times[best], batch), ratios(times, [best])[0]] if labels else ["-", "-"]
    header += ["ratio", "paired", "PyTorch, outputs kept", "ratio, both kept", "ceiling GFLOP/s"]
    return header, [*row, *ratios(times, options.formats), *more, f"{np.median(times['ceiling']):.0f}"]


def batch_of(name, key, options):
    return min(options.images, taught(name, options.preset)[key].schedule.batch)


def rate(times, batch):
    """Images a second: the median of the turns, and the quartiles."""
    low, middle, high = batch / np.quantile(times, [0.75, 0.5, 0.25])
    return f"{middle:.0f} ({low:.0f}-{high:.0f})"


def whole(name, options):
    """The table of --whole: seconds of all stages of an experiment, from the start of a process to its end."""
    epochs = [f"--{group}.epochs={options.epochs}" for group in SCHEDULES]
    with tempfile.TemporaryDirectory() as folder:
        words = [name, "--preset", options.preset, "--stage", "all", *epochs, "--workers", str(options.workers)]
        words += ["--runs", folder, *(["--train", str(options.train)] if options.train else [])]
        words += ["--data-dir", options.data_dir] if options.data_dir else []
        began = time.perf_counter()
        subprocess.run([sys.executable, "run.py", *words], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        ours = time.perf_counter() - began
    theirs = {}
    for format in FORMATS:
        began = time.perf_counter()
        with Child(WholeScript, name, options) as script:
            script("run", format)
        theirs[format] = time.perf_counter() - began
    header = ["all stages of", "epochs of each", "minifit s", *(f"PyTorch {format} s" for format in FORMATS), "ratio"]
    row = [name, str(options.epochs), f"{ours:.1f}", *(f"{theirs[format]:.1f}" for format in FORMATS)]
    return "\n" + table(header, [[*row, f"{min(theirs.values()) / ours:.2f}"]])


class WholeScript:
    """All stages of an experiment by the PyTorch script: training, validation after each epoch, and test."""

    def __init__(self, name, options):
        import torch

        torch.set_num_threads(options.workers)
        experiment = experiments.EXPERIMENTS[name]
        config = experiment.presets[options.preset]
        if config.crops:
            raise ValueError(f"{name}, {options.preset}: the script has no crops")
        once = {group: replace(getattr(config, group), epochs=options.epochs) for group in SCHEDULES}
        config = replace(config, **once, train=options.train or config.train)
        sizes = {"train": config.train + config.validation, "test": config.test}
        self.folder = tempfile.TemporaryDirectory()
        loaded = data.load(experiment.data, data_dir=options.data_dir, progress=False, **sizes)
        about = name, options.preset, experiment, config, 0, loaded, np, options.workers
        self.training = set_up(Path(self.folder.name), *about, progress=False)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.folder.cleanup()

    def run(self, format):
        """Trains every stage; returns the test error of each, in percent."""
        import torch

        from benchmarks import script, twin

        sets = {part: prepared(self.training.sets[part]) for part in ("train", "validation", "test")}
        others = {p: (twin.images(x, format), torch.from_numpy(y)) for p, (x, y) in sets.items() if p != "train"}
        errors, kept, rng, task = {}, {}, np.random.default_rng(0), task_of(self.training)

        def train(stage):
            if stage.key in errors:
                return {"best_epoch": 1}
            keeps = stage.target is not None and self.training.sets.keeps("train", stage.target)
            trained = script.Script(stage, *sets["train"], format, task.settings.flips, keeps, kept=kept)
            best, weights = (np.inf, np.inf), None
            for epoch in range(1, stage.schedule.epochs + 1):
                trained.epoch(epoch, rng)
                figures = trained.measure("validation", *others["validation"], epoch)[::-1]
                if figures < best or weights is None:
                    best, weights = figures, {name: w.copy() for name, w in trained.student.arrays().items()}
            for name, p in stage.network.params.items():
                p[...] = weights[name]
            errors[stage.key] = 100 * trained.measure("test", *others["test"], 1)[1] / len(others["test"][1])
            return {"best_epoch": stage.schedule.epochs}

        for method in self.training.plan.keys:
            walk(method, task, train)
        return errors


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
