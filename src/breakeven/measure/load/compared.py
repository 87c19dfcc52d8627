"""Two candidates on the same requests: what each block of a run says about their ratio. Pure functions over runs.

Delays are compared pair by pair: the same request of the same schedule, answered by both. Rates are compared over the
same stretch of both runs. Blocks are of neighbouring requests, or of time, so that a block holds what moves together.

Over several rates, capacities are compared too: how much more traffic one candidate carries within the service level.
Capacity is the rate at which the share of good requests falls below TARGET_SHARE, straight between the rates measured
on a logarithmic axis. The interval comes from resampling blocks of time, the same blocks for both candidates. Where a
candidate is good enough at every rate measured, or at none, its capacity was not seen, and there is no ratio.

Shapes: P pairs, B blocks, L rates, R resamples.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from breakeven.measure.load.columns import LoadRun
from breakeven.measure.load.part import Floats, Part, measured_part, meets, part_from, steady_parts
from breakeven.measure.load.points import output_tokens, values_s
from breakeven.measure.paired.pairs import PROCESS_FLOOR
from breakeven.results.load import LoadDifference
from breakeven.stats import intervals
from breakeven.stats.estimate import measured
from breakeven.stats.intervals import MIN_BLOCKS
from breakeven.traffic.workload import Slo, Workload

DELAYS = ("ttft_s", "service_ttft_s", "tpot_s", "e2e_s")
RATES = ("output_tokens_per_s", "goodput_per_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One metric of `a` over that of `b` under one load.

    `values_B` have the log of the ratio as their mean and its uncertainty as their spread; with fewer than
    `intervals.MIN_BLOCKS` of them there is none to tell.
    """

    a: str
    b: str
    metric: str
    load: str
    workload: Workload
    values_B: Floats
    pairs: int
    dropped_pairs: int


def compared(runs: list[LoadRun], slo: Slo | None) -> Iterator[Compared]:
    """Every two candidates at every load they share, metric by metric, in order of first appearance.

    A metric that one of them does not have (one token has no TPOT, no SLO no goodput) is left out.
    """
    for a, b, load, rounds in shared_parts(runs):
        yield from _metrics(a, b, load, rounds, slo)


def shared_parts(runs: list[LoadRun]) -> Iterator[tuple[str, str, str, list[tuple[Part, Part]]]]:
    """Every two candidates at every load they share, with the same stretch of every round of both."""
    loads = list(dict.fromkeys(run.load for run in runs))
    parts = {
        key: _best_parts(list(same)) for key, same in itertools.groupby(runs, key=lambda run: (run.model, run.load))
    }
    models = list(dict.fromkeys(run.model for run in runs))
    for load in loads:
        for a, b in itertools.combinations([m for m in models if (m, load) in parts], 2):
            rounds = _shared_rounds(parts[a, load], parts[b, load])
            if rounds:
                yield a, b, load, rounds


@dataclass(frozen=True, slots=True)
class _Parts:
    steady: dict[int, Part]
    """By round; empty when no steady part was found."""
    measured: dict[int, Part]


def _best_parts(runs: list[LoadRun]) -> _Parts:
    measured = [part for part in map(measured_part, runs) if part.counted_N.any()]
    if not measured:
        return _Parts({}, {})
    steady, parts = steady_parts(measured)
    by_round = {part.run.round: part for part in measured}
    return _Parts({part.run.round: part for part in parts} if steady.found else {}, by_round)


def _shared_rounds(a: _Parts, b: _Parts) -> list[tuple[Part, Part]]:
    """The same stretch of the same rounds of both: the time both had settled in, else all that was measured of both."""
    for mine, other in ((a.steady, b.steady), (a.measured, b.measured)):
        found = []
        for number in sorted(mine.keys() & other.keys()):
            one, two = mine[number], other[number]
            start, end = max(one.start_ns, two.start_ns), min(one.end_ns, two.end_ns)
            if start < end:
                found.append((part_from(one, start, end), part_from(two, start, end)))
        if found:
            return found
    return []


def _metrics(a: str, b: str, load: str, rounds: list[tuple[Part, Part]], slo: Slo | None) -> Iterator[Compared]:
    workload = rounds[0][0].run.workload
    paired = [_pairs(one, two) for one, two in rounds]
    failed = sum(int(np.count_nonzero(~both)) for _, _, both in paired)
    n_pairs = sum(len(both) for _, _, both in paired)
    for metric in (*DELAYS, *RATES):
        if metric in DELAYS:
            if metric.endswith("ttft_s") and not workload.stream:
                continue
            blocks = [
                _delay_blocks(metric, one, two, rows, len(rounds))
                for (one, two), rows in zip(rounds, paired, strict=True)
            ]
        elif metric == "goodput_per_s":
            if slo is None:
                continue
            blocks = [_goodput_blocks(one, two, slo, len(rounds)) for one, two in rounds]
        else:
            blocks = [_token_blocks(one, two, len(rounds)) for one, two in rounds]
        values = _values([over for over, _ in blocks], [under for _, under in blocks], metric == "goodput_per_s")
        if values is not None:
            yield Compared(
                a=a,
                b=b,
                metric=metric,
                load=load,
                workload=workload,
                values_B=values,
                pairs=n_pairs,
                dropped_pairs=failed if metric in DELAYS else 0,
            )


def _values(over: list[Floats], under: list[Floats], is_count: bool) -> Floats | None:
    values = intervals.values_of_runs(over, under)
    total = sum(float(blocks.sum()) for blocks in (*over, *under))
    if values is None and is_count and total > 0:
        # One of them met the SLO never, or in one block only: half a request more for each, or the ratio has no log.
        half = 0.5 / sum(map(len, over))
        values = intervals.values_of_runs([blocks + half for blocks in over], [blocks + half for blocks in under])
    return values


def _pairs(one: Part, two: Part) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of the requests that count on both sides, in the order of the schedule, and whether both were answered."""
    mine, other = np.flatnonzero(one.counted_N), np.flatnonzero(two.counted_N)
    left, right = one.run.requests, two.run.requests
    _, at, to = np.intersect1d(left.index_N[mine], right.index_N[other], return_indices=True)
    rows, others = mine[at], other[to]
    return rows, others, left.answered[rows] & right.answered[others]


def _delay_blocks(
    metric: str, one: Part, two: Part, paired: tuple[np.ndarray, np.ndarray, np.ndarray], runs: int
) -> tuple[Floats, Floats]:
    """Sums of one delay over the pairs that have it on both sides, by block of neighbouring requests."""
    rows, others, both = paired
    mine, other = values_s(metric, one.run.requests)[rows], values_s(metric, two.run.requests)[others]
    there = both & np.isfinite(mine) & np.isfinite(other)
    n = int(np.count_nonzero(there))
    blocks = intervals.cut(n, runs)
    block = np.arange(n) * blocks // max(n, 1)
    return (
        np.bincount(block, weights=mine[there], minlength=blocks).astype(np.float64),
        np.bincount(block, weights=other[there], minlength=blocks).astype(np.float64),
    )


def blocks_of_time(one: Part, two: Part, runs: int) -> int:
    """Into how many blocks one of `runs` rounds is cut, so that each has requests enough on both sides."""
    return intervals.cut(min(int(np.count_nonzero(part.counted_N)) for part in (one, two)), runs)


def _token_blocks(one: Part, two: Part, runs: int) -> tuple[Floats, Floats]:
    """Output tokens that arrived in each of the same blocks of time."""
    blocks = blocks_of_time(one, two, runs)
    found = [
        np.array([output_tokens(part, span) for span in itertools.pairwise(part.edges_ns(blocks).tolist())])
        for part in (one, two)
    ]
    return found[0], found[1]


def _goodput_blocks(one: Part, two: Part, slo: Slo, runs: int) -> tuple[Floats, Floats]:
    """Good requests due in each of the same blocks of time."""
    blocks = blocks_of_time(one, two, runs)
    found = []
    for part in (one, two):
        good = part.counted_N & meets(part.run.requests, slo) & (part.run.requests.due_N <= part.end_ns)
        found.append(np.bincount(part.block_of_due(blocks)[good], minlength=blocks).astype(np.float64))
    return found[0], found[1]


def axis_value(workload: Workload) -> tuple[str, float] | None:
    """Where a load stands on an axis: its rate and what that counts, or ("streams", number); None: on none."""
    arrivals = workload.arrivals
    if arrivals.is_closed:
        return ("streams", float(arrivals.concurrency)) if arrivals.concurrency else None
    if arrivals.process in ("constant", "poisson", "gamma") and arrivals.rate_per_s:
        return workload.rate_unit, arrivals.rate_per_s
    return None


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
        if axis is not None and axis[0] != "streams":
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
        low, high = _interval(drawn_R, centre, n, _SHOWN, PROCESS_FLOOR)
        sure_low, sure_high = _interval(drawn_R, centre, n, _SURE, intervals.AT_99 * PROCESS_FLOOR)
        if (sure_low is not None and sure_low > 0) or (sure_high is not None and sure_high < 0):
            winner = a if centre > 0 else b
    least, most = (None if end is None else math.exp(end) for end in (low, high))
    ratio = measured(math.exp(centre), least, most, n)
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


def _interval(drawn_R: Floats, centre: float, n: int, tail: float, floor: float) -> tuple[float | None, float | None]:
    """The ends of the interval, None where resamples without a ratio could lie beyond it."""
    # A ratio that was not seen may be anything, so it stands at either end in turn.
    low = float(np.sort(np.nan_to_num(drawn_R, nan=-np.inf))[int(tail * len(drawn_R))])
    high = float(np.sort(np.nan_to_num(drawn_R, nan=np.inf))[-1 - int(tail * len(drawn_R))])
    stretch = intervals.small_sample_stretch(n)
    below, above = (math.hypot(stretch * abs(end - centre), floor) for end in (low, high))
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
