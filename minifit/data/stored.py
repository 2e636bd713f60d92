"""Reads images from files of any size, row by row, and copies other files into that form.

If a file holds one contiguous array of bytes, only the rows asked for are read into memory. Anything else (compressed
arrays, archives, pictures) is copied once, in slices, to such a file in the cache.

A file may be damaged or hostile. A child process of limited memory and time reads it; if the child dies, the user sees
one line. Sizes that a file claims are compared with its real bytes before they are used.
"""

import faulthandler
import fcntl
import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import prod

import h5py
import numpy as np

from minifit import UserError
from minifit.data.files import PLENTY, RATIO, believable, cache_folder
from minifit.files import SLICE, inside, open_own, opened, slices

MEMORY = 2**30  # bytes that a reader may need in addition to this process
SECONDS, SPEED = 60, 2**20  # seconds of processor time that a reader may need, and one more per SPEED bytes
WAIT, PATIENCE = 20, 5  # times as many seconds of real time, on a busy machine; seconds that a reader takes to end
LONGEST = 24 * 3600  # seconds: Linux waits no longer than some weeks


class Rows:
    """Some rows of an array in a file; indexing reads them.

    They behave like an array (N, ...), of bytes unless another type is named, but take no memory.
    """

    def __init__(self, path, offset, shape, index=None, file=None, dtype=np.uint8):
        """offset: of the first byte of an array of this shape    index: which of its rows these are; None: all"""
        self.path, self.offset, self.whole, self.dtype = path, offset, tuple(shape), np.dtype(dtype)
        self.index = np.arange(shape[0]) if index is None else index
        self.file = file or open(path, "rb", buffering=0)  # noqa: SIM115 - as long as its rows

    @property
    def shape(self):
        return (len(self.index), *self.whole[1:])

    @property
    def ndim(self):
        return len(self.whole)

    def __len__(self):
        return len(self.index)

    def __getitem__(self, index):
        """Reads rows into an array; index: a number, a slice, or an array of numbers or of truth values."""
        rows = np.atleast_1d(self.index[index])
        y = np.empty((len(rows), *self.whole[1:]), self.dtype)
        size, start = self.row, 0
        for end in (*np.flatnonzero(np.diff(rows) != 1) + 1, len(rows)):  # neighbours are read together
            if end > start:
                self._read(memoryview(y[start:end]).cast("B"), self.offset + int(rows[start]) * size)
            start = end
        return y if np.ndim(self.index[index]) else y[0]

    def _read(self, into, position):
        while into:
            count = os.preadv(self.file.fileno(), [into[:SLICE]], position)  # needs no place that processes would share
            if not count:
                raise UserError(f"{self.path}: it was cut off while it was read")
            into, position = into[count:], position + count

    @property
    def row(self):
        """The bytes of a row."""
        return prod(self.whole[1:]) * self.dtype.itemsize

    def __array__(self, dtype=None, copy=None):
        return self[:] if dtype is None else self[:].astype(dtype)

    def part(self, index):
        """Returns some of these rows without reading them."""
        return Rows(self.path, self.offset, self.whole, self.index[index], self.file, self.dtype)


class Scratch(Rows):
    """Rows of a file without a name, which can be written and which ends with the processes that have it open."""

    def __init__(self, folder, shape, dtype):
        file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - as long as its rows
        super().__init__(folder, 0, shape, file=file, dtype=dtype)
        try:
            os.posix_fallocate(file.fileno(), 0, max(1, len(self) * self.row))
        except OSError as error:
            raise UserError(
                f"{folder}: {len(self) * self.row:,} bytes do not fit on its disk: {error.strerror}"
            ) from None

    def __setitem__(self, rows, values):
        """Writes neighbouring rows.   rows: a slice"""
        left, position = memoryview(np.ascontiguousarray(values, self.dtype)).cast("B"), rows.indices(len(self))[0]
        position *= self.row
        while left:
            count = os.pwrite(self.file.fileno(), left[:SLICE], position)
            left, position = left[count:], position + count


def part(images, index):
    """Returns some of the images: of Rows without reading them, of an array as a view if the index is a slice."""
    return images.part(index) if isinstance(images, Rows) else images[index]


def join(a, b):
    """Returns the images of a followed by those of b, without reading them if both are Rows of one file."""
    if isinstance(a, Rows) and isinstance(b, Rows) and (a.path, a.offset) == (b.path, b.offset):
        return Rows(a.path, a.offset, a.whole, np.concatenate([a.index, b.index]), a.file)
    return np.concatenate([a, b])


def guarded(function, *arguments, size=0):
    """Returns function(*arguments), computed by a child process of limited memory and time. UserError if it dies.

    size: the bytes that it reads; more bytes allow more time. The value must be small, because a pipe carries it.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(theirs, function, arguments, size), daemon=True)
    child.start()
    theirs.close()
    value, complaint = None, f"{arguments[0]}: damaged: what reads it was ended"
    try:
        if ours.poll(WAIT * min(LONGEST, SECONDS + size // SPEED)):
            value, complaint = ours.recv()
    except (EOFError, OSError):
        pass
    finally:
        ours.close()
        child.join(PATIENCE)
        child.kill()  # one that is stopped, or waits for a disk
    if complaint:
        raise UserError(complaint)
    return value


def _answer(pipe, function, arguments, size):
    place = arguments[0]
    faulthandler.disable()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # a library that gives up says so at length
    try:
        with open("/proc/self/statm") as file:
            mapped = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY,) * 2)
    except (OSError, ValueError):  # elsewhere than on Linux
        pass
    seconds = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2])) + SECONDS + size // SPEED
    resource.setrlimit(resource.RLIMIT_CPU, (seconds,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        answer = function(*arguments), None
    except UserError as error:
        answer = None, str(error)
    except MemoryError:
        answer = None, f"{place}: damaged: reading it would take more than {MEMORY:,} bytes of memory"
    except OSError as error:
        answer = None, f"{place}: {error.strerror or error}"
    except Exception as error:  # whatever a damaged file leads its reader to
        answer = None, f"{place}: damaged: {type(error).__name__}: {error}"
    value, complaint = answer
    pipe.send((value, complaint and " ".join(complaint.split())))
    pipe.close()
    os._exit(0)


@dataclass(frozen=True)
class Array:
    """What a file says of one of its arrays, and where its bytes are."""

    shape: tuple
    dtype: np.dtype
    offset: int | None = None  # of the first byte, if they lie in one piece
    values: np.ndarray | None = None  # of one dimension: the array itself

    def __str__(self):
        return f"{self.dtype} {self.shape}"


def hdf5(path, names):
    """{name: Array} of those of the names that an HDF5 file has."""
    try:
        with opened(path) as file:
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    return guarded(_hdf5, path, names, size=size)


def _hdf5(path, names):
    try:
        with h5py.File(path, "r") as file:
            return {name: _described(path, file, name) for name in names if file.id.links.exists(name.encode())}
    except UserError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        wanted = f"wanted an HDF5 file with {' and '.join(names[:2])}" if names else "wanted an HDF5 file"
        raise UserError(f"{path}: damaged, or no HDF5 file: {error}; {wanted}") from None


def _described(path, file, name):
    place, wanted = f"{path}: {name}", "wanted a data set of this file"
    if not inside(file, name):
        raise UserError(f"{place} is a link; {wanted}")
    d = file[name]
    if not isinstance(d, h5py.Dataset) or d.external or d.is_virtual or d.shape is None:
        kind = "no data set" if not isinstance(d, h5py.Dataset) else "empty" if d.shape is None else "in other files"
        raise UserError(f"{place} is {kind}; {wanted}")
    bytes_, there = d.size * d.dtype.itemsize, d.id.get_storage_size()
    believable(place, bytes_, there)
    if d.chunks and prod(d.chunks) * d.dtype.itemsize > PLENTY:
        raise UserError(f"{place} has chunks of {d.chunks}; wanted chunks of at most {PLENTY:,} bytes")
    offset = d.id.get_offset() if not d.chunks and not file.userblock_size else None
    if bytes_ and not there:
        raise UserError(f"{place}: found no numbers of the {d.dtype} {d.shape} that it claims; wanted all of them")
    if offset is not None and offset + bytes_ > path.stat().st_size:
        raise UserError(f"{place}: cut off: found {path.stat().st_size:,} bytes in all; wanted {offset + bytes_:,}")
    if d.ndim != 1 or d.dtype.kind not in "iu":
        return Array(d.shape, d.dtype, offset)
    with _undamaged(place, d):
        return Array(d.shape, d.dtype, offset, d[()])


@contextmanager
def _undamaged(place, dataset):
    """Raises UserError, with the field's name, where HDF5 cannot read a data set."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        array = Array(dataset.shape, dataset.dtype)
        raise UserError(f"{place}: damaged: {error}; wanted {array}, as the file says") from None


def in_one_piece(path, arrays):
    """(file, {name: Array}) of the same arrays where images lie in one piece: the path itself, or else a copy of it."""
    if all(array.offset is not None for array in arrays.values() if len(array.shape) > 1):
        return path, arrays
    copy = copied(path, [path], copy_hdf5, tuple(arrays))
    return copy, hdf5(copy, tuple(arrays))


def copy_hdf5(path, copy, names):
    """Writes those of the names that an HDF5 file has, in one piece each, to the file `copy`."""
    with h5py.File(path, "r") as file, Copy(copy, {name: file[name].shape for name in names if name in file}) as out:
        for name in out.names:
            with _undamaged(f"{path}: {name}", file[name]):
                for rows in slices(file[name]):
                    out.write(name, rows)


class Copy:
    """An HDF5 file of arrays in one piece each, written in slices: images are bytes, arrays of one dimension int64."""

    def __init__(self, path, shapes):
        needed = sum(prod(shape) for shape in shapes.values())
        if needed > shutil.disk_usage(path.parent).free - SLICE:
            raise UserError(f"{path.parent}: a copy of {needed:,} bytes does not fit on its disk")
        self.file, self.names, self.written = h5py.File(path, "x"), list(shapes), dict.fromkeys(shapes, 0)
        for name, shape in shapes.items():
            self.file.create_dataset(name, shape, np.uint8 if len(shape) > 1 else np.int64)

    def write(self, name, rows):
        start = self.written[name]
        self.file[name][start : start + len(rows)] = rows
        self.written[name] += len(rows)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.file.close()


def _whole(path):
    """Whether there is a copy, and HDF5 finds its end where it should be."""
    with suppress(UserError):
        return path.exists() and hdf5(path, ()) == {}
    return False


def copied(place, sources, make, *arguments):
    """Returns the path of a copy in the cache, which make(place, path, *arguments) writes if it is missing or cut off.

    sources: the files that the copy is made from; their names, sizes and times of change identify it
    """
    try:
        stats = [path.stat() for path in sources]  # an OSError where links lead in circles
        known = [[str(path.resolve()), s.st_size, s.st_mtime_ns] for path, s in zip(sources, stats, strict=True)]
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; wanted a file") from None
    key = hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]
    folder = cache_folder() / "copies"
    path, size = folder / f"{key}.h5", sum(size for _, size, _ in known)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with os.fdopen(open_own(folder / f".{key}.lock", os.O_RDWR), "r+") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX)  # of two runs that start together, one copies and the other waits for it
            if not _whole(path):
                temporary = folder / f".{key}.tmp"
                temporary.unlink(missing_ok=True)
                try:
                    guarded(make, place, temporary, *arguments, size=RATIO * size)
                    os.replace(temporary, path)
                finally:
                    temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: the cache cannot be written ({error.strerror or error})") from None
    return path
