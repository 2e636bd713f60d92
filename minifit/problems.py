"""The problems of the gradient audit: what each row draws, and the table of rows.

A case draws a problem: shapes from `integer(low, high)`, so that Hypothesis can drive and shrink them, and values from
a generator. Layers with kinks get permutations of spaced values, so that every maximum is clear. Networks cannot: a
draw of theirs may cross a kink. Each stage of a method is a problem.
"""

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod

import numpy as np

from minifit import baselines, fitnets, losses
from minifit.backend import array_module
from minifit.composites import Autoassociator, Branches, Mean, Sequential, leaves
from minifit.convolution import FEW
from minifit.experiments import MNIST_PAPER
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
from minifit.networks import (
    BinaryOutput,
    Bottleneck,
    ClassMaps,
    Conv,
    FullyConnected,
    Micro,
    Network,
    Output,
    SigmoidConv,
    SigmoidFullyConnected,
    build,
    initialise,
    widened,
)
from minifit.optimizers import Ramp
from minifit.regressors import regressor
from minifit.task import Task

MANY = FEW, FEW + 1  # numbers of images for which convolutions keep images innermost in memory
EPOCH = 3  # the epoch in which losses of stages are computed


@dataclass(frozen=True)
class Problem:
    """A map at a point: f(arrays, examples, rng) -> y, pull, as minifit.gradcheck has it."""

    subject: object  # the Layer, loss function or Stage that is checked
    f: Callable
    arrays: dict  # the arrays to differentiate by: every parameter and, except for a stage, "x"
    examples: tuple = ()  # further inputs with one entry per example: labels, the teacher's output
    seed: int | None = None  # of the noise; None: no noise
    settings: dict = field(default_factory=dict)  # of the loss: temperatures and lambda of eq. 2, reduction of eq. 3

    def __call__(self, arrays):
        return self.f(arrays, self.examples, None if self.seed is None else np.random.default_rng(self.seed))

    def map(self, change):
        """Returns the problem with every array changed: moved to a device, to another type, to another layout."""
        arrays = {name: change(a) for name, a in self.arrays.items()}
        return replace(self, arrays=arrays, examples=tuple(each(change, e) for e in self.examples))

    def take(self, index):
        """Returns the problem with only some of the examples, without noise."""
        arrays = {name: a[index] if name == "x" else a for name, a in self.arrays.items()}
        examples = tuple(each(lambda a: a[index], e) for e in self.examples)
        return replace(self, arrays=arrays, examples=examples, seed=None)


def each(change, given):
    """Applies `change` to an array, or to each of several (a teacher with several outputs); None stays None."""
    return tuple(map(change, given)) if isinstance(given, tuple) else None if given is None else change(given)


def twins(layer):
    """Returns a function params -> a copy of the layer with these arrays, of any type, as its parameters.

    The layer is pickled once without its parameters: to rebuild it takes a tenth of the time of copy.deepcopy.
    """
    file, names = io.BytesIO(), {id(p): name for name, p in layer.params.items()}

    class Pickler(pickle.Pickler):
        def persistent_id(self, part):
            return names.get(id(part))

    Pickler(file).dump(layer)

    def twin(params):
        unpickler = Unpickler(io.BytesIO(file.getvalue()))
        unpickler.params = params
        return unpickler.load()

    return twin


class Unpickler(pickle.Unpickler):
    """Rebuilds a layer; a name stands where a parameter belongs."""

    def persistent_load(self, name):
        return self.params[name]


def joined(y):
    """Joins several outputs into one array with one row per example; leaves a single output as it is."""
    return array_module(*y).concatenate([Flatten()(part) for part in y], axis=1) if isinstance(y, tuple) else y


def parted(rows, y):
    """Undoes joined(y), for its result or for a gradient."""
    if not isinstance(y, tuple):
        return rows
    ends = np.cumsum([prod(part.shape[1:]) for part in y]).tolist()
    return tuple(rows[:, i:j].reshape(part.shape) for i, j, part in zip([0, *ends], ends, y, strict=False))


def of_layer(layer, x, seed=None):
    twin_of = twins(layer)

    def f(arrays, examples, rng):
        twin = twin_of(arrays)
        y, cache = twin.forward(arrays["x"], rng)

        def pull(dy):
            dx, grads = twin.backward(parted(dy, y), cache)
            return {"x": dx} | grads

        return joined(y), pull

    return Problem(layer, f, {"x": x} | layer.params, seed=seed)


def of_loss(loss, x, *examples, **settings):
    def f(arrays, examples, rng):
        value, dx = loss(arrays["x"], *examples, **settings)
        return value, lambda dy: {"x": dy * dx}

    return Problem(loss, f, {"x": x}, examples, settings=settings)


def again_from(rng):
    """Returns a copy of a random generator, in a third of the time of copy.deepcopy; None for None."""
    if rng is None:
        return None
    twin = np.random.default_rng(0)
    twin.bit_generator.state = rng.bit_generator.state
    return twin


def of_stage(stage, x, labels, seed=1):
    """The stage's loss as a map of its parameters, named as "hint 0.w" in the hint stage."""
    x, target = stage.sees(x), None if stage.target is None else stage.target(x)
    stage = replace(stage, below=None)
    names, twin_of = {f"{stage.key} {name}": name for name in stage.network.params}, twins(stage.network)

    def f(arrays, examples, rng):
        x, target, labels = examples
        network = twin_of({name: arrays[key] for key, name in names.items()})
        twin, again = replace(stage, network=network), again_from(rng if stage.noise else None)

        def pull(dy):
            _, grads = fitnets.gradient(twin, x, target, labels, EPOCH, again_from(again))
            return {key: dy * grads[name] for key, name in names.items()}

        seen = x if stage.reconstructs else target
        return stage.loss(network(x, rng if stage.noise else None), seen, labels, EPOCH)[0], pull

    arrays = {key: stage.network.params[name] for key, name in names.items()}
    return Problem(stage, f, arrays, (x, target, labels), seed)


# How problems are drawn. Sizes are odd and unequal (a square hides a missing transpose), weights are of order 1.


def spaced(shape, rng):
    """A permutation of values 0.05 apart, none of them within 0.01 of 0."""
    return 0.05 * (rng.permutation(prod(shape)).reshape(shape) - prod(shape) // 2 + 0.3)


def images(integer, least=1):
    return integer(1, 3), integer(least, 7), integer(least, 6), integer(1, 3)


def linear(integer, rng):
    d, e = integer(1, 7), integer(1, 5)
    return of_layer(Linear(rng.normal(size=(d, e)), rng.normal(size=e)), rng.normal(size=(integer(1, 4), d)))


def conv(integer, rng, kernel=None, pad=None, channels=(1, 3), filters=(1, 4), outputs=(1, 6), batch=(1, 3)):
    r, s = kernel or (integer(1, 4), integer(1, 4))
    pad = integer(0, 3) if pad is None else pad
    n, c, k = integer(*batch), integer(*channels), integer(*filters)
    h, w = (max(1, integer(*outputs) + size - 1 - 2 * pad) for size in (r, s))
    return of_layer(Conv2d(rng.normal(size=(r, s, c, k)), rng.normal(size=k), pad), rng.normal(size=(n, h, w, c)))


def maxout(integer, rng, pieces, maps=True):
    shape = images(integer)[:3] if maps else (integer(1, 5),)
    return of_layer(Maxout(pieces), spaced((*shape, pieces * integer(1, 4)), rng))


def pool(integer, rng, size=None, stride=None, ceil=True):
    layer = MaxPool2d(size or integer(1, 5), stride or integer(1, 4), ceil)
    return of_layer(layer, spaced(images(integer, 1 if ceil else layer.size), rng))


def whatever(integer, rng, layer, seed=None):
    """A layer that takes any shape."""
    return of_layer(layer, spaced(images(integer), rng), seed)


def scale(integer, rng):
    k = integer(1, 6)
    return of_layer(Scale(rng.normal(size=k), rng.normal(size=k)), rng.normal(size=(integer(1, 4), k)))


def log(integer, rng, tau):
    return of_layer(Log(tau), rng.uniform(0.1, 2, (integer(1, 4), integer(1, 6))))


def reshape(integer, rng):
    n, h, w, c = images(integer)
    return of_layer(Reshape((c, h * w)), rng.normal(size=(n, h, w, c)))


def dense(rng, d, e):
    return Linear(rng.normal(size=(d, e)), rng.normal(size=e))


def branches(integer, rng):
    a, b, c, d = (integer(1, 4) for _ in "abcd")
    trunk = Sequential([dense(rng, a, b), Sequential([dense(rng, b, c), dense(rng, c, c)]), dense(rng, c, d)])
    heads = {3: dense(rng, d, integer(1, 3)), 1: dense(rng, b, integer(1, 3))}
    return of_layer(Branches(trunk, heads), rng.normal(size=(integer(1, 4), a)))


def mean(integer, rng):
    d, e, f = integer(1, 5), integer(1, 4), integer(1, 3)
    parts = dense(rng, d, e), Sequential([dense(rng, d, f), dense(rng, f, e)]), dense(rng, d, e)
    return of_layer(Mean(parts), rng.normal(size=(integer(1, 4), d)))


def mapping(integer, rng, kind, pieces):
    guided = integer(3, 5), integer(2, 4), integer(1, 3)
    shrink = 0 if kind == "none" else integer(0, 1)
    hint = guided if kind == "none" else (guided[0] - 2 * shrink, guided[1] - shrink, integer(1, 3))
    layer = drawn(regressor(kind, guided, hint, pieces, dtype=np.float64), rng)
    return of_layer(layer, rng.normal(size=(integer(1, 3), *guided)))


def drawn(network, rng):
    initialise(network, rng)
    return settled(network, rng)


def settled(network, rng):
    """Draws biases in place of zeros: where a kernel meets only padding, pieces with zero biases would tie."""
    for p in network.params.values():
        if not p.any():
            p[...] = rng.normal(size=p.shape)
    return network


def built(network, rng, **dropout):
    return drawn(build(network, dtype=np.float64, **dropout), rng)


def block(integer, rng, block, seed=None, batch=(1, 3), **dropout):
    shape = integer(3, 6), integer(3, 5), integer(1, 3)
    network = built(Network("block", shape, (block,)), rng, **dropout)
    return of_layer(network, rng.normal(size=(integer(*batch), *shape)), seed)


def pair(integer, pieces=2, alike=False):
    """A thin deep student, and a shallow teacher whose layer 1 has smaller maps than its layer 2, or `alike` ones."""
    shape, classes = (integer(4, 6), integer(3, 5), integer(1, 2)), integer(2, 4)
    thin = Conv(2, 3, pad=1, pieces=pieces), Conv(integer(1, 2), 3, pad=1, pool=(2, 2), pieces=pieces)
    student = Network("student", shape, (*thin, FullyConnected(2, pieces and 5), Output(classes)))
    wide = thin[1] if alike else Conv(integer(1, 3), 4, pad=1, pool=(2, 2), pieces=pieces)
    return student, Network("teacher", shape, (wide, Output(classes)))


def part(integer, rng, index, batch=(1, 4)):
    network = pair(integer)[0]
    student, x = built(network, rng), rng.normal(size=(integer(*batch), *network.input))
    return of_layer(student[index], student[: index.start](x) if index.start else x)


def branched(integer, rng):
    problem = part(integer, rng, slice(None))
    student, x = problem.subject, problem.arrays["x"]
    heads = {i: Output(3).layers(student[:i](x).shape[1:], np, np.float64) for i in (1, 2)}
    return of_layer(Branches(student, {i: drawn(Sequential(head), rng) for i, head in heads.items()}), x)


def ensemble(integer, rng):
    network = pair(integer)[0]
    x = rng.normal(size=(integer(1, 3), *network.input))
    return of_layer(Mean([built(network, rng)[:2] for _ in "ab"]), x)


class SmallTask(Task):
    """A task with thin versions of the networks that methods bring: of hundreds of units some always cross a kink."""

    def network(self, name, default=None, **settings):
        thin = default if default in (None, *self.networks.values()) else widened(default, 0.02)
        return super().network(name, thin, **settings)


def walk(integer, rng, method, pieces=2, **settings):
    """Returns one problem per stage of a method, on small networks. The teacher is trained before."""
    settings = AUDITED | settings
    student, teacher = pair(integer, pieces, alike=settings["regressor"] == "none")
    x = rng.normal(size=(integer(1, 4), *student.input))
    labels = rng.integers(0, student.blocks[-1].classes, len(x))
    config, seed = replace(MNIST_PAPER, **settings), int(rng.integers(2**32))
    task = SmallTask({"teacher": teacher, "student": student}, config, seed, x, dtype=np.float64)

    def train(stage):
        settled(stage.network, rng)
        if not stage.rule:  # which is the gradient of no loss
            problems.append(of_stage(stage, x, labels))
        return {"best_epoch": 1}

    for run in dict.fromkeys((fitnets.trained_teacher, method.run)):
        problems = []
        run(task, train)
    return problems


def autoassociator(integer, rng):
    h, w, c, e = (integer(1, 4) for _ in "hwce")
    encoder = Sequential([Flatten(), dense(rng, h * w * c, e)])
    return of_layer(Autoassociator(encoder, rng.normal(size=(h, w, c))), rng.normal(size=(integer(1, 3), h, w, c)))


def autoassociator_of_maps(integer, rng):
    problem = conv(integer, rng)
    x = problem.arrays["x"]
    return of_layer(Autoassociator(Sequential([problem.subject]), rng.normal(size=x.shape[1:])), x)


def bias(integer, rng):
    n, *shape = images(integer)
    return of_layer(Bias(rng.normal(size=shape)), rng.normal(size=(n, *shape)))


def binary(integer, rng):
    return of_layer(Binary(), rng.normal(size=(integer(1, 5), 1)))


def reconstruction(integer, rng):
    shape = images(integer)
    return of_loss(losses.reconstruction_loss, spaced(shape, rng), rng.random(shape))


def entropy(integer, rng, loss, **settings):
    n, classes = integer(1, 5), integer(2, 6)
    teacher = (3 * rng.normal(size=(n, classes)),) if settings else ()
    return of_loss(loss, 3 * rng.normal(size=(n, classes)), *teacher, rng.integers(0, classes, n), **settings)


def hinge(integer, rng, gamma):
    n, classes = integer(1, 5), integer(2, 6)
    return of_loss(losses.squared_hinge, rng.normal(size=(n, classes)), rng.integers(0, classes, n), gamma=gamma)


def hint_loss(integer, rng, **settings):
    shape = images(integer)
    return of_loss(losses.hint_loss, rng.normal(size=shape), rng.normal(size=shape), **settings)


@dataclass(frozen=True)
class Case:
    """A row. affine: in each array, so the adjoint identity holds. kinks: a draw may cross one."""

    name: str
    draw: Callable
    affine: bool = False
    kinks: bool = False


POOLED = Conv(2, 3, pad=3, pool=(3, 2))
eq_2 = partial(entropy, loss=losses.distillation_loss)
CASES = [
    Case("Linear", linear, affine=True),
    Case("Conv2d", conv, affine=True),
    Case("Conv2d 1x1", partial(conv, kernel=(1, 1), pad=0), affine=True),
    Case("Conv2d 3x3", partial(conv, kernel=(3, 3), channels=(12, 13), filters=(24, 25), outputs=(5, 12)), affine=True),
    Case("Conv2d 5x5", partial(conv, kernel=(5, 5), channels=(3, 5), filters=(3, 6), outputs=(4, 7)), affine=True),
    Case("Conv2d of many images", partial(conv, batch=MANY), affine=True),
    Case("Conv2d 8x7 pad 3", partial(conv, kernel=(8, 7), pad=3, channels=(2, 5), filters=(2, 6)), affine=True),
    Case("Maxout 1", partial(maxout, pieces=1), affine=True),
    Case("Maxout 2", partial(maxout, pieces=2)),
    Case("Maxout 5", partial(maxout, pieces=5)),
    Case("Maxout 5 of features", partial(maxout, pieces=5, maps=False)),
    Case("MaxPool2d", pool),
    Case("MaxPool2d 2/2", partial(pool, size=2, stride=2)),
    Case("MaxPool2d 4/2", partial(pool, size=4, stride=2)),
    Case("MaxPool2d 8/8", partial(pool, size=8, stride=8)),
    Case("MaxPool2d in floor-mode", partial(pool, ceil=False)),
    Case("GlobalAverage", partial(whatever, layer=GlobalAverage()), affine=True),
    Case("Scale", scale, affine=True),
    Case("Log tau 1", partial(log, tau=1.0)),
    Case("Log tau 3", partial(log, tau=3.0)),
    Case("ReLU", partial(whatever, layer=ReLU())),
    Case("Sigmoid", partial(whatever, layer=Sigmoid())),
    Case("Bias", bias, affine=True),
    Case("Binary", binary, affine=True),
    Case("Autoassociator", autoassociator),
    Case("Autoassociator of maps", autoassociator_of_maps),
    Case("Softmax tau 1", partial(whatever, layer=Softmax(1.0))),
    Case("Softmax tau 3", partial(whatever, layer=Softmax(3.0))),
    Case("Softmax tau 0.5", partial(whatever, layer=Softmax(0.5))),
    Case("Dropout", partial(whatever, layer=Dropout(0.5), seed=1), affine=True),
    Case("Dropout not rescaled", partial(whatever, layer=Dropout(0.8, rescale=False), seed=2), affine=True),
    Case("Dropout without noise", partial(whatever, layer=Dropout(0.5)), affine=True),
    Case("Flatten", partial(whatever, layer=Flatten()), affine=True),
    Case("Reshape", reshape, affine=True),
    Case("Sequential of nothing", partial(whatever, layer=Sequential([])), affine=True),
    Case(
        "Sequential of ReLU, ReLU",
        partial(whatever, layer=Sequential([ReLU(), Sequential([ReLU()])])),
    ),
    Case("Branches", branches, affine=True),
    Case("Branches of blocks", branched, kinks=True),
    Case("Mean", mean, affine=True),
    Case("Mean of blocks", ensemble, kinks=True),
    Case("block conv maxout", partial(block, block=Conv(2, 3)), kinks=True),
    Case("block conv maxout pool", partial(block, block=POOLED), kinks=True),
    Case("block conv maxout pool of many images", partial(block, block=POOLED, batch=MANY), kinks=True),
    Case("block conv ReLU pool", partial(block, block=Conv(3, 2, pool=(2, 2), pieces=None)), kinks=True),
    Case("block dropout conv maxout", partial(block, block=Conv(2, 3), dropout_keep_input=0.8, seed=3), kinks=True),
    Case("block fc maxout 5", partial(block, block=FullyConnected(3, pieces=5)), kinks=True),
    Case("block fc ReLU", partial(block, block=FullyConnected(3, pieces=None)), kinks=True),
    Case("block conv sigmoid pool", partial(block, block=SigmoidConv(3, 2, pool=(2, 2))), kinks=True),
    Case("block fc sigmoid", partial(block, block=SigmoidFullyConnected(3))),
    Case("block bottleneck", partial(block, block=Bottleneck(2)), affine=True),
    Case("block mlpconv", partial(block, block=Micro((3, 2), pool=(3, 2), keep=0.5), seed=4), kinks=True),
    Case("block class maps", partial(block, block=ClassMaps(3)), kinks=True),
    Case("block output", partial(block, block=Output(4)), affine=True),
    Case("block binary output", partial(block, block=BinaryOutput()), affine=True),
    Case("student", partial(part, index=slice(None)), kinks=True),
    Case("student of many images", partial(part, index=slice(None), batch=MANY), kinks=True),
    Case("student[:2]", partial(part, index=slice(2)), kinks=True),
    Case("student[1:3]", partial(part, index=slice(1, 3)), kinks=True),
    *(
        Case(f"regressor {kind} {words}", partial(mapping, kind=kind, pieces=pieces), pieces == 1, pieces != 1)
        for kind in ("conv", "fc")
        for words, pieces in (("maxout 2", 2), ("maxout 5", 5), ("ReLU", None), ("linear", 1))
    ),
    Case("regressor none", partial(mapping, kind="none", pieces=None), affine=True),
    Case("cross_entropy", partial(entropy, loss=losses.cross_entropy)),
    Case("squared_hinge", partial(hinge, gamma=0.0), kinks=True),
    Case("squared_hinge gamma 3", partial(hinge, gamma=3.0), kinks=True),
    Case("distillation_loss tau 3 lam 4", partial(eq_2, tau=3.0, lam=4.0)),
    Case("distillation_loss tau 1 lam 1", partial(eq_2, tau=1.0, lam=1.0)),
    Case("distillation_loss tau 20 lam 9", partial(eq_2, tau=20.0, lam=9.0)),
    Case("distillation_loss tau 0.5 lam 0", partial(eq_2, tau=0.5, lam=0.0)),
    Case("distillation_loss tau 3 lam 4 student_tau 1", partial(eq_2, tau=3.0, lam=4.0, student_tau=1.0)),
    Case("reconstruction_loss", reconstruction),
    Case("hint_loss", hint_loss),
    Case("hint_loss mean", partial(hint_loss, reduction="mean")),
]
# The settings in which methods are audited. A variant is a row of every method in which it changes a loss or a layer.
AUDITED = {"guided_layer": (2,), "hint_layer": (1,), "regressor": "conv", "lam": Ramp(4.0, 1.0, 5)}
AUDITED |= {"init_range": 1.0, "regressor_init_range": 1.0}  # weights of order 1
VARIANTS = {
    "": {},
    " lam 1, tau 1, ReLU": {"lam": Ramp(1.0), "tau": 1.0, "pieces": None},
    " lam 9, tau 20, fc": {"lam": Ramp(9.0, 1.0, 5), "tau": 20.0, "regressor": "fc"},
    " student_tau 1, linear": {"student_tau": 1.0, "regressor_pieces": 1},
    " mean, none": {"hint_reduction": "mean", "regressor": "none"},
}


def cases():
    """Returns every row: layers, regressors, losses, and the methods in the list at the time of the call."""
    rows = list(CASES)
    for method in baselines.METHODS:
        seen = []
        for name, settings in VARIANTS.items():
            draw = partial(walk, method=method, **settings)
            stages = [problem.subject for problem in draw(lambda low, high: low, np.random.default_rng(0))]
            made = [(s.loss, [(type(leaf), vars(leaf).get("pieces")) for leaf in leaves(s.network)]) for s in stages]
            if made not in seen:
                rows.append(Case(f"method {method.name}{name}", draw, kinks=True))
            seen.append(made)
    return rows


def problems_of(case, integer, rng):
    """Returns the problems of one draw: one per stage for a method, otherwise a single one."""
    drawn = case.draw(integer, rng)
    return [drawn] if isinstance(drawn, Problem) else drawn


def asks(case):
    """Returns the name of what a row checks: a layer's class, a loss, a method, or a kind of regressor."""
    function, settings = getattr(case.draw, "func", None), getattr(case.draw, "keywords", {})
    if function is walk:
        return settings["method"].name
    if function is mapping:
        return regressor_name(**settings)
    subject = case.draw(lambda low, high: low, np.random.default_rng(0)).subject
    return type(subject).__name__ if isinstance(subject, Layer) else subject.__name__


def regressor_name(kind, pieces):
    nonlinearity = {None: " ReLU", 1: " linear"}.get(pieces, " maxout")
    return f"regressor {kind}" + ("" if kind == "none" else nonlinearity)
