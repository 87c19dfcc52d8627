"""One request under way: what was asked, who is told, and since when it waits for what."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from breakeven.wire.upstream.types import Sink, Trouble

if TYPE_CHECKING:
    from breakeven.wire.upstream.client import Upstream
    from breakeven.wire.upstream.connection import Connection


class Call:
    """An `Exchange`. Ends once: by `end`, `trouble` or `cancel`, whichever comes first; then its sink is let go.

    Times are monotonic seconds.
    """

    __slots__ = (
        "body",
        "client",
        "connection",
        "first_byte_s",
        "head",
        "head_only",
        "heard_s",
        "limit_bytes",
        "over",
        "paused",
        "sent_s",
        "sink",
        "started_s",
        "task",
        "total_s",
        "waiting_body",
    )

    def __init__(self, client: Upstream, head: bytes, body: bytes, sink: Sink | None, now_s: float) -> None:
        self.client, self.head, self.body, self.sink = client, head, body, sink
        self.started_s = self.sent_s = self.heard_s = now_s
        self.first_byte_s = client.timeouts.first_byte_s
        self.total_s = client.timeouts.total_s
        self.limit_bytes = client.response_bytes
        self.connection: Connection | None = None
        self.task: asyncio.Task[None] | None = None
        self.over = self.paused = self.head_only = False
        self.waiting_body = True

    def cancel(self) -> None:
        """Close its connection now; the sink hears nothing more."""
        if not self.over:
            self._leave(keep=False)

    def pause(self) -> None:
        """Take no more bytes until `resume`; a pause does not count as the backend's silence."""
        if not self.over and not self.paused:
            self.paused = True
            if self.connection is not None:
                self.connection.pause()

    def resume(self) -> None:
        """Take bytes again."""
        if not self.over and self.paused:
            self.paused = False
            self.heard_s = self.client.now_s()
            if self.connection is not None:
                self.connection.resume()

    # Called by the connection and the client.

    def end(self, *, keep: bool) -> None:
        """The answer is whole. `keep`: its connection may serve again."""
        sink = self._leave(keep=keep)
        if sink is not None:
            sink.on_end()

    def trouble(self, trouble: Trouble, detail: str) -> None:
        """The answer will not be whole. Does nothing when the call is over."""
        if self.over:
            return
        sink = self._leave(keep=False)
        if sink is not None:
            sink.on_trouble(trouble, detail)

    def _leave(self, *, keep: bool) -> Sink | None:
        # Everything is let go before the sink is told, so that it may send the next request right there.
        self.over = True
        sink, self.sink = self.sink, None
        connection, self.connection = self.connection, None
        task, self.task = self.task, None
        self.client.forget(self)
        if task is not None:
            task.cancel()
        if connection is not None:
            connection.leave(keep=keep)
        self.body = self.head = b""
        return sink
