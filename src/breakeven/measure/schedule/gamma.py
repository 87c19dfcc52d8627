"""Gamma: independent gaps of a chosen burstiness; a coefficient of variation of 1 is Poisson."""

from __future__ import annotations

import numpy as np

from breakeven.errors import UserError
from breakeven.measure.schedule.process import Arrived, Span, rate_of, renewal
from breakeven.measure.traces.rows import TraceRows
from breakeven.spec.workload import Arrivals


def gamma(arrivals: Arrivals, span: Span, rng: np.random.Generator, trace: TraceRows | None) -> Arrived:
    """Needs `rate_per_s` and `cv`, the standard deviation of a gap over its mean: shape 1/cv^2, scale cv^2/rate."""
    rate = rate_of(arrivals)
    if not 0.01 <= arrivals.cv <= 100:
        raise UserError(f"gamma arrivals need a coefficient of variation from 0.01 to 100; found {arrivals.cv:g}")
    span.check("gamma", rate)
    variance = arrivals.cv**2
    return renewal(span, rate, lambda n: rng.gamma(1 / variance, variance, size=n) / rate)
