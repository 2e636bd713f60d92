"""Exported networks: whatever runs them gives minifit's own answers, and what cannot be exported is not written."""

import json

import numpy as np
import pytest
from exported import IMAGE, command, drawn, model_of, pictures, refused, saved, small

from minifit import UserError, composites, layers, networks
from minifit.composites import Branches, Mean, Sequential
from minifit.data import preprocessing
from minifit.data.preprocessing import Local, Unit
from minifit.lab import export
from minifit.layers import Flatten, GlobalAverage, Layer, Linear
from minifit.model import load

onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")


def weights(*shape):
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def classifier(*middle, image=IMAGE, classes=3):
    """A network of these layers, and a linear one behind them."""
    below = Sequential(middle)
    d = int(np.prod(below(np.zeros((0, *image), np.float32)).shape[1:]))
    return below + Sequential([Flatten(), Linear(weights(d, classes), weights(classes))])


CONV = layers.Conv2d(weights(3, 2, 1, 6), weights(6), pad=1)
NETWORKS = {
    "Conv2d": classifier(CONV),
    "Maxout": classifier(CONV, layers.Maxout(3)),
    "Maxout of one piece": classifier(CONV, layers.Maxout(1)),
    "Maxout of rows": classifier(Flatten(), layers.Maxout(4)),
    "MaxPool2d": classifier(CONV, layers.MaxPool2d(3, 2)),
    "MaxPool2d, stride above size": classifier(CONV, layers.MaxPool2d(1, 3)),
    "MaxPool2d above the map": classifier(CONV, layers.MaxPool2d(20, 2)),
    "MaxPool2d, floor": classifier(CONV, layers.MaxPool2d(4, 3, ceil=False)),
    "GlobalAverage": classifier(CONV, GlobalAverage()),
    "ReLU": classifier(CONV, layers.ReLU()),
    "Sigmoid": classifier(CONV, layers.Sigmoid()),
    "Dropout": classifier(layers.Dropout(0.5), CONV),
    "Reshape": classifier(Flatten(), layers.Reshape((11, 4, 3)), layers.MaxPool2d(2, 2)),
    "Reshape of maps": classifier(CONV, layers.Reshape((6, 12, 12)), layers.MaxPool2d(2, 2)),
    "Softmax, Log": classifier(Flatten(), layers.Softmax(2.0), layers.Log(3.0)),
    "Scale": classifier(Flatten(), layers.Scale(weights(132), weights(132))),
    "Binary": Sequential([*classifier(CONV, classes=1), layers.Binary()]),
    "Mean": Mean([classifier(CONV), classifier(layers.MaxPool2d(3, 2))]),
    "Branches": Branches(classifier(CONV), {1: Sequential([Flatten(), Linear(weights(864, 3), weights(3))])}),
}


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_a_layer_gives_the_same_in_onnxruntime(network):
    model = model_of(network)
    assert export.check(export.onnx_model(model), model, pictures(5)) < 1e-5


def test_every_layer_can_be_exported_or_is_refused_by_name():
    found = [kind for module in (layers, composites) for kind in vars(module).values()]
    kinds = {kind for kind in found if isinstance(kind, type) and issubclass(kind, Layer)}
    known = {*export.emit.registry}
    assert {k.__name__ for k in kinds - known} == {"Layer", "Composite", "Autoassociator", "Bias"}
    bias = Sequential([layers.Bias(weights(*IMAGE)), *classifier(CONV)])
    with pytest.raises(UserError, match="a Bias cannot be exported"):
        export.onnx_model(model_of(bias))


@pytest.mark.parametrize("network", networks.NETWORKS, ids=lambda network: network.name)
def test_every_network_of_the_paper_makes_the_round_trip(network):
    network = networks.widened(network, 0.25)  # the same layers
    model = model_of(drawn(network), network.input)
    assert export.check(export.onnx_model(model), model, pictures(4, network.input)) < 1e-5


OTHERS = (
    networks.nin_mnist(),
    networks.nin_cifar(),
    networks.nin_svhn(relu=False),
    networks.maxout_dense(),
    networks.mimic((12, 11, 3), 5, bottleneck=4, hidden=20, channels=6, pool=(3, 2, False)),
    networks.of_sigmoids(networks.MNIST_FITNET),
)


@pytest.mark.parametrize("network", OTHERS, ids=lambda network: network.name)
def test_so_does_every_other_system_of_its_tables(network):
    model = model_of(drawn(network), network.input)
    assert export.check(export.onnx_model(model), model, pictures(2, network.input)) < 1e-5


@pytest.mark.parametrize("prepare", [Unit(), Local(), Local(channels=1), None], ids=repr)
def test_the_preparation_of_images_is_inside_the_graph(prepare):
    image, flat = (9, 8, 3), np.zeros((1, 9, 8, 3), np.uint8)
    prepare = prepare or preprocessing.fit(pictures(40, image))
    model = model_of(small(image), image, prepare)
    images = np.concatenate([pictures(5, image), flat, flat + 200])  # an image of one colour has no contrast
    assert export.check(export.onnx_model(model), model, images) < 1e-5


def test_the_command_writes_a_model_from_bytes_to_probabilities_for_any_number_of_images(tmp_path, capsys):
    path = saved(tmp_path / "a.h5")
    status, out, err = command(capsys, "export", path, tmp_path / "a.onnx")
    assert (status, err) == (0, "") and "opset 17" in out and "random images" in out
    run = export.session(str(tmp_path / "a.onnx"))
    (given,), (made,) = run.get_inputs(), run.get_outputs()
    assert (given.name, given.type, given.shape) == ("images", "tensor(uint8)", ["N", *IMAGE])
    assert (made.name, made.type, made.shape) == ("probabilities", "tensor(float)", ["N", 3])
    for n in (1, 3, 130):
        images = pictures(n)
        np.testing.assert_allclose(run.run(None, {"images": images})[0], load(path)(images), rtol=0, atol=1e-5)
    assert onnx.load(tmp_path / "a.onnx").opset_import[0].version == export.OPSET
    onnx.checker.check_model(onnx.load(tmp_path / "a.onnx"), full_check=True)


def test_a_model_that_does_not_agree_is_not_written(tmp_path, capsys, monkeypatch):
    path, other = saved(tmp_path / "a.h5"), export.onnx_model(model_of(small(seed=3)))
    monkeypatch.setattr(export, "onnx_model", lambda model: other)
    assert "differ from minifit's by" in refused(capsys, "export", path, tmp_path / "a.onnx")
    assert [*tmp_path.iterdir()] == [path]


def test_safetensors_hold_the_parameters_and_the_description(tmp_path, capsys):
    path, out = saved(tmp_path / "a.h5"), tmp_path / "a.safetensors"
    assert command(capsys, "export", path, out)[0] == 0
    content = out.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    about = json.loads(header.pop("__metadata__")["network"])
    model = load(path)
    assert about == model.about and header.keys() == model.layers.params.keys() and end % 8 == 0
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        found = np.frombuffer(content[end + start : end + stop], "<f4").reshape(entry["shape"])
        np.testing.assert_array_equal(found, model.layers.params[name])
    assert max(entry["data_offsets"][1] for entry in header.values()) == len(content) - end


def test_what_cannot_be_exported_is_one_line_and_writes_nothing(tmp_path, capsys):
    path = saved(tmp_path / "a.h5")
    (tmp_path / "cut.h5").write_bytes(path.read_bytes()[:-50])
    assert "wanted .onnx or .safetensors" in refused(capsys, "export", path, tmp_path / "a.pt")
    assert "no such folder" in refused(capsys, "export", path, tmp_path / "none" / "a.onnx")
    assert "not a whole minifit file" in refused(capsys, "export", tmp_path / "cut.h5", tmp_path / "a.onnx")
    assert "No such file" in refused(capsys, "export", tmp_path / "b.h5", tmp_path / "a.onnx")
    assert "export: wanted" in refused(capsys, "export", path)
    path.rename(tmp_path / "a.safetensors")
    assert "is the file to export" in refused(capsys, "export", tmp_path / "a.safetensors", tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").rename(path)
    assert "--opset: no such option" in refused(capsys, "export", path, tmp_path / "a.onnx", "--opset", 3)
    assert {p.name for p in tmp_path.iterdir()} == {"a.h5", "cut.h5"}


def test_without_the_extra_the_line_says_how_to_get_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    line = refused(capsys, "export", saved(tmp_path / "a.h5"), tmp_path / "a.onnx")
    assert "pip install -e '.[onnx]'" in line
