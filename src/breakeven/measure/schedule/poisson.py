"""Poisson: independent exponential gaps, as of many people who do not know of each other."""

from __future__ import annotations

import numpy as np

from breakeven.measure.schedule.process import Arrived, Span, rate_of, renewal
from breakeven.measure.traces.rows import TraceRows
from breakeven.spec.workload import Arrivals


def poisson(arrivals: Arrivals, span: Span, rng: np.random.Generator, trace: TraceRows | None) -> Arrived:
    """Needs `rate_per_s`. One seed gives the same pattern at every rate, stretched."""
    rate = rate_of(arrivals)
    span.check("Poisson", rate)
    return renewal(span, rate, lambda n: rng.exponential(size=n) / rate)
