"""Which of two candidates is better under a load, and by how much: `a` over `b`, or "no difference found"."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from breakeven.measure import statistics
from breakeven.measure.events import Event
from breakeven.measure.metrics.capacity_ratio import capacity_differences
from breakeven.measure.metrics.columns import LoadRun, collect
from breakeven.measure.metrics.compared import DELAYS, Compared, compared
from breakeven.measure.paired.blocks import PROCESS_FLOOR
from breakeven.spec.load import LoadDifference
from breakeven.spec.workload import Slo


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
        ratio=statistics.ratio(np.exp(one.values_B).tolist(), floor=PROCESS_FLOOR),
        winner=winner(one),
        dropped_pairs=one.dropped_pairs,
    )


def winner(one: Compared) -> str | None:
    """Who is better, where the 99 % interval of the ratio excludes 1; None: no difference found."""
    if not statistics.differs(np.exp(one.values_B).tolist(), floor=PROCESS_FLOOR):
        return None
    return one.a if (float(one.values_B.mean()) > 0) != (one.metric in DELAYS) else one.b
