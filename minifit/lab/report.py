"""Tables and lines: what a run reports, as strings for the caller to print."""

import re
import textwrap
from pathlib import Path

# In the order of training.
NAMES = {
    "teacher": "teacher",
    "teacher_all": "teacher, on all images",
    "backprop": "standard back-propagation",
    "kd": "knowledge distillation",
    "hint": "hint",
    "fitnet": "FitNet",
}

NUMBER = re.compile(r"[~<>+-]?\d[\d.,]*( ?(K|M|G|%|s|min|h))?( \d\d (s|min))?( of \d[\d,]*)?")


def duration(seconds):
    """A time to read: "0.4 s", "38 s", "2 min 05 s", "1 h 03 min"."""
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
    """A large number to read, "28.67M"; `trim` drops closing zeros, "9M", for figures published that way."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if round(n / size, 5) >= 1:
            text = f"{n / size:.2f}"
            return (text.rstrip("0").rstrip(".") if trim else text) + unit
    return f"{n:,}"


def table(rows, header, markdown=False):
    """Aligned columns under a header: columns of numbers to the right, None as "-", "\\n" starts a line in a cell."""
    cells = [["-" if cell is None else str(cell) for cell in row] for row in rows]
    columns = [[row[i] for row in cells] for i in range(len(header))]
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
    return "\n".join("  ".join(line).rstrip() for line in aligned)


def plan_table(rows):
    """What a run would train, one stage a row, and the time that is left.

    rows: dicts of stage, trains, loss, weights, multiplications, epochs, estimate (seconds) and state
    ("to train", "finished", "at epoch 3"); a finished stage costs nothing, whatever its estimate says.
    """
    left = [row["estimate"] for row in rows if row["state"] != "finished"]
    lines = []
    for row in rows:
        estimate = None if row["state"] == "finished" else duration(row["estimate"])
        sizes = f"{row['weights']:,}", count(row["multiplications"]), f"{row['epochs']:,}"
        trains, loss = textwrap.fill(row["trains"], 24), textwrap.fill(row["loss"], 14)
        lines.append([row["stage"], trains, loss, *sizes, estimate, row["state"]])
    header = ["stage", "trains", "loss", "weights", "mult.", "epochs", "estimate", "state"]
    total = f"Left to train: about {duration(sum(left))}." if left else "Nothing is left to train."
    return table(lines, header) + "\n\n" + total


def results_table(summary, published=None):
    """Table 4 of the paper beside this run: a method a row, "-" where a stage has not run.   FitNets, Table 4.

    published: stage -> test error in percent or None; without any, the paper's column is left out.
    """
    stages = summary["stages"]
    paper = {stage: f"{error:g}" for stage, error in (published or {}).items() if error is not None}
    places = max((len(text.partition(".")[2]) for text in paper.values()), default=0)
    # FitNet's time is that of both stages of Algorithm 1, or its row would look cheaper than it is.
    seconds = {stage: record["seconds"] for stage, record in stages.items()}
    hint_seconds = sum(seconds.pop(stage) for stage in list(seconds) if stage.startswith("hint"))
    if "fitnet" in seconds:
        seconds["fitnet"] += hint_seconds
    unit, size = ("minutes", 60) if max(seconds.values(), default=0) >= 60 else ("seconds", 1)

    lines = []
    last_teacher = "teacher_all" if "teacher_all" in stages else "teacher"  # the one the students learnt from
    if "teacher" in paper:
        paper[last_teacher] = paper.pop("teacher")
    for stage in dict.fromkeys(["teacher", last_teacher, "backprop", "kd", "fitnet"]):
        record = stages.get(stage)
        theirs = paper.get(stage)
        if theirs is not None:  # 1.9 stays 1.9: pad with blanks, not with a digit that was never published
            theirs += " " * (places - len(theirs.partition(".")[2]) + ("." not in theirs and places > 0))
        ours = [None] * 5
        if record:
            errors = [record.get(f"{part}_error") for part in ("test", "validation")]
            test, validation = (None if error is None else f"{error:.2f}" for error in errors)
            chosen = f"{record['best_epoch']} of {record['epochs']}"
            ours = [f"{record['weights']:,}", test, validation, chosen, f"{seconds[stage] / size:.1f}"]
        lines.append([NAMES[stage], *ours[:2], *([theirs] if paper else []), *ours[2:]])
    header = ["method", "weights", "test\nerror %", *(["paper\n%"] if paper else [])]
    header += ["validation\nerror %", "epoch\nchosen", unit]

    images = summary["test_images"]
    captions = [f"{summary['data']}, {images:,} test images, seed {summary['seed']}, preset {summary['preset']}."]
    if "teacher" in summary:
        captions.append(f"Teacher: {summary['teacher']}. Student: {summary['student']}.")
        captions.append(f"Trained on {summary['train_images']:,} images; {_chosen(summary['validation_images'])}.")
    if "from" in stages.get("teacher", {}):
        captions.append(f"The teacher was trained in {stages['teacher']['from']}.")
    if paper and summary["preset"] != "paper":
        captions.append("The paper's figures are those of its own teacher and of schedules of up to 500 epochs.")
    errors = (stages.get(stage, {}).get("test_error") for stage in ("fitnet", "kd", "backprop", "teacher"))
    error = next(filter(None, errors), None)
    if error and images:
        deviation = (error * (100 - error) / images) ** 0.5
        captions.append(f"Standard error of a test error of {error:.2f} %: {deviation:.2f}.")
    if "fitnet" in seconds and hint_seconds:
        captions.append(f"FitNet's {unit} include {hint_seconds / size:.1f} of stage 1, the hints.")
    return table(lines, header) + "\n\n" + "\n".join(captions)


def _chosen(validation):
    return f"{validation:,} others chose the epoch" if validation else "no images were left to choose the epoch"


def epoch_line(record):
    """One line after an epoch: how it went and how long it took."""
    error = f", validation error {record['validation_error']:.2f} %" if "validation_error" in record else ""
    losses = f"loss {record['train_loss']:.4g}"
    if "validation_loss" in record:
        losses += f", validation loss {record['validation_loss']:.4g}"
    return f"{record['stage']} epoch {record['epoch']}: {losses}{error}, {duration(record['seconds'])}"


def stage_line(stage, record, test_images=None, folder=None):
    """One line after a stage: how well it does, at which epoch, how long it took and where it lies."""
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
    return f"{stage}: test {measure}, validation {validation} at {epoch}, {duration(record['seconds'])} -> {where}"


def networks_table(rows):
    """The published counts beside ours, by the paper's convention and as built; notes are numbered under the table.

    rows: dicts of network, layers, weights and multiplications, each of the latter two a triple (published, as text or
    None; as the paper counts; as built), and notes, a list of texts
    """
    notes = list(dict.fromkeys(note for row in rows for note in row["notes"]))
    lines = []
    for row in rows:
        (said_w, *weights), (said_m, *multiplications) = row["weights"], row["multiplications"]
        counts = [said_w, *(f"{n:,}" for n in weights), said_m, *map(count, multiplications)]
        numbers = ", ".join(str(notes.index(note) + 1) for note in row["notes"])
        lines.append([row["network"], row["layers"], *counts, *([numbers] if notes else [])])
    conventions = ["paper", "2 pieces", "as built"]
    header = ["network", "layers", *(f"{what}\n{how}" for what in ("weights", "mult.") for how in conventions)]
    numbered = [
        textwrap.fill(note, 95, initial_indent=f"{i:>2}  ", subsequent_indent="    ") for i, note in enumerate(notes, 1)
    ]
    return table(lines, header + ["notes"] * bool(notes)) + ("\n\n" + "\n".join(numbered) if notes else "")
