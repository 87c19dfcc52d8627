"""Windows of requests, tokens and dollars: never more than a limit in any window, over workers, restarts, machines."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from valkey_fixtures import ValkeyNotStartedError, ValkeyServer, valkey_or_skip

from breakeven.errors import UserError
from breakeven.gateway.keys import windows as windows_module
from breakeven.gateway.keys.budgets import budget_path, load_budgets, save_budgets
from breakeven.gateway.keys.entry import KeyEntry, KeyLimit, parse_limit, stamped
from breakeven.gateway.keys.machines import AGAIN_S, EVERY_S, SharedWindows
from breakeven.gateway.keys.windows import BUCKETS, OwnRow, Windows, put_row, row_buckets, row_sum
from breakeven.gateway.plan.model import Redis
from breakeven.gateway.shared.block import Shape, SharedBlock
from breakeven.gateway.shared.layout import Used

SHAPE = Shape(workers=4, backends=1, keys=3, models=1, experiments=1)
DAY = 1_700_000_000.0


def limits_of(*texts: str, key: str = "anna") -> tuple[KeyLimit, ...]:
    return tuple(stamped(parse_limit(text), key) for text in texts)


def worker_of(block: SharedBlock, worker: int) -> Windows:
    return Windows(block, worker)


# One worker.


def test_a_limit_is_reached_and_the_window_frees_it() -> None:
    windows, limits = worker_of(SharedBlock(SHAPE), 1), limits_of("3 requests/min")
    for _ in range(3):
        assert windows.refused(0, limits, DAY) is None
        windows.spend(0, limits, DAY)
    refusal = windows.refused(0, limits, DAY)
    assert refusal is not None
    assert refusal.used == 3
    assert refusal.retry_after_s is not None
    assert 60.0 <= refusal.retry_after_s <= 64.0
    assert "3 requests/min" in refusal.text
    assert windows.refused(0, limits, DAY + refusal.retry_after_s - 0.01) is not None
    assert windows.refused(0, limits, DAY + refusal.retry_after_s + 0.01) is None
    assert windows.refused(1, limits_of("3 requests/min", key="bert"), DAY) is None, "another key is free"


def test_what_is_expected_is_held_and_what_was_taken_is_counted() -> None:
    windows, limits = worker_of(SharedBlock(SHAPE), 1), limits_of("1000 tokens/min", "1 usd/day")
    spent = windows.spend(0, limits, DAY, 900, 0.1)
    refusal = windows.refused(0, limits, DAY, 200)
    assert refusal is not None
    assert refusal.limit.what == "tokens"
    windows.settle(spent, DAY + 1, 100, 1.0)
    refusal = windows.refused(0, limits, DAY + 1, 200)
    assert refusal is not None
    assert refusal.limit.what == "usd"
    assert refusal.used == 10**9
    assert "1 usd/day" in refusal.text
    assert refusal.retry_after_s is not None
    assert 86_000 < refusal.retry_after_s < 86400 * 16 / 15
    windows.settle(spent, DAY + 1, 5, 5)
    assert windows.refused(0, limits, DAY + 1, 200) == refusal, "settled once only"


def test_a_request_above_the_limit_by_itself_is_told_so() -> None:
    windows, limits = worker_of(SharedBlock(SHAPE), 1), limits_of("1000 tokens/min")
    refusal = windows.refused(0, limits, DAY, 1001)
    assert refusal is not None
    assert refusal.retry_after_s is None
    assert "alone" in refusal.text


def test_a_request_never_sent_is_not_counted() -> None:
    windows, limits = worker_of(SharedBlock(SHAPE), 1), limits_of("1 requests/min", "10 tokens/min")
    spent = windows.spend(0, limits, DAY, 10)
    assert windows.refused(0, limits, DAY) is not None
    windows.settle(spent, DAY, requests=0)
    assert windows.refused(0, limits, DAY, 10) is None


def test_a_key_without_limits_costs_nothing() -> None:
    block = SharedBlock(SHAPE)
    windows = worker_of(block, 1)
    assert windows.refused(0, (), DAY) is None
    assert windows.spend(0, (), DAY) is None
    windows.settle(None, DAY, 5, 5)
    assert not any(block.windows.cells)


def test_a_correction_after_the_bucket_has_gone_never_makes_the_window_negative() -> None:
    windows, limits = worker_of(SharedBlock(SHAPE), 1), limits_of("1000 tokens/min")
    spent = windows.spend(0, limits, DAY, 900)
    windows.settle(spent, DAY + 300, 100)
    refusal = windows.refused(0, limits, DAY + 300, 1001)
    assert refusal is not None
    assert refusal.used == 0
    spent = windows.spend(0, limits, DAY + 300, 100)
    windows.settle(spent, DAY + 600, 800)
    refusal = windows.refused(0, limits, DAY + 600, 301)
    assert refusal is not None
    assert refusal.used == 700, "what was more than expected still counts"


EVENTS = st.lists(
    st.tuples(
        st.floats(0.0, 20.0) | st.floats(0.0, 0.2),
        st.integers(1, 3),
        st.integers(0, 40),
        st.integers(0, 60),
        st.floats(0.0, 90.0),
    ),
    max_size=80,
)


@given(events=EVENTS, most=st.integers(1, 100))
@settings(max_examples=150, deadline=None)
def test_never_more_than_the_limit_in_any_window(events: list[tuple[float, int, int, int, float]], most: int) -> None:
    """Three workers; requests that reserve an estimate and settle for no more than it some time later."""
    block = SharedBlock(SHAPE)
    workers = {k: worker_of(block, k) for k in (1, 2, 3)}
    limits = (stamped(KeyLimit("requests", 7, 60.0), "anna"), stamped(KeyLimit("tokens", most, 60.0), "anna"))
    now_s, began, under_way = DAY, [], []
    for gap_s, worker, estimate, taken, lasts_s in events:
        now_s += gap_s
        for end_s, windows, spent, tokens in sorted(under_way, key=lambda one: one[0]):
            if end_s <= now_s:
                windows.settle(spent, end_s, tokens)
        under_way = [one for one in under_way if one[0] > now_s]
        if workers[worker].refused(0, limits, now_s, estimate) is None:
            spent = workers[worker].spend(0, limits, now_s, estimate)
            tokens = min(taken, estimate)
            began.append((now_s, tokens))
            under_way.append((now_s + lasts_s, workers[worker], spent, tokens))
    for first_s, _ in began:
        within = [tokens for at_s, tokens in began if first_s <= at_s < first_s + 60.0]
        assert len(within) <= 7
        assert sum(within) <= most


@given(gaps=st.lists(st.floats(0.0, 30.0), min_size=1, max_size=60))
@settings(max_examples=100, deadline=None)
def test_nobody_is_held_back_more_than_a_fifteenth_too_long(gaps: list[float]) -> None:
    windows, limits = worker_of(SharedBlock(SHAPE), 1), limits_of("5 requests/min")
    now_s, began = DAY, []
    for gap_s in gaps:
        now_s += gap_s
        if windows.refused(0, limits, now_s) is None:
            windows.spend(0, limits, now_s)
            began.append(now_s)
        else:
            assert sum(at_s > now_s - 60.0 * (1 + 1 / BUCKETS) - 0.001 for at_s in began) >= 5


@given(
    amounts=st.lists(st.tuples(st.integers(0, 8) | st.integers(56, 140), st.integers(1, 100)), max_size=60),
    look=st.integers(0, 60),
)
@settings(max_examples=150, deadline=None)
def test_a_row_is_summed_as_its_buckets_are(amounts: list[tuple[int, int]], look: int) -> None:
    block, stamp = SharedBlock(SHAPE), 77
    row = OwnRow(block.windows.cells, 0, stamp, 15.0, DAY)
    truth: dict[int, int] = {}
    now_s = DAY
    for ahead, amount in amounts:
        now_s += ahead / 4
        row.advance(now_s)
        row.add(amount)
        truth[int(now_s)] = truth.get(int(now_s), 0) + amount
    newest = int(now_s)
    last = newest - 3 + look
    kept = {n: v for n, v in truth.items() if n > newest - 16}
    expected = {n: v for n, v in kept.items() if n >= max(last, newest) - BUCKETS}
    assert row_sum(block.windows.cells, 0, stamp, last) == sum(expected.values())
    assert sum(row_buckets(block.windows.cells, 0, stamp, last).values()) == sum(expected.values())
    assert row_sum(block.windows.cells, 0, stamp + 1, last) == 0
    assert row.total == sum(kept.values())


def test_a_clock_set_back_changes_nothing() -> None:
    windows, limits = worker_of(SharedBlock(SHAPE), 1), limits_of("1 requests/min")
    windows.spend(0, limits, DAY)
    assert windows.refused(0, limits, DAY - 3600) is not None
    windows.spend(0, limits, DAY - 3600)
    refusal = windows.refused(0, limits, DAY)
    assert refusal is not None
    assert refusal.used == 2


# Several workers.


def test_workers_see_each_other_and_only_the_same_key() -> None:
    block, limits = SharedBlock(SHAPE), limits_of("2 requests/min")
    first, second = worker_of(block, 1), worker_of(block, 2)
    first.spend(0, limits, DAY)
    second.spend(0, limits, DAY)
    assert first.refused(0, limits, DAY) is not None
    assert second.refused(0, limits, DAY) is not None
    # The row went to a key of another name: what the old one spent is not its.
    assert second.refused(0, limits_of("2 requests/min", key="bert"), DAY) is None


def test_a_dead_worker_s_spending_is_kept_and_its_streams_are_freed() -> None:
    block, limits = SharedBlock(SHAPE), limits_of("3 requests/min", "9 usd/day")
    for worker in (1, 2):
        windows = worker_of(block, worker)
        windows.spend(0, limits, DAY + worker, 0, 4e-9)
        assert windows.open_stream(0, 9)
        windows_module.retire(block, worker)
        block.retire(worker)
        assert not any(block.windows.mine(worker))
    third = worker_of(block, 1)
    assert third.refused(0, limits, DAY + 3) is None
    third.spend(0, limits, DAY + 3)
    refusal = third.refused(0, limits, DAY + 3)
    assert refusal is not None
    assert refusal.used == 3
    assert block.key_usage.total(0, Used.STREAMS) == 0


def test_streams_are_counted_over_workers() -> None:
    block = SharedBlock(SHAPE)
    first, second = worker_of(block, 1), worker_of(block, 2)
    assert first.open_stream(1, 2)
    assert second.open_stream(1, 2)
    assert not first.open_stream(1, 2)
    assert first.open_stream(0, 2)
    second.close_stream(1)
    assert first.open_stream(1, 2)
    for _ in range(2):
        first.close_stream(1)
    first.close_stream(0)
    assert not any(block.key_usage.cells)


def _ask_often(block: SharedBlock, worker: int, limits: tuple[KeyLimit, ...]) -> None:
    windows, admitted = worker_of(block, worker), 0
    for _ in range(2000):
        if windows.refused(0, limits, time.time()) is None:
            windows.spend(0, limits, time.time())
            admitted += 1
    block.worker.put(worker, 0, 1, admitted)


def test_processes_at_once_keep_one_limit() -> None:
    block, limits = SharedBlock(SHAPE), limits_of("900 requests/day")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_ask_often, args=(block, worker, limits)) for worker in (1, 2, 3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    admitted = int(block.worker.total(0, 1))
    # Each worker may be between its look and its mark when the last place goes.
    assert 900 <= admitted <= 902
    refusal = worker_of(block, 1).refused(0, limits, time.time())
    assert refusal is not None
    assert refusal.used == admitted


# Restarts.


def entry_of(name: str, *texts: str) -> KeyEntry:
    return KeyEntry(name=name, id=name, digest=bytes(32), limits=limits_of(*texts, key=name))


def used(block: SharedBlock, slot: int, entry: KeyEntry, which: int = 0) -> int:
    refusal = worker_of(block, 3).refused(slot, (entry.limits[which],), time.time(), 10**16, 1e7)
    if refusal is None:
        return 0
    return refusal.used


def test_budgets_survive_a_restart_and_a_move_of_rows(tmp_path: Path) -> None:
    path = budget_path(tmp_path / "keys.json")
    assert path.name == "keys.budgets.json"
    assert budget_path(tmp_path / "keys.json", tmp_path / "b") == tmp_path / "b"
    anna, bert = entry_of("anna", "10 usd/day"), entry_of("bert", "500 tokens/hour")
    before = SharedBlock(SHAPE)
    machine = load_budgets(path, before, [anna, bert], {"anna": 0, "bert": 1})
    now_s = time.time()
    worker_of(before, 1).spend(0, anna.limits, now_s, 0, 3.0)
    worker_of(before, 2).spend(0, anna.limits, now_s - 7200, 0, 1.0)
    worker_of(before, 2).spend(1, bert.limits, now_s, 123)
    save_budgets(path, before, [anna, bert], {"anna": 0, "bert": 1}, machine)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    after = SharedBlock(SHAPE)
    assert load_budgets(path, after, [bert, anna], {"anna": 2, "bert": 0}) == machine
    assert used(after, 2, anna) == 4 * 10**9
    assert used(after, 0, bert) == 123
    # Saved again without anything new, nothing is counted twice.
    save_budgets(path, after, [bert, anna], {"anna": 2, "bert": 0}, machine)
    third = SharedBlock(SHAPE)
    load_budgets(path, third, [anna], {"anna": 0})
    assert used(third, 0, anna) == 4 * 10**9


def test_old_spending_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, anna, now_s = tmp_path / "b.json", entry_of("anna", "4 requests/min"), time.time()
    block = SharedBlock(SHAPE)
    for _ in range(4):
        worker_of(block, 1).spend(0, anna.limits, now_s)
    monkeypatch.setattr(time, "time", lambda: now_s)
    save_budgets(path, block, [anna], {"anna": 0}, "m")
    for later_s, refused in ((1.0, True), (59.0, True), (70.0, False)):
        monkeypatch.setattr(time, "time", lambda later_s=later_s: now_s + later_s)
        after = SharedBlock(SHAPE)
        load_budgets(path, after, [anna], {"anna": 0})
        assert (worker_of(after, 1).refused(0, anna.limits, time.time()) is not None) is refused


def test_setting_the_clock_neither_frees_nor_locks_and_a_restart_knows_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, anna, real = tmp_path / "b.json", entry_of("anna", "4 tokens/hour"), time.time
    slots, hour_s = {"anna": 0}, 3600.0
    for step_s in (-30 * hour_s, 30 * hour_s):
        monkeypatch.setattr(time, "time", real)
        block = SharedBlock(SHAPE)
        windows = worker_of(block, 1)
        for ago_s in (3000.0, 3000.0, 0.0, 0.0):
            windows.spend(0, anna.limits, windows.now_s() - ago_s, 1)
        monkeypatch.setattr(time, "time", lambda step_s=step_s: real() + step_s)
        refusal = windows.refused(0, anna.limits, windows.now_s())
        assert refusal is not None
        assert refusal.used == 4
        save_budgets(path, block, [anna], slots, "m")
        # A new start has the wall clock as it is now; twenty minutes later the older half has gone.
        for later_s, left in ((0.0, 4), (1200.0, 2), (4200.0, 0)):
            monkeypatch.setattr(time, "time", lambda later_s=later_s, step_s=step_s: real() + step_s + later_s)
            after = SharedBlock(SHAPE)
            load_budgets(path, after, [anna], slots)
            assert used(after, 0, anna) == left


def test_a_file_saved_by_a_clock_that_was_ahead_counts_as_of_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, anna, real = tmp_path / "b.json", entry_of("anna", "4 tokens/hour"), time.time
    monkeypatch.setattr(time, "time", lambda: real() + 1e6)
    block = SharedBlock(SHAPE)
    windows = worker_of(block, 1)
    for ago_s in (3000.0, 0.0, 0.0, 0.0):
        windows.spend(0, anna.limits, windows.now_s() - ago_s, 1)
    save_budgets(path, block, [anna], {"anna": 0}, "m")
    monkeypatch.setattr(time, "time", real)
    after = SharedBlock(SHAPE)
    load_budgets(path, after, [anna], {"anna": 0})
    assert used(after, 0, anna) == 4


def test_a_damaged_budget_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    for content in (b"{", b"[]", b'{"schema":"x","saved_s":1,"machine":"m","spent":[]}'):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"b\.json.*delete it"):
            load_budgets(path, SharedBlock(SHAPE), [], {})


def test_amounts_that_no_gateway_saves_free_nothing(tmp_path: Path) -> None:
    path, anna = tmp_path / "b.json", entry_of("anna", "4 tokens/hour")
    block = SharedBlock(SHAPE)
    worker_of(block, 1).spend(0, anna.limits, block.now_s(), 4)
    save_budgets(path, block, [anna], {"anna": 0}, "m")
    file = json.loads(path.read_text())
    ((n, amount),) = file["spent"][0]["buckets"]
    file["spent"][0]["buckets"] = [[n, amount], [n, -1000], [n - 1, 10**19], [-5, 7], [10**18, 7]]
    file["spent"][0]["told"], file["spent"][0]["born"] = [[n, -5], [10**19, 5]], 2**63
    path.write_text(json.dumps(file))
    after = SharedBlock(SHAPE)
    load_budgets(path, after, [anna], {"anna": 0})
    assert used(after, 0, anna) == 4


# Other machines.


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ValkeyServer]:
    yield from valkey_or_skip(tmp_path, monkeypatch)


class Machine:
    """A gateway of one worker that shares its limits."""

    def __init__(self, name: str, *entries: KeyEntry, block: SharedBlock | None = None) -> None:
        self.block, self.said = block or SharedBlock(SHAPE), []  # type: ignore[var-annotated]
        self.slots = {entry.name: k for k, entry in enumerate(entries)}
        # A slow test machine is not a Redis that is away.
        self.shared = SharedWindows(Redis(timeout_s=5.0), self.block, name, self.said.append)
        self.shared.know(entries, self.slots)
        self.windows = worker_of(self.block, 1)

    def spend(self, entry: KeyEntry, requests: int) -> None:
        for _ in range(requests):
            self.windows.spend(self.slots[entry.name], entry.limits, time.time())

    def used(self, entry: KeyEntry) -> int:
        return used(self.block, self.slots[entry.name], entry)


async def _exchange(*machines: Machine) -> None:
    for _ in range(2):
        for machine in machines:
            assert await machine.shared.exchange()


ANNA, BERT = entry_of("anna", "100 usd/day", "30 requests/day"), entry_of("bert", "10 requests/hour")
ANNA_REQUESTS = KeyEntry(name="anna", id="anna", digest=bytes(32), limits=(ANNA.limits[1],))


async def test_machines_share_a_limit(server: ValkeyServer) -> None:
    one, two, three = (Machine(name, ANNA_REQUESTS, BERT) for name in "abc")
    one.spend(ANNA_REQUESTS, 5)
    two.spend(ANNA_REQUESTS, 7)
    two.spend(BERT, 10)
    await _exchange(one, two, three)
    for machine in (one, two, three):
        assert used_requests(machine, ANNA_REQUESTS) == 12
        assert machine.windows.refused(1, BERT.limits, time.time()) is not None
    # Said twice, counted once.
    await _exchange(one, two, three)
    assert used_requests(one, ANNA_REQUESTS) == 12
    for machine in (one, two, three):
        await machine.shared._client.aclose()


def used_requests(machine: Machine, entry: KeyEntry) -> int:
    """What a worker of this machine sees of the first limit."""
    grid, limit = machine.block.windows, entry.limits[0]
    last = int(time.time() / (limit.window_s / BUCKETS))
    at = machine.slots[entry.name] * machine.block.shape.windows
    return sum(
        row_sum(grid.cells, (at + w * grid.entities) * grid.columns, limit.stamp, last) for w in range(grid.workers)
    )


async def test_what_is_given_back_is_given_back_everywhere(server: ValkeyServer) -> None:
    one, two = (Machine(name, BERT) for name in "ab")
    spent = [one.windows.spend(0, BERT.limits, at_s) for at_s in (time.time() - 600, time.time())]
    await _exchange(one, two)
    assert used_requests(two, BERT) == 2
    for left, each in ((1, spent[0]), (0, spent[1])):
        one.windows.settle(each, time.time(), requests=0)
        await _exchange(one, two)
        assert used_requests(two, BERT) == left
    for machine in (one, two):
        await machine.shared._client.aclose()


async def test_without_redis_limits_are_local_said_once_and_made_up_for(server: ValkeyServer) -> None:
    one, two = (Machine(name, BERT) for name in "ab")
    two.spend(BERT, 4)
    await _exchange(one, two)
    server.stop()
    one.spend(BERT, 3)
    for _ in range(3):
        assert not await one.shared.exchange()
    assert one.shared.away
    assert len(one.said) == 1
    assert "BREAKEVEN_REDIS_URL" in one.said[0]
    assert used_requests(one, BERT) == 7, "what is known of others stays"
    for _ in range(3):
        assert one.windows.refused(0, BERT.limits, time.time()) is None
        one.spend(BERT, 1)
    assert one.windows.refused(0, BERT.limits, time.time()) is not None
    assert not await two.shared.exchange()
    # It comes back empty; both say everything again.
    server.start()
    await _exchange(one, two)
    assert not one.shared.away
    assert len(one.said) == 2
    for machine in (one, two):
        assert used_requests(machine, BERT) == 10
        await machine.shared._client.aclose()


def sums_of(entry: KeyEntry) -> str:
    """The hash of its first limit's counters."""
    return f"breakeven:sums:{entry.limits[0].stamp:016x}"


async def test_what_somebody_else_wrote_is_left_out_hash_by_hash_and_named(server: ValkeyServer) -> None:
    one, two = (Machine(name, BERT, ANNA_REQUESTS) for name in "ab")
    one.spend(BERT, 3)
    two.spend(BERT, 5)
    await _exchange(one, two)
    redis, name = one.shared._client, sums_of(BERT)
    bucket = next(field for field in await redis.hkeys(name) if field.startswith(b"n:"))
    evil: tuple[tuple[str | bytes, str], ...] = (
        (b"evil:" + bucket[2:], "-1000"),
        ("no colon \x1b[2J\n", "1"),
        ("n:-5", "1"),
        (bucket, "-1000"),
        (bucket, "many"),
        (bucket, "9" * 30),
        (bucket, "9" * 16),
        ("id:born", "none"),
        ("id:born", "9" * 19),
    )
    for field, value in evil:
        await redis.hset(name, field, value)
        for _ in range(3):
            await _exchange(one, two)
            assert used_requests(one, BERT) == used_requests(two, BERT) == 8, field
    # All at once told, by name, printable, and once.
    for machine in (one, two):
        assert len(machine.said) == 1
        assert f"{name} holds what no gateway wrote" in machine.said[0]
        assert machine.said[0].isprintable()
    # What is no hash at all is left alone; everything else goes on.
    await redis.delete(name)
    await redis.set(name, "no hash")
    one.spend(BERT, 1)
    one.spend(ANNA_REQUESTS, 4)
    await _exchange(one, two)
    assert used_requests(two, ANNA_REQUESTS) == 4
    assert used_requests(one, BERT) == 9, "what is known of others stays"
    assert await redis.get(name) == b"no hash"
    await redis.delete(name)
    await _exchange(one, two)
    assert used_requests(two, BERT) == 9
    assert not one.shared.away
    for machine in (one, two):
        await machine.shared._client.aclose()


async def test_an_exchange_whose_answer_was_lost_counts_once(server: ValkeyServer) -> None:
    one, two = (Machine(name, BERT) for name in "ab")
    lost = one.shared._client.pipeline

    class Deaf:
        """A pipeline whose answers never come, though Redis does all of it."""

        def __init__(self, **kind: object) -> None:
            self._pipe = lost(**kind)

        def eval(self, *words: object) -> None:
            self._pipe.eval(*words)

        async def execute(self, **how: object) -> None:
            await self._pipe.execute(**how)
            raise TimeoutError

    one.spend(BERT, 2)
    one.shared._client.pipeline = Deaf
    for _ in range(3):
        assert not await one.shared.exchange()
        one.spend(BERT, 1)
    one.shared._client.pipeline = lost
    await _exchange(one, two)
    assert used_requests(one, BERT) == used_requests(two, BERT) == 5
    assert [line.startswith("Redis") for line in one.said] == [True, True]
    for machine in (one, two):
        await machine.shared._client.aclose()


async def test_a_restart_and_another_watching_process_tell_nothing_twice(server: ValkeyServer, tmp_path: Path) -> None:
    one, two = (Machine(name, BERT) for name in "ab")
    one.spend(BERT, 3)
    await _exchange(one, two)
    # The watching process died: another goes on with the same memory.
    again = Machine("a", BERT, block=one.block)
    one.spend(BERT, 1)
    await _exchange(again, two)
    assert used_requests(two, BERT) == used_requests(again, BERT) == 4
    # The gateway ended, after its file was saved for the last time but one: what was told since is others' now.
    save_budgets(tmp_path / "b.json", one.block, [BERT], one.slots, "a")
    one.spend(BERT, 2)
    await _exchange(again, two)
    fresh = SharedBlock(SHAPE)
    load_budgets(tmp_path / "b.json", fresh, [BERT], one.slots)
    after = Machine("a", BERT, block=fresh)
    await _exchange(after, two)
    assert used_requests(two, BERT) == used_requests(after, BERT) == 6
    # And where Redis lost all of it meanwhile, everybody adds what they know.
    await after.shared._client.flushall()
    await _exchange(after, two)
    assert used_requests(two, BERT) >= 4
    for machine in (one, two, again, after):
        await machine.shared._client.aclose()


async def test_a_clock_that_is_set_moves_its_counters_with_it(
    server: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time
    one, two = (Machine(name, BERT) for name in "ab")
    one.spend(BERT, 3)
    await _exchange(one, two)
    for step_s in (-1500.0, 1500.0, 0.0):
        with monkeypatch.context() as at_one:
            at_one.setattr(time, "time", lambda step_s=step_s: real() + step_s)
            await _exchange(one)
        await _exchange(two)
        assert used_requests(one, BERT) == used_requests(two, BERT) == 3
    for machine in (one, two):
        await machine.shared._client.aclose()


async def test_it_runs_beside_and_ends_when_cancelled(server: ValkeyServer) -> None:
    one, two = (Machine(name, BERT) for name in "ab")
    runs = [asyncio.create_task(machine.shared.run()) for machine in (one, two)]
    one.spend(BERT, 9)
    end_s = time.monotonic() + 20
    while used_requests(two, BERT) != 9 and time.monotonic() < end_s:
        await asyncio.sleep(0.02)
    assert used_requests(two, BERT) == 9
    for run in runs:
        run.cancel()
    assert all(isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*runs, return_exceptions=True))
    assert one.said == two.said == []


async def test_an_exchange_that_was_late_is_made_again_soon_then_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("redis", reason="the redis package is not installed (breakeven[scale])")
    monkeypatch.setenv("BREAKEVEN_REDIS_URL", "unix:///nowhere")
    one, slept = Machine("a", BERT), []
    answers = iter([True, False, False, True, True, True])  # the last one once it is cancelled

    async def exchange() -> bool:
        return next(answers)

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 5:
            raise asyncio.CancelledError

    monkeypatch.setattr(one.shared, "exchange", exchange)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await one.shared.run()
    assert slept == [EVERY_S, EVERY_S, AGAIN_S, EVERY_S, EVERY_S]
    assert next(answers, None) is None


async def test_fields_expire_in_redis(server: ValkeyServer) -> None:
    one = Machine("a", BERT)
    one.spend(BERT, 1)
    await _exchange(one)
    name = sums_of(BERT)
    assert 3_600_000 < await one.shared._client.pttl(name) <= 7_200_000
    old = int(time.time() / (3600 / BUCKETS)) - BUCKETS - 1
    await one.shared._client.hset(name, f"n:{old}", "5")
    one.shared.know([BERT], one.slots)
    await _exchange(one)
    assert await one.shared._client.hget(name, f"n:{old}") is None
    assert used_requests(one, BERT) == 1
    await one.shared._client.aclose()


async def test_with_a_user_of_its_own_and_without_rights(server: ValkeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    boss = Machine("boss", BERT).shared._client
    allowed = ["+eval", "+hget", "+hset", "+hdel", "+hlen", "+hgetall", "+del", "+pexpire", "~breakeven:*"]
    allowed += [">p@ss/w:rd", "on"]
    await boss.execute_command("ACL", "SETUSER", "gateway", "reset", "-@all", *allowed)
    await boss.execute_command("ACL", "SETUSER", "looker", "reset", "-@all", "+hget", "~*", ">looks", "on")
    monkeypatch.setenv("BREAKEVEN_REDIS_URL", f"unix://gateway:p%40ss%2Fw%3Ard@{server.socket}")
    one = Machine("a", BERT)
    one.spend(BERT, 2)
    await _exchange(one)
    assert await boss.exists(sums_of(BERT)) == 1
    assert one.said == []
    await one.shared._client.aclose()
    own = f"unix://gateway:p%40ss%2Fw%3Ard@{server.socket}"
    for user, says in (("gateway:wrong", "does not take the user or password"), ("looker:looks", "let its user do")):
        monkeypatch.setenv("BREAKEVEN_REDIS_URL", f"unix://{user}@{server.socket}")
        other = Machine("b", BERT)
        other.spend(BERT, 1)
        for _ in range(2):
            assert not await other.shared.exchange()
        assert len(other.said) == 1
        assert says in other.said[0]
        assert user.split(":")[1] not in other.said[0]
        await other.shared._client.aclose()
    await boss.config_set("maxmemory", "1")
    monkeypatch.setenv("BREAKEVEN_REDIS_URL", own)
    one = Machine("c", BERT)
    one.spend(BERT, 1)
    assert not await one.shared.exchange()
    assert "takes nothing in" in one.said[0]
    await boss.config_set("maxmemory", "0")
    await _exchange(one)
    assert one.said[1].startswith("Redis is back")
    await one.shared._client.aclose()
    await boss.aclose()


async def test_over_tls_its_certificate_must_be_trusted(
    server: ValkeyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    certificate, private = tmp_path / "c.pem", tmp_path / "k.pem"
    words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=r -addext"
    named = ["subjectAltName=IP:127.0.0.1", "-out", str(certificate), "-keyout", str(private)]
    subprocess.run([*words.split(), *named], check=True, capture_output=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server.stop()
    tls = {"tls-port": port, "tls-cert-file": certificate, "tls-key-file": private, "tls-ca-cert-file": certificate}
    tls["tls-auth-clients"] = "no"
    try:
        server.start(*(word for name, value in tls.items() for word in (f"--{name}", str(value))))
    except ValkeyNotStartedError:
        pytest.skip("this build of Valkey has no TLS")
    for query, well in ((f"?ssl_ca_certs={certificate}", True), ("", False)):
        monkeypatch.setenv("BREAKEVEN_REDIS_URL", f"rediss://127.0.0.1:{port}/0{query}")
        one = Machine("a", BERT)
        one.spend(BERT, 1)
        assert await one.shared.exchange() is well
        assert well or "certificate that is not trusted" in one.said[0]
        await one.shared._client.aclose()


def test_a_redis_package_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(UserError, match=r"this machine's own.*the extra `scale`"):
        SharedWindows(Redis(), SharedBlock(SHAPE), "m", print)


def test_an_address_that_is_none_is_told_without_repeating_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("redis", reason="the redis package is not installed (breakeven[scale])")
    monkeypatch.delenv("BREAKEVEN_REDIS_URL", raising=False)
    with pytest.raises(UserError, match="BREAKEVEN_REDIS_URL holds no address"):
        SharedWindows(Redis(), SharedBlock(SHAPE), "m", print)
    monkeypatch.setenv("BREAKEVEN_REDIS_URL", "http://:canary@host")
    with pytest.raises(UserError, match="redis://HOST") as caught:
        SharedWindows(Redis(), SharedBlock(SHAPE), "m", print)
    assert "canary" not in str(caught.value)


def test_rows_are_whole_while_they_are_rewritten() -> None:
    """A reader never takes another limit's row for its own, and a row put anew keeps its stamp throughout."""
    block = SharedBlock(SHAPE)
    put_row(block.windows.cells, 0, 5, 100, {100: 3, 84: 9})
    assert row_sum(block.windows.cells, 0, 5, 100) == 3, "bucket 84 is outside the ring"
    put_row(block.windows.cells, 0, 6, 100, {})
    assert row_sum(block.windows.cells, 0, 5, 100) == 0
    assert row_buckets(block.windows.cells, 0, 5, 100) == {}
