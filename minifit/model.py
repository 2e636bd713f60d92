"""Loads a trained network from its file, which describes the network completely.

    from minifit import load

    model = load("runs/mnist/seed0/fitnet.h5")
    probabilities = model(images)    # bytes (N, H, W, C) to (N, classes)

The description is JSON, in the file's record under "network". Each layer has its kind, its settings, the names and
shapes of its parameters, and the shape of one output; each kind of layer has its definition in words.
"""

import inspect
import json
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path

import numpy as np

from minifit import UserError, composites, files, layers, stages
from minifit.backend import array_module
from minifit.composites import Branches, Composite, Mean, Sequential, leaves
from minifit.data import preprocessing
from minifit.data.preprocessing import ZCA, Local, Whitened, contrast, local_contrast
from minifit.layers import Layer, Softmax

FORMAT = 1  # of the description
BATCH = 64  # images computed at a time
AXES = (
    "Images are uint8 (N, H, W, C), N of them of height H, width W and C channels. `images` begins the SHA-256 of the "
    "images and then the labels, as int64, of the training set, the validation set and the test set of the run, each "
    "whole set after the one before. Arrays are in row-major order, and "
    "Flatten reads (H, W, C) in that order. Filters are (R, S, C, K): height, width, input and output channels. "
    "Dropout works in training only; otherwise it is the identity. A Sequential passes x from child to child."
)


MADE_OF = {Whitened: (contrast, ZCA), Local: (contrast, local_contrast)}  # what a preparation's definition names


@dataclass(frozen=True)
class Model:
    """A network that classifies stored images, with the preparation of its images."""

    layers: Layer
    prepare: object  # turns stored bytes into the network's input
    about: dict  # the description of the network

    @property
    def input(self):
        return tuple(self.about["input"])

    @property
    def classes(self):
        return self.about["classes"]

    def __call__(self, images):
        """Returns probabilities (N, classes) for images uint8 (N, H, W, C)."""
        return Softmax()(self.logits(images))

    def logits(self, images):
        self.check(images)
        parts = [self._logits(part) for part in sliced(images)] or [np.zeros((0, self.classes), np.float32)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _logits(self, images):
        return last(self.layers(self.prepare(images)))

    def check(self, images):
        """Raises UserError for images of another type or shape than the network's."""
        if getattr(images, "dtype", None) != np.uint8 or images.shape[1:] != self.input:
            description = f"{images.dtype} {images.shape}" if hasattr(images, "dtype") else type(images).__name__
            raise UserError(f"images are {description}; {self.about['name']} wants uint8 (N, {str(self.input)[1:]}")


def sliced(images):
    return (images[start : start + BATCH] for start in range(0, len(images), BATCH))


def last(outputs):
    """Returns the logits, which are the last of several outputs."""
    return outputs[-1] if isinstance(outputs, tuple) else outputs


def load(path):
    """Returns the Model in a stage's file. UserError if the file is damaged or holds no whole classifier."""
    path = Path(path)
    try:
        files.opened(path).close()
        record, groups = files.load(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UserError as error:
        raise UserError(str(error).replace("; remove it to train again", "")) from None
    about = record.get("network")
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise UserError(f"{path}: does not describe its network, as of another version of minifit; train it again")
    if not about.get("classifies"):
        raise UserError(f"{path}: holds {about.get('name')}{about.get('part', '')}, which does not classify images")
    try:
        stages.check_best(groups)
        for name, a in groups["best"].items():
            if a.dtype != np.float32:
                raise ValueError(f"{name} is {a.dtype}, wanted float32")
        if not isinstance(about["name"], str):
            raise ValueError(f"its name is {about['name']}")
        rebuilt = rebuild(about["layers"], groups["best"])
        prepare = prepared_by(about["preprocessing"], path)
        model = Model(rebuilt, prepare, about)
        shape = last(rebuilt(np.zeros((0, *model.input), np.float32))).shape[1:]
        files.restore(rebuilt.params, groups["best"], path)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: its description does not fit its arrays ({error})".replace("\n", " ")) from None
    if shape != (model.classes,):
        raise UserError(f"{path}: its description does not fit its arrays: {shape}, wanted ({model.classes},)")
    return model


def describe(network, name, image, prepare, statistics=None, classifies=True, **more):
    """Describes a trained network for its file, as JSON.

    image: the shape (H, W, C) of one image    prepare: turns stored bytes into the network's input
    statistics: the file with the arrays of `prepare`, if any    classifies: whether the network maps images to logits
    """
    shapes, none = {}, array_module(*network.params.values()).zeros((0, *image), np.float32)

    def see(layer, x):
        shapes[id(layer)] = list(layer(x).shape[1:])

    try:
        outputs = network.visit(none, see)
    except ValueError:  # it sees the output of other layers
        outputs = none
    kinds = {type(leaf).__name__: defined(type(leaf)) for leaf in leaves(network)}
    about = {
        "format": FORMAT,
        "name": name,
        "classifies": classifies,
        "input": list(image),
        "classes": last(outputs).shape[-1] if classifies else None,
        **more,
        "preprocessing": preparation(prepare, statistics),
        "layers": tree(network, shapes),
        "kinds": kinds,
        "axes": AXES,
    }
    return json.loads(json.dumps(about))


def defined(what):
    """Returns the definition of a layer or of a preparation, its docstring. UserError if Python has removed it."""
    definition = inspect.getdoc(what)
    if not definition:
        raise UserError("PYTHONOPTIMIZE=2, or python -OO, removes the definitions that a network's file has; unset it")
    return definition


def tree(layer, shapes, prefix=""):
    """Describes a layer, with the layers that it is made of."""
    kind = {"kind": type(layer).__name__}
    if isinstance(layer, Composite):
        below = [{"name": n} | tree(child, shapes, f"{prefix}{n}.") for n, child in layer.children.items()]
        return kind | {"children": below}
    parameters = {prefix + name: list(p.shape) for name, p in layer.params.items()}
    of_shape = {"output": shapes[id(layer)]} if id(layer) in shapes else {}
    return kind | settings(layer) | ({"parameters": parameters} if parameters else {}) | of_shape


def settings(layer):
    """Returns the arguments of a layer's constructor other than parameters, for a layer without children."""
    return {name: v for name, v in vars(layer).items() if name not in ("params", "max_norm", "lr_scale")}


def rebuild(described, arrays):
    """Rebuilds the layer that `tree` described, with these arrays as parameters."""
    given = {name: value for name, value in described.items() if name not in ("name", "output")}
    children = given.pop("children", None)
    kind = getattr(layers if children is None else composites, given.pop("kind"))
    if not issubclass(kind, Layer):
        raise ValueError(f"{kind.__name__} is no layer")
    if children is not None:
        made = {child["name"]: rebuild(child, arrays) for child in children}
        if kind is Branches:
            trunk = Sequential(layer for name, layer in made.items() if not name.startswith("head"))
            return Branches(trunk, {int(n.removeprefix("head")): h for n, h in made.items() if n.startswith("head")})
        if kind not in (Sequential, Mean):
            raise ValueError(f"a {kind.__name__} is only for training")
        return kind(made.values())
    parameters = {}
    for name, shape in given.pop("parameters", {}).items():
        if list(arrays[name].shape) != shape:
            raise ValueError(f"{name} is {arrays[name].shape}, wanted {tuple(shape)}")
        parameters[name.rpartition(".")[2]] = arrays[name]
    return kind(**parameters, **given)


def preparation(prepare, statistics=None):
    """Describes a preparation, such as {"kind": "Unit"}: its class, its numbers, the name of the file of its arrays.

    Its definition in words includes the definitions of the functions that it names.
    """
    kind = type(prepare)
    plain = {f.name: getattr(prepare, f.name) for f in fields(prepare) if not is_dataclass(getattr(prepare, f.name))}
    held = {"statistics": Path(statistics).name} if statistics else {}
    parts = {part.__name__: defined(part) for part in MADE_OF.get(kind, ())}
    definition = "\n\n".join([defined(kind), *(f"{name}: {text}" for name, text in parts.items())])
    return {"kind": kind.__name__, **plain, **held, "definition": definition}


def prepared_by(described, path):
    """Rebuilds the preparation. Its file of statistics lies beside `path`, or in .cache of a folder above it."""
    given = {name: value for name, value in described.items() if name not in ("kind", "statistics", "definition")}
    if "statistics" in described:
        name, above = described["statistics"], path.resolve().parents
        places = [place for folder in above for place in (folder / name, folder / ".cache" / name)]
        file = next((place for place in places if place.is_file()), None)
        if file is None:
            raise UserError(f"{path}: its images are whitened, and {name} is neither beside it nor in .cache above it")
        given["zca"] = preprocessing.ZCA(**files.load(file)[1]["zca"])
    kind = getattr(preprocessing, described["kind"])
    if not is_dataclass(kind):
        raise ValueError(f"{described['kind']} prepares no images")
    return kind(**given)
