"""The words of a command: every setting an option, complaints in one line, and the run that they mean."""

import contextlib
import io
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from minifit import UserError, data, experiments
from minifit.backend import Backend, use
from minifit.lab.runner import Run
from minifit.lab.parallel import available


@dataclass(frozen=True)
class Common(experiments.Config):
    preset: Literal["default", "paper"] = "default"  # the settings that the options below start from
    backend: Backend = "numpy"
    data_dir: str | None = None  # where the data set lies; else MINIFIT_DATA, the cache, or a download
    teacher_from: str | None = None  # the directory of a run, whose trained teacher is taken instead of training one
    runs: str = "runs"  # results go to RUNS/<experiment>/seed<SEED>
    workers: int = available()  # processes; results do not depend on it


@dataclass(frozen=True)
class Command(Common):
    stage: Literal["teacher", "teacher_all", "backprop", "kd", "hint", "fitnet", "all"] = "all"  # with all it needs
    seed: int = 0


@dataclass(frozen=True)
class Several(Common):
    seeds: int = 5  # from 0 on
    at_once: int = 1  # seeds that train at the same time, with the workers shared out among them
    results: str = "results"  # tables and pictures go to RESULTS/<experiment>


@dataclass(frozen=True)
class ResultsCommand:
    results: str = "results"  # the folder of tables and pictures; the runs are where its own commands say
    data_dir: str | None = None  # where the data set lies; else MINIFIT_DATA, the cache, or a download


@dataclass(frozen=True)
class AuditCommand:
    row: str | None = None  # only the row of this name, or else those whose names begin so
    draws: int = 15  # problems drawn for each row
    seed: int = 0
    backend: Backend = "numpy"


def parse(name, arguments, command=Command, program="run.py"):
    """The Command for an experiment: a preset's settings, and what the arguments change in them."""
    experiment = experiments.EXPERIMENTS[name]
    preset = "default"
    for flag, value in zip(arguments, [*arguments, ""][1:], strict=True):
        if flag == "--preset" or flag.startswith("--preset="):
            preset = flag.partition("=")[2] or value
    config = experiment.presets.get(preset, experiment.presets["default"])
    default = command(**{f.name: getattr(config, f.name) for f in fields(config)})
    return command_line(command, f"{program} {name}", arguments, default)


def options(config, default, prefix=""):
    """The words of a command line that make `config` of `default`: what parse is the inverse of."""
    words = []
    for f in fields(config):
        value, name = getattr(config, f.name), prefix + f.name.replace("_", "-")
        if hasattr(value, "__dataclass_fields__"):
            words += options(value, getattr(default, f.name), f"{name}.")
        elif value != getattr(default, f.name):
            if isinstance(value, bool):
                words.append(f"--{name}" if value else f"--{prefix}no-{f.name.replace('_', '-')}")
            else:
                words += [f"--{name}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return words


def command_line(settings, program, arguments, default):
    """The settings with what the arguments change in them; UserError, one line, for what does not fit."""
    import tyro

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(settings, default=default, args=arguments, prog=program, description="Settings.")
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(in_one_line(complaint.getvalue(), default)) from None


def in_one_line(complaint, default):
    """What tyro says in a box, as one line, and the names of all settings."""
    lines = [line.strip(" │╭╮╰╯─-") for line in complaint.splitlines()]
    lines = [line for line in lines if line]
    said = []
    for line in lines[1:]:
        if line.startswith(("For full helptext", "Argument helptext", "Perhaps you meant")):
            break
        said.append(line)
    return f"{' '.join(said) or complaint.strip()} (settings: {', '.join(names(default))})"


def names(settings, prefix="--"):
    for f in fields(settings):
        value = getattr(settings, f.name)
        if hasattr(value, "__dataclass_fields__"):
            yield from names(value, f"{prefix}{f.name}.")
        else:
            yield prefix + f.name.replace("_", "-")


def settings_of(name, command):
    """The Config in a command, checked, and the data that it wants."""
    experiment = experiments.EXPERIMENTS[name]
    config = experiments.Config(**{f.name: getattr(command, f.name) for f in fields(experiments.Config)})
    experiments.check(experiment, config)
    for setting, least in (("seed", 0), ("workers", 1), ("seeds", 1), ("at_once", 1)):
        if getattr(command, setting, least) < least:
            flag = setting.replace("_", "-")
            raise UserError(f"--{flag} {getattr(command, setting)}: wanted {least} or more")
    use(command.backend)
    wanted = {"train": config.train + config.validation, "test": config.test}
    return config, data.load(experiment.data, data_dir=command.data_dir, progress=sys.stderr.isatty(), **wanted)


def run_of(name, command, config, seed, dataset, runs):
    folder, xp, progress = Path(runs) / name / f"seed{seed}", use(command.backend), sys.stderr.isatty()
    experiment, cache = experiments.EXPERIMENTS[name], Path(runs) / ".cache"
    return Run(folder, name, command.preset, experiment, config, seed, dataset, xp, command.workers, progress, cache)
