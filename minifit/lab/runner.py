"""One experiment with one seed: from its settings to each stage, ready to train, and from there to what came out."""

import json
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from math import ceil
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from minifit import UserError, fitnets, networks
from minifit.data import augment
from minifit.lab import files as checkpoints, plots
from minifit.backend import refuse_more_than_memory
from minifit.lab.files import digest, write_json
from minifit.data.preprocessing import unit, whitened
from minifit.lab.rundir import Directory, refuse_other_settings
from minifit.regressors import TRAINING, pieces_of, regressor
from minifit.lab.training import Examples, Pass, fit, outputs

# Every random stream of a run has a number; stages shuffle from streams of their own, so that any may run alone.
WEIGHTS = ("teacher weights", "student weights", "regressor weights")
STREAMS = {name: i for i, name in enumerate([*WEIGHTS, *fitnets.NAMES, "teacher_all"])}


@dataclass
class Run:
    """One experiment with one seed in one directory."""

    folder: Path
    name: str  # of the experiment
    preset: str
    experiment: object  # experiments.Experiment
    config: object  # experiments.Config
    seed: int
    data: object  # data.Dataset
    xp: object  # the library, numpy or cupy
    workers: int
    progress: bool = True
    cache: Path | None = None  # where runs on the same images share the statistics of whitening; None: `folder`
    epochs: dict = field(default_factory=dict)  # of each stage, where another run has found them

    def __post_init__(self):
        c, data = self.config, self.data
        if len(data.images) < c.train + c.validation or len(data.test_images) < (c.test or 1):
            raise UserError(
                f"{data.name} has {len(data.images)} training and {len(data.test_images)} test images; --train "
                f"{c.train}, --validation {c.validation} and --test {c.test or 'all'} want more"
            )
        last = len(data.images) - c.validation
        self.stored = {  # as bytes, still
            "train": (data.images[: c.train], data.labels[: c.train]),
            "validation": (data.images[last:], data.labels[last:]),
            "test": (data.test_images[: c.test], data.test_labels[: c.test]),
        }
        self.sizes = {part: len(labels) for part, (_, labels) in self.stored.items()}
        self.images = digest(a for arrays in self.stored.values() for a in arrays)
        if c.teacher_width > 1:
            self._refuse_a_teacher_too_wide()
        teacher = networks.widened(self.experiment.teacher, c.teacher_width)
        self.networks = {"teacher": teacher, "student": self.experiment.student}
        self.hints = ["hint", *(f"hint_{i}" for i in range(2, len(c.guided) + 1))]  # one stage for each pair
        self.taught = (*self.hints, "kd", "fitnet")  # the stages that learn from the teacher
        needs = {"teacher": [], "teacher_all": ["teacher"], "backprop": [], "kd": ["teacher"]}
        needs |= {name: ["teacher", *self.hints[:i]] for i, name in enumerate(self.hints)}
        needs["fitnet"] = ["teacher", *self.hints]
        self.needs = {name: needs[name] for name in needs if name != "teacher_all" or c.teacher_all}
        self.directory = Directory(self.folder, tuple(self.needs), self.settings(), self.xp)
        self.kept = {}  # outputs of the teacher, by set and layer

    def _refuse_a_teacher_too_wide(self):
        network, times = self.experiment.teacher, self.config.teacher_width
        image = np.zeros((0, *network.input), np.float32)
        n = times * times * sum(w for w, _ in networks.count(networks.build(network, rng=None), image))  # about
        what = f"--teacher-width {times:g}: training its {n:,.0f} weights would"
        refuse_more_than_memory(what, TRAINING * n, "a narrower one would fit")

    @property
    def whitening(self):
        """The file of what whitening takes of the training images; None where images are not whitened."""
        if self.config.preprocessing != "whitened":
            return None
        return (self.cache or self.folder) / f"whitening-{digest([self.stored['train'][0]])}.h5"

    @cached_property
    def sets(self):
        """{"train", "validation", "test"}: Examples as networks see them, which the training images alone decide."""
        train, *others = (images for images, _ in self.stored.values())
        if self.whitening:
            with threadpool_limits(1, user_api="blas"):  # whose sums depend on the number of threads
                train, others = whitened(train, others, self.whitening)
        else:
            train, *others = map(unit, (train, *others))
        labels = (labels for _, labels in self.stored.values())
        return {p: Examples(x, y) for p, x, y in zip(self.stored, (train, *others), labels, strict=True)}

    def __enter__(self):
        """Enters the directory, alone; UserError where another process is in it or its settings differ."""
        self.directory.__enter__()
        return self

    def __exit__(self, *exception):
        self.directory.__exit__()

    def missing(self, *goals):
        """The stages that these goals take and that have not finished."""
        wanted = [name for goal in goals for name in self.plan(goal)]
        return [name for name in dict.fromkeys(wanted) if name not in self.summary()["stages"]]

    def settings(self):
        """What a run directory is of: everything that its results depend on, but for the version of minifit."""
        settings = {
            "experiment": self.name,
            "preset": self.preset,
            "seed": self.seed,
            "data": self.data.name,
            "images": self.images,
            "backend": self.xp.__name__,
            "networks": {name: network.name for name, network in self.networks.items()},
            **asdict(self.config),
            "slice": {"teacher": self.slice("teacher"), "student": self.slice("student")},
        }
        return json.loads(json.dumps(settings))

    def settings_of(self, name):
        """What a stage's file is of: the run's settings, and the epochs found for the stage and for those it needs."""
        own = [stage for stage in (*self.needs[name], name) if stage in self.epochs]
        return self.directory.settings | {"epochs": {stage: self.epochs[stage] for stage in own}}

    def plan(self, goal):
        """The stages that `goal` takes, in order."""
        names = list(self.needs)
        if goal not in (*names, "all"):
            raise UserError(f"--stage {goal} is one of --teacher-all epochs, and these settings have none")
        goal = self.hints[-1] if goal == "hint" else goal
        wanted = names if goal == "all" else [*self.needs[goal], goal]
        return [name for name in names if name in wanted or (name == "teacher_all" and "teacher" in wanted)]

    def slice(self, name):
        network = self.networks["teacher" if name.startswith("teacher") else "student"]
        return self.config.slice or network.slice

    def schedule(self, name):
        schedule = self.own_schedule(name)
        return replace(schedule, epochs=self.epochs.get(name, schedule.epochs))

    def own_schedule(self, name):
        c = self.config
        if name != "teacher_all":
            return c.teacher if name == "teacher" else c.stage1 if name in self.hints else c.student
        # At the rates of the epoch that was chosen, held constant.
        best = self.summary()["stages"].get("teacher", {"best_epoch": 1})["best_epoch"]
        optimizer = c.teacher.make()
        c.teacher.adjust(optimizer, best, best * ceil(c.train / c.teacher.batch))
        constant = {"lr": optimizer.lr, "lr_decay": 1.0, "lr_final": 1.0}
        constant |= {"momentum": getattr(optimizer, "momentum", 0.0), "momentum_final": None}
        return replace(c.teacher, epochs=c.teacher_all, **constant)

    def rng(self, stream, pair=1):
        """The generator of a stream; of a second pair of hint and guided layers, and further ones, another."""
        return np.random.default_rng([self.seed, STREAMS[stream]] + [pair] * (pair > 1))

    def pair(self, name):
        """A hint stage's place among those of its run, from 1, its guided layer and its hint."""
        i = self.hints.index(name)
        return i + 1, self.config.guided[i], self.config.hint[i]

    def draw(self):
        """(rng, n) -> how each of n training images is augmented; None where none is."""
        c = self.config
        return partial(augment.draw, flips=c.flips, pad=c.crops) if c.flips or c.crops else None

    def teacher(self, trained=True):
        """The teacher's network; trained, as its stage left it, and without dropout for lack of an rng."""
        width = self.config.width if self.config.init == "uniform" else None
        keep = {"keep_input": self.config.keep_input, "keep": self.config.keep}
        network = networks.build(self.networks["teacher"], self.rng("teacher weights"), width, xp=self.xp, **keep)
        if trained:
            self.restore(network.params, "teacher_all" if self.config.teacher_all else "teacher")
        return network

    def of_another(self, name, teacher):
        """Whether the file of a student's stage was made from another teacher than this one."""
        part = teacher[: self.pair(name)[2]] if name in self.hints else teacher
        saved = checkpoints.load(self.directory.checkpoint(name))[0]["identity"]["teacher"]
        return saved != digest(part.params.values())

    def student(self):
        """The student's network; every stage of a seed starts from the same weights."""
        width = self.config.width if self.config.init == "uniform" else None
        return networks.build(self.networks["student"], self.rng("student weights"), width, xp=self.xp)

    def scale(self, network):
        if self.config.init == "scaled":
            with threadpool_limits(1, user_api="blas"):  # whose sums depend on the number of threads
                networks.unit_variance(network, self.xp.asarray(self.sets["train"].x[:128]))

    def restore(self, params, stage):
        checkpoints.restore(params, self.directory.best(stage), self.directory.checkpoint(stage))

    def stage(self, name):
        """The fitnets.Stage of that name, ready to train."""
        c = self.config
        if name == "teacher":
            network = self.teacher(trained=False)
            self.scale(network)
            return fitnets.teacher(network, *self.limits("teacher", network))
        if name == "teacher_all":
            network = self.teacher(trained=False)
            self.restore(network.params, "teacher")
            return fitnets.teacher_all(network, *self.limits("teacher", network))
        student = self.student()
        self.scale(student)
        limits = self.limits(name, student)
        if name == "backprop":
            return fitnets.backprop(student, *limits)
        if name == "kd":
            return fitnets.kd(student, self.teacher(), c.tau, self.lam(), *limits, student_tau=c.student_tau)
        for hint in self.needs[name][1:]:  # line 5, of each pair in turn; the regressors stay behind
            self.restore(student[: self.pair(hint)[1]].params, hint)
        if name in self.hints:
            return self.hint_stage(name, student, self.teacher())
        return fitnets.fitnet(student, self.teacher(), c.tau, self.lam(), *limits, student_tau=c.student_tau)

    def limits(self, name, layers):
        """(norms, rates) of the parameters of a network, or of its first layers, in the stage of that name."""
        network = self.networks["teacher" if name == "teacher" else "student"]
        rates = networks.rates(network, layers, self.schedule(name).conv_lr)
        if name == "fitnet":
            for key in layers[: max(self.config.guided)].params:
                rates[key] = rates.get(key, 1.0) * self.config.guided_lr
        return networks.norms(network, layers), rates

    def lam(self):
        """epoch -> lambda of eq. 2."""
        c = self.config
        return fitnets.linear(c.lam, c.lam_final, c.lam_start, c.lam_end)

    def hint_stage(self, name, student, teacher):
        c = self.config
        pair, g, h = self.pair(name)
        guided, hint = self.maps(student[:g], teacher[:h])
        width = c.regressor_width if c.regressor_init == "uniform" else None
        rng = self.rng("regressor weights", pair)
        w_r = regressor(c.regressor, guided, hint, self.pieces(teacher[h - 1]), rng, width, self.xp)
        norms, rates = self.limits(name, student[:g])
        for key in w_r.params:
            layer, _, kind = key.partition(".")
            if kind == "w":
                norms[f"{g + int(layer)}.w"] = c.regressor_norm
        return fitnets.hint(student, teacher, w_r, g, h, norms, rates, name, c.hint_mean)

    def pieces(self, hint):
        """The pieces of the regressor to a layer of the teacher: that layer's own, unless the settings have others."""
        return self.config.regressor_pieces or pieces_of(hint)

    def maps(self, *parts):
        """The shapes of the outputs of parts of networks for one image."""
        x = self.xp.zeros((0, *self.networks["student"].input), np.float32)
        return [part(x).shape[1:] for part in parts]

    def make(self, name, tell=None):
        """Trains one stage whose needs are met, or takes it up where it was left, and records what came out."""
        summary, path = self.summary(), self.directory.checkpoint(name)
        if name in summary["stages"] and self.directory.state(name) == "finished":
            saved = checkpoints.load(path)[0]["identity"]
            refuse_other_settings(path, saved["settings"], self.settings_of(name))
            # The start is not asked for again: a scaled one is rounded by each processor in its own way.
            if name in self.taught and self.of_another(name, self.teacher()):
                raise UserError(f"{path}: made from another teacher than there is now; remove it to train again")
            return summary["stages"][name], False
        stage = self.stage(name)
        frozen = stage.target.params.values() if stage.target else []
        start = {"teacher": digest(frozen), "start": digest(stage.network.params.values())}
        identity = {"settings": self.settings_of(name), **start}
        sets = {"train": self.sets["train"], "validation": self.with_target(stage, "validation")}
        if not self.draw():
            sets["train"] = self.with_target(stage, "train")
        until = None
        if name == "teacher_all":
            until = self.measure(stage, "train", 0)[0]
            sets["train"] = Examples(
                *(np.concatenate([getattr(s, part) for s in sets.values()]) for part in ("x", "labels"))
            )
        self.directory.forget_after(name)

        def keep(record):
            if name in ("kd", "fitnet"):
                record |= {"lam": self.lam()(record["epoch"])}
            self.directory.log(record)

        schedule, size, progress = self.schedule(name), self.slice(name), self.progress
        rng = self.rng("hint", self.pair(name)[0]) if name in self.hints else self.rng(name)
        arguments = path, identity, size, self.workers, keep, tell, progress, until, self.draw()
        state = fit(stage, schedule, sets, rng, *arguments)
        record = self.figures(stage, state)
        summary["stages"][name] = record
        write_json(self.folder / "summary.json", summary)
        return record, True

    def plot(self):
        """curves.png and filters.png, of what there is."""
        names = {of: network.name for of, network in self.networks.items()}
        summary, title = self.summary(), f"{self.data.name}, seed {self.seed}"
        chosen = {name: record["best_epoch"] for name, record in summary["stages"].items()}
        who = f"{title}\n{names['teacher']}; {names['student']}"
        plots.plot_curves(self.directory.metrics(), self.folder / "curves.png", who, chosen)
        first = {}
        for name in summary["stages"]:
            best = self.directory.best(name)
            of = names["teacher" if name.startswith("teacher") else "student"]
            first[f"{name} ({of})"] = next(w for key, w in best.items() if key.startswith("0.") and key.endswith("w"))
        plots.plot_filters(first, self.folder / "filters.png", f"First layer, {title}")

    def with_target(self, stage, part):
        """A set that is not augmented, with what the stage's teacher says of it, computed once.

        The maps of the hints are kept, and what lies above them is computed from the nearest.
        """
        examples = self.sets[part]
        if stage.target is None or not len(examples):
            return examples
        target, below = examples.x, 0
        for h in sorted(set(self.config.hint)):
            if h <= len(stage.target):
                if (part, h) not in self.kept:
                    layers = stage.target[below:h]
                    self.kept[part, h] = outputs(layers, target, self.workers, self.progress)
                target, below = self.kept[part, h], h
        if len(stage.target) > below:
            target = outputs(stage.target[below:], target, self.workers)
        return Examples(examples.x, examples.labels, target)

    def figures(self, stage, state):
        """What came out of a finished stage. Here, once, the test set is looked at."""
        loss, errors = self.measure(stage, "test", state["best_epoch"])
        image = self.xp.asarray(self.sets["train"].x[:0])
        counts = networks.count(stage.network, image)
        record = {
            "epochs": state["epoch"],
            "best_epoch": state["best_epoch"],
            **({} if state["best_loss"] is None else {"validation_loss": state["best_loss"]}),
            "test_loss": loss,
            "weights": sum(w for w, _ in counts),
            "multiplications": sum(m for _, m in counts),
            "seconds": round(sum(m["seconds"] for m in self.directory.metrics() if m["stage"] == stage.name), 1),
            "file": f"{stage.name}.h5",
        }
        if stage.classifies:
            if stage.name != "teacher_all" and self.sizes["validation"]:  # the former has trained on them
                record["validation_error"] = 100 * state["best_errors"] / len(self.sets["validation"])
            record["test_error"] = 100 * errors / self.sizes["test"]
        return record

    def measure(self, stage, part, epoch):
        """(mean loss, errors) of a stage's network over a set, without noise."""
        sets = {part: self.with_target(stage, part)}
        with Pass(stage, sets, self.slice(stage.name), self.workers) as examples:
            return examples.measure(part, epoch)

    def summary(self):
        return {
            "experiment": self.name,
            "preset": self.preset,
            "data": self.data.name,
            "seed": self.seed,
            **{name: network.name for name, network in self.networks.items()},
            **{f"{part}_images": size for part, size in self.sizes.items()},
            "stages": self.directory.finished(),
        }

    def on_all(self):
        """The run that trains on the validation images too, each stage for the epochs that were best in this one."""
        c = self.config
        config = replace(c, train=c.train + c.validation, validation=0, retrain=False)
        found = {name: record["best_epoch"] for name, record in self.summary()["stages"].items()}
        return replace(self, folder=self.folder / "all", config=config, epochs=found)
