"""minifit: FitNets (Romero et al., ICLR 2015) from scratch in NumPy, every gradient written by hand.

The alphabet of sizes. Capitals are sizes, lower case is arrays, and `d` means gradient of the loss:

    N batch   H, W input height, width   C input channels
    R, S kernel height, width            P, Q output height, width
    K output channels (units)            M maxout pieces        D, E features

Images are channels-last, x (N, H, W, C); filters are w (R, S, C, K). A maxout layer's M*K filters are piece-major:
z.reshape(..., M, K).max(axis=-2).
"""

__version__ = "0.1.0"


class UserError(ValueError):
    """A mistake of the user, in one line that says what is wrong and where. run.py prints it and exits with 2."""


def __getattr__(name):
    """Imports `load` when it is asked for. An import at the top would be circular: all modules import this one."""
    if name == "load":
        from minifit.model import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
