"""What a comparison and the studies say, as the blocks of a page: headings, sentences and tables."""

from minifit.lab import compare as comparison
from minifit.lab.report import NAMES, duration

PARTS = {"paper": "The paper's settings", "default": "Our settings"}
PICTURES = {
    "errors.png": "Error of each method. A point is a seed, a line joins the methods of one, a bar is their mean.",
    "curves.png": "Curves of each stage: a thin line a seed, a thick one their mean.",
    "filters.png": "The first layer of the teacher and, after each stage, of the student.",
    "hints.png": "Hints, and what the regressor makes of the guided layer before and after stage 1.",
    "mistakes.png": "Test images that the FitNet misreads, the surest mistakes first.",
}
OF_WEIGHTS = ("filters.png", "hints.png", "mistakes.png")
MARKS = {"shown": "shown", "refuted": "refuted", "undecided": "not decided"}


def number(value, places=2, sign=False):
    return None if value is None else f"{value:{'+' if sign else ''}.{places}f}"


def several(values):
    """Seeds and other numbers in a sentence: "3", "3 and 4", "3, 4 and 7"."""
    *some, last = map(str, values)
    return f"{', '.join(some)} and {last}" if some else last


def made_by(seeds):
    """The versions and commits that trained these seeds; "+" marks a working copy with changes."""
    made = {(seed["minifit"], (seed["commit"] or "unknown").replace("+", " +")) for seed in seeds if "minifit" in seed}
    return "".join(f"Trained by minifit {version}, commit {commit}. " for version, commit in sorted(made)).strip()


def overview(parts, published):
    """Table 4: the paper's figures beside those of each part.   parts: preset -> comparison"""
    header = ["method", "weights", *(["paper %"] if published else [])]
    for preset in parts:
        changed = " (changed)" if parts[preset]["changed"] else ""
        header += [f"{PARTS[preset].lower()}{changed}: test error %", "sd", "seeds"]
    rows = []
    for name in comparison.METHODS:
        weights = [part["methods"][name]["weights"] for part in parts.values() if name in part["methods"]]
        row = [NAMES[name], f"{weights[0]:,}" if weights else None]
        row += [f"{published[name]:g}" if name in published else None] if published else []
        for part in parts.values():
            error = part["methods"].get(name, {}).get("test_error", {})
            row += [number(error.get("mean")), number(error.get("sd")), error.get("n")]
        rows.append(row)
    return "table", header, rows


def of_part(preset, part):
    """The blocks of one preset: settings, methods, differences, what is unfinished, and pictures."""
    sizes = f"{part['train_images']:,} training, {part['validation_images']:,} validation"
    blocks = [
        ("heading", f"{PARTS[preset]} (preset {preset})"),
        ("code", part["command"]),
        (
            "text",
            f"{part['data']}: {sizes} and {part['test_images']:,} test images. Teacher: {part['teacher']}. Student: "
            f"{part['student']}. {made_by(part['seeds'])}",
        ),
    ]
    if part["changed"]:
        said = ", ".join(f"{name} {value}" for name, value in part["changed"].items())
        blocks.append(("text", f"Changed from the preset: {said}."))
    blocks += [("text", text) for text in about_seeds(part)]
    if part["methods"]:
        chosen = "the one with the fewest errors on validation images" if part["validation_images"] else "the last"
        note = f"Errors are in percent. The epoch is {chosen}; the test set chose nothing."
        blocks += [methods_table(part), ("text", f"{note} FitNet's epochs and time are those of both stages.")]
        blocks += [seeds_table(part), *differences_of(part)]
    return blocks


def about_seeds(part):
    """Which seeds the means are of, which are unfinished or left out, and whose teacher it was."""
    whole = [seed for seed in part["seeds"] if not seed["missing"]]
    said = [f"Seeds: {several(seed['seed'] for seed in whole)}." if whole else "No seed is finished."]
    for seed in part["seeds"]:
        if seed["missing"]:
            said.append(f"Seed {seed['seed']} is unfinished and in no mean; to train: {', '.join(seed['missing'])}.")
    for seed in part["others"]:
        state = f"unfinished ({', '.join(seed['missing'])})" if seed["missing"] else "finished"
        said.append(f"Seed {seed['seed']} was started too, is {state}, and was not asked for.")
    if one := comparison.one_teacher(whole):
        said.append(f"One teacher, trained in {one}, served all seeds: what spreads is the students' alone.")
    elif any(seed["teacher_from"] for seed in whole):
        where = (f"seed {seed['seed']}'s in {seed['teacher_from'] or 'its own run'}" for seed in whole)
        said.append(f"Teachers were trained elsewhere: {', '.join(where)}.")
    return said


def methods_table(part):
    header = ["method", "seeds", "test error", "sd", "validation error", "sd", "epoch chosen", "epochs", "time"]
    rows, one = [], comparison.one_teacher([seed for seed in part["seeds"] if not seed["missing"]])
    for name, record in part["methods"].items():
        test, validation, best = record["test_error"], record["validation_error"], record["best_epochs"]
        errors = [number(error[figure]) for error in (test, validation) for figure in ("mean", "sd")]
        chosen = f"{min(best)} to {max(best)}" if min(best) < max(best) else f"{best[0]}"
        epochs, seconds = number(record["epochs"]["mean"], 1), duration(record["seconds"]["mean"])
        only = " (one for all seeds)" if name == "teacher" and one else ""
        rows.append([NAMES[name] + only, test["n"], *errors, chosen, epochs.removesuffix(".0"), seconds])
    return "table", header, rows


def seeds_table(part):
    """Every seed's test errors."""
    header = ["test error of seed", *(NAMES[name] for name in part["methods"])]
    whole = [seed for seed in part["seeds"] if not seed["missing"]]
    return (
        "table",
        header,
        [
            [str(seed["seed"]), *(number(seed["methods"][name]["test_error"]) for name in part["methods"])]
            for seed in whole
        ],
    )


def differences_of(part):
    """Paired differences as a table, and the sentence that they come to."""
    rows = []
    for pair in part["differences"]:
        for name, found in (("test", pair["test_error"]), ("validation", pair["validation_error"])):
            if found:
                low, high = (number(found[end], sign=True) for end in ("low", "high"))
                interval = None if low is None else f"{low} to {high}"
                mean, sd, p = number(found["mean"], sign=True), number(found["sd"]), number(found["p"], 3)
                p = "<0.001" if p == "0.000" else p
                rows.append(
                    [f"{NAMES[pair['method']]} less {NAMES[pair['less']]}", name, found["n"], mean, sd, interval, p]
                )
    header = ["paired difference in error", "images", "pairs", "mean", "sd", "95 % interval", "p"]
    blocks = [("table", header, rows)] if rows else []
    verdict = comparison.order(part)
    if verdict:
        blocks.append(
            (
                "text",
                f"The order hint > KD > back-propagation on test images: {MARKS[verdict]}. It is shown where "
                "both of its steps have intervals below 0, and refuted where one is above.",
            )
        )
    return blocks


def between(study):
    """What one method gains on another under each setting of a study, as a table; nothing of one method alone."""
    rows = []
    for pair in study["between"]:
        if found := pair["validation_error"]:
            low, high = (number(found[end], sign=True) for end in ("low", "high"))
            interval = None if low is None else f"{low} to {high}"
            methods = f"{NAMES[pair['method']]} less {NAMES[pair['less']]}"
            rows.append([methods, pair["variant"], found["n"], number(found["mean"], sign=True), interval])
    header = ["difference in validation error", "setting", "pairs", "mean", "95 % interval"]
    return [("table", header, rows)] if rows else []


def of_studies(found):
    """The blocks of the studies."""
    base = found["base"]
    epochs = ", ".join(
        f"{of} {base[part]['epochs']}"
        for of, part in (("teacher", "teacher"), ("hint", "stage1"), ("student", "student"))
    )
    sizes = f"{found['train_images']:,} training and {found['validation_images']:,} validation images"
    blocks = [
        ("heading", "Studies"),
        ("code", found["command"]),
        (
            "text",
            f"One setting changed at a time, on a shorter schedule: {sizes}; epochs: {epochs}. The teacher that the "
            "base trained for a seed serves all variants. Validation errors alone compare variants; test errors are as "
            f"recorded. {made_by(seed for run in found['runs'].values() for seed in run['seeds'])}",
        ),
    ]
    header = ["method", "setting", "seeds", "validation error", "sd", "difference", "95 % interval", "test error"]
    for study in found["studies"]:
        rows = []
        for row in study["rows"]:
            validation, difference = row["validation_error"], row["difference"] or {}
            low, high = (number(difference.get(end), sign=True) for end in ("low", "high"))
            setting = row["variant"] + " (best)" * (row["best"] and len(study["rows"]) > 1)
            change = "reference" if row["reference"] else number(difference.get("mean"), sign=True)
            errors = number(validation["mean"]), number(validation["sd"])
            rows.append(
                [
                    NAMES[row["method"]],
                    setting,
                    validation["n"],
                    *errors,
                    change,
                    None if low is None else f"{low} to {high}",
                    number(row["test_error"]["mean"]),
                ]
            )
        blocks += [("heading 3", study["question"]), ("table", header, rows), *between(study)]
    for name, run in found["runs"].items():
        for seed in run["seeds"]:
            if seed["missing"]:
                left = ", ".join(seed["missing"])
                blocks.append(
                    ("text", f"Seed {seed['seed']} of {name} is unfinished and in no mean; to train: {left}.")
                )
    return blocks
