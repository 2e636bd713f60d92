"""Run directories: what a stage needs, what is kept, what is refused, and that a run that was cut goes on the same."""

import json
import os
import subprocess
import sys
import traceback
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from minifit import UserError, data, fitnets
from minifit.lab import files as checkpoints, training
from minifit.data.preprocessing import unit
from minifit.experiments import DIGITS, EXPERIMENTS, Experiment
from minifit.networks import Conv, Network, Output, build
from minifit.lab.plan import outline
from minifit.lab.runner import Run
from minifit.lab.training import Schedule

ROOT = Path(__file__).resolve().parents[2]
TEACHER = Network("wide", (28, 28, 1), (Conv(5, 8, pool=(6, 6), norm=0.9), Conv(6, 3, pool=(2, 2)), Output(10)))
STUDENT = Network(
    "deep", (28, 28, 1), (Conv(3, 8, pool=(4, 4), norm=0.9), Conv(3, 2), Conv(4, 2, pool=(2, 2)), Output(10))
)
SMALL = Experiment("digits", TEACHER, STUDENT, {})
SCHEDULE = Schedule("rmsprop", lr=0.01, lr_final=0.5, lr_end=2, epochs=2, patience=2, batch=20)
CONFIG = replace(
    DIGITS,
    train=48,
    validation=16,
    test=16,
    teacher=replace(SCHEDULE, optimizer="sgd", momentum=0.5),
    stage1=SCHEDULE,
    student=SCHEDULE,
    guided=(2,),
    hint=(1,),
    lam_end=4,
    keep_input=0.8,
    keep=0.5,
)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", train=64, test=16)


@pytest.fixture(scope="module")
def new_run(digits):
    """A Run of small networks in the folder given."""

    def make(folder, config=CONFIG, experiment=SMALL, seed=0, dataset=None, workers=1):
        return Run(folder, "digits", "default", experiment, config, seed, dataset or digits, np, workers, False)

    return make


def perform(run, goal="all", tell=None):
    """Every stage's (record, whether it was trained now)."""
    with run:
        return {name: run.make(name, tell) for name in run.plan(goal)}


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.h5"))}


@pytest.fixture(scope="module")
def finished(new_run, tmp_path_factory):
    """A directory in which all stages are done; for reading only."""
    folder = tmp_path_factory.mktemp("finished")
    perform(new_run(folder))
    return folder


def refusal(action, *arguments):
    """The one line with which something is refused."""
    with pytest.raises(UserError) as caught:
        action(*arguments)
    line = str(caught.value)
    assert "\n" not in line
    return line


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def epochs(folder):
    return [(record["stage"], record["epoch"]) for record in metrics(folder)]


def no_training(monkeypatch):
    def trained(*_):
        raise AssertionError("a step was made")

    monkeypatch.setattr(training.Pass, "gradient", trained)


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


def test_the_plan_says_what_each_stage_trains_and_how_far_it_is(new_run, finished, tmp_path):
    rows = outline(new_run(finished), fitnets.NAMES)
    assert [row["state"] for row in rows] == ["finished"] * 5
    with pytest.raises(KeyboardInterrupt):
        perform(new_run(tmp_path), "backprop", interrupt_at("backprop", 1))
    rows = {row["stage"]: row for row in outline(new_run(tmp_path), fitnets.NAMES)}
    assert [rows[name]["state"] for name in fitnets.NAMES] == ["to train", "at epoch 1", *["to train"] * 3]
    assert rows["hint"]["trains"] == "deep, layers 1-2, and regressor"
    assert rows["teacher"]["trains"] == "wide" and rows["kd"]["trains"] == "deep"
    assert [rows[name]["loss"] for name in fitnets.NAMES] == ["labels", "labels", "eq. 2", "eq. 3", "eq. 2"]
    assert rows["teacher"]["weights"] == 8 * 8 * 10 + 3 * 3 * 5 * 12 + 6 * 10
    assert all(row["epochs"] == 2 and row["estimate"] > 0 for row in rows.values())


def test_what_is_finished_is_kept_without_a_step(new_run, finished, monkeypatch):
    before, log = contents(finished), (finished / "metrics.jsonl").read_bytes()
    no_training(monkeypatch)
    summary = json.loads((finished / "summary.json").read_text())
    assert perform(new_run(finished)) == {name: (summary["stages"][name], False) for name in fitnets.NAMES}
    assert contents(finished) == before and (finished / "metrics.jsonl").read_bytes() == log


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"config": replace(CONFIG, tau=2.0)}, "tau 3.0, now 2.0"),
        ({"config": replace(CONFIG, train=40)}, "train 48, now 40"),
        ({"config": replace(CONFIG, student=replace(SCHEDULE, lr=0.5))}, "student.lr 0.01, now 0.5"),
        ({"seed": 1}, "seed 0, now 1"),
    ],
)
def test_another_configuration_is_refused_and_loses_nothing(changes, said, new_run, finished):
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    line = refusal(perform, new_run(finished, **changes))
    assert str(finished) in line and said in line and "width" not in line
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


def test_another_data_set_is_refused(new_run, digits, finished):
    other = replace(digits, images=digits.images[::-1].copy())
    assert "images" in refusal(perform, new_run(finished, dataset=other))


def test_a_directory_in_which_nothing_is_trained_takes_other_settings(new_run, tmp_path):
    with new_run(tmp_path, replace(CONFIG, tau=2.0)):
        pass
    made = perform(new_run(tmp_path), "backprop")
    assert made["backprop"][1] and json.loads((tmp_path / "config.json").read_text())["settings"]["tau"] == 3.0


@pytest.mark.parametrize("goal", ["teacher", "all"])
def test_records_without_weights_are_not_lost_to_other_settings(goal, new_run, tmp_path):
    perform(new_run(tmp_path), goal)
    for path in tmp_path.glob("*.h5"):
        path.unlink()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert "tau 3.0, now 2.0" in refusal(perform, new_run(tmp_path, replace(CONFIG, tau=2.0)), "backprop")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_student_stages_of_a_seed_start_from_the_same_weights_and_other_seeds_from_others(new_run, finished):
    run, other = new_run(finished), new_run(finished, seed=1)
    first, kd = run.stage("backprop").network.params, run.stage("kd").network.params
    hint = run.stage("hint").network.params
    assert first.keys() == kd.keys()
    assert all(np.array_equal(first[name], kd[name]) for name in first)
    assert all(np.array_equal(first[name], hint[name]) for name in first if name[0] in "01")
    different = other.stage("backprop").network.params
    assert all(not np.array_equal(first[name], different[name]) for name in first if name.endswith("w"))
    teachers = [r.stage("teacher").network.params["1.1.w"] for r in (run, run, other)]
    assert np.array_equal(teachers[0], teachers[1]) and not np.array_equal(teachers[0], teachers[2])


@pytest.mark.parametrize("init", ["scaled", "uniform"])
def test_weights_start_as_the_settings_say(init, new_run, tmp_path):
    config = replace(CONFIG, init=init, regressor_init=init, width=0.25, regressor_width=0.125, hint=(2,), guided=(3,))
    run = new_run(tmp_path, config)
    network = run.stage("teacher").network
    perform(run, "teacher")
    w_r = run.stage("hint").network[3:].params["0.w"]
    if init == "uniform":
        assert all(0.9 < abs(p).max() / 0.25 <= 1 for name, p in network.params.items() if name.endswith("w"))
        assert 0.9 < abs(w_r).max() / 0.125 <= 1
    else:
        assert abs(network(run.sets["train"].x[:128]).std() - 1) < 1e-4
    assert all(not p.any() for name, p in network.params.items() if name.endswith("b"))


def test_fitnet_starts_from_the_guided_layers_of_the_hint_stage_and_above_them_from_the_common_start(new_run, finished):
    run = new_run(finished)
    start, common = run.stage("fitnet").network.params, run.stage("backprop").network.params
    hint = checkpoints.load(finished / "hint.h5")[1]["best"]
    for name, p in start.items():
        assert np.array_equal(p, hint[name] if name[0] in "01" else common[name]), name
    assert not np.array_equal(start["0.0.w"], common["0.0.w"])


def test_the_regressor_stays_behind(finished):
    names = {stage: checkpoints.load(finished / f"{stage}.h5")[1]["best"].keys() for stage in fitnets.NAMES}
    assert names["fitnet"] == names["kd"] == names["backprop"]
    assert names["hint"] - names["fitnet"] == {"2.w", "2.b"}  # two guided blocks, then the regressor's own layer
    assert {name for name in names["hint"] if name[0] in "01"} < names["fitnet"]


def test_the_teacher_is_called_as_trained_and_without_noise_and_its_file_is_not_touched(new_run, digits, finished):
    run = new_run(finished)
    stage = run.stage("kd")
    teacher = build(TEACHER, np.random.default_rng(9))
    best = checkpoints.load(finished / "teacher.h5")[1]["best"]  # with dropout in front, names count from 1
    checkpoints.restore(teacher.params, {f"{k[0]}.{int(k[2]) - 1}{k[3:]}": a for k, a in best.items()}, "")
    for part, images in (("train", digits.images[:48]), ("test", digits.test_images)):
        np.testing.assert_allclose(run.with_target(stage, part).target, teacher(unit(images)), rtol=1e-4, atol=1e-5)
    hint = run.stage("hint")
    np.testing.assert_allclose(
        run.with_target(hint, "validation").target, teacher[:1](unit(digits.images[48:])), rtol=1e-4, atol=1e-5
    )


def test_images_are_the_first_to_train_the_last_to_validate_and_the_first_to_test(new_run, digits, tmp_path):
    run = new_run(tmp_path, replace(CONFIG, train=30, validation=20, test=5))
    found = {part: run.sets[part].x for part in ("train", "validation", "test")}
    wanted = {"train": digits.images[:30], "validation": digits.images[44:], "test": digits.test_images[:5]}
    for part, x in wanted.items():
        np.testing.assert_array_equal(found[part], unit(x))
    assert "want more" in refusal(new_run, tmp_path, replace(CONFIG, train=49))
    assert "want more" in refusal(new_run, tmp_path, replace(CONFIG, test=17))


def test_the_test_set_is_looked_at_once_a_stage_and_after_training(new_run, tmp_path, monkeypatch):
    looked, measure = [], training.Pass.measure

    def listening(self, name, epoch):
        looked.append((self.stage.name, name))
        return measure(self, name, epoch)

    monkeypatch.setattr(training.Pass, "measure", listening)
    perform(new_run(tmp_path), "fitnet")
    per_stage = ["validation", "validation", "test"]
    assert looked == [(stage, part) for stage in ("teacher", "hint", "fitnet") for part in per_stage]


def test_the_summary_holds_what_came_out_of_each_stage(new_run, finished):
    summary = json.loads((finished / "summary.json").read_text())
    expected = {"experiment": "digits", "preset": "default", "data": "digits", "seed": 0}
    expected |= {"teacher": "wide", "student": "deep"}
    expected |= {"train_images": 48, "validation_images": 16, "test_images": 16}
    assert {key: value for key, value in summary.items() if key != "stages"} == expected
    assert list(summary["stages"]) == list(fitnets.NAMES)
    run, log = new_run(finished), metrics(finished)
    for name, record in summary["stages"].items():
        best = next(m for m in log if (m["stage"], m["epoch"]) == (name, record["best_epoch"]))
        assert record["validation_loss"] == best["validation_loss"] and record["epochs"] == 2
        assert record.get("validation_error") == best.get("validation_error")
        assert ("test_error" in record) == (name != "hint")
        stage = run.stage(name)
        checkpoints.restore(stage.network.params, checkpoints.load(finished / f"{name}.h5")[1]["best"], "")
        test = run.with_target(stage, "test")
        loss, errors = fitnets.measure(stage, test.x, test.target, test.labels, record["best_epoch"])
        assert record["test_loss"] == pytest.approx(loss, rel=1e-5)
        assert name == "hint" or record["test_error"] == 100 * errors / 16
        assert (finished / record["file"]).exists() and record["seconds"] >= 0


def test_a_test_loss_is_that_of_the_epoch_that_was_chosen(new_run, tmp_path):
    config = replace(CONFIG, student=replace(SCHEDULE, lr_final=30.0))  # the second epoch spoils what the first learnt
    run = new_run(tmp_path, config)
    record = perform(run, "kd")["kd"][0]
    assert (record["best_epoch"], record["epochs"]) == (1, 2)
    stage = run.stage("kd")
    checkpoints.restore(stage.network.params, checkpoints.load(tmp_path / "kd.h5")[1]["best"], "")
    test = run.with_target(stage, "test")
    losses = [fitnets.measure(stage, test.x, test.target, test.labels, epoch)[0] for epoch in (1, 2)]
    assert record["test_loss"] == pytest.approx(losses[0], rel=1e-5) != pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(("stage", "needed"), [("kd", "teacher"), ("fitnet", "hint")])
def test_a_stage_is_not_continued_from_another_teacher_or_start(stage, needed, new_run, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        perform(new_run(tmp_path), stage, interrupt_at(stage, 2))
    record, groups = checkpoints.load(tmp_path / f"{needed}.h5")
    groups["best"] = {name: 2 * a for name, a in groups["best"].items()}
    checkpoints.save(tmp_path / f"{needed}.h5", record, **groups)
    line = refusal(perform, new_run(tmp_path), stage)
    assert f"{stage}.h5" in line and "another teacher or start" in line


@pytest.mark.parametrize("stage", ["kd", "hint", "fitnet"])
def test_what_another_teacher_made_is_not_kept(stage, new_run, tmp_path):
    perform(new_run(tmp_path))
    for name in {"kd", "hint", "fitnet"} - {stage}:
        (tmp_path / f"{name}.h5").unlink()
    record, groups = checkpoints.load(tmp_path / "teacher.h5")
    groups["best"] = {name: 2 * a for name, a in groups["best"].items()}
    checkpoints.save(tmp_path / "teacher.h5", record, **groups)
    before = (tmp_path / f"{stage}.h5").read_bytes()
    line = refusal(perform, new_run(tmp_path), stage)
    assert f"{stage}.h5" in line and "made from another teacher than there is now" in line
    assert (tmp_path / f"{stage}.h5").read_bytes() == before


def test_metrics_have_each_epoch_once_in_order_and_lambda_where_there_is_one(finished):
    assert epochs(finished) == [(name, epoch) for name in fitnets.NAMES for epoch in (1, 2)]
    lam = {(m["stage"], m["epoch"]): m["lam"] for m in metrics(finished) if "lam" in m}
    assert lam == {(name, epoch): {1: 4.0, 2: 3.0}[epoch] for name in ("kd", "fitnet") for epoch in (1, 2)}


def test_the_configuration_is_the_first_record_of_a_run(finished):
    config = json.loads((finished / "config.json").read_text())
    wanted = json.loads(json.dumps(asdict(CONFIG) | {"slice": {"teacher": 16, "student": 16}}))
    assert {name: config["settings"][name] for name in wanted} == wanted
    assert config["settings"]["seed"] == 0 and config["settings"]["experiment"] == "digits"
    assert {"minifit", "commit", "python", "numpy", "backend"} <= config.keys() and config["backend"] == "numpy"


def interrupt_at(stage, epoch):
    def tell(record):
        if (record["stage"], record["epoch"]) == (stage, epoch):
            raise KeyboardInterrupt

    return tell


@pytest.mark.parametrize("stage", fitnets.NAMES)
@pytest.mark.parametrize("epoch", [1, 2])
def test_an_interrupted_run_goes_on_to_the_same_bytes(stage, epoch, new_run, finished, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        perform(new_run(tmp_path), stage, interrupt_at(stage, epoch))
    assert checkpoints.load(tmp_path / f"{stage}.h5")[0]["epoch"] == epoch  # what was told is safe
    told = []
    made = perform(new_run(tmp_path), stage, told.append)
    assert [name for name, (_, fresh) in made.items() if fresh] == [stage]
    assert [record["epoch"] for record in told] == ([2] if epoch == 1 else [])
    for name in made:
        assert (tmp_path / f"{name}.h5").read_bytes() == (finished / f"{name}.h5").read_bytes()
        assert [e for s, e in epochs(tmp_path) if s == name] == [1, 2]


def test_a_run_killed_before_its_summary_gets_it_without_training(new_run, tmp_path, monkeypatch):
    made = perform(new_run(tmp_path), "backprop")
    (tmp_path / "summary.json").unlink()
    no_training(monkeypatch)
    assert perform(new_run(tmp_path), "backprop") == made


def test_lines_that_a_killed_run_logged_and_did_not_save_are_dropped(new_run, finished, tmp_path):
    perform(new_run(tmp_path), "kd")
    checkpoint = tmp_path / "kd.h5"
    with pytest.raises(KeyboardInterrupt):
        checkpoint.unlink()
        perform(new_run(tmp_path), "kd", interrupt_at("kd", 1))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(lines[-1].replace('"epoch": 1', '"epoch": 2') + '{"stage": "kd", "epo')
    assert epochs_of_whole_lines(tmp_path).count(("kd", 2)) == 1  # told, and not saved
    assert new_run(tmp_path).directory.metrics()[-1]["epoch"] == 2  # half a line does not hinder a plot of the others
    perform(new_run(tmp_path), "kd")
    assert epochs(tmp_path) == [("teacher", 1), ("teacher", 2), ("kd", 1), ("kd", 2)]
    assert checkpoint.read_bytes() == (finished / "kd.h5").read_bytes()


def epochs_of_whole_lines(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    return [(m["stage"], m["epoch"]) for m in map(json.loads, (line for line in lines if line.endswith("\n")))]


@pytest.mark.parametrize("stage", ["teacher", "hint"])
def test_a_damaged_stage_file_is_one_line_and_removing_it_trains_it_again(stage, new_run, finished, tmp_path):
    perform(new_run(tmp_path), "hint")
    path = tmp_path / f"{stage}.h5"
    path.write_bytes(path.read_bytes()[:-100])
    line = refusal(perform, new_run(tmp_path), "hint")
    assert str(path) in line and "remove it" in line
    path.unlink()
    run = new_run(tmp_path)
    made = perform(run, "hint")
    assert made[stage][1] and path.read_bytes() == (finished / f"{stage}.h5").read_bytes()
    run.plot()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.jsonl", b"\xff\n"),
        ("metrics.jsonl", b"[]\n"),
        ("summary.json", b'{"stages": []}'),
        ("summary.json", b'{"stages": {"teacher": 3}}'),
    ],
)
def test_a_damaged_record_is_one_line(name, content, new_run, tmp_path):
    perform(new_run(tmp_path), "teacher")
    (tmp_path / name).write_bytes(content)
    assert str(tmp_path / name) in refusal(perform, new_run(tmp_path), "backprop")


def test_a_log_that_cannot_be_written_is_one_line(new_run, tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    assert "metrics.jsonl: cannot be" in refusal(new_run(tmp_path).directory.log, {"epoch": 1})


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", "null"])
def test_a_damaged_configuration_is_one_line(content, new_run, tmp_path):
    (tmp_path / "config.json").write_text(content)
    (tmp_path / "teacher.h5").write_text("")
    assert str(tmp_path) in refusal(new_run(tmp_path).__enter__)


def test_a_second_process_in_the_directory_is_refused_and_a_later_one_is_not(new_run, tmp_path):
    code = (
        "import fcntl, sys\nlock = open(sys.argv[1], 'w')\nfcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "print('held', flush=True)\nsys.stdin.read()"
    )
    held = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert held.stdout.readline() == "held\n"
    line = refusal(new_run(tmp_path).__enter__)
    assert str(tmp_path) in line and "another process" in line
    held.communicate("")
    with new_run(tmp_path):
        child = os.fork()
        if not child:
            try:
                new_run(tmp_path).__enter__()
            except UserError:
                os._exit(3)
            finally:
                traceback.print_exc()
                os._exit(4)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3


def test_a_directory_that_cannot_be_made_is_one_line(new_run, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refusal(new_run(tmp_path / "file" / "seed0").__enter__)


def misfit(new_run, folder, **changes):
    config = replace(DIGITS, train=48, validation=16, test=16, **changes)
    return refusal(outline, new_run(folder, config, EXPERIMENTS["digits"]), ["teacher", "hint"])


def test_a_hint_that_does_not_fit_is_one_line_with_both_shapes_and_what_would_fit(new_run, tmp_path):
    larger = misfit(new_run, tmp_path, guided=(5,), hint=(1,))
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
    answers = {"rev-parse": "abc\n", "status": ""}

    def git(command, **_):
        return subprocess.CompletedProcess(command, 0, answers[command[1]])

    monkeypatch.setattr(checkpoints.subprocess, "run", git)
    assert checkpoints.commit() == "abc"
    answers["status"] = " M run.py\n"
    assert checkpoints.commit() == "abc+"
    answers.clear()

    def missing(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(checkpoints.subprocess, "run", missing)
    assert checkpoints.commit() is None


def test_a_refused_schedule_is_named_down_to_the_number_that_differs(new_run, finished):
    other = replace(CONFIG, student=replace(CONFIG.student, lr=0.5))
    line = refusal(new_run(finished, other).__enter__)
    assert f"student.lr {CONFIG.student.lr}, now 0.5." in line and line.count(", now ") == 1
