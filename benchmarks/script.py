"""The PyTorch script of a stage: what a competent user would write to train the same networks by the same loss.

The teacher is frozen and runs under inference_mode, or its outputs are kept, for mirror images too where the experiment
mirrors. Images are prepared once and lie ready as floats. The update is `torch.optim`'s, with max-norm after it.
"""

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.twin import images, maxout, shrink, to_numpy, to_torch
from minifit.composites import leaves, weights
from minifit.fitnets import Distillation, Hint, Labels
from minifit.lab.sets import fingerprint
from minifit.layers import Conv2d, Dropout, Flatten, Linear, Maxout, MaxPool2d, ReLU

AT_ONCE = 128  # images of an evaluation; PyTorch takes longer for each of 500


class Net:
    """Layers of minifit in PyTorch, with a copy of their weights."""

    def __init__(self, layers, image, format, trained=False, device="cpu"):
        """image: the shape (H, W, C) of one input"""
        names = {id(p): name for name, p in layers.params.items()}
        self.weights, self.shapes, self.steps = {}, {}, []
        x, dtype = np.zeros((0, *image), np.float32), next(iter(layers.params.values())).dtype
        shape = image  # of the input, before it was flattened
        for leaf in leaves(layers):
            for p in leaf.params.values():
                name = names[id(p)]
                self.shapes[name] = shape
                self.weights[name] = to_torch(p, shape, format, device).requires_grad_(trained)
            self.steps.append(_step(leaf, [self.weights[names[id(p)]] for p in leaf.params.values()]))
            x = leaf(x.astype(dtype))
            shape = shape if isinstance(leaf, Flatten) else x.shape[1:]

    def __call__(self, x, training=False):
        for step in self.steps:
            x = step(x, training)
        return x

    def grads(self):
        return {name: to_numpy(w.grad, self.shapes[name]) for name, w in self.weights.items()}

    def arrays(self):
        return {name: to_numpy(w.detach(), self.shapes[name]) for name, w in self.weights.items()}


def _step(leaf, weights):
    """A layer as a function (x, training)."""
    if isinstance(leaf, Conv2d):
        return lambda x, _: F.conv2d(x, *weights, padding=leaf.pad)
    if isinstance(leaf, Linear):
        return lambda x, _: F.linear(x, *weights)
    if isinstance(leaf, Maxout):
        return lambda x, _: maxout(x, leaf.pieces)
    if isinstance(leaf, ReLU):
        return lambda x, _: F.relu(x, inplace=True)
    if isinstance(leaf, MaxPool2d):
        return lambda x, _: F.max_pool2d(x, leaf.size, leaf.stride, ceil_mode=leaf.ceil)
    if isinstance(leaf, Flatten):
        return lambda x, _: x.flatten(1)
    if isinstance(leaf, Dropout):
        share = 1.0 if leaf.rescale else leaf.keep
        return lambda x, training: F.dropout(x, 1 - leaf.keep) * share if training else x
    raise TypeError(f"no layer {type(leaf).__name__} in this script")


class Script:
    """Trains a stage of minifit on images (N, H, W, C) that are prepared already."""

    def __init__(self, stage, x, labels, format, flips=False, keeps=False, device="cpu", kept=None):
        """flips: mirror each image with probability 1/2   keeps: compute the teacher's outputs once

        kept: the outputs that the scripts of other stages have computed, by set and teacher
        """
        self.stage, self.flips, self.format, self.device = stage, flips, format, device
        self.keeps, self.kept = keeps and stage.target is not None, {} if kept is None else kept
        self.student = Net(stage.network, x.shape[1:], format, True, device)
        self.teacher = stage.target and Net(stage.target, x.shape[1:], format, device=device)
        self.x, self.labels = images(x, format, device), torch.from_numpy(labels).to(device)
        self.answers = None
        if self.keeps:
            versions = [self.x, self.x.flip(3)] if flips else [self.x]
            self.answers = self.once("all versions", lambda: torch.stack([self.outputs(x) for x in versions]))
        self.optimizer = _optimizer(stage, self.student.weights)
        self.limits = [(self.student.weights[w.name], w.max_norm) for w in weights(stage.network) if w.max_norm]

    def outputs(self, x):
        """The teacher's, which the loss may keep for its backward pass: a copy, as inference_mode demands."""
        with torch.inference_mode():
            parts = [self.teacher(part) for part in x.split(AT_ONCE)]
        return torch.cat(parts) if len(parts) > 1 else parts[0].clone()

    def once(self, name, outputs):
        """The teacher's outputs for the set of that name, which a script with the same teacher may have kept."""
        key = name, fingerprint(self.stage.target)
        if key not in self.kept:
            self.kept[key] = outputs()
        return self.kept[key]

    def loss(self, prediction, target, labels, epoch):
        loss, n = self.stage.loss, len(prediction)
        if isinstance(loss, Labels):
            return F.cross_entropy(prediction, labels)
        if isinstance(loss, Hint):
            share = 0.5 / (n if loss.reduction == "sum" else prediction.numel())
            return share * F.mse_loss(prediction, target, reduction="sum")
        if isinstance(loss, Distillation):
            soft = F.cross_entropy(prediction / (loss.student_tau or loss.tau), (target / loss.tau).softmax(dim=1))
            return F.cross_entropy(prediction, labels) + loss.lam(epoch) * soft
        raise TypeError(f"no loss {type(loss).__name__} in this script")

    def gradient(self, x, target, labels, epoch):
        """The loss of a minibatch, whose gradients are then those of the weights."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(self.student(x, self.stage.noise), target, labels, epoch)
        loss.backward()
        return loss

    def step(self, chosen, epoch=1):
        """One update on the images of these numbers."""
        chosen = chosen.to(self.device)
        x, labels, version = self.x[chosen], self.labels[chosen], 0
        if self.flips:
            mirror = torch.rand(len(x), device=self.device) < 0.5
            x, version = torch.where(mirror[:, None, None, None], x.flip(3), x), mirror.long()
        target = self.answers[version, chosen] if self.answers is not None else self.teacher and self.outputs(x)
        self.gradient(x, target, labels, epoch)
        self.optimizer.step()
        with torch.no_grad():
            for w, limit in self.limits:
                shrink(w, limit)

    def agreed(self, x, labels, epoch=1):
        """(loss, grads by minifit's names) of a minibatch that is not augmented."""
        x = images(x, self.format, self.device)
        target = self.teacher and self.outputs(x)
        loss = self.gradient(x, target, torch.from_numpy(labels).to(self.device), epoch)
        return float(loss.detach()), self.student.grads()

    def epoch(self, number, rng):
        order = torch.from_numpy(rng.permutation(len(self.x)))
        for chosen in order.split(self.stage.schedule.batch):
            self.stage.schedule.adjust(_Rate(self.optimizer), number, 0)
            self.step(chosen, number)

    def measure(self, name, x, labels, epoch):
        """The mean loss, and the number of errors, over the set of that name."""
        total, errors = 0.0, 0
        kept = self.once(name, lambda: self.outputs(x)).split(AT_ONCE) if self.keeps else None
        with torch.inference_mode():
            for i, (part, answers) in enumerate(zip(x.split(AT_ONCE), labels.split(AT_ONCE), strict=True)):
                prediction, target = self.student(part), kept[i] if kept else self.teacher and self.teacher(part)
                total += float(self.loss(prediction, target, answers, epoch)) * len(part)
                errors += int((prediction.argmax(1) != answers).sum()) if self.stage.classifies else 0
        return total / len(x), errors


class _Rate:
    """Lets minifit's schedule set the rate of a PyTorch optimiser."""

    def __init__(self, optimizer):
        self.__dict__["groups"] = optimizer.param_groups

    def __setattr__(self, name, value):
        for group in self.groups:
            group[name] = value * (group["scale"] if name == "lr" else 1)


def _optimizer(stage, tensors):
    scales, schedule = {w.name: w.lr_scale for w in weights(stage.network)}, stage.schedule
    groups = [{"params": [w], "scale": scales[name]} for name, w in tensors.items()]
    if len({group["scale"] for group in groups}) == 1:  # in one group an update takes fewer calls
        groups = [{"params": list(tensors.values()), "scale": groups[0]["scale"]}]
    for group in groups:
        group["lr"] = schedule.lr * group["scale"]
    if schedule.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, lr=schedule.lr, alpha=0.9, eps=1e-5, foreach=True)
    return torch.optim.SGD(groups, lr=schedule.lr, momentum=schedule.momentum.first, fused=True)
