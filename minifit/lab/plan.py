"""What lies ahead of a run: its stages, their sizes, and about how long they will take."""

import time
from math import prod

import numpy as np

from minifit import fitnets, networks, regressors
from minifit.lab.training import Pass

LOSSES = {
    "teacher": "labels",
    "teacher_all": "labels",
    "backprop": "labels",
    "kd": "eq. 2",
    "fitnet": "eq. 2",
}


def outline(run, stages):
    """What `plan_table` shows of each stage, with a time estimated from one minibatch through its network."""
    image = run.xp.asarray(run.sets["train"].x[:1])
    rows, known = [], {}
    for name in stages:
        of = "teacher" if name.startswith("teacher") else "student"
        trains, network, target = run.networks[of].name, run.teacher(trained=False), None
        if of == "student":
            network, teacher = run.student(), network
            target = teacher if name in ("kd", "fitnet") else None
        if name in run.hints:
            stage = run.hint_stage(name, network, teacher)
            trains += f", layers 1-{run.pair(name)[1]}, and regressor"
            network, target = stage.network, stage.target
        counts = networks.count(network, image)
        state, schedule = run.directory.state(name), run.schedule(name)
        done = int(state.split()[-1]) if state.startswith("at") else 0
        what = trains, target is not None and run.draw() is not None
        if state != "finished" and what not in known:
            known[what] = seconds(run, network, name, target)
        rows.append(
            {
                "stage": name,
                "trains": trains,
                "loss": LOSSES.get(name, "eq. 3"),
                "weights": sum(w for w, _ in counts),
                "multiplications": sum(m for _, m in counts),
                "epochs": schedule.epochs,
                "estimate": known.get(what, 0) * (schedule.epochs - done),
                "state": state,
            }
        )
    return rows


def seconds(run, network, name, target=None):
    """About how long an epoch takes: by one minibatch forward and back, and one forward for validation.

    Where images are augmented, the teacher's forward pass on them belongs to it.
    """
    stage = fitnets.Stage(name, network, target, lambda y, target, labels, epoch: (0.0, y), classifies=False)
    batch = min(run.schedule(name).batch, run.sizes["train"])
    choices = run.draw()(np.random.default_rng(0), batch) if run.draw() else None
    took = []
    with Pass(stage, {"train": run.sets["train"][:batch]}, run.slice(name), run.workers) as examples:
        for what in (lambda: examples.gradient(np.arange(batch), 1, 0, choices), lambda: examples.measure("train", 1)):
            what()  # once for nothing: the first time fetches memory and plans convolutions
            began = time.perf_counter()
            what()
            took.append(time.perf_counter() - began)
    return sum(t * run.sizes[part] for t, part in zip(took, ("train", "validation"), strict=True)) / batch


def memory(run):
    """Bytes that outputs of the teacher take: of all images that are not augmented they are computed once and kept."""
    teacher = networks.build(run.networks["teacher"], rng=None)
    maps = run.maps(*(teacher[:h] for h in {*run.config.hint, len(teacher)}))
    images = sum(n for part, n in run.sizes.items() if part != "train" or not run.draw())
    return images * sum(map(prod, maps)) * np.dtype(np.float32).itemsize


def teacher_line(run):
    """What is done with the teacher's outputs, and the memory that it takes."""
    kept = f"{memory(run) / 2**20:.0f} MiB"
    if not run.draw():
        return f"The teacher's outputs are computed once and kept: {kept}."
    return (
        "The teacher's outputs are computed anew in every epoch for training images, which are augmented; once for the "
        f"others, and kept: {kept}."
    )


def regressor_lines(run, stages):
    """A line about the regressor of each hint stage, before anything of it is allocated."""
    teacher, student = (networks.build(run.networks[of], rng=None) for of in ("teacher", "student"))
    kind, lines = run.config.regressor, []
    for name in stages:
        if name in run.hints:
            _, g, h = run.pair(name)
            guided, hint = run.maps(student[:g], teacher[:h])
            n = regressors.weights(kind, guided, hint, run.pieces(teacher[h - 1]))
            shapes = " to ".join("x".join(map(str, shape)) for shape in (guided, hint))
            if n or kind == "none":  # else none fits, as the stage itself will say
                lines.append(f"{name}: regressor {kind} from {shapes}, {n:,} weights, {4 * n / 2**20:.1f} MiB.")
    return lines
