"""Measures how fast networks classify in minifit, onnxruntime and, if it is installed, PyTorch.   FitNets, Table 5

Every engine turns images as bytes into probabilities. minifit uses processes, as in training; the others use threads.
The networks of a table take turns, so other work on the machine slows all of them. A speed-up is the median, over the
turns, of the teacher's time divided by the student's.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from minifit import UserError, experiments, files, model, networks, stages
from minifit.composites import Mean, leaves
from minifit.data.preprocessing import Unit
from minifit.lab import export, publish, report, teachers
from minifit.lab.parallel import Team, available, shared
from minifit.layers import Conv2d, Dropout, Flatten, GlobalAverage, Linear, Maxout, MaxPool2d, ReLU, Sigmoid
from minifit.model import Model, describe
from minifit.schema import ANY, check
from reference import paper

BATCHES = 1, 128
TOLD = {
    **{"identity?": {"settings?": {"networks?": {"teacher?": {"*": ANY}, "*": ANY}, "*": ANY}, "*": ANY}},
    **{"figures?": stages.FIGURES, "heading?": stages.HEADING, "*": ANY},
}
TURNS = 3, 25  # the smallest and the largest number of turns


@dataclass(frozen=True)
class Contender:
    """A network of a table."""

    name: str
    model: Model | None  # None: an ONNX model, which onnxruntime alone runs
    onnx: bytes
    input: tuple
    error: float | None = None  # the test error in percent
    digest: str | None = None  # of a given teacher, as the settings of a run record it
    classes: int | None = None

    @property
    def channels(self):
        return self.input[2] if self.model else min(self.input[0], self.input[2])  # first or last in an ONNX model

    @property
    def counts(self):
        """(layers, weights, multiplications); for an ONNX model (None, the count of its constants, None)."""
        if self.model is None:
            graph = export.library().load_from_string(self.onnx).graph
            constants = [
                a.t for node in graph.node if node.op_type == "Constant" for a in node.attribute if a.HasField("t")
            ]
            return None, sum(int(np.prod(tensor.dims)) for tensor in (*graph.initializer, *constants)), None
        counts = networks.count(self.model.layers, np.zeros((0, *self.input), np.float32))
        return sum(w > 0 for w, _ in counts), sum(w for w, _ in counts), sum(m for _, m in counts)


def drawn(network, errors=None):
    """Builds a network with random weights; it is as fast as with trained ones.

    errors: {number of weights: recorded test error}, as the teacher that was trained may have another width
    """
    layers = networks.build(network)
    networks.initialise(layers, np.random.default_rng(0))
    made = Model(layers, Unit(), describe(layers, network.name, network.input, Unit()))
    one = Contender(network.name, made, exported(made), network.input)
    return replace(one, error=(errors or {}).get(one.counts[1]))


def exported(made):
    try:
        return export.onnx_model(made).SerializeToString()
    except UserError:
        return b""  # the extra [onnx] is missing, or a layer cannot be exported


def from_file(path):
    """Loads the network in a stage's .h5 file, or an ONNX model."""
    path = Path(path)
    if path.suffix == ".onnx":
        network = teachers.Onnx(path)
        (classes,) = network.maps()[network.logits()]
        written, image = network.proto.SerializeToString(), tuple(network.shape[1:])
        one = Contender(path.name, None, written, image, digest=network.digest, classes=classes)
        if not one.counts[1]:
            raise UserError(f"{path}: has no weights, and so no size to compare")
        return one
    made = model.load(path)
    digest, error = files.digest(made.layers.params.values()), record_of(path).get("figures", {}).get("test_error")
    return Contender(made.about["name"], made, exported(made), made.input, error, digest, made.classes)


def record_of(path):
    """Returns what a network's file says of itself, as far as a table shows it."""
    record = files.load_record(path)
    with files.reading(path):
        check(record, TOLD)
    return record


def pair(teacher, student):
    """(teacher, student) of two files. A given teacher has the error that the run of its student found."""
    one, other = from_file(teacher), from_file(student)
    same = one.input == other.input if one.model and other.model else one.channels == other.channels  # ONNX may resize
    if not same or one.classes != other.classes:
        sees = [f"images {c.input} of {c.classes} classes" for c in (one, other)]
        raise UserError(f"speed: {teacher} is for {sees[0]}, {student} for {sees[1]}")
    if one.name == other.name:
        one, other = replace(one, name=str(teacher)), replace(other, name=str(student))
    return (one if one.error is not None else replace(one, error=error_as_teacher(one, Path(student)))), other


def error_as_teacher(one, student):
    """The test error, in percent, that the run of a student found its given teacher to have, if it is this one."""
    record = {} if student.suffix == ".onnx" else record_of(student)
    given = record.get("identity", {}).get("settings", {}).get("networks", {}).get("teacher", {})
    known = one.digest in (given.get("sha256"), given.get("weights"))
    return record.get("heading", {}).get("teacher_error") if known else None


def of_experiments(name, results):
    """Returns (teacher, students): of an experiment, or of all on a data set (if some are in Table 5, only those)."""
    every = experiments.EXPERIMENTS
    names = [name] if name in every else [n for n, e in every.items() if e.data == name]
    in_table = [n for n in names if every[n].student.name.partition(",")[0] in paper.TABLE_5]
    if not names:
        raise UserError(f"speed {name}: wanted an experiment, a data set, or the files of a teacher and a student")
    names = names if name in every else in_table or names
    errors = {n: recorded(results / n) for n in names}
    return drawn(every[names[0]].teacher, errors[names[0]]), [drawn(every[n].student, errors[n]) for n in names]


def recorded(folder):
    """Returns {number of weights: mean test error of the best method} of a results folder.

    The errors are those of the paper's settings if there are any, and otherwise those of the default ones.
    """
    for preset in ("paper", "default"):
        path, errors = folder / preset / "results.json", {}
        questions = publish.read_part(path)["questions"] if path.exists() else []
        for row in questions[0]["rows"] if questions else ():
            if row["test_error"] is not None:
                errors.setdefault(row["weights"], []).append(row["test_error"]["mean"])
        if errors:
            return {weights: min(of) for weights, of in errors.items()}
    return {}


def engines(threads, most=BATCHES[-1]):
    """Returns {engine: a function (Contender, ExitStack) -> (images) -> answer, or None if the engine cannot run it}.

    threads: the number of threads of an engine, and of processes of minifit    most: images at a time
    """
    functions = {"minifit": lambda one, stack: one.model and _in_minifit(one.model, threads, stack, most)}
    if export.there("onnxruntime") and export.there("onnx"):
        functions["onnxruntime"] = lambda one, stack: one.onnx and _in_onnxruntime(one, threads)
    if export.there("torch"):
        functions["PyTorch"] = lambda one, stack: one.model and in_torch(one.model, threads)
    return functions


def _in_minifit(made, processes, stack, most):
    if processes == 1:
        stack.enter_context(Team(1, {}))  # one thread
        return made
    shown = shared((most, *made.input), np.uint8)
    team = stack.enter_context(Team(processes, {"part": lambda place: made(shown[slice(*place)])}))

    def answer(images):
        shown[: len(images)] = images
        ends = np.linspace(0, len(images), min(processes, len(images)) + 1).astype(int).tolist()
        return np.concatenate(team.run("part", pairwise(ends)))

    return answer


def _in_onnxruntime(one, threads):
    run = export.session(one.onnx, threads)
    name, kind = run.get_inputs()[0].name, run.get_inputs()[0].type
    dtype = {"tensor(uint8)": np.uint8, "tensor(double)": np.float64, "tensor(float16)": np.float16}.get(kind, "f4")
    return lambda images: run.run(None, {name: images.astype(dtype, copy=False)})


def in_torch(made, threads):
    """Returns the same network in PyTorch; None for a network that is not a chain of layers."""
    import torch
    from torch.nn import functional as f

    if isinstance(made.layers, Mean) or not isinstance(made.prepare, Unit):
        return None
    steps, x = [], np.zeros((0, *made.input), np.float32)
    for leaf in leaves(made.layers):
        y = leaf(x)
        p = {name: torch.tensor(a) for name, a in leaf.params.items()}
        if isinstance(leaf, Conv2d):
            w = p["w"].permute(3, 2, 0, 1).contiguous()
            steps.append(lambda x, w=w, b=p["b"], pad=leaf.pad: f.conv2d(x, w, b, padding=pad))
        elif isinstance(leaf, Linear):
            w = p["w"].T.contiguous()
            steps.append(lambda x, w=w, b=p["b"]: f.linear(x, w, b))
        elif isinstance(leaf, Maxout):
            steps.append(lambda x, m=leaf.pieces: x.unflatten(1, (m, -1)).amax(dim=1))
        elif isinstance(leaf, MaxPool2d):
            over = [
                max(0, (p - 1) * leaf.stride + leaf.size - h) for p, h in zip(y.shape[1:3], x.shape[1:3], strict=True)
            ]
            padding = (0, over[1], 0, over[0])
            steps.append(
                lambda x, size=leaf.size, stride=leaf.stride, padding=padding: f.max_pool2d(
                    f.pad(x, padding, value=-torch.inf) if any(padding) else x, size, stride
                )
            )
        elif isinstance(leaf, GlobalAverage):
            steps.append(lambda x: x.mean(dim=(2, 3)))
        elif isinstance(leaf, ReLU | Sigmoid):
            steps.append(torch.relu if isinstance(leaf, ReLU) else torch.sigmoid)
        elif isinstance(leaf, Flatten):
            steps.append(lambda x: x.permute(0, 2, 3, 1).flatten(1) if x.ndim == 4 else x)
        elif not isinstance(leaf, Dropout):
            return None
        x = y

    def answer(images):
        torch.set_num_threads(threads)
        with torch.inference_mode():
            x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous() / 255
            for step in steps:
                x = step(x)
            return x.softmax(dim=1)

    return answer


def measured(contenders, batch, seconds, engine):
    """Returns {contender: seconds of each turn} for the networks that the engine can run; each turn runs all of them.

    seconds: about how long all turns may take together
    """
    with ExitStack() as stack:
        runs: dict[str, Callable] = {}
        rng = np.random.default_rng(0)
        for one in contenders:
            ask = engine(one, stack)
            if ask:
                images = rng.integers(0, 256, (batch, *one.input), np.uint8)
                runs[one.name] = lambda ask=ask, images=images: ask(images)
        began = time.perf_counter()
        for run in runs.values():
            run()  # not timed: the first time fetches memory and plans convolutions
        once = time.perf_counter() - began
        took = {name: [] for name in runs}
        for _ in range(int(np.clip(seconds / max(once, 1e-9), *TURNS))):
            for name, run in runs.items():
                began = time.perf_counter()
                run()
                took[name].append(time.perf_counter() - began)
    return took


def quartiles(values, form):
    low, middle, high = (form(q) for q in np.percentile(values, [25, 50, 75]))
    return f"{middle} ({low}-{high})"


def table(teacher, students, seconds, tell):
    """Yields the lines of the tables: sizes, then the speed-ups per engine, number of threads and number of images."""
    counts = {one.name: one.counts for one in (teacher, *students)}
    rows = [row(one, teacher, counts) for one in (teacher, *students)]
    header = [
        "network",
        "layers",
        "weights",
        "mult.",
        "accuracy\n%",
        "paper\n%",
        "compression",
        "paper",
        "fewer\nmult.",
    ]
    header.append("speed-up\nin paper")
    yield report.table(rows, header)
    if any(r[5] for r in rows):
        yield "Published counts have two pieces in every maxout layer. Here dense layers have five, as in the text."
    yield ""
    rows, ratios = [], {}
    for threads in dict.fromkeys((1, available())):
        for batch in BATCHES:
            for name, engine in engines(threads).items():
                tell(f"measuring {name}, {batch} images, {threads} threads")
                took = measured([teacher, *students], batch, seconds, engine)
                if teacher.name not in took:
                    continue
                teacher_seconds = np.array(took[teacher.name])
                cells = [quartiles(1e3 * teacher_seconds / batch, lambda t: f"{t:.3g}")]
                for one in students:
                    ratio = teacher_seconds / np.array(took[one.name]) if one.name in took else None
                    ratios[name, threads, batch, one.name] = None if ratio is None else float(np.median(ratio))
                    cells.append(None if ratio is None else quartiles(ratio, lambda r: f"{r:.2f}"))
                rows.append([name, str(threads), str(batch), *cells])
    header = ["engine", "threads", "images", f"{teacher.name},\nms per image", *(one.name for one in students)]
    yield "Speed-up over the teacher: medians and quartiles, for this engine, number of threads and number of images."
    yield report.table(rows, header)
    yield ""
    for one in students:
        yield sentence(one, teacher, counts, ratios)


def row(one, teacher, counts):
    layers, weights, multiplications = counts[one.name]
    _, theirs, of_teacher = counts[teacher.name]
    printed = paper.TABLE_5.get(one.name.partition(",")[0]) if "100 classes" not in one.name else None
    student = one is not teacher
    fewer = f"{of_teacher / multiplications:.2f}" if student and of_teacher and multiplications else None
    return [
        one.name,
        layers,
        f"{weights:,}",
        multiplications and report.count(multiplications),
        report.number(None if one.error is None else 100 - one.error),
        printed and report.number(printed.accuracy),
        f"{theirs / weights:.2f}" if student else None,
        printed and report.number(printed.compression),
        fewer,
        printed and report.number(printed.speedup),
    ]


def sentence(one, teacher, counts, ratios):
    """Says in one sentence how much smaller and faster a student is, for an engine that runs both networks."""
    of = {key: ratio for key, ratio in ratios.items() if key[3] == one.name and ratio}
    if not of:
        return f"{one.name}: no engine here runs it beside {teacher.name}."
    key = next((key for key in of if key[0] == "onnxruntime"), next(iter(of)))
    (engine, threads, batch, _), ratio = key, of[key]
    words = f"{engine}, {batch} image{'s' * (batch > 1)}, {threads} thread{'s' * (threads > 1)}"
    smaller = counts[teacher.name][1] / counts[one.name][1]
    size, pace = times(smaller, "smaller", "larger"), times(ratio, "faster", "slower")
    comparison = f"{one.name} is {size} and {pace} ({words})"
    if one.error is None or teacher.error is None:
        return f"{comparison}; its loss of accuracy is not recorded."
    lost = one.error - teacher.error
    return f"{comparison}, and {'loses' if lost >= 0 else 'gains'} {abs(lost):.2f} points."


def times(ratio, above, below):
    return f"{ratio:.1f} times {above}" if ratio >= 1 else f"{1 / ratio:.1f} times {below}"
