"""Percentiles and shares that say how far they can be believed, from counts alone: no shape of distribution is assumed.

A percentile is the smallest value that at least p % of the values do not exceed (nearest rank). Its 95 % interval runs
between two order statistics, by the binomial distribution (Conover, Practical Nonparametric Statistics, section 3.2).
The values are taken as independent; waiting times behind one queue are not quite, which makes the interval narrow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import msgspec
import numpy as np
from numpy.typing import NDArray

from breakeven.stats.estimate import Estimate, measured
from breakeven.stats.intervals import small_sample_stretch

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
SURE = 0.99
"""How likely at least `BEYOND` values must lie above a percentile before it is given."""
BEYOND = 2
_TAIL = 0.025
_LEAST_BLOCKS = 3
_Z = 1.959964


class Percentile(msgspec.Struct, frozen=True, kw_only=True):
    """One percentile with its 95 % interval from order statistics. `value` None: `why` says "n too small" or so."""

    p: float
    """50, 90, 95, 99 or 99.9."""
    value: float | None
    low: float | None = None
    high: float | None = None
    why: str | None = None


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """`hits` of `n`, with the Wilson 95 % interval of the share."""

    share: float
    low: float
    high: float
    hits: int
    n: int


@cache
def minimum_n(p: float) -> int:
    """Smallest sample that supports percentile `p`: with 99 % probability two values of it or more lie above.

    11 for p50, 64 for p90, 130 for p95, 662 for p99, 6,636 for p99.9. One value above could be a single accident.
    """
    above = 1 - p / 100
    n = BEYOND
    while (1 - above) ** n + n * above * (1 - above) ** (n - 1) > 1 - SURE:
        n += 1
    return n


def percentiles(values_N: NDArray[np.float64], failed: int = 0) -> list[Percentile]:
    """Percentiles of `values_N` and of `failed` more that never came, each later than every value."""
    ordered = np.sort(values_N)
    return percentiles_of_ranks(lambda rank: float(ordered[rank - 1]), len(ordered), failed)


def percentiles_of_ranks(value: Callable[[int], float], n: int, failed: int = 0) -> list[Percentile]:
    """The same where `value(k)` gives the k-th smallest of `n` values, k from 1."""
    return list(_percentiles(value, n, failed))


def _percentiles(value: Callable[[int], float], n: int, failed: int) -> Iterator[Percentile]:
    total = n + failed
    for p in PERCENTILES:
        if total == 0:
            yield Percentile(p=p, value=None, why="nothing was measured")
            continue
        if total < minimum_n(p):
            yield Percentile(p=p, value=None, why="n too small")
            continue
        rank = nearest_rank(p, total)
        low, high = rank_interval(p, total)
        if rank > n:
            yield Percentile(
                p=p,
                value=None,
                low=value(low) if 1 <= low <= n else None,
                why=f"{failed} of {total} requests failed",
            )
            continue
        yield Percentile(
            p=p,
            value=value(rank),
            low=value(low) if low >= 1 else None,
            high=value(high) if high <= n else None,
        )


_RESAMPLES = 500


def percentile_of_blocks(values: Sequence[NDArray[np.floating]], p: float, seed: int = 0) -> Estimate | None:
    """Percentile `p` of all values, which come in blocks whose own values move together: whole blocks are resampled.

    Resamples of few blocks are too much alike, so the interval is stretched as a mean's is
    (`intervals.small_sample_stretch`); it is never narrower than that of as many independent values, nor does it reach
    below the least one. Of 3 to 40 blocks of lognormal values it holds a p99 in 97 to 99 of 100 samples where blocks
    are alike, in 88 to 94 where they differ by a third (unstretched 72 to 93 and 68 to 93). None where they are too
    few; without an interval for fewer than three blocks.
    """
    sizes = [len(block) for block in values]
    if sum(sizes) < minimum_n(p):
        return None
    pooled = np.concatenate(values).astype(np.float64)
    order = np.argsort(pooled, kind="stable")
    ordered, block_of = pooled[order], np.repeat(np.arange(len(sizes)), sizes)[order]
    value = float(ordered[nearest_rank(p, len(ordered)) - 1])
    if len(sizes) < _LEAST_BLOCKS:
        return measured(value, None, None, len(sizes))
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(_RESAMPLES):
        times = np.bincount(rng.integers(0, len(sizes), len(sizes)), minlength=len(sizes))
        ranks = np.cumsum(times[block_of])
        found.append(ordered[np.searchsorted(ranks, nearest_rank(p, int(ranks[-1])))])
    stretch = small_sample_stretch(len(sizes))
    low, high = (value + stretch * (float(end) - value) for end in np.quantile(found, [_TAIL, 1 - _TAIL]))
    first, last = rank_interval(p, len(ordered))
    low = min(low, value, float(ordered[max(first, 1) - 1]))
    high = max(high, value, float(ordered[min(last, len(ordered)) - 1]))
    return measured(value, max(low, float(ordered[0])), high, len(sizes))


def nearest_rank(p: float, n: int) -> int:
    """Rank of percentile `p` among `n` ordered values, from 1."""
    # 99.9 % of 1,000 is 999 and not, by a rounding of binary fractions, 1,000.
    return max(1, math.ceil(round(p * n / 100, 6)))


@cache
def rank_interval(p: float, n: int) -> tuple[int, int]:
    """Ranks between which the true percentile lies with at least 95 % probability; 0 and n + 1 mean unbounded.

    At most 2.5 % lie beyond each side: the number of values at or below the percentile is Binomial(n, p / 100).
    """
    share = p / 100
    middle = math.floor((n + 1) * share)
    spread = math.ceil(12 * math.sqrt(n * share * (1 - share))) + 12
    first, last = max(0, middle - spread), min(n, middle + spread)
    k = np.arange(first, last + 1)
    log_odds = math.log(share / (1 - share))
    # From one term to the next: P(k + 1) / P(k) = (n - k) / (k + 1) * odds.
    steps = np.log((n - k[:-1]) / (k[:-1] + 1)) + log_odds
    start = (
        math.lgamma(n + 1)
        - math.lgamma(first + 1)
        - math.lgamma(n - first + 1)
        + first * math.log(share)
        + (n - first) * math.log(1 - share)
    )
    below = np.cumsum(np.exp(start + np.concatenate(([0.0], np.cumsum(steps)))))
    # low: the largest rank with P(count < rank) <= 2.5 %; high: the smallest with P(count >= rank) <= 2.5 %.
    low = first + int(np.searchsorted(below, _TAIL, side="right"))
    high = first + int(np.searchsorted(below, 1 - _TAIL, side="left")) + 1
    return low, high


def wilson(hits: int, n: int) -> Share:
    """A share with its Wilson 95 % interval (Wilson 1927), which holds for small n and near 0 and 1.

    Raises ValueError for n below 1 or hits outside 0..n.
    """
    if n < 1 or not 0 <= hits <= n:
        raise ValueError(f"{hits} of {n} is not a share")
    share, z2 = hits / n, _Z * _Z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low = 0.0 if hits == 0 else max(0.0, centre - half)
    high = 1.0 if hits == n else min(1.0, centre + half)
    return Share(share=share, low=low, high=high, hits=hits, n=n)
