"""Several seeds: their statistics, what is kept and what is named, the pages, and one line for whatever was wrong."""

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import run
from minifit import data, experiments
from minifit.lab import compare as comparison, gallery, jobs as several, publish as results, statistics, studies, summaries
from minifit.lab.cli import options, parse
from minifit.experiments import DIGITS, Experiment
from minifit.lab.handover import take_teacher
from minifit.networks import Conv, Network, Output
from minifit.lab.runner import Run
from minifit.lab.training import Schedule

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = {"teacher": 0.55, "backprop": 1.9, "kd": 0.65, "fitnet": 0.51}
TEACHER = Network("wide", (28, 28, 1), (Conv(5, 8, pool=(6, 6)), Conv(6, 3, pool=(2, 2)), Output(10)))
STUDENT = Network("deep", (28, 28, 1), (Conv(3, 8, pool=(4, 4)), Conv(3, 2), Conv(4, 2, pool=(2, 2)), Output(10)))
SCHEDULE = Schedule("rmsprop", lr=0.01, epochs=2, patience=2, batch=20)
CONFIG = replace(
    DIGITS,
    **{"train": 40, "validation": 16, "test": 16, "guided": (2,), "hint": (1,)},
    **dict.fromkeys(("teacher", "stage1", "student"), SCHEDULE),
)


def tiny(*more):
    """Settings with which the real networks train for a moment."""
    words = ["--train", "16", "--validation", "8", "--test", "8", "--workers", "1"]
    for part in ("teacher", "stage1", "student"):
        words += [f"--{part}.epochs", "1", f"--{part}.batch", "16"]
    return [*words, *more]


def contents(folder, *kinds):
    return {str(p.relative_to(folder)): p.read_bytes() for kind in kinds for p in sorted(folder.rglob(f"*.{kind}"))}


def test_a_spread_is_the_mean_and_the_samples_standard_deviation():
    assert statistics.spread([1.0, 2.0, 6.0]) == {"n": 3, "mean": 3.0, "sd": pytest.approx(math.sqrt(7))}
    assert statistics.spread([0.5]) == {"n": 1, "mean": 0.5, "sd": None}
    assert statistics.spread([]) == {"n": 0, "mean": None, "sd": None}


def test_a_paired_difference_is_that_of_hand_and_of_scipy():
    one, other = [0.47, 0.52, 0.44], [0.65, 0.60, 0.61]
    found = statistics.paired(one, other)  # differences -.18, -.08, -.17; t of 2 degrees of freedom: 4.3027
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
    assert statistics.paired([0.4], [0.5]) == {"n": 1, "mean": pytest.approx(-0.1)} | dict.fromkeys(
        ("sd", "low", "high", "p")
    )
    for one, other in (([1.0, 2.0], [0.5, 1.5]), ([1.05, 1.18], [1.12, 1.25])):  # the latter differ in rounding
        same = statistics.paired(one, other)
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
def test_an_order_is_shown_by_both_steps_and_refuted_by_one(intervals, verdict):
    assert statistics.order(*({"low": low, "high": high} for low, high in intervals)) == verdict


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """Runs of light networks: seeds 0 and 1 are whole, 2 has its teacher alone, 3 and 4 stand beside."""
    runs, dataset = tmp_path_factory.mktemp("runs") / "digits", data.load("digits", train=56, test=16)
    small = Experiment("digits", TEACHER, STUDENT, {})

    def of(seed, goal):
        made = Run(runs / f"seed{seed}", "digits", "default", small, CONFIG, seed, dataset, np, 1, False)
        with made:
            for name in made.plan(goal):
                made.make(name)
        return made

    of(3, "backprop"), of(4, "all")
    return [of(0, "all"), of(1, "all"), of(2, "teacher")]


@pytest.fixture(scope="module")
def written(seeds, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results") / "digits"
    part = results.write_comparison(seeds, folder, "python run.py compare digits", DIGITS, PUBLISHED)
    results.write_pages(folder, PUBLISHED)
    return folder, part


def test_means_are_over_whole_seeds_and_the_records_are_the_runs_own(seeds, written):
    _, part = written
    summaries = [run.summary()["stages"] for run in seeds[:2]]
    for name in ("teacher", "backprop", "kd", "fitnet"):
        tests = [stages[name]["test_error"] for stages in summaries]
        assert part["methods"][name]["test_error"]["mean"] == pytest.approx(np.mean(tests))
        assert part["methods"][name]["test_error"]["n"] == 2
        assert part["methods"][name]["best_epochs"] == [stages[name]["best_epoch"] for stages in summaries]
    both = [stages["hint"]["seconds"] + stages["fitnet"]["seconds"] for stages in summaries]
    assert part["methods"]["fitnet"]["seconds"]["mean"] == pytest.approx(np.mean(both))
    assert part["methods"]["fitnet"]["epochs"]["mean"] == 4
    gain = [stages["fitnet"]["test_error"] - stages["kd"]["test_error"] for stages in summaries]
    assert part["differences"][0]["test_error"]["mean"] == pytest.approx(np.mean(gain))
    record = part["seeds"][1]
    assert record["seed"] == 1 and record["settings"]["seed"] == 1 and record["settings"]["tau"] == 3.0
    assert record["stages"] == summaries[1] and {"minifit", "commit", "python", "numpy"} <= record.keys()


def test_unfinished_seeds_and_those_not_asked_for_are_named(written):
    folder, part = written
    assert [seed["missing"] for seed in part["seeds"]] == [[], [], ["backprop", "kd", "hint", "fitnet"]]
    text = (folder / "README.md").read_text()
    assert "Seeds: 0 and 1." in text
    assert "Seed 2 is unfinished and in no mean; to train: backprop, kd, hint, fitnet." in text
    assert "Seed 3 was started too, is unfinished (teacher, kd, hint, fitnet), and was not asked for." in text
    assert "Seed 4 was started too, is finished, and was not asked for." in text


def test_the_page_has_the_papers_figures_what_was_changed_and_the_pictures(written):
    folder, _ = written
    text = (folder / "README.md").read_text()
    assert "| FitNet | " in text and "| 0.51 |" in text and "| 1.9 |" in text
    assert "python run.py compare digits" in text and "train 40" in text
    assert "The order hint > KD > back-propagation on test images: " in text
    for name in summaries.PICTURES:
        assert f"](default/{name})" in text
        assert (folder / "default" / name).read_bytes().startswith(b"\x89PNG")


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
    assert opened == [] and len(sources) == len(summaries.PICTURES)
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in sources)
    assert "hint &gt; KD &gt; back-propagation" in text


def test_written_again_every_file_is_the_same(seeds, written, tmp_path):
    folder, _ = written
    results.write_comparison(seeds, tmp_path / "digits", "python run.py compare digits", DIGITS, PUBLISHED)
    results.write_pages(tmp_path / "digits", PUBLISHED)
    kinds = "json", "md", "html", "png"
    assert contents(tmp_path / "digits", *kinds) == contents(folder, *kinds)


def test_both_presets_stand_in_one_table(written, tmp_path):
    folder, part = written
    (tmp_path / "paper").mkdir()
    (tmp_path / "default").mkdir()
    (tmp_path / "default" / "results.json").write_text((folder / "default" / "results.json").read_text())
    (tmp_path / "paper" / "results.json").write_text(json.dumps(part | {"preset": "paper"}))
    results.write_pages(tmp_path, {})
    header = (tmp_path / "README.md").read_text().splitlines()[2]
    assert "the paper's settings (changed): test error %" in header and "our settings (changed): test" in header
    assert "paper %" not in header


def test_one_teacher_for_all_seeds_is_said():
    def part(*teachers):
        seeds = [{"seed": i, "missing": [], "teacher_from": where} for i, where in enumerate(teachers)]
        return " ".join(summaries.about_seeds({"seeds": seeds, "others": []}))

    assert "One teacher, trained in runs/a, served all seeds" in part("runs/a", "runs/a")
    assert "seed 0's in runs/a, seed 1's in its own run" in part("runs/a", None)
    assert "eacher" not in part(None, None)


def test_one_teacher_for_all_seeds_has_no_spread(seeds, tmp_path):
    others = [replace(seeds[0], folder=tmp_path / f"seed{seed}", seed=seed) for seed in (0, 1)]
    for other in others:
        with other:
            take_teacher(other, seeds[0].folder)
            for name in other.plan("backprop"):
                other.make(name)
    part = comparison.gather(others, "command", CONFIG, "teacher", "backprop")
    assert (part["methods"]["teacher"]["test_error"]["n"], part["methods"]["backprop"]["test_error"]["n"]) == (1, 2)
    assert summaries.methods_table(part)[2][0][:4:3] == ["teacher (one for all seeds)", None]


def test_without_a_finished_seed_there_is_a_page_and_no_mean(seeds, tmp_path):
    part = results.write_comparison(seeds[2:], tmp_path, "command", DIGITS, {})
    results.write_pages(tmp_path, {})
    assert part["methods"] == {} and "No seed is finished." in (tmp_path / "README.md").read_text()


def test_the_channels_of_a_mosaic_lie_in_reading_order():
    maps = np.arange(12.0).reshape(2, 2, 3)
    found = gallery.mosaic(maps, 2)
    assert found.shape == (5, 5)
    np.testing.assert_array_equal(found[:2, :2], maps[..., 0])
    np.testing.assert_array_equal(found[:2, 3:], maps[..., 1])
    np.testing.assert_array_equal(found[3:, :2], maps[..., 2])
    assert np.isnan(found[2]).all() and np.isnan(found[:, 2]).all() and np.isnan(found[3:, 3:]).all()


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Two seeds at once, by the command."""
    folder = tmp_path_factory.mktemp("compared")
    arguments = ["compare", "digits", "--seeds", "2", "--runs", str(folder / "runs"), "--results", str(folder / "out")]
    assert run.main([*arguments, "--at-once", "2", *tiny()]) == 0
    return folder, arguments


def test_seeds_at_once_are_bit_for_bit_those_one_at_a_time(compared, tmp_path):
    for seed in ("0", "1"):
        assert run.main(["digits", "--seed", seed, "--runs", str(tmp_path), *tiny()]) == 0
    assert contents(tmp_path, "h5") == contents(compared[0] / "runs", "h5")


def test_the_same_command_again_trains_nothing_and_changes_nothing(compared, monkeypatch, capsys):
    folder, arguments = compared
    before = contents(folder, "h5", "jsonl", "png", "json", "html", "md")
    monkeypatch.setattr(several.subprocess, "Popen", None)
    assert run.main([*arguments, "--at-once", "2", *tiny()]) == 0
    assert contents(folder, "h5", "jsonl", "png", "json", "html", "md") == before
    assert "2 of 2 seeds kept" in capsys.readouterr().out


def test_results_are_made_again_from_the_records_alone(compared, monkeypatch, capsys):
    folder, _ = compared
    kinds = "png", "json", "html", "md"
    before = contents(folder / "out", *kinds)
    for path in [*folder.joinpath("out").rglob("*.png"), *folder.joinpath("out").glob("*.*")]:
        path.unlink()
    monkeypatch.setattr(several.subprocess, "Popen", None)
    assert run.main(["results", "digits", "--results", str(folder / "out")]) == 0
    assert contents(folder / "out", *kinds) == before and len(before) == 8
    assert "README.md, report.html, default/" in capsys.readouterr().out


def test_results_of_runs_that_are_gone_stay_as_they_are(compared, tmp_path, capsys):
    folder, _ = compared
    before, again = contents(folder / "out", "png", "json", "html", "md"), ["results", "digits", "--results"]
    (folder / "runs" / "digits" / "seed1").rename(tmp_path / "seed1")
    line = refusal(capsys, [*again, str(folder / "out")])
    assert "seed1: no teacher, backprop, kd, hint, fitnet, of which" in line
    (tmp_path / "seed1").rename(folder / "runs" / "digits" / "seed1")
    assert contents(folder / "out", "png", "json", "html", "md") == before
    assert "no comparison in it" in refusal(capsys, [*again, str(tmp_path)])
    (tmp_path / "digits" / "default").mkdir(parents=True)
    (tmp_path / "digits" / "default" / "results.json").write_text("{}")
    assert "results.json: not the results of a comparison" in refusal(capsys, [*again, str(tmp_path)])


def test_records_without_weights_make_the_same_results_and_are_never_trained_in(compared, tmp_path, capsys):
    folder, _ = compared
    kinds = "png", "json", "html", "md"
    before = contents(folder / "out", *kinds)
    weights = [path for path in (folder / "runs").rglob("*.h5")]
    for path in weights:
        path.rename(tmp_path / f"{path.parent.name}-{path.name}")
    for path in [*folder.joinpath("out").glob("*.*"), folder / "out" / "digits" / "default" / "errors.png"]:
        path.unlink()
    assert run.main(["results", "digits", "--results", str(folder / "out")]) == 0
    records = contents(folder / "runs", "json", "jsonl")
    capsys.readouterr()
    line = refusal(capsys, ["digits", "--runs", str(folder / "runs"), *tiny()])
    assert "seed0 holds the records of a run without its weights" in line
    assert contents(folder / "runs", "json", "jsonl") == records
    assert contents(folder / "out", *kinds) == before
    for path in weights:
        (tmp_path / f"{path.parent.name}-{path.name}").rename(path)


def test_runs_of_other_settings_are_refused_before_anything_starts(compared, monkeypatch, capsys):
    monkeypatch.setattr(several.subprocess, "Popen", None)
    line = refusal(capsys, [*compared[1], *tiny("--tau", "2")])
    assert "tau 3.0, now 2.0" in line


def test_a_seed_that_fails_is_named_and_is_in_no_mean(tmp_path, capsys):
    words = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "out"), *tiny("--student.lr", "1e30")]
    assert run.main(["compare", "digits", "--seeds", "1", *words, "--student.epochs", "3"]) == 1
    said = capsys.readouterr()
    assert said.err == "run.py: seed 0 ended with exit status 1\n"
    assert "seed 0 | run.py: backprop, epoch" in said.out and "No seed is finished." in said.out


def test_ctrl_c_stops_every_seed_and_says_how_to_go_on(tmp_path):
    arguments = ["compare", "digits", "--seeds", "2", "--at-once", "2", "--runs", str(tmp_path), *tiny()]
    arguments += ["--teacher.epochs", "500", "--teacher.patience", "500"]
    process = subprocess.Popen(
        [sys.executable, "run.py", *arguments],
        cwd=ROOT,
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
        config = experiments.EXPERIMENTS["digits"].presets["default"]
        command = parse("digits", arguments[6:])
        config = replace(config, **{f: getattr(command, f) for f in ("train", "validation", "test", "teacher")})
        config = replace(config, stage1=command.stage1, student=command.student)
        dataset = data.load("digits", train=24, test=8)
        with Run(folder, "digits", "default", experiments.EXPERIMENTS["digits"], config, seed, dataset, np, 1) as own:
            assert own.directory.state("teacher").startswith("at epoch")


def test_a_command_that_fails_stops_no_other():
    said = []
    commands = [["-c", "print('one'); raise SystemExit(3)"], ["-c", "print('two')"]]
    statuses = several.run_jobs([several.Job("a", commands), several.Job("b", commands[1:])], 1, said.append)
    assert statuses == {"a": 3, "b": 0} and said == ["a | one", "a | two", "b | two"]


def refusal(capsys, arguments):
    assert run.main(arguments) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and said.err.startswith("run.py: ") and "Traceback" not in said.err
    return said.err.strip()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["compare"], "compare takes an experiment first: choose mnist, digits, cifar10-fitnet1"),
        (["compare", "minst"], "compare takes an experiment first"),
        (["compare", "--seeds", "2"], "compare takes an experiment first"),
        (["compare", "digits", "--seeds", "0"], "--seeds 0: wanted 1 or more"),
        (["compare", "digits", "--seeds", "two"], "--seeds"),
        (["compare", "digits", "--at-once", "0"], "--at-once 0: wanted 1 or more"),
        (["compare", "digits", "--workers", "0"], "--workers 0: wanted 1 or more"),
        (["compare", "digits", "--seed", "1"], "--seeds"),
        (["compare", "digits", "--stage", "kd"], "--results"),
        (["compare", "digits", "--student-tau", "0"], "--student-tau 0.0: wanted a number above 0"),
        (["compare", "digits", "--regressor-pieces", "0"], "--regressor-pieces 0: wanted at least 1"),
        (["study"], "study takes an experiment first: choose mnist, digits"),
        (["study", "cifar10-fitnet1"], "there is no study of cifar10-fitnet1: choose mnist or digits"),
        (["study", "digits", "--preset", "paper"], "--preset paper: studies have a short schedule of their own"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_meant_is_one_line(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert said in refusal(capsys, arguments)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", studies.BASES)
def test_the_words_of_a_command_line_make_the_settings_again(name):
    default = experiments.EXPERIMENTS[name].presets["default"]
    for changes, *_ in studies.variants().values():
        config = replace(studies.BASES[name], **changes, retrain=True)
        command = parse(name, options(config, default))
        assert all(getattr(command, setting) == value for setting, value in vars(config).items())
        back = options(default, config)
        assert "--no-retrain" in back


@pytest.mark.parametrize("name", studies.BASES)
def test_every_variant_changes_settings_that_there_are_and_can_be_meant(name):
    found = studies.variants()
    assert next(iter(found)) == "base" and set(found["base"][1]) == {"backprop", "kd", "fitnet"}
    for changes, *_ in found.values():
        experiments.check(experiments.EXPERIMENTS[name], replace(studies.BASES[name], **changes))
    for study in studies.STUDIES:  # one setting at a time
        variants = [set(changes.items()) for changes in study.variants.values()]
        assert all(len(one ^ variants[0]) <= 2 and len({k for k, _ in one ^ variants[0]}) <= 1 for one in variants)


def test_a_study_trains_one_teacher_a_seed_and_compares_by_validation(tmp_path, monkeypatch, capsys):
    study = studies.Study("tau", ("kd", "fitnet"), {"1": {"tau": 1.0}, "3, paper": {}})
    further = studies.Study("Start", ("kd",), {"scaled": {}, "uniform": {"init": "uniform"}}, more=1)
    monkeypatch.setattr(studies, "STUDIES", (study, further))
    arguments = [
        "study",
        "digits",
        "--seeds",
        "1",
        "--runs",
        str(tmp_path / "runs"),
        "--results",
        str(tmp_path / "out"),
    ]
    assert run.main([*arguments, *tiny()]) == 0
    first, other = (tmp_path / "runs" / "study" / name / "digits" / "seed0" for name in ("base", "tau-1.0"))
    own, taken = (json.loads((folder / "summary.json").read_text())["stages"] for folder in (first, other))
    assert taken["teacher"].pop("from") == str(first) and taken["teacher"] == own["teacher"]
    found = json.loads((tmp_path / "out" / "digits" / "studies.json").read_text())
    rows = [row for row in found["studies"][0]["rows"] if row["method"] == "fitnet"]
    assert [row["validation_errors"] for row in rows] == [[s["fitnet"]["validation_error"]] for s in (taken, own)]
    gain = taken["fitnet"]["validation_error"] - own["fitnet"]["validation_error"]
    assert rows[0]["difference"]["mean"] == pytest.approx(gain) and rows[1]["difference"] is None
    assert rows[0]["best"] == (gain <= 0) and rows[1]["best"] == (gain >= 0)
    between = {pair["variant"]: pair for pair in found["studies"][0]["between"]}
    for variant, stages in (("1", taken), ("3, paper", own)):
        gain = stages["fitnet"]["validation_error"] - stages["kd"]["validation_error"]
        assert between[variant]["validation_error"]["mean"] == pytest.approx(gain)
        assert (between[variant]["method"], between[variant]["less"]) == ("fitnet", "kd")
    started = {str(p.parent.relative_to(tmp_path / "runs" / "study")) for p in tmp_path.rglob("config.json")}
    further = {f"{name}/digits/seed1" for name in ("base", "init-uniform")}
    assert started == {f"{name}/digits/seed0" for name in ("base", "init-uniform", "tau-1.0")} | further
    assert [row["validation_error"]["n"] for s in found["studies"] for row in s["rows"]] == [1, 1, 1, 1, 2, 2]
    text = (tmp_path / "out" / "digits" / "README.md").read_text()
    assert "### tau" in text and text.count("| FitNet less knowledge distillation | ") == len(between) == 2

    before = contents(tmp_path, "h5", "json", "md", "html", "png")
    monkeypatch.setattr(several.subprocess, "Popen", None)
    assert run.main([*arguments, *tiny()]) == 0
    assert contents(tmp_path, "h5", "json", "md", "html", "png") == before
    (tmp_path / "out" / "digits" / "README.md").unlink()
    assert run.main(["results", "digits", "--results", str(tmp_path / "out")]) == 0  # no comparison is there
    assert contents(tmp_path, "h5", "json", "md", "html", "png") == before


def test_retrained_networks_give_the_test_errors_and_the_chosen_ones_the_validation_errors(tmp_path):
    dataset, small = data.load("digits", train=56, test=16), Experiment("digits", TEACHER, STUDENT, {})
    config = replace(CONFIG, retrain=True, guided=(1, 2), hint=(1, 2), regressor="fc")  # and two hints
    first = Run(tmp_path / "seed0", "digits", "default", small, config, 0, dataset, np, 1, False)

    def perform(one):
        with one:
            for name in one.plan("all"):
                one.make(name)
        return one

    perform(first)
    assert comparison.of_seed(first, "all")["missing"][0] == "teacher, on all images"
    last = perform(first.on_all())
    part = results.write_comparison([first], tmp_path / "out", "command", DIGITS, {})
    chosen, again = first.summary()["stages"], last.summary()["stages"]
    found = part["seeds"][0]["methods"]["fitnet"]
    assert found["test_error"] == again["fitnet"]["test_error"]
    assert found["validation_error"] == chosen["fitnet"]["validation_error"]
    stages = [stages[name] for stages in (chosen, again) for name in ("hint", "hint_2", "fitnet")]
    assert found["epochs"] == sum(stage["epochs"] for stage in stages)
    assert all((tmp_path / "out" / "default" / name).exists() for name in summaries.PICTURES)


def test_a_teacher_of_another_random_start_serves(seeds, tmp_path):
    config = replace(CONFIG, init="uniform", width=0.5)
    other = replace(seeds[0], folder=tmp_path, config=config)
    with other:
        take_teacher(other, seeds[0].folder)
    assert other.missing("teacher") == []


def test_a_results_folder_that_cannot_be_is_one_line_before_anything_is_trained(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setattr(several.subprocess, "Popen", None)
    for command in ("compare", "study"):
        words = ["--results", str(tmp_path / "file"), "--runs", str(tmp_path / "runs")]
        assert "cannot be written" in refusal(capsys, [command, "digits", *words, *tiny()])
    assert not (tmp_path / "runs").exists()


def test_an_order_needs_both_of_its_steps():
    assert comparison.order({"differences": []}) is None
