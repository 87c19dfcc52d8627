"""What a player of the schedule must know, which rows are its own, and what a lost one leaves behind."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from breakeven.engines.backend import Backend
from breakeven.measure.bodies import Bodies
from breakeven.measure.events import RequestDone
from breakeven.measure.player.tally import Batch, Recorder
from breakeven.measure.pool import Call
from breakeven.traffic.schedule import DEPENDS, Schedule, part


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


WORKER_LOST = "worker lost"


class Outstanding:
    """Which requests of one worker have been reported. For an open loop one bit a row of the schedule is enough."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._closed = job.schedule.workload.arrivals.is_closed
        self._ended_N = np.zeros(0 if self._closed else len(job.schedule), dtype=np.bool_)
        self._begun: dict[int, int] = {}

    def add(self, batch: Batch) -> None:
        """News from the worker."""
        self._begun.update(batch.begun)
        for index in batch.ended:
            self._begun.pop(index, None)
            if not self._closed:
                self._ended_N[index] = True

    def lost(self, start_ns: int, now_ns: int) -> Iterator[tuple[bool, RequestDone]]:
        """The worker is gone: (had begun, how the log shall have it) for each request it owes.

        In an open loop these are all rows it had not finished, later ones included; in a closed loop those in flight,
        for what its streams would have asked next was never due.
        """
        if self._closed:
            owed = list(self._begun)
        else:
            rows_R = self._job.rows()
            owed = [int(row) for row in rows_R[~self._ended_N[rows_R]]]
        schedule, bodies = self._job.schedule, self._job.bodies
        warm_until_ns = start_ns + round(schedule.workload.warm_up_s * 1e9)
        for index in owed:
            planned = schedule.row(index)
            due_ns = self._begun.get(index)
            if due_ns is None:
                due_ns = now_ns if planned.due_ns is None else start_ns + planned.due_ns
            call = Call(
                block=self._job.block,
                index=index,
                path=bodies.path,
                body=b"",
                prompt_tokens=bodies.prompt_tokens(index),
                max_tokens=bodies.max_tokens(index),
                due_ns=due_ns,
                warm=due_ns < warm_until_ns if self._closed else planned.warm,
                session=planned.session,
                turn=planned.turn,
                worker=self._job.worker,
            )
            done = lost_request(call, self._job.backend.model, WORKER_LOST, due_ns=due_ns, now_ns=now_ns)
            yield index in self._begun, done

    def record(self, recorder: Recorder, start_ns: int, now_ns: int) -> int:
        """Hand all of `lost` to `recorder`; how many they were."""
        count = 0
        for begun, done in self.lost(start_ns, now_ns):
            (recorder.done if begun else recorder.never_sent)(done)
            count += 1
        recorder.flush()
        return count


def parts(job: Job, workers: int) -> list[Job]:
    """The job of each of `workers`."""
    return [dataclasses.replace(job, worker=worker, workers=workers) for worker in range(workers)]
