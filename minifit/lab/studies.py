"""The studies: one setting changed at a time, from a short schedule.

Every setting that a study does not name is the base's. The teacher of a seed is trained once, by the base, and serves
all variants: what is compared are students. Only validation errors choose between variants.
"""

from dataclasses import dataclass, replace

from minifit.experiments import DIGITS, MNIST
from minifit.lab.training import Schedule


@dataclass(frozen=True)
class Study:
    """A question, the methods that it is asked of, and its answers: name -> settings in which a variant differs."""

    question: str
    methods: tuple[str, ...]
    variants: dict[str, dict]
    more: int = 0  # seeds beyond the number that all studies are asked for

    def folders(self):
        """The folder of each variant; what several studies ask of the same settings is run once."""
        return {name: folder_name(changes) for name, changes in self.variants.items()}


# [ours]: a fifth of the training images and half of the default preset's epochs, from a scaled start.
MNIST_BASE = replace(
    MNIST,
    train=10_000,
    keep=1.0,
    teacher=Schedule("rmsprop", lr=0.002, lr_final=0.02, lr_end=8, epochs=8, patience=8),
    stage1=Schedule("rmsprop", lr=0.005, lr_final=0.02, lr_end=4, epochs=4, patience=4),
    student=Schedule("rmsprop", lr=0.005, lr_final=0.02, lr_end=8, epochs=8, patience=8),
    lam_end=8,
)
DIGITS_BASE = replace(MNIST_BASE, train=DIGITS.train, validation=DIGITS.validation, test=DIGITS.test)

STUDIES = (
    Study(
        "The student's initial weights",
        ("backprop", "kd", "fitnet"),
        {"scaled": {}, "U(+-.005), paper": {"init": "uniform"}},
        more=2,  # for an interval: two pairs decide little
    ),
    Study(
        "Guided layer",  # whose map is 10x10, 12x12, 4x4 and 8x8; a hint of 4x4 fits no other
        ("fitnet",),
        {"2": {"guided": (2,)}, "3": {"guided": (3,)}, "4, paper": {}, "5": {"guided": (5,)}},
    ),
    Study("tau", ("kd", "fitnet"), {"1": {"tau": 1.0}, "3, paper": {}, "10": {"tau": 10.0}}),
    Study(
        "lambda",
        ("kd", "fitnet"),
        {"4 to 1, paper": {}, "4 throughout": {"lam_final": 4.0}, "1 throughout": {"lam": 1.0}},
    ),
    Study(
        "The student's tau in eq. 2",
        ("kd", "fitnet"),
        {"tau, paper": {}, "1, released code": {"student_tau": 1.0}},
    ),
    Study(
        "Hint loss, scaled start",
        ("fitnet",),
        {"sum, eq. 3": {}, "mean, released code": {"hint_mean": True}},
    ),
    Study(
        "Hint loss, U(+-.005)",
        ("fitnet",),
        {"sum, eq. 3": {"init": "uniform"}, "mean, released code": {"init": "uniform", "hint_mean": True}},
    ),
    Study("Regressor", ("fitnet",), {"maxout, paper": {}, "linear": {"regressor_pieces": 1}}),
)
BASES = {"mnist": MNIST_BASE, "digits": DIGITS_BASE}


def folder_name(changes):
    """The name of a variant's folder: "base", "tau-10.0", "init-uniform,hint_mean-True"."""
    said = (f"{name}-{'-'.join(map(str, v)) if isinstance(v, tuple) else v}" for name, v in changes.items())
    return ",".join(said) or "base"


def variants(studies=STUDIES):
    """{folder name: (changes, methods, more)} of all runs that the studies take, the base first with all methods."""
    found = {"base": ({}, (), 0)}
    for study in studies:
        for changes in study.variants.values():
            name = folder_name(changes)
            _, methods, more = found.get(name, (changes, (), 0))
            found[name] = changes, tuple(dict.fromkeys((*methods, *study.methods))), max(more, study.more)
    return found
