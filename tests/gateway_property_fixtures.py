"""A whole gateway in processes of its own, and clients for it: what the tests of its security properties share.

with gateway(tmp_path, {"backends": [backend("b", server.url)]}) as running:
    status, headers, body = running.ask({"model": "b", "messages": []})
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from breakeven.gateway.plan.reach import ENDPOINTS
from breakeven.wire.behaviours import chunk, head, whole
from breakeven.wire.completions import ScriptedRequest
from breakeven.wire.message import Request
from breakeven.wire.playing import Scene
from breakeven.wire.scripted import ScriptedServer, Step
from breakeven.wire.sse import event

CHAT = "/v1/chat/completions"
JSON_TYPE = {"content-type": "application/json"}
PATIENCE_S = 60.0
"""For what must come about, however busy the machine; nothing waits so long when all is well."""
COMMAND = [sys.executable, "-c", "import sys; from breakeven.cli.main import main; sys.exit(main())", "serve"]
Answered = tuple[int, dict[str, str], bytes]


@dataclass
class Gateway:
    """One that serves. `said` are the lines of its standard output until it was ready."""

    process: subprocess.Popen[str]
    directory: Path
    said: list[str]
    port: int
    admin_port: int | None

    def ask(
        self,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        *,
        path: str = CHAT,
        method: str | None = None,
        key: str | None = None,
        port: int | None = None,
    ) -> Answered:
        """One request on a connection of its own. `body`: bytes as they are, anything else as JSON, None: GET."""
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=PATIENCE_S)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        sent = {**(JSON_TYPE if data is not None else {}), **(headers or {})}
        if key is not None:
            sent["authorization"] = f"Bearer {key}"
        try:
            connection.request(method or ("GET" if data is None else "POST"), path, data, sent)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def admin(self, path: str = "/admin/state", headers: Mapping[str, str] | None = None) -> Answered:
        """A page of the admin listener."""
        return self.ask(None, headers, path=path, port=self.admin_port)

    def state(self) -> dict[str, Any]:
        """What the live page is made of."""
        found: dict[str, Any] = json.loads(self.admin()[2])
        return found

    def connect(self) -> socket.socket:
        """A bare connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)

    def raw(self, data: bytes, port: int | None = None, *, source: int = 1) -> bytes:
        """Send these bytes and read until the gateway closes; a final request should ask it to.

        `source`: the last number of the address that it comes from, on Linux, where all of 127.0.0.0/8 is this machine.
        """
        address = (f"127.0.0.{source if sys.platform == 'linux' else 1}", 0)
        with socket.create_connection(("127.0.0.1", port or self.port), PATIENCE_S, address) as client:
            with contextlib.suppress(ConnectionError):
                client.sendall(data)
            return read_all(client)

    @property
    def complaints(self) -> str:
        """Its standard error so far."""
        return (self.directory / "stderr.txt").read_text(encoding="utf-8", errors="replace")

    @property
    def log(self) -> bytes:
        """Every byte of its decision log."""
        return b"".join(path.read_bytes() for path in sorted((self.directory / "log").rglob("*")) if path.is_file())

    def records(self) -> list[dict[str, Any]]:
        """The decision log's lines."""
        return [json.loads(line) for line in self.log.splitlines() if line.strip()]

    def workers(self) -> set[int]:
        """Process ids of everything it runs."""
        return {child.pid for child in psutil.Process(self.process.pid).children(recursive=True)}

    def reload(self, plan: Mapping[str, Any] | None = None) -> str:
        """SIGHUP, with another file when given; returns what it said of it."""
        if plan is not None:
            write_plan(self.directory, plan)
        before = len(self.complaints)
        self.process.send_signal(signal.SIGHUP)
        until(lambda: "reloaded" in self.complaints[before:], "an answer to SIGHUP")
        return self.complaints[before:]

    def stop(self) -> int:
        """SIGTERM, and its exit status."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            for child in psutil.Process(self.process.pid).children(recursive=True):
                child.kill()
            self.process.kill()
            raise


def backend(name: str, url: str, **settings: Any) -> dict[str, Any]:
    """An entry of `backends` that is not polled, with every endpoint."""
    return {"name": name, "url": f"{url}/v1", "poll": False, "endpoints": list(ENDPOINTS), **settings}


def write_plan(directory: Path, plan: Mapping[str, Any]) -> Path:
    """The gateway's file, on free ports and with a log."""
    whole = {"port": 0, "admin": {"port": 0}, "log": {"directory": "log"}, "limits": {"drain": "1s"}, **plan}
    path = directory / "gateway.yaml"
    path.write_text(yaml.safe_dump(whole), encoding="utf-8")
    return path


@contextlib.contextmanager
def gateway(
    directory: Path,
    plan: Mapping[str, Any],
    *,
    environ: Mapping[str, str] | None = None,
    options: Sequence[str] = (),
    command: Sequence[str] = tuple(COMMAND),
) -> Iterator[Gateway]:
    """A gateway that serves this plan until the block ends."""
    directory.mkdir(parents=True, exist_ok=True)
    path = write_plan(directory, plan)
    with (directory / "stderr.txt").open("w", encoding="utf-8") as complaints:
        process = subprocess.Popen(
            [*command, str(path), *options],
            stdout=subprocess.PIPE,
            stderr=complaints,
            stdin=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **(environ or {})},
        )
    try:
        yield _ready(process, directory)
    finally:
        assert process.stdout is not None
        _end(process)
        process.stdout.close()


def refused(directory: Path, plan: Mapping[str, Any], *options: str, environ: Mapping[str, str] | None = None) -> str:
    """What `breakeven serve` says of a plan it does not serve. It must end by itself, with status 2."""
    directory.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [*COMMAND, str(write_plan(directory, plan)), *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **(environ or {})},
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "Serving" not in done.stdout
    return done.stderr


def until(condition: Callable[[], bool], what: str, most_s: float = PATIENCE_S) -> None:
    """Wait for it; fails when it does not come."""
    ends_s = time.monotonic() + most_s
    while not condition():
        assert time.monotonic() < ends_s, f"{what} did not come"
        time.sleep(0.01)


def read_all(client: socket.socket) -> bytes:
    """Until the other side closes; a reset is an end too."""
    pieces = []
    with contextlib.suppress(ConnectionError):
        while piece := client.recv(65536):
            pieces.append(piece)
    return b"".join(pieces)


def statuses(data: bytes) -> list[int]:
    """Of every answer that begins in these bytes."""
    return [int(found) for found in re.findall(rb"HTTP/1\.1 (\d{3}) ", data)]


def _ready(process: subprocess.Popen[str], directory: Path) -> Gateway:
    assert process.stdout is not None
    said: list[str] = []
    watchdog = threading.Timer(60.0, process.kill)
    watchdog.start()
    try:
        for line in process.stdout:
            said.append(line.rstrip())
            if "No key is asked" in line or "Keys are asked" in line or (len(said) == 2 and "page" in line):
                break
    finally:
        watchdog.cancel()
    ports = [int(found) for line in said for found in re.findall(r"http://[^/ ]*:(\d+)/", line)]
    assert ports, f"it did not start: {(directory / 'stderr.txt').read_text()}"
    return Gateway(process, directory, said, ports[0], ports[1] if len(ports) > 1 else None)


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is not None:
        return
    children = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


@contextlib.contextmanager
def echo(status: int = 400, *, pieces: bool = False) -> Iterator[str]:
    """A backend that repeats every header it was sent, in its own headers and body. `pieces`: byte by byte.

    /metrics repeats them too. With 200 it is the client's own mistake that is told, in a stream after its first token.
    """

    def step(question: ScriptedRequest) -> Step:
        sent = server.seen.headers[-1]
        body = json.dumps({"error": {"message": f"you sent {sent}", "code": 400 if status == 200 else 1}}).encode()
        lines = [f"x-you-sent-{name}: {value}" for name, value in sent.items()]
        if status == 200 and question.stream:
            return whole(event(b'{"choices":[{"delta":{"content":"a"}}]}') + event(body), kind="text/event-stream")
        if not pieces:
            return whole(body, *lines, status=status)
        top = head(status, "content-type: application/json", "transfer-encoding: chunked", *lines)
        return Scene([top, *(chunk(body[at : at + 1]) for at in range(len(body))), b"0\r\n\r\n"])

    def metrics(request: Request) -> Scene:
        return whole(str(request.headers).encode(), status=500)

    with ScriptedServer(step, pages={"/metrics": metrics}) as server:
        yield server.url
