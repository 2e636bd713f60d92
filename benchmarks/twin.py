"""The PyTorch twin of a network: the same blocks, the same weights, the same training step.

Written as a friend of PyTorch would write it, so that minifit is compared with its best: plain functions and no
modules, no gradient for the images, the fused optimiser, a minibatch that lies ready in the memory format it wants.
"""

from functools import reduce

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.work import built, examples, stage
from minifit import fitnets
from minifit.composites import weights
from minifit.networks import Conv, Output

FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}

# The largest relative error of a gradient, in norm: both sides add the same numbers in another order.
TOLERANCES = {np.dtype(np.float64): 1e-11, np.dtype(np.float32): 1e-4}


def images(x, format, device="cpu"):
    """Images (N, H, W, C) as PyTorch wants them: (N, C, H, W), in memory by format."""
    return torch.from_numpy(x).permute(0, 3, 1, 2).to(device).contiguous(memory_format=FORMATS[format])


def maxout(z, pieces):
    """The largest of the pieces of z (N, M*K, ...), which lie one after another along axis 1.

    Of max, amax, maximum and where, the last has the fastest backward pass in both memory formats.
    """
    larger = _where if z.requires_grad else torch.maximum
    return reduce(larger, z.chunk(pieces, dim=1))


def _where(y, z):
    return torch.where(z > y, z, y)


class Twin:
    """A network in PyTorch, with a copy of the weights of its minifit twin `layers`."""

    def __init__(self, network, layers, format, lr=0.01, momentum=0.9, device="cpu"):
        self.format, self.device = format, device
        self.weights, self.inputs = {}, {}  # by minifit's name: the tensor, and the shape of its layer's input
        self.blocks = []  # (block, w, b)
        shape = network.input
        for i, (block, layer) in enumerate(zip(network.blocks, layers, strict=True)):
            for name, array in layer.params.items():
                self.inputs[f"{i}.{name}"] = shape
                self.weights[f"{i}.{name}"] = to_torch(array, shape, format, device).requires_grad_()
            w, b = (self.weights[f"{i}.{name}"] for kind in "wb" for name in layer.params if name.endswith(kind))
            self.blocks.append((block, w, b))
            shape = layer(np.zeros((1, *shape), array.dtype)).shape[1:]
        self.max_norms = [(self.weights[w.name], w.max_norm) for w in weights(layers) if w.max_norm]
        self.optimizer = torch.optim.SGD(self.weights.values(), lr=lr, momentum=momentum, fused=True)

    def forward(self, x):
        for block, w, b in self.blocks:
            x = F.conv2d(x, w, b, padding=block.pad) if isinstance(block, Conv) else F.linear(x.flatten(1), w, b)
            if not isinstance(block, Output):
                x = maxout(x, block.pieces) if block.pieces else F.relu(x, inplace=True)
            if isinstance(block, Conv) and block.pool:
                x = F.max_pool2d(x, *block.pool, ceil_mode=True)
        return x

    def step(self, x, labels):
        """One training step on the minibatch x, from `images`."""
        self.optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(self.forward(x), labels).backward()
        self.optimizer.step()
        with torch.no_grad():
            for w, limit in self.max_norms:
                shrink(w, limit)

    def measure(self, x, labels):
        """(mean loss, errors), without gradients: what minifit's evaluation returns."""
        with torch.inference_mode():
            logits = self.forward(x)
            return float(F.cross_entropy(logits, labels)), int((logits.argmax(1) != labels).sum())

    def gradient(self, x, labels):
        """(loss, grads), the gradients by minifit's names and in its order of axes."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(
            self.forward(images(x, self.format, self.device)), torch.from_numpy(labels).to(self.device)
        )
        loss.backward()
        return float(loss.detach()), {name: to_numpy(w.grad, self.inputs[name]) for name, w in self.weights.items()}

    def arrays(self):
        """The weights by minifit's names and in its order of axes."""
        return {name: to_numpy(w.detach(), self.inputs[name]) for name, w in self.weights.items()}


def to_torch(array, shape, format, device="cpu"):
    """A parameter of minifit in PyTorch's order of axes.   shape: of one input of its layer"""
    w = torch.tensor(array, device=device)
    if w.ndim == 4:  # (R, S, C, K) -> (K, C, R, S)
        return w.permute(3, 2, 0, 1).contiguous(memory_format=FORMATS[format])
    if w.ndim == 2 and len(shape) == 3:  # (H W C, E) -> (E, C H W)
        w = w.reshape(*shape, -1).permute(2, 0, 1, 3).reshape(len(w), -1)
    return w.T.contiguous() if w.ndim == 2 else w


def to_numpy(w, shape):
    """The inverse of `to_torch`."""
    w = w.cpu()
    if w.ndim == 4:
        return w.permute(2, 3, 1, 0).numpy()
    if w.ndim == 2 and len(shape) == 3:
        height, width, channels = shape
        return w.T.reshape(channels, height, width, -1).permute(1, 2, 0, 3).reshape(w.shape[1], -1).numpy()
    return w.T.numpy() if w.ndim == 2 else w.numpy()


def shrink(w, limit):
    """Scales every filter of w (K, ...) whose norm exceeds `limit` back to it, in place."""
    norm = torch.linalg.vector_norm(w, dim=tuple(range(1, w.ndim)), keepdim=True)
    w.mul_((limit / norm).clamp_(max=1))


def disagreement(ours, theirs):
    """The largest relative error between two (loss, grads): of the loss, and of each gradient in norm."""
    (loss, grads), (other_loss, other_grads) = ours, theirs
    if grads.keys() != other_grads.keys():
        raise AssertionError(f"gradients of {sorted(grads)} and of {sorted(other_grads)}")
    errors = [abs(loss - other_loss) / abs(other_loss)]
    for name, g in other_grads.items():
        if grads[name].shape != g.shape:
            raise AssertionError(f"{name}: gradients of shape {grads[name].shape} and {g.shape}")
        errors.append(np.linalg.norm((grads[name] - g).ravel()) / np.linalg.norm(g.ravel()))
    return float(np.max(errors))  # max() would lose a NaN


def agree(ours, theirs, what):
    """Their disagreement; AssertionError if it is above the tolerance of the gradients' dtype."""
    return _within(disagreement(ours, theirs), next(iter(ours[1].values())).dtype, what)


def check(network, batch=8):
    """Loss and gradients of minifit and of its twins agree: {(dtype, format): relative error}, else AssertionError.

    In float64 those of a minibatch. In float32 those of one image at a time, of which the median counts: now and then
    rounding decides a maximum the other way, and the gradient of that image takes another road.
    """
    errors = {}
    for dtype in TOLERANCES:
        layers, (x, labels) = built(network, dtype), examples(network, batch, dtype)
        size = batch if dtype == np.float64 else 1
        parts = [(x[i : i + size], labels[i : i + size]) for i in range(0, batch, size)]
        ours = [fitnets.gradient(stage(layers), x, None, labels, epoch=1) for x, labels in parts]
        for format in FORMATS:
            twin = Twin(network, layers, format)
            theirs = [twin.gradient(x, labels) for x, labels in parts]
            error = float(np.median([disagreement(*pair) for pair in zip(ours, theirs, strict=True)]))
            errors[dtype.name, format] = _within(error, dtype, f"{network.name}, {dtype}, {format}")
    return errors


def _within(error, dtype, what):
    if not error <= TOLERANCES[dtype]:
        raise AssertionError(f"{what}: minifit and PyTorch differ by {error:.1e}, more than {TOLERANCES[dtype]:.0e}")
    return error
