"""How large activations and gradients are at the start: why MNIST's student stalls at U(-.005, .005).

    python -m benchmarks.start

It needs no PyTorch and no data set: minifit draws the digits, and the teacher is results/weights/mnist-teacher.h5.
"""

from pathlib import Path

import numpy as np

from minifit import data, load, networks
from minifit.lab.report import table
from minifit.losses import cross_entropy, hint_loss
from minifit.regressors import pieces_of, regressor

TEACHER = Path(__file__).parents[1] / "results" / "weights" / "mnist-teacher.h5"
GUIDED, HINT, IMAGES = 4, 2, 128


def rms(a):
    """The root mean square of an array's numbers, as text."""
    return f"{np.sqrt(np.mean(np.square(a, dtype=np.float64))):.0e}"


def measured(init_range=None):
    """[[outputs, gradient on labels, gradient on eq. 3]] of each layer; without init_range, of a scaled start."""
    digits = data.load("digits", train=IMAGES, test=1)
    x, labels = digits.images / np.float32(255), digits.labels
    student, rng = networks.build(networks.MNIST_FITNET), np.random.default_rng(0)
    networks.initialise(student, rng, init_range)
    if init_range is None:
        networks.unit_variance(student, x)
    logits, cache = student.forward(x)
    on_labels = student.weight_gradients(cross_entropy(logits, labels)[1], cache)

    w_hint, w_guided = load(TEACHER).layers[:HINT], student[:GUIDED]
    hint = w_hint(x)
    w_r = regressor("conv", w_guided(x).shape[1:], hint.shape[1:], pieces_of(w_hint))
    networks.initialise(w_r, rng, 0.05 if init_range else None)  # its range in the released code
    stage_1 = w_guided + w_r
    maps, cache = stage_1.forward(x)
    on_hint = stage_1.weight_gradients(hint_loss(maps, hint)[1], cache)

    rows = []
    for i, layer in enumerate(student):
        x = layer(x)
        (w,) = (name for name in on_labels if name.startswith(f"{i}.") and name.endswith("w"))
        rows.append([rms(x), rms(on_labels[w]), rms(on_hint[w]) if i < GUIDED else None])
    return rows


def main():
    rows = zip(measured(0.005), measured(), strict=True)
    header = [
        "layer",
        *(f"{what}\n{how}" for how in ("U(+-.005)", "scaled") for what in ("outputs", "labels", "eq. 3")),
    ]
    print("Root mean squares of each layer's outputs, and of its weights' gradients on labels and on eq. 3")
    print(table([[str(i), *a, *b] for i, (a, b) in enumerate(rows, start=1)], header))


if __name__ == "__main__":
    main()
