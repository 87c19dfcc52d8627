"""Property 8: no state crosses requests. Two tenants interleaved, also after cancel, retry, failover and pool reuse.

Every piece of a backend's answer holds the id of its question, and each tenant's ids begin with its name; so a byte of
the other one's is seen wherever it stands. The client of backends alone: test_gateway_upstream.py.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections import Counter
from collections.abc import Iterator

import pytest
from chaos_server import ChaosServer
from gateway_property_fixtures import CHAT, Gateway, backend, gateway, until

from breakeven.gateway.keys import store

FAULTS = {
    "ok": 0.55,
    "slow": 0.05,
    "reset_before_head": 0.05,
    "close_before_head": 0.05,
    "reset_mid_body": 0.04,
    "close_mid_body": 0.04,
    "truncate": 0.04,
    "garbage_mid_body": 0.03,
    "500": 0.03,
    "503": 0.03,
    "closes_after": 0.04,
    "second_answer": 0.05,
}
"""`second_answer` sends the answer twice: the second one must reach nobody."""
REQUESTS, AT_ONCE = 240, 12
TENANTS = ("aaa", "bbb")
_IDS = re.compile(rb"(?:aaa|bbb)\d+z")


class World:
    def __init__(self, running: Gateway, servers: list[ChaosServer], keys: dict[str, str]) -> None:
        self.running, self.servers, self.keys = running, servers, keys
        self.found: list[tuple[str, str, bool, bytes]] = []
        """Tenant, id, whether the client left, and every byte it got."""


async def tenant(world: World, name: str, seed: int) -> None:
    """One client of a tenant: keeps its connection as long as it can, streams or not, and sometimes leaves."""
    dice = random.Random(seed)
    reader = writer = None
    for k in range(REQUESTS // AT_ONCE):
        ident = f"{name}{seed * 1000 + k}z"
        stream = dice.random() < 0.6
        leaves = dice.random() < 0.25
        body = json.dumps({"model": "both", "stream": stream, "chaos_id": ident, "user": ident, "messages": [ident]})
        if writer is None or reader is None:
            reader, writer = await asyncio.open_connection("127.0.0.1", world.running.port)
        top = f"POST {CHAT} HTTP/1.1\r\nhost: h\r\nx-api-key: {world.keys[name]}\r\ncontent-length: {len(body)}\r\n\r\n"
        got = b""
        try:
            writer.write((top + body).encode())
            if leaves:
                async with asyncio.timeout(dice.random() * 0.02):
                    while piece := await reader.read(4096):
                        got += piece
            else:
                got = await one_answer(reader)
                world.found.append((name, ident, False, got))
                if b"connection: close" not in got.lower():
                    continue
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError) as error:
            got += getattr(error, "partial", b"")
        if leaves or not world.found or world.found[-1][1] != ident:
            world.found.append((name, ident, leaves, got))
        writer.close()
        reader = writer = None
    if writer is not None:
        writer.close()


async def one_answer(reader: asyncio.StreamReader) -> bytes:
    """A whole answer, or what came of it with IncompleteReadError."""
    got = await reader.readuntil(b"\r\n\r\n")
    try:
        if found := re.search(rb"\r\ncontent-length: (\d+)", got):
            return got + await reader.readexactly(int(found[1]))
        while True:
            line = await reader.readuntil(b"\r\n")
            got += line
            got += await reader.readexactly(int(line, 16) + 2)
            if int(line, 16) == 0:
                return got
    except asyncio.IncompleteReadError as error:
        raise asyncio.IncompleteReadError(got + error.partial, None) from None


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("tenants")
    keys = {name: store.create(directory / "keys.json", name) for name in TENANTS}
    with ChaosServer(FAULTS, seed=1) as one, ChaosServer(FAULTS, seed=2) as two, ChaosServer(FAULTS, seed=3) as three:
        wait = {"first_byte": "5s", "idle": "0.5s"}
        servers = [one, two, three]
        plan = {
            "keys": "keys.json",
            "workers": 2,
            "backends": [backend(f"b{k}", server.url, timeouts=wait) for k, server in enumerate(servers)],
            "policies": [{"model": "both", "policy": "weighted", "attempts": 3, "hedge": {"share": "20%"}}],
        }
        with gateway(directory, plan) as running:
            made = World(running, servers, keys)

            async def all_of_them() -> None:
                async with asyncio.timeout(300):
                    clients = [tenant(made, name, seed) for seed in range(AT_ONCE) for name in TENANTS]
                    await asyncio.gather(*clients)

            asyncio.run(all_of_them())
            yield made


def test_much_happened(world: World) -> None:
    """Or the tests below would show nothing."""
    seen: Counter[str] = sum((server.seen.behaviours for server in world.servers), Counter())
    assert set(seen) == set(FAULTS)
    assert len(world.found) == len(TENANTS) * REQUESTS
    assert sum(left for _, _, left, _ in world.found) > 50
    assert sum(b"HTTP/1.1 200" in got for _, _, _, got in world.found) > REQUESTS
    assert sum(server.seen.connections for server in world.servers) < sum(s.seen.requests for s in world.servers)


def test_no_byte_of_one_in_the_others(world: World) -> None:
    for name, ident, _, got in world.found:
        assert set(_IDS.findall(got)) <= {ident.encode()}, (name, ident, got)
        assert got.count(b"HTTP/1.1 ") <= 1, "two answers to one question"


def test_no_backend_was_asked_by_one_with_the_others_words(world: World) -> None:
    for server in world.servers:
        for body in server.seen.bodies:
            asked = json.loads(body)
            assert asked["messages"] == [asked["chaos_id"]] == [asked["user"]]


def test_each_is_accounted_to_its_own(world: World) -> None:
    until(lambda: len(world.running.records()) == len(world.found), "a record of each request")
    records = world.running.records()
    assert len({record["id"] for record in records}) == len(records)
    assert Counter(record["key"] for record in records) == dict.fromkeys(TENANTS, REQUESTS)
    told = {one["name"]: one["requests"] for one in world.running.state()["keys"] if one["name"]}
    assert told == dict.fromkeys(TENANTS, REQUESTS)


def test_nothing_is_left_under_way(world: World) -> None:
    until(lambda: all(server.seen.under_way == 0 for server in world.servers), "the end of every answer")
    until(lambda: all(one["in_flight"] == one["queued"] == 0 for one in world.running.state()["backends"]), "zero")
    assert "Traceback" not in world.running.complaints
