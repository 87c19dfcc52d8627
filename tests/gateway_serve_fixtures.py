"""A running `breakeven serve`: its processes, what it says, and clients that see exactly how an answer ends."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from breakeven.gateway.seen.read_log import records
from breakeven.gateway.seen.record import DecisionRecord

PATIENCE_S = 60.0
"""How long a busy machine may take for what should happen at once."""
CHAT = "/v1/chat/completions"


@dataclass
class Gateway:
    """A gateway that serves. `url` has no /v1."""

    process: subprocess.Popen[str]
    url: str
    admin: str
    directory: Path

    @property
    def port(self) -> int:
        """Where clients connect."""
        return urlsplit(self.url).port or 0

    @property
    def said(self) -> str:
        """Its standard error so far."""
        return (self.directory / "stderr").read_text()

    def children(self) -> list[int]:
        """Process ids of its workers and its watching process."""
        pid = self.process.pid
        try:
            return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        except FileNotFoundError:
            return []

    def watcher(self) -> list[int]:
        """The process that answers on the admin port; none while it is being replaced."""
        return [pid for pid in self.children() if _accepts(pid, urlsplit(self.admin).port or 0)]

    def workers(self) -> list[int]:
        """Children that accept clients."""
        return [pid for pid in self.children() if _accepts(pid, self.port)]

    def state(self) -> dict[str, Any]:
        """What the live page is made of."""
        with urllib.request.urlopen(f"{self.admin}admin/state", timeout=PATIENCE_S) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def backend(self, name: str) -> dict[str, Any]:
        """One backend's part of the state."""
        found: dict[str, Any] = next(one for one in self.state()["backends"] if one["name"] == name)
        return found

    def logged(self) -> list[DecisionRecord]:
        """Its decision log, as far as it is written."""
        return list(records(self.directory / "log"))

    def record(self, ident: str | None) -> DecisionRecord:
        """The record of one request; waits until it is written."""
        assert ident
        wait(lambda: any(one.id == ident for one in self.logged()), f"no record of {ident}")
        return next(one for one in self.logged() if one.id == ident)

    def idle(self) -> bool:
        """Whether nothing is under way anywhere."""
        return all(one["in_flight"] == 0 and one["queued"] == 0 for one in self.state()["backends"])

    def signal(self, number: int) -> None:
        """To the supervisor."""
        self.process.send_signal(number)

    def wait_said(self, text: str, times: int = 1) -> None:
        """Until standard error has `text` so often."""
        wait(lambda: self.said.count(text) >= times, f"it never said {text!r}")

    def ended(self) -> int:
        """Its exit status, once it has ended."""
        return self.process.wait(PATIENCE_S)


@dataclass
class Reply:
    """An answer as a client sees it. `whole`: its end was marked as its framing asks."""

    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool = True

    @property
    def json(self) -> Any:
        """The body, read."""
        return json.loads(self.body)

    @property
    def id(self) -> str | None:
        """The gateway's id of the request."""
        return self.headers.get("x-breakeven-request-id")

    @property
    def backend(self) -> str | None:
        """Who answered."""
        return self.headers.get("x-breakeven-backend")


def wait(done: Callable[[], object], why: str, limit_s: float = PATIENCE_S) -> None:
    """Until `done` is true; fails with `why` when it never is."""
    until_s = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < until_s, why
        time.sleep(0.02)


def write_plan(path: Path, plan: dict[str, Any]) -> Path:
    """A gateway file with free ports and a log beside it, where the plan does not say otherwise."""
    usual = {"port": 0, "admin": {"port": 0}, "log": {"directory": "log"}}
    path.write_text(yaml.safe_dump({**usual, **plan}))
    return path


@contextlib.contextmanager
def serving(
    directory: Path,
    plan: dict[str, Any],
    environment: dict[str, str] | None = None,
    python: Sequence[str] = ("-m", "breakeven.cli"),
) -> Iterator[Gateway]:
    """A gateway of its own process group, ended at the end. `python`: what is run instead of the command itself."""
    directory.mkdir(parents=True, exist_ok=True)
    path = write_plan(directory / "gateway.yaml", plan)
    with (directory / "stderr").open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, *python, "serve", str(path)],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
    assert process.stdout is not None
    try:
        first, second = process.stdout.readline(), process.stdout.readline()
        assert " at http" in first, (directory / "stderr").read_text()
        url = first.split(" at ")[1].strip().removesuffix("/v1")
        admin = second.split(" at ")[1].strip()
        yield Gateway(process, url, admin, directory)
    finally:
        process.stdout.close()
        end(process)


def end(process: subprocess.Popen[str]) -> None:
    """Twice SIGTERM ends it at once; what is left of its group is killed."""
    for _ in range(2):
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2.0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(PATIENCE_S)


def ask(
    url: str,
    body: dict[str, Any] | bytes | None,
    path: str = CHAT,
    headers: dict[str, str] | None = None,
    method: str | None = None,
) -> Reply:
    """Ask once, on a connection of its own; `body` None: GET."""
    at = urlsplit(url)
    connection = http.client.HTTPConnection(at.hostname or "", at.port, timeout=PATIENCE_S)
    try:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        given = {"content-type": "application/json", **(headers or {})}
        connection.request(method or ("GET" if body is None else "POST"), path, data, given)
        answer = connection.getresponse()
        told = {name.lower(): value for name, value in answer.getheaders()}
        try:
            return Reply(answer.status, told, answer.read())
        except http.client.IncompleteRead as cut:
            return Reply(answer.status, told, cut.partial, whole=False)
        except ConnectionResetError:
            return Reply(answer.status, told, b"", whole=False)
    finally:
        connection.close()


def question(ident: str, model: str, *, stream: bool = False, **fields: Any) -> dict[str, Any]:
    """A body whose answer holds `ident` in every piece."""
    body = {"model": model, "messages": [{"role": "user", "content": f"hello {ident}"}], "chaos_id": ident, **fields}
    return {**body, "stream": True} if stream else body


class Listener:
    """A client that sends a question and then reads, or leaves, as it is told."""

    def __init__(self, url: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        at = urlsplit(url)
        data = json.dumps(body).encode()
        lines = [f"POST {CHAT} HTTP/1.1", f"host: {at.netloc}", f"content-length: {len(data)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self.socket = socket.create_connection((at.hostname or "", at.port or 80), PATIENCE_S)
        self.socket.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + data)
        self.got = b""

    def until(self, mark: bytes) -> bytes:
        """Read until `mark` has come; everything so far."""
        while mark not in self.got:
            data = self.socket.recv(65536)
            assert data, f"it ended before {mark!r}: {self.got[-300:]!r}"
            self.got += data
        return self.got

    def rest(self) -> bytes:
        """Read until the other side closes; everything."""
        with contextlib.suppress(ConnectionResetError):
            while data := self.socket.recv(65536):
                self.got += data
        return self.got

    def started(self) -> bool:
        """Whether a byte of its answer is there."""
        self.socket.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            self.got += self.socket.recv(65536)
        self.socket.settimeout(PATIENCE_S)
        return bool(self.got)

    def leave(self, *, reset: bool = False) -> None:
        """Close the connection, with RST if asked."""
        if reset:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def _accepts(pid: int, port: int) -> bool:
    """Whether a process waits for connections to a port. Every child holds the sockets; one that accepts polls them."""
    listening = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
            listening.add(int(fields[9]))
    told = []
    try:
        for one in Path(f"/proc/{pid}/fdinfo").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                told.append(one.read_text())
    except OSError:
        return False
    watched = [line for text in told for line in text.splitlines() if line.startswith("tfd:")]
    polled = {int(line.partition("ino:")[2].split()[0], 16) for line in watched if "ino:" in line}
    return bool(polled & listening)
