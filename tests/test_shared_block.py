"""The memory that the gateway's processes share."""

from __future__ import annotations

import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakeven.errors import UserError
from breakeven.gateway.shared.block import Shape, SharedBlock, Slots
from breakeven.gateway.shared.layout import Count, Known, UnderWay, Used

SHAPE = Shape(workers=3, backends=4, keys=2, models=2, experiments=1)


def test_what_a_child_writes_its_parent_reads() -> None:
    block = SharedBlock(SHAPE)
    child = os.fork()
    if child == 0:
        block.load.mine(1)[2 * block.load.columns + UnderWay.IN_FLIGHT] = 7
        block.known.put(0, 3, Known.RUNNING, 2.5)
        os._exit(0)
    os.waitpid(child, 0)
    assert block.load.total(2, UnderWay.IN_FLIGHT) == 7
    assert block.known.get(0, 3, Known.RUNNING) == 2.5
    assert block.load.total(1, UnderWay.IN_FLIGHT) == 0


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 1000)), max_size=40))
def test_totals_are_sums_over_workers(writes: list[tuple[int, int, int]]) -> None:
    block = SharedBlock(SHAPE)
    for worker, backend, value in writes:
        block.count.mine(worker)[backend * block.count.columns + Count.OK] += value
    for backend in range(4):
        assert block.count.totals(backend)[Count.OK] == sum(v for _, b, v in writes if b == backend)


def test_a_dead_worker_counts_on_but_has_nothing_under_way() -> None:
    block = SharedBlock(SHAPE)
    block.count.put(1, 0, Count.REQUESTS, 5)
    block.load.put(1, 0, UnderWay.IN_FLIGHT, 2)
    block.windows.put(1, 0, 1, 9)
    block.retire(1)
    assert block.count.total(0, Count.REQUESTS) == 5
    assert block.count.get(1, 0, Count.REQUESTS) == 0
    assert block.load.total(0, UnderWay.IN_FLIGHT) == 0


def test_names_keep_their_rows_and_those_of_names_that_went_are_used_again_as_new() -> None:
    cleared: list[int] = []
    slots = Slots("backends", 3, cleared.append)
    assert slots.name(["a", "b"]) == {"a": 0, "b": 1}
    assert slots.name(["b", "c"]) == {"b": 1, "c": 2}
    assert slots.name(["a", "c"]) == {"a": 0, "c": 2}, "who comes back meanwhile has its row"
    assert cleared == []
    assert slots.name(["c", "d"]) == {"c": 2, "d": 1}, "the longest gone goes first"
    assert cleared == [1]
    with pytest.raises(UserError, match="3 backends are new and there is room for 2 until"):
        slots.name(["e", "f", "g"], in_use=["c"])
    with pytest.raises(UserError, match="there is room for 3 backends; restart"):
        slots.name(["e", "f", "g", "h"])
    assert slots.name(["a", "c", "d"]) == {"a": 0, "c": 2, "d": 1}, "and nothing was changed"
    for day in range(100):
        slots.name([f"key of day {day}"], in_use=[f"key of day {day - 1}"])


def test_a_row_that_is_used_again_begins_at_nothing() -> None:
    block = SharedBlock(SHAPE)
    for worker in range(3):
        for grid in (block.load, block.count, block.held):
            grid.put(worker, 1, 0, 5)
            grid.put(worker, 2, 0, 7)
        block.key_usage.put(worker, 1, Used.REQUESTS, 5)
    for entity in range(16):
        block.windows.put(3, entity, 0, 5)
        block.told.put(0, entity, 0, 5)
    block.known.put(0, 1, Known.TTFT_LOG, 0.5)
    block.clear_backend(1)
    block.clear_key(1)
    for grid in (block.load, block.count, block.held):
        assert grid.totals(1) == [0] * grid.columns
        assert grid.total(2, 0) == 21
    assert block.known.get(0, 1, Known.TTFT_LOG) == block.key_usage.total(1, Used.REQUESTS) == 0
    for grid in (block.windows, block.told):
        assert [grid.total(entity, 0) for entity in range(16)] == [5] * 8 + [0] * 8


def test_setting_the_clock_does_not_move_the_block_s(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = time.time()
    monkeypatch.setattr(time, "time", lambda: now_s)
    block = SharedBlock(SHAPE)
    assert block.now_s() == pytest.approx(now_s, abs=60.0)
    monkeypatch.setattr(time, "time", lambda: now_s + 86400.0)
    before_s = block.now_s()
    assert now_s <= before_s <= block.now_s() < now_s + 60.0
