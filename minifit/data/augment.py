"""Random flips and crops: drawn from the run's generator, applied by whichever worker has the images, on the host.

A crop of the image with `pad` pixels of zeros on each side, of the image's own size, is the image shifted by up to
`pad` pixels, zeros moving in. In whitened images, zero is about the mean of each pixel over the training set.

The paper flips [A.1.2]; its released code also crops, with pad = 8, from whitened images.
"""

import numpy as np


def draw(rng, count, flips=True, pad=0):
    """What to do with each of `count` images: choices int16 (count, 3).

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
    """The images, each mirrored and then shifted as `draw` chose; x is not written to.

    x (N, H, W, C)    choices (N, 3)
    """
    height, width = x.shape[1:3]
    if choices.shape != (len(x), 3):
        raise ValueError(f"apply: choices {choices.shape} for images {x.shape}, wanted ({len(x)}, 3)")
    y = np.zeros_like(x)
    for image, result, (mirror, down, right) in zip(x, y, choices.tolist(), strict=True):
        if abs(down) >= height or abs(right) >= width:
            raise ValueError(f"apply: a shift by ({down}, {right}) leaves nothing of an image of {height}x{width}")
        if mirror:
            image = image[:, ::-1]
        rows, from_rows = _overlap(down, height)
        columns, from_columns = _overlap(right, width)
        result[rows, columns] = image[from_rows, from_columns]
    return y


def _overlap(shift, size):
    """Where a line of `size` pixels, shifted, lies on itself: there, and the same pixels before the shift."""
    return slice(max(shift, 0), size + min(shift, 0)), slice(max(-shift, 0), size - max(shift, 0))
