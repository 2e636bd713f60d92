"""Reads and writes the files of a run: weights and state, and records in JSON."""

import hashlib
import platform
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_info

from minifit import UserError, __version__
from minifit.files import digest, load, load_record, opened, restore, save, write_atomically
from minifit.schema import check, parse

__all__ = ["commit", "digest", "load", "load_record", "read_bytes", "read_json", "restore", "save"]
__all__ += ["write_atomically", "write_text"]


def read_json(path, schema):
    """Returns the dictionary in a JSON file. UserError if there is none, or if it does not fit the schema."""
    try:
        record = parse(read_text(path))
        check(record, schema)
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None
    return record


def read_text(path):
    """Returns the text of a file. UserError if it cannot be read."""
    try:
        return read_bytes(path).decode()
    except UnicodeError as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def read_bytes(path):
    """Returns the bytes of a file. UserError if it cannot be read, or is none."""
    try:
        with opened(path) as file:
            return file.read()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def write_text(path, text):
    write_atomically(path, lambda file: file.write(text.encode()))


@cache  # the running code is the one that was imported
def commit():
    """Returns the commit of the working copy, with "+" if files other than results have changed; None outside git."""
    here = Path(__file__).parent
    code = ["git", "status", "--porcelain", "--", ":/", ":(top,exclude)results"]
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True).stdout
        changed = subprocess.run(code, cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.strip() + ("+" if changed.stdout else "")


def versions():
    """What must be the same in two processes, code and arithmetic, for them to compute the same bits."""
    code, blas = hashlib.sha256(), [lib for lib in threadpool_info() if lib["user_api"] == "blas"]
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        code.update(path.read_bytes())
    return {
        "minifit": __version__,
        "code of minifit": code.hexdigest()[:12],
        "Python": platform.python_version(),
        "NumPy": np.__version__,
        "BLAS": sorted(f"{lib['internal_api']} {lib['version']} for {lib.get('architecture')}" for lib in blas),
        "vector instructions": np.show_config(mode="dicts")["SIMD Extensions"].get("found", []),
    }
