"""The experiments: one frozen Config each, every number with its source.

Sources: [A.2] the paper's appendix; [code] its released code; [PL] pylearn2's maxout scripts, from which the teachers
come; [ours] chosen here, on the validation images.
"""

from dataclasses import dataclass, replace
from typing import Literal

from minifit import UserError, networks
from minifit.training import Schedule


@dataclass(frozen=True)
class Config:
    """Every setting of an experiment. A run directory holds the results of one of these, and refuses another."""

    train: int  # images that are trained on: the first ones
    validation: int  # images that choose the epoch: the last ones of the training set [A.2: 10,000]
    test: int  # images of the test set: the first ones

    teacher: Schedule
    stage1: Schedule  # of the hint stage
    student: Schedule  # of backprop, kd and fitnet

    guided: int = 4  # g, the student's layer that is guided: the middle one [A.2]
    hint: int = 2  # h, the teacher's layer that guides it: the middle one [A.2]
    regressor: Literal["conv", "fc", "none"] = "conv"  # [A.2]

    # Epochs at most for which the teacher then goes on, over training and validation images and without dropout, until
    # the loss on the latter has come down to what the former's was [PL].
    teacher_all: int = 0

    tau: float = 3.0  # of teacher and student, eq. 1 [A.2]
    lam: float = 4.0  # lambda of eq. 2, at first ... [A.2]
    lam_final: float = 1.0  # ... and at last [A.2; code: 0]
    lam_start: int = 1  # the epoch in which it begins to fall [A.2; code: 5]
    lam_end: int = 150  # the epoch in which it has fallen [A.2]

    init: Literal["uniform", "scaled"] = "uniform"  # scaled: see networks.unit_variance
    width: float = 0.005  # of U(-width, width) for teacher and student [A.2]
    regressor_init: Literal["uniform", "scaled"] = "uniform"
    regressor_width: float = 0.05  # [code]
    regressor_norm: float = 0.9  # the largest norm of one of its filters [code]
    keep_input: float = 0.8  # what dropout keeps of the teacher's input [PL]
    keep: float = 0.5  # ... and of the input of its later layers [PL]

    slice: int | None = None  # images that pass together on a CPU, and so the order of summation; None: Network.slice


@dataclass(frozen=True)
class Experiment:
    """A data set, the two networks, and the settings by name of their preset."""

    data: str
    teacher: networks.Network
    student: networks.Network
    presets: dict[str, Config]


# [PL] for the teacher, [A.2] for the student; its text says SGD, its code RMSProp, and SGD at this rate does not move.
MNIST_PAPER = Config(
    train=50_000,
    validation=10_000,
    test=10_000,
    teacher=Schedule(
        "sgd", lr=0.05, lr_decay=1.00004, momentum=0.5, momentum_final=0.7, momentum_end=250, epochs=500, patience=100
    ),
    stage1=Schedule("rmsprop", lr=0.0005, epochs=500, patience=100),
    student=Schedule("rmsprop", lr=0.0005, epochs=500, patience=100),
    teacher_all=500,
)

# [ours]: the paper's networks, losses and stages on a schedule of minutes. Weights start at a scale that trains from
# the first step, without which a few epochs are not enough, and learning rates fall to nearly zero at the last epoch.
MNIST = replace(
    MNIST_PAPER,
    teacher=Schedule("rmsprop", lr=0.002, lr_final=0.02, lr_end=10, epochs=10, patience=10),
    stage1=Schedule("rmsprop", lr=0.005, lr_final=0.02, lr_end=8, epochs=8, patience=8),
    student=Schedule("rmsprop", lr=0.005, lr_final=0.02, lr_end=16, epochs=16, patience=16),
    teacher_all=0,
    init="scaled",
    regressor_init="scaled",
    lam_end=16,
    keep_input=1.0,
    keep=1.0,
)

DIGITS = replace(
    MNIST,
    train=5_000,
    validation=1_000,
    test=2_000,
)

EXPERIMENTS = {
    "mnist": Experiment(
        "mnist", networks.MNIST_TEACHER, networks.MNIST_FITNET, {"default": MNIST, "paper": MNIST_PAPER}
    ),
    "digits": Experiment(
        "digits",
        networks.MNIST_TEACHER,
        networks.MNIST_FITNET,
        {"default": DIGITS, "paper": replace(MNIST_PAPER, train=5_000, validation=1_000, test=2_000)},
    ),
}


def check(experiment, config):
    """UserError for a setting that cannot be meant."""
    depth = {"guided": len(experiment.student.blocks) - 1, "hint": len(experiment.teacher.blocks) - 1}
    for name, last in depth.items():
        if not 1 <= getattr(config, name) <= last:
            raise UserError(f"--{name} {getattr(config, name)}: wanted one of the layers 1..{last} below the output")
    for name in ("train", "validation", "test", "slice"):
        if getattr(config, name) is not None and getattr(config, name) < 1:
            raise UserError(f"--{name} {getattr(config, name)}: wanted at least 1")
    if config.teacher_all < 0:
        raise UserError(f"--teacher-all {config.teacher_all}: wanted a number of epochs, 0 for none")
    for name in ("tau", "width", "regressor_width", "regressor_norm", "keep_input", "keep"):
        if not getattr(config, name) > 0:
            raise UserError(f"--{name.replace('_', '-')} {getattr(config, name)}: wanted a number above 0")
    for name in ("keep_input", "keep"):
        if getattr(config, name) > 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(config, name)}: wanted a probability")
    for name in ("lam", "lam_final"):
        if not getattr(config, name) >= 0:
            raise UserError(f"--{name.replace('_', '-')} {getattr(config, name)}: wanted a number not below 0")
    for part in ("teacher", "stage1", "student"):
        schedule = getattr(config, part)
        for name in ("epochs", "patience", "batch", "lr", "lr_decay"):
            if not getattr(schedule, name) > 0:
                raise UserError(f"--{part}.{name.replace('_', '-')} {getattr(schedule, name)}: wanted more than 0")
        if not schedule.lr_final >= 0:
            raise UserError(f"--{part}.lr-final {schedule.lr_final}: wanted a number not below 0")
        for name in ("momentum", "momentum_final"):
            if not 0 <= (getattr(schedule, name) or 0) < 1:
                raise UserError(f"--{part}.{name.replace('_', '-')} {getattr(schedule, name)}: wanted in [0, 1)")
