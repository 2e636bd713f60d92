"""The command line: all stages from nothing, what it prints and writes, and one line for whatever was wrong."""

import gzip
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import pytest

import run
from minifit import data, fitnets
from minifit.lab.cli import parse
from minifit.data import mnist
from minifit.experiments import Experiment
from minifit.networks import Conv, Network, Output
from minifit.lab.runner import Run
from minifit.lab.parallel import WorkerLost

ROOT = Path(__file__).resolve().parents[2]
# As deep as the real ones, so that the same layers guide and are guided, and far cheaper.
WIDE = (Conv(4, 8, pool=(6, 6)), Conv(4, 2, pool=(2, 2)), Conv(4, 2), Output(10))
DEEP = (Conv(3, 5, pool=(4, 4)), *[Conv(3, 2)] * 5, Output(10))


def small(images=32, epochs=2, lr=0.01):
    """Settings with which the real networks train for a moment."""
    words = ["--train", str(images), "--validation", "8", "--test", "8", "--init", "uniform"]
    for part in ("teacher", "stage1", "student"):
        words += [f"--{part}.epochs", str(epochs), f"--{part}.batch", "16", f"--{part}.lr", str(lr)]
    return words


def folder_of(runs, experiment="digits"):
    return runs / experiment / "seed0"


def weights(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.h5"))}


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(autouse=True)
def nothing_from_this_machine(monkeypatch, tmp_path):
    """No test meets the files or the cache of whoever runs it, nor the network."""
    monkeypatch.delenv("MINIFIT_DATA", raising=False)
    monkeypatch.setattr(mnist.pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    monkeypatch.setattr(mnist, "MIRRORS", ())


@pytest.fixture
def light(monkeypatch):
    """The experiments on light networks and without plots, for what depends on neither."""
    monkeypatch.setattr(Run, "plot", lambda _: None)
    nets = [Network(name, (28, 28, 1), blocks) for name, blocks in (("wide", WIDE), ("deep", DEEP))]
    for name, experiment in run.experiments.EXPERIMENTS.items():
        if experiment.data in ("mnist", "digits"):
            monkeypatch.setitem(
                run.experiments.EXPERIMENTS, name, Experiment(experiment.data, *nets, experiment.presets)
            )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """All stages, run as a person would: where they are, and what was printed."""
    runs = tmp_path_factory.mktemp("whole")
    command = [sys.executable, "run.py", "digits", "--runs", str(runs), "--workers", "2", *small()]
    return runs, subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_all_stages_run_from_nothing_and_say_what_they_do(whole):
    _, finished = whole
    assert finished.returncode == 0 and finished.stderr == ""
    out = finished.stdout
    assert out.startswith("digits: 32 images to train on, 8 to validate, 8 to test; seed 0; 2 workers;")
    plan, told = out.split("Left to train: about ")
    assert [line.split()[0] for line in plan.splitlines() if line.endswith("to train")] == list(fitnets.NAMES)
    assert "360,816" in plan and "29,944" in plan and "28.67M" in plan and "5.31M" in plan
    stages = [line.split(":")[0] for line in told.splitlines() if "->" in line]
    lines = [line.split(":")[0] for line in told.splitlines() if " epoch " in line.split(":")[0]]
    assert stages == list(fitnets.NAMES)
    assert lines == [f"{name} epoch {epoch}" for name in fitnets.NAMES for epoch in (1, 2)]
    table = told[told.index("method") :]
    names = ["teacher", "standard back-propagation", "knowledge distillation", "FitNet"]
    assert [line.split("  ")[0] for line in table.splitlines()[2:6]] == names
    assert "digits, 8 test images, seed 0, preset default." in table
    assert "MNIST," not in told and "paper" not in told


def test_all_stages_leave_the_files_of_a_run_and_no_litter(whole):
    folder = folder_of(whole[0])
    stages = {f"{name}.h5" for name in fitnets.NAMES}
    pictures = {"curves.png", "filters.png"}
    assert set(os.listdir(folder)) == stages | pictures | {"config.json", "metrics.jsonl", "summary.json", ".lock"}
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    assert json.loads((folder / "summary.json").read_text())["stages"].keys() == set(fitnets.NAMES)
    assert [(m["stage"], m["epoch"]) for m in metrics(folder)] == [(n, e) for n in fitnets.NAMES for e in (1, 2)]


def test_the_same_command_again_keeps_everything_and_says_so(whole, capsys):
    runs, _ = whole
    before = weights(folder_of(runs))
    assert run.main(["digits", "--runs", str(runs), "--workers", "1", *small()]) == 0
    out = capsys.readouterr().out
    assert "Nothing is left to train." in out and out.count("(kept)") == 5 and " epoch 1:" not in out
    assert weights(folder_of(runs)) == before


def start(arguments):
    """The command in a process of its own, without the second that a new interpreter takes to import everything."""
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        with open(os.devnull, "w") as sys.stdout:
            status = run.main(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)  # whatever happens, the child is not a second session of these tests


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_run_that_is_killed_in_every_stage_ends_in_the_same_bytes(light, tmp_path):
    assert run.main(["digits", "--runs", str(tmp_path / "whole"), "--workers", "2", *small(epochs=5)]) == 0
    complete, folder, rng = folder_of(tmp_path / "whole"), folder_of(tmp_path / "cut"), random.Random(0)
    unfinished = 0
    log, summary = folder / "metrics.jsonl", folder / "summary.json"
    for i, stage in enumerate(fitnets.NAMES):
        child = start(["digits", "--runs", str(tmp_path / "cut"), "--workers", str(1 + i % 2), *small(epochs=5)])
        wait_for(lambda stage=stage: log.exists() and f'"{stage}"' in log.read_text())
        time.sleep(rng.uniform(0, 0.03))  # into an epoch, the writing of its file, or what follows the stage
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        unfinished += not summary.exists() or stage not in json.loads(summary.read_text())["stages"]
    assert unfinished  # or the kills came too late to test anything
    child = start(["digits", "--runs", str(tmp_path / "cut"), "--workers", "2", *small(epochs=5)])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    assert weights(folder) == weights(complete)
    assert set(os.listdir(folder)) == set(os.listdir(complete))

    def timeless(record):
        return {key: value for key, value in record.items() if key != "seconds"}

    assert [timeless(m) for m in metrics(folder)] == [timeless(m) for m in metrics(complete)]
    summaries = [json.loads((f / "summary.json").read_text())["stages"] for f in (folder, complete)]
    assert {n: timeless(r) for n, r in summaries[0].items()} == {n: timeless(r) for n, r in summaries[1].items()}


def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(tmp_path):
    runs = tmp_path / "my runs"
    arguments = ["digits", "--stage", "backprop", "--runs", str(runs), "--workers", "2", *small(epochs=500)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(
        [sys.executable, "run.py", *arguments],
        cwd=ROOT,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored by what runs in the background
        **pipes,
    )
    while "backprop epoch 2:" not in process.stdout.readline():
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and err == ""
    last = out.splitlines()[-1]
    assert last.startswith("stopped") and shlex.split(last.partition("To go on: ")[2])[2:] == arguments
    assert "1 h" not in last and (folder_of(runs) / "backprop.h5").exists()
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


@pytest.mark.parametrize("module", ["shlex", "numpy.version", "numpy.linalg", "h5py", "reference.paper"])
def test_ctrl_c_while_python_still_imports_is_no_traceback(module, tmp_path):
    """Stops the command as soon as it has imported that module."""
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "run.py", "digits", "--runs", str(tmp_path), "--workers", "1"],
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (line := process.stderr.readline()).endswith(f" {module}\n"):
        assert line.startswith("import time:")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "stopped" in out
    assert all(line.startswith("import time:") for line in err.splitlines())


@pytest.mark.parametrize("moment", ["load", "outline", "make", "plot"])
def test_ctrl_c_is_understood_at_any_moment(moment, light, tmp_path, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr({"load": data, "outline": run.outline}.get(moment, Run), moment, interrupt)
    assert run.main(["digits", "--stage", "backprop", "--runs", str(tmp_path), *small(16, 1)]) == 130
    said = capsys.readouterr()
    assert said.err == "" and "To go on: python run.py digits --stage backprop" in said.out


def refusal(capsys, arguments, status=2):
    """What a command says in its one line on stderr."""
    assert run.main(arguments) == status
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and said.err.startswith("run.py: ") and "Traceback" not in said.err
    return said.err.strip()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["minst"], "'minst' is not an experiment: choose mnist, digits"),
        (["networks", "--tau", "2"], "networks takes no settings"),
        (["digits", "--tua", "2"], "--tau, --student-tau, --lam,"),
        (["digits", "--teacher.lrr", "2"], "--student.lr-final"),
        (["digits", "more"], "more"),
        (["digits", "--tau", "warm"], "--tau"),
        (["digits", "--tau"], "--tau"),
        (["digits", "--teacher.epochs", "1.5"], "--teacher.epochs"),
        (["digits", "--regressor", "dense"], "conv"),
        (["digits", "--stage", "second"], "fitnet"),
        (["digits", "--preset", "best"], "paper"),
        (["digits", "--backend", "torch"], "cupy"),
        (["digits", "--tau", "0"], "--tau 0.0: wanted a number above 0"),
        (["digits", "--tau", "nan"], "--tau nan"),
        (["digits", "--tau", "inf"], "--tau inf"),
        (["digits", "--width", "inf"], "--width inf"),
        (["digits", "--lam", "inf"], "--lam inf"),
        (["digits", "--teacher.lr", "inf"], "--teacher.lr inf"),
        (["digits", "--lam-start", "0"], "--lam-start 0: wanted at least 1"),
        (["digits", "--lam-end", "0"], "--lam-end 0: wanted at least 1"),
        (["digits", "--student.lr-end", "0"], "--student.lr-end 0: wanted at least 1"),
        (["digits", "--teacher.momentum-end", "-5"], "--teacher.momentum-end -5: wanted at least 1"),
        (["digits", "--teacher.lr-decay", "0.5"], "--teacher.lr-decay 0.5: wanted at least 1"),
        (["digits", "--teacher.momentum-final", "1"], "--teacher.momentum-final 1.0"),
        (["digits", "--teacher-all", "-1"], "--teacher-all -1"),
        (["digits", "--data-dir", "."], "--data-dir .: digits are drawn here"),
        (["digits", "--lam", "-1"], "--lam -1.0"),
        (["digits", "--guided", "9"], "--guided 9: wanted one of the layers 1..6"),
        (["digits", "--hint", "0"], "--hint 0: wanted one of the layers 1..3"),
        (["digits", "--keep", "1.5"], "--keep 1.5"),
        (["digits", "--teacher.epochs", "0"], "--teacher.epochs 0"),
        (["digits", "--student.batch", "0"], "--student.batch 0"),
        (["digits", "--stage1.patience", "0"], "--stage1.patience 0"),
        (["digits", "--student.lr-final", "-1"], "--student.lr-final -1.0"),
        (["digits", "--teacher.momentum", "1"], "--teacher.momentum 1.0"),
        (["digits", "--train", "0"], "--train 0"),
        (["digits", "--seed", "-1"], "--seed -1"),
        (["digits", "--train", "abc"], "--tau, --student-tau, --lam,"),
        (["digits", "--stage", "second"], "--tau, --student-tau, --lam,"),
        (["digits", "--train", "10000000000"], "10,000,001,000 and 5,000 images take about 43,809.4 GiB"),
        (["audit", "--seed", "-1"], "--seed -1: wanted 0 or more"),
        (["audit", "--draws", "many"], "(settings: --row, --draws, --seed, --backend)"),
        (["digits", "--workers", "0"], "--workers 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_meant_is_one_line_and_nothing_is_written(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert said in refusal(capsys, arguments)
    assert os.listdir(tmp_path) == []


def test_an_unknown_setting_lists_all_settings(capsys):
    line = refusal(capsys, ["mnist", "--no-such", "1"])
    assert "--no-such" in line
    for name in ("--train", "--teacher.momentum-end", "--stage1.lr", "--regressor-norm", "--data-dir", "--workers"):
        assert f"{name}," in line or f"{name})" in line


def test_cupy_that_is_not_there_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "cupy", None)
    line = refusal(capsys, ["digits", "--backend", "cupy", "--runs", str(tmp_path)])
    assert "CuPy is not installed" in line and os.listdir(tmp_path) == []


def test_another_configuration_is_refused_and_loses_nothing(whole, capsys):
    runs, _ = whole
    before = {path.name: path.read_bytes() for path in folder_of(runs).iterdir()}
    line = refusal(capsys, ["digits", "--runs", str(runs), *small(), "--tau", "2"])
    assert "tau 3.0, now 2.0" in line and "--runs" in line
    assert {path.name: path.read_bytes() for path in folder_of(runs).iterdir()} == before


def test_a_regressor_that_cannot_fit_is_one_line_and_does_not_bind_the_directory(light, tmp_path, capsys):
    line = refusal(capsys, ["digits", "--runs", str(tmp_path), *small(16, 1), "--guided", "5", "--hint", "1"])
    assert "(4, 4, 4)" in line and "(2, 2, 3)" in line
    assert run.main(["digits", "--stage", "backprop", "--runs", str(tmp_path), *small(16, 1)]) == 0


def test_a_run_that_diverges_is_one_line(light, tmp_path, capsys):
    arguments = ["digits", "--stage", "backprop", "--runs", str(tmp_path), *small(lr=1e30)]
    line = refusal(capsys, arguments, status=1)
    assert "backprop, epoch 1, step 2" in line and "not finite first in layer" in line


def test_no_worker_of_a_run_that_diverges_says_more(tmp_path):  # a process of its own: pytest keeps warnings to itself
    arguments = ["digits", "--stage", "hint", "--runs", str(tmp_path), "--slice", "8", "--workers", "2", *small(32, 2)]
    command = [sys.executable, "run.py", *arguments, "--stage1.optimizer", "sgd", "--stage1.lr", "1e20"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert said.returncode == 1 and said.stderr.count("\n") == 1, said.stderr


def test_a_lambda_that_has_fallen_before_it_falls_is_one_line(tmp_path, capsys):
    line = refusal(capsys, ["digits", "--runs", str(tmp_path), "--lam-start", "20"])
    assert "--lam-end 12: wanted --lam-start 20, or a later epoch" in line


@pytest.mark.parametrize("times", ["1e10", "1e200"])
def test_a_teacher_wider_than_memory_is_one_line(times, tmp_path, capsys):
    line = refusal(capsys, ["digits", "--runs", str(tmp_path), *small(16, 1), "--teacher-width", times])
    assert "--teacher-width" in line and "GiB" in line and os.listdir(tmp_path) == []


def test_a_worker_that_is_lost_is_one_line(light, tmp_path, monkeypatch, capsys):
    def lose(*_):
        raise WorkerLost("a worker process was ended by SIGKILL")

    monkeypatch.setattr(Run, "make", lose)
    assert "SIGKILL" in refusal(capsys, ["digits", "--runs", str(tmp_path), *small(16, 1)], status=1)


def idx(array):
    """LeCun's format: zero, zero, unsigned byte, dimensions; big-endian sizes; elements."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def other_set(tmp_path):
    """A folder with 40 and 10 digits in files that are called as MNIST's are."""
    folder = tmp_path / "data"
    folder.mkdir()
    _, *arrays = data.digits.load(train=40, test=10)
    for name, array in zip(mnist.FILES, arrays, strict=True):
        (folder / f"{name}.gz").write_bytes(
            gzip.compress(idx(array.reshape(len(array), 28, 28) if array.ndim > 1 else array))
        )
    return folder


def on_files(folder, runs, *more):
    return ["mnist", "--data-dir", str(folder), "--runs", str(runs), *small(16, 1), *more]


def test_another_set_in_mnists_format_runs_and_is_not_called_mnist(light, other_set, tmp_path, capsys):
    assert run.main(on_files(other_set, tmp_path)) == 0
    out = capsys.readouterr().out
    assert out.startswith("a set in MNIST's format (")
    table = out[out.index("method") :]
    assert "paper" not in out and "a set in MNIST's format (" in table
    summary = json.loads((folder_of(tmp_path, "mnist") / "summary.json").read_text())
    assert summary["data"].startswith("a set in MNIST's format (")


def test_mnist_itself_stands_beside_the_papers_table_4(light, tmp_path, monkeypatch, capsys):
    drawn = data.load("digits", train=40, test=10)
    named = data.Dataset("MNIST", drawn.images, drawn.labels, drawn.test_images, drawn.test_labels)
    monkeypatch.setattr(data, "load", lambda *_, **__: named)
    assert run.main(["mnist", "--runs", str(tmp_path), *small(16, 1)]) == 0
    out = capsys.readouterr().out
    rows = {line.split("  ")[0]: line.split() for line in out[out.index("method") :].splitlines()}
    published = {
        "teacher": "0.55",
        "standard back-propagation": "1.9",
        "knowledge distillation": "0.65",
        "FitNet": "0.51",
    }
    assert all(number in rows[name] for name, number in published.items())


def test_files_that_are_not_there_are_one_line(tmp_path, capsys):
    line = refusal(capsys, on_files(tmp_path / "nowhere", tmp_path))
    assert "nowhere is not a folder" in line and os.listdir(tmp_path) == []


def test_without_files_and_network_one_line_says_what_to_do(tmp_path, monkeypatch, capsys):
    line = refusal(capsys, ["mnist", "--runs", str(tmp_path / "runs")])
    assert all(name in line for name in mnist.FILES) and "--data-dir" in line and "digits needs no files" in line


@pytest.mark.parametrize("damage", ["truncated", "a page"])
def test_files_that_are_damaged_are_one_line(damage, other_set, tmp_path, capsys):
    path = other_set / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-50] if damage == "truncated" else b"<!DOCTYPE html><html>not found</html>")
    line = refusal(capsys, on_files(other_set, tmp_path / "runs"))
    assert str(path) in line and not (tmp_path / "runs").exists()


def test_a_set_with_too_few_images_is_one_line(other_set, tmp_path, capsys):
    line = refusal(capsys, on_files(other_set, tmp_path / "runs", "--train", "39"))
    assert "40 training" in line and "--train 39" in line


def test_the_networks_are_counted_beside_the_papers_figures(capsys):
    assert run.main(["networks"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100
    rows = {line.split("  ")[0]: line.split()[-8:] for line in out.splitlines()}
    assert rows["MNIST teacher"][-6:] == ["361K", "360,816", "360,816", "-", "28.67M", "28.67M"]
    assert rows["MNIST FitNet"][-6:] == ["30K", "29,944", "29,944", "-", "5.31M", "5.31M"]
    assert rows["CIFAR-10 teacher"][1:] == ["9M", "9,044,360", "16,244,360", "725M", "725.09M", "732.29M", "1"]
    assert rows["FitNet 3"] == ["1.6M", "1,503,304", "1,695,304", "392M", "323.95M", "324.14M", "1,", "2"]
    for part in ("5 pieces", "1,569,544", "391.78M", "100 classes have 45,000 weights more"):
        assert part in out


@pytest.mark.parametrize("network", run.networks.NETWORKS, ids=lambda network: network.name)
def test_both_ways_of_counting_are_the_papers_data(network):
    published = run.paper.COUNTS[network.name]
    counts = []
    for way in (run.networks.as_counted(network), network):
        layers = run.networks.build(way, rng=None)
        sizes = run.networks.count(layers, np.zeros((0, *network.input), np.float32))
        counts += [sum(column) for column in zip(*sizes, strict=True)]
    stated = (published.stated_weights, published.stated_multiplications)
    two = (published.weights, published.multiplications)
    # MNIST's networks are built as the text has them, with 2 pieces, and not as the released code does, with 4.
    assert counts == [*two, *(two if network.name.startswith("MNIST") else stated)]


@pytest.mark.parametrize("name", run.experiments.EXPERIMENTS)
def test_help_shows_every_setting(name, capsys):
    with pytest.raises(SystemExit) as stop:
        run.main([name, "--help"])
    said = capsys.readouterr()
    assert not stop.value.code and said.err == ""
    for option in ("--stage", "--preset", "--tau", "--teacher.lr", "--student.epochs", "--data-dir", "--seed"):
        assert option in said.out


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_without_an_experiment_the_commands_are_shown(arguments, capsys):
    assert run.main(arguments) == 0
    assert "python run.py digits" in capsys.readouterr().out


def test_a_preset_is_where_the_settings_start_from():
    default, preset = parse("mnist", []), run.parse("mnist", ["--preset", "paper", "--tau", "2"])
    assert preset.preset == "paper" and preset.teacher.epochs == 500 and preset.tau == 2.0 and preset.keep == 0.5
    assert default.preset == "default" and default.teacher.epochs < 100
    assert parse("mnist", ["--preset=paper"]).teacher == preset.teacher
