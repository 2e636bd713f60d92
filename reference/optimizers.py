"""The update rules, one weight at a time; nothing is changed in place: each rule returns the new arrays."""

import math

import numpy as np


def sgd(w, g, velocity, lr, momentum):
    """v <- momentum v - lr g;  w <- w + v.   Returns w, v.

    w, g, velocity (...), velocity being 0 before the first step
    """
    new_w, new_velocity = np.zeros(w.shape), np.zeros(w.shape)
    for i in np.ndindex(w.shape):
        new_velocity[i] = momentum * velocity[i] - lr * g[i]
        new_w[i] = w[i] + new_velocity[i]
    return new_w, new_velocity


def rmsprop(w, g, mean_square, lr, decay=0.9, floor=1e-5):
    """m <- decay m + (1 - decay) g^2;  w <- w - lr g / max(sqrt(m), floor).   Returns w, m.   pylearn2's RMSProp.

    w, g, mean_square (...), mean_square being 0 before the first step, with no correction for that start
    """
    new_w, new_mean_square = np.zeros(w.shape), np.zeros(w.shape)
    for i in np.ndindex(w.shape):
        new_mean_square[i] = decay * mean_square[i] + (1 - decay) * g[i] ** 2
        new_w[i] = w[i] - lr * g[i] / max(math.sqrt(new_mean_square[i]), floor)
    return new_w, new_mean_square


def mean(weights, decay):
    """m_n = (1 - s_n) m_{n - 1} + s_n w_n, s_n = max(1 - decay, 1 / n).   Returns m_n after the last.

    weights: [{name: w (...)}], those after each update; while 1 / n is the larger, m_n is their arithmetic mean
    """
    means = {}
    for name in weights[0]:
        m = 0.0
        for n, after in enumerate(weights, start=1):
            share = max(1 - decay, 1 / n)
            m = (1 - share) * m + share * np.asarray(after[name], np.float64)
        means[name] = m
    return means


def max_norm(w, limit):
    """w_k <- w_k min(1, limit / ||w_k||) for each filter w_k = w[..., k]: scaled onto the limit if it exceeds it.

    w (R, S, C, K) or (D, E), of which the last axis counts the filters: each maxout piece is a filter of its own
    """
    new_w = np.array(w, dtype=np.float64)
    for k in range(w.shape[-1]):
        norm = math.sqrt(np.sum(new_w[..., k] ** 2))
        if norm > limit:
            new_w[..., k] *= limit / norm
    return new_w
