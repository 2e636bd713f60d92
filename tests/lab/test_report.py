"""The tables to the letter, and plots that survive every shape a run can take."""

import ast
import os
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from minifit import UserError
from minifit.lab import plan, plots, report

PAPER = {"teacher": 0.55, "backprop": 1.9, "kd": 0.65, "fitnet": 0.51}


def text(block):
    return textwrap.dedent(block).strip("\n")


NAMED = {
    "teacher": ("teacher", "teacher", "teacher", "labels"),
    "teacher_all": ("teacher", "teacher", "teacher", "labels"),
    "backprop": ("backprop", "standard back-propagation", "back-prop", "labels"),
    "kd": ("kd", "knowledge distillation", "KD", "eq. 2"),
    "hint": ("fitnet", "FitNet", "FitNet", "eq. 3"),
    "fitnet": ("fitnet", "FitNet", "FitNet", "eq. 2"),
}


def record(**changes):
    sizes = {"weights": 29944, "multiplications": 5310648, "seconds": 246.0, "file": "fitnet.h5"}
    losses = {"validation_loss": 0.04, "test_loss": 0.03, "validation_error": 0.98, "test_error": 0.93}
    return {"epochs": 14, "best_epoch": 12} | sizes | losses | changes


def hint_record():
    record_ = record(epochs=10, best_epoch=9, seconds=72.0, validation_loss=12.51, test_loss=12.344, file="hint.h5")
    return {key: value for key, value in record_.items() if not key.endswith("_error")}


def summary(**stages):
    return {
        "experiment": "mnist",
        "preset": "default",
        "data": "MNIST",
        "seed": 0,
        "test_images": 10000,
        "stages": {name: named(name) | stages[name] for name in NAMED if name in stages},
    }


def named(stage):
    return dict(zip(("method", "title", "label", "loss"), NAMED[stage], strict=True))


def stages_of(metrics):
    """The records of the stages in some metrics."""
    found = {}
    for stage in NAMED:
        own = [m for m in metrics if m["stage"] == stage]
        key = "validation_loss" if stage == "hint" else "validation_error"
        if own:
            best = np.nan_to_num([m[key] for m in own], nan=np.inf).argmin()
            found[stage] = named(stage) | {"best_epoch": own[best]["epoch"]}
            found[stage] |= {} if stage == "hint" else {"test_error": 1.0}
    return found


def epochs(stage, errors, losses=None):
    losses = losses or [2.0 / (i + 1) for i in range(len(errors))]
    lines = [
        {"stage": stage, "epoch": i, "train_loss": loss, "validation_loss": 1.1 * loss, "lr": 5e-4, "seconds": 1.0}
        for i, loss in enumerate(losses, 1)
    ]
    if stage != "hint":
        lines = [line | {"validation_error": error} for line, error in zip(lines, errors, strict=True)]
    return lines


def size_of_png(path):
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n") and data[12:16] == b"IHDR" and data[-8:-4] == b"IEND"
    return struct.unpack(">II", data[16:24])


def test_a_duration_reads_naturally_and_never_shows_sixty_of_anything():
    seconds = [0, 0.44, 9.94, 9.95, 38.4, 59.6, 125, 3599.4, 3599.6, 3780, 100000]
    wanted = ["0.0 s", "0.4 s", "9.9 s", "10 s", "38 s", "1 min 00 s", "2 min 05 s", "59 min 59 s", "1 h 00 min"]
    assert [report.duration(s) for s in seconds] == [*wanted, "1 h 03 min", "27 h 47 min"]


def test_a_count_has_two_decimals_and_a_unit():
    numbers = [0, 999, 1000, 29944, 999_999, 28_673_136, 725_090_000, 1.2e9]
    assert [report.count(n) for n in numbers] == ["0", "999", "1.00K", "29.94K", "1.00M", "28.67M", "725.09M", "1.20G"]


def test_a_trimmed_count_claims_no_digit_that_was_not_published():
    assert [report.count(n, trim=True) for n in (361_000, 9e6, 1_600_000, 100_000)] == ["361K", "9M", "1.6M", "100K"]


def test_a_table_aligns_numbers_to_the_right_and_words_to_the_left():
    rows = [["teacher", 360816, "6 min 52 s"], ["FitNet", None, "38 s"]]
    assert report.table(rows, ["method", "weights", "time"]) == text("""
        method   weights        time
        -------  -------  ----------
        teacher   360816  6 min 52 s
        FitNet         -        38 s
    """)


def test_a_table_lets_a_header_sit_on_its_rule_and_a_tall_cell_hang_from_its_row():
    assert report.table([["a\nb", 1], ["c", 22]], ["x", "test\nerror"]) == text("""
            test
        x  error
        -  -----
        a      1
        b
        c     22
    """)


def test_a_markdown_table_keeps_every_cell_on_one_line():
    rows = [["a\nb", 1], ["c|d", None]]
    assert report.table(rows, ["x", "test\nerror"], markdown=True) == text(r"""
        | x | test error |
        | --- | ---: |
        | a b | 1 |
        | c\|d | - |
    """)


def test_in_a_narrow_terminal_the_rows_of_a_table_stand_below_one_another(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "30")
    rows = [["teacher", "360,816", None, "1\n2"], ["back-propagation", "29,944", 4.12, "3"]]
    assert report.table(rows, ["method", "weights", "test\nerror %", "epoch"]) == text("""
        teacher
          weights 360,816; epoch 1, 2
        back-propagation
          weights 29,944; test error %
          4.12; epoch 3
    """)
    assert report.table([[0, "0.51"]], ["test error of seed", "knowledge distillation"]) == text("""
        test error of seed 0
          knowledge distillation 0.51
    """)
    told = report.table([["hint", "layers\n1-4", "the thin MNIST FitNet"]], ["stage", "part", "trains"])
    assert told == "hint\n  part layers 1-4; trains the\n  thin MNIST FitNet"
    monkeypatch.setenv("COLUMNS", "80")
    assert "-------" in report.table(rows, ["method", "weights", "test\nerror %", "epoch"])


def test_long_lines_break_between_words_and_tables_do_not():
    row = "method   weights        time"
    assert report.fitted(f"kd epoch 1: loss 2, validation 2.2\n{row}\n  runs/0/kd.h5", 20) == text(f"""
        kd epoch 1: loss 2,
          validation 2.2
        {row}
          runs/0/kd.h5
    """)


def test_a_table_without_rows_is_its_header():
    assert report.table([], ["method", "epoch"]) == "method  epoch\n------  -----"


def test_the_results_are_one_row_per_method_beside_the_papers_figures():
    teacher = record(weights=360816, test_error=0.58, validation_error=0.62, seconds=412.0, epochs=25, best_epoch=20)
    stages = {"fitnet": record(), "hint": hint_record(), "teacher": teacher, "backprop": record(test_error=1.0)}
    assert report.results_table(summary(**stages), PAPER) == text("""
                                               test  paper  validation     epoch
        method                     weights  error %      %     error %    chosen  minutes
        -------------------------  -------  -------  -----  ----------  --------  -------
        teacher                    360,816     0.58   0.55        0.62  20 of 25      6.9
        standard back-propagation   29,944     1.00   1.9         0.98  12 of 14      4.1
        FitNet                      29,944     0.93   0.51        0.98   9 of 10      5.3
                                                                        12 of 14

        MNIST, 10,000 test images, seed 0, preset default.
        The paper's figures come from its own teacher and up to 500 epochs per stage.
        Standard error of a test error of 0.93 %: 0.10.
        FitNet: 1.2 for hint and 4.1 for fitnet, in minutes.
    """)


def test_a_teacher_trained_on_all_images_is_one_row_with_its_last_test_error():
    later = record(test_error=0.5, epochs=7, best_epoch=7)
    del later["validation_error"]
    lines = report.results_table(summary(teacher=record(), teacher_all=later)).splitlines()
    assert (
        [line.split()[0] for line in lines[3:5]] == ["teacher", "7"] and " 0.50 " in lines[3] and " 0.98 " in lines[3]
    )


@pytest.mark.parametrize("published", [None, {}, dict.fromkeys(PAPER)])
def test_without_published_figures_the_papers_column_is_left_out(published):
    header = report.results_table(summary(fitnet=record()), published).split("---")[0]
    assert "paper" not in header and "validation" in header


def test_short_runs_are_told_in_seconds():
    got = report.results_table(summary(kd=record(seconds=4.06)))
    assert "seconds" in got and "minutes" not in got and "12 of 14      4.1" in got


def test_the_results_need_neither_a_stage_nor_a_test_error():
    for got in (report.results_table(summary(), PAPER), report.results_table(summary(hint=hint_record()))):
        assert got.startswith("method  weights") or "method" in got.split("-")[0]
        assert "Standard error" not in got and "MNIST, 10,000 test images" in got


def test_the_results_name_data_seed_preset_and_the_standard_error():
    got = summary(fitnet=record()) | {"preset": "paper"}
    assert report.results_table(got, PAPER).splitlines()[-2:] == [
        "MNIST, 10,000 test images, seed 0, preset paper.",
        "Standard error of a test error of 0.93 %: 0.10.",
    ]


def test_a_stage_is_told_in_two_lines_of_80_columns():
    assert report.stage_line("fitnet", record(), 10000, "runs/mnist/seed0") == (
        "fitnet: test error 0.93 % (93 of 10,000), validation 0.98 % at epoch 12 of 14\n"
        "  4 min 06 s, runs/mnist/seed0/fitnet.h5"
    )


def test_a_hint_stage_is_told_by_its_loss():
    wanted = "hint: test loss 12.34 (10,000 images), validation 12.51 at epoch 9 of 10\n  1 min 12 s, hint.h5"
    assert report.stage_line("hint", hint_record(), 10000) == wanted


def test_an_epoch_is_told_in_one_line_and_a_hint_has_no_error():
    (kd,), (hint,) = epochs("kd", [1.25], [2.0]), epochs("hint", [None], [900.0])
    assert report.epoch_line(kd) == "kd epoch 1: loss 2, validation 2.2, error 1.25 %, 1.0 s"
    assert report.epoch_line(hint) == "hint epoch 1: loss 900, validation 990, 1.0 s"
    long = {"stage": "backprop", "epoch": 16, "train_loss": 0.002643, "validation_loss": 0.02607, "seconds": 3599}
    assert len(report.epoch_line(long | {"validation_error": 10.47})) <= 80


def test_a_plan_adds_up_only_what_is_left():
    student = {"weights": 29944, "multiplications": 5310648, "epochs": 30}
    rows = [
        {"stage": "teacher", "trains": "teacher", "loss": "H", "estimate": 412.0, "state": "finished"},
        {"stage": "hint", "trains": "MNIST FitNet, blocks 1-4 + regressor", "loss": "eq. 3", "estimate": 60.0}
        | student,
        {"stage": "fitnet", "trains": "MNIST FitNet", "loss": "eq. 2", "estimate": 65.0, "state": "at epoch 3"}
        | student,
    ]
    rows[1]["state"] = "to train"
    rows = [row | student for row in rows]
    assert plan.plan_table(rows) == text("""
        stage    trains                loss   weights  mult.  epochs  time
        -------  --------------------  -----  -------  -----  ------  ----------
        teacher  teacher               H       29,944  5.31M      30  finished
        hint     MNIST FitNet, blocks  eq. 3   29,944  5.31M      30  1 min 00 s
                 1-4 + regressor
        fitnet   MNIST FitNet          eq. 2   29,944  5.31M      30  1 min 05 s
                                                                      at epoch 3

        Left to train: about 2 min 05 s.
    """)
    assert plan.plan_table(rows[:1]).endswith("Nothing is left to train.")


def test_networks_are_counted_twice_beside_the_published_counts_and_equal_notes_share_a_number():
    rows = [
        {"network": "MNIST teacher", "layers": 4, "weights": ("361K", 360816, 360816), "notes": []},
        {"network": "FitNet 3", "layers": 13, "weights": ("1.6M", 1503304, 1695304), "notes": ["fc", "as printed"]},
        {"network": "SVHN FitNet", "layers": 13, "weights": (None, 1503304, 1695304), "notes": ["fc"]},
    ]
    rows[0] |= {"multiplications": (None, 28673136, 28673136)}
    rows[1] |= {"multiplications": ("392M", 323_946_376, 324_138_376)}
    rows[2] |= {"multiplications": (None, 323_946_376, 324_138_376)}
    assert report.networks_table(rows) == text("""
                               weights    weights    weights  mult.     mult.     mult.
        network        layers    paper   2 pieces   as built  paper  2 pieces  as built  notes
        -------------  ------  -------  ---------  ---------  -----  --------  --------  -----
        MNIST teacher       4     361K    360,816    360,816      -    28.67M    28.67M
        FitNet 3           13     1.6M  1,503,304  1,695,304   392M   323.95M   324.14M  1, 2
        SVHN FitNet        13        -  1,503,304  1,695,304      -   323.95M   324.14M  1

         1  fc
         2  as printed
    """)
    assert "note" not in report.networks_table(rows[:1])


RUNS = {
    "all stages": [
        *epochs("teacher", [4.0, 1.0, 0.8]),
        *epochs("backprop", [88.65, 30.0]),
        *epochs("kd", [9.0, 2.0, 1.0, 1.1]),
        *epochs("hint", [None] * 3, [900.0, 30.0, 20.0]),
        *epochs("fitnet", [3.0, 0.9, 0.7, 0.7]),
    ],
    "one epoch": epochs("teacher", [3.0]) + epochs("hint", [None]),
    "hints alone": epochs("hint", [None] * 4),
    "a teacher alone": epochs("teacher", [3.0, 2.0]),
    "some zeros": epochs("teacher", [3.0, 0.0, 0.5, 0.0]),
    "nothing but zeros": epochs("teacher", [0.0, 0.0], [0.0, 0.0]),
    "a constant": epochs("backprop", [88.65] * 5, [2.3026] * 5),
    "one that diverged": epochs("kd", [10.0, 88.65, 88.65], [1.0, np.inf, np.nan]),
    "nothing but NaN": epochs("kd", [90.0], [np.nan]),
    "tiny losses over many decades": epochs("hint", [None] * 3, [1e-3, 1e-9, 1e-15]),
}


ONE = stages_of(RUNS["one epoch"])


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.filterwarnings("error", "ignore::ResourceWarning")  # of files that earlier tests had open
def test_curves_are_drawn_for(name, tmp_path):
    path = tmp_path / "curves.png"
    plots.plot_curves({0: RUNS[name]}, path, name, stages_of(RUNS[name]))
    width, height = size_of_png(path)
    stages = {m["stage"] for m in RUNS[name]}
    assert (width, height) == (
        max(720, round(120 * (0.7 + 2.75 * len(stages)))),
        round(120 * (1.05 + 2.35 * (3 if stages - {"hint"} else 2))),
    )
    assert [entry.name for entry in tmp_path.iterdir()] == ["curves.png"]


def drawn(monkeypatch, *runs, stages=None):
    """{(stage's label, figure): its axes} of the curves of some seeds."""
    figures, found, column = [], {}, {}
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure))
    plots.plot_curves(dict(enumerate(runs)), "unused", "title", stages or stages_of(runs[0]))
    for axes in figures[0].axes:
        label = column.setdefault(round(axes.get_position().x0, 3), axes.get_title(loc="left"))
        found[label, axes.texts[0].get_text().partition(",")[0]] = axes
    return found


def dots(axes):
    return {line.get_color(): line.get_xydata().tolist() for line in axes.lines if line.get_marker() == "o"}


def test_the_dot_is_the_epoch_of_the_record(monkeypatch):
    metrics = epochs("kd", [2.0, 1.0, 1.0, 1.5], [4.0, 3.0, 2.0, 1.0]) + epochs("hint", [None] * 3, [3.0, 1.0, 2.0])
    found = drawn(monkeypatch, metrics)
    assert dots(found["KD", "validation error"]) == {"#0072B2": [[2, 1.0]]}
    assert dots(found["hint", "validation loss"]) == {plots.UNJUDGED: [[2, 1.1]]}
    assert found["KD", "validation error"].texts[0].get_text() == "validation error, %, chosen 1.00"
    third = {"kd": named("kd") | {"test_error": 1.0, "best_epoch": 3}}
    found = drawn(monkeypatch, metrics[:4], stages=third)
    assert dots(found["KD", "validation error"]) == {"#0072B2": [[3, 1.0]]}


def test_several_seeds_have_a_thin_line_each_and_a_thick_mean_of_the_epochs_that_all_have(monkeypatch):
    found = drawn(monkeypatch, epochs("kd", [2.0, 1.0, 0.5]), epochs("kd", [4.0, 2.0]))
    *thin, thick = (line.get_xydata().tolist() for line in found["KD", "validation error"].lines)
    assert thin == [[[1, 2.0], [2, 1.0], [3, 0.5]], [[1, 4.0], [2, 2.0]]] and thick == [[1, 3.0], [2, 1.5]]


def test_a_method_has_one_colour_whichever_others_are_drawn():
    wanted = {"teacher": "#333333", "backprop": "#D55E00", "kd": "#0072B2", "fitnet": "#009E73"}
    assert {name: plots.colour_of(name) for name in wanted} == wanted
    records = {name: named(name) | {"test_error": 1.0} for name in ("teacher", "teacher_all", "fitnet")}
    records = records | {"hint": named("hint")}
    assert plots.colours_of(records) == {
        **{"teacher": "#999999", "teacher_all": "#333333"},
        **{"fitnet": "#009E73", "hint": "#CC79A7"},
    }
    assert plots.colour_of("unheard of", ["unheard of"]) not in wanted.values()


def test_an_error_of_zero_is_drawn_at_a_floor_that_says_zero(monkeypatch):
    error = drawn(monkeypatch, RUNS["some zeros"])["teacher", "validation error"]
    floor = error.lines[0].get_ydata()[1]
    low, high = error.get_ylim()
    assert low < floor < 0.5 < high
    assert error.get_yticks()[0] == floor and error.get_yticklabels()[0].get_text() == "0"


def test_every_tick_of_a_log_axis_is_named_by_its_own_value(monkeypatch):
    hint = drawn(monkeypatch, epochs("hint", [None] * 2, [5e-4, 5e-3]))["hint", "training loss"]
    for tick, label in zip(hint.get_yticks(), hint.get_yticklabels(), strict=True):
        name = label.get_text().strip("$").replace("10^{", "1e").replace(r"\cdot1", "").rstrip("}")
        assert float(name) == pytest.approx(tick)


@pytest.mark.parametrize("low", [1.0, 2.1, 3.01, 5.1, 7.1, 9.9, 41.0])
@pytest.mark.parametrize("ratio", [1.0, 2.0, 4.9, 12.0, 100.0, 999.0, 1e4, 1e25])
@pytest.mark.parametrize("end", [[], [0.0]])
def test_a_log_axis_has_at_least_three_ticks(low, ratio, end):
    from matplotlib.figure import Figure

    axes = Figure().add_axes((0, 0, 1, 1))
    plots.log_axis(axes, np.array([low * ratio, low, *end]))
    ticks, (bottom, top) = axes.get_yticks(), axes.get_ylim()
    assert 3 <= len(ticks) <= 15 and bottom <= min(ticks) and max(ticks) <= top and len(set(ticks)) == len(ticks)


def test_curves_without_an_epoch_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no epoch"):
        plots.plot_curves({0: []}, tmp_path / "curves.png", "nothing", {})


@pytest.mark.parametrize("C", [1, 2, 3])
@pytest.mark.filterwarnings("error", "ignore::ResourceWarning")  # of files that earlier tests had open
def test_filters_are_drawn_at_one_scale_and_left_unchanged(C, tmp_path):
    rng = np.random.default_rng(0)
    weights = {"teacher": rng.normal(size=(8, 7, C, 37)).astype(np.float32), "student": np.zeros((3, 3, C, 5))}
    for w in weights.values():
        w.flags.writeable = False
    plots.plot_filters(weights, tmp_path / "filters.png", "filters")
    width, height = size_of_png(tmp_path / "filters.png")
    assert width == 16 * 72 + 36 and height == 78 + 4 * 72 + 2 * 48 + 18


def test_a_positive_weight_is_red_a_negative_one_blue_and_scale_does_not_matter(tmp_path):
    import matplotlib.image

    w = np.array([1.0, -1.0]).reshape(1, 2, 1, 1)
    pictures = []
    for scale in (1.0, 1e-6):
        plots.plot_filters({"w": scale * w}, tmp_path / "new" / "w.png", "one")
        pictures.append(matplotlib.image.imread(tmp_path / "new" / "w.png")[-18 - 36, :, :3])
    assert np.array_equal(*pictures)
    left, right = pictures[0][18 + 20], pictures[0][18 + 52]
    assert left[0] > 3 * left[2] and right[2] > 3 * right[0]


def test_the_same_metrics_give_the_same_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        plots.plot_curves({0: RUNS["one epoch"]}, tmp_path / name, r"the file a$\x$.npz, which is no formula", ONE)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "curves.png"
    plots.plot_curves({0: RUNS["one epoch"]}, path, "first", ONE)
    before = path.read_bytes()

    def fail(source, target):
        assert Path(source).parent == path.parent and size_of_png(Path(source))
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match="disk full"):
        plots.plot_curves({0: RUNS["one epoch"]}, path, "second", ONE)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_matplotlib_waits_until_something_is_drawn_and_pyplot_is_never_used():
    code = "import sys, minifit.lab.plots; sys.exit('matplotlib' in sys.modules)"
    root = Path(plots.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
    names = {node.attr for node in ast.walk(ast.parse(Path(plots.__file__).read_text())) if hasattr(node, "attr")}
    assert "pyplot" not in Path(plots.__file__).read_text() and "print" not in names


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_pictures_of_1_to_4_channels_are_drawn(channels, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 4, channels), np.uint8)
    for name, teacher_answers in (("a.png", [0, 0]), ("b.png", None)):
        plots.plot_mistakes(images, [0, 1], [1, 0], teacher_answers, [0.9, 0.8], tmp_path / name, "two")
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()
