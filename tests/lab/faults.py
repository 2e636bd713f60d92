"""Faults of files and of surroundings, and what run.py says of each: `python tests/lab/faults.py` prints a table.

A case is a folder of a small run to which harm is done, and the words of a command that then meets it. The command is
carried out in this process. test_faults.py demands one line and a status of every case.
"""

import contextlib
import copy
import hashlib
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from small import light, noise

from minifit import experiments
from minifit.data import digits
from minifit.lab import cli, files, parallel, plots, publish, runner, train
from minifit.lab.records import seal

RUN, HALF = Path("runs/digits/seed0"), Path("half/digits/seed0")
GO_ON = "digits", "--runs", "runs", "--workers", "1"
HALF_ON = "digits", "--runs", "half", "--workers", "1"
COMPARE = "compare", str(RUN), "--results", "new"
AGAIN = "results", "digits", "--results", "results"
TAKE = "digits", "--runs", "other", "--workers", "1", "--teacher-from", str(RUN), "--seed", "1"
GIVEN = "predict", str(RUN / "teacher.h5"), "image.npy"
PREDICT = "predict", str(RUN / "fitnet.h5"), "image.npy"
HANG = 10  # seconds after which a command hangs
NOT, DEEP = "not there", "deep nesting"
ODD = {
    **{"null": None, "a list": [], "a dictionary": {}, "a word": "x", "-1": -1, "half": 0.5, "true": True},
    **{"NaN": float("nan"), "infinity": float("inf"), "a long number": 10**400, DEEP: DEEP, NOT: NOT},
}


@dataclass(frozen=True)
class Case:
    """Harm that is done in a folder with a run, and the command that meets it."""

    kind: str
    name: str
    harm: object  # a function of the folder
    words: tuple
    status: tuple = (2,)  # those that are right
    said: str = ""  # what the line names


@contextlib.contextmanager
def small():
    """Makes "digits" a small experiment without pictures."""
    changes = {
        (digits, "load"): noise,
        (experiments, "EXPERIMENTS"): experiments.EXPERIMENTS | {"digits": light(microbatch=8)},
        (runner, "draw"): lambda *_: None,
        (publish, "draw_networks"): lambda *_: None,
        **{(plots, name): lambda *_: None for name in ("plot_errors", "plot_curves")},
    }
    before = {place: getattr(*place) for place in changes}
    for place, value in changes.items():
        setattr(*place, value)
    try:
        yield
    finally:
        for place, value in before.items():
            setattr(*place, value)


class Hang(BaseException):
    """Raised when a command takes too long."""


def late(*_):
    raise Hang


def answer(words):
    """Carries out a command in this process: (status, the lines of stderr). The status None is a traceback."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        signal.signal(signal.SIGALRM, late)
        signal.setitimer(signal.ITIMER_REAL, HANG, HANG)  # again, in case the end hangs too
        try:
            status = cli.main([str(word) for word in words])
        except SystemExit as error:
            status = error.code
        except Hang:
            signal.setitimer(signal.ITIMER_REAL, 0)
            return None, ["a hang"]
        except BaseException as error:
            signal.setitimer(signal.ITIMER_REAL, 0)
            return None, [f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"]
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            parallel.ranks = parallel.Alone()
    return status, err.getvalue().splitlines()


IDX = "train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


def build(folder):
    """Leaves a finished run, a run that stopped in its last stage, its results and an image in a folder."""
    with small(), contextlib.chdir(folder):
        for words in (GO_ON, (*COMPARE[:-1], "results")):
            status, said = answer(words)
            assert status == 0, said
        Path("half/digits").mkdir(parents=True)
        shutil.copytree(RUN, HALF)
        (HALF / "fitnet.h5").unlink()
        tell, cut = runner.report.epoch_line, KeyboardInterrupt

        def stop(record):
            raise cut

        runner.report.epoch_line = stop
        try:
            assert answer(HALF_ON)[0] == 130
        finally:
            runner.report.epoch_line = tell
        Path("idx").mkdir()
        for name in IDX:
            Path("idx", name).touch()
        np.save("image.npy", np.zeros((1, 28, 28, 1), np.uint8))


def parse(text):
    return json.loads(text)


def written(value):
    """JSON, with deep nesting where it is asked for."""
    return json.dumps(value, indent=1).replace(f'"{DEEP}"', "[" * 100_000 + "]" * 100_000)


def changed(tree, place, value):
    """A tree with another value at a place (keys, one below another)."""
    tree = copy.deepcopy(tree)
    *above, last = place
    inner = tree
    for key in above:
        inner = inner[key]
    if isinstance(value, str) and value == NOT:
        del inner[last]
    else:
        inner[last] = value
    return tree


def record(path, place, value, sealed=True):
    """Harm: another value in a JSON file; in metrics.jsonl the first of the place's keys is the line.

    sealed: whether the digest that the file ends with is made to fit
    """

    def harm(folder):
        file = folder / path
        if path.suffix == ".jsonl":
            lines = file.read_text().splitlines()
            lines[place[0]] = " ".join(written(changed(parse(lines[place[0]]), place[1:], value)).split())
            file.write_text("\n".join(lines) + "\n")
        else:
            tree = changed(parse(file.read_text()), place, value)
            if sealed and isinstance(tree, dict) and place[-1] != "sha256":
                tree["sha256"] = seal(tree)
            file.write_text(written(tree))

    return harm


def whole(path, content):
    """Harm: another content of a file."""
    return lambda folder: (folder / path).write_bytes(content)


def stage(path, change):
    """Harm: a stage's file with another record and other arrays, and the right checksums."""

    def harm(folder):
        saved, groups = files.load(folder / path)
        saved, groups = change(saved, {name: dict(arrays) for name, arrays in groups.items()}) or (saved, groups)
        save(folder / path, saved, lambda file: fill(file, groups))

    return harm


def fill(file, groups):
    for group, arrays in groups.items():
        file.require_group(group)
        for name, array in arrays.items():
            file.create_dataset(f"{group}/{name}", data=array)


def save(path, saved, make):
    """Writes a file as minifit.files.save does, whatever it holds."""
    content, text = io.BytesIO(), written(saved).encode()
    with h5py.File(content, "w") as file:
        make(file)
        file["record"] = np.frombuffer(text, np.uint8)
    content.seek(0, io.SEEK_END)
    content.write(text + len(text).to_bytes(8, "big") + hashlib.sha256(text).digest())
    path.write_bytes(content.getvalue() + hashlib.sha256(content.getvalue()).digest())


def in_record(path, place, value):
    return stage(path, lambda saved, groups: (changed(saved, place, value), groups))


def in_group(path, group, arrays):
    """Harm: other arrays in a group of a stage's file.   arrays: a function of those there; NOT: no such group"""

    def change(saved, groups):
        if arrays is NOT:
            del groups[group]
        else:
            groups[group] = arrays(groups[group])
        return saved, groups

    return stage(path, change)


def raw(path, make):
    """Harm: a stage's file with the right record, and what make(file) puts where the best weights were."""

    def harm(folder):
        saved, groups = files.load(folder / path)
        rest = {name: arrays for name, arrays in groups.items() if name != "best"}
        save(folder / path, saved, lambda file: (fill(file, rest), make(file, groups["best"])))

    return harm


def each(function):
    """One function for all arrays of a group."""
    return lambda arrays: {name: function(a) for name, a in arrays.items()}


def first(function):
    """One function for the first array of a group."""
    return lambda arrays: arrays | {name: function(arrays[name]) for name in [next(iter(arrays))]}


def other(function):
    """The best weights, the first of which function(file, name, array) writes."""

    def make(file, best):
        name, *rest = best
        file.require_group("best")
        fill(file, {"best": {n: best[n] for n in rest}})
        function(file, f"best/{name}", best[name])

    return make


def records():
    """Cases of records in JSON."""
    config, summary, metrics = RUN / "config.json", RUN / "summary.json", RUN / "metrics.jsonl"
    results = Path("results/digits/default/results.json")
    kd, one, of = ("stages", "kd"), ("runs", 0), ("questions", 0)
    figures = ("method", "title", "epochs", "best_epoch", "test_error", "weights", "test_loss", "validation_error")
    places = {
        config: ["", "format", "settings", ("settings", "seed"), ("settings", "retrain"), ("settings", "preset")],
        summary: ["", "stages", "seed", "test_images", kd, *((*kd, name) for name in (*figures, "seconds", "file"))],
        metrics: [(0, name) for name in ("", "stage", "epoch", "train_loss", "validation_error", "lr")],
        results: ["", "format", "command", "settings", "runs", "order", "methods", "arms", "others", "changed", "data"],
    }
    places[results] += [one, (*one, *kd, "test_error"), *((*one, name) for name in ("stages", "seed", "missing"))]
    places[results] += [(*one, "settings"), (*of, "rows"), (*of, "rows", 0), (*of, "arms"), ("order", "methods")]
    places[results] += ["questions", "teacher", "train_images"]
    places = {path: [(key,) if isinstance(key, str) else key for key in keys] for path, keys in places.items()}
    places = {path: [tuple(key for key in keys if key != "") for keys in of] for path, of in places.items()}
    for path, of in places.items():
        commands = (AGAIN,) if path is results else (GO_ON, COMPARE)
        for place in of:
            for odd, value in ODD.items():
                if not place or place == (0,):
                    if odd in (NOT, DEEP):
                        continue
                    whole_value = written(value).encode() + b"\n"
                    harm = whole(path, whole_value)
                else:
                    harm = record(path, place, value)
                for words in commands:
                    name = f"{path.name} {'.'.join(map(str, place)) or 'as a whole'}: {odd}"
                    yield Case("records", f"{name}, {words[0]}", harm, words, (0, 2))
    for path in (config, summary, metrics, results):
        commands = (AGAIN,) if path is results else (GO_ON, COMPARE)
        for name, content in {
            "empty": b"",
            "half": b'{"stages": {',
            "no text": b"\xff\xfe\x00",
            "deep nesting": b"[" * 100_000 + b"]" * 100_000,
            "a key twice": b'{"format": 2, "format": 2, "stage": "a", "stage": "b", "epoch": 1}\n',
        }.items():
            for words in commands:
                status = (0, 2) if words is COMPARE and path is metrics else (2,)
                yield Case("records", f"{path.name} {name}, {words[0]}", whole(path, content), words, status, path.name)


def weights():
    """Cases of stages' files."""
    kd, half, teacher = RUN / "kd.h5", HALF / "fitnet.h5", RUN / "teacher.h5"
    fields = [(name,) for name in ("identity", "epoch", "best_epoch", "best_loss", "best_errors", "finished")]
    fields += [("identity", name) for name in ("settings", "stage", "teacher")]
    for place in fields:
        for odd, value in ODD.items():
            for path, words in ((kd, GO_ON), (half, HALF_ON), (teacher, TAKE)):
                name = f"{path.name} {'.'.join(place)}: {odd}, {words[2]}"
                yield Case("weights", name, in_record(path, place, value), words, (0, 2))
    for place in (("rng",), ("rng", "state"), ("rng", "state", "state"), ("rng", "bit_generator")):
        for odd, value in ODD.items():
            name = f"half-trained {'.'.join(place)}: {odd}"
            yield Case("weights", name, in_record(half, place, value), HALF_ON, (2,), "fitnet.h5")
    of_arrays = {
        "complex": each(lambda a: a.astype(np.complex64)),
        "text": each(lambda a: np.full(a.shape, b"x")),
        "truth values": each(lambda a: a > 0),
        "whole numbers": each(lambda a: a.astype(np.int32)),
        "float64": each(lambda a: a.astype(np.float64)),
        "NaN": first(lambda a: a * np.nan),
        "infinite": first(lambda a: a + np.inf),
        "of another shape": first(lambda a: np.zeros((3, *a.shape), a.dtype)),
        "missing one": lambda arrays: dict([*arrays.items()][1:]),
        "one too many": lambda arrays: arrays | {"9.9.w": np.zeros(3, np.float32)},
        "empty": lambda arrays: {},
        "no group": NOT,
    }
    for name, arrays in of_arrays.items():
        for path, words in ((kd, GO_ON), (teacher, TAKE)):
            harm = in_group(path, "best", arrays)
            yield Case("weights", f"best weights {name}, {words[-2]}", harm, words, (2,), path.name)
        harm = in_group(RUN / "fitnet.h5", "best", arrays)
        yield Case("weights", f"best weights {name}, predict", harm, PREDICT, (2,))
        for group in ("best", "weights", "optimizer"):
            harm = in_group(half, group, arrays)
            yield Case("weights", f"half-trained {group} {name}", harm, HALF_ON, (2,), "fitnet.h5")

    def external(file, place, a):
        file.create_dataset(place, a.shape, "f4", external=[("/etc/hostname", 0, a.nbytes)])

    def linked(file, place, a):
        file[place] = h5py.ExternalLink("/etc/hostname", "/x")

    made = {
        "of 4 TiB": lambda file, place, a: file.create_dataset(place, (2**40,), "f4", chunks=(2**16,)),
        "of 4 TiB in one piece": lambda file, place, a: file.create_dataset(place, (2**40,), "f4"),
        "a group": lambda file, place, a: file.create_group(place),
        "empty space": lambda file, place, a: file.create_dataset(place, data=h5py.Empty("f4")),
        "a compound": lambda file, place, a: file.create_dataset(place, (3,), np.dtype([("a", "f4")])),
        "strings": lambda file, place, a: file.create_dataset(place, data=["a", "b"]),
        "elsewhere": external,
        "a link to another file": linked,
        "a link to nowhere": lambda file, place, a: file.__setitem__(place, h5py.SoftLink("/nowhere")),
    }
    for name, function in made.items():
        yield Case("weights", f"an array that is {name}", raw(kd, other(function)), GO_ON, (2,), "kd.h5")
        yield Case("weights", f"a teacher with an array that is {name}", raw(teacher, other(function)), GIVEN)

    def another_hint(folder):
        saved, groups = files.load(folder / RUN / "hint.h5")
        groups["best"] = {name: -a for name, a in groups["best"].items()}
        files.save(folder / RUN / "hint.h5", saved, **groups)

    yield Case("weights", "another hint below a finished FitNet", another_hint, GO_ON, (2,), "fitnet.h5")
    figures = {"test_error": 0.0, "validation_error": 0.0, "epochs": 1, "weights": 3, "seconds": 9.9}
    figures |= {"title": "x", "label": "x", "from": "elsewhere"}
    heading = {"data": "x", "teacher": "x", "student": "x", "seed": 7, "train_images": 7, "test_images": 7}
    edited = {("summary.json", "stages", "kd", name): value for name, value in figures.items()}
    edited |= {("summary.json", name): value for name, value in heading.items()}
    edited |= {("config.json", "settings", "tau"): 7.0, ("config.json", "settings", "student", "lr"): 7.0}
    edited |= {("config.json", "settings", "crops"): NOT, ("config.json", "settings", "more"): 7.0}
    for (path, *place), value in edited.items():
        harm, settings = record(RUN / path, place, value), path == "config.json"
        said = f"{RUN / path}: has" if place[-1] == "seconds" else f"differs from {path}"
        said = "of a run with other settings than config.json has" if settings else said
        for words in (COMPARE,) if settings else (GO_ON, COMPARE):  # to go on, settings are compared with today's
            yield Case("weights", f"an edited {place[-1]} in {path}, {words[0]}", harm, words, (2,), said)
        if settings:
            yield Case("weights", f"another {place[-1]} in {path}, without weights", alone(harm), COMPARE, (2,), said)
        harm, said = record(RUN / path, place, value, sealed=False), f"{path}: was changed after it was written"
        for name, harmed in {"by hand": harm, "without weights": alone(harm)}.items():
            yield Case("weights", f"an edited {place[-1]} in {path}, {name}", harmed, COMPARE, (2,), said)
    for name in ("another run's summary", "another run's summary, without weights"):
        harm = record(RUN / "summary.json", ["settings"], "0" * 64)
        harm, said = alone(harm) if "without" in name else harm, "of a run with other settings than config.json has"
        yield Case("weights", name, harm, COMPARE, (2,), said)
    untested = alone(record(RUN / "summary.json", ["stages", "kd", "test_error"], None))
    yield Case("weights", "no test error, without weights", untested, COMPARE, (0,))

    table = Path("results/digits/default/results.json")
    by_hand = {("runs", 0, "stages", "kd", "test_error"): 0.0, ("runs", 0, "seed"): 7, ("data",): "x"}
    for place, value in by_hand.items():
        harm = record(table, place, value, sealed=False)
        yield Case("weights", f"an edited {place[-1]} in results.json", harm, AGAIN, (2,), "results.json: was changed")

    def untimed(folder):
        record(RUN / "summary.json", ["stages", "kd", "seconds"], 9.9)(folder)
        log = folder / RUN / "metrics.jsonl"
        log.write_text("".join(line for line in log.read_text().splitlines(True) if '"kd"' not in line))

    def without_figures(folder):
        record(RUN / "summary.json", ["stages", "kd", "test_error"], 0.0)(folder)
        saved, groups = files.load(folder / RUN / "kd.h5")
        files.save(folder / RUN / "kd.h5", {name: v for name, v in saved.items() if name != "figures"}, **groups)

    for words in (GO_ON, COMPARE):
        yield Case("weights", f"an edited time, no log, {words[0]}", untimed, words, (2,), "has no epoch 1 of kd")
        yield Case(
            "weights", f"an edited error alone, {words[0]}", without_figures, words, (2,), "kd.h5: has no figures"
        )


def alone(harm):
    """Harm, and the weights of the run are gone, as in results/runs."""

    def both(folder):
        harm(folder)
        for path in (folder / RUN).glob("*.h5"):
            path.unlink()

    return both


def odd_files():
    """Cases of folders, pipes, devices and links where a file belongs."""

    def at(path, make):
        def harm(folder):
            place = folder / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)
            make(place)

        return harm

    victim = {
        "a link to another file": lambda place: place.symlink_to(Path.cwd() / "victim"),
        "another file's second name": lambda place: os.link(Path.cwd() / "victim", place),
    }
    kinds = {
        "a folder": Path.mkdir,
        "a pipe": os.mkfifo,
        "a device": lambda place: place.symlink_to("/dev/zero"),
        "a link to itself": lambda place: place.symlink_to(place),
    }
    for name, make in kinds.items():
        for path in ("config.json", "summary.json", "metrics.jsonl", "kd.h5"):
            for words in (GO_ON, COMPARE):
                of_comparison = words is COMPARE and path == "kd.h5"
                status = (0, 2) if of_comparison or name == "a link to itself" else (2,)
                said = "" if words is COMPARE and name == "a link to itself" else path
                yield Case("files", f"{path} is {name}, {words[0]}", at(RUN / path, make), words, status, said)
        for path in (".lock", ".metrics.jsonl.tmp", ".fitnet.h5.tmp", ".summary.json.tmp", "metrics.jsonl"):
            yield Case("files", f"{path} is {name}", at(HALF / path, make), HALF_ON, (2,), path.removeprefix(".")[:7])
        for path in ("pipe.npy", "pipe.png", "pipe.h5"):
            yield Case("files", f"{path} is {name}, predict", at(path, make), (*PREDICT[:2], path), (2,), path)
        yield Case(
            "files", f"a network is {name}", at("pipe.h5", make), ("predict", "pipe.h5", "image.npy"), (2,), "pipe"
        )
        yield Case("files", f"a model is {name}", at("pipe.onnx", make), ("inspect", "pipe.onnx"), (2,), "pipe")
        yield Case("files", f"--data is {name}", at("pipe", make), ("own", "--data", "pipe"), (2,), "pipe")
        yield Case("files", f"faces are {name}", at("pipe", make), ("faces", "--data", "pipe"), (2,), "pipe")
        mnist = at("idx/train-images-idx3-ubyte", make)
        yield Case("files", f"an idx file is {name}", mnist, ("mnist", "--data-dir", "idx"), (2,), "idx")
        tar = at("tar/cifar-10-binary.tar.gz", make)
        yield Case("files", f"an archive is {name}", tar, ("cifar10-fitnet1", "--data-dir", "tar"), (2,), "tar")
        results = at("results/digits/default/results.json", make)
        yield Case("files", f"results.json is {name}", results, AGAIN, (2,), "results")
        picture = at("results/digits/default/hints.png", make)
        status, said = ((0,), "") if "itself" in name else ((2,), "hints.png: cannot")  # which exists for nobody
        yield Case("files", f"hints.png is {name}, --html", picture, (*AGAIN, "--html"), status, said)
    for name, make in victim.items():
        for path in (".lock", ".metrics.jsonl.tmp", ".fitnet.h5.tmp", ".summary.json.tmp"):
            yield Case("files", f"{path} is {name}", at(HALF / path, make), HALF_ON, (0, 2), path.removeprefix(".")[:7])
        for path in (".README.md.tmp", "default/.results.json.tmp"):
            yield Case("files", f"{path} is {name}", at(Path("results/digits") / path, make), AGAIN, (0, 2), "results")


def limits():
    """Cases of settings that size something, and of a run whose cause must be named."""
    archive = "own", "--data", "my.npz", "--runs", "other"

    def my(folder):
        images = np.random.default_rng(0).integers(0, 256, (60, 16, 16, 1), np.uint8)
        np.savez(folder / "my.npz", images=images, labels=np.arange(60) % 3)

    def black(folder):
        np.savez(folder / "my.npz", images=np.zeros((60, 16, 16, 1), np.uint8), labels=np.arange(60) % 3)

    small_sizes = "--train", "30", "--validation", "6", "--test", "6", "--teacher.epochs", "1", "--student.epochs", "1"
    for name, words in {
        "a student beyond memory": (*archive, "--student", "99999x99-99999"),
        "a teacher beyond memory": (*archive, "--teacher", "-".join(["9999"] * 90)),
        "a long seed": ("digits", "--seed", "9" * 5000),
        "a seed longer than a file's name": ("digits", "--runs", "other", "--seed", "9" * 300),
        "a seed of 60 digits": ("digits", "--runs", "other", "--seed", "9" * 60, "--stage", "teacher"),
        "images beyond memory": (*archive, "--train", str(10**15)),
        "a long batch": ("digits", "--runs", "other", "--stage", "teacher", "--teacher.batch", str(10**30)),
        "long patience": ("digits", "--runs", "other", "--stage", "teacher", "--teacher.patience", str(10**30)),
        "a long microbatch": ("digits", "--runs", "other", "--stage", "teacher", "--microbatch", str(10**30)),
        "wide crops": ("digits", "--runs", "other", "--stage", "teacher", "--crops", str(10**6)),
        "wider crops": ("digits", "--runs", "other", "--stage", "teacher", "--crops", str(10**30)),
        "draws": ("audit", "--row", "ReLU", "--draws", "1", "--seed", str(10**30)),
    }.items():
        status = (0, 1, 2) if name in ("wide crops", "a long batch", "long patience", "draws") else (0, 2)
        yield Case("limits", name, my, words, status)
    black_words = (*archive, *small_sizes, "--student", "8/8", "--teacher", "8-8", "--workers", "1")
    yield Case("causes", "black images", black, black_words, (2,), "pixels are the same")
    moved = lambda folder: shutil.copytree(folder / "results/digits", folder / "results/mnist")  # noqa: E731
    elsewhere = "results", "mnist", "--results", "results"
    yield Case("causes", "results of another experiment", moved, elsewhere, (2,), "belong in digits/default/")
    lost = lambda folder: (folder / RUN / "config.json").unlink()  # noqa: E731
    yield Case("causes", "config.json is gone", lost, (*GO_ON, "--tau", "7"), (2,), "teacher.h5 holds a run with other")
    newline = "digits", "--runs", "run.py\nruns"
    touched = lambda folder: Path(folder, "run.py\nruns").touch()  # noqa: E731
    yield Case("causes", "a new line in a word", touched, newline, (2,), r"run.py\nruns")
    lost = lambda folder: (folder / HALF / "metrics.jsonl").unlink()  # noqa: E731
    yield Case("causes", "metrics.jsonl is gone", lost, HALF_ON, (2,), "metrics.jsonl: has no epoch 1 of teacher")


CASES = (records, weights, odd_files, limits)


def cases():
    return [case for of in CASES for case in of()]


def tried(case, base, folder):
    """(status, lines of stderr) of a case in a copy of a built folder."""
    shutil.copytree(base, folder, symlinks=True)
    (folder / "victim").write_text("precious")
    with small(), contextlib.chdir(folder):
        case.harm(folder)
        train.read_file.cache_clear()  # which knows files by their names
        status, said = answer(case.words)
    if (folder / "victim").read_bytes() != b"precious":
        return None, ["a file outside is changed"]
    return status, said


def verdict(case, status, said):
    """ "" where a case went well, otherwise what was wrong."""
    if status is None:
        return f"traceback {said[0]}"
    if status not in case.status:
        return f"status {status} {' '.join(said)[:150]}"
    if status and (len(said) != 1 or not said[0].startswith("run.py: ")):
        return f"{len(said)} lines: {' / '.join(said)[:150]}"
    return "" if not status or case.said in said[0] else f"does not name {case.said}: {said[0]}"


def main(words):
    """Prints a row for each case that went wrong, or with -v for all, and the sums.   words: parts of names of cases"""
    found, verbose, words = {}, "-v" in words, [word for word in words if word != "-v"]
    with tempfile.TemporaryDirectory() as place:
        base = Path(place) / "base"
        base.mkdir()
        build(base)
        for i, case in enumerate(case for case in cases() if all(word in f"{case.kind} {case.name}" for word in words)):
            status, said = tried(case, base, Path(place) / str(i))
            shutil.rmtree(Path(place) / str(i), ignore_errors=True)
            wrong = verdict(case, status, said)
            found.setdefault(case.kind, []).append(bool(wrong))
            if wrong or verbose:
                print(f"{case.kind} | {case.name} | {wrong or f'{status} ' + ' '.join(said)}", flush=True)
    for kind, wrong in found.items():
        print(f"{kind}: {len(wrong)} cases, {sum(wrong)} wrong")
    return 1 if any(map(any, found.values())) else 0


if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.exit(main(sys.argv[1:]))
