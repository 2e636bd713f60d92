"""The paper's networks as lists of blocks, and the counts of their weights and multiplications.

One element of a network is one layer of the paper: Conv(48, 8, pool=(4, 2)) is 48 maxout channels of 8x8 kernels with
the pooling after them. It becomes Sequential([Conv2d, Maxout, MaxPool2d]).
"""

from dataclasses import dataclass, replace
from math import prod

import numpy as np

from minifit import UserError
from minifit.backend import TRAINING, array_module, refuse_more_than_memory
from minifit.composites import Sequential, leaves
from minifit.layers import Binary, Conv2d, Dropout, Flatten, GlobalAverage, Linear, Maxout, MaxPool2d, ReLU, Sigmoid


@dataclass(frozen=True)
class Conv:
    """A convolution, its non-linearity, and the pooling after it. pieces=None: ReLU; pieces=1: no non-linearity.

    pool: (size, stride), or (size, stride, False) in floor-mode
    """

    channels: int
    kernel: int
    pad: int = 0
    pool: tuple | None = None
    pieces: int | None = 2
    max_norm: float | None = None  # the largest norm of a filter, each piece counted as one

    def layers(self, shape, xp, dtype):
        """Returns the layers for an input of this shape (H, W, C), with weights of 0."""
        w, b = zeros((self.kernel, self.kernel, shape[2], (self.pieces or 1) * self.channels), xp, dtype)
        pool = [MaxPool2d(*self.pool)] if self.pool else []
        return [Conv2d(w, b, self.pad, self.max_norm), self.nonlinearity(), *pool]

    def nonlinearity(self):
        return activation(self.pieces)

    def widened(self, scale):
        return replace(self, channels=max(1, round(scale * self.channels)))


@dataclass(frozen=True)
class FullyConnected:
    """A fully connected layer and its non-linearity."""

    units: int
    pieces: int | None = 2
    max_norm: float | None = None

    def layers(self, shape, xp, dtype):
        w, b = zeros((prod(shape), (self.pieces or 1) * self.units), xp, dtype)
        return [*flatten(shape), Linear(w, b, self.max_norm), self.nonlinearity()]

    def nonlinearity(self):
        return activation(self.pieces)

    def widened(self, scale):
        return replace(self, units=max(1, round(scale * self.units)))


@dataclass(frozen=True)
class SigmoidConv(Conv):
    """A convolution with sigmoids, and the pooling after it."""

    pieces: None = None

    def nonlinearity(self):
        return Sigmoid()


@dataclass(frozen=True)
class SigmoidFullyConnected(FullyConnected):
    """A fully connected layer of sigmoids."""

    pieces: None = None

    def nonlinearity(self):
        return Sigmoid()


@dataclass(frozen=True)
class Output:
    """The logits; softmax belongs to the losses."""

    classes: int
    max_norm: float | None = None

    def layers(self, shape, xp, dtype):
        return [*flatten(shape), Linear(*zeros((prod(shape), self.classes), xp, dtype), self.max_norm)]

    def widened(self, scale):
        return self


@dataclass(frozen=True)
class BinaryOutput(Output):
    """The logits of two classes from one number, as for a sigmoid: the logit of the first class is 0."""

    classes: int = 2

    def layers(self, shape, xp, dtype):
        return [*flatten(shape), Linear(*zeros((prod(shape), 1), xp, dtype), self.max_norm), Binary()]


@dataclass(frozen=True)
class Bottleneck:
    """A fully connected layer without a non-linearity before a wide one: in mimic nets the two are a product U V."""

    units: int

    def layers(self, shape, xp, dtype):
        return [*flatten(shape), Linear(*zeros((prod(shape), self.units), xp, dtype))]

    def widened(self, scale):
        return replace(self, units=max(1, round(scale * self.units)))


@dataclass(frozen=True)
class Micro:
    """The part of an mlpconv layer after its convolution: ReLU, 1x1 convolutions and their ReLUs, pooling, dropout."""

    channels: tuple[int, ...]
    pool: tuple | None = None
    keep: float = 1.0  # dropout keeps each output with this probability in training

    def layers(self, shape, xp, dtype):
        made, below = [], shape[2]
        for channels in self.channels:
            made += [ReLU(), Conv2d(*zeros((1, 1, below, channels), xp, dtype))]
            below = channels
        noise = [Dropout(self.keep)] if self.keep < 1 else []
        return [*made, ReLU(), *([MaxPool2d(*self.pool)] if self.pool else []), *noise]

    def widened(self, scale):
        return replace(self, channels=tuple(max(1, round(scale * channels)) for channels in self.channels))


@dataclass(frozen=True)
class ClassMaps:
    """One map per class, by a 1x1 convolution; the means of the maps are the logits."""

    classes: int
    relu: bool = True  # whether the maps pass a ReLU first

    def layers(self, shape, xp, dtype):
        w, b = zeros((1, 1, shape[2], self.classes), xp, dtype)
        return [Conv2d(w, b), *[ReLU()] * self.relu, GlobalAverage()]

    def widened(self, scale):
        return self


def zeros(shape, xp, dtype):
    """Returns weights of this shape and one bias per filter, the last axis; all are 0 until they are drawn."""
    what = f"training weights {tuple(shape)} would"
    refuse_more_than_memory(what, TRAINING * prod(shape), "a narrower network would fit")
    return xp.zeros(shape, dtype), xp.zeros(shape[-1], dtype)


def activation(pieces):
    return Maxout(pieces) if pieces else ReLU()


def flatten(shape):
    return [Flatten()] if len(shape) > 1 else []


@dataclass(frozen=True)
class Network:
    """A name, the shape (H, W, C) of one input, and the blocks."""

    name: str
    input: tuple[int, int, int]
    blocks: tuple
    # Images computed at a time on a CPU: few, so that they fit the cache; more for few channels or large filters, whose
    # transforms then cost less per image.
    microbatch: int = 16


# Appendix A.2; the teacher's norms from pylearn2, the student's kernel sizes and norms from the released code.
MNIST_TEACHER = Network(
    "MNIST teacher",
    (28, 28, 1),
    (
        Conv(48, 8, pool=(4, 2), max_norm=0.9),
        Conv(48, 8, pad=3, pool=(4, 2), max_norm=1.9365),
        Conv(24, 5, pad=3, pool=(2, 2), max_norm=1.9365),
        Output(10, max_norm=1.9365),
    ),
    microbatch=32,
)
MNIST_FITNET = Network(
    "MNIST FitNet",
    (28, 28, 1),
    (
        Conv(16, 5, max_norm=0.9),
        Conv(16, 3, pool=(4, 2), max_norm=0.9),
        Conv(16, 5, pad=3, max_norm=1.9365),
        Conv(16, 3, pool=(4, 2), max_norm=1.9365),
        Conv(12, 3, pad=3, max_norm=1.9365),
        Conv(12, 3, pool=(2, 2), max_norm=1.9365),
        Output(10, max_norm=1.9365),
    ),
    microbatch=32,
)


def cifar_teacher(name, classes):
    """Appendix A.1.1, norms and pads from pylearn2's maxout networks; its fully connected layer has 5 pieces."""
    return Network(
        name,
        (32, 32, 3),
        (
            Conv(96, 8, pad=4, pool=(4, 2), max_norm=0.9),
            Conv(192, 8, pad=3, pool=(4, 2), max_norm=1.9365),
            Conv(192, 5, pad=3, pool=(2, 2), max_norm=1.9365),
            FullyConnected(500, pieces=5, max_norm=1.9),
            Output(classes, max_norm=1.9365),
        ),
        microbatch=32,
    )


def cifar_student(name, *groups, classes=10, microbatch=16):
    """Tables 6 and 7: three groups of 3x3 maxout layers, pooled 2x2, 2x2 and over the whole map; then fc, softmax."""
    pools = ((2, 2), (2, 2), (8, 8))
    blocks = []
    for group, pool in zip(groups, pools, strict=True):
        blocks += [Conv(channels, 3, pad=1) for channels in group[:-1]] + [Conv(group[-1], 3, pad=1, pool=pool)]
    return Network(name, (32, 32, 3), (*blocks, FullyConnected(500, pieces=5), Output(classes)), microbatch)


def with_100_classes(network):
    return replace(network, name=f"{network.name}, 100 classes", blocks=(*network.blocks[:-1], Output(100)))


CIFAR10_TEACHER = cifar_teacher("CIFAR-10 teacher", 10)
CIFAR100_TEACHER = cifar_teacher("CIFAR-100 teacher", 100)
FITNET_1 = cifar_student("FitNet 1", (16, 16, 16), (32, 32, 32), (48, 48, 64), microbatch=32)
FITNET_2 = cifar_student("FitNet 2", (16, 32, 32), (48, 64, 80), (96, 96, 128), microbatch=32)
FITNET_3 = cifar_student("FitNet 3", (32, 48, 64, 64), (80, 80, 80, 80), (128, 128, 128))
FITNET_4 = cifar_student("FitNet 4", (32, 32, 32, 48, 48), (80,) * 6, (128,) * 6)
FITNET_1_100, FITNET_2_100, FITNET_3_100, FITNET_4_100 = map(with_100_classes, (FITNET_1, FITNET_2, FITNET_3, FITNET_4))

# Appendix A.3, norms and pads from pylearn2, as for CIFAR. The student of 3.2 and Table 3 is FitNet 3.
SVHN_TEACHER = Network(
    "SVHN teacher",
    (32, 32, 3),
    (
        Conv(64, 5, pad=4, pool=(3, 2), max_norm=0.9),
        Conv(128, 5, pad=3, pool=(3, 2), max_norm=1.9365),
        Conv(128, 5, pad=3, pool=(3, 2), max_norm=1.9365),
        FullyConnected(400, pieces=5, max_norm=1.9),
        Output(10, max_norm=1.9365),
    ),
    microbatch=32,
)
SVHN_FITNET = replace(FITNET_3, name="SVHN FitNet")

# Appendix A.4: ReLUs, and a sigmoid at the output.
AFLW_TEACHER = Network(
    "AFLW teacher",
    (16, 16, 3),
    (
        Conv(128, 3, pool=(2, 2), pieces=None),
        Conv(512, 2, pieces=None),
        Conv(512, 5, pieces=None),
        BinaryOutput(),
    ),
    microbatch=32,
)


def aflw_student(name, first, others):
    """Appendix A.4: seven 3x3 layers without padding lead from 16x16 to 2x2; the paper prints eight widths."""
    blocks = (Conv(channels, 3, pieces=None) for channels in (first, *[others] * 6))
    return Network(name, (16, 16, 3), (*blocks, BinaryOutput()), microbatch=32)


AFLW_FITNET_1 = aflw_student("AFLW FitNet 1", 16, 32)
AFLW_FITNET_2 = aflw_student("AFLW FitNet 2", 32, 64)

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


def nin(name, image, classes, convolutions, micro, relu=True, microbatch=16):
    """Network in network (Lin et al. 2014): three mlpconv layers; the last one ends in one map per class.

    convolutions: (channels, kernel) of each    micro: channels of the 1x1 convolutions after each, without the classes
    relu: whether the maps of the classes pass a ReLU, as in its code; not so in deeply-supervised nets
    """
    blocks = []
    for (channels, kernel), behind in zip(convolutions, micro, strict=True):
        pool = {"pool": (3, 2), "keep": 0.5} if len(blocks) < 4 else {}
        blocks += [Conv(channels, kernel, pad=kernel // 2, pieces=1), Micro(behind, **pool)]
    return Network(name, image, (*blocks, ClassMaps(classes, relu)), microbatch)


def nin_mnist(classes=10, relu=True):
    widths = ((96, 5), (128, 5), (128, 5)), ((64, 48), (96, 48), (96,))
    return nin("network in network, MNIST", (28, 28, 1), classes, *widths, relu, microbatch=32)


def nin_cifar(classes=10, relu=True):
    widths = ((192, 5), (192, 5), (192, 3)), ((160, 96), (192, 192), (192,))
    return nin("network in network, CIFAR", (32, 32, 3), classes, *widths, relu)


def nin_svhn(classes=10, relu=True):
    widths = ((128, 5), (320, 5), (384, 5)), ((96, 64), (256, 128), (256,))
    return nin("network in network, SVHN", (32, 32, 3), classes, *widths, relu)


def mimic(image, classes, bottleneck, hidden, channels=None, pool=(3, 2)):
    """A mimic net (Ba and Caruana 2014): [convolution of `channels`], linear bottleneck, one hidden layer."""
    first = [Conv(channels, 5, pad=2, pool=pool, pieces=None)] if channels else []
    name = f"mimic net {f'{channels}c-' if channels else ''}{bottleneck}L-{hidden}"
    return Network(name, image, (*first, Bottleneck(bottleneck), FullyConnected(hidden, None), Output(classes)), 64)


def mimic_cifar(channels, classes=10):
    """The mimic nets of Table 1: 64 channels for 54M weights, 128 for 70M. Only maps of 15x15 give these counts."""
    return mimic((32, 32, 3), classes, 1200, 30_000, channels, pool=(3, 2, False))


def maxout_dense(classes=10):
    """The permutation-invariant maxout network of MNIST (Goodfellow et al. 2013, section 5.1)."""
    dense = FullyConnected(240, pieces=5, max_norm=1.9365)
    output = Output(classes, max_norm=1.9365)
    return Network("permutation-invariant maxout", (28, 28, 1), (dense, dense, output), 64)


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
    SVHN_TEACHER,
    SVHN_FITNET,
    AFLW_TEACHER,
    AFLW_FITNET_1,
    AFLW_FITNET_2,
    *DEPTH_30M,
    *DEPTH_107M,
)

# The other systems of the paper's tables, for ten classes.
OTHERS = (nin_mnist(), nin_cifar(), nin_svhn(), maxout_dense(), mimic_cifar(64), mimic_cifar(128))


def widened(network, scale):
    """Returns the network with `scale` times as many channels and units. Its name says so."""
    if scale == 1:
        return network
    blocks = tuple(block.widened(scale) for block in network.blocks)
    return replace(network, name=f"{network.name}, {scale:g} times as wide", blocks=blocks)


def of_sigmoids(network):
    """Returns the network with sigmoids as its non-linearities, and about as many weights.

    A maxout unit of M pieces has M filters, so the network of sigmoids has sqrt(M) times as many units.
    """

    def block_of_sigmoids(block):
        if isinstance(block, Output):
            return block
        block = block.widened((block.pieces or 1) ** 0.5)
        if isinstance(block, Conv):
            return SigmoidConv(block.channels, block.kernel, block.pad, block.pool)
        return SigmoidFullyConnected(block.units)

    return replace(network, name=f"{network.name} of sigmoids", blocks=tuple(map(block_of_sigmoids, network.blocks)))


def for_images(network, image):
    """Returns the network for images of this shape. Smaller images get fewer channels and units, in proportion."""
    return replace(widened(network, min(1, prod(image) / prod(network.input))), input=image)


def as_counted(network):
    """Returns the network as the paper counted it: 2 pieces in the fully connected layer, where the text says 5."""
    two = (replace(block, pieces=2) if isinstance(block, FullyConnected) else block for block in network.blocks)
    return replace(network, blocks=tuple(two))


def build(network, dropout_keep_input=1.0, dropout_keep=1.0, conv_lr_scale=1.0, xp=np, dtype=np.float32):
    """Builds a Sequential with one Sequential per block of the network. Weights are 0 until `initialise` draws them.

    Dropout keeps dropout_keep_input of the input (not rescaled) and dropout_keep of every later layer's input
    (rescaled), as in pylearn2's maxout networks. conv_lr_scale: factor of the learning rate of the convolutions.
    """
    layers, shape, n = [], network.input, 0
    for i, block in enumerate(network.blocks):
        noise = Dropout(dropout_keep) if i else Dropout(dropout_keep_input, rescale=False)
        layer = Sequential(([noise] if noise.keep < 1 else []) + block.layers(shape, xp, dtype))
        for leaf in leaves(layer) if isinstance(block, Conv) else ():
            leaf.lr_scale = conv_lr_scale  # of the leaf, so that a slice of the block has it too
        shape = layer(xp.zeros((0, *shape), dtype)).shape[1:]  # a batch of no images is enough to find the shape
        layers.append(layer)
        n += sum(p.size for p in layer.params.values())
        what = f"{network.name}: training its first {n:,} weights would"
        refuse_more_than_memory(what, TRAINING * n, "a narrower network would fit")
    return Sequential(layers)


def initialise(layers, rng, init_range=None):
    """Draws all weights in order, in place; biases stay 0. It draws on the host in float64, the same for every backend.

    Weights are from U(-init_range, init_range), as in the paper; without init_range, normal with variance 1 / fan-in.
    Normal weights keep the mean square of activations through a maxout of two pieces, because the larger of two
    centred normals has the same mean square as one of them.
    """
    for layer in leaves(layers):
        if "w" in layer.params:
            w = layer.params["w"]
            scale = prod(w.shape[:-1]) ** -0.5
            drawn = rng.uniform(-init_range, init_range, w.shape) if init_range else rng.normal(0, scale, w.shape)
            w[...] = array_module(w).asarray(drawn.astype(w.dtype))


def unit_variance(layers, images):
    """Scales the weights of each layer in order, in place, so that its outputs for the images have variance 1.

    This is the second half of LSUV (Mishkin and Matas 2016). One pass is exact, because biases are 0 and layers are
    linear in their weights. Without it activations grow from layer to layer, because max-pooling raises their mean.
    """

    def scale(layer, x):
        if "w" in layer.params:
            deviation = layer(x).std()
            if not deviation > 0:
                alike = "; all their pixels are the same" if not images.std() > 0 else ""
                raise UserError(
                    f"init scaled: a {type(layer).__name__} gives one and the same number for all of the first "
                    f"{len(x)} training images{alike}. Look at the images, or take --init uniform"
                )
            layer.params["w"] /= deviation

    layers.visit(images, scale)


def count(layers, x):
    """Counts (weights, multiplications) of each of the layers for one image, from the layers themselves.

    x (N, H, W, C): any number of images of the right shape, even none.

    The paper's convention: biases do not count, and each weight of a convolution multiplies once per output pixel
    before pooling.
    """
    counts = {}

    def see(layer, x):
        weights = layer.params["w"].size if "w" in layer.params else 0
        counts[layer] = np.array([weights, weights and weights * prod(layer(x).shape[1:-1])])

    layers.visit(x, see)
    return [
        tuple(sum((counts[leaf] for leaf in leaves(child)), np.zeros(2, int)).tolist())
        for child in layers.children.values()
    ]
