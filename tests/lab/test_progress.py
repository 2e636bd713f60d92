"""The progress bar stands in nobody's way."""

import os
import signal
import threading
import time

import pytest
from tqdm import TMonitor

from minifit.data.progress import Bar


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


def test_a_bar_starts_no_thread():
    with open(os.devnull, "w") as nowhere, Bar(total=1, file=nowhere) as bar:
        bar.update()
        assert not any(isinstance(thread, TMonitor) for thread in threading.enumerate())
