"""Algorithm 1 of FitNets and the other methods of its Table 4, one function each. If you read one file, read this.

A method is a function of a task (networks, settings, random streams) and of `train`. Each call of `train` is a stage:
it trains the stage's network, or loads it if it was trained before, and returns the stage's record. Stages share
layers, so each one starts where the statements before it left the network.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil
from typing import ClassVar

from minifit.composites import Branches
from minifit.layers import Layer
from minifit.losses import cross_entropy, distillation_loss, hint_loss
from minifit.optimizers import Ramp, Schedule


def teacher(task, train, name):
    """Trains the wide, shallow network on labels. teacher_all adds pylearn2's last phase: all images, no dropout."""
    s, network = task.settings, task.network(name, task.networks["teacher"], as_teacher=True)
    record = train(Stage(name, network, LABELS, s.teacher, of=name))
    if s.teacher_all:
        updates = record["best_epoch"] * ceil(s.train / s.teacher.batch)
        schedule = held(s.teacher, record["best_epoch"], updates, epochs=s.teacher_all)
        train(Stage(f"{name}_all", network, LABELS, schedule, of=name, noise=False, on_all=True))
    return network


def backprop(task, train):
    """Trains the student on labels only."""
    train(Stage("backprop", task.network("student"), LABELS, task.settings.student))


def kd(task, train):
    """Trains the whole student on eq. 2, from its random start."""
    teacher = trained_teacher(task, train)
    train(Stage("kd", task.network("student"), eq_2(task), task.settings.student, teacher))


def fitnet(task, train):
    """Algorithm 1: trains the student up to its guided layer on eq. 3, then the whole student on eq. 2."""
    s, teacher, student = task.settings, trained_teacher(task, train), task.network("student")
    for pair, (g, h) in enumerate(task.pairs, start=1):  # the paper has one pair
        w_hint = teacher[:h]  # line 1
        w_guided = student[:g]  # line 2
        w_r = task.regressor(w_guided, w_hint, pair)  # line 3
        part = f", layers 1-{g}, and regressor"
        train(Stage("hint", w_guided + w_r, eq_3(task), s.stage1, w_hint, part=part, classifies=False))  # line 4
        # line 5 copies W_Guided* into W_S: nothing to do, because a slice shares its layers with the student
    for layer in student[: max(s.guided_layer)]:
        layer.lr_scale *= s.guided_lr_scale  # 1 in the paper
    train(Stage("fitnet", student, eq_2(task), s.student, teacher))  # line 6


def trained_teacher(task, train, name="teacher"):
    """Returns the trained teacher, which all methods of a task share. It never changes afterwards.

    name: "teacher", or another name for each further teacher of an ensemble
    """
    if name not in task.teachers:
        task.teachers[name] = teacher(task, train, name)
    return task.teachers[name]


def held(schedule, epoch, updates, epochs):
    """Returns the schedule with the learning rate and momentum held at their values in `epoch`, after `updates`."""
    lr = schedule.lr * schedule.lr_scale(epoch) * schedule.lr_decay**-updates
    momentum = Ramp(schedule.momentum(epoch))
    return replace(schedule, epochs=epochs, lr=lr, lr_scale=Ramp(1.0), lr_decay=1.0, momentum=momentum)


def eq_2(task):
    return Distillation(task.settings.tau, task.settings.lam, task.settings.student_tau)


def eq_3(task):
    return Hint(task.settings.hint_reduction)


@dataclass(frozen=True)
class Method:
    """A method: its name on the command line, its name in tables, a short one for plots, and its function.

    default: whether it is trained where no methods are named    teaches: whether the others learn from its network
    """

    name: str
    title: str
    label: str
    run: Callable  # (task, train)
    default: bool = False
    teaches: bool = False


TABLE_4 = (
    Method("teacher", "teacher", "teacher", trained_teacher, default=True, teaches=True),
    Method("backprop", "standard back-propagation", "back-prop", backprop, default=True),
    Method("kd", "knowledge distillation", "KD", kd, default=True),
    Method("fitnet", "FitNet", "FitNet", fitnet, default=True),
)


@dataclass(frozen=True)
class Stage:
    """One stage: find the parameters of `network` that minimise the mean of loss(network(x), target(x), labels)."""

    name: str
    network: Layer  # all of its parameters are trained
    loss: Callable  # a Loss: (prediction, target, labels, epoch) -> (loss, d(loss)/d(prediction))
    schedule: Schedule
    target: Layer | None = None  # the part of the teacher whose output the loss compares with; it is never trained
    of: str = "student"  # the name of the task's network that `network` belongs to
    part: str = ""  # the part of that network, in words
    classifies: bool = True  # True: `network` ends in logits, and errors choose the epoch; False: the loss chooses it
    noise: bool = True  # whether dropout is on
    on_all: bool = False  # also train on validation images, until their loss falls to the first training loss
    below: Layer | None = None  # fixed layers whose output the network sees in place of the images
    reconstructs: bool = False  # whether the loss compares with the network's own input, in place of a teacher's output
    rule: Callable | None = None  # computes the update in place of `gradient`, for a rule that is no gradient
    index: int = 1  # 2 for a method's second stage of the same name

    @property
    def key(self):
        """The name of the stage's file and records: hint, hint_2 ..."""
        return self.name if self.index == 1 else f"{self.name}_{self.index}"

    @property
    def answers(self):
        """The part of the network that gives the logits, without heads that are discarded after training."""
        return self.network.trunk if isinstance(self.network, Branches) else self.network

    def sees(self, x):
        """Returns the network's input for images x: the images, or the output of the layers below."""
        return x if self.below is None else self.below(x)


class Loss:
    """A stage's loss."""

    def figures(self, epoch):
        """Returns the loss's settings that change with the epoch, for the log."""
        return {}


@dataclass(frozen=True)
class Labels(Loss):
    """H(y, P_S): cross-entropy with the labels."""

    title: ClassVar[str] = "labels"

    def __call__(self, logits, target, labels, epoch):
        return cross_entropy(logits, labels)


@dataclass(frozen=True)
class Distillation(Loss):
    """L_KD, eq. 2: H(y, P_S) + lam H(P_T^tau, P_S^tau).   student_tau: another tau for the student; None: tau"""

    title: ClassVar[str] = "eq. 2"
    tau: float
    lam: Ramp
    student_tau: float | None = None

    def __call__(self, logits, teacher_logits, labels, epoch):
        return distillation_loss(logits, teacher_logits, labels, self.tau, self.lam(epoch), self.student_tau)

    def figures(self, epoch):
        return {"lam": self.lam(epoch)}


@dataclass(frozen=True)
class Hint(Loss):
    """L_HT, eq. 3: 1/2 ||u_h(x) - r(v_g(x))||^2."""

    title: ClassVar[str] = "eq. 3"
    reduction: str = "sum"

    def __call__(self, prediction, hint, labels, epoch):
        return hint_loss(prediction, hint, self.reduction)


LABELS = Labels()


def gradient(stage, x, target, labels, epoch, rng=None, share=1.0):
    """Returns (loss, grads) of a stage on a microbatch, times its share of the minibatch.

    No layer mixes examples, so the gradient of a minibatch is the sum over its microbatches, each times its share.
    """
    x = stage.sees(x)
    prediction, cache = stage.network.forward(x, rng if stage.noise else None)
    loss, d = stage.loss(prediction, x if stage.reconstructs else target, labels, epoch)
    d = tuple(share * part for part in d) if isinstance(d, tuple) else share * d
    return share * loss, stage.network.weight_gradients(d, cache)


def measure(stage, x, target, labels, epoch):
    """Returns (mean loss, number of misclassified examples), without noise. Of several outputs, the last are logits."""
    x = stage.sees(x)
    prediction = stage.network(x)
    loss, _ = stage.loss(prediction, x if stage.reconstructs else target, labels, epoch)
    logits = prediction[-1] if isinstance(prediction, tuple) else prediction
    return loss, (logits.argmax(axis=-1) != labels).sum() if stage.classifies else 0
