"""The plan of a run: its stages in the order of training, their sizes, and an estimate of their time."""

import textwrap
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from math import prod

import numpy as np

from minifit import UserError, baselines, networks
from minifit.composites import leaves
from minifit.lab.report import count, duration, table
from minifit.lab.sets import Examples, fingerprint
from minifit.lab.training import DataParallel
from minifit.layers import Conv2d, Maxout, MaxPool2d


class Plan:
    """The stages of the chosen and of the default methods, in the order of training, found without training any."""

    def __init__(self, task, methods, epochs):
        """methods: the chosen ones    epochs: stage -> number of epochs, if another run has chosen it"""
        self.methods, self.epochs = methods, epochs
        listed = [m for m in baselines.METHODS if m in methods or m.default]
        self.stages = noted(listed, replace(task))  # a copy of a task has no trained teacher
        # method -> the keys of its stages, including stages that it shares with an earlier method
        self.keys = {method: [*noted([method], replace(task))] for method in listed}

    def up_to(self, goal):
        """Returns [(method, keys of its stages)] up to `goal`: "all", or the name of a method or of a stage."""
        methods = {m.name: (m, self.keys[m]) for m in self.methods if self.keys[m]}  # a given teacher has no stage
        if goal == "all" or goal in methods:
            return [*methods.values()] if goal == "all" else [methods[goal]]
        of = {name: method for method, stage in self.stages.values() for name in (stage.name, stage.key)}
        if goal not in of:
            names = ", ".join(dict.fromkeys([*methods, *of]))
            raise UserError(f"--stage {goal}: wanted one of the stages of these settings, {names}, or all")
        keys = self.keys[of[goal]]
        last = max(i for i, key in enumerate(keys) if goal in (key, self.stages[key][1].name))
        return [(of[goal], keys[: last + 1])]

    def ahead(self, *goals):
        """Returns the keys of all stages that lead to these goals, in order."""
        wanted = {key for goal in goals for _, keys in self.up_to(goal) for key in keys}
        return [key for key in self.stages if key in wanted]

    def before(self, key):
        """Returns the keys of the stages up to and including this one."""
        keys = self.keys[self.stages[key][0]]
        return keys[: keys.index(key) + 1]


def chosen(names=None):
    """Returns the methods of these names, in order; without names, those that a run trains by default."""
    for name in names or ():
        if name not in (known := [method.name for method in baselines.METHODS]):
            raise UserError(f"--method {name}: wanted {', '.join(known)}")
    return tuple(m for m in baselines.METHODS if (m.name in names if names else m.default))


class _Reached(Exception):
    """Ends a walk at its goal."""


def walk(method, task, train, goal=None):
    """Runs a method with this `train`, to its end or to the stage whose key is `goal`.

    A method's second stage of one name gets index 2, and so the key hint_2, a third hint_3.
    """
    seen, passed = Counter(), []

    def numbered(stage):
        seen[stage.name] += 1
        stage = replace(stage, index=seen[stage.name])
        if goal in passed:
            raise _Reached
        record = train(stage)
        passed.append(stage.key)
        return record

    with suppress(_Reached):
        method.run(task, numbered)


def noted(methods, task):
    """Returns {key: (method, stage)} without training; a stage belongs to the first method that trains it."""
    stages = {}
    for method in methods:

        def note(stage, method=method):
            stages.setdefault(stage.key, (method, stage))
            return {"best_epoch": 1}

        walk(method, task, note)
    return stages


def microbatch(task, stage):
    """Returns how many images a stage's network computes at a time on a CPU."""
    return task.settings.microbatch or task.networks[stage.of].microbatch


def counts(task, stage):
    """Returns (weights, multiplications) of each layer that a stage trains."""
    image = task.xp.zeros((0, *task.networks[stage.of].input), np.float32)
    return networks.count(stage.network, stage.sees(image))


def lines(run, goal):
    """Yields the lines before a run: its images, whether the teacher's outputs are kept, and the table of stages."""
    sizes = "{train:,} images to train on, {validation:,} to validate, {test:,} to test".format(**run.sets.sizes)
    yield f"{run.sets.data.name}: {sizes}"
    yield f"seed {run.task.seed}, {run.workers} workers, {run.directory.folder}/"
    stages = {key: run.plan.stages[key][1] for key in run.plan.ahead(goal)}
    if any(stage.target for stage in stages.values()):
        yield textwrap.fill(about_the_teacher(run, stages.values()), 80)
    if run.sets.statistics:
        yield f"Images are whitened with statistics of the training images: {run.sets.statistics}"
        sizes = [
            4 * prod(images.shape) for part, (images, _) in run.sets.stored.items() if run.sets.keeps_whitened(part)
        ]
        if sizes:
            yield f"Whitened images are kept in a temporary file: {sum(sizes) / 2**20:.0f} MiB."
    yield ""
    yield plan_table(outline(run, stages))


def network_table(network, marked=(), mark=""):
    """Returns a table of a network's layers, with their maps, weights and multiplications.

    marked: the numbers of the layers that have this mark
    """
    layers, x, rows = networks.build(network), np.zeros((0, *network.input), np.float32), []
    sizes = networks.count(layers, x)
    for i, (layer, (weights, multiplications)) in enumerate(zip(layers, sizes, strict=True), start=1):
        x = layer(x)
        kinds = ", ".join(map(described, leaves(layer)))
        rows.append(
            [
                f"{i} ({mark})" if i in marked else i,
                kinds,
                "x".join(map(str, x.shape[1:])),
                f"{weights:,}",
                count(multiplications),
            ]
        )
    total = [None, "all", None, f"{sum(w for w, _ in sizes):,}", count(sum(m for _, m in sizes))]
    header = ["layer", "of", "output", "weights", "mult."]
    return f"{network.name}, for images {network.input}\n" + table([*rows, total], header)


def described(layer):
    """Returns the name of a layer, and its kernel, window or pieces: "Conv2d 3x3", "MaxPool2d 2x2", "Maxout 2"."""
    size = ""
    if isinstance(layer, Conv2d):
        size = " {}x{}".format(*layer.params["w"].shape)
    elif isinstance(layer, MaxPool2d):
        size = f" {layer.size}x{layer.size}"
    elif isinstance(layer, Maxout):
        size = f" {layer.pieces}"
    return type(layer).__name__ + size


def about_the_teacher(run, stages):
    """Says whether the teacher's outputs are kept or computed in every epoch, and how much memory they take."""
    needed, anew = {}, []
    for stage in (stage for stage in stages if stage.target):
        for part in run.sets.sizes:
            if run.sets.keeps(part, stage.target):
                needed[part, fingerprint(stage.target)] = run.sets.needs(part, stage.target)
            elif part == "train":
                anew.append(stage.key)
    memory = f"{sum(needed.values()) / 2**20:.0f} MiB"
    if not anew:
        mirrored = " for each image and its mirror image" if run.sets.versions("train") > 1 else ""
        return f"The teacher's outputs{mirrored} are computed once and kept: {memory}."
    why = ", which are cropped" if run.task.settings.crops else f", in {', '.join(anew)} (--targets-memory)"
    return (
        f"The teacher's outputs are computed anew in every epoch for training images{why}; the others are computed "
        f"once and kept: {memory}."
    )


def outline(run, stages):
    """Returns a dictionary per stage: its network, loss, sizes, epochs, state, and estimated seconds."""
    rows, known, task = [], {}, run.task
    for key, stage in stages.items():
        sizes = counts(task, stage)
        state, epochs = run.directory.state(key), run.plan.epochs.get(key, stage.schedule.epochs)
        done = int(state.split()[-1]) if state.startswith("at") else 0
        row = {"stage": key, "trains": task.networks[stage.of].name + stage.part, "loss": stage.loss.title}
        row |= {"weights": sum(w for w, _ in sizes), "multiplications": sum(m for _, m in sizes)}
        asked = stage.target and (None if run.sets.keeps("train", stage.target) else stage.target)  # in every epoch
        same = row["trains"], row["weights"], asked is None
        if state != "finished" and same not in known:
            known[same] = seconds(run, replace(stage, target=asked))
        estimate = known.get(same, 0) * (epochs - done)
        rows.append(row | {"epochs": epochs, "estimate": estimate, "state": state})
    return rows


def seconds(run, stage):
    """Estimates the time of an epoch from one training minibatch and one validation minibatch."""

    def loss(y, target, labels, epoch):
        return 0.0, y

    stage = replace(stage, loss=loss, classifies=False)
    batch = min(stage.schedule.batch, run.sets.sizes["train"])
    choices = run.sets.draw(np.random.default_rng(0), batch) if run.sets.draw else None
    images, labels = (a[:batch] for a in run.sets.stored["train"])
    prepared = run.sets.prepare(images) if run.sets.keeps_whitened("train") else None
    sets, took = {"train": Examples(images, labels, run.sets.prepare, stage.target, prepared)}, []
    with DataParallel(stage, sets, microbatch(run.task, stage), run.workers) as parallel:
        for what in (lambda: parallel.gradient(np.arange(batch), 1, 0, choices), lambda: parallel.measure("train", 1)):
            what()  # not timed: the first time fetches memory and plans convolutions
            began = time.perf_counter()
            what()
            took.append(time.perf_counter() - began)
    return sum(t * run.sets.sizes[part] for t, part in zip(took, ("train", "validation"), strict=True)) / batch


def plan_table(rows):
    """Returns the table of a run's stages, and the time that is left; a finished stage needs none."""
    left = [row["estimate"] for row in rows if row["state"] != "finished"]
    cells = []
    for row in rows:
        state = {"finished": "finished", "to train": duration(row["estimate"])}
        time = state.get(row["state"], f"{duration(row['estimate'])}\n{row['state']}")
        sizes = f"{row['weights']:,}", count(row["multiplications"]), f"{row['epochs']:,}"
        stage, trains, loss = (textwrap.fill(row[name], 20) for name in ("stage", "trains", "loss"))
        cells.append([stage, trains, loss, *sizes, time])
    header = ["stage", "trains", "loss", "weights", "mult.", "epochs", "time"]
    total = f"Left to train: about {duration(sum(left))}." if left else "Nothing is left to train."
    return table(cells, header) + "\n\n" + total
