"""The layers, each with its forward and backward written by hand.

A layer stores its parameters and its settings, such as pad. Its two methods are pure: they change nothing in it.

    y, cache = layer.forward(x, rng)         rng: the source of noise; without it dropout is the identity
    dx, grads = layer.backward(dy, cache)    grads has exactly the keys of layer.params

Layers follow their inputs: float32 in, float32 out; float64 in the tests; NumPy or CuPy.
"""

from functools import lru_cache
from math import prod
from numbers import Integral
from types import MappingProxyType

import numpy as np

from minifit import kernels
from minifit.backend import array_module
from minifit.convolution import choose
from minifit.patches import largest, parts


class Layer:
    """The contract of a layer. By default a layer has neither parameters nor children."""

    params = MappingProxyType({})
    children = MappingProxyType({})
    max_norm = None  # the largest norm of each filter of "w"
    lr_scale = 1.0  # factor of the learning rate of all parameters, including those of the children

    def forward(self, x, rng=None):
        raise NotImplementedError

    def backward(self, dy, cache):
        raise NotImplementedError

    def weight_gradients(self, dy, cache):
        """Returns only the grads of backward. The first layer of a network needs no dx: nobody trains its input."""
        return self.backward(dy, cache)[1]

    def __call__(self, x, rng=None):
        """Returns only y. A layer may skip computations that only its backward needs."""
        return self.forward(x, rng)[0]

    def visit(self, x, see):
        """Returns y, and calls see(layer, its input) for every layer without children, before its y is computed."""
        see(self, x)
        return self(x)


class Bias(Layer):
    """y = x + b.

    x, y (N, ...)    b (...)
    """

    def __init__(self, b):
        self.params = {"b": b}

    def forward(self, x, rng=None):
        b = self.params["b"]
        if x.shape[1:] != b.shape:
            raise ValueError(f"Bias: input {x.shape}; wanted (N, {str(b.shape)[1:]}")
        return x + b, None

    def backward(self, dy, cache):
        return dy, {"b": dy.sum(axis=0)}


class Linear(Layer):
    """Affine map y = x w + b.

    x (N, D)    w (D, E)    b (E,)    y (N, E)
    """

    def __init__(self, w, b, max_norm=None):
        if w.ndim != 2 or b.shape != w.shape[1:]:
            raise ValueError(f"Linear: w {w.shape} and b {b.shape}; wanted (D, E) and (E,)")
        self.params, self.max_norm = {"w": w, "b": b}, max_norm

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
    """Convolution in the field's sense (a cross-correlation), with stride 1 and zeros around the border.

    y[n, p, q, k] = b[k] + sum_{r, s, c} x[n, p + r - pad, q + s - pad, c] w[r, s, c, k]

    x (N, H, W, C)    w (R, S, C, K)    b (K,)    y (N, P, Q, K)    P = H + 2 pad - R + 1

    y has the common type of x, w and b, with every method. Gradients have the common type of y and dy.
    """

    def __init__(self, w, b, pad=0, max_norm=None):
        if w.ndim != 4 or b.shape != w.shape[3:] or 0 in w.shape:
            raise ValueError(f"Conv2d: w {w.shape} and b {b.shape}; wanted (R, S, C, K), none of them 0, and (K,)")
        if not isinstance(pad, Integral) or isinstance(pad, bool) or pad < 0:
            raise ValueError(f"Conv2d: pad {pad}; wanted an integer, 0 or more")
        self.params, self.pad, self.max_norm = {"w": w, "b": b}, pad, max_norm

    def forward(self, x, rng=None):
        x, method = self._prepared(x)
        y, method_cache = method.forward(x, self.params["w"], self.params["b"])
        return y, (method, method_cache, x.dtype)

    def maxout(self, x, pieces):
        """Returns Maxout(pieces)(self(x)), for evaluation. The pieces need not be stored."""
        x, method = self._prepared(x, evaluating=True)
        w, b = self.params["w"], self.params["b"]
        return method.forward(x, w, b)[0] if pieces == 1 else method.maxout(x, w, b, pieces)

    def divides_into(self, pieces):
        return self.params["b"].size % pieces == 0

    def _prepared(self, x, evaluating=False):
        """Returns x in the type of y, and the method."""
        w, b = self.params["w"], self.params["b"]
        r, s, c, _ = w.shape
        size = [extent + 2 * self.pad for extent in x.shape[1:3] if extent]
        if x.ndim != 4 or x.shape[3] != c or len(size) < 2 or size[0] < r or size[1] < s:
            wanted = f"(N, H, W, {c}) of at least one pixel, under a {r}x{s} kernel, pad {self.pad}"
            raise ValueError(f"Conv2d: input {x.shape}; wanted {wanted}")
        if not (x.dtype == w.dtype == b.dtype and x.dtype.isnative):
            x = x.astype(np.result_type(x.dtype, w.dtype, b.dtype), copy=False)
        return x, choose(x, w, self.pad, evaluating)

    def backward(self, dy, cache):
        method, method_cache, dtype = cache
        dy = dy.astype(np.result_type(dy.dtype, dtype), copy=False)
        dx, dw = method.backward(dy, method_cache, self.params["w"])
        return dx, {"w": dw, "b": _sum_rows(dy)}

    def weight_gradients(self, dy, cache):
        method, method_cache, dtype = cache
        dy = dy.astype(np.result_type(dy.dtype, dtype), copy=False)
        return {"w": method.weight_gradient(dy, method_cache, self.params["w"]), "b": _sum_rows(dy)}


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
        if array_module(x) is not np:
            return kernels.maxout(x, self.pieces)
        larger = []
        y, *others = parts(x, self.pieces)
        for z in others:
            larger.append(z > y)
            y = np.maximum(y, z)
        return (y if others else y.copy()), larger

    def __call__(self, x, rng=None):
        self._check(x)
        return largest(x, self.pieces)

    def _check(self, x):
        if x.shape[-1] % self.pieces:
            raise ValueError(f"Maxout: input {x.shape} does not divide into {self.pieces} pieces")

    def backward(self, dy, cache):
        # The winner is the last piece that was larger than all before it. From the last piece down, each takes dy where
        # it won; the first piece gets what is left.
        if array_module(dy) is not np:
            return kernels.maxout_backward(dy, cache, self.pieces), {}
        dy = _laid_out_as(cache, dy)
        dx = np.empty_like(dy, shape=(*dy.shape[:-1], self.pieces * dy.shape[-1]))
        first, *others = parts(dx, self.pieces)
        for taken, larger in zip(reversed(others), reversed(cache), strict=True):
            np.multiply(dy, larger, out=taken)
            dy = np.subtract(dy, taken, out=first)
        if not others:
            first[...] = dy
        return dx, {}


class MaxPool2d(Layer):
    """Takes the largest of each size x size window. Ceil-mode: windows begin inside the map and end at its border.

    x (N, H, W, C)    y (N, P, Q, C)    P = min(1 + max(0, ceil((H - size) / stride)), ceil(H / stride))

    Floor-mode, without `ceil`: windows also end inside the map, P = 1 + floor((H - size) / stride).
    A tie sends the whole gradient to the first of the tied inputs, in reading order.
    """

    def __init__(self, size, stride, ceil=True):
        if not all(isinstance(n, Integral) and n >= 1 for n in (size, stride)):
            raise ValueError(f"MaxPool2d: size {size}, stride {stride}; wanted integers, 1 or more")
        self.size, self.stride, self.ceil = size, stride, ceil

    def forward(self, x, rng=None):
        self._check(x)
        if array_module(x) is not np:
            return kernels.pool(x, *map(self._count, x.shape[1:3]), self.size, self.stride)
        # Rows first, then columns: 2 size steps in place of size^2, with the same first winner in reading order.
        across, larger_across = self._pool(x, axis=2)
        y, larger_down = self._pool(across, axis=1)
        return y, (x.shape, across.shape, larger_across, larger_down)

    def __call__(self, x, rng=None):
        self._check(x)
        if array_module(x) is not np:
            return self.forward(x)[0]
        # Columns first, along long stretches of memory: the maximum does not depend on the order.
        return self._largest(self._largest(x, axis=1), axis=2)

    def _check(self, x):
        if x.ndim != 4 or not (x.shape[1] and x.shape[2]):
            raise ValueError(f"MaxPool2d: input {x.shape}; wanted (N, H, W, C) of at least one pixel")
        if not self.ceil and min(x.shape[1:3]) < self.size:
            raise ValueError(
                f"MaxPool2d: input {x.shape}; wanted at least {self.size}x{self.size} pixels, a whole window"
            )

    def backward(self, dy, cache):
        if array_module(dy) is not np:
            return kernels.pool_backward(dy, cache, self.size, self.stride), {}
        shape, across, larger_across, larger_down = cache
        return self._unpool(self._unpool(dy, across, larger_down, axis=1), shape, larger_across, axis=2), {}

    def _count(self, extent):
        """How many windows begin in that many pixels: P of H, Q of W."""
        beyond = extent - self.size
        starts = min(1 + max(0, -(-beyond // self.stride)), -(-extent // self.stride))
        return starts if self.ceil else 1 + beyond // self.stride

    def _windows(self, extent):
        return _windows(self.size, self.stride, extent, self._count(extent))

    def _pool(self, x, axis):
        before, larger = (slice(None),) * axis, []
        first, *others = self._windows(x.shape[axis])
        y = x[(*before, first[0])].copy(order="K")
        for inputs, reached in others:
            z, so_far = x[(*before, inputs)], y[(*before, reached)]
            larger.append(z > so_far)
            np.maximum(so_far, z, out=so_far)
        return y, larger

    def _largest(self, x, axis):
        offsets, doublings = _doubled(self.size, self.stride, x.shape[axis], self._count(x.shape[axis]), axis)
        if offsets:
            y = x[offsets[0]]
            for inputs in offsets[1:]:
                y = np.maximum(y, x[inputs])
            for lower, upper in doublings:
                y = np.maximum(y[lower], y[upper])
            return y
        before = (slice(None),) * axis
        first, *others = self._windows(x.shape[axis])
        y = x[(*before, first[0])].copy(order="K")
        for inputs, reached in others:
            so_far = y[(*before, reached)]
            np.maximum(so_far, x[(*before, inputs)], out=so_far)
        return y

    def _unpool(self, dy, shape, larger, axis):
        # As in Maxout: the last input that was larger than all before it takes dy; the first gets what is left.
        before = (slice(None),) * axis
        left = _laid_out_as(larger, dy).copy(order="K")
        dx = np.zeros_like(left, shape=shape)
        first, *others = self._windows(shape[axis])
        for (inputs, reached), was_larger in zip(reversed(others), reversed(larger), strict=True):
            rest = left[(*before, reached)]
            taken = rest * was_larger
            rest -= taken
            dx[(*before, inputs)] += taken
        dx[(*before, first[0])] += left
        return dx


class GlobalAverage(Layer):
    """The mean of each channel over its map: y[n, c] = 1/(H W) sum_{h, w} x[n, h, w, c].

    x (N, H, W, C)    y (N, C)    Lin et al. 2014.
    """

    def forward(self, x, rng=None):
        if x.ndim != 4 or not (x.shape[1] and x.shape[2]):
            raise ValueError(f"GlobalAverage: input {x.shape}; wanted (N, H, W, C) of at least one pixel")
        return x.mean(axis=(1, 2)), x.shape

    def backward(self, dy, cache):
        share = dy / (cache[1] * cache[2])
        return array_module(dy).broadcast_to(share[:, None, None, :], cache).copy(), {}


class Scale(Layer):
    """Scales and shifts each feature: y = x scale + shift. Keeps statistics with a network.

    x, y (N, K)    scale, shift (K,)
    """

    def __init__(self, scale, shift):
        if scale.ndim != 1 or shift.shape != scale.shape:
            raise ValueError(f"Scale: scale {scale.shape} and shift {shift.shape}; wanted (K,) and (K,)")
        self.params = {"scale": scale, "shift": shift}

    def forward(self, x, rng=None):
        scale, shift = self.params["scale"], self.params["shift"]
        if x.ndim != 2 or x.shape[1] != len(scale):
            raise ValueError(f"Scale: input {x.shape}; wanted (N, {len(scale)})")
        return x * scale + shift, x

    def backward(self, dy, cache):
        return dy * self.params["scale"], {"scale": (dy * cache).sum(axis=0), "shift": dy.sum(axis=0)}


class Log(Layer):
    """y = tau log x; softmax(y / tau) gives probabilities x back. x below the type's smallest number counts as it."""

    def __init__(self, tau=1.0):
        if not tau > 0:
            raise ValueError(f"Log: tau {tau} is not positive")
        self.tau = tau

    def forward(self, x, rng=None):
        xp, tiny = array_module(x), np.finfo(x.dtype).tiny
        return self.tau * xp.log(xp.maximum(x, tiny)), x

    def backward(self, dy, cache):
        xp, x, tiny = array_module(dy), cache, np.finfo(cache.dtype).tiny
        return dy * (x >= tiny) * (self.tau / xp.maximum(x, tiny)), {}


class ReLU(Layer):
    """y = max(x, 0), with slope 0 at 0."""

    def forward(self, x, rng=None):
        return array_module(x).maximum(x, 0), x > 0

    def backward(self, dy, cache):
        return dy * cache, {}


class Sigmoid(Layer):
    """y = sigm(x) = 1 / (1 + exp(-x))."""

    def forward(self, x, rng=None):
        y = sigmoid(x)
        return y, y

    def backward(self, dy, cache):
        y = cache
        return dy * y * (1 - y), {}


class Softmax(Layer):
    """y = softmax(x / tau) over the last axis.   FitNets, eq. 1."""

    def __init__(self, tau=1.0):
        if not tau > 0:
            raise ValueError(f"Softmax: tau {tau} is not positive")
        self.tau = tau

    def forward(self, x, rng=None):
        if not x.ndim or not x.shape[-1]:
            raise ValueError(f"Softmax: input {x.shape}; wanted (..., K) of at least one class")
        xp = array_module(x)
        y = xp.exp((x - x.max(axis=-1, keepdims=True)) / self.tau)
        y /= y.sum(axis=-1, keepdims=True)
        return y, y

    def backward(self, dy, cache):
        y = cache
        return y * (dy - (dy * y).sum(axis=-1, keepdims=True)) / self.tau, {}


class Dropout(Layer):
    """Keeps each input with probability `keep` if it is given an rng; otherwise the identity.

    Kept inputs are divided by `keep`, which keeps the mean. rescale=False leaves this out (the maxout networks' input).
    NumPy draws the masks on a host. A GPU draws its own, from a number of the same generator: drawing them on the host
    would take longer than the rest of its step.
    """

    def __init__(self, keep, rescale=True):
        if not 0 < keep <= 1:
            raise ValueError(f"Dropout: keep {keep} is not in (0, 1]")
        self.keep, self.rescale = keep, rescale

    def forward(self, x, rng=None):
        if rng is None or self.keep == 1:
            return x, None
        scale = 1 / self.keep if self.rescale else 1
        if array_module(x) is np:
            mask = (rng.random(x.shape, np.float32) < self.keep) * x.dtype.type(scale)
        else:
            mask = kernels.mask(rng, x, self.keep, scale)
        return x * mask, mask

    def backward(self, dy, cache):
        return dy if cache is None else dy * cache, {}


class Binary(Layer):
    """Makes two logits of one: y = (0, x), whose softmax is (1 - sigm(x), sigm(x)).

    x (N, 1)    y (N, 2)
    """

    def forward(self, x, rng=None):
        if x.ndim != 2 or x.shape[1] != 1:
            raise ValueError(f"Binary: input {x.shape}; wanted (N, 1)")
        xp = array_module(x)
        return xp.concatenate([xp.zeros_like(x), x], axis=1), None

    def backward(self, dy, cache):
        return dy[:, 1:], {}


class Flatten(Layer):
    """Makes one row of each example: x (N, ...) -> y (N, D)."""

    def forward(self, x, rng=None):
        return x.reshape(len(x), prod(x.shape[1:])), x.shape

    def backward(self, dy, cache):
        return dy.reshape(cache), {}


class Reshape(Layer):
    """Gives each example another shape: x (N, ...) -> y (N, *shape). The fully connected regressor ends in one."""

    def __init__(self, shape):
        self.shape = tuple(shape)

    def forward(self, x, rng=None):
        if prod(x.shape[1:]) != prod(self.shape):
            raise ValueError(f"Reshape: input {x.shape} does not hold examples of shape {self.shape}")
        return x.reshape(len(x), *self.shape), x.shape

    def backward(self, dy, cache):
        return dy.reshape(cache), {}


def sigmoid(x):
    """Returns 1 / (1 + exp(-x)), computed by tanh, which never overflows."""
    return 0.5 + 0.5 * array_module(x).tanh(0.5 * x)


def _sum_rows(dy):
    """dy (N, P, Q, K) -> (K,), as a product with ones: BLAS adds long columns several times faster than a sum."""
    xp, n, k = array_module(dy), len(dy), dy.shape[-1]
    pixels = dy.transpose(1, 2, 3, 0)
    if pixels.flags.c_contiguous and n > 1:
        rows = (pixels.reshape(-1, n) @ _ones(xp, n, dy.dtype)).reshape(-1, k)
    else:
        rows = dy.reshape(-1, k)
    return _ones(xp, len(rows), dy.dtype) @ rows


@lru_cache(maxsize=1024)
def _windows(size, stride, extent, windows):
    """Returns, for each offset in a window, the inputs there and the windows that reach that far, as slices."""
    counts = [min(windows, -(-(extent - offset) // stride)) for offset in range(min(size, extent))]
    return [(slice(i, i + (count - 1) * stride + 1, stride), slice(count)) for i, count in enumerate(counts)]


def _by_doubling(size, stride, extent, windows, axis):
    """Returns what MaxPool2d compares along an axis whose windows cover it exactly and are whole numbers of strides.

    First the inputs at each offset in a stride, whose largest is one number a stride. Then, of these, pairs that lie 1,
    2, 4, ... apart: their largest is that of 2, 4, 8, ... strides. The last two may overlap. Of other windows: nothing.
    """
    before, strides, reached, doublings = (slice(None),) * axis, size // stride, 1, []
    if size == 1 or size % stride or (windows - 1) * stride + size != extent:
        return [], []
    while reached < strides:
        step = min(reached, strides - reached)
        doublings.append(((*before, slice(None, -step)), (*before, slice(step, None))))
        reached += step
    return [(*before, slice(i, None, stride)) for i in range(stride)], doublings


_doubled = lru_cache(maxsize=1024)(_by_doubling)


@lru_cache(maxsize=64)
def _ones(xp, n, dtype):
    return xp.ones(n, dtype)


def _laid_out_as(arrays, dy):
    """Returns dy in the memory order of the arrays: operations on arrays of one order run along memory."""
    if not arrays:
        return dy
    same = np.empty_like(arrays[0], dtype=dy.dtype, shape=dy.shape)
    if same.strides == dy.strides:
        return dy
    same[...] = dy
    return same
