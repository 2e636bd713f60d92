"""The files of a run: HDF5 for weights and state, JSON for records, each written whole or not at all."""

import hashlib
import io
import json
import os
import subprocess
from pathlib import Path

import h5py
import numpy as np

from minifit import UserError
from minifit.backend import array_module, to_host


def write_atomically(path, write):
    """write(temporary path), then fsync and rename: a reader sees the old file or the new one, never half of one.

    UserError where the disk refuses, with the old file as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")  # one name, so that what a killed run left is written over
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


def save(path, attributes, **groups):
    """attributes {name: JSON value} and groups of {name: array} in one file; the same content gives the same bytes.

    The SHA-256 of the HDF5 follows it, where HDF5 itself does not look: no damage goes unnoticed, and none is left to
    the HDF5 library, which may not come back from it.
    """

    def write(temporary):
        content = io.BytesIO()  # and not the disk: HDF5 does not survive one that is full
        with h5py.File(content, "w") as file:
            file.attrs["record"] = json.dumps(attributes, sort_keys=True)
            for group, arrays in groups.items():
                for name, array in sorted(arrays.items()):
                    file.create_dataset(f"{group}/{name}", data=array)
                file.require_group(group)
        with open(temporary, "wb") as file:
            file.write(content.getbuffer())
            file.write(hashlib.sha256(content.getbuffer()).digest())

    write_atomically(path, write)


def load(path):
    """(attributes, {group: {name: array}}) of a file that `save` wrote; UserError where it is not one."""
    try:
        content = path.read_bytes()
        if hashlib.sha256(content[:-32]).digest() != content[-32:]:
            raise ValueError("its checksum is wrong")
        with h5py.File(io.BytesIO(content[:-32]), "r") as file:
            attributes = json.loads(file.attrs["record"])
            groups = {group: {name: np.array(d) for name, d in items.items()} for group, items in file.items()}
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"{path}: not a whole minifit file ({error}); remove it to train again".replace("\n", " ")
        ) from None
    return attributes, groups


def restore(params, saved, source):
    """Copies saved arrays into parameters, in place; UserError where a name or a shape does not fit."""
    for name, p in params.items():
        if name not in saved or saved[name].shape != p.shape:
            found = saved[name].shape if name in saved else "nothing"
            raise UserError(f"{source}: parameter {name} needs an array {p.shape}, and the file has {found}")
        p[...] = array_module(p).asarray(saved[name])


def read_json(path):
    """The dictionary in a JSON file; UserError where there is none."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def write_json(path, value):
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path, text):
    write_atomically(path, lambda temporary: temporary.write_text(text))


def digest(arrays):
    """A fingerprint of arrays: of images, or of a network's weights."""
    sha = hashlib.sha256()
    for a in arrays:
        sha.update(np.ascontiguousarray(to_host(a)))
    return sha.hexdigest()[:16]


def commit():
    """The commit of the working copy, "+" where it has changes, but for results; None outside one."""
    here = Path(__file__).parent
    code = ["git", "status", "--porcelain", "--", ":/", ":(top,exclude)results"]
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True).stdout
        changed = subprocess.run(code, cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.strip() + ("+" if changed.stdout else "")
