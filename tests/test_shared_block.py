"""The memory that the gateway's processes share."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakeven.errors import UserError
from breakeven.gateway.shared.block import Shape, SharedBlock, Slots
from breakeven.gateway.shared.layout import Count, Known, UnderWay

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


def test_names_keep_their_rows_and_too_many_are_refused() -> None:
    slots = Slots("backends", 3)
    assert slots.name(["a", "b"]) == {"a": 0, "b": 1}
    assert slots.name(["b", "c"]) == {"b": 1, "c": 2}
    with pytest.raises(UserError, match="since the start"):
        slots.name(["b", "c", "d"])
