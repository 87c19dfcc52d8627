"""What the last half minute of a run looked like: a ring of delays and the percentiles over it.

The ring holds the latest `CAPACITY` answers, so that a run of any length needs the same memory; above 270 answers a
second it spans less than the half minute.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np

from breakeven.measure.player.batch import Delays

WINDOW_S = 30.0
RATE_WINDOW_S = 10.0
CAPACITY = 8_192


class LiveWindow:
    """Delays of recent answers, in seconds, and how fast answers and pieces of output come."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._rows_X4 = np.full((capacity, 4), np.nan)
        """Columns: done (s), ttft, tpot, lag."""
        self._next = 0
        self._totals: deque[tuple[int, int, int]] = deque()

    def add(self, delays: Iterable[Delays]) -> None:
        """Remember answers; the oldest make room."""
        for one in delays:
            tpot = np.nan if one.tpot is None else one.tpot
            self._rows_X4[self._next % len(self._rows_X4)] = (one.done_ns / 1e9, one.ttft, tpot, one.lag)
            self._next += 1

    def percentile(self, what: str, p: float, now_ns: int) -> float | None:
        """Percentile `p` of "ttft", "tpot" or "lag" over the last `WINDOW_S`, seconds; None when there is none."""
        column = ("ttft", "tpot", "lag").index(what) + 1
        recent_X = self._rows_X4[:, 0] >= now_ns / 1e9 - WINDOW_S
        values = self._rows_X4[recent_X, column]
        values = values[~np.isnan(values)]
        return float(np.percentile(values, p)) if len(values) else None

    def rates(self, now_ns: int, answered: int, events: int) -> tuple[float | None, float | None]:
        """Answers and pieces of output a second over the last `RATE_WINDOW_S`, from the totals so far."""
        self._totals.append((now_ns, answered, events))
        while len(self._totals) > 2 and now_ns - self._totals[1][0] >= RATE_WINDOW_S * 1e9:
            self._totals.popleft()
        then_ns, answered_then, events_then = self._totals[0]
        seconds = (now_ns - then_ns) / 1e9
        if seconds <= 0:
            return None, None
        return (answered - answered_then) / seconds, (events - events_then) / seconds
