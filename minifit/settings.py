"""A setting is a field of a frozen dataclass that carries its help sentence and the rule for its values."""

from collections.abc import Callable
from dataclasses import MISSING, dataclass, field

LARGEST = 3e38  # of float32, in which the networks compute


@dataclass(frozen=True)
class Rule:
    """What a value must be, in words that follow "wanted", and as a function that accepts it."""

    words: str
    accepts: Callable
    choices: tuple[str, ...] = ()


def at_least(least):
    return Rule(f"at least {least}", lambda value: value >= least)


def one_of(*names):
    return Rule(" or ".join(names), lambda value: value in names, names)


ABOVE_0 = Rule("a number above 0", lambda value: value > 0)
PROBABILITY = Rule("a probability above 0", lambda value: 0 < value <= 1)
BELOW_1 = Rule("a number from 0 to below 1", lambda value: 0 <= value < 1)
ANY = Rule("", lambda value: True)


def setting(help, rule=ANY, *, default=MISSING, group=None, common=False, teacher=False):
    """A dataclass field.

    help     what the setting does, for the command line; it follows the setting's name
    group    the heading under which help lists this setting and those after it
    common   whether `--help` shows it; `--help-all` shows every setting
    teacher  whether it shapes the trained teacher, so that a teacher of another value is another teacher
    """
    known = {"help": help, "rule": rule, "group": group, "common": common, "teacher": teacher}
    return field(default=default, metadata=known)
