"""Exports a trained network: as ONNX, with the preparation of images inside the graph, or as safetensors.

The ONNX model takes `images`, uint8 (N, H, W, C) for any N, and gives `probabilities` (N, classes). Before it is
written, its outputs are compared with minifit's.
"""

import json
from dataclasses import dataclass, field
from functools import singledispatch
from importlib.util import find_spec
from math import prod

import numpy as np

from minifit import UserError, __version__
from minifit.composites import Branches, Mean, Sequential
from minifit.data import preprocessing
from minifit.data.preprocessing import Local, Unit, Whitened
from minifit.files import write_atomically
from minifit.layers import (
    Binary,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAverage,
    Linear,
    Log,
    Maxout,
    MaxPool2d,
    ReLU,
    Reshape,
    Scale,
    Sigmoid,
    Softmax,
)
from minifit.model import BATCH, sliced

OPSET = 17  # of September 2022; its files have IR version 8
IR_VERSION = 8
AGREEMENT = 1e-5  # how much a logit may differ from minifit's, in units of the largest logit, or of 1 if that is less
LARGEST = 2**31 - 2**20  # bytes of one file of protocol buffers


def library(name="onnx"):
    """Imports a library of the extra [onnx]. UserError if it is missing."""
    try:
        if name == "onnx":
            import onnx

            return onnx
        import onnxruntime

        return onnxruntime
    except ImportError:
        raise UserError(f"{name} is not installed: pip install -e '.[onnx]'") from None


def there(name):
    """Whether a library is installed."""
    return find_spec(name) is not None


@dataclass(frozen=True)
class Value:
    """A tensor of a graph: its name, and the shape of one example, (H, W, C) or (D,).

    In the graph, maps are channels-first: the features are always axis 1.
    """

    name: str
    shape: tuple


@dataclass
class Graph:
    """The nodes and constants of a model that is being built."""

    nodes: list = field(default_factory=list)
    constants: list = field(default_factory=list)

    def add(self, kind, *inputs, outputs=1, name=None, **attributes):
        """Adds a node and returns the name of its output, or a list of names for several outputs."""
        names = [name] if name else [f"{kind.lower()}{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(library().helper.make_node(kind, inputs, names, **attributes))
        return names if outputs > 1 else names[0]

    def constant(self, array):
        name = f"constant{len(self.constants)}"
        self.constants.append(library().numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def number(self, value, dtype=np.float32):
        return self.constant(np.array(value, dtype))

    def transposed(self, name, *axes):
        return self.add("Transpose", name, perm=axes)

    def rows(self, x):
        """Adds nodes that flatten maps to (N, H W C), in the order of (H, W, C)."""
        name = x.name if prod(x.shape[:-1]) == 1 else self.transposed(x.name, 0, 2, 3, 1)
        return self.add("Flatten", name, axis=1)

    def maps(self, name, shape):
        """Adds nodes that turn rows of pixels, in the order of (H, W, C), into maps with channels first."""
        return self.transposed(self.add("Reshape", name, self.number([-1, *shape], np.int64)), 0, 3, 1, 2)


def onnx_model(model):
    """Returns the ONNX model of a minifit.model.Model. UserError for a layer that cannot be exported."""
    onnx, graph, about = library(), Graph(), model.about
    x = emit(model.layers, graph, Value(prepared(model.prepare, graph, model.input), model.input))
    graph.add("Softmax", graph.add("Identity", x.name, name="logits"), axis=1, name="probabilities")
    kinds = onnx.TensorProto
    made = onnx.helper.make_graph(
        graph.nodes,
        about["name"],
        [onnx.helper.make_tensor_value_info("images", kinds.UINT8, ["N", *model.input])],
        [onnx.helper.make_tensor_value_info("probabilities", kinds.FLOAT, ["N", *x.shape])],
        graph.constants,
    )
    opsets = [onnx.helper.make_opsetid("", OPSET)]
    made = onnx.helper.make_model(made, opset_imports=opsets, producer_name="minifit", producer_version=__version__)
    made.ir_version = IR_VERSION
    onnx.helper.set_model_props(made, {name: str(about[name]) for name in KNOWN if name in about})
    if made.ByteSize() > LARGEST:
        raise UserError(f"{about['name']}: takes {made.ByteSize():,} bytes as ONNX; one file holds {LARGEST:,}")
    return made


KNOWN = "name", "stage", "experiment", "seed", "data", "images", "classes"  # the properties of an exported model


@singledispatch
def emit(layer, graph, x):
    """Adds a layer to the graph and returns its output for the Value x."""
    raise UserError(f"a {type(layer).__name__} cannot be exported")


def value(name, layer, x):
    """Returns the Value of a layer's output; a batch of no images is enough to find the shape."""
    return Value(name, layer(np.zeros((0, *x.shape), np.float32)).shape[1:])


@emit.register
def _(layer: Sequential, graph, x):
    for child in layer:
        x = emit(child, graph, x)
    return x


@emit.register
def _(layer: Branches, graph, x):
    return emit(layer.trunk, graph, x)  # the logits are the last output, the trunk's


@emit.register
def _(layer: Mean, graph, x):
    outputs = [emit(child, graph, x) for child in layer.children.values()]
    total = graph.add("Sum", *(y.name for y in outputs))
    return Value(graph.add("Div", total, graph.number(len(outputs))), outputs[0].shape)


@emit.register
def _(layer: Conv2d, graph, x):
    w, b = graph.constant(layer.params["w"].transpose(3, 2, 0, 1)), graph.constant(layer.params["b"])
    return value(graph.add("Conv", x.name, w, b, pads=[layer.pad] * 4), layer, x)


@emit.register
def _(layer: Linear, graph, x):
    w, b = graph.constant(layer.params["w"]), graph.constant(layer.params["b"])
    return value(graph.add("Gemm", x.name, w, b), layer, x)


@emit.register
def _(layer: Maxout, graph, x):
    if layer.pieces == 1:
        return x
    pieces = graph.add("Split", x.name, outputs=layer.pieces, axis=1)
    return value(graph.add("Max", *pieces), layer, x)


@emit.register
def _(layer: MaxPool2d, graph, x):
    y = value("", layer, x)
    size, stride = layer.size, layer.stride
    # The last windows reach beyond the border. Padding by as much gives the same windows in every runtime.
    beyond = [max(0, (p - 1) * stride + size - h) for p, h in zip(y.shape[:2], x.shape[:2], strict=True)]
    shape = {"kernel_shape": [size] * 2, "strides": [stride] * 2, "pads": [0, 0, *beyond]}
    return Value(graph.add("MaxPool", x.name, **shape), y.shape)


@emit.register
def _(layer: GlobalAverage, graph, x):
    return value(graph.add("ReduceMean", x.name, axes=[2, 3], keepdims=0), layer, x)


@emit.register
def _(layer: ReLU, graph, x):
    return Value(graph.add("Relu", x.name), x.shape)


@emit.register
def _(layer: Sigmoid, graph, x):
    return Value(graph.add("Sigmoid", x.name), x.shape)


@emit.register
def _(layer: Softmax, graph, x):
    return Value(graph.add("Softmax", graph.add("Div", x.name, graph.number(layer.tau)), axis=1), x.shape)


@emit.register
def _(layer: Log, graph, x):
    least = graph.add("Max", x.name, graph.number(np.finfo(np.float32).tiny))
    return Value(graph.add("Mul", graph.add("Log", least), graph.number(layer.tau)), x.shape)


@emit.register
def _(layer: Scale, graph, x):
    scaled = graph.add("Mul", x.name, graph.constant(layer.params["scale"]))
    return Value(graph.add("Add", scaled, graph.constant(layer.params["shift"])), x.shape)


@emit.register
def _(layer: Binary, graph, x):
    return value(graph.add("Concat", graph.add("Sub", x.name, x.name), x.name, axis=1), layer, x)


@emit.register
def _(layer: Flatten, graph, x):
    return x if len(x.shape) == 1 else value(graph.rows(x), layer, x)


@emit.register
def _(layer: Reshape, graph, x):
    rows = x.name if len(x.shape) == 1 else graph.rows(x)
    return Value(graph.maps(rows, layer.shape), layer.shape)


@emit.register
def _(layer: Dropout, graph, x):
    return x  # outside training, dropout is the identity


@singledispatch
def prepared(prepare, graph, shape):
    """Adds the preparation of `images`, bytes (N, H, W, C), to the graph; returns the result's name, channels first."""
    raise UserError(f"the preparation {type(prepare).__name__} cannot be exported")


@prepared.register
def _(prepare: Unit, graph, shape):
    pixels = graph.add("Cast", "images", to=library().TensorProto.FLOAT)
    return graph.transposed(graph.add("Div", pixels, graph.number(255)), 0, 3, 1, 2)


@prepared.register
def _(prepare: Whitened, graph, shape):
    centred = graph.add("Sub", contrast(graph, prepare.scale), graph.constant(prepare.zca.mean))
    return graph.maps(graph.add("MatMul", centred, graph.constant(prepare.zca.matrix)), shape)


@prepared.register
def _(prepare: Local, graph, shape):
    x, n, others = graph.maps(contrast(graph, 1.0), shape), prepare.channels, []
    if n is not None and n < shape[2]:
        x, *others = graph.add("Split", x, graph.number([n, shape[2] - n], np.int64), outputs=2, axis=1)
    y = local_contrast(graph, x, shape)
    return graph.add("Concat", y, *others, axis=1) if others else y


def contrast(graph, scale):
    """Adds preprocessing.contrast of `images`, as rows, float32."""
    double = np.float64
    x = graph.add("Cast", graph.add("Flatten", "images", axis=1), to=library().TensorProto.DOUBLE)
    x = graph.add("Sub", x, graph.add("ReduceMean", x, axes=[1]))
    d = graph.add("Sqrt", graph.add("ReduceSum", graph.add("Mul", x, x), graph.number([1], np.int64)))
    d = graph.add("Div", d, graph.number(scale, double))
    flat = graph.add("Less", d, graph.number(1e-8, double))
    d = graph.add("Where", flat, graph.number(1, double), d)
    return graph.add("Cast", graph.add("Div", x, d), to=library().TensorProto.FLOAT)


def local_contrast(graph, x, shape, threshold=1e-4):
    """Adds preprocessing.local_contrast of maps."""
    blurs = (preprocessing._blur(extent, 7, 2.0).astype(np.float32) for extent in shape[:2])
    down, across = graph.constant(next(blurs)), graph.constant(next(blurs).T)

    def blurred(a):
        return graph.add("MatMul", graph.add("MatMul", down, a), across)

    d = graph.add("Sqrt", blurred(graph.add("Mul", x, x)))
    d = graph.add("Max", d, graph.add("ReduceMean", d, axes=[2, 3]), graph.number(threshold))
    return graph.add("Div", graph.add("Sub", x, blurred(x)), d)


def session(made, threads=1):
    """Returns an onnxruntime session for a model's bytes or file."""
    ort = library("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.log_severity_level = 4
    return ort.InferenceSession(made, options, providers=["CPUExecutionProvider"], enable_fallback=0)


def check(made, model, images):
    """Returns the largest difference between onnxruntime's logits and minifit's. UserError if they do not agree.

    A difference is relative to the largest logit, or to 1 if that is larger.
    """
    onnx = library()
    shown = onnx.ModelProto()
    shown.CopyFrom(made)
    kind = onnx.TensorProto.FLOAT
    shown.graph.output.append(onnx.helper.make_tensor_value_info("logits", kind, ["N", model.classes]))
    run, worst = session(shown.SerializeToString()), 0.0
    for part in sliced(images):
        ours, theirs = model.logits(part), run.run(["logits"], {"images": np.ascontiguousarray(part)})[0]
        if theirs.shape != ours.shape or not np.isfinite(theirs).all():
            raise UserError(f"{model.about['name']}: onnxruntime gives {theirs.shape}, or a number that is not finite")
        worst = max(worst, float(np.abs(ours - theirs).max() / max(1.0, np.abs(ours).max())))
    if worst > AGREEMENT:
        raise UserError(
            f"{model.about['name']}: onnxruntime's logits differ from minifit's by {worst:.2g}; at most {AGREEMENT:g}"
        )
    return worst


def write_onnx(model, path, images):
    """Writes an ONNX model if it agrees with minifit on these images; returns the largest difference of a logit."""
    made = onnx_model(model)
    worst = check(made, model, images)
    write_atomically(path, lambda file: file.write(made.SerializeToString(deterministic=True)))
    return worst


def write_safetensors(model, path):
    """Writes the arrays in the format safetensors, with the description of the network in its metadata.

    Names and layouts are those of minifit.model: "0.0.w" is (R, S, C, K) of a convolution, (D, E) of a linear layer.
    The whitening is in "preprocessing.mean" (D,) and "preprocessing.matrix" (D, D), with D = H W C.
    """
    arrays = dict(model.layers.params)
    if isinstance(model.prepare, Whitened):
        arrays |= {f"preprocessing.{name}": a for name, a in vars(model.prepare.zca).items()}
    header, start = {"__metadata__": {"format": "minifit", "network": json.dumps(model.about, sort_keys=True)}}, 0
    for name, a in arrays.items():
        header[name] = {"dtype": "F32", "shape": list(a.shape), "data_offsets": [start, start + a.nbytes]}
        start += a.nbytes
    written = json.dumps(header).encode()
    written += b" " * (-len(written) % 8)

    def write(file):
        file.write(len(written).to_bytes(8, "little") + written)
        for a in arrays.values():
            file.write(np.ascontiguousarray(a, "<f4"))

    write_atomically(path, write)


def noise(shape, n=4 * BATCH):
    """Returns random images, for a comparison without the test images."""
    return np.random.default_rng(0).integers(0, 256, (n, *shape), np.uint8)
