"""Draws the results of runs and comparisons, and the filters and maps of networks, as PNG files.

No method is named here: order, labels and colours come from the records. matplotlib is imported only where something is
drawn, so a command that draws nothing starts at once.
"""

from pathlib import Path

import numpy as np

from minifit import baselines
from minifit.lab.compare import in_order
from minifit.lab.files import write_atomically

GREY = "#666666"
CURVES = {
    "validation_error": "validation error, %",
    "validation_loss": "validation loss",
    "train_loss": "training loss",
}
MANY = 12  # stages
FIRST, UNJUDGED = "#333333", "#CC79A7"  # the first method; stages that do not classify
# Colours of further methods that colour-blind readers can tell apart: Okabe and Ito's, then Tol's.
PALETTE = ("#D55E00", "#0072B2", "#009E73", "#E69F00", "#56B4E9", "#882255", "#44AA99", "#999933", "#332288")
PALETTE += ("#AA4499", "#117733", "#661100", "#6699CC", "#888888", "#BBAA00", "#A0522D", "#4B0082")


def colour_of(method, methods=()):
    """Returns the colour of a method, the same in every picture: by its place among all methods, then in `methods`."""
    place = in_order([*(m.name for m in baselines.METHODS), *methods, method]).index(method)
    return PALETTE[(place - 1) % len(PALETTE)] if place else FIRST


def colours_of(stages):
    """Returns {stage: colour}: a method's last stage has the method's colour, its earlier stages a lighter tint."""
    methods = [record["method"] for record in stages.values()]
    colours, done = {}, set()
    for stage, record in reversed(stages.items()):
        method = record["method"]
        if "test_error" not in record:
            colours[stage] = UNJUDGED
        else:
            colours[stage] = _lighter(colour_of(method, methods)) if method in done else colour_of(method, methods)
            done.add(method)
    return colours


def _lighter(colour):
    return "#" + "".join(f"{(int(colour[i : i + 2], 16) + 255) // 2:02X}" for i in (1, 3, 5))


def label_of(stage, stages):
    """Returns the method's label for its last stage that classifies, and the stage's name for any other stage."""
    names = [n for n, r in stages.items() if r["method"] == stages[stage]["method"] and "test_error" in r]
    return stages[stage]["label"] if names[-1:] == [stage] else stage.replace("_", " ")


def heading(figure, title, subtitle):
    """Writes a title and a subtitle in the top left corner, placed in inches."""
    width, height = figure.get_size_inches()
    title = title.replace("$", r"\$")  # the name of a file is no formula
    figure.text(0.15 / width, 1 - 0.15 / height, title, fontsize=12, fontweight="bold", va="top")
    figure.text(0.15 / width, 1 - 0.42 / height, subtitle, fontsize=8.5, color=GREY, va="top")


def bare(axes, along="y"):
    axes.tick_params(length=0, labelsize=9, colors="#333333")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis=along, color="#E4E4E4", lw=0.8)


def plot_curves(runs, path, title, stages):
    """Validation error, validation loss and training loss against the epoch, one panel per stage and figure.

    runs: seed -> one dictionary per epoch    stages: {stage: its record} of the stages to draw, in order
    With one seed, a dot marks the chosen epoch. Of many stages only the validation errors are drawn.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    def curves(stage, key):
        return [[(m["epoch"], m[key]) for m in run if m["stage"] == stage and key in m] for run in runs.values()]

    drawn = {(stage, key): seed_curves for stage in stages for key in CURVES if any(seed_curves := curves(stage, key))}
    if len(stages) > MANY:
        drawn = {of: seed_curves for of, seed_curves in drawn.items() if of[1] == "validation_error"} or drawn
    shown, kinds = [s for s in stages if s in {s for s, _ in drawn}], [k for k in CURVES if k in {k for _, k in drawn}]
    if not shown:
        raise ValueError("plot_curves: there is no epoch of any stage")
    columns, colours, wide, tall = min(6, len(shown)), colours_of(stages), 2.75, 2.35
    band = tall * len(kinds) + 0.2
    width, height = 0.7 + wide * columns, 0.85 + band * -(-len(shown) // columns)
    figure = Figure(figsize=(max(width, 6), height))
    several = "one thin line per seed, a thick line for their mean" if len(runs) > 1 else "a dot marks the epoch chosen"
    heading(figure, title, f"{several}; stages that classify share the scale of a row")
    for (stage, key), seed_curves in drawn.items():
        row, column = divmod(shown.index(stage), columns)
        top = 1.15 + band * row + tall * kinds.index(key)
        at = (0.55 + wide * column) / figure.get_figwidth(), 1 - (top + 1.7) / height
        axes = figure.add_axes((*at, 2.2 / figure.get_figwidth(), 1.7 / height))
        if key == next(k for k in kinds if (stage, k) in drawn):
            axes.set_title(label_of(stage, stages), loc="left", fontsize=10, fontweight="bold")
        alike = [drawn[s, key] for s in shown if (s, key) in drawn and "test_error" in stages[s]]
        alike = alike if "test_error" in stages[stage] else [seed_curves]
        floor = log_axis(axes, np.array([y for panel in alike for curve in panel for _, y in curve], float))
        means, style = {}, {"color": colours[stage], "clip_on": False}
        for curve in filter(None, seed_curves):
            for epoch, y in curve:
                means.setdefault(epoch, []).append(max(y, floor))
            if len(runs) > 1:
                axes.plot([epoch for epoch, _ in curve], [max(y, floor) for _, y in curve], lw=0.8, alpha=0.55, **style)
        whole = {epoch: np.mean(ys) for epoch, ys in sorted(means.items()) if len(ys) == sum(map(bool, seed_curves))}
        axes.plot([*whole], [*whole.values()], lw=2, marker="." if len(whole) == 1 else None, **style)
        best = stages[stage]["best_epoch"] if len(runs) == 1 else None
        if best in whole:
            axes.plot(best, whole[best], "o", ms=7, mec="white", mew=1.2, zorder=4, **style)
        name = CURVES[key] + (f", chosen {whole[best]:.2f}" if best in whole and key == "validation_error" else "")
        axes.text(0.98, 0.95, name, transform=axes.transAxes, ha="right", va="top", fontsize=8.5, color=GREY)
        bare(axes)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        if key == kinds[-1]:
            axes.set_xlabel("epoch", fontsize=9)
    save(figure, path)


def log_axis(axes, values):
    """Makes the y axis logarithmic, with readable ticks; returns the floor at which 0 is drawn, with the tick "0"."""
    low, high, floor = _log_limits(values)
    zero = bool((values == 0).any())
    ticks = _log_ticks(1.3 * floor if zero else low, high, least=4)
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.set_yticks([floor] * zero + ticks, ["0"] * zero + [*map(_tick_name, ticks)])
    axes.minorticks_off()
    return floor


def _log_limits(values):
    """Returns the limits of a log axis, at least a factor of 5 apart, and the floor at which zeros are drawn."""
    positive = values[np.isfinite(values) & (values > 0)]
    least, most = (positive.min(), positive.max()) if len(positive) else (1.0, 1.0)
    floor = least / 2 if (values == 0).any() else least
    spare = max(1.15, (5 * floor / most) ** 0.5)
    return floor / spare, most * spare, floor


def _log_ticks(low, high, least=3):
    """Returns ticks at powers of ten over three decades or more, else at 1, 2 and 5, or at more to have `least`."""
    first, last = int(np.floor(np.log10(low))), int(np.ceil(np.log10(high)))
    decades = range(first, last + 1, 1 + (last - first) // 9)  # at most about ten ticks
    for steps in [(1,)] if high >= 1000 * low else [(1, 2, 5), (1, 2, 3, 5, 7), range(1, 10)]:
        ticks = [step * 10.0**d for d in decades for step in steps if low <= step * 10.0**d <= high]
        if len(ticks) >= least:
            break
    return ticks


def _tick_name(tick):
    """Writes 0.001 to 50000 as they are, other ticks as powers of ten."""
    digit, power = f"{tick:.0e}".split("e")
    if -3 <= int(power) < 5:
        return f"{tick:g}"
    return ("$" if digit == "1" else rf"${digit}\cdot") + f"10^{{{int(power)}}}$"


def plot_errors(rows, path, title, methods, published=None):
    """Draws validation and test errors, one line per method and setting, grouped by setting.

    rows: as a comparison has them    methods: name -> {"label"}    published: method -> test error, as diamonds
    """
    from matplotlib.figure import Figure

    published = published or {}
    settings = list(dict.fromkeys((row["group"], row["setting"]) for row in rows))
    lines, y, groups = [], 0.0, {}
    for group, setting in settings:
        setting_rows = [row for row in rows if (row["group"], row["setting"]) == (group, setting)]
        if group and group not in groups:
            groups[group] = y + 0.3 * bool(groups)
            y = groups[group] + 1
        lines += [(y + i, row) for i, row in enumerate(setting_rows)]
        y += len(setting_rows) + 0.3 * (len(setting_rows) > 1)
    parts = [part for part in ("test", "validation") if any(row[f"{part}_errors"] for row in rows)]
    left, wide, tall = 2.9 if len(settings) > 1 else 1.5, 3.6, 0.27 * y + 0.1
    width, height = left + (wide + 0.25) * len(parts) + 0.1, tall + 1.35
    figure = Figure(figsize=(width, height))
    diamonds = "; diamonds: the paper" * any(row["method"] in published for row in rows)
    heading(figure, title, f"one point per seed, one grey line per seed, a bar at the mean{diamonds}")
    for i, part in enumerate(parts):
        axes = figure.add_axes(((left + i * (wide + 0.25)) / width, 0.4 / height, wide / width, tall / height))
        beside, shown, joined = {"transform": axes.get_yaxis_transform(), "va": "center"}, [], {}
        for at, row in lines:
            errors, colour, method = row[f"{part}_errors"], colour_of(row["method"], methods), row["method"]
            for seed, error in zip(row["seeds"], errors, strict=False):
                joined.setdefault((row["group"], row["setting"], seed), []).append((error, at))
            axes.plot(errors, [at] * len(errors), "o", ms=5.5, color=colour, mec="white", mew=0.8, zorder=3)
            if errors:
                mean = np.mean(errors)
                axes.plot([mean] * 2, [at - 0.33, at + 0.33], color=colour, lw=2.2, zorder=2)
                axes.text(1.0, at, f"{mean:.2f}", ha="right", fontsize=8, color=colour, **beside)
            if part == "test" and method in published:
                axes.plot(published[method], at, "D", ms=6, mfc="none", mec=FIRST, zorder=4)
            shown += [*errors, *([published[method]] if part == "test" and method in published else [])]
        for points in joined.values():
            axes.plot(*zip(*points, strict=True), color="#CCCCCC", lw=0.9, zorder=1)
        names = [f"{row['setting']}: " * bool(row["setting"]) + methods[row["method"]]["label"] for _, row in lines]
        axes.set_yticks([at for at, _ in lines], names) if i == 0 else axes.set_yticks([])
        for group, at in groups.items() if i == 0 else ():
            axes.text(-left / wide + 0.04, at, group, fontsize=9, fontweight="bold", **beside)
        axes.set_ylim(y - 0.5, -0.7)
        axes.set_title(f"{part} error, %", loc="left", fontsize=10)
        bare(axes, "x")
        error_axis(axes, shown)
    save(figure, path)


def error_axis(axes, errors):
    """Sets an x axis for errors, with room for means on its right: linear within a factor of 3, else logarithmic."""
    low, high = min(errors), max(errors)
    if high > 3 * low > 0:
        ticks = _log_ticks(low / 1.1, high * 1.1, least=4)
        axes.set_xscale("log")
        axes.set_xlim(low / 1.15, high * 1.05 * (high / low) ** 0.2)
        axes.set_xticks(ticks, map(_tick_name, ticks))
        axes.minorticks_off()
    else:
        spare = max(0.12 * (high - low), 0.05 * high, 0.01)
        axes.set_xlim(low - spare, high + spare + 0.25 * (high - low + spare))
        axes.locator_params(axis="x", nbins=5)


def plot_filters(weights, path, title):
    """Draws the filters of first layers, one mosaic per network; each filter is scaled by its own largest weight.

    weights: name -> w (R, S, C, K).   Three channels are shown as colours, any other number as its mean.
    """
    import matplotlib
    from matplotlib.figure import Figure

    mosaics, captions = [], []
    wide = min(16, max(w.shape[-1] for w in weights.values()))
    for name, w in weights.items():
        R, S, C, K = w.shape
        tiles = np.moveaxis(np.asarray(w, float), -1, 0)
        tiles = tiles if C == 3 else tiles.mean(axis=-1, keepdims=True)
        tiles = tiles / np.maximum(abs(tiles).max(axis=(1, 2, 3), keepdims=True), 1e-30)
        tiles = 0.5 + 0.5 * tiles
        if C != 3:
            tiles = matplotlib.colormaps["RdBu_r"](tiles[..., 0])[..., :3]
        # Every filter fills a square of 64 pixels, so that gaps are alike whatever R and S; a grey frame, since 0 is
        # nearly white.
        rows, columns = (np.arange(64) * n // 64 for n in (R, S))
        mosaic = np.ones((-(-K // wide), wide, 72, 72, 3))
        framed = mosaic.reshape(-1, 72, 72, 3)[:K]
        framed[:, 3:69, 3:69] = 0.8
        framed[:, 4:68, 4:68] = tiles[:, rows][:, :, columns]
        mosaics.append(mosaic.swapaxes(1, 2).reshape(len(mosaic) * 72, wide * 72, 3))
        signs = ", red positive, blue negative"
        shown = {1: signs, 3: ", grey is 0"}.get(C, f", mean of {C} channels{signs}")
        captions.append(f"{name}: {K} filters, {R}x{S}{shown}")

    # Placed by hand, in inches: at 120 dots an inch a tile's 72 pixels are the PNG's own, and frames stay even.
    tile, margin, gap = 0.6, 0.15, 0.4
    heights = [len(mosaic) / 72 * tile for mosaic in mosaics]
    width, height = max(4.5, wide * tile + 2 * margin), 0.65 + sum(heights) + gap * len(mosaics) + margin
    figure = Figure(figsize=(width, height))
    heading(figure, title, "each filter scaled by its largest weight")
    top = height - 0.65
    for mosaic, caption, tall in zip(mosaics, captions, heights, strict=True):
        top -= gap + tall
        axes = figure.add_axes((margin / width, top / height, wide * tile / width, tall / height))
        axes.imshow(mosaic, interpolation="nearest")
        axes.set_title(caption, loc="left", fontsize=10, x=4 / (72 * wide))
        axes.set_axis_off()
    save(figure, path)


def mosaic(maps, columns):
    """Arranges the channels of one image side by side, with NaN between them.

    maps (H, W, C) -> (rows (H + 1) - 1, columns (W + 1) - 1)
    """
    H, W, C = maps.shape
    rows = -(-C // columns)
    tiles = np.full((rows * columns, H + 1, W + 1), np.nan)
    tiles[:C, :H, :W] = np.moveaxis(maps, -1, 0)
    return tiles.reshape(rows, columns, H + 1, W + 1).swapaxes(1, 2).reshape(rows * (H + 1), -1)[:-1, :-1]


def plot_hints(images, hints, before, after, path, title):
    """Draws a few images with the teacher's hint and the regressor's output before and after stage 1, every channel.

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
    about = f"all {k} channels, {P}x{Q} each; the three panels of an image share their colours"
    heading(figure, title, f"{about}; L_HT: eq. 3 for this image")
    colours = matplotlib.colormaps["magma"].with_extremes(bad="white")
    panels = {"the teacher's hint": hints, "regressor before stage 1": before, "after stage 1": after}
    for i in range(n):
        bottom = height - 0.7 - (i + 1) * (tall + 0.35)
        axes = figure.add_axes((0.15 / width, (bottom + (tall - 1.3) / 2) / height, 1.3 / width, 1.3 / height))
        show(axes, images[i])
        low, high = min(hints[i].min(), after[i].min()), max(hints[i].max(), after[i].max())
        scale = {"cmap": colours, "vmin": low, "vmax": high}
        for j, (name, maps) in enumerate(panels.items()):
            axes = figure.add_axes(((1.65 + j * (wide + 0.2)) / width, bottom / height, wide / width, tall / height))
            axes.imshow(mosaic(maps[i], columns), interpolation="nearest", aspect="auto", **scale)
            axes.set_axis_off()
            loss = f": L_HT {0.5 * ((maps[i] - hints[i]) ** 2).sum():.4g}" if j else ""
            axes.set_title(name + loss, loc="left", fontsize=9, pad=3)
    save(figure, path)


def plot_mistakes(images, labels, answers, teacher_answers, sure, path, title, most=30):
    """Draws misclassified images with their label, the student's answer, its probability, and the teacher's answer.

    teacher_answers: its answers; None: there is no teacher
    """
    from matplotlib.figure import Figure

    shown, columns = min(most, len(images)), 10
    rows = max(1, -(-shown // columns))
    width, height = 10.6, 0.85 + 1.55 * rows
    figure = Figure(figsize=(width, height))
    order = np.argsort(-np.asarray(sure), kind="stable")[:shown]
    selection = f"the {shown} surest" if shown < len(images) else "all of them, the surest first"
    teachers = "" if teacher_answers is None else "; T: the teacher's answer"
    heading(figure, title, f"{selection}; label > student's answer, its probability{teachers}")
    for place, i in enumerate(order):
        row, column = divmod(place, columns)
        at = (0.15 + 1.04 * column) / width, 1 - (0.85 + 1.55 * row + 0.95) / height
        axes = figure.add_axes((*at, 0.95 / width, 0.95 / height))
        show(axes, images[i])
        axes.set_title(f"{labels[i]} > {answers[i]}, {sure[i]:.2f}", fontsize=8.5, pad=2)
        if teacher_answers is None:
            continue
        right = "teacher right" if teacher_answers[i] == labels[i] else f"T: {teacher_answers[i]}"
        axes.text(0.5, -0.04, right, transform=axes.transAxes, ha="center", va="top", fontsize=7.5, color=GREY)
    save(figure, path)


def show(axes, image):
    """Shows an image as stored, grey as ink on white. A second channel beside grey, transparency, is not shown."""
    axes.imshow(image[..., 0] if image.shape[-1] <= 2 else image, cmap="Greys", interpolation="nearest")
    axes.set_axis_off()


def save(figure, path):
    """Writes a PNG, whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas = FigureCanvasAgg(figure)
    write_atomically(path, lambda file: canvas.print_figure(file, format="png", dpi=120, facecolor="white"))
