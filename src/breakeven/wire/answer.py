"""One answer on its way to a client. Made for one request and never used for another.

So whoever still holds it after its end, a backend's late bytes say, reaches nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Protocol

from breakeven.wire.message import Headers

LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_OURS = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"content-length", b"date", b"upgrade"})
"""Headers that the edge sets, or decides about."""
_COPY_BYTES = 1 << 14
"""Longer bodies are handed over beside their frame instead of being copied into one piece with it."""

# What bounds the body.
_WAITING, _CHUNKED, _COUNTED, _UNTIL_CLOSE, _NONE, _RAW = range(6)


class Host(Protocol):
    """What an answer needs to know of the server."""

    date_line: bytes
    draining: bool


class ServerLine(Protocol):
    """The connection that an answer goes out on. `keep`: it stays open afterwards. `old`: the request was HTTP/1.0."""

    keep: bool
    old: bool

    @property
    def server(self) -> Host: ...

    def send(self, data: bytes) -> None:
        """Hand bytes to the socket."""

    def send_all(self, parts: tuple[bytes, ...]) -> None:
        """Hand several pieces to the socket, uncopied."""

    def peer(self) -> str:
        """Address and port of the client."""

    def ended(self) -> None:
        """The answer is whole."""

    def cut(self, *, reset: bool) -> None:
        """The answer ends here. `reset`: an ordinary close would look like its end."""


class HttpAnswer:
    """A `Responder`."""

    __slots__ = (
        "_bound", "_connection", "_head_only", "_left", "also", "gone", "on_gone", "on_pause", "on_resume", "paused",
    )  # fmt: skip

    def __init__(self, connection: ServerLine, head_only: bool, paused: bool) -> None:
        """`head_only`: the request was HEAD."""
        self._connection: ServerLine | None = connection
        self._head_only = head_only
        self._bound = _WAITING
        self._left = 0
        self.gone = False
        self.also: Headers = ()
        self.paused = paused
        self.on_gone: Callable[[], None] | None = None
        self.on_pause: Callable[[], None] | None = None
        self.on_resume: Callable[[], None] | None = None

    def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """A whole answer; content-length is added."""
        connection = self._connection
        if connection is None:
            return
        if self._bound != _WAITING:
            raise RuntimeError("this answer has begun already")
        if status in (204, 304):
            head, body = self._head(connection, status, headers, b""), b""
        else:
            head = self._head(connection, status, headers, b"content-length: %d\r\n" % len(body))
        self._release()
        if self._head_only or not body:
            connection.send(head)
        elif len(body) < _COPY_BYTES:
            connection.send(head + body)
        else:
            connection.send_all((head, body))
        connection.ended()

    def start(self, status: int, headers: Headers) -> None:
        """The head of an answer that comes in pieces: chunked unless `headers` has a content-length."""
        connection = self._connection
        if connection is None:
            return
        if self._bound != _WAITING:
            raise RuntimeError("this answer has begun already")
        length = next((value for name, value in headers if name == b"content-length"), None)
        if status in (204, 304):
            framing, bound = b"", _NONE
        elif length is not None:
            framing, bound = b"content-length: %d\r\n" % int(length), _COUNTED
            self._left = int(length)
        elif connection.old:
            framing, bound = b"", _UNTIL_CLOSE
            connection.keep = False
        else:
            framing, bound = b"transfer-encoding: chunked\r\n", _CHUNKED
        head = self._head(connection, status, headers, framing)
        self._bound = _NONE if self._head_only else bound
        connection.send(head)

    def write(self, data: bytes) -> None:
        """A piece, handed to the socket at once."""
        connection = self._connection
        if connection is None or not data:
            return
        size = len(data)
        bound = self._bound
        if bound == _CHUNKED:
            if size < _COPY_BYTES:
                connection.send(b"%x\r\n%b\r\n" % (size, data))
            else:
                connection.send_all((b"%x\r\n" % size, data, b"\r\n"))
        elif bound == _COUNTED:
            if size > self._left:  # what goes beyond would be read as the next answer
                self.abort()
                return
            self._left -= size
            connection.send(data)
        elif bound == _UNTIL_CLOSE:
            connection.send(data)
        elif bound == _WAITING:
            raise RuntimeError("write() comes after start()")

    def raw(self, data: bytes) -> None:
        """Bytes as they are, head and framing among them: for answers made beforehand, or wrong on purpose."""
        connection = self._connection
        if connection is not None:
            self._bound = _RAW
            connection.send(data)

    def finish(self) -> None:
        """The answer is whole."""
        connection = self._connection
        if connection is None:
            return
        if self._bound == _WAITING:
            raise RuntimeError("finish() comes after start()")
        if self._left and self._bound == _COUNTED:
            self.abort()
            return
        self._release()
        if self._bound == _CHUNKED:
            connection.send(b"0\r\n\r\n")
        connection.ended()

    def abort(self, *, reset: bool = False) -> None:
        """The answer was cut: close the connection so that the client can tell. `reset`: whatever bounds the body."""
        connection = self._connection
        if connection is None:
            return
        self._release()
        connection.cut(reset=reset or self._bound == _UNTIL_CLOSE)

    @property
    def peer(self) -> str:
        """Where it goes: address and port; empty once it has ended."""
        return "" if self._connection is None else self._connection.peer()

    @property
    def begun(self) -> bool:
        """Whether the client has been sent something."""
        return self._bound != _WAITING

    def lose(self) -> None:
        """The client is gone: tell whoever answers, once."""
        if self._connection is None:
            return
        self.gone = True
        tell = self.on_gone
        self._release()
        if tell is not None:
            tell()

    def _release(self) -> None:
        # Whoever answers holds this answer, which holds their methods: without the circle both go at once.
        self._connection = self.on_gone = self.on_pause = self.on_resume = None

    def _head(self, connection: ServerLine, status: int, headers: Headers, framing: bytes) -> bytes:
        line = LINES.get(status) or b"HTTP/1.1 %d Unknown\r\n" % status
        parts = [line, connection.server.date_line, framing]
        lines = 1 + bool(framing) + 1
        for name, value in (*headers, *self.also) if self.also else headers:
            if name in _OURS:
                if name == b"connection" and value.lower() == b"close":
                    connection.keep = False
                continue
            parts += (name, b": ", value, b"\r\n")
            lines += 1
        if not connection.keep or connection.server.draining:
            connection.keep = False
            parts.append(b"connection: close\r\n\r\n")
            lines += 2
        elif connection.old:
            parts.append(b"connection: keep-alive\r\n\r\n")
            lines += 2
        else:
            parts.append(b"\r\n")
            lines += 1
        head = b"".join(parts)
        if head.count(b"\n") != lines or head.count(b"\r") != lines:
            raise ValueError("a header of an answer has a line break in it")
        return head
