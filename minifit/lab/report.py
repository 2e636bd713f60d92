"""Writes the words of runs and comparisons: tables and lines to print, and the blocks of a page.

A block is ("heading", text), ("heading 3", text), ("text", text), ("code", text), ("table", header, rows) or
("picture", path, caption). No method is named here: titles and order are those of the records.
"""

import re
import shutil
import sys
import textwrap
from itertools import pairwise
from pathlib import Path

from minifit.lab.compare import ERRORS, SHAPING, TEACHER, figures, in_order
from reference.paper import ABOUT

NUMBER = re.compile(r"[~<>+-]?\d[\d.,]*( ?(K|M|G|%|s|min|h))?( \d\d (s|min))?( of \d[\d,]*)?")


def duration(seconds):
    """Formats a time: "0.4 s", "38 s", "2 min 05 s", "1 h 03 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def count(n, trim=False):
    """Formats a large number, "28.67M"; `trim` drops trailing zeros, "9M", for figures published that way."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if round(n / size, 5) >= 1:
            text = f"{n / size:.2f}"
            return (text.rstrip("0").rstrip(".") if trim else text) + unit
    return f"{n:,}"


def number(value, places=2, sign=False):
    return None if value is None else f"{value:{'+' if sign else ''}.{places}f}"


def several(values):
    """Lists values in a sentence: "3", "3 and 4", "3, 4 and 7"."""
    *others, last = map(str, values)
    return f"{', '.join(others)} and {last}" if others else last


def table(rows, header, markdown=False):
    """Formats aligned columns under a header: numbers to the right, None as "-"; "\\n" starts a new line in a cell.

    In a terminal that is narrower than the table, `listed` takes its place.
    """
    cells = [["-" if cell is None else str(cell) for cell in row] for row in rows]
    columns = [[line for row in cells for line in row[i].split("\n")] for i in range(len(header))]
    right = [any(c) and all(t in ("-", "") or NUMBER.fullmatch(t.strip()) for t in c) for c in columns]
    if markdown:
        rule = ["---:" if r else "---" for r in right]
        lines = [[cell.replace("\n", " ").replace("|", "\\|").strip() for cell in row] for row in [header, *cells]]
        return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])

    # A header sits on its rule and a cell hangs from its row: pad above the one, below the other.
    tall = [[cell.split("\n") for cell in row] for row in [header, *cells]]
    heights = [max(map(len, row)) for row in tall]
    tall[0] = [[""] * (heights[0] - len(cell)) + cell for cell in tall[0]]
    tall[1:] = [[c + [""] * (h - len(c)) for c in row] for row, h in zip(tall[1:], heights[1:], strict=True)]
    widths = [max(len(line) for row in tall for line in row[i]) for i in range(len(header))]
    lines = [line for row in tall for line in zip(*row, strict=True)]
    lines.insert(heights[0], ["-" * width for width in widths])
    aligned = [[t.rjust(w) if r else t.ljust(w) for t, w, r in zip(line, widths, right, strict=True)] for line in lines]
    text = "\n".join("  ".join(line).rstrip() for line in aligned)
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else sum(widths) + 2 * len(widths)
    return text if max(map(len, text.splitlines())) <= room else listed(cells, header, right[0], room)


def listed(rows, header, numbered, room):
    """Formats the rows of a table one below another: the first cell, and under it the other cells with their names.

    numbered: whether the first cells are numbers, which need their column's name    room: columns of the terminal
    """
    names, paragraphs = [name.replace("\n", " ") for name in header], []
    for row in rows:
        first, *cells = (_one_line(cell) for cell in row)
        values = (f"{name} {cell}" for name, cell in zip(names[1:], cells, strict=True) if cell not in ("-", ""))
        title, about = f"{names[0]} " * numbered + first, {"initial_indent": "  ", "subsequent_indent": "  "}
        paragraphs += [textwrap.fill(title, room), textwrap.fill("; ".join(values), room, **about)]
    return "\n".join(filter(None, paragraphs))


def _one_line(cell):
    """A cell's lines as one: numbers with commas between them, words as a sentence."""
    lines = [line.strip() for line in cell.split("\n")]
    return (", " if all(map(NUMBER.fullmatch, lines)) else " ").join(lines)


def fitted(text, room):
    """Breaks the longer lines of a text between words, for a terminal of `room` columns; tables stay as they are."""
    about = {"subsequent_indent": "  ", "break_long_words": False, "break_on_hyphens": False}
    lines = text.split("\n")
    long = [len(line) > room and "  " not in line.strip() for line in lines]
    return "\n".join(
        textwrap.fill(line, room, **about) if wrap else line for line, wrap in zip(lines, long, strict=True)
    )


def results_table(summary, published=None):
    """Formats a run as Table 4 of the paper: one row per method.   FitNets, Table 4.

    published: method -> the paper's test error in percent, or None; without any, the paper's column is left out.
    """
    stages, methods = summary["stages"], figures(summary["stages"])
    titles = {stage["method"]: stage["title"] for stage in stages.values()}
    paper = {name: f"{error:g}" for name, error in (published or {}).items() if error is not None}
    places = max((len(text.partition(".")[2]) for text in paper.values()), default=0)
    seconds = [record["seconds"] for record in methods.values()]
    unit, size = ("minutes", 60) if max(seconds, default=0) >= 60 else ("seconds", 1)
    rows, notes = [], []
    for name in in_order(methods):
        record, theirs = methods[name], paper.get(name)
        if theirs is not None:  # 1.9 stays 1.9: pad with blanks, not with a digit that was never published
            theirs += " " * (places - len(theirs.partition(".")[2]) + ("." not in theirs and places > 0))
        errors = [number(record[error]) for error in ERRORS]
        chosen = f"{record['best_epoch']} of {record['epochs']}"
        method_stages = {key: stage for key, stage in stages.items() if stage["method"] == name}
        if len(method_stages) > 1:
            chosen = "\n".join(f"{stage['best_epoch']} of {stage['epochs']}" for stage in method_stages.values())
            each = (f"{stage['seconds'] / size:.1f} for {key}" for key, stage in method_stages.items())
            notes.append(f"{titles[name]}: {several(each)}, in {unit}.")
        weights, time = f"{record['weights']:,}", f"{record['seconds'] / size:.1f}"
        rows.append([titles[name], weights, errors[0], *([theirs] if paper else []), errors[1], chosen, time])
    header = ["method", "weights", "test\nerror %", *(["paper\n%"] if paper else [])]
    header += ["validation\nerror %", "epoch\nchosen", unit]

    images = summary["test_images"]
    captions = [f"{summary['data']}, {images:,} test images, seed {summary['seed']}, preset {summary['preset']}."]
    if "teacher" in summary:
        captions.append(f"{about_networks(summary)}.")
        captions.append(f"Trained on {summary['train_images']:,} images; {_chosen(summary['validation_images'])}.")
    sources = {key: stage["from"] for key, stage in stages.items() if "from" in stage}
    captions += [f"Stage {key} was trained in {source}." for key, source in sources.items()]
    captions += [ABOUT[summary["experiment"]]] if paper and summary["experiment"] in ABOUT else []
    if paper and summary["preset"] != "paper":
        captions.append("The paper's figures come from its own teacher and up to 500 epochs per stage.")
    last = in_order(methods)[-1] if methods else None
    error = methods[last]["test_error"] if methods else None
    if error and images:
        deviation, over = (error * (100 - error) / images) ** 0.5, ""
        for stage in stages.values():
            if stage["method"] == last and "standard_error" in stage:
                deviation, over = stage["standard_error"], " over groups of images, such as those of one picture"
        captions.append(f"Standard error of a test error of {error:.2f} %{over}: {deviation:.2f}.")
    return table(rows, header) + "\n\n" + "\n".join(captions + notes)


def _chosen(validation):
    return f"{validation:,} others chose the epoch" if validation else "no images were left to choose the epoch"


def epoch_line(record):
    """Formats the line after an epoch: losses, error and time."""
    error = f", error {record['validation_error']:.2f} %" if "validation_error" in record else ""
    losses = f"loss {record['train_loss']:.4g}"
    if "validation_loss" in record:
        losses += f", validation {record['validation_loss']:.4g}"
    return f"{record['stage']} epoch {record['epoch']}: {losses}{error}, {duration(record['seconds'])}"


def stage_line(stage, record, test_images=None, folder=None):
    """Formats the two lines after a stage: its errors and chosen epoch, then its time and its file."""
    if record.get("test_error") is None and record.get("validation_error") is None:
        measure = f"loss {record['test_loss']:.4g}" + (f" ({test_images:,} images)" if test_images else "")
        validation = f"{record['validation_loss']:.4g}" if "validation_loss" in record else "none"
    else:
        measure, validation = "error -", "among the training images"
        if record.get("validation_error") is not None:
            validation = f"{record['validation_error']:.2f} %"
        if record.get("test_error") is not None:
            measure = f"error {record['test_error']:.2f} %"
            if test_images:
                measure += f" ({round(record['test_error'] * test_images / 100):,} of {test_images:,})"
    where = Path(folder or "", record["file"]).as_posix()
    epoch = f"epoch {record['best_epoch']} of {record['epochs']}"
    return f"{stage}: test {measure}, validation {validation} at {epoch}\n  {duration(record['seconds'])}, {where}"


def networks_table(rows):
    """Formats the published counts beside ours, by the paper's convention and as built, with numbered notes.

    rows: dictionaries of network, layers, weights, multiplications and notes (a list of texts). Weights and
    multiplications are triples: as published (text or None), as the paper counts, as built.
    """
    notes = list(dict.fromkeys(note for row in rows for note in row["notes"]))
    lines = []
    for row in rows:
        (published, *weights), (multiplications, *counted) = row["weights"], row["multiplications"]
        counts = [published, *(f"{n:,}" for n in weights), multiplications, *map(count, counted)]
        numbers = ", ".join(str(notes.index(note) + 1) for note in row["notes"])
        lines.append([textwrap.fill(row["network"], 24), row["layers"], *counts, *([numbers] if notes else [])])
    conventions = ["paper", "2 pieces", "as built"]
    header = ["network", "layers", *(f"{what}\n{how}" for what in ("weights", "mult.") for how in conventions)]
    numbered = [
        textwrap.fill(note, 95, initial_indent=f"{i:>2}  ", subsequent_indent="    ") for i, note in enumerate(notes, 1)
    ]
    return table(lines, header + ["notes"] * bool(notes)) + ("\n\n" + "\n".join(numbered) if notes else "")


# The parts of a page, in order.
TITLES = {
    "default": "Our settings",
    "paper": "The paper's settings",
    "short": "A short schedule",
    "arms": "Changed settings",
    "studies": "Studies",
}
VERDICTS = {"shown": "show it", "refuted": "refute it", "undecided": "do not decide it"}


def page(parts, published, pictures):
    """Returns (title, blocks) of the page of an experiment, which begins with its conclusions.

    parts: name -> comparison    published: method -> the paper's test error    pictures: name -> [(path, caption)]
    """
    single = {name: part for name, part in parts.items() if len(part["arms"]) == 1}
    concluded = {
        TITLES.get(name, name) + " (changed)" * bool(part["changed"]): conclusion(part)
        for name, part in single.items()
        if part["order"]
    }
    blocks = [("text", f"{title}. {text}") for title, text in concluded.items()]
    if single:
        blocks.append(overview(single, published))
    if single and published:
        of_tables = "The paper's figures are those of its Table 4 or 5: one network per method, with its own teacher."
        experiment = next(iter(parts.values()))["experiment"]
        blocks.append(("text", ABOUT.get(experiment, of_tables)))
    for name, part in parts.items():
        blocks += part_blocks(name, part)
        blocks += [("picture", path, caption) for path, caption in pictures[name]]
    first = next(iter(parts.values()))
    networks = "no run has begun"
    if "teacher" in first:
        networks = f"{first['student']} from {first['teacher']}, {first['data']}"
    return f"{first['experiment']}: {networks}", blocks


def overview(parts, published):
    """Returns Table 4: the paper's figures beside those of each part.   parts: name -> comparison"""
    data = dict.fromkeys(part["data"] for part in parts.values() if "data" in part)
    header = [", ".join(["method", *data]), "weights", *(["paper %"] if published else [])]
    for name, part in parts.items():
        header += [
            f"{TITLES.get(name, name).lower()}{' (changed)' * bool(part['changed'])}: test error %",
            "sd",
            "seeds",
        ]
    part_rows = {name: {row["method"]: row for row in rows_of(part)} for name, part in parts.items()}
    titles = {name: method["title"] for part in parts.values() for name, method in part["methods"].items()}
    rows = []
    for method in in_order(titles):
        here = [part_rows[name].get(method) for name in parts]
        cells = [titles[method], next(f"{row['weights']:,}" for row in here if row)]
        cells += [f"{published[method]:g}" if method in published else None] if published else []
        for row in here:
            error = row["test_error"] if row else {}
            cells += [number(error.get("mean")), number(error.get("sd")), error.get("n")]
        rows.append(cells)
    return "table", header, rows


def rows_of(part):
    return [row for question in part["questions"] for row in question["rows"]]


def about_networks(head):
    """Names teacher and student, and the error of a teacher that was trained elsewhere."""
    error = f", with {head['teacher_error']:.2f} % of test errors" if "teacher_error" in head else ""
    return f"Teacher: {head['teacher']}{error}. Student: {head['student']}"


def part_blocks(name, part):
    """Returns the blocks of one comparison without its pictures: settings, seeds, tables."""
    several_arms = len(part["arms"]) > 1
    blocks = [("heading", f"{TITLES.get(name, name)} (preset {part['preset']})"), ("code", part["command"])]
    if "teacher" in part:
        sizes = f"{part['train_images']:,} training, {part['validation_images']:,} validation"
        about = f"{part['data']}: {sizes} and {part['test_images']:,} test images. {about_networks(part)}. "
        blocks.append(("text", f"{about}{made_by(part)}".strip()))
    over_groups = [s["standard_error"] for run in part["runs"] for s in run["stages"].values() if "standard_error" in s]
    if over_groups:
        low, high = min(over_groups), max(over_groups)
        about = "Over groups of images, such as those of one picture, the standard error of one run's test error is"
        blocks.append(("text", f"{about} {low:.2f} to {high:.2f}."))
    if part["changed"]:
        changes = ", ".join(f"{setting} {value}" for setting, value in part["changed"].items())
        blocks.append(("text", f"Changed from the preset: {changes}."))
    blocks += [("text", text) for text in about_runs(part)]
    if any(part["methods"]):
        chosen = "the one with the fewest errors on validation images" if part["validation_images"] else "the last one"
        note = f"Errors are in percent. The epoch is {chosen}. The test set chose nothing. "
        note += "A method's epochs and time are those of all its stages; mult. is the multiplications for one image."
        if several_arms:
            note += " Differences are paired by seed, in validation error, from the setting marked as reference."
        blocks.append(("text", note))
    for question in part["questions"]:
        blocks += [("heading 3", question["question"])] if question["question"] else []
        blocks += tables(question, part, several_arms)
    return blocks


def made_by(part):
    """Names the versions and commits that trained these runs; "+" marks a working copy with changes."""
    made = {}
    for run in part["runs"]:
        if "minifit" in run:
            trained = [stage for stage in run["stages"].values() if "from" not in stage]
            for commit in [stage["commit"] for stage in trained if "commit" in stage] or [run["commit"]]:
                made.setdefault(run["minifit"], set()).add((commit or "unknown").replace("+", " +"))
    return " ".join(
        f"Trained by minifit {version}, commit {several(sorted(made[version]))}." for version in sorted(made)
    )


def about_runs(part):
    """Says which seeds are in the means, which runs are unfinished or left out, and where the teacher is from."""
    runs = part["runs"]
    seeds = sorted({run["seed"] for run in runs if not run["missing"]})
    lines = [f"Seeds: {several(seeds)}." if seeds else "No seed is finished."]
    for run in runs:
        if run["missing"]:
            arm = f" of {run['arm']}" * bool(run["arm"])
            missing = ", ".join(run["missing"])
            lines.append(f"Seed {run['seed']}{arm} is unfinished and left out of the means; to train: {missing}.")
    for other in part["others"]:
        state = f"unfinished ({', '.join(other['missing'])})" if other["missing"] else "finished"
        lines.append(f"Seed {other['seed']} has been started too and is {state}. It was not asked for.")
    if len(part["arms"]) > 1:
        base = {run["seed"]: run["folder"] for run in runs if not run["arm"] and teaches(run)}
        changed = {arm: {name.partition(".")[0] for name in changes} for arm, changes in part["arms"].items()}
        origins = {run["folder"]: copied_from(run) or (run["folder"] if teaches(run) else None) for run in runs}
        origins |= {
            run["folder"]: base.get(run["seed"])
            for run in runs
            if origins[run["folder"]] is None and not changed[run["arm"]] & SHAPING
        }
        teachers = {}
        for run in runs:
            source = origins[run["folder"]]
            teachers.setdefault(run["seed"], set()).add(origins.get(source, source))  # an arm's source may have its own
        elsewhere = any(origins[run["folder"]] not in (None, run["folder"]) for run in runs)
        shared = elsewhere and all(len(folders) == 1 for folders in teachers.values())
        return lines + ["All settings of one seed share that seed's teacher."] * shared
    given_teacher = {"networks.teacher.weights", "networks.teacher.sha256"} & part["settings"].keys()
    if given_teacher and len(seeds) > 1:
        lines.append("One given teacher serves all seeds: the spread comes from the students only.")
    sources = {run["seed"]: copied_from(run) for run in runs if not run["missing"]}
    if len(sources) > 0 and len({*sources.values()}) == 1 and (source := next(iter(sources.values()))):
        lines.append(f"One teacher, trained in {source}, served all seeds: the spread comes from the students only.")
    elif any(sources.values()):
        where = (f"seed {seed}'s in {source or 'its own run'}" for seed, source in sources.items())
        lines.append(f"Teachers were trained elsewhere: {', '.join(where)}.")
        lines.append("A teacher that serves several seeds counts once in the means.")
    return lines


def teaches(run):
    """Whether a teacher was trained in a run."""
    return any(stage["method"] == TEACHER for stage in run["stages"].values())


def copied_from(run):
    """Returns the run directory from which an earlier minifit copied a run's teacher; None: it was not copied."""
    return next((stage["from"] for stage in run["stages"].values() if "from" in stage), None)


def tables(question, part, several_arms):
    """Returns the blocks of one question: methods, test errors per seed (for one arm), differences, conclusion."""
    if not question["rows"]:
        return []
    methods, on = part["methods"], f", {part['data']}"
    blocks = [methods_table(question["rows"], methods, several_arms, on)]
    if not several_arms:
        alone = [row for row in question["rows"] if not one_for_all(row)] or question["rows"]
        errors = [dict(zip(row["seeds"], row["test_errors"], strict=True)) for row in alone]
        seeds = sorted({seed for column in errors for seed in column})
        rows = [[str(seed), *(number(column.get(seed)) for column in errors)] for seed in seeds]
        blocks.append(("table", [f"test error of seed{on}", *(methods[row["method"]]["title"] for row in alone)], rows))
    if question["differences"]:
        blocks.append(differences_table(question["differences"], methods, several_arms, on))
    if part["order"]:
        rule = "Seeds show an order if the interval of each step lies below 0, and refute it if one lies above."
        blocks.append(("text", f"{conclusion(part)} {rule}"))
    return blocks


def conclusion(part):
    """Says whether the test errors have the paper's order, and how large the difference at each step is."""
    order, titles = part["order"]["methods"], {name: method["title"] for name, method in part["methods"].items()}
    best = ", then ".join(titles[name] for name in order)
    differences = {(d["method"], d["less"]): d["test_error"] for d in part["questions"][0]["differences"]}
    steps = []
    for one, other in pairwise(order):
        if (less := differences.get((one, other))) is not None:
            how, chance = "lower" if less["mean"] < 0 else "higher", interval(less)
            step = f"the error of {titles[one]} is {abs(less['mean']):.2f} {how} than that of {titles[other]}"
            steps.append(step + (f" (95 % interval of the difference {chance})" if chance else ""))
    verdict = VERDICTS[part["order"]["test_error"]]
    statement = f"The paper's order of test errors, the fewest first, is {best}. These seeds {verdict}"
    return f"{statement}: {'; '.join(steps)}." if steps else f"{statement}."


def one_for_all(row):
    """Whether a row is about one network from another run that serves all seeds."""
    return row["from"] not in (None, "other runs")


def methods_table(rows, methods, several_arms, on):
    """Returns a table with one row per method and setting.   on: ", " and the name of the data set"""
    header = [f"method{on}", "setting", "weights", "mult.", "seeds", "test error", "sd", "validation error", "sd"]
    header += ["difference", "95 % interval", "epoch chosen", "epochs", "time"]
    lines = []
    for row in rows:
        best, less = row["best_epochs"], (row["less"] or {}).get("validation_error")
        title = methods[row["method"]]["title"] + " (one for all seeds)" * one_for_all(row)
        line = [title, (row["setting"] or "base") + " (best)" * row["best"]]
        line += [f"{row['weights']:,}", count(row["multiplications"]), len(row["seeds"])]
        line += [number(row[error][figure]) for error in ERRORS for figure in ("mean", "sd")]
        line += [number(less and less["mean"], sign=True) if row["less"] else "reference", interval(less)]
        chosen = f"{min(best)} to {max(best)}" if min(best) < max(best) else f"{best[0]}"
        line += [chosen, number(row["epochs"]["mean"], 1).removesuffix(".0"), duration(row["seconds"]["mean"])]
        lines.append(line)
    return "table", *without([] if several_arms else [1, 9, 10], header, lines)


def without(columns, header, rows):
    """Returns the header and the rows of a table without some columns."""
    header, *rows = ([cell for i, cell in enumerate(row) if i not in columns] for row in [header, *rows])
    return header, rows


def interval(difference):
    if difference is None or difference["low"] is None:
        return None
    return " to ".join(number(difference[end], sign=True) for end in ("low", "high"))


def differences_table(differences, methods, several_arms, on):
    """Returns a table with one row per pair of methods: the first one's error less the second one's."""
    header = [f"paired difference{on}", "setting", "pairs"]
    header += ["test error", "95 % interval", "p", "validation error", "95 % interval", "p"]
    rows = []
    for pair in differences:
        line = [f"{methods[pair['method']]['title']} less {methods[pair['less']]['title']}", pair["setting"] or "base"]
        line.append(max(pair[error]["n"] for error in ERRORS if pair[error]))
        for error in ERRORS:
            difference = pair[error] or {"mean": None, "low": None, "p": None}
            p = number(difference["p"], 3)
            line += [number(difference["mean"], sign=True), interval(difference), "<0.001" if p == "0.000" else p]
        rows.append(line)
    return "table", *without([] if several_arms else [1], header, rows)
