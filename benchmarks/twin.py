"""The PyTorch twin of a network: the same blocks, the same weights, the same training step.

Written as a friend of PyTorch would write it, so that minifit is compared with its best: plain functions and no modules,
no gradient for the images, the fused optimiser, a minibatch that lies ready in the memory format it wants.
"""

import numpy as np
import torch
import torch.nn.functional as F

from minifit import fitnets
from minifit.networks import Conv, FullyConnected, Output, build, norms

FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}

# The largest relative error of a gradient, in norm. Both sides add the same numbers in another order. The room in float32
# is for the rare maximum that rounding decides the other way; a wrong tie, scale or transpose is far above it.
TOLERANCES = {np.float64: 1e-9, np.float32: 1e-3}


def images(array, format):
    """Images (N, H, W, C) as PyTorch wants them: logically (N, C, H, W), in memory by format."""
    return torch.from_numpy(array).permute(0, 3, 1, 2).contiguous(memory_format=FORMATS[format])


def maxout(z, pieces):
    """The largest of the pieces of z (N, M*K, ...), which lie one after another along axis 1."""
    return z.unflatten(1, (pieces, -1)).max(1).values


class Twin:
    """A network in PyTorch, from the weights of a built minifit network, which are copied."""

    def __init__(self, network, layers, format, lr=0.01, momentum=0.9):
        self.network, self.format = network, format
        self.weights = {}  # minifit's name of a parameter: the tensor, in PyTorch's order of axes
        self.blocks = []  # (block, w, b)
        shape = network.input
        for i, (block, layer) in enumerate(zip(network.blocks, layers, strict=True)):
            pair = [f"{i}.{name}" for kind in "wb" for name in layer.params if name.endswith(kind)]
            for name in pair:
                tensor = self._to_torch(layers.params[name], shape)
                self.weights[name] = tensor.clone(memory_format=torch.preserve_format).requires_grad_()
            self.blocks.append((block, *(self.weights[name] for name in pair)))
            shape = layer(np.zeros((1, *shape), layers.params[pair[0]].dtype)).shape[1:]
