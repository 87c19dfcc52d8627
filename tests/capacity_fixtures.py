"""A server whose capacity is known: so many slots, and a fixed time that an answer holds one.

`queue_server` serves on a real socket. With `virtual_time` what is asked of it is played in no time and without noise,
which is what a test needs that asserts a number.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from breakeven.engines.backend import Backend
from breakeven.measure.events import ClientCeiling, EventWriter, LoadDone, LoadStarted, RequestDone
from breakeven.traffic.schedule import Schedule
from breakeven.wire.completions import ScriptedRequest
from breakeven.wire.scripted import ScriptedServer, Step


class QueueServer(ScriptedServer):
    """Answers `slots` requests at a time, each in `service_s`, evenly token by token; the others wait their turn.

    It carries slots / service_s requests a second and not one more. `service_s` may be changed while it runs.
    """

    def __init__(self, slots: int, service_s: float) -> None:
        super().__init__(self._step, models=["m"], owned_by="somebody", at_once=slots, end_s=0.0, usage_always=True)
        self.slots, self.service_s = slots, service_s

    @property
    def url(self) -> str:
        """With the name of its model."""
        return f"{super().url}/v1#m"

    @property
    def answered(self) -> int:
        """Requests answered in full."""
        return self.seen.answered

    def _step(self, question: ScriptedRequest) -> Step:
        gap_s = self.service_s / question.chunks
        return {"first_s": gap_s, "chunk_s": gap_s}


@contextmanager
def queue_server(slots: int, service_s: float) -> Iterator[QueueServer]:
    """Serve on a free loopback port, from a thread with an event loop of its own."""
    with QueueServer(slots, service_s) as server:
        yield server


def virtual_time(monkeypatch: pytest.MonkeyPatch, server: QueueServer) -> None:
    """Play every load of this test as `server` would answer it were its sleeps exact and the client took no time."""
    clock = _VirtualClock(server)
    monkeypatch.setattr("breakeven.runs.load.run_load", clock.run_load)
    monkeypatch.setattr("breakeven.runs.load.measure_ceiling", lambda processes: ClientCeiling(5e3, 5e5, processes))


class _VirtualClock:
    """Takes the place of `run_load`: writes the same events, with the times that arithmetic gives."""

    def __init__(self, server: QueueServer) -> None:
        self._server, self._now_ns = server, 1_000_000_000_000

    def run_load(
        self,
        backend: Backend,
        schedule: Schedule,
        bodies: object,
        log: EventWriter,
        *,
        block: str,
        model: str,
        load: str,
        round: int,
        schedule_file: str,
        **_: Any,
    ) -> LoadDone:
        workload, start_ns = schedule.workload, self._now_ns
        warm_until_ns = start_ns + int(workload.warm_up_s * 1e9)
        log.append(
            LoadStarted(
                block=block,
                model=model,
                load=load,
                workload=workload,
                schedule=schedule_file,
                at_ns=start_ns,
                measure_from_ns=warm_until_ns,
                round=round,
            )
        )
        play = self._closed if workload.arrivals.is_closed else self._open
        done = play(schedule, start_ns, warm_until_ns, _answers(self._server, start_ns, block, model))
        for request in done:
            log.append(request)
        self._now_ns = max(request.done_ns for request in done) + 1_000_000_000
        last_ns = max(request.due_ns for request in done)
        ended = LoadDone(block=block, ok=True, at_ns=self._now_ns, arrivals_end_ns=last_ns)
        log.append(ended)
        return ended

    @staticmethod
    def _open(schedule: Schedule, start_ns: int, warm_until_ns: int, answer: _Answer) -> list[RequestDone]:
        rows = sorted(range(len(schedule)), key=lambda i: int(schedule.due_ns_N[i]))
        return [
            answer(i, start_ns + int(schedule.due_ns_N[i]), int(schedule.output_N[i]), bool(schedule.warm_N[i]))
            for i in rows
        ]

    @staticmethod
    def _closed(schedule: Schedule, start_ns: int, warm_until_ns: int, answer: _Answer) -> list[RequestDone]:
        """Everybody begins at once; then each asks again once answered and done thinking, until enough was asked."""
        arrivals, left = schedule.workload.arrivals, schedule.workload.requests
        assert arrivals.concurrency is not None
        assert left is not None
        due = [start_ns] * arrivals.concurrency
        done: list[RequestDone] = []
        while due:
            at_ns, row = heapq.heappop(due), len(done) % len(schedule)
            warm = at_ns < warm_until_ns
            if not warm:
                if not left:
                    break
                left -= 1
            done.append(answer(len(done), at_ns, int(schedule.output_N[row]), warm))
            heapq.heappush(due, done[-1].done_ns + int(schedule.think_ns_N[row]))
        return done


_Answer = Callable[[int, int, int, bool], RequestDone]
"""Of a request's index, due time, tokens and whether it is of the warm-up."""


def _answers(server: QueueServer, start_ns: int, block: str, model: str) -> _Answer:
    """First come, first served, by whichever slot is free first."""
    free = [start_ns] * server.slots

    def answer(index: int, due_ns: int, tokens: int, warm: bool) -> RequestDone:
        begins_ns = max(due_ns, heapq.heappop(free))
        chunk_ns = [begins_ns + int(server.service_s * 1e9 * (k + 1) / tokens) for k in range(tokens)]
        heapq.heappush(free, chunk_ns[-1])
        server.seen.answered += 1
        return RequestDone(
            block=block,
            model=model,
            stream=index,
            prompt_tokens=7,
            output_tokens=tokens,
            due_ns=due_ns,
            sent_ns=due_ns,
            done_ns=chunk_ns[-1],
            headers_ns=chunk_ns[0],
            first_ns=chunk_ns[0],
            last_ns=chunk_ns[-1],
            chunk_ns=chunk_ns,
            warm=warm,
        )

    return answer
