"""The paper's networks for MNIST and CIFAR, as literal lists of blocks, and what they hold and cost.

One element of a network is one layer of the paper: Conv(48, 8, pool=(4, 2)) is 48 maxout channels of 8x8 kernels and
the pooling behind them, and becomes Sequential([Conv2d, Maxout, MaxPool2d]).
"""

from dataclasses import dataclass, replace
from math import prod

import numpy as np

from minifit.layers import Conv2d, Dropout, Flatten, Linear, Maxout, MaxPool2d, ReLU, Sequential


@dataclass(frozen=True)
class Conv:
    """A convolution, its non-linearity, and the pooling (size, stride) behind it. pieces=None is a ReLU."""

    channels: int
    kernel: int
    pad: int = 0
    pool: tuple[int, int] | None = None
    pieces: int | None = 2
    norm: float | None = None  # the largest norm of a filter, each piece counted as one


@dataclass(frozen=True)
class FullyConnected:
    """A fully connected layer and its non-linearity."""

    units: int
    pieces: int | None = 2
    norm: float | None = None


@dataclass(frozen=True)
class Output:
    """The logits; softmax belongs to the losses."""

    classes: int
    norm: float | None = None


@dataclass(frozen=True)
class Network:
    """A name, the shape (H, W, C) of one input, and the blocks."""

    name: str
    input: tuple[int, int, int]
    blocks: tuple
    # Images that pass it together on a CPU: few, for the cache; more, where channels are few or transforming large
    # filters weighs more.
    slice: int = 16


# Appendix A.2; the teacher's norms from pylearn2, the student's kernel sizes and norms from the released code.
MNIST_TEACHER = Network(
    "MNIST teacher",
    (28, 28, 1),
    (
        Conv(48, 8, pool=(4, 2), norm=0.9),
        Conv(48, 8, pad=3, pool=(4, 2), norm=1.9365),
        Conv(24, 5, pad=3, pool=(2, 2), norm=1.9365),
        Output(10, norm=1.9365),
    ),
    slice=32,
)
MNIST_FITNET = Network(
    "MNIST FitNet",
    (28, 28, 1),
    (
        Conv(16, 5, norm=0.9),
        Conv(16, 3, pool=(4, 2), norm=0.9),
        Conv(16, 5, pad=3, norm=1.9365),
        Conv(16, 3, pool=(4, 2), norm=1.9365),
        Conv(12, 3, pad=3, norm=1.9365),
        Conv(12, 3, pool=(2, 2), norm=1.9365),
        Output(10, norm=1.9365),
    ),
    slice=32,
)


def cifar_teacher(name, classes):
    """Appendix A.1.1, norms and pads from pylearn2's maxout networks; its fully connected layer has 5 pieces."""
    return Network(
        name,
        (32, 32, 3),
        (
            Conv(96, 8, pad=4, pool=(4, 2), norm=0.9),
            Conv(192, 8, pad=3, pool=(4, 2), norm=1.9365),
            Conv(192, 5, pad=3, pool=(2, 2), norm=1.9365),
            FullyConnected(500, pieces=5, norm=1.9),
            Output(classes, norm=1.9365),
        ),
        slice=32,
    )


def cifar_student(name, *groups, classes=10, slice=16):
    """Tables 6 and 7: three groups of 3x3 maxout layers, pooled 2x2, 2x2 and over the whole map; then fc, softmax."""
    pools = ((2, 2), (2, 2), (8, 8))
    blocks = []
    for group, pool in zip(groups, pools, strict=True):
        blocks += [Conv(channels, 3, pad=1) for channels in group[:-1]] + [Conv(group[-1], 3, pad=1, pool=pool)]
    return Network(name, (32, 32, 3), (*blocks, FullyConnected(500, pieces=5), Output(classes)), slice)


def with_100_classes(network):
    return replace(network, name=f"{network.name}, 100 classes", blocks=(*network.blocks[:-1], Output(100)))


CIFAR10_TEACHER = cifar_teacher("CIFAR-10 teacher", 10)
CIFAR100_TEACHER = cifar_teacher("CIFAR-100 teacher", 100)
FITNET_1 = cifar_student("FitNet 1", (16, 16, 16), (32, 32, 32), (48, 48, 64), slice=32)
FITNET_2 = cifar_student("FitNet 2", (16, 32, 32), (48, 64, 80), (96, 96, 128), slice=32)
FITNET_3 = cifar_student("FitNet 3", (32, 48, 64, 64), (80, 80, 80, 80), (128, 128, 128))
FITNET_4 = cifar_student("FitNet 4", (32, 32, 32, 48, 48), (80,) * 6, (128,) * 6)
FITNET_1_100, FITNET_2_100, FITNET_3_100, FITNET_4_100 = map(with_100_classes, (FITNET_1, FITNET_2, FITNET_3, FITNET_4))

# Table 6: deeper and thinner at about the same number of multiplications.
DEPTH_30M = (
    cifar_student("30M, 5 layers", (64,), (64,), (64,)),
    cifar_student("30M, 7 layers", (16, 32), (32, 64), (64,)),
    cifar_student("30M, 9 layers", (16, 32), (32, 32, 32), (48, 64)),
    replace(FITNET_1, name="30M, 11 layers"),
)
DEPTH_107M = (
    cifar_student("107M, 5 layers", (128,), (128,), (128,)),
    cifar_student("107M, 7 layers", (32, 64), (80, 80), (128,)),
    cifar_student("107M, 9 layers", (32, 32), (64, 80, 80), (96, 128)),
    replace(FITNET_2, name="107M, 11 layers"),
)

NETWORKS = (
    MNIST_TEACHER,
    MNIST_FITNET,
    CIFAR10_TEACHER,
    CIFAR100_TEACHER,
    FITNET_1,
    FITNET_2,
    FITNET_3,
    FITNET_4,
    FITNET_1_100,
    FITNET_2_100,
    FITNET_3_100,
    FITNET_4_100,
    *DEPTH_30M,
    *DEPTH_107M,
)


def widened(network, times):
    """The network with so many times its channels and units: another one, whose name says so."""
    if times == 1:
        return network
    blocks = [
        replace(block, channels=max(1, round(times * block.channels)))
        if isinstance(block, Conv)
        else replace(block, units=max(1, round(times * block.units)))
        if isinstance(block, FullyConnected)
        else block
        for block in network.blocks
    ]
    return replace(network, name=f"{network.name}, {times:g} times as wide", blocks=tuple(blocks))


def as_counted(network):
    """The network that the published counts are of: its fully connected layer has 2 pieces, where the text says 5."""
    two = (replace(block, pieces=2) if isinstance(block, FullyConnected) else block for block in network.blocks)
    return replace(network, blocks=tuple(two))


def build(network, rng, width=None, keep_input=1.0, keep=1.0, xp=np, dtype=np.float32):
    """The network as a Sequential of one layer a block, with random weights and zero biases.

    rng: None for weights of 0, where nothing but shapes is asked for.
    width: weights from U(-width, width), as in the paper; None draws them normal, for `unit_variance` to scale.
    keep_input, keep: what dropout keeps of the input (not rescaled) and of every later layer's input (rescaled), as
    pylearn2's maxout networks do.
    """
    layers, shape = [], network.input
    for i, block in enumerate(network.blocks):
        noise = Dropout(keep_input, rescale=False) if i == 0 else Dropout(keep)
        layer = Sequential(([noise] if noise.keep < 1 else []) + _layers(block, shape, rng, width, xp, dtype))
        shape = layer(xp.zeros((0, *shape), dtype)).shape[1:]  # no image at all tells the shape
        layers.append(layer)
    return Sequential(layers)


def _layers(block, shape, rng, width, xp, dtype):
    if isinstance(block, Conv):
        pieces = block.pieces or 1
        w, b = draw((block.kernel, block.kernel, shape[2], pieces * block.channels), rng, width, xp, dtype)
        pool = [MaxPool2d(*block.pool)] if block.pool else []
        return [Conv2d(w, b, block.pad), activation(block.pieces), *pool]
    flatten = [Flatten()] if len(shape) > 1 else []
    if isinstance(block, FullyConnected):
        pieces = block.pieces or 1
        w, b = draw((prod(shape), pieces * block.units), rng, width, xp, dtype)
        return [*flatten, Linear(w, b), activation(block.pieces)]
    return [*flatten, Linear(*draw((prod(shape), block.classes), rng, width, xp, dtype))]


def activation(pieces):
    return Maxout(pieces) if pieces else ReLU()


def draw(shape, rng, width=None, xp=np, dtype=np.float32):
    """Weights and zero biases for a layer whose filters are the last axis of `shape`, drawn on the host; 0 without rng.

    From U(-width, width) or, without a width, normal with variance 1 / fan-in. That keeps the mean square of
    activations through a maxout of two pieces: the larger of two centred normals has the mean square of one.
    """
    if rng is None:
        return xp.zeros(shape, dtype), xp.zeros(shape[-1], dtype)
    w = rng.normal(0, prod(shape[:-1]) ** -0.5, shape) if width is None else rng.uniform(-width, width, shape)
    return xp.asarray(w.astype(dtype)), xp.zeros(shape[-1], dtype)


def unit_variance(layers, x):
    """Scales the weights of each layer in turn, in place, so that its outputs for the images x have variance 1.

    The second half of LSUV (Mishkin and Matas 2016), exact in one pass because the biases are 0 and the layers linear
    in their weights. Without it max-pooling, whose outputs have a mean, makes activations grow from layer to layer.
    """
    for layer in layers:
        if isinstance(layer, Sequential):
            unit_variance(layer, x)
        elif "w" in layer.params:
            layer.params["w"] /= layer(x).std()
        x = layer(x)


def norms(network, layers):
    """{parameter name: largest norm} for the built layers of a network, or of its first blocks."""
    limits = {}
    for i, (block, layer) in enumerate(zip(network.blocks, layers, strict=False)):
        limits |= {f"{i}.{name}": block.norm for name in layer.params if name.endswith("w") and block.norm}
    return limits


def rates(network, layers, conv):
    """{parameter name: conv} of the convolutions of a network, as times the learning rate."""
    named = zip(network.blocks, range(len(layers)), strict=False)
    own = {str(i) for block, i in named if isinstance(block, Conv)}
    return {name: conv for name in layers.params if name.partition(".")[0] in own}


def count(layers, x):
    """(weights, multiplications) of each layer for one image, counted from the layers themselves.

    x (N, H, W, C): any number of images of the right shape, zero of them included.

    The paper's convention: no biases; a weight of a convolution multiplies once for every output before pooling.
    """
    counts = []
    for layer in layers:
        y = layer(x)
        if isinstance(layer, Sequential):
            counts.append(tuple(map(sum, zip(*count(layer, x), strict=True))))
        elif "w" in layer.params:
            weights = layer.params["w"].size
            counts.append((weights, weights * prod(y.shape[1:-1])))
        else:
            counts.append((0, 0))
        x = y
    return counts
