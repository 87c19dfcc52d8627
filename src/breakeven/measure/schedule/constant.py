"""Constant rate: one request every 1/rate seconds, the first at 0."""

from __future__ import annotations

import numpy as np

from breakeven.measure.schedule.process import Arrived, Span, rate_of, to_ns
from breakeven.measure.traces.rows import TraceRows
from breakeven.spec.workload import Arrivals


def constant(arrivals: Arrivals, span: Span, rng: np.random.Generator, trace: TraceRows | None) -> Arrived:
    """Needs `rate_per_s`. Every time is a multiple of the gap, so no rounding adds up."""
    rate = rate_of(arrivals)
    span.check("constant", rate)
    n = int(min(span.end_s * rate, span.warm_up_s * rate + (span.requests or np.inf))) + 2
    return Arrived(to_ns(span.cut(np.arange(n) / rate)))
