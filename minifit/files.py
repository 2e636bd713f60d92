"""Files of weights and state: HDF5 with a record in JSON, each file written whole or not at all."""

import errno
import fcntl
import hashlib
import io
import json
import os
import signal
import stat
import threading
import time
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path

import h5py
import numpy as np

from minifit import UserError
from minifit.backend import array_module, to_host
from minifit.schema import parse

SLICE = 2**24  # bytes of an array read at a time
PATIENCE, PAUSE = 10, 0.01  # seconds for another process to end its write of the same file, and between two looks


def opened(path):
    """Opens a file to read its bytes. OSError for a folder, a pipe or a device, which may have no end."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "a pipe or a device, not a file")
    return file


def open_own(path, flags):
    """Opens a file that only minifit writes, and creates it if needed. OSError for a link, folder, pipe or device.

    A link is never followed, because it may lead out of the folder.
    """
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, f"{Path(path).name} is a link; remove it") from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"{Path(path).name} is a pipe or a device; remove it")
    return descriptor


@contextmanager
def uninterrupted():
    """Puts off Ctrl-C and the end that a launcher asks for until the end of the block.

    Python drops a KeyboardInterrupt that is raised while a library such as HDF5 calls back.
    """
    handlers, came = {}, []
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in handlers:
        signal.signal(number, lambda *what: came.append(what))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if came:
            handlers[came[0][0]](*came[0])


def write_atomically(path, write):
    """Calls write(file), a temporary file, then syncs and renames: a reader sees the old file or the new, never a part.

    Raises UserError if the disk refuses; the old file then stays as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")  # always the same name, so the next run overwrites a killed run's
    with uninterrupted():
        try:
            with os.fdopen(_locked(temporary), "wb") as file:
                try:
                    write(file)
                    file.flush()
                    os.fsync(file.fileno())
                    os.replace(temporary, path)
                except BaseException:
                    temporary.unlink(missing_ok=True)
                    raise
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)  # the rename itself
            os.close(folder)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None


def _locked(temporary):
    """Opens a temporary file, empty, that no other process writes and that has no other name."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        descriptor = open_own(temporary, os.O_WRONLY)
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _names(temporary, descriptor):  # else another writer has renamed it since: it is that writer's file now
                if os.fstat(descriptor).st_nlink == 1:
                    os.ftruncate(descriptor, 0)
                    return descriptor
                temporary.unlink()
        os.close(descriptor)
        time.sleep(PAUSE)
    raise OSError(errno.EAGAIN, "another process is writing it")


def _names(path, descriptor):
    """Whether a path is the name of an open file."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def save(path, record, **groups):
    """Saves a record {name: JSON value} and groups of {name: array}. The same content gives the same bytes.

    The file is HDF5, then the record, its length in eight bytes, its SHA-256, and the SHA-256 of everything before.
    HDF5 ignores the bytes after its own end. `load` checks the sums first, because the HDF5 library may hang on a
    damaged file. The record can be read without the arrays.

    HDF5 alone reads the record too, as the data set "record", bytes of UTF-8 (an attribute ends at 64 KiB):

        json.loads(h5py.File("fitnet.h5")["record"][()].tobytes())
    """
    written = json.dumps(record, sort_keys=True).encode()

    def write(out):
        content = io.BytesIO()  # not the disk: HDF5 crashes on a full disk
        with h5py.File(content, "w") as file:
            for group, arrays in groups.items():
                for name, array in sorted(arrays.items()):
                    file.create_dataset(f"{group}/{name}", data=array)
                file.require_group(group)
            file["record"] = np.frombuffer(written, np.uint8)
        content.seek(0, io.SEEK_END)
        content.write(written + len(written).to_bytes(8, "big") + hashlib.sha256(written).digest())
        out.write(content.getbuffer())
        out.write(hashlib.sha256(content.getbuffer()).digest())

    write_atomically(path, write)


def load(path):
    """Returns (record, {group: {name: array}}) from a file that `save` wrote. UserError for any other file."""
    with reading(path), opened(path) as whole:
        content = memoryview(whole.read())
        if hashlib.sha256(content[:-TAIL_SUM]).digest() != content[-TAIL_SUM:]:
            raise ValueError("its checksum is wrong")
        record, length = _record(content[-TAIL:], lambda n: content[-TAIL - n : -TAIL])
        with h5py.File(io.BytesIO(content[: -TAIL - length]), "r") as file:
            items = {name: file[name] for name in file if inside(file, name) and isinstance(file[name], h5py.Group)}
            groups = {group: {name: _array(arrays, name) for name in arrays} for group, arrays in items.items()}
    return record, groups


def inside(group, name):
    """Whether an item of a group lies there itself: a link to one may lead to another file, or to a pipe."""
    name = name if isinstance(name, bytes) else name.encode()  # h5py leaves as bytes what is no UTF-8
    return group.id.links.get_info(name).type == h5py.h5l.TYPE_HARD


def _array(group, name):
    """Returns an array of a group. ValueError unless it is numbers that lie in the file itself, in one piece."""
    place = f"{group.name[1:]}/{name}"
    item = group[name] if inside(group, name) else None
    if not isinstance(item, h5py.Dataset) or item.shape is None or item.dtype.kind not in "fiub":
        raise ValueError(f"{place} is no array of numbers")
    if item.chunks or item.external or item.is_virtual or item.id.get_storage_size() != item.nbytes:
        raise ValueError(f"{place} claims {item.nbytes:,} bytes that are not there in one piece")
    return np.array(item)


def load_record(path):
    """Returns only the record from a file that `save` wrote, without reading arrays. UserError for any other file."""

    def before(file, n):
        file.seek(-TAIL - n, os.SEEK_END)
        return file.read(n)

    with reading(path), opened(path) as file:
        return _record(before(file, 0) + file.read(), lambda n: before(file, n))[0]


TAIL_SUM = 32  # bytes of a SHA-256
TAIL = 8 + 2 * TAIL_SUM  # of the record's length and of both sums


def _record(tail, before):
    length = int.from_bytes(tail[:8], "big")
    written = bytes(before(length)) if length < 2**24 else b""
    if hashlib.sha256(written).digest() != tail[8:-TAIL_SUM]:
        raise ValueError("it has no record, as of an earlier version or cut short")
    record = parse(written)
    if not isinstance(record, dict):
        raise ValueError("its record is no dictionary")
    return record, length


@contextmanager
def reading(path):
    """Turns what is wrong with a file of weights into one line."""
    try:
        yield
    except PermissionError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        message = f"{path}: not a whole minifit file ({error}); remove it to train again"
        raise UserError(message.replace("\n", " ")) from None


def restore(params, saved, source):
    """Copies saved arrays into parameters, in place. UserError unless names, shapes and types are the same."""
    for name in {**params, **saved}:
        if name not in params:
            raise UserError(f"{source}: has an array {name}, which the network has not")
        p, form = params[name], f"{saved[name].dtype} {saved[name].shape}" if name in saved else "nothing"
        if form != f"{p.dtype} {p.shape}":
            raise UserError(f"{source}: parameter {name} needs an array {p.dtype} {p.shape}, and the file has {form}")
        p[...] = array_module(p).asarray(saved[name])


def digest(arrays):
    """Returns a fingerprint of arrays, such as images or a network's weights."""
    sha = hashlib.sha256()
    for a in arrays:
        for rows in slices(a) if a.ndim else [a]:
            sha.update(np.ascontiguousarray(to_host(rows)))
    return sha.hexdigest()[:16]


def slices(array):
    """Yields an array, or an object that is indexed like one, in parts of about SLICE bytes."""
    step = max(1, SLICE // max(1, prod(array.shape[1:]) * array.dtype.itemsize))
    for start in range(0, len(array), step):
        yield array[start : start + step]
