"""Teachers trained elsewhere, an ONNX model or a stage's file: asked, recorded, never trained."""

import json
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import strict
from exported import command, drawn, pictures, refused, saved, small
from small import EXPERIMENTS, LIGHT

from minifit import UserError, data, experiments, files, fitnets, gradcheck, layers, networks, problems
from minifit.data.preprocessing import Unit, fit
from minifit.lab import runner, teachers
from minifit.lab.records import write_record
from minifit.lab.sets import Examples, outputs
from minifit.lab.teachers import FromFile, FromOnnx, Given, Pixels, given
from minifit.model import describe
from minifit.regressors import pieces_of
from minifit.task import Task

onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

IMAGE, CLASSES = (8, 8, 2), 3
RNG = np.random.default_rng(5)
W = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in
     {"w1": (4, 2, 3, 3), "b1": (4,), "w2": (4, 4, 3, 3), "b2": (4,), "w3": (CLASSES, 64), "b3": (CLASSES,),
      "one": (4,), "mean": (4,)}.items()} | {"variance": np.ones(4, np.float32)}  # fmt: skip


def written(
    path, shape=("N", 2, 8, 8), kind=TensorProto.FLOAT, softmax=False, weights=W, extra=(), outputs=("logits",)
):
    """A network with strides, batch normalisation and a residual sum, as other libraries write them."""
    nodes = [
        helper.make_node("Cast", ["images"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["numbers", "w1", "b1"], ["c1"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c1", "one", "b2", "mean", "variance"], ["n1"]),
        helper.make_node("Relu", ["n1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["r1", "c2"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["r2"]),
        helper.make_node("MaxPool", ["r2"], ["pooled"], kernel_shape=[1, 1]),
        helper.make_node("Flatten", ["pooled"], ["rows"]),
        helper.make_node("Gemm", ["rows", "w3", "b3"], ["logits"], transB=1),
        *extra,
    ]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"]))
        outputs = ("probabilities",)
    graph = helper.make_graph(
        nodes,
        "other",
        [helper.make_tensor_value_info("images", kind, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def by_hand(images, pixels=None):
    """(r1, r2 as (N, H, W, C), logits) of the same network, by minifit's layers."""
    x = (pixels or Pixels())(images, np.float32)

    def conv(x, w, b):
        return layers.Conv2d(np.ascontiguousarray(W[w].transpose(2, 3, 1, 0)), W[b], pad=1)(x)

    c1 = conv(x, "w1", "b1")[:, ::2, ::2]
    r1 = np.maximum((c1 - W["mean"]) / np.sqrt(1 + 1e-5) * W["one"] + W["b2"], 0)
    r2 = np.maximum(r1 + conv(r1, "w2", "b2"), 0)
    return r1, r2, r2.transpose(0, 3, 1, 2).reshape(len(x), -1) @ W["w3"].T + W["b3"]


def teacher(path, hints=("r1",), pixels=None, **more):
    return FromOnnx(written(path, **more), IMAGE, CLASSES, hints, pixels)


def refusal(*arguments, **more):
    with pytest.raises(UserError) as caught:
        teacher(*arguments, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_its_logits_and_hint_are_those_of_the_network_channels_last(tmp_path):
    images = pictures(5, IMAGE)
    for pixels in (None, Pixels((0.2, 0.4), (0.5, 2.0), 1.0), Pixels((3.0,), (4.0,), 255.0)):
        asked = teacher(tmp_path / "t.onnx", ("r1", "r2"), pixels)
        r1, r2, logits = by_hand(images, pixels)
        for part, expected in ((asked, logits), (asked[:1], r1), (asked[:2], r2)):
            found = part(images)
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
            assert part(images[:0]).shape == (0, *expected.shape[1:])


def test_of_a_model_that_ends_in_a_softmax_the_logits_are_asked(tmp_path):
    images = pictures(5, IMAGE)
    plain, soft = teacher(tmp_path / "a.onnx")(images), teacher(tmp_path / "b.onnx", softmax=True)(images)
    np.testing.assert_array_equal(plain, soft)


def test_a_model_of_bytes_sees_the_stored_bytes(tmp_path):
    asked, images = teacher(tmp_path / "t.onnx", kind=TensorProto.UINT8), pictures(3, IMAGE)
    np.testing.assert_allclose(asked(images), by_hand(images, Pixels(range=255.0))[2], rtol=1e-4, atol=1e-3)
    assert "sees bytes" in refusal(tmp_path / "t.onnx", ("r1",), Pixels((1.0,)), kind=TensorProto.UINT8)


def test_an_exported_network_is_a_teacher_channels_last(tmp_path, capsys):
    path = saved(tmp_path / "a.h5", image=(8, 8, 2))
    assert command(capsys, "export", path, tmp_path / "a.onnx")[0] == 0
    hint = next(n.output[0] for n in onnx.load(tmp_path / "a.onnx").graph.node if n.op_type == "MaxPool")
    asked, images = FromOnnx(tmp_path / "a.onnx", (8, 8, 2), 3, (hint,)), pictures(4, (8, 8, 2))
    own = FromFile(path, (8, 8, 2), 3)
    assert not any(w.flags.writeable for w in own.params.values())  # so its filters are transformed once
    np.testing.assert_allclose(asked(images), own(images), rtol=0, atol=1e-5)
    assert asked.layout == "channels last"  # of its input; inside, its maps have channels first
    below = Unit()(images)
    for layer in own.layers[0]:
        below = layer(below)
    np.testing.assert_allclose(asked[:1](images), below, rtol=0, atol=1e-5)


def test_inspect_lists_the_maps_and_the_regressors_beside_a_student(tmp_path, capsys):
    status, out, err = command(capsys, "inspect", written(tmp_path / "t.onnx"), "--student", "4-4/6")
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()[6:]}
    assert (status, err) == (0, "") and "channels first" in out and "logits, of 3 classes" in out
    assert rows.keys() == {"c1", "n1", "r1", "c2", "sum", "r2", "pooled"}
    assert rows["r1"] == ["Relu", "4x4x4", "2", "4x4x4", "conv,", "ReLU", "16"]
    assert rows["c2"] == ["Conv", "4x4x4", "2", "4x4x4", "conv,", "linear", "16"]
    assert "wanted one model" in refused(capsys, "inspect")
    assert "No such file" in refused(capsys, "inspect", tmp_path / "none.onnx")
    assert "found 'x'" in refused(capsys, "inspect", tmp_path / "t.onnx", "--student", "x")
    said = refused(capsys, "inspect", tmp_path / "t.onnx", "--student", "mnist")
    assert "has 2 channels and 3 classes; MNIST FitNet has 1 channels and 10 classes" in said
    nothing = W | {"b3": np.full(CLASSES, np.nan, np.float32)}
    assert "logits has a number that is not finite" in refused(
        capsys, "inspect", written(tmp_path / "t.onnx", weights=nothing)
    )


@pytest.mark.parametrize("parts", [3, 5])
def test_a_tensor_is_a_hint_if_its_first_axis_is_that_of_the_images(parts, tmp_path, capsys):
    weights = W | {"front": np.array([0], np.int64)}
    several = [helper.make_node("Unsqueeze", ["r1", "front"], ["one part"])]
    several.append(helper.make_node("Concat", ["one part"] * parts, ["parts"], axis=0))  # as queries, keys and values
    several.append(helper.make_node("ReduceMean", ["one part"], ["part of all"], axes=[1], keepdims=0))
    several.append(helper.make_node("Concat", ["part of all"] * parts, ["parts of all"], axis=0))
    model = written(tmp_path / "t.onnx", weights=weights, extra=several)
    status, out, _ = command(capsys, "inspect", model)
    assert status == 0 and "r1" in out and "part" not in out
    for name in ("parts", "parts of all"):
        with pytest.raises(UserError, match="wanted numbers of each image"):
            FromOnnx(model, IMAGE, CLASSES, (name,))


def test_images_of_another_size_are_resized_between_the_centres_of_pixels(tmp_path):
    half = pictures(2, (4, 4, 2))
    asked = FromOnnx(written(tmp_path / "t.onnx"), (4, 4, 2), CLASSES)
    np.testing.assert_allclose(asked(half), by_hand(teachers.resized(half, (8, 8)))[2], rtol=1e-4, atol=1e-4)
    row = np.array([0, 10, 20, 30], np.uint8).reshape(1, 1, 4, 1)
    wide = teachers.resized(row, (1, 8)).ravel()
    np.testing.assert_allclose(wide, [0, 2.5, 7.5, 12.5, 17.5, 22.5, 27.5, 30])
    np.testing.assert_allclose(teachers.resized(row, (3, 2))[0, :, :, 0], [[5, 25]] * 3)


def test_the_regressors_non_linearity_is_the_tensors_own(tmp_path):
    asked = teacher(tmp_path / "t.onnx", ("r1", "c2", "sum", "pooled"))
    assert [pieces_of(asked[:h]) for h in (1, 2, 3, 4)] == [None, 1, 1, None]


def test_two_teachers_or_preparations_differ_in_their_fingerprint(tmp_path):
    def of(*arguments, **more):
        return runner.digest_of(teacher(tmp_path / "t.onnx", *arguments, **more))

    one = of()
    assert one == of()
    assert len({one, of(("r2",)), of(("r1",), Pixels((0.5,))), of(weights=W | {"b3": W["b3"] + 1})}) == 4


def test_weights_in_a_file_of_their_own_are_read_and_tell_teachers_apart(tmp_path):
    whole = teacher(tmp_path / "t.onnx")
    outside = {"save_as_external_data": True, "location": "t.data", "size_threshold": 0}
    onnx.save(onnx.load(tmp_path / "t.onnx"), tmp_path / "u.onnx", **outside)
    images, asked = pictures(3, IMAGE), FromOnnx(tmp_path / "u.onnx", IMAGE, CLASSES)
    np.testing.assert_array_equal(asked(images), whole(images))
    content = bytearray((tmp_path / "t.data").read_bytes())
    content[2] ^= 1
    (tmp_path / "t.data").write_bytes(content)
    assert FromOnnx(tmp_path / "u.onnx", IMAGE, CLASSES).onnx.digest != asked.onnx.digest
    (tmp_path / "t.data").unlink()
    with pytest.raises(UserError, match=r"t\.data"):
        FromOnnx(tmp_path / "u.onnx", IMAGE, CLASSES)


def test_what_cannot_be_a_teacher_is_refused_in_one_line(tmp_path):
    path = tmp_path / "t.onnx"
    assert "did you mean pooled?" in refusal(path, ("poled",)) and "inspect" in refusal(path, ("zzz",))
    assert "export it with a first axis that is free" in refusal(path, shape=(1, 2, 8, 8))
    assert "only the number of images may be free" in refusal(path, shape=("N", 2, "H", 8))
    assert "the images have 2" in refusal(path, shape=("N", 3, 8, 8))
    assert "wanted 3 classes" in refusal(path, weights=W | {"w3": W["w3"][:2], "b3": W["b3"][:2]})
    assert "not finite" in refusal(path, weights=W | {"b3": W["b3"] * np.float32(np.nan)})
    assert "wanted one number, or one for each of 2" in refusal(path, ("r1",), Pixels((1.0, 2.0, 3.0)))
    assert "onnxruntime" in refusal(path, weights=W | {"w3": W["w3"][:, :5]})
    path.write_bytes(written(path).read_bytes()[:300])
    with pytest.raises(UserError, match="no ONNX model"):
        FromOnnx(path, IMAGE, CLASSES)
    path.write_text("text")
    with pytest.raises(UserError, match="no ONNX model"):
        FromOnnx(path, IMAGE, CLASSES)
    with pytest.raises(UserError, match="No such file"):
        FromOnnx(tmp_path / "none.onnx", IMAGE, CLASSES)


def test_a_model_without_an_output_or_with_a_circle_is_one_line(tmp_path):
    """What a fuzzer found, and what would be followed for ever."""
    path = tmp_path / "t.onnx"
    model = onnx.load(written(path))
    del model.graph.output[:]
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match=r"no outputs|no ONNX model"):
        FromOnnx(path, IMAGE, CLASSES)
    model = onnx.load(written(path))
    model.graph.node.extend([onnx.helper.make_node("Identity", [a], [b]) for a, b in (("a", "b"), ("b", "a"))])
    model.graph.output[0].name = "a"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="no ONNX model"):
        FromOnnx(path, IMAGE, CLASSES)


def test_a_damaged_model_is_one_line_whatever_is_damaged(tmp_path, capfd):
    path, rng = tmp_path / "t.onnx", np.random.default_rng(0)
    whole, images, labels = written(path).read_bytes(), pictures(20, IMAGE), np.arange(20) % 3
    for i in range(60):
        content = bytearray(whole)
        if i % 2:
            content = content[: rng.integers(len(content))]
        for _ in range(3 * (i % 2 == 0)):
            content[rng.integers(len(content) // 2)] = rng.integers(256)
        path.write_bytes(content)
        try:
            FromOnnx(path, IMAGE, CLASSES, ("r1",)).errors(images, labels)
        except UserError as error:
            assert "\n" not in str(error)
    assert capfd.readouterr() == ("", "")


def test_a_teacher_near_chance_or_without_numbers_is_refused(tmp_path):
    asked, images = teacher(tmp_path / "t.onnx"), pictures(200, IMAGE)
    right = asked(images).argmax(axis=1)
    assert asked.check(images, right) == 0
    with pytest.raises(UserError, match="look at --teacher-mean"):
        asked.check(images, (right + 1) % 3, workers=2)
    as_before = asked.tensors
    for i, name in enumerate(("r1", "logits")):  # the hint counts too

        def damaged(names, images, i=i):
            found = as_before(names, images)
            found[i] = found[i] * np.float32(np.nan)
            return found

        asked.tensors = damaged
        with pytest.raises(UserError, match=f"its {name} has a number that is not finite"):
            asked.check(images, right, workers=2)


def test_it_sees_the_stored_bytes_augmented_as_the_students_images_are(tmp_path):
    asked, images = teacher(tmp_path / "t.onnx"), pictures(6, IMAGE)
    labels, choices = np.zeros(6, int), np.array([[1, 2, -3]] * 3)
    examples = Examples(images, labels, Unit(), asked)
    x, target, _ = examples.batch(slice(3), choices)
    seen = np.rint(255 * x).astype(np.uint8)
    assert not np.array_equal(seen, images[:3])
    np.testing.assert_array_equal(target, asked(seen))
    np.testing.assert_array_equal(examples.batch(slice(3, 6))[1], asked(images[3:]))
    mirrored = outputs(asked, examples, 1, versions=2)[6:]  # where they are kept
    x, target, _ = replace(examples, teacher=np.concatenate([mirrored - 1, mirrored])).batch(
        np.arange(3, 6), np.array([[1, 0, 0]] * 3)
    )
    np.testing.assert_allclose(target, asked(np.rint(255 * x).astype(np.uint8)), rtol=1e-5, atol=1e-5)


def small_task(asked, dtype=np.float64):
    blocks = networks.Conv(3, 3, pad=1, pool=(2, 2)), networks.Conv(4, 3, pad=1), networks.Output(CLASSES)
    student = networks.Network("student", IMAGE, blocks)
    config = replace(
        experiments.DIGITS, guided_layer=(2,), hint_layer=(1,), init="uniform", init_range=0.5, regressor_init="normal"
    )
    return Task({"teacher": asked, "student": student}, config, 0, dtype=dtype)


def test_gradients_of_eqs_2_and_3_against_it_pass_the_audits_check(tmp_path):
    asked, rng, checked = teacher(tmp_path / "t.onnx", ("r1",)), np.random.default_rng(1), {}
    for draw in range(6):
        task, stages = small_task(asked), []
        fitnets.fitnet(task, lambda stage, stages=stages: stages.append(stage) or {"best_epoch": 1})
        assert stages[0].target.tensor == "r1" and stages[1].target is asked
        images = pictures(2, IMAGE, seed=draw)
        x, labels = images / 255.0, np.array([0, 2])
        for stage in stages:
            problems.settled(stage.network, rng)
            target = stage.target(images).astype(np.float64)  # of bytes, where the student sees numbers
            problem = replace(problems.of_stage(replace(stage, target=None), x, labels), examples=(x, target, labels))
            with suppress(gradcheck.KinkCrossed):  # a draw that decides nothing
                made = gradcheck.check(problem, problem.arrays, rng)
                assert {comparison.oracle for comparison in made} == {"differences", "complex step"}
                assert len(made) == 2 * len(stage.network.params)
                checked[stage.key] = checked.get(stage.key, 0) + 1
    assert checked.keys() == {"hint", "fitnet"} and min(checked.values()) >= 3, checked


def test_methods_that_train_teachers_of_their_own_refuse_it(tmp_path):
    task = small_task(teacher(tmp_path / "t.onnx"))
    with pytest.raises(UserError, match="wanted a teacher that can be trained"):
        fitnets.teacher(task, None, "teacher_2")


def test_a_stages_file_is_a_teacher_for_networks_of_its_own_shape(tmp_path):
    path = saved(tmp_path / "a.h5", image=IMAGE)
    asked, images = given(str(path), IMAGE, 3), pictures(3, IMAGE)
    assert isinstance(asked, Given) and asked.blocks and not asked.children
    np.testing.assert_array_equal(asked(images), asked.model.logits(images))
    np.testing.assert_array_equal(asked[:1](images), asked.layers[:1](Unit()(images)))
    assert pieces_of(asked[:1]) == 2 and pieces_of(asked[:2]) == 3
    for image, classes in (((8, 8, 1), 3), (IMAGE, 4)):
        with pytest.raises(UserError, match="wanted"):
            given(str(path), image, classes)
    wrong = (asked(images).argmax(axis=1) + 1) % 3
    with pytest.raises(UserError, match="look at the data that trained it"):
        asked.check(images, wrong)
    with pytest.raises(UserError, match="are for ONNX models"):
        given(str(path), IMAGE, 3, ("r1",))


def test_the_file_of_an_unfinished_stage_is_no_teacher(tmp_path):
    path = saved(tmp_path / "a.h5", image=IMAGE)
    record, groups = files.load(path)
    for finished in (True, False):
        files.save(path, record | {"finished": finished, "epoch": 3}, **groups)
        if finished:
            FromFile(path, IMAGE, 3)
    with pytest.raises(UserError, match="is not finished, at epoch 3"):
        FromFile(path, IMAGE, 3)


def test_a_stages_file_teaches_on_the_device_and_asks_nothing_of_the_host(tmp_path):
    images, prepare = pictures(5, IMAGE), fit(pictures(50, IMAGE))
    files.save(tmp_path / "whitening.h5", {}, zca={"mean": prepare.zca.mean, "matrix": prepare.zca.matrix})
    layers = small(IMAGE)
    about = describe(layers, "small", IMAGE, prepare, tmp_path / "whitening.h5")
    files.save(tmp_path / "a.h5", {"identity": {}, "network": about}, best=dict(layers.params))
    host, device = (FromFile(tmp_path / "a.h5", IMAGE, 3, xp) for xp in (np, strict))
    assert host.described() == device.described()
    shown = strict.asarray(images)
    for one, other in ((host, device), (host[:1], device[:1])):
        strict.SYNCHRONISATIONS.clear()
        y = other(shown)
        assert not strict.SYNCHRONISATIONS
        np.testing.assert_allclose(y.get(), one(images), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(one(shown).get(), one(images), rtol=1e-6)
        np.testing.assert_allclose(other(images), one(images), rtol=1e-5, atol=1e-5)
    labels = host(images).argmax(axis=1)
    assert host.errors(images, labels) == device.errors(images, labels, workers=3) == 0


def test_the_papers_pair_stays_for_a_teacher_whose_hint_is_of_the_same_size(tmp_path):
    one = experiments.EXPERIMENTS["cifar10-30m-11"]  # without the paper's pair, layer 6 would be guided
    paper, narrow = one.presets["paper"], networks.widened(one.teacher, 0.05)

    def pair(name, network):
        path = saved(tmp_path / name, drawn(network), network.input)
        config = teachers.experiment(one, path).presets["paper"]
        return config.guided_layer, config.hint_layer, config.regressor

    papers = paper.guided_layer, paper.hint_layer, paper.regressor
    assert pair("narrow.h5", narrow) == papers
    first, *rest = narrow.blocks
    assert pair("larger.h5", replace(narrow, blocks=(replace(first, pool=None), *rest)))[0] != papers[0]
    assert pair("shorter.h5", replace(narrow, blocks=(first, rest[-1])))[1] == (1,)


def digits_teacher(path):
    """Nearest of the mean digits, by one convolution of one step: far from chance, and no network of minifit's."""
    digits = data.load("digits", train=500, test=10)
    means = np.stack([digits.images[digits.labels == k].mean(axis=0)[..., 0] for k in range(10)]) / 255
    weights = {"w": means[:, None].astype(np.float32), "b": -0.5 * (means**2).sum(axis=(1, 2)).astype(np.float32)}
    nodes = [
        helper.make_node("AveragePool", ["images"], ["hidden"], kernel_shape=[7, 7], strides=[7, 7]),
        helper.make_node("Conv", ["images", "w", "b"], ["maps"]),
        helper.make_node("Flatten", ["maps"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "means",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ("N", 1, 28, 28))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ("N", 10))],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


SIZES = ["--train", "60", "--validation", "20", "--test", "100", "--stage1.epochs", "1", "--student.epochs", "1"]


def test_the_stages_are_trained_by_the_documented_command_and_its_accuracy_comes_first(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(EXPERIMENTS, "digits", LIGHT)
    monkeypatch.setattr(runner, "draw", lambda _: None)
    model, runs = digits_teacher(tmp_path / "means.onnx"), tmp_path / "runs"
    words = ["digits", *SIZES, "--teacher", model, "--hint-tensor", "hidden", "--runs", runs]
    status, out, err = command(capsys, *words)
    assert status == 0, err
    test = data.load("digits", train=80, test=100)
    errors = FromOnnx(model, (28, 28, 1), 10).errors(test.test_images, test.test_labels)
    assert out.startswith(f"means.onnx: test error {errors:.2f} % of 100 images") and errors < 60
    folder = runs / "digits" / "seed0"
    record = json.loads((folder / "config.json").read_text())["settings"]["networks"]["teacher"]
    assert record["hints"] == ["hidden"] and record["range"] == 1.0 and record["layout"] == "channels first"
    summary = json.loads((folder / "summary.json").read_text())
    assert [*summary["stages"]] == ["backprop", "kd", "hint", "fitnet"] and summary["teacher_error"] == errors
    before = {path.name: path.read_bytes() for path in folder.glob("*.h5")}
    assert command(capsys, *words)[0] == 0 and before == {p.name: p.read_bytes() for p in folder.glob("*.h5")}
    assert "networks.teacher.range 1.0, now 255.0" in command(capsys, *words, "--teacher-range", 255)[2]
    status, out, _ = command(capsys, "predict", folder / "fitnet.h5", saved_picture(tmp_path))
    assert status == 0
    exporting = "export", folder / "fitnet.h5", tmp_path / "student.onnx"
    assert "is tested on digits; wanted --data-dir" in refused(capsys, *exporting, "--data", model)
    assert "on 100 test images of digits" in command(capsys, *exporting)[1]

    whole = (folder / "summary.json").read_text()
    write_record(folder / "summary.json", summary | {"teacher_error": 1.0})
    for edited in (words, ["compare", folder]):
        said = command(capsys, *edited)[2]
        assert f"summary.json: teacher_error {float(errors)}, in summary.json 1.0. Remove" in said
    write_record(folder / "summary.json", summary | {"teacher_error": 1.0, "stages": {}})
    assert command(capsys, *words)[0] == 0 and json.loads((folder / "summary.json").read_text()) == json.loads(whole)

    # measured on a processor that rounds otherwise: the error stays what it was
    for stage in ("backprop", "kd", "hint"):
        saved_record, groups = files.load(folder / f"{stage}.h5")
        saved_record["heading"]["teacher_error"] = 58.5
        files.save(folder / f"{stage}.h5", saved_record, **groups)
    (folder / "fitnet.h5").unlink()
    write_record(folder / "summary.json", summary | {"teacher_error": 58.5})
    assert command(capsys, *words)[0] == 0
    assert json.loads((folder / "summary.json").read_text())["teacher_error"] == 58.5
    assert files.load_record(folder / "fitnet.h5")["heading"]["teacher_error"] == 58.5
    assert command(capsys, *words)[0] == 0


def test_a_teacher_from_a_run_is_the_file_of_its_last_phase(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(EXPERIMENTS, "digits", LIGHT)
    monkeypatch.setattr(runner, "draw", lambda _: None)
    words = ["digits", "--workers", 1, *SIZES, "--teacher.epochs", 3, "--guided-layer", 2, "--hint-layer", 1]
    for name, phase in (("one", 0), ("two", 1)):
        given = [*words, "--teacher-all", phase, "--stage", "teacher", "--runs", tmp_path / name]
        assert command(capsys, *given)[0] == 0
        folder, runs = tmp_path / name / "digits" / "seed0", tmp_path / f"from {name}"
        monkeypatch.setattr(Given, "check", lambda *_: 7.0)  # after three epochs it knows little
        more = ["--stage", "kd", "--seed", 3, "--runs", runs]
        status, out, err = command(capsys, *words, *more, "--teacher-from", folder)
        assert (status, err) == (0, "") and [p.name for p in runs.glob("*/*/*.h5")] == ["kd.h5"]
        status, out, err = command(capsys, *words, *more, "--teacher-from", folder, "--arm", "tau=1")
        assert (status, err) == (0, "") and (runs / "tau=1.0" / "digits" / "seed3" / "kd.h5").exists()
        last = "teacher_all" if phase else "teacher"
        assert command(capsys, *words, *more, "--teacher", folder / f"{last}.h5")[0] == 0  # the same run
        assert "kd: " in out and "--stage teacher: wanted" in refused(
            capsys, *words, *more, "--teacher-from", folder, "--stage", "teacher"
        )


def saved_picture(folder):
    np.save(folder / "digit.npy", np.zeros((1, 28, 28, 1), np.uint8))
    return folder / "digit.npy"


def test_what_cannot_be_meant_on_the_command_line_writes_nothing(tmp_path, capsys):
    model, runs = digits_teacher(tmp_path / "means.onnx"), tmp_path / "runs"
    words = ["digits", *SIZES, "--runs", runs, "--teacher"]
    for more, reason in {
        (model,): "--hint-tensor: wanted",
        (model, "--hint-tensor", "hiden"): "did you mean hidden?",
        (model, "--hint-tensor", "hidden", "--teacher-std", "0"): "wanted a number above 0",
        (model, "--hint-tensor", "hidden", "--teacher-mean", "1", "2"): "one for each of 1 channels",
        (model, "--hint-tensor", "hidden", "--teacher-from", "x"): "wanted one of them",
        (model, "--hint-tensor", "hidden", "--stage", "teacher"): "--stage teacher: wanted",
        (model, "--hint-tensor", "hidden", "--method", "joint-hint"): "cannot be taken apart",
        (model, "--hint-tensor", "hidden", "--method", "kd-ensemble"): "wanted a teacher that can be trained",
        (model, "--hint-tensor", "hidden", "--teacher-mean", "5", "--teacher-std", "9"): "look at --teacher-mean",
        (model, "--hint-tensor", "hidden", "--teacher-width-scale", ".5"): "which has its width; leave it out",
        ("96-192",): "wanted a file that ends in .onnx or .h5",
        (tmp_path / "none.h5",): "No such file",
        (tmp_path / "none.h5", "--teacher-from", "x"): "wanted one of them",
        (saved(tmp_path / "a.h5"),): "wanted (28, 28, 1) of 10",
    }.items():
        assert reason in refused(capsys, *words, *more)
    assert not runs.exists()


def test_a_pytorch_network_is_exported_as_the_front_page_says_and_errs_on_the_same_images(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch", reason="the extra [bench], PyTorch, is not installed")
    from torch import nn

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

        def forward(self, x):
            return torch.relu(x + self.norm(self.conv(x)))

    torch.manual_seed(0)
    front = nn.Conv2d(1, 8, 5, stride=4), nn.BatchNorm2d(8), nn.ReLU()
    network = nn.Sequential(*front, Residual(), nn.Flatten(), nn.Linear(8 * 36, 10))
    digits = data.load("digits", train=600, test=100)
    x, tests = (
        torch.tensor((a.transpose(0, 3, 1, 2) / 255 - 0.2) / 0.3, dtype=torch.float32)
        for a in (digits.images, digits.test_images)
    )
    optimizer, labels = torch.optim.Adam(network.parameters(), 3e-3), torch.tensor(digits.labels)
    for i in range(0, 4 * 600, 50):
        part = slice(i % 600, i % 600 + 50)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x[part]), labels[part]).backward()
        optimizer.step()

    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    [code] = [block for block in re.findall(r"^```python\n(.*?)^```$", readme, re.M | re.S) if "torch.onnx" in block]
    assert len(code.splitlines()) <= 5
    monkeypatch.chdir(tmp_path)
    exec(code, {"network": network.train()})

    path = tmp_path / "teacher.onnx"
    wrong = (network(tests).argmax(dim=1).numpy() != digits.test_labels).sum()
    asked = FromOnnx(path, (28, 28, 1), 10, (), Pixels((0.2,), (0.3,)))
    assert asked.errors(digits.test_images, digits.test_labels) == wrong < 60
    assert [shape for shape in teachers.Onnx(path).maps().values()].count((8, 6, 6)) >= 4
