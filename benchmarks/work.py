"""What every contestant does: the same images, the same weights, the same steps on the labels."""

import numpy as np

from minifit import fitnets, networks

SEED, LR, MOMENTUM = 20150507, 0.01, 0.9
LEAD = 44  # logits between the two likeliest classes of the median image: the MNIST FitNet's after 107 epochs on labels


def examples(network, n, dtype=np.float32, sure=False):
    """(x, labels): n random images with random labels, the same for all.

    sure: images so strong that the network which is `built` is sure of them, and right, as after long training
    """
    rng = np.random.default_rng([SEED, n])
    labels = rng.integers(network.blocks[-1].classes, size=n)
    x = rng.standard_normal((n, *network.input)).astype(dtype)
    if sure:
        layers = built(network, dtype)
        x *= LEAD / np.median(leads(layers(x)))
        labels = layers(x).argmax(axis=-1)
    return x, labels


def leads(logits):
    """By how much the largest logit of each image exceeds the second."""
    second, first = np.sort(logits, axis=-1)[:, -2:].T
    return first - second


def built(network, dtype=np.float32, xp=np):
    """The network with weights that are the same for all, and no two equal biases.

    With equal ones the pieces of a maxout tie wherever a window holds nothing but padding, and rounding would decide.
    """
    rng = np.random.default_rng(SEED)
    layers = networks.build(network, xp=xp, dtype=dtype)
    networks.initialise(layers, rng)
    for name, p in layers.params.items():
        if name.endswith("b"):
            p[...] = xp.asarray(0.1 * rng.standard_normal(p.shape))
    return layers


def stage(layers):
    """A stage that trains the layers on labels."""
    return fitnets.Stage("labels", layers, fitnets.LABELS, schedule=None)
