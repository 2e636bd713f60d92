"""Teachers that were trained elsewhere: an ONNX model, or the file of a stage. minifit never trains them.

A teacher of this kind is a Layer whose input is stored bytes, whatever the student's input is. teacher(images) gives
logits, the target of eq. 2; teacher[:h] is the part up to hint h, and gives the target of eq. 3. An ONNX model must
accept any number of images; distillation needs only its logits and one hidden map.

The README has the lines that export a PyTorch network; `python run.py inspect teacher.onnx` lists its hidden maps.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from graphlib import TopologicalSorter
from pathlib import Path

import numpy as np

from minifit import UserError, files, model, networks, spec
from minifit.backend import array_module, to_host
from minifit.composites import Sequential, frozen
from minifit.lab import export
from minifit.lab.options import nearest
from minifit.lab.parallel import team
from minifit.layers import Layer
from minifit.regressors import pieces_of

MARGIN = 0.1  # of the way from chance to no error: a teacher below it has learned nothing, or is shown other pixels
PASSED = "Identity", "Dropout", "MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Cast"
LAYOUTS = "channels first", "channels last"
FIRST = "Conv", "ConvTranspose", "MaxPool", "AveragePool", "BatchNormalization", "InstanceNormalization"
REARRANGED = {(0, 3, 1, 2): True, (0, 2, 3, 1): False}  # the axes of a Transpose -> whether channels are first after it


@dataclass(frozen=True)
class Pixels:
    """How bytes become a model's pixels: (range * byte / 255 - mean) / std, with one mean and std per channel."""

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    range: float = 1.0

    def __call__(self, images, dtype):
        x = images.astype(np.float32) * np.float32(self.range / 255)
        x = (x - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return x.astype(dtype)


class Given(Layer):
    """A trained teacher for images uint8 (N, H, W, C). Its `params` identify it."""

    sees_bytes = True
    microbatch = None
    xp = np  # the library that computes its outputs
    look = "look at the data that trained it and the order of its classes"  # where it knows no more than chance

    @property
    def input(self):
        return self.image

    def __call__(self, images, rng=None):
        xp = array_module(images)
        if len(images) and images.dtype != np.uint8:
            raise UserError(f"{self.name}: was trained elsewhere, on stored bytes; this method gives it other numbers")
        y = self.answer(images if xp is self.xp else to_host(images) if self.xp is np else self.xp.asarray(images))
        return y if xp is self.xp else to_host(y) if xp is np else xp.asarray(y)

    def __len__(self):
        return len(self.blocks)

    def __getitem__(self, index):
        """teacher[:h]: the part up to hint h."""
        if not isinstance(index, slice) or index.start or index.step or not 1 <= (index.stop or 0) <= len(self):
            raise UserError(f"{self.name}: was trained elsewhere and cannot be taken apart, as this method needs")
        return self.parts.setdefault(index.stop, self.up_to(index.stop))

    @cached_property
    def parts(self):
        return {}

    def outputs(self, images):
        """{name: array} of all that is asked of it, its logits last."""
        return {"logits": self(images)}

    def errors(self, images, labels, workers=1):
        """Returns how many of the images it misclassifies. UserError if an output is not finite."""

        def part(start):
            for name, y in self.outputs(images[start : start + model.BATCH]).items():
                if not np.isfinite(y).all():
                    message = f"{self.name}: its {name} has a number that is not finite, for test images"
                    raise UserError(f"{message}; {self.look}")
            return int((y.argmax(axis=-1) != labels[start : start + model.BATCH]).sum())

        def answer(start):
            try:
                return part(start)
            except UserError as error:  # returned, because a worker cannot raise it here
                return str(error)

        with team(workers if self.xp is np else 1, {"errors": answer}) as processes:
            answers = processes.run("errors", range(0, len(labels), model.BATCH))
        for answer in answers:
            if isinstance(answer, str):
                raise UserError(answer)
        return sum(answers)

    def check(self, images, labels, workers=1):
        """Returns its test error in percent. UserError if it is hardly better than chance."""
        errors, most = self.errors(images, labels, workers), np.bincount(labels, minlength=self.classes).max()
        accuracy, chance = 1 - errors / len(labels), most / len(labels)
        if accuracy < chance + MARGIN * (1 - chance):
            raise UserError(
                f"{self.name}: classifies {100 * accuracy:.2f} % of the test images correctly, and the commonest class "
                f"alone is {100 * chance:.2f} % of them; {self.look}"
            )
        return 100 * errors / len(labels)


class FromFile(Given):
    """The network in the file of a stage that classifies.   xp: the library that computes its outputs"""

    def __init__(self, path, image, classes, xp=np):
        self.path, self.model, self.xp = Path(path), model.load(path), xp
        if not (record := files.load_record(path)).get("finished", True):
            raise UserError(f"--teacher {path}: is not finished, at epoch {record['epoch']}; train it to its end")
        sizes = self.model.input, self.model.classes
        if sizes != (tuple(image), classes):
            raise UserError(
                f"--teacher {path}: for images {sizes[0]} of {sizes[1]} classes; wanted {tuple(image)} of {classes}"
            )
        self.name, self.image, self.classes = self.model.about["name"], tuple(image), classes
        self.layers, self.prepare = frozen(self.model.layers), self.model.prepare
        if xp is not np:
            self.prepare = self.prepare.on(xp)
            arrays = {name: xp.asarray(a) for name, a in self.layers.params.items()}
            self.layers = model.rebuild(self.model.about["layers"], arrays)
        if not isinstance(self.layers, Sequential):
            raise UserError(f"--teacher {path}: is no network of layers one after another, and so has no hint layers")
        self.params, self.blocks = self.layers.params, tuple(self.layers)

    def described(self):
        return {"name": self.name, "input": self.image, "weights": files.digest(self.params.values())}

    def answer(self, images):
        return model.last(self.layers(self.prepare(images.astype(np.uint8, copy=False))))

    def up_to(self, h):
        part = object.__new__(FromFile)
        part.__dict__ |= {**vars(self), "layers": self.layers[:h]}
        part.params = part.layers.params
        return part

    @property
    def pieces(self):
        return pieces_of(self.layers)


class Onnx:
    """Reads and checks an ONNX model: it has one input, images in batches of any size."""

    def __init__(self, path):
        onnx, self.path = export.library(), Path(path)
        try:
            files.opened(self.path).close()  # OSError for what is no file
            self.proto = onnx.load(str(self.path), load_external_data=False)
            self.digest = self._digest()
            onnx.external_data_helper.load_external_data_for_model(self.proto, str(self.path.parent))
            self.graph = onnx.shape_inference.infer_shapes(self.proto).graph
            self.makes = {name: node for node in self.graph.node for name in node.output if name}
            TopologicalSorter({name: node.input for name, node in self.makes.items()}).prepare()  # no circle
        except OSError as error:
            raise UserError(f"{error.filename or self.path}: {error.strerror or error}") from None
        except Exception as error:  # protocol buffers raise whatever a damaged file leads them to
            raise UserError(f"{self.path}: no ONNX model ({' '.join(str(error).split())[:200]})") from None
        constants = {constant.name for constant in self.graph.initializer}
        inputs = [value for value in self.graph.input if value.name not in constants]
        if len(inputs) != 1:
            raise UserError(f"{self.path}: has {len(inputs)} inputs; wanted one, of images")
        if not self.graph.output:
            raise UserError(f"{self.path}: has no outputs; wanted one, of logits")
        (self.given,) = inputs
        tensor = self.given.type.tensor_type
        self.shape = [d.dim_value or d.dim_param or "?" for d in tensor.shape.dim]
        try:
            self.dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        except (KeyError, TypeError):
            self.dtype = np.dtype(object)
        description = f"{self.path}: its input {self.given.name} is {self.dtype} {tuple(self.shape)}"
        if len(self.shape) != 4 or self.dtype.name not in ("float32", "float64", "float16", "uint8"):
            raise UserError(f"{description}; wanted numbers of four axes, images in channels")
        if isinstance(self.shape[0], int):
            raise UserError(f"{description}; wanted any number of images: export it with a first axis that is free")
        if not all(isinstance(extent, int) for extent in self.shape[1:]):
            raise UserError(f"{description}; only the number of images may be free: export it for images of one size")

    def _digest(self):
        """Returns the SHA-256 of the file and of the files with its external weights."""
        elsewhere = {e.value for t in self.proto.graph.initializer for e in t.external_data if e.key == "location"}
        sha = hashlib.sha256()
        for path in (self.path, *(self.path.parent / name for name in sorted(elsewhere))):
            with files.opened(path) as file:
                sha.update(file.read())
        return sha.hexdigest()

    def layout(self, channels):
        """Returns "channels first" or "channels last", according to the shape of its input."""
        first, last = self.shape[1], self.shape[3]
        if channels not in (first, last):
            description = f"{self.path}: its input {self.given.name} is {tuple(self.shape)}"
            raise UserError(f"{description}, of {min(first, last)} channels; the images have {channels}")
        return LAYOUTS[first != channels]

    @property
    def image(self):
        """The shape (H, W, C) of an image, if the shorter of the axes that may be the channels' is theirs."""
        s = self.shape
        return (*s[2:], s[1]) if self.layout(min(s[1], s[3])) == LAYOUTS[0] else tuple(s[1:])

    def logits(self):
        """Returns the tensor of the logits: the first output, or the input of its softmax."""
        name = self.graph.output[0].name
        node = self.makes.get(name)
        while node is not None and node.op_type == "Identity":
            name = first_input(node)
            node = self.makes.get(name)
        return first_input(node) if node is not None and node.op_type == "Softmax" else name

    def channels_first(self, name, channels):
        """Whether a map has its channels before its rows: ONNX fixes this for some layers, the others keep it."""
        while (node := self.makes.get(name)) is not None:
            axes = next((tuple(a.ints) for a in node.attribute if a.name == "perm"), None)
            if node.op_type in FIRST or axes in REARRANGED:
                return node.op_type in FIRST or REARRANGED[axes]
            name = next((i for i in node.input if i in self.makes or i == self.given.name), None)
        return self.layout(channels) == LAYOUTS[0]

    def hint_shape(self, name, shape, channels):
        """Returns the shape of a hint with channels last, as the student needs it."""
        return (*shape[1:], shape[0]) if len(shape) == 3 and self.channels_first(name, channels) else shape

    def rectified(self, name):
        """Whether a tensor is the output of a ReLU, possibly pooled or rearranged."""
        node = self.makes.get(name)
        while node is not None and node.op_type in PASSED:
            node = self.makes.get(first_input(node))
        return node is not None and node.op_type == "Relu"

    def session(self, names):
        """Returns a session that computes these tensors."""
        onnx = export.library()
        shown = onnx.ModelProto()
        shown.CopyFrom(self.proto)
        there = {value.name for value in shown.graph.output}
        shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in there)
        try:
            return export.session(shown.SerializeToString())
        except Exception as error:  # onnxruntime's own kinds
            raise UserError(f"{self.path}: onnxruntime refuses it ({' '.join(str(error).split())[:200]})") from None

    def maps(self):
        """Returns {tensor: its shape without the batch} for all tensors that are computed per image.

        UserError where the logits are not, or have a number that is not finite, for random images.
        """
        float_types = {value.name: value.type.tensor_type.elem_type for value in self.graph.value_info}
        float_types |= {value.name: value.type.tensor_type.elem_type for value in self.graph.output}
        fixed, logits = {constant.name for constant in self.graph.initializer}, self.logits()
        known = [name for name in self.makes if float_types.get(name) in (1, 10, 11) and name not in fixed]
        run, probes = self.session(known), []
        for n in PROBES:
            images = np.random.default_rng(0).integers(0, 256, (n, *self.shape[1:])).astype(self.dtype)
            images = images if self.dtype == np.uint8 else images / self.dtype.type(255)
            probes.append(dict(zip(known, _run(self.path, run, known, {self.given.name: images}), strict=True)))
        maps = {name: shape for name in known if (shape := _of_each([y[name] for y in probes]))}
        if len(maps.get(logits, ())) != 1:
            raise UserError(f"{self.path}: {logits} is {maps.get(logits)}; wanted the logits of classes")
        if not all(np.isfinite(y[logits]).all() for y in probes):
            raise UserError(f"{self.path}: {logits} has a number that is not finite, for random images")
        return maps


PROBES = 3, 5  # numbers of images: an axis of one of these lengths is not that of the images for both


def _of_each(outputs):
    """Returns the shape of an output for one image, from its arrays for PROBES; None if no axis is that of images."""
    shapes = {y.shape[1:] for y in outputs}
    per_image = [y.ndim >= 2 and len(y) == n for y, n in zip(outputs, PROBES, strict=True)]
    return shapes.pop() if all(per_image) and len(shapes) == 1 else None


def first_input(node):
    return node.input[0] if node.input else ""


def _run(path, session, names, given):
    try:
        return session.run(names, given)
    except Exception as error:  # onnxruntime's own kinds
        raise UserError(f"{path}: onnxruntime cannot run it ({' '.join(str(error).split())[:200]})") from None


class FromOnnx(Given):
    """An ONNX model as a teacher.   hints: the tensors of hint layers 1, 2 ..."""

    look = (
        "look at --teacher-mean, --teacher-std, --teacher-range, the order of its classes and the data that trained it"
    )

    def __init__(self, path, image, classes, hints=(), pixels=None):
        self.path, self.image, self.classes, self.hints = Path(path), tuple(image), classes, tuple(hints)
        self.onnx = Onnx(self.path)
        self.name = self.path.name
        self.pixels = pixels or Pixels()
        self.layout = self.onnx.layout(image[2])
        if self.onnx.dtype == np.uint8 and self.pixels != Pixels():
            raise UserError(f"--teacher {path}: sees bytes, so --teacher-mean, -std and -range have no meaning")
        for name in ("mean", "std"):
            if len(getattr(self.pixels, name)) not in (1, image[2]):
                raise UserError(f"--teacher-{name}: wanted one number, or one for each of {image[2]} channels")
        for name in self.hints:
            if name not in self.onnx.makes:
                listed = f"; python run.py inspect {path} lists its tensors"
                raise UserError(
                    f"--hint-tensor {name}: no such tensor in {path}" + nearest(name, self.onnx.makes, listed)
                )
        self.tensor, self.sessions = self.onnx.logits(), {}
        sha = hashlib.sha256(json.dumps(self.described(), sort_keys=True).encode()).digest()
        self.params = {"model": np.frombuffer(sha, np.uint8)}
        self.blocks = (*self.hints, self.tensor)
        self.shapes = {}
        images = np.random.default_rng(0).integers(0, 256, (max(PROBES), *self.image)).astype(np.uint8)
        for name in self.blocks:
            part = self.part(name)
            outputs = [part.answer(images[:n]) for n in PROBES]
            self.shapes[name], y = _of_each(outputs), outputs[0]
            if self.shapes[name] is None or y.dtype.kind != "f":
                raise UserError(
                    f"{path}: {name} is {y.dtype} {y.shape} for {PROBES[0]} images; wanted numbers of each image"
                )
            if not all(np.isfinite(y).all() for y in outputs):
                raise UserError(f"{path}: {name} has a number that is not finite, for random images")
        if self.shapes[self.tensor] != (classes,):
            raise UserError(f"{path}: {self.tensor} has the shape {self.shapes[self.tensor]}; wanted {classes} classes")

    def described(self):
        return {
            "name": self.name,
            "input": self.image,
            "sha256": self.onnx.digest,
            "logits": self.tensor,
            "hints": self.hints,
            "size": self.size,
            "layout": self.layout,
            **asdict(self.pixels),
        }

    @property
    def size(self):
        """The height and width that the model sees."""
        s = self.onnx.shape
        return (s[2], s[3]) if self.layout == LAYOUTS[0] else (s[1], s[2])

    def part(self, tensor):
        part = object.__new__(FromOnnx)
        part.__dict__ |= vars(self) | {"tensor": tensor, "sessions": {}}
        return part

    def up_to(self, h):
        return self.part(self.blocks[h - 1])

    @property
    def pieces(self):
        """The pieces of the regressor's maxout: None, a ReLU, if the tensor ends in one; otherwise 1, linear."""
        return None if self.onnx.rectified(self.tensor) else 1

    def answer(self, images):
        if not len(images):
            return np.zeros((0, *self.shapes[self.tensor]), np.float32)
        (y,) = self.tensors((self.tensor,), images)
        if y.ndim == 4 and self.onnx.channels_first(self.tensor, self.image[2]):
            y = y.transpose(0, 2, 3, 1)
        return np.ascontiguousarray(y, np.float32)

    def outputs(self, images):
        names = tuple(dict.fromkeys(self.blocks))
        arrays = dict(zip(names, self.tensors(names, np.asarray(images)), strict=True))
        return {name: arrays[name] for name in self.hints} | {"logits": arrays[self.tensor]}

    def tensors(self, names, images):
        """These tensors, as the model has them."""
        images = np.ascontiguousarray(images).astype(np.uint8, copy=False)
        x = images if self.size == self.image[:2] else resized(images, self.size)
        x = x.astype(np.uint8) if self.onnx.dtype == np.uint8 else self.pixels(x, self.onnx.dtype)
        if self.layout == LAYOUTS[0]:
            x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
        key = os.getpid(), names
        if key not in self.sessions:  # one in each process: threads do not survive a fork
            self.sessions[key] = self.onnx.session(names)
        return _run(self.path, self.sessions[key], names, {self.onnx.given.name: x})


def resized(images, size):
    """Resizes images by linear interpolation between the centres of pixels; float32."""
    down, across = (_interpolation(old, new) for old, new in zip(images.shape[1:3], size, strict=True))
    x = np.tensordot(down, images.astype(np.float32), (1, 1)).transpose(1, 0, 2, 3)
    return np.tensordot(across, x, (1, 2)).transpose(1, 2, 0, 3)


def _interpolation(old, new):
    """Returns the matrix (new, old) that interpolates a row of `old` pixels at the centres of `new` pixels."""
    place = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    left = np.minimum(place.astype(int), max(0, old - 2))
    matrix = np.zeros((new, old), np.float32)
    matrix[np.arange(new), left] = 1 - (place - left)
    if old > 1:
        matrix[np.arange(new), left + 1] += place - left
    return matrix


ENDINGS = ".onnx", ".h5"


@cache
def given(path, image, classes, hints=(), pixels=None, xp=np):
    """Returns the teacher in a file, for images of this shape and this many classes.   xp: as in FromFile"""
    path = Path(path).expanduser()
    if path.suffix == ".onnx":
        return FromOnnx(path, image, classes, hints, pixels)
    if hints or (pixels or Pixels()) != Pixels():
        raise UserError(f"--teacher {path}: --hint-tensor and --teacher-mean, -std, -range are for ONNX models")
    return FromFile(path, image, classes, xp)


def experiment(one, path, hints=(), pixels=None, xp=np):
    """Returns the experiment with the trained teacher in a file, and with guided layers that suit its hints.

    The hint layers of an ONNX model are its hint tensors. In the file of a stage they are those of the experiment, as
    far as the teacher has as many layers; where they are of the size of the experiment's own, its guided layers stay.
    """

    def size(layers, h):
        """Returns the height and width of the output of the first h layers."""
        return layers[:h](image).shape[1:-1]

    student, image = one.student, np.zeros((0, *one.student.input), np.float32)
    classes, own = networks.build(student)(image).shape[1], networks.build(one.teacher)
    teacher = given(str(path), tuple(student.input), classes, tuple(hints), pixels, xp)
    maps = spec.shapes(student)
    if isinstance(teacher, FromOnnx) and not hints:
        raise UserError(f"--hint-tensor: wanted a tensor of {path}; python run.py inspect {path} lists them")
    presets = {}
    for name, preset in one.presets.items():
        changes = {"teacher_width_scale": 1.0}
        if isinstance(teacher, FromOnnx):
            numbers = range(1, len(hints) + 1)
        else:
            numbers = [min(h, len(teacher.blocks) - 1) for h in preset.hint_layer]
        sizes = [size(own, h) for h in preset.hint_layer]
        other = tuple(numbers) != preset.hint_layer or [size(teacher, h) for h in numbers] != sizes
        if isinstance(teacher, FromOnnx) or other:
            pairs = [beside(maps, teacher[:h](image).shape[1:]) for h in numbers]
            changes |= {"hint_layer": tuple(numbers), "guided_layer": tuple(g for g, _ in pairs)}
            changes["regressor"] = "fc" if "fc" in (kind for _, kind in pairs) else "conv"
        presets[name] = replace(preset, **changes)
    return replace(one, teacher=teacher, presets=presets)


def beside(maps, hint):
    """Chooses (guided layer, kind of regressor) for a hint of this shape; maps: the student's.

    The hint can be of any depth. The guided layer is the one with the smallest map that is at least as large as the
    hint, which makes the smallest regressor; of several, the one nearest to the middle. Without such a map the
    regressor is fully connected.
    """
    middle = (len(maps) + 1) / 2
    fitting = [i for i, (h, w, _) in enumerate(maps, start=1) if len(hint) == 3 and h >= hint[0] and w >= hint[1]]
    if not fitting:
        return round(middle), "fc"
    return min(fitting, key=lambda i: (maps[i - 1][0] * maps[i - 1][1], abs(i - middle), i)), "conv"
