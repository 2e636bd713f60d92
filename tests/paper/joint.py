"""An example: a method of one function. It trains the student on eqs. 2 and 3 at once, in one stage."""

from dataclasses import dataclass
from typing import ClassVar

from minifit import fitnets
from minifit.composites import Branches, Sequential
from minifit.fitnets import Method, Stage


@dataclass(frozen=True)
class Joint(fitnets.Loss):
    """L_HT + L_KD."""

    title: ClassVar[str] = "eqs. 2 and 3"
    hint: fitnets.Hint
    distillation: fitnets.Distillation

    def __call__(self, prediction, target, labels, epoch):
        losses = self.hint, self.distillation
        values = [loss(y, t, labels, epoch) for loss, y, t in zip(losses, prediction, target, strict=True)]
        return sum(value for value, _ in values), tuple(d for _, d in values)

    def figures(self, epoch):
        return self.distillation.figures(epoch)


def joint(task, train):
    """The student on eqs. 2 and 3 at once: a regressor at its guided layer, beside the logits."""
    teacher, student = fitnets.trained_teacher(task, train), task.network("student")
    g, h = task.pairs[0]
    network = Branches(student, {g: task.regressor(student[:g], teacher[:h])})
    loss = Joint(fitnets.eq_3(task), fitnets.eq_2(task))
    train(Stage("joint", network, loss, task.settings.student, Branches(teacher, {h: Sequential([])})))


METHOD = Method("joint", "hints and distillation at once", "joint", joint, default=True)
