"""Whether the client can offer what the schedule asks for at all."""

from __future__ import annotations

import numpy as np

from breakeven.errors import UserError
from breakeven.measure.events import ClientCeiling
from breakeven.measure.schedule.plan import DEPENDS, Schedule

_S = 1_000_000_000


def offered_ns(schedule: Schedule) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Due times that a clock decides, ascending, from the run's start. Empty for a closed loop. Pure."""
    return np.sort(schedule.due_ns_N[schedule.due_ns_N != DEPENDS])


def peak_per_s(schedule: Schedule) -> float:
    """Most requests due within any one second. Pure."""
    due_T = offered_ns(schedule)
    if not len(due_T):
        return 0.0
    return float((np.searchsorted(due_T, due_T + _S) - np.arange(len(due_T))).max())


def mean_per_s(schedule: Schedule) -> float:
    """Requests a second over the whole schedule, at least a second of it. Pure."""
    due_T = offered_ns(schedule)
    if not len(due_T):
        return 0.0
    return len(due_T) / max(1.0, float(due_T[-1] - due_T[0]) / _S)


def refuse_more_than(ceiling: ClientCeiling, schedule: Schedule) -> None:
    """Raises UserError when an open loop asks for more than the client was seen to drive here."""
    more = f"give --processes more than {ceiling.processes} or a lower rate"
    peak = peak_per_s(schedule)
    if peak > ceiling.requests_per_s:
        raise UserError(
            f"the schedule asks for {peak:.0f} requests within one second, more than the {ceiling.requests_per_s:.0f} "
            f"a second this client can drive here; {more}"
        )
    tokens = mean_per_s(schedule) * float(schedule.output_N.mean())
    if schedule.workload.stream and tokens > ceiling.stream_events_per_s:
        raise UserError(
            f"the schedule asks for about {tokens:.0f} tokens a second, more than the "
            f"{ceiling.stream_events_per_s:.0f} stream events a second this client can take here; {more}"
        )
