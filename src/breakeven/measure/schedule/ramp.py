"""Ramp: Poisson arrivals whose rate changes evenly from one value to another."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from breakeven.errors import UserError
from breakeven.measure.schedule.process import Arrived, Span, through
from breakeven.measure.traces.rows import TraceRows
from breakeven.spec.workload import Arrivals


def ramp(arrivals: Arrivals, span: Span, rng: np.random.Generator, trace: TraceRows | None) -> Arrived:
    """Needs `rate_per_s`, `to_rate_per_s` and a duration or number of requests. Warm-up runs at the first rate.

    With rates a and b over T seconds, a t + (b - a) t^2 / (2 T) arrivals are expected by t; solved here for t.
    """
    low, high = arrivals.rate_per_s, arrivals.to_rate_per_s
    if low is None or high is None or min(low, high) < 0 or not 0 < max(low, high) < np.inf:
        raise UserError(f"a ramp needs two rates of 0 or more, such as ramp:1-10; found {low} and {high}")
    if span.duration_s is None and span.requests is None:
        raise UserError("a ramp needs to know how long it rises; give a duration or a number of requests")
    seconds = span.duration_s if span.duration_s is not None else 2 * (span.requests or 0) / (low + high)
    before = low * span.warm_up_s
    total = before + (low + high) / 2 * seconds
    Span(0.0, span.warm_up_s + seconds, None).check("ramp", total / (span.warm_up_s + seconds))

    def time_s(unit_N: NDArray[np.float64]) -> NDArray[np.float64]:
        in_ramp_N = np.maximum(unit_N - before, 0.0)
        slope = (high - low) / seconds
        # 2 c / (a + sqrt(a^2 + 2 s c)) is the root that stays exact when the slope is small or 0.
        root_N = np.sqrt(np.maximum(low**2 + 2 * slope * in_ramp_N, 0.0))
        ramp_s_N = np.divide(2 * in_ramp_N, low + root_N, out=np.zeros_like(in_ramp_N), where=low + root_N > 0)
        return np.where(unit_N < before, unit_N / low if low else 0.0, span.warm_up_s + ramp_s_N)

    return through(span, rng, total, time_s)
