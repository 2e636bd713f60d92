"""Prints a table of wrong inputs and of the line that each gets: python tests/data/said.py > tests/data/README.md

The rows are the cases of the tests of the readers, which are run for it. What a fuzzer draws is left out.
"""

import contextlib
import os
import re
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

import minifit  # noqa: E402

DRAWN = "damaged_files_are_read", "of_any_structure", "damaged_file_is_read", "damaged_hdf5_is_read"
HEAD = """# What a wrong input gets

It gets one line on stderr, and exit status 2. `python tests/data/said.py > tests/data/README.md` runs the tests of the
readers and writes this page: the errors that occur in them, without the folder of a file. An error stands once where
only numbers or names differ. FOLDER is a folder of a test, SERVER a server on this machine; other names are a test's.
Beside these, a fuzzer changes bytes and structure of every kind of file.
"""
TITLES = {
    "test_data": "MNIST, digits, and what all sets share",
    "test_cifar": "CIFAR-10 and CIFAR-100",
    "test_svhn": "SVHN",
    "test_own": "Your own data",
    "test_faces": "Faces",
    "test_stored": "HDF5 and copies of it",
    "test_download": "Downloads",
    "test_augment": "Augmentation",
    "test_preprocessing": "Preparation",
}


class Lines:
    """Notes each UserError of each test."""

    def __init__(self):
        self.found, self.now, init = {}, None, minifit.UserError.__init__

        def noted(error, *words):
            init(error, *words)
            if self.now and words and "\n" not in str(words[0]):
                line = shortened(str(words[0]))
                self.found.setdefault((self.now, masked(line)), line)

        minifit.UserError.__init__ = noted

    def pytest_runtest_call(self, item):
        self.now = None if any(part in item.name for part in DRAWN) else item.path.stem


def shortened(line):
    """The line without folders of this day, and without what the file itself is quoted with at length."""
    line = re.sub(r"(/tmp|/root|/home|/work)[^ :,;()']*/", "", line)
    line = re.sub(r"\btest_(?!batch|32x32)\w*\d\b", "FOLDER", line)
    line = re.sub(r"127\.0\.0\.1:\d+", "SERVER", line)
    return line if len(line) < 300 else f"{line[:297]}..."


def masked(line):
    """The line without what differs between cases of one kind: names of files and of sets, numbers, quoted bytes."""
    line = re.sub(r"b'[^']*'|b\"[^\"]*\"", "BYTES", line)
    return re.sub(r"\S+\.\S+:|[\w-]+:|0x\w+|CIFAR-100?|[\w-]*cifar[\w-]*|test_\w+|[\d,]+|\([^()]*\)", "#", line)


if __name__ == "__main__":
    os.environ["NO_PROXY"] = "*"
    lines = Lines()
    with contextlib.redirect_stdout(sys.stderr):
        status = pytest.main(["-q", "-n0", "-p", "no:cacheprovider", str(HERE)], plugins=[lines])
    print(HEAD)
    for name, title in TITLES.items():
        said = [line for (test, _), line in lines.found.items() if test == name]
        if said:
            print("\n".join([f"## {title}", "", "```", *said, "```", ""]))
    sys.exit(status)
