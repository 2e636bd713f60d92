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
    """What the user got wrong, in one line that says what and where; run.py prints it and exits with status 2."""


def __getattr__(name):
    """`from minifit import load` fetches it now, and not before: the modules import what is above from here."""
    if name == "load":
        from minifit.model import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
