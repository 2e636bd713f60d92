"""Run directories: what a stage needs, what is kept, what is refused, and that a run that was cut goes on the same."""

import json
import os
import shutil
import subprocess
import sys
import traceback
from dataclasses import asdict, replace

import numpy as np
import pytest
from small import (
    CONFIG,
    DEEP,
    SCHEDULE,
    SMALL,
    STUDENT,
    TEACHER,
    WIDE,
    best,
    contents,
    double_best,
    epochs,
    everything,
    interrupt_at,
    metrics,
    no_training,
    perform,
    refusal,
)

from minifit import UserError, data, fitnets, task
from minifit.data.preprocessing import Unit
from minifit.experiments import DIGITS, EXPERIMENTS
from minifit.lab import files, publish, training
from minifit.lab.plan import outline
from minifit.lab.records import seal, write_record
from minifit.lab.runner import set_up, stage_of, task_of
from minifit.networks import build
from minifit.optimizers import Ramp

STAGES = ["teacher", "backprop", "kd", "hint", "fitnet"]


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", train=64, test=16)


@pytest.fixture(scope="module")
def new_run(digits):
    """A run of small networks in the folder given."""

    def make(folder, config=CONFIG, experiment=SMALL, seed=0, dataset=None, workers=1, base=None):
        about = folder, "digits", "default", experiment, config, seed, dataset or digits, np, workers
        return set_up(*about, False, base=base)

    return make


@pytest.fixture(scope="module")
def finished(new_run, tmp_path_factory):
    """A directory in which all stages are done; for reading only."""
    folder = tmp_path_factory.mktemp("finished")
    perform(new_run(folder))
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    """A directory in which all stages are done, to be changed."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path


def start_of(run, stage):
    """The parameters of a stage before it is trained."""
    return stage_of(run, stage, start=True).network.params


@pytest.mark.parametrize(
    ("goal", "stages"),
    [
        ("teacher", ["teacher"]),
        ("backprop", ["backprop"]),
        ("kd", ["teacher", "kd"]),
        ("hint", ["teacher", "hint"]),
        ("fitnet", ["teacher", "hint", "fitnet"]),
        ("all", ["teacher", "backprop", "kd", "hint", "fitnet"]),
    ],
)
def test_a_stage_brings_up_what_it_needs_and_nothing_else(goal, stages, new_run, finished, tmp_path):
    made = perform(new_run(tmp_path), goal)
    assert list(made) == stages and all(fresh for _, fresh in made.values())
    # ... and comes out the same whatever else was trained beside it
    assert contents(tmp_path) == {f"{s}.h5": contents(finished)[f"{s}.h5"] for s in sorted(stages)}


def rows_of(run):
    return outline(run, {key: stage for key, (_, stage) in run.plan.stages.items()})


def test_the_plan_says_what_each_stage_trains_and_how_far_it_is(new_run, finished, tmp_path):
    rows = rows_of(new_run(finished))
    assert [row["state"] for row in rows] == ["finished"] * 5
    with pytest.raises(KeyboardInterrupt):
        perform(new_run(tmp_path), "backprop", interrupt_at("backprop", 1))
    rows = {row["stage"]: row for row in rows_of(new_run(tmp_path))}
    assert [rows[name]["state"] for name in STAGES] == ["to train", "at epoch 1", *["to train"] * 3]
    assert rows["hint"]["trains"] == "deep, layers 1-2, and regressor"
    assert rows["teacher"]["trains"] == "wide" and rows["kd"]["trains"] == "deep"
    assert [rows[name]["loss"] for name in STAGES] == ["labels", "labels", "eq. 2", "eq. 3", "eq. 2"]
    assert rows["teacher"]["weights"] == 8 * 8 * 10 + 3 * 3 * 5 * 12 + 6 * 10
    assert all(row["epochs"] == 2 and row["estimate"] > 0 for row in rows.values())


def test_what_is_finished_is_kept_without_a_step(new_run, finished, monkeypatch):
    before, log = contents(finished), (finished / "metrics.jsonl").read_bytes()
    no_training(monkeypatch)
    summary = json.loads((finished / "summary.json").read_text())
    assert perform(new_run(finished)) == {name: (summary["stages"][name], False) for name in STAGES}
    assert contents(finished) == before and (finished / "metrics.jsonl").read_bytes() == log


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"config": replace(CONFIG, tau=2.0)}, "tau 3.0, now 2.0"),
        ({"config": replace(CONFIG, train=40)}, "train 48, now 40"),
        ({"config": replace(CONFIG, student=replace(SCHEDULE, lr=0.5))}, "student.lr 0.01, now 0.5"),
        ({"config": replace(CONFIG, lam=Ramp(4.0, 1.0, 5))}, "lam.end 4, now 5"),
        ({"seed": 1}, "seed 0, now 1"),
    ],
)
def test_another_configuration_is_refused_and_loses_nothing(changes, said, new_run, finished):
    before = everything(finished)
    line = refusal(perform, new_run(finished, **changes))
    assert str(finished) in line and said in line and line.count(", now ") == 1 + ("images" in line)
    assert everything(finished) == before


def test_another_data_set_is_refused(new_run, digits, finished):
    other = replace(digits, images=digits.images[::-1].copy())
    assert "images" in refusal(perform, new_run(finished, dataset=other))


def test_a_directory_in_which_nothing_is_trained_takes_other_settings(new_run, tmp_path):
    with new_run(tmp_path, replace(CONFIG, tau=2.0)).directory:
        pass
    made = perform(new_run(tmp_path), "backprop")
    assert made["backprop"][1] and json.loads((tmp_path / "config.json").read_text())["settings"]["tau"] == 3.0


def test_records_without_weights_are_read_and_never_trained_in(new_run, copy, monkeypatch):
    records = new_run(copy).directory.finished()
    for path in copy.glob("*.h5"):
        path.unlink()
    before = everything(copy)
    no_training(monkeypatch)
    for goal in ("all", "kd"):
        assert "holds the records of a run without its weights" in refusal(perform, new_run(copy), goal)
    assert new_run(copy).directory.finished() == records and everything(copy) == before


@pytest.mark.parametrize("goal", ["teacher", "all"])
def test_records_without_weights_are_not_lost_to_other_settings(goal, new_run, tmp_path):
    perform(new_run(tmp_path), goal)
    for path in tmp_path.glob("*.h5"):
        path.unlink()
    before = everything(tmp_path)
    assert "tau 3.0, now 2.0" in refusal(perform, new_run(tmp_path, replace(CONFIG, tau=2.0)), "backprop")
    assert everything(tmp_path) == before


def drawn(run):
    """The run's task, whose networks start as they do before anything is trained."""
    return replace(task_of(run), trained=frozenset())


def test_student_stages_of_a_seed_start_from_the_same_weights_and_other_seeds_from_others(new_run, finished):
    run, other = new_run(finished), new_run(finished, seed=1)
    first, kd, hint = (start_of(run, stage) for stage in ("backprop", "kd", "hint"))
    assert first.keys() == kd.keys()
    assert all(np.array_equal(first[name], kd[name]) for name in first)
    assert all(np.array_equal(first[name], hint[name]) for name in first if name[0] in "01")
    different = task_of(other).network("student").params
    assert all(not np.array_equal(first[name], different[name]) for name in first if name.endswith("w"))
    teachers = [task.network("teacher").params["1.0.w"] for task in (drawn(run), drawn(run), drawn(other))]
    assert np.array_equal(teachers[0], teachers[1]) and not np.array_equal(teachers[0], teachers[2])


@pytest.mark.parametrize("init", ["scaled", "uniform"])
def test_weights_start_as_the_settings_say(init, new_run, tmp_path):
    config = {"init": init, "init_range": 0.25, "regressor_init_range": 0.125, "guided_layer": (3,), "hint_layer": (2,)}
    config |= {"regressor_init": "uniform" if init == "uniform" else "normal"}
    run = new_run(tmp_path, replace(CONFIG, **config))
    network = task_of(run).network("teacher")
    perform(run, "teacher")
    w_r = start_of(run, "hint")["3.w"]
    if init == "uniform":
        assert all(0.9 < abs(p).max() / 0.25 <= 1 for name, p in network.params.items() if name.endswith("w"))
        assert 0.9 < abs(w_r).max() / 0.125 <= 1
    else:
        assert abs(network(run.sets["train"].batch(slice(128))[0]).std() - 1) < 1e-4
        assert abs(w_r).max() > 0.125
    assert all(not p.any() for name, p in network.params.items() if name.endswith("b"))


def test_fitnet_starts_from_the_guided_layers_of_the_hint_stage_and_above_them_from_the_common_start(new_run, finished):
    run = new_run(finished)
    start, common, hint = start_of(run, "fitnet"), start_of(run, "backprop"), best(finished, "hint")
    for name, p in start.items():
        assert np.array_equal(p, hint[name] if name[0] in "01" else common[name]), name
    assert not np.array_equal(start["0.0.w"], common["0.0.w"])


def test_the_regressor_stays_behind(finished):
    names = {stage: best(finished, stage).keys() for stage in STAGES}
    assert names["fitnet"] == names["kd"] == names["backprop"]
    assert names["hint"] - names["fitnet"] == {"2.w", "2.b"}  # two guided blocks, then the regressor's own layer
    assert {name for name in names["hint"] if name[0] in "01"} < names["fitnet"]


def test_the_teacher_is_called_as_trained_and_without_noise(new_run, digits, finished):
    run = new_run(finished)
    teacher, unit = build(TEACHER), Unit()
    files.restore(teacher.params, best(finished, "teacher"), "")
    for stage, part, images, network in (
        ("kd", "train", digits.images[:48], teacher),
        ("fitnet", "test", digits.test_images, teacher),
        ("hint", "validation", digits.images[48:], teacher[:1]),
    ):
        found = run.sets.taught(part, stage_of(run, stage).target, 1).teacher
        np.testing.assert_allclose(found, network(unit(images)), rtol=1e-4, atol=1e-5)


def test_images_are_the_first_to_train_the_last_to_validate_and_the_first_to_test(new_run, digits, tmp_path):
    run, unit = new_run(tmp_path, replace(CONFIG, train=30, validation=20, test=5)), Unit()
    wanted = {"train": digits.images[:30], "validation": digits.images[44:], "test": digits.test_images[:5]}
    for part, images in wanted.items():
        np.testing.assert_array_equal(run.sets[part].batch(slice(None))[0], unit(images))
    assert "want more" in refusal(new_run, tmp_path, replace(CONFIG, train=49))
    assert "want more" in refusal(new_run, tmp_path, replace(CONFIG, test=17))


def test_the_test_set_is_looked_at_once_a_stage_and_after_training(new_run, tmp_path, monkeypatch):
    looked, measure = [], training.DataParallel.measure

    def listening(self, name, epoch, progress=False):
        looked.append((self.stage.name, name))
        return measure(self, name, epoch, progress)

    monkeypatch.setattr(training.DataParallel, "measure", listening)
    perform(new_run(tmp_path), "fitnet")
    per_stage = ["validation", "validation", "test"]
    assert looked == [(stage, part) for stage in ("teacher", "hint", "fitnet") for part in per_stage]


def test_the_summary_holds_what_came_out_of_each_stage(new_run, finished):
    summary = json.loads((finished / "summary.json").read_text())
    expected = {"experiment": "digits", "preset": "default", "data": "digits", "seed": 0}
    expected |= {"teacher": "wide", "student": "deep"}
    expected |= {"train_images": 48, "validation_images": 16, "test_images": 16}
    assert {key: value for key, value in summary.items() if key not in ("settings", "stages", "sha256")} == expected
    assert list(summary["stages"]) == list(STAGES)
    run, log = new_run(finished), metrics(finished)
    for name, record in summary["stages"].items():
        best = next(m for m in log if (m["stage"], m["epoch"]) == (name, record["best_epoch"]))
        assert record["validation_loss"] == best["validation_loss"] and record["epochs"] == 2
        assert record.get("validation_error") == best.get("validation_error")
        assert ("test_error" in record) == (name != "hint")
        stage = stage_of(run, name)
        x, _, labels = run.sets["test"].batch(slice(None))
        target = stage.target and stage.target(x)
        loss, errors = fitnets.measure(stage, x, target, labels, record["best_epoch"])
        assert (record["loss"], record["file"]) == (stage.loss.title, f"{name}.h5")
        method, _ = run.plan.stages[name]
        assert (record["method"], record["title"], record["label"]) == (method.name, method.title, method.label)
        assert record["test_loss"] == pytest.approx(loss, rel=1e-5)
        assert name == "hint" or record["test_error"] == 100 * errors / 16
        assert (finished / record["file"]).exists() and record["seconds"] >= 0


def test_a_test_loss_is_that_of_the_epoch_that_was_chosen(new_run, tmp_path):
    config = replace(
        CONFIG, student=replace(SCHEDULE, lr_scale=Ramp(1.0, 30.0, 2))
    )  # the second epoch spoils what the first learnt
    run = new_run(tmp_path, config)
    record = perform(run, "kd")["kd"][0]
    assert (record["best_epoch"], record["epochs"]) == (1, 2)
    stage = stage_of(run, "kd")
    x, _, labels = run.sets["test"].batch(slice(None))
    losses = [fitnets.measure(stage, x, stage.target(x), labels, epoch)[0] for epoch in (1, 2)]
    assert record["test_loss"] == pytest.approx(losses[0], rel=1e-5) != pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(("stage", "needed"), [("kd", "teacher"), ("fitnet", "hint")])
def test_a_stage_is_not_continued_from_another_teacher_or_start(stage, needed, new_run, copy):
    (copy / f"{stage}.h5").unlink()
    with pytest.raises(KeyboardInterrupt):
        perform(new_run(copy), stage, interrupt_at(stage, 1))
    double_best(copy / f"{needed}.h5")
    line = refusal(perform, new_run(copy), stage)
    assert f"{stage}.h5" in line and "another teacher or start" in line


def test_a_stage_is_not_continued_from_weights_that_were_drawn_otherwise(new_run, copy, monkeypatch):
    (copy / "backprop.h5").unlink()
    with pytest.raises(KeyboardInterrupt):
        perform(new_run(copy), "backprop", interrupt_at("backprop", 1))
    initialise = task.initialise
    monkeypatch.setattr(task, "initialise", lambda layers, rng, *more: initialise(layers, rng.spawn(1)[0], *more))
    line = refusal(perform, new_run(copy), "backprop")
    assert "backprop.h5" in line and "another teacher or start" in line


@pytest.mark.parametrize("stage", ["kd", "hint", "fitnet"])
def test_what_another_teacher_made_is_not_kept(stage, new_run, copy):
    for name in {"kd", "hint", "fitnet"} - {stage}:
        (copy / f"{name}.h5").unlink()
    double_best(copy / "teacher.h5")
    before = (copy / f"{stage}.h5").read_bytes()
    line = refusal(perform, new_run(copy), stage)
    assert f"{stage}.h5" in line and "made from another teacher than there is now" in line
    assert (copy / f"{stage}.h5").read_bytes() == before


def test_metrics_have_each_epoch_once_in_order_and_lambda_where_there_is_one(finished):
    assert epochs(finished) == [(name, epoch) for name in STAGES for epoch in (1, 2)]
    lam = {(m["stage"], m["epoch"]): m["lam"] for m in metrics(finished) if "lam" in m}
    assert lam == {(name, epoch): {1: 4.0, 2: 3.0}[epoch] for name in ("kd", "fitnet") for epoch in (1, 2)}


def test_the_configuration_is_the_first_record_of_a_run(finished):
    config = json.loads((finished / "config.json").read_text())
    wanted = json.loads(json.dumps(asdict(CONFIG) | {"microbatch": {"teacher": 16, "student": 16}}))
    assert {name: config["settings"][name] for name in wanted} == wanted
    assert config["settings"]["seed"] == 0 and config["settings"]["experiment"] == "digits"
    assert config["format"] == 2 and config["settings"]["lam"] == {"first": 4.0, "last": 1.0, "end": 4, "start": 1}
    block = {"kind": "Conv", "channels": 3, "kernel": 2, "pad": 0, "pool": None, "pieces": 2, "max_norm": None}
    assert config["settings"]["networks"]["student"]["blocks"][1] == block
    assert {"minifit", "commit", "python", "numpy", "backend"} <= config.keys() and config["backend"] == "numpy"


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("epoch", [1, 2])
def test_an_interrupted_run_goes_on_to_the_same_bytes(stage, epoch, new_run, finished, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        perform(new_run(tmp_path), stage, interrupt_at(stage, epoch))
    assert files.load(tmp_path / f"{stage}.h5")[0]["epoch"] == epoch  # what was told is safe
    told = []
    made = perform(new_run(tmp_path), stage, told.append)
    assert [name for name, (_, fresh) in made.items() if fresh] == [stage]
    assert [record["epoch"] for record in told] == ([2] if epoch == 1 else [])
    for name in made:
        assert (tmp_path / f"{name}.h5").read_bytes() == (finished / f"{name}.h5").read_bytes()
        assert [e for s, e in epochs(tmp_path) if s == name] == [1, 2]


def test_a_stage_that_is_removed_and_cut_while_it_is_trained_again_goes_on(new_run, finished, copy):
    for stage in ("teacher", "hint"):
        (copy / f"{stage}.h5").unlink()
        with pytest.raises(KeyboardInterrupt):
            perform(new_run(copy), stage, interrupt_at(stage, 1))
        assert stage not in new_run(copy).directory.finished()  # its record is of weights that are gone
        made = perform(new_run(copy))
        assert [name for name, (_, fresh) in made.items() if fresh] == [stage]
    assert contents(copy) == contents(finished)


def test_a_run_killed_before_its_summary_gets_it_without_training(new_run, copy, monkeypatch):
    summary = json.loads((copy / "summary.json").read_text())
    (copy / "summary.json").unlink()
    no_training(monkeypatch)
    monkeypatch.setattr(files, "commit", lambda: "a later one")  # which trains nothing
    assert all(fresh for _, fresh in perform(new_run(copy)).values())
    assert json.loads((copy / "summary.json").read_text()) == summary


def test_lines_that_a_killed_run_logged_and_did_not_save_are_dropped(new_run, finished, copy):
    (copy / "kd.h5").unlink()
    with pytest.raises(KeyboardInterrupt):
        perform(new_run(copy), "kd", interrupt_at("kd", 1))
    lines = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    with open(copy / "metrics.jsonl", "a") as file:  # told, and not saved; and half a line
        file.write(lines[-1].replace('"epoch": 1', '"epoch": 2') + '{"stage": "kd", "epo')
    assert new_run(copy).directory.metrics()[-1]["epoch"] == 2  # half a line does not hinder a plot of the others
    perform(new_run(copy), "kd")
    assert sorted(epochs(copy)) == sorted(epochs(finished)) and epochs(copy)[-2:] == [("kd", 1), ("kd", 2)]
    assert contents(copy) == contents(finished)


@pytest.mark.parametrize("stage", ["teacher", "hint"])
def test_a_damaged_stage_file_is_one_line_and_removing_it_trains_it_again(stage, new_run, finished, copy):
    path = copy / f"{stage}.h5"
    path.write_bytes(path.read_bytes()[:-100])
    line = refusal(perform, new_run(copy), "hint")
    assert str(path) in line and "remove it" in line
    path.unlink()
    made = perform(new_run(copy), "hint")
    assert made[stage][1] and path.read_bytes() == (finished / f"{stage}.h5").read_bytes()


def test_how_far_a_stage_is_is_read_from_its_record_alone(new_run, copy):
    path = copy / "teacher.h5"
    content = bytearray(path.read_bytes())
    content[3000] ^= 1  # among the weights
    path.write_bytes(content)
    run = new_run(copy)
    assert run.directory.state("teacher") == "finished" and rows_of(run)[0]["state"] == "finished"
    assert "its checksum is wrong" in refusal(perform, new_run(copy), "teacher")


@pytest.mark.parametrize(
    ("goal", "drawn", "half"),
    [("teacher", [], False), ("teacher", [], True), ("kd", ["deep"], False), ("fitnet", ["deep", "regressor"], False)],
)
def test_weights_that_are_there_are_not_drawn_to_be_overwritten(
    goal, drawn, half, new_run, copy, finished, monkeypatch
):
    (copy / f"{goal}.h5").unlink()
    if half:
        with pytest.raises(KeyboardInterrupt):
            perform(new_run(copy), "teacher", interrupt_at("teacher", 1))
    else:
        perform(new_run(copy), "teacher")
    found, initialise, unit_variance = [], task.initialise, task.unit_variance
    names = {len(TEACHER.blocks): "wide", len(STUDENT.blocks): "deep", 2: "regressor"}

    def drawing(layers, *arguments):
        found.append(names[len(layers)])
        initialise(layers, *arguments)

    def scaling(layers, images):
        assert names[len(layers)] == found[-1] != "wide"
        unit_variance(layers, images)

    monkeypatch.setattr(task, "initialise", drawing)
    monkeypatch.setattr(task, "unit_variance", scaling)
    perform(new_run(copy), goal)
    assert found == drawn
    assert all(np.array_equal(w, best(finished, goal)[name]) for name, w in best(copy, goal).items())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.jsonl", b"\xff\n"),
        ("metrics.jsonl", b"[]\n"),
        ("summary.json", b'{"stages": []}'),
        ("summary.json", b'{"stages": {"teacher": 3}}'),
    ],
)
def test_a_damaged_record_is_one_line(name, content, new_run, copy):
    (copy / "backprop.h5").unlink()
    (copy / name).write_bytes(content)
    assert str(copy / name) in refusal(perform, new_run(copy), "backprop")


def test_a_log_that_cannot_be_written_is_one_line(new_run, tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    assert "metrics.jsonl: cannot be" in refusal(new_run(tmp_path).directory.log, {"epoch": 1})


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", "null"])
def test_a_damaged_configuration_is_one_line(content, new_run, tmp_path):
    (tmp_path / "config.json").write_text(content)
    (tmp_path / "teacher.h5").write_text("")
    assert str(tmp_path) in refusal(new_run(tmp_path).directory.__enter__)


def without_a_setting(record):
    """A record as it was before there was the setting student.average, which has no value."""
    return {
        name: without_a_setting(value) if isinstance(value, dict) else value
        for name, value in record.items()
        if name not in ("average", "sha256")
    }


def test_a_run_of_before_there_was_a_setting_without_a_value_goes_on(new_run, finished, copy):
    for path in copy.glob("*.h5"):
        record, groups = files.load(path)
        files.save(path, without_a_setting(record), **groups)
    write_record(copy / "config.json", without_a_setting(json.loads((copy / "config.json").read_text())))
    config = json.loads((copy / "config.json").read_text())
    summary = json.loads((copy / "summary.json").read_text()) | {"settings": seal(config["settings"])}
    write_record(copy / "summary.json", {name: value for name, value in summary.items() if name != "sha256"})
    assert "average" not in json.dumps(config)
    for name in ("hint", "fitnet"):
        (copy / f"{name}.h5").unlink()
    with pytest.raises(KeyboardInterrupt):
        perform(new_run(copy), "hint", interrupt_at("hint", 1))
    half, groups = files.load(copy / "hint.h5")
    files.save(copy / "hint.h5", without_a_setting(half), **groups)
    made = perform(new_run(copy))
    assert [name for name, (_, fresh) in made.items() if fresh] == ["hint", "fitnet"]
    assert publish.Member(new_run(copy), []).record()["missing"] == []
    for path in copy.glob("*.h5"):
        trained, expected = (files.load(folder / path.name)[1]["best"] for folder in (copy, finished))
        assert {name: a.tobytes() for name, a in trained.items()} == {n: a.tobytes() for n, a in expected.items()}


@pytest.mark.parametrize("left", [("*.h5", "*"), ("", "*"), ("", "config.json"), ("*.h5", "config.json")])
def test_a_directory_of_an_earlier_minifit_is_refused_and_loses_nothing(left, new_run, copy):
    """left: of which names weights and other files are there"""
    config = json.loads((copy / "config.json").read_text())
    del config["format"]
    (copy / "config.json").write_text(json.dumps(config))
    for path in copy.glob("*.*"):
        if not path.match((left[0] or "none") if path.suffix == ".h5" else left[1]):
            path.unlink()
    before, arm = everything(copy), new_run(copy.with_name("other"), base=new_run(copy))
    for action in (perform, new_run(copy)), (publish.Member(new_run(copy), []).record,), (perform, arm):
        line = refusal(*action)
        assert str(copy) in line and "written by an earlier minifit" in line and "--runs" in line
    assert everything(copy) | {".lock": b""} == before | {".lock": b""}


def student_with(**changes):
    """The experiment, with another third block in a student of the same name."""
    blocks = (*DEEP[:2], replace(DEEP[2], **changes), DEEP[3])
    return replace(SMALL, student=replace(STUDENT, blocks=blocks))


def test_a_changed_network_of_the_same_name_is_refused(new_run, tmp_path, copy):
    other = student_with(pool=(2, 1))
    assert other.student.name == STUDENT.name
    for goal in ("hint", "fitnet", "all"):
        line = refusal(perform, new_run(copy, experiment=other), goal)
        assert str(copy) in line and "networks.student.blocks.3.pool [2, 2], now [2, 1]." in line
        assert line.count(", now ") == 1
    wider = replace(SMALL, teacher=replace(TEACHER, blocks=(WIDE[0], replace(WIDE[1], channels=7), WIDE[2])))
    assert "networks.teacher.blocks.2.channels 6, now 7" in refusal(perform, new_run(copy, experiment=wider))


def test_a_stages_file_is_of_its_network_whatever_the_directory_says(new_run, finished, tmp_path):
    perform(new_run(tmp_path, experiment=student_with(pad=1)), "hint")
    shutil.copy(finished / "hint.h5", tmp_path)
    line = refusal(perform, new_run(tmp_path, experiment=student_with(pad=1)), "hint")
    assert str(tmp_path / "hint.h5") in line and "networks.student.blocks.3.pad 0, in config.json 1" in line


@pytest.mark.parametrize("unfinished", [False, True])
def test_one_stages_file_is_not_taken_for_anothers(unfinished, new_run, copy):
    if unfinished:
        (copy / "kd.h5").unlink()
        with pytest.raises(KeyboardInterrupt):
            perform(new_run(copy), "kd", interrupt_at("kd", 1))
    shutil.copy(copy / "kd.h5", copy / "fitnet.h5")
    before = contents(copy)
    line = refusal(perform, new_run(copy), "fitnet")
    assert str(copy / "fitnet.h5") in line and "remove it to train again" in line
    assert "holds the stage kd" in line
    assert contents(copy) == before


def test_each_stage_records_the_commit_that_trained_it(new_run, tmp_path, monkeypatch):
    for commit, goal in (("one", "teacher"), ("two", "backprop"), ("three", "kd")):
        monkeypatch.setattr(files, "commit", lambda commit=commit: commit)
        perform(new_run(tmp_path), goal)
    stages = json.loads((tmp_path / "summary.json").read_text())["stages"]
    assert {name: record["commit"] for name, record in stages.items()} == {
        "teacher": "one",
        "backprop": "two",
        "kd": "three",
    }


def test_a_second_process_in_the_directory_is_refused_and_a_later_one_is_not(new_run, tmp_path):
    code = (
        "import fcntl, sys\nlock = open(sys.argv[1], 'w')\nfcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "print('held', flush=True)\nsys.stdin.read()"
    )
    held = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert held.stdout.readline() == "held\n"
    line = refusal(new_run(tmp_path).directory.__enter__)
    assert str(tmp_path) in line and "another process" in line
    held.communicate("")
    with new_run(tmp_path).directory:
        child = os.fork()
        if not child:
            try:
                new_run(tmp_path).directory.__enter__()
            except UserError:
                os._exit(3)
            finally:
                traceback.print_exc()
                os._exit(4)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3


def test_a_directory_that_cannot_be_made_is_one_line(new_run, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refusal(new_run(tmp_path / "file" / "seed0").directory.__enter__)


def misfit(new_run, folder, **changes):
    config = replace(DIGITS, train=48, validation=16, test=16, **changes)
    return refusal(new_run, folder, config, EXPERIMENTS["digits"])


def test_a_hint_that_does_not_fit_is_one_line_with_both_shapes_and_what_would_fit(new_run, tmp_path):
    larger = misfit(new_run, tmp_path, guided_layer=(5,), hint_layer=(1,))
    assert "(8, 8, 12)" in larger and "(10, 10, 48)" in larger and "fc would fit" in larger
    differ = misfit(new_run, tmp_path, regressor="none")
    assert differ.count("(") >= 2 and "conv or fc would fit" in differ


@pytest.mark.parametrize("kind", ["conv", "fc"])
def test_every_regressor_trains(kind, new_run, tmp_path):
    made = perform(new_run(tmp_path, replace(CONFIG, regressor=kind)), "hint")
    guided = 8 * 8 * 6 + 2 * 2 * 3 * 6
    w_r = {"conv": 2 * 2 * 3 * 10, "fc": (5 * 5 * 3) * (2 * 4 * 4 * 5)}  # from maps of 5x5x3 to 4x4x5, two pieces
    assert made["hint"][0]["weights"] == guided + w_r[kind]


def test_the_recorded_commit_marks_a_changed_working_copy(monkeypatch):
    answers, commit = {"rev-parse": "abc\n", "status": ""}, files.commit.__wrapped__

    def git(command, **_):
        return subprocess.CompletedProcess(command, 0, answers[command[1]])

    monkeypatch.setattr(files.subprocess, "run", git)
    assert commit() == "abc"
    answers["status"] = " M run.py\n"
    assert commit() == "abc+"
    answers.clear()

    def missing(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(files.subprocess, "run", missing)
    assert commit() is None
