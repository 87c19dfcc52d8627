"""A percentile is given only where the sample supports it, and its interval holds what it promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakeven.stats.percentiles import (
    PERCENTILES,
    minimum_n,
    nearest_rank,
    percentile_of_blocks,
    percentiles,
    percentiles_of_ranks,
    rank_interval,
    wilson,
)


def test_the_smallest_samples_that_support_each_percentile() -> None:
    assert [minimum_n(p) for p in PERCENTILES] == [11, 64, 130, 662, 6636]


@pytest.mark.parametrize("p", [50.0, 90.0, 95.0, 99.0])
def test_the_minimum_is_where_two_values_beyond_are_nearly_sure(p: float) -> None:
    rng = np.random.default_rng(int(p))
    n = minimum_n(p)
    beyond = (rng.random((20_000, n)) > p / 100).sum(axis=1)
    assert np.mean(beyond >= 2) >= 0.988
    assert np.mean((rng.random((20_000, n - 3)) > p / 100).sum(axis=1) >= 2) < 0.992


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=400), st.integers(0, 50))
def test_a_percentile_is_a_value_with_enough_at_or_below_it(values: list[float], failed: int) -> None:
    total = len(values) + failed
    for found in percentiles(np.array(values), failed):
        if total < minimum_n(found.p):
            assert (found.value, found.why) == (None, "n too small")
        elif found.value is None:
            assert found.why == f"{failed} of {total} requests failed"
            assert len(values) < found.p / 100 * total
        else:
            below = sum(v < found.value for v in values)
            at = sum(v <= found.value for v in values)
            assert at >= found.p / 100 * total - 1e-6
            assert below < found.p / 100 * total
            assert found.low is None or found.low <= found.value
            assert found.high is None or found.high >= found.value


def test_failures_are_later_than_everything() -> None:
    found = {x.p: x for x in percentiles(np.arange(1.0, 92.0), failed=9)}
    assert found[50].value == 50
    assert found[90].value == 90
    assert found[90].high is None  # beyond it lies a failure
    worse = {x.p: x for x in percentiles(np.arange(1.0, 189.0), failed=12)}
    assert worse[90].value == 180
    assert (worse[95].value, worse[95].why) == (None, "12 of 200 requests failed")
    assert worse[95].low is not None
    assert (worse[99].value, worse[99].why) == (None, "n too small")


def test_nothing_measured_and_all_failed() -> None:
    assert {x.why for x in percentiles(np.zeros(0))} == {"nothing was measured"}
    assert percentiles(np.zeros(0), failed=20)[0].why == "20 of 20 requests failed"


def test_ranks_can_come_from_a_histogram() -> None:
    values = np.random.default_rng(0).random(200)
    ordered = np.sort(values)
    assert percentiles(values) == percentiles_of_ranks(lambda k: float(ordered[k - 1]), 200)


def test_nearest_rank_is_not_fooled_by_binary_fractions() -> None:
    assert nearest_rank(99.9, 1000) == 999
    assert nearest_rank(95, 20) == 19
    assert nearest_rank(50, 1) == 1


@pytest.mark.parametrize(("p", "n"), [(50.0, 20), (50.0, 500), (90.0, 64), (95.0, 130), (99.0, 662), (99.9, 6636)])
def test_the_interval_between_ranks_holds_the_truth(p: float, n: int) -> None:
    low, high = rank_interval(p, n)
    k = [math.comb(n, i) * (p / 100) ** i * (1 - p / 100) ** (n - i) for i in range(n + 1)] if n <= 500 else None
    if k is not None:
        assert sum(k[:low]) <= 0.025 < sum(k[: low + 1])
        assert sum(k[high:]) <= 0.025 < sum(k[high - 1 :])
    counts = np.random.default_rng(n).binomial(n, p / 100, 40_000)
    # The truth lies at or above the low-th value and below the high-th when this many are at or below it.
    assert np.mean((counts >= low) & (counts < high)) >= 0.945


def test_the_interval_of_a_million() -> None:
    low, high = rank_interval(99.0, 1_000_000)
    assert low == pytest.approx(990_000 - 1.96 * math.sqrt(9900), abs=3)
    assert high == pytest.approx(990_000 + 1.96 * math.sqrt(9900), abs=3)


def test_wilson_against_published_values() -> None:
    # Newcombe 1998, Statistics in Medicine 17:857, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for hits, n, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        share = wilson(hits, n)
        assert (round(share.low, 4), round(share.high, 4)) == (low, high)


@given(st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_symmetric_and_in_bounds(case: tuple[int, int]) -> None:
    hits, n = case
    share, other = wilson(hits, n), wilson(n - hits, n)
    assert 0 <= share.low <= share.share <= share.high <= 1
    assert math.isclose(share.low, 1 - other.high, abs_tol=1e-12)


@pytest.mark.parametrize(("hits", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_no_share_of_nothing(hits: int, n: int) -> None:
    with pytest.raises(ValueError, match="not a share"):
        wilson(hits, n)


def test_the_interval_of_a_percentile_from_a_few_blocks_holds_the_truth() -> None:
    """The p99 of lognormal values; resampling three or five blocks without more holds it in 3 of 4 samples."""
    rng, truth = np.random.default_rng(5), math.exp(2.3263478740)
    for blocks in (3, 5):
        held = 0
        for _ in range(100):
            found = percentile_of_blocks([np.exp(rng.normal(size=400)) for _ in range(blocks)], 99.0)
            assert found is not None
            held += found.least <= truth <= found.most
        assert held >= 92


def test_blocks_without_spread_have_no_negative_percentile() -> None:
    found = percentile_of_blocks([np.zeros(300), np.zeros(300), np.full(300, 1e-3)], 99.0)
    assert found is not None
    assert (found.value, found.low, found.high) == (1e-3, 0.0, 1e-3)
