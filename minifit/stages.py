"""The file of a stage: its schema, checked whole when the file is read, so that no code behind meets anything else.

The record has the progress of training, what the stage was made from ("identity"), the commit that trained its last
epoch, the description of its network and, once it is finished, its figures and the heading of its run, which
summary.json has too. The group "best" has the best weights. Until the stage is finished the file also has what training
goes on from: "weights", "optimizer", the "mean" of the weights if they are averaged, and the state of the random
generator.
"""

from pathlib import Path

import numpy as np

from minifit import UserError, files
from minifit.schema import ANY, BOOL, COUNT, NUMBER, PERCENT, POSITIVE, TEXT, Kind, check, whole

BITS_128 = whole(0, 2**128 - 1)
SETTINGS = {
    **{"experiment": TEXT, "preset": TEXT, "seed": whole(0, 2**128 - 1), "data": TEXT, "images": TEXT},
    **{"train": COUNT, "validation": COUNT, "test": (COUNT, None), "retrain": BOOL, "*": ANY},
}
FIGURES = {"test_error?": (PERCENT, None), "*": ANY}  # those that tables show; summary.json has the others too
HEADING = {"teacher_error?": PERCENT, "*": ANY}
RECORD = {
    "identity": {
        **{"settings": SETTINGS, "stage": TEXT, "teacher": TEXT, "start": TEXT},
        **{"after?": {"*": TEXT}, "from?": TEXT},
    },
    **{"epoch": POSITIVE, "best_epoch": POSITIVE, "best_loss": (NUMBER, None), "best_errors": (COUNT, None)},
    "finished": BOOL,
    "rng": {
        "bit_generator": Kind('"PCG64"', lambda value: value == "PCG64"),
        "state": {"state": BITS_128, "inc": BITS_128},
        **{"has_uint32": whole(0, 1), "uinteger": whole(0, 2**32 - 1)},
    },
    **{"network": ({"*": ANY}, None), "figures?": FIGURES, "heading?": HEADING, "commit?": (TEXT, None)},
}


def load(path):
    """Returns (record, {group: {name: array}}) of a stage's file. UserError for any other file."""
    record, groups = files.load(path)
    with files.reading(path):
        _check(record)
        check_best(groups)
        for name in () if record["finished"] else ("weights", "optimizer", *({"mean"} & groups.keys())):
            _check_arrays(name, groups.get(name, {}), groups["best"])
    return record, groups


def check_best(groups):
    """Raises ValueError unless there are best weights, of finite numbers."""
    if not groups.get("best"):
        raise ValueError("it has no best weights")
    _check_arrays("best", groups["best"], groups["best"])


def load_record(path):
    """Returns only the record of a stage's file, without reading arrays. UserError for any other file."""
    record = files.load_record(path)
    with files.reading(path):
        _check(record)
    return record


def refuse_another(path, record, stage):
    """Raises UserError if the file at a path is of another stage than it should be."""
    if record["identity"]["stage"] != stage:
        raise UserError(f"{path}: holds the stage {record['identity']['stage']}; remove it to train again")


def add_figures(path, figures, heading):
    """Writes the figures of a finished stage, and the heading of its run, into its file."""
    record, groups = load(path)
    whole = record | {"figures": figures, "heading": heading}
    if record != whole:
        files.save(Path(path), whole, **groups)


def _check(record):
    check(record, RECORD)
    if record["best_epoch"] > record["epoch"]:
        raise ValueError(f"its best epoch is {record['best_epoch']}, of {record['epoch']}")
    if (record["best_loss"] is None) != (record["best_errors"] is None):
        raise ValueError("it has only one of best_loss and best_errors")


def _check_arrays(group, arrays, best):
    for name in best.keys() | arrays.keys():
        if name not in arrays or name not in best:
            raise ValueError(f"{group} has {'no' if name in best else 'an array'} {name}")
        a, wanted = arrays[name], best[name]
        if a.dtype not in (np.float32, np.float64) or (a.dtype, a.shape) != (wanted.dtype, wanted.shape):
            shown = f"{wanted.dtype} {wanted.shape}" if group != "best" else "float32"
            raise ValueError(f"{group}/{name} is {a.dtype} {a.shape}; wanted {shown}")
        if not np.isfinite(a).all():
            raise ValueError(f"{group}/{name} has a number that is not finite")
