"""Where a training step's time goes, by layer, by operation and by line: python -m benchmarks.profile --network NAME

One worker takes a minibatch through minifit's own code. Every line of minifit that runs is timed, with the NumPy it
calls; then, in other steps, the layers' methods. Tracing lines has its price, which is printed too: it weighs on short
lines, so that a function called often looks dearer than it is.
"""

import argparse
import linecache
import re
import sys
import time
from collections import defaultdict
from pathlib import Path

import minifit
from benchmarks.contestants import Minifit
from benchmarks.step import NETWORKS, machine, named, positive, table

SOURCE = str(Path(minifit.__file__).parent)
PRODUCT = re.compile(r"\w[\])]* @ |\.dot\(|\.matmul\(|\.einsum\(|\.tensordot\(")
METHODS = ("forward", "backward", "weight_gradients")


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__.partition(":")[0] + ".")
    parser.add_argument("--network", type=named, default=NETWORKS[0], metavar="NAME")
    parser.add_argument("--batch", type=positive, default=128)
    parser.add_argument("--microbatch", type=positive, help="images at once; else as the network says")
    parser.add_argument("--repeats", type=positive, default=5, help="steps that are averaged")
    parser.add_argument("--lines", type=positive, default=15, help="how many of the dearest lines are shown")
    options = parser.parse_args(arguments)

    size = options.microbatch or options.network.microbatch
    print(f"{machine()}\n{options.network.name}: a step of {options.batch} images, {size} at once, one worker")
    with Minifit(options.network, options.batch, size, 1) as ours:
        ours.step(0.5)
        untouched = 1e3 * ours.step(0.5)
        lines, traced = by_line(ours.step, options.repeats)
        layers = by_layer(ours, options.repeats)
    print(f"{untouched:.1f} ms; {traced:.1f} ms while every line is traced\n")
    print(layer_table(layers) + "\n")
    print(operation_table(lines) + "\n")
    print(line_table(lines, options.lines))


def by_layer(ours, repeats):
    """{(place, layer, method): ms a step} of every layer that is not made of layers."""
    spent, inside = defaultdict(float), []

    def timed(method, key):
        def call(*arguments):
            if inside:  # a layer's method that its own method calls
                return method(*arguments)
            inside.append(key)
            start = time.perf_counter()
            try:
                return method(*arguments)
            finally:
                spent[key] += time.perf_counter() - start
                inside.pop()

        return call

    for place, layer in placed(ours.layers):
        for name in METHODS:
            setattr(layer, name, timed(getattr(layer, name), (place, type(layer).__name__, name)))
    for _ in range(repeats):
        ours.step()
    return {key: 1e3 * seconds / repeats for key, seconds in spent.items()}


def placed(layer, place=""):
    """Yields (place, layer) for every layer that is not made of layers."""
    for name, child in layer.children.items():
        yield from placed(child, f"{place}.{name}" if place else name)
    if not layer.children:
        yield place, layer


def by_line(step, repeats):
    """({(file, line, function): ms a step}, ms a step) of the lines of minifit and of the NumPy they call."""
    spent, current, since = defaultdict(float), None, 0.0

    def now_at(place):
        nonlocal current, since
        now = time.perf_counter()
        if current:
            spent[current] += now - since
        current, since = place, time.perf_counter()

    def place(frame):
        code = frame.f_code
        return code.co_filename, frame.f_lineno, getattr(code, "co_qualname", code.co_name)

    def trace(frame, event, argument):
        if not frame.f_code.co_filename.startswith(SOURCE):
            return None  # its time belongs to the line that called it
        if event == "return":
            caller = frame.f_back
            while caller and not caller.f_code.co_filename.startswith(SOURCE):
                caller = caller.f_back
            now_at(place(caller) if caller else None)
        else:
            now_at(place(frame))
        return trace

    before = sys.gettrace()  # of a debugger, or of a measurement of coverage
    sys.settrace(trace)
    try:
        traced = sum(step() for _ in range(repeats)) / repeats
    finally:
        sys.settrace(before)
    return {key: 1e3 * seconds / repeats for key, seconds in spent.items()}, 1e3 * traced


def operation(file, line, function):
    """What a line does: a matrix product, or else what its function (or its class, for a layer) is there for."""
    if PRODUCT.search(linecache.getline(file, line)):
        return "matrix product, and what stands in its line"
    owner = function.replace(".<locals>", "").split(".")[0]
    return f"{Path(file).stem}: {owner}"


def layer_table(spent):
    rows = []
    for place, layer in dict.fromkeys(key[:2] for key in spent):
        forward = spent.get((place, layer, "forward"), 0.0)
        backward = sum(spent.get((place, layer, name), 0.0) for name in METHODS[1:])
        rows.append((f"{place} {layer}", forward, backward, forward + backward))
    rows.append(("all layers", *(sum(row[i] for row in rows) for i in (1, 2, 3))))
    total = rows[-1][3]
    cells = [[name, *(f"{ms:.2f}" for ms in times), f"{100 * times[-1] / total:.1f}"] for name, *times in rows]
    return table(["layer", "forward ms", "backward ms", "both ms", "%"], cells)


def operation_table(spent):
    sums = defaultdict(float)
    for (file, line, function), ms in spent.items():
        sums[operation(file, line, function)] += ms
    return _ranked("operation", sums, len(sums))


def line_table(spent, count):
    sums = defaultdict(float)
    for (file, line, _), ms in spent.items():
        text = linecache.getline(file, line).strip().replace("|", "\\|")
        sums[f"{Path(file).relative_to(SOURCE)}:{line} `{text}`"] += ms
    return _ranked("line", sums, count)


def _ranked(what, sums, count):
    total = sum(sums.values())
    ranked = sorted(sums.items(), key=lambda item: -item[1])[:count]
    return table([what, "ms", "%"], [[name, f"{ms:.2f}", f"{100 * ms / total:.1f}"] for name, ms in ranked])


if __name__ == "__main__":
    main()
