"""A method is one function and one row: tests/paper/joint.py runs, resumes, is planned, compared, drawn and audited."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import joint
import numpy as np
import pytest
from small import CONFIG, EXPERIMENTS, LIGHT, best, contents, double_best, epochs, interrupt_at, noise, perform, refusal

import run
from minifit import baselines, data, fitnets
from minifit.data import digits
from minifit.lab import publish, runner
from minifit.lab.runner import set_up, stage_of, task_of

TESTS = Path(__file__).resolve().parents[1]
STAGES = ["teacher", "backprop", "kd", "hint", "fitnet", "joint"]
# What a user of the method would write, were it not in minifit: also for the processes that `compare` starts.
SCRIPT = f"""
import sys

sys.path[:0] = {[str(TESTS.parent), str(TESTS / "paper"), str(TESTS / "lab")]}

import joint
import run
from minifit import baselines
from minifit.data import digits
from minifit.lab import runner
from small import EXPERIMENTS, LIGHT, noise

baselines.METHODS = (*baselines.METHODS, joint.METHOD)
EXPERIMENTS["digits"], digits.load, runner.draw = LIGHT, noise, lambda run: None
sys.exit(run.main(sys.argv[1:]))
"""


@pytest.fixture
def added(monkeypatch):
    """The method among the others, and `digits` with small networks."""
    monkeypatch.setattr(baselines, "METHODS", (*baselines.METHODS, joint.METHOD))
    monkeypatch.setitem(EXPERIMENTS, "digits", LIGHT)
    monkeypatch.setattr(digits, "load", noise)


def tiny(*more):
    words = ["--train", "32", "--validation", "16", "--test", "16", "--workers", "1"]
    words += ["--guided-layer", "2", "--hint-layer", "1"]
    for part in ("teacher", "stage1", "student"):
        words += [f"--{part}.epochs", "2", f"--{part}.batch", "16"]
    return [*words, *more]


@pytest.fixture
def new_run(added):
    dataset = data.load("digits", train=64, test=16)

    def make(folder, seed=0, workers=1):
        return set_up(folder, "digits", "default", LIGHT, CONFIG, seed, dataset, np, workers, False)

    return make


def test_its_stage_brings_up_the_teacher_and_is_planned_told_and_drawn(added, tmp_path, capsys):
    assert run.main(["digits", "--runs", str(tmp_path), "--stage", "joint", *tiny()]) == 0
    plan, told = capsys.readouterr().out.split("Left to train: about ")
    rows = [line.split() for line in plan.splitlines() if line.endswith(" s")]
    assert [row[:2] for row in rows] == [["teacher", "wide"], ["joint", "deep"]] and "eqs. 2 and 3" in plan
    lines = [line.partition(":")[0] for line in told.splitlines() if line.startswith(("teacher", "joint"))]
    of = ("teacher", "joint")
    assert lines == [line for stage in of for line in (f"{stage} epoch 1", f"{stage} epoch 2", stage)]
    folder = tmp_path / "digits" / "seed0"
    for picture in ("curves.png", "filters.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    assert epochs(folder) == [(stage, epoch) for stage in of for epoch in (1, 2)]
    record = json.loads((folder / "summary.json").read_text())["stages"]["joint"]
    wanted = {"method": "joint", "title": joint.METHOD.title, "label": "joint", "loss": "eqs. 2 and 3"}
    assert wanted.items() <= record.items() and 0 <= record["test_error"] <= 100
    weights = best(folder, "joint")
    assert {name.split(".")[0] for name in weights} == {"0", "1", "2", "3", "head2"}
    kept = [a for name, a in weights.items() if name.endswith("w") and not name.startswith("head")]
    assert record["weights"] == sum(a.size for a in kept)  # the head is discarded


def test_its_errors_stand_in_the_table_of_all_methods(added, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runner, "draw", lambda run: None)
    assert run.main(["digits", "--runs", str(tmp_path), *tiny()]) == 0
    table = capsys.readouterr().out.partition("\nmethod")[2]
    titles = [method.title for method in (*fitnets.TABLE_4, joint.METHOD)]
    assert titles[-1] == "hints and distillation at once"
    firsts = [line.partition("  ")[0] for line in table.split("\n\n")[0].splitlines()[2:]]
    assert [title for title in firsts if title] == titles  # a second line is of a method's second stage
    summary = json.loads((tmp_path / "digits" / "seed0" / "summary.json").read_text())["stages"]
    assert list(summary) == STAGES and f"{summary['joint']['test_error']:.2f}" in table


def test_any_number_of_workers_and_any_interruption_end_in_the_same_bytes(new_run, tmp_path):
    perform(new_run(tmp_path / "whole"), "joint")
    perform(new_run(tmp_path / "workers", workers=3), "joint")
    with pytest.raises(KeyboardInterrupt):
        perform(new_run(tmp_path / "cut"), "joint", interrupt_at("joint", 1))
    perform(new_run(tmp_path / "cut"), "joint")
    assert contents(tmp_path / "whole") == contents(tmp_path / "workers") == contents(tmp_path / "cut")
    assert list(contents(tmp_path / "whole")) == ["joint.h5", "teacher.h5"]


def test_it_starts_as_every_student_does_and_is_of_its_teacher(new_run, tmp_path):
    task = replace(task_of(new_run(tmp_path)), trained=frozenset())
    common = {name: p.copy() for name, p in task.network("student").params.items()}
    perform(new_run(tmp_path), "joint")
    start = stage_of(new_run(tmp_path), "joint", start=True).network.params
    assert all(np.array_equal(start[name], p) for name, p in common.items())
    assert start.keys() - common.keys() == {"head2.0.w", "head2.0.b"}
    double_best(tmp_path / "teacher.h5")
    assert "made from another teacher" in refusal(perform, new_run(tmp_path), "joint")


def test_a_network_that_several_methods_train_is_drawn_though_a_stage_has_its_name(new_run, tmp_path, monkeypatch):
    def student(task, train):
        train(fitnets.Stage("student", task.network("student"), fitnets.LABELS, task.settings.student))

    monkeypatch.setattr(
        baselines, "METHODS", (*baselines.METHODS, fitnets.Method("student", "a", "a", student, default=True))
    )
    common = {name: p.copy() for name, p in task_of(new_run(tmp_path)).network("student").params.items()}
    perform(new_run(tmp_path), "student")
    start = task_of(new_run(tmp_path)).network("student").params
    assert all(np.array_equal(start[name], p) for name, p in common.items())


def test_it_is_compared_and_published_and_its_records_outlive_it(added, tmp_path, monkeypatch, capfd):
    (tmp_path / "with_joint.py").write_text(SCRIPT)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "with_joint.py")])
    results, folders = tmp_path / "results", ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    assert run.main(["compare", "digits", "--seeds", "1", *folders, *tiny()]) == 0, capfd.readouterr()
    part = results / "digits" / "default"
    found = json.loads((part / "results.json").read_text())
    assert found["methods"]["joint"] == {"title": joint.METHOD.title, "label": "joint"}
    assert [run["missing"] for run in found["runs"]] == [[]]
    (answer,) = found["questions"]
    assert [row["method"] for row in answer["rows"]] == ["teacher", "backprop", "kd", "fitnet", "joint"]
    assert answer["rows"][-1]["seeds"] == [0]
    assert [d["less"] for d in answer["differences"] if d["method"] == "joint"] == ["fitnet"]
    pictures = {path.name: path.read_bytes() for path in part.glob("*.png")}
    assert {"errors.png", "curves.png", "filters.png", "mistakes.png"} <= pictures.keys()
    page = (results / "digits" / "README.md").read_text()
    assert joint.METHOD.title in page
    monkeypatch.undo()  # the method is gone
    assert publish.again(results / "digits", tell=lambda said: None) == 0
    assert (results / "digits" / "README.md").read_text() == page


@pytest.mark.parametrize(("method", "asked"), [("backprop", False), ("kd", True)])
def test_mistakes_are_drawn_with_the_answers_of_a_teacher_if_there_is_one(
    method, asked, added, tmp_path, monkeypatch, capfd
):
    (tmp_path / "with_joint.py").write_text(SCRIPT)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "with_joint.py")])
    answers = []
    monkeypatch.setattr(publish.plots, "plot_mistakes", lambda *given: answers.append(given[2:4]))
    folders = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    assert run.main(["compare", "digits", "--seeds", "1", "--methods", method, *folders, *tiny()]) == 0, (
        capfd.readouterr()
    )
    ((student, teacher),) = answers
    assert (teacher is not None) == asked
    assert not asked or not np.array_equal(student, teacher)


def test_it_is_audited(added, capsys):
    assert run.main(["audit", "--row", "method joint", "--draws", "1"]) == 0
    said = capsys.readouterr().out
    assert "1 of 1 rows pass" in said and "djoint head2.0.w" in said
