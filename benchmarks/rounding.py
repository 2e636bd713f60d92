"""What float32 costs every convolution, by each method that could compute it: python -m benchmarks.rounding

The largest difference from the definition in float64, over the root mean square of what is computed, for the output,
the gradient of the input and the gradient of the filters; standard normal numbers throughout; 8 images.
"""

import argparse

import numpy as np

from benchmarks.step import NETWORKS, choose_networks, table
from minifit import networks
from minifit.convolution import SMALL, Stacked, Unfolded, choose, fourier, winograd
from minifit.layers import Conv2d

IMAGES = 8
LARGEST = 40  # H + W + 2 pad of a map that is worth one transform as a whole


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rounding", description=__doc__.partition(":")[0] + ".")
    choose_networks(parser, NETWORKS)
    options = parser.parse_args(arguments)
    rng, rows, seen = np.random.default_rng(0), [], set()
    for network in options.network:
        for shape, w, pad in convolutions(network):
            if (shape, w, pad) not in seen:
                seen.add((shape, w, pad))
                rows += errors(network.name, shape, w, pad, rng)
    print(table(["first met in", "map", "filters", "pad", "method", "y", "dx", "dw", "chosen"], rows))


def convolutions(network):
    """[(H, W of its input, shape of its filters, padding)] of every convolution in a network."""
    shapes = []

    def see(layer, x):
        if isinstance(layer, Conv2d):
            shapes.append((x.shape[1:3], layer.params["w"].shape, layer.pad))

    networks.build(network).visit(np.zeros((1, *network.input), np.float32), see)
    return shapes


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
    y, cache = methods["definition"].forward(x, w, b)
    dy = rng.normal(size=y.shape)
    exact = y, *methods["definition"].backward(dy, cache, w)
    chosen = choose(x.astype(single), w, pad)
    for method_name, method in methods.items():
        x32, w32, dy32 = (a.astype(single) for a in (x, w, dy))
        y32, cache = method.forward(x32, w32, b.astype(single))
        products = y32, *method.backward(dy32, cache, w32)
        worst = [np.abs(a - b).max() / np.sqrt((b * b).mean()) for a, b in zip(products, exact, strict=True)]
        shape, filters = "x".join(map(str, size)), "x".join(map(str, kernel))
        yield [
            name,
            shape,
            filters,
            str(pad),
            method_name,
            *(f"{e:.0e}" for e in worst),
            "*" if type(method) is type(chosen) and getattr(method, "tile", 0) == getattr(chosen, "tile", 0) else "",
        ]


if __name__ == "__main__":
    main()
