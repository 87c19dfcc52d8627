"""How much more traffic one candidate carries than another within the service level: the ratio of their capacities.

Capacity is the rate at which the share of good requests falls below TARGET_SHARE, straight between the rates measured
on a logarithmic axis. The interval comes from resampling blocks of time, the same blocks for both candidates. Where a
candidate is good enough at every rate measured, or at none, its capacity was not seen, and there is no ratio.

Shapes: L rates, R resamples, B blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from breakeven.measure import statistics
from breakeven.measure.metrics.block_values import MIN_BLOCKS
from breakeven.measure.metrics.columns import LoadRun
from breakeven.measure.metrics.compared import axis_value, blocks_of_time, shared_parts
from breakeven.measure.metrics.part import Floats, Part, meets
from breakeven.measure.paired.blocks import PROCESS_FLOOR
from breakeven.spec.estimate import Estimate
from breakeven.spec.load import LoadDifference
from breakeven.spec.workload import Slo

METRIC = "capacity_per_s"
TARGET_SHARE = 0.9
"""As `breakeven capacity` has it where nothing else is said."""
LOAD = f"the rate that keeps {TARGET_SHARE:.0%} good"
_RESAMPLES = 4000
_SHOWN, _SURE = 0.025, 0.005
"""Tails of the interval that is shown (95 %) and of the one that names a winner (99 %)."""


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Good and all requests of both candidates at one rate, by block of time."""

    rate_per_s: float
    good_2B: Floats
    all_2B: Floats


def capacity_differences(runs: list[LoadRun], slo: Slo | None) -> list[LoadDifference]:
    """One for every two candidates whose capacities both lie within the rates measured; none without an SLO."""
    if slo is None:
        return []
    curves: dict[tuple[str, str], list[_Blocks]] = {}
    for a, b, _, rounds in shared_parts(runs):
        axis = axis_value(rounds[0][0].run.workload)
        if axis is not None and axis[0] == "req/s":
            curves.setdefault((a, b), []).append(_blocks(axis[1], rounds, slo))
    found = (_difference(a, b, sorted(curve, key=lambda one: one.rate_per_s)) for (a, b), curve in curves.items())
    return [difference for difference in found if difference is not None]


def _blocks(rate_per_s: float, rounds: list[tuple[Part, Part]], slo: Slo) -> _Blocks:
    good: list[list[Floats]] = [[], []]
    every: list[list[Floats]] = [[], []]
    for one, two in rounds:
        n = blocks_of_time(one, two, len(rounds))
        for side, part in enumerate((one, two)):
            block = part.block_of_due(n)
            counted = part.counted_N & (part.run.requests.due_N <= part.end_ns)
            kept = counted & meets(part.run.requests, slo)
            good[side].append(np.bincount(block[kept], minlength=n).astype(np.float64))
            every[side].append(np.bincount(block[counted], minlength=n).astype(np.float64))
    return _Blocks(rate_per_s, np.stack([*map(np.concatenate, good)]), np.stack([*map(np.concatenate, every)]))


def _difference(a: str, b: str, curve: list[_Blocks]) -> LoadDifference | None:
    if len(curve) < 2:
        return None
    x_L = np.log([one.rate_per_s for one in curve])
    shares_2L = np.stack([one.good_2B.sum(axis=1) / one.all_2B.sum(axis=1) for one in curve], axis=1)
    whole_2 = [float(falls_below(x_L, shares_L[None, :])[0]) for shares_L in shares_2L]
    if not all(map(math.isfinite, whole_2)):
        return None
    centre = whole_2[0] - whole_2[1]
    n = min(one.all_2B.shape[1] for one in curve)
    low = high = winner = None
    if n >= MIN_BLOCKS:
        drawn_R = _drawn(x_L, curve)
        low, high = _interval(drawn_R, centre, n, _SHOWN)
        sure_low, sure_high = _interval(drawn_R, centre, n, _SURE)
        if (sure_low is not None and sure_low > 0) or (sure_high is not None and sure_high < 0):
            winner = a if centre > 0 else b
    least, most = (None if end is None else math.exp(end) for end in (low, high))
    ratio = Estimate(math.exp(centre), least, most, n)
    return LoadDifference(a=a, b=b, metric=METRIC, load=LOAD, ratio=ratio, winner=winner)


def _drawn(x_L: Floats, curve: list[_Blocks]) -> Floats:
    """Log of the ratio of capacities in each resample; NaN where one of them was not seen."""
    rng = np.random.default_rng(0)
    shares_2RL = np.empty((2, _RESAMPLES, len(curve)))
    for k, one in enumerate(curve):
        n = one.all_2B.shape[1]
        picked_RB = rng.integers(0, n, (_RESAMPLES, n))
        every_2R = one.all_2B[:, picked_RB].sum(axis=2)
        shares_2RL[:, :, k] = one.good_2B[:, picked_RB].sum(axis=2) / np.maximum(every_2R, 1)
    a_R, b_R = (falls_below(x_L, shares_RL) for shares_RL in shares_2RL)
    with np.errstate(invalid="ignore"):
        ratio_R = a_R - b_R
    return np.where(np.isfinite(ratio_R), ratio_R, np.nan)


def _interval(drawn_R: Floats, centre: float, n: int, tail: float) -> tuple[float | None, float | None]:
    """The ends of the interval, None where resamples without a ratio could lie beyond it."""
    # A ratio that was not seen may be anything, so it stands at either end in turn.
    low = float(np.sort(np.nan_to_num(drawn_R, nan=-np.inf))[int(tail * len(drawn_R))])
    high = float(np.sort(np.nan_to_num(drawn_R, nan=np.inf))[-1 - int(tail * len(drawn_R))])
    stretch = statistics.small_sample_stretch(n)
    below, above = (math.hypot(stretch * abs(end - centre), PROCESS_FLOOR) for end in (low, high))
    return (
        centre - below if math.isfinite(low) else None,
        centre + above if math.isfinite(high) else None,
    )


def falls_below(x_L: Floats, shares_RL: Floats) -> NDArray[np.float64]:
    """Where each curve first falls below TARGET_SHARE; inf: nowhere, -inf: it begins below."""
    below_RL = shares_RL < TARGET_SHARE
    k_R = below_RL.argmax(axis=1)
    rows = np.arange(len(shares_RL))
    before_R, after_R = shares_RL[rows, np.maximum(k_R - 1, 0)], shares_RL[rows, k_R]
    x_before_R, x_after_R = x_L[np.maximum(k_R - 1, 0)], x_L[k_R]
    with np.errstate(invalid="ignore", divide="ignore"):
        x_R = x_before_R + (x_after_R - x_before_R) * (before_R - TARGET_SHARE) / (before_R - after_R)
    return np.where(~below_RL.any(axis=1), np.inf, np.where(k_R == 0, -np.inf, x_R))
