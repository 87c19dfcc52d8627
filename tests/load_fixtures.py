"""A server whose behaviour under load is a few numbers, schedules by hand, and bodies that need no tokenizer."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from breakeven.engines.backend import Backend
from breakeven.measure.events import Event, EventWriter, LoadDone, LoadStarted, RequestDone, read_events
from breakeven.measure.player.run import run_load
from breakeven.traffic.schedule import DEPENDS, Schedule
from breakeven.traffic.workload import Arrivals, Workload
from breakeven.wire.behaviours import stream, whole
from breakeven.wire.completions import ScriptedRequest
from breakeven.wire.scripted import ScriptedServer, Step

MS = 1_000_000


class PlainServer(ScriptedServer):
    """Answers every POST with a stream of as many pieces as were asked for, `gap_s` apart, the first after `wait_s`.

    From request `stall_at` on, for `stall_s`, nobody is answered. `fail`: indices answered with status 500; `hang`:
    indices never answered.
    """

    def __init__(
        self,
        *,
        wait_s: float = 0.0,
        gap_s: float = 0.0,
        stall_at: int | None = None,
        stall_s: float = 0.0,
        fail: frozenset[int] = frozenset(),
        hang: frozenset[int] = frozenset(),
    ) -> None:
        super().__init__(self._step, first_s=wait_s, chunk_s=gap_s, end_s=0.0, usage_always=True)
        self.stall_at, self.stall_s, self.fail, self.hang = stall_at, stall_s, fail, hang
        self.indices: list[int] = []
        """"i" of each body, in order of arrival."""
        self.stalled_until_ns = 0
        self.stalled_ns = (0, 0)

    @property
    def server(self) -> PlainServer:
        """Itself."""
        return self

    @property
    def most_in_flight(self) -> int:
        """Requests under way at one time."""
        return self.seen.most_under_way

    def _step(self, question: ScriptedRequest) -> Step:
        body = question.fields
        index, now_ns = int(body["i"]), time.monotonic_ns()
        if len(self.indices) == self.stall_at:
            self.stalled_until_ns = now_ns + round(self.stall_s * 1e9)
            self.stalled_ns = now_ns, self.stalled_until_ns
        self.indices.append(index)
        if index in self.hang:
            return "stall"
        if index in self.fail:
            return whole(b"oops", status=500)
        question.prompt_tokens = body["n"]
        question.first_s += max(0, self.stalled_until_ns - now_ns) / 1e9
        return stream(question)


@contextmanager
def plain_server(**settings: Any) -> Iterator[PlainServer]:
    """The server on a loop of its own; `down` and `up` make the port vanish and come back."""
    with PlainServer(**settings) as server:
        yield server


@dataclass(frozen=True)
class PlainBodies:
    """What `prepare_bodies` would give, without a tokenizer."""

    schedule: Schedule
    path: str = "/v1/completions"
    exact: bool = True
    ignore_eos: bool = True

    def body(self, i: int) -> bytes:
        return json.dumps({"i": i, "n": self.prompt_tokens(i), "max_tokens": self.max_tokens(i)}).encode()

    def max_tokens(self, i: int) -> int:
        return int(self.schedule.output_N[i % len(self.schedule)])

    def prompt_tokens(self, i: int) -> int:
        return int(self.schedule.prompt_N[i % len(self.schedule)])


def schedule_of(
    due_s: Sequence[float | None],
    *,
    output: int = 3,
    workload: Workload | None = None,
    session: Sequence[int] | None = None,
    turn: Sequence[int] | None = None,
    think_s: float = 0.0,
) -> Schedule:
    """A schedule from due times in seconds (None: depends)."""
    n = len(due_s)
    workload = workload or Workload(arrivals=Arrivals(process="constant", rate_per_s=1.0))
    due_ns_N = np.array([DEPENDS if due is None else round(due * 1e9) for due in due_s], dtype=np.int64)
    return Schedule(
        workload=workload,
        due_ns_N=due_ns_N,
        prompt_N=np.full(n, 7, np.int32),
        output_N=np.full(n, output, np.int32),
        warm_N=(due_ns_N >= 0) & (due_ns_N < workload.warm_up_s * 1e9),
        session_N=np.array(session if session is not None else [-1] * n, dtype=np.int64),
        turn_N=np.array(turn if turn is not None else [0] * n, dtype=np.int32),
        think_ns_N=np.full(n, round(think_s * 1e9), np.int64),
    )


def closed_schedule(
    n: int, concurrency: int, *, think_s: float = 0.0, duration_s: float | None = None, requests: int | None = None
) -> Schedule:
    workload = Workload(
        arrivals=Arrivals(process="closed", concurrency=concurrency, think_s=think_s),
        duration_s=duration_s,
        requests=requests,
    )
    return schedule_of([None] * n, workload=workload, think_s=think_s)


def backend_at(url: str) -> Backend:
    return Backend(url=url, model="plain", api_key_env=None, settings={"engine": "unknown"}, pid=None, load_s=None)


@dataclass
class Played:
    """A run and its log."""

    done: LoadDone
    events: list[Event]

    @property
    def started(self) -> LoadStarted:
        return next(event for event in self.events if isinstance(event, LoadStarted))

    @property
    def requests(self) -> list[RequestDone]:
        return [event for event in self.events if isinstance(event, RequestDone)]

    def by_index(self) -> dict[int, RequestDone]:
        found = {request.stream: request for request in self.requests}
        assert len(found) == len(self.requests), "an index came twice"
        return found


def play(url: str, schedule: Schedule, path: Path, **options: Any) -> Played:
    """Play `schedule` and read the log back."""
    with EventWriter(path) as log:
        done = run_load(
            backend_at(url),
            schedule,
            options.pop("bodies", None) or PlainBodies(schedule),  # type: ignore[arg-type]
            log,
            block="b",
            model="plain",
            load="test",
            schedule_file="schedule.jsonl",
            **options,
        )
    return Played(done, read_events(path))
