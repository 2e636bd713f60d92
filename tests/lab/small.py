"""What the tests of runs share: runs trained as `runner.train` does, without a plan, words or pictures."""

import json

import pytest
from threadpoolctl import threadpool_limits

from minifit import UserError
from minifit.lab import files, runner, training
from minifit.optimizers import Ramp, Schedule

SCHEDULE = Schedule("rmsprop", lr=0.01, lr_scale=Ramp(1.0, 0.5, 2), epochs=2, patience=2, batch=20)


def perform(run, goal="all", tell=None):
    """{stage: (its record, whether it was trained now)}, in the order of training."""
    made = {}
    with run.directory, threadpool_limits(1, user_api="blas"):
        task = run.task()

        def train(stage):
            record, fresh = runner.trained(run, stage, tell)
            made[stage.key] = record, fresh
            return record

        for method, keys in run.plan(goal):
            runner.walk(method, task, train, keys[-1] if keys != run.keys(method) else None)
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


def no_training(monkeypatch):
    def trained(*_):
        raise AssertionError("a step was made")

    monkeypatch.setattr(training.DataParallel, "gradient", trained)
