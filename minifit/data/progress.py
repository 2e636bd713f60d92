"""The progress bar."""

from threading import RLock

from tqdm import tqdm


class Bar(tqdm):
    """tqdm with a lock of this process only, and without its monitor thread.

    tqdm shares its lock with all forked processes. A process that is killed while it draws would keep the lock, and
    the others would wait for ever. The thread could hold the lock at the moment of a fork, with the same result.
    """

    monitor_interval = 0


Bar.set_lock(RLock())
