"""The progress bar stands in nobody's way."""

import os
import signal
import threading

from minifit.progress import Bar


def test_a_process_killed_while_it_draws_takes_no_lock_with_it():
    with Bar(total=1, disable=True):
        pass
    child = os.fork()
    if not child:
        with Bar.get_lock():
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert Bar.get_lock().acquire(timeout=5)
    Bar.get_lock().release()


def test_a_bar_starts_no_thread():
    before = threading.active_count()
    with open(os.devnull, "w") as nowhere, Bar(total=1, file=nowhere) as bar:
        assert threading.active_count() == before
        bar.update()
