"""Pictures of several seeds side by side, and of what the networks of one see, as PNG files."""

import numpy as np

from minifit.lab.plots import COLOURS, LABELS, log_axis, save

GREY = "#666666"


def heading(figure, title, subtitle):
    """A title and a line under it, in inches from the top left corner."""
    width, height = figure.get_size_inches()
    figure.text(0.15 / width, 1 - 0.15 / height, title, fontsize=12, fontweight="bold", va="top")
    figure.text(0.15 / width, 1 - 0.42 / height, subtitle, fontsize=8.5, color=GREY, va="top")


def bare(axes):
    axes.tick_params(length=0, labelsize=9, colors="#333333")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="y", color="#E4E4E4", lw=0.8)


def error_axis(axes, errors):
    """An axis of y for errors: straight where they lie within a factor of 3, else logarithmic."""
    low, high = min(errors), max(errors)
    if high > 3 * low > 0:
        log_axis(axes, np.array(errors, float))
    else:
        spare = max(0.12 * (high - low), 0.05 * high, 0.01)
        axes.set_ylim(low - spare, high + spare)
        axes.locator_params(axis="y", nbins=5)


def plot_errors(methods, path, title, published=None):
    """Test and validation error of every method, each seed a point, joined to the same seed's other points.

    methods: name -> {"test": {seed: error}, "validation": {seed: error}}; an empty dictionary where there is none
    """
    from matplotlib.figure import Figure

    parts = [part for part in ("test", "validation") if any(errors[part] for errors in methods.values())]
    figure = Figure(figsize=(1.0 + 4.4 * len(parts), 4.4))
    heading(
        figure,
        title,
        "a point a seed, a grey line the same seed, a bar the mean" + "; diamonds: the paper" * bool(published),
    )
    published = published or {}
    for i, part in enumerate(parts):
        axes = figure.add_axes(((0.6 + 4.4 * i) / (1.0 + 4.4 * len(parts)), 0.11, 4.0 / (1.0 + 4.4 * len(parts)), 0.66))
        seeds = sorted({seed for errors in methods.values() for seed in errors[part]})
        spread = {seed: 0.3 * (k / max(1, len(seeds) - 1) - 0.5) for k, seed in enumerate(seeds)}
        spots = [spread if len(m[part]) > 1 else dict.fromkeys(seeds, 0.0) for m in methods.values()]
        for seed in seeds:
            joined = [(x + spots[x][seed], m[part][seed]) for x, m in enumerate(methods.values()) if seed in m[part]]
            axes.plot(*zip(*joined, strict=True), color="#CCCCCC", lw=0.9, zorder=1)
        for x, (name, errors) in enumerate(methods.items()):
            values = list(errors[part].values())
            at = [x + spots[x][seed] for seed in errors[part]]
            axes.plot(at, values, "o", ms=6, color=COLOURS[name], mec="white", mew=0.8, zorder=3)
            if values:
                axes.plot([x - 0.27, x + 0.27], [np.mean(values)] * 2, color=COLOURS[name], lw=2.2, zorder=2)
            if part == "test" and name in published:
                axes.plot(x, published[name], "D", ms=6, mfc="none", mec="#333333", zorder=4)
        means = {name: np.mean(list(errors[part].values())) for name, errors in methods.items() if errors[part]}
        said = [LABELS[name] + (f"\nmean {means[name]:.2f}" if name in means else "") for name in methods]
        axes.set_xticks(range(len(methods)), said)
        axes.set_xlim(-0.5, len(methods) - 0.5)
        axes.set_title(f"{part} error, %", loc="left", fontsize=10)
        bare(axes)
        shown = [error for errors in methods.values() for error in errors[part].values()]
        shown += [published[name] for name in methods if name in published and part == "test"]
        error_axis(axes, shown)
    save(figure, path)


def plot_seed_curves(metrics, path, title):
    """Validation loss and error against the epoch, a panel a stage: a thin line a seed, a thick one their mean.

    metrics: stage -> seed -> its epochs, one dictionary each
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows = [("validation_error", "error, %"), ("validation_loss", "loss"), ("train_loss", "training loss")]
    rows = [
        row for row in rows if any(row[0] in m for seeds in metrics.values() for run in seeds.values() for m in run)
    ]
    width, height = 0.7 + 2.75 * len(metrics), 0.75 + 2.35 * len(rows)
    figure = Figure(figsize=(width, height))
    heading(figure, title, "a thin line a seed, the thick one their mean; a row has one scale, but for hints")
    titled = set()
    for i, (key, name) in enumerate(rows):
        shared = [
            m[key] for s, seeds in metrics.items() if s[:4] != "hint" for run in seeds.values() for m in run if key in m
        ]
        for j, (stage, seeds) in enumerate(metrics.items()):
            curves = [(m["epoch"], m[key]) for run in seeds.values() for m in run if key in m]
            at = (0.55 + 2.75 * j) / width, 1 - (0.95 + 2.35 * i + 1.7) / height
            axes = figure.add_axes((*at, 2.2 / width, 1.7 / height))
            if not curves:
                axes.set_axis_off()
                continue
            if stage not in titled:
                axes.set_title(LABELS.get(stage, stage.replace("_", " ")), loc="left", fontsize=10, fontweight="bold")
                titled.add(stage)
            colour, means = COLOURS["hint" if stage[:4] == "hint" else stage], {}
            for epoch, value in curves:
                means.setdefault(epoch, []).append(value)
            for run in seeds.values():
                axes.plot(
                    [m["epoch"] for m in run], [m.get(key, np.nan) for m in run], color=colour, lw=0.8, alpha=0.55
                )
            whole = sorted(epoch for epoch, values in means.items() if len(values) == len(seeds))
            axes.plot(
                whole,
                [np.mean(means[epoch]) for epoch in whole],
                color=colour,
                lw=2.2,
                marker="." if len(whole) < 2 else None,
            )
            axes.text(
                0.98,
                0.95,
                name if key == "train_loss" else f"validation {name}",
                transform=axes.transAxes,
                ha="right",
                va="top",
                fontsize=8.5,
                color=GREY,
            )
            bare(axes)
            log_axis(axes, np.array(shared if stage[:4] != "hint" else [v for _, v in curves], float))
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            if i == len(rows) - 1:
                axes.set_xlabel("epoch", fontsize=9)
    save(figure, path)


def mosaic(maps, columns):
    """The channels of one image side by side, with NaN between them.

    maps (H, W, C) -> (rows (H + 1) - 1, columns (W + 1) - 1)
    """
    H, W, C = maps.shape
    rows = -(-C // columns)
    tiles = np.full((rows * columns, H + 1, W + 1), np.nan)
    tiles[:C, :H, :W] = np.moveaxis(maps, -1, 0)
    return tiles.reshape(rows, columns, H + 1, W + 1).swapaxes(1, 2).reshape(rows * (H + 1), -1)[:-1, :-1]


def plot_hints(images, hints, before, after, path, title):
    """A few images, the teacher's hint of each, and the regressor's output before and after stage 1; every channel.

    images (N, H, W, C)    hints, before, after (N, P, Q, K), one colour scale for all three of an image
    """
    import matplotlib
    from matplotlib.figure import Figure

    n, k = len(images), hints.shape[-1]
    wanted = (1.5 * k) ** 0.5
    columns = min(range(int(k**0.5), int(2 * k**0.5) + 2), key=lambda c: (-k % c, abs(c - wanted)))
    tiles = mosaic(hints[0], columns)
    wide, tall = 3.0, 3.0 * tiles.shape[0] / tiles.shape[1]
    width, height = 0.3 + 1.5 + 3 * (wide + 0.2), 0.7 + n * (tall + 0.35) + 0.1
    figure = Figure(figsize=(width, height))
    P, Q = hints.shape[1:3]
    heading(
        figure,
        title,
        f"all {k} channels, {P}x{Q} each; an image's three panels share their colours; L_HT: eq. 3 of the image alone",
    )
    colours = matplotlib.colormaps["magma"].with_extremes(bad="white")
    for i in range(n):
        bottom = height - 0.7 - (i + 1) * (tall + 0.35)
        axes = figure.add_axes((0.15 / width, (bottom + (tall - 1.3) / 2) / height, 1.3 / width, 1.3 / height))
        show(axes, images[i])
        low, high = min(hints[i].min(), after[i].min()), max(hints[i].max(), after[i].max())
        for j, (name, maps) in enumerate(
            [("hint of the teacher", hints), ("regressor before stage 1", before), ("after stage 1", after)]
        ):
            axes = figure.add_axes(((1.65 + j * (wide + 0.2)) / width, bottom / height, wide / width, tall / height))
            axes.imshow(
                mosaic(maps[i], columns), cmap=colours, vmin=low, vmax=high, interpolation="nearest", aspect="auto"
            )
            axes.set_axis_off()
            loss = f": L_HT {0.5 * ((maps[i] - hints[i]) ** 2).sum():.4g}" if j else ""
            axes.set_title(name + loss, loc="left", fontsize=9, pad=3)
    save(figure, path)


def plot_mistakes(images, labels, said, teacher_said, sure, path, title, most=30):
    """Misread images with their label, what the student said, how sure it was, and what the teacher said."""
    from matplotlib.figure import Figure

    shown, columns = min(most, len(images)), 10
    rows = max(1, -(-shown // columns))
    width, height = 10.6, 0.85 + 1.55 * rows
    figure = Figure(figsize=(width, height))
    order = np.argsort(-np.asarray(sure), kind="stable")[:shown]
    some = f"the {shown} of which the student is surest" if shown < len(images) else "all of them, the surest first"
    heading(figure, title, f"{some}; label > what the student says, its probability; T: what the teacher says")
    for place, i in enumerate(order):
        row, column = divmod(place, columns)
        at = (0.15 + 1.04 * column) / width, 1 - (0.85 + 1.55 * row + 0.95) / height
        axes = figure.add_axes((*at, 0.95 / width, 0.95 / height))
        show(axes, images[i])
        right = "teacher right" if teacher_said[i] == labels[i] else f"T: {teacher_said[i]}"
        axes.set_title(f"{labels[i]} > {said[i]}, {sure[i]:.2f}", fontsize=8.5, pad=2)
        axes.text(0.5, -0.04, right, transform=axes.transAxes, ha="center", va="top", fontsize=7.5, color=GREY)
    save(figure, path)


def plot_studies(studies, path, title):
    """Validation error under every variant of each study, a panel a study, a point a seed.

    studies: {"question", "rows"} as the comparison has them
    """
    from matplotlib.figure import Figure

    columns = min(4, len(studies))
    lines = -(-len(studies) // columns)
    width, height = 0.3 + 3.3 * columns, 0.7 + 2.9 * lines
    figure = Figure(figsize=(width, height))
    heading(figure, title, "a point a seed, a bar the mean of a method; lower is better")
    for place, study in enumerate(studies):
        row, column = divmod(place, columns)
        axes = figure.add_axes(
            ((0.6 + 3.3 * column) / width, 1 - (1.15 + 2.9 * row + 1.75) / height, 2.6 / width, 1.75 / height)
        )
        variants = list(dict.fromkeys(r["variant"] for r in study["rows"]))
        methods = list(dict.fromkeys(r["method"] for r in study["rows"]))
        for r in study["rows"]:
            x = variants.index(r["variant"]) + 0.24 * (methods.index(r["method"]) - (len(methods) - 1) / 2)
            errors, colour = r["validation_errors"], COLOURS[r["method"]]
            axes.plot([x] * len(errors), errors, "o", ms=5, color=colour, mec="white", mew=0.7, zorder=3)
            if errors:
                axes.plot([x - 0.1, x + 0.1], [np.mean(errors)] * 2, color=colour, lw=2, zorder=2)
        axes.set_title(study["question"], loc="left", fontsize=9.5, fontweight="bold", pad=18)
        for k, method in enumerate(methods):
            axes.text(0.3 * k, 1.04, LABELS[method], transform=axes.transAxes, fontsize=8.5, color=COLOURS[method])
        axes.set_xticks(range(len(variants)), [v.replace(", ", "\n") for v in variants])
        axes.set_xlim(-0.6, len(variants) - 0.4)
        bare(axes)
        axes.tick_params(axis="x", labelsize=8)
        errors = [e for r in study["rows"] for e in r["validation_errors"]]
        if errors:
            error_axis(axes, errors)
    save(figure, path)


def show(axes, image):
    """An image as stored, one channel as ink on white."""
    axes.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="Greys", interpolation="nearest")
    axes.set_axis_off()


def first_layers(weights):
    """name -> the first layer's filters w (R, S, C, K) of a network's parameters."""
    return {
        name: next(w for key, w in p.items() if key.startswith("0.") and key.endswith("w"))
        for name, p in weights.items()
    }
