"""Intervals on ratios of sums, from sums by block of time.

Requests that are near in time share a queue and a batch, so single requests are not independent; blocks long enough
nearly are. Every statistic here is the log of a ratio of sums over blocks. The jackknife turns it into one value a
block whose mean is the statistic and whose spread is its standard error (Efron 1982, The Jackknife, the Bootstrap and
Other Resampling Plans, chapter 3), so that `measure.statistics` gives interval and verdict as for any paired values.
Where neighbouring blocks still move together, the values are spread by what that costs a first-order autoregression.

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


def ratio_estimate(over_B: Floats, under_B: Floats, lengths: list[int] | None = None) -> Estimate | None:
    """sum over / sum under with its 95 % interval, in blocks; `lengths`: blocks of each run, one run without it.

    Without an interval for fewer than `MIN_BLOCKS` blocks; None where the ratio is not a positive number.
    """
    if over_B.sum() <= 0 or under_B.sum() <= 0:
        return None
    plain = float(over_B.sum() / under_B.sum())
    values = log_ratio_values(over_B, under_B)
    if values is None:
        return Estimate(plain, None, None, int(np.count_nonzero(under_B)))
    if lengths is not None and sum(lengths) == len(values):
        values = spread(values, correlation(np.split(values, np.cumsum(lengths)[:-1])))
    return statistics.ratio(np.exp(values).tolist())


def cut(n_requests: int, runs: int, most: int = BLOCKS) -> int:
    """Into how many blocks to cut each of `runs` runs that have about `n_requests` each: `most` in all."""
    return max(1, min(math.ceil(most / max(1, runs)), n_requests // LEAST_REQUESTS))
