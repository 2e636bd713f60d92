"""What networks see of an image, one value at a time: contrast normalisation, of the whole image and then locally."""

import math

import numpy as np


def contrast(images, scale=1.0):
    """Each image less the mean of all its values, over the root of the sum of their squares, times scale.

    images (N, H, W, C); an image whose root is below 1e-8 times scale is not divided, but its values are 0 there
    """
    y = np.zeros(images.shape)
    for n, image in enumerate(images):
        values = [float(value) for value in image.ravel()]
        mean = math.fsum(values) / len(values)
        norm = math.sqrt(math.fsum((value - mean) ** 2 for value in values)) / scale
        for i in np.ndindex(image.shape):
            y[(n, *i)] = (float(image[i]) - mean) / (norm if norm >= 1e-8 else 1.0)
    return y


def gaussian(size, sigma):
    """g[r, s] proportional to exp(-(r^2 + s^2) / (2 sigma^2)), r and s from the middle; their sum is 1."""
    g, middle = np.zeros((size, size)), size // 2
    for r, s in np.ndindex(size, size):
        g[r, s] = math.exp(-((r - middle) ** 2 + (s - middle) ** 2) / (2 * sigma**2))
    return g / g.sum()


def local_contrast(x, size=7, sigma=2.0, threshold=1e-4):
    """y[p, q] = (x[p, q] - sum_rs g[r, s] x[p + r, q + s]) / max(d[p, q], mean of d, threshold), in each channel.

    d[p, q] = sqrt(sum_rs g[r, s] x[p + r, q + s]^2), r and s from the middle of g; x is 0 outside of the image

    x, y (N, H, W, C)
    """
    N, H, W, C = x.shape
    g, middle, y = gaussian(size, sigma), size // 2, np.zeros(x.shape)
    for n, c in np.ndindex(N, C):
        blurred, d = np.zeros((H, W)), np.zeros((H, W))
        for p, q in np.ndindex(H, W):
            for r, s in np.ndindex(size, size):
                i, j = p + r - middle, q + s - middle
                if 0 <= i < H and 0 <= j < W:
                    blurred[p, q] += g[r, s] * float(x[n, i, j, c])
                    d[p, q] += g[r, s] * float(x[n, i, j, c]) ** 2
        d = np.sqrt(d)
        for p, q in np.ndindex(H, W):
            y[n, p, q, c] = (float(x[n, p, q, c]) - blurred[p, q]) / max(d[p, q], d.sum() / (H * W), threshold)
    return y
