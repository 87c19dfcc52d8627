"""Two gateways, one Valkey, a thousand keys with budgets: what is overstepped, and what is lost when Valkey goes."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from valkey_fixtures import ValkeyServer, valkey_or_skip

from breakeven.gateway.keys.entry import KeyEntry, parse_limit, stamped
from breakeven.gateway.keys.machines import IDLE_AT_ONCE, SharedWindows
from breakeven.gateway.keys.windows import Windows, number, row_sum
from breakeven.gateway.plan.model import Redis
from breakeven.gateway.shared.block import Shape, SharedBlock

KEYS, LIMIT, AT_ONCE = 1000, 6, 2
"""Each host starts at most `AT_ONCE` requests of a key between two exchanges."""
SHAPE = Shape(workers=2, backends=1, keys=KEYS, models=1, experiments=1)
ROUND = KEYS // IDLE_AT_ONCE + 1
"""Exchanges after which every limit was asked after, whoever spent on it."""


def entries() -> list[KeyEntry]:
    names = [f"key-{i}" for i in range(KEYS)]
    limits = [stamped(parse_limit(f"{LIMIT} requests/day"), name) for name in names]
    return [
        KeyEntry(name=name, id=name, digest=bytes(32), limits=(limit,))
        for name, limit in zip(names, limits, strict=True)
    ]


class Host:
    """A gateway of one worker, as far as budgets go. `answered`: requests that it took, by key."""

    def __init__(self, name: str, keys: Sequence[KeyEntry]) -> None:
        self.block, self.keys, self.answered = SharedBlock(SHAPE), keys, Counter[int]()
        self.said: list[str] = []
        # A slow test machine is not a Valkey that is away.
        self.shared = SharedWindows(Redis(timeout_s=10.0), self.block, name, self.said.append)
        self.shared.know(keys, {key.name: i for i, key in enumerate(keys)})
        self.windows = Windows(self.block, 1)

    def ask(self, i: int, times: int) -> bool:
        """So often at most; whether any of it was taken."""
        before = self.answered[i]
        for _ in range(times):
            if self.windows.refused(i, self.keys[i].limits, time.time()) is None:
                self.windows.spend(i, self.keys[i].limits, time.time())
                self.answered[i] += 1
        return self.answered[i] > before

    def knows(self, i: int) -> int:
        """What a worker of it sees of a key: what all hosts spent, as far as it heard."""
        grid, limit = self.block.windows, self.keys[i].limits[0]
        last = number(self.block.now_s(), limit.window_s)
        at = i * self.block.shape.windows
        return sum(
            row_sum(grid.cells, (at + w * grid.entities) * grid.columns, limit.stamp, last) for w in range(grid.workers)
        )


async def exchange(hosts: Sequence[Host], times: int = 1) -> None:
    for _ in range(times):
        assert all(await asyncio.gather(*(host.shared.exchange() for host in hosts)))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ValkeyServer]:
    yield from valkey_or_skip(tmp_path, monkeypatch)


async def test_a_thousand_budgets_are_never_over_by_more_than_is_in_flight_and_nothing_is_lost(
    server: ValkeyServer,
) -> None:
    keys, dice = entries(), random.Random(0)
    one, two = hosts = [Host("one", keys), Host("two", keys)]
    in_flight = [0] * KEYS
    for _ in range(LIMIT + 2):
        for host in hosts:
            for i in range(KEYS):
                unheard = one.answered[i] + two.answered[i] - host.knows(i)
                if host.ask(i, dice.randint(1, AT_ONCE)):
                    in_flight[i] = max(in_flight[i], unheard)
        await exchange(hosts)
    total = one.answered + two.answered
    over = [total[i] - LIMIT for i in range(KEYS)]
    assert min(over) >= 0, "nobody is refused while there is budget left"
    assert max(over) > 0, "otherwise nothing was tried here"
    assert [i for i in range(KEYS) if over[i] > in_flight[i]] == []
    # An exchange may pass the other's: two rounds are the most that is not heard yet.
    assert max(in_flight) <= 2 * AT_ONCE
    assert len(server.keys()) == KEYS

    # It goes, and with it all that it knew; each host goes on by what it knows.
    server.stop()
    for host in hosts:
        assert not await host.shared.exchange()
        for i in range(0, KEYS, 2):
            host.ask(i, AT_ONCE)
    assert one.answered + two.answered == total, "what was known of the other still counts"
    assert [len(host.said) for host in hosts] == [1, 1]

    # It comes back empty. Every host adds its own again, once.
    server.start()
    await exchange(hosts, 3 * ROUND)
    assert not one.shared.away
    lost = [total[i] - host.knows(i) for host in hosts for i in range(KEYS)]
    assert (min(lost), max(lost)) == (0, 0)
    assert sum(server.sums().values()) == sum(total.values())
    for host in hosts:
        await host.shared._client.aclose()


async def test_budgets_spent_while_it_is_away_are_told_when_it_is_back(server: ValkeyServer) -> None:
    keys = entries()[:40]
    one, two = hosts = [Host("one", keys), Host("two", keys)]
    await exchange(hosts)
    server.stop()
    for host in hosts:
        assert not await host.shared.exchange()
        for i in range(len(keys)):
            host.ask(i, LIMIT)
    total = one.answered + two.answered
    assert set(total.values()) == {2 * LIMIT}, "alone each keeps the limit, together they need not"
    server.start()
    await exchange(hosts, 3)
    for host in hosts:
        assert {host.knows(i) for i in range(len(keys))} == {2 * LIMIT}
        host.ask(0, 1)
    assert one.answered + two.answered == total
    for host in hosts:
        await host.shared._client.aclose()


async def test_what_ended_last_is_told_before_a_host_is_gone(server: ValkeyServer) -> None:
    keys = entries()[:40]
    one, two = hosts = [Host("one", keys), Host("two", keys)]
    one.shared._every_s = 3600.0  # so that nothing is told between its first exchange and its end
    run = asyncio.create_task(one.shared.run())
    while not one.shared._turn:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    for i in range(len(keys)):
        one.ask(i, 2)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert sum(server.sums().values()) == 2 * len(keys)
    # It is not there any more: its pod is another's.
    await exchange([two], ROUND)
    assert {two.knows(i) for i in range(len(keys))} == {2}
    await two.shared._client.aclose()
    assert [host.said for host in hosts] == [[], []]
