"""The commands on a trained network's file: export, predict, inspect and speed."""

import json
import os
import sys
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from minifit import UserError, data, experiments, files, model, networks, regressors, spec, stages
from minifit.data import stored
from minifit.data.images import picture as picture_file
from minifit.lab import export, report, speed, teachers
from minifit.lab.options import HELP, read, show_help
from minifit.settings import ABOVE_0, flag, setting

WORK = 4e11  # the most multiplications for comparing an exported model with minifit
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # channels -> Pillow's name of the mode
ARRAYS = ".npy", ".h5", ".hdf5"
UNTRAINED = (
    "Softmax",
    "Identity",
    "Cast",
    "Transpose",
    "Split",
    "Dropout",
    "Reshape",
    "Flatten",
)  # operations whose outputs are not listed as hints


@dataclass(frozen=True, kw_only=True)
class Images:
    """Options: where the test images of a network are."""

    data_dir: Path | None = setting("read the test images of a published data set from here", default=None, common=True)
    data: Path | None = setting("read the test images of a data set of your own from here", default=None, common=True)


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Options: how predictions are printed."""

    json: bool = setting(
        "print one JSON object per image, with the probabilities of all classes", default=False, common=True
    )


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Options: how speed is measured."""

    seconds: float = setting(
        "measure each engine, with each number of threads and images, for X seconds", ABOVE_0, default=4.0, common=True
    )
    results: Path = setting("read accuracies from this folder", default=Path("results"), common=True)


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Options: the student for which a teacher is inspected."""

    student_spec: str = setting(
        "list hints for this student: layers, as in run.py own, or an experiment",
        default=experiments.OWN_STUDENT,
        common=True,
    )


def places_and(command, about, words, start):
    """Returns the words that are no options, wherever they stand, and the options."""
    if HELP & {*words}:
        show_help(f"run.py {command}", about, start, words, {})
    takes, places, options, left = {flag(f.name) for f in fields(start) if f.type is not bool}, [], [], list(words)
    while left:
        word = left.pop(0)
        (options if word.startswith("--") else places).append(word)
        if word in takes:
            options += left[:1]
            left = left[1:]
    return places, read(options, start)


one_blas_thread = threadpool_limits.wrap(limits=1, user_api="blas")  # several wait for one another on a busy machine


@one_blas_thread
def export_(words, say):
    """Writes a trained network as ONNX or safetensors."""
    about = (
        "Writes the network of a stage's file to OUT.onnx, from bytes (N, H, W, C) to probabilities, or to "
        "OUT.safetensors. An ONNX model is first compared with minifit on test images."
    )
    places, asked = places_and("export FILE.h5 OUT", about, words, Images())
    if len(places) != 2:
        raise UserError("export: wanted a stage's file and the file to write, as in export RUN/STAGE.h5 student.onnx")
    source, out = map(Path, places)
    if out.suffix not in (".onnx", ".safetensors"):
        raise UserError(f"export: {out} ends in {out.suffix or 'nothing'}; wanted .onnx or .safetensors")
    if not out.parent.is_dir():
        raise UserError(f"{out.parent}: there is no such folder")
    if out.exists() and source.exists() and out.samefile(source):
        raise UserError(f"export: {out} is the file to export; wanted another name")
    network = model.load(source)
    weights = f"{network.about['name']}, {sum(p.size for p in network.layers.params.values()):,} parameters"
    if out.suffix == ".safetensors":
        export.write_safetensors(network, out)
        say(f"{out}: {weights}; the metadata describe the network")
        return 0
    images, which = examples(source, network, asked)
    worst = export.write_onnx(network, out, images)
    say(f"{out}: {weights}; opset {export.OPSET}, from images (N, {str(network.input)[1:]} uint8 to probabilities")
    say(f"Its logits differ from minifit's by at most {worst:.1e} of the largest, on {len(images):,} {which}.")
    return 0


def examples(path, network, asked):
    """Returns (images, their description): the network's first test images, or random images if those are missing."""
    wanted = {}
    with suppress(UserError):  # the file describes its network, but not its run
        wanted = stages.load_record(path)["identity"]["settings"]
    experiment = experiments.EXPERIMENTS.get(wanted.get("experiment"))
    if experiment is not None:
        sizes = {"train": wanted["train"] + wanted["validation"], "test": wanted["test"]}
        if asked.data and experiment.data not in data.FILES:
            raise UserError(f"--data {asked.data}: the network is tested on {wanted['data']}; wanted --data-dir")
        try:
            dataset = data.load(experiment.data, asked.data_dir, False, file=asked.data, **sizes)
            if asked.data and dataset.digest(wanted["train"], wanted["validation"], wanted["test"]) != wanted["images"]:
                raise UserError(f"--data {asked.data}: has other images than the network was trained and tested on")
            counts = networks.count(network.layers, np.zeros((0, *network.input), np.float32))
            affordable = int(WORK // max(1, sum(m for _, m in counts)))
            images = dataset.test_images[: min(affordable, wanted["test"] or affordable)]
            network.check(images)
            return images, f"test images of {dataset.name}"
        except UserError:
            if asked.data_dir or asked.data:
                raise
    return export.noise(network.input), "random images, as the test images are not here (--data-dir, --data)"


@one_blas_thread
def predict(words, say):
    """Prints the class of each image, and its probability."""
    about = (
        "Prints the class and its probability for each picture, or for each image of an .npy file or of the data set "
        "`images` of an .h5 file, uint8 (N, H, W, C). Pictures are resized, and their colours converted, as needed. "
        "Ink and paper stay as they are: digits of MNIST are white on black."
    )
    places, asked = places_and("predict FILE.h5 INPUT...", about, words, Predict())
    if len(places) < 2:
        raise UserError("predict: wanted a stage's file and images, as in predict RUN/STAGE.h5 digit.png")
    network, notes = model.load(places[0]), []
    inputs = [(place, opened(Path(place), network, notes)) for place in places[1:]]  # errors come before any answer
    for note in notes:
        print(note, file=sys.stderr)
    for place, images in inputs:
        several, start = Path(place).suffix in ARRAYS, 0
        for part in model.sliced(images):
            for i, probabilities in enumerate(network(part), start):
                best = int(probabilities.argmax())
                if asked.json:
                    about = {"input": place, "index": i, "class": best, "probability": float(probabilities[best])}
                    say(json.dumps(about | {"probabilities": list(map(float, probabilities))}))
                else:
                    say(f"{place}{f'[{i}]' if several else ''}  {best}  {probabilities[best]:.4f}")
            start += len(part)
    return 0


def opened(path, network, notes):
    """Returns the images in a file, one for a picture. Images of an array are read when they are needed.

    notes: the list to which a line is added for a picture that is changed
    """
    try:
        with files.opened(path) as file:
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    if path.suffix not in ARRAYS:
        return picture(path, network.input, notes)
    if path.suffix == ".npy":
        try:
            images = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OverflowError, OSError, EOFError) as error:
            raise UserError(f"{path}: no array of numbers ({error})".replace("\n", " ")) from None
        if images.ndim == 3 and images.shape == network.input:
            images = images[None]
    else:
        array = stored.hdf5(path, ("images",)).get("images")
        if array is None:
            raise UserError(f"{path}: has no images; wanted uint8 (N, {str(network.input)[1:]}")
        if array.dtype != "uint8" or array.shape[1:] != network.input:
            raise UserError(f"{path}: images: found {array}; wanted uint8 (N, {str(network.input)[1:]}")
        source, arrays = stored.in_one_piece(path, {"images": array})
        images = stored.Rows(source, arrays["images"].offset, arrays["images"].shape)
    if size == 0 or images.dtype != np.uint8 or images.shape[1:] != network.input:
        raise UserError(f"{path}: found {images.dtype} {images.shape}; wanted uint8 (N, {str(network.input)[1:]}")
    return images


def picture(path, shape, notes):
    """Returns a picture as one image (1, H, W, C), resized and converted if necessary; says so in `notes`."""
    from PIL import Image

    height, width, channels = shape
    if channels not in MODES:
        raise UserError(f"{path}: the network sees {channels} channels, which no picture has; wanted an .npy or .h5")
    with picture_file(path) as image:
        if image.mode[0] in "IF":
            raise UserError(f"{path}: found a picture of kind {image.mode}; wanted 8 bits per channel")
        pixels = image.convert(MODES[channels])
        if image.mode[-1] in "Aa" and channels % 2:
            notes.append(f"{path}: its transparency is left out")
    if pixels.size != (width, height):
        notes.append(f"{path}: resized from {pixels.height}x{pixels.width} to {height}x{width}")
        pixels = pixels.resize((width, height), Image.Resampling.BOX if pixels.width > width else None)
    return np.asarray(pixels, np.uint8).reshape(1, *shape)


def inspect(words, say):
    """Lists the hidden maps of an ONNX model, and the regressor that each would need for a student."""
    about = (
        "Lists the tensors that an ONNX model computes for an image. Each can be a hint: --teacher FILE.onnx "
        "--hint-tensor NAME. Beside it are the student's guided layer and the regressor that it would need."
    )
    places, asked = places_and("inspect FILE.onnx", about, words, Inspect())
    if len(places) != 1:
        raise UserError("inspect: wanted one model, as in inspect teacher.onnx")
    teacher = teachers.Onnx(Path(places[0]))
    maps, logits, image = teacher.maps(), teacher.logits(), teacher.image
    layout = teacher.layout(image[2])
    student = student_of(asked.student_spec, image, maps[logits][0])
    sees = student.input[2], student.blocks[-1].classes
    if sees != (image[2], maps[logits][0]):
        given = f"{image[2]} channels and {maps[logits][0]} classes"
        raise UserError(f"{places[0]}: has {given}; {student.name} has {sees[0]} channels and {sees[1]} classes")
    sides, rows = spec.shapes(student), []
    for name, shape in maps.items():
        if name == logits or teacher.makes[name].op_type in UNTRAINED:
            continue
        hint = teacher.hint_shape(name, shape, image[2])
        pieces = None if teacher.rectified(name) else 1
        guided, kind = teachers.beside(sides, hint)
        n = regressors.weights(kind, sides[guided - 1], hint, pieces)
        needed = f"{kind}, {'linear' if pieces else 'ReLU'}"
        rows.append([name, teacher.makes[name].op_type, size(hint), guided, size(sides[guided - 1]), needed, f"{n:,}"])
    say(
        f"{places[0]}: sees {teacher.given.name}, {teacher.dtype} {tuple(teacher.shape)}, {layout}; "
        f"its logits are {logits}, of {maps[logits][0]} classes."
    )
    say(f"For {student.name}:\n")
    say(report.table(rows, ["hint tensor", "of", "map", "guided\nlayer", "its map", "regressor", "weights"]))
    return 0


def size(shape):
    return "x".join(map(str, shape))


def student_of(name_or_spec, image, classes):
    """Returns the student of an experiment, or of a SPEC."""
    if name_or_spec in experiments.EXPERIMENTS:
        return experiments.EXPERIMENTS[name_or_spec].student
    return spec.network("student", name_or_spec, image, classes)


def measure(words, say):
    """Measures how fast students are beside their teacher.   FitNets, Table 5"""
    about = (
        "Measures how much faster students classify than their teacher: the student of an experiment, all students of "
        "a data set (run.py speed cifar10 is Table 5), or a student and a teacher given by their .h5 or .onnx files."
    )
    places, asked = places_and("speed EXPERIMENT | TEACHER STUDENT", about, words, Speed())
    if len(places) == 1:
        teacher, students = speed.of_experiments(places[0], asked.results)
    elif len(places) == 2:
        teacher, student = speed.pair(*places)
        students = [student]
    else:
        raise UserError("speed: wanted an experiment, or the files of a teacher and a student")
    bar = sys.stderr.isatty()
    for line in speed.table(teacher, students, asked.seconds, lambda message: bar and print(message, file=sys.stderr)):
        say(line)
    return 0


COMMANDS = {"export": export_, "predict": predict, "inspect": inspect, "speed": measure}
