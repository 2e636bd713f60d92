"""Turns the words of a command line into settings and back, and prints help: all from the fields of the settings."""

import difflib
import textwrap
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import get_args

from minifit import UserError
from minifit.settings import Ramp, check, flag, walk, words

HELP_ALL = "--help-all"
HELP = {"-h", "--help", HELP_ALL}
WIDTH, COLUMN = 80, 26  # columns of a help page, and the column where its sentences begin
INDENT = " " * COLUMN
FIRST_GROUPS = ("your data", "run")  # help begins with these; the others keep the order of the settings
RAMP = "FIRST LAST END START: FIRST until epoch START (1), linearly to LAST at END."
# The value of an option by its type: as help shows it, and as an error message names it.
KINDS = {
    int: ("N", "a whole number"),
    float: ("X", "a number"),
    str: ("NAME", "a name"),
    Path: ("PATH", "a path"),
    bool: ("yes|no", "yes or no"),
    Ramp: ("FIRST [LAST END [START]]", "FIRST, or FIRST LAST END [START]: two numbers and two epochs"),
    tuple[int, ...]: ("N ...", "whole numbers"),
    tuple[float, ...]: ("X ...", "numbers"),
    tuple[str, ...]: ("NAME ...", "names"),
}


SWITCH = {"yes": True, "true": True, "no": False, "false": False}


def read(arguments, start):
    """Returns `start` changed by the words of a command line. UserError, one line, for words that make no sense."""
    known = {flag(name): (name, f) for name, f, _ in walk(start)}
    known |= {f"--no-{name}": (name, f) for name, f, _ in walk(start) if f.type is bool}
    left, values = list(arguments), {}
    while left:
        option, equals, word = left.pop(0).partition("=")
        if not option.startswith("--"):
            meant = nearest(f"--{option.lstrip('-')}", known) if option.startswith("-") else ""
            raise UserError(f"{option!r}: wanted an option, such as {next(iter(known))}{meant}")
        if option not in known:
            raise UserError(f"{option}: no such option" + nearest(option, known, f"; {HELP_ALL} lists all"))
        name, f = known[option]
        given = [word] if equals else []
        while left and not equals and f.type is not bool and not left[0].startswith("--"):
            given.append(left.pop(0))
        if f.type is bool:
            if given:
                raise UserError(f"{option}={word}: wanted --{name} or --no-{name}, without a value")
            values[name] = option == flag(name)
        elif kind_of(f) == tuple[str, ...] and given and (kind_of(f) is f.type or given != ["auto"]):
            values[name] = (*(values.get(name) or ()), *given)
        else:
            values[name] = value_of(name, f, given)
    return changed(start, values)


def nearest(word, names, otherwise=""):
    """Returns "did you mean ...?" with the name most like a word, or `otherwise` if none is like it."""
    matches = difflib.get_close_matches(word.lower(), lower := {name.lower(): name for name in names}, 1)
    return f"; did you mean {lower[matches[0]]}?" if matches else otherwise


def value_of(name, f, given):
    """Returns the value of a setting from its words."""
    kind, rule = kind_of(f), f.metadata["rule"]
    try:
        value = None if kind is not f.type and given == ["auto"] else made(kind, given)
    except (ValueError, KeyError, RuntimeError):  # the last one for the home of an unknown user
        what = rule.words if rule.choices or rule.words.startswith("a ") else f"{KINDS[kind][1]}, {rule.words}"
        auto = "" if kind is f.type else " or auto"
        raise UserError(f"{' '.join([flag(name), *given])}: wanted {what.removesuffix(', ')}{auto}") from None
    check(name, f, value)
    return value


def kind_of(f):
    """Returns the type of a setting's values, apart from None."""
    return next((kind for kind in get_args(f.type) if f.type not in KINDS and kind is not type(None)), f.type)


def made(kind, given):
    """Returns a value of this type from its words. ValueError if they do not make one."""
    if kind in (Ramp, tuple[int, ...], tuple[float, ...]):
        given = " ".join(given).split()
    if kind in (tuple[int, ...], tuple[float, ...]) and given:
        return tuple(map(get_args(kind)[0], given))
    if kind is Ramp and len(given) in (1, 3, 4):
        return Ramp(*map(float, given[:2]), *map(int, given[2:]))
    if kind in (Ramp, tuple[int, ...], tuple[float, ...]) or len(given) != 1 or not given[0]:
        raise ValueError
    if kind is bool:  # of an arm
        return SWITCH[given[0].lower()]
    return Path(given[0]).expanduser() if kind is Path else kind(given[0])


def changed(settings, values):
    """Returns settings with other values, such as {"tau": 2.0, "teacher.epochs": 5}."""
    singles, parts = {}, {}
    for name, value in values.items():
        part, dot, rest = name.partition(".")
        if dot:
            parts.setdefault(part, {})[rest] = value
        else:
            singles[name] = value
    return replace(settings, **singles, **{part: replace(getattr(settings, part), **of) for part, of in parts.items()})


def changes(arm, start):
    """Returns {name: value} from the words of an arm, such as "tau=1,init=uniform"."""
    known, values = {name: f for name, f, _ in walk(start)}, {}
    for part in arm.split(","):
        name, equals, value = part.partition("=")
        name = name.strip().removeprefix("--").replace("-", "_")
        if not equals or name not in known:
            raise UserError(f"--arm {arm}: wanted SETTING=VALUE,..." + nearest(name, known))
        values[name] = value_of(name, known[name], value.split())
    return values


def options(config, default):
    """Returns the words that turn `default` into `config`: the inverse of `read`."""
    arguments, before = [], {name: value for name, _, value in walk(default)}
    for name, _, value in walk(config):
        if value != before[name]:
            switch = isinstance(value, bool)
            arguments += [flag(name) if value else f"--no-{name}"] if switch else [flag(name), *words(value)]
    return arguments


def show_help(usage, about, start, arguments, choices):
    """Prints each option with its help and its current value, in groups, and ends the command.

    choices: {setting: the names that it accepts}, if its rule does not list them
    """
    wrap, groups, group, hidden = partial(textwrap.wrap, break_on_hyphens=False), {}, "", False
    opens = {f.name: f.metadata.get("group") for f in fields(start)}
    for name, f, value in walk(start):
        group = opens[name.partition(".")[0]] or group
        if f.metadata["common"] or HELP_ALL in arguments:
            flags, values = groups.setdefault(group, {}).setdefault(f, ([], []))  # one row for all schedules
            flags.append(f"{flag(name)}, --no-{name}" if f.type is bool else flag(name))
            needed = value is None and kind_of(f) is f.type  # the user must name it, so it has no default
            shown = "" if needed else {True: "yes", False: "no"}[value] if f.type is bool else " ".join(words(value))
            values.append(shown)
        else:
            hidden = True
    lines = wrap(f"python {usage} [OPTION VALUE ...]", WIDTH) + wrap(about, WIDTH)
    for group in sorted(groups, key=lambda name: name in FIRST_GROUPS and FIRST_GROUPS.index(name) - len(FIRST_GROUPS)):
        rows = groups[group]
        lines += ["", *[group] * bool(group)]
        for f, (flags, values) in rows.items():
            metavar = "|".join(f.metadata["rule"].choices) or KINDS.get(kind_of(f), ("",))[0]
            label = f"{', '.join(flags)} {metavar}".rstrip()
            *above, label = wrap(label, WIDTH, initial_indent="  ", subsequent_indent="      ")
            names = f": {', '.join(choices[f.name])}" if f.name in choices else ""
            default = f" [{', '.join(values)}]" * any(values)
            first, *more = wrap(f"{f.metadata['help']}{names}{default}", WIDTH - COLUMN)
            lines += (
                [*above, f"{label:{COLUMN}}{first}"] if len(label) < COLUMN - 1 else [*above, label, INDENT + first]
            )
            lines += [INDENT + line for line in more]
    notes = [RAMP] * any(kind_of(f) is Ramp for rows in groups.values() for f in rows)
    notes += [f"{HELP_ALL} shows all options."] * hidden
    print("\n".join(lines + [""] * bool(notes) + notes))
    raise SystemExit(0)


def option_of(name, arguments):
    """Returns the value of one option, or None, before the other options are known."""
    last_value = None
    for word, following in zip(arguments, [*arguments[1:], None], strict=False):
        option, equals, value = word.partition("=")
        if option == flag(name):
            last_value = value if equals else following
    return last_value
