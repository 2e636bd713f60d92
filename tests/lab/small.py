"""What the tests of runs share: runs trained as `runner.train` does, without a plan, words or pictures."""

import json
from dataclasses import replace

import numpy as np
from threadpoolctl import threadpool_limits

from minifit import UserError
from minifit.experiments import DIGITS, EXPERIMENTS, Experiment
from minifit.lab import files, plan, runner, training
from minifit.networks import Conv, Network, Output
from minifit.optimizers import Ramp, Schedule

SCHEDULE = Schedule("rmsprop", lr=0.01, lr_scale=Ramp(1.0, 0.5, 2), epochs=2, patience=2, batch=20)

# On the digits; the student's second layer is guided by the teacher's first.
WIDE = Conv(5, 8, pool=(6, 6), max_norm=0.9), Conv(6, 3, pool=(2, 2)), Output(10)
TEACHER = Network("wide", (28, 28, 1), WIDE)
DEEP = Conv(3, 8, pool=(4, 4), max_norm=0.9), Conv(3, 2), Conv(4, 2, pool=(2, 2)), Output(10)
STUDENT = Network("deep", (28, 28, 1), DEEP)
SMALL = Experiment("digits", TEACHER, STUDENT, {})
LIGHT = replace(SMALL, presets=EXPERIMENTS["digits"].presets)
CONFIG = replace(
    DIGITS,
    train=48,
    validation=16,
    test=16,
    teacher=replace(SCHEDULE, optimizer="sgd", momentum=Ramp(0.5)),
    stage1=SCHEDULE,
    student=SCHEDULE,
    guided_layer=(2,),
    hint_layer=(1,),
    lam=Ramp(4.0, 1.0, 4),
    dropout_keep_input=0.8,
    dropout_keep=0.5,
)


def noise(train, test):
    """Images and labels in place of the digits, whose splines take a second to import."""
    images = np.random.default_rng(0).integers(0, 256, (train + test, 28, 28, 1), np.uint8)
    labels = (np.arange(train + test) % 10).astype(np.uint8)
    return "digits", images[:train], labels[:train], images[train:], labels[train:]


def light(**changes):
    """The experiment with small networks, its presets having CONFIG's settings with these changes."""
    return replace(LIGHT, presets=dict.fromkeys(("default", "short"), replace(CONFIG, **changes)))


def perform(run, goal="all", tell=None):
    """{stage: (its record, whether it was trained now)}, in the order of training."""
    made, base = {}, run.base
    if base and runner.teacher_stages(base)[-1] not in runner.finished(base):
        perform(base, runner.teacher_stages(base)[-1])
    with run.directory, threadpool_limits(1, user_api="blas"):
        task = runner.task_of(run)

        def train(stage):
            record, fresh = runner.trained(run, stage, tell)
            made[stage.key] = record, fresh
            return record

        for method, keys in run.plan.up_to(goal):
            plan.walk(method, task, train, keys[-1])
    return made


def contents(folder):
    """{name: bytes} of the files of stages."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.h5"))}


def everything(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def best(folder, stage):
    return files.load(folder / f"{stage}.h5")[1]["best"]


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def epochs(folder):
    return [(record["stage"], record["epoch"]) for record in metrics(folder)]


def refusal(action, *arguments):
    """The one line with which something is refused."""
    import pytest  # what trains in other processes does without it

    with pytest.raises(UserError) as caught:
        action(*arguments)
    line = str(caught.value)
    assert "\n" not in line
    return line


def interrupt_at(stage, epoch):
    """What `tell` is, where a run is cut when this epoch of a stage is safe."""

    def tell(record):
        if (record["stage"], record["epoch"]) == (stage, epoch):
            raise KeyboardInterrupt

    return tell


def double_best(path):
    """Changes the weights in a stage's file, and the checksum with them."""
    record, groups = files.load(path)
    groups["best"] = {name: 2 * a for name, a in groups["best"].items()}
    files.save(path, record, **groups)


def no_training(monkeypatch):
    def trained(*_):
        raise AssertionError("a step was made")

    monkeypatch.setattr(training.DataParallel, "gradient", trained)
