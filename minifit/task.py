"""A task, the first argument of a method: the networks by name, the settings, and the random streams of one seed."""

from dataclasses import dataclass, field
from zlib import crc32

import numpy as np

from minifit import UserError
from minifit.composites import Sequential
from minifit.experiments import STREAMS, Config
from minifit.layers import Layer
from minifit.networks import Output, build, initialise, unit_variance
from minifit.regressors import pieces_of, regressor

MEASURED = 128  # a scaled start measures its layers on this many training images


@dataclass
class Task:
    """One experiment with one seed, before any training."""

    networks: dict  # name -> networks.Network: "teacher", "student", and networks that methods bring with them
    settings: Config
    seed: int
    images: object = None  # the first MEASURED training images, as networks see them; only a scaled start needs them
    xp: object = np  # the library, numpy or cupy
    dtype: type = np.float32
    trained: frozenset = frozenset()  # stages that have a file: a network of the same name is loaded, not drawn
    draw: bool = True  # False: all weights stay 0, where only shapes are needed
    shared: Layer | None = None  # the teacher of another run, from which this one learns
    teachers: dict = field(default_factory=dict, init=False)  # name -> a teacher that a method has trained or loaded

    def __post_init__(self):
        network = self.networks["teacher"]
        given = network if isinstance(network, Layer) else self.shared
        if given is not None:  # trained elsewhere
            self.teachers["teacher"] = given

    @property
    def teacher(self):
        """The teacher, after a method has trained or loaded it; None before."""
        return self.teachers.get("teacher")

    @property
    def pairs(self):
        """[(g, h)]: the student's guided layers and the teacher's hint layers, one pair in the paper."""
        return list(zip(self.settings.guided_layer, self.settings.hint_layer, strict=True))

    def rng(self, stream, index=1):
        """Returns the generator of a named stream. `index` tells apart stages or regressors with the same name.

        The streams of published runs keep their numbers; any other stream gets its number from its name.
        """
        number = STREAMS.index(stream) if stream in STREAMS else crc32(stream.encode())
        return np.random.default_rng([self.seed, number] + [index] * (index > 1))

    def network(self, name, default=None, as_teacher=False):
        """Returns the network at its start. With one seed, every method gets a student with the same weights.

        default: a networks.Network that the method brings with it, used where the task has no network of this name
        as_teacher: whether the teacher's settings apply, such as dropout
        """
        s = self.settings
        if isinstance(default, Layer):
            raise UserError(f"{name}: wanted a teacher that can be trained; --teacher names a trained one")
        if default is not None:
            self.networks.setdefault(name, default)
        if as_teacher:
            options = {"dropout_keep_input": s.dropout_keep_input, "dropout_keep": s.dropout_keep}
            options["conv_lr_scale"] = s.teacher_conv_lr_scale
        else:
            options = {"conv_lr_scale": s.student_conv_lr_scale}
        layers = build(self.networks[name], xp=self.xp, dtype=self.dtype, **options)
        if self.draw and name not in self.trained:
            initialise(layers, self.rng(f"{name} weights"), s.init_range if s.init == "uniform" else None)
            if s.init == "scaled":
                unit_variance(layers, self.xp.asarray(self.images[:MEASURED]))
        return layers

    def head(self, below, stream, index=1):
        """Returns a linear classifier on the output of some layers, at its start."""
        s, image = self.settings, self.xp.zeros((0, *self.networks["student"].input), self.dtype)
        output = Output(self.networks["student"].blocks[-1].classes)
        layers = Sequential(output.layers(below(image).shape[1:], self.xp, self.dtype))
        if self.draw:
            initialise(layers, self.rng(stream, index), s.init_range if s.init == "uniform" else None)
        return layers

    def regressor(self, guided, hint, pair=1):
        """Returns r of eq. 3 at its start, from the guided maps to the shape of the hint.   Algorithm 1, line 3."""
        s, image = self.settings, self.xp.zeros((0, *self.networks["student"].input), self.dtype)
        shapes = [part(image).shape[1:] for part in (guided, hint)]
        pieces = s.regressor_pieces or pieces_of(hint)
        layers = regressor(s.regressor, *shapes, pieces, s.regressor_max_norm, self.xp, self.dtype)
        if self.draw:
            init_range = s.regressor_init_range if s.regressor_init == "uniform" else None
            initialise(layers, self.rng("regressor weights", pair), init_range)
        return layers
