"""What the edge hands to whoever answers, and what it gets back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

Headers = Sequence[tuple[bytes, bytes]]
"""Names in lower case."""


class Request:
    """One whole request. `path` is as sent, without query, not decoded; `received_ns`: monotonic, of its first byte."""

    __slots__ = ("body", "headers", "method", "path", "peer", "query", "received_ns")

    def __init__(
        self, method: str, path: str, query: str, headers: Headers, body: bytes, peer: str, received_ns: int
    ) -> None:
        self.method, self.path, self.query, self.headers = method, path, query, headers
        self.body, self.peer, self.received_ns = body, peer, received_ns

    def header(self, name: bytes) -> bytes | None:
        """The first header of this lower-case name."""
        for key, value in self.headers:
            if key == name:
                return value
        return None


class Responder(Protocol):
    """The way back to one client. Exactly one of `respond`, `finish`, `abort` ends it.

    Calls after `gone` do nothing.
    """

    gone: bool
    """The client has left, or was dropped."""
    paused: bool
    """The client takes no more for now; `on_resume` is called when it does."""
    on_gone: Callable[[], None] | None
    on_pause: Callable[[], None] | None
    on_resume: Callable[[], None] | None

    def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """A whole answer; content-length is added."""

    def start(self, status: int, headers: Headers) -> None:
        """The head of an answer that comes in pieces: chunked unless `headers` has a content-length."""

    def write(self, data: bytes) -> None:
        """A piece, handed to the socket at once."""

    def finish(self) -> None:
        """The answer is whole."""

    def abort(self) -> None:
        """The answer was cut: close the connection so that the client can tell."""


Handler = Callable[[Request, Responder], None]
"""Called on the loop as soon as a request is whole; may answer at once or later."""
