"""Files of weights and state: HDF5 with a record in JSON, each file written whole or not at all."""

import hashlib
import io
import json
import os
from contextlib import contextmanager
from math import prod
from pathlib import Path

import h5py
import numpy as np

from minifit import UserError
from minifit.backend import array_module, to_host

SLICE = 2**24  # bytes of an array read at a time


def write_atomically(path, write):
    """Calls write(temporary path), then syncs and renames: a reader sees the old file or the new one, never a part.

    Raises UserError if the disk refuses; the old file then stays as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")  # always the same name, so the next run overwrites a killed run's
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)  # the rename itself
        os.close(folder)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        temporary.unlink(missing_ok=True)


def save(path, record, **groups):
    """Saves a record {name: JSON value} and groups of {name: array}. The same content gives the same bytes.

    The file is HDF5, then the record, its length in eight bytes, its SHA-256, and the SHA-256 of everything before.
    HDF5 ignores the bytes after its own end. `load` checks the sums first, because the HDF5 library may hang on a
    damaged file. The record can be read without the arrays.

    HDF5 alone reads the record too, as the data set "record", bytes of UTF-8 (an attribute ends at 64 KiB):

        json.loads(h5py.File("fitnet.h5")["record"][()].tobytes())
    """
    written = json.dumps(record, sort_keys=True).encode()

    def write(temporary):
        content = io.BytesIO()  # not the disk: HDF5 crashes on a full disk
        with h5py.File(content, "w") as file:
            for group, arrays in groups.items():
                for name, array in sorted(arrays.items()):
                    file.create_dataset(f"{group}/{name}", data=array)
                file.require_group(group)
            file["record"] = np.frombuffer(written, np.uint8)
        content.seek(0, io.SEEK_END)
        content.write(written + len(written).to_bytes(8, "big") + hashlib.sha256(written).digest())
        with open(temporary, "wb") as file:
            file.write(content.getbuffer())
            file.write(hashlib.sha256(content.getbuffer()).digest())

    write_atomically(path, write)


def load(path):
    """Returns (record, {group: {name: array}}) from a file that `save` wrote. UserError for any other file."""
    with _reading(path):
        content = memoryview(path.read_bytes())
        if hashlib.sha256(content[:-TAIL_SUM]).digest() != content[-TAIL_SUM:]:
            raise ValueError("its checksum is wrong")
        record, length = _record(content[-TAIL:], lambda n: content[-TAIL - n : -TAIL])
        with h5py.File(io.BytesIO(content[: -TAIL - length]), "r") as file:
            items = {name: item for name, item in file.items() if isinstance(item, h5py.Group)}
            groups = {group: {name: np.array(d) for name, d in arrays.items()} for group, arrays in items.items()}
    return record, groups


def load_record(path):
    """Returns only the record from a file that `save` wrote, without reading arrays. UserError for any other file."""

    def before(file, n):
        file.seek(-TAIL - n, os.SEEK_END)
        return file.read(n)

    with _reading(path), open(path, "rb") as file:
        return _record(before(file, 0) + file.read(), lambda n: before(file, n))[0]


TAIL_SUM = 32  # bytes of a SHA-256
TAIL = 8 + 2 * TAIL_SUM  # of the record's length and of both sums


def _record(tail, before):
    length = int.from_bytes(tail[:8], "big")
    written = bytes(before(length)) if length < 2**24 else b""
    if hashlib.sha256(written).digest() != tail[8:-TAIL_SUM]:
        raise ValueError("it has no record, as of an earlier version or cut short")
    return json.loads(written), length


@contextmanager
def _reading(path):
    try:
        yield
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        message = f"{path}: not a whole minifit file ({error}); remove it to train again"
        raise UserError(message.replace("\n", " ")) from None


def restore(params, saved, source):
    """Copies saved arrays into parameters, in place. UserError if a name or a shape does not fit."""
    for name, p in params.items():
        if name not in saved or saved[name].shape != p.shape:
            found = saved[name].shape if name in saved else "nothing"
            raise UserError(f"{source}: parameter {name} needs an array {p.shape}, and the file has {found}")
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
