"""Draws the two pictures of the front page, and Figure 2 of the paper with ours: `python results/pictures.py`.

method.svg shows the method: teacher, student, hint, guided layer and regressor. It has a background of its own, and
colours for light and for dark screens. working.png shows the method at work: parts of mnist/default/hints.png, enlarged
for a phone. figure2.png shows accuracy by depth, from the records in cifar10-30m-*/.
"""

from pathlib import Path

import numpy as np

from minifit import baselines
from minifit.lab import plots, tables
from reference import paper

HERE = Path(__file__).parent
WIDTH, HEIGHT = 460, 446
STYLE = """
    text { font: 15px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1B1B1B; }
    .small { font-size: 13px; } .bold { font-weight: 600; }
    .card { fill: #FFFFFF; stroke: #D0D0D0; }
    .teacher { fill: #E9E9E9; stroke: #6A6A6A; } .hint { fill: #CFCFCF; stroke: #3A3A3A; }
    .one { fill: #FBDDC8; stroke: #C65400; } .two { fill: #D3E7F5; stroke: #00639C; }
    .line { fill: none; stroke: #555555; }
    .line1 { fill: none; stroke: #C65400; } .line2 { fill: none; stroke: #00639C; }
    .text1 { fill: #A84600; } .text2 { fill: #00578A; } .head { fill: #555555; }
    rect, path, circle { stroke-width: 1.5; } .line1, .line2 { stroke-width: 2; }
    @media (prefers-color-scheme: dark) {
      text { fill: #F0F0F0; } .card { fill: #16191E; stroke: #3D434B; }
      .teacher { fill: #2C3138; stroke: #9AA2AC; } .hint { fill: #4A515A; stroke: #D5DAE0; }
      .one { fill: #5B2D0F; stroke: #FF9C5A; } .two { fill: #0F3A57; stroke: #74BEEF; }
      .line { stroke: #B4BAC2; } .line1 { stroke: #FF9C5A; } .line2 { stroke: #74BEEF; } .head { fill: #B4BAC2; }
      .text1 { fill: #FFB27F; } .text2 { fill: #9AD2F7; }
    }
"""
TEACHER, STUDENT = 96, 352  # the middles of the two columns
STEP, TALL, BOTTOM = 40, 32, 376  # of the student's layers, from the bottom up; a layer of the teacher is two of them
DIGITS = {
    0: (1018, 50.2),
    2: (957.4, 64.42),
    3: (1031, 51.94),
}  # eq. 3 of these images before and after stage 1, as hints.png says


def box(kind, middle, width, top, height, *lines):
    """A layer: a box with lines of text in it."""
    drawn = f'<rect class="{kind}" x="{middle - width / 2:g}" y="{top}" width="{width}" height="{height}" rx="5"/>'
    first = top + height / 2 + 5 - 9 * (len(lines) - 1)
    return drawn + "".join(text(middle, first + 18 * i, line, "middle") for i, line in enumerate(lines))


def text(x, y, words, anchor="start", kind="", turn=""):
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" class="{kind}"{turn}>{words}</text>'


def arrow(kind, *points):
    """A line through points, (x, y) each, with a head at its end."""
    (x0, y0), (x, y) = points[-2:]
    dx, dy = (x > x0) - (x < x0), (y > y0) - (y < y0)
    ends = (x - 7 * dx - 4 * dy, y - 7 * dy - 4 * dx), (x - 7 * dx + 4 * dy, y - 7 * dy + 4 * dx)
    tip = "M" + " L".join(f"{a:g} {b:g}" for a, b in (ends[0], (x, y), ends[1]))
    return f'<path class="{kind}" d="M{" L".join(f"{a:g} {b:g}" for a, b in points)} {tip}"/>'


def bracket(kind, x, top, bottom, words):
    """A line beside the layers that a stage trains, and its name along it."""
    line = f'<path class="line{kind}" d="M{x - 5} {top} L{x} {top} L{x} {bottom} L{x - 5} {bottom}"/>'
    middle = (top + bottom) / 2
    return line + text(
        x + 17, middle, words, "middle", f"text{kind}", f' transform="rotate(-90 {x + 17:g} {middle:g})"'
    )


def method():
    """The method as SVG."""

    def top(layer):
        return BOTTOM - STEP * layer

    parts = [f'<rect class="card" x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="10"/>']
    # The flow, under the layers: from the image to both outputs.
    for x in (TEACHER, STUDENT):
        parts.append(arrow("line", (224, 396), (x, 396), (x, 368)))
        parts.append(f'<path class="line" d="M{x} 368 L{x} {top(7) - 20}"/>')
    # The teacher: wide and shallow.
    parts.append(box("teacher", TEACHER, 156, top(2), TALL + STEP, "48 maxout"))
    parts.append(box("hint", TEACHER, 156, top(4), TALL + STEP, "48 maxout", "the hint"))
    parts.append(box("teacher", TEACHER, 104, top(6), TALL + STEP, "24 maxout"))
    parts.append(box("teacher", TEACHER, 70, top(7), TALL, "10"))
    # The student: thin and deep.
    for layer, (channels, width) in enumerate([(16, 64)] * 4 + [(12, 50)] * 2 + [(10, 44)], start=1):
        words = "guided" if layer == 4 else str(channels)
        parts.append(box("one" if layer <= 4 else "two", STUDENT, width, top(layer), TALL, words))
    # Stage 1: the guided layer, through the regressor, beside the hint.
    y = top(4) + TALL / 2
    parts.append(box("one", 265, 82, top(4), TALL, "regressor"))
    parts.append(arrow("line1", (STUDENT - 32, y), (307, y)))
    parts.append(f'<circle class="one" cx="203" cy="{y}" r="16"/>' + text(203, y + 5, "L", "middle", "bold"))
    parts.append(arrow("line1", (224, y), (220, y)) + arrow("line1", (TEACHER + 78, y), (186, y)))
    parts.append(text(203, y + 34, "eq. 3", "middle", "text1"))
    # Stage 2: both outputs and the labels.
    y = top(7) - 36
    parts.append(f'<circle class="two" cx="224" cy="{y}" r="16"/>' + text(224, y + 5, "L", "middle", "bold"))
    parts.append(arrow("line2", (TEACHER, y + 16), (TEACHER, y), (207, y)))
    parts.append(arrow("line2", (STUDENT, y + 16), (STUDENT, y), (241, y)))
    parts.append(text(152, y - 8, "softened", "middle", "small head") + text(224, y + 34, "eq. 2", "middle", "text2"))
    parts.append(text(224, y - 24, "labels", "middle", "small head"))
    parts.append(bracket(1, 396, top(4), top(1) + TALL, "stage 1 trains"))
    parts.append(bracket(2, 426, top(7), top(1) + TALL, "then stage 2 trains"))
    parts.append(text(224, 413, "image", "middle", "head small"))
    parts.append(
        text(TEACHER, 418, "teacher", "middle", "bold")
        + text(TEACHER, 435, "wide, shallow, fixed", "middle", "small head")
    )
    parts.append(
        text(STUDENT, 418, "student", "middle", "bold") + text(STUDENT, 435, "thin, deep", "middle", "small head")
    )
    about = "A fixed teacher and a thin, deep student. Stage 1 trains the student up to its guided layer, through a "
    about += (
        "regressor, to give the teacher's hint. Stage 2 trains all of it on labels and the teacher's softened outputs."
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img">'
    return "\n".join([head, f"<title>{about}</title>", f"<style>{STYLE}</style>", *parts, "</svg>", ""])


def working(path):
    """Hints at work: for some images the teacher's hint, and the regressor's output before and after stage 1."""
    from matplotlib.figure import Figure
    from matplotlib.image import imread

    hints = imread(HERE / "mnist" / "default" / "hints.png")
    rows = (124, 394), (744, 1014), (1053, 1323)  # where the panels of these digits lie in it, in pixels
    columns = (30, 160), (197, 559), (581, 943), (965, 1327)
    widths, titles = (0.12, 0.265, 0.265, 0.265), ("image", "hint", "before stage 1", "after stage 1")
    figure = Figure(figsize=(4.6, 4.46), dpi=200, facecolor="white")
    for line, ((above, below), (before, after)) in enumerate(zip(rows, DIGITS.values(), strict=True)):
        captions, at = ("", "of the teacher", f"eq. 3: {before:.0f}", f"eq. 3: {after:.0f}"), 0.02
        for (left, right), wide, title, caption in zip(columns, widths, titles, captions, strict=True):
            axes = figure.add_axes((at, 0.685 - 0.31 * line, wide, 0.25))
            axes.imshow(hints[above:below, left:right], aspect="auto")
            axes.set_axis_off()
            if not line:
                axes.set_title(title, fontsize=9.5, fontweight="bold", pad=5)
            axes.text(0.5, -0.04, caption, transform=axes.transAxes, ha="center", va="top", fontsize=9.5)
            at += wide + 0.02
    figure.savefig(path)


def figure_2(path):
    """Figure 2 at 30M multiplications: test accuracy by depth, one panel per start, and the paper's."""
    from matplotlib.figure import Figure

    starts = {"our start: unit variance": False, "the paper's start: U(-.005, .005)": True}
    labels, depths = {m.name: m.label for m in baselines.METHODS}, [5, 7, 9, 11]
    figure = Figure(figsize=(8.4, 4.1))
    about = "filled: ours, test accuracy of 9,968 images; open: the paper's, read off its figure"
    plots.heading(figure, "CIFAR-10: depth at 30M multiplications", about)
    for column, (start, uniform) in enumerate(starts.items()):
        axes = figure.add_axes((0.065 + 0.485 * column, 0.12, 0.435, 0.66))
        for method in paper.FIGURE_2_POINTS["30M", 5]:
            style, ours = {"color": plots.colour_of(method)}, []
            for depth in depths:
                rows = tables.figures(HERE / f"cifar10-30m-{depth}", method).items()
                accuracies = [100 - np.mean(row["test_errors"]) for name, row in rows if ("init=" in name) == uniform]
                ours += [(depth, accuracy) for accuracy in accuracies]
            published = [(d, p[method]) for d in depths if method in (p := paper.FIGURE_2_POINTS["30M", d])]
            axes.plot(*zip(*published, strict=True), "--D", mfc="none", ms=5, lw=0.8, **style)
            if ours:
                axes.plot(*zip(*ours, strict=True), "-o", ms=6, lw=2, label=labels[method], **style)
        axes.set_title(start, loc="left", fontsize=10, fontweight="bold")
        axes.set_xticks(depths, [f"{depth} layers" for depth in depths])
        axes.set_xlim(4.3, 11.7)
        axes.set_ylim(40, 95)
        plots.bare(axes)
        axes.legend(loc="lower left", frameon=False, fontsize=9)
    plots.save(figure, path)


if __name__ == "__main__":
    (HERE / "method.svg").write_text(method(), encoding="utf-8")
    working(HERE / "working.png")
    figure_2(HERE / "figure2.png")
