"""Restricted Boltzmann machines from their energy alone: every probability is worked out by switching a unit on.

E(v, h) = -<h, W v + c> - <b, v>, where W v + c is an affine network's output: `linear` or `conv2d`. Units are 0 or 1;
v may hold probabilities, as images and the layers below give them.
"""

import numpy as np

from reference.ops import forward, sigmoid
from reference.train import gradient, weights, with_weights


def energy(v, h, encoder, b):
    """E(v, h) of each example.

    v (N, ...)    h (N, ...), of the shape of the encoder's output    b of the shape of one v
    """
    return np.array([-np.sum(hn * an) - np.sum(b * vn) for hn, an, vn in zip(h, forward(encoder, v), v, strict=True)])


def hidden(v, encoder, b):
    """P(h[n, i] = 1 | v), of each unit: P(1) / P(0) = exp(E(v, 0) - E(v, 1)), whatever the other hidden units are."""
    shape = forward(encoder, v).shape
    return _on(shape, lambda h: energy(v, h, encoder, b))


def visible(h, encoder, b):
    """P(v[n, i] = 1 | h), in the same way."""
    return _on((len(h), *np.shape(b)), lambda v: energy(v, h, encoder, b))


def contrastive_divergence(v0, encoder, b, draws):
    """CD-1: -(<h0 v0'> - <q1 v1'>), mean over the batch, for the arrays of the encoder and for b in turn.

    draws: numbers in [0, 1) of the shapes of h and of v; a unit is on where its number is below its probability

    The rule is the gradient of E(v0, h0) - E(v1, q1) while what was drawn is held fast, and so it is taken here.
    Bengio et al., 2006: h0 is drawn, q1 is P(h = 1 | v1).
    """
    h0 = (draws[0] < hidden(v0, encoder, b)).astype(float)
    v1 = (draws[1] < visible(h0, encoder, b)).astype(float)
    q1 = hidden(v1, encoder, b)

    def difference(arrays):
        *changed, changed_b = arrays
        there = with_weights(encoder, changed), changed_b
        return float(np.mean(energy(v0, h0, *there) - energy(v1, q1, *there)))

    return gradient(difference, [*weights(encoder), b])


def _on(shape, energy_of):
    p = np.zeros(shape)
    for i in np.ndindex(shape[1:]):
        states = np.zeros(shape)
        off = energy_of(states)
        states[(slice(None), *i)] = 1
        p[(slice(None), *i)] = sigmoid(off - energy_of(states))
    return p
