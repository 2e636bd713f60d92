"""The progress bar."""

from threading import RLock

from tqdm import tqdm


class Bar(tqdm):
    """tqdm with a lock of this process alone, and without a thread that watches over the bars.

    tqdm's own lock is shared with all forked processes: one that is killed while it draws would keep it, and every
    other would wait for ever. Its thread may hold the lock at the moment of a fork, with the same end.
    """

    monitor_interval = 0


Bar.set_lock(RLock())
