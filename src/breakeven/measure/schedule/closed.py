"""Closed loop: `concurrency` streams, each asking again `think_s` after its answer."""

from __future__ import annotations

import numpy as np

from breakeven.errors import UserError
from breakeven.measure.schedule.plan import DEPENDS
from breakeven.measure.schedule.process import MOST_ROWS, NS, Arrived, Span
from breakeven.measure.traces.rows import TraceRows
from breakeven.spec.workload import Arrivals

_ROWS = 4_096
"""Different lengths to draw when time ends the run: it may take more requests, and then they start over."""
_ROWS_PER_STREAM = 64


def closed(arrivals: Arrivals, span: Span, rng: np.random.Generator, trace: TraceRows | None) -> Arrived:
    """No due times. Needs `concurrency`; `requests` or a duration ends the run, which only the runner can know."""
    if arrivals.concurrency is None or arrivals.concurrency < 1:
        raise UserError(f"a closed loop needs a concurrency of 1 or more, such as 8; found {arrivals.concurrency}")
    if span.duration_s is None and span.requests is None:
        raise UserError("a closed loop goes on for ever; give a duration or a number of requests")
    n = span.requests or max(_ROWS, _ROWS_PER_STREAM * arrivals.concurrency)
    if n > MOST_ROWS:
        raise UserError(f"{n:,} requests are more than fit in one run; give fewer")
    return Arrived(
        np.full(n, DEPENDS, np.int64), think_ns_N=np.full(n, round(max(0.0, arrivals.think_s) * NS), np.int64)
    )
