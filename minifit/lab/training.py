"""Epochs, slices, early stopping, checkpoints and progress: a loop that knows no loss.

A minibatch is cut into slices of a few images whose arrays fit the cache, and the slices are dealt to lanes. Each
lane adds up its own slices in order, then the lanes are added in order: the sum is the same, bit for bit, whatever the
number of workers that compute the lanes.
"""

import sys
import time
from dataclasses import dataclass
from math import ceil, isfinite
from typing import Literal

import numpy as np

from minifit import UserError
from minifit.data import augment
from minifit.lab import files as checkpoints
from minifit.backend import array_module, to_host
from minifit.fitnets import gradient, linear, measure
from minifit.layers import Sequential
from minifit.optimizers import SGD, RMSProp, max_norm
from minifit.data.progress import Bar
from minifit.lab.parallel import Team, return_freed_memory, shared

LANES = 8  # the most partial sums of a minibatch, and so the most workers of use ...
LANES_MEMORY = 2**27  # ... and fewer, but two at least, where they would take more bytes than this
CHUNK, HOST_CHUNK = 250, 64  # images that are evaluated at once, on a device and on a host


class TrainingError(Exception):
    """A run that cannot go on, and why."""


@dataclass(frozen=True)
class Schedule:
    """How a network is trained."""

    optimizer: Literal["sgd", "rmsprop"]
    lr: float
    epochs: int  # at most
    patience: int  # epochs without improvement on the validation images after which training stops
    batch: int = 128  # the paper's, A.1.2 and A.2
    lr_final: float = 1.0  # times lr at epoch lr_end, reached linearly
    lr_end: int = 1
    lr_decay: float = 1.0  # divides lr after every update
    momentum: float = 0.0
    momentum_final: float | None = None  # at epoch momentum_end, reached linearly; None: momentum stays
    momentum_end: int = 1
    conv_lr: float = 1.0  # times lr, for the weights and biases of convolutions

    def make(self, rates=None):
        """The optimiser; rates: {parameter name: times lr}."""
        return RMSProp(self.lr, rates=rates) if self.optimizer == "rmsprop" else SGD(self.lr, self.momentum, rates)

    def adjust(self, optimizer, epoch, updates):
        """Sets the learning rate and momentum of an epoch, counted from 1, after so many updates."""
        scale = linear(1.0, self.lr_final, 1, self.lr_end)(epoch)
        optimizer.lr = self.lr * scale * self.lr_decay**-updates
        if self.optimizer == "sgd":
            last = self.momentum if self.momentum_final is None else self.momentum_final
            optimizer.momentum = linear(self.momentum, last, 1, self.momentum_end)(epoch)


@dataclass(frozen=True)
class Examples:
    """Images, labels, and what the teacher makes of the images (None for a stage without it)."""

    x: np.ndarray
    labels: np.ndarray
    target: np.ndarray | None = None

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return Examples(self.x[index], self.labels[index], None if self.target is None else self.target[index])


class Pass:
    """The two things that are done with examples, on one device or shared out among a team of processes.

    gradient: the mean loss and gradient over a minibatch;   measure: the mean loss and errors over a whole set.
    """

    def __init__(self, stage, sets, slice_size, workers):
        self.stage, self.xp = stage, array_module(*stage.network.params.values())
        self.on_host = self.xp is np
        if self.on_host:
            share(stage.network)  # before the team is forked, so that every worker reads what the optimiser wrote
        self.params = stage.network.params
        self.sets = sets if self.on_host else {name: self._upload(s) for name, s in sets.items()}
        self.slice_size = slice_size if self.on_host else sys.maxsize
        self.chunk = HOST_CHUNK if self.on_host else CHUNK
        sizes = {name: p.size for name, p in self.params.items()}
        self.spans = dict(zip(sizes, np.cumsum([0, *sizes.values()])[:-1].tolist(), strict=True))
        total, dtype = sum(sizes.values()), next(iter(self.params.values())).dtype
        self.lanes = min(LANES, max(2, LANES_MEMORY // (total * dtype.itemsize)))
        self.sums = shared((self.lanes, total), dtype) if self.on_host else self.xp.zeros((1, total), dtype)
        self.team = Team(workers if self.on_host else 1, {"gradient": self._gradient, "measure": self._measure})

    def gradient(self, indices, epoch, noise, choices=None):
        """(loss, grads) over the minibatch `indices` of the training set; noise seeds its masks.

        choices: how each image is augmented; the teacher then sees the very images that the student does
        """
        n = len(indices)
        ends = [slice(i, i + self.slice_size) for i in range(0, n, self.slice_size)]
        slices = [(indices[part], None if choices is None else choices[part]) for part in ends]
        lanes = min(self.lanes, len(slices))
        losses = self.team.run("gradient", [(k, slices[k::lanes], n, epoch, noise) for k in range(lanes)])
        total = self.sums[0]
        for lane in range(1, lanes):
            total += self.sums[lane]
        grads = {name: self._view(total, name) for name in self.params}
        return float(sum(losses)), grads

    def measure(self, name, epoch):
        """(mean loss, errors) over the set of that name, without noise."""
        n = len(self.sets[name])
        parts = self.team.run("measure", [(name, i, min(i + self.chunk, n), epoch) for i in range(0, n, self.chunk)])
        return sum(loss for loss, _ in parts) / n, sum(errors for _, errors in parts)

    def _gradient(self, job):
        lane, slices, n, epoch, noise = job
        total, loss = self.sums[lane], 0.0
        total[...] = 0
        for i, (indices, choices) in enumerate(slices):
            part = self.sets["train"][self.xp.asarray(indices)]
            if choices is not None:
                part = self._augmented(part, choices)
            rng = np.random.default_rng([noise, lane, i])
            part_loss, grads = gradient(self.stage, part.x, part.target, part.labels, epoch, rng, len(indices) / n)
            loss += float(part_loss)
            for name, g in grads.items():
                self._view(total, name)[...] += g
        return loss

    def _augmented(self, part, choices):
        x = augment.apply(part.x, choices)
        return Examples(x, part.labels, None if self.stage.target is None else self.stage.target(x))

    def _measure(self, job):
        name, start, stop, epoch = job
        part = self.sets[name][start:stop]
        loss, errors = measure(self.stage, part.x, part.target, part.labels, epoch)
        return float(loss) * (stop - start), int(errors)

    def _upload(self, examples):
        target = None if examples.target is None else self.xp.asarray(examples.target)
        return Examples(self.xp.asarray(examples.x), self.xp.asarray(examples.labels), target)

    def _view(self, vector, name):
        p, start = self.params[name], self.spans[name]
        return vector[start : start + p.size].reshape(p.shape)

    def __enter__(self):
        self.team.__enter__()
        return self

    def __exit__(self, *exception):
        self.team.__exit__(*exception)


def share(layer):
    """Moves the parameters of a layer, or of all layers of a network, to memory that forked processes share."""
    if isinstance(layer, Sequential):
        for inner in layer:
            share(inner)
        return
    for name, p in layer.params.items():
        layer.params[name] = shared(p.shape, p.dtype)
        layer.params[name][...] = p


def outputs(network, x, workers, progress=False):
    """network(x) for all images, on the host, without noise: what a teacher says of a set that does not change."""
    params = next(iter(network.params.values()))
    xp = array_module(params)
    chunk = HOST_CHUNK if xp is np else CHUNK
    shape = network(xp.asarray(x[:1])).shape[1:]
    result = shared((len(x), *shape), params.dtype)

    def part(start):
        result[start : start + chunk] = to_host(network(xp.asarray(x[start : start + chunk])))

    jobs = range(0, len(x), chunk)
    bar = Bar(total=len(x), unit="img", unit_scale=True, leave=False, disable=not progress, desc="teacher's outputs")
    with Team(workers if xp is np else 1, {"outputs": part}) as team, bar:
        for i in range(0, len(jobs), 50):
            team.run("outputs", jobs[i : i + 50])
            bar.update(min(50 * chunk, len(x) - bar.n))
    return result


def fit(
    stage,
    schedule,
    sets,
    rng,
    path,
    identity,
    slice_size,
    workers,
    log,
    tell=None,
    progress=True,
    until=None,
    draw=None,
):
    """Trains stage.network, keeps its state in `path` after every epoch, and leaves it at its best epoch.

    Without validation images to choose by, that is the last.

    sets: {"train", "validation"}: Examples    rng: shuffles and seeds the noise    identity: what the file must be of
    log(record) before an epoch is saved, so that none is missing after a kill; tell(record) when it is safe.
    until: the validation images are trained on too, and training goes on until their loss is no larger than this; the
    last epoch is kept, for nothing is left to choose by.
    draw: (rng, n) -> how each of n training images is augmented, anew in every epoch; None: they stay as they are
    Returns what was chosen: epochs run, best epoch, its validation loss and errors.
    """
    examples, optimizer = Pass(stage, sets, slice_size, workers), schedule.make(stage.rates)
    params, n = examples.params, len(sets["train"])
    steps, validated = ceil(n / schedule.batch), len(sets["validation"]) > 0
    state = {"epoch": 0, "best_epoch": 0, "best_loss": None, "best_errors": None, "finished": False}
    best = {}
    if path.exists():
        state, saved = checkpoints.load(path)
        if state.pop("identity") != identity:
            raise UserError(f"{path}: made from another teacher or start than there is now; remove it to train again")
        best = saved["best"]
        if not state["finished"]:
            checkpoints.restore(params, saved["weights"], path)
            xp = array_module(*params.values())
            optimizer.state = {name: xp.asarray(a) for name, a in saved["optimizer"].items()}
            rng.bit_generator.state = state["rng"]

    with np.errstate(all="ignore"), examples:  # in this order: the team's processes are told too
        while not stopped(state, schedule, until):
            epoch, began, total = state["epoch"] + 1, time.perf_counter(), 0.0
            order = rng.permutation(n)
            choices = draw(rng, n) if draw else None
            bar = Bar(
                total=n,
                unit="img",
                unit_scale=True,
                leave=False,
                disable=not progress,
                desc=_label(stage, state, schedule, len(sets["validation"])),
            )
            with bar:
                for step in range(steps):
                    batch = slice(step * schedule.batch, (step + 1) * schedule.batch)
                    indices, chosen = order[batch], None if choices is None else choices[batch]
                    schedule.adjust(optimizer, epoch, (epoch - 1) * steps + step)
                    loss, grads = examples.gradient(indices, epoch, int(rng.integers(2**63)), chosen)
                    if not isfinite(loss):
                        raise TrainingError(_diagnosis(stage, sets["train"][indices], loss, epoch, step + 1))
                    optimizer.step(params, grads)
                    for name, limit in (stage.norms or {}).items():
                        max_norm(params[name], limit)
                    total += loss * len(indices)
                    bar.set_postfix_str(f"loss {total / (bar.n + len(indices)):.4g}", refresh=False)
                    bar.update(len(indices))
            loss, errors = examples.measure("validation", epoch) if validated else (None, None)
            if validated and not isfinite(loss):
                raise TrainingError(_diagnosis(stage, sets["validation"], loss, epoch, steps))
            state["epoch"] = epoch
            if not validated or until is not None or improves(stage, loss, errors, state):
                state |= {"best_epoch": epoch, "best_loss": loss, "best_errors": errors}
                best = {name: to_host(p).copy() for name, p in params.items()}
            record = {"stage": stage.name, "epoch": epoch, "train_loss": total / n}
            if validated:
                record["validation_loss"] = loss
            if validated and stage.classifies and until is None:
                record["validation_error"] = 100 * errors / len(sets["validation"])
            record |= {"lr": optimizer.lr, "seconds": round(time.perf_counter() - began, 3)}
            log(record)
            state |= {"finished": False, "rng": rng.bit_generator.state}
            state["finished"] = stopped(state, schedule, until)
            return_freed_memory()  # a checkpoint is three times the weights
            groups = {"best": best}
            if not state["finished"]:  # nothing goes on from a finished stage
                groups["weights"] = {name: to_host(p) for name, p in params.items()}
                groups["optimizer"] = {name: to_host(a) for name, a in optimizer.state.items()}
            checkpoints.save(path, {"identity": identity, **state}, **groups)
            if tell:
                tell(record)
    checkpoints.restore(params, best, path)
    return state


def stopped(state, schedule, until=None):
    """Whether training is over: all epochs run, or `patience` of them without improvement, or the loss `until` met."""
    if until is not None and state["best_loss"] is not None and state["best_loss"] <= until:
        return True
    return state["epoch"] >= schedule.epochs or state["epoch"] - state["best_epoch"] >= schedule.patience


def improves(stage, loss, errors, state):
    """Whether an epoch is the best so far: fewer errors than any before it; for a hint, a lower loss."""
    if state["best_loss"] is None:
        return True
    return errors < state["best_errors"] if stage.classifies else loss < state["best_loss"]


def _label(stage, state, schedule, images):
    label = f"{stage.name} {state['epoch'] + 1}/{schedule.epochs}"
    if state["best_loss"] is None:
        return label
    best = f"{100 * state['best_errors'] / images:.2f} %" if stage.classifies else f"{state['best_loss']:.4g}"
    return f"{label}, best validation {best}"


def _diagnosis(stage, examples, loss, epoch, step):
    """Names the first layer that gives a number that is not finite."""
    said = f"{stage.name}, epoch {epoch}, step {step}: the loss is {loss}; not finite"
    for start in range(0, len(examples), CHUNK):
        x = array_module(*stage.network.params.values()).asarray(examples.x[start : start + CHUNK])
        for i, block in enumerate(stage.network):
            for layer in block if isinstance(block, Sequential) else [block]:
                x = layer(x)
                if not np.isfinite(to_host(x)).all():
                    return f"{said} first in layer {i + 1}, {type(layer).__name__}"
    return f"{said} in the loss alone"
