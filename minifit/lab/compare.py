"""Compares runs: from the records of run directories to figures of arms times methods times seeds, paired by seed.

An arm is a name and the settings in which it differs from the base, whose name is "". The figures are a dictionary that
is written as JSON. All of them follow from its "runs", so they can be computed again without the run directories.
No method is named here: names, titles and stages come from the records.
"""

from dataclasses import fields
from itertools import pairwise
from math import sqrt

import numpy as np

from minifit import UserError, baselines, experiments
from minifit.lab.records import read_config
from minifit.lab.rundir import RunDirectory, differences, flat, on_all_images, refuse_other_settings
from minifit.settings import Ramp, walk, words

CONFIDENCE = 0.95  # of the intervals
ROUNDING = 1e-12  # relative rounding error of figures; a spread of differences below it counts as none
FIGURES = ("test_error", "validation_error", "epochs", "seconds")
ERRORS = FIGURES[:2]
SIZES = ("weights", "multiplications")
TEACHER = next(method.name for method in baselines.METHODS if method.teaches)
SHAPING = {f.name for f in fields(experiments.Config) if f.metadata.get("teacher")}  # the settings of the teacher
FOLLOWS = {  # a setting -> the settings whose change explains its own
    "images": {"train", "validation"},
    "networks.teacher.name": {"teacher_width_scale"},
    "networks.teacher.blocks": {"teacher_width_scale"},
}


def spread(values):
    """Returns {n, mean, sd} of some values; sd is divided by n - 1, and None for fewer than two values."""
    n = len(values)
    mean, sd = float(np.mean(values)) if n else None, float(np.std(values, ddof=1)) if n > 1 else None
    return {"n": n, "mean": mean, "sd": sd}


def paired(one, other):
    """Returns the paired differences, `one` less `other`, as {n, mean, sd, low, high, p}.

    low, high: the 95 % interval of the mean difference by Student's t with n - 1 degrees of freedom
    p: of the two-sided paired t-test
    One pair gives only n and mean. Differences that are all equal give no interval and no p.
    """
    from scipy import stats  # takes longer to import than the rest of minifit

    statistics = spread(np.subtract(one, other)) | dict.fromkeys(("low", "high", "p"))
    n, mean, sd = statistics["n"], statistics["mean"], statistics["sd"]
    if n > 1 and sd > ROUNDING * np.abs([one, other]).max():
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * sd / sqrt(n)
        p = float(2 * stats.t.sf(abs(mean) * sqrt(n) / sd, n - 1))
        statistics |= {"low": mean - half, "high": mean + half, "p": p}
    return statistics


def verdict(differences):
    """Says whether all paired differences are below 0: "shown" by all intervals, "refuted" by one, or "undecided"."""
    known = [d for d in differences if d["low"] is not None]
    if any(d["low"] > 0 for d in known):
        return "refuted"
    return "shown" if len(known) == len(differences) and all(d["high"] < 0 for d in known) else "undecided"


def record(folder, stages=None, settings=None):
    """Returns the record of a run directory: its seed, settings and versions, and the records of finished stages.

    stages: the names of the wanted stages; "missing" lists the unfinished ones. The directory may hold others too
    settings: the settings that the directory must have; by default those in its config.json. An earlier config.json
    may lack a setting that is new and has no value; the record is the directory's own
    """
    there = settings is None or (folder / "config.json").exists()
    config = read_config(folder) if there else {}
    if settings is None or (there and not differences(flat(config["settings"]), flat(settings))):
        settings = config["settings"]
    summary = RunDirectory(folder, (), settings, None).summary()
    names = list(summary["stages"]) if stages is None else list(stages)
    records = {"stages": RunDirectory(folder, tuple(names), settings, None).finished()}
    missing = [name for name in names if name not in records["stages"]]
    if settings["retrain"]:
        whole = settings | on_all_images(settings["train"], settings["validation"])
        again = RunDirectory(folder / "all", tuple(names), whole, None)
        records["all"] = again.finished()
        if records["all"]:
            others = read_config(again.folder)["settings"] | {"images": whole["images"]}  # the digest of more images
            refuse_other_settings(again.folder, others, whole)
        missing += [f"{name}, on all images" for name in names if name not in records["all"]]
    made_by = {name: value for name, value in config.items() if name not in ("format", "settings")}
    head = {name: value for name, value in summary.items() if name not in ("seed", "preset", "settings", "stages")}
    entries = {"arm": "", "seed": settings["seed"], "folder": str(folder), "missing": missing}
    return entries | made_by | {"settings": flat(settings), "head": head} | records


def figures(stages, again=None):
    """Returns {method: its figures} from the records of a run's stages.   again: records of the stages on all images

    A method's errors are those of its last stage. Its epochs and seconds are those of all its stages.
    """
    methods = {}
    for stage in [*stages.values(), *(again or {}).values()]:
        methods.setdefault(stage["method"], []).append(stage)
    whole = {
        name: any(r.get("test_error") is not None and r.get("last", True) for r in records)
        for name, records in methods.items()
    }
    return {name: _figures(records) for name, records in methods.items() if whole[name]}


def _figures(records):
    tested = [r for r in records if r.get("test_error") is not None]
    chosen = [r for r in records if r.get("validation_error") is not None] or tested
    return {
        "weights": tested[-1]["weights"],
        "multiplications": tested[-1]["multiplications"],
        "test_error": tested[-1]["test_error"],
        "test_loss": tested[-1].get("test_loss"),
        "validation_error": chosen[-1].get("validation_error"),
        "best_epoch": chosen[-1]["best_epoch"],
        "epochs": sum(r["epochs"] for r in records),
        "seconds": round(sum(r["seconds"] for r in records), 1),
        "from": tested[-1].get("from"),  # where an earlier minifit copied a teacher from
    }


def in_order(names):
    """Sorts names of methods into the order of baselines.METHODS; unknown names come last."""
    known = [method.name for method in baselines.METHODS]
    return sorted(dict.fromkeys(names), key=lambda name: known.index(name) if name in known else len(known))


def pairs(methods, best=None):
    """Returns the pairs of methods to compare: each student's method with the one before it, and with the first.

    best: the method with which those listed after it are compared instead
    """
    students = [name for name in methods if name != TEACHER]
    cut = students.index(best) + 1 if best in students else len(students)
    others = {name: dict.fromkeys((before, students[0])) for before, name in pairwise(students[:cut])}
    return [(name, other) for name, of in others.items() for other in of] + [(name, best) for name in students[cut:]]


def gather(runs, command, changed=None, questions=None, order=(), others=()):
    """Returns the comparison of the records of some runs.

    command: the command of the comparison    changed: the settings in which the base differs from its preset
    questions: [{"question", "arms": {name shown: arm}, "seeds"}], by default one, with all arms and all seeds
    order: methods, each expected to have a lower error than the next    others: seeds that were not asked for
    """
    first = {}
    for run in sorted(runs, key=lambda run: run["arm"] != ""):  # the base first
        first.setdefault(run["arm"], run["settings"])
    arms = {arm: changes(first[""], settings) for arm, settings in first.items()}
    whole = [run for run in runs if not run["missing"]]
    run_figures = [(run, figures(run["stages"], run.get("all"))) for run in whole]
    named = {s["method"]: {"title": s["title"], "label": s["label"]} for run in whole for s in run["stages"].values()}
    methods = in_order(name for _, method_figures in run_figures for name in method_figures)
    questions = questions or [{"question": "", "arms": {arm: arm for arm in arms}, "seeds": None}]
    shared = {k: v for k, v in runs[0]["settings"].items() if all(run["settings"].get(k) == v for run in runs)}
    answers = [q | _answers(q, run_figures, methods, next(iter(order), None)) for q in questions]
    head = next((run["head"] for run in runs if run["head"]), {"experiment": shared["experiment"]})
    return {
        "format": 2,
        "command": command,
        "preset": runs[0]["settings"]["preset"],
        **head,
        "changed": changed or {},
        "methods": {name: named[name] for name in methods},
        "order": _order(order, answers[0]["rows"]) if len(arms) == 1 else None,
        "arms": arms,
        "questions": answers,
        "settings": shared,
        "runs": [_without(run, shared) for run in runs],
        "others": list(others),
    }


def _without(run, shared):
    settings = {name: value for name, value in run["settings"].items() if name not in shared}
    return {name: settings if name == "settings" else value for name, value in run.items() if name != "head"}


def again(comparison):
    """Returns the arguments of `gather` that give this comparison: its records and the rest."""
    keys = ("experiment", "data", "teacher", "student", "teacher_error")
    keys += ("train_images", "validation_images", "test_images")
    head = {name: comparison[name] for name in keys if name in comparison}
    shared = comparison["settings"]
    runs = [run | {"settings": shared | run["settings"], "head": head} for run in comparison["runs"]]
    questions = [{name: q[name] for name in ("question", "arms", "seeds")} for q in comparison["questions"]]
    order = comparison["order"]["methods"] if comparison["order"] else ()
    return runs, comparison["command"], comparison["changed"], questions, order, comparison["others"]


def _answers(question, run_figures, methods, best):
    """Returns a row per method and arm, and the differences between the methods of each arm.   best: as in `pairs`"""
    seeds, arms = question["seeds"], question["arms"]
    values = {  # (method, arm) -> {seed: figures}
        (method, arm): {
            run["seed"]: method_figures[method]
            for run, method_figures in run_figures
            if run["arm"] == arm and method in method_figures and (seeds is None or run["seed"] in seeds)
        }
        for method in methods
        for arm in arms.values()
    }
    reference = "" if "" in arms.values() else next(iter(arms.values()))
    rows = []
    for method in methods:
        method_rows = [
            _row(method, *named, values[method, named[1]], values[method, reference]) for named in arms.items()
        ]
        method_rows = [row for row in method_rows if row["seeds"]]
        if len(arms) > 1 and sum(row["from"] is None for row in method_rows) < 2:
            continue  # the arms share one network, so there is nothing to compare
        least = min(
            (mean for row in method_rows if (mean := row["validation_error"]["mean"]) is not None), default=None
        )
        for row in method_rows:
            row["best"] = len(method_rows) > 1 and least is not None and row["validation_error"]["mean"] == least
            row["less"] = None if row["arm"] == reference else row["less"]
        rows += method_rows
    shown = in_order(row["method"] for row in rows)
    between = [
        {"setting": setting, "method": one, "less": other, **_paired(values[one, arm], values[other, arm])}
        for setting, arm in arms.items()
        for one, other in pairs(shown, best)
        if values[one, arm].keys() & values[other, arm].keys()
    ]
    return {"rows": rows, "differences": between}


def _row(method, setting, arm, seed_figures, reference):
    """Returns the figures of a method in an arm.   seed_figures, reference: seed -> figures"""
    sources = {record["from"] for record in seed_figures.values()}
    source = sources.pop() if len(sources) == 1 else None if None in sources else "other runs"
    networks = {}  # A copy of one network is no further value. It has the test loss of what it is a copy of.
    copied = {record["test_loss"] for record in seed_figures.values() if record["from"]}
    for seed, record in seed_figures.items():
        loss = record["test_loss"]
        networks.setdefault(("copies", loss) if loss in copied else seed, seed)
    one = {seed: seed_figures[seed] for seed in networks.values()}
    return {
        "method": method,
        "setting": setting,
        "arm": arm,
        **{size: next((record[size] for record in one.values()), None) for size in SIZES},
        "seeds": list(one),
        **{figure: spread(known(one, figure)) for figure in FIGURES},
        **{f"{error}s": known(one, error) for error in ERRORS},
        "best_epochs": known(one, "best_epoch"),
        "less": _paired(seed_figures, reference),
        "from": source,
    }


def _paired(one, other):
    """Returns the paired differences of both errors over the seeds that two sides share; None for a missing error."""
    both = [seed for seed in one if seed in other]
    sides = {error: [known({seed: side[seed] for seed in both}, error) for side in (one, other)] for error in ERRORS}
    return {error: paired(*side) if all(side) else None for error, side in sides.items()}


def known(seed_figures, figure):
    """Returns a figure of every seed; an empty list if one seed lacks it.   seed_figures: seed -> figures"""
    values = [record[figure] for record in seed_figures.values()]
    return [] if None in values else values


def _order(order, rows):
    """Judges by test errors whether each method of `order` has a lower error than the next one."""
    errors = {row["method"]: dict(zip(row["seeds"], row["test_errors"], strict=True)) for row in rows}
    if len(order) < 2 or not set(order) <= errors.keys():
        return None
    both = [seed for seed in errors[order[0]] if all(seed in errors[name] for name in order)]
    sides = [[errors[name][seed] for seed in both] for name in order]
    return (
        {"methods": list(order), "test_error": verdict([paired(*step) for step in pairwise(sides)])} if both else None
    )


def changes(base, settings):
    """Returns the flat settings of a run that differ from the base's, without those that follow from others."""
    names = [n for n in {**base, **settings} if n not in ("seed", "preset") and base.get(n) != settings.get(n)]
    return {n: settings.get(n) for n in names if not FOLLOWS.get(n, set()) & set(names)}


def changed(preset, settings):
    """Returns {setting: value in words}: the flat settings of a run that differ from those of its preset.

    preset: a Config, or None for one that is gone
    """
    differences = {}
    for name, _, value in walk(preset) if preset else ():
        run_value = settings.get(name, value)
        if isinstance(value, Ramp):
            run_value = Ramp(*(settings.get(f"{name}.{part.name}") for part in fields(Ramp)))
        run_value = tuple(run_value) if isinstance(run_value, list) else run_value
        if run_value != value:
            differences[name] = " ".join(words(run_value))
    return differences


def arm_name(changes):
    """Returns the name of an arm in the form that `--arm` takes, "init=uniform,tau=1".   changes: setting -> value"""
    return ",".join(f"{name}={' '.join(words(value))}" for name, value in changes.items())


def questions_of(studies, seeds):
    """Returns the questions of the studies for `gather`."""
    return [
        {
            "question": study.question,
            "arms": {shown: arm_name(changes) for shown, changes in study.arms.items()},
            "seeds": list(range(seeds + study.more)),
        }
        for study in studies
    ]


def arms_of(runs):
    """Returns the records, each with its arm: the settings, except the seed, that differ from the first run's.

    UserError if runs differ in data, networks or another thing that must agree, or if two have the same arm and seed.
    """
    seen, named, networks = {}, [], {}
    for run in runs:
        differing = changes(runs[0]["settings"], run["settings"])
        folders = f"{runs[0]['folder']} and {run['folder']}"
        fixed = ("experiment", "data", "test", "images", "networks")
        odd = [name for name in differing if name.partition(".")[0] in fixed]
        if odd:
            raise UserError(f"{folders} cannot be compared: they differ in {', '.join(odd)}")
        arm = ",".join(f"{name}={value}" for name, value in differing.items())
        first = seen.setdefault((arm, run["seed"]), run)
        if first is not run:
            raise UserError(f"{first['folder']} and {run['folder']} have the same settings and the same seed")
        of_arm = networks.setdefault(arm, {})
        for name, stage in run["stages"].items():
            was, folder = of_arm.setdefault(name, (stage, run["folder"]))
            if any(was.get(of, stage.get(of)) != stage.get(of, was.get(of)) for of in ("network", *SIZES)):
                raise UserError(f"{folder} and {run['folder']} cannot be compared: their networks of {name} differ")
        named.append(run | {"arm": arm})
    return named
