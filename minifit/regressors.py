"""The regressor r(v; W_r) of eq. 3 maps the guided layer's output to the hint's shape; the final network lacks it."""

from math import prod

import numpy as np

from minifit import UserError
from minifit.backend import TRAINING, refuse_more_than_memory
from minifit.composites import Sequential, leaves
from minifit.layers import Conv2d, Flatten, Linear, ReLU, Reshape
from minifit.networks import activation, zeros

KINDS = "conv", "fc", "none"


def regressor(kind, guided, hint, pieces, max_norm=None, xp=np, dtype=np.float32):
    """Builds a Sequential that maps `guided`, a shape (N_g1, N_g2, O_g), to `hint`, a shape (N_h1, N_h2, O_h).

    Its weights are 0 until `networks.initialise` draws them.

    conv  a valid convolution, k_i = N_g,i - N_h,i + 1: k1 k2 O_h O_g weights per piece
    fc    fully connected: N_h1 N_h2 O_h N_g1 N_g2 O_g weights per piece
    none  no regressor; the shapes must agree

    pieces: the non-linearity, which must be that of the hint layer (section 2.2 of the paper): Maxout(pieces), or ReLU
    for None. One piece is linear.
    """
    m = pieces or 1
    conv_fits = weights("conv", guided, hint, pieces) > 0
    if kind == "none":
        if guided != hint:
            fitting = "conv or fc" if conv_fits else "fc"
            raise UserError(f"regressor none: guided {guided} and hint {hint} differ; {fitting} would fit")
        return Sequential([])
    if kind == "fc":
        n = weights(kind, guided, hint, pieces)
        otherwise = "conv would fit" if conv_fits else "a smaller guided map or hint would fit"
        refuse_more_than_memory(f"regressor fc: training its {n:,} weights would", TRAINING * n, otherwise)
        w, b = zeros((prod(guided), m * prod(hint)), xp, dtype)
        return Sequential([Flatten(), Linear(w, b, max_norm), activation(pieces), Reshape(hint)])
    if kind != "conv":
        raise UserError(f"regressor {kind!r}: wanted one of {', '.join(KINDS)}")
    if len(guided) != 3 or len(hint) != 3:
        raise UserError(f"regressor conv: guided {guided} and hint {hint} are not both maps (H, W, C); fc would fit")
    k1, k2 = guided[0] - hint[0] + 1, guided[1] - hint[1] + 1
    if k1 < 1 or k2 < 1:
        raise UserError(
            f"regressor conv: hint {hint} is larger than guided {guided}, and a valid convolution only shrinks; "
            f"a guided map of at least {hint[0]}x{hint[1]}, a hint of at most {guided[0]}x{guided[1]}, or fc would fit"
        )
    w, b = zeros((k1, k2, guided[2], m * hint[2]), xp, dtype)
    return Sequential([Conv2d(w, b, max_norm=max_norm), activation(pieces)])


def weights(kind, guided, hint, pieces):
    """Counts the weights of a regressor without allocating them; 0 if none is needed or none fits."""
    m = pieces or 1
    if kind == "fc":
        return prod(guided) * m * prod(hint)
    if kind == "none" or len(guided) != 3 or len(hint) != 3:
        return 0
    return max(0, guided[0] - hint[0] + 1) * max(0, guided[1] - hint[1] + 1) * guided[2] * m * hint[2]


def pieces_of(layer):
    """Returns the maxout pieces of a layer's last non-linearity (None for ReLU), which its regressor must have too."""
    inner = list(leaves(layer))
    for leaf in reversed(inner):
        if isinstance(leaf, ReLU):
            return None
        if hasattr(leaf, "pieces"):  # a Maxout, or a teacher trained elsewhere that says what its hint ends in
            return leaf.pieces
    raise UserError(f"a hint layer needs a maxout or ReLU; this block is {[type(leaf).__name__ for leaf in inner]}")
