"""What a player of the schedule tells: its finished requests as lines of the log, in batches, with a short summary.

Writing a line an answer would cost a system call each, and one process more would cost a message each. A batch is
handed on every `FLUSH_S` or `FLUSH_BYTES`, so a killed run loses no more than that.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from breakeven.measure.events import RequestDone

FLUSH_S = 0.05
FLUSH_BYTES = 65_536


class Delays(msgspec.Struct, frozen=True, array_like=True):
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
    delays: list[Delays] = []
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
        batch.delays.append(Delays(done.done_ns + self._shift_ns, ttft, tpot, lag))


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
