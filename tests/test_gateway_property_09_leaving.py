"""Property 9: a client that goes away cancels its backend at once; after thousands of cancels the counters are 0.

`BREAKEVEN_CANCELS=10000` sets how many. Usage is accounted once, whatever became of a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import socket
import struct
from collections import Counter
from collections.abc import Iterator

import pytest
from chaos_server import ChaosServer
from gateway_property_fixtures import CHAT, Gateway, backend, gateway, until

from breakeven.gateway.keys import store

CANCELS = int(os.environ.get("BREAKEVEN_CANCELS", "1500"))
AT_ONCE = 40


class World:
    def __init__(self, running: Gateway, server: ChaosServer, key: str) -> None:
        self.running, self.server, self.key = running, server, key

    def request(self, **fields: object) -> bytes:
        body = json.dumps({"model": "b", "messages": [], **fields})
        head = f"POST {CHAT} HTTP/1.1\r\nhost: h\r\nx-api-key: {self.key}\r\ncontent-length: {len(body)}\r\n\r\n"
        return (head + body).encode()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("leaving")
    key = store.create(directory / "keys.json", "anna")
    with ChaosServer(chunks=4, chunk_s=0.002) as server:
        plan = {
            "keys": "keys.json",
            "workers": 2,
            "limits": {"streams_per_key": 10_000},
            "backends": [backend("b", server.url, limit=20)],
        }
        with gateway(directory, plan) as running:
            yield World(running, server, key)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", ["stall", "stall_after_head", "stall_mid_body"])
@pytest.mark.parametrize("how", ["close", "reset", "half close"])
def test_leaving_ends_it_at_the_backend(world: World, fault: str, stream: bool, how: str) -> None:
    cancelled = world.server.seen.cancelled
    with contextlib.closing(world.running.connect()) as client:
        client.sendall(world.request(chaos=fault, stream=stream))
        until(lambda: world.server.seen.under_way == 1, "the request at the backend")
        if how == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if how == "half close":
            client.shutdown(socket.SHUT_WR)
        else:
            client.close()
        until(lambda: world.server.seen.cancelled == cancelled + 1, "the end at the backend")
    until(lambda: world.running.state()["backends"][0]["in_flight"] == 0, "zero")


async def one(world: World, dice: random.Random, port: int) -> None:
    """Ask, and leave at a random moment: before, within or after the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    sent = world.request(stream=dice.random() < 0.5, chaos_id=f"c{dice.random()}")
    if dice.random() < 0.05:
        sent = sent[: dice.randrange(len(sent))]
    writer.write(sent)
    with contextlib.suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(dice.random() * dice.choice((0.03, 0.03, 0.03, 0.5))):
            await reader.read(-1)
    if dice.random() < 0.5:
        writer.transport.abort()
    else:
        writer.close()


async def leave_by_the_thousand(world: World, count: int) -> None:
    dice = random.Random(5)
    left = iter(range(count))

    async def client() -> None:
        for _ in left:
            await one(world, dice, world.running.port)

    async with asyncio.timeout(300 + count / 10):
        await asyncio.gather(*(client() for _ in range(AT_ONCE)))


def test_counters_end_at_zero_and_usage_is_accounted_once(world: World) -> None:
    asyncio.run(leave_by_the_thousand(world, CANCELS))
    state = world.running.state

    def all_zero() -> bool:
        return all(one["in_flight"] == one["queued"] == 0 for one in state()["backends"])

    def usage() -> dict[str, int]:
        return next(one for one in state()["keys"] if one["name"] == "anna")

    until(all_zero, "zero in flight and in line")
    until(lambda: world.server.seen.under_way == 0, "the end of every answer at the backend")
    until(lambda: len(world.running.records()) == usage()["requests"], "a record of each request")
    records = world.running.records()
    assert len({record["id"] for record in records}) == len(records)
    assert Counter(record["status"] for record in records)[499] > CANCELS / 10
    assert Counter(record["status"] for record in records)[200] > 0
    charged = [
        record.get(f"charged_{name}", record.get(name) or 0)
        for record in records
        for name in ("prompt_tokens", "output_tokens")
    ]
    assert usage()["tokens"] == sum(charged) > 0
    asked_in_vain = [record for record in records if record["status"] == 499 and not record.get("prompt_tokens")]
    assert any(record.get("charged_prompt_tokens", 0) for record in asked_in_vain), "what was sent is paid"
    # No question came to the backend without an attempt that stands in a record.
    assert sum(len(record.get("attempts", ())) for record in records) >= world.server.seen.requests
    assert world.running.ask({"model": "b"}, key=world.key)[0] == 200
    assert "Traceback" not in world.running.complaints


def test_streams_of_the_key_are_free_again(world: World) -> None:
    """A place that a cancelled stream kept would be missing for ever."""

    def places() -> int:
        return int(json.loads(world.running.admin()[2])["backends"][0]["in_flight"])

    clients = [world.running.connect() for _ in range(20)]
    for client in clients:
        client.sendall(world.request(chaos="stall", stream=True))
    until(lambda: places() == 20, "as many as the backend takes")
    for client in clients:
        client.close()
    until(lambda: places() == 0, "zero")
