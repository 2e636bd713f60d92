"""Settings: fields of frozen dataclasses that carry their help sentence and the rule for their values."""

from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields, is_dataclass

from minifit import UserError

LARGEST = 3e38  # of float32, the type in which networks compute


@dataclass(frozen=True)
class Rule:
    """The rule for a value: words that follow "wanted", and a function that says whether a value is accepted."""

    words: str
    accepts: Callable
    choices: tuple[str, ...] = ()


def at_least(least):
    return Rule(f"at least {least}", lambda value: value >= least)


def between(least, most):
    return Rule(f"{least} to {most}", lambda value: least <= value <= most)


def one_of(*names):
    return Rule(f"{', '.join(names[:-1])} or {names[-1]}", lambda value: value in names, names)


ABOVE_0 = Rule("a number above 0", lambda value: value > 0)
PROBABILITY = Rule("a probability above 0", lambda value: 0 < value <= 1)
BELOW_1 = Rule("a number from 0 to below 1", lambda value: 0 <= value < 1)
ANY = Rule("", lambda value: True)


def setting(help, rule=ANY, *, default=MISSING, group=None, common=False, teacher=False):
    """A dataclass field.

    help     what the setting does, for the command line; it follows the setting's name
    group    the heading under which help lists this setting and those after it
    common   whether `--help` shows it; `--help-all` shows every setting
    teacher  whether the trained teacher depends on it
    """
    known = {"help": help, "rule": rule, "group": group, "common": common, "teacher": teacher}
    return field(default=default, metadata=known)


@dataclass(frozen=True)
class Ramp:
    """A value that changes linearly from `first` in epoch `start` to `last` in epoch `end`, and is constant outside.

    Ramp(4.0) is 4 in every epoch.
    """

    first: float
    last: float | None = None  # None: as `first`
    end: int = 1
    start: int = 1

    def __post_init__(self):
        if self.last is None:
            object.__setattr__(self, "last", self.first)

    def __call__(self, epoch):
        """The value in an epoch, counted from 1."""
        length = self.end - self.start
        done = min(max((epoch - self.start) / length, 0.0), 1.0) if length > 0 else float(epoch >= self.start)
        return self.first + (self.last - self.first) * done


def walk(settings, prefix=""):
    """Yields (name, field, value) of every setting; those of a schedule have names like "teacher.lr"."""
    for f in fields(settings):
        value = getattr(settings, f.name)
        if is_dataclass(value) and not isinstance(value, Ramp):
            yield from walk(value, f"{prefix}{f.name}.")
        else:
            yield prefix + f.name, f, value


def check(name, f, value):
    """Raises UserError if a value breaks the rule of its field, is not finite, or is a ramp that ends too early."""
    rule, given = f.metadata["rule"], " ".join([flag(name), *words(value)])
    for one in (
        (value.first, value.last) if isinstance(value, Ramp) else value if isinstance(value, tuple) else (value,)
    ):
        if one is not None and not rule.accepts(one):
            raise UserError(f"{given}: wanted {rule.words}")
        if isinstance(one, float | int) and not abs(one) < LARGEST:
            raise UserError(f"{given}: wanted {rule.words or 'a number'}, and below {LARGEST:g}")
    if isinstance(value, Ramp) and not 1 <= value.start <= value.end < LARGEST:
        raise UserError(
            f"{given}: wanted FIRST LAST END START, where START is epoch 1 or later and END is not before it"
        )


def flag(name):
    """Returns the option of a setting: "--teacher.lr-scale" for "teacher.lr_scale", "--student" for "student_spec"."""
    return f"--{name.replace('_', '-').removesuffix('-spec')}"


def words(value):
    """Returns a value as the words of a command line."""
    if isinstance(value, Ramp):
        parts = value.first, value.last, value.end, value.start
        value = parts[:1] if value == Ramp(value.first) else parts[:3] if value.start == 1 else parts
    return [str(one) for one in value] if isinstance(value, tuple) else ["auto" if value is None else str(value)]
