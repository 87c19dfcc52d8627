"""Property 13: importing and starting make no network call.

The kernel itself watches: a filter (seccomp) ends whatever process calls `connect`, so that neither another thread nor
a library in C can call it unseen. Paths are compared as they were sent: test_gateway_property_02_routes.py.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from chaos_server import ChaosServer
from gateway_property_fixtures import Gateway, backend, gateway, until

from breakeven.gateway.keys import store

CONNECT = {"x86_64": 42, "aarch64": 203}.get(platform.machine())
"""The number of the system call."""
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or CONNECT is None, reason="the filter is written for Linux on x86-64 and AArch64"
)
BLOCK = f"""
import ctypes, struct
rules = ((0x20, 0, 0, 0), (0x15, 0, 1, {CONNECT}), (6, 0, 0, 0x80000000), (6, 0, 0, 0x7fff0000))
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("rules", ctypes.c_void_p)]
program = Program(len(rules), ctypes.addressof(code))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0
"""
"""Load the call's number; kill the process if it is `connect`, else allow it. 38: no new privileges, 22: filter."""
EVERYTHING = """
import importlib, pkgutil, breakeven, breakeven.gateway, breakeven.cli, breakeven.wire
names = [found.name for part in (breakeven.gateway, breakeven.cli, breakeven.wire)
         for found in pkgutil.walk_packages(part.__path__, part.__name__ + ".") if "__main__" not in found.name]
for name in names:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        assert not error.name.startswith("breakeven"), error
print(len(names))
"""
SERVE = BLOCK + "import sys\nfrom breakeven.cli.main import main\nsys.exit(main())"


def run(code: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environ},
        check=False,
    )


def test_the_filter_bites() -> None:
    """Or the tests below would show nothing."""
    for attempt in (
        "s.connect(('127.0.0.1', 9))",
        "socket.getaddrinfo('name.example', 80)",
        "s.connect_ex(('::1', 9))",
    ):
        family = "AF_INET6" if "::1" in attempt else "AF_INET"
        made = f"socket.socket(socket.{family})"
        done = run(f"{BLOCK}\nimport socket\ns = {made}\n{attempt}\nprint('alive')")
        if "getaddrinfo" in attempt and "alive" not in done.stdout and done.returncode > 0:
            continue  # a machine without a resolver asks nobody
        assert done.returncode == -signal.SIGSYS, (attempt, done)


def test_importing_asks_nobody() -> None:
    done = run(BLOCK + EVERYTHING)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100


def guarded(directory: Path, plan: dict[str, object]) -> AbstractContextManager[Gateway]:
    return gateway(directory, plan, command=[sys.executable, "-c", SERVE, "serve"], environ={"THE_KEY": "k"})


def quiet(running: Gateway) -> None:
    """It serves, its first processes live, and nothing was said of one that ended."""
    before = running.workers()
    assert running.ask(path="/health")[0] == 200
    assert running.ask(path="/ready")[0] == 200
    assert running.admin("/health")[0] == 200
    assert running.admin("/metrics", {"host": "127.0.0.1"})[0] == 200
    assert running.workers() == before
    assert "ended with status" not in running.complaints


def test_starting_and_reloading_ask_nobody(tmp_path: Path) -> None:
    """With keys, a log, experiments, names to resolve, a hosted API, a catalogue model: all that a start looks at."""
    store.create(tmp_path / "keys.json", "anna")
    plan: dict[str, object] = {
        "keys": "keys.json",
        "workers": 2,
        "backends": [
            backend("here", "http://127.0.0.1:9"),
            backend("named", "http://name.example:8000"),
            backend(
                "hosted",
                "https://api.example",
                api_key_env="THE_KEY",
                price={"api": {"input": 1, "output": 2, "date": "2026"}},
            ),
            {**backend("known", "http://10.0.0.5:8000"), "model": "qwen3-14b", "machine": "l40s"},
        ],
        "policies": [{"model": "both", "backends": ["here", "named"]}],
        "experiments": [{"name": "e", "kind": "ab", "model": "both", "control": "here", "treatment": "named"}],
    }
    with guarded(tmp_path, plan) as running:
        quiet(running)
        assert "reloaded: generation" in running.reload()
        until(lambda: len(running.workers()) == 3, "the end of the earlier workers")
        quiet(running)


def test_it_is_a_request_that_makes_the_first_call(tmp_path: Path) -> None:
    """The same gateway under the same filter, once it is asked: its worker is ended, and another takes its place."""
    with ChaosServer() as server, guarded(tmp_path, {"backends": [backend("b", server.url)]}) as running:
        quiet(running)
        assert (
            running.raw(
                b'POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 14\r\n\r\n{"model": "b"}'
            )
            == b""
        )
        until(lambda: f"status -{signal.SIGSYS.value}" in running.complaints, "the end of the worker")
        until(lambda: _healthy(running), "another worker")
        assert server.seen.connections == 0


def _healthy(running: Gateway) -> bool:
    try:
        return running.ask(path="/health")[0] == 200
    except OSError:
        return False


def test_polling_asks_the_backends_of_the_file_and_nobody_else(tmp_path: Path) -> None:
    with ChaosServer() as server, ChaosServer() as unpolled:
        entries = [backend("polled", server.url, poll=True), backend("unpolled", unpolled.url)]
        with gateway(tmp_path, {"backends": entries}) as running:
            until(lambda: server.seen.polls > 0, "a poll")
            assert server.seen.requests == 0
            assert unpolled.seen.connections == 0
            assert json.loads(running.admin()[2])["backends"][0]["name"] == "polled"
