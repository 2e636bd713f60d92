"""Random flips and crops: drawn on the host from the run's generator, applied by the worker that has the images.

A crop pads the image with `pad` pixels of zeros on each side and cuts out a window of the old size. This shifts the
image by up to `pad` pixels and fills with zeros. In whitened images, zero is about the mean of each pixel.

The paper flips [A.1.2]; its released code also crops, with pad = 8, from whitened images.
"""

import numpy as np

from minifit import kernels
from minifit.backend import array_module


def draw(rng, count, flips=True, pad=0):
    """Draws how to augment each of `count` images: choices int16 (count, 3).

    choices[i] = (1 to mirror it left to right or 0, pixels to shift it down, pixels to shift it right)
    """
    if pad < 0:
        raise ValueError(f"draw: pad is {pad}, wanted 0 or more pixels")
    choices = np.zeros((count, 3), np.int16)
    if flips:
        choices[:, 0] = rng.integers(2, size=count)
    if pad:
        choices[:, 1:] = rng.integers(-pad, pad + 1, (count, 2))
    return choices


def apply(x, choices):
    """Returns the images, each mirrored and then shifted as `draw` chose; x stays unchanged.

    x (N, H, W, C), on either backend    choices (N, 3), on the host
    """
    N, H, W, C = x.shape
    if choices.shape != (N, 3):
        raise ValueError(f"apply: choices {choices.shape} for images {x.shape}, wanted ({N}, 3)")
    mirror, down, right = (column[:, None] for column in choices.astype(np.int64).T)
    for shift in zip(down[:, 0].tolist(), right[:, 0].tolist(), strict=True):
        if abs(shift[0]) >= H or abs(shift[1]) >= W:
            raise ValueError(f"apply: a shift by {shift} leaves nothing of an image of {H}x{W}")
    if array_module(x) is not np:
        return kernels.augment(x, choices)
    # Pixel (row, column) of the result is this one of the image, or 0 where the image has none.
    row, column = np.arange(H) - down, np.arange(W) - right
    inside = ((row >= 0) & (row < H))[:, :, None] & ((column >= 0) & (column < W))[:, None, :]
    column = np.where(mirror, W - 1 - column, column)
    pixel = (np.arange(N)[:, None, None] * H + row[:, :, None]) * W + column[:, None, :]
    y = x.reshape(N * H * W, C)[np.where(inside, pixel, 0)]
    return y if inside.all() else np.where(inside[..., None], y, 0)
