"""What a lost worker leaves behind: requests that nobody will ever report."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from breakeven.measure.client.wire import Call
from breakeven.measure.events import RequestDone
from breakeven.measure.player.batch import Batch, Recorder
from breakeven.measure.player.job import Job, lost_request

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
