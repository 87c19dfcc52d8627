"""The child's end of the keeper: how a process of ours dies with its parent, alone or at the head of a family.

`die_with_parent` is for children written here. `python family.py PID_FD COMMAND...` stands between us and a program
that is a family of processes, as vLLM is: an API server, an engine core, a worker for each device. It adopts those
whose parent dies and ends them all when the program ends, when it is told to (SIGTERM), or when standard input ends,
which means that whoever started it is gone. Standard library alone, because it lives as long as the engine does.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.5
_GRACE_S = 5.0
_GRACE_OF_THE_LEFT_S = 1.0


def die_with_parent(parent_pid: int, *, watch_input: bool = False) -> None:
    """Arrange to be killed when the parent ends, however it ends.

    On Linux the kernel does it even while the engine holds this process busy loading. Elsewhere, and for a parent
    whose starting thread has ended, the end of standard input does: with `watch_input` a thread waits for it, for a
    child that does not read it anyway.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # It died before the line above took effect. Windows keeps the number of a parent that is gone.
    if sys.platform != "win32" and os.getppid() != parent_pid:
        os._exit(1)
    if not watch_input:
        return

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Run the command until it ends or we are told to end it; exit as it did."""
    if sys.platform == "win32":
        _plain_head()
    else:
        _head()


if sys.platform == "win32":

    def _plain_head() -> None:
        """Without signals and adoption: the program and those below it end when standard input does."""
        import msvcrt

        child = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL)
        with os.fdopen(msvcrt.open_osfhandle(int(sys.argv[1]), os.O_WRONLY), "w") as pipe:
            pipe.write(str(child.pid))

        def end() -> None:
            while os.read(0, 4096):
                pass
            subprocess.run(["taskkill", "/PID", str(child.pid), "/T", "/F"], capture_output=True, check=False)

        threading.Thread(target=end, daemon=True).start()
        sys.exit(child.wait())

else:

    def _head() -> None:
        pid_fd, command = int(sys.argv[1]), sys.argv[2:]
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        if sys.platform == "linux":
            prctl = ctypes.CDLL(None, use_errno=True).prctl
            prctl(_PR_SET_CHILD_SUBREAPER, 1)
            prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        with os.fdopen(pid_fd, "w") as pipe:
            pipe.write(str(child.pid))
        while child.poll() is None and not _told_to_end(wake_read):
            pass
        _end_all(child)
        code = child.returncode
        sys.exit(code if code >= 0 else 128 - code)

    def _told_to_end(wake_fd: int) -> bool:
        """Sleep until something happens; True when it is a reason to end."""
        ready, _, _ = select.select([wake_fd, 0], [], [], _POLL_S if sys.platform != "linux" else None)
        if 0 in ready and not os.read(0, 4096):
            return True
        return wake_fd in ready and any(number != signal.SIGCHLD for number in os.read(wake_fd, 4096))

    def _end_all(child: subprocess.Popen[bytes]) -> None:
        """End the program and whatever it left: first kindly, so that it frees its shared memory, then not."""
        if child.poll() is None:
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_GRACE_S)
        _signal([pid for pid in _children() if pid != child.pid], signal.SIGTERM)
        started = time.monotonic()
        while left := _children():
            waited = time.monotonic() - started
            if waited > _GRACE_OF_THE_LEFT_S:
                # Python's resource tracker removes the shared memory of the killed, and then ends by itself.
                _signal([pid for pid in left if waited > _GRACE_S or not _is_tracker(pid)], signal.SIGKILL)
            _reap(child)
            time.sleep(0.02)
        child.wait()

    def _signal(pids: list[int], number: signal.Signals) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _is_tracker(pid: int) -> bool:
        try:
            return b"multiprocessing.resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False

    def _reap(child: subprocess.Popen[bytes]) -> None:
        """Collect the adopted that have ended; the program's own status is for `child` to collect."""
        child.poll()
        for pid in _children():
            if pid != child.pid:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)

    def _children() -> list[int]:
        """Processes whose parent we are, zombies included. Only the program itself where there is no /proc."""
        me, found = os.getpid(), []
        for entry in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                # The name, in parentheses, may hold anything; the parent is the second word after it.
                if int(entry.read_text().rpartition(")")[2].split()[1]) == me:
                    found.append(int(entry.parent.name))
        return found


if __name__ == "__main__":
    main()
