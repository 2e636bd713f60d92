"""The same numbers from NumPy and from the device: every layer, loss, optimiser and stage.

Each test runs twice: on the stand-in of strict.py, which needs no GPU but a C++ compiler, and on CuPy with a GPU.
"""

import inspect
from dataclasses import replace
from operator import attrgetter

import numpy as np
import pytest
import strict

from minifit import UserError, composites, fitnets, layers, losses, networks, problems
from minifit.backend import array_module, to_host, use
from minifit.composites import Autoassociator, Branches, Mean, Sequential, leaves, weights
from minifit.experiments import MNIST_PAPER
from minifit.layers import (
    Bias,
    Binary,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAverage,
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
from minifit.networks import Conv, FullyConnected, Network, Output
from minifit.optimizers import SGD, Ramp, RMSProp, Schedule, max_norm, update
from minifit.regressors import regressor
from minifit.task import Task

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
    def make(draw):
        layer = regressor(kind, guided, hint, pieces, xp=draw.xp, dtype=draw.dtype)
        networks.initialise(layer, np.random.default_rng(1), 0.5)
        return layer

    return make


def branches(draw):
    trunk = Sequential([Linear(draw(4, 3), draw(3)), ReLU(), Linear(draw(3, 5), draw(5))])
    return Branches(trunk, {2: Linear(draw(3, 2), draw(2)), 1: ReLU()})


def autoassociator(draw):
    return Autoassociator(Sequential([Flatten(), Linear(draw(12, 5), draw(5))]), draw(3, 4))


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
    "MaxPool2d in floor-mode": (lambda draw: MaxPool2d(3, 2, ceil=False), (2, 6, 7, 2)),
    "GlobalAverage": (lambda draw: GlobalAverage(), (3, 4, 5, 2)),
    "Binary": (lambda draw: Binary(), (4, 1)),
    "Scale": (lambda draw: Scale(draw(5), draw(5)), (4, 5)),
    "Log": (lambda draw: Sequential([Softmax(3.0), Log(3.0)]), (4, 7)),
    "ReLU": (lambda draw: ReLU(), (4, 5)),
    "Softmax": (lambda draw: Softmax(3.0), (4, 7)),
    "Dropout of nothing": (lambda draw: Dropout(1.0), (6, 5)),
    "Flatten": (lambda draw: Flatten(), (3, 2, 4, 2)),
    "Reshape": (lambda draw: Reshape((2, 3)), (4, 6)),
    "Sequential": (block, (3, 6, 5, 2)),
    "Sequential of none": (lambda draw: Sequential([]), (3, 2)),
    "Sigmoid": (lambda draw: Sigmoid(), (4, 5)),
    "Bias": (lambda draw: Bias(draw(3, 2)), (4, 3, 2)),
    "Autoassociator": (autoassociator, (5, 3, 4)),
    "Autoassociator of maps": (
        lambda draw: Autoassociator(Sequential([Conv2d(draw(3, 2, 2, 3), draw(3), pad=1)]), draw(5, 4, 2)),
        (3, 5, 4, 2),
    ),
    "Branches": (branches, (6, 4)),
    "Mean": (lambda draw: Mean([Linear(draw(4, 3), draw(3)) for _ in range(3)]), (5, 4)),
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
    dy = problems.parted(draw(*problems.joined(y).shape), y)
    dx, grads = layer.backward(dy, cache)
    alone = layer.weight_gradients(dy, cache)
    y, again = problems.joined(y), problems.joined(layer(x))
    assert all(array_module(a) is xp for a in (y, dx, *grads.values(), *alone.values()))
    named = {f"{kind} {name}": g for kind, gs in (("d", grads), ("alone d", alone)) for name, g in gs.items()}
    return {"y": y, "dx": dx, "y without noise": again, **named}


@pytest.mark.parametrize("case", LAYERS)
def test_a_layer_gives_the_same_on_the_device(xp, dtype, case):
    agree(through(xp, dtype, case), through(np, dtype, case), PRECISION[xp.__name__][dtype])


def test_every_layer_is_in_the_table():
    made = [make(Draw(np, np.float64)) for make, _ in LAYERS.values()]
    tested = {type(layer) for top in made for layer in (top, *leaves(top))}
    kinds = [kind for module in (layers, composites) for kind in vars(module).values() if inspect.isclass(kind)]
    defined = {kind for kind in kinds if issubclass(kind, layers.Layer)}
    assert defined - tested == {layers.Layer, composites.Composite}


LOSSES = {
    "cross_entropy": lambda draw: losses.cross_entropy(draw(5, 7), draw.labels(5, 7)),
    "distillation_loss": lambda draw: losses.distillation_loss(draw(5, 7), draw(5, 7), draw.labels(5, 7), 3.0, 4.0),
    "distillation_loss, hot": lambda draw: losses.distillation_loss(
        100 * draw(5, 7), draw(5, 7), draw.labels(5, 7), 0.1, 0.0
    ),
    "squared_hinge": lambda draw: losses.squared_hinge(draw(6, 5), draw.labels(6, 5), 2.0),
    "reconstruction_loss": lambda draw: losses.reconstruction_loss(9 * draw(4, 3, 2), draw(4, 3, 2)),
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
            optimizer.step("w", params["w"], draw(3, 4))
            optimizer.step("b", params["b"], 1e-6 * draw(4))
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
    (Conv(3, 3, pool=(2, 2), max_norm=0.9), Conv(4, 3, pad=1, pool=(2, 2), max_norm=1.9), Output(10, max_norm=1.9)),
)
STUDENT = Network(
    "student",
    (12, 12, 1),
    (
        Conv(2, 3, max_norm=0.9),
        Conv(3, 3, pool=(3, 2), pieces=None),
        Conv(3, 3, pad=1, max_norm=0.9),
        FullyConnected(6),
        Output(10, max_norm=1.9),
    ),
)
SETTINGS = {
    "train": 24,
    "validation": 8,
    "test": 8,
    "guided_layer": (3,),
    "hint_layer": (2,),
    "teacher": Schedule("sgd", lr=0.02, epochs=2, patience=2, batch=8, momentum=Ramp(0.5)),
    "stage1": Schedule("rmsprop", lr=0.001, epochs=2, patience=2, batch=8),
    "student": Schedule("rmsprop", lr=0.001, epochs=2, patience=2, batch=8),
    "lam": Ramp(4.0, 1.0, 2),
    "init": "scaled",
    "dropout_keep_input": 1.0,  # a device draws masks of its own
    "dropout_keep": 1.0,
    "teacher_all": 0,
    "microbatch": 8,
}


def test_a_network_is_built_drawn_scaled_and_counted_the_same_on_the_device(xp, dtype):
    def network(lib):
        net = networks.build(STUDENT, dropout_keep=0.5, conv_lr_scale=0.05, xp=lib, dtype=dtype)
        networks.initialise(net, np.random.default_rng(3))
        x = Draw(lib, dtype)(4, 12, 12, 1)
        drawn = {f"drawn {name}": p.copy() for name, p in net.params.items()}
        networks.unit_variance(net, x)
        rules = [(name, *rule) for name, _, *rule in weights(net)]
        return networks.count(net, x[:1]), rules, drawn, {"y": net(x), **net.params}

    found, expected = network(xp), network(np)
    assert found[:2] == expected[:2]
    agree(found[2], expected[2], 0)  # weights are drawn on the host
    agree(found[3], expected[3], PRECISION[xp.__name__][dtype])


def stages_of(xp, dtype):
    """{key: stage} of every method, untrained."""
    config, stages = replace(MNIST_PAPER, **SETTINGS), {}
    task = Task({"teacher": TEACHER, "student": STUDENT}, config, 4, Draw(xp, dtype)(6, 12, 12, 1), xp, dtype)

    def train(stage):
        stages[stage.key] = stage
        return {"best_epoch": 1}

    for method in fitnets.TABLE_4:
        method.run(task, train)
    return stages


STAGES = list(stages_of(np, np.float64))


def take_steps(key, xp, dtype, steps=3):
    stage, draw = stages_of(xp, dtype)[key], Draw(xp, dtype)
    optimizer = stage.schedule.make()
    for epoch in range(1, steps + 1):
        x, labels = draw(6, 12, 12, 1), draw.labels(6, 10)
        target = None if stage.target is None else stage.target(x)
        loss, grads = fitnets.gradient(stage, x, target, labels, epoch, np.random.default_rng(epoch), 0.5)
        update(optimizer, weights(stage.network), grads)
    loss_after, errors = fitnets.measure(stage, x, target, labels, epoch)
    assert not stage.classifies or errors.shape == ()
    return {"loss": loss, "loss after": loss_after, **stage.network.params}


@pytest.mark.parametrize("key", STAGES)
def test_training_steps_of_a_stage_are_the_same_on_the_device(xp, dtype, key):
    agree(take_steps(key, xp, dtype), take_steps(key, np, dtype), 10 * PRECISION[xp.__name__][dtype])


def test_everything_that_the_stand_in_offers_is_in_cupy():
    """Needs CuPy, but no GPU."""
    cupy = pytest.importorskip("cupy")
    for name in strict.UFUNCS.split():
        assert isinstance(getattr(cupy, name), cupy.ufunc), name
    tricks = {f"lib.stride_tricks.{name}": named for name, named in strict.STRIDE_TRICKS.items()}
    for name, allowed in {**strict.FUNCTIONS, **strict.CREATIONS, **tricks}.items():
        held(name, allowed, parameters(attrgetter(name)(cupy)))
    for name in ("asarray", "ascontiguousarray", "asnumpy"):
        held(name, " ".join(parameters(getattr(strict, name))), parameters(getattr(cupy, name)))
    for name, allowed in strict.METHODS.items():
        held(name, allowed, documented(getattr(cupy.ndarray, name)))
    public = [name for name in dir(strict.ndarray) if not name.startswith("_")]
    special = [f"__{name}__" for name in (*strict.UNARY, *strict.COMPARISONS, "len", "iter", "float", "int", "bool")]
    special += [f"__{side}{name}__" for name in strict.OPERATORS for side in ("", "r", "i")]
    assert [name for name in public + special if not hasattr(cupy.ndarray, name)] == []
    others = ["ElementwiseKernel", "einsum", "float32", "int64", "bool_", "newaxis", "pi"]
    assert [name for name in others if not hasattr(cupy, name)] == []


def parameters(function):
    """The names of a function's parameters, in order, as they are written: with stars, and "*" before names only."""
    stars, names = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}, []
    for name, p in inspect.signature(function).parameters.items():
        if p.kind is p.KEYWORD_ONLY and not any(n.startswith("*") for n in names):
            names.append("*")
        names.append(stars.get(p.kind, "") + name)
    return names


def documented(method):
    """The same of a compiled method, from the first line of its text: "ndarray.sum(self, axis=None, Py_ssize_t n)"."""
    _, *written = method.__doc__.partition("(")[2].partition(")")[0].split(",")
    return [parameter.partition("=")[0].split()[-1] for parameter in written]


def held(name, allowed, known):
    """A row of the stand-in's tables is true of a CuPy function with these parameters."""
    by_position, by_name = strict.arguments(allowed)
    first = next((i for i, p in enumerate(known) if p.startswith("*")), len(known))
    if first == len(known) or known[first] == "*" or known[first].startswith("**"):  # else "*args" takes any number
        assert known[:first][: len(by_position)] == by_position, name
    assert "**kwargs" in known or set(by_name) <= set(known), name


def test_a_row_that_is_not_true_of_a_function_is_found():
    held("f", "a dtype * shape", ["a", "dtype", "order", "shape"])
    held("f", "a b * out", ["*args", "out"])
    held("f", "a b * out", ["*args", "**kwargs"])
    held("f", "a * out", ["a", "*", "out"])
    held("f", "a * out", ["a", "**kwargs"])
    assert parameters(lambda a, b=1, *, c=2, **kwargs: a) == ["a", "b", "*", "c", "**kwargs"]
    assert parameters(lambda a, *args, c=2: a) == ["a", "*args", "c"]
    for allowed, known in {
        "a dtype shape": ["a", "dtype", "order", "shape"],
        "a dtype * form": ["a", "dtype", "order", "shape"],
        "a b * out": ["*args", "where"],
        "dtype a": ["a", "dtype"],
        "a out": ["a", "*", "out"],
        "a b": ["a", "**kwargs"],
    }.items():
        with pytest.raises(AssertionError):
            held("f", allowed, known)
