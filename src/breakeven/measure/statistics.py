"""Intervals on ratios of paired blocks.

The unit is a pair of neighbouring blocks, one of each candidate, so slow drift of the machine cancels. Ratios live on
the log scale. The interval is the percentile bootstrap of the mean log ratio, stretched for small samples, and never
narrower than Student's t interval of the same pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from breakeven.spec.estimate import Estimate

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


def small_sample_stretch(n: int) -> float:
    """How much wider a percentile interval of n values must be to keep its coverage.

    The percentile bootstrap is narrow by sqrt((n-1)/n) and uses normal where t is due (Hesterberg 2015,
    "What teachers should know about the bootstrap", section 4.3).
    """
    return _t(T_975, n) / Z_975 * math.sqrt(n / (n - 1))


def _t(table: Mapping[int, float], n: int) -> float:
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
    least = _t(T_975, len(sample)) * float(sample.std(ddof=1)) / math.sqrt(len(sample))
    below, above = stretch * (centre - float(low)), stretch * (float(high) - centre)
    return centre, centre - max(below, least), centre + max(above, least)


def ratio(a_over_b: Sequence[float], seed: int = 0, floor: float = 0.0) -> Estimate:
    """Estimate of a ratio from paired ratios (each > 0).

    `floor` is a relative difference that two copies of one candidate can show on a quiet machine; it is added to the
    half-width in quadrature, because blocks of one pair of processes cannot see it.
    """
    logs = [math.log(value) for value in a_over_b]
    if len(logs) < MIN_PAIRS:
        return Estimate(math.exp(sum(logs) / len(logs)), None, None, len(logs))
    centre, low, high = mean_interval(logs, seed)
    return Estimate(
        math.exp(centre),
        math.exp(centre - math.hypot(centre - low, floor)),
        math.exp(centre + math.hypot(high - centre, floor)),
        len(logs),
    )


def level(values: Sequence[float], seed: int = 0) -> Estimate | None:
    """Estimate of a positive quantity (a rate, a time) from one value a block; None without values."""
    if not values:
        return None
    if len(values) < MIN_PAIRS:
        return Estimate(sum(values) / len(values), None, None, len(values))
    centre, low, high = mean_interval([math.log(value) for value in values], seed)
    return Estimate(math.exp(centre), math.exp(low), math.exp(high), len(values))


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
    half_width = _t(T_995, len(logs)) * float(logs.std(ddof=1)) / math.sqrt(len(logs))
    return abs(float(logs.mean())) > math.hypot(half_width, floor)
