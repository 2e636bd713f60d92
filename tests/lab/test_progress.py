"""The progress bar stands in nobody's way."""

import io
import os
import signal
import sys
import threading
import time

import pytest
from tqdm import TMonitor

from minifit.data.progress import Bar
from minifit.lab import training


def child(what):
    """The id of a process that does it and ends."""
    process = os.fork()
    if not process:
        try:
            what()
        finally:
            os._exit(0)
    return process


def die_drawing():
    with Bar.get_lock():
        os.kill(os.getpid(), signal.SIGKILL)


def draw():
    with Bar(total=1, disable=True):
        pass


def test_a_process_killed_while_it_draws_takes_no_lock_with_it():
    draw()
    assert os.waitstatus_to_exitcode(os.waitpid(child(die_drawing), 0)[1]) == -signal.SIGKILL
    drawing, deadline = child(draw), time.monotonic() + 20
    while not os.waitpid(drawing, os.WNOHANG)[0]:
        if time.monotonic() > deadline:
            os.kill(drawing, signal.SIGKILL)
            os.waitpid(drawing, 0)
            pytest.fail("the next process waits for the lock")
        time.sleep(0.01)


@pytest.mark.parametrize("columns", [50, 80, 160])
def test_a_bar_fits_its_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    with training.bar("backprop 11/12, best 10.50 %", 5000, True) as shown:
        shown.set_postfix_str("loss 0.0002643", refresh=False)
        shown.ncols = columns
        line = str(shown)
    assert len(line) <= columns and line.count("|") == 2 and len(line.split("|")[1]) >= 5
    assert ("loss" in line) == (columns >= training.WIDE)


def test_a_bar_starts_no_thread():
    with open(os.devnull, "w") as nowhere, Bar(total=1, file=nowhere) as bar:
        bar.update()
        assert not any(isinstance(thread, TMonitor) for thread in threading.enumerate())
