"""Property 1: loopback by default, and a bind that others can reach is refused without keys.

What counts as loopback, and that no command line opens what a file could not: test_gateway_plan.py.
"""

from __future__ import annotations

import socket
from pathlib import Path

import psutil
import pytest
from chaos_server import ChaosServer
from gateway_property_fixtures import backend, gateway, refused

from breakeven.gateway.keys import store


def listening(pids: set[int]) -> set[str]:
    """Addresses that these processes listen on."""
    found = set()
    for pid in pids:
        for one in psutil.Process(pid).net_connections("inet"):
            if one.status == psutil.CONN_LISTEN:
                found.add(one.laddr.ip)
    return found


def test_without_a_word_only_this_machine_is_listened_to(tmp_path: Path) -> None:
    with ChaosServer() as server, gateway(tmp_path, {"backends": [backend("b", server.url)]}) as running:
        assert listening({running.process.pid, *running.workers()}) == {"127.0.0.1"}
        assert running.ask({"model": "b"})[0] == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "gateway.example"])
@pytest.mark.parametrize("by", ["file", "command line"])
def test_a_host_that_others_reach_needs_keys(tmp_path: Path, host: str, by: str) -> None:
    plan = {"backends": [backend("b", "http://127.0.0.1:1")]}
    said = refused(tmp_path, {**plan, "host": host}) if by == "file" else refused(tmp_path, plan, "--host", host)
    assert "host" in said
    assert "keys" in said


def test_the_admin_page_needs_its_secret_before_others_reach_it(tmp_path: Path) -> None:
    plan = {"backends": [backend("b", "http://127.0.0.1:1")], "admin": {"host": "0.0.0.0", "port": 0}}
    assert "BREAKEVEN_ADMIN_SECRET" in refused(tmp_path, plan, environ={"BREAKEVEN_ADMIN_SECRET": ""})


def test_with_keys_it_may_be_reached_and_asks_for_one(tmp_path: Path) -> None:
    secret = store.create(tmp_path / "keys.json", "anna")
    plan = {"host": "0.0.0.0", "keys": "keys.json"}
    with ChaosServer() as server, gateway(tmp_path, {**plan, "backends": [backend("b", server.url)]}) as running:
        assert listening(running.workers()) == {"0.0.0.0", "127.0.0.1"}, "the admin page stays on loopback"
        assert running.ask({"model": "b"})[0] == 401
        assert running.ask({"model": "b"}, key=secret)[0] == 200
        # Whoever has a key may call this machine what they like: names are checked where there is nothing else.
        assert running.ask({"model": "b"}, {"host": socket.gethostname()}, key=secret)[0] == 200
