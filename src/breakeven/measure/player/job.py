"""What a player of the schedule must know, and which rows are its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from breakeven.engine.backend import Backend
from breakeven.measure.client.wire import Call
from breakeven.measure.events import RequestDone
from breakeven.measure.schedule import part
from breakeven.measure.schedule.plan import DEPENDS, Schedule

if TYPE_CHECKING:
    from breakeven.measure.prompts.bodies import Bodies


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a player must know; picklable. The API key is not in it: `backend` names its environment variable."""

    backend: Backend
    schedule: Schedule
    bodies: Bodies
    block: str
    drain_s: float
    worker: int = 0
    workers: int = 1

    def rows(self) -> NDArray[np.int64]:
        """Rows of the schedule this worker plays; whole sessions, in the order they are due."""
        if self.workers == 1:
            return np.arange(len(self.schedule), dtype=np.int64)
        return part(self.schedule, self.worker, self.workers)

    def most_workers(self) -> int:
        """How many workers would each have something to do."""
        streams = self.schedule.workload.arrivals.concurrency
        sessions_N = self.schedule.session_N
        units = int((sessions_N < 0).sum()) + len(np.unique(sessions_N[sessions_N >= 0]))
        return min(units, streams) if self.schedule.workload.arrivals.is_closed and streams else units

    def share(self, total: int) -> int:
        """This worker's share of `total` streams or requests."""
        return total // self.workers + (self.worker < total % self.workers)


def followers(schedule: Schedule) -> NDArray[np.int64]:
    """For each row the row of the turn that waits for its answer, -1 where none does. Shape (n,). Pure."""
    after_N = np.full(len(schedule), -1, dtype=np.int64)
    if (schedule.session_N >= 0).any():
        order_N = np.lexsort((schedule.turn_N, schedule.session_N))
        before, behind = order_N[:-1], order_N[1:]
        follows = schedule.session_N[before] == schedule.session_N[behind]
        follows &= (schedule.session_N[behind] >= 0) & (schedule.due_ns_N[behind] == DEPENDS)
        after_N[before[follows]] = behind[follows]
    return after_N


def lost_request(call: Call, model: str, detail: str, *, due_ns: int, now_ns: int) -> RequestDone:
    """A planned request that was never sent, as the log has it. Pure."""
    at_ns = max(due_ns, now_ns)
    return RequestDone(
        block=call.block,
        model=model,
        stream=call.index,
        prompt_tokens=call.prompt_tokens,
        output_tokens=0,
        due_ns=due_ns,
        sent_ns=at_ns,
        done_ns=at_ns,
        error="cancelled",
        detail=detail,
        issued_ns=None,
        asked_prompt_tokens=call.prompt_tokens,
        asked_output_tokens=call.max_tokens,
        warm=call.warm,
        session=call.session,
        turn=call.turn,
        worker=call.worker,
    )
