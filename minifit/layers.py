"""The layers, each with its forward and backward written by hand.

A layer is parameters and two pure methods; nothing else is stored:

    y, cache = layer.forward(x, rng)         rng: the source of noise; without it dropout is the identity
    dx, grads = layer.backward(dy, cache)    grads has exactly the keys of layer.params

Layers follow their inputs: float32 in, float32 out; float64 in the tests; NumPy or CuPy.
"""

from itertools import zip_longest
from math import prod
from numbers import Integral
from types import MappingProxyType

import numpy as np

from minifit.backend import array_module
from minifit.convolution import choose
from minifit.patches import largest, parts


class Layer:
    """The contract. A layer without parameters has none to write down."""

    params = MappingProxyType({})

    def forward(self, x, rng=None):
        raise NotImplementedError

    def backward(self, dy, cache):
        raise NotImplementedError

    def weight_gradients(self, dy, cache):
        """The grads of backward alone: what the first layer of a network is asked, whose input nobody trains."""
        return self.backward(dy, cache)[1]

    def __call__(self, x, rng=None):
        """y alone; a layer may leave out what only its backward needs."""
        return self.forward(x, rng)[0]

    def __add__(self, other):
        return Sequential([self]) + other


class Sequential(Layer):
    """Layers one after another: y = f_n(... f_2(f_1(x))).

    Its parameters are keyed "3.w": those of layer 3. Slices and sums are new Sequentials of the *same* layers, so
    `student[:4] + regressor` is W_Guided and W_r of eq. 3, and training it trains the student.
    """

    def __init__(self, layers):
        self.layers = list(layers)

    @property
    def params(self):
        return {f"{i}.{name}": p for i, layer in enumerate(self.layers) for name, p in layer.params.items()}

    def forward(self, x, rng=None):
        caches = []
        for layer in self.layers:
            x, cache = layer.forward(x, rng)
            caches.append(cache)
        return x, caches

    def __call__(self, x, rng=None):
        layers = zip_longest(self.layers, self.layers[1:])
        for layer, following in layers:
            if type(layer) is Conv2d and type(following) is Maxout and layer.divides_into(following.pieces):
                x = layer.maxout(x, following.pieces)  # not of their subclasses, which may differ
                next(layers)
            else:
                x = layer(x, rng)
        return x

    def backward(self, dy, cache):
        return self._backward(dy, cache, first=0)

    def weight_gradients(self, dy, cache):
        lowest = next((i for i, layer in enumerate(self.layers) if layer.params), None)
        if lowest is None:
            return {}
        dy, grads = self._backward(dy, cache, first=lowest + 1)
        last = self.layers[lowest].weight_gradients(dy, cache[lowest])
        return {f"{lowest}.{name}": g for name, g in last.items()} | grads

    def _backward(self, dy, cache, first):
        grads = {}
        for i in reversed(range(first, len(self.layers))):
            dy, layer_grads = self.layers[i].backward(dy, cache[i])
            grads |= {f"{i}.{name}": g for name, g in layer_grads.items()}
        return dy, grads

    def __len__(self):
        return len(self.layers)

    def __iter__(self):
        return iter(self.layers)

    def __getitem__(self, index):
        return Sequential(self.layers[index]) if isinstance(index, slice) else self.layers[index]

    def __add__(self, other):
        return Sequential(self.layers + (other.layers if isinstance(other, Sequential) else [other]))


class Linear(Layer):
    """Affine map y = x w + b.

    x (N, D)    w (D, E)    b (E,)    y (N, E)
    """

    def __init__(self, w, b):
        if w.ndim != 2 or b.shape != w.shape[1:]:
            raise ValueError(f"Linear: w {w.shape} and b {b.shape}; wanted (D, E) and (E,)")
        self.params = {"w": w, "b": b}

    def forward(self, x, rng=None):
        w, b = self.params["w"], self.params["b"]
        if x.ndim != 2 or x.shape[1] != len(w):
            raise ValueError(f"Linear: input {x.shape}; wanted (N, {len(w)})")
        return x @ w + b, x

    def backward(self, dy, cache):
        return dy @ self.params["w"].T, self.weight_gradients(dy, cache)

    def weight_gradients(self, dy, cache):
        return {"w": cache.T @ dy, "b": dy.sum(axis=0)}


class Conv2d(Layer):
    """Convolution as the field says it (a cross-correlation), stride 1, zeros around the border.

    y[n, p, q, k] = b[k] + sum_{r, s, c} x[n, p + r - pad, q + s - pad, c] w[r, s, c, k]

    x (N, H, W, C)    w (R, S, C, K)    b (K,)    y (N, P, Q, K)    P = H + 2 pad - R + 1
    """

    def __init__(self, w, b, pad=0):
        if w.ndim != 4 or b.shape != w.shape[3:] or 0 in w.shape:
            raise ValueError(f"Conv2d: w {w.shape} and b {b.shape}; wanted (R, S, C, K), none of them 0, and (K,)")
        if not isinstance(pad, Integral) or isinstance(pad, bool) or pad < 0:
            raise ValueError(f"Conv2d: pad {pad}; wanted an integer, 0 or more")
        self.params, self.pad = {"w": w, "b": b}, pad

    def forward(self, x, rng=None):
        method = self._method(x)
        y, kept = method.forward(x, self.params["w"], self.params["b"])
        return y, (method, kept)

    def maxout(self, x, pieces):
        """Maxout(pieces)(self(x)), for evaluation: what it is the largest of need not go through the memory."""
        return self._method(x).maxout(x, self.params["w"], self.params["b"], pieces)

    def divides_into(self, pieces):
        return self.params["b"].size % pieces == 0

    def _method(self, x):
        w = self.params["w"]
        r, s, c, _ = w.shape
        if x.ndim != 4 or x.shape[3] != c or x.shape[1] + 2 * self.pad < r or x.shape[2] + 2 * self.pad < s:
            raise ValueError(f"Conv2d: input {x.shape}; wanted (N, H, W, {c}) under a {r}x{s} kernel, pad {self.pad}")
        return choose(x, w, self.pad)

    def backward(self, dy, cache):
        method, kept = cache
        dx, dw = method.backward(dy, kept, self.params["w"])
        return dx, {"w": dw, "b": _sum_rows(dy)}

    def weight_gradients(self, dy, cache):
        method, kept = cache
        return {"w": method.weight_gradient(dy, kept, self.params["w"]), "b": _sum_rows(dy)}


class Maxout(Layer):
    """The largest of M pieces: y[..., k] = max_m z[..., m K + k]. A tie sends its gradient to the first piece.

    z (..., M*K)    y (..., K)    Goodfellow et al. 2013.
    """

    def __init__(self, pieces):
        if not isinstance(pieces, Integral) or pieces < 1:
            raise ValueError(f"Maxout: {pieces} pieces; wanted an integer, 1 or more")
        self.pieces = pieces

    def forward(self, x, rng=None):
        self._check(x)
        xp, larger = array_module(x), []
        y, *others = parts(x, self.pieces)
        for z in others:
            larger.append(z > y)
            y = xp.maximum(y, z)
        return (y if others else y.copy()), larger

    def __call__(self, x, rng=None):
        self._check(x)
        return largest(x, self.pieces)

    def _check(self, x):
        if x.shape[-1] % self.pieces:
            raise ValueError(f"Maxout: input {x.shape} does not divide into {self.pieces} pieces")

    def backward(self, dy, cache):
        # The winner is the last piece that was larger than all before it: from the last one down, each takes its
        # share of dy, and what nobody took is the first one's.
        xp, m, k = array_module(dy), self.pieces, dy.shape[-1]
        dy = _laid_out_as(cache, dy)
        dx = xp.empty_like(dy, shape=(*dy.shape[:-1], m * k))
        for piece in range(m - 1, 0, -1):
            taken = dx[..., piece * k : (piece + 1) * k]
            xp.multiply(dy, cache[piece - 1], out=taken)
            dy = dy - taken
        dx[..., :k] = dy
        return dx, {}


class MaxPool2d(Layer):
    """The largest of each size x size window, ceil-mode: windows that begin inside the map, cut off at its border.

    x (N, H, W, C)    y (N, P, Q, C)    P = 1 + ceil((H - size) / stride)

    A tie sends the whole gradient to the first of the tied inputs, in reading order.
    """

    def __init__(self, size, stride):
        if not all(isinstance(n, Integral) and n >= 1 for n in (size, stride)):
            raise ValueError(f"MaxPool2d: size {size}, stride {stride}; wanted integers, 1 or more")
        self.size, self.stride = size, stride

    def forward(self, x, rng=None):
        self._check(x)
        # Along each row, then down the columns: 2 size steps, not size^2, and the same first winner in reading order.
        across, larger_across = self._pool(x, axis=2)
        y, larger_down = self._pool(across, axis=1)
        return y, (x.shape, across.shape, larger_across, larger_down)

    def __call__(self, x, rng=None):
        self._check(x)
        # Down the columns first, in long stretches of memory: a maximum may be taken in any order.
        return self._largest(self._largest(x, axis=1), axis=2)

    def _check(self, x):
        if x.ndim != 4 or not (x.shape[1] and x.shape[2]):
            raise ValueError(f"MaxPool2d: input {x.shape}; wanted (N, H, W, C) of at least one pixel")

    def backward(self, dy, cache):
        shape, across, larger_across, larger_down = cache
        return self._unpool(self._unpool(dy, across, larger_down, axis=1), shape, larger_across, axis=2), {}

    def _windows(self, extent):
        """For each offset in a window: the inputs it meets, and how many windows reach that far."""
        starts = min(1 + max(0, -(-(extent - self.size) // self.stride)), -(-extent // self.stride))
        for offset in range(min(self.size, extent)):
            count = min(starts, -(-(extent - offset) // self.stride))
            yield slice(offset, offset + (count - 1) * self.stride + 1, self.stride), slice(count)

    def _pool(self, x, axis):
        xp, before, larger = array_module(x), (slice(None),) * axis, []
        first, *others = self._windows(x.shape[axis])
        y = x[(*before, first[0])].copy(order="K")
        for inputs, reached in others:
            z, so_far = x[(*before, inputs)], y[(*before, reached)]
            larger.append(z > so_far)
            xp.maximum(so_far, z, out=so_far)
        return y, larger

    def _largest(self, x, axis):
        xp, before = array_module(x), (slice(None),) * axis
        first, *others = self._windows(x.shape[axis])
        y = x[(*before, first[0])].copy(order="K")
        for inputs, reached in others:
            so_far = y[(*before, reached)]
            xp.maximum(so_far, x[(*before, inputs)], out=so_far)
        return y

    def _unpool(self, dy, shape, larger, axis):
        # As in Maxout: the last input that was larger than all before it takes dy, the first one what is left.
        xp, before = array_module(dy), (slice(None),) * axis
        left = _laid_out_as(larger, dy).copy(order="K")
        dx = xp.zeros_like(left, shape=shape)
        first, *others = self._windows(shape[axis])
        for (inputs, reached), was_larger in zip(reversed(others), reversed(larger), strict=True):
            rest = left[(*before, reached)]
            taken = rest * was_larger
            rest -= taken
            dx[(*before, inputs)] += taken
        dx[(*before, first[0])] += left
        return dx


class ReLU(Layer):
    """y = max(x, 0), with slope 0 at 0."""

    def forward(self, x, rng=None):
        return array_module(x).maximum(x, 0), x > 0

    def backward(self, dy, cache):
        return dy * cache, {}


class Softmax(Layer):
    """y = softmax(x / tau) over the last axis.   FitNets, eq. 1."""

    def __init__(self, tau=1.0):
        if not tau > 0:
            raise ValueError(f"Softmax: tau {tau} is not positive")
        self.tau = tau

    def forward(self, x, rng=None):
        xp = array_module(x)
        y = xp.exp((x - x.max(axis=-1, keepdims=True)) / self.tau)
        y /= y.sum(axis=-1, keepdims=True)
        return y, y

    def backward(self, dy, cache):
        y = cache
        return y * (dy - (dy * y).sum(axis=-1, keepdims=True)) / self.tau, {}


class Dropout(Layer):
    """Keeps each input with probability `keep`, given an rng; the identity without one.

    Kept inputs are divided by `keep` so that the mean stays, unless rescale is False (the maxout networks' input).
    Masks come from a NumPy generator on the host, whatever the backend: a run can then be repeated exactly.
    """

    def __init__(self, keep, rescale=True):
        if not 0 < keep <= 1:
            raise ValueError(f"Dropout: keep {keep} is not in (0, 1]")
        self.keep, self.rescale = keep, rescale

    def forward(self, x, rng=None):
        if rng is None or self.keep == 1:
            return x, None
        mask = array_module(x).asarray(rng.random(x.shape, np.float32) < self.keep)
        mask = mask * x.dtype.type(1 / self.keep if self.rescale else 1)
        return x * mask, mask

    def backward(self, dy, cache):
        return dy if cache is None else dy * cache, {}


class Flatten(Layer):
    """Each example as one row: x (N, ...) -> y (N, D)."""

    def forward(self, x, rng=None):
        return x.reshape(len(x), prod(x.shape[1:])), x.shape

    def backward(self, dy, cache):
        return dy.reshape(cache), {}


class Reshape(Layer):
    """Each example in another shape: x (N, ...) -> y (N, *shape). The fully connected regressor ends in one."""

    def __init__(self, shape):
        self.shape = tuple(shape)

    def forward(self, x, rng=None):
        if prod(x.shape[1:]) != prod(self.shape):
            raise ValueError(f"Reshape: input {x.shape} does not hold examples of shape {self.shape}")
        return x.reshape(len(x), *self.shape), x.shape

    def backward(self, dy, cache):
        return dy.reshape(cache), {}


def _sum_rows(dy):
    """dy (N, P, Q, K) -> (K,), as products with ones: BLAS adds long columns several times faster than a reduction."""
    xp, n, k = array_module(dy), len(dy), dy.shape[-1]
    pixels = dy.transpose(1, 2, 3, 0)
    if pixels.flags.c_contiguous and n > 1:
        rows = (pixels.reshape(-1, n) @ xp.ones(n, dy.dtype)).reshape(-1, k)
    else:
        rows = dy.reshape(-1, k)
    return xp.ones(len(rows), dy.dtype) @ rows


def _laid_out_as(arrays, dy):
    """dy, with its axes in memory as those of the arrays: operations on arrays that lie alike run along memory."""
    if not arrays:
        return dy
    same = array_module(dy).empty_like(arrays[0], dtype=dy.dtype, shape=dy.shape)
    if same.strides == dy.strides:
        return dy
    same[...] = dy
    return same
