"""`run.py speed`: every engine runs the same network, sizes and accuracies stand beside, and a bad name is one line."""

from contextlib import ExitStack

import numpy as np
import pytest
from exported import IMAGE, command, drawn, model_of, pictures, refused, saved, small
from test_compare import member, stage

from minifit import files, networks
from minifit.lab import compare, export, speed, teachers
from minifit.lab.records import write_record
from minifit.lab.speed import Contender
from minifit.model import load


def test_the_table_of_an_experiment_has_sizes_accuracies_and_a_speed_up_of_every_engine(tmp_path, capsys):
    errors = {"teacher": 0.5, "backprop": 0.9, "kd": 0.7}
    sizes = {"teacher": 360_816, "backprop": 29_944, "kd": 29_944}
    run = member(0, **{name: stage(name, test_error=error, weights=sizes[name]) for name, error in errors.items()})
    (tmp_path / "mnist" / "default").mkdir(parents=True)
    write_record(
        tmp_path / "mnist" / "default" / "results.json", compare.gather([run], "command") | {"experiment": "mnist"}
    )
    status, out, err = command(capsys, "speed", "mnist", "--seconds", 0.01, "--results", tmp_path)
    assert (status, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    student = next(words for words in lines if words[:2] == ["MNIST", "FitNet"])
    assert student[2:5] == ["7", "29,944", "5.31M"] and "99.30" in student and "12.05" in student and "5.40" in student
    engines = {words[0] for words in lines if words[1:2] == ["1"]}
    assert engines == {"minifit", "onnxruntime", "PyTorch"} & {"minifit", *speed.engines(1)}
    assert "MNIST FitNet is 12.0 times smaller" in out and out.rstrip().endswith("loses 0.20 points.")


def test_an_error_is_that_of_a_network_with_as_many_weights(tmp_path, capsys):
    run = member(0, teacher=stage("teacher", weights=90_000), kd=stage("kd", test_error=0.7, weights=29_944))
    (tmp_path / "mnist" / "default").mkdir(parents=True)
    write_record(
        tmp_path / "mnist" / "default" / "results.json", compare.gather([run], "command") | {"experiment": "mnist"}
    )
    teacher, (student,) = speed.of_experiments("mnist", tmp_path)
    assert (teacher.error, student.error) == (None, 0.7)


def test_a_data_set_means_the_students_of_table_5_or_all_of_its_experiments(tmp_path):
    teacher, students = speed.of_experiments("cifar10", tmp_path)
    assert teacher.name == "CIFAR-10 teacher" and teacher.counts[:2] == (5, 16_244_360)
    assert [one.name for one in students] == ["FitNet 1", "FitNet 2", "FitNet 3", "FitNet 4"]
    assert [one.counts[0] for one in students] == [11, 11, 13, 19]
    assert {one.error for one in (teacher, *students)} == {None}
    assert len(speed.of_experiments("digits", tmp_path)[1]) == 1


def test_a_pair_of_ones_own_is_named_by_files(tmp_path, capsys):
    one, other = saved(tmp_path / "teacher.h5"), saved(tmp_path / "student.h5")
    assert "not recorded" in command(capsys, "speed", one, other, "--seconds", 0.01)[1]
    for path, error in ((one, 1.0), (other, 0.75)):
        adds(path, figures={"test_error": error})
    assert "and gains 0.25 points" in command(capsys, "speed", one, other, "--seconds", 0.01)[1]


def adds(path, **more):
    """Writes more into the record of a network's file."""
    record, groups = files.load(path)
    files.save(path, record | more, **groups)


def test_a_given_teacher_has_the_error_that_the_run_of_its_student_found(tmp_path, capsys):
    one, other = saved(tmp_path / "teacher.h5", small(seed=3)), saved(tmp_path / "student.h5")
    paths = [one]
    if export.there("onnxruntime"):
        export.write_onnx(load(one), tmp_path / "teacher.onnx", pictures(3))
        paths.append(tmp_path / "teacher.onnx")
    for path in paths:
        recorded = teachers.given(str(path), IMAGE, 3).described()
        for error in (1.0, None):
            identity = {"settings": {"networks": {"teacher": recorded}}}
            adds(other, identity=identity, figures={"test_error": 1.5}, heading={"teacher_error": 1.0})
            teacher, student = speed.pair(path, other)
            assert (teacher.error, student.error) == (error, 1.5)
            recorded = {name: "of another" for name in recorded}
    for more in ({"figures": {"test_error": "x"}}, {"heading": {"teacher_error": -1}}, {"identity": []}):
        adds(other, **{"identity": {}, "figures": {}, "heading": {}} | more)
        said = refused(capsys, "speed", one, other)
        assert "student.h5: " in said and next(iter(more)) in said


def test_results_that_are_damaged_are_named_and_unfinished_ones_pass(tmp_path, capsys):
    path = tmp_path / "mnist" / "default" / "results.json"
    path.parent.mkdir(parents=True)
    write_record(path, compare.gather([member(0, missing=["teacher"])], "command") | {"experiment": "mnist"})
    assert speed.recorded(tmp_path / "mnist") == {}
    path.write_text('{"a":')
    assert str(path) in refused(capsys, "speed", "mnist", "--results", tmp_path)


def test_a_ratio_below_one_is_said_the_other_way_round():
    assert speed.times(2.0, "smaller", "larger") == "2.0 times smaller"
    assert speed.times(0.5, "smaller", "larger") == "2.0 times larger"


def test_an_onnx_teacher_is_run_by_onnxruntime_alone(tmp_path, capsys):
    pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
    path = saved(tmp_path / "a.h5")
    command(capsys, "export", path, tmp_path / "t.onnx")
    status, out, _ = command(capsys, "speed", tmp_path / "t.onnx", path, "--seconds", 0.01)
    assert status == 0 and "onnxruntime " in out and "minifit " not in out


def test_two_files_of_one_name_are_two_networks(tmp_path, capsys):
    blocks = networks.Conv(8, 3, pool=(3, 2)), networks.FullyConnected(6, pieces=3), networks.Output(3)
    large, little = drawn(networks.Network("small", IMAGE, blocks)), small()
    paths = {ending: [tmp_path / side / f"a{ending}" for side in "xy"] for ending in (".h5", ".onnx")}
    for side, layers in zip("xy", (large, little), strict=True):
        (tmp_path / side).mkdir()
        path = saved(tmp_path / side / "a.h5", layers)
        if export.there("onnxruntime"):
            export.write_onnx(load(path), path.with_suffix(".onnx"), pictures(3))
    for ending in (".h5", ".onnx") if export.there("onnxruntime") else (".h5",):
        status, out, _ = command(capsys, "speed", *paths[ending], "--seconds", 0.01)
        assert status == 0 and f"{paths[ending][1]} is 2.0 times smaller" in out and str(paths[ending][0]) in out


def test_an_onnx_model_that_cannot_be_measured_is_one_line(tmp_path, capsys):
    pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
    from onnx import TensorProto, helper, numpy_helper

    path = saved(tmp_path / "a.h5")

    def written(name, classes=3, kind="Gemm", channels=1, value=1.0, constant=False):
        weights = numpy_helper.from_array(np.full((132 * channels, classes), value, np.float32), "w")
        nodes = [helper.make_node("Constant", [], ["w"], value=weights)] if constant else []
        nodes += [helper.make_node("Flatten", ["images"], ["rows"]), helper.make_node(kind, ["rows", "w"], ["logits"])]
        shape = ["N", *IMAGE[:2], channels]
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", classes])],
            [] if constant else [weights],
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        (tmp_path / name).write_bytes(made.SerializeToString())
        return tmp_path / name

    for constant in (False, True):
        assert speed.from_file(written("right.onnx", constant=constant)).counts == (None, 396, None)
        status, out, _ = command(capsys, "speed", tmp_path / "right.onnx", path, "--seconds", 0.01)
        assert status == 0 and "right.onnx" in out
    for given, reason in {
        written("classes.onnx", classes=4): "of 4 classes",
        written("channels.onnx", channels=2): "images (12, 11, 2)",
        written("unknown.onnx", kind="Frobnicate"): "onnxruntime refuses it",
        written("nan.onnx", value=np.nan): "not finite, for random images",
    }.items():
        for pair in ((given, path), (path, given)):
            assert reason in refused(capsys, "speed", *pair)


def test_pytorch_computes_the_same_network():
    pytest.importorskip("torch", reason="the extra [bench], PyTorch, is not installed")
    for network in (networks.MNIST_TEACHER, networks.FITNET_1):
        network = networks.widened(network, 0.25)
        made, images = model_of(drawn(network), network.input), pictures(3, network.input)
        np.testing.assert_allclose(speed.in_torch(made, 1)(images), made(images), rtol=0, atol=1e-5)
    assert speed.in_torch(model_of(small(), IMAGE), 1) is not None


def test_minifit_shares_images_out_to_processes():
    made, images = model_of(small()), pictures(5)
    for processes in (1, 2, 8):
        with ExitStack() as stack:
            answer = speed.engines(processes)["minifit"](Contender("small", made, b"", IMAGE), stack)
            np.testing.assert_allclose(answer(images), made(images), rtol=0, atol=1e-6)


def test_the_networks_of_a_table_take_turns():
    asked = []
    contenders = [Contender(name, None, b"", IMAGE) for name in "abc"]
    took = speed.measured(contenders, 1, 0.0, lambda one, _: one.name != "b" and (lambda _: asked.append(one.name)))
    assert took.keys() == {"a", "c"} and {len(times) for times in took.values()} == {speed.TURNS[0]}
    assert asked == ["a", "c"] * (1 + speed.TURNS[0])


def test_what_cannot_be_measured_is_one_line(tmp_path, capsys):
    path = saved(tmp_path / "a.h5")
    assert "speed x: wanted an experiment" in refused(capsys, "speed", "x")
    assert "speed: wanted" in refused(capsys, "speed")
    other = saved(tmp_path / "other.h5", small((12, 12, 1)), (12, 12, 1))
    said = "is for images (12, 11, 1) of 3 classes, " + str(other) + " for images (12, 12, 1) of 3 classes"
    assert said in refused(capsys, "speed", path, other)
    assert "No such file" in refused(capsys, "speed", path, tmp_path / "b.h5")
    assert "--seconds 0.0: wanted a number above 0" in refused(capsys, "speed", "mnist", "--seconds", 0)


def test_without_the_extra_minifit_is_measured_alone(tmp_path, capsys, monkeypatch):
    path = saved(tmp_path / "a.h5")
    monkeypatch.setattr(export, "there", lambda name: False)
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    status, out, _ = command(capsys, "speed", path, path, "--seconds", 0.01)
    assert status == 0 and "onnxruntime" not in out and "(minifit, 1 image, 1 thread)" in out
