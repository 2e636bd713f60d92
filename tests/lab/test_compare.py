"""Several seeds and arms: statistics, what is kept and what is named, pages, and one line for what is wrong."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from ranks import AUGMENTED
from scipy import stats
from small import light, noise
from test_workers import left_after

import run
from minifit import UserError, data, experiments
from minifit.data import digits
from minifit.experiments import DIGITS, Experiment, Study
from minifit.lab import compare, jobs, pages, plots, publish, report, runner
from minifit.lab.records import seal, write_record
from minifit.lab.runner import on_all, set_up, summary
from minifit.networks import Conv, Network, Output
from minifit.optimizers import Schedule

ROOT = Path(__file__).resolve().parents[2]
TEACHER = Network("wide", (28, 28, 1), (Conv(5, 8, pool=(6, 6)), Conv(6, 3, pool=(2, 2)), Output(10)))
STUDENT = Network("deep", (28, 28, 1), (Conv(3, 8, pool=(4, 4)), Conv(3, 2), Conv(4, 2, pool=(2, 2)), Output(10)))
SCHEDULE = Schedule("rmsprop", lr=0.01, epochs=2, patience=2, batch=20)
CONFIG = replace(
    DIGITS,
    **{"train": 40, "validation": 16, "test": 16, "guided_layer": (2,), "hint_layer": (1,)},
    **dict.fromkeys(("teacher", "stage1", "student"), SCHEDULE),
)
KINDS = "json", "jsonl", "png", "md", "html", "h5"


def tiny(*more):
    """Settings with which the real networks train for a moment."""
    words = ["--train", "16", "--validation", "8", "--test", "8", "--workers", "1"]
    for part in ("teacher", "stage1", "student"):
        words += [f"--{part}.epochs", "1", f"--{part}.batch", "16"]
    return [*words, *more]


def contents(folder, *kinds):
    found = sorted(p for p in folder.rglob("*") if p.suffix[1:] in (kinds or KINDS))
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


DRAWN = (publish, "draw_networks"), (plots, "plot_errors"), (plots, "plot_curves")


def silent(*words):
    pass


@pytest.fixture(scope="module", autouse=True)
def small_digits():
    """Small networks on noise, here and in what comparisons start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(ROOT / "tests" / "lab" / "ranks.py")])
        patch.setattr(digits, "load", noise)
        patch.setitem(experiments.EXPERIMENTS, "digits", light(**AUGMENTED))
        yield


def test_a_spread_is_the_mean_and_the_samples_standard_deviation():
    assert compare.spread([1.0, 2.0, 6.0]) == {"n": 3, "mean": 3.0, "sd": pytest.approx(math.sqrt(7))}
    assert compare.spread([0.5]) == {"n": 1, "mean": 0.5, "sd": None}
    assert compare.spread([]) == {"n": 0, "mean": None, "sd": None}


def test_a_paired_difference_is_that_of_hand_and_of_scipy():
    one, other = [0.47, 0.52, 0.44], [0.65, 0.60, 0.61]
    found = compare.paired(one, other)  # differences -.18, -.08, -.17; t of 2 degrees of freedom: 4.3027
    mean, sd = -0.43 / 3, math.sqrt((0.18**2 + 0.08**2 + 0.17**2 - 0.43**2 / 3) / 2)
    half = 4.302652729911275 * sd / math.sqrt(3)
    assert found == {"n": 3} | {
        name: pytest.approx(value)
        for name, value in {"mean": mean, "sd": sd, "low": mean - half, "high": mean + half}.items()
    } | {"p": found["p"]}
    theirs = stats.ttest_rel(one, other)
    assert found["p"] == pytest.approx(theirs.pvalue)
    assert (found["low"], found["high"]) == pytest.approx(tuple(theirs.confidence_interval(0.95)))


def test_one_pair_has_no_interval_and_equal_differences_have_none():
    assert compare.paired([0.4], [0.5]) == {"n": 1, "mean": pytest.approx(-0.1)} | dict.fromkeys(
        ("sd", "low", "high", "p")
    )
    for one, other in (([1.0, 2.0], [0.5, 1.5]), ([1.05, 1.18], [1.12, 1.25])):  # the latter differ in rounding
        same = compare.paired(one, other)
        assert same["mean"] == pytest.approx(one[0] - other[0]) and same["sd"] < 1e-15
        assert (same["low"], same["high"], same["p"]) == (None, None, None)


@pytest.mark.parametrize(
    ("intervals", "verdict"),
    [
        ([(-2, -1), (-3, -0.1)], "shown"),
        ([(-2, -1), (-3, 0.1)], "undecided"),
        ([(-2, -1), (0.1, 3)], "refuted"),
        ([(-2, 1), (0.1, 3)], "refuted"),
        ([(-2, -1), (None, None)], "undecided"),
    ],
)
def test_an_order_is_shown_by_all_steps_and_refuted_by_one(intervals, verdict):
    assert compare.verdict([{"low": low, "high": high} for low, high in intervals]) == verdict


def test_each_student_is_compared_with_the_one_before_it_and_with_the_first():
    assert compare.pairs(["teacher", "a", "b", "c", "d"]) == [
        *[("b", "a"), ("c", "b"), ("c", "a")],
        *[("d", "c"), ("d", "a")],
    ]
    assert compare.pairs(["teacher"]) == compare.pairs(["a"]) == []


def test_methods_beside_the_papers_are_compared_with_its_best_alone():
    students = ["a", "b", "best", "c", "d"]
    assert compare.pairs(["teacher", *students], "best") == [
        *[("b", "a"), ("best", "b"), ("best", "a")],
        *[("c", "best"), ("d", "best")],
    ]
    assert compare.pairs(students, "elsewhere") == compare.pairs(students)


def stage(method, **changes):
    sizes = {"weights": 100, "multiplications": 1000, "epochs": 4, "best_epoch": 3, "seconds": 2.0}
    own = {"method": method, "title": method.upper(), "label": method, "loss": "labels", "file": f"{method}.h5"}
    return own | sizes | {"test_loss": 0.1, "test_error": 2.0, "validation_error": 1.0} | changes


def unjudged(method, **changes):
    return {k: v for k, v in stage(method, **changes).items() if not k.endswith("_error")}


def test_a_methods_figures_are_those_of_its_last_judged_stage_and_its_costs_those_of_all():
    stages = {"first": unjudged("m", weights=7), "second": stage("m", weights=9, epochs=10, best_epoch=8)}
    assert compare.figures(stages | {"other": unjudged("n")}) == {
        "m": {
            "weights": 9,
            "multiplications": 1000,
            "test_error": 2.0,
            "test_loss": 0.1,
            "validation_error": 1.0,
            "best_epoch": 8,
            "epochs": 14,
            "seconds": 4.0,
        }
        | {"from": None}
    }
    on_all = {"second": {k: v for k, v in stage("m", test_error=1.5, best_epoch=8).items() if k != "validation_error"}}
    found = compare.figures(stages, on_all)["m"]
    assert (found["test_error"], found["validation_error"], found["epochs"]) == (1.5, 1.0, 18)


def member(seed, arm="", missing=(), settings=None, **stages):
    own = {"experiment": "digits", "data": "digits", "preset": "default", "seed": seed, "tau": 3.0, "retrain": False}
    own |= {"images": "a", "test": 8, "train": 40}
    head = {"experiment": "digits", "data": "digits", "teacher": "wide", "student": "deep"}
    head |= {"train_images": 40, "validation_images": 16, "test_images": 16}
    record = {"arm": arm, "seed": seed, "folder": f"runs/seed{seed}{arm}", "missing": list(missing), "head": head}
    made_by = {"minifit": "1", "commit": "abc"}
    return record | made_by | {"settings": own | (settings or {}), "stages": stages}


def test_arms_are_paired_by_seed_and_unfinished_runs_are_in_no_figure():
    runs = [
        *[member(seed, a=stage("a", test_error=e, validation_error=e)) for seed, e in ((0, 1.0), (1, 2.0), (2, 9.0))],
        *[
            member(seed, "tau=1", settings={"tau": 1.0}, a=stage("a", test_error=e, validation_error=e))
            for seed, e in ((1, 1.0), (0, 0.4))
        ],
        member(3, missing=["a"]),
    ]
    found = compare.gather(runs, "command")
    base, other = found["questions"][0]["rows"]
    assert (base["seeds"], base["test_errors"], base["less"]) == ([0, 1, 2], [1.0, 2.0, 9.0], None)
    assert other["less"]["test_error"]["mean"] == pytest.approx(-0.8) and other["less"]["test_error"]["n"] == 2
    assert (base["best"], other["best"]) == (False, True)
    assert found["arms"] == {"": {}, "tau=1": {"tau": 1.0}}
    assert found["settings"]["train"] == 40 and found["runs"][0]["settings"] == {"seed": 0, "tau": 3.0}
    assert "Seed 3 is unfinished and left out of the means; to train: a." in report.about_runs(found)
    again = compare.gather(*compare.again(json.loads(json.dumps(found))))
    assert json.dumps(again) == json.dumps(found)


def test_fifteen_methods_give_tables_and_pictures(tmp_path):
    names = [f"method{i}" for i in range(15)]
    stages = {name: stage(name, test_error=1.0 + i) for i, name in enumerate(names)}
    found = compare.gather([member(seed, **stages) for seed in (0, 1)], "command", order=names[:2])
    assert len(found["questions"][0]["differences"]) == 14 and found["order"]["methods"] == names[:2]
    part = tmp_path / "digits" / "default"
    part.mkdir(parents=True)
    publish.write_part(part, found)
    publish.write_page(part.parent)
    assert (part / "errors.png").exists()
    assert len({plots.colour_of(name, names) for name in names}) == 15


def test_a_question_shows_methods_that_two_of_its_arms_have_and_asks_for_its_own_seeds():
    def arm(name, seed, *methods, **settings):
        of = {"from": "elsewhere"} if name else {}
        stages = {m: stage(m) for m in methods}
        return member(seed, name, settings=settings, teacher=stage("teacher", **of), **stages)

    runs = [arm("", seed, "a", "b") for seed in range(3)] + [arm("tau=1", seed, "b", tau=1.0) for seed in range(2)]
    studies = [Study("tau?", {"1": {"tau": 1}, "3, paper": {}}, ("b",)), Study("more", {"base": {}}, ("a",), more=1)]
    questions = compare.questions_of(studies, 2)
    found = compare.gather(runs, "command", questions=questions)["questions"]
    assert [(row["method"], row["setting"], row["seeds"]) for row in found[0]["rows"]] == [
        ("b", "1", [0, 1]),
        ("b", "3, paper", [0, 1]),
    ]
    assert [row["less"] is None for row in found[0]["rows"]] == [False, True]  # the base is the reference
    assert found[1]["rows"][0]["seeds"] == [0, 1, 2]


def test_one_teacher_for_all_seeds_is_told_and_has_no_spread():
    def said(*teachers):
        made = [{"from": t} if t else {"test_loss": 1.0 + i} for i, t in enumerate(teachers)]
        runs = [member(i, teacher=stage("teacher", **more)) for i, more in enumerate(made)]
        found = compare.gather(runs, "command")
        return found["questions"][0]["rows"][0]["seeds"], " ".join(report.about_runs(found))

    seeds, text = said("runs/a", "runs/a")
    assert seeds == [0] and "One teacher, trained in runs/a, served all seeds" in text
    seeds, text = said("runs/a", None)
    assert seeds == [0, 1] and "seed 0's in runs/a, seed 1's in its own run" in text
    assert "eacher" not in said(None, None)[1]


def test_a_teacher_that_serves_some_seeds_is_one_value_of_the_mean():
    made = stage("teacher", test_loss=0.3), stage("teacher", test_loss=0.4, test_error=6.0)
    seeds = [member(i, teacher=made[i > 0] | {"from": f"runs/{i > 0}"}, a=stage("a")) for i in range(3)]
    seeds += [
        member(3, teacher=made[1], a=stage("a")),
        member(4, teacher=stage("teacher", test_loss=0.5), a=stage("a")),
    ]
    teacher, a = compare.gather(seeds, "command")["questions"][0]["rows"]
    assert (teacher["seeds"], teacher["test_errors"], a["seeds"]) == ([0, 1, 4], [2.0, 6.0, 2.0], [0, 1, 2, 3, 4])


def test_run_directories_are_arms_by_what_differs_in_their_settings():
    runs = [member(0), member(1), member(0, settings={"tau": 1.0}), member(0, settings={"train": 20, "images": "b"})]
    assert [run["arm"] for run in compare.arms_of(runs)] == ["", "", "tau=1.0", "train=20"]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (
            member(0, settings={"experiment": "mnist"}),
            "runs/seed0 and runs/seed0x cannot be compared: they differ in exp",
        ),
        (member(1, settings={"images": "b"}), "they differ in images"),
        (member(1, settings={"test": 3, "tau": 1}), "they differ in test"),
        (member(1, settings={"networks.student.name": "flat"}), "they differ in networks.student.name"),
        (member(0), "runs/seed0 and runs/seed0x have the same settings and the same seed"),
        (member(1, kd=stage("kd", network="b")), "cannot be compared: their networks of kd differ"),
        (member(1, kd=stage("kd", weights=5)), "their networks of kd differ"),
        (member(1, kd=stage("kd", multiplications=5)), "their networks of kd differ"),
    ],
)
def test_a_mixture_that_makes_no_sense_is_refused(other, said):
    with pytest.raises(UserError, match=said):
        compare.arms_of([member(0, kd=stage("kd", network="a")), other | {"folder": "runs/seed0x"}])


def test_networks_are_compared_within_an_arm_and_by_what_both_records_have():
    other = member(0, kd=stage("kd", network="b"), settings={"init": "uniform"})
    assert len(compare.arms_of([member(0, kd=stage("kd", network="a")), member(1, kd=stage("kd")), other])) == 3


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """Runs of light networks: seeds 0 and 1 are whole, 2 has its teacher alone, 3 and 4 stand beside."""
    runs, dataset = tmp_path_factory.mktemp("runs") / "digits", data.load("digits", train=56, test=16)
    small = Experiment("digits", TEACHER, STUDENT, {"default": DIGITS})

    def of(seed, goal):
        made = set_up(runs / f"seed{seed}", "digits", "default", small, CONFIG, seed, dataset, np, 1, False)
        runner.train(made, goal, silent)
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "draw", silent)
        of(3, "backprop"), of(4, "all")
        return [of(0, "all"), of(1, "all"), of(2, "teacher")]


def published(seeds, folder, html=True, pictures=True):
    """The results of runs, none of which is trained on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "run_jobs", lambda *_: {})
        for module, name in () if pictures else DRAWN:
            patch.setattr(module, name, silent)
        members = [publish.Member(run, []) for run in seeds]
        publish.compare(members, folder, "python run.py compare digits", html=html, tell=silent)
    return folder / "digits", json.loads((folder / "digits" / "default" / "results.json").read_text())


@pytest.fixture(scope="module")
def written(seeds, tmp_path_factory):
    return published(seeds, tmp_path_factory.mktemp("results"))


def test_means_are_over_whole_seeds_and_the_records_are_the_runs_own(seeds, written):
    _, part = written
    summaries = [summary(run)["stages"] for run in seeds[:2]]
    rows = {row["method"]: row for row in part["questions"][0]["rows"]}
    for name in ("teacher", "backprop", "kd", "fitnet"):
        tests = [stages[name]["test_error"] for stages in summaries]
        assert rows[name]["test_error"] == {"n": 2, "mean": pytest.approx(np.mean(tests)), "sd": np.std(tests, ddof=1)}
        assert rows[name]["best_epochs"] == [stages[name]["best_epoch"] for stages in summaries]
    both = [stages["hint"]["seconds"] + stages["fitnet"]["seconds"] for stages in summaries]
    assert rows["fitnet"]["seconds"]["mean"] == pytest.approx(np.mean(both)) and rows["fitnet"]["epochs"]["mean"] == 4
    gain = [stages["fitnet"]["test_error"] - stages["kd"]["test_error"] for stages in summaries]
    pair = next(d for d in part["questions"][0]["differences"] if (d["method"], d["less"]) == ("fitnet", "kd"))
    assert pair["test_error"]["mean"] == pytest.approx(np.mean(gain))
    record = part["runs"][1]
    assert record["seed"] == record["settings"]["seed"] == 1 and part["settings"]["tau"] == 3.0
    assert record["stages"] == summaries[1] and {"minifit", "commit", "python", "numpy"} <= record.keys()


def test_unfinished_seeds_and_those_not_asked_for_are_named(written):
    folder, part = written
    assert [run["missing"] for run in part["runs"]] == [[], [], ["backprop", "kd", "hint", "fitnet"]]
    text = (folder / "README.md").read_text()
    assert "Seeds: 0 and 1." in text
    assert "Seed 2 is unfinished and left out of the means; to train: backprop, kd, hint, fitnet." in text
    assert "Seed 3 has been started too and is unfinished (teacher, kd, hint, fitnet). It was not asked for." in text
    assert "Seed 4 has been started too and is finished. It was not asked for." in text


def test_the_page_has_what_was_changed_the_verdict_and_the_pictures(written):
    folder, _ = written
    text = (folder / "README.md").read_text()
    assert "python run.py compare digits" in text and "train 40" in text
    assert "order of test errors, the fewest first, is FitNet, then knowledge distillation, then standard back-" in text
    for name in publish.PICTURES:
        assert f"](default/{name})" in text
        assert (folder / "default" / name).read_bytes().startswith(b"\x89PNG")


def test_the_page_and_each_of_its_tables_name_the_data(written):
    folder, _ = written
    title, *lines = (folder / "README.md").read_text().splitlines()
    data = json.loads((folder / "default" / "results.json").read_text())["data"]
    tables = [lines[i - 1] for i, line in enumerate(lines) if line.startswith("| ---")]
    assert title.endswith(f", {data}") and len(tables) == 4
    assert all(head.split(" | ")[0].endswith(f", {data}") for head in tables)


def test_the_html_needs_no_other_file_and_closes_what_it_opens(written):
    folder, _ = written
    opened, sources = [], []

    class Parser(HTMLParser):
        def handle_starttag(self, tag, attributes):
            sources.extend(value for name, value in attributes if name in ("src", "href"))
            if tag not in ("img", "meta"):
                opened.append(tag)

        def handle_endtag(self, tag):
            assert opened.pop() == tag

    text = (folder / "report.html").read_text()
    Parser().feed(text)
    assert opened == [] and len(sources) == len(publish.PICTURES)
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in sources)
    assert "a &lt; b &amp; c" in pages.html("title", [("text", "a < b & c")], folder)


def test_made_again_from_the_records_every_file_is_the_same(seeds, written, tmp_path):
    folder, _ = written
    published(seeds, tmp_path)
    assert contents(tmp_path / "digits") == contents(folder)
    for name in ("README.md", "report.html", "default/errors.png", "default/curves.png"):
        (tmp_path / "digits" / name).unlink()
    publish.again(tmp_path / "digits", html=True, tell=silent)
    assert contents(tmp_path / "digits") == contents(folder)


def test_without_a_finished_seed_there_is_a_page_and_no_mean(seeds, tmp_path):
    folder, part = published(seeds[2:], tmp_path, html=False)
    assert part["methods"] == {} and "No seed is finished." in (folder / "README.md").read_text()
    assert not (folder / "report.html").exists()


def test_parts_stand_in_one_table_beside_the_papers_figures(written, tmp_path):
    _, part = written
    for name in ("paper", "default"):
        (tmp_path / "mnist" / name).mkdir(parents=True)
        made = part | {"preset": name, "experiment": "mnist", "data": "MNIST"}
        write_record(tmp_path / "mnist" / name / "results.json", made)
    publish.write_page(tmp_path / "mnist")
    lines = (tmp_path / "mnist" / "README.md").read_text().splitlines()
    assert [line.partition(".")[0] for line in lines[2:6:2]] == [
        "Our settings (changed)",
        "The paper's settings (changed)",
    ]
    assert all("These seeds" in line for line in lines[2:6:2])  # the conclusions come first
    header, _, _, _, _, fitnet = lines[6:12]
    assert "the paper's settings (changed): test error %" in header and "our settings (changed): test" in header
    assert "paper %" in header and "| FitNet |" in fitnet and "| 0.51 |" in fitnet


def test_existing_runs_are_compared_without_their_data(seeds, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "load", None)
    folders = [str(run.directory.folder) for run in seeds[:2]]
    assert run.main(["compare", *folders, "--results", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "digits" / "default" / "results.json").read_text())
    assert [record["seed"] for record in found["runs"]] == [0, 1] and "FitNet" in capsys.readouterr().out
    assert "same settings and the same seed" in refusal(capsys, ["compare", folders[0], folders[0]])
    assert [found["changed"][name] for name in ("train", "flips", "crops", "teacher.lr_scale")] == [
        "40",
        "False",
        "0",
        "1.0",
    ]
    assert found["changed"]["lam"] == "4.0 1.0 8" and not {"seed", "images"} & found["changed"].keys()


@pytest.fixture(scope="module")
def one_seed(seeds, tmp_path_factory):
    return published(seeds[:1], tmp_path_factory.mktemp("one"), html=False, pictures=False)[0].parent


def other_settings(path):
    write_record(path, json.loads(path.read_text().replace('"tau": 3.0', '"tau": 2.0')))


def other_images(path):
    found = json.loads(path.read_text())
    write_record(path, found | {"settings": found["settings"] | {"images": "of other digits"}})


def other_run(path):
    found = json.loads(path.read_text())
    found["runs"][0]["stages"]["kd"]["seconds"] += 1
    write_record(path, found)


def more_seeds(path):
    found = json.loads(path.read_text())
    seventh = found["runs"][0] | {"seed": 7}
    write_record(path, found | {"runs": [*found["runs"], seventh]})


def earlier(path):
    write_record(path, {"command": "", "methods": {}, "seeds": []})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_settings, "default holds other results: tau 2.0, now 3.0. Name another --results folder"),
        (other_images, 'holds other results: images "of other digits", now "'),
        (other_run, "its seed 0 is of another training run"),
        (more_seeds, "it has seed 7, which was not asked for"),
        (earlier, "not the results of a comparison, or those of an earlier minifit"),
    ],
)
def test_results_of_anything_else_are_never_replaced(change, said, seeds, one_seed, tmp_path):
    folder = shutil.copytree(one_seed / "digits", tmp_path / "digits")
    change(folder / "default" / "results.json")
    before = contents(folder)
    with pytest.raises(UserError, match=said):
        published(seeds[:1], tmp_path)
    assert contents(folder) == before


def test_more_seeds_of_the_same_settings_extend_the_results(seeds, one_seed, tmp_path):
    shutil.copytree(one_seed, tmp_path, dirs_exist_ok=True)
    _, part = published(seeds[:2], tmp_path, pictures=False)
    assert part["questions"][0]["rows"][0]["seeds"] == [0, 1]


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Two seeds at once, by the command."""
    folder = tmp_path_factory.mktemp("compared")
    arguments = ["compare", "digits", "--seeds", "2", "--runs", str(folder / "runs"), "--results", str(folder / "out")]
    assert run.main([*arguments, "--at-once", "2", *tiny()]) == 0
    return folder, arguments


def test_seeds_at_once_are_bit_for_bit_those_one_at_a_time(compared, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "draw", silent)
    for seed in ("0", "1"):
        assert run.main(["digits", "--seed", seed, "--runs", str(tmp_path), *tiny()]) == 0
    mine, theirs = contents(tmp_path, "h5"), contents(compared[0] / "runs", "h5")
    assert mine == theirs and len(mine) == 10


def test_the_same_command_again_trains_nothing_and_changes_nothing(compared, monkeypatch, capsys):
    folder, arguments = compared
    before = contents(folder)
    monkeypatch.setattr(jobs.subprocess, "Popen", None)
    assert run.main([*arguments, "--at-once", "2", *tiny()]) == 0
    assert contents(folder) == before
    assert "2 of 2 seeds kept" in capsys.readouterr().out


def test_a_fresh_clone_does_not_destroy_the_published_page(compared, tmp_path, monkeypatch, capsys):
    folder, _ = compared
    before = contents(folder / "out")
    monkeypatch.setattr(jobs.subprocess, "Popen", None)
    words = ["compare", "digits", "--seeds", "1", "--runs", str(tmp_path / "runs"), "--results", str(folder / "out")]
    line = refusal(capsys, [*words, *tiny("--train", "12")])
    assert "default holds other results: " in line and "train 16, now 12" in line
    assert "it has seed 1, which was not asked for. Name another --results folder" in line
    assert contents(folder / "out") == before and not (tmp_path / "runs").exists()


def test_a_page_keeps_the_commands_of_all_that_it_shows(tmp_path):
    part = tmp_path / "digits" / "default"
    part.mkdir(parents=True)

    def commands(command, *methods, seeds=1, there=()):
        """After a command that asks for some methods, where the run directories have those methods and others."""
        whole = {name: stage(name) for name in ("teacher", "backprop", "kd") if name in (*methods, *there)}
        records = [member(seed, **whole) for seed in range(seeds)]
        said = publish.commands(part, publish.with_what_was_there(part, records), command, {*methods})
        write_record(part / "results.json", compare.gather(records, said))
        return said

    assert commands("one", "teacher", "kd") == "one"
    assert commands("two", "teacher", "kd", "backprop") == "two"  # does all that the first did
    assert commands("one", "kd", there=["teacher", "backprop"]) == "two"  # adds nothing
    assert commands("three", "kd", there=["teacher", "backprop"], seeds=2) == "two\nthree"
    assert commands("three", "kd", there=["teacher", "backprop"], seeds=3) == "two\nthree"
    assert commands("four", "teacher", "kd", "backprop", seeds=4) == "four"


def test_weights_that_cannot_be_drawn_leave_the_results_as_they_were(seeds, one_seed, tmp_path, monkeypatch):
    shutil.copytree(one_seed, tmp_path, dirs_exist_ok=True)
    before = contents(tmp_path)

    def refuses(*arguments):
        raise UserError("made from another teacher")

    monkeypatch.setattr(publish, "draw_networks", refuses)
    with pytest.raises(UserError, match="made from another teacher"):
        published(seeds[:2], tmp_path)
    assert contents(tmp_path) == before


def test_results_are_made_again_without_data_and_without_runs(compared, tmp_path, monkeypatch, capsys):
    folder, _ = compared
    before, again = contents(folder / "out"), ["results", "digits", "--results"]
    for path in (*folder.joinpath("out").rglob("errors.png"), folder / "out" / "digits" / "README.md"):
        path.unlink()
    (folder / "runs").rename(tmp_path / "gone")
    monkeypatch.setattr(data, "load", None)
    assert run.main([*again, str(folder / "out")]) == 0
    (tmp_path / "gone").rename(folder / "runs")
    assert contents(folder / "out") == before and "README.md, default/" in capsys.readouterr().out
    assert "no results.json in it" in refusal(capsys, [*again, str(tmp_path)])
    (tmp_path / "digits" / "default").mkdir(parents=True)
    (tmp_path / "digits" / "default" / "results.json").write_text("{}")
    assert "results.json: not the results of a comparison" in refusal(capsys, [*again, str(tmp_path)])


def test_records_without_weights_make_the_same_results_and_are_never_trained_in(compared, tmp_path, capsys):
    folder, arguments = compared
    before, weights = contents(folder, "png", "json", "jsonl", "md"), [*(folder / "runs").rglob("*.h5")]
    for path in weights:
        path.rename(tmp_path / f"{path.parent.name}-{path.name}")
    assert run.main([*arguments, "--at-once", "2", *tiny()]) == 0
    capsys.readouterr()
    line = refusal(capsys, ["digits", "--runs", str(folder / "runs"), *tiny()])
    assert "seed0 holds the records of a run without its weights" in line
    assert contents(folder, "png", "json", "jsonl", "md") == before
    for path in weights:
        (tmp_path / f"{path.parent.name}-{path.name}").rename(path)


def test_runs_of_other_settings_are_refused_before_anything_starts(compared, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jobs.subprocess, "Popen", None)
    line = refusal(capsys, [*compared[1][:-1], str(tmp_path), *tiny("--tau", "2")])
    assert "tau 3.0, now 2.0" in line


def test_a_seed_that_fails_is_named_and_is_in_no_mean(tmp_path, capsys):
    words = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "out"), *tiny("--student.lr", "1e30")]
    assert run.main(["compare", "digits", "--seeds", "1", *words, "--student.epochs", "3"]) == 1
    said = capsys.readouterr()
    assert said.err == "run.py: seed 0 ended with exit status 1\n"
    assert "seed 0 | run.py: backprop, epoch" in said.out and "No seed is finished." in said.out


def test_ctrl_c_stops_every_seed_and_says_how_to_go_on(tmp_path):
    arguments = ["compare", "digits", "--seeds", "2", "--at-once", "2", "--runs", str(tmp_path), *tiny()]
    arguments += ["--teacher.epochs", "500", "--teacher.patience", "500", "--results", str(tmp_path / "out")]
    process = subprocess.Popen(
        [sys.executable, sys.argv[0], *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    seen = set()
    while len(seen) < 2:
        line = process.stdout.readline()
        assert line
        seen |= {line[:6]} if "teacher epoch" in line else set()
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err == ""
    assert out.splitlines()[-1].startswith("stopped; the last finished epoch is kept. To go on: python run.py compare")
    for seed in (0, 1):  # and nobody is at work in their folders
        folder = tmp_path / "digits" / f"seed{seed}"
        found = compare.record(folder)
        with runner.RunDirectory(
            folder, ("teacher",), json.loads((folder / "config.json").read_text())["settings"], np
        ):
            assert found["seed"] == seed and found["stages"] == {}


def test_a_command_that_fails_stops_no_other():
    said = []
    commands = [["-c", "print('one'); raise SystemExit(3)"], ["-c", "print('two')"]]
    statuses = jobs.run_jobs([jobs.Job("a", commands), jobs.Job("b", commands[1:])], 1, said.append)
    assert statuses == {"a": 3, "b": 0} and said == ["a | one", "a | two", "b | two"]


def test_a_command_that_cannot_be_started_is_named_and_stops_no_other(monkeypatch):
    begin, said = jobs.subprocess.Popen, []

    def refuse(words, **more):
        if words[-1] == "b":
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return begin(words, **more)

    monkeypatch.setattr(jobs.subprocess, "Popen", refuse)
    made = [jobs.Job(name, [["-c", "import sys; print(sys.argv[1])", name]]) for name in "abc"]
    assert jobs.run_jobs(made, 1, said.append) == {"a": 0, "b": 1, "c": 0}
    assert said == ["a | a", "b | cannot be started: Resource temporarily unavailable", "c | c"]


# A job that leaves a process behind, which holds the job's standard output open and hears nothing of Ctrl-C.
LEAVES = """
import subprocess, sys
ignores = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(100)"
print(subprocess.Popen([sys.executable, "-c", ignores], start_new_session=True).pid, flush=True)
"""
BEGINS = f"""
from minifit.lab import cli
from minifit.lab.jobs import Job, run_jobs
cli.audit = lambda words: run_jobs([Job("a", [["-c", {LEAVES + "import time; time.sleep(100)"!r}]])], 1, cli.say)
raise SystemExit(cli.main(["audit"]))
"""


def test_what_a_job_has_begun_does_not_hold_up_the_end_after_ctrl_c():
    process = subprocess.Popen(
        [sys.executable, "-c", BEGINS],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a shell may have it ignored
    )
    pid = int(process.stdout.readline().split()[-1])
    try:
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=15)  # and not the 100 seconds of what the job has begun
    finally:
        os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()
    assert (process.returncode, said) == (130, "\nstopped; to begin again: python run.py audit\n")


def test_what_a_job_has_begun_does_not_hold_up_the_next(monkeypatch):
    monkeypatch.setattr(jobs, "PATIENCE", 0.2)
    said, began = [], time.monotonic()
    assert jobs.run_jobs([jobs.Job("a", [["-c", LEAVES], ["-c", "print('next')"]])], 1, said.append) == {"a": 0}
    took = time.monotonic() - began
    os.kill(int(said[0].split()[-1]), signal.SIGKILL)
    assert said[1:] == ["a | next"] and took < 15


# A comparison whose job prints more than a pipe holds.
UNREAD = """
from minifit.lab import jobs
jobs.PATIENCE = 1
try:
    jobs.run_jobs([jobs.Job("a", [["-c", "print('x' * 10**6); import time; time.sleep(100)"]])], 1, print)
except KeyboardInterrupt:
    raise SystemExit(130)
"""


def test_what_nobody_reads_does_not_hold_up_ctrl_c():
    process = subprocess.Popen(
        [sys.executable, "-uc", UNREAD],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        process.stdout.read(1)  # now it prints, and soon the pipe is full
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=15) == 130
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


# A job that begins as run.py does, and then says nothing for a long time.
SILENT = "import os, time; from minifit.lab import cli; cli.surroundings(); print(os.getpid()); time.sleep(100)"
PARENT = f"from minifit.lab.jobs import Job, run_jobs; run_jobs([Job('a', [['-uc', {SILENT!r}]])], 1, print)"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a job ends at its next printed line")
def test_a_job_ends_with_the_process_that_began_it():
    parent = subprocess.Popen([sys.executable, "-uc", PARENT], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline().split()[-1])
    parent.kill()
    parent.wait()
    assert left_after([pid], 10) == []
    assert parent.stdout.read() == ""


def refusal(capsys, arguments):
    assert run.main(arguments) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and said.err.startswith("run.py: ") and "Traceback" not in said.err
    return said.err.strip()


def test_arms_share_the_teacher_of_a_seed_and_are_paired_with_the_base(tmp_path, monkeypatch):
    for module, name in DRAWN:
        monkeypatch.setattr(module, name, silent)
    words = ["--seeds", "1", "--stage", "kd", "--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "out")]
    arguments = ["compare", "digits", *words, "--arm", "tau=1,student_tau=2", *tiny()]
    assert run.main(arguments) == 0
    found = json.loads((tmp_path / "out" / "digits" / "arms" / "results.json").read_text())
    assert list(found["arms"]) == ["", "tau=1.0,student_tau=2.0"]
    base, other = (record["stages"] for record in found["runs"])
    assert [*base] == ["teacher", "kd"] and [*other] == ["kd"]
    rows = [row for row in found["questions"][0]["rows"] if row["method"] == "kd"]
    gain = other["kd"]["validation_error"] - base["kd"]["validation_error"]
    assert rows[1]["less"]["validation_error"]["mean"] == pytest.approx(gain) and len(rows) == 2
    text = (tmp_path / "out" / "digits" / "README.md").read_text()
    assert "## Changed settings (preset default)" in text and "settings of one seed share that seed's teacher" in text

    before = contents(tmp_path)
    monkeypatch.setattr(jobs.subprocess, "Popen", None)
    assert run.main(arguments) == 0
    assert contents(tmp_path) == before


def test_settings_are_said_to_share_a_teacher_only_where_they_do():
    said = "All settings of one seed share that seed's teacher."
    made = stage("teacher", **{"from": "runs/seed0"}), stage("teacher", **{"from": "elsewhere"}), stage("teacher")
    for base, of_arm, share in ((made[2], made[0], True), (made[2], made[1], False), (made[1], made[0], True)):
        runs = [member(0, teacher=base), member(0, "tau=1", settings={"tau": 1.0}, teacher=of_arm)]
        assert (said in report.about_runs(compare.gather(runs, "command"))) == share
    assert said not in report.about_runs(compare.gather([runs[0], member(0, "tau=1", teacher=made[2])], "command"))
    student = {"kd": stage("kd")}
    for base, of_arm, share in (
        (student | {"teacher": made[2]}, student, True),
        (student, student, False),  # of a given teacher
        (student | {"teacher": made[2]}, student | {"teacher": made[2]}, False),
    ):
        runs = [member(0, **base), member(0, "tau=1", settings={"tau": 1.0}, **of_arm)]
        assert (said in report.about_runs(compare.gather(runs, "command"))) == share
    taught_elsewhere = member(0, "teacher.epochs=9", settings={"teacher.epochs": 9}, **student)
    assert said not in report.about_runs(compare.gather([runs[0], taught_elsewhere], "command"))


def test_one_given_teacher_of_several_seeds_is_told():
    said = "One given teacher serves all seeds: the spread comes from the students only."
    for settings, seeds, told in (
        ({"networks.teacher.weights": "abc"}, 2, True),
        ({"networks.teacher.sha256": "abc"}, 2, True),
        ({"networks.teacher.weights": "abc"}, 1, False),
        ({}, 2, False),
    ):
        runs = [member(seed, settings=settings, kd=stage("kd")) for seed in range(seeds)]
        assert (said in report.about_runs(compare.gather(runs, "command"))) == told


def test_studies_ask_their_questions_of_the_methods_that_they_name(tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "STUDIES", (Study("tau", {"1": {"tau": 1.0}, "3, paper": {}}, ("kd",)),))
    words = ["--seeds", "1", "--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "out"), *tiny()]
    assert run.main(["compare", "digits", "--studies", "--stage", "kd", *words]) == 0
    found = json.loads((tmp_path / "out" / "digits" / "studies" / "results.json").read_text())
    (question,) = found["questions"]
    assert found["preset"] == "short" and question["question"] == "tau"
    assert [(row["method"], row["setting"]) for row in question["rows"]] == [("kd", "1"), ("kd", "3, paper")]
    assert "### tau" in (tmp_path / "out" / "digits" / "README.md").read_text()


def test_retrained_networks_give_the_test_errors_and_the_chosen_ones_the_validation_errors(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "draw", silent)
    dataset = data.load("digits", train=56, test=16)
    small = Experiment("digits", TEACHER, STUDENT, {"default": DIGITS})
    config = replace(CONFIG, retrain=True, guided_layer=(1, 2), hint_layer=(1, 2), regressor="fc")  # and two hints
    first = set_up(tmp_path / "seed0", "digits", "default", small, config, 0, dataset, np, 1, False)
    runner.train(first, "all", silent)
    stages = list(first.plan.stages)
    assert compare.record(first.directory.folder, stages)["missing"] == [f"{name}, on all images" for name in stages]
    last = on_all(first)
    runner.train(last, "all", silent)
    folder, part = published([first], tmp_path / "out")
    chosen, again = summary(first)["stages"], summary(last)["stages"]
    row = part["questions"][0]["rows"][-1]
    assert row["method"] == "fitnet" and row["test_errors"] == [again["fitnet"]["test_error"]]
    assert row["validation_errors"] == [chosen["fitnet"]["validation_error"]]
    own = [part[name]["epochs"] for part in (chosen, again) for name in ("hint", "hint_2", "fitnet")]
    assert row["epochs"]["mean"] == sum(own)
    assert all((folder / "default" / name).exists() for name in publish.PICTURES)

    run, again = first.directory.folder, last.directory.folder
    for name, other in (("summary.json", run / "summary.json"), ("config.json", run / "config.json")):
        kept = (again / name).read_bytes()
        shutil.copy(other, again / name)
        with pytest.raises(UserError, match="other settings"):
            compare.record(run)
        (again / name).write_bytes(kept)
    assert compare.record(run)["all"].keys() == {*stages}
    found = json.loads((again / "config.json").read_text())
    found["settings"]["tau"] = 7.0
    write_record(again / "config.json", found)
    for path in again.glob("*.h5"):
        path.unlink()
    summary_of_all = json.loads((again / "summary.json").read_text())
    write_record(again / "summary.json", summary_of_all | {"settings": seal(found["settings"])})
    with pytest.raises(UserError, match="other settings: tau"):
        compare.record(run)


def test_a_results_folder_that_cannot_be_is_one_line_before_anything_is_trained(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setattr(jobs.subprocess, "Popen", None)
    words = ["--results", str(tmp_path / "file"), "--runs", str(tmp_path / "runs")]
    assert "cannot be written" in refusal(capsys, ["compare", "digits", *words, *tiny()])
    assert not (tmp_path / "runs").exists()


PAGES = sorted({path.parents[1] for path in (ROOT / "results").glob("*/*/results.json")})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_committed_results_are_what_their_records_give(page, tmp_path):
    """README.md and results.json; pictures depend on the version of matplotlib."""
    parts, here = publish.parts_of(page), tmp_path / page.name
    for name, found in parts.items():
        (here / name).mkdir(parents=True)
        write_record(here / name / "results.json", compare.gather(*compare.again(found)))
        for picture in (page / name).glob("*.png"):
            (here / name / picture.name).touch()
    publish.write_page(here)
    theirs = contents(page, "md", "json")
    assert contents(here, "md", "json") == theirs and len(theirs) == 1 + len(parts)


def test_the_committed_records_give_the_committed_results():
    for name, found in publish.parts_of(ROOT / "results" / "mnist").items():
        for old in (own for own in compare.again(found)[0] if (ROOT / own["folder"]).exists()):
            now = compare.record(ROOT / old["folder"])
            assert now["settings"] == old["settings"] and now["stages"] == old["stages"], name


def test_the_channels_of_a_mosaic_lie_in_reading_order():
    maps = np.arange(12.0).reshape(2, 2, 3)
    found = plots.mosaic(maps, 2)
    assert found.shape == (5, 5)
    np.testing.assert_array_equal(found[:2, :2], maps[..., 0])
    np.testing.assert_array_equal(found[:2, 3:], maps[..., 1])
    np.testing.assert_array_equal(found[3:, :2], maps[..., 2])
    assert np.isnan(found[2]).all() and np.isnan(found[:, 2]).all() and np.isnan(found[3:, 3:]).all()
