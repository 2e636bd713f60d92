"""One training step of every network, minifit's beside PyTorch's on the same cores: python -m benchmarks.step

Each contestant has a process of its own and they take turns, in an order that rotates, so that what else the machine
does meets them all alike. PyTorch computes the same loss and gradients, which is checked before anything is timed.
"""

import argparse
import hashlib
import importlib.util
import os
import platform
import re
import sys
import time
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from statistics import geometric_mean

import numpy as np
from threadpoolctl import threadpool_info

from benchmarks.contestants import Ceiling, Child, Engine, Minifit, Torch
from benchmarks.work import built
from minifit import networks
from minifit.lab import export
from minifit.lab.parallel import available

NAMES = ("MNIST_TEACHER", "MNIST_FITNET", "CIFAR10_TEACHER", "FITNET_1", "FITNET_2", "FITNET_3", "FITNET_4")
NETWORKS = tuple(getattr(networks, name) for name in NAMES if hasattr(networks, name))
ENGINES = "minifit", "onnxruntime"  # that go from bytes to probabilities
FORMATS = ("NCHW", "channels_last")
SIZES = (1, 128, 1000)  # images evaluated at once

TURN = 0.25  # seconds: a short step is repeated so long, and its median counts
PAUSE = 0.03  # seconds between turns: OpenMP threads spin for some milliseconds after their last work, on others' cores


def main(arguments=None):
    options = parse(arguments)
    print(machine(), flush=True)
    compare = scaling if options.scaling else evaluation if options.evaluate else training
    rows, header = [], None
    for network in options.network:
        print(f"{network.name} ...", file=sys.stderr, flush=True)
        header, network_rows = compare(network, options)
        print(table(header, network_rows), file=sys.stderr, flush=True)
        rows += network_rows
    print("\n" + table(header, rows))
    if not options.scaling:
        sizes = {row[1] for row in rows} if options.evaluate else {None}
        for n in sorted(sizes, key=lambda n: n and int(n)):
            ratios = [float(row[header.index("ratio")]) for row in rows if n in (None, row[1])]
            images = f", {n} images" if n else ""
            print(f"\nGeometric mean of the ratios{images}: {geometric_mean(ratios):.2f}")


def microbatch(network, options):
    """How many images pass together."""
    return options.microbatch or network.microbatch


def parse(arguments):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__.partition(":")[0] + ".")
    choose_networks(parser, NETWORKS)
    parser.add_argument("--workers", type=positive, default=available(), help="processes, and PyTorch's threads")
    parser.add_argument("--batch", type=positive, default=128)
    parser.add_argument("--microbatch", type=positive, help="images at once in minifit; else as the network says")
    parser.add_argument("--images", type=positive, nargs="+", default=SIZES, help="at once, for --evaluate")
    parser.add_argument("--repeats", type=positive, default=15, help="turns of every contestant")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--evaluate", action="store_true", help="forward only, beside onnxruntime too if it is installed")
    what.add_argument("--sure", action="store_true", help="images that the networks are sure of, as late in training")
    what.add_argument("--scaling", action="store_true", help="minifit alone: one worker against more, and same weights")
    options = parser.parse_args(arguments)
    if not options.scaling and importlib.util.find_spec("torch") is None:
        parser.error("PyTorch is not installed; only --scaling does without it")
    return options


def choose_networks(parser, default):
    known = ", ".join(network.name for network in NETWORKS)
    parser.add_argument("--network", nargs="+", type=named, default=default, metavar="NAME", help=f"of: {known}")


def named(text):
    """The network of that name: "FITNET_1", "fitnet-1" and "FitNet 1" are one."""
    wanted = _letters(text)
    for network in NETWORKS:
        if _letters(network.name) == wanted:
            return network
    if wanted in map(_letters, NAMES):
        raise argparse.ArgumentTypeError(f"minifit.networks does not hold {text} yet")
    raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(network.name for network in NETWORKS)}")


def _letters(name):
    return re.sub("[^a-z0-9]", "", name.lower())


def positive(text):
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def take_turns(contestants, repeats):
    """{name: array of `repeats` results} of the functions in contestants, after one turn each to warm up."""
    names, results = list(contestants), {name: [] for name in contestants}
    for name in names:
        contestants[name]()
    for i in range(repeats):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            time.sleep(PAUSE)
            results[name].append(contestants[name]())
    return {name: np.array(values) for name, values in results.items()}


def training(network, options):
    """The rows of the main table for a network: a training step of each contestant."""
    count, batch, sure = options.workers, options.batch, options.sure
    with Child(Torch, network, batch, count, (), sure) as theirs:
        theirs("check")
        # Once more, by the very processes that will be timed, in float64 where no rounding hides a mistake.
        with Child(Minifit, network, batch, microbatch(network, options), count, (), np.float64) as ours:
            gradient = ours("gradient")
        theirs("agree", gradient, FORMATS[0])
        arguments = network, batch, microbatch(network, options), count, (), np.float32, sure
        with Child(Minifit, *arguments) as ours, Child(Ceiling, count) as ceiling:
            contestants = {"minifit": lambda: ours("step", TURN)}
            contestants |= {format: lambda format=format: theirs("step", format, TURN) for format in FORMATS}
            times = take_turns({**contestants, "ceiling": lambda: ceiling("step", TURN)}, options.repeats)
            grown = ours("grown")
    rate = gflops(multiplications(network), batch, np.median(times["minifit"]))
    header = ["network", "minifit ms", *(f"PyTorch {format} ms" for format in FORMATS), "ratio", "paired"]
    header += ["GFLOP/s", "of the ceiling", "peak MiB"]
    row = [network.name, *(spread(times[name]) for name in contestants), *ratios(times, FORMATS)]
    row += [f"{rate:.0f}", f"{rate / np.median(times['ceiling']):.2f} x {np.median(times['ceiling']):.0f}"]
    return header, [[*row, f"{grown / 2**20:.0f}"]]


def evaluation(network, options):
    """The rows of a network's evaluation: forward, loss and errors; beside onnxruntime, from bytes to probabilities."""
    rows, count, sizes = [], options.workers, tuple(options.images)
    arguments = network, options.batch, microbatch(network, options), count, sizes
    with (
        Child(Torch, network, options.batch, count, sizes) as theirs,
        Child(Minifit, *arguments) as ours,
        ExitStack() as stack,
    ):
        names = ENGINES if with_onnx() else ()
        engines = {name: stack.enter_context(Child(Engine, name, network, count, sizes)) for name in names}
        ceiling = stack.enter_context(Child(Ceiling, count))
        for n in sizes:
            loss = ours("measure", n)[0]
            for format in FORMATS:
                if not np.isclose(loss, theirs("measure", format, n)[0], rtol=1e-4):
                    raise AssertionError(f"{network.name}, {n} images: minifit and PyTorch find different losses")
            contestants = {"minifit": lambda n=n: ours("evaluate", n, TURN)}
            contestants |= {f: lambda n=n, f=f: theirs("evaluate", f, n, TURN) for f in FORMATS}
            if engines:
                one, other = (engine("probabilities", n) for engine in engines.values())
                if not np.abs(one - other).max() < 1e-4:
                    raise AssertionError(f"{network.name}, {n} images: minifit and onnxruntime disagree")
            for name, engine in engines.items():
                contestants[f"{name}, from bytes"] = lambda n=n, engine=engine: engine("evaluate", n, TURN)
            times = take_turns({**contestants, "ceiling": lambda: ceiling("step", TURN)}, options.repeats)
            *_, ours_from_bytes, theirs_from_bytes = contestants
            against = ratios(times, [theirs_from_bytes], ours_from_bytes) if engines else []
            row = [network.name, str(n), *(spread(times[name]) for name in contestants), *ratios(times, FORMATS)]
            rows.append([*row, *against, f"{np.median(times['ceiling']):.0f}"])
    header = ["network", "images", "minifit ms", *(f"PyTorch {format} ms" for format in FORMATS)]
    if with_onnx():
        header += [*(f"{e}, from bytes ms" for e in ENGINES), "ratio", "paired", "to onnxruntime", "its paired"]
        return [*header, "ceiling GFLOP/s"], rows
    return [*header, "ratio", "paired", "ceiling GFLOP/s"], rows


def with_onnx():
    return export.there("onnx") and export.there("onnxruntime")


def scaling(network, options):
    """A training step of minifit by 1, 2 and all workers, and whether 1, 2 and 3 leave the same weights."""
    counts = sorted({1, 2, options.workers})
    with ExitStack() as stack:
        children = {
            count: stack.enter_context(Child(Minifit, network, options.batch, microbatch(network, options), count))
            for count in counts
        }
        times = take_turns(
            {count: lambda child=child: child("step", TURN) for count, child in children.items()}, options.repeats
        )
    digests = [digest_after(3, network, options, count) for count in (1, 2, 3)]
    header = ["network", *(f"{count} worker{'s' * (count > 1)} ms" for count in counts)]
    header += [*(f"1 / {count}" for count in counts[1:]), "weights after 3 steps by 1, 2, 3"]
    speedups = [f"{np.median(times[1]) / np.median(times[count]):.2f}" for count in counts[1:]]
    same = "identical" if len(set(digests)) == 1 else "DIFFERENT"
    return header, [[network.name, *(spread(times[count]) for count in counts), *speedups, same]]


def digest_after(steps, network, options, count):
    with Child(Minifit, network, options.batch, microbatch(network, options), count) as ours:
        for _ in range(steps):
            ours("step")
        return digest(ours("weights"))


def digest(arrays):
    """A fingerprint of every bit of the arrays, in the order of their names."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        total.update(name.encode() + arrays[name].tobytes())
    return total.hexdigest()


def multiplications(network):
    """Of one image going forward, by the definition: what a convolution costs before anyone is clever."""
    counts = networks.count(built(network), np.zeros((1, *network.input), np.float32))
    return sum(cost for _, cost in counts)


def gflops(multiplications, batch, seconds):
    """A multiplication and an addition, in three products: the output, the input's and the weights' gradients."""
    return 2e-9 * 3 * multiplications * batch / seconds


def spread(times):
    """Median milliseconds, and the quartiles."""
    low, middle, high = 1e3 * np.quantile(times, [0.25, 0.5, 0.75])
    digits = 0 if middle >= 100 else 1 if middle >= 10 else 2
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def ratios(times, peers, ours="minifit"):
    """The better peer's median over ours, and the median of that peer's time over ours, turn by turn."""
    best = min(peers, key=lambda peer: np.median(times[peer]))
    ours = times[ours]
    return [f"{np.median(times[best]) / np.median(ours):.2f}", f"{np.median(times[best] / ours):.2f}"]


def table(header, rows):
    """A Markdown table whose columns stand in line."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)


def machine():
    """On what was measured: processor, cores, what else ran in the last minute, versions."""
    blas = [f"{lib['internal_api']} {lib['version']}" for lib in threadpool_info() if lib["user_api"] == "blas"]
    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = "none"
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    parts = [f"{processor()}, {available()} cores, {load} at the start", f"Python {platform.python_version()}"]
    return ", ".join([*parts, f"NumPy {np.__version__} ({', '.join(blas)})", f"PyTorch {torch}"])


def processor():
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
