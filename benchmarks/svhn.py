"""Memory and speed on a made-up SVHN of the full size, 598,388 training images: python -m benchmarks.svhn FOLDER

The three files, of noise, take 1.9 GB in FOLDER, and the cache as much again. Memory is the sum over all processes at
work, each page that several share counted once, sampled while the files are read for the first time, again from the
cache, and while minibatches of the paper's settings pass; beside it stand the images/s of FitNet 3, the same network,
on CIFAR's whitened images.
"""

import argparse
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.step import machine, positive, table
from minifit import data, experiments
from minifit.composites import weights
from minifit.data import svhn
from minifit.lab.parallel import available
from minifit.lab.plan import microbatch
from minifit.lab.runner import set_up
from minifit.lab.training import DataParallel
from minifit.optimizers import update

STEPS = 12  # minibatches that are timed, after one that is not
BATCH, BLOCK = 128, 1000


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.svhn", description=__doc__.partition(":")[0] + ".")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--workers", type=positive, default=available())
    parser.add_argument("--part", choices=("read", "svhn", "cifar10-fitnet3"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.part:
        return print("\n".join(work(options)), flush=True)
    print(machine(), flush=True)
    for name, (_, count) in svhn.FILES.items():
        make(options.folder / name, count)
    rows = []
    for what, part in (("first reading", "read"), ("again", "read"), ("", "svhn"), ("", "cifar10-fitnet3")):
        text, peak, seconds = watched([*sys.argv[1:], "--part", part])
        for line in text.strip().splitlines() or [f"{what}\t-"]:
            name, speed = line.split("\t")
            rows.append([name if part != "read" else what, speed, f"{peak / 2**20:,.0f}", f"{seconds:.0f}"])
    print("\n" + table(["what", "images/s", "peak, MiB", "seconds in all"], rows))


def make(path, count):
    """A file in the published layout, not compressed, of noise."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    rng, temporary = np.random.default_rng(0), path.with_suffix(".tmp")

    def matrix(name, shape, content):
        def element(kind, body):
            return struct.pack("<II", kind, len(body)) + body + bytes(-len(body) % 8)

        size = int(np.prod(shape))
        head = element(6, bytes([9, 0, 0, 0, 0, 0, 0, 0])) + element(5, np.array(shape, "<i4").tobytes())
        head += element(1, name)
        file.write(struct.pack("<II", 14, len(head) + 8 + size + -size % 8) + head + struct.pack("<II", 2, size))
        for block in content:
            file.write(block)
        file.write(bytes(-size % 8))

    with open(temporary, "wb") as file:
        file.write(b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM")
        noise = rng.integers(0, 256, (BLOCK, 3072), np.uint8)  # the same in every block, each time turned
        blocks = (np.roll(noise, i, axis=1)[: min(BLOCK, count - i)].tobytes() for i in range(0, count, BLOCK))
        matrix(b"X", (32, 32, 3, count), blocks)
        matrix(b"y", (count, 1), [(np.arange(count) % 10 + 1).astype(np.uint8).tobytes()])
    temporary.rename(path)


def watched(arguments):
    """(what a run of this module prints, the most memory of its processes, seconds)"""
    began, peak = time.perf_counter(), 0
    command = [sys.executable, "-m", "benchmarks.svhn", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            peak = max(peak, memory(process.pid))
            time.sleep(0.1)
        return process.stdout.read(), peak, time.perf_counter() - began


def memory(parent):
    """Bytes of a process and all below it: proportional set size, in which shared pages count once."""
    total, waiting = 0, [parent]
    while waiting:
        pid = waiting.pop()
        try:
            waiting += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except OSError:  # it has ended
            pass
    return total


def work(options):
    """Lines of a name and images/s: of the stages of a method, for some minibatches each."""
    if options.part == "read":
        data.load("svhn", options.folder, progress=False)
        return
    of_svhn = options.part == "svhn"
    experiment = experiments.EXPERIMENTS[options.part]
    config = replace(experiment.presets["paper"], flips=False)
    if of_svhn:
        dataset = data.load("svhn", options.folder, progress=False)
    else:
        few = np.random.default_rng(0).integers(0, 256, (5000, 32, 32, 3), np.uint8)
        dataset = data.Dataset("noise", few, np.arange(5000) % 10, few[:128], np.arange(128) % 10)
        config = replace(config, train=4000, validation=1000)
    with tempfile.TemporaryDirectory() as folder:
        about = Path(folder), options.part, "paper", experiment, config, 0, dataset, np, options.workers
        run = set_up(*about, progress=False)
        for key, (_, stage) in run.plan.stages.items():
            yield f"{options.part}, {key}\t{speed(run, stage):.1f}"


def speed(run, stage):
    """Images/s of some minibatches; the teacher is asked for the images of each, and once for the other sets."""
    for part in ("validation", "test"):
        run.sets.taught(part, stage.target, run.workers)  # which keeps the outputs that fit
    examples = replace(run.sets["train"], teacher=stage.target)
    optimizer, took = stage.schedule.make(), []
    with DataParallel(stage, {"train": examples}, microbatch(run.task, stage), run.workers) as parallel:
        order = np.random.default_rng(0).permutation(len(examples))
        for step in range(1 + STEPS):
            began = time.perf_counter()
            _, grads = parallel.gradient(order[step * BATCH % len(order) :][:BATCH], 1, step)
            update(optimizer, weights(stage.network), grads)
            took.append(time.perf_counter() - began)
    return STEPS * BATCH / sum(took[1:])


if __name__ == "__main__":
    main()
