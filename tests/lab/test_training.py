"""The loop that knows no loss: microbatches that sum to the minibatch, epochs, early stopping, and its files."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest

from minifit import UserError, fitnets
from minifit.composites import Branches, Mean, Sequential
from minifit.fitnets import LABELS, Distillation, Hint, Loss, Stage
from minifit.lab import files, sets, training
from minifit.lab.sets import Examples, outputs
from minifit.lab.training import DataParallel, TrainingError, fit, improves, stopped
from minifit.layers import Log
from minifit.networks import Conv, Network, Output, build, initialise
from minifit.optimizers import Ramp, Schedule, update
from minifit.regressors import regressor
from reference import optimizers as reference

TEACHER = Network("teacher", (6, 6, 1), (Conv(5, 3, pool=(2, 2)), Conv(6, 2), Output(10)))
STUDENT = Network("student", (6, 6, 1), (Conv(3, 3, pool=(2, 2)), Conv(4, 2), Output(10)))
SGD = Schedule("sgd", lr=0.1, epochs=3, patience=3, batch=4, momentum=Ramp(0.5))
RMSPROP = Schedule("rmsprop", lr=0.01, epochs=3, patience=3, batch=4)
STAGES = "teacher", "backprop", "kd", "hint", "joint"  # the last has two outputs, and so two targets


@pytest.fixture(autouse=True)
def small_sets_are_several_chunks(monkeypatch):
    monkeypatch.setattr(training, "HOST_CHUNK", 4)
    monkeypatch.setattr(sets, "HOST_CHUNK", 4)


SETTINGS = {"experiment": "digits", "preset": "default", "seed": 0, "data": "digits", "images": "drawn"}
SETTINGS |= {"train": 10, "validation": 6, "test": None, "retrain": False}
SAME = {"settings": SETTINGS, "stage": "any", "teacher": "", "start": "same"}  # what every file is made from


def as_it_is(images):
    """A preparation that does nothing."""
    return images


def example_set(n, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return Examples(rng.random((n, 6, 6, 1)).astype(dtype), rng.integers(0, 10, n), as_it_is)


def drawn(network, seed, **options):
    layers = build(network, **options)
    initialise(layers, np.random.default_rng(seed))
    return layers


@dataclass(frozen=True)
class Both(Loss):
    """Eq. 3 of the first output and eq. 2 of the second."""

    title = "eqs. 2 and 3"
    eq_2: Loss

    def __call__(self, prediction, target, labels, epoch):
        one, done = Hint()(prediction[0], target[0], labels, epoch)
        two, dtwo = self.eq_2(prediction[1], target[1], labels, epoch)
        return one + two, (done, dtwo)


def make_stage(name, dtype=np.float32, keep=1.0):
    """A stage over small networks; dropout, where there is any, is in the network that it trains."""
    dropout = {"dropout_keep_input": keep, "dropout_keep": keep}
    teacher = drawn(TEACHER, 1, dtype=dtype, **(dropout if name == "teacher" else {}))
    student = drawn(STUDENT, 2, dtype=dtype, **dropout)
    w_r = regressor("conv", (2, 2, 3), (2, 2, 5), 2, dtype=dtype)
    initialise(w_r, np.random.default_rng(3))
    eq_2 = Distillation(3.0, Ramp(4.0, 1.0, 4))
    if name == "teacher":
        return Stage(name, teacher, LABELS, SGD)
    if name == "backprop":
        return Stage(name, student, LABELS, SGD)
    if name == "hint":
        return Stage(name, student[:1] + w_r, Hint(), SGD, teacher[:1], classifies=False)
    if name == "joint":
        return Stage(name, Branches(student, {1: w_r}), Both(eq_2), SGD, Branches(teacher, {1: Sequential([])}))
    return Stage(name, student, eq_2, SGD, teacher)


def taught(stage, examples):
    """Examples with what the stage's teacher says of them."""
    return examples if stage.target is None else replace(examples, teacher=stage.target(examples.images))


def sets_for(stage, train=10, validation=6, dtype=np.float32):
    sets = {"train": example_set(train, 4, dtype), "validation": example_set(validation, 5, dtype)}
    return {part: taught(stage, examples) for part, examples in sets.items()}


def run(stage, schedule, path, sets=None, workers=1, log=None, microbatch=2, seed=6, **more):
    rng, log = np.random.default_rng(seed), log or (lambda record: None)
    arguments = sets or sets_for(stage), rng, path, SAME, microbatch, workers, log
    return fit(replace(stage, schedule=schedule), *arguments, progress=False, **more)


def copied(arrays):
    return {name: np.array(a) for name, a in arrays.items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


every_stage = pytest.mark.parametrize("name", STAGES)


@every_stage
@pytest.mark.parametrize("microbatch", [1, 2, 5, 64])
def test_the_gradient_over_microbatches_is_that_of_the_whole_minibatch(name, microbatch):
    stage = make_stage(name, np.float64)
    sets = sets_for(stage, train=31, dtype=np.float64)
    indices = np.random.default_rng(7).permutation(31)[:23]
    loss, grads = fitnets.gradient(stage, *sets["train"].batch(indices), epoch=2)
    with DataParallel(stage, sets, microbatch, workers=1 + (microbatch == 5)) as examples:
        got_loss, got = examples.gradient(indices, epoch=2, noise=0)
    assert got_loss == pytest.approx(loss, rel=1e-12)
    assert got.keys() == grads.keys() == stage.network.params.keys()
    for key, g in grads.items():
        np.testing.assert_allclose(got[key], g, rtol=0, atol=1e-12 * abs(g).max(), err_msg=key)


@pytest.mark.parametrize("name", ["teacher", "hint"])
def test_the_gradient_is_the_same_to_the_bit_for_any_number_of_workers(name):
    found = []
    for workers in (1, 2, 3):
        stage = make_stage(name, keep=0.7)
        with DataParallel(stage, sets_for(stage, train=40), 2, workers) as examples:
            loss, grads = examples.gradient(np.arange(37), epoch=1, noise=8)
            found.append({"loss": np.array(loss), **copied(grads)})
    assert_same(found[0], found[1])
    assert_same(found[0], found[2])


def test_every_microbatch_has_masks_of_its_own_and_every_minibatch_too():
    stage = make_stage("backprop", np.float64, keep=0.5)
    one = example_set(1, dtype=np.float64)
    sets = {"train": Examples(one.images.repeat(32, axis=0), one.labels.repeat(32), as_it_is)}
    with DataParallel(stage, sets, 1, 1) as examples:
        single = [examples.gradient(np.arange(1), 1, noise)[0] for noise in (0, 0, 1)]
        losses = [examples.gradient(np.arange(n), 1, 0)[0] for n in (8, 16)]  # one image a lane, and two
    assert single[0] == single[1] != single[2]
    assert len({round(loss, 9) for loss in (single[0], *losses)}) == 3


@every_stage
@pytest.mark.parametrize("workers", [1, 3])
def test_measuring_in_parts_is_measuring_the_whole(name, workers):
    stage = make_stage(name, np.float64, keep=0.5)
    sets = sets_for(stage, validation=18, dtype=np.float64)
    x, target, labels = sets["validation"].batch(slice(None))
    loss, errors = fitnets.measure(stage, x, target, labels, epoch=3)
    with DataParallel(stage, sets, 4, workers) as examples:  # 18 images: four parts and half of one
        got_loss, got_errors = examples.measure("validation", epoch=3)
    assert got_loss == pytest.approx(loss, rel=1e-12) and got_errors == errors
    if stage.classifies:
        logits = stage.network(x)[-1] if name == "joint" else stage.network(x)
        assert errors == sum(logits.argmax(axis=1) != labels) > 0


def test_a_team_measures_the_weights_as_they_are_now():
    stage = make_stage("backprop")
    with DataParallel(stage, sets_for(stage, validation=600), 2, workers=3) as examples:
        before = examples.measure("validation", 1)[0]
        for p in stage.network.params.values():
            p *= 2
        assert examples.measure("validation", 1)[0] != before
        for p in stage.network.params.values():
            p /= 2
        assert examples.measure("validation", 1)[0] == before


@pytest.mark.parametrize("schedule", [SGD, RMSPROP], ids=["sgd", "rmsprop"])
def test_training_ends_in_the_same_file_for_any_number_of_workers(schedule, tmp_path):
    files, logs = [], []
    for workers in (1, 2, 3):
        stage, records = make_stage("kd", keep=0.7), []
        run(stage, schedule, tmp_path / f"{workers}.h5", sets_for(stage, train=30), workers, records.append)
        files.append((tmp_path / f"{workers}.h5").read_bytes())
        logs.append([{key: value for key, value in record.items() if key != "seconds"} for record in records])
    assert files[0] == files[1] == files[2]
    assert logs[0] == logs[1] == logs[2] and len(logs[0]) == 3


def test_training_lowers_the_loss(tmp_path):
    for name in STAGES:
        stage, records = make_stage(name), []
        run(stage, replace(RMSPROP, epochs=8), tmp_path / f"{name}.h5", log=records.append)
        assert records[-1]["train_loss"] < 0.95 * records[0]["train_loss"], name


def test_an_epoch_meets_every_image_once_in_an_order_of_its_own(tmp_path, monkeypatch):
    met, gradient = [], DataParallel.gradient

    def listening(self, indices, epoch, noise, choices):
        met.append((epoch, noise, indices))
        return gradient(self, indices, epoch, noise, choices)

    monkeypatch.setattr(DataParallel, "gradient", listening)
    run(make_stage("backprop"), SGD, tmp_path / "a.h5")
    orders = [np.concatenate([i for epoch, _, i in met if epoch == e]).tolist() for e in (1, 2, 3)]
    assert [len(i) for _, _, i in met] == [4, 4, 2] * 3
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len(set(map(tuple, orders))) == 3 and len({noise for _, noise, _ in met}) == 9


@pytest.mark.parametrize("name", ["backprop", "hint"])
def test_the_last_minibatch_weighs_what_it_holds(name, tmp_path):
    stage, records = make_stage(name, np.float64), []
    sets = sets_for(stage, dtype=np.float64)
    run(stage, replace(SGD, lr=0.0, epochs=1), tmp_path / "a.h5", sets, log=records.append)
    expected = fitnets.measure(stage, *sets["train"].batch(slice(None)), epoch=1)[0]
    assert records[0]["train_loss"] == pytest.approx(expected, rel=1e-12)


def test_one_step_of_plain_sgd_is_the_gradient_of_the_minibatch(tmp_path):
    stage = make_stage("backprop", np.float64)
    sets, before = sets_for(stage, dtype=np.float64), copied(stage.network.params)
    _, grads = fitnets.gradient(stage, *sets["train"].batch(slice(None)), epoch=1)
    run(stage, Schedule("sgd", lr=0.5, epochs=1, patience=1, batch=10), tmp_path / "a.h5", sets)
    for name, p in stage.network.params.items():
        np.testing.assert_allclose(p, before[name] - 0.5 * grads[name], rtol=0, atol=1e-13)


def scripted(monkeypatch, script):
    """Lets validation say what the script says: one (loss, errors) an epoch."""
    monkeypatch.setattr(DataParallel, "measure", lambda self, name, epoch, progress: script[epoch - 1])


def run_and_remember(stage, schedule, path):
    """What fit returns, and the weights as they were after each epoch."""
    after = []
    state = run(stage, schedule, path, log=lambda record: after.append(copied(stage.network.params)))
    return state, after


def test_the_best_epoch_is_the_first_with_the_fewest_errors(tmp_path, monkeypatch):
    script = [(1.0, 5), (0.9, 5), (0.95, 4), (0.9, 4), (0.1, 5), (0.0, 0)]
    scripted(monkeypatch, script)
    stage = make_stage("backprop")
    state, after = run_and_remember(stage, replace(SGD, epochs=9, patience=2), tmp_path / "a.h5")
    assert (state["best_epoch"], state["best_errors"], state["best_loss"]) == (3, 4, 0.95)
    assert state["epoch"] == 5 and state["finished"]  # two epochs without improvement: not one more
    assert_same(stage.network.params, after[2])
    assert not np.array_equal(after[2]["0.0.w"], after[4]["0.0.w"])


def test_a_hint_is_judged_by_its_loss_alone(tmp_path, monkeypatch):
    scripted(monkeypatch, [(3.0, 0), (1.0, 9), (2.0, 3), (1.5, 0), (0.5, 0)])
    stage = make_stage("hint")
    state, after = run_and_remember(stage, replace(SGD, epochs=9, patience=2), tmp_path / "a.h5")
    assert (state["best_epoch"], state["best_loss"], state["epoch"]) == (2, 1.0, 4)
    assert_same(stage.network.params, after[1])


@pytest.mark.parametrize(
    ("patience", "epochs", "run_for", "best"), [(1, 9, 2, 1), (2, 9, 3, 1), (3, 9, 7, 4), (3, 5, 5, 4), (9, 9, 9, 4)]
)
def test_patience_counts_epochs_since_the_best_one(patience, epochs, run_for, best, tmp_path, monkeypatch):
    scripted(monkeypatch, [(1.0, errors) for errors in (5, 6, 6, 4, 5, 5, 4, 5, 5)])
    state, after = run_and_remember(
        make_stage("backprop"), replace(SGD, epochs=epochs, patience=patience), tmp_path / "a.h5"
    )
    assert (state["epoch"], state["best_epoch"], len(after)) == (run_for, best, run_for)


def test_equal_is_not_better_and_the_first_is_always_best():
    stage, nothing = make_stage("backprop"), {"best_loss": None, "best_errors": None}
    held = {"best_loss": 1.0, "best_errors": 3}
    assert improves(stage, math.inf, 10, nothing)
    assert not improves(stage, 1.0, 3, held) and improves(stage, 9.0, 2, held) and not improves(stage, 0.1, 4, held)
    assert stopped({"epoch": 3, "best_epoch": 3}, SGD) and not stopped({"epoch": 2, "best_epoch": 0}, SGD)


def test_a_finished_file_gives_the_best_weights_back_without_training(tmp_path, monkeypatch):
    scripted(monkeypatch, [(1.0, 5), (1.0, 4), (1.0, 6)])
    stage = make_stage("kd")
    state = run(stage, SGD, tmp_path / "a.h5")
    trained, content = copied(stage.network.params), (tmp_path / "a.h5").read_bytes()
    again, records = make_stage("kd"), []
    assert run(again, SGD, tmp_path / "a.h5", log=records.append) == state
    assert records == [] and (tmp_path / "a.h5").read_bytes() == content
    assert_same(again.network.params, trained)


def test_a_file_has_what_training_goes_on_from_until_it_has_ended(tmp_path):
    groups = {}

    def look(record):  # before the epoch is saved
        if record["epoch"] > 1:
            groups[record["epoch"] - 1] = files.load(tmp_path / "a.h5")[1].keys()

    run(make_stage("backprop"), SGD, tmp_path / "a.h5", log=look)
    assert groups == {epoch: {"weights", "best", "optimizer"} for epoch in (1, 2)}
    assert files.load(tmp_path / "a.h5")[1].keys() == {"best"}


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_the_mean_of_the_weights_is_validated_and_kept_and_training_goes_on_from_the_newest(decay, tmp_path):
    plain, updates, newest = make_stage("backprop"), [], []
    with pytest.MonkeyPatch.context() as patch:
        seen = lambda *arguments: (update(*arguments), updates.append(copied(plain.network.params)))  # noqa: E731
        patch.setattr(training, "update", seen)
        run(plain, SGD, tmp_path / "plain.h5", log=lambda record: newest.append(updates[-1]))
    stage, losses = make_stage("backprop"), []

    def look(record):
        assert_same(stage.network.params, newest[record["epoch"] - 1])
        losses.append(record["validation_loss"])

    state = run(stage, replace(SGD, average=decay), tmp_path / "a.h5", log=look)
    steps, other = len(updates) // len(newest), make_stage("backprop")
    for epoch, loss in enumerate(losses, start=1):
        means = reference.mean(updates[: epoch * steps], decay)
        for name, mean in means.items():
            other.network.params[name][...] = mean
        validated = sets_for(other)["validation"]
        assert loss == pytest.approx(fitnets.measure(other, *validated.batch(slice(None)), epoch)[0], rel=1e-5)
        if epoch == state["best_epoch"]:
            for name, mean in means.items():
                np.testing.assert_allclose(stage.network.params[name], mean, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "schedule",
    [SGD, replace(RMSPROP, lr_decay=1.1), replace(SGD, average=0.9)],
    ids=["sgd", "rmsprop", "averaged"],
)
@pytest.mark.parametrize("moment", ["in an epoch", "before it is saved"])
def test_training_that_is_interrupted_goes_on_as_if_it_had_not_been(schedule, moment, tmp_path, monkeypatch):
    kept = []  # the files before the last epoch is saved: a finished one has no optimiser

    def keep(name):
        return lambda record: kept.append((tmp_path / name).read_bytes()) if record["epoch"] == 3 else None

    run(make_stage("teacher", keep=0.7), schedule, tmp_path / "whole.h5", log=keep("whole.h5"))
    gradient, calls = DataParallel.gradient, []

    def cut_in_an_epoch(*arguments):
        calls.append(1)
        if moment == "in an epoch" and len(calls) == 5:  # of three an epoch
            raise KeyboardInterrupt
        return gradient(*arguments)

    def cut_before_it_is_saved(record):
        if moment == "before it is saved" and record["epoch"] == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(DataParallel, "gradient", cut_in_an_epoch)
        run(make_stage("teacher", keep=0.7), schedule, tmp_path / "cut.h5", log=cut_before_it_is_saved)
    assert files.load(tmp_path / "cut.h5")[0]["epoch"] == 1
    stage, records, before = make_stage("teacher", keep=0.7), [], keep("cut.h5")
    run(stage, schedule, tmp_path / "cut.h5", log=lambda record: (records.append(record), before(record)))
    assert [record["epoch"] for record in records] == [2, 3]
    assert kept[0] == kept[1]
    assert (tmp_path / "cut.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert_same(stage.network.params, files.load(tmp_path / "whole.h5")[1]["best"])


def test_a_file_of_another_start_or_teacher_is_refused(tmp_path):
    run(make_stage("backprop"), SGD, tmp_path / "a.h5")
    stage = make_stage("backprop")
    with pytest.raises(UserError, match=r"a\.h5.*another teacher or start"):
        other = SAME | {"start": "other"}
        fit(stage, sets_for(stage), np.random.default_rng(6), tmp_path / "a.h5", other, 2, 1, print, progress=False)


def test_updates_are_counted_over_epochs(tmp_path):
    records = []
    run(make_stage("backprop"), replace(SGD, lr_decay=2.0), tmp_path / "a.h5", log=records.append)
    assert [record["lr"] for record in records] == [0.1 / 2**2, 0.1 / 2**5, 0.1 / 2**8]  # 3 minibatches an epoch


def filter_norms(params):
    return {name: np.sqrt((p**2).sum(axis=tuple(range(p.ndim - 1)))) for name, p in params.items()}


def test_max_norm_holds_after_every_update_where_it_is_asked_for(tmp_path, monkeypatch):
    gradient, seen = DataParallel.gradient, []

    def listening(self, *arguments):
        seen.append(filter_norms(self.params))
        return gradient(self, *arguments)

    monkeypatch.setattr(DataParallel, "gradient", listening)
    stage = make_stage("backprop")
    stage.network[0][0].max_norm, stage.network[2][1].max_norm = 0.25, 1.5
    run(stage, replace(SGD, lr=1.0), tmp_path / "a.h5")
    seen.append(filter_norms(stage.network.params))
    assert len(seen) == 10
    for norms in seen[1:]:
        assert norms["0.0.w"].max() <= 0.25 * (1 + 1e-6) and norms["2.1.w"].max() <= 1.5 * (1 + 1e-6)
    assert max(norms["1.0.w"].max() for norms in seen) > 0.25


def test_a_loss_that_is_not_finite_names_the_stage_the_epoch_and_the_layer(tmp_path):
    stage = make_stage("kd")
    stage.network.params["1.0.w"][0, 0, 0, 0] = np.nan
    with pytest.raises(
        TrainingError, match=r"kd, epoch 1, step 1: the loss is nan; not finite first in layer 2, Conv2d"
    ):
        run(stage, SGD, tmp_path / "a.h5")
    assert not (tmp_path / "a.h5").exists()


@pytest.mark.parametrize(
    ("parameter", "layer"), [("1.0.w", "layer 2, Conv2d"), ("2.1.b", "layer 3, Linear"), ("head1.0.w", "head1, Conv2d")]
)
def test_a_layer_that_is_not_finite_is_named_in_a_network_with_several_outputs(parameter, layer, tmp_path):
    stage = make_stage("joint")
    stage.network.params[parameter].flat[0] = np.nan
    with pytest.raises(TrainingError, match=f"joint, epoch 1, step 1: .* first in {layer}$"):
        run(stage, SGD, tmp_path / "a.h5")


def test_a_layer_that_is_not_finite_is_named_in_an_ensemble(tmp_path):
    stage = Stage("mean", Mean([drawn(STUDENT, 1), drawn(STUDENT, 2)]), LABELS, SGD)
    stage.network.params["1.0.0.w"].flat[0] = np.nan
    with pytest.raises(TrainingError, match=r"mean, epoch 1, step 1: .* first in layer 2, Conv2d$"):
        run(stage, SGD, tmp_path / "a.h5")


def test_a_run_that_diverges_stops_and_says_where(tmp_path):
    with pytest.raises(
        TrainingError, match=r"^hint, epoch \d, step \d: the loss is .*; not finite first in layer \d, \w"
    ):
        run(make_stage("hint"), replace(SGD, lr=1e30), tmp_path / "a.h5")


def test_a_loss_that_alone_is_not_finite_is_told_so_and_the_epochs_before_are_kept(tmp_path):
    def loss(prediction, target, labels, epoch):
        return (math.inf if epoch == 2 else 1.0), 0 * prediction

    network = make_stage("backprop").network
    loss.figures = lambda epoch: {}
    stage = Stage("teacher", network, loss, SGD)
    with pytest.raises(TrainingError, match="teacher, epoch 2, step 1: the loss is inf; not finite in the loss alone"):
        run(stage, SGD, tmp_path / "a.h5")
    assert files.load(tmp_path / "a.h5")[0]["epoch"] == 1


def test_a_teacher_whose_outputs_are_not_finite_is_named(tmp_path):
    stage = make_stage("kd")
    sets = sets_for(stage)
    sets["train"].teacher[5] = np.nan
    with pytest.raises(TrainingError, match=r"kd, epoch 1, step .: .* not finite in the teacher's output"):
        run(stage, SGD, tmp_path / "a.h5", sets)


def test_a_validation_loss_that_is_not_finite_stops_too_wherever_the_image_is(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHUNK", 2)
    stage = make_stage("backprop")
    sets = sets_for(stage)
    sets["validation"].images[5] = np.inf
    with pytest.raises(TrainingError, match=r"backprop, epoch 1, step 3: .* first in layer 1, Conv2d"):
        run(stage, SGD, tmp_path / "a.h5", sets)


@pytest.mark.parametrize("workers", [1, 3])
def test_outputs_are_what_the_network_says_without_noise(workers):
    examples = example_set(18, dtype=np.float64)
    x = examples.images
    for network in (make_stage("teacher", np.float64, keep=0.5).network, make_stage("hint", np.float64).target):
        found = outputs(network, examples, workers)
        assert found.dtype == np.float64 and found.shape == network(x).shape
        np.testing.assert_allclose(found, network(x), rtol=1e-12, atol=1e-14)
    several = make_stage("joint", np.float64).target
    found = outputs(several, examples, workers)
    assert isinstance(found, tuple) and len(found) == 2
    for one, expected in zip(found, several(x), strict=True):
        np.testing.assert_allclose(one, expected, rtol=1e-12, atol=1e-14)
    found = outputs(Log(2.0), replace(examples, images=abs(x) + 1), workers)  # it has no weights
    np.testing.assert_allclose(found, 2 * np.log(abs(x) + 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["kd", "hint", "joint"])
def test_a_teacher_that_is_asked_for_each_batch_teaches_the_same_with_any_number_of_workers(name, tmp_path):
    stage = make_stage(name, np.float64)
    kept = sets_for(stage, train=30, dtype=np.float64)
    asked = {part: replace(examples, teacher=stage.target) for part, examples in kept.items()}
    given = []
    for examples in (kept, asked):
        with DataParallel(stage, examples, 4, 2) as parallel:
            loss, grads = parallel.gradient(np.arange(3, 26), epoch=2, noise=0)
            given.append({"loss": np.array(loss), **copied(grads), "v": np.array(parallel.measure("validation", 2))})
    for key, g in given[0].items():
        np.testing.assert_allclose(given[1][key], g, rtol=0, atol=1e-12 * abs(g).max(), err_msg=key)
    contents = []
    for workers in (1, 2, 3):
        stage = make_stage(name)
        examples = {part: replace(e, teacher=stage.target) for part, e in sets_for(stage, train=30).items()}
        run(stage, RMSPROP, tmp_path / f"{workers}.h5", examples, workers)
        contents.append((tmp_path / f"{workers}.h5").read_bytes())
    assert contents[0] == contents[1] == contents[2]


@pytest.mark.parametrize("name", ["kd", "hint", "joint"])
def test_the_bytes_of_the_teacher_never_change(name, tmp_path):
    stage = make_stage(name)
    frozen = stage.target.params
    before = {key: p.tobytes() for key, p in frozen.items()}
    own = copied(stage.network.params)
    for p in frozen.values():
        p.flags.writeable = False
    run(stage, RMSPROP, tmp_path / "a.h5", workers=2)
    assert {key: p.tobytes() for key, p in frozen.items()} == before
    assert all(not np.array_equal(p, own[key]) for key, p in stage.network.params.items())
    assert not any(np.shares_memory(p, q) for p in frozen.values() for q in stage.network.params.values())


def test_the_hint_stage_moves_the_student_up_to_its_guided_layer_and_no_further(tmp_path):
    teacher, student = drawn(TEACHER, 1), drawn(STUDENT, 2)
    before = copied(student.params)
    w_r = regressor("conv", (2, 2, 3), (2, 2, 5), 2)
    initialise(w_r, np.random.default_rng(3))
    stage = Stage("hint", student[:1] + w_r, Hint(), SGD, teacher[:1], classifies=False)
    run(stage, SGD, tmp_path / "a.h5")
    moved = {name for name, p in student.params.items() if not np.array_equal(p, before[name])}
    assert moved == {"0.0.w", "0.0.b"}


def test_what_is_told_of_an_epoch_is_what_the_files_and_tables_need(tmp_path):
    records = {name: [] for name in ("kd", "hint")}
    for name, told in records.items():
        run(make_stage(name), SGD, tmp_path / f"{name}.h5", log=told.append)
    common = {"stage", "epoch", "train_loss", "validation_loss", "lr", "seconds"}
    assert all(record.keys() == common for record in records["hint"])
    assert all(record.keys() == common | {"validation_error", "lam"} for record in records["kd"])
    assert [record["lam"] for record in records["kd"]] == [4.0, 3.0, 2.0]
    for earlier, later in pairwise(records["kd"]):
        assert later["epoch"] == earlier["epoch"] + 1
    for record in records["kd"]:
        assert record["validation_error"] * 6 / 100 == pytest.approx(round(record["validation_error"] * 6 / 100))
        assert not isinstance(record["train_loss"], Iterable) and record["seconds"] >= 0
