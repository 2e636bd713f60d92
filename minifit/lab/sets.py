"""Training, validation and test images: kept as bytes, handed out as the batches that a network sees.

Images are prepared (scaled, or contrast-normalised and whitened), augmented and shown to the teacher where a batch of
them is needed, by the worker that needs it. What the teacher says of images that stay as they are is computed once and
kept, as long as it fits the memory that the settings allow for it.
"""

import fcntl
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from math import prod

import numpy as np
from threadpoolctl import threadpool_limits

from minifit import UserError, __version__
from minifit.backend import array_module, to_host
from minifit.data import augment
from minifit.data.preprocessing import ZCA, Local, Unit, Whitened, fit
from minifit.data.progress import Bar
from minifit.data.stored import join
from minifit.lab import files
from minifit.lab.parallel import first, shared, team
from minifit.layers import Layer, Sequential, leaves

CHUNK, HOST_CHUNK = 250, 64  # images that are evaluated at once, on a device and on a host


@dataclass(frozen=True)
class Examples:
    """Images as they are stored, what prepares them, labels, and the teacher of these images.

    teacher: its outputs for all images, or a layer that is asked for the images of a batch; None without a teacher
    """

    images: np.ndarray  # uint8 (N, H, W, C)
    labels: np.ndarray
    prepare: object
    teacher: object = None

    def __len__(self):
        return len(self.images)

    def batch(self, index, choices=None):
        """(x, target, labels) of some images, as networks see them.   choices: how each of them is augmented"""
        stored, given = self.images[index], self.teacher
        x = self.prepare(stored)
        if choices is not None:
            x = augment.apply(x, choices)
        seen = x
        if sees_bytes(given):
            seen = stored if choices is None else augment.apply(stored, choices)
        return x, given(seen) if callable(given) else each(lambda a: a[index], given), self.labels[index]

    def on(self, xp):
        """The same on another library's device."""
        given = self.teacher if callable(self.teacher) else each(xp.asarray, self.teacher)
        images = xp.asarray(np.asarray(self.images))  # of stored.Rows too
        return Examples(images, xp.asarray(self.labels), self.prepare.on(xp), given)


def sees_bytes(teacher):
    """Whether a teacher was trained elsewhere, on what it makes itself of the stored bytes."""
    return isinstance(teacher, Layer) and any(getattr(leaf, "sees_bytes", False) for leaf in leaves(teacher))


def each(function, value):
    """function(value), part by part where the value is a tuple; None stays None."""
    if isinstance(value, tuple):
        return tuple(map(function, value))
    return None if value is None else function(value)


class Sets:
    """The images of a data set that a run trains on, chooses epochs by, and is judged by."""

    def __init__(self, data, config, cache):
        """cache: the folder where runs on the same images share what whitening takes of them."""
        self.config, self.cache = config, cache
        self.stored = data.parts(config.train, config.validation, config.test)
        self.sizes = {part: len(labels) for part, (_, labels) in self.stored.items()}
        self.kept = {}  # (part, teacher) -> its outputs, and the teacher itself, which the key names by its address

    @cached_property
    def statistics(self):
        """The file of what whitening takes of the training images; None where images are not whitened."""
        if self.config.preprocessing != "whitened":
            return None
        return self.cache / f"whitening-{files.digest([self.stored['train'][0]])}.h5"

    @cached_property
    def prepare(self):
        """Bytes to what networks see, which the training images alone decide."""
        if self.statistics:
            return first(whitening)(self.statistics, self.stored["train"][0])
        return {"unit": Unit(), "local": Local(), "local-red": Local(channels=1)}[self.config.preprocessing]

    def __getitem__(self, part):
        return Examples(*self.stored[part], self.prepare)

    @property
    def on_all(self):
        """Training and validation images as one set."""
        (images, labels), (more, their_labels) = self.stored["train"], self.stored["validation"]
        return Examples(join(images, more), np.concatenate([labels, their_labels]), self.prepare)

    @property
    def draw(self):
        """(rng, n) -> how each of n training images is augmented; None where none is."""
        c = self.config
        return partial(augment.draw, flips=c.flips, pad=c.crops) if c.flips or c.crops else None

    def taught(self, part, teacher, workers, progress=False):
        """A set with what the teacher says of it, computed once if the images stay as they are and the outputs fit."""
        examples, key = self[part], (part, fingerprint(teacher))
        if teacher is None or not len(examples):
            return examples
        if not self.keeps(part, teacher):
            return replace(examples, teacher=teacher)
        if key not in self.kept:
            self.kept[key] = outputs(*self.nearest(part, teacher, workers, progress), workers, progress), teacher
        return replace(examples, teacher=self.kept[key][0])

    def nearest(self, part, teacher, workers, progress):
        """(layers, examples): the teacher above the highest hint whose maps are kept, and these maps."""
        for h in sorted(self.config.hint_layer, reverse=True) if isinstance(teacher, Sequential) else ():
            if h < len(teacher) and self.keeps(part, teacher[:h]):
                maps = self.taught(part, teacher[:h], workers, progress).teacher
                return teacher[h:], Examples(maps, self.stored[part][1], as_they_are)
        return teacher, self[part]

    def keeps(self, part, teacher):
        """Whether the teacher's outputs for a set are kept: the settings alone decide, not what else is in memory."""
        augmented = part == "train" and self.draw is not None
        return not augmented and self.needs(part, teacher) <= self.config.targets_memory * 2**20

    def needs(self, part, teacher):
        """Bytes that the teacher's outputs for a set take."""
        x = array_module(*teacher.params.values()).zeros((0, *self.stored[part][0].shape[1:]), np.float32)
        return self.sizes[part] * sum(each_size(teacher(x))) * x.itemsize


def as_they_are(images):
    return images


def each_size(y):
    """Numbers for one example in each part of an output."""
    return [prod(part.shape[1:]) for part in (y if isinstance(y, tuple) else [y])]


def fingerprint(layer):
    """What tells one network from another: its layers themselves, not what they are wrapped in."""
    if layer is None or not layer.children:
        return id(layer)
    return type(layer).__name__, *((name, fingerprint(child)) for name, child in layer.children.items())


def outputs(network, examples, workers, progress=False):
    """network(x) for all images of a set, on the host, without noise; a tuple where the network gives several."""
    params = next(iter(network.params.values()))
    xp = array_module(params)
    chunk = HOST_CHUNK if xp is np else CHUNK

    def ask(part):
        return network(xp.asarray(examples.images[part] if sees_bytes(network) else examples.batch(part)[0]))

    none = network(xp.zeros((0, *examples.images.shape[1:]), params.dtype))  # no image at all tells the shape
    given = each(lambda y: shared((len(examples), *y.shape[1:]), y.dtype), none)

    def part(start):
        part = slice(start, start + chunk)
        for result, y in zip(*(v if isinstance(v, tuple) else (v,) for v in (given, ask(part))), strict=True):
            result[part] = to_host(y)

    jobs = range(0, len(examples), chunk)
    bar = Bar(
        total=len(examples), unit="img", unit_scale=True, leave=False, disable=not progress, desc="teacher's outputs"
    )
    with team(workers if xp is np else 1, {"outputs": part}) as processes, bar:
        for i in range(0, len(jobs), 50):
            some = jobs[i : i + 50]
            processes.run("outputs", some)
            results = given if isinstance(given, tuple) else (given,)
            processes.spread([[result[start : start + chunk] for result in results] for start in some])
            bar.update(min(50 * chunk, len(examples) - bar.n))
    return given


def whitening(path, images, scale=55.0, regularisation=0.1):
    """`fit` of the training images; the HDF5 file `path` keeps its statistics.

    The statistics are kept as they are applied, so that a resumed run sees the same bits: an eigendecomposition
    repeated on another machine, or with more threads, does not promise them. A file that was not made from these very
    images with these settings is replaced, and so is a damaged one.
    """
    settings = {"scale": scale, "regularisation": regularisation, "minifit": __version__}
    source = {"images": files.digest([images]), "shape": list(images.shape), "dtype": str(images.dtype), **settings}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.with_name(f".{path.name}.lock"), "w") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX)  # of two runs that start together, one fits and the other waits for it
            prepare = _load(path, source)
            if prepare is None:
                with threadpool_limits(1, user_api="blas"):  # whose sums depend on the number of threads
                    prepare = fit(images, scale, regularisation)
                files.save(path, {"fitted on": source}, zca=asdict(prepare.zca))
    except OSError as error:
        raise UserError(f"{path}: the cache of the whitening cannot be kept ({error.strerror or error})") from None
    return prepare


def _load(path, source):
    """The Whitened in `path`; None where there is none, or one fitted on something else, or damaged."""
    try:
        record, groups = files.load(path)
        if record["fitted on"] != source:
            return None
        return Whitened(ZCA(**groups["zca"]), source["scale"])
    except (UserError, KeyError, TypeError):
        return None
