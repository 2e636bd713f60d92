"""What lies ahead of a run: its stages, their sizes, and about how long they will take."""

import time

import numpy as np

from minifit import fitnets, networks
from minifit.training import Pass

LOSSES = {
    "teacher": "labels",
    "teacher_all": "labels",
    "backprop": "labels",
    "kd": "eq. 2",
    "hint": "eq. 3",
    "fitnet": "eq. 2",
}


def outline(run, stages):
    """What `plan_table` shows of each stage, with a time estimated from one minibatch through its network."""
    image = run.xp.asarray(run.sets["train"].x[:1])
    rows, known = [], {}
    for name in stages:
        c = run.config
        hint = f"student, layers 1-{c.guided}, and regressor"
        trains = {"teacher": "teacher", "teacher_all": "teacher", "hint": hint}.get(name, "student")
        network = run.teacher(trained=False) if trains == "teacher" else run.student()
        if name == "hint":
            network = run.hint_stage(network, run.teacher(trained=False)).network
        counts = networks.count(network, image)
        state, schedule = run.state(name), run.schedule(name)
        done = int(state.split()[-1]) if state.startswith("at") else 0
        if trains not in known:
            known[trains] = seconds(run, network, name) if state != "finished" else 0
        rows.append(
            {
                "stage": name,
                "trains": trains,
                "loss": LOSSES[name],
                "weights": sum(w for w, _ in counts),
                "multiplications": sum(m for _, m in counts),
                "epochs": schedule.epochs,
                "estimate": known[trains] * (schedule.epochs - done),
                "state": state,
            }
        )
    return rows


def seconds(run, network, name):
    """About how long an epoch takes: by one minibatch forward and back, and one forward for validation."""
    stage = fitnets.Stage(name, network, None, lambda y, target, labels, epoch: (0.0, y), classifies=False)
    batch = min(run.schedule(name).batch, len(run.sets["train"]))
    took = []
    with Pass(stage, {"train": run.sets["train"][:batch]}, run.slice(name), run.workers) as examples:
        for what in (lambda: examples.gradient(np.arange(batch), 1, 0), lambda: examples.measure("train", 1)):
            what()  # once for nothing: the first time fetches memory and plans convolutions
            began = time.perf_counter()
            what()
            took.append(time.perf_counter() - began)
    return sum(t * len(run.sets[part]) for t, part in zip(took, ("train", "validation"), strict=True)) / batch


def memory(run):
    """Bytes that the teacher's outputs take while its students learn: they are computed once and kept."""
    x = run.xp.asarray(run.sets["train"].x[:1])
    hint, logits = run.teacher(trained=False)[: run.config.hint](x), run.experiment.teacher.blocks[-1].classes
    return sum(map(len, run.sets.values())) * (hint.size + logits) * hint.itemsize
