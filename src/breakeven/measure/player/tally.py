"""What players tell, added up: batches of finished requests on their way to the log, and the moment's view of the run.

Writing a line an answer would cost a system call each, and one process more would cost a message each. A batch is
handed on every `FLUSH_S` or `FLUSH_BYTES`, so a killed run loses no more than that. The view of the last half minute
is a ring of the latest `CAPACITY` answers, so that a run of any length needs the same memory; above 270 answers a
second it spans less. Whether the client can offer what the schedule asks for at all is judged here too.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable

import msgspec
import numpy as np

from breakeven.errors import UserError
from breakeven.measure.events import ClientCeiling, EngineSample, RequestDone
from breakeven.measure.progress import LoadState
from breakeven.traffic.schedule import DEPENDS, Schedule

FLUSH_S = 0.05
FLUSH_BYTES = 65_536


class AnswerDelays(msgspec.Struct, frozen=True, array_like=True):
    """Of one answered request, seconds. `ttft` from due; `lag` is sent minus due."""

    done_ns: int
    ttft: float
    tpot: float | None
    lag: float


class Batch(msgspec.Struct, kw_only=True, array_like=True):
    """News since the batch before. `lines` are whole lines of the event log.

    `begun` lists (index, due_ns) of requests sent off, `ended` indices of those over; both only where someone must
    know what a lost worker leaves behind.
    """

    worker: int
    issued: int = 0
    ended_n: int = 0
    answered: int = 0
    events: int = 0
    """Pieces of output received."""
    last_due_ns: int = 0
    errors: dict[str, int] = {}
    delays: list[AnswerDelays] = []
    begun: list[tuple[int, int]] = []
    ended: list[int] = []
    lines: bytes = b""


class Recorder:
    """Collects what happens on one loop and hands it to `send` in batches.

    `shift_ns` is added to every time of this process's clock to give the clock of the log (zero on one machine).
    """

    def __init__(
        self, send: Callable[[Batch], None], *, worker: int = 0, shift_ns: int = 0, track: bool = False
    ) -> None:
        self._send, self._worker, self._shift_ns, self._track = send, worker, shift_ns, track
        self._encoder = msgspec.json.Encoder()
        self._lines = bytearray()
        self._batch = Batch(worker=worker)

    def begun(self, index: int, due_ns: int) -> None:
        """A request was sent off."""
        batch = self._batch
        batch.issued += 1
        batch.last_due_ns = max(batch.last_due_ns, due_ns + self._shift_ns)
        if self._track:
            batch.begun.append((index, due_ns + self._shift_ns))

    def done(self, done: RequestDone) -> None:
        """A request is over."""
        batch = self._batch
        batch.ended_n += 1
        batch.events += len(done.chunk_ns)
        if self._track:
            batch.ended.append(done.stream)
        self._summarise(done, batch)
        self._encoder.encode_into(shifted(done, self._shift_ns) if self._shift_ns else done, self._lines, -1)
        self._lines += b"\n"
        if len(self._lines) >= FLUSH_BYTES:
            self.flush()

    def never_sent(self, done: RequestDone) -> None:
        """A request that was planned and could not be sent: logged and counted as issued and ended."""
        self.begun(done.stream, done.due_ns)
        self.done(done)

    def flush(self) -> None:
        """Hand on what has come together, if anything has."""
        batch = self._batch
        if batch.issued or batch.ended_n:
            batch.lines = bytes(self._lines)
            self._lines.clear()
            self._batch = Batch(worker=self._worker)
            self._send(batch)

    def _summarise(self, done: RequestDone, batch: Batch) -> None:
        if done.error is not None:
            batch.errors[done.error] = batch.errors.get(done.error, 0) + 1
            return
        batch.answered += 1
        first_ns = done.done_ns if done.first_ns is None else done.first_ns
        tpot = None
        if done.first_ns is not None and done.last_ns is not None and done.output_tokens > 1:
            tpot = (done.last_ns - done.first_ns) / 1e9 / (done.output_tokens - 1)
        ttft, lag = (first_ns - done.due_ns) / 1e9, (done.sent_ns - done.due_ns) / 1e9
        batch.delays.append(AnswerDelays(done.done_ns + self._shift_ns, ttft, tpot, lag))


def shifted(done: RequestDone, by_ns: int) -> RequestDone:
    """`done` with every time moved by `by_ns`, as from a worker's clock to the driver's. Pure."""

    def move(at_ns: int | None) -> int | None:
        return None if at_ns is None else at_ns + by_ns

    return msgspec.structs.replace(
        done,
        due_ns=done.due_ns + by_ns,
        sent_ns=done.sent_ns + by_ns,
        done_ns=done.done_ns + by_ns,
        headers_ns=move(done.headers_ns),
        first_ns=move(done.first_ns),
        last_ns=move(done.last_ns),
        issued_ns=move(done.issued_ns),
        chunk_ns=[at_ns + by_ns for at_ns in done.chunk_ns],
    )


WINDOW_S = 30.0
RATE_WINDOW_S = 10.0
CAPACITY = 8_192


class LiveWindow:
    """Delays of recent answers, in seconds, and how fast answers and pieces of output come."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._rows_X4 = np.full((capacity, 4), np.nan)
        """Columns: done (s), ttft, tpot, lag."""
        self._next = 0
        self._totals: deque[tuple[int, int, int]] = deque()

    def add(self, delays: Iterable[AnswerDelays]) -> None:
        """Remember answers; the oldest make room."""
        for one in delays:
            tpot = np.nan if one.tpot is None else one.tpot
            self._rows_X4[self._next % len(self._rows_X4)] = (one.done_ns / 1e9, one.ttft, tpot, one.lag)
            self._next += 1

    def percentile(self, what: str, p: float, now_ns: int) -> float | None:
        """Percentile `p` of "ttft", "tpot" or "lag" over the last `WINDOW_S`, seconds; None when there is none."""
        column = ("ttft", "tpot", "lag").index(what) + 1
        recent_X = self._rows_X4[:, 0] >= now_ns / 1e9 - WINDOW_S
        values = self._rows_X4[recent_X, column]
        values = values[~np.isnan(values)]
        return float(np.percentile(values, p)) if len(values) else None

    def rates(self, now_ns: int, answered: int, events: int) -> tuple[float | None, float | None]:
        """Answers and pieces of output a second over the last `RATE_WINDOW_S`, from the totals so far."""
        self._totals.append((now_ns, answered, events))
        while len(self._totals) > 2 and now_ns - self._totals[1][0] >= RATE_WINDOW_S * 1e9:
            self._totals.popleft()
        then_ns, answered_then, events_then = self._totals[0]
        seconds = (now_ns - then_ns) / 1e9
        if seconds <= 0:
            return None, None
        return (answered - answered_then) / seconds, (events - events_then) / seconds


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


class RunTally:
    """Adds batches up. Set `start_ns` when the run starts."""

    def __init__(self, model: str, load: str, schedule: Schedule, ceiling: ClientCeiling | None) -> None:
        self.start_ns = 0
        self.last_due_ns = 0
        self._model, self._load, self._ceiling = model, load, ceiling
        self._due_T = offered_ns(schedule)
        self._issued = self._ended = self._answered = self._events = 0
        self._errors: dict[str, int] = {}
        self._window = LiveWindow()
        workload = schedule.workload
        self._of_s: float | None = None
        if not workload.arrivals.is_closed:
            self._of_s = float(self._due_T[-1]) / 1e9 if len(self._due_T) else None
        elif workload.duration_s is not None:
            self._of_s = workload.warm_up_s + workload.duration_s

    def add(self, batch: Batch) -> None:
        """Count what a batch brings."""
        self._issued += batch.issued
        self._ended += batch.ended_n
        self._answered += batch.answered
        self._events += batch.events
        self.last_due_ns = max(self.last_due_ns, batch.last_due_ns)
        for kind, count in batch.errors.items():
            self._errors[kind] = self._errors.get(kind, 0) + count
        self._window.add(batch.delays)

    def state(self, engine: EngineSample | None) -> LoadState:
        """This moment."""
        now_ns = time.monotonic_ns()
        achieved, events = self._window.rates(now_ns, self._answered, self._events)

        def recent(what: str, p: float) -> float | None:
            return self._window.percentile(what, p, now_ns)

        return LoadState(
            model=self._model,
            load=self._load,
            elapsed_s=max(0.0, (now_ns - self.start_ns) / 1e9),
            of_s=self._of_s,
            offered_per_s=self._offered_per_s(now_ns - self.start_ns),
            achieved_per_s=achieved,
            issued=self._issued,
            answered=self._answered,
            in_flight=self._issued - self._ended,
            errors=dict(self._errors),
            ttft_p50_s=recent("ttft", 50),
            ttft_p99_s=recent("ttft", 99),
            tpot_p50_s=recent("tpot", 50),
            tpot_p99_s=recent("tpot", 99),
            lag_p99_s=recent("lag", 99),
            headroom=self._share_in_use(achieved, events),
            engine_running=engine.running if engine else None,
            engine_waiting=engine.waiting if engine else None,
        )

    def _offered_per_s(self, since_start_ns: int) -> float | None:
        """Requests that a clock made due over the last `RATE_WINDOW_S`, or since the start, a second."""
        window_ns = min(since_start_ns, round(RATE_WINDOW_S * 1e9))
        if not len(self._due_T) or window_ns <= 0:
            return None
        from_, to = np.searchsorted(self._due_T, (since_start_ns - window_ns, since_start_ns))
        return float(to - from_) / (window_ns / 1e9)

    def _share_in_use(self, requests_per_s: float | None, events_per_s: float | None) -> float | None:
        if self._ceiling is None or requests_per_s is None or events_per_s is None:
            return None
        return max(requests_per_s / self._ceiling.requests_per_s, events_per_s / self._ceiling.stream_events_per_s)
