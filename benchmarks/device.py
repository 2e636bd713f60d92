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
from pathlib import Path
from statistics import geometric_mean

import numpy as np

from benchmarks import stages
from benchmarks.contestants import Child, Minifit
from benchmarks.stages import EXPERIMENTS, IMAGES, STAGES, following, noise_run, prepared, started
from benchmarks.step import FORMATS, NETWORKS, choose_networks, machine, positive, ratios, spread, table, take_turns
from benchmarks.work import LR, MOMENTUM, SEED, built, examples
from minifit import fitnets
from minifit.backend import describe, to_host, use

TURN = 0.2  # seconds
CHECKED = 8  # images
PRODUCTS = {"float32": "0", "TF32": "1"}  # and what CUPY_TF32 is then


def main(arguments=None):
    options = parse(arguments)
    print(", ".join(map(str, describe(use("cupy")).values())), machine(), sep="; ", flush=True)
    contests = [(network.name, Steps, TorchSteps, (network,)) for network in options.network]
    of = [(name, key) for name in options.experiment for key in options.stage]
    contests += [(", ".join(words), Stage, TorchStage, words) for words in of]
    rows = [row for contest in contests for row in compared(*contest, options)]
    header = ["what", "batch", "products", "minifit ms", *(f"PyTorch {format} ms" for format in FORMATS)]
    print("\n" + table([*header, "ratio", "paired"], rows))
    for products in PRODUCTS:
        found = [float(row[-2]) for row in rows if row[2] == products]
        print(f"\nGeometric mean of the ratios, {products}: {geometric_mean(found):.2f}")


def parse(arguments):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.device", description=__doc__.partition(":")[0] + ".")
    choose_networks(parser, NETWORKS)
    parser.add_argument("--experiment", nargs="*", choices=EXPERIMENTS, default=EXPERIMENTS, help="whose stages")
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--batch", type=positive, nargs="+", default=[128, 1024])
    parser.add_argument("--repeats", type=positive, default=5, help="turns of every contestant")
    return parser.parse_args(arguments)


def compared(what, ours, theirs, words, options):
    """Yields the rows of a contest, once the gradients have been compared."""
    with Child(ours, *words, CHECKED, np.float64) as first, Child(theirs, *words, CHECKED) as second:
        second("agree", first("found"))
    for batch in options.batch:
        for products, tf32 in PRODUCTS.items():
            with ExitStack() as stack:
                stack.callback(os.environ.pop, "CUPY_TF32")
                os.environ["CUPY_TF32"] = tf32  # for both
                first, second = (stack.enter_context(Child(kind, *words, batch)) for kind in (ours, theirs))
                contestants = {"minifit": lambda first=first: first("turn")}
                contestants |= {format: lambda f=format, second=second: second("turn", f) for format in FORMATS}
                times = take_turns(contestants, options.repeats)
            row = [what, str(batch), products, *map(spread, times.values()), *ratios(times, FORMATS)]
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


def on_host(found):
    """(loss, grads) as plain numbers and NumPy arrays, which may leave their process."""
    loss, grads = found
    return float(loss), {name: to_host(g) for name, g in grads.items()}


class Steps(Minifit):
    """minifit's steps on labels."""

    def __init__(self, network, batch, dtype=np.float32):
        super().__init__(network, batch, batch, 1, (), dtype, xp=use("cupy"))

    def found(self):
        return on_host(self.gradient())

    def turn(self):
        return timed(self._step, use("cupy").cuda.Device().synchronize)


class Stage(stages.Stage):
    """minifit's steps of a stage."""

    def __init__(self, name, key, batch, dtype=np.float32):
        self.about, self.dtype = (name, key), dtype
        super().__init__(name, "default", key, max(IMAGES, batch), 1, use("cupy"), batch)

    def found(self):
        return on_host(gradient_of(*self.about, self.batch, use("cupy"), self.dtype))

    def turn(self):
        return timed(self._step, use("cupy").cuda.Device().synchronize)


def gradient_of(name, key, count, xp, dtype):
    """(loss, grads) of a stage on its first images."""
    with tempfile.TemporaryDirectory() as folder:
        run = noise_run(name, "default", IMAGES, 1, Path(folder), xp)
        stage = started(run, key, dtype)
        x, labels = (xp.asarray(a) for a in prepared(run.sets["train"], count))
    x = x.astype(dtype)
    return fitnets.gradient(stage, x, stage.target and stage.target(x), labels, epoch=1)


class OnCuda:
    """What PyTorch's contestants share."""

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def begin(self):
        import torch

        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = os.environ.get("CUPY_TF32") == "1"
        torch.backends.cudnn.benchmark = True
        return torch


class TorchSteps(OnCuda):
    """The same steps by PyTorch."""

    def __init__(self, network, batch):
        self.torch, self.network, self.batch = self.begin(), network, batch
        from benchmarks import twin

        self.twins = {f: twin.Twin(network, built(network), f, LR, MOMENTUM, "cuda") for f in FORMATS}
        x, labels = examples(network, batch)
        self.data = {f: (twin.images(x, f, "cuda"), self.torch.from_numpy(labels).cuda()) for f in FORMATS}

    def agree(self, ours):
        from benchmarks import twin

        for format in FORMATS:
            double = twin.Twin(self.network, built(self.network, np.float64), format, device="cuda")
            theirs = double.gradient(*examples(self.network, self.batch, np.float64))
            twin.agree(ours, theirs, f"{self.network.name}, {format}")

    def turn(self, format):
        return timed(lambda: self.twins[format].step(*self.data[format]), self.torch.cuda.synchronize)


class TorchStage(OnCuda):
    """The same steps of a stage by the PyTorch script, with the teacher at each step."""

    def __init__(self, name, key, batch):
        self.torch, self.about, self.batch = self.begin(), (name, key), batch
        from benchmarks import script

        with tempfile.TemporaryDirectory() as folder:
            run = noise_run(name, "default", max(IMAGES, batch), 1, Path(folder))
        self.x, self.labels = prepared(run.sets["train"])
        stage, flips = started(run, key), run.config.flips
        self.double = started(run, key, np.float64)
        self.scripts = {f: script.Script(stage, self.x, self.labels, f, flips, device="cuda") for f in FORMATS}
        self.rng, self.order = np.random.default_rng(SEED), iter(())

    def agree(self, ours):
        from benchmarks import script, twin

        x, labels = self.x[: self.batch].astype(np.float64), self.labels[: self.batch]
        for format in FORMATS:
            theirs = script.Script(self.double, x, labels, format, device="cuda").agreed(x, labels)
            twin.agree(ours, theirs, f"{self.about}, {format}")

    def turn(self, format):
        return timed(lambda: self._step(self.scripts[format]), self.torch.cuda.synchronize)

    def _step(self, chosen):
        indices, self.order = following(self.order, len(self.x), self.batch, self.rng)
        chosen.step(self.torch.from_numpy(indices))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
