"""The benchmarks' own arithmetic, turns and processes; PyTorch's twin only where there is PyTorch."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import strict

from benchmarks import device, profile, ranks, stages, step
from benchmarks.contestants import Ceiling, Child, Engine, Minifit, memory, turn
from benchmarks.work import LEAD, built, examples, leads
from minifit.backend import to_host
from minifit.composites import Sequential
from minifit.experiments import EXPERIMENTS
from minifit.layers import Linear, Softmax
from minifit.networks import MNIST_FITNET, MNIST_TEACHER, Conv, FullyConnected, Network, Output

ROOT = Path(__file__).parents[2]
SMALL = Network(
    "small",
    (9, 7, 3),
    (Conv(8, 3, pad=1, pieces=None, pool=(2, 2)), Conv(6, 2, pieces=3, max_norm=0.5), FullyConnected(5), Output(4)),
)


def test_multiplications_are_those_of_the_definition():
    conv = 21**2 * 8**2 * 96 + 9**2 * 8**2 * 48 * 96 + 6**2 * 5**2 * 48 * 48
    assert step.multiplications(MNIST_TEACHER) == conv + 216 * 10


def test_a_step_is_three_products_of_multiplications_and_additions():
    assert step.gflops(1_000_000, 100, 0.5) == pytest.approx(2 * 3 * 1e6 * 100 / 0.5 / 1e9)


def test_a_spread_is_the_median_and_the_quartiles_in_milliseconds():
    assert step.spread(np.array([0.001, 0.002, 0.003, 0.004, 0.005])) == "3.00 (2.00-4.00)"
    assert step.spread(np.full(4, 0.25)) == "250 (250-250)"


def test_the_ratio_is_against_the_better_of_the_peers():
    times = {"minifit": np.array([1.0, 2, 4]), "fast": np.array([3.0, 4, 5]), "slow": np.array([9.0, 9, 9])}
    assert step.ratios(times, ("fast", "slow")) == ["2.00", "2.00"]
    times["minifit"] = np.array([3.0, 2, 1])
    assert step.ratios(times, ("slow", "fast")) == ["2.00", "2.00"]


def test_a_table_is_markdown_in_columns():
    assert step.table(["a", "long"], [["1", "2"], ["333", "4"]]).split("\n") == [
        "| a   | long |",
        "| --- | ---- |",
        "| 1   | 2    |",
        "| 333 | 4    |",
    ]


def test_sure_images_are_the_same_ones_stronger_and_labelled_as_the_network_does():
    (plain, _), (sure, labels) = examples(MNIST_FITNET, 40), examples(MNIST_FITNET, 40, sure=True)
    logits = built(MNIST_FITNET)(sure)
    np.testing.assert_allclose(sure / plain, (sure / plain)[0, 0, 0, 0], rtol=1e-5)
    np.testing.assert_array_equal(labels, logits.argmax(axis=-1))
    assert 0.5 < np.median(leads(logits)) / LEAD < 2
    assert leads(np.array([[1.0, 5.0, 3.0], [4.0, 4.0, 0.0]])).tolist() == [2.0, 0.0]


def test_turns_rotate_after_one_that_warms_up(monkeypatch):
    monkeypatch.setattr(step, "PAUSE", 0)
    seen = []
    contestants = {name: lambda name=name: seen.append(name) or float(len(seen)) for name in "abc"}
    times = step.take_turns(contestants, 3)
    assert "".join(seen) == "abc" + "abc" + "bca" + "cab"
    assert times["a"].tolist() == [4.0, 9.0, 11.0]


def test_a_turn_takes_at_least_one_step():
    taken = []
    assert turn(lambda: taken.append(1), 0.0) >= 0
    assert len(taken) == 1
    turn(lambda: taken.append(1), 0.01)
    assert len(taken) > 2


def test_a_network_is_found_however_its_name_is_written():
    assert {step.named(text).name for text in ("MNIST_FITNET", "mnist-fitnet", "MNIST FitNet")} == {MNIST_FITNET.name}
    assert all(step.named(network.name) is network for network in step.NETWORKS)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--network", "lenet"], "'lenet' is none of MNIST teacher, MNIST FitNet"),
        (["--workers", "0"], "'0' is not a whole number above 0"),
        (["--batch", "many"], "'many' is not a whole number above 0"),
        (["--evaluate", "--scaling"], "not allowed with"),
    ],
)
def test_a_wrong_argument_is_named(arguments, complaint, capsys):
    with pytest.raises(SystemExit) as stopped:
        step.parse(arguments)
    assert stopped.value.code == 2
    assert complaint in capsys.readouterr().err


def test_a_network_not_yet_written_says_so(monkeypatch, capsys):
    monkeypatch.setattr(step, "NETWORKS", (MNIST_TEACHER,))
    with pytest.raises(SystemExit):
        step.parse(["--network", "MNIST_FITNET"])
    assert "minifit.networks does not hold MNIST_FITNET yet" in capsys.readouterr().err


def test_without_pytorch_only_the_scaling_is_measured(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert step.parse(["--scaling"]).scaling
    with pytest.raises(SystemExit):
        step.parse([])
    assert "PyTorch is not installed" in capsys.readouterr().err


def test_a_digest_sees_the_last_bit():
    a = {"w": np.ones(3, np.float32)}
    b = {"w": a["w"].copy()}
    assert step.digest(a) == step.digest(b)
    b["w"][2] = np.nextafter(b["w"][2], np.float32(2))
    assert step.digest(a) != step.digest(b)


def test_a_child_answers_reports_its_errors_and_ends():
    with Child(Ceiling, 1) as child:
        assert child("step") > 0
        with pytest.raises(RuntimeError, match="no_such_method"):
            child("no_such_method")
        assert child("step") > 0
        process = child.process
    assert process.exitcode == 0


def test_a_child_that_dies_is_reported():
    with Child(Ceiling, 1) as child:
        child.process.kill()
        with pytest.raises(RuntimeError, match="ended"):
            child("step")


def test_a_stopped_child_does_not_hang_the_end():
    began = time.monotonic()
    with Child(Minifit, SMALL, 4, 4, 1) as child:
        os.kill(child.process.pid, signal.SIGSTOP)
    assert time.monotonic() - began < 30 and child.process.exitcode == -signal.SIGKILL


def test_minifit_is_measured_with_its_memory():
    with Child(Minifit, SMALL, 10, 4, 2, (3,)) as ours:
        before = ours("weights")
        assert ours("step") > 0
        assert any((before[name] != w).any() for name, w in ours("weights").items())
        loss, errors = ours("measure", 3)
        assert np.isfinite(loss) and 0 <= errors <= 3
        assert 0 <= ours("grown") < 2**28


def test_memory_is_read_in_bytes():
    if not memory(["self"], "VmRSS"):
        pytest.skip("no /proc/self/status here")
    held = memory(["self"], "VmRSS")
    assert 2**20 < held <= memory(["self"], "VmHWM")
    assert memory(["self", "self"], "VmHWM") == 2 * memory(["self"], "VmHWM")


def test_a_matrix_product_is_known_by_its_line():
    products = (
        "y = x @ w",
        "(patches.T @ dy)",
        "xp.matmul(a, b, out=c)",
        'np.einsum("ij,jk", a, b)',
        "w.reshape(2) @ b",
    )
    assert all(profile.PRODUCT.search(line) for line in products)
    assert not any(profile.PRODUCT.search(line) for line in ("@property", "    @dataclass(frozen=True)", "y = x * w"))


def test_a_profile_accounts_for_the_step(capsys):
    profile.main(["--network", "mnist-fitnet", "--batch", "16", "--repeats", "2"])
    printed = capsys.readouterr().out
    assert re.search(r"\| 0\.0 Conv2d +\| +[\d.]+ +\| [\d.]+", printed)
    assert re.search(r"\| matrix product", printed)
    traced = float(re.search(r"([\d.]+) ms while every line is traced", printed)[1])
    operations = printed.split("| operation")[1].split("\n\n")[0]
    accounted = sum(float(cells.split("|")[2]) for cells in operations.split("\n")[2:])
    assert 0.5 * traced < accounted < 1.05 * traced


def test_an_epochs_layers_take_a_share_of_its_time():
    """In a process of its own, whose layers are then timed for good."""
    tiny = ["--experiment", "digits", "--train", "64", "--workers", "1", "2"]
    command = [sys.executable, "-m", "benchmarks.epoch", *tiny]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines() if "|" in line][2:]
    stages = ("teacher", "hint", "fitnet")
    assert [row[:2] for row in rows] == [[stage, workers] for workers in "12" for stage in stages]
    for *_, share in rows:
        assert 0 < float(share) <= 100  # how large it is depends on what else the machine does


def test_the_twin_does_the_same_work():
    pytest.importorskip("torch")
    from benchmarks import twin

    for network in (SMALL, MNIST_FITNET):
        errors = twin.check(network, batch=4)
        assert len(errors) == 4 and all(error < 1e-4 for error in errors.values())


def test_a_twin_that_differs_is_caught(monkeypatch):
    torch = pytest.importorskip("torch")
    from benchmarks import twin

    right = twin.maxout
    monkeypatch.setattr(twin, "maxout", lambda z, pieces: right(z, pieces) * (1 + 1e-6))
    with pytest.raises(AssertionError, match="differ by"):
        twin.check(SMALL)
    assert torch.is_grad_enabled()


def test_the_twin_takes_the_same_steps():
    torch = pytest.importorskip("torch")
    from benchmarks import twin
    from benchmarks.work import LR, MOMENTUM

    x, labels = examples(SMALL, 10, np.float64)
    with Minifit(SMALL, 10, 4, 1, dtype=np.float64) as ours:
        for format in twin.FORMATS:
            theirs = twin.Twin(SMALL, built(SMALL, np.float64), format, LR, MOMENTUM)
            for name, p in built(SMALL, np.float64).params.items():
                ours.layers.params[name][...] = p
            ours.optimizer.state.clear()
            for _ in range(3):
                ours.step()
                theirs.step(twin.images(x, format), torch.from_numpy(labels))
            for name, w in theirs.arrays().items():
                np.testing.assert_allclose(ours.layers.params[name], w, rtol=1e-10, atol=1e-13)


def test_the_vanishing_gradients_on_the_page_are_those_that_are_measured():
    from benchmarks import start

    page = (Path(__file__).resolve().parents[2] / "reference" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d) \| ([\d.e|+ -]+) \|$", page.partition("## Why a thin, deep")[2], re.M)
    assert [int(number) for number, _ in rows] == [1, 2, 3, 4, 5, 6, 7]
    for (_, cells), small, scaled in zip(rows, start.measured(0.005), start.measured(), strict=True):
        for printed, found in zip(cells.split(" | "), [*small, *scaled[:2]], strict=True):
            assert printed == "-" if found is None else 0.5 < float(found) / float(printed) < 2


ONE = {"step": 0.1, "run": 0.08, "add": 0.01, "image": 0.002, "lanes": 8, "microbatch": 16, "bytes": 4e6}


def test_ranks_share_the_lanes_of_a_minibatch():
    assert ranks.share(ONE, 128, 1) == (8, 8, 128) and ranks.share(ONE, 128, 3) == (8, 3, 48)
    assert ranks.share(ONE, 40, 2) == (3, 2, 24) and ranks.share(ONE, 300, 8) == (8, 1, 48)


def test_the_model_gives_back_what_was_measured_and_sums_take_what_their_bytes_take():
    assert ranks.predicted(ONE, 128, 128, 1, 1e-5, 1e9) == pytest.approx(0.1)
    two = ranks.predicted(ONE, 128, 128, 2, 0, 1e9)
    calls = (3 + 4 + 4) * ranks.CALL  # losses, lanes out, lanes back
    assert two == pytest.approx(0.04 + 0.005 + 0.01 + calls + 4 * 4e6 / 2 / 1e9 + 4e6 / 2 / 1e9)
    assert ranks.predicted(ONE, 128, 128, 16, 0, 1e9) > 0.99 * ranks.predicted(
        ONE, 128, 128, 8, 0, 1e9
    )  # no more lanes
    assert ranks.lifted(ONE, 128, 128, 16, 0, 1e9) < ranks.lifted(ONE, 128, 128, 8, 0, 1e9)
    assert ranks.needed(ranks.lifted, ONE, 128, 8, 0, 1e9) > 8


def test_the_bytes_that_move_are_counted_on_both_sides():
    class World:
        rank, size = 0, 2

        def Isend(self, *_):
            return "sent"

        Irecv = Iallgatherv = Isend

    world, row = ranks.Counted(World()), np.zeros(10, np.float32)
    assert world.Isend(row[5:], 1, 0) == "sent" and world.size == 2
    world.Irecv(row[:5], 1, 1)
    world.Iallgatherv(None, (row, ([5, 5], [0, 5])))
    assert (world.sent, world.received) == (40, 40)


def test_a_stage_on_noise_has_the_settings_of_its_experiment(tmp_path):
    run = stages.noise_run("cifar10-fitnet1", "default", 20, 1, tmp_path)
    assert run.sets.draw is not None and run.task.networks["teacher"].blocks[0].channels == 48
    assert run.sets.keeps("train", stages.started(run, "kd").target)  # for mirror images too
    assert not run.sets.keeps("train", stages.started(run, "hint").target)  # whose maps are too large
    x, labels = stages.prepared(run.sets["train"], 7, at_once=3)
    np.testing.assert_allclose(x, run.sets["train"].batch(slice(7))[0], atol=1e-5)
    assert x.dtype == np.float32 and len(labels) == 7
    stage = stages.started(stages.noise_run("mnist", "default", 20, 1, tmp_path), "hint")
    assert [p.any() for layers in (stage.network, stage.target) for p in layers.params.values()] == [True] * 14


def test_steps_of_a_stage_are_those_of_training(tmp_path):
    with stages.Stage("mnist", "default", "kd", 40, 1) as ours:
        assert ours.kept()
        before = {name: p.copy() for name, p in ours.parallel.params.items()}
        assert ours.steps(2) > 0
        assert all((before[name] != p).any() for name, p in ours.parallel.params.items())
    with stages.Stage("cifar10-fitnet1", "default", "hint", 2, 1) as ours:
        assert not ours.kept() and ours.steps(1) > 0


def test_minibatches_follow_one_another_without_a_short_one():
    order, seen, rng = iter(()), [], np.random.default_rng(0)
    for _ in range(4):
        indices, order = stages.following(order, 11, 5, rng)
        seen.append(indices)
    assert [len(set(indices.tolist())) for indices in seen] == [5] * 4
    assert not set(seen[0].tolist()) & set(seen[1].tolist())
    assert len(stages.following(iter(()), 3, 5, rng)[0]) == 3


def test_a_rate_is_images_a_second_with_its_quartiles_in_order():
    assert stages.rate(np.array([1.0, 2.0, 4.0]), 100) == "50 (33-67)"


@pytest.mark.parametrize("key", ["kd", "hint", "fitnet", "teacher"])
def test_the_script_of_a_stage_has_its_loss_and_gradients(key, monkeypatch):
    pytest.importorskip("torch")
    from benchmarks import script

    with stages.Script("digits", "default", key, 20, 1, key == "kd") as theirs:
        assert theirs.check() < 1e-11
        assert theirs.steps("NCHW", False, 1) > 0
        right = script.Script.loss
        monkeypatch.setattr(script.Script, "loss", lambda *given: right(*given) * (1 + 1e-9))
        with pytest.raises(AssertionError, match="differ by"):
            theirs.check()


def test_the_script_mirrors_images_and_takes_a_step_down_its_loss():
    torch = pytest.importorskip("torch")
    from benchmarks import script

    with stages.Script("cifar10-fitnet1", "default", "hint", 8, 1, False) as theirs:
        trained, seen = theirs.scripts["NCHW", False], []
        ask = trained.teacher
        trained.teacher = lambda x: seen.append(x.clone()) or ask(x)
        everyone = torch.arange(8)
        before, _ = trained.measure("train", trained.x, trained.labels, 1)
        for _ in range(4):
            trained.step(everyone)
        assert trained.measure("train", trained.x, trained.labels, 1)[0] < before
    mirrored = {bool((x[i] != trained.x[i]).any()) for x in seen[1:5] for i in range(8)}
    assert mirrored == {True, False}
    with pytest.raises(TypeError, match="no layer"):
        script.Net(Sequential([Linear(np.ones((3, 2)), np.ones(2)), Softmax()]), (3,), "NCHW")


def test_the_scripts_kept_outputs_are_those_for_the_images_that_it_shows():
    torch = pytest.importorskip("torch")
    with stages.Script("cifar10-fitnet1", "default", "kd", 8, 1, True) as theirs:
        trained, shown = theirs.scripts["channels_last", True], []
        trained.gradient = lambda x, target, *more: shown.append((x, target))
        trained.optimizer.step = lambda: None
        torch.manual_seed(0)
        for _ in range(3):
            trained.step(torch.tensor([6, 1, 3, 0]))
        assert {bool((x[i] != trained.x[n]).any()) for x, _ in shown for i, n in enumerate((6, 1, 3, 0))} == {
            True,
            False,
        }
        for x, target in shown:
            torch.testing.assert_close(target, trained.outputs(x), rtol=1e-4, atol=1e-5)
        trained.teacher, asked = lambda x: asked.append(len(x)) or ask(x), []
        ask = theirs.scripts["channels_last", False].teacher
        figures = [trained.measure("test", trained.x, trained.labels, 1) for _ in range(2)]
        assert figures[0] == figures[1] and asked == [8]  # the teacher answers once
        trained.keeps = False
        assert trained.measure("test", trained.x, trained.labels, 1) == pytest.approx(figures[0], rel=1e-5)
        other = type(trained)(
            trained.stage, *stages.prepared(theirs.run.sets["train"]), "channels_last", True, True, kept=trained.kept
        )
        assert other.answers is trained.answers


def test_all_stages_of_an_experiment_are_trained_by_the_script(monkeypatch):
    pytest.importorskip("torch")
    digits = EXPERIMENTS["digits"]
    tiny = replace(digits.presets["default"], validation=20, test=20, dropout_keep=0.5)
    monkeypatch.setitem(EXPERIMENTS, "digits", replace(digits, presets={"default": tiny}))
    options = stages.parse(["--whole", "digits", "--train", "40", "--epochs", "1", "--workers", "1"])
    with stages.WholeScript("digits", options) as script:
        errors = script.run("NCHW")
    assert list(errors) == ["teacher", "backprop", "kd", "hint", "fitnet"]
    assert errors["hint"] == 0 and all(0 <= error <= 100 for error in errors.values())


@pytest.fixture
def stand_in(monkeypatch):
    """The GPU that benchmarks.device asks for is not there."""
    cuda = SimpleNamespace(Device=lambda: SimpleNamespace(id=0, synchronize=lambda: None), runtime=strict.cuda.runtime)
    monkeypatch.setattr(strict, "cuda", cuda)
    monkeypatch.setattr(device, "use", lambda name: strict)
    monkeypatch.setattr(device, "IMAGES", 8)
    monkeypatch.setattr(device, "TURN", 0)


@pytest.mark.parametrize("words", [(SMALL,), ("mnist", "kd"), ("mnist", "fitnet")], ids=["network", "kd", "fitnet"])
def test_on_a_gpu_the_gradients_are_those_of_the_host_and_a_turn_takes_time(stand_in, words):
    ours = device.Ours()
    if len(words) == 1:
        host = Minifit(*words, device.CHECKED, device.CHECKED, 1, (), np.float64)
        with host:
            loss, grads = host.gradient()
    else:
        loss, grads = device.first_gradient(*words, np)
    found_loss, found = ours.found(words)
    assert found_loss == pytest.approx(float(loss), rel=1e-12)
    assert found.keys() == grads.keys()
    for name, g in grads.items():
        np.testing.assert_allclose(found[name], g, rtol=1e-9, atol=1e-12)
    ours.begin(words, 4)
    weights = ours.now.layers.params if len(words) == 1 else ours.now.stage.network.params
    before = {name: to_host(p).copy() for name, p in weights.items()}
    assert ours.turn() > 0
    assert any((to_host(weights[name]) != p).any() for name, p in before.items())


def test_onnxruntime_and_minifit_go_from_the_same_bytes_to_the_same_probabilities():
    pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
    with Engine("minifit", SMALL, 2, (3, 150)) as ours, Engine("onnxruntime", SMALL, 1, (3, 150)) as theirs:
        for n in (3, 150):
            np.testing.assert_allclose(ours.probabilities(n), theirs.probabilities(n), atol=1e-6)
            assert len(ours.probabilities(n)) == n
        assert ours.evaluate(3, 0.0) > 0 and theirs.evaluate(3, 0.0) > 0
