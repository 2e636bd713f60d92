"""Finds, downloads and checks the files of published data sets."""

import errno
import os
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from minifit import UserError
from minifit.data.progress import Bar
from minifit.files import opened

MOST = 2**28  # the most bytes of a file, zipped or not: more than any published file has
PLENTY = 2**26  # bytes that any file may inflate to ...
RATIO = 100  # ... and beyond that, at most this many times its own size: photographs compress to about a half
LARGEST, SLOWEST, GRACE = 2**31, 2**14, 60  # bytes of a download, bytes per second, seconds before speed is judged


def find(title, search, download, wanted, name, data_dir=None):
    """Returns what `search` finds of a data set, or else what `download` fetches into the folder `name` of the cache.

    search(folder) returns (the files found, the missing ones in words or "")
    wanted: the files that a user can put there, in words

    With `data_dir` it searches only there, because another folder must not silently replace the one named by hand.
    Otherwise it searches $MINIFIT_DATA, which must be a folder if it is set, and then the cache.
    """
    if data_dir is not None:
        folder = Path(data_dir).expanduser()
        paths, missing = search(folder)
        if missing:
            reason = f"has no {missing}" if os.path.isdir(folder) else f"is not a folder, so {title} is not in it"
            raise UserError(f"{folder} {reason}")
        return paths

    cache = cache_folder() / name
    places = [cache]
    if os.environ.get("MINIFIT_DATA"):
        places.insert(0, Path(os.environ["MINIFIT_DATA"]).expanduser())
        if not places[0].is_dir():
            raise UserError(f"MINIFIT_DATA names {places[0]}, which is not a folder")
    for place in places:
        paths, missing = search(place)
        if not missing:
            return paths
    try:
        return download(cache)
    except UserError as error:
        raise UserError(
            f"{title} is not in {' or '.join(map(str, places))}, and its download failed ({error}): put {wanted} into "
            f"{cache}, or name their folder with --data-dir; python run.py digits needs no files"
        ) from None


def cache_folder():
    """Returns the folder of the data sets that were downloaded, and of copies of others."""
    import pooch

    return Path(pooch.os_cache("minifit"))


def download(files, mirrors, folder, progress=True):
    """Downloads the missing ones of `files`, {name: "algorithm:checksum"}, into `folder`; returns the paths of all.

    They come from the first mirror that serves them intact. pooch renames a file only after its checksum is right.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}") from None
    import pooch  # takes longer to import than the rest of this module

    pooch.get_logger().setLevel("ERROR")  # the progress bar says enough
    reasons = []
    for mirror in mirrors:
        try:
            return [_fetch(mirror, name, checksum, folder, progress) for name, checksum in files.items()]
        except (OSError, ValueError) as error:
            reasons.append(f"{urlsplit(mirror).netloc}: {_reason(error)}")
    raise UserError("; ".join(reasons))


def _fetch(mirror, name, checksum, folder, progress):
    import pooch

    # pooch takes the bar's truth value, which tqdm refuses to give without a total; disable=None: terminals only
    with Bar(desc=name, total=1, unit="B", unit_scale=True, leave=False, disable=None if progress else True) as bar:
        return Path(pooch.retrieve(mirror + name, checksum, name, folder, downloader=partial(_stream, bar)))


def _stream(bar, url, output, _):
    """Writes what a server sends to a file. OSError if it sends too much, or too slowly."""
    import requests  # takes longer to import than the rest of this module
    from urllib3.exceptions import HTTPError

    # left to itself, a server may offer to unwrap the gzip on the way, and the checksum is of the wrapped file
    about = {"headers": {"Accept-Encoding": "identity"}, "timeout": (10, 30), "stream": True}
    with requests.get(url, **about) as response, open(output, "wb") as file:
        response.raise_for_status()
        bar.total = int(response.headers.get("Content-Length", 0)) or None
        read, n, began = getattr(response.raw, "read1", response.raw.read), 0, time.monotonic()
        try:
            while block := read(1 << 16):
                n += len(block)
                if n > LARGEST:
                    raise OSError(errno.EFBIG, f"more than {LARGEST:,} bytes")
                if n < SLOWEST * (time.monotonic() - began - GRACE):
                    raise OSError(errno.ETIMEDOUT, f"fewer than {SLOWEST:,} bytes a second")
                file.write(block)
                bar.update(len(block))
        except HTTPError:
            raise OSError(errno.EPIPE, "broke off") from None
        if n < (bar.total or 0):
            raise OSError(errno.EPIPE, "broke off")


def _reason(error):
    """Says in a few words why a mirror failed; the exceptions' own messages fill a paragraph."""
    if getattr(error, "response", None) is not None:
        return f"HTTP {error.response.status_code}"
    if isinstance(error, ValueError):
        return "wrong checksum"
    kind = type(error).__name__
    return error.strerror or {"ConnectionError": "no connection", "ChunkedEncodingError": "broke off"}.get(kind, kind)


@contextmanager
def reading(*paths):
    """Adds to an error about a file in the cache what the user can do."""
    try:
        yield
    except UserError as error:
        if any(path.is_relative_to(cache_folder()) for path in paths):
            raise UserError(f"{error}; remove it to download it again") from None
        raise


def read(path):
    """Returns all bytes of a file. UserError if there are more than MOST."""
    try:
        with opened(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MOST:
                raise UserError(f"{path}: {size:,} bytes; wanted at most {MOST:,}, more than any published file has")
            return file.read()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


class Limited:
    """A stream that raises UserError after more bytes than a file of this size can hold, at most MOST.

    This is against files that were made to fill the memory.   size: of the file, as it is compressed
    """

    def __init__(self, stream, place, size):
        self.stream, self.place, self.most = stream, place, min(MOST, max(PLENTY, RATIO * size))
        self.left = self.most

    def read(self, count):
        block = self.stream.read(min(count, self.left + 1))
        self.left -= len(block)
        if self.left < 0:
            raise UserError(
                f"{self.place}: inflates to more than {self.most:,} bytes, more than any published file does"
            )
        return block


def believable(place, claimed, there, most=PLENTY):
    """Raises UserError if a file claims more bytes than its own can hold when compressed.   most: always believed"""
    if claimed > max(most, RATIO * there):
        wanted = f"wanted at most {RATIO} times as many; drawings that compress better must be stored uncompressed"
        raise UserError(f"{place}: claims {claimed:,} bytes and has {there:,}; {wanted}")


def existing(paths):
    """Returns the first of `paths` that exists, or None; files before folders, because an archive may have both."""
    return min((path for path in paths if os.path.exists(path)), key=os.path.isdir, default=None)
