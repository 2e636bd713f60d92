"""Runs an experiment with one seed: walks through each method, and trains or loads, and records, its stages."""

import json
import time
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from minifit import UserError, baselines, experiments, fitnets, networks, stages
from minifit.backend import TRAINING, refuse_more_than_memory
from minifit.lab import files, plan, plots, report
from minifit.lab.files import digest
from minifit.lab.parallel import first
from minifit.lab.plan import chosen, noted, walk
from minifit.lab.rundir import RunDirectory, refuse_other_settings
from minifit.lab.sets import Sets, outputs
from minifit.lab.teachers import Given
from minifit.lab.training import LANES, DataParallel, fit
from minifit.model import describe
from minifit.task import MEASURED, Task
from reference import paper

SOON = 10  # seconds before the first pictures
SELDOM = 50  # pictures are drawn again after at least this many times the time that drawing took
DRAWN = 64  # the number of units shown of a fully connected first layer


@dataclass
class Run:
    """One experiment with one seed in one directory: its networks, data, settings and folder."""

    folder: Path
    name: str  # of the experiment
    preset: str
    experiment: experiments.Experiment
    config: experiments.Config
    seed: int
    data: object  # data.Dataset
    xp: object  # the library, numpy or cupy
    workers: int
    progress: bool = True
    cache: Path | None = None  # the folder where runs on the same images share whitening statistics; None: `folder`
    epochs: dict = field(default_factory=dict)  # stage -> number of epochs, if another run has chosen it
    methods: tuple[str, ...] = ()  # the names of the chosen methods; empty: fitnets.METHODS

    def __post_init__(self):
        self.workers = min(self.workers, LANES)
        c, self.known, self.made = self.config, {}, {}  # made: stage -> the digest of its weights, once it is trained
        self.sets = Sets(self.data, c, self.cache or self.folder)
        teacher, times = self.experiment.teacher, c.teacher_width_scale
        if times > 1:
            image = np.zeros((0, *teacher.input), np.float32)
            n = times * times * sum(w for w, _ in networks.count(networks.build(teacher), image))  # about
            what = f"--teacher-width-scale {times:g}: training its {n:,.0f} weights would"
            refuse_more_than_memory(what, TRAINING * n, "a narrower one would fit")
        self.networks = {"teacher": networks.widened(teacher, times), "student": self.experiment.student}
        self.networks |= self.experiment.others
        self.chosen = chosen(self.methods)
        self.listed = [m for m in baselines.METHODS if m in self.chosen or m in fitnets.METHODS]
        self.directory = RunDirectory(self.folder, tuple(self.ahead("all")), self.settings, self.xp)

    @property
    def given(self):
        """The teacher if it was trained elsewhere; otherwise None."""
        teacher = self.networks["teacher"]
        return teacher if isinstance(teacher, Given) else None

    @cached_property
    def teacher_error(self):
        """The test error of a given teacher, in percent."""
        return self.given.check(*self.sets.stored["test"], self.workers)

    @cached_property
    def settings(self):
        """Everything that the results depend on, except the version of minifit."""
        c, of = self.config, [(name, self.networks[name]) for name in ("teacher", "student")]
        settings = {
            "experiment": self.name,
            "preset": self.preset,
            "seed": self.seed,
            "data": self.data.name,
            "images": self.data.digest(c.train, c.validation, c.test),
            "backend": self.xp.__name__,
            "networks": {name: described(network) for name, network in of},
            **asdict(c),
            "microbatch": {name: c.microbatch or network.microbatch for name, network in of},
        }
        return json.loads(json.dumps(settings))

    @cached_property
    def stages(self):
        """{key: (method, stage)} for the chosen and the default methods, in order.

        A stage belongs to the first method that trains it.
        """
        return noted(self.listed, self.task(draw=False))

    def plan(self, goal):
        """Returns [(method, keys of its stages)] up to `goal`: "all", or the name of a method or of a stage."""
        methods = {method.name: method for method in self.chosen if self.keys(method)}  # a given teacher has no stage
        if goal == "all":
            return [(method, self.keys(method)) for method in methods.values()]
        if goal in methods:
            return [(methods[goal], self.keys(methods[goal]))]
        of = {name: method for method, stage in self.stages.values() for name in (stage.name, stage.key)}
        if goal not in of:
            names = ", ".join(dict.fromkeys([*methods, *of]))
            raise UserError(f"--stage {goal}: wanted one of the stages of these settings, {names}, or all")
        keys = self.keys(of[goal])
        last = max(i for i, key in enumerate(keys) if goal in (key, self.stages[key][1].name))
        return [(of[goal], keys[: last + 1])]

    def keys(self, method):
        """Returns the keys of a method's stages, including stages that it shares with an earlier method."""
        if method.name not in self.known:
            self.known[method.name] = [*noted([method], self.task(draw=False))]
        return self.known[method.name]

    def ahead(self, *goals):
        """Returns the keys of all stages that lead to these goals, in order."""
        wanted = {key for goal in goals for _, keys in self.plan(goal) for key in keys}
        return [key for key in self.stages if key in wanted]

    def missing(self, *goals):
        """Returns the keys of the unfinished stages that lead to these goals."""
        finished = self.directory.finished()
        return [key for key in self.ahead(*goals) if key not in finished]

    def finished(self):
        """Returns {key: record} for the finished stages of this run's methods."""
        return {key: record for key, record in self.directory.finished().items() if key in self.stages}

    def task(self, draw=True):
        """Builds the task for a method; without `draw` all weights are 0."""
        if not draw:
            return Task(self.networks, self.config, self.seed, xp=self.xp, draw=False)
        images, trained = self.sets["train"].batch(slice(MEASURED))[0], frozenset(self.directory.finished())
        return Task(self.networks, self.config, self.seed, images, self.xp, trained=trained)

    def settings_of(self, key):
        """Returns the settings that a stage's file depends on: the run's, the epochs of earlier stages, its network."""
        epochs = {name: self.epochs[name] for name in self.before(key) if name in self.epochs}
        network = self.networks[self.stages[key][1].of]
        return self.settings | {"epochs": epochs, "network": json.loads(json.dumps(described(network)))}

    def microbatch(self, stage):
        """Returns how many images a stage's network computes at a time on a CPU."""
        return self.config.microbatch or self.networks[stage.of].microbatch

    def count(self, stage):
        """Returns (weights, multiplications) of each layer that a stage trains."""
        image = self.xp.zeros((0, *self.networks[stage.of].input), np.float32)
        return networks.count(stage.network, stage.sees(image))

    def before(self, key):
        """Returns the keys of the stages up to and including this one."""
        keys = self.keys(self.stages[key][0])
        return keys[: keys.index(key) + 1]

    def summary(self):
        """Returns the run's heading and the records of its finished stages."""
        return self.heading() | {"stages": self.directory.finished()}

    def heading(self):
        return {
            "experiment": self.name,
            "preset": self.preset,
            "data": self.data.name,
            "seed": self.seed,
            **{name: self.networks[name].name for name in ("teacher", "student")},
            **({"teacher_error": self.teacher_error} if self.given else {}),
            **{f"{part}_images": size for part, size in self.sets.sizes.items()},
        }

    def on_all(self):
        """Returns the run that also trains on the validation images, each stage for the best number of epochs here."""
        c = self.config
        config = replace(c, train=c.train + c.validation, validation=0, retrain=False)
        found = {name: record["best_epoch"] for name, record in self.finished().items()}
        return replace(self, folder=self.folder / "all", config=config, epochs=found)

    def measure(self, stage, part, epoch):
        """Returns (mean loss, errors) of a stage's network over a set, without noise."""
        sets = {part: self.sets.taught(part, stage.target, self.workers)}
        with DataParallel(stage, sets, self.microbatch(stage), self.workers) as examples:
            return examples.measure(part, epoch, self.progress)


def described(network):
    """Describes a network as JSON: every block with its kind."""
    if isinstance(network, Given):
        return network.described()
    blocks = [{"kind": type(block).__name__, **asdict(block)} for block in network.blocks]
    return {"name": network.name, "input": network.input, "blocks": blocks}


def train(run, goal, say, teacher_from=None):
    """Trains the stages that lead to `goal`, and prints the plan, the progress and the results.

    teacher_from: the directory of another run, from which the trained teacher is copied
    """
    if run.given:  # before anything is written
        for target in (run.stages[key][1].target for key in run.ahead(goal)):
            if target is not None:
                target(np.zeros((0, *run.given.input), np.uint8))  # UserError where a method takes the teacher apart
        say(f"{run.given.name}: test error {run.teacher_error:.2f} % of {run.sets.sizes['test']:,} images")
    with run.directory, threadpool_limits(1, user_api="blas"):  # a scaled start's sums depend on the number of threads
        if teacher_from:
            take_teacher(run, teacher_from)
        for line in plan.lines(run, goal):
            say(line)
        say("")
        task, last, look = run.task(), run.ahead(goal)[-1], Look(run)

        def make(stage):
            record, fresh = trained(run, stage, lambda epoch: (say(report.epoch_line(epoch)), look(stage)))
            kept = f" (from {record['from']})" if "from" in record else "" if fresh else " (kept)"
            say(report.stage_line(stage.key, record, run.sets.sizes["test"], run.folder) + kept)
            if stage.key == last:
                draw(run)
            elif fresh:
                look()
            return record

        for method, keys in run.plan(goal):
            walk(method, task, make, keys[-1])
        if goal == "all":
            say("\n" + report.results_table(run.summary(), published(run.name, run.data.name)))
        say(f"\nPictures: {run.folder}/curves.png, {run.folder}/filters.png")
        say(f"Records: {run.folder}/summary.json, {run.folder}/metrics.jsonl")


@first
def draw(run):
    """Draws curves.png and filters.png."""
    draw_curves(run)
    plots.plot_filters(first_layers(run), run.folder / "filters.png", f"First layer, {run.data.name}, seed {run.seed}")


def draw_curves(run, stage=None):
    """Draws curves.png for the finished stages and for `stage`, which is being trained."""
    shown = run.directory.finished()
    if stage:
        method, _ = run.stages[stage.key]
        now = {"method": method.name, "label": method.label, "best_epoch": None, "last": False}
        shown |= {stage.key: now | ({"test_error": None} if stage.classifies else {})}
    who = "; ".join(run.networks[name].name for name in ("teacher", "student"))
    title = f"{run.data.name}, seed {run.seed}: {who}"
    plots.plot_curves({run.seed: run.directory.metrics()}, run.folder / "curves.png", title, shown)


class Look:
    """Draws the pictures after an epoch or a stage, unless drawing would take more than about 2 % of the time."""

    def __init__(self, run):
        self.run, self.next = run, time.perf_counter() + SOON

    @first
    def __call__(self, stage=None):
        """stage: the one that is being trained; None: a stage is finished"""
        began = time.perf_counter()
        if began >= self.next:
            draw_curves(self.run, stage) if stage else draw(self.run)
            took = time.perf_counter() - began
            self.next = began + took + SELDOM * took


def first_layers(run):
    """Returns {stage: filters of its first layer} for the finished stages."""
    found = {}
    for key in run.finished():
        stage = run.stages[key][1]
        if stage.below is None:
            first, of = next(name for name in stage.network.params if name.endswith("w")), run.networks[stage.of]
            w = run.directory.best(key)[first]
            found[f"{key} ({of.name})"] = w if w.ndim == 4 else w.reshape(*of.input, -1)[..., :DRAWN]
    return found


def published(name, data):
    """Returns {method: the paper's test error} of an experiment, if the paper has figures for this data set."""
    of, errors = paper.RESULTS.get(name, ("", {}))
    return errors if data.startswith(of) else {}


def trained(run, stage, tell=None):
    """Trains a stage's network, or goes on where it stopped, or loads it; returns (record, whether it was trained)."""
    key, directory = stage.key, run.directory
    path, settings = directory.checkpoint(key), run.settings_of(key)
    finished = directory.finished()
    if key in finished:
        load(run, stage, settings)
        return finished[key], False
    stage = replace(stage, schedule=replace(stage.schedule, epochs=run.epochs.get(key, stage.schedule.epochs)))
    start = [*(stage.below.params.values() if stage.below else ()), *stage.network.params.values()]
    made_from = {"teacher": digest_of(stage.target), "start": digest(start), "after": made_after(run, key)}
    identity = {"settings": settings, "stage": key, **made_from}
    sets, until, draw = {}, None, run.sets.draw
    if stage.on_all:
        until = run.measure(stage, "train", 0)[0]
        sets["train"] = replace(run.sets.on_all, teacher=stage.target)
    else:
        sets["train"] = run.sets.taught("train", stage.target, run.workers, run.progress)
    sets["validation"] = run.sets.taught("validation", stage.target, run.workers, run.progress)
    directory.forget_after(key)
    state = fit(
        stage,
        sets,
        run.task(draw=False).rng(stage.name, stage.index),
        path,
        identity,
        run.microbatch(stage),
        run.workers,
        directory.log,
        tell,
        run.progress,
        until,
        draw,
        about(run, stage),
    )
    run.made[key] = digest(stage.network.params.values())
    record = figures(run, stage, state)
    directory.add(run.heading(), key, record)
    return record, True


def made_after(run, key):
    """Returns {stage: digest of its weights} for the stages of a method before this one."""
    return {name: run.made[name] for name in run.before(key)[:-1]}


def about(run, stage):
    """Describes a stage's network for its file, for readers who have only the file."""
    of, c = run.networks[stage.of], run.settings
    known = {
        "part": stage.part,
        "stage": stage.key,
        **{name: c[name] for name in ("experiment", "seed", "data", "images")},
    }
    classifies = stage.classifies and stage.below is None
    return describe(stage.network, of.name, of.input, run.sets.prepare, run.sets.statistics, classifies, **known)


def load(run, stage, settings):
    """Loads a stage's best weights into its network. UserError if its file was made from something else."""
    path = run.directory.checkpoint(stage.key)
    record, groups = first(stages.load)(path)
    identity = record["identity"]
    refuse_other_settings(path, identity["settings"], settings)
    stages.refuse_another(path, record, stage.key)
    # The initial weights are not compared: each processor rounds a scaled start in its own way.
    if identity["teacher"] != digest_of(stage.target):
        raise UserError(f"{path}: made from another teacher than there is now; remove it to train again")
    for name, weights in made_after(run, stage.key).items():
        if identity.get("after", {}).get(name, weights) != weights:
            raise UserError(f"{path}: made from another {name} than there is now; remove it to train again")
    files.restore(stage.network.params, groups["best"], path)
    run.made[stage.key] = digest(stage.network.params.values())


def digest_of(target):
    return digest(target.params.values() if target else [])


def figures(run, stage, state):
    """Returns the record of a finished stage. This is the only use of the test set."""
    loss, errors = run.measure(stage, "test", state["best_epoch"])
    method, _ = run.stages[stage.key]
    counts = run.count(replace(stage, network=stage.answers))
    record = {
        "method": method.name,
        "title": method.title,
        "label": method.label,
        "loss": stage.loss.title,
        "commit": files.commit(),
        "epochs": state["epoch"],
        "best_epoch": state["best_epoch"],
        **({} if state["best_loss"] is None else {"validation_loss": state["best_loss"]}),
        "test_loss": loss,
        "weights": sum(w for w, _ in counts),
        "multiplications": sum(m for _, m in counts),
        "seconds": run.directory.seconds(stage.key),
        "file": f"{stage.key}.h5",
        "last": stage.key == run.keys(method)[-1],
    }
    if stage.classifies:
        if not stage.on_all and run.sets.sizes["validation"]:  # else it has trained on them
            record["validation_error"] = 100 * state["best_errors"] / run.sets.sizes["validation"]
        record["test_error"] = 100 * errors / run.sets.sizes["test"]
        if run.data.test_groups is not None:
            record["standard_error"] = standard_error(run, stage)
    return record


def standard_error(run, stage):
    """Returns the standard error of a test error in percent, over groups of images, which err together."""
    examples = run.sets["test"]
    logits = outputs(stage.network, examples, run.workers)
    logits = logits[-1] if isinstance(logits, tuple) else logits
    wrong, groups = logits.argmax(axis=-1) != examples.labels, run.data.test_groups[: len(examples)]
    _, of_group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    more = np.bincount(of_group, wrong) - wrong.mean() * sizes  # errors of a group beyond its share
    return float(100 * np.sqrt((more * more).sum() * len(sizes) / max(1, len(sizes) - 1)) / len(wrong))


def take_teacher(run, source):
    """Copies the trained teacher, with its figures, from the run directory `source`.

    UserError if its settings differ from those of the run's own teacher, except for the seed, or if the run already
    has another teacher, or students of another teacher.
    """
    shaping = {f.name for f in fields(experiments.Config) if f.metadata.get("teacher")} | {"data", "images"}

    def shapes(setting):
        group = setting.partition(".")[0]
        return group in shaping or group == "network" or setting.startswith(("networks.teacher.", "epochs.teacher"))

    source, directory = Path(source), run.directory
    settings = {key: run.settings_of(key) for key, (_, stage) in run.stages.items() if stage.of == "teacher"}
    taken = directory.trained_elsewhere(source, settings, shapes)
    last = list(settings)[-1]
    if not directory.has(last):  # existing students must have learned from the teacher to be copied
        task = run.task(draw=False)
        found = noted(run.listed, task)
        files.restore(task.teacher.params, taken[last][1]["best"], source / f"{last}.h5")
        for key, (_, stage) in found.items():
            if not stage.target or not directory.has(key):
                continue
            if directory.identity(key)["teacher"] != digest_of(stage.target):
                path = directory.checkpoint(key)
                raise UserError(f"--teacher-from {source}: {path} was made from another teacher")
    directory.take(source, taken, settings, run.heading())


def stage_of(run, key, start=False):
    """Returns the stage of that key with its best weights, or with its initial ones; loads the stages before it."""
    found = []

    def loaded(stage):
        if not (start and stage.key == key):
            load(run, stage, run.settings_of(stage.key))
        found.append(stage)
        return run.directory.finished().get(stage.key, {"best_epoch": 1})

    with threadpool_limits(1, user_api="blas"):
        task = run.task()
        if start:
            task.trained -= {key}  # so that its network is drawn again
        walk(run.stages[key][0], task, loaded, key)
    return found[-1]
