"""Which of two candidates is better under a load and by how much, and at which load the better one changes.

A difference is a ratio, `a` over `b`, or "no difference found". For a crossing, the log of the ratio is drawn through
the loads measured, straight between them on a logarithmic axis of load; where it passes 0 the curves cross. The band
comes from the same blocks as the intervals of the differences: each resample of them gives a curve, and each curve a
crossing.

Shapes: L loads, R resamples, B blocks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import numpy as np

from breakeven.measure.events import Event
from breakeven.measure.load.columns import LoadRun, collect
from breakeven.measure.load.compared import Compared, axis_value, capacity_differences, compared
from breakeven.measure.load.part import Floats
from breakeven.measure.paired.pairs import PROCESS_FLOOR
from breakeven.results.load import Crossing, LoadDifference
from breakeven.results.metrics import metric_of
from breakeven.stats import intervals
from breakeven.stats.intervals import MIN_BLOCKS
from breakeven.traffic.workload import Slo


def differences(log: Iterable[Event], slo: Slo | None) -> list[LoadDifference]:
    """Every two candidates at every load they share; `log` is read once.

    Delays are ratios of means over the requests that both answered, so a candidate that fails the hard ones can look
    fast: `dropped_pairs` says how many were left out, and goodput counts them.
    """
    return differences_of(collect(log), slo)


def differences_of(runs: list[LoadRun], slo: Slo | None) -> list[LoadDifference]:
    """The differences of collected runs."""
    return [*(_difference(one) for one in compared(runs, slo)), *capacity_differences(runs, slo)]


def _difference(one: Compared) -> LoadDifference:
    return LoadDifference(
        a=one.a,
        b=one.b,
        metric=one.metric,
        load=one.load,
        ratio=intervals.ratio(np.exp(one.values_B).tolist(), floor=PROCESS_FLOOR),
        winner=winner(one),
        dropped_pairs=one.dropped_pairs,
    )


def winner(one: Compared) -> str | None:
    """Who is better, where the 99 % interval of the ratio excludes 1; None: no difference found."""
    if not intervals.differs(np.exp(one.values_B).tolist(), floor=PROCESS_FLOOR):
        return None
    return one.a if (float(one.values_B.mean()) > 0) != (not metric_of(one.metric).more_is_better) else one.b


CROSSED = ("ttft_s", "tpot_s", "e2e_s", "goodput_per_s")
_RESAMPLES = 4000
_TAIL = 0.025


def crossings(log: Iterable[Event], slo: Slo | None) -> list[Crossing]:
    """One for every two candidates and metric seen under two or more loads with a number; `log` is read once."""
    return crossings_of(collect(log), slo)


def crossings_of(runs: list[LoadRun], slo: Slo | None) -> list[Crossing]:
    """The crossings of collected runs."""
    curves: dict[tuple[str, str, str, str], dict[float, Compared]] = {}
    for one in compared(runs, slo):
        if one.metric in CROSSED and (axis := axis_value(one.workload)) is not None:
            curves.setdefault((one.a, one.b, one.metric, axis[0]), {})[axis[1]] = one
    return [
        _crossing(unit, dict(sorted(curve.items()))) for (_, _, _, unit), curve in curves.items() if len(curve) >= 2
    ]


def _crossing(unit: str, curve: dict[float, Compared]) -> Crossing:
    loads, ones = list(curve), list(curve.values())
    one = ones[0]
    x_L = np.log(np.array(loads))
    y_L = np.array([float(c.values_B.mean()) for c in ones])
    winners = {load: winner(c) for load, c in curve.items()}
    changes = np.flatnonzero(np.sign(y_L[1:]) != np.sign(y_L[:-1]))
    at = low = high = None
    if len(changes) == 1 and any(winners.values()):
        up = bool(y_L[-1] > y_L[0])
        at = math.exp(_passes(x_L, y_L[None, :], up)[0])
        low, high = _band(x_L, ones, up)
    return Crossing(
        a=one.a,
        b=one.b,
        metric=one.metric,
        rate_per_s=at,
        low=low,
        high=high,
        sentence=_sentence(one, unit, winners, len(changes), float(y_L[0]), at, low, high),
    )


def _passes(x_L: Floats, y_RL: Floats, up: bool) -> Floats:
    """Where each curve first passes 0 in the given direction; inf: it is on the first side all along, -inf: never."""
    s_RL = y_RL if up else -y_RL
    step_RL = (s_RL[:, :-1] <= 0) & (s_RL[:, 1:] > 0)
    k_R = step_RL.argmax(axis=1)
    rows = np.arange(len(s_RL))
    before, after = s_RL[rows, k_R], s_RL[rows, k_R + 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        x_R = x_L[k_R] + (x_L[k_R + 1] - x_L[k_R]) * (-before / (after - before))
    without_R = np.where((s_RL <= 0).all(axis=1), np.inf, -np.inf)
    return np.asarray(np.where(step_RL.any(axis=1), x_R, without_R), dtype=np.float64)


def _band(x_L: Floats, ones: list[Compared], up: bool) -> tuple[float | None, float | None]:
    """The middle 95 % of the crossings of all resamples; None on a side where the range ends before they do."""
    if any(len(one.values_B) < MIN_BLOCKS for one in ones):
        return None, None
    rng = np.random.default_rng(0)
    columns = []
    for one in ones:
        n = len(one.values_B)
        centre = float(one.values_B.mean())
        means = one.values_B[rng.integers(0, n, (_RESAMPLES, n))].mean(axis=1)
        columns.append(centre + intervals.small_sample_stretch(n) * (means - centre))
    x_R = np.sort(_passes(x_L, np.stack(columns, axis=1), up))
    low, high = x_R[int(_TAIL * _RESAMPLES)], x_R[int((1 - _TAIL) * _RESAMPLES) - 1]
    return (
        math.exp(low) if math.isfinite(low) else None,
        math.exp(high) if math.isfinite(high) else None,
    )


def _sentence(
    one: Compared,
    unit: str,
    winners: dict[float, str | None],
    changes: int,
    first: float,
    at: float | None,
    low: float | None,
    high: float | None,
) -> str:
    has = metric_of(one.metric).advantage
    loads = list(winners)
    measured = f"{loads[0]:g} to {loads[-1]:g} {unit}"
    names = {name for name in winners.values() if name is not None}
    if not names:
        return f"no difference found in {has.split(' ', 2)[2]} at any load measured ({measured})"
    if at is not None:
        below = one.a if (first > 0) != (not metric_of(one.metric).more_is_better) else one.b
        above = one.b if below == one.a else one.a
        where = f"{at:.3g} {unit} ({_words_of_band(low, high)})"
        if above not in names:
            return f"{below} has {has} below {where}; above, no difference was found up to {loads[-1]:g} {unit}"
        if below not in names:
            return f"{above} has {has} above {where}; below, no difference was found down to {loads[0]:g} {unit}"
        return f"{below} has {has} below {where}, {above} above"
    if len(names) == 1 and changes == 0 and None not in winners.values():
        return f"{names.pop()} has {has} at every load measured ({measured})"
    # Neighbouring loads with the same answer make one phrase.
    groups = [(name, [f"{load:g}" for load in same]) for name, same in itertools.groupby(winners, winners.__getitem__)]
    return "; ".join(
        f"{name} has {has} at {', '.join(same)} {unit}"
        if name is not None
        else f"no difference was found at {', '.join(same)} {unit}"
        for name, same in groups
    )


def _words_of_band(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"{low:.3g}-{high:.3g}"
    if low is not None:
        return f"at least {low:.3g}"
    return f"at most {high:.3g}" if high is not None else "how surely cannot be told"
