"""Intervals on means of log ratios: the percentile bootstrap, stretched for small samples, and never narrower than
Student's t interval of the same values. Pairs of blocks, which a neighbour may spoil, are `stats.robust`'s.

Intervals on ratios of sums, from sums by block of time. Here every value counts: a block of stalls is part of the
answer.

Requests that are near in time share a queue and a batch, so single requests are not independent; blocks long enough
nearly are. Every statistic here is the log of a ratio of sums over blocks. The jackknife turns it into one value a
block whose mean is the statistic and whose spread is its standard error (Efron 1982, The Jackknife, the Bootstrap and
Other Resampling Plans, chapter 3), so that `ratio` gives interval and verdict as for any paired values.
Where neighbouring blocks move together they are made longer, and what correlation is left spreads the values by what it
costs a first-order autoregression.

Shapes: B blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from breakeven.stats.estimate import Estimate, measured

CONFIDENCE = 0.95
RESAMPLES = 4000
MIN_PAIRS = 3
"""Fewer pairs give a value without an interval."""

# fmt: off
T_975 = {2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228, 12: 2.179,
         15: 2.131, 20: 2.086, 30: 2.042, 60: 2.000}
# fmt: on
"""Student's t, two-sided 95 %, by degrees of freedom."""
# fmt: off
T_995 = {2: 9.925, 3: 5.841, 4: 4.604, 5: 4.032, 6: 3.707, 7: 3.499, 8: 3.355, 9: 3.250, 10: 3.169, 12: 3.055,
         15: 2.947, 20: 2.845, 30: 2.750, 60: 2.660}
# fmt: on
"""The same for 99 %."""
Z_975 = 1.960
AT_99 = 2.576 / Z_975
"""Half of a normal 99 % over half of its 95 %."""


def small_sample_stretch(n: int) -> float:
    """How much wider a percentile interval of n values must be to keep its coverage.

    The percentile bootstrap is narrow by sqrt((n-1)/n) and uses normal where t is due (Hesterberg 2015,
    "What teachers should know about the bootstrap", section 4.3).
    """
    return student(T_975, n) / Z_975 * math.sqrt(n / (n - 1))


def student(table: Mapping[int, float], n: int) -> float:
    """Student's t for a mean of n values; of the next smaller sample in the table, to be on the safe side."""
    return table[max(freedom for freedom in table if freedom <= n - 1)]


def mean_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Mean, low and high of `values` (n >= MIN_PAIRS) by the stretched percentile bootstrap, deterministic."""
    sample = np.asarray(values, dtype=np.float64)
    centre = float(sample.mean())
    draws = np.random.default_rng(seed).integers(0, len(sample), (RESAMPLES, len(sample)))
    means = sample[draws].mean(axis=1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    stretch = small_sample_stretch(len(sample))
    least = student(T_975, len(sample)) * float(sample.std(ddof=1)) / math.sqrt(len(sample))
    below, above = stretch * (centre - float(low)), stretch * (float(high) - centre)
    return centre, centre - max(below, least), centre + max(above, least)


def ratio(a_over_b: Sequence[float], seed: int = 0, floor: float = 0.0) -> Estimate:
    """Estimate of a ratio from paired ratios (each > 0).

    `floor` is half of the 95 % of what two copies of one candidate differ by on a quiet machine; it is added to the
    half-width in quadrature, because blocks of one pair of processes cannot see it.
    """
    logs = [math.log(value) for value in a_over_b]
    if len(logs) < MIN_PAIRS:
        return measured(math.exp(sum(logs) / len(logs)), None, None, len(logs))
    centre, low, high = mean_interval(logs, seed)
    return measured(
        math.exp(centre),
        math.exp(centre - math.hypot(centre - low, floor)),
        math.exp(centre + math.hypot(high - centre, floor)),
        len(logs),
    )


def relative_half_width(estimate: Estimate) -> float:
    """Half the interval's width over the value; infinite without an interval."""
    if estimate.low is None or estimate.high is None:
        return math.inf
    return (estimate.high - estimate.low) / 2 / estimate.value


def differs(a_over_b: Sequence[float], floor: float = 0.0) -> bool:
    """True when paired ratios differ from 1 surely enough to name a winner: at 99 %, by Student's t on the logs.

    Stricter than the interval that is shown. A study looks at several loads, and two processes that run one file can
    differ by more than their own blocks let see: at 95 %, 4 of 40 comparisons of a model with itself named a winner.
    """
    logs = np.log(np.asarray(a_over_b, dtype=np.float64))
    if len(logs) < MIN_PAIRS:
        return False
    half_width = student(T_995, len(logs)) * float(logs.std(ddof=1)) / math.sqrt(len(logs))
    return abs(float(logs.mean())) > math.hypot(half_width, AT_99 * floor)


MIN_BLOCKS = MIN_PAIRS
BLOCKS = 20
"""Blocks of time a run is cut into, for intervals and for the steady state, where it has requests enough."""
LEAST_REQUESTS = 5
"""A block with fewer requests says little of its own."""
TOGETHER = 0.25
"""Correlation of neighbouring blocks above which they are too short to count as independent."""
LEAST_BLOCKS = 5
_MOST_CORRELATION = 0.7

Floats = NDArray[np.float64]


def log_ratio_values(over_B: Floats, under_B: Floats) -> Floats | None:
    """One value a block, with mean log(sum over / sum under); None with a total, or a total without one block, of 0.

    Blocks in which both are 0 say nothing and are left out.
    """
    there = (over_B != 0) | (under_B != 0)
    over_B, under_B = over_B[there], under_B[there]
    if not len(over_B) or over_B.sum() <= 0 or under_B.sum() <= 0:
        return None
    whole = math.log(over_B.sum() / under_B.sum())
    n = len(over_B)
    if n == 1:
        return np.array([whole])
    over, under = over_B.sum() - over_B, under_B.sum() - under_B
    # Rounding can leave a shadow of a difference where nothing is left.
    if np.any(over <= 1e-12 * over_B.sum()) or np.any(under <= 1e-12 * under_B.sum()):
        return None
    values = n * whole - (n - 1) * np.log(over / under)
    return np.asarray(whole + (values - values.mean()), dtype=np.float64)


def quotient_values(over_B: Floats, under_B: Floats) -> Floats:
    """One value a block, with mean sum over / sum under, which may be of any sign; each `under` is positive."""
    whole = float(over_B.sum() / under_B.sum())
    n = len(over_B)
    if n == 1:
        return np.array([whole])
    values = n * whole - (n - 1) * (over_B.sum() - over_B) / (under_B.sum() - under_B)
    return np.asarray(whole + (values - values.mean()), dtype=np.float64)


def spread(values_B: Floats, correlation: float) -> Floats:
    """The values moved away from their mean by the factor sqrt((1 + r) / (1 - r)) for a correlation r > 0.

    That is what the standard error of a mean grows by when neighbours follow each other with correlation r.
    """
    r = min(max(correlation, 0.0), _MOST_CORRELATION)
    mean = values_B.mean()
    return np.asarray(mean + (values_B - mean) * math.sqrt((1 + r) / (1 - r)), dtype=np.float64)


def correlation(series: list[Floats]) -> float:
    """Correlation of neighbouring blocks, over several runs of blocks in their order; 0 when there is none to tell.

    Corrected for its bias of about -1 / n (Kendall 1954), without which short runs hide it.
    """
    n = sum(len(values) for values in series)
    neighbours = sum(max(0, len(values) - 1) for values in series)
    if n < 2 * MIN_BLOCKS or neighbours < MIN_BLOCKS:
        return 0.0
    mean = sum(float(values.sum()) for values in series) / n
    squares = sum(float(((values - mean) ** 2).sum()) for values in series)
    if squares <= 0:
        return 0.0
    products = sum(float(((values[1:] - mean) * (values[:-1] - mean)).sum()) for values in series)
    return products / neighbours / (squares / n) + 1 / n


def values_of_runs(over: list[Floats], under: list[Floats]) -> Floats | None:
    """`log_ratio_values` of blocks in several runs, made safe for blocks that follow each other.

    While neighbours move together, two become one block, down to `LEAST_BLOCKS`; what correlation is left spreads the
    values.
    """
    return _values_of_runs(over, under, log_ratio_values)


def _values_of_runs(
    over: list[Floats], under: list[Floats], values_of: Callable[[Floats, Floats], Floats | None]
) -> Floats | None:
    while True:
        lengths = [len(blocks) for blocks in over]
        values = values_of(np.concatenate(over), np.concatenate(under))
        if values is None or len(values) != sum(lengths):
            return values
        follow = correlation(np.split(values, np.cumsum(lengths)[:-1]))
        if follow <= TOGETHER or sum(length // 2 for length in lengths) < LEAST_BLOCKS:
            return spread(values, follow)
        over, under = [_merged(blocks) for blocks in over], [_merged(blocks) for blocks in under]


def _merged(values_B: Floats) -> Floats:
    """Every two neighbours added up; an odd one at the end joins the last two."""
    pairs = max(1, len(values_B) // 2)
    return np.bincount(np.minimum(np.arange(len(values_B)) // 2, pairs - 1), weights=values_B).astype(np.float64)


def ratio_estimate(over: list[Floats], under: list[Floats]) -> Estimate | None:
    """sum over / sum under with its 95 % interval, from the blocks of each run.

    Without an interval for fewer than `MIN_BLOCKS` blocks; None where the ratio is not a positive number.
    """
    over_B, under_B = np.concatenate(over), np.concatenate(under)
    if over_B.sum() <= 0 or under_B.sum() <= 0:
        return None
    values = values_of_runs(over, under)
    if values is None:
        return measured(float(over_B.sum() / under_B.sum()), None, None, int(np.count_nonzero(under_B)))
    return ratio(np.exp(values).tolist())


def quotient_estimate(over: list[Floats], under: list[Floats]) -> Estimate:
    """sum over / sum under, of any sign, with its 95 % interval from the blocks of each run; every `under` is positive.

    Without an interval for fewer than `MIN_BLOCKS` blocks.
    """
    values = _values_of_runs(over, under, quotient_values)
    assert values is not None
    if len(values) < MIN_PAIRS:
        return measured(float(values.mean()), None, None, len(values))
    return measured(*mean_interval(values.tolist()), len(values))


def cut(n_requests: int, runs: int, most: int = BLOCKS) -> int:
    """Into how many blocks to cut each of `runs` runs that have about `n_requests` each: `most` in all."""
    return max(1, min(math.ceil(most / max(1, runs)), n_requests // LEAST_REQUESTS))
