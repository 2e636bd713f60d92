"""Layers made of layers: one after another, with outputs at several depths, side by side, and back through themselves.

A composite is a layer and obeys the same contract. Whatever walks a network asks for `children` and knows no type.
"""

from copy import copy, deepcopy
from itertools import zip_longest
from numbers import Integral
from typing import NamedTuple

from minifit.backend import array_module
from minifit.layers import Bias, Conv2d, Dropout, Layer, Maxout, sigmoid


def leaves(layer):
    """Yields every layer without children, in order."""
    for child in layer.children.values():
        yield from leaves(child)
    if not isinstance(layer, Composite):
        yield layer


class Weight(NamedTuple):
    """A parameter of a network and how it is updated."""

    name: str
    array: object
    lr_scale: float  # factor of the learning rate: the product of the layers' lr_scale on the way down
    max_norm: float | None  # the largest norm of each filter; only "w" has one


def weights(layer, above=1.0):
    """Yields a Weight for every parameter of a network, in order.   above: the lr_scale of what the layer is part of"""
    scale = above * layer.lr_scale
    for child_name, child in layer.children.items():
        for weight in weights(child, scale):
            yield weight._replace(name=f"{child_name}.{weight.name}")
    for name, p in () if isinstance(layer, Composite) else layer.params.items():
        yield Weight(name, p, scale, layer.max_norm if name == "w" else None)


def frozen(layer):
    """Returns a layer of NumPy like this one, whose weights are read-only views of this one's.

    Whoever freezes a layer changes its weights no more while the result is used: a convolution keeps the transforms of
    read-only filters.
    """
    twins = {}
    for leaf in leaves(layer):
        twin = twins[id(leaf)] = copy(leaf)
        if leaf.params:
            twin.params = {name: p.view() for name, p in leaf.params.items()}
            for view in twin.params.values():
                view.flags.writeable = False
    return deepcopy(layer, twins)  # of composites; leaves are the twins


class Composite(Layer):
    """A layer made of layers. Parameter "w" of child "3" is its parameter "3.w"."""

    @property
    def params(self):
        return _flat({name: child.params for name, child in self.children.items()})


class Sequential(Composite):
    """Applies layers one after another: y = f_n(... f_2(f_1(x))).

    Children are numbered. Dropout takes no number, so parameters have the same names with and without it. Slices and
    sums are new Sequentials of the *same* layers: `student[:4] + regressor` is W_Guided and W_r of eq. 3, and training
    it trains the student.
    """

    def __init__(self, layers):
        self.layers = list(layers)
        self.children, number = {}, 0
        for i, layer in enumerate(self.layers):
            self.children[f"dropout{i}" if isinstance(layer, Dropout) else str(number)] = layer
            number += not isinstance(layer, Dropout)

    def forward(self, x, rng=None):
        caches = []
        for layer in self.layers:
            x, cache = layer.forward(x, rng)
            caches.append(cache)
        return x, caches

    def __call__(self, x, rng=None):
        layers = zip_longest(self.layers, self.layers[1:])
        for layer, following in layers:
            if type(layer) is not Conv2d:  # a subclass may compute something else
                x = layer(x, rng)
            elif type(following) is Maxout and layer.divides_into(following.pieces):
                x = layer.maxout(x, following.pieces)
                next(layers)
            else:
                x = layer.maxout(x, 1)
        return x

    def visit(self, x, see):
        for layer in self.layers:
            x = layer.visit(x, see)
        return x

    def backward(self, dy, cache):
        return self._backward(dy, cache, 0, len(self))

    def weight_gradients(self, dy, cache):
        lowest = next((i for i, layer in enumerate(self.layers) if layer.params), None)
        if lowest is None:
            return {}
        dy, grads = self._backward(dy, cache, lowest + 1, len(self))
        return grads | _flat({list(self.children)[lowest]: self.layers[lowest].weight_gradients(dy, cache[lowest])})

    def _backward(self, dy, cache, first, last):
        grads = {}
        for (name, layer), layer_cache in reversed(list(zip(self.children.items(), cache, strict=True))[first:last]):
            dy, layer_grads = layer.backward(dy, layer_cache)
            grads |= _flat({name: layer_grads})
        return dy, grads

    def __len__(self):
        return len(self.layers)

    def __iter__(self):
        return iter(self.layers)

    def __getitem__(self, index):
        return Sequential(self.layers[index]) if isinstance(index, slice) else self.layers[index]

    def __add__(self, other):
        return Sequential(self.layers + (other.layers if isinstance(other, Sequential) else [other]))


class Branches(Composite):
    """Outputs at several depths of a Sequential: head_i(trunk[:i](x)) for i in increasing order, and then trunk(x).

    y and dy are tuples. Companion losses have this form, and hints at several depths at once. The children are those of
    the trunk, and "head3" for the head at depth 3.
    """

    def __init__(self, trunk, heads):
        if not all(isinstance(i, Integral) and 1 <= i <= len(trunk) for i in heads):
            raise ValueError(f"Branches: heads at {list(heads)}; wanted depths of the trunk, 1 to {len(trunk)}")
        self.trunk, self.heads = trunk, dict(sorted(heads.items()))
        self.children = trunk.children | {f"head{i}": head for i, head in self.heads.items()}

    def forward(self, x, rng=None):
        ys, below, above, start = [], [], [], 0
        for depth, head in self.heads.items():
            x, caches = self.trunk[start:depth].forward(x, rng)
            y, cache = head.forward(x, rng)
            ys, below, above, start = [*ys, y], below + caches, [*above, cache], depth
        x, caches = self.trunk[start:].forward(x, rng)
        return (*ys, x), (below + caches, above)

    def __call__(self, x, rng=None):
        return self._outputs(x, lambda layer, x: layer(x, rng))

    def visit(self, x, see):
        return self._outputs(x, lambda layer, x: layer.visit(x, see))

    def _outputs(self, x, run):
        ys, start = [], 0
        for depth, head in self.heads.items():
            x = run(self.trunk[start:depth], x)
            ys.append(run(head, x))
            start = depth
        return (*ys, run(self.trunk[start:], x))

    def backward(self, dy, cache):
        dy, grads, lowest, caches = self._above_the_lowest_head(dy, cache)
        dx, below = lowest.backward(dy, caches)
        return dx, grads | below

    def weight_gradients(self, dy, cache):
        dy, grads, lowest, caches = self._above_the_lowest_head(dy, cache)
        return grads | lowest.weight_gradients(dy, caches)

    def _above_the_lowest_head(self, dy, cache):
        # Two gradients meet at a head: the trunk's from above, and the head's.
        (*dys, dy), (below, above), grads, end = dy, cache, {}, len(self.trunk)
        for (depth, head), dhead, head_cache in reversed(list(zip(self.heads.items(), dys, above, strict=True))):
            dy, grads_between = self.trunk._backward(dy, below, depth, end)
            dx, grads_of_head = head.backward(dhead, head_cache)
            grads |= grads_between | _flat({f"head{depth}": grads_of_head})
            dy, end = dy + dx, depth
        return dy, grads, self.trunk[:end], below[:end]


class Mean(Composite):
    """The mean of several layers' outputs for the same input, an ensemble: y = 1/M sum_m f_m(x)."""

    def __init__(self, layers):
        self.children = {str(i): layer for i, layer in enumerate(layers)}
        if not self.children:
            raise ValueError("Mean: no layers have no mean")

    def forward(self, x, rng=None):
        ys, caches = zip(*(layer.forward(x, rng) for layer in self.children.values()), strict=True)
        return self._mean(ys), caches

    def __call__(self, x, rng=None):
        return self._mean([layer(x, rng) for layer in self.children.values()])

    def visit(self, x, see):
        return self._mean([layer.visit(x, see) for layer in self.children.values()])

    def _mean(self, ys):
        if len({y.shape for y in ys}) > 1:
            raise ValueError(f"Mean: outputs {', '.join(str(y.shape) for y in ys)} differ")
        return sum(ys) / len(ys)

    def backward(self, dy, cache):
        layers = zip(self.children.items(), cache, strict=True)
        parts = {name: layer.backward(dy / len(cache), layer_cache) for (name, layer), layer_cache in layers}
        return sum(dx for dx, _ in parts.values()), _flat({name: grads for name, (_, grads) in parts.items()})

    def weight_gradients(self, dy, cache):
        layers = zip(self.children.items(), cache, strict=True)
        return _flat(
            {name: layer.weight_gradients(dy / len(cache), layer_cache) for (name, layer), layer_cache in layers}
        )


class Autoassociator(Composite):
    """Encodes its input by a layer of sigmoids and decodes it by the same weights: y = W' q + b, q = sigm(W x + c).

    y are logits: the loss compares the input with sigm(y). The encoder x -> W x + c is a Sequential of a block's own
    layers up to the sigmoid, so training this trains the block. The decoder has only b, of the shape of one input.
    Bengio, Lamblin, Popovici, Larochelle 2006.

    The same weights are a restricted Boltzmann machine with energy E(v, h) = -h'(W v + c) - b'v. Then `up` gives
    P(h = 1 | v), and `down` gives the logits of P(v = 1 | h).
    """

    def __init__(self, encoder, b):
        if [name.partition(".")[2] for name in encoder.params] != ["w", "b"]:
            raise ValueError(f"Autoassociator: an encoder of parameters {list(encoder.params)}; wanted one w and one b")
        self.encoder, self.decoder = encoder, Bias(b)
        self.children = {"encoder": encoder, "decoder": self.decoder}

    def up(self, x):
        """Returns q, and the cache that `down` and `correlations` need."""
        z, cache = self.encoder.forward(x)
        return sigmoid(z), cache

    def down(self, h, cache):
        return self.decoder(self.encoder.backward(h, cache)[0])

    def correlations(self, v, h, cache):
        """-dE(v, h)/d(parameter), summed over the batch, cache being of up(v): h v' for W, h for c, v for b."""
        return _flat({"encoder": self.encoder.weight_gradients(h, cache), "decoder": {"b": v.sum(axis=0)}})

    def forward(self, x, rng=None):
        q, cache = self.up(x)
        return self.down(q, cache), (q, cache)

    def visit(self, x, see):
        self.encoder.visit(x, see)
        q, cache = self.up(x)
        return self.decoder.visit(self.encoder.backward(q, cache)[0], see)

    def backward(self, dy, cache):
        dz, grads_down, cache = self._through_the_decoder(dy, cache)
        dx, grads_up = self.encoder.backward(dz, cache)
        return dx, self._summed(grads_up, grads_down)

    def weight_gradients(self, dy, cache):
        dz, grads_down, cache = self._through_the_decoder(dy, cache)
        return self._summed(self.encoder.weight_gradients(dz, cache), grads_down)

    def _through_the_decoder(self, dy, cache):
        # <dy, W' q> = <W dy, q>: for W in the decoder, dy plays the part of an input and q that of a gradient.
        q, cache_of_x = cache
        dq, cache_of_dy = Sequential(map(_without_b, self.encoder)).forward(dy)
        return dq * q * (1 - q), self.correlations(dy, q, cache_of_dy), cache_of_x

    def _summed(self, grads_up, grads_down):
        """Adds the two gradients of W, which is used twice; c belongs to the encoder only."""
        both = {f"encoder.{name}": g for name, g in grads_up.items()}
        return grads_down | {name: g + grads_down[name] if name.endswith("w") else g for name, g in both.items()}


def _without_b(layer):
    """Returns an affine layer without its bias, sharing w; any other layer as it is."""
    linear = copy(layer)
    if layer.params:
        xp = array_module(*layer.params.values())
        linear.params = {name: p if name == "w" else xp.zeros_like(p) for name, p in layer.params.items()}
    return linear


def _flat(groups):
    return {f"{name}.{key}": value for name, group in groups.items() for key, value in group.items()}
