"""Intervals on ratios of sums, from sums by block of time.

Requests that are near in time share a queue and a batch, so single requests are not independent; blocks long enough
nearly are. Every statistic here is the log of a ratio of sums over blocks. The jackknife turns it into one value a
block whose mean is the statistic and whose spread is its standard error (Efron 1982, The Jackknife, the Bootstrap and
Other Resampling Plans, chapter 3), so that `measure.statistics` gives interval and verdict as for any paired values.
Where neighbouring blocks move together they are made longer, and what correlation is left spreads the values by what it
costs a first-order autoregression.

Shapes: B blocks.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from breakeven.measure import statistics
from breakeven.spec.estimate import Estimate

MIN_BLOCKS = statistics.MIN_PAIRS
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
    while True:
        lengths = [len(blocks) for blocks in over]
        values = log_ratio_values(np.concatenate(over), np.concatenate(under))
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
        return Estimate(float(over_B.sum() / under_B.sum()), None, None, int(np.count_nonzero(under_B)))
    return statistics.ratio(np.exp(values).tolist())


def cut(n_requests: int, runs: int, most: int = BLOCKS) -> int:
    """Into how many blocks to cut each of `runs` runs that have about `n_requests` each: `most` in all."""
    return max(1, min(math.ceil(most / max(1, runs)), n_requests // LEAST_REQUESTS))
