"""Where a run settled: early when nothing changes, after the ramp when there is one, nowhere when the queue grows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from breakeven.stats.steady import LEAST_BLOCKS, mser, settled, trend

B = 20
seeds = st.integers(0, 2**32 - 1)


def noise(seed: int, spread: float = 0.05, n: int = B) -> np.ndarray:
    return np.exp(np.random.default_rng(seed).normal(0, spread, n))


def test_noise_alone_is_nearly_always_found_settled() -> None:
    found = [settled(0.02 * noise(i), 8 * noise(10_000 + i, 0.2)) for i in range(1000)]
    assert sum(x.start is None for x in found) <= 50
    starts = [x.start for x in found if x.start is not None]
    assert np.mean(np.array(starts) == 0) > 0.8


@given(seeds, st.floats(0.5, 50))
@example(seed=102093, slope=1.0)
def test_a_queue_that_grows_to_the_end_never_settled(seed: int, slope: float) -> None:
    found = settled(0.02 * noise(seed), slope * np.arange(1, B + 1) * noise(seed + 1))
    assert found.start is None
    assert "requests in flight" in found.reason


@given(seeds, st.integers(2, 7), st.floats(2, 10))
def test_a_ramp_is_dropped_and_little_more(seed: int, ramp: int, height: float) -> None:
    level = np.minimum(1.0, np.arange(B) / ramp) * height + 1
    found = settled(0.02 * level * noise(seed, 0.02), level * noise(seed + 1, 0.02))
    if found.start is not None:  # noise after the ramp may, rarely, look like a drift
        assert ramp - 1 <= found.start < B // 2
    else:
        assert "middle" in found.reason or "grew" in found.reason


def test_a_ramp_is_found() -> None:
    level = np.minimum(1.0, np.arange(B) / 4) + 1
    found = [settled(0.02 * level * noise(i, 0.02), level * noise(1000 + i, 0.02)).start for i in range(300)]
    assert sum(start is None for start in found) <= 15
    assert np.median([start for start in found if start is not None]) in (3, 4, 5)


def test_a_ramp_over_most_of_the_run_leaves_nothing() -> None:
    level = np.minimum(1.0, np.arange(B) / 15) + 0.2
    assert all(settled(0.02 * noise(i, 0.02), level * noise(100 + i, 0.02)).start is None for i in range(100))


def test_constants_are_settled_from_the_start() -> None:
    assert settled(np.full(B, 0.1), np.full(B, 8.0)).start == 0
    assert settled(np.full(B, np.nan), np.full(B, 8.0)).start == 0
    assert settled(np.full(B, 0.1), np.zeros(B)).start == 0


def test_a_block_without_an_answer_says_nothing() -> None:
    tpot = 0.1 * noise(3, 0.01)
    tpot[[4, 11]] = np.nan
    assert settled(tpot, np.full(B, 2.0)).start is not None


def test_a_delay_that_drifts_is_not_settled() -> None:
    drifting = np.linspace(1.0, 2.0, B) * noise(1, 0.01)
    found = settled(drifting, np.full(B, 8.0))
    assert found.start is None
    assert "TPOT" in found.reason


@given(st.integers(0, LEAST_BLOCKS - 1))
def test_too_little_to_tell(n: int) -> None:
    found = settled(np.ones(n), np.ones(n))
    assert found.start is None
    assert "too few requests" in found.reason


@given(st.lists(st.floats(0, 1e9), min_size=2, max_size=40), st.floats(0.01, 100))
def test_mser_keeps_half_and_does_not_mind_units(values: list[float], scale: float) -> None:
    series = np.array(values)
    assert 0 <= mser(series) <= len(series) // 2
    if series.std() > 1e-3 * series.max():
        assert mser(series) == mser(series * scale)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_trend_is_the_change_over_the_mean(sign: float) -> None:
    line = 10 + sign * np.linspace(-2, 2, 12)
    assert trend(line) == pytest.approx(sign * 0.4)
    assert trend(np.ones(12)) == 0
    assert trend(np.arange(3.0)) == 0


@pytest.mark.parametrize("at", range(1, 20))
@pytest.mark.parametrize("blocks", [1, 2])
def test_a_stall_is_no_ramp_wherever_it_falls(at: int, blocks: int) -> None:
    """A server that stops for a moment belongs in the numbers, unless the run begins with it."""
    for seed in range(10):
        noise = np.random.default_rng([seed, at])
        tpot, in_flight = 0.01 * noise.lognormal(0, 0.05, 20), 4.0 * noise.lognormal(0, 0.1, 20)
        in_flight[at : at + blocks] += 60.0
        tpot[at : at + blocks] *= 8
        assert settled(tpot, in_flight).start == 0
