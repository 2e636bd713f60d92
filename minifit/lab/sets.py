"""Training, validation and test images: kept as bytes, and prepared as batches for a network.

The worker that needs a batch prepares its images (scales them, or normalises their contrast), augments them and shows
them to the teacher. If they fit the space that the settings allow, the teacher's outputs for images that are not
cropped, and for their mirror images, are kept in memory and, on a host, whitened images in a file without a name.
"""

import fcntl
import os
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from math import prod

import numpy as np
from threadpoolctl import threadpool_limits

from minifit import UserError, __version__
from minifit.backend import array_module, to_host
from minifit.composites import Composite, Sequential, frozen, leaves
from minifit.data import augment
from minifit.data.preprocessing import ZCA, Local, Unit, Whitened, fit
from minifit.data.progress import Bar
from minifit.data.stored import Scratch, join
from minifit.files import open_own
from minifit.lab import files
from minifit.lab.parallel import first, shared, team
from minifit.layers import Layer

CHUNK, HOST_CHUNK = 250, 64  # images that are evaluated at a time, on a device and on a host


class Prepared(Scratch):
    """All images of a set as `prepare` makes them. The first worker that needs an image prepares the image's slice.

    The file keeps the slice for all workers of the process. Slices begin at multiples of HOST_CHUNK, so an image has
    the same bits whichever image is needed first. Workers that need a slice at the same time all prepare it.
    """

    def __init__(self, folder, images, prepare):
        folder.mkdir(parents=True, exist_ok=True)  # of a rank on another machine too
        super().__init__(folder, images.shape, np.float32)
        self.images, self.prepare = images, prepare
        self.known = shared((len(images) // HOST_CHUNK + 1,), bool)  # for each slice, whether the file has it

    def __getitem__(self, index):
        for i in dict.fromkeys(np.atleast_1d(self.index[index] // HOST_CHUNK).tolist()):  # each worker in its own order
            if self.known[i]:
                continue
            rows = slice(i * HOST_CHUNK, (i + 1) * HOST_CHUNK)
            with threadpool_limits(1, user_api="blas"):  # the sums of BLAS depend on the number of threads
                self[rows] = self.prepare(self.images[rows])
            self.known[i] = True
        return super().__getitem__(index)


@dataclass(frozen=True)
class Examples:
    """Stored images, their labels, their preparation, and the teacher's outputs or the teacher itself.

    teacher: the teacher's outputs for all images, followed by those for their mirror images if some are mirrored; or a
    layer that computes them for each batch; None: no teacher
    """

    images: np.ndarray  # uint8 (N, H, W, C)
    labels: np.ndarray
    prepare: object
    teacher: object = None
    prepared: Prepared | None = None  # the images as `prepare` makes them, if they are kept

    def __len__(self):
        return len(self.images)

    def batch(self, index, choices=None):
        """Returns (x, target, labels) for some images, prepared.   choices: how each image is augmented"""
        stored, given = self.images[index], self.teacher
        x = self.prepare(stored) if self.prepared is None else self.prepared[index]
        if choices is not None:
            x = augment.apply(x, choices)
        if not callable(given):
            return x, each(lambda a: a[self._rows(index, choices)], given), self.labels[index]
        seen = x
        if sees_bytes(given):
            seen = stored if choices is None else augment.apply(stored, choices)
        return x, given(seen), self.labels[index]

    def _rows(self, index, choices):
        """Returns the numbers of the teacher's outputs for some images; those for mirror images follow all others."""
        if choices is None:
            return index
        return index + len(self) * array_module(index).asarray(choices[:, 0].astype(np.int64))

    def with_teacher(self, made):
        """Returns these examples with made(teacher) in place of a teacher that is a composite."""
        return replace(self, teacher=made(self.teacher)) if isinstance(self.teacher, Composite) else self

    def on(self, xp):
        """Returns these examples on another library's device. The device keeps bytes and prepares each batch."""
        given = self.teacher if callable(self.teacher) else each(xp.asarray, self.teacher)
        images = xp.asarray(np.asarray(self.images))  # of stored.Rows too
        return Examples(images, xp.asarray(self.labels), self.prepare.on(xp), given)


def sees_bytes(teacher):
    """Whether a teacher was trained elsewhere and so prepares the stored bytes itself."""
    return isinstance(teacher, Layer) and any(getattr(leaf, "sees_bytes", False) for leaf in leaves(teacher))


def each(function, value):
    """Applies a function to a value, or to each part of a tuple; None stays None."""
    if isinstance(value, tuple):
        return tuple(map(function, value))
    return None if value is None else function(value)


class Sets:
    """The training, validation and test images of a run."""

    def __init__(self, data, config, cache, xp=np):
        """cache: the folder where runs on the same images share whitening statistics    xp: the library that trains"""
        self.data, self.config, self.cache, self.xp = data, config, cache, xp
        self.stored = data.parts(config.train, config.validation, config.test)
        self.sizes = {part: len(labels) for part, (_, labels) in self.stored.items()}
        self.answers = {}  # (part, teacher's address) -> (outputs, the teacher itself, which keeps the address in use)
        self.whitened = {}  # part -> its images, if they are kept

    @cached_property
    def statistics(self):
        """The file of the whitening statistics of the training images; None without whitening."""
        if self.config.preprocessing != "whitened":
            return None
        return self.cache / f"whitening-{self.digest}.h5"

    @property
    def digest(self):
        """The digest of the images, as in a run's settings."""
        return self.data.digest(self.config.train, self.config.validation, self.config.test)

    @cached_property
    def prepare(self):
        """The preparation of images: bytes to network inputs. Only the training images decide it."""
        if self.statistics:
            return first(whitening)(self.statistics, self.stored["train"][0], self.digest)
        return {"unit": Unit(), "local": Local(), "local-red": Local(channels=1)}[self.config.preprocessing]

    def __getitem__(self, part):
        return Examples(*self.stored[part], self.prepare, prepared=self.whitened.get(part))

    def keeps_whitened(self, part):
        """Whether whitened images of a part are kept. A device keeps none, because it whitens a batch fast."""
        size = 4 * prod(self.stored[part][0].shape)
        return bool(self.statistics) and self.xp is np and 0 < size <= self.config.targets_memory * 2**20

    @property
    def on_all(self):
        """Training and validation images as one set."""
        (images, labels), (more, their_labels) = self.stored["train"], self.stored["validation"]
        return Examples(join(images, more), np.concatenate([labels, their_labels]), self.prepare)

    @property
    def draw(self):
        """A function (rng, n) -> how each of n training images is augmented; None: no augmentation."""
        c = self.config
        return partial(augment.draw, flips=c.flips, pad=c.crops) if c.flips or c.crops else None

    def taught(self, part, teacher, workers, progress=False):
        """Returns a set with the teacher's outputs, computed once if images are not cropped and the outputs fit."""
        if self.keeps_whitened(part) and part not in self.whitened:
            self.whitened[part] = Prepared(self.cache, self.stored[part][0], self.prepare)
        examples, key = self[part], (part, fingerprint(teacher))
        if teacher is None or not len(examples):
            return examples
        if not self.keeps(part, teacher):
            return replace(examples, teacher=teacher)
        if key not in self.answers:
            layers, seen, versions = self.nearest(part, teacher, workers, progress)
            self.answers[key] = outputs(layers, seen, workers, progress, versions), teacher
        return replace(examples, teacher=self.answers[key][0])

    def nearest(self, part, teacher, workers, progress):
        """Returns (layers, examples, versions): the layers above the highest hint whose maps are kept, and the maps."""
        for h in sorted(self.config.hint_layer, reverse=True) if isinstance(teacher, Sequential) else ():
            if h < len(teacher) and self.keeps(part, teacher[:h]):
                maps = self.taught(part, teacher[:h], workers, progress).teacher
                return teacher[h:], Examples(maps, np.zeros(len(maps)), as_they_are), 1
        return teacher, self[part], self.versions(part)

    def keeps(self, part, teacher):
        """Whether the teacher's outputs for a set are kept. Only the settings decide, not the free memory."""
        cropped = part == "train" and self.config.crops
        return not cropped and self.needs(part, teacher) <= self.config.targets_memory * 2**20

    def needs(self, part, teacher):
        """Returns the bytes that the teacher's outputs for a set take."""
        x = array_module(*teacher.params.values()).zeros((0, *self.stored[part][0].shape[1:]), np.float32)
        return self.versions(part) * self.sizes[part] * sum(each_size(teacher(x))) * x.itemsize

    def versions(self, part):
        """Returns how many versions of each image of a set there are, crops aside: 2 if it may be mirrored."""
        return 2 if part == "train" and self.config.flips else 1


def as_they_are(images):
    return images


def each_size(y):
    """Returns how many numbers each part of an output has per example."""
    return [prod(part.shape[1:]) for part in (y if isinstance(y, tuple) else [y])]


def fingerprint(layer):
    """Identifies a network by its layers themselves, whatever Sequentials they are wrapped in."""
    if layer is None or not layer.children:
        return id(layer)
    return type(layer).__name__, *((name, fingerprint(child)) for name, child in layer.children.items())


def outputs(network, examples, workers, progress=False, versions=1):
    """Returns network(x) for all images of a set, on the host, without noise; a tuple for several outputs.

    versions: 2: the outputs for the mirror images of all images follow
    """
    weights = next(iter(network.params.values()), np.zeros(0, np.float32))
    xp = array_module(weights)
    if xp is np and isinstance(network, Composite):
        network = frozen(network)
    chunk, n = HOST_CHUNK if xp is np else CHUNK, len(examples)

    def ask(start, mirrored):
        part = slice(start, min(start + chunk, n))
        x = examples.images[part] if sees_bytes(network) else examples.batch(part)[0]
        return network(xp.asarray(x[:, :, ::-1] if mirrored else x))

    none = network(xp.zeros((0, *examples.images.shape[1:]), weights.dtype))  # no images are enough to find the shape
    given = each(lambda y: shared((versions * n, *y.shape[1:]), y.dtype), none)

    def part(rows):
        y = ask(rows.start % n, rows.start >= n)
        for result, of_part in zip(*(v if isinstance(v, tuple) else (v,) for v in (given, y)), strict=True):
            result[rows] = to_host(of_part)

    ends = [n * version for version in range(1, versions + 1)]
    jobs = [slice(i, min(i + chunk, end)) for end in ends for i in range(end - n, end, chunk)]
    bar = Bar(total=ends[-1], unit="img", unit_scale=True, leave=False, disable=not progress, desc="kept outputs")
    with team(workers if xp is np else 1, {"outputs": part}) as processes, bar:
        for i in range(0, len(jobs), 50):
            processes.run("outputs", jobs[i : i + 50])
            results = given if isinstance(given, tuple) else (given,)
            processes.spread(results, jobs[i : i + 50])
            bar.update(sum(rows.stop - rows.start for rows in jobs[i : i + 50]))
    return given


def whitening(path, images, digest, scale=55.0, regularisation=0.1):
    """Returns `fit` of the training images, which have this digest, and keeps its statistics in the HDF5 file `path`.

    A resumed run reads the kept statistics and so sees the same bits. An eigendecomposition on another machine, or with
    more threads, may round differently. A damaged file, or one made from other images or settings, is replaced.
    """
    settings = {"scale": scale, "regularisation": regularisation, "minifit": __version__}
    source = {"images": digest, "shape": list(images.shape), "dtype": str(images.dtype), **settings}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(open_own(path.with_name(f".{path.name}.lock"), os.O_RDWR), "r+") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX)  # if two runs start together, one computes and the other waits
            prepare = _load(path, source)
            if prepare is None:
                with threadpool_limits(1, user_api="blas"):  # the sums of BLAS depend on the number of threads
                    prepare = fit(images, scale, regularisation)
                files.save(path, {"fitted on": source}, zca=asdict(prepare.zca))
    except OSError as error:
        raise UserError(f"{path}: the cache of the whitening cannot be kept ({error.strerror or error})") from None
    return prepare


def _load(path, source):
    """Returns the Whitened in `path`; None if it is missing, damaged, or made from something else."""
    try:
        record, groups = files.load(path)
        if record["fitted on"] != source:
            return None
        return Whitened(ZCA(**groups["zca"]), source["scale"])
    except (UserError, KeyError, TypeError):
        return None
