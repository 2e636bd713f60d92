"""Runs an experiment with one seed: walks through each method, and trains or loads, and records, its stages."""

import json
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import numpy as np
from threadpoolctl import threadpool_limits

from minifit import UserError, experiments, networks, stages
from minifit.backend import TRAINING, refuse_more_than_memory
from minifit.lab import files, plan, report
from minifit.lab.files import digest
from minifit.lab.parallel import first
from minifit.lab.pictures import Look, draw
from minifit.lab.plan import Plan, chosen, counts, microbatch, walk
from minifit.lab.records import seal
from minifit.lab.rundir import RunDirectory, on_all_images, refuse_other_settings
from minifit.lab.sets import Sets, outputs
from minifit.lab.teachers import Given
from minifit.lab.training import LANES, DataParallel, fit
from minifit.model import describe
from minifit.task import MEASURED, Task
from reference import paper


@dataclass(frozen=True)
class Setup:
    """The parts of a run, which is one experiment with one seed in one directory."""

    experiment: experiments.Experiment
    task: Task  # draws no weights
    plan: Plan
    sets: Sets
    directory: RunDirectory
    workers: int
    progress: bool
    base: "Setup | None" = None  # the run whose teacher this one learns from; None: its own, or a given one

    @cached_property
    def heading(self):
        """What the summary says of all stages. The first time, a given teacher is tested."""
        teacher = given(self)
        return {
            **{name: self.directory.settings[name] for name in ("experiment", "preset", "data", "seed")},
            **{name: self.task.networks[name].name for name in ("teacher", "student")},
            **({"teacher_error": teacher.check(*self.sets.stored["test"], self.workers)} if teacher else {}),
            **{f"{part}_images": size for part, size in self.sets.sizes.items()},
        }


def set_up(
    folder,
    name,
    preset,
    experiment,
    config,
    seed,
    data,
    xp,
    workers,
    progress=True,
    cache=None,
    epochs=(),
    methods=None,
    base=None,
):
    """Returns the Setup of a run.

    name: of the experiment    data: data.Dataset    xp: the library, numpy or cupy
    cache: the folder where runs on the same images share whitening statistics; None: `folder`
    epochs: stage -> number of epochs, if another run has chosen it    methods: names; None: the default ones
    base: the Setup of a run with the same images, whose teacher this run learns from; None: its own, or a given one
    """
    sets = Sets(data, config, cache or folder, xp)
    shared = base and base.plan.stages[teacher_stages(base)[-1]][1].network  # for the plan, which needs its shapes
    task = Task(networks_of(experiment, config), config, seed, xp=xp, draw=False, shared=shared)
    plan = Plan(task, chosen(methods), dict(epochs))
    directory = RunDirectory(folder, tuple(plan.ahead("all")), settings_of(name, preset, data, task), xp)
    return Setup(experiment, task, plan, sets, directory, min(workers, LANES), progress, base)


def networks_of(experiment, config):
    """Returns {name: network} of an experiment. UserError if memory cannot hold the training of its teacher."""
    teacher, times = experiment.teacher, config.teacher_width_scale
    if times > 1:
        image = np.zeros((0, *teacher.input), np.float32)
        n = times * times * sum(w for w, _ in networks.count(networks.build(teacher), image))  # about
        what = f"--teacher-width-scale {times:g}: training its {n:,.0f} weights would"
        refuse_more_than_memory(what, TRAINING * n, "a narrower one would fit")
    return {"teacher": networks.widened(teacher, times), "student": experiment.student, **experiment.others}


def settings_of(name, preset, data, task):
    """Returns everything that the results depend on, except the version of minifit."""
    c, of = task.settings, [(name, task.networks[name]) for name in ("teacher", "student")]
    settings = {
        "experiment": name,
        "preset": preset,
        "seed": task.seed,
        "data": data.name,
        "images": data.digest(c.train, c.validation, c.test),
        "backend": task.xp.__name__,
        "networks": {name: described(network) for name, network in of},
        **asdict(c),
        "microbatch": {name: c.microbatch or network.microbatch for name, network in of},
    }
    return json.loads(json.dumps(settings))


def on_all(run):
    """Returns the run that also trains on the validation images, each stage for the best number of epochs here."""
    directory, task, sets, c = run.directory, run.task, run.sets, run.task.settings
    config = replace(c, **on_all_images(c.train, c.validation))
    named = [directory.settings[name] for name in ("experiment", "preset")]
    about = *named, run.experiment, config, task.seed, sets.data, task.xp, run.workers, run.progress, sets.cache
    epochs = {key: record["best_epoch"] for key, record in finished(run).items()}
    methods, base = [method.name for method in run.plan.methods], run.base and on_all(run.base)
    return set_up(directory.folder / "all", *about, epochs, methods, base)


def given(run):
    """Returns the teacher if it was trained elsewhere; otherwise None."""
    teacher = run.task.networks["teacher"]
    return teacher if isinstance(teacher, Given) else None


def teacher_stages(run):
    """Returns the keys of the stages that train the teacher in this run."""
    return [key for method, keys in run.plan.keys.items() if method.teaches for key in keys]


def task_of(run):
    """Returns the task whose networks are drawn, except those that `undrawn` names."""
    images = run.sets["train"].batch(slice(MEASURED))[0]
    last = run.base and teacher_stages(run.base)[-1]  # it is trained, unless no stage asks for a teacher
    shared = stage_of(run.base, last).network if last in (finished(run.base) if run.base else ()) else None
    return replace(run.task, images=images, trained=undrawn(run), draw=True, shared=shared)


def undrawn(run):
    """Returns the stages whose network is loaded and not drawn.

    Such a stage has a file, and its method alone trains the network that has the stage's name.
    """
    users = {}
    for method, stage in run.plan.stages.values():
        users.setdefault(stage.of, set()).add(method.name)
    alone = (key for key, (method, _) in run.plan.stages.items() if users.get(key) == {method.name})
    return frozenset(filter(run.directory.has, alone))


def stage_settings(run, key):
    """Returns the settings that a stage's file depends on: the run's, the epochs of earlier stages, its network."""
    known, (_, stage) = run.plan.epochs, run.plan.stages[key]
    network, epochs = run.task.networks[stage.of], {name: known[name] for name in run.plan.before(key) if name in known}
    if run.base and stage.target is not None:
        epochs |= {name: n for name, n in run.base.plan.epochs.items() if name in teacher_stages(run.base)}
    return run.directory.settings | {"epochs": epochs, "network": json.loads(json.dumps(described(network)))}


def refuse_changed(run):
    """Raises UserError if the file of a stage has other settings, or another network, than this run.

    Networks that methods bring with them are in no other record of a run.
    """
    for key in run.plan.stages:
        path = run.directory.checkpoint(key)
        if path.exists():
            written = stages.load_record(path)["identity"]["settings"]
            refuse_other_settings(path, written, stage_settings(run, key))


def finished(run):
    """Returns {key: record} for the finished stages of this run's methods."""
    return {key: record for key, record in run.directory.finished().items() if key in run.plan.stages}


def summary(run):
    """Returns the run's heading and the records of its finished stages."""
    return run.heading | {"stages": run.directory.finished()}


def measure(run, stage, part, epoch):
    """Returns (mean loss, errors) of a stage's network over a set, without noise."""
    sets = {part: run.sets.taught(part, stage.target, run.workers)}
    with DataParallel(stage, sets, microbatch(run.task, stage), run.workers) as examples:
        return examples.measure(part, epoch, run.progress)


def described(network):
    """Describes a network as JSON: every block with its kind."""
    if isinstance(network, Given):
        return network.described()
    blocks = [{"kind": type(block).__name__, **asdict(block)} for block in network.blocks]
    return {"name": network.name, "input": network.input, "blocks": blocks}


def train(run, goal, say):
    """Trains the stages that lead to `goal`, and prints the plan, the progress and the results.

    The teacher that another run has to train is trained there first, if one of the stages asks for it.
    """
    ahead, folder = run.plan.ahead(goal), run.directory.folder
    if run.base and any(run.plan.stages[key][1].target is not None for key in ahead):
        share(run.base, say)
    if teacher := given(run):  # before anything is written
        for target in (run.plan.stages[key][1].target for key in ahead):
            if target is not None:
                target(np.zeros((0, *teacher.input), np.uint8))  # UserError where a method takes the teacher apart
        error = run.heading["teacher_error"]
        say(f"{teacher.name}: test error {error:.2f} % of {run.sets.sizes['test']:,} images")
    with run.directory, threadpool_limits(1, user_api="blas"):  # a scaled start's sums depend on the number of threads
        for line in plan.lines(run, goal):
            say(line)
        say("")
        task, look = task_of(run), Look(run)

        def make(stage):
            record, fresh = trained(run, stage, lambda epoch: (say(report.epoch_line(epoch)), look(stage)))
            say(report.stage_line(stage.key, record, run.sets.sizes["test"], folder) + " (kept)" * (not fresh))
            if stage.key == ahead[-1]:
                draw(run)
            elif fresh:
                look()
            return record

        for method, keys in run.plan.up_to(goal):
            walk(method, task, make, keys[-1])
        if goal == "all":
            say("\n" + report.results_table(summary(run), published(run.heading["experiment"], run.heading["data"])))
        say(f"\nPictures: {folder}/curves.png, {folder}/filters.png")
        say(f"Records: {folder}/summary.json, {folder}/metrics.jsonl")


def share(run, say):
    """Trains the teacher of a run, unless it is finished. UserError, before anything is written, if it is lost."""
    *_, last = teacher_stages(run)
    if run.directory.recorded:
        raise UserError(f"{run.directory.folder} holds the records of a run without its weights, and so no teacher")
    if last in finished(run):
        stage_of(run, last)
    else:
        train(run, last, say)
        say("")


def published(name, data):
    """Returns {method: the paper's test error} of an experiment, if the paper has figures for this data set."""
    of, errors = paper.RESULTS.get(name, ("", {}))
    return errors if data.startswith(of) else {}


def trained(run, stage, tell=None):
    """Trains a stage's network, or goes on where it stopped, or loads it; returns (record, whether it was trained)."""
    key, task, directory = stage.key, run.task, run.directory
    if record := directory.finished().get(key):
        load(run, stage)
        return record, False
    stage = replace(stage, schedule=replace(stage.schedule, epochs=run.plan.epochs.get(key, stage.schedule.epochs)))
    made_from = {"teacher": digest_of(stage.target), "start": start_of(run, stage), "after": made_after(run, key)}
    identity = {"settings": stage_settings(run, key), "stage": key, **made_from}
    sets, until, draw = {}, None, run.sets.draw
    if stage.on_all:
        until = measure(run, stage, "train", 0)[0]
        sets["train"] = replace(run.sets.on_all, teacher=stage.target)
    else:
        sets["train"] = run.sets.taught("train", stage.target, run.workers, run.progress)
    sets["validation"] = run.sets.taught("validation", stage.target, run.workers, run.progress)
    directory.forget_after(key)
    state = fit(
        stage,
        sets,
        task.rng(stage.name, stage.index),
        directory.checkpoint(key),
        identity,
        microbatch(task, stage),
        run.workers,
        directory.log,
        tell,
        run.progress,
        until,
        draw,
        about(run, stage),
    )
    directory.digests[key] = digest(stage.network.params.values())
    record = figures(run, stage, state)
    directory.add(run.heading, key, record)
    return record, True


def start_of(run, stage):
    """Returns the digest of a stage's initial weights. Where the weights were not drawn, the stage's file has it."""
    if stage.key in undrawn(run):
        return run.directory.identity(stage.key)["start"]
    return digest([*(stage.below.params.values() if stage.below else ()), *stage.network.params.values()])


def made_after(run, key):
    """Returns {stage: digest of its weights} for the stages of a method before this one."""
    return {name: run.directory.digests[name] for name in run.plan.before(key)[:-1]}


def about(run, stage):
    """Describes a stage's network for its file, for readers who have only the file."""
    of, c = run.task.networks[stage.of], run.directory.settings
    known = {
        "part": stage.part,
        "stage": stage.key,
        **{name: c[name] for name in ("experiment", "seed", "data", "images")},
    }
    classifies = stage.classifies and stage.below is None
    return describe(stage.network, of.name, of.input, run.sets.prepare, run.sets.statistics, classifies, **known)


def load(run, stage):
    """Loads a stage's best weights into its network. UserError if its file was made from something else."""
    path = run.directory.checkpoint(stage.key)
    record, groups = first(stages.load)(path)
    identity = record["identity"]
    refuse_other_settings(path, identity["settings"], stage_settings(run, stage.key))
    stages.refuse_another(path, record, stage.key)
    # The initial weights are not compared: each processor rounds a scaled start in its own way.
    if identity["teacher"] != digest_of(stage.target):
        raise UserError(f"{path}: made from another teacher than there is now; remove it to train again")
    for name, weights in made_after(run, stage.key).items():
        if identity.get("after", {}).get(name, weights) != weights:
            raise UserError(f"{path}: made from another {name} than there is now; remove it to train again")
    files.restore(stage.network.params, groups["best"], path)
    run.directory.digests[stage.key] = digest(stage.network.params.values())


def digest_of(target):
    return digest(target.params.values() if target else [])


def figures(run, stage, state):
    """Returns the record of a finished stage. This is the only use of the test set."""
    loss, errors = measure(run, stage, "test", state["best_epoch"])
    method, _ = run.plan.stages[stage.key]
    sizes = counts(run.task, replace(stage, network=stage.answers))
    record = {
        "method": method.name,
        "title": method.title,
        "label": method.label,
        "loss": stage.loss.title,
        "commit": state.get("commit", files.commit()),  # the file's, if summary.json was lost
        "epochs": state["epoch"],
        "best_epoch": state["best_epoch"],
        **({} if state["best_loss"] is None else {"validation_loss": state["best_loss"]}),
        "test_loss": loss,
        "weights": sum(w for w, _ in sizes),
        "multiplications": sum(m for _, m in sizes),
        "seconds": run.directory.seconds(stage.key),
        "file": f"{stage.key}.h5",
        "last": stage.key == run.plan.keys[method][-1],
        "network": seal(stage_settings(run, stage.key)["network"])[:16],
    }
    if stage.classifies:
        if not stage.on_all and run.sets.sizes["validation"]:  # else it has trained on them
            record["validation_error"] = 100 * state["best_errors"] / run.sets.sizes["validation"]
        record["test_error"] = 100 * errors / run.sets.sizes["test"]
        if run.sets.data.test_groups is not None:
            record["standard_error"] = standard_error(run, stage)
    return record


def standard_error(run, stage):
    """Returns the standard error of a test error in percent, over groups of images, which err together."""
    examples = run.sets["test"]
    logits = outputs(stage.network, examples, run.workers)
    logits = logits[-1] if isinstance(logits, tuple) else logits
    wrong, groups = logits.argmax(axis=-1) != examples.labels, run.sets.data.test_groups[: len(examples)]
    _, of_group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    more = np.bincount(of_group, wrong) - wrong.mean() * sizes  # errors of a group beyond its share
    return float(100 * np.sqrt((more * more).sum() * len(sizes) / max(1, len(sizes) - 1)) / len(wrong))


def stage_of(run, key, start=False):
    """Returns the stage of that key with its best weights, or with its initial ones; loads the stages before it."""
    chain = []

    def loaded(stage):
        if not (start and stage.key == key):
            load(run, stage)
        chain.append(stage)
        return run.directory.finished().get(stage.key, {"best_epoch": 1})

    with threadpool_limits(1, user_api="blas"):
        task = task_of(run)
        if start:
            task.trained -= {key}  # so that its network is drawn again
        walk(run.plan.stages[key][0], task, loaded, key)
    return chain[-1]
