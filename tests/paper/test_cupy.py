"""The same numbers from NumPy and from the device: every layer, loss, optimiser and stage.

Each test runs twice: on the stand-in of strict.py, which needs no GPU, and on CuPy where there is one.
"""

import inspect
import json
from dataclasses import replace

import numpy as np
import pytest
import strict

from minifit import UserError, fitnets, layers, losses, networks
from minifit.lab import files as checkpoints
from minifit.backend import array_module, describe, to_host, use
from minifit.data import Dataset
from minifit.experiments import MNIST_PAPER, Experiment
from minifit.layers import Conv2d, Dropout, Flatten, Linear, Maxout, MaxPool2d, ReLU, Reshape, Sequential, Softmax
from minifit.networks import Conv, FullyConnected, Network, Output
from minifit.optimizers import SGD, RMSProp, max_norm
from minifit.lab.plan import outline
from minifit.regressors import regressor
from minifit.lab.runner import Run
from minifit.lab.training import Examples, Pass, Schedule

# The largest differences from NumPy, in units of an array's largest number: of one operation, and after two epochs.
PRECISION = {
    "strict": {np.float32: 2e-6, np.float64: 1e-12, "run": 1e-4},
    "cupy": {np.float32: 1e-5, np.float64: 1e-10, "run": 1e-3},
}


@pytest.fixture(scope="module", params=["strict", "cupy"])
def xp(request):
    if request.param == "strict":
        return strict
    try:
        return use(request.param)
    except UserError as missing:
        pytest.skip(str(missing))


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


def agree(found, expected, precision):
    """Every array of `found`, on whatever device, is that of `expected` but for rounding, and of its dtype."""
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        other = to_host(found[name])
        assert (other.shape, other.dtype) == (array.shape, array.dtype), name
        error = np.abs(other.astype(float) - array).max(initial=0) / max(np.abs(array).max(initial=0), 1e-30)
        assert error <= precision, f"{name} is off by {error:.1e} of its largest number, allowed {precision:.0e}"


class Draw:
    """Random arrays, the same ones in every library."""

    def __init__(self, xp, dtype):
        self.xp, self.dtype, self.rng = xp, dtype, np.random.default_rng(0)

    def __call__(self, *shape):
        return self.xp.asarray(self.rng.standard_normal(shape).astype(self.dtype))

    def labels(self, n, classes):
        return self.xp.asarray(self.rng.integers(0, classes, n))


def block(draw):
    return Sequential([Conv2d(draw(3, 3, 2, 6), draw(6), pad=1), Maxout(2), MaxPool2d(3, 2)])


def regress(kind, guided, hint, pieces):
    return lambda draw: regressor(kind, guided, hint, pieces, np.random.default_rng(1), 0.5, draw.xp, draw.dtype)


# What is drawn -> how it is made of random parameters, and the shape of its input.
LAYERS = {
    "Linear": (lambda draw: Linear(draw(6, 4), draw(4)), (5, 6)),
    "Conv2d": (lambda draw: Conv2d(draw(3, 2, 2, 5), draw(5)), (3, 6, 4, 2)),
    "Conv2d padded": (lambda draw: Conv2d(draw(4, 3, 2, 5), draw(5), pad=2), (3, 4, 5, 2)),
    "Conv2d of one pixel": (lambda draw: Conv2d(draw(1, 1, 3, 2), draw(2)), (2, 3, 4, 3)),
    "Maxout 2": (lambda draw: Maxout(2), (3, 4, 2, 6)),
    "Maxout 5": (lambda draw: Maxout(5), (4, 10)),
    "MaxPool2d 2/2": (lambda draw: MaxPool2d(2, 2), (2, 4, 6, 3)),
    "MaxPool2d 4/2 cut by the border": (lambda draw: MaxPool2d(4, 2), (2, 7, 9, 3)),
    "MaxPool2d 2/3": (lambda draw: MaxPool2d(2, 3), (2, 8, 7, 2)),
    "MaxPool2d larger than the map": (lambda draw: MaxPool2d(5, 1), (2, 3, 2, 2)),
    "ReLU": (lambda draw: ReLU(), (4, 5)),
    "Softmax": (lambda draw: Softmax(3.0), (4, 7)),
    "Dropout": (lambda draw: Dropout(0.5), (6, 5)),
    "Dropout not rescaled": (lambda draw: Dropout(0.8, rescale=False), (6, 5)),
    "Flatten": (lambda draw: Flatten(), (3, 2, 4, 2)),
    "Reshape": (lambda draw: Reshape((2, 3)), (4, 6)),
    "Sequential": (block, (3, 6, 5, 2)),
    "Sequential of none": (lambda draw: Sequential([]), (3, 2)),
    "conv regressor, maxout": (regress("conv", (5, 6, 3), (3, 2, 4), 2), (2, 5, 6, 3)),
    "conv regressor, ReLU": (regress("conv", (5, 6, 3), (3, 2, 4), None), (2, 5, 6, 3)),
    "fc regressor": (regress("fc", (2, 3, 2), (3, 4, 2), 2), (3, 2, 3, 2)),
}


def through(xp, dtype, case):
    """Everything that a layer computes."""
    make, shape = LAYERS[case]
    draw = Draw(xp, dtype)
    layer, x = make(draw), draw(*shape)
    y, cache = layer.forward(x, np.random.default_rng(2))
    dy = draw(*y.shape)
    dx, grads = layer.backward(dy, cache)
    alone = layer.weight_gradients(dy, cache)
    assert all(array_module(a) is xp for a in (y, dx, *grads.values(), *alone.values()))
    named = {f"{kind} {name}": g for kind, gs in (("d", grads), ("alone d", alone)) for name, g in gs.items()}
    return {"y": y, "dx": dx, "y without noise": layer(x), **named}


@pytest.mark.parametrize("case", LAYERS)
def test_a_layer_gives_the_same_on_the_device(xp, dtype, case):
    agree(through(xp, dtype, case), through(np, dtype, case), PRECISION[xp.__name__][dtype])


def test_every_layer_is_in_the_table():
    def kinds(layer):
        return {type(layer)}.union(*map(kinds, getattr(layer, "layers", [])))

    defined = {kind for kind in vars(layers).values() if inspect.isclass(kind) and issubclass(kind, layers.Layer)}
    tested = set().union(*(kinds(make(Draw(np, np.float64))) for make, _ in LAYERS.values()))
    assert defined - tested == {layers.Layer}


LOSSES = {
    "cross_entropy": lambda draw: losses.cross_entropy(draw(5, 7), draw.labels(5, 7)),
    "distillation_loss": lambda draw: losses.distillation_loss(draw(5, 7), draw(5, 7), draw.labels(5, 7), 3.0, 4.0),
    "distillation_loss, hot": lambda draw: losses.distillation_loss(
        100 * draw(5, 7), draw(5, 7), draw.labels(5, 7), 0.1, 0.0
    ),
    "hint_loss": lambda draw: losses.hint_loss(draw(4, 3, 2, 5), draw(4, 3, 2, 5)),
    "log_softmax": lambda draw: (losses.log_softmax(1e4 * draw(5, 7)), draw(1)),
}


@pytest.mark.parametrize("case", LOSSES)
def test_a_loss_gives_the_same_on_the_device(xp, dtype, case):
    found, expected = (dict(zip(["loss", "gradient"], LOSSES[case](Draw(lib, dtype)), strict=True)) for lib in (xp, np))
    assert found["loss"].shape == expected["loss"].shape  # a device array, on which nobody has waited
    agree(found, expected, PRECISION[xp.__name__][dtype])


@pytest.mark.parametrize("make", [lambda: SGD(0.1, 0.9), lambda: RMSProp(0.01)], ids=["SGD", "RMSProp"])
def test_an_optimizer_steps_the_same_on_the_device(xp, dtype, make):
    def steps(lib):
        draw, optimizer = Draw(lib, dtype), make()
        params = {"w": draw(3, 4), "b": draw(4)}
        kept = dict(params)
        for _ in range(3):
            optimizer.step(params, {"w": draw(3, 4), "b": 1e-6 * draw(4)})
        assert all(params[name] is kept[name] for name in kept)
        return params | {f"state of {name}": s for name, s in optimizer.state.items()}

    agree(steps(xp), steps(np), PRECISION[xp.__name__][dtype])


def test_max_norm_is_the_same_on_the_device(xp, dtype):
    def clipped(lib):
        draw = Draw(lib, dtype)
        params = {"conv": draw(3, 3, 2, 5), "linear": 0.1 * draw(4, 6)}
        for w in params.values():
            max_norm(w, 0.9)
        return params

    agree(clipped(xp), clipped(np), PRECISION[xp.__name__][dtype])


TEACHER = Network(
    "teacher",
    (12, 12, 1),
    (Conv(3, 3, pool=(2, 2), norm=0.9), Conv(4, 3, pad=1, pool=(2, 2), norm=1.9), Output(10, norm=1.9)),
)
STUDENT = Network(
    "student",
    (12, 12, 1),
    (
        Conv(2, 3, norm=0.9),
        Conv(3, 3, pool=(3, 2), pieces=None),
        Conv(3, 3, pad=1, norm=0.9),
        FullyConnected(6),
        Output(10, norm=1.9),
    ),
)
SIZES = {"guided": (3,), "hint": (2,)}


def built(network, xp, dtype, seed, **settings):
    return networks.build(network, np.random.default_rng(seed), xp=xp, dtype=dtype, **settings)


def test_a_network_is_built_scaled_and_counted_the_same_on_the_device(xp, dtype):
    def network(lib):
        net = built(STUDENT, lib, dtype, 3, keep=0.5)
        x = Draw(lib, dtype)(4, 12, 12, 1)
        counts = networks.count(net, x[:1])
        drawn = {f"drawn {name}": p.copy() for name, p in net.params.items()}
        networks.unit_variance(net, x)
        return counts, networks.norms(STUDENT, net), drawn, {"y": net(x), **net.params}

    found, expected = network(xp), network(np)
    assert found[:2] == expected[:2]
    agree(found[2], expected[2], 0)  # weights are drawn on the host
    agree(found[3], expected[3], PRECISION[xp.__name__][dtype])


def stage_of(name, xp, dtype):
    """A stage on random weights, with dropout, and its optimiser."""
    teacher = built(TEACHER, xp, dtype, 4, **({"keep_input": 0.8, "keep": 0.5} if name == "teacher" else {}))
    student = built(STUDENT, xp, dtype, 5, keep=0.5)
    limits = networks.norms(STUDENT, student)
    lam = fitnets.linear(4.0, 1.0, 1, 3)
    if name == "teacher":
        return fitnets.teacher(teacher, networks.norms(TEACHER, teacher)), SGD(0.05, 0.5)
    if name == "backprop":
        return fitnets.backprop(student, limits), RMSProp(0.0005)
    if name in ("kd", "fitnet"):
        return getattr(fitnets, name)(student, teacher, 3.0, lam, limits), RMSProp(0.0005)
    w_r = regressor("conv", (4, 4, 3), (3, 3, 4), 2, np.random.default_rng(6), 0.05, xp, dtype)
    limits = networks.norms(STUDENT, student[:3]) | {"3.w": 0.9}
    return fitnets.hint(student, teacher, w_r, 3, 2, limits), RMSProp(0.0005)


def take_steps(name, xp, dtype, steps=3):
    stage, optimizer = stage_of(name, xp, dtype)
    draw = Draw(xp, dtype)
    for epoch in range(1, steps + 1):
        x, labels = draw(6, 12, 12, 1), draw.labels(6, 10)
        target = None if stage.target is None else stage.target(x)
        loss, grads = fitnets.gradient(stage, x, target, labels, epoch, np.random.default_rng(epoch), 0.5)
        optimizer.step(stage.network.params, grads)
        for key, limit in stage.norms.items():
            max_norm(stage.network.params[key], limit)
    loss_after, errors = fitnets.measure(stage, x, target, labels, epoch)
    assert not stage.classifies or errors.shape == ()
    return {"loss": loss, "loss after": loss_after, **stage.network.params}


@pytest.mark.parametrize("name", fitnets.NAMES)
def test_training_steps_of_a_stage_are_the_same_on_the_device(xp, dtype, name):
    agree(take_steps(name, xp, dtype), take_steps(name, np, dtype), 10 * PRECISION[xp.__name__][dtype])


@pytest.mark.parametrize("name", fitnets.NAMES)
def test_a_training_step_waits_for_the_device_only_to_look_at_its_labels_and_its_loss(name):
    stage, optimizer = stage_of(name, strict, np.float32)
    rng = np.random.default_rng(0)
    x, labels = rng.random((8, 12, 12, 1), np.float32), rng.integers(0, 10, 8)
    target = None if stage.target is None else stage.target(strict.asarray(x)).get()
    with Pass(stage, {"train": Examples(x, labels, target)}, 2, 1) as examples:
        strict.SYNCHRONISATIONS.clear()
        _, grads = examples.gradient(np.arange(8), 1, 7)
        optimizer.step(stage.network.params, grads)
        for key, limit in stage.norms.items():
            max_norm(stage.network.params[key], limit)
        waits = list(strict.SYNCHRONISATIONS)
    assert waits == [*["bool"] * {"hint": 0, "kd": 2, "fitnet": 2}.get(name, 1), "float"]


RMSPROP = Schedule("rmsprop", lr=0.001, epochs=2, patience=2, batch=8)
CONFIG = replace(
    MNIST_PAPER,
    train=24,
    validation=8,
    test=8,
    teacher=Schedule("sgd", lr=0.02, epochs=2, patience=2, batch=8, momentum=0.5),
    stage1=RMSPROP,
    student=RMSPROP,
    init="scaled",
    lam_end=2,
    teacher_all=0,
    keep_input=0.8,
    keep=0.5,
    slice=8,
    **SIZES,
)


def tiny_data():
    rng = np.random.default_rng(8)
    labels = rng.integers(0, 10, 40)
    images = (255 * rng.random((40, 12, 12, 1)) * (0.1 + 0.1 * labels[:, None, None, None])).astype(np.uint8)
    return Dataset("noise", images[:32], labels[:32], images[32:], labels[32:])


def run(folder, xp, config=CONFIG):
    experiment = Experiment("noise", TEACHER, STUDENT, {"default": config})
    return Run(folder, "noise", "default", experiment, config, 0, tiny_data(), xp, 1, progress=False)


def trained(folder, xp, config=CONFIG, stop_in=None):
    """The run directory after all stages, and what came out; stop_in: the stage that is killed in its second epoch."""

    def tell(record):
        if record["stage"] == stop_in and record["epoch"] == 1:
            raise KeyboardInterrupt

    with run(folder, xp, config) as r:
        for name in fitnets.NAMES:
            r.make(name, tell)
        rows = [{k: v for k, v in row.items() if k != "estimate"} for row in outline(r, r.plan("all"))]
        return {name: checkpoints.load(folder / f"{name}.h5")[1] for name in fitnets.NAMES}, r.summary(), rows


@pytest.fixture(scope="module")
def on_device(xp, tmp_path_factory):
    return trained(tmp_path_factory.mktemp("device"), xp)


def test_a_run_of_every_stage_is_the_same_on_the_device(xp, tmp_path, on_device):
    saved, summary, rows = on_device
    expected, expected_summary, expected_rows = trained(tmp_path, np)
    assert rows == expected_rows
    for name in fitnets.NAMES:
        for group, arrays in expected[name].items():
            agree(saved[name][group], arrays, PRECISION[xp.__name__]["run"])
        found, other = summary["stages"][name], expected_summary["stages"][name]
        assert found.keys() == other.keys()
        inexact = ("validation_loss", "test_loss")
        same = [key for key in found if key not in (*inexact, "seconds")]
        assert [found[key] for key in same] == [other[key] for key in same]
        assert [found[key] for key in inexact] == pytest.approx([other[key] for key in inexact], rel=1e-4)


def test_slices_are_a_matter_of_the_host(xp, tmp_path):
    """Without noise, of which each slice draws its own, the size of the host's slices is a matter of rounding."""
    config = replace(CONFIG, keep_input=1.0, keep=1.0, slice=3)
    found, expected = trained(tmp_path / "device", xp, config), trained(tmp_path / "host", np, config)
    for name in fitnets.NAMES:
        agree(found[0][name]["best"], expected[0][name]["best"], PRECISION[xp.__name__]["run"])


@pytest.mark.parametrize("name", fitnets.NAMES)
def test_a_killed_stage_is_taken_up_on_the_device_as_if_nothing_had_happened(xp, tmp_path, on_device, name):
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, xp, stop_in=name)
    with run(tmp_path, xp) as r:
        assert r.directory.state(name) == "at epoch 1"
    saved, _, _ = trained(tmp_path, xp)
    for stage in fitnets.NAMES:
        for group, arrays in on_device[0][stage].items():
            agree(saved[stage][group], arrays, 0 if xp is strict else 1e-5)


def test_a_run_records_its_library_and_device(xp, tmp_path):
    with run(tmp_path, xp):
        record = json.loads((tmp_path / "config.json").read_text())
    assert {"backend", "numpy", "cupy", "device"} <= describe(xp).keys()
    assert describe(xp).items() <= record.items()


def test_everything_that_the_stand_in_offers_is_in_cupy():
    """Needs CuPy, but no GPU."""
    cupy = pytest.importorskip("cupy")

    def parameters(function):
        return inspect.signature(function).parameters

    for name in strict.UFUNCS.split():
        assert isinstance(getattr(cupy, name), cupy.ufunc), name
    tricks = {f"lib.stride_tricks.{name}": named for name, named in strict.STRIDE_TRICKS.items()}
    for name, named in {**strict.FUNCTIONS, **strict.CREATIONS, **tricks}.items():
        function = cupy
        for part in name.split("."):
            function = getattr(function, part)
        known = parameters(function)
        if "kwargs" not in known and "args" not in known:
            assert list(known)[: len(named.split())] == named.split(), name
    for name, named in strict.METHODS.items():
        known = getattr(cupy.ndarray, name).__doc__.partition("(")[2].partition(")")[0]
        assert [n for n in named.split() if n not in known.replace("*", " ").replace("=", " ")] == [], name
    public = [name for name in dir(strict.ndarray) if not name.startswith("_")]
    special = [f"__{name}__" for name in (*strict.UNARY, *strict.COMPARISONS, "len", "iter", "float", "int", "bool")]
    special += [f"__{side}{name}__" for name in strict.OPERATORS for side in ("", "r", "i")]
    assert [name for name in public + special if not hasattr(cupy.ndarray, name)] == []
    others = [
        "array",
        "asarray",
        "ascontiguousarray",
        "asnumpy",
        "einsum",
        "float32",
        "int64",
        "bool_",
        "newaxis",
        "pi",
    ]
    assert [name for name in others if not hasattr(cupy, name)] == []
