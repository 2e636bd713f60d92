"""The operations of the networks, one output element at a time, and how they make a network.

Sizes: N batch; H, W and P, Q input and output height, width; C and K input and output channels; R, S kernel height,
width; M maxout pieces; D, E features. Images are x (N, H, W, C), filters w (R, S, C, K).
"""

import math

import numpy as np


def _float64(*arrays):
    # float32 inputs are widened first, so that products are not rounded before they are summed
    return [np.asarray(array, dtype=np.float64) for array in arrays]


def conv2d(x, w, b, pad=0):
    """y[n, p, q, k] = b[k] + sum_{r, s, c} x[n, p + r - pad, q + s - pad, c] w[r, s, c, k], x being 0 outside.

    x (N, H, W, C)    w (R, S, C, K)    b (K,)    y (N, P, Q, K), P = H + 2 pad - R + 1, Q = W + 2 pad - S + 1

    A correlation, as in every deep learning library: the filter is not flipped.
    """
    x, w, b = _float64(x, w, b)
    N, H, W, C = x.shape
    R, S, channels, K = w.shape
    P, Q = H + 2 * pad - R + 1, W + 2 * pad - S + 1
    if channels != C or b.shape != (K,) or min(P, Q) < 1:
        raise ValueError(f"conv2d: x {x.shape}, w {w.shape}, b {b.shape} and pad {pad} do not fit")
    padded = np.zeros((N, H + 2 * pad, W + 2 * pad, C))
    padded[:, pad : pad + H, pad : pad + W] = x
    y, filters = np.zeros((N, P, Q, K)), [w[:, :, :, k].ravel() for k in range(K)]
    for n, p, q in np.ndindex(N, P, Q):
        window = padded[n, p : p + R, q : q + S].ravel()  # r, s and c in this order, as in the filters
        for k in range(K):
            y[n, p, q, k] = b[k] + window @ filters[k]
    return y


def maxout(z, pieces):
    """y[..., k] = max_m z[..., m K + k], the pieces of a unit being K apart (piece-major).   Goodfellow et al., 2013.

    z (..., M*K)    y (..., K)
    """
    (z,) = _float64(z)
    K, rest = divmod(z.shape[-1], pieces)
    if rest:
        raise ValueError(f"maxout: the last axis of z {z.shape} is not a multiple of {pieces} pieces")
    y = np.zeros((*z.shape[:-1], K))
    for *i, k in np.ndindex(y.shape):
        y[(*i, k)] = max(z[(*i, m * K + k)] for m in range(pieces))
    return y


def maxpool2d(x, size, stride, ceil=True):
    """y[n, p, q, c] = max of x[n, :, :, c] over the size x size window whose first corner is (p stride, q stride).

    x (N, H, W, C)    y (N, P, Q, C), P = 1 + max(0, ceil((H - size) / stride)) as long as the last window starts inside

    Ceil-mode, as in pylearn2: the last window may hang over the border and sees only what is inside, as if x were
    padded with -inf. (With the floor in its place, the published parameter counts do not come out.) Without `ceil`
    P is 1 + floor((H - size) / stride): every window lies inside.
    """
    (x,) = _float64(x)
    N, H, W, C = x.shape
    P, Q = (_windows(n, size, stride) if ceil else 1 + (n - size) // stride for n in (H, W))
    y = np.zeros((N, P, Q, C))
    for n, p, q, c in np.ndindex(y.shape):
        top, left = p * stride, q * stride
        y[n, p, q, c] = np.max(x[n, top : top + size, left : left + size, c])
    return y


def _windows(length, size, stride):
    count = 1 + max(0, math.ceil((length - size) / stride))
    while (count - 1) * stride >= length:  # happens only when stride > size
        count -= 1
    return count


def global_average(x):
    """y[n, c] = 1/(H W) sum_{h, w} x[n, h, w, c].   Lin et al., 2014.

    x (N, H, W, C)    y (N, C)
    """
    (x,) = _float64(x)
    N, H, W, C = x.shape
    y = np.zeros((N, C))
    for n, c in np.ndindex(N, C):
        y[n, c] = sum(x[n, h, w, c] for h, w in np.ndindex(H, W)) / (H * W)
    return y


def scale(x, factor, shift):
    """y[n, e] = factor[e] x[n, e] + shift[e].

    x, y (N, E)    factor, shift (E,)
    """
    x, factor, shift = _float64(x, factor, shift)
    y = np.zeros(x.shape)
    for n, e in np.ndindex(x.shape):
        y[n, e] = factor[e] * x[n, e] + shift[e]
    return y


def log(x, tau=1.0):
    """y[i] = tau log x[i]: logits whose softmax at temperature tau is x.

    x, y (...), positive
    """
    (x,) = _float64(x)
    y = np.zeros(x.shape)
    for i in np.ndindex(x.shape):
        y[i] = tau * math.log(x[i])
    return y


def linear(x, w, b):
    """y[n, e] = b[e] + sum_d x[n, d] w[d, e].

    x (N, D)    w (D, E)    b (E,)    y (N, E)
    """
    x, w, b = _float64(x, w, b)
    N, D = x.shape
    if len(w) != D or b.shape != w.shape[1:]:
        raise ValueError(f"linear: x {x.shape}, w {w.shape} and b {b.shape} do not fit")
    y = np.zeros((N, w.shape[1]))
    for n, e in np.ndindex(y.shape):
        y[n, e] = b[e] + x[n] @ w[:, e]
    return y


def relu(x):
    """y[i] = max(x[i], 0).

    x, y (...)
    """
    (x,) = _float64(x)
    y = np.zeros(x.shape)
    for i in np.ndindex(x.shape):
        y[i] = max(x[i], 0.0)
    return y


def sigmoid(x):
    """y[i] = 1 / (1 + exp(-x[i])).

    x, y (...)
    """
    (x,) = _float64(x)
    y = np.zeros(x.shape)
    for i in np.ndindex(x.shape):
        y[i] = 1 / (1 + math.exp(-x[i])) if x[i] > 0 else math.exp(x[i]) / (1 + math.exp(x[i]))
    return y


def bias(x, b):
    """y[n, i] = x[n, i] + b[i].

    x, y (N, ...)    b (...)
    """
    x, b = _float64(x, b)
    y = np.zeros(x.shape)
    for n, *i in np.ndindex(x.shape):
        y[(n, *i)] = x[(n, *i)] + b[tuple(i)]
    return y


def linear_decoder(h, w, b):
    """y[n, d] = b[d] + sum_e h[n, e] w[d, e]: back through the weights of `linear`.

    h (N, E)    w (D, E)    b (D,)    y (N, D)
    """
    h, w, b = _float64(h, w, b)
    y = np.zeros((len(h), len(w)))
    for n, d in np.ndindex(y.shape):
        y[n, d] = b[d] + np.sum(h[n] * w[d])
    return y


def conv2d_decoder(h, w, b, pad=0):
    """y[n, i, j, c] = b[i, j, c] + sum_{r, s, k} h[n, i - r + pad, j - s + pad, k] w[r, s, c, k], h being 0 outside.

    h (N, P, Q, K)    w (R, S, C, K)    b (H, W, C)    y (N, H, W, C)

    Back through the weights of `conv2d`: output pixel (p, q) saw input pixel (p + r - pad, q + s - pad).
    """
    h, w, b = _float64(h, w, b)
    N, P, Q, _ = h.shape
    R, S = w.shape[:2]
    y = np.zeros((N, *b.shape))
    for n, i, j, c in np.ndindex(y.shape):
        y[n, i, j, c] = b[i, j, c]
        for r, s in np.ndindex(R, S):
            p, q = i - r + pad, j - s + pad
            if 0 <= p < P and 0 <= q < Q:
                y[n, i, j, c] += np.sum(h[n, p, q] * w[r, s, c])
    return y


def autoassociator(x, w, c, b, pad=None):
    """y = W' sigm(W x + c) + b: the input's reconstruction, before its sigmoid, by the weights of its code.

    x (N, D) as `linear` has it, in any shape    w (D, E)    c (E,)    b, y of the shape of one input, and of x
    With a pad, x, w and c are as `conv2d` has them.
    """
    if pad is not None:
        return conv2d_decoder(sigmoid(conv2d(x, w, c, pad)), w, b, pad)
    y = linear_decoder(sigmoid(linear(flatten(x), w, c)), w, np.reshape(b, -1))
    return reshape(y, np.shape(b))


def softmax(x, tau=1.0):
    """y[..., e] = exp(x[..., e] / tau) / sum_f exp(x[..., f] / tau).   FitNets, eq. 1.

    x, y (..., E)

    Each row is shifted by its own maximum, which leaves the quotient as it is and keeps exp within range.
    """
    (x,) = _float64(x)
    y = np.zeros(x.shape)
    for i in np.ndindex(x.shape[:-1]):
        highest = max(x[i])
        powers = [math.exp((value - highest) / tau) for value in x[i]]
        for e, power in enumerate(powers):
            y[(*i, e)] = power / sum(powers)
    return y


def dropout(x, mask, keep, rescale=True):
    """y[i] = x[i] / keep where mask[i], 0 elsewhere; without rescale, x[i] where mask[i].   Srivastava et al., 2014.

    x, y (...)    mask (...), boolean, true with probability keep; without noise, y = x
    """
    (x,) = _float64(x)
    if np.shape(mask) != x.shape:
        raise ValueError(f"dropout: x {x.shape} and mask {np.shape(mask)} differ")
    y = np.zeros(x.shape)
    for i in np.ndindex(x.shape):
        if mask[i]:
            y[i] = x[i] / keep if rescale else x[i]
    return y


def flatten(x):
    """y[n, (h W + w) C + c] = x[n, h, w, c]: the axes after the first in row-major order.

    x (N, ...)    y (N, D)
    """
    (x,) = _float64(x)
    y = np.zeros((len(x), math.prod(x.shape[1:])))
    for n in range(len(x)):
        for d, i in enumerate(np.ndindex(x.shape[1:])):
            y[n, d] = x[(n, *i)]
    return y


def reshape(x, shape):
    """Each example in another shape, its elements in the same row-major order.

    x (N, ...)    y (N, *shape)
    """
    (x,) = _float64(x)
    y = np.zeros((len(x), *shape))
    for n in range(len(x)):
        for i, j in zip(np.ndindex(x.shape[1:]), np.ndindex(*shape), strict=True):
            y[(n, *j)] = x[(n, *i)]
    return y


def binary(x):
    """y = (0, x): two logits, the softmax of which is (1 - sigm(x), sigm(x)).

    x (N, 1)    y (N, 2)
    """
    (x,) = _float64(x)
    y = np.zeros((len(x), 2))
    for n in range(len(x)):
        y[n, 1] = x[n, 0]
    return y


def conv_regressor(v, w, b, pieces):
    """r(v): a valid convolution with R = H - P + 1, then maxout, or ReLU where pieces is None.   FitNets, 2.2.

    v (N, H, W, C) guided    w (R, S, C, M*K)    b (M*K,)    r (N, P, Q, K), the shape of the hint

    The non-linearity is the hint layer's own, so that r and the hint have the same range.
    """
    z = conv2d(v, w, b)
    return relu(z) if pieces is None else maxout(z, pieces)


def fc_regressor(v, w, b, pieces, shape):
    """r(v): flatten, linear, then maxout, or ReLU where pieces is None, in the shape of the hint.   FitNets, 2.2.

    v (N, H, W, C) guided    w (H*W*C, M*E)    b (M*E,)    r (N, *shape), shape = (P, Q, K) with P*Q*K = E
    """
    z = linear(flatten(v), w, b)
    return reshape(relu(z) if pieces is None else maxout(z, pieces), shape)


def forward(network, x):
    """The output of the last layer, each layer being applied to the output of the one before it.

    A layer is an operation with its arguments after the input, and a network a list of layers and of such lists.
    """
    for part in network:
        if isinstance(part, list):
            x = forward(part, x)
        else:
            operation, *arguments = part
            x = operation(x, *arguments)
    return x


def branches(x, trunk, heads):
    """Outputs at several depths of a network: head(trunk[:i](x)) for each (i, head) of heads in turn, then trunk(x)."""
    return *(forward(head, forward(trunk[:i], x)) for i, head in heads), forward(trunk, x)


def mean(x, networks):
    """y = 1/M sum_m f_m(x) for M networks f_m: an ensemble."""
    return sum(forward(network, x) for network in networks) / len(networks)
