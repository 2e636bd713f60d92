"""The commands that train an experiment: one seed, or several seeds and arms that are compared; and their options."""

import shlex
import sys
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from minifit import UserError, baselines, data, experiments
from minifit.backend import BACKENDS, use
from minifit.lab import compare as comparison
from minifit.lab import parallel, plan, publish, runner, teachers
from minifit.lab.files import versions
from minifit.lab.options import HELP, HELP_ALL, changed, changes, option_of, options, read, show_help
from minifit.lab.parallel import available
from minifit.lab.rundir import flat
from minifit.settings import ABOVE_0, Rule, at_least, between, one_of, setting
from minifit.task import Task

ONE_OR_255 = Rule("1 or 255", lambda value: value in (1, 255))
SETTINGS = Rule("settings such as tau=1,init=uniform", lambda value: True, ("SETTING=VALUE,...",))


@dataclass(frozen=True, kw_only=True)
class Options(experiments.Config):
    """The settings of an experiment, and the other options of a command that trains."""

    preset: str = setting("begin with these settings", default="default", group="run", common=True)
    stage: str = setting("train this stage and the stages it needs", default="all", common=True)
    teacher_spec: str | None = setting("use this .onnx or .h5 teacher; auto: train one", default=None, common=True)
    hint_tensor: tuple[str, ...] = setting("take the hint from this tensor of an ONNX teacher", default=(), common=True)
    teacher_mean: tuple[float, ...] = setting(
        "subtract X from the pixels for an ONNX teacher; one number or one per channel", default=(0.0,)
    )
    teacher_std: tuple[float, ...] = setting("then divide the pixels by X", ABOVE_0, default=(1.0,))
    teacher_range: float = setting("scale the pixels for an ONNX teacher to [0, X]", ONE_OR_255, default=1.0)
    teacher_from: Path | None = setting("use the teacher of this run directory; auto: train one", default=None)
    runs: Path = setting("write to PATH/EXPERIMENT/seedN", default=Path("runs"), common=True)
    workers: int = setting(
        "use N processes; results do not depend on it", at_least(1), default=available(), common=True
    )
    backend: str = setting(
        "compute with this library: NumPy on the CPU, CuPy on a GPU", one_of(*BACKENDS), default="numpy"
    )


@dataclass(frozen=True, kw_only=True)
class OneSeed(Options):
    """The options of a run."""

    CHOICE: ClassVar[str] = "method"

    seed: int = setting("draw other initial weights and image orders", at_least(0), default=0, common=True)
    method: tuple[str, ...] | None = setting("train these methods", default=None, common=True)
    arm: str | None = setting(
        "change these settings too: train students in PATH/ARM/EXPERIMENT/seedN, with the teacher of the run without "
        "them, unless they are settings of the teacher",
        SETTINGS,
        default=None,
    )


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """An experiment on digits that are drawn here has no further options."""


@dataclass(frozen=True, kw_only=True)
class Folder:
    """The further option of an experiment on a published data set."""

    data_dir: Path | None = setting(
        "read the data set from here; auto: MINIFIT_DATA, the cache, or a download",
        default=None,
        group="data",
        common=True,
    )


@dataclass(frozen=True, kw_only=True)
class File:
    """The further option of an experiment on the user's file, which must be given."""

    data: Path = setting(
        "read the images from this file or folder; the README describes it",
        default=None,
        group="your data",
        common=True,
    )


@dataclass(frozen=True, kw_only=True)
class Specs(File):
    """The further options of an experiment on the user's file with networks of their own."""

    student_spec: str = setting(
        "build the student from these layers: channels, - between layers, / between groups; a group ends in a pooling",
        default=experiments.OWN_STUDENT,
        common=True,
    )
    teacher_spec: str = setting(
        "build the teacher from these layers; without a / every layer ends in a pooling; or use this trained file",
        default=experiments.OWN_TEACHER,
        common=True,
    )


MORE = {"digits": Drawn, "faces": File, "own": Specs}  # by the name of the data set; else Folder
OF_TEACHERS = "teacher_spec", "teacher_from", "hint_tensor", "teacher_mean", "teacher_std", "teacher_range"


@dataclass(frozen=True, kw_only=True)
class Several(Options):
    """The options of a comparison."""

    CHOICE: ClassVar[str] = "methods"

    seeds: int = setting("train seeds 0 to N - 1", between(1, 1000), default=5, common=True)
    at_once: int = setting(
        "train N seeds at the same time; they share the workers", at_least(1), default=1, common=True
    )
    methods: tuple[str, ...] | None = setting("compare these methods", default=None, common=True)
    arm: tuple[str, ...] = setting("also train an arm with these settings", SETTINGS, default=(), common=True)
    studies: bool = setting("answer the questions of experiments.STUDIES, from the preset short", default=False)
    results: Path = setting("write tables and pictures to PATH/EXPERIMENT", default=Path("results"), common=True)
    html: bool = setting("also write the page as report.html", default=False, common=True)


def parse(name, arguments, kind=OneSeed, command="run.py"):
    """Returns the options of an experiment: a preset's settings, changed by the arguments."""
    experiment, named = experiments.EXPERIMENTS[name], option_of("preset", arguments) or "default"
    kind = extended(kind, experiment)
    given = option_of("teacher_spec", arguments) or option_of("teacher_from", arguments)
    if (experiment.data in data.FILES or given) and not HELP & {*arguments}:
        experiment = experiment_of(name, read(arguments, kind(**vars(experiment.presets["default"]))))
    if named not in experiment.presets:
        raise UserError(f"--preset {named}: wanted {', '.join(experiment.presets)}")
    start = kind(**vars(experiment.presets[named]), preset=named)
    if parallel.ranks.size > 1:  # which are as many as the user wants
        start = replace(start, workers=1)
    if HELP & {*arguments}:
        about = (
            f"{experiment.student.name} learns from {experiment.teacher.name}. The values in brackets are the defaults."
        )
        choices = {"stage": goals_of(experiment, start), "preset": experiment.presets}
        names = [method.name for method in baselines.METHODS]
        more = names if HELP_ALL in arguments else [f"and {len(names) - len(plan.chosen())} more ({HELP_ALL})"]
        more = ["all", *more] if start.CHOICE == Several.CHOICE else more
        choices[start.CHOICE] = [f"auto ({', '.join(method.name for method in plan.chosen())})", *more]
        show_help(f"{command} {name}", about, start, arguments, choices)
    asked = read(arguments, start)
    experiments.check(experiment, asked)
    use(asked.backend)
    return replace(asked, **{asked.CHOICE: methods_of(experiment, asked)})


def extended(kind, experiment):
    """Returns the class of options, extended by those for the experiment's kind of data."""
    more = MORE.get(experiment.data, Folder)
    return dataclass(frozen=True, kw_only=True)(type(kind.__name__, (more, kind), {}))


def experiment_of(name, asked):
    """Returns the experiment of that name, adapted to the user's file, SPECs and trained teacher."""
    experiment, file = experiments.EXPERIMENTS[name], file_of_teacher(asked)
    if experiment.data in data.FILES:
        dataset = read_file(experiment.data, asked.data)
        if isinstance(asked, Specs):
            spec = experiments.OWN_TEACHER if file else asked.teacher_spec
            experiment = experiments.of_own(dataset, asked.student_spec, spec)
        else:
            experiment = experiments.fitted(experiment, dataset)
    if file:
        pixels = teachers.Pixels(asked.teacher_mean, asked.teacher_std, asked.teacher_range)
        return teachers.experiment(experiment, file, asked.hint_tensor, pixels, use(asked.backend))
    if asked.teacher_spec and not isinstance(asked, Specs):
        raise UserError(f"--teacher {asked.teacher_spec}: wanted a file that ends in {' or '.join(teachers.ENDINGS)}")
    if asked.hint_tensor:
        raise UserError("--hint-tensor: names a tensor of an ONNX teacher; wanted --teacher FILE.onnx")
    return experiment


def file_of_teacher(asked):
    """Returns the name of the file of a trained teacher, or None."""
    given = asked.teacher_spec if (asked.teacher_spec or "").endswith(teachers.ENDINGS) else None
    if given and asked.teacher_from:
        raise UserError("--teacher and --teacher-from: wanted one of them")
    if asked.teacher_from:  # its last phase if it has one
        paths = [asked.teacher_from / f"{stage}.h5" for stage in ("teacher_all", "teacher")]
        return str(next(filter(Path.exists, paths), paths[-1]))
    return given


@cache
def read_file(name, file):
    """Reads the data set in the user's file."""
    return data.load(name, file=file)


def methods_of(experiment, asked):
    """Returns the names of the methods to train, with the one that has the stage of --stage; None: the default ones."""
    names = getattr(asked, asked.CHOICE)
    methods = baselines.METHODS if names == ("all",) else plan.chosen(names)
    goals = goals_of(experiment, asked, methods)
    for method in () if asked.stage in goals else baselines.METHODS:
        with suppress(UserError):  # of a method that these settings do not suit
            if asked.stage in goals_of(experiment, asked, [method]):
                methods = (*methods, method)
                break
    else:
        if asked.stage not in goals:
            raise UserError(f"--stage {asked.stage}: wanted {', '.join(goals)}")
    return None if methods == plan.chosen() else tuple(method.name for method in methods)


def goals_of(experiment, config, methods=None):
    """Returns the values that `--stage` accepts with these settings: methods, their stages, and "all"."""
    task, goals = Task({"teacher": experiment.teacher, "student": experiment.student}, config, 0, draw=False), []
    for method in plan.chosen() if methods is None else methods:
        if keys := plan.noted([method], task):  # a given teacher is not trained
            goals += [*keys, method.name]
    return [*dict.fromkeys(goals), "all"]


def config_of(asked):
    return experiments.Config(**{f.name: getattr(asked, f.name) for f in fields(experiments.Config)})


def dataset_of(name, asked):
    of, wanted = experiments.EXPERIMENTS[name].data, {"train": asked.train + asked.validation, "test": asked.test}
    if of in data.FILES:
        return read_file(of, asked.data)
    return data.load(of, getattr(asked, "data_dir", None), sys.stderr.isatty(), **wanted)


def run_of(name, asked, config, seed, dataset, runs, base=None):
    """Sets up the run of one seed.   runs: the folder that holds one folder per experiment   base: as in `set_up`"""
    folder, experiment = runs / name / f"seed{seed}", experiment_of(name, asked)
    about = folder, name, asked.preset, experiment, config, seed, dataset
    methods = getattr(asked, asked.CHOICE)
    more = asked.workers, sys.stderr.isatty(), asked.runs / ".cache"
    return runner.set_up(*about, use(asked.backend), *more, methods=methods, base=base)


def arm_of(name, asked, settings, dataset, runs, base):
    """Sets up the run with other settings beside a run.   settings: {name: value}   base: that run

    It learns from the base's teacher, unless a setting is the teacher's (comparison.SHAPING). A setting of both
    networks, such as init, is then the student's alone.
    """
    config = changed(base.task.settings, settings)
    experiments.check(base.experiment, config)
    changed_teacher = comparison.SHAPING & {setting.partition(".")[0] for setting in settings}
    base_of_arm = base if runner.teacher_stages(base) and not changed_teacher else None
    return run_of(name, asked, config, base.task.seed, dataset, runs / comparison.arm_name(settings), base_of_arm)


def train(name, words, say):
    """Trains the stages of one seed."""

    def prepared():
        asked = parse(name, words)
        if parallel.ranks.size > 1 and use(asked.backend) is not np:
            raise UserError(f"--backend {asked.backend}: ranks share minibatches on CPUs only")
        dataset = dataset_of(name, asked)
        run = run_of(name, asked, config_of(asked), asked.seed, dataset, asked.runs)
        if asked.arm is not None:
            run = arm_of(name, asked, changes(asked.arm, run.task.settings), dataset, asked.runs, run)
        return asked, run

    asked, run = parallel.ranks.each(prepared)
    parallel.ranks.agree(lambda: versions() | flat(run.directory.settings))
    parallel.ranks.begun = True
    if isinstance(asked, Specs):
        settings = run.task.settings
        marks = {"teacher": (settings.hint_layer, "hint"), "student": (settings.guided_layer, "guided")}
        for name, network in run.task.networks.items():
            if network is not runner.given(run):
                say(plan.network_table(network, *marks.get(name, ())) + "\n")
    runner.train(run, asked.stage, say)
    if run.task.settings.retrain:
        say("\nAgain, on all images, for the epochs that were best:\n")
        runner.train(runner.on_all(run), asked.stage, say)
    return 0


def compare(name, words, say):
    """Trains several seeds of several arms of an experiment, and compares them."""
    command = f"python run.py compare {shlex.join([name, *words])}"
    asked = parse(name, ["--preset", "short"] * ("--studies" in words) + words, Several, "run.py compare")
    experiment, base, members = experiment_of(name, asked), config_of(asked), []
    runs, studies = asked.runs / asked.preset.replace("default", ""), experiments.STUDIES if asked.studies else ()
    arms = arms_of(asked, base, studies)
    for settings, *_ in arms.values():
        experiments.check(experiment, changed(base, settings))
        goals_of(
            experiment, changed(base, settings), plan.chosen(asked.methods)
        )  # UserError for a regressor that cannot fit
    dataset, firsts = dataset_of(name, asked), {}
    for arm, (settings, goals, more) in arms.items():
        for seed in range(asked.seeds + more):
            if seed not in firsts:
                firsts[seed] = run_of(name, asked, base, seed, dataset, runs)
            first = firsts[seed]
            run = arm_of(name, asked, settings, dataset, runs, first) if arm else first
            members.append(publish.Member(run, child(name, asked, first, arm), arm, goals))
    questions = comparison.questions_of(studies, asked.seeds)
    return publish.compare(members, asked.results, command, asked.at_once, asked.html, questions or None, say)


def arms_of(asked, base, studies):
    """Returns {arm: (changed settings, goals, seeds beyond --seeds)}. The base comes first; its name is ""."""
    arms, single = {"": ({}, (asked.stage,), 0)}, [(changes(arm, base), (asked.stage,), 0) for arm in asked.arm]
    for settings, goals, more in single + [
        (settings, s.goals, s.more) for s in studies for settings in s.arms.values()
    ]:
        arm = comparison.arm_name(settings)
        _, before, most = arms.get(arm, (settings, (), 0))
        arms[arm] = settings, tuple(dict.fromkeys((*before, *goals))), max(most, more)
    return arms


def child(name, asked, run, arm):
    """Returns the words of the command that trains one run, or an arm beside it."""
    start = extended(OneSeed, run.experiment)(**vars(run.experiment.presets[asked.preset]), preset=asked.preset)
    settings = {"seed": run.task.seed, "method": asked.methods, "runs": run.directory.folder.parents[1]}
    more = [f.name for f in fields(MORE.get(run.experiment.data, Folder))]
    settings |= {name: getattr(asked, name) for name in ("backend", *OF_TEACHERS, *more)}
    settings |= {"workers": max(1, asked.workers // asked.at_once), "arm": arm or None}
    return [name, "--preset", asked.preset, *options(replace(start, **vars(run.task.settings), **settings), start)]
