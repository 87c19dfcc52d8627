"""Property 11: a reload is atomic and validated, refused on any error, and never lowers authentication.

What may change without a restart: test_gateway_plan.py. Requests under way while it reloads: test_gateway_serve.py.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from chaos_server import ChaosServer
from gateway_property_fixtures import Gateway, backend, gateway, until, write_plan

from breakeven.gateway.keys import store


class World:
    def __init__(self, running: Gateway, url: str, plan: dict[str, Any], key: str) -> None:
        self.running, self.url, self.plan, self.key = running, url, plan, key

    def still_guarded(self, backends: list[str]) -> None:
        """It serves these, to who has a key, and to nobody else."""
        assert self.running.ask({"model": "b"})[0] == 401
        assert self.running.ask({"model": "b"}, key="bek-wrong")[0] == 401
        assert self.running.ask({"model": "b"}, key=self.key)[0] == 200
        listed = json.loads(self.running.ask(path="/v1/models", key=self.key)[2])["data"]
        assert [each["id"] for each in listed] == ["breakeven", *backends]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("reload")
    key = store.create(directory / "keys.json", "anna")
    with ChaosServer() as server:
        plan = {"keys": "keys.json", "backends": [backend("b", server.url)]}
        with gateway(directory, plan, environ={"BREAKEVEN_ADMIN_SECRET": "secret-of-the-page"}) as running:
            yield World(running, server.url, plan, key)


def without(plan: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in plan.items() if key != name}


def more(url: str) -> dict[str, Any]:
    return backend("more", url)


WRONG: dict[str, tuple[Callable[[World], dict[str, Any]], str]] = {
    "no keys": (lambda world: without(world.plan, "keys"), "keys"),
    "keys of null": (lambda world: {**world.plan, "keys": None}, "keys"),
    "keys that are not there": (lambda world: {**world.plan, "keys": "none.json"}, "none.json"),
    "a directory of keys": (lambda world: {**world.plan, "keys": "."}, "keys"),
    "another host": (lambda world: {**world.plan, "host": "0.0.0.0"}, "host"),
    "another port": (lambda world: {**world.plan, "port": 1}, "port"),
    "an admin page for all": (lambda world: {**world.plan, "admin": {"port": 0, "host": "0.0.0.0"}}, "admin"),
    "another admin secret": (lambda world: {**world.plan, "admin": {"port": 0, "secret_env": "NO_SUCH"}}, "admin"),
    "no backends": (lambda world: {**world.plan, "backends": []}, "backends"),
    "an unknown word": (lambda world: {**world.plan, "bakends": []}, "bakends"),
    "a backend twice": (lambda world: {**world.plan, "backends": world.plan["backends"] * 2}, "backends"),
    "a key's variable that is not set": (
        lambda world: {**world.plan, "backends": [backend("b", world.url, api_key_env="NO_SUCH_VARIABLE")]},
        "NO_SUCH_VARIABLE",
    ),
    "a metadata address": (
        lambda world: {**world.plan, "backends": [{"name": "b", "url": "http://169.254.169.254/v1"}]},
        "allow_link_local",
    ),
    "half of it right": (
        lambda world: {**world.plan, "backends": [more(world.url), {"name": "b", "url": 7}]},
        "backends",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_changes_nothing(world: World, name: str) -> None:
    make, says = WRONG[name]
    before = world.running.workers()
    said = world.running.reload(make(world))
    assert "not reloaded" in said
    assert says in said
    assert "Traceback" not in said
    assert world.running.workers() == before, "the same processes go on"
    world.still_guarded(["b"])


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"backends: [", b"[]", b"\x00" * 100, b"a: &a [*a]"])
def test_a_file_that_is_none_changes_nothing(world: World, content: bytes) -> None:
    (world.running.directory / "gateway.yaml").write_bytes(content)
    before = world.running.workers()
    assert "not reloaded" in world.running.reload()
    assert world.running.workers() == before
    world.still_guarded(["b"])


def test_a_file_of_keys_that_is_damaged_changes_nothing(world: World) -> None:
    keys = world.running.directory / "keys.json"
    good = keys.read_bytes()
    for content in (b"", b"{}", b"null", good[:-20], good.replace(b"sha256:", b"sha1:")):
        keys.write_bytes(content)
        assert "not reloaded" in world.running.reload(world.plan)
        world.still_guarded(["b"])
    keys.write_bytes(good)


def test_a_reload_that_succeeds_opens_nothing_while_it_happens(world: World) -> None:
    """Clients with, without and with a wrong key ask all the while: each is answered, and as ever."""
    ended = threading.Event()
    odd: list[object] = []
    counts = dict.fromkeys((200, 401), 0)

    def client(key: str | None, expected: int) -> None:
        while not ended.is_set():
            try:
                status = world.running.ask({"model": "b"}, key=key)[0]
            except OSError as error:
                odd.append(error)
                continue
            counts[expected] += 1
            if status != expected:
                odd.append((key, status))

    threads = [threading.Thread(target=client, args=given) for given in ((world.key, 200), (None, 401), ("bek-x", 401))]
    for thread in threads:
        thread.start()
    try:
        for k in range(3):
            backends = [backend("b", world.url), *([more(world.url)] if k % 2 == 0 else [])]
            assert "reloaded: generation" in world.running.reload({**world.plan, "backends": backends})
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert odd == []
    assert min(counts.values()) > 3
    world.still_guarded(["b", "more"])
    world.running.reload(world.plan)
    world.still_guarded(["b"])


def test_a_reload_without_any_key_left_lets_nobody_in(tmp_path: Path) -> None:
    """No key is not the same as no file of keys."""
    key = store.create(tmp_path / "keys.json", "anna")
    with ChaosServer() as server:
        plan = {"keys": "keys.json", "backends": [backend("b", server.url)]}
        with gateway(tmp_path, plan) as running:
            assert running.ask({"model": "b"}, key=key)[0] == 200
            store.revoke(tmp_path / "keys.json", "anna")
            running.reload(plan)
            until(lambda: running.ask({"model": "b"}, key=key)[0] == 401, "the end of the last key")
            assert running.ask({"model": "b"})[0] == 401
            assert yaml.safe_load(write_plan(tmp_path, plan).read_text())["keys"] == "keys.json"
