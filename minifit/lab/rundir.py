"""What a run directory holds: the one process at work in it, its settings, and the records of its stages.

Of several ranks the first alone reads and writes it, and tells the others what they ask.

.lock            held by the one process at work
config.json      the resolved settings, seed, versions and commit
metrics.jsonl    one line per epoch
<stage>.h5       best weights and, while it is being trained, weights, optimiser, generator and epoch, after every epoch
summary.json     what came out of each finished stage, on validation and test images
curves.png, filters.png
all/             the same again for the networks trained on the validation images too, where the settings want that
"""

import fcntl
import json
import platform
from dataclasses import dataclass, field
from pathlib import Path

from minifit import UserError, __version__, baselines
from minifit.backend import describe
from minifit.lab import files
from minifit.lab.files import commit, digest, read_json, write_json, write_text
from minifit.lab.parallel import first

FORMAT = 2  # of config.json: what its settings are called, and what the files beside it hold


@dataclass
class RunDirectory:
    """The directory of one run, which has these stages and settings."""

    folder: Path
    stages: tuple[str, ...]  # those asked for, in order; it may hold those of other methods beside them
    settings: dict  # everything that the results depend on, but for the version of minifit
    xp: object  # the library, numpy or cupy
    lock: object = field(default=None, init=False)  # the open file, in the process that writes

    def __enter__(self):
        """Creates or enters the directory, alone; UserError where another run holds it or its settings differ."""
        self._enter()
        return self

    def __exit__(self, *exception):
        if self.lock:
            self.lock.close()

    @first
    def _enter(self):
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock = open(self.folder / ".lock", "w")  # noqa: SIM115
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written ({error.strerror})") from None
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
        """Records the settings as those of the directory, or refuses where it has others."""
        begun = self.begun()
        if self.recorded:
            raise UserError(f"{self.folder} holds the records of a run without its weights. Name another --runs folder")
        if not begun:
            made_by = {"minifit": __version__, "commit": commit(), "python": platform.python_version()}
            config = {"format": FORMAT, "settings": self.settings} | made_by | describe(self.xp)
            write_json(self.folder / "config.json", config)

    @first
    def begun(self):
        """Whether there are weights in the directory, or records that it is read for.

        UserError where it has other settings, and something that would be lost: weights, or the records of a stage.
        """
        path = self.folder / "config.json"
        weights = path.exists() and any(self.folder.glob("*.h5"))
        if weights or (path.exists() and self._listed()):
            config = read_json(path)
            refuse_other_formats(self.folder, config)
            refuse_other_settings(self.folder, config.get("settings", {}), self.settings)
        return weights or (path.exists() and self.recorded)

    def checkpoint(self, stage):
        """The file of a stage's weights."""
        return self.folder / f"{stage}.h5"

    @first
    def has(self, stage):
        """Whether there are weights of a stage."""
        return self.checkpoint(stage).exists()

    @first
    def best(self, stage):
        """{name: array}, the weights of the best epoch of a stage."""
        return files.load(self.checkpoint(stage))[1]["best"]

    @first
    def identity(self, stage):
        """What the file of a stage was made from: settings, the stage's name, its teacher and its start."""
        return files.load_record(self.checkpoint(stage))["identity"]

    @first
    def state(self, stage):
        """ "finished", "at epoch 3" or "to train"."""
        path = self.checkpoint(stage)
        if not path.exists():
            return "to train"
        record = files.load_record(path)
        return "finished" if record["finished"] else f"at epoch {record['epoch']}"

    @property
    def recorded(self):
        """Whether the directory has the records of every stage, or of any other, and no weights: it is only read."""
        listed = self._listed().keys()
        whole = bool(listed) and (listed >= {*self.stages} or not listed <= {*self.stages})
        return whole and not any(self.folder.glob("*.h5"))

    @first
    def finished(self):
        """{stage: its record} of the stages whose files say so, or of all where `recorded`."""
        recorded = self.recorded
        return {name: r for name, r in self._listed().items() if recorded or self.state(name) == "finished"}

    def _listed(self):
        """The stages in summary.json, of whatever methods, whether or not their weights are there."""
        path = self.folder / "summary.json"
        listed = read_json(path).get("stages", {}) if path.exists() else {}
        try:
            return {name: record for name, record in listed.items() if "test_loss" in record}
        except (AttributeError, TypeError):
            raise UserError(f"{path}: not the records of a run's stages") from None

    @first
    def add(self, summary, stage, record):
        """Writes summary.json with the record of one more finished stage, in the order of methods and of stages."""
        stages = self.finished() | {stage: record}
        names = [name for name in dict.fromkeys((*self.stages, *stages)) if name in stages]
        stages = by_method({name: stages[name] for name in names})
        write_json(self.folder / "summary.json", summary | {"stages": stages})

    def metrics(self):
        """The record of every epoch, as a dictionary."""
        return [json.loads(line) for line in self.lines()]

    @first
    def lines(self):
        return whole_lines(self.folder / "metrics.jsonl")

    @first
    def log(self, record):
        """Adds the record of an epoch; UserError where the disk refuses."""
        path = self.folder / "metrics.jsonl"
        try:
            with open(path, "a") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None

    @first
    def forget_after(self, stage):
        """Drops the lines of epochs that a killed run logged and did not save, and a line it did not finish."""
        path = self.checkpoint(stage)
        done = files.load_record(path)["epoch"] if path.exists() else 0
        records = ((line, json.loads(line)) for line in self.lines())
        kept = [line for line, record in records if record["stage"] != stage or record["epoch"] <= done]
        write_text(self.folder / "metrics.jsonl", "".join(kept))

    @first
    def trained_elsewhere(self, source, stages, shapes):
        """{stage: (record, groups)} of finished stages in another run's directory.

        stages: name -> the settings that its file must be of    shapes(setting): whether both runs must share it
        """
        return {name: self._of_another(source, name, settings, shapes) for name, settings in stages.items()}

    @first
    def take(self, source, taken, stages, summary):
        """Copies what `trained_elsewhere` found, with its figures.

        UserError where this directory has a stage of the same name with other weights.
        """
        for name, (record, groups) in taken.items():
            path = self.checkpoint(name)
            if path.exists():
                if digest(self.best(name).values()) != digest(groups["best"].values()):
                    raise UserError(f"--teacher-from {source}: {self.folder} has a {name} of its own")
                continue
            figures = read_json(source / "summary.json").get("stages", {}).get(name)
            if figures is None:
                raise UserError(f"--teacher-from {source}: its summary.json has no {name}")
            self.add(summary, name, figures | {"from": str(source)})
            self.forget_after(name)
            lines = [line for line in whole_lines(source / "metrics.jsonl") if json.loads(line)["stage"] == name]
            write_text(self.folder / "metrics.jsonl", "".join(self.lines() + lines))
            record["identity"] |= {"settings": stages[name], "from": str(source)}
            files.save(path, record, best=groups["best"])  # last: before it, nothing else counts

    def _of_another(self, source, stage, settings, shapes):
        path = source / f"{stage}.h5"
        if not path.exists():
            raise UserError(f"--teacher-from {source}: there is no {path.name} in it")
        record, groups = files.load(path)
        if not record.get("finished"):
            raise UserError(f"--teacher-from {source}: its {stage} is not finished")
        sides = record["identity"]["settings"], settings
        differing = differences(*({name: v for name, v in flat(side).items() if shapes(name)} for side in sides))
        if differing:
            raise UserError(f"--teacher-from {source}: a teacher with other settings: {differing}")
        return record, groups


def by_method(stages):
    """The records of stages in the order of their methods; those of one method stay as they are."""
    places = {method.name: i for i, method in enumerate(baselines.METHODS)}
    return dict(sorted(stages.items(), key=lambda item: places.get(item[1].get("method"), len(places))))


def whole_lines(path):
    """The lines of a metrics.jsonl, without one that a killed run did not finish."""
    try:
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    whole = [line for line in lines if line.endswith("\n")]
    for number, line in enumerate(whole, start=1):
        try:
            json.loads(line)["stage"], json.loads(line)["epoch"]
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{path}, line {number}: not the record of an epoch") from None
    return whole


def refuse_other_formats(folder, config):
    """UserError for a directory that an earlier minifit wrote."""
    if config.get("format") != FORMAT:
        raise UserError(
            f"{folder} was written by an earlier minifit, whose settings have other names. Name another --runs folder"
        )


def refuse_other_settings(folder, old, new):
    """UserError that names every setting in which a run differs from what is asked for now."""
    differing = differences(flat(old), flat(new))
    if differing:
        raise UserError(f"{folder} holds a run with other settings: {differing}. Name another --runs folder")


def differences(old, new):
    return "; ".join(
        f"{name} {json.dumps(old.get(name))}, now {json.dumps(new.get(name))}"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    )


def flat(settings, prefix=""):
    """{"teacher": {"lr": 1}} -> {"teacher.lr": 1}; a list of dictionaries likewise, its places counted from 1."""
    found = {}
    for name, value in settings.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            value = {str(i): one for i, one in enumerate(value, start=1)}
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found
