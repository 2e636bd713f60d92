"""A process beside the ranks that notices when one of them is lost, and that prints one line for all of them.

Every rank holds a connection to it, which the system closes however the rank ends. What a rank sends on the way tells a
good end from a bad one. Without it, all that a launcher says of a killed rank is its signal.
"""

import fcntl
import os
import secrets
import select
import selectors
import signal
import socket
import stat
import struct
import sys
from contextlib import suppress
from pathlib import Path

SECONDS, HELLO = 2, 30  # that an address has to answer, and the first rank to come, or the launcher to end
TOKEN, TAIL = 16, 1 << 20  # bytes: of the word that a rank must know, of a file after the line was given
BYE = b"\0"


def start(lost):
    """Starts the process; where to reach it.   lost: the line that it prints when {who} is lost"""
    listener, token, by = socket.create_server(("", 0)), secrets.token_bytes(TOKEN), launcher()
    if os.fork() == 0:
        os.setsid()  # a launcher that ends its processes does not end this one
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        held = listener.fileno()
        for low, high in ((3, held), (held + 1, os.sysconf("SC_OPEN_MAX"))):
            os.closerange(low, high)
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(0, 1)
        with suppress(BaseException):
            _watch(listener, token, lost, _with_stderr(by))
        os._exit(0)
    port = listener.getsockname()[1]
    listener.close()
    return _addresses(), port, token


class Lifeline:
    """A rank's end of it. Without a connection nothing is noticed, and a rank prints its own lines."""

    def __init__(self, addresses, port, token, who):
        self.socket = None
        for address in addresses:
            with suppress(OSError):
                connection = socket.create_connection((address, port), SECONDS)
                connection.sendall(token + who.encode() + b"\n")
                if connection.recv(1) == BYE:
                    self.socket = connection
                    return

    def lost(self):
        """Whether another rank is."""
        if self.socket and select.select([self.socket], [], [], 0)[0]:
            with suppress(OSError):
                if self.socket.recv(1) == BYE:
                    return True
            self.socket = None  # the process itself has been killed
        return False

    def leave(self):
        """A good end, after which nothing is noticed."""
        if self.socket:
            with suppress(OSError):
                self.socket.sendall(BYE)
            self.socket = None

    def say(self, line):
        """Prints a line, the last one, unless another rank has come before."""
        with suppress(OSError, AttributeError):  # the latter without a connection
            self.socket.sendall(line.encode() + b"\n" + BYE)
            if self.socket.recv(1) == BYE:  # it is printed, or another is
                return
        print(line, file=sys.stderr, flush=True)


def _watch(listener, token, lost, launcher):
    """Prints a line, unless all ranks end well, and then tells those that are left."""
    ranks, begun, waiting = {}, False, selectors.DefaultSelector()  # connection -> [who, what it has sent]
    waiting.register(listener, selectors.EVENT_READ)
    while ranks or not begun:
        # Linux lists what happened in its order: the first lost rank comes before those that mpiexec then ends.
        sockets = [key.fileobj for key, _ in waiting.select(None if begun else HELLO)]
        if not sockets:
            return
        for ready in sockets:
            if ready is listener:
                rank = listener.accept()[0]
                rank.settimeout(SECONDS)
                with suppress(OSError), rank.makefile("rb", buffering=0) as file:
                    if file.read(TOKEN) == token:
                        ranks[rank] = [file.readline().decode().strip(), b""]
                        waiting.register(rank, selectors.EVENT_READ)
                        begun = True
                        rank.sendall(BYE)
                continue
            (who, sent), more = ranks[ready], b""
            with suppress(OSError):
                sent += (more := ready.recv(4096))
            ranks[ready][1] = sent
            if sent == BYE:
                waiting.unregister(ready)
                del ranks[ready]
            elif not more or sent.endswith(BYE):
                line = sent[:-1] if sent.endswith(BYE) else lost.format(who=who).encode() + b"\n"
                size = os.fstat(launcher[1]).st_size if launcher else 0
                given = launcher is None or _in_a_file(launcher)  # to mpiexec, which may lose it as it ends the ranks
                with suppress(OSError):  # nobody reads it
                    os.write(2 if given else launcher[1], line)
                for rank in ranks:
                    with suppress(OSError):
                        rank.sendall(BYE)
                if launcher and given:
                    _add_if_lost(line, launcher, size)
                return


def launcher():
    """The process id of the mpiexec that started this process; None if that runs on another machine."""
    pid = os.getpid()
    with suppress(OSError, ValueError):
        while pid:
            name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
            if name.startswith(("mpiexec", "mpirun", "prterun", "orterun")):
                return pid
            pid = int(rest.split()[1])
    return None


def _with_stderr(pid):
    """A launcher's process id with a descriptor of its stderr; None where there is none to write to."""
    with suppress(OSError):
        if pid:
            path = f"/proc/{pid}/fd/2"
            # a reader of its own would keep a pipe open that nobody else reads
            kind = os.O_RDWR if stat.S_ISREG(os.stat(path).st_mode) else os.O_WRONLY
            return pid, os.open(path, kind | os.O_APPEND | os.O_NOCTTY)
    return None


def _in_a_file(launcher):
    """Whether mpiexec prints into a file, where it writes at its own place: over a line that another puts after it."""
    return launcher and stat.S_ISREG(os.fstat(launcher[1]).st_mode)


def _add_if_lost(line, launcher, size):
    """Adds a line that was given to mpiexec to its file, once mpiexec has ended without it.   size: before the line"""
    pid, stderr = launcher
    os.dup2(1, 2)  # mpiexec waits for its end
    with suppress(OSError):  # it has ended
        select.select([os.pidfd_open(pid)], [], [], HELLO)
    if line not in os.pread(stderr, TAIL, size):
        os.write(stderr, line)


def _addresses():
    """Where this machine can be reached, itself included."""
    addresses = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # an interface without an address, or another system than Linux
                answer = fcntl.ioctl(asked, 0x8915, struct.pack("256s", name.encode()))  # SIOCGIFADDR
                addresses.append(socket.inet_ntoa(answer[20:24]))
    with suppress(OSError):
        addresses += socket.gethostbyname_ex(socket.gethostname())[2]
    return list(dict.fromkeys(addresses))
