"""A results folder: what the runs of several seeds came to, as JSON, Markdown, HTML and pictures.

RESULTS/<experiment>/<preset>/results.json and its pictures     a comparison
RESULTS/<experiment>/studies.json, studies.png                  the studies
RESULTS/<experiment>/README.md, report.html                     a page of all of these that there are

Tables are made from records alone. Only pictures ask networks anything: hints of validation images, and mistakes.
"""

import numpy as np

from minifit import UserError
from minifit.lab import compare as comparison, gallery, pages, plots, summaries
from minifit.backend import to_host
from minifit.lab.files import read_json, write_json, write_text
from minifit.lab.training import outputs

DIGITS_SHOWN = 4  # images whose hints are drawn


def claim(folder):
    """Makes the folder before anything is trained for it; UserError where it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from None


def write_comparison(runs, folder, command, preset_config, published):
    """Writes the part of a preset; the comparison of its runs."""
    part = comparison.gather(runs, command, preset_config, "all")
    own = folder / part["preset"]
    claim(own)
    whole = [run for run, seed in zip(runs, part["seeds"], strict=True) if not seed["missing"]]
    kept = summaries.OF_WEIGHTS if whole and whole[0].directory.recorded else ()
    for name in summaries.PICTURES:
        if name not in kept:
            (own / name).unlink(missing_ok=True)  # of other runs
    if whole:
        draw(whole, part, own, published)
    write_json(own / "results.json", part)
    return part


def draw(runs, part, folder, published):
    """The pictures of a comparison; filters, hints and mistakes are those of its first seed."""
    title = f"{part['data']}, preset {part['preset']}"
    seeds = [seed for seed in part["seeds"] if not seed["missing"]]
    errors = {
        name: {
            kind: {s["seed"]: e for s in seeds if (e := s["methods"][name][f"{kind}_error"]) is not None}
            for kind in ("test", "validation")
        }
        for name in part["methods"]
    }
    if comparison.one_teacher(seeds):
        errors["teacher"] = {kind: dict(list(points.items())[:1]) for kind, points in errors["teacher"].items()}
    gallery.plot_errors(errors, folder / "errors.png", f"Errors, {title}", published)

    curves = {}
    for run in runs:
        for line in run.directory.metrics():
            curves.setdefault(line["stage"], {}).setdefault(run.seed, []).append(line)
    curves = {name: curves[name] for name in runs[0].needs if name in curves}
    gallery.plot_seed_curves(curves, folder / "curves.png", f"Stages, {title}")

    if runs[0].directory.recorded:
        return  # what is there was drawn while there were weights
    run = runs[0].on_all() if runs[0].config.retrain else runs[0]
    title = f"{title}, seed {run.seed}"
    trained = [name for name in run.needs if name in run.summary()["stages"]]
    kept = {plots.LABELS.get(name, name): run.directory.best(name) for name in trained}
    plots.plot_filters(gallery.first_layers(kept), folder / "filters.png", f"First layer, {title}")
    draw_hints(run, folder / "hints.png", title)
    draw_mistakes(run, folder / "mistakes.png", title)


def draw_hints(run, path, title):
    """The hints of a few images of different labels, from the validation set where there is one."""
    part = "validation" if run.sizes["validation"] else "train"
    images, labels = run.stored[part]
    first = [int(np.flatnonzero(labels == label)[0]) for label in np.unique(labels)][:DIGITS_SHOWN]
    x = run.xp.asarray(run.sets[part].x[first])
    stage = run.stage("hint")
    before, hints = (to_host(network(x)) for network in (stage.network, stage.target))
    run.restore(stage.network.params, "hint")
    after = to_host(stage.network(x))
    if hints.ndim == 4:
        gallery.plot_hints(images[first], hints, before, after, path, f"Hints, {title}, {part} images")


def draw_mistakes(run, path, title):
    """The FitNet's mistakes on test images, and what the teacher makes of them."""
    (images, labels), x = run.stored["test"], run.sets["test"].x
    student, teacher = run.student(), run.teacher()
    run.restore(student.params, "fitnet")
    logits = outputs(student, x, run.workers)
    said = logits.argmax(axis=-1)
    wrong = np.flatnonzero(said != labels)
    likely = np.exp(logits[wrong] - logits[wrong].max(axis=-1, keepdims=True))
    sure = 1 / likely.sum(axis=-1)
    teacher_said = outputs(teacher, x[wrong], run.workers).argmax(axis=-1) if len(wrong) else wrong
    title = f"The FitNet's {len(wrong):,} mistakes of {len(x):,} test images, {title}"
    gallery.plot_mistakes(images[wrong], labels[wrong], said[wrong], teacher_said, sure, path, title)


def parts_of(folder):
    """{preset: comparison} of the parts that the folder has."""
    paths = {preset: folder / preset / "results.json" for preset in summaries.PARTS}
    parts = {preset: read_json(path) for preset, path in paths.items() if path.exists()}
    for preset, part in parts.items():
        if not {"command", "methods", "seeds"} <= part.keys():
            raise UserError(f"{paths[preset]}: not the results of a comparison")
    return parts


def write_studies(found, folder):
    claim(folder)
    write_json(folder / "studies.json", found)


def write_pages(folder, published):
    """README.md, report.html and the picture of the studies.   published: method -> the paper's test error"""
    parts, blocks, some = parts_of(folder), [], None
    if parts:
        some = next(iter(parts.values()))
        blocks = [summaries.overview(parts, published)]
        if published:
            blocks.append(
                ("text", "The paper's figures are those of its Table 4 or 5: one network each, its own teacher.")
            )
    for preset, part in parts.items():
        blocks += summaries.of_part(preset, part)
        here = ((f"{preset}/{name}", caption) for name, caption in summaries.PICTURES.items())
        blocks += [("picture", path, caption) for path, caption in here if (folder / path).exists()]
    if (folder / "studies.json").exists():
        found = read_json(folder / "studies.json")
        some = some or found
        title = f"Studies, {found['data']}: validation error, %"
        gallery.plot_studies(found["studies"], folder / "studies.png", title)
        blocks += [*summaries.of_studies(found), ("picture", "studies.png", "Validation error under every variant.")]
    title = f"{some['experiment']}: {some['student']} from {some['teacher']}"
    write_text(folder / "README.md", pages.markdown(title, blocks))
    write_text(folder / "report.html", pages.html(title, blocks, folder))
