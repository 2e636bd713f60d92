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
from minifit import UserError, baselines, data, fitnets, networks
from minifit.data import mnist
from minifit.experiments import EXPERIMENTS, Experiment
from minifit.lab import plan, runner
from minifit.lab.options import changed, changes, options
from minifit.lab.parallel import WorkerLost
from minifit.lab.train import OneSeed, Several, child, config_of, parse, run_of
from minifit.networks import Conv, Network, Output
from minifit.optimizers import Ramp
from minifit.settings import walk
from reference import paper

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("teacher", "backprop", "kd", "hint", "fitnet")
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
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / "cache" / project)
    monkeypatch.setattr(mnist, "MIRRORS", ())


@pytest.fixture
def light(monkeypatch):
    """The experiments on light networks and without plots, for what depends on neither."""
    monkeypatch.setattr(runner, "draw", lambda _: None)
    nets = [Network(name, (28, 28, 1), blocks) for name, blocks in (("wide", WIDE), ("deep", DEEP))]
    for name, experiment in EXPERIMENTS.items():
        if experiment.data in ("mnist", "digits"):
            monkeypatch.setitem(EXPERIMENTS, name, Experiment(experiment.data, *nets, experiment.presets))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """All stages, run as a person would: where they are, and what was printed."""
    runs = tmp_path_factory.mktemp("whole")
    command = [sys.executable, "run.py", "digits", "--runs", str(runs), "--workers", "2", *small()]
    return runs, subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_all_stages_run_from_nothing_and_say_what_they_do(whole):
    runs, finished = whole
    assert finished.returncode == 0 and finished.stderr == ""
    out = finished.stdout
    assert out.startswith("digits: 32 images to train on, 8 to validate, 8 to test\nseed 0, 2 workers, ")
    assert [line for line in out.splitlines() if len(line) > 80 and str(runs) not in line] == []
    plan, told = out.split("Left to train: about ")
    assert [line.split()[0] for line in plan.splitlines() if line.endswith(" s")] == list(STAGES)
    assert "360,816" in plan and "29,944" in plan and "28.67M" in plan and "5.31M" in plan
    stages = [line.split(":")[0] for line in told.splitlines() if ": test " in line]
    lines = [line.split(":")[0] for line in told.splitlines() if " epoch " in line.split(":")[0]]
    assert stages == list(STAGES)
    assert lines == [f"{name} epoch {epoch}" for name in STAGES for epoch in (1, 2)]
    table = told[told.index("method") :]
    names = ["teacher", "standard back-propagation", "knowledge distillation", "FitNet"]
    assert [line.split("  ")[0] for line in table.splitlines()[2:6]] == names
    assert "digits, 8 test images, seed 0, preset default." in table
    assert "MNIST," not in told and "paper" not in told


def test_all_stages_leave_the_files_of_a_run_and_no_litter(whole):
    folder = folder_of(whole[0])
    stages = {f"{name}.h5" for name in STAGES}
    pictures = {"curves.png", "filters.png"}
    assert set(os.listdir(folder)) == stages | pictures | {"config.json", "metrics.jsonl", "summary.json", ".lock"}
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    assert json.loads((folder / "summary.json").read_text())["stages"].keys() == set(STAGES)
    assert [(m["stage"], m["epoch"]) for m in metrics(folder)] == [(n, e) for n in STAGES for e in (1, 2)]


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
    for i, stage in enumerate(STAGES):
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


@pytest.mark.parametrize(
    ("module", "moment"), [(data, "load"), (plan, "outline"), (runner, "trained"), (runner, "draw")]
)
def test_ctrl_c_is_understood_at_any_moment(module, moment, light, tmp_path, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, moment, interrupt)
    assert run.main(["digits", "--stage", "backprop", "--runs", str(tmp_path), *small(16, 1)]) == 130
    said = capsys.readouterr()
    assert said.err == "" and "To go on: python run.py digits --stage backprop" in said.out


def refusal(capsys, arguments, status=2):
    """What a command says in its one line on stderr."""
    assert run.main(arguments) == status
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and said.err.startswith("run.py: ") and "Traceback" not in said.err
    return said.err.strip()


ONE_LINE = {
    "minst": "'minst' is not an experiment or a command; did you mean mnist?",
    "qqqq": "'qqqq' is not an experiment or a command: choose mnist, digits",
    "--stage hint mnist": "'--stage' is not an experiment or a command",
    "networks --tau 2": "networks takes no options",
    "results": "wanted an experiment: choose mnist, digits",
    "results digit": "'digit' is not an experiment; did you mean digits?",
    "compare": "wanted an experiment or a run directory: choose mnist, digits",
    "compare runs/no": "'runs/no' is not an experiment or a run directory",
    "compare digits --arm tua=2": "--arm tua=2: wanted SETTING=VALUE,...; did you mean tau?",
    "compare digits --arm tau": "--arm tau: wanted SETTING=VALUE,...",
    "compare digits --arm tau=0": "--tau 0.0: wanted a number above 0",
    "compare digits --arm guided_layer=9": "--guided-layer 9: wanted one of the layers 1..6",
    "compare digits --seeds 0": "--seeds 0: wanted 1 to 1000",
    "compare digits --seeds 10000000000": "--seeds 10000000000: wanted 1 to 1000",
    "compare digits --at-once 0": "--at-once 0: wanted at least 1",
    "compare digits --seed 1": "--seed: no such option; did you mean --seeds?",
    "compare digits --workers 0": "--workers 0: wanted at least 1",
    "digits --tua 2": "--tua: no such option; did you mean --tau?",
    "digits --TAU 2": "--TAU: no such option; did you mean --tau?",
    "digits --teacher.lrr 2": "--teacher.lrr: no such option; did you mean --teacher.lr?",
    "digits --xyzxyz 2": "--xyzxyz: no such option; --help-all lists all",
    "digits --student.epoch 2": "--student.epoch: no such option; did you mean --student.epochs?",
    "digits --guided 4": "--guided: no such option; did you mean --guided-layer?",
    "digits more": "'more': wanted an option, such as --train",
    "digits -tau 3": "'-tau': wanted an option, such as --train; did you mean --tau?",
    "digits --flips more": "'more': wanted an option",
    "digits --tau 1 2": "--tau 1 2: wanted a number above 0",
    "digits --tau warm": "--tau warm: wanted a number above 0",
    "digits --tau": "--tau: wanted a number above 0",
    "digits --tau=": "--tau : wanted a number above 0",
    "digits --tau auto": "--tau auto: wanted a number above 0",
    "digits --student-tau warm": "--student-tau warm: wanted a number above 0 or auto",
    "digits --flips=yes": "--flips=yes: wanted --flips or --no-flips, without a value",
    "digits --no-tau": "--no-tau: no such option",
    "digits --teacher.epochs 1.5": "--teacher.epochs 1.5: wanted a whole number, at least 1",
    "digits --train abc": "--train abc: wanted a whole number, at least 1",
    "digits --train 0": "--train 0: wanted at least 1",
    f"digits --train {'9' * 5000}": "wanted a whole number",
    f"digits --microbatch {'9' * 400}": "wanted at least 1, and below 3e+38",
    f"digits --lam 4 1 {'9' * 400}": "wanted FIRST LAST END START",
    "digits --regressor dense": "--regressor dense: wanted conv, fc or none",
    "digits --stage second": "--stage second: wanted teacher, backprop, kd, hint, fitnet, all",
    "digits --stage teacher_all": "--stage teacher_all: wanted teacher, backprop, kd, hint, fitnet, all",
    "digits --preset best": "--preset best: wanted default, paper, short",
    "digits --preset": "--preset: wanted a name",
    "cifar10-fitnet1 --preset short": "--preset short: wanted default, paper",
    "digits --backend torch": "--backend torch: wanted numpy or cupy",
    "digits --tau 0": "--tau 0.0: wanted a number above 0",
    "digits --tau nan": "--tau nan: wanted a number above 0",
    "digits --tau inf": "--tau inf: wanted a number above 0, and below 3e+38",
    "digits --tau 1e999": "--tau inf: wanted a number above 0, and below 3e+38",
    "digits --lam 4 1": "--lam 4 1: wanted FIRST, or FIRST LAST END [START]",
    "digits --lam 4 1 8 1 1": "--lam 4 1 8 1 1: wanted FIRST",
    "digits --lam 4 1 8.5": "--lam 4 1 8.5: wanted FIRST",
    "digits --lam -1": "--lam -1.0: wanted at least 0",
    "digits --lam 4 1 12 20": "--lam 4.0 1.0 12 20: wanted FIRST LAST END START",
    "digits --student.lr-scale 1 0 0": "--student.lr-scale 1.0 0.0 0: wanted FIRST LAST END START",
    "digits --teacher.momentum 0.5 1 9": "--teacher.momentum 0.5 1.0 9: wanted a number from 0 to below 1",
    "digits --guided-layer 9": "--guided-layer 9: wanted one of the layers 1..6",
    "digits --guided-layer": "--guided-layer: wanted whole numbers",
    "digits --guided-layer 2 4": "--guided-layer 2 4 and --hint-layer 2: wanted pairs",
    "digits --guided-layer 5 --hint-layer 1": "regressor conv: hint (10, 10, 48) is larger than guided (8, 8, 12)",
    "digits --data-dir .": "--data-dir: no such option",
    "faces --data-dir .": "--data-dir: no such option; did you mean --data?",
    "own --data-dir=.": "--data-dir: no such option; did you mean --data?",
    "mnist --method": "--method: wanted names or auto",
    "compare mnist --arm": "--arm: wanted",
    "digits --runs": "--runs: wanted a path",
    "digits --runs=": "--runs : wanted a path",
    "digits --runs ~nobody9/x": "--runs ~nobody9/x: wanted a path",
    "digits --seed -1": "--seed -1: wanted at least 0",
    "digits --train 10000000000": "10,000,001,000 and 5,000 images take about 43,809.4 GiB",
    "audit --seed -1": "--seed -1: wanted at least 0",
    "audit --draws many": "--draws many: wanted a whole number, at least 1",
    "audit --rows conv": "--rows: no such option; did you mean --row?",
    "digits --workers 0": "--workers 0: wanted at least 1",
}


@pytest.mark.parametrize(("words", "said"), ONE_LINE.items(), ids=[words[:40] for words in ONE_LINE])
def test_what_cannot_be_meant_is_one_line_and_nothing_is_written(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = refusal(capsys, words.split())
    assert said in line and len(line) < 480 + len(words)
    assert os.listdir(tmp_path) == []


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
    line = refusal(
        capsys, ["digits", "--runs", str(tmp_path), *small(16, 1), "--guided-layer", "5", "--hint-layer", "1"]
    )
    assert "(4, 4, 4)" in line and "(2, 2, 3)" in line
    assert run.main(["digits", "--stage", "backprop", "--runs", str(tmp_path), *small(16, 1)]) == 0


def test_a_run_that_diverges_is_one_line(light, tmp_path, capsys):
    arguments = ["digits", "--stage", "backprop", "--runs", str(tmp_path), *small(lr=1e30)]
    line = refusal(capsys, arguments, status=1)
    assert "backprop, epoch 1, step 2" in line and "not finite first in layer" in line


def test_no_worker_of_a_run_that_diverges_says_more(tmp_path):  # a process of its own: pytest keeps warnings to itself
    arguments = [
        "digits",
        "--stage",
        "hint",
        "--runs",
        str(tmp_path),
        "--microbatch",
        "8",
        "--workers",
        "2",
        *small(32, 2),
    ]
    command = [sys.executable, "run.py", *arguments, "--stage1.optimizer", "sgd", "--stage1.lr", "1e20"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert said.returncode == 1 and said.stderr.count("\n") == 1, said.stderr


@pytest.mark.parametrize("times", ["1e10", "1e38"])
def test_a_teacher_wider_than_memory_is_one_line(times, tmp_path, capsys):
    line = refusal(capsys, ["digits", "--runs", str(tmp_path), *small(16, 1), "--teacher-width-scale", times])
    assert "--teacher-width-scale" in line and "GiB" in line and os.listdir(tmp_path) == []


def test_a_worker_that_is_lost_is_one_line(light, tmp_path, monkeypatch, capsys):
    def lose(*_):
        raise WorkerLost("a worker process was ended by SIGKILL")

    monkeypatch.setattr(runner, "trained", lose)
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


@pytest.mark.parametrize("network", networks.NETWORKS, ids=lambda network: network.name)
def test_both_ways_of_counting_are_the_papers_data(network):
    published = paper.COUNTS[network.name]
    counts = []
    for way in (networks.as_counted(network), network):
        layers = networks.build(way)
        sizes = networks.count(layers, np.zeros((0, *network.input), np.float32))
        counts += [sum(column) for column in zip(*sizes, strict=True)]
    stated = (published.stated_weights, published.stated_multiplications)
    two = (published.weights, published.multiplications)
    # MNIST's networks are built as the text has them, with 2 pieces, and not as the released code does, with 4.
    assert counts == [*two, *(two if network.name.startswith("MNIST") else stated)]


def helped(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        run.main([*words])
    said = capsys.readouterr()
    assert not stop.value.code and said.err == ""
    return said.out


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_help_is_one_screen_of_the_common_options(name, capsys):
    said = helped(capsys, name, "--help")
    lines = said.splitlines()
    own_data = "your data" in said  # which has settings of its own
    assert len(lines) <= (50 if own_data else 40) and max(map(len, lines)) <= 80
    for option in ("--stage", "--preset", "--tau", "--teacher.epochs", "--student.epochs", "--seed"):
        assert f" {option}" in said
    source = "--data" if own_data else "--data-dir" if name != "digits" else None
    assert [option for option in ("--data", "--data-dir") if f" {option} " in said] == [source] * (source is not None)
    assert "[none]" not in said and "[]" not in said
    assert "--init-range" not in said and "--help-all shows all options." in said
    assert helped(capsys, name, "-h") == said


@pytest.mark.parametrize("command", [["digits"], ["compare", "digits"]])
def test_all_help_has_every_option_with_its_sentence_and_value_in_its_group(command, capsys):
    said = helped(capsys, *command, "--help-all")
    assert max(map(len, said.splitlines())) <= 80
    flat = " ".join(said.split())
    for name, f, _ in walk(EXPERIMENTS["digits"].presets["default"]):
        assert f"--{name.replace('_', '-')}" in said and f.metadata["help"] in flat
    headings = [line for line in said.splitlines() if line.isalpha()]
    assert headings == ["run", "data", "networks", "hint", "distillation", "training"]
    assert "[0.002, 0.005, 0.005]" in flat and "--flips, --no-flips" in said and "conv|fc|none" in said
    assert said.index("\nhint\n") < said.index("--hint-reduction") < said.index("\ndistillation\n")


def test_help_shows_the_values_of_the_preset_that_is_named(capsys):
    assert "[20, 8, 16]" in helped(capsys, "mnist", "--help")
    assert "[500, 500, 500]" in helped(capsys, "mnist", "--preset", "paper", "--help")


@pytest.mark.parametrize("command", ["compare", "results", "audit"])
def test_commands_without_settings_have_help_of_their_own(command, capsys):
    said = helped(capsys, command, "--help")
    assert said.startswith(f"python run.py {command}") and "--help-all" not in said
    assert ("--row" if command == "audit" else "--html") in said


def test_the_stages_are_those_of_the_methods(monkeypatch, capsys):
    def ensemble(task, train):
        train(fitnets.Stage("ensemble", task.network("student"), fitnets.LABELS, task.settings.student))

    method = fitnets.Method("mixed", "a mixture", "mix", ensemble, default=True)
    monkeypatch.setattr(baselines, "METHODS", (*baselines.METHODS, method))
    assert "fitnet, ensemble, mixed, all" in " ".join(helped(capsys, "digits", "--help").split())
    assert parse("digits", ["--stage", "ensemble"]).stage == "ensemble"
    assert parse("digits", ["--teacher-all", "3", "--stage", "teacher_all"]).teacher_all == 3
    pairs = ["--guided-layer", "2", "4", "--hint-layer", "1", "2"]
    assert parse("digits", [*pairs, "--stage", "hint_2"]).guided_layer == (2, 4)
    with pytest.raises(UserError, match="wanted teacher, backprop, kd, hint, fitnet, ensemble, mixed, all"):
        parse("digits", ["--stage", "hint_2"])


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"], ["--help-all"]])
def test_without_an_experiment_the_commands_are_shown(arguments, capsys):
    assert run.main(arguments) == 0
    said = capsys.readouterr().out
    assert "python run.py digits" in said and "cifar10-107m-11" in said
    assert said.startswith("minifit trains the FitNets")


def test_a_preset_is_where_the_settings_start_from():
    default, preset = parse("mnist", []), parse("mnist", ["--preset", "paper", "--tau", "2"])
    assert preset.preset == "paper" and preset.teacher.epochs == 500
    assert preset.tau == 2.0 and preset.dropout_keep_input == 0.8
    assert default.preset == "default" and default.teacher.epochs < 100
    assert parse("mnist", ["--preset=paper"]).teacher == preset.teacher
    assert parse("mnist", ["--tau", "2", "--preset", "paper", "--preset", "short"]).train == 10_000


def test_every_kind_of_value_is_read_with_a_space_and_with_an_equals_sign(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for glued in (False, True):

        def said(option, value, glued=glued):
            return [f"{option}={value}"] if glued else [option, *value.split()]

        words = said("--tau", "2.5") + said("--train", "7") + said("--lam", "3 0.5 9 2") + ["--flips", "--no-retrain"]
        words += said("--hint-layer", "1 2") + said("--guided-layer", "2 4") + said("--runs", "~/x")
        words += said("--student-tau", "auto") + said("--data-dir", "~/t") + said("--student.lr-scale", "0.5")
        found = parse("mnist", words + said("--init", "uniform") + said("--test", "auto"))
        assert (found.tau, found.train, found.flips, found.retrain, found.test) == (2.5, 7, True, False, None)
        assert found.lam == Ramp(3.0, 0.5, 9, 2) and found.student.lr_scale == Ramp(0.5)
        assert (found.guided_layer, found.hint_layer, found.student_tau) == ((2, 4), (1, 2), None)
        assert (found.runs, found.data_dir) == (tmp_path / "x", tmp_path / "t")


@pytest.mark.parametrize("folder", ["--runs=~/x", "--results=~/x", "--data-dir=~/x"])
def test_a_tilde_is_the_home_of_who_asks(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    option, _, _ = folder.partition("=")
    found = parse("mnist", [folder], Several)
    assert getattr(found, option[2:].replace("-", "_")) == tmp_path / "x"


ODD = [
    {"tau": 0.1 + 0.2, "lam": Ramp(1e-7, 3.0, 9, 2), "student_tau": 1.0, "test": None, "retrain": True},
    {"guided_layer": (2, 4), "hint_layer": (1, 2), "regressor_pieces": 1, "microbatch": 8, "hint_reduction": "mean"},
    {"lam": Ramp(2.0), "teacher.momentum": Ramp(0.5, 0.7, 4), "student.epochs": 3, "stage1.lr_scale": Ramp(1.0)},
    {"lam": Ramp(2.0, 2.0, 7), "flips": True, "crops": 4, "preprocessing": "whitened", "teacher.lr_decay": 1.00004},
]


@pytest.mark.parametrize("odd", ODD, ids=str)
@pytest.mark.parametrize("preset", ["default", "paper"])
def test_the_words_of_settings_are_read_back_as_the_same_settings(odd, preset):
    start = EXPERIMENTS["mnist"].presets[preset]
    config = changed(start, odd)
    assert config != start
    words = options(config, start)
    assert config_of(parse("mnist", ["--preset", preset, *words])) == config
    assert options(start, start) == []
    assert config_of(parse("mnist", ["--preset", preset, *words, *options(start, config)])) == start


def test_methods_are_those_named_and_auto_is_the_default():
    assert parse("digits", ["--method", "kd", "--method", "backprop"]).method == ("backprop", "kd")
    assert parse("digits", ["--method", "auto"]).method is parse("digits", []).method is None
    assert parse("digits", ["--method", "mimic", "--method", "auto", "--method", "kd"]).method == ("kd",)


def test_an_arm_is_read_as_the_options_are():
    base = EXPERIMENTS["mnist"].presets["short"]
    found = changes("tau=1,hint-reduction=mean,lam=4 1 9,student.epochs=2,student_tau=auto", base)
    assert found == {"tau": 1.0, "hint_reduction": "mean", "lam": Ramp(4.0, 1.0, 9), "student.epochs": 2} | {
        "student_tau": None
    }
    assert changed(base, found).student.epochs == 2
    for word, value in (("yes", True), ("True", True), ("no", False), ("False", False)):
        assert changes(f"flips={word}", base) == {"flips": value}
    with pytest.raises(UserError, match="--flips maybe: wanted yes or no"):
        changes("flips=maybe", base)


def test_a_switch_that_was_left_off_can_be_put_back():
    assert parse("cifar10-fitnet1", []).flips and not parse("cifar10-fitnet1", ["--no-flips"]).flips
    assert parse("cifar10-fitnet1", ["--no-flips", "--flips"]).flips


def test_an_arm_is_trained_beside_the_run_whose_teacher_it_has(light, tmp_path, capsys):
    words = ["digits", *small(24, 1), "--runs", str(tmp_path), "--stage", "kd"]
    assert run.main([*words, "--arm", "tau=1,lam=1"]) == 0
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.glob("**/*.h5")}
    assert files == {"digits/seed0/teacher.h5", "tau=1.0,lam=1.0/digits/seed0/kd.h5"}
    settings = json.loads((tmp_path / "tau=1.0,lam=1.0" / "digits" / "seed0" / "config.json").read_text())["settings"]
    assert (settings["tau"], settings["lam"]["last"]) == (1.0, 1.0)
    assert run.main([*words, "--arm", "teacher.epochs=2"]) == 0
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.glob("teacher*/**/*.h5")}
    assert files == {f"teacher.epochs=2/digits/seed0/{stage}.h5" for stage in ("teacher", "kd")}
    assert run.main([*words, "--arm", "retrain=yes"]) == 0
    assert (tmp_path / "retrain=True" / "digits" / "seed0" / "all" / "kd.h5").exists()
    assert "(kept)" not in capsys.readouterr().out


def test_the_words_of_a_child_are_its_run(light, tmp_path):
    words = ["--preset", "short", *small(16, 1), "--workers", "4", "--at-once", "2", "--tau", "2"]
    asked = parse("digits", words, Several)
    dataset = data.load("digits", train=24, test=8)
    own = run_of("digits", asked, config_of(asked), 3, dataset, tmp_path / "short")
    found = parse("digits", child("digits", asked, own, "lam=4.0 1.0 6,init=uniform")[1:])
    assert isinstance(found, OneSeed) and config_of(found) == config_of(asked) and found.preset == "short"
    assert (found.seed, found.workers, found.arm) == (3, 2, "lam=4.0 1.0 6,init=uniform")
    words = child("digits", asked, own, "")
    assert not {"--teacher-from", "--arm", "--backend"} & {*words} and parse("digits", words[1:]).arm is None
    assert found.runs / "digits" / "seed3" == own.directory.folder and found.stage == "all"
