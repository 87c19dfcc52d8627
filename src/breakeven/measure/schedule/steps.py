"""Steps: Poisson arrivals whose rate jumps at given times."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from breakeven.errors import UserError
from breakeven.measure.schedule.process import Arrived, Span, through
from breakeven.measure.traces.rows import TraceRows
from breakeven.spec.workload import Arrivals


def steps(arrivals: Arrivals, span: Span, rng: np.random.Generator, trace: TraceRows | None) -> Arrived:
    """Needs `steps`. Warm-up runs at the first rate, then the steps follow; with the last of them the run ends."""
    if not arrivals.steps or any(rate < 0 or not 0 < seconds < np.inf for rate, seconds in arrivals.steps):
        raise UserError("steps need rates of 0 or more and seconds above 0 each, such as steps:2x30s,5x30s")
    parts = [(arrivals.steps[0][0], span.warm_up_s), *arrivals.steps]
    expected_K = np.cumsum([0.0] + [rate * seconds for rate, seconds in parts])
    ends_s_K = np.cumsum([0.0] + [seconds for _, seconds in parts])
    total = float(expected_K[-1])
    if total <= 0:
        raise UserError("steps of rate 0 only ask for nothing; give at least one a rate above 0")
    Span(0.0, float(ends_s_K[-1]), None).check("stepped", total / float(ends_s_K[-1]))

    def time_s(unit_N: NDArray[np.float64]) -> NDArray[np.float64]:
        # The step each belongs to first: a step of rate 0 makes two ends equal, which an interpolation cannot resolve.
        step_N = np.searchsorted(expected_K, unit_N, side="right") - 1
        rate_K = np.array([rate for rate, _ in parts])
        inside_s_N: NDArray[np.float64] = (unit_N - expected_K[step_N]) / rate_K[step_N]
        return np.asarray(ends_s_K[step_N] + inside_s_N)

    return through(span, rng, total, time_s)
