"""Cutting one schedule among workers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from breakeven.measure.schedule.plan import Schedule


def part(schedule: Schedule, worker: int, workers: int) -> NDArray[np.int64]:
    """Row indices, ascending, that belong to `worker` of `workers`.

    Requests are dealt out in turn, whole conversations to one worker; the parts share no row and together are all.
    Raises ValueError unless 0 <= worker < workers.
    """
    if not 0 <= worker < workers:
        raise ValueError(f"worker {worker} of {workers}")
    session_N = schedule.session_N
    opens_N = np.ones(len(schedule), np.bool_)
    opens_N[1:] = (session_N[1:] < 0) | (session_N[1:] != session_N[:-1])
    unit_N = np.cumsum(opens_N) - 1
    return np.flatnonzero(unit_N % workers == worker)
