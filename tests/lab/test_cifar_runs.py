"""Runs on colour images: whitened and augmented, with several hints, without validation, with another run's teacher."""

import json
import shutil
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import strict
from small import SCHEDULE, best, contents, double_best, interrupt_at, perform, refusal
from test_cifar import published, small_set, write
from threadpoolctl import threadpool_info, threadpool_limits

import run as command
from minifit import UserError, data, experiments, networks, regressors
from minifit.backend import to_host
from minifit.composites import Branches, Sequential, weights
from minifit.data import augment, preprocessing, progress
from minifit.data.stored import Rows, Scratch
from minifit.experiments import CIFAR10, EXPERIMENTS, Experiment
from minifit.lab import files, parallel, plan, report, runner, sets, training
from minifit.lab.runner import on_all, set_up, stage_of
from minifit.networks import Conv, FullyConnected, Network, Output
from minifit.optimizers import Ramp
from reference import paper

WIDE = Conv(8, 3, pool=(2, 2), max_norm=0.9), Conv(10, 2), FullyConnected(4), Output(10)
TEACHER = Network("wide", (8, 8, 3), WIDE)
DEEP = Conv(3, 3, pool=(2, 2)), Conv(3, 3, pad=1), Conv(4, 2), FullyConnected(6), Output(10)
STUDENT = Network("deep", (8, 8, 3), DEEP)
SMALL = Experiment("noise", TEACHER, STUDENT, {})
CONFIG = replace(
    CIFAR10,
    train=48,
    validation=16,
    teacher=replace(SCHEDULE, optimizer="sgd", momentum=Ramp(0.5)),
    stage1=SCHEDULE,
    student=SCHEDULE,
    crops=2,
    guided_layer=(1, 3),
    hint_layer=(1, 2),
    lam=Ramp(4.0, 1.0, 4),
    dropout_keep=0.5,
    microbatch=4,
)
AS_STORED = replace(CONFIG, flips=False, crops=0, preprocessing="unit")  # the teacher's outputs can then be kept
MIRRORED = replace(CONFIG, crops=0)  # and then those for mirror images too
STAGES = ["teacher", "backprop", "kd", "hint", "hint_2", "fitnet"]


def noise(seed=0, train=64):
    """So many images, and 9 to test: the published test file has 10,000, and the one at hand may have fewer."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, train + 9)
    images = (255 * rng.random((train + 9, 8, 8, 3)) * (0.1 + 0.1 * labels[:, None, None, None])).astype(np.uint8)
    return data.Dataset("noise", images[:train], labels[:train], images[train:], labels[train:])


def new_run(folder, config=CONFIG, seed=0, dataset=None, workers=1, xp=np, experiment=SMALL, **more):
    return set_up(folder, "noise", "default", experiment, config, seed, dataset or noise(), xp, workers, False, **more)


def records_of(run, goal="all", tell=None):
    return {stage: record for stage, (record, _) in perform(run, goal, tell).items()}


def start_of(run, stage):
    """The parameters of a stage before it is trained."""
    return stage_of(run, stage, start=True).network.params


def images_of(run, part):
    """All images of a set, as networks see them."""
    return run.sets[part].batch(slice(None))[0]


def prints(images):
    """What tells images apart: a product of a few rows may round otherwise than one of many."""
    return {(np.round(image, 3) + 0.0).tobytes() for image in images}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A directory in which all stages are done; for reading only."""
    folder = tmp_path_factory.mktemp("finished")
    perform(new_run(folder))
    return folder


def test_every_pair_of_layers_has_a_stage_of_its_own_before_the_fitnet(finished):
    run = new_run(finished)
    assert run.plan.ahead("all") == STAGES and run.plan.ahead("fitnet") == ["teacher", "hint", "hint_2", "fitnet"]
    assert run.plan.ahead("hint") == ["teacher", "hint", "hint_2"] == run.plan.ahead("hint_2")
    assert list(json.loads((finished / "summary.json").read_text())["stages"]) == STAGES


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_is_cut_within_an_augmented_epoch_goes_on_to_the_same_bytes(
    stage, finished, tmp_path, monkeypatch
):
    gradient, calls = training.DataParallel.gradient, []

    def cut(self, *arguments):
        calls.append(self.stage.key)
        if calls.count(stage) == 5:  # of three an epoch
            raise KeyboardInterrupt
        return gradient(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training.DataParallel, "gradient", cut)
        perform(new_run(tmp_path), stage)
    assert files.load(tmp_path / f"{stage}.h5")[0]["epoch"] == 1
    perform(new_run(tmp_path), stage)
    assert contents(tmp_path).items() <= contents(finished).items()


def test_any_number_of_workers_sees_the_same_augmented_images(finished, tmp_path):
    perform(new_run(tmp_path, workers=3))
    assert contents(tmp_path) == contents(finished)


def seen(monkeypatch, run, key):
    """(epoch, images, targets) of every microbatch of a stage."""
    microbatches, gradient = [], training.gradient

    def listening(stage, x, target, labels, epoch, *more):
        if stage.key == key:
            microbatches.append((epoch, x, target))
        return gradient(stage, x, target, labels, epoch, *more)

    monkeypatch.setattr(training, "gradient", listening)
    perform(run, key)
    return microbatches


@pytest.mark.parametrize("stage", ["kd", "hint", "hint_2", "fitnet"])
def test_the_teacher_speaks_of_the_very_images_that_the_student_sees(stage, tmp_path, monkeypatch):
    run = new_run(tmp_path)
    microbatches = seen(monkeypatch, run, stage)
    target = stage_of(run, stage).target
    assert len(microbatches) == 2 * 12
    for _, x, said in microbatches:
        np.testing.assert_allclose(said, target(x), rtol=1e-5, atol=1e-5)
    shown = prints(image for _, x, _ in microbatches for image in x)
    assert len(shown - prints(images_of(run, "train"))) > 48  # most of two epochs' images are augmented
    by_epoch = [prints(image for e, x, _ in microbatches if e == epoch for image in x) for epoch in (1, 2)]
    assert len(by_epoch[0] & by_epoch[1]) < 12  # and anew in each


def test_the_images_that_choose_the_epoch_and_those_that_test_are_not_augmented(tmp_path, monkeypatch):
    measured, measure = [], training.measure

    def listening(stage, x, *more):
        measured.append(x)
        return measure(stage, x, *more)

    monkeypatch.setattr(training, "measure", listening)
    run = new_run(tmp_path)
    perform(run, "backprop")
    for x, part in zip(measured, ("validation", "validation", "test"), strict=True):
        np.testing.assert_array_equal(x, images_of(run, part))


def test_without_augmentation_the_teacher_speaks_once(tmp_path, monkeypatch):
    run = new_run(tmp_path, AS_STORED)
    asked, outputs = [], sets.outputs

    def listening(network, examples, *more):
        asked.append((len(network), len(examples)))
        return outputs(network, examples, *more)

    monkeypatch.setattr(sets, "outputs", listening)
    microbatches = seen(monkeypatch, run, "fitnet")
    assert prints(image for _, x, _ in microbatches for image in x) == prints(images_of(run, "train"))
    parts = [1, 1, 2]  # blocks: up to the first hint, from there to the second, and the rest
    assert [layers for layers, n in asked if n == 48] == parts == [layers for layers, n in asked if n == 16]
    target = stage_of(run, "fitnet").target
    for _, x, said in microbatches:
        np.testing.assert_allclose(said, target(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("xp", [np, strict], ids=["host", "device"])
def test_of_mirrored_images_the_teacher_speaks_twice_and_of_none_again(xp, tmp_path, monkeypatch):
    run, asked, outputs = new_run(tmp_path, MIRRORED, xp=xp), [], sets.outputs

    def listening(network, examples, *more):
        asked.append((len(network), len(examples), more[-1]))
        return outputs(network, examples, *more)

    monkeypatch.setattr(sets, "outputs", listening)
    monkeypatch.setattr(sets, "HOST_CHUNK", 20)  # by which 48 images cannot be divided
    monkeypatch.setattr(sets, "CHUNK", 20)
    microbatches = seen(monkeypatch, run, "fitnet")
    assert [entry for entry in asked if entry[1] >= 48] == [(1, 48, 2), (1, 96, 1), (2, 96, 1)]  # from map to map
    x, said = (np.concatenate([to_host(batch[i]) for batch in microbatches]) for i in (1, 2))
    target = stage_of(run, "fitnet").target
    np.testing.assert_allclose(said, to_host(target(xp.asarray(x))), rtol=1e-4, atol=1e-4)
    originals = to_host(images_of(run, "train"))
    sides = prints(originals), prints(originals[:, :, ::-1])
    assert prints(x) <= sides[0] | sides[1]
    assert all(len(prints(x) & side) > 24 for side in sides)


def test_mirrored_images_teach_the_same_whether_the_teachers_outputs_are_kept_or_not(tmp_path, monkeypatch):
    kept = new_run(tmp_path / "kept", MIRRORED)
    perform(kept, "kd")
    anew = new_run(tmp_path / "anew", replace(MIRRORED, targets_memory=0))
    perform(anew, "kd")
    assert "train" in {part for part, _ in kept.sets.answers} and anew.sets.answers == {}
    for name, a in best(tmp_path / "kept", "kd").items():
        np.testing.assert_allclose(best(tmp_path / "anew", "kd")[name], a, rtol=0, atol=1e-3 * abs(a).max())


def about(run):
    """What the plan says of the teacher's outputs."""
    return plan.about_the_teacher(run, [stage for _, stage in run.plan.stages.values()])


def test_the_plan_says_what_becomes_of_the_teachers_outputs(tmp_path):
    assert about(new_run(tmp_path, AS_STORED)) == "The teacher's outputs are computed once and kept: 0 MiB."
    line = about(new_run(tmp_path, MIRRORED))
    assert line == "The teacher's outputs for each image and its mirror image are computed once and kept: 0 MiB."
    line = about(new_run(tmp_path))
    assert "anew in every epoch for training images, which are cropped" in line
    line = about(new_run(tmp_path, replace(AS_STORED, targets_memory=0)))
    assert "anew in every epoch for training images, in kd, hint, hint_2, fitnet (--targets-memory)" in line
    run = new_run(tmp_path, replace(AS_STORED, targets_memory=1))
    run.sets.sizes["train"] = 8000  # the first hint's maps take 1.1 MiB, and the rest less
    assert "anew in every epoch for training images, in hint (--targets-memory)" in about(run)
    assert about(run).endswith("kept: 1 MiB.")


def test_the_memory_of_the_teachers_outputs_is_that_of_its_parts(tmp_path):
    run, images = new_run(tmp_path, AS_STORED), 1000 * 2**20 // 4
    teacher = run.task.network("teacher")
    run.sets.sizes["train"] = images
    assert run.sets.needs("train", teacher) == images * 4 * 10
    assert run.sets.needs("train", teacher[:1]) == images * 4 * (3 * 3 * 4)
    joint = Branches(teacher, {2: Sequential([])})
    assert run.sets.needs("train", joint) == images * 4 * (10 + 2 * 2 * 5) == 30_000 * 2**20
    run.sets.config = replace(AS_STORED, targets_memory=30_000)
    assert run.sets.keeps("train", joint) and not run.sets.keeps("train", teacher[:1])
    run.sets.config = replace(AS_STORED, targets_memory=29_999)
    assert not run.sets.keeps("train", joint) and run.sets.keeps("validation", joint)
    run.sets.config = replace(AS_STORED, targets_memory=30_000, crops=2)
    assert not run.sets.keeps("train", joint) and run.sets.keeps("validation", joint)
    validation = run.sets.needs("validation", joint)
    run.sets.config = replace(AS_STORED, flips=True, targets_memory=60_000)
    assert run.sets.needs("train", joint) == 60_000 * 2**20 and run.sets.needs("validation", joint) == validation
    assert run.sets.keeps("train", joint)
    run.sets.config = replace(run.sets.config, targets_memory=59_999)
    assert not run.sets.keeps("train", joint)


def test_outputs_beyond_their_memory_are_computed_on_the_batch_for_any_number_of_workers(tmp_path, monkeypatch):
    stages = "teacher", "hint", "hint_2", "fitnet"
    perform(new_run(tmp_path / "kept", AS_STORED), "fitnet")
    monkeypatch.setattr(sets, "outputs", None)
    config = replace(AS_STORED, targets_memory=0)
    for workers in (1, 2):
        run = new_run(tmp_path / str(workers), config, workers=workers)
        perform(run, "fitnet")
        assert run.sets.answers == {}
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    for stage in stages:
        for name, a in best(tmp_path / "kept", stage).items():
            np.testing.assert_allclose(best(tmp_path / "1", stage)[name], a, rtol=0, atol=1e-3 * abs(a).max())
    assert "targets_memory 0, now 1024" in refusal(perform, new_run(tmp_path / "1", AS_STORED))


@pytest.mark.parametrize("config", [CONFIG, AS_STORED], ids=["whitened", "as stored"])
def test_no_stage_holds_a_second_copy_of_the_images_in_floats(config, tmp_path, monkeypatch):
    monkeypatch.setattr(preprocessing, "SLICE", 100)
    dataset, few = noise(train=4000), replace(SCHEDULE, epochs=1, batch=200)
    config = replace(config, train=3000, validation=1000, microbatch=50)
    run = new_run(tmp_path, replace(config, teacher=few, student=few), dataset=dataset)
    tracemalloc.start()
    try:
        perform(run, "kd")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * dataset.images.nbytes  # a copy in float32 takes four times as much


@pytest.mark.parametrize("in_a_file", [False, True])
def test_an_image_is_whitened_once_with_its_slice_when_it_is_needed_and_kept_if_it_fits(
    in_a_file, tmp_path, monkeypatch
):
    dataset = noise()
    if in_a_file:
        (tmp_path / "images").write_bytes(dataset.images.tobytes())
        dataset = replace(dataset, images=Rows(tmp_path / "images", 0, dataset.images.shape))
    whitened, apply = [], preprocessing.ZCA.apply

    def counting(self, x):
        blas = {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}
        whitened.append((len(x), blas))
        return apply(self, x)

    monkeypatch.setattr(preprocessing.ZCA, "apply", counting)
    monkeypatch.setattr(sets, "HOST_CHUNK", 20)
    run = new_run(tmp_path, dataset=dataset)
    for part, size in run.sets.sizes.items():
        first, last = (size - 1) // 20 * 20, size - 1
        whitened.clear()
        for _ in range(2):
            examples = run.sets.taught(part, None, 1)
            with threadpool_limits(2, user_api="blas"):
                examples.batch(np.array([last, first]))
        assert whitened == [(size - first, {1})]  # its slice and no other, once; more threads round otherwise
        inside = slice(max(0, first - 1), size)
        for index in (slice(None), inside, slice(0, 0), np.array([3, 1]), 2):
            wanted = run.sets.prepare(examples.images[np.arange(size)[index]].reshape(-1, *dataset.images.shape[1:]))
            given = examples.prepared[index].reshape(wanted.shape)
            np.testing.assert_allclose(given, wanted, rtol=1e-5, atol=1e-4)
        assert isinstance(examples.prepared, Scratch)  # memory holds none of them
        examples.prepared[:] = np.full_like(examples.prepared, 7.0)
        assert (examples.batch(np.array([3, 1]))[0] == 7.0).all()
    assert "Whitened images are kept in a temporary file: 0 MiB." in plan.lines(run, "teacher")
    run = new_run(tmp_path / "none", replace(CONFIG, targets_memory=0), dataset=dataset)
    assert run.sets.taught("train", None, 1).prepared is None
    on_a_device = new_run(tmp_path / "device", dataset=dataset, xp=strict)
    assert on_a_device.sets.taught("train", None, 1).prepared is None
    assert not [line for line in plan.lines(on_a_device, "teacher") if "temporary file" in line]


def test_what_a_worker_has_whitened_is_there_for_all(tmp_path):
    asked, images = [], noise().images

    def prepare(stored):
        asked.append(len(stored))
        return stored + np.float32(0.5)

    prepared = sets.Prepared(tmp_path / "cache", images, prepare)
    with parallel.team(2, {"read": lambda part: prepared[part].sum()}) as team:
        team.run("read", [slice(0, 0), slice(None)])  # the second job is the other process's
    assert prepared.known[0] and not asked
    np.testing.assert_array_equal(prepared[:64], images[:64] + np.float32(0.5))
    assert sum(asked) == len(images[64:])


def test_the_plan_counts_the_teachers_forward_pass_where_it_is_made_in_every_epoch(tmp_path, monkeypatch):
    timed, seconds = [], plan.seconds

    def timing(run, stage):
        timed.append((stage.key, stage.target and len(stage.target)))
        return 1.0

    def rows_of(config):
        timed.clear()
        run = new_run(tmp_path, config)
        return plan.outline(run, {key: stage for key, (_, stage) in run.plan.stages.items()})

    monkeypatch.setattr(plan, "seconds", timing)
    rows = rows_of(CONFIG)
    every_epoch = {"teacher": None, "backprop": None, "kd": 4, "hint": 1, "hint_2": 2}  # a fitnet's epoch is kd's
    assert dict(timed) == every_epoch
    assert [row["estimate"] for row in rows] == [2.0] * 6
    assert [row["trains"] for row in rows][2:5] == ["deep", *(f"deep, layers 1-{g}, and regressor" for g in (1, 3))]
    rows_of(replace(AS_STORED, targets_memory=0))
    assert dict(timed) == every_epoch
    rows_of(AS_STORED)  # where an epoch of kd is one of back-propagation
    assert dict(timed) == {"teacher": None, "backprop": None, "hint": None, "hint_2": None}
    monkeypatch.setattr(plan, "seconds", seconds)
    assert all(row["estimate"] > 0 for row in rows_of(CONFIG))


def test_whitening_is_fitted_on_the_training_images_of_the_split_and_on_nothing_else(tmp_path):
    dataset = noise()
    run, fitted = new_run(tmp_path, dataset=dataset), preprocessing.fit(dataset.images[:48])
    stored = {"train": dataset.images[:48], "validation": dataset.images[48:], "test": dataset.test_images}
    for part, images in stored.items():
        np.testing.assert_allclose(images_of(run, part), fitted(images), rtol=0, atol=1e-4)
    inverted = replace(dataset, images=np.concatenate([dataset.images[:48], 255 - dataset.images[48:]]))
    other = new_run(tmp_path / "b", dataset=inverted)
    np.testing.assert_array_equal(images_of(other, "train"), images_of(run, "train"))
    smaller = images_of(new_run(tmp_path / "c", replace(CONFIG, train=40)), "train")
    assert abs(smaller - images_of(run, "train")[:40]).max() > 1e-3


def test_runs_on_the_same_training_images_share_what_whitening_found(tmp_path, monkeypatch):
    first = images_of(new_run(tmp_path / "a", cache=tmp_path / "cache"), "test")
    assert len(list((tmp_path / "cache").glob("whitening-*.h5"))) == 1
    monkeypatch.setattr(sets, "fit", None)
    shared = new_run(tmp_path / "b", seed=1, cache=tmp_path / "cache")
    np.testing.assert_array_equal(images_of(shared, "test"), first)
    with pytest.raises(TypeError):  # other images, which are fitted anew
        images_of(new_run(tmp_path / "c", dataset=noise(1), cache=tmp_path / "cache"), "test")


def test_a_hint_stage_starts_where_the_one_before_it_ended(finished):
    run = new_run(finished)
    start, common = start_of(run, "hint_2"), start_of(run, "backprop")
    first = best(finished, "hint")
    for name, p in start.items():
        if name[0] in "012":  # its three guided layers, of which the first has been guided before
            assert np.array_equal(p, first[name] if name[0] == "0" else common[name]), name
    assert not np.array_equal(first["0.0.w"], common["0.0.w"])


@pytest.mark.parametrize(("guided", "hint"), [((1, 3), (1, 2)), ((3, 1), (2, 1))])
def test_the_fitnet_starts_from_what_all_hints_together_left(guided, hint, tmp_path):
    run = new_run(tmp_path, replace(CONFIG, guided_layer=guided, hint_layer=hint))
    perform(run, "hint")
    start, common = start_of(run, "fitnet"), start_of(run, "backprop")
    left = best(tmp_path, "hint") | best(tmp_path, "hint_2") if guided == (1, 3) else best(tmp_path, "hint")
    if guided == (3, 1):
        left = left | {name: a for name, a in best(tmp_path, "hint_2").items() if name[0] == "0"}
    for name, p in start.items():
        assert np.array_equal(p, left[name] if name[0] in "012" else common[name]), name


def test_a_second_pair_changes_nothing_of_the_first(finished, tmp_path):
    perform(new_run(tmp_path, replace(CONFIG, guided_layer=(1,), hint_layer=(1,))), "hint")
    for group, arrays in files.load(finished / "hint.h5")[1].items():
        for name, a in files.load(tmp_path / "hint.h5")[1][group].items():
            np.testing.assert_array_equal(a, arrays[name])


def moved(run, stage):
    start = {name: p.copy() for name, p in start_of(run, stage).items()}
    perform(run, stage)
    return {name for name, p in best(run.directory.folder, stage).items() if not np.array_equal(p, start[name])}


def test_the_guided_layers_learn_at_a_rate_of_their_own_in_stage_2(tmp_path):
    run = new_run(tmp_path, replace(CONFIG, guided_lr_scale=0.0))
    perform(run, "hint")
    assert {name[0] for name in moved(run, "fitnet")} == {"3", "4"}
    assert {name[0] for name in moved(run, "kd")} == set("01234")
    run = new_run(tmp_path, replace(CONFIG, guided_lr_scale=0.25, student_conv_lr_scale=0.5))
    networks = {stage: run.plan.stages[stage][1].network for stage in ("fitnet", "kd")}
    of_blocks = {stage: {w.name[0]: w.lr_scale for w in weights(network)} for stage, network in networks.items()}
    assert of_blocks["fitnet"] == {"0": 0.125, "1": 0.125, "2": 0.125, "3": 1, "4": 1}
    assert of_blocks["kd"] == {"0": 0.5, "1": 0.5, "2": 0.5, "3": 1, "4": 1}


def test_convolutions_learn_at_a_rate_of_their_own_and_a_regressor_at_the_full_one(tmp_path):
    run = new_run(tmp_path, replace(CONFIG, teacher_conv_lr_scale=0.0, student_conv_lr_scale=0.0))
    biases = {name[0] for name in moved(run, "teacher") if name.endswith("b")}  # filters move under max-norm alone
    assert biases == {"2", "3"}
    assert {name[0] for name in moved(run, "backprop")} == {"3", "4"}
    assert moved(run, "hint") == {"1.w", "1.b"}


def test_without_validation_images_the_last_epoch_is_kept(tmp_path):
    run = new_run(tmp_path, replace(CONFIG, validation=0, student=replace(SCHEDULE, epochs=4, patience=1)))
    records = records_of(run)
    assert (records["kd"]["epochs"], records["kd"]["best_epoch"]) == (4, 4)
    assert files.load(tmp_path / "kd.h5")[0]["best_epoch"] == 4

    def stop(record):
        if (record["stage"], record["epoch"]) == ("kd", 4):
            raise KeyboardInterrupt

    longer = replace(run.task.settings, student=replace(run.task.settings.student, epochs=5))
    with pytest.raises(KeyboardInterrupt):
        perform(new_run(tmp_path / "longer", longer), "kd", stop)
    weights = files.load(tmp_path / "longer" / "kd.h5")[1]["weights"]
    for name, a in best(tmp_path, "kd").items():
        np.testing.assert_array_equal(a, weights[name])
    for told in [*run.directory.metrics(), *records.values()]:
        assert not {"validation_loss", "validation_error"} & told.keys()
    runner.draw(run)
    assert (tmp_path / "curves.png").exists()
    assert "no images were left to choose the epoch" in report.results_table(runner.summary(run))
    assert "among the training images" in report.stage_line("kd", records["kd"], 9)
    assert report.epoch_line(run.directory.metrics()[0]).startswith("teacher epoch 1: loss ")


def test_retraining_takes_all_images_and_the_epochs_that_were_found(tmp_path, finished):
    run = new_run(tmp_path, replace(CONFIG, student=replace(SCHEDULE, epochs=3, patience=3)))
    found = {name: record["best_epoch"] for name, record in records_of(run).items()}
    again = on_all(run)
    records = records_of(again)
    assert again.directory.folder == tmp_path / "all" and again.sets.sizes == {"train": 64, "validation": 0, "test": 9}
    assert {name: record["epochs"] for name, record in records.items()} == found
    settings = json.loads((tmp_path / "all" / "config.json").read_text())["settings"]
    assert (settings["train"], settings["validation"]) == (64, 0)
    for name in STAGES:  # a file is of the epochs that went into it
        epochs = files.load(tmp_path / "all" / f"{name}.h5")[0]["identity"]["settings"]["epochs"]
        assert epochs == {stage: found[stage] for stage in again.plan.before(name)}
    summary = json.loads((tmp_path / "all" / "summary.json").read_text())
    assert (summary["train_images"], summary["validation_images"]) == (64, 0)
    with pytest.raises(UserError, match="epochs"):
        more = {name: epochs + 1 for name, epochs in found.items()}
        perform(replace(again, plan=plan.Plan(again.task, again.plan.methods, more)))


ONE_HINT = replace(AS_STORED, guided_layer=(1,), hint_layer=(1,))


def test_retraining_stage_by_stage_is_retraining_all_at_once(tmp_path):
    whole, parts = new_run(tmp_path / "whole", ONE_HINT), new_run(tmp_path / "parts", ONE_HINT)
    perform(whole)
    perform(on_all(whole))
    for goal in ("kd", "all"):
        perform(parts, goal)
        perform(on_all(parts), goal)
    assert contents(tmp_path / "parts" / "all") == contents(tmp_path / "whole" / "all")


def weights_of(folder, stages):
    """{(stage, name): bytes} of the best weights."""
    return {(stage, name): a.tobytes() for stage in stages for name, a in best(folder, stage).items()}


def test_an_arm_learns_from_the_teacher_of_its_base_as_if_it_had_trained_it(finished, tmp_path):
    base = new_run(tmp_path / "base")
    arm, same = new_run(tmp_path / "arm", replace(CONFIG, tau=2.0), base=base), new_run(tmp_path / "same", base=base)
    assert arm.plan.ahead("all") == STAGES[1:] == [*arm.plan.stages]
    assert [stage for stage, (_, fresh) in perform(arm).items() if fresh] == STAGES[1:]
    teacher = contents(tmp_path / "base")
    assert [name for name in teacher if not name.startswith("whitening")] == ["teacher.h5"]  # trained first, and there
    perform(same)
    assert (
        contents(tmp_path / "base") == teacher
        and contents(tmp_path / "same").keys() == contents(tmp_path / "arm").keys()
    )
    assert weights_of(tmp_path / "same", STAGES[1:]) == weights_of(finished, STAGES[1:])
    assert weights_of(tmp_path / "arm", ["backprop"]) == weights_of(finished, ["backprop"])
    assert weights_of(tmp_path / "arm", ["kd"]) != weights_of(finished, ["kd"])


def test_an_arm_that_is_cut_goes_on_to_the_same_bytes_and_refuses_another_teacher(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "base")

    def arm(name):
        return new_run(tmp_path / name, replace(CONFIG, tau=2.0), base=new_run(tmp_path / "base"))

    perform(arm("whole"), "kd")
    with pytest.raises(KeyboardInterrupt):
        perform(arm("cut"), "kd", interrupt_at("kd", 1))
    perform(arm("cut"), "kd")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    double_best(tmp_path / "base" / "teacher.h5")
    assert "kd.h5: made from another teacher" in refusal(perform, arm("cut"), "kd")


def test_an_arm_learns_from_the_teacher_after_its_last_phase(tmp_path):
    config = replace(CONFIG, teacher_all=2)
    base = new_run(tmp_path / "base", config)
    made = records_of(base, "kd")
    assert list(made) == ["teacher", "teacher_all", "kd"] and "validation_error" not in made["teacher_all"]
    perform(new_run(tmp_path / "same", config, base=base), "kd")
    assert weights_of(tmp_path / "same", ["kd"]) == weights_of(tmp_path / "base", ["kd"])


def test_an_arm_that_is_trained_again_on_all_images_learns_from_the_teacher_that_was(tmp_path):
    base = new_run(tmp_path / "base", ONE_HINT)
    arm = new_run(tmp_path / "same", ONE_HINT, base=base)
    perform(base, "kd")
    perform(arm, "kd")
    perform(on_all(arm), "kd")
    assert [*contents(tmp_path / "base" / "all")] == ["teacher.h5"]
    perform(on_all(base), "kd")
    assert weights_of(tmp_path / "same" / "all", ["kd"]) == weights_of(tmp_path / "base" / "all", ["kd"])
    epochs = [
        files.load_record(tmp_path / name / "all" / "kd.h5")["identity"]["settings"]["epochs"]
        for name in ("same", "base")
    ]
    assert epochs[0] == epochs[1] and epochs[0].keys() == {"teacher", "kd"}


def test_what_an_arm_needs_of_its_base_is_said_before_anything_is_written(tmp_path):
    def arm():
        return new_run(tmp_path / "arm", replace(AS_STORED, tau=2.0), base=new_run(tmp_path / "base", AS_STORED))

    runner.train(arm(), "backprop", lambda line: None)  # which learns from no teacher
    assert not (tmp_path / "base").exists() and [*contents(tmp_path / "arm")] == ["backprop.h5"]
    shutil.rmtree(tmp_path / "arm")
    perform(new_run(tmp_path / "base", AS_STORED))
    other = new_run(tmp_path / "arm", AS_STORED, base=new_run(tmp_path / "base", replace(AS_STORED, tau=7.0)))
    assert "tau 3.0, now 7.0" in refusal(runner.train, other, "kd", print) and not (tmp_path / "arm").exists()
    teacher = (tmp_path / "base" / "teacher.h5").read_bytes()
    (tmp_path / "base" / "teacher.h5").write_bytes(teacher[:-9])
    assert "teacher.h5: not a whole minifit file" in refusal(runner.train, arm(), "kd", print)
    for path in (tmp_path / "base").glob("*.h5"):
        path.unlink()
    assert "without its weights, and so no teacher" in refusal(runner.train, arm(), "kd", print)
    assert not (tmp_path / "arm").exists()


def test_the_bar_of_the_kept_outputs_comes_to_its_end(tmp_path, monkeypatch):
    shown = []

    class Bar(progress.Bar):
        def close(self):
            shown.append((self.n, self.total))
            super().close()

    monkeypatch.setattr(sets, "Bar", Bar)
    run = new_run(tmp_path, MIRRORED)
    run.sets.taught("train", run.task.network("teacher"), 1, progress=True)
    assert shown and all(n == total for n, total in shown) and {total for _, total in shown} == {96}


@pytest.mark.parametrize("stage", ["teacher_all", "kd"])
def test_a_run_that_is_cut_after_the_teachers_first_phase_goes_on_to_the_same_bytes(stage, tmp_path):
    config = replace(CONFIG, teacher_all=2)
    perform(new_run(tmp_path / "whole", config), "kd")
    with pytest.raises(KeyboardInterrupt):
        perform(new_run(tmp_path / "cut", config), "kd", interrupt_at(stage, 1))
    perform(new_run(tmp_path / "cut", config, workers=2), "kd")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_narrower_teacher_is_another_network_and_is_called_so_everywhere(finished, tmp_path, monkeypatch):
    half = networks.widened(networks.CIFAR10_TEACHER, 0.5)
    assert half.name == "CIFAR-10 teacher, 0.5 times as wide"
    assert [block.channels for block in half.blocks[:3]] == [48, 96, 96] and half.blocks[3].units == 250
    assert half.blocks[4] == networks.CIFAR10_TEACHER.blocks[4]
    assert networks.widened(networks.CIFAR10_TEACHER, 1.0) is networks.CIFAR10_TEACHER
    run, name = new_run(finished), "wide, 0.5 times as wide"
    titles = []

    def curves(metrics, path, title, stages):
        assert name in title
        titles.append(title)

    monkeypatch.setattr("minifit.lab.plots.plot_curves", curves)
    monkeypatch.setattr("minifit.lab.plots.plot_filters", lambda weights, path, title: titles.extend(weights))
    runner.draw(run)
    assert titles.pop(0).startswith("noise, seed 0") and titles == [
        f"teacher ({name})",
        *(f"{s} (deep)" for s in STAGES[1:]),
    ]
    assert name in report.results_table(runner.summary(run))
    assert json.loads((finished / "summary.json").read_text())["teacher"] == name
    assert plan.outline(run, {"teacher": run.plan.stages["teacher"][1]})[0]["trains"] == name


def test_a_regressor_that_no_memory_holds_is_refused_before_it_is_allocated():
    line = refusal(regressors.regressor, "fc", (80, 80, 800), (70, 70, 1920), 2)
    assert f"{80 * 80 * 800 * 2 * 70 * 70 * 1920:,} weights" in line and "conv would fit" in line


def test_flips_and_crops_are_the_same_on_the_device():
    x = np.random.default_rng(0).standard_normal((9, 5, 6, 3)).astype(np.float32)
    for pad in (0, 3):
        choices = augment.draw(np.random.default_rng(1), 9, pad=pad)
        found = augment.apply(strict.asarray(x), choices)
        np.testing.assert_array_equal(found.get(), augment.apply(x, choices))


def test_every_stage_runs_on_the_device_with_augmentation(finished, tmp_path):
    config = replace(CONFIG, dropout_keep=1.0, student=replace(CONFIG.student, average=0.9))
    perform(new_run(tmp_path, config, xp=strict), "all")
    perform(new_run(tmp_path / "host", config), "all")
    for name in STAGES:
        found, expected = best(tmp_path, name), best(tmp_path / "host", name)
        for key, a in expected.items():
            np.testing.assert_allclose(found[key], a, rtol=0, atol=2e-3 * abs(a).max(), err_msg=f"{name} {key}")


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name.startswith("cifar")])
def test_every_experiment_is_within_its_networks_and_its_hint_fits(name):
    experiment = EXPERIMENTS[name]
    for config in experiment.presets.values():
        experiments.check(experiment, config)
        teacher, student = (networks.build(net) for net in (experiment.teacher, experiment.student))
        x = np.zeros((0, 32, 32, 3), np.float32)
        assert student(x).shape == teacher(x).shape
        assert teacher[: config.hint_layer[0]](x).shape[1:] == (7, 7, 192)
        assert student[: config.guided_layer[0]](x).shape[1:3] == (8, 8)
        layers = int(name.rpartition("-")[2]) if "m-" in name else None
        assert layers is None or (len(student) == layers and config.guided_layer == (paper.DEPTH_GUIDED[layers],))
    assert name in paper.RESULTS


def small(*more):
    words = [
        "--train",
        "8",
        "--validation",
        "4",
        "--teacher-width-scale",
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
    monkeypatch.setattr(runner, "draw", lambda _: None)
    return write(tmp_path / "data", published("cifar100", small_set("cifar100", train=12, test=7)))


def test_cifar_100_is_trained_from_files_in_the_published_format(small_cifar_100, tmp_path, capsys):
    arguments = ["--data-dir", str(small_cifar_100), "--runs", str(tmp_path / "runs")]
    assert (
        command.main(["cifar100-fitnet1", *arguments, *small("--guided-layer", "3", "6", "--hint-layer", "1", "2")])
        == 0
    )
    out = capsys.readouterr().out
    assert out.startswith("a set in CIFAR-100's format (") and "8 images to train on, 4 to validate, 7 to test" in out
    for stage in STAGES:
        line = next(line for line in out.splitlines() if line.startswith(f"{stage}: test"))
        assert "of 7)" in line or "(7 images)" in line
    table = out[out.index("method") :]
    assert ", 7 test images" in table and "FitNet 1, 100 classes" in table and "paper" not in table
    weights = best(tmp_path / "runs" / "cifar100-fitnet1" / "seed0", "fitnet")
    assert weights["10.0.w"].shape == (500, 100)


def test_cifar_10_itself_stands_beside_the_papers_figures_on_however_many_test_images(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runner, "draw", lambda _: None)
    (images, labels), (test_images, test_labels) = small_set("cifar100", train=12, test=7).values()
    named = data.Dataset("CIFAR-10 with 7 test images", images, labels % 10, test_images, test_labels % 10)
    monkeypatch.setattr(data, "load", lambda *_, **__: named)
    assert command.main(["cifar10-fitnet1", "--runs", str(tmp_path), *small()]) == 0
    table = capsys.readouterr().out.partition("method")[2]
    rows = {line.split("  ")[0]: line.split() for line in table.splitlines()}
    assert "9.82" in rows["teacher"] and "10.99" in rows["FitNet"]
    assert "CIFAR-10 with 7 test images, 7 test images" in table and "0.05 times as wide" in table
    assert "come from its own teacher" in table


def test_the_papers_accuracies_are_shown_as_errors():
    results = {name: errors for name, (_, errors) in paper.RESULTS.items()}
    fitnets = [results[f"cifar10-fitnet{i}"]["fitnet"] for i in (1, 2, 3, 4)]
    assert fitnets == [10.99, 8.94, 8.9, 8.39] and results["cifar10-fitnet4"]["teacher"] == 9.82
    assert results["cifar100-fitnet4"] == {"teacher": 36.46, "fitnet": 35.04}
    assert results["cifar10-107m-7"]["fitnet"] == 9.9 and "fitnet" not in results["cifar10-30m-5"]
    assert results["mnist"] == paper.TABLE_4


def test_the_paper_preset_trains_again_on_all_images_and_says_so(small_cifar_100, tmp_path, capsys):
    arguments = ["--data-dir", str(small_cifar_100), "--runs", str(tmp_path / "runs"), "--stage", "backprop"]
    assert command.main(["cifar100-fitnet1", *arguments, *small("--retrain")]) == 0
    out = capsys.readouterr().out
    assert "Again, on all images" in out and "12 images to train on, 0 to validate, 7 to test" in out
    assert (tmp_path / "runs" / "cifar100-fitnet1" / "seed0" / "all" / "backprop.h5").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--guided-layer", "3", "6"], "--guided-layer 3 6 and --hint-layer 2: wanted pairs"),
        (["--guided-layer", "11"], "--guided-layer 11: wanted one of the layers 1..10"),
        (["--guided-layer", "3", "0", "--hint-layer", "1", "2"], "--guided-layer 0"),
        (["--crops", "32"], "--crops 32: wanted 0 to 31 pixels"),
        (["--crops", "-1"], "--crops -1: wanted at least 0"),
        (["--teacher-width-scale", "0"], "--teacher-width-scale 0.0: wanted a number above 0"),
        (["--student-conv-lr-scale", "-1"], "--student-conv-lr-scale -1.0"),
        (["--guided-lr-scale", "-1"], "--guided-lr-scale -1.0"),
        (["--validation", "0", "--retrain"], "--retrain: wanted validation images"),
        (["--preprocessing", "zca"], "whitened"),
        (["--train", "99"], "12 training and 7 test images; --train 99, --validation 4 and --test all want more"),
        (["--teacher-from", "nowhere"], "nowhere/teacher.h5: No such file"),
        (["--arm", "tua=1"], "--arm tua=1: wanted SETTING=VALUE,...; did you mean tau?"),
        (["--arm", "tau=0"], "--tau 0.0: wanted a number above 0"),
        (["--arm", "guided_layer=11"], "--guided-layer 11: wanted one of the layers 1..10"),
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
