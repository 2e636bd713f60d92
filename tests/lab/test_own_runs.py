"""Data of the user's own, end to end: `run.py own` on an HDF5 file, an .npz and a folder of pictures."""

import json
import re

import h5py
import numpy as np
import pytest
import scipy.io
from exported import command, refused
from PIL import Image
from small import best, metrics

from minifit import model
from minifit.lab import files, runner

STAGES = ["teacher", "backprop", "kd", "hint", "fitnet"]
TINY = ["--student", "2-2/3x5", "--teacher", "4-6+3", "--workers", "1"]
TINY += [f"--{part}.epochs=1" for part in ("teacher", "stage1", "student")]
IMAGES = np.random.default_rng(0).integers(0, 256, (44, 9, 8, 3), np.uint8)
LABELS = np.arange(44) // 11  # four classes


def hdf5(path):
    with h5py.File(path, "w") as file:
        file["images"], file["labels"] = IMAGES, LABELS


def npz(path):
    np.savez_compressed(path, images=IMAGES, labels=LABELS)


def pictures(path):
    for i, (image, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
        (folder := path / "abcd"[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i:02}.png")


KINDS = {"my.h5": hdf5, "my.npz": npz, "pictures": pictures}


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    """Copies of files go to a folder of the test, and no plots are drawn."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("pooch.os_cache", lambda project: folder / project)
    monkeypatch.setattr(runner, "draw", lambda _: None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A function: kind -> (its run directory, what was printed), trained when it is first asked for."""
    runs, done = tmp_path_factory.mktemp("own"), {}

    def of(kind, capsys):
        if kind not in done:
            KINDS[kind](runs / kind)
            words = ["own", "--data", runs / kind, "--runs", runs / "of" / kind, *TINY]
            status, out, err = command(capsys, *words)
            assert status == 0 and err == ""
            done[kind] = runs / "of" / kind / "own" / "seed0", out
        return done[kind]

    return of


@pytest.fixture(params=KINDS)
def run(request, trained, capsys):
    """(kind, run directory, what was printed)"""
    return request.param, *trained(request.param, capsys)


def test_all_stages_leave_their_files_and_no_others(run):
    _, folder, _ = run
    records = {"config.json", "metrics.jsonl", "summary.json", ".lock"}
    assert {path.name for path in folder.iterdir()} == {f"{stage}.h5" for stage in STAGES} | records
    assert [(record["stage"], record["epoch"]) for record in metrics(folder)] == [(stage, 1) for stage in STAGES]


def test_the_records_have_the_sizes_and_settings_of_the_data(run):
    """Of 44 images 8 test, a tenth of the other 36 validates, and the middle layers of the SPECs are the pair."""
    kind, folder, _ = run
    name = f"{kind} (1/5 of each class drawn for testing, seed 0)"
    summary, config = (json.loads((folder / file).read_text()) for file in ("summary.json", "config.json"))
    settings = config["settings"]
    assert (summary["train_images"], summary["validation_images"], summary["test_images"]) == (33, 3, 8)
    assert summary["experiment"] == "own" and summary["data"] == settings["data"] == name
    assert (settings["train"], settings["validation"], settings["test"]) == (33, 3, None)
    assert (settings["guided_layer"], settings["hint_layer"], settings["regressor"]) == ([2], [2], "conv")
    assert [*summary["stages"]] == STAGES
    for stage, made in summary["stages"].items():
        assert made["epochs"] == made["best_epoch"] == 1 and np.isfinite(made["test_loss"])
        if stage != "hint":
            assert round(8 * made["test_error"] / 100, 9) in range(9)
            assert round(3 * made["validation_error"] / 100, 9) in range(4)


def test_the_networks_are_those_of_the_specs(run):
    """Their weights are counted by hand: maps of 9x8, 5x4, 1x1 and, of the teacher, 5x4, 1x1."""
    _, folder, out = run
    shapes = {
        stage: {key: value.shape for key, value in best(folder, stage).items() if key.endswith("w")} for stage in STAGES
    }
    student = [(3, 3, 3, 4), (3, 3, 2, 4), (5, 5, 2, 6), (3, 4)]
    assert [*shapes["teacher"].values()] == [(3, 3, 3, 8), (3, 3, 4, 12), (6, 15), (3, 4)]
    for stage in ("backprop", "kd", "fitnet"):
        assert [*shapes[stage].values()] == student
    assert [*shapes["hint"].values()] == [*student[:2], (5, 4, 2, 12)]  # the regressor: from 5x4x2 to 1x1x6, two pieces
    assert "33 images to train on, 3 to validate, 8 to test" in out


def test_each_network_is_printed_with_its_layers_weights_and_multiplications_before_it_trains(run):
    """Counted by hand: R S C weights per filter, without biases, and as many multiplications per output."""
    kind, _, out = run
    before = out[: out.index(f"{kind} (1/5 of")]  # the plan, which precedes all training
    assert out.index(f"{kind} (1/5 of") < out.index("teacher epoch 1")
    tables = {}
    for table in before.strip().split("\n\n")[:2]:
        name, _, rule, *rows = table.splitlines()
        assert name.endswith(", for images (9, 8, 3)") and {*rule} == {"-", " "}
        tables[name.removesuffix(", for images (9, 8, 3)")] = [re.split(r"  +", row.strip()) for row in rows]
    assert tables == {
        "teacher 4-6+3": [
            ["1", "Conv2d 3x3, Maxout 2, MaxPool2d 2x2", "5x4x4", "216", "15.55K"],
            ["2 (hint)", "Conv2d 3x3, Maxout 2, MaxPool2d 9x9", "1x1x6", "432", "8.64K"],
            ["3", "Flatten, Linear, Maxout 5", "3", "90", "90"],
            ["4", "Linear", "4", "12", "12"],
            ["-", "all", "-", "750", "24.29K"],
        ],
        "student 2-2/3x5": [
            ["1", "Conv2d 3x3, Maxout 2", "9x8x2", "108", "7.78K"],
            ["2 (guided)", "Conv2d 3x3, Maxout 2, MaxPool2d 2x2", "5x4x2", "72", "5.18K"],
            ["3", "Conv2d 5x5, Maxout 2, MaxPool2d 9x9", "1x1x3", "300", "6.00K"],
            ["4", "Flatten, Linear", "4", "12", "12"],
            ["-", "all", "-", "492", "18.97K"],
        ],
    }


def test_the_layers_of_the_pair_are_marked_as_they_are_named(tmp_path, capsys):
    npz(tmp_path / "my.npz")
    words = [*TINY, "--hint-layer", "1", "--guided-layer", "2", "--stage", "teacher"]
    status, out, _ = command(capsys, "own", "--data", tmp_path / "my.npz", "--runs", tmp_path, *words)
    assert status == 0 and re.findall(r"^(\d) +\((\w+)\)", out, re.M) == [("1", "hint"), ("2", "guided")]


def test_the_table_has_the_errors_of_the_records(run):
    _, folder, out = run
    stages = json.loads((folder / "summary.json").read_text())["stages"]
    table = out[out.rindex("error %") :]
    titles = ["teacher", "standard back-propagation", "knowledge distillation", "FitNet"]
    rows = [next(line for line in table.splitlines() if line.startswith(f"{title}  ")) for title in titles]
    found = [float(row.split()[-6]) for row in rows]
    assert found == [round(stages[stage]["test_error"], 2) for stage in ("teacher", "backprop", "kd", "fitnet")]


def test_every_kind_of_input_gives_the_same_weights(run, trained, capsys):
    _, folder, _ = run
    first, _ = trained("my.h5", capsys)
    for stage in STAGES:
        one, two = best(first, stage), best(folder, stage)
        assert one.keys() == two.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], two[key])
    digests = [files.load(where / "fitnet.h5")[0]["identity"]["settings"]["images"] for where in (first, folder)]
    assert digests[0] == digests[1]


def test_a_trained_network_classifies_images_of_the_size(run):
    _, folder, _ = run
    for stage in ("teacher", "fitnet"):
        probabilities = model.load(folder / f"{stage}.h5")(IMAGES[:5])
        assert probabilities.shape == (5, 4)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


def test_a_student_is_exported_after_a_comparison_on_the_images_of_its_run_alone(trained, tmp_path, capsys):
    pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
    folder, _ = trained("my.npz", capsys)
    words = "export", folder / "fitnet.h5", tmp_path / "a.onnx", "--data"
    status, out, _ = command(capsys, *words, folder.parents[3] / "my.npz")
    assert status == 0 and "test images of my.npz" in out
    (tmp_path / "a.onnx").unlink()
    np.savez(tmp_path / "other.npz", images=IMAGES[::-1], labels=LABELS[::-1].copy())
    assert "has other images than the network was trained and tested on" in refused(
        capsys, *words, tmp_path / "other.npz"
    )
    assert not (tmp_path / "a.onnx").exists()


def test_the_same_command_again_keeps_everything(trained, capsys):
    folder, _ = trained("my.npz", capsys)
    before = {path.name: path.read_bytes() for path in folder.glob("*.h5")}
    data = folder.parents[3] / "my.npz"
    status, out, err = command(capsys, "own", "--data", data, "--runs", folder.parents[1], *TINY)
    assert status == 0 and err == "" and out.count("(kept)") == 5
    assert {path.name: path.read_bytes() for path in folder.glob("*.h5")} == before


def test_a_command_that_cannot_begin_is_one_line_and_writes_nothing(tmp_path, capsys):
    npz(tmp_path / "my.npz")
    given = ["own", "--runs", tmp_path / "runs"]
    assert "own: wanted --data FILE" in refused(capsys, *given)
    assert "missing.h5: No such file" in refused(capsys, *given, "--data", tmp_path / "missing.h5")
    given += ["--data", tmp_path / "my.npz"]
    assert "--student 2-2x4: found a kernel of 4" in refused(capsys, *given, "--student", "2-2x4")
    assert "--teacher 4//4: found nothing" in refused(capsys, *given, "--teacher", "4//4")
    assert "--guided-layer 4: wanted one of the layers 1..3" in refused(capsys, *given, *TINY, "--guided-layer", "4")
    assert "36 training and 8 test images" in refused(capsys, *given, *TINY, "--train", "34")
    assert not (tmp_path / "runs").exists()


def test_faces_train_in_all_stages_and_are_called_what_they_are(tmp_path, capsys):
    rng = np.random.default_rng(1)
    with h5py.File(tmp_path / "faces.h5", "w") as file:
        file["images"], file["labels"] = rng.integers(0, 256, (60, 16, 16, 1), np.uint8), np.arange(60) % 2
    epochs = [f"--{part}.epochs=1" for part in ("teacher", "stage1", "student")]
    words = ["faces", "--data", tmp_path / "faces.h5", "--preset", "paper", *epochs, "--teacher-width-scale", ".1"]
    status, out, err = command(capsys, *words, "--workers", "1", "--runs", tmp_path)
    assert status == 0 and err == "" and "faces (stand-in for AFLW)" in out
    stages = json.loads((tmp_path / "faces" / "seed0" / "summary.json").read_text())["stages"]
    assert list(stages) == STAGES and stages["fitnet"]["weights"] == 50_960


def test_svhn_trains_a_teacher_and_stage_1(tmp_path, capsys):
    rng = np.random.default_rng(2)
    for name, count in (("train", 60), ("extra", 40), ("test", 20)):
        arrays = {"X": rng.integers(0, 256, (32, 32, 3, count), np.uint8), "y": 1 + np.arange(count)[:, None] % 10}
        scipy.io.savemat(tmp_path / f"{name}_32x32.mat", arrays)
    few = ["--train", "16", "--validation", "10", "--test", "10", "--teacher-width-scale", ".1"]
    few += ["--teacher.epochs", "1", "--stage1.epochs", "1", "--workers", "1", "--runs", tmp_path]
    status, _, err = command(capsys, "svhn", "--stage", "hint", "--data-dir", tmp_path, *few)
    assert status == 0 and err == ""
    stages = json.loads((tmp_path / "svhn" / "seed0" / "summary.json").read_text())["stages"]
    assert list(stages) == ["teacher", "hint"]
