"""Reads JSON as input from outside: `parse` refuses what no record holds, `check` compares a value with a schema.

A schema is a Kind, None, a list [schema] of any length, a tuple of schemas of which one must fit, or a dictionary
{key: schema}. A key that ends in "?" may be missing, and "*" stands for all other keys.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite

DEEPEST = 30  # levels of lists and dictionaries, one inside another
LARGEST = 2**128  # of whole numbers: the state of a random generator has 128 bits


@dataclass(frozen=True)
class Kind:
    """What a value may be: in words, and as a function."""

    words: str
    accepts: Callable


def _number(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def whole(least, most=2**53):
    """A whole number in this range."""
    fits = lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most  # noqa: E731
    return Kind(f"a whole number from {least} to {most}", fits)


ANY = Kind("anything", lambda value: True)
TEXT = Kind("a text", lambda value: isinstance(value, str))
BOOL = Kind("true or false", lambda value: isinstance(value, bool))
NUMBER = Kind("a number", _number)
AT_LEAST_0 = Kind("a number of at least 0", lambda value: _number(value) and value >= 0)
PERCENT = Kind("a number from 0 to 100", lambda value: _number(value) and 0 <= value <= 100)
COUNT, POSITIVE = whole(0), whole(1)


def parse(text):
    """Returns the value of a JSON text. ValueError for a key twice, deep nesting, and numbers that are not finite."""
    try:
        document = json.loads(
            text, parse_constant=_refused, parse_float=_float, parse_int=_int, object_pairs_hook=_dictionary
        )
    except RecursionError:
        raise ValueError("lists or dictionaries lie too deep inside one another") from None
    level = [document]
    for _ in range(DEEPEST):
        level = [inner for value in level for inner in _inside(value)]
    if level:
        raise ValueError(f"more than {DEEPEST} lists or dictionaries lie inside one another")
    return document


def _inside(value):
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _refused(word):
    raise ValueError(f"{word} is no finite number")


def _float(word):
    return value if isfinite(value := float(word)) else _refused(word)


def _int(word):
    return value if abs(value := int(word)) < LARGEST else _refused(f"{word[:20]}...")


def _dictionary(pairs):
    dictionary = dict(pairs)
    if len(dictionary) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"has {max(names, key=names.count)!r} twice")
    return dictionary


def check(value, schema, place=""):
    """Raises ValueError, with the place in the value, unless the value fits the schema."""
    if isinstance(schema, list) and isinstance(value, list):
        for i, one in enumerate(value):
            check(one, schema[0], f"{place}[{i}]")
    elif isinstance(schema, dict) and isinstance(value, dict):
        _check_keys(value, schema, place)
    elif isinstance(schema, tuple):
        fitting = [one for one in schema if _outside(value, one)]
        check(value, fitting[0], place) if fitting else _complain(value, schema, place)
    elif not _outside(value, schema):
        _complain(value, schema, place)


def _check_keys(value, schema, place):
    for name, inner in schema.items():
        key = name.removesuffix("?")
        where = f"{place}.{key}" if place else key
        if key in value:
            check(value[key], inner, where)
        elif name == key and key != "*":
            raise ValueError(f"{where} is missing; wanted {_words(inner)}")
    for key in value.keys() - {name.removesuffix("?") for name in schema}:
        if "*" not in schema:
            raise ValueError(f"{place or 'it'} has {key!r}, which is not known")
        check(value[key], schema["*"], f"{place}.{key}" if place else key)


def _outside(value, schema):
    """Whether a value fits a schema, apart from what lies inside it."""
    if isinstance(schema, Kind):
        return schema.accepts(value)
    return value is None if schema is None else isinstance(value, type(schema))


def _words(schema):
    if isinstance(schema, tuple):
        return " or ".join(map(_words, schema))
    names = {list: "a list", dict: "a dictionary", type(None): "null"}
    return schema.words if isinstance(schema, Kind) else names[type(schema)]


def _complain(value, schema, place):
    text = json.dumps(value)
    text = text if len(text) < 60 else f"{text[:50]}..."
    raise ValueError(f"{place or 'it'} is {text}; wanted {_words(schema)}")
