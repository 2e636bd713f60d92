"""Steps and stages on a GPU, minifit's on CuPy beside PyTorch's on CUDA: python -m benchmarks.device

Both in float32, with full products and with those of the tensor cores, TF32, in batches of 128 and of 1,024 images. The
contestants take turns, as in benchmarks.step; a turn is many steps, and ends when the GPU has done them. Losses and
gradients are compared first, on the GPU and in float64.
"""

import argparse
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from statistics import geometric_mean

import numpy as np

from benchmarks.contestants import Child, Minifit
from benchmarks.stages import EXPERIMENTS, IMAGES, STAGES, Stage, following, noise_run, prepared, started
from benchmarks.step import FORMATS, NETWORKS, choose_networks, machine, positive, ratios, spread, table, take_turns
from benchmarks.work import LR, MOMENTUM, SEED, built, examples
from minifit import fitnets
from minifit.backend import describe, to_host, use

TURN = 0.1  # seconds
CHECKED = 8  # images
PRODUCTS = {"float32": "0", "TF32": "1"}  # and what CUPY_TF32 is then


def main(arguments=None):
    options = parse(arguments)
    print(", ".join(map(str, describe(use("cupy")).values())), machine(), sep="; ", flush=True)
    what = [(network,) for network in options.network]
    what += [(name, key) for name in options.experiment for key in options.stage]
    rows = [row for products in PRODUCTS for row in compared(what, products, options)]
    header = ["what", "batch", "products", "minifit ms", *(f"PyTorch {format} ms" for format in FORMATS)]
    print("\n" + table([*header, "ratio", "paired"], rows))
    for products in PRODUCTS:
        speedups = [float(row[-2]) for row in rows if row[2] == products]
        print(f"\nGeometric mean of the ratios, {products}: {geometric_mean(speedups):.2f}")


def parse(arguments):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.device", description=__doc__.partition(":")[0] + ".")
    choose_networks(parser, NETWORKS)
    parser.add_argument("--experiment", nargs="*", choices=EXPERIMENTS, default=EXPERIMENTS, help="whose stages")
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--batch", type=positive, nargs="+", default=[128, 1024])
    parser.add_argument("--repeats", type=positive, default=3, help="turns of every contestant")
    return parser.parse_args(arguments)


def compared(what, products, options):
    """Yields the rows of networks and of stages, once the gradients of each have been compared."""
    with ExitStack() as stack:
        stack.callback(os.environ.pop, "CUPY_TF32")
        os.environ["CUPY_TF32"] = PRODUCTS[products]  # for both
        ours, theirs = (stack.enter_context(Child(kind)) for kind in (Ours, Theirs))
        for words, batch in product(what, options.batch):
            if batch == options.batch[0]:
                theirs("agree", words, ours("found", words))
            ours("begin", words, batch)
            theirs("begin", words, batch)
            contestants = {"minifit": lambda: ours("turn")}
            contestants |= {format: lambda format=format: theirs("turn", format) for format in FORMATS}
            times = take_turns(contestants, options.repeats)
            name = ", ".join(getattr(word, "name", word) for word in words)
            row = [name, str(batch), products, *map(spread, times.values()), *ratios(times, FORMATS)]
            print(" | ".join(row), file=sys.stderr, flush=True)
            yield row


def timed(step, wait):
    """Seconds of a step, the mean of a turn's, from an idle GPU to an idle GPU."""
    wait()
    began, count = time.perf_counter(), 0
    while not count or time.perf_counter() - began < TURN:
        step()
        count += 1
        if count % 10 == 0:  # so that the host is not a turn ahead
            wait()
    wait()
    return (time.perf_counter() - began) / count


class Contestant:
    """Answers for all networks and stages, one after another."""

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass


class Ours(Contestant):
    """minifit's steps: of a network on labels, or of a stage."""

    def begin(self, words, batch, dtype=np.float32):
        xp = use("cupy")
        if len(words) == 1:
            self.now = Minifit(words[0], batch, batch, 1, (), dtype, xp=xp)
        else:
            self.now = Stage(words[0], "default", words[1], max(IMAGES, batch), 1, xp, batch)

    def turn(self):
        return timed(self.now._step, use("cupy").cuda.Device().synchronize)

    def found(self, words):
        """(loss, grads) of the first images, as plain numbers, which may leave the process."""
        if len(words) == 1:
            self.begin(words, CHECKED, np.float64)
            loss, grads = self.now.gradient()
        else:
            loss, grads = first_gradient(*words, use("cupy"))
        return float(loss), {name: to_host(g) for name, g in grads.items()}


def first_gradient(name, key, xp):
    """(loss, grads) of a stage in float64."""
    with tempfile.TemporaryDirectory() as folder:
        run = noise_run(name, "default", IMAGES, 1, Path(folder), xp)
        stage = started(run, key, np.float64)
        x, labels = map(xp.asarray, prepared(run.sets["train"], CHECKED))
    x = x.astype(np.float64)
    return fitnets.gradient(stage, x, stage.target and stage.target(x), labels, epoch=1)


class Theirs(Contestant):
    """The same steps by PyTorch; in a stage, with the teacher at each step."""

    def __init__(self):
        import torch

        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = os.environ["CUPY_TF32"] == "1"
        torch.backends.cudnn.benchmark = True
        self.torch = torch

    def begin(self, words, batch):
        from benchmarks import script, twin

        if len(words) == 1:
            twins = {f: twin.Twin(words[0], built(words[0]), f, LR, MOMENTUM, "cuda") for f in FORMATS}
            x, labels = examples(words[0], batch)
            data = {f: (twin.images(x, f, "cuda"), self.torch.from_numpy(labels).cuda()) for f in FORMATS}
            self.steps = {f: lambda f=f: twins[f].step(*data[f]) for f in FORMATS}
            return
        run, x, labels = self.images(*words, max(IMAGES, batch))
        stage, flips = started(run, words[1]), run.task.settings.flips
        scripts = {f: script.Script(stage, x, labels, f, flips, device="cuda") for f in FORMATS}
        rng, self.order = np.random.default_rng(SEED), iter(())

        def step(format):
            indices, self.order = following(self.order, len(x), batch, rng)
            scripts[format].step(self.torch.from_numpy(indices))

        self.steps = {f: lambda f=f: step(f) for f in FORMATS}

    def turn(self, format):
        return timed(self.steps[format], self.torch.cuda.synchronize)

    def images(self, name, key, count):
        with tempfile.TemporaryDirectory() as folder:
            run = noise_run(name, "default", count, 1, Path(folder))
        return run, *prepared(run.sets["train"])

    def agree(self, words, ours):
        from benchmarks import script, twin

        for format in FORMATS:
            if len(words) == 1:
                double = twin.Twin(words[0], built(words[0], np.float64), format, device="cuda")
                theirs = double.gradient(*examples(words[0], CHECKED, np.float64))
            else:
                run, x, labels = self.images(*words, IMAGES)
                x, labels = x[:CHECKED].astype(np.float64), labels[:CHECKED]
                double = script.Script(started(run, words[1], np.float64), x, labels, format, device="cuda")
                theirs = double.agreed(x, labels)
            twin.agree(ours, theirs, f"{words[-1]}, {format}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
