"""What fleets carry: the form between simulated sizes, and its inverse."""

from math import inf

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from breakeven.forecast.fleet import SIZES, FleetCapacity, carried, needed
from breakeven.stats.estimate import exactly

SHARES = st.lists(st.one_of(st.just(0.0), st.floats(0.01, 1.0)), min_size=1, max_size=len(SIZES))


def capacities(shares: list[float]) -> tuple[tuple[int, ...], list[float], float]:
    """Sizes, capacities whose share a replica is `shares`, never falling, and a saturation above them."""
    each = np.maximum.accumulate(shares)
    sizes = SIZES[: len(shares)]
    return sizes, (each * sizes).tolist(), float(each[-1]) * 1.2 + 1e-3


@given(SHARES)
def test_a_fleet_carries_at_least_what_its_parts_do(shares: list[float]) -> None:
    """c(n + m) >= c(n) + c(m), and more replicas never carry less."""
    n = np.arange(1, 41)
    found = carried(*capacities(shares), n)
    assert np.all(np.diff(found) >= -1e-9)
    for a in range(1, 20):
        assert np.all(found[a : a + 20] >= found[a - 1] + found[:20] - 1e-9)


@given(SHARES, st.floats(0.001, 50.0))
def test_the_fewest_that_carry_a_load(shares: list[float], rate: float) -> None:
    """`needed` is the smallest n whose `carried` reaches the rate."""
    sizes, per_s, top = capacities(shares)
    n = float(needed(sizes, per_s, top, rate))
    if n == inf:
        assert max(per_s) == 0
        return
    assert carried(sizes, per_s, top, n) >= rate * (1 - 1e-5)
    assert n == 1 or carried(sizes, per_s, top, n - 1) < rate * (1 + 1e-5)


def test_one_size_alone_is_proportion() -> None:
    """Of a measurement of one replica nothing else is known."""
    fleet = FleetCapacity((1,), (exactly(2.0),))
    assert [fleet.replicas(rate) for rate in (0.1, 2.0, 2.1, 20.0, 21.0)] == [1, 1, 2, 10, 11]


def test_pooling_needs_fewer_than_proportion() -> None:
    """Where one alone carries nearly nothing, four carry much: 182 machines are not what 182 times nothing needs."""
    fleet = FleetCapacity((1, 2, 4), (exactly(0.001), exactly(0.5), exactly(2.0)), exactly(1.0))
    assert fleet.replicas(0.4) == 2
    assert fleet.replicas(3.0) < 3.0 / 0.001
    assert fleet.replicas(3.0) == 6


def test_draws_come_before_loads() -> None:
    """One capacity curve a draw, all loads at once."""
    found = needed((1, 2), np.array([[1.0, 2.5], [0.0, 1.0]]), np.array([2.0, 2.0]), np.array([1.0, 5.0]))
    assert found.tolist() == [[1.0, 4.0], [2.0, 6.0]]
