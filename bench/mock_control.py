"""Starting the mock server on a core of its own, telling it what to do, and reading what it counted."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Stats:
    """What the mock counted since its script was set. `cpu_s` of its own between the first and the last request."""

    requests: int
    answered: int
    events: int
    first_ns: int
    last_ns: int
    cpu_s: float
    stall_from_ns: int
    stall_to_ns: int

    @property
    def seconds(self) -> float:
        """From the first request to the last answer."""
        return max(1, self.last_ns - self.first_ns) / 1e9

    @property
    def busy(self) -> float:
        """Share of one core the server itself used meanwhile: near 1, it was the server that was measured."""
        return self.cpu_s / self.seconds


@dataclass(frozen=True)
class Mock:
    """A running mock server."""

    url: str
    pid: int

    def script(self, **script: float | int | bool | None) -> None:
        """Set what it does next (the fields of `mock_server.Script`); counts start over."""
        self._ask("PUT", "script", json.dumps(script).encode())

    def stats(self) -> Stats:
        """What it has counted."""
        return Stats(**json.loads(self._ask("GET", "stats")))

    def arrivals_ns(self) -> NDArray[np.int64]:
        """When each request arrived."""
        return np.frombuffer(self._ask("GET", "arrivals"), np.int64)

    def writes(self) -> NDArray[np.int64]:
        """Rows of (request, chunk, ns); chunk -1 is the arrival of the request."""
        return np.frombuffer(self._ask("GET", "writes"), np.int64).reshape(-1, 3)

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(f"{self.url}/mock/{path}", data=body, method=method)
        with urllib.request.urlopen(request, timeout=60) as response:
            answer: bytes = response.read()
        return answer


@contextmanager
def mock_server(core: int | None) -> Iterator[Mock]:
    """A mock server pinned to `core` for as long as the block runs."""
    command = [sys.executable, str(Path(__file__).resolve().parent / "mock_server.py")]
    if core is not None:
        command += ["--core", str(core)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        yield Mock(url=told["url"], pid=told["pid"])
    finally:
        process.kill()
        process.wait()


def prompts(number: int, words: int = 16) -> list[str]:
    """Prompts of `words` words, each starting with its number as the mock expects it."""
    return [" ".join([f"q{i}", *(f"w{(i * 31 + k * 7) % 4096}" for k in range(words - 1))]) for i in range(number)]
