"""Plots: what a run reports, as PNG files.

matplotlib is imported where it is drawn with, so that a command which draws nothing starts at once.
"""

from pathlib import Path

import numpy as np

from minifit.lab.files import write_atomically
from minifit.lab.report import NAMES

LABELS = NAMES | {"backprop": "back-prop", "kd": "KD"}
# Okabe and Ito's colours stay apart for colour-blind readers.
COLOURS = {
    "teacher": "#333333",
    "teacher_all": "#999999",
    "backprop": "#D55E00",
    "kd": "#0072B2",
    "hint": "#CC79A7",
    "fitnet": "#009E73",
}


def plot_curves(metrics, path, title, chosen=None):
    """Loss and validation error of every stage against the epoch, one PNG; a dot marks the epoch that was kept.

    metrics: one dict an epoch (stage, epoch, train_loss; where there are validation images, validation_loss and, but
    for hints, validation_error)
    chosen: stage -> epoch; by default the first with the smallest validation error, of a hint with the smallest loss
    """
    from matplotlib.figure import Figure

    hints = dict.fromkeys(m["stage"] for m in metrics if _kind(m["stage"]) == "hint")
    runs = {stage: [m for m in metrics if m["stage"] == stage] for stage in {**NAMES, **hints}}
    runs = {stage: run for stage, run in runs.items() if run}
    if not runs:
        raise ValueError("plot_curves: metrics holds no epoch of any stage")
    panels = []
    classifiers = {stage: run for stage, run in runs.items() if stage not in hints}
    if hints:  # a squared distance in feature space: no scale in common with the other losses
        panels.append(("hint loss, stage 1", {stage: runs[stage] for stage in hints}, "validation_loss"))
    if classifiers:
        panels.append(("loss of each stage", classifiers, "validation_loss"))
        if any("validation_error" in m for run in classifiers.values() for m in run):
            panels.append(("validation error, %", classifiers, "validation_error"))

    widths = [0.75 if len(stages) == 1 and name.startswith("hint") else 1 for name, stages, _ in panels]
    figure = Figure(figsize=(1.2 + 4.3 * sum(widths), 4.2), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)
    figure.suptitle(title, x=0.012, ha="left", fontsize=12, fontweight="bold")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False, width_ratios=widths)[0], panels, strict=True):
        _draw_panel(axes, *panel, chosen or {})
    save(figure, path)


def _kind(stage):
    """ "hint" of a second or further hint stage too."""
    return "hint" if stage.startswith("hint_") else stage


def _draw_panel(axes, heading, runs, key, chosen):
    """One panel: curves on a log axis of y, each named at its right end in its own colour."""
    from matplotlib.ticker import MaxNLocator

    keys = (key, "train_loss") if key == "validation_loss" else (key,)
    curves = {(s, k): np.array([m.get(k, np.nan) for m in run], float) for s, run in runs.items() for k in keys}
    low, high, floor = _log_limits(np.concatenate(list(curves.values())))
    last = max(m["epoch"] for run in runs.values() for m in run)
    ends = []
    for (stage, k), y in curves.items():
        epochs = np.array([m["epoch"] for m in runs[stage]])
        y = np.maximum(y, floor)
        style = {"color": COLOURS[_kind(stage)], "clip_on": False, "zorder": 3}
        if k == "train_loss":
            axes.plot(epochs, y, "--", lw=1, alpha=0.7, marker="_" if len(y) == 1 else None, **style)
            continue
        axes.plot(epochs, y, "-", lw=1.8, **style)
        measures = [m.get("validation_error", m.get("validation_loss", np.nan)) for m in runs[stage]]
        kept = epochs[np.nan_to_num(measures, nan=np.inf).argmin()]
        best = np.flatnonzero(epochs == chosen.get(stage, kept))
        axes.plot(epochs[best], y[best], "o", ms=7, mec="white", mew=1.2, **(style | {"zorder": 4}))
        shown = y if np.isfinite(y).any() else curves.get((stage, "train_loss"), y)
        finite = shown[np.isfinite(shown)]
        value = f", best {curves[stage, k][best[0]]:.2f}" if key == "validation_error" and len(best) else ""
        ends.append((finite[-1] if len(finite) else high, LABELS.get(stage, stage) + value, COLOURS[_kind(stage)]))

    # Labels keep the order of the curves' ends and are pushed apart until they can be read.
    ends.sort()
    gap = 0.055
    at = [np.log(end / low) / np.log(high / low) for end, _, _ in ends]
    for i in range(1, len(at)):
        at[i] = max(at[i], at[i - 1] + gap)
    for i in reversed(range(len(at))):
        at[i] = min(at[i], 1 - gap * (len(at) - 1 - i))
    for y, (_, text, colour) in zip(at, ends, strict=True):
        axes.text(1.03, y, text, color=colour, transform=axes.transAxes, va="center", fontsize=9)

    dashes = "solid: validation, dashed: training" if "train_loss" in keys else "dot: the epoch kept"
    axes.set_title(heading, loc="left", fontsize=10, pad=20)
    axes.text(0, 1.03, dashes, transform=axes.transAxes, fontsize=8, color="#666666")
    axes.set_xlabel("epoch", fontsize=9)
    axes.set_xlim(*((1, last) if last > 1 else (0.5, 1.5)))
    if last > 1:
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    else:
        axes.set_xticks([1])
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    if any((y == 0).any() for y in curves.values()):  # a log axis has no 0: the floor stands for it, and says so
        ticks = _log_ticks(1.3 * floor, high)
        axes.set_yticks([floor, *ticks], ["0", *map(_tick_name, ticks)])
    else:
        ticks = _log_ticks(low, high)
        axes.set_yticks(ticks, map(_tick_name, ticks))
    axes.minorticks_off()
    axes.tick_params(length=0, labelsize=9, colors="#333333")
    axes.grid(axis="y", color="#E4E4E4", lw=0.8)
    axes.spines[["top", "right", "left"]].set_visible(False)


def log_axis(axes, values):
    """A log axis of y for these values, with ticks that can be read; zeros are drawn nowhere."""
    low, high, _ = _log_limits(values)
    ticks = _log_ticks(low, high, least=4)
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.set_yticks(ticks, map(_tick_name, ticks))
    axes.minorticks_off()


def _log_limits(values):
    """low, high and a floor that zeros are drawn at, for a log axis; at least a factor of 5 from low to high."""
    positive = values[np.isfinite(values) & (values > 0)]
    least, most = (positive.min(), positive.max()) if len(positive) else (1.0, 1.0)
    floor = least / 2 if (values == 0).any() else least
    spare = max(1.15, (5 * floor / most) ** 0.5)
    return floor / spare, most * spare, floor


def _log_ticks(low, high, least=3):
    """Ticks at powers of ten over three decades or more, else at 1, 2 and 5 and, for `least` at least, at more."""
    first, last = int(np.floor(np.log10(low))), int(np.ceil(np.log10(high)))
    decades = range(first, last + 1, 1 + (last - first) // 9)  # at most about ten ticks
    for steps in [(1,)] if high >= 1000 * low else [(1, 2, 5), (1, 2, 3, 5, 7), range(1, 10)]:
        ticks = [step * 10.0**d for d in decades for step in steps if low <= step * 10.0**d <= high]
        if len(ticks) >= least:
            break
    return ticks


def _tick_name(tick):
    """0.001 to 50000 as they are, others as powers of ten."""
    digit, power = f"{tick:.0e}".split("e")
    if -3 <= int(power) < 5:
        return f"{tick:g}"
    return ("$" if digit == "1" else rf"${digit}\cdot") + f"10^{{{int(power)}}}$"


def plot_filters(weights, path, title):
    """Filters of the first layer, a mosaic for each network; every filter is scaled by its own largest weight.

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
        shown = {1: ", red > 0 > blue", 3: ", grey = 0"}.get(C, f", mean of {C} channels, red > 0 > blue")
        captions.append(f"{name}: {K} filters, {R}x{S}{shown}")

    # Placed by hand, in inches: at 120 dots an inch a tile's 72 pixels are the PNG's own, and frames stay even.
    tile, margin, heading = 0.6, 0.15, 0.4
    heights = [len(mosaic) / 72 * tile for mosaic in mosaics]
    width, height = max(4.5, wide * tile + 2 * margin), 0.65 + sum(heights) + heading * len(mosaics) + margin
    figure = Figure(figsize=(width, height))
    figure.text(margin / width, 1 - 0.3 / height, title, fontsize=12, fontweight="bold")
    legend = "each filter scaled by its largest weight"
    figure.text(margin / width, 1 - 0.5 / height, legend, fontsize=8, color="#666666")
    top = height - 0.65
    for mosaic, caption, tall in zip(mosaics, captions, heights, strict=True):
        top -= heading + tall
        axes = figure.add_axes((margin / width, top / height, wide * tile / width, tall / height))
        axes.imshow(mosaic, interpolation="nearest")
        axes.set_title(caption, loc="left", fontsize=10, x=4 / (72 * wide))
        axes.set_axis_off()
    save(figure, path)


def save(figure, path):
    """Writes a PNG, whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas = FigureCanvasAgg(figure)
    write_atomically(path, lambda partial: canvas.print_figure(partial, format="png", dpi=120, facecolor="white"))
