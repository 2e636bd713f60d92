"""What float32 costs every convolution, by each method that could compute it: python -m benchmarks.rounding

The largest difference from the definition in float64, over the root mean square of what is computed, for the output,
the gradient of the input and the gradient of the filters; standard normal numbers throughout; 8 images.
"""

import numpy as np

from benchmarks.step import NETWORKS
from minifit import networks
from minifit.convolution import SMALL, Stacked, Unfolded, choose, fourier, winograd
from minifit.layers import Conv2d, Sequential
from minifit.lab.report import table

IMAGES = 8
LARGEST = 40  # H + W + 2 pad of a map that is worth one transform as a whole


def main():
    rng, rows, seen = np.random.default_rng(0), [], set()
    for network in NETWORKS:
        for shape, layer in convolutions(networks.build(network, rng), np.zeros((1, *network.input), np.float32)):
            w, pad = layer.params["w"].shape, layer.pad
            if (shape, w, pad) not in seen:
                seen.add((shape, w, pad))
                rows += errors(network.name, shape, w, pad, rng)
    print(table(rows, ["first met in", "map", "filters", "pad", "method", "y", "dx", "dw", "chosen"]))


def convolutions(layer, x):
    """(H, W of its input, layer) for every convolution in a network."""
    for inner in layer:
        if isinstance(inner, Sequential):
            yield from convolutions(inner, x)
        elif isinstance(inner, Conv2d):
            yield x.shape[1:3], inner
        x = inner(x)


def errors(name, size, kernel, pad, rng):
    x, w = rng.normal(size=(IMAGES, *size, kernel[2])), rng.normal(size=kernel)
    methods, single = {"definition": Unfolded(pad)}, np.dtype(np.float32)
    if len(x) * w.size <= SMALL:
        methods["stacked"] = Stacked(pad)
    if kernel[:2] == (3, 3):
        methods["Winograd"] = winograd(size, (3, 3), pad, single)
    if sum(size) + 2 * pad <= LARGEST:
        methods["Fourier"] = fourier(size, kernel[:2], pad, single)
    b = np.zeros(kernel[3])
    y, kept = methods["definition"].forward(x, w, b)
    dy = rng.normal(size=y.shape)
    exact = y, *methods["definition"].backward(dy, kept, w)
    chosen = choose(x.astype(single), w, pad)
    for method_name, method in methods.items():
        x32, w32, dy32 = (a.astype(single) for a in (x, w, dy))
        y32, kept = method.forward(x32, w32, b.astype(single))
        found = y32, *method.backward(dy32, kept, w32)
        worst = [np.abs(a - b).max() / np.sqrt((b * b).mean()) for a, b in zip(found, exact, strict=True)]
        shape, filters = "x".join(map(str, size)), "x".join(map(str, kernel))
        yield [
            name,
            shape,
            filters,
            pad,
            method_name,
            *(f"{e:.0e}" for e in worst),
            "*"
            if type(method) is type(chosen) and np.shape(getattr(method, "a", 0)) == np.shape(getattr(chosen, "a", 0))
            else "",
        ]


if __name__ == "__main__":
    main()
