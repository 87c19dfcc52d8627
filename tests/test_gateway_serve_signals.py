"""What a gateway does when it is told to end or to read its file again, and when a process of it is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chaos_server import ChaosServer
from gateway_serve_fixtures import (
    PATIENCE_S,
    Gateway,
    Listener,
    Reply,
    ask,
    question,
    serving,
    wait,
    write_plan,
)  # fmt: skip


def _plan(url: str, **more: Any) -> dict[str, Any]:
    return {"backends": [{"name": "one", "url": f"{url}/v1"}], "workers": 2, **more}


@pytest.fixture(scope="module")
def backend() -> Iterator[ChaosServer]:
    """A backend whose streams go on until they are told."""
    with ChaosServer("ok", chunk_s=0.02) as server:
        yield server


class Load:
    """Clients that ask one question after the other until they are stopped."""

    def __init__(self, url: str, clients: int = 4, prefix: str = "load") -> None:
        self.url, self.prefix = url, prefix
        self.replies: list[Reply] = []
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(k,)) for k in range(clients)]

    def __enter__(self) -> Load:
        for one in self._threads:
            one.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for one in self._threads:
            one.join(PATIENCE_S)

    def _run(self, k: int) -> None:
        n = 0
        while not self._stop.is_set():
            n += 1
            ident = f"{self.prefix}{k}n{n}"
            try:
                reply = ask(self.url, question(ident, "one", stream=n % 2 == 0, max_tokens=3))
            except OSError as error:
                self.failures.append(f"{ident}: {type(error).__name__}: {error}")
                continue
            if reply.status != 200 or not reply.whole or ident.encode() not in reply.body:
                self.failures.append(f"{ident}: {reply}")
            self.replies.append(reply)

    def go_on(self, more: int = 20) -> None:
        """Until so many more have been answered."""
        enough = len(self.replies) + len(self.failures) + more
        wait(lambda: len(self.replies) + len(self.failures) >= enough, "the load stands still")


def _stream(gateway: Gateway, ident: str, chunks: int) -> Listener:
    """A stream under way: its first piece has come."""
    client = Listener(gateway.url, question(ident, "one", stream=True, max_tokens=chunks))
    client.until(f'"{ident} "'.encode())
    return client


def test_sigterm_lets_streams_end(backend: ChaosServer, tmp_path: Path) -> None:
    with serving(tmp_path, _plan(backend.url)) as gateway:
        clients = [_stream(gateway, f"drain{k}", 40) for k in range(4)]
        gateway.signal(signal.SIGTERM)
        gateway.wait_said("draining")
        for k, client in enumerate(clients):
            answer = client.rest()
            assert answer.endswith(b"0\r\n\r\n")
            assert answer.count(f'"drain{k} "'.encode()) == 40
            assert b"[DONE]" in answer
        assert gateway.ended() == 0
        assert gateway.children() == []
        assert Counter(record.status for record in gateway.logged()) == {200: 4}
        assert "Traceback" not in gateway.said


def _refused(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 0.5):
            return False
    except ConnectionRefusedError:
        return True
    except OSError:
        return False


def test_what_does_not_end_in_time_is_cut(backend: ChaosServer, tmp_path: Path) -> None:
    with serving(tmp_path, _plan(backend.url, limits={"drain": "200ms"})) as gateway:
        client = _stream(gateway, "endless", 100_000)
        gateway.signal(signal.SIGTERM)
        assert not client.rest().endswith(b"0\r\n\r\n")
        assert gateway.ended() == 0
        assert [record.status for record in gateway.logged()] == [499]


def test_ctrl_c_reaches_every_process_and_ends_in_order(backend: ChaosServer, tmp_path: Path) -> None:
    with serving(tmp_path, _plan(backend.url)) as gateway:
        client = _stream(gateway, "ctrl", 20)
        # The terminal sends it to the whole group, workers included.
        os.killpg(gateway.process.pid, signal.SIGINT)
        assert client.rest().endswith(b"0\r\n\r\n")
        assert gateway.ended() == 0
        assert "Traceback" not in gateway.said


def test_new_clients_are_refused_meanwhile_and_a_second_sigterm_does_not_wait(
    backend: ChaosServer, tmp_path: Path
) -> None:
    with serving(tmp_path, _plan(backend.url)) as gateway:
        client = _stream(gateway, "twice", 100_000)
        gateway.signal(signal.SIGTERM)
        gateway.wait_said("draining")
        wait(lambda: _refused(gateway.port), "new clients are neither served nor refused")
        assert gateway.children()  # the stream is still under way
        gateway.signal(signal.SIGTERM)
        assert gateway.ended() == 0
        assert not client.rest().endswith(b"0\r\n\r\n")


def test_workers_end_when_the_supervisor_is_killed(backend: ChaosServer, tmp_path: Path) -> None:
    with serving(tmp_path, _plan(backend.url)) as gateway:
        children = gateway.children()
        assert len(children) == 3
        gateway.process.kill()
        gateway.ended()
        wait(lambda: not any(_runs(pid) for pid in children), "a process stayed behind")


def _runs(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_a_taken_port_is_told_in_one_line(backend: ChaosServer, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        path = write_plan(tmp_path / "gateway.yaml", _plan(backend.url, port=port))
        command = [sys.executable, "-m", "breakeven.cli", "serve", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert f"port {port}" in done.stderr
    assert "is taken" in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


# Reloads and deaths, on one gateway: each leaves it serving.


@pytest.fixture(scope="module")
def gateway(backend: ChaosServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Serves on through everything that follows."""
    with serving(tmp_path_factory.mktemp("signals"), _plan(backend.url)) as running:
        yield running


def _reload(gateway: Gateway, plan: dict[str, Any], says: str) -> None:
    write_plan(gateway.directory / "gateway.yaml", plan)
    before = gateway.said.count(says)
    gateway.signal(signal.SIGHUP)
    gateway.wait_said(says, before + 1)


def test_a_reload_under_load_loses_nothing(gateway: Gateway, backend: ChaosServer) -> None:
    old = set(gateway.workers())
    long = _stream(gateway, "longer", 60)
    with Load(gateway.url) as load:
        load.go_on()
        plan = _plan(backend.url, policies=[{"model": "fresh", "backends": ["one"]}])
        _reload(gateway, plan, "reloaded: generation")
        load.go_on()
    assert not load.failures
    assert len(load.replies) >= 40
    assert long.until(b"\r\n0\r\n\r\n").count(b'"longer "') == 60
    long.leave()
    assert ask(gateway.url, question("new", "fresh")).status == 200
    wait(lambda: len(gateway.workers()) == 2 and not old & set(gateway.children()), "old workers stay")
    wait(lambda: gateway.state()["generation"] >= 1, "the page shows the old plan")
    wait(lambda: [one["model"] for one in gateway.state()["policies"]] == ["fresh"], "the page shows the old plan")
    wait(gateway.idle, "something is still counted")
    assert gateway.backend("one")["requests"] == backend.seen.requests - _asked_elsewhere(backend)


def _asked_elsewhere(backend: ChaosServer) -> int:
    """Questions of the tests above, which had gateways of their own."""
    mine = ("load", "longer", "new")
    return sum(count for ident, count in backend.seen.ids.items() if not ident.startswith(mine))


@pytest.mark.parametrize(
    "wrong",
    [
        {"backends": []},
        {"backends": [{"name": "one", "url": "not a url"}]},
        {"policies": [{"model": "x", "backends": ["nobody"]}]},
        {"backends": [{"name": "one", "url": "http://127.0.0.1:1/v1", "api_key_env": "BREAKEVEN_TEST_NOT_SET"}]},
        {"backends": [{"name": "one", "url": "https://127.0.0.1:1/v1", "ca_file": "gateway.yaml"}]},
        {"no_such_key": 1},
    ],
)
def test_a_refused_reload_changes_nothing(gateway: Gateway, backend: ChaosServer, wrong: dict[str, Any]) -> None:
    workers, generation = set(gateway.workers()), gateway.state()["generation"]
    client = _stream(gateway, "through", 10)
    _reload(gateway, {**_plan(backend.url), **wrong}, "not reloaded, everything goes on as it was")
    assert client.until(b"\r\n0\r\n\r\n")
    client.leave()
    assert set(gateway.workers()) == workers
    assert gateway.state()["generation"] == generation
    assert ask(gateway.url, question("after", "one")).status == 200


def test_a_reload_whose_workers_cannot_start_changes_nothing(backend: ChaosServer, tmp_path: Path) -> None:
    flag = tmp_path / "fail"
    failing = f"""
import os
import breakeven.gateway.serve.supervisor as supervisor
from breakeven.cli.main import main
from breakeven.errors import BreakevenError
run = supervisor.run_worker
def run_worker(loaded, rows, block, worker, *rest):
    if os.path.exists({str(flag)!r}) and worker % 2:
        raise BreakevenError("no worker today")
    return run(loaded, rows, block, worker, *rest)
supervisor.run_worker = run_worker
main()
"""
    with serving(tmp_path, _plan(backend.url), python=("-c", failing)) as gateway:
        wait(lambda: len(gateway.workers()) == 2, "not every worker accepts")
        workers = set(gateway.workers())
        flag.touch()
        with Load(gateway.url, 2, "still") as load:
            load.go_on(5)
            plan = _plan(backend.url, policies=[{"model": "fresh", "backends": ["one"]}])
            _reload(gateway, plan, "not reloaded, everything goes on as it was")
            load.go_on(5)
            wait(lambda: set(gateway.workers()) == workers, "other workers serve")
            assert gateway.state()["generation"] == 0
            flag.unlink()
            _reload(gateway, plan, "reloaded: generation 1")
            load.go_on(5)
        assert not load.failures
        assert ask(gateway.url, question("again", "fresh")).status == 200
        wait(lambda: len(gateway.workers()) == 2 and not workers & set(gateway.children()), "old workers stay")
        assert gateway.said.count("no worker today") == 1
        assert "starting another" not in gateway.said


def test_a_killed_worker_is_replaced_and_what_it_had_under_way_is_forgotten(gateway: Gateway) -> None:
    wait(lambda: len(gateway.workers()) == 2, "not every worker accepts")
    workers = set(gateway.workers())
    clients = [_stream(gateway, f"killed{k}", 100_000) for k in range(6)]
    counted = gateway.backend("one")
    assert counted["in_flight"] == 6
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    for client in clients:
        assert not client.rest().endswith(b"0\r\n\r\n")
    wait(lambda: len(set(gateway.workers()) - workers) == 2, "they were not replaced")
    assert "starting another" in gateway.said
    wait(gateway.idle, "what the dead had under way is still counted")
    assert gateway.backend("one")["requests"] >= counted["requests"]
    with Load(gateway.url, 2, "after") as load:
        load.go_on(10)
    assert not load.failures


def test_a_killed_watcher_is_replaced_while_requests_go_on(gateway: Gateway, backend: ChaosServer) -> None:
    [watcher] = gateway.watcher()
    requests = gateway.backend("one")["requests"]
    with Load(gateway.url, 2, "blind") as load:
        os.kill(watcher, signal.SIGKILL)
        load.go_on(10)
        wait(lambda: gateway.watcher() not in ([], [watcher]), "it was not replaced")
        load.go_on(10)
    assert not load.failures
    assert gateway.backend("one")["requests"] > requests
    # The new one hears of reloads as the old one did.
    _reload(gateway, _plan(backend.url, policies=[{"model": "later", "backends": ["one"]}]), "reloaded: generation")
    wait(lambda: [one["model"] for one in gateway.state()["policies"]] == ["later"], "it heard of no reload")


def test_hangups_in_a_row_end_in_the_last_file(gateway: Gateway, backend: ChaosServer) -> None:
    with Load(gateway.url, 2, "row") as load:
        for k in range(5):
            plan = _plan(backend.url, policies=[{"model": f"row{k}", "backends": ["one"]}])
            write_plan(gateway.directory / "gateway.yaml", plan)
            gateway.signal(signal.SIGHUP)
            load.go_on(2)
        with contextlib.suppress(AssertionError):
            wait(lambda: ask(gateway.url, question("row", "row4")).status == 200, "", 5.0)
        gateway.signal(signal.SIGHUP)
        wait(lambda: ask(gateway.url, question("row", "row4")).status == 200, "the last file is not served")
    assert not load.failures
    wait(lambda: len(gateway.children()) == 3, "old workers stay")
    assert "Traceback" not in gateway.said
