"""The training loop of every stage: epochs, microbatches, early stopping, checkpoints and progress.

A minibatch is cut into microbatches of a few images whose arrays fit the cache, and the microbatches are dealt to
lanes. Each lane adds up its microbatches in order, then the lanes are added in order. So the sum is the same, bit for
bit, for any number of workers. A device takes a minibatch whole.
"""

import shutil
import time
from functools import cache
from math import ceil, isfinite

import numpy as np

from minifit import UserError, stages
from minifit.backend import array_module, to_host
from minifit.composites import frozen, leaves, weights
from minifit.data.progress import Bar
from minifit.fitnets import gradient, measure
from minifit.lab import files, parallel
from minifit.lab.parallel import first, return_freed_memory, shared, team
from minifit.lab.sets import CHUNK, HOST_CHUNK
from minifit.optimizers import average, update

LANES = 8  # the largest number of partial sums of a minibatch; more workers are of no use ...
LANES_MEMORY = 2**27  # ... fewer, but at least two, if they would take more bytes than this
BAR = "{desc} {percentage:3.0f}%|{bar}| {remaining} left, {rate_noinv_fmt}{postfix}"  # in a terminal of WIDE columns
NARROW_BAR, WIDE = "{desc} {percentage:3.0f}%|{bar}| {remaining}", 80
MEASURED_AT_ONCE = 32  # chunks between two updates of the bar


class TrainingError(Exception):
    """Says why a run cannot go on."""


class DataParallel:
    """Computes gradients and errors of a stage, on one device or shared out among a team of processes.

    gradient: the mean loss and gradient over a minibatch;   measure: the mean loss and errors over a whole set.
    """

    def __init__(self, stage, sets, microbatch, workers):
        self.stage, self.xp = stage, array_module(*stage.network.params.values())
        self.on_host = self.xp is np
        if self.on_host:
            share(stage.network)  # before the team is forked, so that every worker reads what the optimiser wrote
        self.params = stage.network.params
        once = cache(frozen)  # one teacher for all sets
        self.sets = {name: s.with_teacher(once) if self.on_host else s.on(self.xp) for name, s in sets.items()}
        self.microbatch = microbatch
        self.chunk = HOST_CHUNK if self.on_host else CHUNK
        sizes = {name: p.size for name, p in self.params.items()}
        self.spans = dict(zip(sizes, np.cumsum([0, *sizes.values()])[:-1].tolist(), strict=True))
        total, dtype = sum(sizes.values()), next(iter(self.params.values())).dtype
        self.lanes = min(LANES, max(2, LANES_MEMORY // (total * dtype.itemsize)))
        self.sums = shared((self.lanes, total), dtype) if self.on_host else None  # a device needs no parts
        self.team = team(workers if self.on_host else 1, {"gradient": self._gradient, "measure": self._measure})

    def gradient(self, indices, epoch, noise, choices=None):
        """Returns (loss, grads) over the minibatch `indices` of the training set; `noise` seeds its masks.

        choices: how each image is augmented; the teacher sees the same augmented images as the student
        """
        n = len(indices)
        if not self.on_host:
            loss, grads = self._part(indices, choices, n, epoch, [noise, 0, 0])
            return float(loss), grads
        parts = [slice(i, i + self.microbatch) for i in range(0, n, self.microbatch)]
        parts = [(indices[part], None if choices is None else choices[part]) for part in parts]
        lanes = min(self.lanes, len(parts))
        losses = self.team.run("gradient", [(k, parts[k::lanes], n, epoch, noise) for k in range(lanes)])
        total = self.team.add(self.sums[:lanes])
        grads = {name: self._view(total, name) for name in self.params}
        return float(sum(losses)), grads

    def measure(self, name, epoch, progress=False):
        """Returns (mean loss, errors) over the set of that name, without noise."""
        n, parts = len(self.sets[name]), []
        jobs = [(name, i, min(i + self.chunk, n), epoch) for i in range(0, n, self.chunk)]
        with bar(f"{self.stage.key}, {name} images", n, progress) as shown:
            for i in range(0, len(jobs), MEASURED_AT_ONCE):
                group = jobs[i : i + MEASURED_AT_ONCE]
                parts += self.team.run("measure", group)
                shown.update(group[-1][2] - group[0][1])
        return sum(loss for loss, _ in parts) / n, sum(errors for _, errors in parts)

    def _gradient(self, job):
        lane, parts, n, epoch, noise = job
        total, loss = self.sums[lane], 0.0
        total[...] = 0
        for i, (indices, choices) in enumerate(parts):
            part_loss, grads = self._part(indices, choices, n, epoch, [noise, lane, i])
            loss += float(part_loss)
            for name, g in grads.items():
                self._view(total, name)[...] += g
        return loss

    def _part(self, indices, choices, n, epoch, noise):
        """(loss, grads) over some images of a minibatch of n, times their share of it."""
        x, target, labels = self.sets["train"].batch(self.xp.asarray(indices), choices)
        step, rng = self.stage.rule or gradient, np.random.default_rng(noise)
        return step(self.stage, x, target, labels, epoch, rng, len(indices) / n)

    def _measure(self, job):
        name, start, stop, epoch = job
        x, target, labels = self.sets[name].batch(slice(start, stop))
        loss, errors = measure(self.stage, x, target, labels, epoch)
        return float(loss) * (stop - start), int(errors)

    def _view(self, vector, name):
        p, start = self.params[name], self.spans[name]
        return vector[start : start + p.size].reshape(p.shape)

    def __enter__(self):
        self.team.__enter__()
        return self

    def __exit__(self, *exception):
        self.team.__exit__(*exception)
        self.sets = {}  # and so the frozen teacher, with what it keeps


def share(layer):
    """Moves the parameters of a network to memory that forked processes share."""
    for leaf in leaves(layer):
        for name, p in leaf.params.items():
            leaf.params[name] = shared(p.shape, p.dtype)
            leaf.params[name][...] = p


def fit(
    stage,
    sets,
    rng,
    path,
    identity,
    microbatch,
    workers,
    log,
    tell=None,
    progress=True,
    until=None,
    draw=None,
    about=None,
):
    """Trains stage.network, saves its state to `path` after every epoch, and ends with the weights of its best epoch.

    Without validation images the last epoch counts as the best.

    sets: {"train", "validation"}: Examples    rng: shuffles and seeds the noise
    identity: what the file was made from; a file with another identity is refused
    log(record) is called before an epoch is saved, so no record is missing after a kill; tell(record) after it.
    until: train until the validation loss is at most this, and take the last epoch
    draw: (rng, n) -> how each of n training images is augmented in an epoch; None: not at all
    about: the description of the network, for the file
    Returns a dictionary: epochs run, best epoch, its validation loss and errors.
    """
    schedule = stage.schedule
    examples, optimizer = DataParallel(stage, sets, microbatch, workers), schedule.make()
    params, updated, n = examples.params, list(weights(stage.network)), len(sets["train"])
    steps, validated = ceil(n / schedule.batch), len(sets["validation"]) > 0
    state = {"epoch": 0, "best_epoch": 0, "best_loss": None, "best_errors": None, "finished": False}
    best, mean = {}, {}  # mean: of the weights, if the schedule averages them
    checkpoint = first(_load)(path)
    if checkpoint:
        state, saved = checkpoint
        state = {name: value for name, value in state.items() if name not in ("network", "figures", "heading")}
        if not _with_values(state.pop("identity")).items() <= _with_values(identity).items():  # earlier ones say less
            raise UserError(f"{path}: made from another teacher or start than there is now; remove it to train again")
        best = saved["best"]
        if not state["finished"]:
            files.restore(params, saved["weights"], path)
            xp = array_module(*params.values())
            optimizer.state = {name: xp.asarray(a) for name, a in saved["optimizer"].items()}
            mean = {name: xp.asarray(a) for name, a in saved.get("mean", {}).items()}
            rng.bit_generator.state = state["rng"]

    with np.errstate(all="ignore"), examples:  # in this order: the team's processes are told too
        while not stopped(state, schedule, until):
            epoch, began, total = state["epoch"] + 1, time.perf_counter(), 0.0
            order = rng.permutation(n)
            choices = draw(rng, n) if draw else None
            with bar(_label(stage, state, schedule, len(sets["validation"])), n, progress) as shown:
                for step in range(steps):
                    parallel.heed()
                    batch = slice(step * schedule.batch, (step + 1) * schedule.batch)
                    indices, chosen = order[batch], None if choices is None else choices[batch]
                    updates = (epoch - 1) * steps + step
                    schedule.adjust(optimizer, epoch, updates)
                    loss, grads = examples.gradient(indices, epoch, int(rng.integers(2**63)), chosen)
                    if not isfinite(loss):
                        raise TrainingError(_diagnosis(stage, sets["train"], indices, loss, epoch, step + 1))
                    update(optimizer, updated, grads)
                    if schedule.average is not None:
                        average(mean, params, updates + 1, schedule.average)
                    total += loss * len(indices)
                    shown.set_postfix_str(f"loss {total / (shown.n + len(indices)):.4g}", refresh=False)
                    shown.update(len(indices))
            newest = {name: p.copy() for name, p in params.items()}
            files.restore(params, mean or newest, path)
            loss, errors = examples.measure("validation", epoch, progress) if validated else (None, None)
            if validated and not isfinite(loss):
                everyone = np.arange(len(sets["validation"]))
                raise TrainingError(_diagnosis(stage, sets["validation"], everyone, loss, epoch, steps))
            state["epoch"] = epoch
            if not validated or until is not None or improves(stage, loss, errors, state):
                state |= {"best_epoch": epoch, "best_loss": loss, "best_errors": errors}
                best = {name: to_host(p).copy() for name, p in params.items()}
            files.restore(params, newest, path)
            record = {"stage": stage.key, "epoch": epoch, "train_loss": total / n}
            if validated:
                record["validation_loss"] = loss
            if validated and stage.classifies and until is None:
                record["validation_error"] = 100 * errors / len(sets["validation"])
            record |= {"lr": optimizer.lr, "seconds": round(time.perf_counter() - began, 3)}
            record |= stage.loss.figures(epoch)
            parallel.ranks.agree(lambda: {"weights after an epoch": files.digest(params.values())})
            log(record)
            state |= {"finished": False, "rng": rng.bit_generator.state, "commit": files.commit()}
            state["finished"] = stopped(state, schedule, until)
            return_freed_memory()  # a checkpoint is three times the weights
            groups = {"best": best}
            if not state["finished"]:  # nothing goes on from a finished stage
                groups["weights"] = {name: to_host(p) for name, p in params.items()}
                groups["optimizer"] = {name: to_host(a) for name, a in optimizer.state.items()}
                groups |= {"mean": {name: to_host(a) for name, a in mean.items()}} if mean else {}
            first(files.save)(path, {"identity": identity, **state, "network": about}, **groups)
            parallel.heed()
            if tell:
                tell(record)
    files.restore(params, best, path)
    return state


def _with_values(record):
    """Returns a record without the settings that have no value. An earlier file lacks those that are new."""
    entries = record.items() if isinstance(record, dict) else ()
    return {name: _with_values(v) if isinstance(v, dict) else v for name, v in entries if v is not None}


def _load(path):
    """What the file of a stage holds; None where there is none yet."""
    return stages.load(path) if path.exists() else None


def stopped(state, schedule, until=None):
    """Whether training is over: all epochs are run, or `patience` without improvement, or the loss is at `until`."""
    if until is not None and state["best_loss"] is not None and state["best_loss"] <= until:
        return True
    return state["epoch"] >= schedule.epochs or state["epoch"] - state["best_epoch"] >= schedule.patience


def improves(stage, loss, errors, state):
    """Whether an epoch is the best so far: it has the fewest errors; for a stage without logits, the lowest loss."""
    if state["best_loss"] is None:
        return True
    return errors < state["best_errors"] if stage.classifies else loss < state["best_loss"]


def bar(label, images, progress):
    """Returns a progress bar over this many images; it stays hidden without `progress`."""
    form = BAR if progress and shutil.get_terminal_size().columns >= WIDE else NARROW_BAR
    look = {"unit": "img", "unit_scale": True, "dynamic_ncols": True, "bar_format": form, "leave": False}
    return Bar(total=images, desc=label, disable=not progress, **look)


def _label(stage, state, schedule, images):
    label = f"{stage.key} {state['epoch'] + 1}/{schedule.epochs}"
    if state["best_loss"] is None:
        return label
    best = f"{100 * state['best_errors'] / images:.2f} %" if stage.classifies else f"{state['best_loss']:.4g}"
    return f"{label}, best {best}"


def _diagnosis(stage, examples, indices, loss, epoch, step):
    """Returns an error message with the first layer whose output is not finite."""
    xp = array_module(*stage.network.params.values())
    message = f"{stage.key}, epoch {epoch}, step {step}: the loss is {loss}; not finite"
    culprits, place = [], "in the loss alone"

    def see(layer, x):
        if not np.isfinite(to_host(layer(x))).all():
            culprits.append(layer)

    for start in range(0, len(indices), CHUNK):
        x, target, _ = examples.batch(indices[start : start + CHUNK])
        outputs = () if target is None else target if isinstance(target, tuple) else (target,)
        if not all(np.isfinite(to_host(y)).all() for y in outputs):
            place = "in the teacher's output"
        stage.network.visit(stage.sees(xp.asarray(x)), see)
        for name, child in (stage.network.children or {"0": stage.network}).items():
            if culprits and culprits[0] in leaves(child):
                layer = f"layer {int(name) + 1}" if name.isdigit() else name
                return f"{message} first in {layer}, {type(culprits[0]).__name__}"
    return f"{message} {place}"
