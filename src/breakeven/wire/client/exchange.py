"""One request on the wire and its answer: what was asked, when each thing happened, and how it ended.

An exchange ends exactly once, with a RequestDone handed to whoever started it. Every time in it is of
`time.monotonic_ns`, taken when the system handed us the bytes, before anybody looked at them.
"""

from __future__ import annotations

import email.utils
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from breakeven.measure.events import RequestDone
from breakeven.wire.client.reply import BrokenStreamError, Reply

if TYPE_CHECKING:
    from breakeven.wire.client.connection import Connection
    from breakeven.wire.client.pool import Pool

MAX_WHOLE_BYTES = 64 << 20
"""An answer in one piece that is longer than this is no completion."""
_DETAIL_CHARS = 300
_REFUSAL_BYTES = 4 * _DETAIL_CHARS
_WAIT_STATUSES = (429, 503)


@dataclass(slots=True, kw_only=True)
class Call:
    """One request to make: the bytes to send and what to write down about it.

    `index` becomes `RequestDone.stream`. `prompt_tokens` and `max_tokens` are what is asked for; `stream` False when
    `body` asks for the answer in one piece. `ignore_eos`: fewer than `max_tokens` tokens is an error ("short").
    A timeout of None means the pool's own.
    """

    block: str
    index: int
    path: str
    body: bytes
    prompt_tokens: int
    max_tokens: int
    due_ns: int | None
    """None: due when it is issued."""
    stream: bool = True
    ignore_eos: bool = False
    warm: bool = False
    session: int | None = None
    turn: int = 0
    worker: int = 0
    stall_timeout_s: float | None = None
    total_timeout_s: float | None = None


class Exchange:
    """A request under way. Made by `Pool.start`; the only thing to do with it is to cancel it."""

    __slots__ = (
        "_on_done",
        "_on_first",
        "_pool",
        "_whole",
        "call",
        "connection",
        "drain_until_ns",
        "headers_ns",
        "heard_ns",
        "issued_ns",
        "over",
        "reconnected",
        "reply",
        "retry_after_s",
        "sent_ns",
        "stall_ns",
        "status",
        "total_ns",
    )

    def __init__(
        self,
        pool: Pool,
        call: Call,
        issued_ns: int,
        on_done: Callable[[RequestDone], None],
        on_first: Callable[[], None] | None,
    ) -> None:
        self._pool, self.call = pool, call
        self._on_done: Callable[[RequestDone], None] | None = on_done
        self._on_first = on_first
        self._whole: list[bytes] = []
        """Pieces of a body that is not a stream: an answer in one piece, or the text of a refusal."""
        self.reply = Reply()
        self.connection: Connection | None = None
        self.over = False
        self.reconnected = False
        self.issued_ns = issued_ns
        self.sent_ns = 0
        """0: not sent yet."""
        self.headers_ns: int | None = None
        self.heard_ns = issued_ns
        """When it last moved on: issued, sent, or bytes came."""
        self.drain_until_ns: int | None = None
        self.status = 0
        """HTTP status of the answer, 0 while there is none."""
        self.retry_after_s: float | None = None
        self.stall_ns = 0
        self.total_ns: int | None = None

    def cancel(self) -> None:
        """End it here and now as "cancelled"; no effect on one that is over."""
        self.end("cancelled", "cancelled by the client")

    def take(self, piece: bytes, now_ns: int) -> None:
        """Bytes of the body, arrived at `now_ns`. Ends the exchange when they are no answer."""
        if self.status == 200 and self.call.stream:
            reply = self.reply
            try:
                reply.feed(piece, now_ns)
            except BrokenStreamError as error:
                self._first()
                self.end(error.kind, str(error))
                return
            if self._on_first is not None and reply.chunk_ns:
                self._first()
        else:
            self._whole.append(piece)
            limit = MAX_WHOLE_BYTES if self.status == 200 else _REFUSAL_BYTES
            if (len(self._whole) > 1 or len(piece) > limit) and sum(map(len, self._whole)) > limit:
                if self.status == 200:
                    self.end("broken_stream", f"the answer is longer than {limit} bytes")
                else:
                    self.end_by_status()

    def end_of_body(self, now_ns: int) -> None:
        """The body is complete; `now_ns` is when its last byte came."""
        if self.status != 200:
            self.end_by_status(close=False)
            return
        reply = self.reply
        try:
            if not self.call.stream:
                reply.take_whole(b"".join(self._whole), now_ns)
            elif reply.done_ns is None:
                reply.end()
        except BrokenStreamError as error:
            self.end(error.kind, str(error), close=False)
        else:
            self.end(None, None, close=False)

    def end_by_status(self, *, close: bool = True) -> None:
        """The server answered with an HTTP error; what came of its text is kept as the detail."""
        self.end(f"http_{self.status}", b"".join(self._whole).decode(errors="replace"), close=close)

    def cut(self, detail: str, kind: str = "reset") -> None:
        """The connection broke, or time is up: an error of `kind`, unless what came before says more."""
        if self.reply.done_ns is not None:
            self.reply.note("no_close_after_done")
            self.end(None, None)
        elif self.status not in (0, 200):
            self.end_by_status()
        else:
            self.end(kind, detail)

    def end(self, error: str | None, detail: str | None, *, close: bool = True) -> None:
        """Over, once. `close`: the connection is of no more use."""
        if self.over:
            return
        self.over = True
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.leave(keep=not close)
        on_done, self._on_done, self._on_first = self._on_done, None, None
        pool = self._pool
        pool.forget(self)
        if on_done is not None:
            on_done(self._result(error, detail, pool))

    def note_retry_after(self, value: str, date: str) -> None:
        """Keep what a `Retry-After` header asks: seconds, or a date, counted from the answer's own `Date`."""
        if self.status not in _WAIT_STATUSES or not value:
            return
        try:
            self.retry_after_s = float(value)
        except ValueError:
            try:
                until, now = (email.utils.parsedate_to_datetime(text) for text in (value, date))
                self.retry_after_s = (until - now).total_seconds()
            except (ValueError, TypeError):  # neither seconds nor dates, or dates with and without a time zone
                return
        if not 0 <= self.retry_after_s < float("inf"):
            self.retry_after_s = None

    def _first(self) -> None:
        on_first, self._on_first = self._on_first, None
        if on_first is not None and self.reply.chunk_ns:
            on_first()

    def _result(self, error: str | None, detail: str | None, pool: Pool) -> RequestDone:
        call, reply, backend = self.call, self.reply, pool.backend
        count = reply.output_tokens
        if error is None and call.ignore_eos and count < call.max_tokens and reply.counted:
            error, detail = "short", f"{count} tokens came of {call.max_tokens} asked for"
        if self.reconnected:
            reply.note("reconnected")
        times, usage = reply.chunk_ns, reply.usage
        return RequestDone(
            block=call.block,
            model=backend.model,
            stream=call.index,
            prompt_tokens=usage.prompt_tokens if usage is not None else call.prompt_tokens,
            output_tokens=count,
            due_ns=self.issued_ns if call.due_ns is None else call.due_ns,
            sent_ns=self.sent_ns or self.issued_ns,
            done_ns=reply.done_ns or time.monotonic_ns(),
            headers_ns=self.headers_ns,
            first_ns=times[0] if times else None,
            last_ns=times[-1] if times else None,
            chunk_ns=times,
            chunk_tokens=reply.tokens_by_chunk(),
            usage=usage,
            server_timings=reply.timings,
            error=error,
            detail=None if detail is None else pool.tidy(detail)[:_DETAIL_CHARS],
            anomalies=reply.anomalies(call.max_tokens, several_usages_expected=backend.engine == "vllm"),
            issued_ns=self.issued_ns,
            asked_prompt_tokens=call.prompt_tokens,
            asked_output_tokens=call.max_tokens,
            warm=call.warm,
            session=call.session,
            turn=call.turn,
            worker=call.worker,
            retry_after_s=self.retry_after_s,
        )
