"""What other rooms ask of the operating system, and that each of those asks in one place alone."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from breakeven.errors import UserError
from breakeven.hardware import system

SOURCE = Path(__file__).parents[1] / "src" / "breakeven"
OWN_KERNEL = {
    "hardware/system.py": "the seam itself",
    "hardware/reader.py": "reads the kernel's files",
    "engines/family.py": "runs alone, on the standard library",
    "engines/backend.py": "memory of processes, from /proc or not at all",
    "engines/inside/child.py": "ignores Ctrl-C, as all systems can",
    "measure/player/clocks.py": "the kernel's timer",
    "gateway/serve/supervisor.py": "never imported on Windows",
    "gateway/serve/children.py": "never imported on Windows",
    "gateway/serve/loading.py": "refuses Windows, then forks",
}


def test_what_one_system_alone_has_is_asked_for_in_one_place() -> None:
    words = re.compile(
        r"\bfcntl\b|\bresource\.|SO_REUSEPORT|os\.fork|killpg|sched_setaffinity|pass_fds|prctl|sigwaitinfo|"
        r"sigtimedwait|select\.poll|os\.pread|signal\.SIG(KILL|HUP|CHLD)|sys\.platform"
    )
    found = {
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        if words.search(re.sub(r'""".*?"""|#.*', "", path.read_text(), flags=re.DOTALL))
    }
    allowed = {*OWN_KERNEL, "forecast/profiles.py", "engines/cache.py", "gateway/serve/run.py"}
    assert found - allowed == set()


def test_a_child_writes_into_what_it_inherits() -> None:
    read_fd, write_fd = os.pipe()
    word, passed = system.inherited(write_fd)
    program = (
        "import os,sys; from breakeven.hardware import system; os.write(system.open_inherited(sys.argv[1]), b'up')"
    )
    with subprocess.Popen([sys.executable, "-c", program, word], **passed) as child:
        os.close(write_fd)
        assert system.read_to_end(read_fd, 60.0) == b"up"
        child.wait()


def test_reading_to_the_end_gives_up_in_time() -> None:
    read_fd, write_fd = os.pipe()
    began = time.monotonic()
    assert system.read_to_end(read_fd, 0.05) is None
    assert time.monotonic() - began < 30
    os.close(write_fd)


WAITS = """
import os, signal, sys, threading
from breakeven.errors import UserError
from breakeven.hardware import system
sys.platform = sys.argv[1]
wanted = {signal.SIGUSR1}
signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
assert system.wait_signal(wanted, 0.01) is None
os.kill(os.getpid(), signal.SIGUSR1)
assert system.wait_signal(wanted, 30.0) == signal.SIGUSR1
threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
assert system.wait_signal(wanted) == signal.SIGUSR1
"""


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_a_blocked_signal_is_waited_for(platform: str) -> None:
    """In a process of its own: here other threads, which do not block it, would take the signal."""
    subprocess.run([sys.executable, "-c", WAITS, platform], check=True, timeout=60)


def test_a_socket_that_has_something_to_read_is_ready() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ready = system.readiness(ours.fileno())
        assert ready is not None
        assert not ready()
        theirs.send(b"x")
        assert ready()


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    first = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    system.lock(first)
    had: list[bool] = []

    def second() -> None:
        other = os.open(tmp_path / "lock", os.O_RDWR)
        system.lock(other)
        had.append(True)
        os.close(other)

    thread = threading.Thread(target=second)
    thread.start()
    thread.join(0.1)
    assert not had
    os.close(first)
    thread.join(30)
    assert had


def test_only_regular_files_are_read_where_nobody_may_wait(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with open(tmp_path / "file", "rb", opener=system.regular) as file:
        assert file.read() == b"x"
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/null")):
        with pytest.raises(OSError, match="no regular file"):
            system.regular(str(path), os.O_RDONLY)
    with pytest.raises(FileNotFoundError):
        system.regular(str(tmp_path / "none"), os.O_RDONLY)


@pytest.mark.skipif(sys.platform != "linux", reason="systemd's protocol")
@pytest.mark.parametrize("abstract", [False, True])
def test_a_service_manager_is_told_and_no_child_hears_of_it(tmp_path: Path, abstract: bool) -> None:
    name = f"@breakeven-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    environ = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "4000000", "WATCHDOG_PID": str(os.getpid()), "HOME": "/"}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind("\0" + name[1:] if abstract else name)
        manager = system.ServiceManager(environ)
        manager.tell("READY=1", "STATUS=serving")
        assert heard.recv(4096) == b"READY=1\nSTATUS=serving"
    manager.tell("WATCHDOG=1")  # nobody listens any more, which is not our trouble
    assert manager.watchdog_s == 2.0
    assert environ == {"HOME": "/"}
    assert system.ServiceManager({"WATCHDOG_USEC": "4000000", "WATCHDOG_PID": "1"}).watchdog_s is None
    assert system.ServiceManager({"WATCHDOG_USEC": "soon"}).watchdog_s is None
    system.ServiceManager({}).tell("READY=1")


@pytest.mark.skipif(sys.platform != "linux", reason="systemd's protocol")
def test_sockets_that_were_passed_are_taken_and_others_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    passed = {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid()), "LISTEN_FDNAMES": "admin"}
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as other:
        monkeypatch.setattr(system.ServiceManager, "FIRST_FD", os.dup(server.fileno()))
        [(name, one)] = system.ServiceManager(dict(passed)).passed
        assert (name, one.getsockname()) == ("admin", server.getsockname())
        assert not one.get_inheritable()
        one.close()
        assert system.ServiceManager({**passed, "LISTEN_PID": "1"}).passed == []
        assert system.ServiceManager({**passed, "LISTEN_FDS": "many"}).passed == []
        for fd in (other.fileno(), 10**6):
            monkeypatch.setattr(system.ServiceManager, "FIRST_FD", fd)
            with pytest.raises(UserError, match="no listening TCP socket"):
                system.ServiceManager(dict(passed))
        other.detach()


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="only Linux tells whether a page is in memory")
def test_pages_of_a_file_are_dropped(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"x" * (1 << 20))
    if os.statvfs(file).f_fsid == os.statvfs("/dev/shm").f_fsid:
        pytest.skip("a file system in memory has nowhere else to keep a page")
    with file.open("rb") as opened:
        piece = bytearray(4096)
        assert os.preadv(opened.fileno(), [piece], 0, os.RWF_NOWAIT) == 4096
        system.forget_pages(opened.fileno())
        with pytest.raises(BlockingIOError):
            os.preadv(opened.fileno(), [piece], 0, os.RWF_NOWAIT)
        assert opened.read() == b"x" * (1 << 20)
