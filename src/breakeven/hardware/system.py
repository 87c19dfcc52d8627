"""What operating systems do in their own ways, each with a plain fallback: the one place that asks which one this is.

Linux has it all. macOS lacks waiting for signals with a timeout, the pinning of cores and a shared port that the kernel
spreads connections over. Windows has no process groups, no inherited descriptors and no locks of Unix's kind. What
other rooms need of a system they ask for here; only the reader of this machine, the head of an engine's family and a
player's alarm, which run on one kernel's own files and calls, look for themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, MutableMapping
from pathlib import Path
from typing import Any, TypeVar

from breakeven.errors import NotSupportedError, UserError, expanded

KILLED = 9
"""The signal that ends a process whatever it does; Windows knows none and is told so by number alone."""
HANGUP = 1
"""The signal that asks to read files anew; Windows has none."""
_LOOK_S = 0.02
"""How often a system without waiting for signals with a timeout is asked for one."""
_P = TypeVar("_P", bound=asyncio.Protocol)


def steady_s() -> float:
    """Seconds of a clock that nobody sets, the same in all processes; on Linux it runs on while the machine sleeps."""
    return _READ(_BOOT) if _READ is not None and _BOOT is not None else time.monotonic()


_READ: Callable[[int], float] | None = getattr(time, "clock_gettime", None)
_BOOT: int | None = getattr(time, "CLOCK_BOOTTIME", None)


def kill_session(pid: int) -> None:
    """End a process that leads a session and all in its group; on Windows those below it in the tree."""
    if sys.platform == "win32":
        subprocess.run(["taskkill", "/PID", str(pid), "/T", "/F"], capture_output=True, check=False)
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def inherited(fd: int) -> tuple[str, dict[str, Any]]:
    """How a child gets at our open `fd`: the word it is told, and what `subprocess.Popen` needs for it."""
    if sys.platform == "win32":
        import msvcrt

        handle = msvcrt.get_osfhandle(fd)
        os.set_handle_inheritable(handle, True)
        start = subprocess.STARTUPINFO(lpAttributeList={"handle_list": [handle]})
        # A group of its own: Ctrl-C is for us to handle.
        return str(handle), {"startupinfo": start, "creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return str(fd), {"pass_fds": (fd,), "start_new_session": True}


def open_inherited(word: str) -> int:
    """The child's end of `inherited`: a descriptor that can be written to."""
    if sys.platform == "win32":
        import msvcrt

        return msvcrt.open_osfhandle(int(word), os.O_WRONLY)
    return int(word)


def read_to_end(fd: int, timeout_s: float) -> bytes | None:
    """All that is written to a pipe until its other end closes; None when that took too long. Closes `fd`."""
    until_s, message = time.monotonic() + timeout_s, b""
    with os.fdopen(fd, "rb", buffering=0) as pipe:
        if sys.platform == "win32":  # select knows sockets alone
            found: list[bytes] = []
            reader = threading.Thread(target=lambda: found.append(pipe.read()), daemon=True)
            reader.start()
            reader.join(max(0.0, timeout_s))
            return found[0] if found else None
        while True:
            left_s = until_s - time.monotonic()
            if left_s <= 0 or not select.select([pipe], [], [], left_s)[0]:
                return None
            part = pipe.read(4096)
            if not part:
                return message
            message += part


def allow_many_files() -> None:
    """Raise this process's soft limit of open files to the hard one: a request under way needs a connection or two."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def spreads_connections() -> bool:
    """Whether the kernel spreads connections over the sockets of processes that share a port, as Linux does."""
    return sys.platform == "linux"


def reuse_address(one: socket.socket) -> None:
    """Let a port be taken again whose last connections still linger; Windows does so by itself."""
    if sys.platform == "win32":
        one.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
    else:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)


def share_port(one: socket.socket) -> None:
    """Let other sockets of ours listen on the same port. Raises OSError where there is no such thing."""
    if sys.platform == "win32":
        raise OSError("ports cannot be shared on Windows")
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


def lock(fd: int) -> None:
    """Wait until no other process holds a lock on this open file; it is held until the file is closed."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(fd, msvcrt.LK_LOCK, 1)
        return
    import fcntl

    fcntl.flock(fd, fcntl.LOCK_EX)


def locked_now(fd: int) -> bool:
    """Hold an open file for this process alone until it is closed; False where another holds it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def readiness(fd: int) -> Callable[[], bool] | None:
    """A quick look whether a socket has something to read or is closed; None where the system has no poll."""
    if sys.platform == "win32":
        return None
    poll = select.poll()
    poll.register(fd, select.POLLIN | select.POLLHUP | select.POLLERR)
    return lambda: bool(poll.poll(0))


async def unix_connected(factory: Callable[[], _P], path: str, tls: ssl.SSLContext | None, name: str) -> _P:
    """A connection through the unix socket at `path`; by `tls` its server shows a certificate of `name`.

    Raises OSError; where the system has no such sockets as well.
    """
    if sys.platform == "win32":
        raise OSError("this system has no unix sockets")
    loop = asyncio.get_running_loop()
    _, protocol = await loop.create_unix_connection(factory, path, ssl=tls, server_hostname=name if tls else None)
    return protocol


def unix_socket(path: str, timeout_s: float) -> socket.socket:
    """The same for whoever waits. Raises OSError."""
    if sys.platform == "win32":
        raise OSError("this system has no unix sockets")
    one = socket.socket(socket.AF_UNIX)
    try:
        one.settimeout(timeout_s)
        one.connect(path)
    except BaseException:
        one.close()
        raise
    return one


def memory_file(name: str, pieces: Iterable[bytes]) -> int:
    """A descriptor of a file that has no place, holds these bytes, and is gone with its last descriptor.

    In memory on Linux, where `name` is seen in lists of open files; elsewhere a temporary one without a name. Whoever
    asks closes it. Raises OSError.
    """
    if sys.platform == "linux" and hasattr(os, "memfd_create"):
        fd = os.memfd_create(name, os.MFD_CLOEXEC)
    else:
        import tempfile

        with tempfile.TemporaryFile(buffering=0) as file:
            fd = os.dup(file.fileno())
    try:
        for piece in pieces:
            left = memoryview(piece)
            while len(left):
                left = left[os.write(fd, left) :]
    except BaseException:
        os.close(fd)
        raise
    return fd


def memory_file_bytes(fd: int) -> bytes:
    """All that such a file holds, wherever its other owners stand in it. Raises OSError."""
    if sys.platform == "win32":
        raise OSError("this system hands no files from process to process")
    left, parts = os.fstat(fd).st_size, list[bytes]()
    while left > 0 and (part := os.pread(fd, left, sum(map(len, parts)))):
        parts.append(part)
        left -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def message_line(most_bytes: int) -> tuple[socket.socket, socket.socket]:
    """Two ends of a line of whole messages between processes of ours: who sends, who receives. Neither ever waits.

    What stands in it unread takes about `most_bytes`, without the files that come along. Raises OSError.
    """
    if sys.platform == "win32":
        raise OSError("this system hands no files from process to process")
    sending, receiving = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    for one in (sending, receiving):
        one.setblocking(False)
    sending.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, most_bytes)
    return sending, receiving


def send_message(to: socket.socket, said: bytes, fd: int | None) -> None:
    """Send through such a line, with a copy of this descriptor. Raises OSError, BlockingIOError where it is full."""
    if sys.platform == "win32":
        raise OSError("this system hands no files from process to process")
    if fd is None:
        to.send(said)
    else:
        socket.send_fds(to, [said], [fd])


def next_message(one: socket.socket, most_bytes: int) -> tuple[bytes, int | None]:
    """The next message of such a line and its descriptor, which is the caller's to close; None: it has none.

    Raises BlockingIOError where there is no message, OSError.
    """
    if sys.platform == "win32":
        raise OSError("this system hands no files from process to process")
    said, fds, _, _ = socket.recv_fds(one, most_bytes, 1)
    for fd in fds[1:]:  # room is made for one, which the kernel rounds up
        os.close(fd)
    if not fds:
        return said, None
    os.set_inheritable(fds[0], False)
    return said, fds[0]


def cache_home() -> Path:
    """Where this user's caches are: `$XDG_CACHE_HOME`, else the system's own place. Raises UserError for no home."""
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base)
    return expanded("~") / ("Library/Caches" if sys.platform == "darwin" else ".cache")


def pin_to_core(core: int) -> None:
    """Run on this core alone; nothing where the system does not let a process choose."""
    if sys.platform == "linux":
        os.sched_setaffinity(0, {core})


def wait_signal(signals: Collection[signal.Signals], timeout_s: float | None = None) -> int | None:
    """The next of `signals`, which must be blocked; None when none came within the time."""
    if sys.platform == "win32":
        raise NotSupportedError("signals cannot be waited for on Windows")
    if sys.platform == "linux":
        got = signal.sigwaitinfo(signals) if timeout_s is None else signal.sigtimedwait(signals, timeout_s)
        return None if got is None else got.si_signo
    if timeout_s is None:
        return signal.sigwait(signals)
    until_s = time.monotonic() + timeout_s
    while not signal.sigpending() & set(signals):
        if (left_s := until_s - time.monotonic()) <= 0:
            return None
        time.sleep(min(_LOOK_S, left_s))
    return signal.sigwait(signals)


def regular(path: str, flags: int) -> int:
    """An `opener` for `open` that lets regular files through alone: a pipe or a device could be waited for for ever.

    Raises OSError for anything else.
    """
    fd = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is a pipe, a device or a directory and no regular file", path)
    return fd


class ServiceManager:
    """Whoever started this process as a service, where it speaks systemd's protocol; nobody otherwise.

    `watchdog_s`: how often to tell it that we go on, half of what it allows; None: it does not ask. `passed`: listening
    sockets that it opened for us, each with its name there.
    """

    FIRST_FD = 3
    MOST_FDS = 64

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        """Takes the protocol's variables out of `environ`, so that no child takes itself for the service.

        Raises UserError when a descriptor that was passed is no listening TCP socket.
        """
        names = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
        told = {name: environ.pop(name, "") for name in names}
        at = told["NOTIFY_SOCKET"]
        self._address = "\0" + at[1:] if at.startswith("@") else at
        ours = told["WATCHDOG_PID"] in ("", str(os.getpid()))
        wait_us = told["WATCHDOG_USEC"]
        self.watchdog_s = int(wait_us) / 2e6 if ours and wait_us.isdecimal() and int(wait_us) else None
        self.passed: list[tuple[str, socket.socket]] = []
        count = told["LISTEN_FDS"]
        if told["LISTEN_PID"] == str(os.getpid()) and count.isdecimal():
            labels = told["LISTEN_FDNAMES"].split(":")
            for k in range(min(int(count), self.MOST_FDS)):
                self.passed.append((labels[k] if k < len(labels) else "", _listening(self.FIRST_FD + k)))

    def tell(self, *lines: str) -> None:
        """Tell it, such as `READY=1`. It may be deaf: nothing here waits for it or fails with it."""
        if not self._address or sys.platform == "win32":
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
            to.setblocking(False)
            to.sendto("\n".join(lines).encode(), self._address)


def _listening(fd: int) -> socket.socket:
    try:
        one = socket.socket(fileno=fd)
        listens = one.getsockopt(socket.SOL_SOCKET, getattr(socket, "SO_ACCEPTCONN", 30))
    except OSError:
        one, listens = None, 0
    if one is None or not listens or one.family not in (socket.AF_INET, socket.AF_INET6):
        raise UserError(
            f"the service manager passed descriptor {fd}, which is no listening TCP socket; "
            "in the socket unit write ListenStream=127.0.0.1:8000"
        )
    one.set_inheritable(False)
    one.setblocking(False)
    return one
