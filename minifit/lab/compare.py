"""What the runs of several seeds came to: read from their records, never computed again, for tables and plots.

A comparison is a dictionary that is written as JSON: every figure of every seed with its settings, versions and commit,
the means over seeds, and the differences between methods, paired by seed.
"""

from dataclasses import asdict

from minifit import UserError
from minifit.lab import statistics
from minifit.lab.files import read_json
from minifit.lab.rundir import flat

METHODS = ("teacher", "backprop", "kd", "fitnet")
# The order hint > KD > back-propagation, and the sum of its two steps.
PAIRS = (("fitnet", "kd"), ("kd", "backprop"), ("fitnet", "backprop"))
FIGURES = ("test_error", "validation_error", "seconds", "epochs")


def of_seed(run, *goals):
    """The record of one seed: what it is of, what came out of each method, and the stages that are missing.

    Where the settings want it, the test errors are those of the networks trained again on all images.
    """
    path = run.folder / "config.json"
    config = read_json(path) if path.exists() else {}
    again = run.config.retrain and not run.missing(*goals)
    parts = [run, *([run.on_all()] if again else [])]
    summaries = [part.summary()["stages"] for part in parts]
    missing = run.missing(*goals) + ([f"{name}, on all images" for name in parts[1].missing(*goals)] if again else [])
    return {
        "seed": run.seed,
        "missing": missing,
        "methods": {} if missing else {name: _method(run, name, summaries) for name in METHODS if name in summaries[0]},
        "teacher_from": summaries[0].get("teacher", {}).get("from"),
        **{key: value for key, value in config.items() if key != "settings"},
        "settings": config.get("settings"),
        "stages": summaries[0] if len(summaries) == 1 else {"chosen": summaries[0], "all": summaries[1]},
    }


def _method(run, name, summaries):
    """The figures of one method; FitNet's time and epochs are those of both stages of Algorithm 1."""
    also = run.hints if name == "fitnet" else ["teacher_all"] if name == "teacher" else []
    record, last = summaries[0][name], summaries[-1]
    stages = [stages[part] for stages in summaries for part in (name, *also) if part in stages]
    hints = [stages[part] for stages in summaries for part in run.hints if part in stages]
    final = last["teacher_all"] if name == "teacher" and "teacher_all" in last else last[name]
    figures = {
        "weights": record["weights"],
        "test_error": final["test_error"],
        "validation_error": record.get("validation_error"),
        "best_epoch": record["best_epoch"],
        "epochs": sum(stage["epochs"] for stage in stages),
        "seconds": round(sum(stage["seconds"] for stage in stages), 1),
    }
    if name == "fitnet":
        figures["hint_epochs"] = sum(stage["epochs"] for stage in hints)
    return figures


def gather(runs, command, preset, *goals):
    """The comparison of runs that differ in their seed alone; `preset`: the Config that theirs started from."""
    run = runs[0]
    seeds = [of_seed(run, *goals) for run in runs]
    whole = [seed for seed in seeds if not seed["missing"]]
    config, start = flat(asdict(run.config)), flat(asdict(preset))
    methods = {}
    for name in METHODS:
        if whole and all(name in seed["methods"] for seed in whole):
            records = [seed["methods"][name] for seed in whole]
            if name == "teacher" and one_teacher(whole):
                records = records[:1]  # the same one again has no spread
            spreads = {figure: statistics.spread(known(records, figure)) for figure in FIGURES}
            chosen = [record["best_epoch"] for record in records]
            methods[name] = {"weights": records[0]["weights"], **spreads, "best_epochs": chosen}
    summary = run.summary()
    return {
        "command": command,
        **{key: value for key, value in summary.items() if key not in ("seed", "stages")},
        "changed": {name: value for name, value in config.items() if value != start[name]},
        "methods": methods,
        "differences": differences(whole),
        "seeds": seeds,
        "others": others(runs),
    }


def one_teacher(whole):
    """The run whose teacher served all seeds, if one did."""
    teachers = {seed["teacher_from"] for seed in whole}
    return teachers.pop() if len(teachers) == 1 else None


def known(records, figure):
    """A figure of every record, or of none where there is one without it."""
    values = [record[figure] for record in records]
    return [] if None in values else values


def differences(whole):
    """Paired differences in error, over the seeds that are whole, and what they say of the order of methods."""
    found = []
    for one, other in PAIRS:
        if all({one, other} <= seed["methods"].keys() for seed in whole):
            pair = {"method": one, "less": other}
            for part in ("test_error", "validation_error"):
                sides = [known([seed["methods"][name] for seed in whole], part) for name in (one, other)]
                pair[part] = statistics.paired(*sides) if all(sides) else None
            found.append(pair)
    return found


def order(comparison, part="test_error"):
    """What the differences say of hint > KD > back-propagation: "shown", "refuted", "undecided", or None."""
    steps = [pair[part] for pair in comparison["differences"] if (pair["method"], pair["less"]) in PAIRS[:2]]
    return statistics.order(*steps) if len(steps) == 2 and all(steps) else None


def others(runs):
    """Seeds beside those of the comparison, whose directories are there: none is left out unsaid."""
    asked, found = {run.folder for run in runs}, []
    for folder in sorted(runs[0].folder.parent.glob("seed*")):
        if folder not in asked and (folder / "config.json").exists():
            try:
                done = read_json(folder / "summary.json").get("stages", {})
            except UserError:
                done = {}
            missing = [name for name in runs[0].plan("all") if name not in done]
            found.append({"seed": folder.name.removeprefix("seed"), "missing": missing})
    return found


def gather_studies(studies, runs, changes, command, base, asked):
    """What the studies came to, each over the `asked` seeds and those that it has more.

    runs: folder name -> the runs of its seeds, and what they are asked for    changes: folder name -> settings
    A row is a method under a variant. Its difference is from the study's variant that is the base, or else its first,
    over the seeds that both have finished; `best` marks a method's lowest mean validation error in a study.
    """
    seeds = {name: [of_seed(run, *goals) for run in own] for name, (own, goals) in runs.items()}
    first = next(iter(runs.values()))[0][0]
    return {
        "command": command,
        **{key: value for key, value in first.summary().items() if key not in ("seed", "stages")},
        "base": asdict(base),
        "studies": [
            _answers(study, {name: seeds[folder][: asked + study.more] for name, folder in study.folders().items()})
            for study in studies
        ],
        "runs": {name: {"changes": changes[name], "seeds": records} for name, records in seeds.items()},
    }


def _answers(study, seeds):
    """The question, a row for each method under each variant, and under each the differences between methods.

    seeds: variant -> records of its seeds
    """
    between = []
    for name, records in seeds.items():
        pairs = differences([record for record in records if not record["missing"]])
        between += [{"variant": name} | pair for pair in pairs if {pair["method"], pair["less"]} <= {*study.methods}]
    return {"question": study.question, "rows": _rows(study, seeds), "between": between}


def _rows(study, seeds):
    reference = next((name for name, changes in study.variants.items() if not changes), next(iter(study.variants)))
    rows = []
    for method in study.methods:
        errors = {
            name: {r["seed"]: r["methods"][method] for r in records if method in r["methods"]}
            for name, records in seeds.items()
        }
        own = []
        for name, found in errors.items():
            both = [seed for seed in found if seed in errors[reference]]
            pairs = [known([errors[n][seed] for seed in both], "validation_error") for n in (name, reference)]
            own.append(
                {
                    "method": method,
                    "variant": name,
                    "validation_errors": known(list(found.values()), "validation_error"),
                    "validation_error": statistics.spread(known(list(found.values()), "validation_error")),
                    "test_error": statistics.spread(known(list(found.values()), "test_error")),
                    "difference": statistics.paired(*pairs) if name != reference and all(pairs) else None,
                    "reference": name == reference,
                    "unfinished": [record["seed"] for record in seeds[name] if record["missing"]],
                }
            )
        means = [row["validation_error"]["mean"] for row in own]
        for row, mean in zip(own, means, strict=True):
            row["best"] = mean is not None and mean == min(m for m in means if m is not None)
        rows += own
    return rows
