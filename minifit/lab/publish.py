"""Writes a results folder: the results of a comparison as JSON, as a page in Markdown, and as pictures.

RESULTS/<experiment>/<part>/results.json and its pictures     a comparison; parts are "default", "paper", "studies"
RESULTS/<experiment>/README.md                                a page of all parts
RESULTS/<experiment>/report.html                              the same page as one file, with --html

Tables and most pictures are made from records. Only the pictures of filters, hints and mistakes need networks.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minifit import UserError, experiments
from minifit.backend import to_host
from minifit.lab import compare as comparison
from minifit.lab import pages, parallel, pictures, plots, report, runner
from minifit.lab.compare import TEACHER, figures, in_order
from minifit.lab.files import write_text
from minifit.lab.jobs import Job, run_jobs
from minifit.lab.records import read_metrics, read_results, write_record
from minifit.lab.rundir import by_method, differences
from minifit.lab.sets import Examples, outputs, sees_bytes
from reference import paper

PICTURES = {
    "errors.png": "Errors: one point per seed, one grey line per seed, and a bar at the mean.",
    "curves.png": "Errors and losses of each stage: one thin line per seed, one thick line for their mean.",
    "filters.png": "Filters of the first layer: the teacher's, and the student's after each stage.",
    "hints.png": "The teacher's hints, and the regressor's output before and after stage 1.",
    "mistakes.png": "Test images that the last method's student misclassifies, the surest mistakes first.",
}
# The order that the paper finds, from the best method to the worst.
ORDER = [name for name in sorted(paper.TABLE_4, key=paper.TABLE_4.get) if name != TEACHER]
SHOWN = 4  # the number of images whose hints are drawn


@dataclass(frozen=True)
class Member:
    """One run of a comparison that the command line asks for."""

    run: runner.Setup
    words: list  # the words after `run.py` in the command that trains it
    arm: str = ""  # the name of its arm, "" for the base
    goals: tuple = ("all",)  # the methods or stages to train

    def record(self):
        """Returns the present record of the run. UserError if one of its stages is of other settings or networks."""
        run, directory = self.run, self.run.directory
        directory.begun()  # UserError where it has other settings, or is of an earlier minifit
        runner.refuse_changed(run)
        record = comparison.record(directory.folder, run.plan.ahead(*self.goals), directory.settings)
        head = {name: value for name, value in run.heading.items() if name not in ("seed", "preset")}
        return record | {"arm": self.arm, "head": head}


def compare(members, results, command, at_once=1, html=False, questions=None, tell=print):
    """Trains the missing stages of a comparison, several seeds at once, and writes the results folder.

    members: in the order in which the runs of one seed are trained, the base first    results: RESULTS
    command: the command of the comparison    questions: as for `compare.gather`    Returns the exit status.
    """
    several_arms = len({member.arm for member in members}) > 1
    base, records = members[0].run, [member.record() for member in members]
    preset, jobs = base.heading["preset"], {}
    part = Path(results) / base.heading["experiment"] / ("studies" if questions else "arms" if several_arms else preset)
    refuse_to_replace(part, with_what_was_there(part, records))
    for member, record in zip(members, records, strict=True):
        directory = member.run.directory
        begun, name = directory.begun(), f"seed {record['seed']}"
        arm = f" of {member.arm}" * bool(member.arm)
        if begun and record["missing"]:
            tell(f"{name}{arm}: goes on in {directory.folder}")
        if record["missing"]:
            goals = ["all"] if "all" in member.goals else member.goals
            arm *= parallel.ranks.size > 1  # ranks share arms too, each after the base of its seed, for the teacher
            job = jobs.setdefault(name + arm, Job(name + arm, [], name if arm else None))
            job.commands.extend([sys.argv[0], *member.words, "--stage", goal] for goal in goals)
    claim(part)
    seeds = {record["seed"] for record in records}
    if count := len(seeds) - len({name.partition(" of ")[0] for name in jobs}):
        tell(f"{count} of {len(seeds)} seeds kept: nothing is left to train in them")
    bases_first = sorted(jobs.values(), key=lambda job: job.after is not None)
    statuses = run_jobs(bases_first, at_once, tell, parallel.ranks.places())
    for job, status in statuses.items():
        if status:
            print(f"run.py: {job} ended with exit status {status}", file=sys.stderr)

    records = with_what_was_there(part, [member.record() for member in members])
    command_lines = commands(part, records, command, {name for m in members for name in m.run.plan.ahead(*m.goals)})
    # Records have the microbatch of each network.
    settings = records[0]["settings"] | {"microbatch": base.task.settings.microbatch}
    changed = comparison.changed(base.experiment.presets[preset], settings)
    outcome = comparison.gather(
        records, command_lines, changed, questions, ORDER, [] if several_arms else beside(members)
    )
    run = next((m.run for m, r in zip(members, records, strict=True) if not r["missing"] and not r["arm"]), None)
    publish(part, outcome, run, html, tell)
    return max(map(abs, statuses.values()), default=0) and 1


def compare_runs(folders, results, command, html=False, tell=print):
    """Compares existing run directories and writes the results folder, without training."""
    records = comparison.arms_of([comparison.record(Path(folder)) for folder in folders])
    unfinished = [record["folder"] for record in records if not figures(record["stages"])]
    if unfinished:
        raise UserError(f"{', '.join(unfinished)}: no method has finished in it")
    head = records[0]["settings"]
    several_arms = len({record["arm"] for record in records}) > 1
    part = Path(results) / head["experiment"] / ("arms" if several_arms else head["preset"])
    refuse_to_replace(part, records)
    claim(part)
    presets = {
        (name, preset): config for name, e in experiments.EXPERIMENTS.items() for preset, config in e.presets.items()
    }
    changed = comparison.changed(presets.get((head["experiment"], head["preset"])), head)
    command_lines = commands(part, records, command)
    publish(part, comparison.gather(records, command_lines, changed, order=ORDER), None, html, tell)
    return 0


def again(folder, html=False, tell=print):
    """Writes the pages and pictures of a results folder again from its records, without the data set."""
    parts = parts_of(folder)
    if not parts:
        raise UserError(f"{folder}: no results.json in it; python run.py compare {folder.name} makes one")
    for name, results in parts.items():
        write_part(folder / name, comparison.gather(*comparison.again(results)))
    write_page(folder, html)
    tell(f"{folder}/: {', '.join(['README.md', *['report.html'] * html, *(f'{name}/' for name in parts)])}")
    return 0


def claim(folder):
    """Makes the folder before training begins. UserError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from None


def with_what_was_there(part, records):
    """Returns the records, completed by those of other methods that the folder has for the same settings and seed."""
    path = part / "results.json"
    old, *_ = comparison.again(read_part(path)) if path.exists() else [[]]
    before = {(run["arm"], run["seed"]): run for run in old}
    runs = []
    for run in records:
        was = before.get((run["arm"], run["seed"]), run)
        if not differences(was["settings"], run["settings"]):
            missing = {name.partition(",")[0] for name in run["missing"]}
            others = {
                name: {k: r for k, r in was.get(name, {}).items() if k not in missing} for name in ("stages", "all")
            }
            run = run | {name: by_method(others[name] | run[name]) for name in others if name in run}
        runs.append(run)
    return runs


def commands(part, records, command, asked=None):
    """Returns the commands that give these records, a line each: `command`, after those of what the folder had before.

    asked: the stages that `command` asks for; None: all
    """
    path = part / "results.json"
    if not path.exists():
        return command
    old = read_part(path)
    before, now = (
        {(run["arm"], run["seed"], whole): run.get(whole, {}) for run in runs for whole in ("stages", "all")}
        for runs in (old["runs"], records)
    )
    if before == now:  # `command` has added nothing
        return old["command"]
    more = asked is not None and {name for stages in now.values() for name in stages} - asked
    return "\n".join(dict.fromkeys([*old["command"].splitlines(), command])) if more else command


def refuse_to_replace(part, records):
    """Raises UserError if a folder holds results of other runs, settings or images than the records."""
    path = part / "results.json"
    if not path.exists():
        return
    old, *_ = comparison.again(read_part(path))
    new, reasons = {(run["arm"], run["seed"]): run for run in records}, []
    for run in old:
        who, now = f"seed {run['seed']}" + f" of {run['arm']}" * bool(run["arm"]), new.get((run["arm"], run["seed"]))
        if now is None:
            reasons.append(f"it has {who}, which was not asked for")
        elif other := differences(run["settings"], now["settings"]):
            reasons.append(other)
        elif not run["missing"]:
            mine, theirs = (
                {**side["stages"], **{("all", k): r for k, r in side.get("all", {}).items()}} for side in (now, run)
            )
            if any(mine.get(key, record) != record for key, record in theirs.items()):
                reasons.append(f"its {who} is of another training run, {run['folder']}")
            elif theirs.keys() - mine.keys():
                reasons.append(f"its {who} has stages that {now['folder']} lacks, or that were not asked for")
    if reasons:
        explanation = "; ".join(dict.fromkeys(reasons))
        raise UserError(f"{part} holds other results: {explanation}. Name another --results folder")


def beside(members):
    """Returns the seeds that have been started but are not in the comparison, so that the page can name them."""
    base, folders, seeds = members[0], [member.run.directory.folder for member in members], []
    wanted = base.run.plan.ahead(*base.goals)
    for folder in sorted(folders[0].parent.glob("seed*")):
        if not folder.name.removeprefix("seed").isdecimal():
            continue
        if folder not in folders and (folder / "config.json").exists():
            try:
                missing = comparison.record(folder, wanted)["missing"]
            except UserError:
                missing = wanted
            seeds.append({"seed": folder.name.removeprefix("seed"), "missing": missing})
    return seeds


def publish(part, results, run, html, tell):
    """Writes a comparison and its page, and prints the comparison.   run: the run whose weights are drawn"""
    if run and any(run.directory.folder.glob("*.h5")):  # first: it refuses weights that do not fit together
        draw_networks(run, part, f"{results['data']}, preset {results['preset']}, seed {run.task.seed}")
    write_part(part, results)
    write_page(part.parent, html)
    tell(pages.as_printed(report.part_blocks(part.name, results)))
    tell(f"\n{part.parent}/: README.md, {part.name}/results.json and pictures")


def write_part(part, results):
    """Writes results.json and the pictures that follow from records; other pictures stay as they are."""
    write_record(part / "results.json", results)
    title = f"{results.get('data', results['experiment'])}, preset {results['preset']}"
    rows = [row | {"group": q["question"]} for q in results["questions"] for row in q["rows"]]
    if any(row[f"{error}_errors"] for row in rows for error in ("test", "validation")):
        of_paper = {} if len(results["arms"]) > 1 else runner.published(results["experiment"], results["data"])
        plots.plot_errors(rows, part / "errors.png", f"Errors, {title}", results["methods"], of_paper)
    runs = [run for run in results["runs"] if not run["missing"] and run["arm"] == ""]
    curves = {run["seed"]: read_metrics(Path(run["folder"]) / "metrics.jsonl") for run in runs}
    curves = {seed: [record for _, record in lines] for seed, lines in curves.items() if lines}
    if curves:
        shown = {row["method"] for row in rows} | {TEACHER}
        stages = {key: record for key, record in runs[0]["stages"].items() if record["method"] in shown}
        plots.plot_curves(curves, part / "curves.png", f"Stages, {title}", stages)


def write_page(folder, html=False):
    """Writes README.md with all parts of the folder and, if wanted, report.html."""
    parts = parts_of(folder)
    pictures = {
        name: [(f"{name}/{file}", caption) for file, caption in PICTURES.items() if (folder / name / file).exists()]
        for name in parts
    }
    first = next(iter(parts.values()))
    published = runner.published(first["experiment"], first.get("data", ""))
    title, blocks = report.page(parts, published, pictures)
    write_text(folder / "README.md", pages.markdown(title, blocks))
    if html:
        write_text(folder / "report.html", pages.html(title, blocks, folder))


def parts_of(folder):
    """Returns {name: comparison} for the parts of a results folder."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if Path(entry, "results.json").exists()]
    except FileNotFoundError:
        names = []
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from None
    names = [*(name for name in report.TITLES if name in names), *sorted({*names} - report.TITLES.keys())]
    return {name: read_part(folder / name / "results.json") for name in names}


def read_part(path):
    """Returns the comparison in a results.json. All its figures are found again from the records of its runs."""
    results, (experiment, part) = read_results(path), path.parts[-3:-1]
    of = results.get("experiment", experiment), part if part in ("arms", "studies") else results.get("preset", part)
    if of != (experiment, part):
        raise UserError(f"{path}: of {of[0]}, preset {of[1]}; such results belong in {of[0]}/{of[1]}/")
    try:
        return comparison.gather(*comparison.again(results))
    except (LookupError, TypeError, AttributeError, ArithmeticError, ValueError, StopIteration) as error:
        raise UserError(f"{path}: not the results of a comparison: its records do not fit together ({error})") from None


def draw_networks(run, part, title):
    """Draws the pictures that need weights: filters, hints of the first hint stage, mistakes of the last method."""
    run = runner.on_all(run) if run.task.settings.retrain else run
    stages = runner.finished(run)
    plots.plot_filters(pictures.first_layers(run), part / "filters.png", f"First layer, {title}")
    for key in (key for key, record in stages.items() if "test_error" not in record):
        if run.plan.stages[key][1].target and draw_hints(run, key, part / "hints.png", title):
            break
    methods = in_order(figures(stages))
    last = {record["method"]: key for key, record in stages.items() if "test_error" in record}
    draw_mistakes(run, last[methods[-1]], last.get(TEACHER), part / "mistakes.png", title)


def draw_hints(run, key, path, title):
    """Draws the hints of a few images of different labels, from the validation set if there is one.

    Returns False, and draws nothing, if the hints are no maps.
    """
    part = "validation" if run.sets.sizes["validation"] else "train"
    images, labels = run.sets.stored[part]
    first = [int(np.flatnonzero(labels == label)[0]) for label in np.unique(labels)][:SHOWN]
    xp = run.task.xp
    x = xp.asarray(run.sets[part].batch(first)[0])
    start, end = (runner.stage_of(run, key, start) for start in (True, False))
    hint = start.target(xp.asarray(images[first]) if sees_bytes(start.target) else x)
    before, hints, after = map(to_host, (start.network(x), hint, end.network(x)))
    if hints.ndim == 4:
        plots.plot_hints(images[first], hints, before, after, path, f"Hints, {title}, {part} images")
    return hints.ndim == 4


def draw_mistakes(run, key, teacher, path, title):
    """Draws a stage's mistakes on test images, with the teacher's answers.

    teacher: the teacher's stage; None: this run has trained none
    """
    student, asked = runner.stage_of(run, key).network, runner.given(run)
    if teacher and asked is None:
        asked = runner.stage_of(run, teacher).network
    (images, labels), examples = run.sets.stored["test"], run.sets["test"]
    logits = outputs(student, examples, run.workers)
    logits = logits[-1] if isinstance(logits, tuple) else logits
    answers = logits.argmax(axis=-1)
    wrong = np.flatnonzero(answers != labels)
    likely = np.exp(logits[wrong] - logits[wrong].max(axis=-1, keepdims=True))
    shown = Examples(images[wrong], labels[wrong], examples.prepare)
    teacher_answers = None
    if asked is not None:
        teacher_answers = outputs(asked, shown, run.workers).argmax(axis=-1) if len(wrong) else wrong
    title = f"{run.plan.stages[key][0].title}'s {len(wrong):,} mistakes of {len(images):,} test images, {title}"
    plots.plot_mistakes(
        images[wrong], labels[wrong], answers[wrong], teacher_answers, 1 / likely.sum(axis=-1), path, title
    )
