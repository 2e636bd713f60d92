"""Networks of your own from a short text, such as 16-16-16/32-32-32/48-48-64, and the pair of layers to begin with.

    SPEC     GROUP/GROUP/... or a single GROUP, and then, if wanted, +UNITS
    GROUP    LAYER-LAYER-...
    LAYER    CHANNELS, or CHANNELSxKERNEL

A layer is a convolution of 3x3, or KERNELxKERNEL, that keeps the size of its map, and a maxout of two pieces. A group
ends in a max-pooling that halves the map. In a SPEC of one group, for a shallow teacher, every layer ends in a pooling.
The last pooling of a SPEC takes the whole map. UNITS is a fully connected layer of maxouts of five pieces. A SPEC
leaves out the output layer, which has one logit per class of the data.
"""

import re
from dataclasses import replace

import numpy as np

from minifit import UserError
from minifit.networks import Conv, FullyConnected, Network, Output, build

LAYER = re.compile(r"([1-9]\d{0,4})(?:x([1-9]\d?))?")
MOST = 100  # layers


def network(role, spec, image, classes):
    """Builds the Network of a SPEC for images (H, W, C).   role: "teacher" or "student" """
    convolutions, plus, units = spec.partition("+")
    groups = [group.split("-") for group in convolutions.split("/")]
    if len(groups) == 1:
        groups = [[layer] for layer in groups[0]]
    blocks, whole = [], (max(image[:2]),) * 2
    for group in groups:
        for layer in group:
            match = LAYER.fullmatch(layer)
            if not match:
                what = repr(layer) if layer else "nothing between two signs"
                raise UserError(
                    f"--{role} {spec}: found {what}; wanted CHANNELS or CHANNELSxKERNEL for each layer, - between "
                    "layers, / between groups, as in 16-16-16/32-32-32/48-48-64"
                )
            channels, kernel = int(match[1]), int(match[2] or 3)
            if kernel % 2 == 0:
                raise UserError(f"--{role} {spec}: found a kernel of {kernel}; wanted an odd one, which keeps the size")
            blocks.append(Conv(channels, kernel, pad=kernel // 2))
        blocks[-1] = replace(blocks[-1], pool=(2, 2))
    blocks[-1] = replace(blocks[-1], pool=whole)
    if len(blocks) > MOST:
        raise UserError(f"--{role}: found {len(blocks)} layers; wanted at most {MOST}")
    if plus:
        if not re.fullmatch(r"[1-9]\d{0,4}", units):
            raise UserError(f"--{role} {spec}: found +{units}; wanted +UNITS, a number of fully connected units")
        blocks.append(FullyConnected(int(units), pieces=5))
    return Network(f"{role} {spec}", tuple(image), (*blocks, Output(classes)), microbatch=32)


def pair(student, teacher):
    """Chooses (guided layer, hint layer, kind of regressor): the middle layers of the student and of the teacher.

    All layers that a SPEC names count, which is all but the output. Of two middle layers, the teacher's is the first,
    because the second can be the last, whose pooling leaves one pixel. The student's is the second, because its map is
    never the larger one and makes the smaller kernel. The paper's pairs for MNIST and for FitNets 1 and 2 are these.

    The guided map must be at least as large as the hint. If that of the student's middle layer is smaller, the guided
    layer is the last one before it whose map is large enough; the maps of a SPEC never grow. If there is none, the
    regressor is fully connected. The guided layer is a convolution, even if fully connected units are the middle.

    The kernel of a convolutional regressor grows with the difference of the two maps, and is 1x1 for equal ones.
    """
    maps, hints = shapes(student), shapes(teacher)
    hint, middle = len(teacher.blocks) // 2, (len(student.blocks) + 1) // 2  # the output is one of the blocks
    middle = min(middle, len(maps))
    height, width, _ = hints[hint - 1]
    fitting = [i for i, size in enumerate(maps[:middle], start=1) if size[0] >= height and size[1] >= width]
    return (fitting[-1], hint, "conv") if fitting else (middle, hint, "fc")


def shapes(network):
    """Returns the shapes (H, W, C) of a network's convolutional maps."""
    layers, x, sizes = build(network), np.zeros((0, *network.input), np.float32), []
    for layer, block in zip(layers, network.blocks, strict=True):
        x = layer(x)
        sizes += [x.shape[1:]] * isinstance(block, Conv)
    return sizes
