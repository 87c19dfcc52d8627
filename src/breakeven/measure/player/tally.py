"""Running totals of one run, and the moment's view of it that people watch."""

from __future__ import annotations

import time

import numpy as np

from breakeven.measure.events import ClientCeiling, EngineSample
from breakeven.measure.player.batch import Batch
from breakeven.measure.player.limits import offered_ns
from breakeven.measure.player.window import RATE_WINDOW_S, LiveWindow
from breakeven.measure.progress import LoadState
from breakeven.measure.schedule.plan import Schedule


class Tally:
    """Adds batches up. Set `start_ns` when the run starts."""

    def __init__(self, model: str, load: str, schedule: Schedule, ceiling: ClientCeiling | None) -> None:
        self.start_ns = 0
        self.last_due_ns = 0
        self._model, self._load, self._ceiling = model, load, ceiling
        self._due_T = offered_ns(schedule)
        self._issued = self._ended = self._answered = self._events = 0
        self._errors: dict[str, int] = {}
        self._window = LiveWindow()
        workload = schedule.workload
        self._of_s: float | None = None
        if not workload.arrivals.is_closed:
            self._of_s = float(self._due_T[-1]) / 1e9 if len(self._due_T) else None
        elif workload.duration_s is not None:
            self._of_s = workload.warm_up_s + workload.duration_s

    def add(self, batch: Batch) -> None:
        """Count what a batch brings."""
        self._issued += batch.issued
        self._ended += batch.ended_n
        self._answered += batch.answered
        self._events += batch.events
        self.last_due_ns = max(self.last_due_ns, batch.last_due_ns)
        for kind, count in batch.errors.items():
            self._errors[kind] = self._errors.get(kind, 0) + count
        self._window.add(batch.delays)

    def state(self, engine: EngineSample | None) -> LoadState:
        """This moment."""
        now_ns = time.monotonic_ns()
        achieved, events = self._window.rates(now_ns, self._answered, self._events)

        def recent(what: str, p: float) -> float | None:
            return self._window.percentile(what, p, now_ns)

        return LoadState(
            model=self._model,
            load=self._load,
            elapsed_s=max(0.0, (now_ns - self.start_ns) / 1e9),
            of_s=self._of_s,
            offered_per_s=self._offered_per_s(now_ns - self.start_ns),
            achieved_per_s=achieved,
            issued=self._issued,
            answered=self._answered,
            in_flight=self._issued - self._ended,
            errors=dict(self._errors),
            ttft_p50_s=recent("ttft", 50),
            ttft_p99_s=recent("ttft", 99),
            tpot_p50_s=recent("tpot", 50),
            tpot_p99_s=recent("tpot", 99),
            lag_p99_s=recent("lag", 99),
            headroom=self._share_in_use(achieved, events),
            engine_running=engine.running if engine else None,
            engine_waiting=engine.waiting if engine else None,
        )

    def _offered_per_s(self, since_start_ns: int) -> float | None:
        """Requests that a clock made due over the last `RATE_WINDOW_S`, or since the start, a second."""
        window_ns = min(since_start_ns, round(RATE_WINDOW_S * 1e9))
        if not len(self._due_T) or window_ns <= 0:
            return None
        from_, to = np.searchsorted(self._due_T, (since_start_ns - window_ns, since_start_ns))
        return float(to - from_) / (window_ns / 1e9)

    def _share_in_use(self, requests_per_s: float | None, events_per_s: float | None) -> float | None:
        if self._ceiling is None or requests_per_s is None or events_per_s is None:
            return None
        return max(requests_per_s / self._ceiling.requests_per_s, events_per_s / self._ceiling.stream_events_per_s)
