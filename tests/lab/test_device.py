# ruff: noqa: F401, F811  (a fixture that is imported is an argument too)
"""Whole runs on the device: the numbers of NumPy, on strict.py's stand-in and on CuPy where there is a GPU."""

import json
from dataclasses import replace

import numpy as np
import pytest
import strict
from test_cupy import PRECISION, SETTINGS, STAGES, STUDENT, TEACHER, agree, stages_of, xp

from minifit.backend import describe
from minifit.composites import weights
from minifit.data import Dataset
from minifit.data.preprocessing import Unit
from minifit.experiments import MNIST_PAPER, Experiment
from minifit.lab import files, runner
from minifit.lab.plan import outline, walk
from minifit.lab.sets import Examples
from minifit.lab.training import DataParallel
from minifit.optimizers import update

CONFIG = replace(MNIST_PAPER, **SETTINGS)


@pytest.mark.parametrize("key", STAGES)
def test_a_training_step_waits_for_the_device_only_to_look_at_its_labels_and_its_loss(key):
    stage, rng = stages_of(strict, np.float32)[key], np.random.default_rng(0)
    optimizer = stage.schedule.make()
    x, labels = rng.integers(0, 256, (8, 12, 12, 1)).astype(np.uint8), rng.integers(0, 10, 8)
    target = None if stage.target is None else stage.target(strict.asarray(x / np.float32(255))).get()
    with DataParallel(stage, {"train": Examples(x, labels, Unit(), target)}, 2, 1) as examples:
        strict.SYNCHRONISATIONS.clear()
        _, grads = examples.gradient(np.arange(8), 1, 7)
        update(optimizer, weights(stage.network), grads)
        waits = list(strict.SYNCHRONISATIONS)
    looks = {"labels": 1, "eq. 2": 2, "eq. 3": 0}[stage.loss.title]
    assert waits == [*["bool"] * looks, "float"]


def tiny_data():
    rng = np.random.default_rng(8)
    labels = rng.integers(0, 10, 40)
    images = (255 * rng.random((40, 12, 12, 1)) * (0.1 + 0.1 * labels[:, None, None, None])).astype(np.uint8)
    return Dataset("noise", images[:32], labels[:32], images[32:], labels[32:])


def run(folder, xp, config=CONFIG):
    experiment = Experiment("noise", TEACHER, STUDENT, {"default": config})
    return runner.set_up(folder, "noise", "default", experiment, config, 0, tiny_data(), xp, 1, progress=False)


def trained(folder, xp, config=CONFIG, stop_in=None):
    """The arrays of all stages, what came out and the plan; stop_in: the stage that is killed in its second epoch."""

    def tell(record):
        if record["stage"] == stop_in and record["epoch"] == 1:
            raise KeyboardInterrupt

    r = run(folder, xp, config)
    with r.directory:
        task = runner.task_of(r)
        for method, _ in r.plan.up_to("all"):
            walk(method, task, lambda stage: runner.trained(r, stage, tell)[0])
        stages = {key: stage for key, (_, stage) in r.plan.stages.items()}
        rows = [{k: v for k, v in row.items() if k != "estimate"} for row in outline(r, stages)]
        return {key: files.load(folder / f"{key}.h5")[1] for key in STAGES}, runner.summary(r), rows


@pytest.fixture(scope="module")
def on_device(xp, tmp_path_factory):
    return trained(tmp_path_factory.mktemp("device"), xp)


def test_a_run_of_every_stage_is_the_same_on_the_device(xp, tmp_path, on_device):
    saved, summary, rows = on_device
    expected, expected_summary, expected_rows = trained(tmp_path, np)
    assert rows == expected_rows
    for key in STAGES:
        for group, arrays in expected[key].items():
            agree(saved[key][group], arrays, PRECISION[xp.__name__]["run"])
        found, other = summary["stages"][key], expected_summary["stages"][key]
        assert found.keys() == other.keys()
        inexact = ("validation_loss", "test_loss")
        same = [name for name in found if name not in (*inexact, "seconds")]
        assert [found[name] for name in same] == [other[name] for name in same]
        assert [found[name] for name in inexact] == pytest.approx([other[name] for name in inexact], rel=1e-4)


def test_microbatches_are_a_matter_of_the_host(xp, tmp_path):
    """Without noise, of which each microbatch draws its own, their size on the host is a matter of rounding."""
    config = replace(CONFIG, dropout_keep_input=1.0, dropout_keep=1.0, microbatch=3)
    found, expected = trained(tmp_path / "device", xp, config), trained(tmp_path / "host", np, config)
    for key in STAGES:
        agree(found[0][key]["best"], expected[0][key]["best"], PRECISION[xp.__name__]["run"])


@pytest.mark.parametrize("key", STAGES)
def test_a_killed_stage_is_taken_up_on_the_device_as_if_nothing_had_happened(xp, tmp_path, on_device, key):
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, xp, stop_in=key)
    r = run(tmp_path, xp)
    with r.directory:
        assert r.directory.state(key) == "at epoch 1"
    saved, _, _ = trained(tmp_path, xp)
    for stage in STAGES:
        for group, arrays in on_device[0][stage].items():
            agree(saved[stage][group], arrays, 0 if xp is strict else 1e-5)


def test_a_run_records_its_library_and_device(xp, tmp_path):
    with run(tmp_path, xp).directory:
        record = json.loads((tmp_path / "config.json").read_text())
    assert {"backend", "numpy", "cupy", "device"} <= describe(xp).keys()
    assert describe(xp).items() <= record.items()
