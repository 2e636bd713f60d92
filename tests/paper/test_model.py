"""A network's file says what it takes to rebuild it: every layer comes back, and h5py alone reads all of it."""

import json

import h5py
import numpy as np
import pytest

import minifit
from minifit import UserError, composites, files, layers, networks
from minifit.composites import Branches, Composite, Mean, Sequential
from minifit.data import preprocessing
from minifit.data.preprocessing import ZCA, Unit, Whitened
from minifit.layers import (
    Bias,
    Binary,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAverage,
    Layer,
    Linear,
    Log,
    Maxout,
    MaxPool2d,
    ReLU,
    Reshape,
    Scale,
    Sigmoid,
    Softmax,
)
from minifit.model import describe, load, rebuild, tree

RNG = np.random.default_rng(0)


def weights(*shape):
    return RNG.normal(size=shape).astype(np.float32)


LEAVES = [
    Conv2d(weights(3, 2, 1, 4), weights(4), pad=1),
    Linear(weights(5, 3), weights(3)),
    Bias(weights(2, 3)),
    Scale(weights(4), weights(4)),
    Maxout(2),
    MaxPool2d(3, 2),
    MaxPool2d(2, 2, ceil=False),
    GlobalAverage(),
    Log(2.0),
    ReLU(),
    Binary(),
    Sigmoid(),
    Softmax(3.0),
    Dropout(0.5, rescale=False),
    Flatten(),
    Reshape((2, 3)),
]


def saved(path, network, image=(8, 8, 1), prepare=None, statistics=None, **more):
    about = describe(network, "small", image, prepare or Unit(), statistics, **more)
    files.save(path, {"identity": {}, "network": about}, best=dict(network.params))
    return path


def small(image=(8, 8, 1)):
    blocks = networks.Conv(4, 3, pool=(3, 2)), networks.FullyConnected(6, pieces=3), networks.Output(3)
    network = networks.build(networks.Network("small", image, blocks), dropout_keep=0.5)
    networks.initialise(network, np.random.default_rng(1))
    return network


def pictures(n, image=(8, 8, 1)):
    return np.random.default_rng(2).integers(0, 256, (n, *image)).astype(np.uint8)


def refusal(path):
    with pytest.raises(UserError) as caught:
        load(path)
    line = str(caught.value)
    assert "\n" not in line and str(path) in line
    return line


def test_every_kind_of_layer_is_here():
    found = [kind for module in (layers, composites) for kind in vars(module).values()]
    kinds = {kind for kind in found if isinstance(kind, type) and issubclass(kind, Layer)}
    assert kinds - {type(leaf) for leaf in LEAVES} == {k for k in kinds if issubclass(k, Composite) or k is Layer}, (
        "a new layer: add it to LEAVES, and see that its constructor takes what vars() shows of it"
    )


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: type(leaf).__name__)
def test_a_layer_comes_back_from_json_and_its_arrays(leaf):
    back = rebuild(json.loads(json.dumps(tree(leaf, {}))), dict(leaf.params))
    assert type(back) is type(leaf)
    assert {n: v for n, v in vars(back).items() if n not in ("params", "max_norm")} == {
        n: v for n, v in vars(leaf).items() if n not in ("params", "max_norm")
    }
    assert [*back.params] == [*leaf.params] and all(back.params[n] is p for n, p in leaf.params.items())


def test_composites_come_back_with_the_names_of_their_parameters():
    trunk = Sequential([Linear(weights(5, 5), weights(5)) for _ in range(12)])
    network = Mean([Branches(trunk, {10: Linear(weights(5, 2), weights(2)), 3: trunk[:1]}), trunk])
    back = rebuild(json.loads(json.dumps(tree(network, {}), sort_keys=True)), dict(network.params))
    assert [*back.params] == [*network.params]
    x = weights(4, 5)
    for one, other in zip(back.children["0"](x), network.children["0"](x), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_model_from_a_file_gives_the_networks_own_probabilities(tmp_path):
    network, images = small(), pictures(150)
    model = load(saved(tmp_path / "a.h5", network))
    np.testing.assert_allclose(model.logits(images), network(Unit()(images)), rtol=0, atol=1e-6)
    assert model.input == (8, 8, 1) and model.classes == 3
    np.testing.assert_allclose(minifit.load(tmp_path / "a.h5")(images).sum(axis=1), 1, atol=1e-6)
    assert model(images[:0]).shape == (0, 3)


def test_whitened_images_are_prepared_by_the_statistics_beside_the_file_or_in_a_cache_above(tmp_path):
    image = 4, 4, 2
    prepare = preprocessing.fit(pictures(50, image))
    runs = tmp_path / "runs"
    folder = runs / "x" / "seed0"
    folder.mkdir(parents=True)
    path = saved(folder / "a.h5", small(image), image, prepare, folder / "whitening-1.h5")
    assert "whitening-1.h5 is neither beside it" in refusal(path)
    (runs / ".cache").mkdir()
    zca = {"mean": prepare.zca.mean, "matrix": prepare.zca.matrix}
    files.save(runs / ".cache" / "whitening-1.h5", {}, zca=zca)
    model = load(path)
    assert isinstance(model.prepare, Whitened) and isinstance(model.prepare.zca, ZCA)
    x = pictures(5, image)
    np.testing.assert_array_equal(model.prepare(x), prepare(x))


def test_an_outsider_with_h5py_alone_computes_the_same(tmp_path):
    """What follows knows the file and NumPy, and nothing of minifit."""
    images = pictures(7)
    expected = load(saved(tmp_path / "a.h5", small())).logits(images)

    with h5py.File(tmp_path / "a.h5") as file:
        about = json.loads(file["record"][()].tobytes())["network"]
        arrays = {name: d[()] for name, d in file["best"].items()}
    assert about["preprocessing"]["kind"] == "Unit" and about["layers"]["kind"] == "Sequential"
    x = images / 255.0
    for layer in (layer for block in about["layers"]["children"] for layer in block["children"]):
        p = {name.rpartition(".")[2]: arrays[name] for name in layer.get("parameters", ())}
        if layer["kind"] == "Conv2d":
            x = np.pad(x, ((0, 0), *[(layer["pad"],) * 2] * 2, (0, 0)))
            windows = np.lib.stride_tricks.sliding_window_view(x, p["w"].shape[:2], axis=(1, 2))
            x = np.einsum("npqcrs,rsck->npqk", windows, p["w"]) + p["b"]
        elif layer["kind"] == "Linear":
            x = x @ p["w"] + p["b"]
        elif layer["kind"] == "Maxout":
            x = x.reshape(*x.shape[:-1], layer["pieces"], -1).max(axis=-2)
        elif layer["kind"] == "MaxPool2d":
            assert layer["ceil"]
            rows, columns, _ = layer["output"]
            s, size = layer["stride"], layer["size"]
            cells = [x[:, i * s : i * s + size, j * s : j * s + size] for i in range(rows) for j in range(columns)]
            x = np.stack([cell.max(axis=(1, 2)) for cell in cells], axis=1).reshape(len(x), rows, columns, -1)
        elif layer["kind"] == "Flatten":
            x = x.reshape(len(x), -1)
        else:
            assert layer["kind"] == "Dropout"
        assert [*x.shape[1:]] == layer["output"]
    np.testing.assert_allclose(x, expected, rtol=0, atol=1e-5)


def test_a_preparations_definition_has_the_formulas_of_all_that_it_names():
    prepare = preprocessing.fit(pictures(50, (4, 4, 2)))
    for prepared, formulas in (
        (prepare, ("y = (x - mean(x)) / d", "y = (x - mean) matrix")),
        (preprocessing.Local(1), ("y = (x - mean(x)) / d", "y = (x - G * x) / max(d, mean(d), threshold)")),
    ):
        definition = describe(small((4, 4, 2)), "small", (4, 4, 2), prepared)["preprocessing"]["definition"]
        assert all(formula in definition for formula in formulas)


@pytest.mark.parametrize("network", networks.NETWORKS, ids=lambda network: network.name)
def test_every_network_of_the_paper_is_described_with_all_its_parameters(network):
    image = network.input
    if np.prod(image) * len(network.blocks) > 3072 * 12:
        network = networks.widened(network, 0.25)
    built = networks.build(network)
    about = describe(built, network.name, image, Unit())
    back = rebuild(about["layers"], dict(built.params))
    assert [*back.params] == [*built.params] and about["classes"] == built(np.zeros((0, *image), "f4")).shape[1]


def test_a_description_that_was_tampered_with_is_one_line(tmp_path):
    path, rng = tmp_path / "a.h5", np.random.default_rng(0)
    record, groups = files.load(saved(path, small()))
    others = [None, -1, 0, 10**9, "x", [], {}, 1.5, True, "Mean", "Branches", "Conv2d", "np"]

    def changed(value):
        if isinstance(value, dict):
            return {name: changed(inner) for name, inner in value.items() if rng.random() > 0.02}
        if isinstance(value, list):
            return [changed(inner) for inner in value]
        return others[rng.integers(len(others))] if rng.random() < 0.02 else value

    for _ in range(60):
        files.save(path, changed(record), **groups)
        try:
            load(path)(pictures(2))
        except UserError as error:
            assert "\n" not in str(error)


def test_images_of_another_kind_are_refused_in_one_line(tmp_path):
    model = load(saved(tmp_path / "a.h5", small()))
    for images in (np.zeros((2, 8, 8, 1)), np.zeros((2, 8, 9, 1), np.uint8), np.zeros((8, 8, 1), np.uint8), [1]):
        with pytest.raises(UserError, match=r"small wants uint8 \(N, 8, 8, 1\)"):
            model(images)


def test_what_is_no_classifiers_file_is_refused_in_one_line(tmp_path):
    path, network = tmp_path / "a.h5", small()
    assert refusal(path) == f"{path}: No such file or directory"
    path.write_bytes(b"")
    assert "not a whole minifit file" in refusal(path)
    files.save(path, {"epoch": 1}, best={})
    assert "does not describe its network" in refusal(path)
    assert "layers 1-2, which does not classify" in refusal(
        saved(path, network[:2], classifies=False, part=", layers 1-2")
    )
    about = describe(network, "small", (8, 8, 1), Unit())
    for broken in (
        about | {"layers": about["layers"] | {"kind": "np"}},
        about | {"layers": about["layers"] | {"kind": "Autoassociator"}},
        about | {"classes": 4},
        about | {"preprocessing": {"kind": "fit"}},
        about | {"input": [20, 20, 1]},
        *({name: value for name, value in about.items() if name != missing} for missing in ("layers", "name")),
        about | {"name": 7},
    ):
        files.save(path, {"network": broken}, best=dict(network.params))
        assert "does not fit its arrays" in refusal(path)
    for change in (lambda p: p[..., :1], lambda p: p.astype(np.float64)):
        files.save(path, {"network": about}, best={n: change(p) for n, p in network.params.items()})
        assert "does not fit its arrays" in refusal(path)
    whole = saved(path, network).read_bytes()
    path.write_bytes(whole[:-100])
    assert "remove it" not in refusal(path)
