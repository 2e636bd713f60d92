"""The records of a run and of a comparison, in JSON: their schemas, checked whole when a file is read.

A record ends with "sha256", the digest of all that it says, so that one that was changed by hand reaches no table.
"""

import hashlib
import json

from minifit import UserError
from minifit.lab.files import read_json, read_text, write_text
from minifit.schema import ANY, AT_LEAST_0, BOOL, COUNT, NUMBER, PERCENT, POSITIVE, TEXT, Kind, check, parse
from minifit.stages import SETTINGS

FORMAT = 2  # version of config.json and of the files beside it
BESIDE = ", or remove it if the weights are there: it is then written again"
RESULTS_FORMAT = 2  # version of results.json
OF_THE_DAY = "commit", "seconds"  # of a stage's figures, those that do not follow from its training

CONFIG = {
    **{"format": Kind(str(FORMAT), lambda value: value == FORMAT), "settings": SETTINGS, "minifit": TEXT},
    **{"commit": (TEXT, None), "python": TEXT, "*": TEXT},
}
STAGE = {
    **{"method": TEXT, "title": TEXT, "label": TEXT, "loss": TEXT, "commit?": (TEXT, None), "file": TEXT},
    **{"epochs": POSITIVE, "best_epoch": POSITIVE, "weights": COUNT, "multiplications": COUNT, "seconds": AT_LEAST_0},
    **{"test_loss": NUMBER, "validation_loss?": NUMBER, "test_error?": (PERCENT, None)},
    **{"validation_error?": (PERCENT, None), "standard_error?": AT_LEAST_0, "from?": TEXT, "last?": BOOL},
    "network?": TEXT,  # the digest of its blocks
}
HEAD = {"experiment": TEXT, "data": TEXT, "teacher": TEXT, "student": TEXT, "teacher_error?": PERCENT}
HEAD |= {f"{part}_images": COUNT for part in ("train", "validation", "test")}
SUMMARY = {"preset": TEXT, "seed": COUNT, **HEAD, "settings": TEXT, "stages": {"*": STAGE}}
EPOCH = {
    **{"stage": TEXT, "epoch": POSITIVE, "train_loss": NUMBER, "validation_loss?": NUMBER},
    **{"validation_error?": PERCENT, "lr": AT_LEAST_0, "seconds": AT_LEAST_0, "*": NUMBER},
}
FLAT = {"experiment?": TEXT, "preset?": TEXT, "seed?": COUNT, "*": ANY}  # of a run; the shared ones stand apart
MEMBER = {
    **{"arm": TEXT, "seed": COUNT, "folder": TEXT, "missing": [TEXT], "settings": FLAT, "stages": {"*": STAGE}},
    **{"all?": {"*": STAGE}, "minifit?": TEXT, "commit?": (TEXT, None), "*": ANY},
}
RESULTS = {
    "format": Kind(str(RESULTS_FORMAT), lambda value: value == RESULTS_FORMAT),
    **{"command": TEXT, "changed": {"*": TEXT}, "settings": FLAT, "runs": [MEMBER]},
    "questions": [{"question": TEXT, "arms": {"*": TEXT}, "seeds": ([COUNT], None), "*": ANY}],
    "order": ({"methods": [TEXT], "*": ANY}, None),
    "others": [{"seed": TEXT, "missing": [TEXT]}],
    **{f"{name.removesuffix('?')}?": kind for name, kind in HEAD.items()},
    "*": ANY,  # what `compare.gather` finds again from the rest
}


def seal(record):
    """Returns the digest of a record: the SHA-256 of its JSON, with sorted keys and without "sha256" itself."""
    contents = {name: value for name, value in record.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()


def write_record(path, record):
    """Writes a record with its digest."""
    write_text(path, json.dumps(record | {"sha256": seal(record)}, indent=2) + "\n")


def _read(path, schema, advice=""):
    """Returns the record in a file, without its digest. UserError if it does not fit the schema, or was changed."""
    if "sha256" not in read_json(path, {"*": ANY}):
        raise UserError(f"{path}: has no sha256; an earlier minifit wrote it. Name another folder")
    return _unsealed(path, read_json(path, schema | {"sha256": TEXT}), advice)


def _unsealed(path, record, advice=""):
    if record["sha256"] != seal(record):
        raise UserError(f"{path}: was changed after it was written: its sha256 is another. Put it back{advice}")
    return {name: value for name, value in record.items() if name != "sha256"}


def read_config(folder):
    """Returns the config.json of a run directory. UserError for one that an earlier minifit wrote."""
    path = folder / "config.json"
    config = read_json(path, {"*": ANY})
    if config.get("format") != FORMAT:
        raise UserError(
            f"{folder} was written by an earlier minifit, whose settings have other names. Name another --runs folder"
        )
    return _read(path, CONFIG)


def read_summary(path):
    """Returns a summary.json. UserError for any other file."""
    summary = _read(path, SUMMARY, BESIDE)
    for name, stage in summary["stages"].items():
        if stage["best_epoch"] > stage["epochs"]:
            raise UserError(f"{path}: the best epoch of {name} is {stage['best_epoch']}, of {stage['epochs']}")
    return summary


def read_metrics(path):
    """Returns [(line, the record of an epoch)] of a metrics.jsonl, without an unfinished last line."""
    epochs = []
    for number, line in enumerate(read_text(path).splitlines(keepends=True) if path.exists() else [], start=1):
        if line.endswith("\n"):
            try:
                record = parse(line)
                check(record, EPOCH)
            except ValueError as error:
                raise UserError(f"{path}, line {number}: not the record of an epoch ({error})") from None
            epochs.append((line, record))
    return epochs


def read_results(path):
    """Returns a results.json. UserError for any other file."""
    try:
        results = read_json(path, RESULTS | {"sha256": TEXT})
        if "teacher" in results:  # a run had begun
            check({name: value for name, value in results.items() if name in HEAD}, HEAD)
    except ValueError as error:
        message = "not the results of a comparison, or those of an earlier minifit"
        raise UserError(f"{path}: {message} ({str(error).removeprefix(f'{path}: ')})") from None
    return _unsealed(path, results)


def lasting(figures):
    """Returns those figures of a stage that follow from its training, and so are the same on every day."""
    return {name: value for name, value in figures.items() if name not in OF_THE_DAY}
