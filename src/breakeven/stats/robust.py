"""Intervals on paired values some of which a neighbour on the machine may have spoiled.

The value is the Hodges-Lehmann estimate: the median of the means of every two values, each with itself too (Walsh
averages). Up to 29 % of the values may be anything without carrying it away, and on normal values it is as sure as a
mean of 5 % fewer (Hodges and Lehmann 1963, "Estimates of location based on rank tests").

The interval is the wider, on either side, of two:

- the Walsh averages that Wilcoxon's signed-rank test at 95 % does not reject (Hollander, Wolfe, Chicken 2014,
  "Nonparametric statistical methods", section 3.3). It holds exactly for any symmetric spread, from 6 values on. But
  its levels are steps, and it does not see how far out the outermost values lie;
- Student's t about the mean without the lowest and highest fifth, with the winsorised variance (Tukey and McLaughlin
  1963; Wilcox 2022, "Introduction to robust estimation and hypothesis testing", section 4.3). Fewer than six values
  have none to spare, and it is Student's t of them all.

Together they keep what they promise for runs that end when they are precise enough, where either alone falls short by
1 to 3 points: `docs/noise.md` has the table, `bench/noise_simulated.py` makes it.

Shapes: N values, W = N (N + 1) / 2 Walsh averages in order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from breakeven.stats.estimate import Estimate, measured
from breakeven.stats.intervals import AT_99, MIN_PAIRS, T_975, T_995, student

TRIMMED = 0.2
"""Share of the values left out at either end: what Wilcox recommends where outliers are expected."""
TRIMMED_FROM = 6
"""Values; the three that are left of five have 93.5 % where 95 are promised, and no ranks beside them."""
MOST_RANKED = 400
"""Above, the t interval alone: ranks cost the square of the values and no longer say anything else."""

Floats = NDArray[np.float64]


def ratio(a_over_b: Sequence[float], floor: float = 0.0) -> Estimate:
    """Estimate of a ratio from paired ratios (each > 0); without an interval for fewer than `MIN_PAIRS`.

    `floor`: half of the 95 % of what two copies of one candidate differ by on a quiet machine, which no pair of blocks
    of the same two processes can see; it is added to the half-width in quadrature.
    """
    logs = np.log(np.asarray(a_over_b, dtype=np.float64))
    if len(logs) < MIN_PAIRS:
        return measured(math.exp(float(logs.mean())), None, None, len(logs))
    centre, below, above = _about(logs, T_975, 0.025)
    low, high = centre - math.hypot(below, floor), centre + math.hypot(above, floor)
    return measured(math.exp(centre), math.exp(low), math.exp(high), len(logs))


def level(values: Sequence[float]) -> Estimate | None:
    """Estimate of a positive quantity (a rate, a time) from one value a block; None without values."""
    if not values:
        return None
    if len(values) < MIN_PAIRS:
        return measured(sum(values) / len(values), None, None, len(values))
    return ratio(values)


def differs(a_over_b: Sequence[float], floor: float = 0.0) -> bool:
    """True when paired ratios differ from 1 surely enough to name a winner: the same interval at 99 % excludes it.

    Stricter than the interval that is shown, because a study looks at several loads and at each after every round.
    """
    logs = np.log(np.asarray(a_over_b, dtype=np.float64))
    if len(logs) < MIN_PAIRS:
        return False
    centre, below, above = _about(logs, T_995, 0.005)
    return abs(centre) > math.hypot(below if centre > 0 else above, AT_99 * floor)


def centre(values: Sequence[float]) -> float:
    """The Hodges-Lehmann estimate of one value or more."""
    sample = np.asarray(values, dtype=np.float64)
    return float(np.median(_walsh(sample) if len(sample) <= MOST_RANKED else sample))


def _about(values_N: Floats, student_t: Mapping[int, float], tail: float) -> tuple[float, float, float]:
    """The estimate and how far its interval, which leaves `tail` out on either side, reaches below and above."""
    half = _trimmed_error(values_N, student_t)
    if len(values_N) > MOST_RANKED:
        return float(np.median(values_N)), half, half
    walsh_W = _walsh(values_N)
    middle = float(np.median(walsh_W))
    if len(values_N) < TRIMMED_FROM:
        return middle, half, half
    # Six and seven have no rank at 99 %: their outermost values then bound it, as they do at 95 %.
    rank = max(1, least_rank(len(values_N), tail))
    low, high = float(walsh_W[rank - 1]), float(walsh_W[-rank])
    return middle, max(half, middle - low), max(half, high - middle)


def _walsh(values_N: Floats) -> Floats:
    i, j = np.triu_indices(len(values_N))
    return np.sort((values_N[i] + values_N[j]) / 2)


def _trimmed_error(values_N: Floats, student_t: Mapping[int, float]) -> float:
    """Half the t interval of the trimmed mean: t of the h values kept, and the root of SSD_w / (h (h - 1))."""
    n = len(values_N)
    cut = int(TRIMMED * n + 1e-9) if n >= TRIMMED_FROM else 0
    kept = n - 2 * cut
    ordered = np.sort(values_N)
    drawn_in = np.clip(ordered, ordered[cut], ordered[n - cut - 1])
    squares = float(((drawn_in - drawn_in.mean()) ** 2).sum())
    return student(student_t, kept) * math.sqrt(squares / (kept * (kept - 1)))


@cache
def least_rank(n: int, tail: float) -> int:
    """Which Walsh average from either end bounds the interval; 0: so few values have none at this level.

    The largest k with P(V <= k - 1) <= tail, V being the signed-rank statistic: every sum of ranks 1..n that a coin
    thrown for each gives.
    """
    chance = np.ones(1)
    for rank in range(1, n + 1):
        with_rank = np.zeros(len(chance) + rank)
        with_rank[: len(chance)] += chance
        with_rank[rank:] += chance
        chance = with_rank / 2
    return int(np.searchsorted(np.cumsum(chance), tail, side="right"))
