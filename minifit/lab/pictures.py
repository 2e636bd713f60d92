"""Draws the pictures of a run: curves of errors and losses, and filters of first layers."""

import time

from minifit.lab import plots
from minifit.lab.parallel import first

SOON = 10  # seconds before the first pictures
SELDOM = 50  # pictures are drawn again after at least this many times the time that drawing took
DRAWN = 64  # the number of units shown of a fully connected first layer


@first
def draw(run):
    """Draws curves.png and filters.png."""
    draw_curves(run)
    title = f"First layer, {run.sets.data.name}, seed {run.task.seed}"
    plots.plot_filters(first_layers(run), run.directory.folder / "filters.png", title)


def draw_curves(run, stage=None):
    """Draws curves.png for the finished stages and for `stage`, which is being trained."""
    task, directory, shown = run.task, run.directory, run.directory.finished()
    if stage:
        method, _ = run.plan.stages[stage.key]
        now = {"method": method.name, "label": method.label, "best_epoch": None, "last": False}
        shown |= {stage.key: now | ({"test_error": None} if stage.classifies else {})}
    who = "; ".join(task.networks[name].name for name in ("teacher", "student"))
    title = f"{run.sets.data.name}, seed {task.seed}: {who}"
    plots.plot_curves({task.seed: directory.metrics()}, directory.folder / "curves.png", title, shown)


class Look:
    """Draws the pictures after an epoch or a stage, unless drawing would take more than about 2 % of the time."""

    def __init__(self, run):
        self.run, self.next = run, time.perf_counter() + SOON

    @first
    def __call__(self, stage=None):
        """stage: the one that is being trained; None: a stage is finished"""
        began = time.perf_counter()
        if began >= self.next:
            draw_curves(self.run, stage) if stage else draw(self.run)
            took = time.perf_counter() - began
            self.next = began + took + SELDOM * took


def first_layers(run):
    """Returns {stage: filters of its first layer} for the finished stages."""
    filters = {}
    for key in run.directory.finished():
        _, stage = run.plan.stages.get(key, (None, None))
        if stage and stage.below is None:
            first, of = next(name for name in stage.network.params if name.endswith("w")), run.task.networks[stage.of]
            w = run.directory.best(key)[first]
            filters[f"{key} ({of.name})"] = w if w.ndim == 4 else w.reshape(*of.input, -1)[..., :DRAWN]
    return filters
