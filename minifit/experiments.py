"""The experiments: one frozen Config each, every number with its source.

Sources: [A.2] the paper's appendix; [code] its released code; [PL] pylearn2's maxout scripts, from which the teachers
come; [ours] chosen here, on the validation images.
"""

from dataclasses import dataclass, replace
from math import inf
from operator import attrgetter
from typing import Literal

from minifit import UserError, networks
from minifit.training import Schedule


@dataclass(frozen=True)
class Config:
    """Every setting of an experiment. A run directory holds the results of one of these, and refuses another."""

    train: int  # images that are trained on: the first ones
    validation: int  # images that choose the epoch: the last ones of the training set
    test: int  # images of the test set: the first ones

    teacher: Schedule
    teacher_all: int  # epochs at most that the teacher then goes on, over all images, until losses meet; 0: none
    keep_input: float  # what dropout keeps of the teacher's input
    keep: float  # what dropout keeps of the input of its later layers

    stage1: Schedule  # of the hint stage
    guided: int  # g, the student's layer that is guided
    hint: int  # h, the teacher's layer that guides it
    regressor: Literal["conv", "fc", "none"]
    regressor_init: Literal["uniform", "normal"]  # normal: variance 1 / fan-in
    regressor_width: float  # of U(-width, width)
    regressor_norm: float  # the largest norm of one of its filters

    student: Schedule  # of backprop, kd and fitnet
    tau: float  # of teacher and student, eq. 1
    lam: float  # lambda of eq. 2 at first
    lam_final: float  # lambda at last
    lam_start: int  # the epoch in which lambda begins to fall
    lam_end: int  # the epoch in which lambda has fallen

    init: Literal["uniform", "scaled"]  # of teacher and student; scaled: every layer's outputs have variance 1
    width: float  # of U(-width, width)
    slice: int | None = None  # images that pass together on a CPU: fixes the order of sums; None: as networks.py says


@dataclass(frozen=True)
class Experiment:
    """A data set, the two networks, and the settings by name of their preset."""

    data: str
    teacher: networks.Network
    student: networks.Network
    presets: dict[str, Config]


MNIST_PAPER = Config(
    train=50_000,  # [A.2]
    validation=10_000,  # [A.2]
    test=10_000,
    # [PL], whose maxout network the paper's teacher is; the limits of 500 epochs are [ours].
    teacher=Schedule(
        "sgd", lr=0.05, lr_decay=1.00004, momentum=0.5, momentum_final=0.7, momentum_end=250, epochs=500, patience=100
    ),
    teacher_all=500,  # [PL]
    keep_input=0.8,  # [PL]
    keep=0.5,  # [PL]
    # [A.2], but for RMSProp: its text says SGD, its code RMSProp, and SGD at this rate does not move from this start.
    stage1=Schedule("rmsprop", lr=0.0005, epochs=500, patience=100),
    guided=4,  # [A.2]: the middle layer
    hint=2,  # [A.2]: the middle layer
    regressor="conv",  # [A.2]
    regressor_init="uniform",  # [code]
    regressor_width=0.05,  # [code]
    regressor_norm=0.9,  # [code]
    student=Schedule("rmsprop", lr=0.0005, epochs=500, patience=100),  # as stage1
    tau=3.0,  # [A.2]
    lam=4.0,  # [A.2]
    lam_final=1.0,  # [A.2]; its code: 0
    lam_start=1,  # [A.2]; its code: 5
    lam_end=150,  # [A.2]
    init="uniform",  # [A.2]
    width=0.005,  # [A.2]
)

# The paper's networks, losses and stages on a schedule of minutes; what is set here is [ours], the rest as above.
# A few epochs are too few from U(-.005, .005). From a scaled start the networks train at once, although max-norm takes
# the first layers' filters back to their limits at the first update. Learning rates fall to nearly 0 in the last epoch.
MNIST = replace(
    MNIST_PAPER,
    teacher=Schedule("rmsprop", lr=0.002, lr_final=0.02, lr_end=10, epochs=10, patience=10),
    teacher_all=0,
    keep_input=1.0,
    keep=1.0,
    stage1=Schedule("rmsprop", lr=0.005, lr_final=0.02, lr_end=8, epochs=8, patience=8),
    regressor_init="normal",
    student=Schedule("rmsprop", lr=0.005, lr_final=0.02, lr_end=16, epochs=16, patience=16),
    lam_end=16,
    init="scaled",
)

DIGITS = replace(
    MNIST,
    train=5_000,
    validation=1_000,
    test=2_000,
    teacher=Schedule("rmsprop", lr=0.002, lr_final=0.02, lr_end=8, epochs=8, patience=8),
    stage1=Schedule("rmsprop", lr=0.005, lr_final=0.02, lr_end=6, epochs=6, patience=6),
    student=Schedule("rmsprop", lr=0.005, lr_final=0.02, lr_end=12, epochs=12, patience=12),
    lam_end=12,
)  # [ours], as the data themselves

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
    positive = (lambda value: value > 0), "a number above 0"
    not_negative = (lambda value: value >= 0), "a number not below 0"
    at_least_1 = (lambda value: value >= 1), "at least 1"
    probability = (lambda value: 0 < value <= 1), "a probability above 0"
    below_1 = (lambda value: 0 <= value < 1), "a number in [0, 1)"

    def layer_of(network):
        last = len(network.blocks) - 1
        return (lambda value: 1 <= value <= last), f"one of the layers 1..{last} below the output"

    wanted = {"guided": layer_of(experiment.student), "hint": layer_of(experiment.teacher)}
    wanted |= dict.fromkeys(("train", "validation", "test", "slice", "lam_start", "lam_end"), at_least_1)
    wanted |= dict.fromkeys(("tau", "width", "regressor_width", "regressor_norm"), positive)
    wanted |= dict.fromkeys(("keep_input", "keep"), probability)
    wanted |= dict.fromkeys(("teacher_all", "lam", "lam_final"), not_negative)
    for part in ("teacher.", "stage1.", "student."):
        for name in ("epochs", "patience", "batch", "lr_decay", "lr_end", "momentum_end"):
            wanted[part + name] = at_least_1
        wanted |= {part + "lr": positive, part + "lr_final": not_negative}
        wanted |= {part + name: below_1 for name in ("momentum", "momentum_final")}

    for name, (fits, words) in wanted.items():
        value = attrgetter(name)(config)
        if value is not None and not (abs(value) < inf and fits(value)):
            raise UserError(f"--{name.replace('_', '-')} {value}: wanted {words}")
