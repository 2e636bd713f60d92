"""Reads and writes a run directory: its lock, its settings, and the records of its stages.

With several ranks, rank 0 alone reads and writes it, and tells the others the answers.

.lock            locked by the process that trains
config.json      the resolved settings, seed, versions and commit
metrics.jsonl    one line per epoch
<stage>.h5       the best weights; during training also the latest weights, optimiser, random generator and epoch
summary.json     the results of each finished stage on validation and test images
curves.png, filters.png
all/             the same for networks that are trained again on training and validation images (--retrain)
"""

import fcntl
import json
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path

from minifit import UserError, __version__, baselines, stages
from minifit.backend import describe
from minifit.files import open_own
from minifit.lab.files import commit, write_text
from minifit.lab.parallel import first
from minifit.lab.records import BESIDE, FORMAT, lasting, read_config, read_metrics, read_summary, seal, write_record

ROUNDED = 0.15  # seconds by which the sum of a stage's epochs, which has one decimal, may differ


@dataclass
class RunDirectory:
    """The directory of one run, which has these stages and settings."""

    folder: Path
    stages: tuple[str, ...]  # the stages asked for, in order; the directory may also hold those of other methods
    settings: dict  # everything that the results depend on, except the version of minifit
    xp: object  # the library, numpy or cupy
    lock: object = field(default=None, init=False)  # the open file, in the process that writes
    digests: dict = field(default_factory=dict, init=False)  # stage -> that of its weights, once trained or loaded here

    def __enter__(self):
        """Creates the directory if needed, and locks it. UserError if another run holds it or its settings differ."""
        self._enter()
        return self

    def __exit__(self, *exception):
        if self.lock:
            self.lock.close()

    @first
    def _enter(self):
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock = os.fdopen(open_own(self.folder / ".lock", os.O_RDWR), "r+")
        except OSError as error:
            raise UserError(f"{error.filename or self.folder}: cannot be written ({error.strerror})") from None
        try:
            fcntl.lockf(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock, no worker that outlives us holds it
        except OSError:
            self.lock.close()  # now: closing it at any later time would give up a lock that this process then holds
            raise UserError(f"{self.folder}: another process is at work in it") from None
        try:
            self._bind()
        except UserError:
            self.lock.close()
            raise

    def _bind(self):
        """Writes the settings of the directory. UserError if it already has others."""
        begun = self.begun()
        if self.recorded:
            raise UserError(f"{self.folder} holds the records of a run without its weights. Name another --runs folder")
        for stage in self.stages:
            if self.checkpoint(stage).exists():
                self._refuse_lost_lines(stage, self.metrics())
        if not begun:
            for path in map(self.checkpoint, self.stages):  # config.json is gone, but what a stage was made from is not
                if path.exists():
                    refuse_other_settings(path, settings_in(stages.load_record(path)), self.settings)
            made_by = {"minifit": __version__, "commit": commit(), "python": platform.python_version()}
            config = {"format": FORMAT, "settings": self.settings} | made_by | describe(self.xp)
            write_record(self.folder / "config.json", config)

    def _refuse_lost_lines(self, stage, epochs):
        """Raises UserError if metrics.jsonl, with these epochs, lacks one that the file of a stage has."""
        logged = {record["epoch"] for record in epochs if record["stage"] == stage}
        for epoch in range(1, self._record(stage)["epoch"] + 1):
            if epoch not in logged:
                raise UserError(
                    f"{self.folder / 'metrics.jsonl'}: has no epoch {epoch} of {stage}, and {stage}.h5 has. Put it "
                    f"back, or remove {stage}.h5 to train it again"
                )

    @first
    def begun(self):
        """Whether the directory has weights, or only records to be read.

        UserError if it has other settings and also weights or records of a stage, which would be lost.
        """
        path = self.folder / "config.json"
        config = read_config(self.folder) if path.exists() else None  # UserError for one of an earlier minifit
        weights = path.exists() and any(self.folder.glob("*.h5"))
        if weights or (path.exists() and self._listed()):
            refuse_other_settings(self.folder, config["settings"], self.settings)
        return weights or (path.exists() and self.recorded)

    def checkpoint(self, stage):
        """Returns the path of a stage's file."""
        return self.folder / f"{stage}.h5"

    @first
    def has(self, stage):
        """Whether there are weights of a stage."""
        return self.checkpoint(stage).exists()

    @first
    def best(self, stage):
        """Returns {name: array}, the weights of a stage's best epoch."""
        return self._load(stage)[1]["best"]

    @first
    def identity(self, stage):
        """Returns what a stage's file was made from: settings, the stage's name, its teacher and its start."""
        return self._record(stage)["identity"]

    def _load(self, stage):
        record, groups = stages.load(self.checkpoint(stage))
        stages.refuse_another(self.checkpoint(stage), record, stage)
        return record, groups

    def _record(self, stage):
        record = stages.load_record(self.checkpoint(stage))
        stages.refuse_another(self.checkpoint(stage), record, stage)
        return record

    @first
    def state(self, stage):
        """ "finished", "at epoch 3" or "to train"."""
        if not self.checkpoint(stage).exists():
            return "to train"
        record = self._record(stage)
        return "finished" if record["finished"] else f"at epoch {record['epoch']}"

    @property
    def recorded(self):
        """Whether the directory is only to be read: it has records of finished stages and no weights."""
        listed = self._listed().keys()
        whole = bool(listed) and (listed >= {*self.stages} or not listed <= {*self.stages})
        return whole and not any(self.folder.glob("*.h5"))

    @first
    def finished(self):
        """Returns {stage: its record} for finished stages; for all stages if `recorded`."""
        if self.recorded:
            return self._listed()
        if not (listed := self._listed()):
            return {}
        heading, epochs = heading_of(self.summary()), self.metrics()
        config = self.folder / "config.json"
        settings = read_config(self.folder)["settings"] if config.exists() else {}
        records = settings, heading, epochs
        return {name: figures for name, figures in listed.items() if self._agrees(name, figures, *records)}

    def _agrees(self, stage, figures, settings, heading, epochs):
        """Whether a stage is finished. UserError if the records beside its file say something else than the file."""
        if not self.checkpoint(stage).exists():
            return False
        record = self._record(stage)
        if not record["finished"]:
            return False
        self._refuse_lost_lines(stage, epochs)
        mend = "Remove summary.json, which is then written again"
        if not {"figures", "heading"} <= record.keys():
            raise UserError(f"{self.checkpoint(stage)}: has no figures, and summary.json has. {mend}")
        file_settings = settings_in(record)
        copied = {name: value for name, value in record["identity"].items() if name == "from"}  # as once was done
        for of_file, beside, path, advice in (
            (file_settings, settings or file_settings, "config.json", "Put back the one that was changed"),
            (record["figures"] | copied, lasting(figures), "summary.json", mend),
            (record["heading"], heading, "summary.json", mend),
        ):
            if differing := differences(flat(of_file), flat(beside), f"in {path}"):
                raise UserError(f"{self.checkpoint(stage)}: differs from {path}: {differing}. {advice}")
        logged = sum(epoch["seconds"] for epoch in epochs if epoch["stage"] == stage)
        if abs(logged - figures["seconds"]) > ROUNDED:
            raise UserError(
                f"{self.folder / 'summary.json'}: has {figures['seconds']} seconds for {stage}, and metrics.jsonl has "
                f"{logged:.1f}. {mend}"
            )
        return True

    def seconds(self, stage):
        """Returns how long the epochs of a stage took."""
        return round(sum(epoch["seconds"] for epoch in self.metrics() if epoch["stage"] == stage), 1)

    def _listed(self):
        """Returns the stages in summary.json, with or without weights."""
        return self.summary()["stages"]

    def summary(self):
        """Returns what is in summary.json. UserError if it is of another run than config.json."""
        path, config = self.folder / "summary.json", self.folder / "config.json"
        if not path.exists():
            return {"stages": {}}
        record = read_summary(path)
        if config.exists() and record["settings"] != seal(read_config(self.folder)["settings"]):
            raise UserError(f"{path}: of a run with other settings than config.json has. Put it back{BESIDE}")
        return record

    @first
    def add(self, summary, stage, record):
        """Writes summary.json with the record of one more finished stage, in the order of methods and of stages.

        The error of a given teacher stays as it was first measured: on another processor it may be another.
        """
        path, records = self.folder / "summary.json", self.finished()
        known = self.summary() if records else {}  # the files of these stages say the same
        summary = summary | {name: known[name] for name in ("teacher_error",) if name in known}
        if self.checkpoint(stage).exists():
            stages.add_figures(self.checkpoint(stage), lasting(record), heading_of(summary))
        records |= {stage: record}
        names = [name for name in dict.fromkeys((*self.stages, *records)) if name in records]
        config = self.folder / "config.json"  # an earlier one lacks a setting that is new and has no value
        settings = read_config(self.folder)["settings"] if config.exists() else self.settings
        of = {"settings": seal(settings), "stages": by_method({name: records[name] for name in names})}
        write_record(path, summary | of)

    def metrics(self):
        """Returns the record of every epoch, as a dictionary."""
        return [record for _, record in self.lines()]

    @first
    def lines(self):
        return read_metrics(self.folder / "metrics.jsonl")

    @first
    def log(self, record):
        """Appends the record of an epoch, and waits for the disk: it is there before the weights.

        UserError if the disk refuses.
        """
        path = self.folder / "metrics.jsonl"
        try:
            with os.fdopen(open_own(path, os.O_WRONLY | os.O_APPEND), "a") as file:
                file.write(json.dumps(record) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None

    @first
    def forget_after(self, stage):
        """Removes what a killed run, or one whose file was removed, has left of a stage that is to be trained.

        These are the lines of epochs that were logged but not saved, an unfinished line, and the stage's figures.
        """
        path = self.folder / "summary.json"
        if stage in (listed := self._listed()):
            others = {name: record for name, record in listed.items() if name != stage}
            write_record(path, self.summary() | {"stages": others})
        done = self._record(stage)["epoch"] if self.checkpoint(stage).exists() else 0
        lines = [line for line, record in self.lines() if record["stage"] != stage or record["epoch"] <= done]
        write_text(self.folder / "metrics.jsonl", "".join(lines))


def heading_of(summary):
    """Returns what a summary says of all stages: what is trained on what."""
    return {name: value for name, value in summary.items() if name not in ("settings", "stages")}


def settings_in(record):
    """Returns the settings of the run that wrote the file of a stage with this record."""
    return {name: value for name, value in record["identity"]["settings"].items() if name not in ("epochs", "network")}


def on_all_images(train, validation):
    """Returns the settings in which the run in all/, which trains on validation images too, differs from its parent."""
    return {"train": train + validation, "validation": 0, "retrain": False}


def by_method(stages):
    """Sorts the records of stages by their methods; the stages of one method keep their order."""
    places = {method.name: i for i, method in enumerate(baselines.METHODS)}
    return dict(sorted(stages.items(), key=lambda item: places.get(item[1].get("method"), len(places))))


def refuse_other_settings(folder, old, new):
    """Raises UserError with every setting in which a run differs from the present one."""
    differing = differences(flat(old), flat(new))
    if differing:
        raise UserError(f"{folder} holds a run with other settings: {differing}. Name another --runs folder")


def differences(old, new, now="now"):
    return "; ".join(
        f"{name} {json.dumps(old.get(name))}, {now} {json.dumps(new.get(name))}"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    )


def flat(settings, prefix=""):
    """Flattens {"teacher": {"lr": 1}} to {"teacher.lr": 1}; a list of dictionaries likewise, counted from 1."""
    entries = {}
    for name, value in settings.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            value = {str(i): one for i, one in enumerate(value, start=1)}
        entries |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return entries
