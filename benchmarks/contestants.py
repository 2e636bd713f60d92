"""Who is measured: minifit, PyTorch and the cores' own matrix product, each in a process of its own.

A coordinator hands the turn round through pipes, so that nobody forks where another library has started threads, and
memory is counted apart. `with Child(Minifit, ...) as ours: ours("step", 3)`.
"""

import multiprocessing
import signal
import sys
import time
import traceback
from contextlib import ExitStack

import numpy as np

from benchmarks.work import LR, MOMENTUM, SEED, built, examples, stage
from minifit.composites import weights
from minifit.lab import speed
from minifit.lab.parallel import Team, end
from minifit.lab.sets import Examples
from minifit.lab.training import DataParallel
from minifit.optimizers import SGD, update

PRODUCT = 1536  # rows and columns of the matrices whose product is the ceiling


class Child:
    """A contestant in a process of its own, started afresh, from whose methods it answers."""

    def __init__(self, make, *arguments):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, make, arguments))
        self.process.start()
        theirs.close()

    def __call__(self, method, *arguments):
        try:
            self.pipe.send((method, arguments))
            answer, error = self.pipe.recv()
        except (EOFError, OSError):
            end([self.process])
            raise RuntimeError(f"the process measured ended (exit code {self.process.exitcode})") from None
        if error:
            raise RuntimeError(f"the process measured failed:\n{error}")
        return answer

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.pipe.close()
        if exception[0] is not None:
            self.process.terminate()
        end([self.process])


def _serve(pipe, make, arguments):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the coordinator, which then closes the pipe
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # an exception, so that a team is ended too
    with make(*arguments) as contestant:
        while True:
            try:
                method, arguments = pipe.recv()
            except EOFError:
                return
            try:
                pipe.send((getattr(contestant, method)(*arguments), None))
            except Exception:
                pipe.send((None, traceback.format_exc()))


class AsTheyAre:
    """Prepares nothing."""

    def __call__(self, images):
        return images

    def on(self, xp):
        return self


def turn(step, seconds):
    """The median time of a step among as many as fit the seconds, and at least one.

    The first of several finds the caches as another left them; the median is not moved by it.
    """
    times, began = [], time.perf_counter()
    while not times or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


class Minifit:
    """Training steps and evaluation as minifit.lab.training does them, of images that are prepared already."""

    def __init__(self, network, batch, microbatch, count, sizes=(), dtype=np.float32, sure=False, xp=np):
        self.batch, self.steps = batch, 0
        given = {"train": examples(network, batch, dtype, sure)} | {str(n): examples(network, n, dtype) for n in sizes}
        sets = {name: Examples(x, labels, AsTheyAre()) for name, (x, labels) in given.items()}
        self.before = memory(["self"], "VmRSS")
        self.layers = built(network, dtype, xp)
        self.optimizer = SGD(LR, MOMENTUM)
        self.parallel = DataParallel(stage(self.layers), sets, microbatch, count)
        self.updated = list(weights(self.layers))

    def __enter__(self):
        self.parallel.__enter__()
        team = [process.pid for process in self.parallel.team.processes]
        self.before += memory(team, "VmRSS")
        return self

    def __exit__(self, *exception):
        self.parallel.__exit__(*exception)

    def step(self, seconds=0.0):
        return turn(self._step, seconds)

    def _step(self):
        _, grads = self.gradient()
        update(self.optimizer, self.updated, grads)
        self.steps += 1

    def gradient(self):
        return self.parallel.gradient(np.arange(self.batch), 1, self.steps)

    def evaluate(self, n, seconds):
        return turn(lambda: self.measure(n), seconds)

    def measure(self, n):
        return self.parallel.measure(str(n), 1)

    def weights(self):
        return {name: p.copy() for name, p in self.layers.params.items()}

    def grown(self):
        """Bytes: the peak of every process of the team, less what it held before the network was built.

        What they share, and never give back, counts once. An upper bound, for they need not peak at the same time.
        """
        team = ["self", *(process.pid for process in self.parallel.team.processes)]
        shared = [memory([process], "RssShmem") for process in team]
        return memory(team, "VmHWM") - sum(shared) + max(shared) - self.before


class Torch:
    """The same steps by PyTorch, in the memory format that is asked for."""

    def __init__(self, network, batch, threads, sizes=(), sure=False):
        import torch

        from benchmarks import twin

        # The policy of waiting is left as it is: its threads spin between the operations of a step, which helps it.
        torch.set_num_threads(threads)
        self.network, self.twin = network, twin
        self.twins, self.data = {}, {}
        for format in twin.FORMATS:
            self.twins[format] = twin.Twin(network, built(network), format, LR, MOMENTUM)
            for n in {batch, *sizes}:
                x, labels = examples(network, n, sure=sure)
                self.data[format, n] = twin.images(x, format), torch.from_numpy(labels)
        self.batch = batch

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def check(self):
        return self.twin.check(self.network)

    def agree(self, ours, format):
        """The relative error between (loss, grads) of minifit's first minibatch, in float64, and the twin's."""
        twin = self.twin.Twin(self.network, built(self.network, np.float64), format)
        theirs = twin.gradient(*examples(self.network, self.batch, np.float64))
        return self.twin.agree(ours, theirs, f"{self.network.name}, minibatch, {format}")

    def step(self, format, seconds=0.0):
        twin, given = self.twins[format], self.data[format, self.batch]
        return turn(lambda: twin.step(*given), seconds)

    def evaluate(self, format, n, seconds):
        return turn(lambda: self.measure(format, n), seconds)

    def measure(self, format, n):
        return self.twins[format].measure(*self.data[format, n])


class Engine:
    """The forward pass from bytes to probabilities, as `run.py speed` measures it.

    engine: "minifit", or "onnxruntime", which runs the model that `run.py export` writes
    """

    def __init__(self, engine, network, threads, sizes):
        self.stack, rng = ExitStack(), np.random.default_rng(SEED)
        self.answer = speed.engines(threads, max(sizes))[engine](speed.drawn(network), self.stack)
        self.images = {n: rng.integers(0, 256, (n, *network.input), np.uint8) for n in sizes}

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.stack.close()

    def probabilities(self, n):
        answer = self.answer(self.images[n])
        return answer[0] if isinstance(answer, list) else answer

    def evaluate(self, n, seconds):
        return turn(lambda: self.answer(self.images[n]), seconds)


class Ceiling:
    """A large float32 matrix product on every core at once: GFLOP/s of them all."""

    def __init__(self, count):
        rng = np.random.default_rng(SEED)
        a, b = rng.standard_normal((2, PRODUCT, PRODUCT), np.float32)
        c = np.empty_like(a)
        self.count = count
        self.team = Team(count, {"multiply": lambda _: np.matmul(a, b, out=c) is None})

    def __enter__(self):
        self.team.__enter__()
        return self

    def __exit__(self, *exception):
        self.team.__exit__(*exception)

    def step(self, seconds=0.0):
        time_of_one = turn(lambda: self.team.run("multiply", range(self.count)), seconds)
        return 2e-9 * PRODUCT**3 * self.count / time_of_one


def memory(processes, field):
    """Bytes of a field of /proc/<pid>/status, summed; 0 where there is none, as on other systems than Linux."""
    total = 0
    for process in processes:
        try:
            with open(f"/proc/{process}/status") as file:
                total += sum(1024 * int(line.split()[1]) for line in file if line.startswith(field + ":"))
        except FileNotFoundError:
            return 0
    return total
