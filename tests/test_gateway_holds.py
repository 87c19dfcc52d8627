"""Whole gateways in trouble: a process hangs, the system refuses another, a file is a pipe, the disk is full."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import which
from typing import Any

import pytest
from chaos_server import ChaosServer, ScriptedRequest
from gateway_serve_fixtures import PATIENCE_S, Gateway, Listener, ask, question, serving, wait, write_plan

from breakeven.wire.behaviours import whole
from breakeven.wire.playing import Scene

TROUBLED = """
import os, signal, time
from pathlib import Path
import breakeven.gateway.plan.load as load
import breakeven.gateway.serve.children as children
import breakeven.gateway.serve.parts as parts
import breakeven.gateway.serve.processes as processes
import breakeven.gateway.serve.supervisor as supervisor
import breakeven.gateway.serve.watcher as watcher
from breakeven.cli.main import main
from breakeven.errors import UserError

def told(word):
    return Path(word).exists()

children.LOOK_S = supervisor.LOOK_S = 0.2
children.STILL = children.STILL_WATCHER = 10
processes.BEAT_S = 0.1
parts.MOST_S = watcher.SAVE_S = 0.3
supervisor.READ_S = 4.0

fork, save, run_worker, read_gateway = os.fork, watcher.save_budgets, supervisor.run_worker, load.read_gateway

def maybe_fork():
    left = Path("forks-left")
    if told("no-fork") or (left.exists() and left.read_text() == "0"):
        raise BlockingIOError(11, "Resource temporarily unavailable")
    if left.exists():
        left.write_text(str(int(left.read_text()) - 1))
    return fork()

def maybe_save(path, *rest):
    if told("no-save"):
        raise UserError(f"{path} cannot be written (No space left on device)")
    save(path, *rest)

def maybe_read(*rest):
    while told("no-read"):
        time.sleep(0.05)
    return read_gateway(*rest)

def circles(*_):
    Path("circles").touch()
    while True:
        pass

def run(*rest):
    signal.signal(signal.SIGUSR1, circles)
    return run_worker(*rest)

os.fork, watcher.save_budgets, supervisor.save_budgets = maybe_fork, maybe_save, maybe_save
supervisor.run_worker, load.read_gateway = run, maybe_read
main()
"""


def _plan(url: str, **more: Any) -> dict[str, Any]:
    return {"backends": [{"name": "one", "url": f"{url}/v1"}], "workers": 2, **more}


@pytest.fixture(scope="module")
def backend() -> Iterator[ChaosServer]:
    with ChaosServer("ok", chunk_s=0.02) as server:
        yield server


@pytest.fixture(scope="module")
def gateway(backend: ChaosServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Gets into every trouble that follows, and serves on. Its directory is the one it was started in."""
    directory = tmp_path_factory.mktemp("holds")
    before = Path.cwd()
    os.chdir(directory)
    try:
        with serving(directory, _plan(backend.url), python=("-c", TROUBLED)) as running:
            wait(lambda: len(running.workers()) == 2, "not every worker accepts")
            yield running
    finally:
        os.chdir(before)


def _served(gateway: Gateway, count: int = 8) -> None:
    for k in range(count):
        assert ask(gateway.url, question(f"held{k}", "one")).status == 200


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGUSR1], ids=["stopped", "in a circle"])
def test_a_worker_that_hangs_is_replaced_and_its_clients_are_served(gateway: Gateway, number: int) -> None:
    workers, hung = set(gateway.workers()), gateway.state()["hung"]
    os.kill(min(workers), number)
    if number == signal.SIGUSR1:  # whom it took in just before is lost with it
        wait((gateway.directory / "circles").exists, "it does not hang")
    _served(gateway)  # who waits at the hanging one is answered by whoever takes its place
    wait(lambda: len(set(gateway.workers()) - workers) == 1, "it was not replaced")
    assert max(workers) in gateway.workers()
    assert gateway.state()["hung"] == hung + 1
    assert "hangs: its heart stands still" in gateway.said
    assert gateway.state()["warnings"] == []


@pytest.mark.skipif(which("ss") is None, reason="ss (iproute2) is not here")
def test_who_comes_while_nobody_accepts_has_room_to_wait(gateway: Gateway) -> None:
    shown = subprocess.run(["ss", "-Hltn", f"sport = :{gateway.port}"], capture_output=True, text=True, check=True)
    most = int(Path("/proc/sys/net/core/somaxconn").read_text())
    assert [int(line.split()[2]) for line in shown.stdout.splitlines()] == [min(4096, most)] * 2


def test_a_watching_process_that_hangs_is_replaced(gateway: Gateway) -> None:
    [watcher] = gateway.watcher()
    os.kill(watcher, signal.SIGSTOP)
    wait(lambda: gateway.watcher() not in ([], [watcher]), "it was not replaced")
    assert all(part["state"] == "running" for part in gateway.state()["parts"])
    assert "the watching process hangs" in gateway.said


def test_where_the_system_refuses_a_process_the_others_go_on(gateway: Gateway, backend: ChaosServer) -> None:
    refusal = gateway.directory / "no-fork"
    workers = set(gateway.workers())
    refusal.touch()
    try:
        os.kill(min(workers), signal.SIGKILL)
        gateway.wait_said("a worker cannot be started (Resource temporarily unavailable)")
        _served(gateway, 16)
        wait(lambda: gateway.state()["missing"] == 1, "nobody sees that one is missing")
        assert any("could not be started" in line for line in gateway.state()["warnings"])
        gateway.signal(signal.SIGHUP)
        gateway.wait_said("no process could be started to read the file")
        os.kill(gateway.watcher()[0], signal.SIGKILL)
        gateway.wait_said("the watching process cannot be started")
        _served(gateway)
        # There is room to read the file and for one worker more: the reload is taken back, and who is owed stays owed.
        left = gateway.directory / "forks-left"
        left.write_text("2")
        refusal.unlink()
        gateway.signal(signal.SIGHUP)
        wait(lambda: gateway.said.count("not reloaded") >= 2, "it was reloaded by half")
        left.unlink()
    finally:
        refusal.unlink(missing_ok=True)
    wait(lambda: len(gateway.workers()) == 2, "it did not come back")
    wait(lambda: len(gateway.watcher()) == 1, "nobody watches")
    assert gateway.state()["missing"] == 0
    _served(gateway)
    assert "Traceback" not in gateway.said


def test_a_reload_that_is_taken_back_leaves_what_a_backend_taught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another `max_output` is another server's to those that were to come, and they did not come."""
    monkeypatch.chdir(tmp_path)
    refusal = whole(b'{"error": {"message": "unrecognized argument: seed"}}', status=400)

    def step(asked: ScriptedRequest) -> str | Scene:
        return refusal if "seed" in asked.fields else "ok"

    with ChaosServer(step) as server:
        plan = {**_plan(server.url), "workers": 1}
        with serving(tmp_path, plan, python=("-c", TROUBLED)) as running:
            assert ask(running.url, question("first", "one", seed=1)).status == 200
            assert ["seed" in json.loads(body) for body in server.seen.bodies] == [True, False]
            plan["backends"] = [{**plan["backends"][0], "max_output": 9999}]
            write_plan(running.directory / "gateway.yaml", plan)
            left = tmp_path / "forks-left"
            left.write_text("1")  # enough to read the file, and not for a worker
            running.signal(signal.SIGHUP)
            running.wait_said("not reloaded")
            left.unlink()
            assert ask(running.url, question("second", "one", seed=1)).status == 200
            assert ["seed" in json.loads(body) for body in server.seen.bodies] == [True, False, False]


def test_a_pipe_as_file_is_refused_and_a_disk_that_hangs_is_left(gateway: Gateway, backend: ChaosServer) -> None:
    path, hanging = gateway.directory / "gateway.yaml", gateway.directory / "no-read"
    path.unlink()
    os.mkfifo(path)
    try:
        gateway.signal(signal.SIGHUP)
        gateway.wait_said("is no regular file")
        path.unlink()
        write_plan(path, _plan(backend.url))
        hanging.touch()
        gateway.signal(signal.SIGHUP)
        [killed, _] = gateway.workers()
        os.kill(killed, signal.SIGKILL)
        # Somebody still reads: that keeps nobody from being replaced.
        wait(lambda: len(gateway.workers()) == 2 and killed not in gateway.workers(), "it was not replaced")
        gateway.wait_said("took longer than")
    finally:
        hanging.unlink(missing_ok=True)
        if path.is_fifo():
            path.unlink()
        write_plan(path, _plan(backend.url))
    gateway.signal(signal.SIGHUP)
    gateway.wait_said("reloaded: generation")
    _served(gateway)


DEAF = """
import os, sys
os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
sys.modules["redis"] = None
from breakeven.cli.main import main
main()
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full, a disk that is always full")
def test_a_full_disk_behind_standard_error_and_a_missing_package_end_nothing(
    backend: ChaosServer, tmp_path: Path
) -> None:
    _limited(tmp_path, 1000)
    plan = _plan(backend.url, keys="keys.json", redis={"url_env": "BREAKEVEN_TEST_REDIS"})
    environment = {"BREAKEVEN_TEST_REDIS": "redis://127.0.0.1:1/0"}
    with serving(tmp_path, plan, environment, python=("-c", DEAF)) as gateway:
        # Each of these has something to say that nobody can hear.
        wait(lambda: gateway.state()["warnings"], "nobody sees that the package is missing")
        parts = {part["name"]: part["state"] for part in gateway.state()["parts"]}
        assert {name: state for name, state in parts.items() if state != "running"} == {"redis": "waiting"}
        assert {"page", "poller", "keys", "budgets", "decisions"} <= parts.keys()
        [killed, _] = gateway.workers()
        os.kill(killed, signal.SIGKILL)
        wait(lambda: len(gateway.workers()) == 2 and killed not in gateway.workers(), "it was not replaced")
        gateway.signal(signal.SIGHUP)
        wait(lambda: gateway.state()["generation"] == 1, "it was not reloaded")
        gateway.signal(signal.SIGTERM)
        assert gateway.ended() == 0


def _limited(directory: Path, tokens: int) -> str:
    command = [sys.executable, "-m", "breakeven.cli", "keys", "create", "anna", "--limit", f"{tokens} tokens/day"]
    done = subprocess.run(
        [*command, "--file", str(directory / "keys.json")], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_budgets_are_saved_at_the_next_chance_and_at_the_end(
    backend: ChaosServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    key = {"authorization": f"Bearer {_limited(tmp_path, 10**6)}"}
    file = tmp_path / "keys.budgets.json"

    def saved() -> int:
        spent = json.loads(file.read_text())["spent"] if file.exists() else []
        return sum(amount for one in spent for _, amount in one["buckets"])

    plan = _plan(backend.url, keys="keys.json")
    with serving(tmp_path, plan, python=("-c", TROUBLED)) as gateway:
        (tmp_path / "no-save").touch()
        assert ask(gateway.url, question("spent1", "one"), headers=key).status == 200
        wait(lambda: any("No space left" in line for line in gateway.state()["warnings"]), "nobody sees it")
        [part] = [one for one in gateway.state()["parts"] if one["name"] == "budgets"]
        assert part["restarts"] >= 1
        assert saved() == 0
        (tmp_path / "no-save").unlink()
        wait(lambda: saved() > 0, "it was never saved")
        assert gateway.said.count("No space left") == 1
        # The process that saves is dead, and cannot be started: the supervisor does it at the end.
        once = saved()
        (tmp_path / "no-fork").touch()
        os.kill(gateway.watcher()[0], signal.SIGKILL)
        gateway.wait_said("the watching process cannot be started")
        assert ask(gateway.url, question("spent2", "one"), headers=key).status == 200
        gateway.signal(signal.SIGTERM)
        assert gateway.ended() == 0
        assert saved() >= 2 * once
    (tmp_path / "no-fork").unlink()
    twice = saved()
    with serving(tmp_path, plan, python=("-c", TROUBLED)) as gateway:
        # Killed with a stream under way: what that still spends is saved as well.
        client = Listener(gateway.url, question("spent3", "one", stream=True, max_tokens=20), key)
        client.until(b'"spent3 "')
        gateway.process.kill()
        client.rest()
        wait(lambda: saved() > twice, "what was spent after the supervisor's death is forgotten")


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """A service manager that waits until it was told a line, after those that it waited for before.

    It always reads, as systemd does: what is told while its ears are full is lost.
    """
    told: queue.Queue[str] = queue.Queue()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(tmp_path / "notify"))

        def listen() -> None:
            while data := heard.recv(4096):
                for line in data.decode().split("\n"):
                    told.put(line)

        def until(line: str) -> None:
            ends_s = time.monotonic() + PATIENCE_S
            while told.get(timeout=max(0.0, ends_s - time.monotonic())) != line:
                pass

        listening = threading.Thread(target=listen)
        listening.start()
        yield until
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as over:
            over.sendto(b"", str(tmp_path / "notify"))
        listening.join()


ACTIVATED = """
import os, socket
from breakeven.cli.main import main
page, clients = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
os.dup2(page.fileno(), 103), os.dup2(clients.fileno(), 104)
page.close(), clients.close()
os.dup2(103, 3), os.dup2(104, 4)
os.close(103), os.close(104)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="2", LISTEN_FDNAMES="admin:clients")
main()
"""


def test_as_a_service_it_tells_how_it_does_and_takes_sockets_that_were_opened_for_it(
    backend: ChaosServer, tmp_path: Path, manager: Callable[[str], None]
) -> None:
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"}
    # The file's ports are taken by nobody else but us: what was passed goes before them.
    plan = _plan(backend.url, port=1, admin={"port": 2})
    with serving(tmp_path, plan, environment, python=("-c", ACTIVATED)) as gateway:
        manager("READY=1")
        _served(gateway)
        assert gateway.state()["workers"] == 2
        for _ in range(3):
            manager("WATCHDOG=1")
        # All workers accept at the same socket, so that a dead one's clients are the others'.
        os.kill(gateway.children()[-1], signal.SIGKILL)
        _served(gateway)
        gateway.signal(signal.SIGHUP)
        manager("RELOADING=1")
        manager("READY=1")
        _served(gateway)
        gateway.signal(signal.SIGTERM)
        manager("STOPPING=1")
        assert gateway.ended() == 0


def test_a_socket_that_others_reach_is_refused_without_keys(backend: ChaosServer, tmp_path: Path) -> None:
    path = write_plan(tmp_path / "gateway.yaml", _plan(backend.url))
    script = ACTIVATED.replace('("127.0.0.1", 0)', '("0.0.0.0", 0)').replace('"admin:clients"', '"clients:clients"')
    command = [sys.executable, "-c", script, "serve", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "the service manager passed a socket at 0.0.0.0, which others can reach" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_unit_files_say_what_the_page_says() -> None:
    root = Path(__file__).parents[1]
    page = (root / "docs" / "serve.md").read_text()
    service = (root / "examples" / "systemd" / "breakeven.service").read_text()
    sockets = (root / "examples" / "systemd" / "breakeven.socket").read_text()
    for line in ("Type=notify", "WatchdogSec=30", "ExecReload=kill -HUP $MAINPID", "KillMode=mixed"):
        assert line in service.splitlines()
    assert "ListenStream=127.0.0.1:8000" in sockets.splitlines()
    assert "examples/systemd/breakeven.service" in page
