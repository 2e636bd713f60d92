"""Greedy layer-wise training (Bengio, Lamblin, Popovici, Larochelle 2006): one layer at a time, then all on labels.

Each layer is trained on the output of the layers below it, which stay as they are. The last stage trains the whole
network. Stage 1 of FitNet is a stage of this kind, whose target is a layer of the teacher.

Their network has 784-1000-1000-1000-10 units. With student=True a method trains the student of the experiment, so that
a greedy start and a hint can be compared on one network. Auto-associators and RBMs need sigmoids. Their student has
sigmoids instead of maxouts, and more channels for about as many weights.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import numpy as np

from minifit import UserError
from minifit.backend import array_module
from minifit.composites import Autoassociator, Sequential
from minifit.fitnets import LABELS, Loss, Method, Stage
from minifit.layers import Sigmoid, sigmoid
from minifit.losses import reconstruction_loss
from minifit.networks import Network, Output, SigmoidFullyConnected, for_images, of_sigmoids
from minifit.optimizers import Schedule

UNITS = 1000, 1000, 1000  # the paper: 3 to 5 layers of 500 to 1000; the Deep Learning Tutorials: these
RECONSTRUCTION_LR = 0.1  # of SGD: Deep Learning Tutorials, for auto-associators and RBMs
LABELS_LR = 0.0005  # of RMSProp, chosen here: SGD at .1, the tutorials' rate, fails from some starts


def autoassociator(task, train, student=False):
    """Trains each layer to reconstruct its input, pixels or the layer below, by its own weights transposed."""
    start = sigmoid_student(task) if student else deep(task)
    for i, stage in start.stages("autoassociator"):
        train(reconstruction(task, start, i, stage))
    train(start.last_stage("greedy-autoassociator"))


def rbm(task, train, student=False):
    """Trains each layer as an RBM by one step of contrastive divergence; the next layer sees its mean field."""
    start = sigmoid_student(task) if student else deep(task)
    for i, stage in start.stages("rbm"):
        train(replace(reconstruction(task, start, i, stage), rule=contrastive_divergence))
    train(start.last_stage("greedy-rbm"))


def supervised(task, train, student=False):
    """Trains each layer as the hidden layer of a classifier, and discards the classifier's output layer."""
    start = own_student(task) if student else deep(task)
    for i, stage in start.stages("supervised"):
        head = task.head(start.layers[: i + 1], f"output weights{start.suffix}", i + 1)
        classifier = Sequential([stage.network]) + head
        train(replace(stage, network=classifier, part=f"{stage.part}, and an output layer"))
    train(start.last_stage("greedy-supervised"))


LAYERWISE = (
    Method("greedy-autoassociator", "greedy auto-associators", "greedy AA", autoassociator),
    Method("greedy-rbm", "greedy RBMs", "greedy RBM", rbm),
    Method("greedy-supervised", "greedy supervised layers", "greedy sup.", supervised),
    Method(
        "greedy-autoassociator-student",
        "greedy auto-associators, student",
        "AA student",
        partial(autoassociator, student=True),
    ),
    Method("greedy-rbm-student", "greedy RBMs, student", "RBM student", partial(rbm, student=True)),
    Method(
        "greedy-supervised-student",
        "greedy supervised layers, student",
        "sup. student",
        partial(supervised, student=True),
    ),
)


@dataclass(frozen=True)
class Start:
    """A network to be trained greedily: its name in the task, its layers, and its schedules."""

    of: str
    layers: Sequential
    reconstructing: Schedule
    greedy: Schedule  # on labels
    last: Schedule
    suffix: str = ""  # ends the names of its stages

    def stages(self, name):
        """Yields (i, stage) for each block except the output: on labels, on the output of the blocks below it."""
        for i, block in enumerate(self.layers[:-1]):
            below, part = self.layers[:i] if i else None, f", layer {i + 1}"
            yield i, Stage(name + self.suffix, block, LABELS, self.greedy, of=self.of, part=part, below=below)

    def last_stage(self, name):
        """Returns the stage that trains all blocks on labels. The output layer starts with its initial weights."""
        return Stage(name + self.suffix, self.layers, LABELS, self.last, of=self.of)


def deep(task):
    """Builds 784-1000-1000-1000-10, with as many inputs and classes as the data have, and its own learning rates."""
    s, given = task.settings, task.networks["student"]
    blocks = *map(SigmoidFullyConnected, UNITS), Output(given.blocks[-1].classes)
    network = Network("deep sigmoids", (28, 28, 1), blocks, microbatch=64)
    layers = task.network("greedy", for_images(network, given.input))
    reconstructing = replace(s.stage1, optimizer="sgd", lr=RECONSTRUCTION_LR)
    greedy, last = (replace(schedule, optimizer="rmsprop", lr=LABELS_LR) for schedule in (s.stage1, s.student))
    return Start("greedy", layers, reconstructing, greedy, last)


def own_student(task):
    """Builds the student. Its greedy stages have the schedule of a hint."""
    s = task.settings
    return Start("student", task.network("student"), s.stage1, s.stage1, s.student, "-student")


def sigmoid_student(task):
    layers = task.network("sigmoid student", of_sigmoids(task.networks["student"]))
    return replace(own_student(task), of="sigmoid student", layers=layers)


def reconstruction(task, start, i, stage):
    """Returns the stage that trains block i as an auto-associator: its own layers, with a new bias for the decoder."""
    if task.draw and task.settings.preprocessing != "unit":
        raise UserError(f"{stage.name}: reconstructs pixels in [0, 1]; wanted --preprocessing unit")
    block, image = start.layers[i], task.xp.zeros((0, *task.networks[start.of].input), task.dtype)
    encoder = block[: [type(layer) for layer in block].index(Sigmoid)]
    code = Autoassociator(encoder, task.xp.zeros(start.layers[:i](image).shape[1:], task.dtype))
    schedule = start.reconstructing
    return replace(stage, network=code, loss=RECONSTRUCTION, schedule=schedule, classifies=False, reconstructs=True)


@dataclass(frozen=True)
class Reconstruction(Loss):
    """Cross-entropy of a layer's input with its reconstruction."""

    title: ClassVar[str] = "reconstruction"

    def __call__(self, logits, seen, labels, epoch):
        return reconstruction_loss(logits, seen)


RECONSTRUCTION = Reconstruction()


def contrastive_divergence(stage, x, target, labels, epoch, rng=None, share=1.0):
    """The rule CD-1 of an RBM: returns (cross-entropy of the reconstruction, -(<h0 v0'> - <q1 v1'>)), likewise b and c.

    h0 ~ P(h | v0), v1 ~ P(v | h0), q1 = P(h = 1 | v1). No loss has this gradient: v1 depends on the weights too, and
    the rule leaves that part out. Samples are drawn on the host. Without rng, their probabilities take their place.
    """
    machine, v0, rng = stage.network, stage.sees(x), rng if stage.noise else None
    q0, cache0 = machine.up(v0)
    h0 = drawn(q0, rng)
    logits = machine.down(h0, cache0)
    v1 = drawn(sigmoid(logits), rng)
    q1, cache1 = machine.up(v1)
    data, model = machine.correlations(v0, h0, cache0), machine.correlations(v1, q1, cache1)
    figure, _ = stage.loss(logits, v0, labels, epoch)
    return share * figure, {name: (model[name] - data[name]) * (share / len(v0)) for name in data}


def drawn(p, rng):
    """Draws 1 with probability p, else 0. Without rng, returns p."""
    if rng is None:
        return p
    return (array_module(p).asarray(rng.random(p.shape, np.float32)) < p).astype(p.dtype)
