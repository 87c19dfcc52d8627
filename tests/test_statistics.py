"""Intervals must hold what they promise, at the sample sizes a three-minute run gives."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakeven.stats import intervals
from breakeven.stats.estimate import Estimate, around, bracketed, exactly, measured


@pytest.mark.parametrize("n", [4, 6, 10, 20])
def test_interval_covers_the_truth_95_percent_of_the_time(n: int) -> None:
    rng = np.random.default_rng(n)
    runs = 600
    hits = 0
    for i in range(runs):
        _, low, high = intervals.mean_interval(rng.normal(0.1, 0.02, n).tolist(), seed=i)
        hits += low <= 0.1 <= high
    assert 0.93 <= hits / runs <= 0.985


@given(st.lists(st.floats(0.5, 2.0), min_size=3, max_size=20))
def test_ratio_of_swapped_candidates_is_the_reciprocal(ratios: list[float]) -> None:
    forward = intervals.ratio(ratios, seed=1)
    backward = intervals.ratio([1 / r for r in ratios], seed=1)
    assert math.isclose(forward.value, 1 / backward.value, rel_tol=1e-9)
    assert forward.low is not None
    assert forward.high is not None
    assert forward.low <= forward.value <= forward.high


@given(st.lists(st.floats(0.5, 2.0), min_size=3, max_size=20), st.floats(0.001, 0.1))
def test_a_floor_only_widens(ratios: list[float], floor: float) -> None:
    plain, widened = intervals.ratio(ratios), intervals.ratio(ratios, floor=floor)
    assert widened.value == plain.value
    assert intervals.relative_half_width(widened) >= intervals.relative_half_width(plain)


@pytest.mark.parametrize("n", [4, 8])
def test_a_winner_is_named_by_chance_one_time_in_a_hundred(n: int) -> None:
    rng = np.random.default_rng(n)
    wrong = sum(intervals.differs(np.exp(rng.normal(0, 0.03, n)).tolist()) for _ in range(2000))
    assert wrong <= 36  # 20 expected; more than 36 happens once in 3,000 times


def test_a_difference_far_beyond_the_spread_is_named() -> None:
    assert intervals.differs([1.10, 1.12, 1.09, 1.11])
    assert not intervals.differs([1.10, 0.95, 1.2, 1.02])
    assert not intervals.differs([1.001, 1.0011, 1.0009], floor=0.005)


def test_too_few_pairs_give_no_interval() -> None:
    estimate = intervals.ratio([1.1, 1.2])
    assert (estimate.low, estimate.high, estimate.n) == (None, None, 2)
    assert not intervals.differs([1.1, 1.2])
    assert intervals.relative_half_width(estimate) == math.inf


def test_same_sample_and_seed_give_the_same_interval() -> None:
    assert intervals.ratio([1.0, 1.1, 0.9, 1.05]) == intervals.ratio([1.0, 1.1, 0.9, 1.05])


def test_an_estimate_prints_what_its_result_does_not_say() -> None:
    predicted, seen = Estimate(2.0, 1.0, 4.0), measured(2.0, None, None, 3)
    assert msgspec.json.encode(predicted) == b'{"value":2.0,"low":1.0,"high":4.0}'
    assert msgspec.json.encode(seen) == b'{"value":2.0,"low":null,"high":null,"n":3,"provenance":"measured"}'
    for each in (predicted, seen, measured(2.0, 1.0, 4.0, 3)):
        assert msgspec.json.decode(msgspec.json.encode(each), type=Estimate) == each
    assert seen.plain() == Estimate(2.0, None, None)


def test_an_estimate_turned_over_scaled_or_widened_stays_one() -> None:
    seen = measured(2.0, 1.0, 4.0, 3)
    assert seen.inverse() == measured(0.5, 0.25, 1.0, 3)
    assert measured(2.0, 0.0, 4.0, 3).inverse().high is None
    assert seen.scaled(2.0) == measured(4.0, 2.0, 8.0, 3)
    assert bracketed(2.0, 3.0, 3.0) == Estimate(2.0, 2.0, 3.0)
    assert (seen.least, seen.most) == (1.0, 4.0)
    assert (measured(2.0, None, None, 1).least, measured(2.0, None, None, 1).most) == (2.0, 2.0)
    assert around([2.0, 3.0, 1.0]) == Estimate(2.0, 1.0, 3.0)
    assert exactly(2.0) == Estimate(2.0, 2.0, 2.0)
