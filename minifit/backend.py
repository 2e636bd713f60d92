"""Finds the library of an array: NumPy on the host or CuPy on a GPU. The only file that names cupy."""

import os
import sys
from functools import cache

import numpy as np

from minifit import UserError

BACKENDS = "numpy", "cupy"  # the names that `use` accepts

# Bytes per weight in training, which holds about ten copies in float32: the weight as drawn (float64), as the workers
# read it, two sums of gradients, the optimiser's state, the best so far, and the file that is written.
TRAINING = 40


def array_module(*arrays):
    """Returns the library that owns all of these arrays: the package that defines their type.

    TypeError if host and device arrays are mixed. (CuPy would refuse them too, but later and without saying where.)
    """
    if len(arrays) == 1:  # at once: layers ask very often
        return _library(type(arrays[0]))
    packages = {type(array).__module__.partition(".")[0] for array in arrays}
    if len(packages) != 1:
        raise TypeError(f"arrays of one library are needed, not of {' and '.join(sorted(packages)) or 'none'}")
    return _library(type(arrays[0]))


@cache
def _library(kind):
    package = kind.__module__.partition(".")[0]
    library = sys.modules.get(package)
    if not hasattr(library, "ndarray"):
        raise TypeError(f"arrays are needed, not {kind.__name__} of {package}")
    return library


def use(name):
    """Returns the library called `name`, "numpy" or "cupy". UserError if CuPy or its GPU is missing."""
    if name == "numpy":
        return np
    if name != "cupy":
        raise UserError(f"--backend is numpy or cupy, not {name!r}")
    try:
        import cupy
    except ImportError:
        raise UserError("--backend cupy: CuPy is not installed; pip install -e '.[cuda12]' or '.[cuda13]'") from None
    try:
        if cupy.cuda.runtime.getDeviceCount() < 1:
            raise UserError("--backend cupy: CuPy is installed but there is no GPU")
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise UserError(f"--backend cupy: CuPy is installed but finds no usable GPU ({error})") from None
    return cupy


def to_host(array):
    """Returns a NumPy array with the same elements; a NumPy array is returned as it is."""
    return array if isinstance(array, np.ndarray) else array.get()


def refuse_more_than_memory(what, needed, otherwise):
    """Raises UserError if something needs more bytes than this machine has."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        needed, there = (f"{size / 2**30:,.1f}" for size in (needed, there))
        raise UserError(f"{what} take about {needed} GiB, and this machine has {there}; {otherwise}")


def describe(xp):
    """Returns the name, version and device of a library, for the record of a run."""
    if xp is np:
        return {"backend": "numpy", "numpy": np.__version__}
    device = xp.cuda.runtime.getDeviceProperties(xp.cuda.Device().id)["name"].decode()
    return {"backend": "cupy", "numpy": np.__version__, "cupy": xp.__version__, "device": device}
