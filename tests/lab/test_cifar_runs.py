"""Runs on colour images: whitened and augmented, with several hints, without validation, with another run's teacher."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import strict
from test_cifar import published, small_set, write

import run as command
from minifit import UserError, data, fitnets, networks, regressors
from minifit.data import augment
from minifit.lab import files as checkpoints, plan as outline, training
from minifit.data import preprocessing
from minifit.experiments import CIFAR10, EXPERIMENTS, Experiment
from minifit.lab.handover import take_teacher
from minifit.networks import Conv, FullyConnected, Network, Output
from minifit.lab.runner import Run
from minifit.lab.training import Schedule

TEACHER = Network("wide", (8, 8, 3), (Conv(8, 3, pool=(2, 2), norm=0.9), Conv(10, 2), FullyConnected(4), Output(10)))
STUDENT = Network(
    "deep", (8, 8, 3), (Conv(3, 3, pool=(2, 2)), Conv(3, 3, pad=1), Conv(4, 2), FullyConnected(6), Output(10))
)
SMALL = Experiment("noise", TEACHER, STUDENT, {})
SCHEDULE = Schedule("rmsprop", lr=0.01, lr_final=0.5, lr_end=2, epochs=2, patience=2, batch=20)
CONFIG = replace(
    CIFAR10,
    train=48,
    validation=16,
    teacher=replace(SCHEDULE, optimizer="sgd", momentum=0.5),
    stage1=SCHEDULE,
    student=SCHEDULE,
    crops=2,
    guided=(1, 3),
    hint=(1, 2),
    lam_end=4,
    keep=0.5,
    slice=4,
)
STAGES = ["teacher", "backprop", "kd", "hint", "hint_2", "fitnet"]


def noise(seed=0):
    """64 images and 9 to test: the published test file has 10,000, and the one at hand may have fewer."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, 73)
    images = (255 * rng.random((73, 8, 8, 3)) * (0.1 + 0.1 * labels[:, None, None, None])).astype(np.uint8)
    return data.Dataset("noise", images[:64], labels[:64], images[64:], labels[64:])


def new_run(folder, config=CONFIG, seed=0, dataset=None, workers=1, xp=np, **more):
    return Run(folder, "noise", "default", SMALL, config, seed, dataset or noise(), xp, workers, False, **more)


def perform(run, goal="all", tell=None):
    with run:
        return {name: run.make(name, tell)[0] for name in run.plan(goal)}


def contents(folder):
    return {name: (folder / f"{name}.h5").read_bytes() for name in STAGES if (folder / f"{name}.h5").exists()}


def best(folder, stage):
    return checkpoints.load(folder / f"{stage}.h5")[1]["best"]


def refusal(action, *arguments):
    with pytest.raises(UserError) as caught:
        action(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A directory in which all stages are done; for reading only."""
    folder = tmp_path_factory.mktemp("finished")
    perform(new_run(folder))
    return folder


def test_every_pair_of_layers_has_a_stage_of_its_own_before_the_fitnet(finished):
    run = new_run(finished)
    assert run.plan("all") == STAGES
    assert run.plan("hint") == ["teacher", "hint", "hint_2"] and run.plan("hint_2") == run.plan("hint")
    assert list(json.loads((finished / "summary.json").read_text())["stages"]) == STAGES


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_is_cut_within_an_augmented_epoch_goes_on_to_the_same_bytes(
    stage, finished, tmp_path, monkeypatch
):
    gradient, calls = training.Pass.gradient, []

    def cut(self, *arguments):
        calls.append(self.stage.name)
        if calls.count(stage) == 5:  # of three an epoch
            raise KeyboardInterrupt
        return gradient(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training.Pass, "gradient", cut)
        perform(new_run(tmp_path), stage)
    assert checkpoints.load(tmp_path / f"{stage}.h5")[0]["epoch"] == 1
    perform(new_run(tmp_path), stage)
    assert contents(tmp_path).items() <= contents(finished).items()


def test_any_number_of_workers_sees_the_same_augmented_images(finished, tmp_path):
    perform(new_run(tmp_path, workers=3))
    assert contents(tmp_path) == contents(finished)


def seen(monkeypatch, run, stage):
    """(epoch, images, targets) of every slice of a stage that is trained now."""
    slices, gradient = [], training.gradient

    def listening(stage, x, target, labels, epoch, *more):
        slices.append((epoch, x, target))
        return gradient(stage, x, target, labels, epoch, *more)

    with run:
        for name in run.needs[stage]:
            run.make(name)
        monkeypatch.setattr(training, "gradient", listening)
        run.make(stage)
    return slices


@pytest.mark.parametrize("stage", ["kd", "hint", "hint_2", "fitnet"])
def test_the_teacher_speaks_of_the_very_images_that_the_student_sees(stage, tmp_path, monkeypatch):
    run = new_run(tmp_path)
    slices = seen(monkeypatch, run, stage)
    target = run.stage(stage).target
    assert len(slices) == 2 * 12
    for _, x, said in slices:
        np.testing.assert_allclose(said, target(x), rtol=1e-5, atol=1e-5)
    shown = {image.tobytes() for _, x, _ in slices for image in x}
    stored = {image.tobytes() for image in run.sets["train"].x}
    assert len(shown - stored) > 48  # most of two epochs' images are augmented
    by_epoch = [{image.tobytes() for e, x, _ in slices if e == epoch for image in x} for epoch in (1, 2)]
    assert len(by_epoch[0] & by_epoch[1]) < 12  # and anew in each


def test_the_images_that_choose_the_epoch_and_those_that_test_are_not_augmented(tmp_path, monkeypatch):
    measured, measure = [], training.Pass.measure

    def listening(self, name, epoch):
        measured.append((name, self.sets[name].x))
        return measure(self, name, epoch)

    monkeypatch.setattr(training.Pass, "measure", listening)
    run = new_run(tmp_path)
    perform(run, "backprop")
    assert [name for name, _ in measured] == ["validation", "validation", "test"]
    assert all(x is run.sets[name].x for name, x in measured)


def test_without_augmentation_the_teacher_speaks_once(tmp_path, monkeypatch):
    run = new_run(tmp_path, replace(CONFIG, flips=False, crops=0))
    slices = seen(monkeypatch, run, "kd")
    stored = {image.tobytes() for image in run.sets["train"].x}
    assert {image.tobytes() for _, x, _ in slices for image in x} == stored
    assert ("train", 2) in run.kept and "computed once and kept" in outline.teacher_line(run)
    assert "anew in every epoch" in outline.teacher_line(new_run(tmp_path))


def test_the_plan_counts_the_teachers_forward_pass_where_it_is_made_in_every_epoch(tmp_path, monkeypatch):
    timed = []
    monkeypatch.setattr(outline, "seconds", lambda run, network, name, target: timed.append((name, target)) or 1.0)
    rows = outline.outline(new_run(tmp_path), STAGES)
    targets = {name: target and len(target) for name, target in timed}
    assert targets == {"teacher": None, "backprop": None, "kd": 4, "hint": 1, "hint_2": 2}
    assert [row["estimate"] for row in rows] == [2.0] * 6
    assert [row["trains"] for row in rows][2:5] == ["deep", *(f"deep, layers 1-{g}, and regressor" for g in (1, 3))]
    monkeypatch.undo()
    assert all(row["estimate"] > 0 for row in outline.outline(new_run(tmp_path), STAGES))


def test_whitening_is_fitted_on_the_training_images_of_the_split_and_on_nothing_else(tmp_path):
    dataset = noise()
    run = new_run(tmp_path, dataset=dataset)
    train, others = preprocessing.whitened(dataset.images[:48], [dataset.images[48:], dataset.test_images], None)
    for part, x in zip(("train", "validation", "test"), (train, *others), strict=True):
        np.testing.assert_allclose(run.sets[part].x, x, rtol=0, atol=1e-4)
    inverted = replace(dataset, images=np.concatenate([dataset.images[:48], 255 - dataset.images[48:]]))
    np.testing.assert_array_equal(new_run(tmp_path / "b", dataset=inverted).sets["train"].x, run.sets["train"].x)
    smaller = new_run(tmp_path / "c", replace(CONFIG, train=40)).sets["train"].x
    assert abs(smaller - run.sets["train"].x[:40]).max() > 1e-3


def test_runs_on_the_same_training_images_share_what_whitening_found(tmp_path, monkeypatch):
    first = new_run(tmp_path / "a", cache=tmp_path / "cache").sets["test"].x
    assert len(list((tmp_path / "cache").glob("whitening-*.h5"))) == 1
    monkeypatch.setattr(preprocessing.ZCA, "fit", None)
    shared = new_run(tmp_path / "b", seed=1, cache=tmp_path / "cache")
    np.testing.assert_array_equal(shared.sets["test"].x, first)
    with pytest.raises(TypeError):  # other images, which are fitted anew
        new_run(tmp_path / "c", dataset=noise(1), cache=tmp_path / "cache").sets  # noqa: B018


def test_a_hint_stage_starts_where_the_one_before_it_ended(finished):
    run = new_run(finished)
    start, common = run.stage("hint_2").network.params, run.stage("backprop").network.params
    first = best(finished, "hint")
    for name, p in start.items():
        if name[0] in "012":  # its three guided layers, of which the first has been guided before
            assert np.array_equal(p, first[name] if name[0] == "0" else common[name]), name
    assert not np.array_equal(first["0.0.w"], common["0.0.w"])


@pytest.mark.parametrize(("guided", "hint"), [((1, 3), (1, 2)), ((3, 1), (2, 1))])
def test_the_fitnet_starts_from_what_all_hints_together_left(guided, hint, tmp_path):
    run = new_run(tmp_path, replace(CONFIG, guided=guided, hint=hint))
    perform(run, "hint")
    start, common = run.stage("fitnet").network.params, run.stage("backprop").network.params
    left = best(tmp_path, "hint") | best(tmp_path, "hint_2") if guided == (1, 3) else best(tmp_path, "hint")
    if guided == (3, 1):
        left = left | {name: a for name, a in best(tmp_path, "hint_2").items() if name[0] == "0"}
    for name, p in start.items():
        assert np.array_equal(p, left[name] if name[0] in "012" else common[name]), name


def test_a_second_pair_changes_nothing_of_the_first(finished, tmp_path):
    perform(new_run(tmp_path, replace(CONFIG, guided=(1,), hint=(1,))), "hint")
    for group, arrays in checkpoints.load(finished / "hint.h5")[1].items():
        for name, a in checkpoints.load(tmp_path / "hint.h5")[1][group].items():
            np.testing.assert_array_equal(a, arrays[name])


def moved(run, stage):
    start = {name: p.copy() for name, p in run.stage(stage).network.params.items()}
    with run:
        run.make(stage)
    return {name for name, p in best(run.folder, stage).items() if not np.array_equal(p, start[name])}


def test_the_guided_layers_learn_at_a_rate_of_their_own_in_stage_2(tmp_path):
    run = new_run(tmp_path, replace(CONFIG, guided_lr=0.0))
    perform(run, "hint")
    names = moved(run, "fitnet")
    assert {name[0] for name in names} == {"3", "4"}
    assert {name[0] for name in moved(run, "kd")} == set("01234")
    stage = new_run(tmp_path, replace(CONFIG, guided_lr=0.25, student=replace(SCHEDULE, conv_lr=0.5))).stage("fitnet")
    rates = {name[0]: rate for name, rate in stage.rates.items()}
    assert rates == {"0": 0.125, "1": 0.125, "2": 0.125}


def test_convolutions_learn_at_a_rate_of_their_own_and_a_regressor_at_the_full_one(tmp_path):
    still = replace(SCHEDULE, conv_lr=0.0)
    run = new_run(tmp_path, replace(CONFIG, teacher=still, stage1=still, student=still))
    biases = {name[0] for name in moved(run, "teacher") if name.endswith("b")}  # filters move under max-norm alone
    assert biases == {"2", "3"}
    assert {name[0] for name in moved(run, "backprop")} == {"3", "4"}
    assert moved(run, "hint") == {"1.w", "1.b"}


def test_without_validation_images_the_last_epoch_is_kept(tmp_path):
    run = new_run(tmp_path, replace(CONFIG, validation=0, student=replace(SCHEDULE, epochs=4, patience=1)))
    records = perform(run)
    assert (records["kd"]["epochs"], records["kd"]["best_epoch"]) == (4, 4)
    assert checkpoints.load(tmp_path / "kd.h5")[0]["best_epoch"] == 4

    def stop(record):
        if (record["stage"], record["epoch"]) == ("kd", 4):
            raise KeyboardInterrupt

    longer = replace(run.config, student=replace(run.config.student, epochs=5))
    with pytest.raises(KeyboardInterrupt):
        perform(new_run(tmp_path / "longer", longer), "kd", stop)
    weights = checkpoints.load(tmp_path / "longer" / "kd.h5")[1]["weights"]
    for name, a in best(tmp_path, "kd").items():
        np.testing.assert_array_equal(a, weights[name])
    for told in [*run.directory.metrics(), *records.values()]:
        assert not {"validation_loss", "validation_error"} & told.keys()
    run.plot()
    assert (tmp_path / "curves.png").exists()
    assert "no images were left to choose the epoch" in command.report.results_table(run.summary())
    assert "among the training images" in command.report.stage_line("kd", records["kd"], 9)
    assert command.report.epoch_line(run.directory.metrics()[0]).startswith("teacher epoch 1: loss ")


def test_retraining_takes_all_images_and_the_epochs_that_were_found(tmp_path, finished):
    run = new_run(tmp_path, replace(CONFIG, student=replace(SCHEDULE, epochs=3, patience=3)))
    found = {name: record["best_epoch"] for name, record in perform(run).items()}
    again = run.on_all()
    records = perform(again)
    assert again.folder == tmp_path / "all" and again.sizes == {"train": 64, "validation": 0, "test": 9}
    assert {name: record["epochs"] for name, record in records.items()} == found
    settings = json.loads((tmp_path / "all" / "config.json").read_text())["settings"]
    assert (settings["train"], settings["validation"]) == (64, 0)
    for name in STAGES:  # a file is of the epochs that went into it
        epochs = checkpoints.load(tmp_path / "all" / f"{name}.h5")[0]["identity"]["settings"]["epochs"]
        assert epochs == {stage: found[stage] for stage in (*again.needs[name], name)}
    summary = json.loads((tmp_path / "all" / "summary.json").read_text())
    assert (summary["train_images"], summary["validation_images"]) == (64, 0)
    with pytest.raises(UserError, match="epochs"):
        perform(replace(again, epochs={name: epochs + 1 for name, epochs in found.items()}))


def test_retraining_stage_by_stage_is_retraining_all_at_once(tmp_path):
    config = replace(CONFIG, student=replace(SCHEDULE, epochs=3, patience=3))
    whole, parts = new_run(tmp_path / "whole", config), new_run(tmp_path / "parts", config)
    perform(whole)
    perform(whole.on_all())
    for goal in ("teacher", "kd", "all"):
        perform(parts, goal)
        perform(parts.on_all(), goal)
    assert contents(parts.folder / "all") == contents(whole.folder / "all")
    perform(new_run(tmp_path / "other", config, seed=1))
    perform(new_run(tmp_path / "other", config, seed=1).on_all(), "teacher")
    taken = new_run(tmp_path / "taken", config)
    with taken:
        take_teacher(taken, tmp_path / "other")
    perform(taken, "kd")
    with taken.on_all() as last:
        take_teacher(last, tmp_path / "other" / "all")
    assert perform(taken.on_all(), "kd")["teacher"]["from"] == str(tmp_path / "other" / "all")


def test_a_teacher_does_not_take_the_place_of_one_that_students_are_of(finished, tmp_path):
    run, own = new_run(tmp_path, seed=1), tmp_path / "own"
    perform(run)
    shutil.copytree(tmp_path, own)
    (tmp_path / "teacher.h5").unlink()
    for name in ("hint", "hint_2", "kd", "fitnet"):
        before = {path.name: path.read_bytes() for path in tmp_path.glob("*.*")}
        with run:
            line = refusal(take_teacher, run, finished)
        assert f"{name}.h5 was made from another teacher" in line
        assert {path.name: path.read_bytes() for path in tmp_path.glob("*.*")} == before
        (tmp_path / f"{name}.h5").unlink()
    shutil.copy(own / "kd.h5", tmp_path)
    with run:
        take_teacher(run, own)  # theirs
    assert run.directory.state("teacher") == run.directory.state("kd") == "finished"


def test_a_teacher_of_another_run_serves_as_if_it_had_been_trained_here(finished, tmp_path, monkeypatch):
    run = new_run(tmp_path)
    with run:
        take_teacher(run, finished)
        take_teacher(run, finished)  # as when the command is given again
    monkeypatch.setattr(fitnets, "teacher", None)
    records = perform(new_run(tmp_path))
    assert records["teacher"]["from"] == str(finished)
    assert {n: c for n, c in contents(tmp_path).items() if n != "teacher"} == {
        name: content for name, content in contents(finished).items() if name != "teacher"
    }
    assert [m["epoch"] for m in run.directory.metrics() if m["stage"] == "teacher"] == [1, 2]
    assert f"The teacher was trained in {finished}." in command.report.results_table(run.summary())
    other = new_run(tmp_path / "seed1", replace(CONFIG, tau=2.0, student=replace(SCHEDULE, lr=0.5)), seed=1)
    with other:
        take_teacher(other, finished)  # a teacher serves every seed and student
    assert other.directory.state("teacher") == "finished"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"config": replace(CONFIG, train=40)}, "train 48, now 40"),
        ({"config": replace(CONFIG, flips=False)}, "flips true, now false"),
        ({"config": replace(CONFIG, preprocessing="unit")}, 'preprocessing "whitened", now "unit"'),
        ({"config": replace(CONFIG, teacher=replace(CONFIG.teacher, lr=0.5))}, "teacher.lr 0.01, now 0.5"),
        ({"config": replace(CONFIG, teacher_width=1.0)}, "networks.teacher"),
        ({"dataset": noise(1)}, "images"),
    ],
)
def test_a_teacher_of_other_settings_is_refused_and_they_are_named(changes, said, finished, tmp_path):
    with new_run(tmp_path, **changes) as run:
        line = refusal(take_teacher, run, finished)
    assert str(finished) in line and said in line and list(tmp_path.glob("*.h5")) == []


def test_a_teacher_that_is_missing_or_unfinished_or_in_the_way_is_refused(finished, tmp_path):
    with new_run(tmp_path / "a") as run:
        assert "there is no teacher.h5" in refusal(take_teacher, run, tmp_path)

    def tell(record):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        perform(new_run(tmp_path / "b"), "teacher", tell)
    with new_run(tmp_path / "a") as run:
        assert "not finished" in refusal(take_teacher, run, tmp_path / "b")
    perform(new_run(tmp_path / "c", seed=1), "teacher")
    with new_run(tmp_path / "c", seed=1) as run:
        assert "has a teacher of its own" in refusal(take_teacher, run, finished)


def test_a_narrower_teacher_is_another_network_and_is_called_so_everywhere(finished, tmp_path, monkeypatch):
    half = networks.widened(networks.CIFAR10_TEACHER, 0.5)
    assert half.name == "CIFAR-10 teacher, 0.5 times as wide"
    assert [block.channels for block in half.blocks[:3]] == [48, 96, 96] and half.blocks[3].units == 250
    assert half.blocks[4] == networks.CIFAR10_TEACHER.blocks[4]
    assert networks.widened(networks.CIFAR10_TEACHER, 1.0) is networks.CIFAR10_TEACHER
    run, name = new_run(finished), "wide, 0.5 times as wide"
    titles = []
    monkeypatch.setattr("minifit.lab.plots.plot_curves", lambda metrics, path, title, chosen: titles.append(title))
    monkeypatch.setattr("minifit.lab.plots.plot_filters", lambda weights, path, title: titles.extend(weights))
    run.plot()
    assert titles == [f"noise, seed 0\n{name}; deep", f"teacher ({name})", *(f"{s} (deep)" for s in STAGES[1:])]
    assert name in command.report.results_table(run.summary())
    assert json.loads((finished / "summary.json").read_text())["teacher"] == name
    assert outline.outline(run, ["teacher"])[0]["trains"] == name


@pytest.mark.parametrize("kind", ["conv", "fc"])
def test_a_regressors_size_is_told_before_it_is_allocated(kind, tmp_path):
    run = new_run(tmp_path, replace(CONFIG, regressor=kind))
    for line, name in zip(outline.regressor_lines(run, STAGES), run.hints, strict=True):
        w_r = run.hint_stage(name, run.student(), run.teacher(trained=False)).network[run.pair(name)[1] :]
        n = sum(p.size for key, p in w_r.params.items() if key.endswith("w"))
        assert line.startswith(f"{name}: regressor {kind} from ") and f"{n:,} weights" in line


def test_a_regressor_that_no_memory_holds_is_refused_before_it_is_allocated():
    line = refusal(regressors.regressor, "fc", (80, 80, 800), (70, 70, 1920), 2, np.random.default_rng(0))
    assert f"{80 * 80 * 800 * 2 * 70 * 70 * 1920:,} weights" in line and "conv would fit" in line


def test_flips_and_crops_are_the_same_on_the_device():
    x = np.random.default_rng(0).standard_normal((9, 5, 6, 3)).astype(np.float32)
    for pad in (0, 3):
        choices = augment.draw(np.random.default_rng(1), 9, pad=pad)
        found = augment.apply(strict.asarray(x), choices)
        np.testing.assert_array_equal(found.get(), augment.apply(x, choices))


def test_every_stage_runs_on_the_device_with_augmentation(finished, tmp_path):
    perform(new_run(tmp_path, replace(CONFIG, keep=1.0), xp=strict), "all")
    perform(new_run(tmp_path / "host", replace(CONFIG, keep=1.0)), "all")
    for name in STAGES:
        found, expected = best(tmp_path, name), best(tmp_path / "host", name)
        for key, a in expected.items():
            np.testing.assert_allclose(found[key], a, rtol=0, atol=2e-3 * abs(a).max(), err_msg=f"{name} {key}")


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name.startswith("cifar")])
def test_every_experiment_is_within_its_networks_and_its_hint_fits(name):
    experiment = EXPERIMENTS[name]
    for config in experiment.presets.values():
        command.experiments.check(experiment, config)
        teacher, student = (networks.build(net, rng=None) for net in (experiment.teacher, experiment.student))
        x = np.zeros((0, 32, 32, 3), np.float32)
        assert student(x).shape == teacher(x).shape
        assert teacher[: config.hint[0]](x).shape[1:] == (7, 7, 192)
        assert student[: config.guided[0]](x).shape[1:3] == (8, 8)
        layers = int(name.rpartition("-")[2]) if "m-" in name else None
        assert layers is None or (len(student) == layers and config.guided == (command.paper.DEPTH_GUIDED[layers],))
    assert name in command.paper.RESULTS


def small(*more):
    words = [
        "--train",
        "8",
        "--validation",
        "4",
        "--teacher-width",
        "0.05",
        "--preprocessing",
        "unit",
        "--workers",
        "1",
    ]
    for part in ("teacher", "stage1", "student"):
        words += [f"--{part}.epochs", "1", f"--{part}.batch", "4"]
    return [*words, *more]


@pytest.fixture
def small_cifar_100(tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "plot", lambda _: None)
    return write(tmp_path / "data", published("cifar100", small_set("cifar100", train=12, test=7)))


def test_cifar_100_is_trained_from_files_in_the_published_format(small_cifar_100, tmp_path, capsys):
    arguments = ["--data-dir", str(small_cifar_100), "--runs", str(tmp_path / "runs")]
    assert command.main(["cifar100-fitnet1", *arguments, *small("--guided", "3", "6", "--hint", "1", "2")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("a set in CIFAR-100's format (") and "8 images to train on, 4 to validate, 7 to test" in out
    for stage in STAGES:
        line = next(line for line in out.splitlines() if line.startswith(f"{stage}: test"))
        assert "of 7)" in line or "(7 images)" in line
    table = out[out.index("method") :]
    assert ", 7 test images" in table and "FitNet 1, 100 classes" in table and "paper" not in table
    weights = best(tmp_path / "runs" / "cifar100-fitnet1" / "seed0", "fitnet")
    assert weights["10.1.w" if "10.1.w" in weights else "10.0.w"].shape == (500, 100)


def test_cifar_10_itself_stands_beside_the_papers_figures_on_however_many_test_images(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Run, "plot", lambda _: None)
    (images, labels), (test_images, test_labels) = small_set("cifar100", train=12, test=7).values()
    named = data.Dataset("CIFAR-10 with 7 test images", images, labels % 10, test_images, test_labels % 10)
    monkeypatch.setattr(data, "load", lambda *_, **__: named)
    assert command.main(["cifar10-fitnet1", "--runs", str(tmp_path), *small()]) == 0
    table = capsys.readouterr().out.partition("method")[2]
    rows = {line.split("  ")[0]: line.split() for line in table.splitlines()}
    assert "9.82" in rows["teacher"] and "10.99" in rows["FitNet"]
    assert "CIFAR-10 with 7 test images, 7 test images" in table and "0.05 times as wide" in table
    assert "those of its own teacher" in table


def test_the_papers_accuracies_are_shown_as_errors():
    results = {name: errors for name, (_, errors) in command.paper.RESULTS.items()}
    fitnets = [results[f"cifar10-fitnet{i}"]["fitnet"] for i in (1, 2, 3, 4)]
    assert fitnets == [10.99, 8.94, 8.9, 8.39] and results["cifar10-fitnet4"]["teacher"] == 9.82
    assert results["cifar100-fitnet4"] == {"teacher": 36.46, "fitnet": 35.04}
    assert results["cifar10-107m-7"]["fitnet"] == 9.9 and "fitnet" not in results["cifar10-30m-5"]
    assert results["mnist"] == command.paper.TABLE_4


def test_the_paper_preset_trains_again_on_all_images_and_says_so(small_cifar_100, tmp_path, capsys):
    arguments = ["--data-dir", str(small_cifar_100), "--runs", str(tmp_path / "runs"), "--stage", "backprop"]
    assert command.main(["cifar100-fitnet1", *arguments, *small("--retrain")]) == 0
    out = capsys.readouterr().out
    assert "Again, on all images" in out and "12 images to train on, 0 to validate, 7 to test" in out
    assert (tmp_path / "runs" / "cifar100-fitnet1" / "seed0" / "all" / "backprop.h5").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--guided", "3", "6"], "--guided 3 6 and --hint 2: wanted pairs"),
        (["--guided", "11"], "--guided 11: wanted one of the layers 1..10"),
        (["--guided", "3", "0", "--hint", "1", "2"], "--guided 0"),
        (["--crops", "32"], "--crops 32: wanted 0 to 31 pixels"),
        (["--crops", "-1"], "--crops -1"),
        (["--teacher-width", "0"], "--teacher-width 0.0: wanted a number above 0"),
        (["--student.conv-lr", "-1"], "--student.conv-lr -1.0"),
        (["--guided-lr", "-1"], "--guided-lr -1.0"),
        (["--validation", "0", "--retrain"], "--retrain: wanted validation images"),
        (["--preprocessing", "zca"], "whitened"),
        (["--train", "99"], "12 training and 7 test images; --train 99, --validation 4 and --test all want more"),
        (["--teacher-from", "nowhere"], "--teacher-from nowhere: there is no teacher.h5"),
        (["--regressor", "none"], "conv or fc would fit"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_meant_is_one_line(arguments, said, small_cifar_100, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ["--data-dir", str(small_cifar_100), *small(*arguments)]
    assert command.main(["cifar100-fitnet1", *given]) == 2
    said_of_it = capsys.readouterr().err
    assert said_of_it.count("\n") == 1 and said_of_it.startswith("run.py: ") and said in said_of_it
