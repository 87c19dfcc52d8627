"""One message: a request as whoever answers gets it, the way back, what whoever asks is told, and refusals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import msgspec

Headers = Sequence[tuple[bytes, bytes]]
"""Names in lower case."""


class Request:
    """One request. `path` is as sent, without query, not decoded; `received_ns`: monotonic, of its first byte.

    Whoever judges its head before the body is there may leave in `known` what it found out of whoever asks; it is
    gone again where the body came later. `share`: its part of the bytes that all bodies may take, while it is large.
    """

    __slots__ = ("body", "headers", "known", "method", "path", "peer", "query", "received_ns", "share")

    def __init__(
        self, method: str, path: str, query: str, headers: Headers, body: bytes, peer: str, received_ns: int
    ) -> None:
        self.method, self.path, self.query, self.headers = method, path, query, headers
        self.body, self.peer, self.received_ns = body, peer, received_ns
        self.known: object | None = None
        self.share: HeldBytes | None = None

    def header(self, name: bytes) -> bytes | None:
        """The first header of this lower-case name."""
        for key, value in self.headers:
            if key == name:
                return value
        return None


class HeldBytes(Protocol):
    """Something that a request holds as long as it is under way."""

    def free(self) -> None:
        """It is over."""


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
Judge = Callable[[Request], bool]
"""Called when a head is complete and a body follows: whether that body is to be kept. Where it is not, the handler is
called at once with an empty body, and refuses for the same reason."""


Trouble = Literal["refused", "unreachable", "reset", "timeout", "garbage", "cut", "too_large", "forbidden"]
"""Why an exchange ended badly. refused: nobody listens. reset: closed before the answer was whole, no body byte seen.
cut: closed in the middle of the body. forbidden: an address that may not be asked. timeout: see the detail."""


class Sink(Protocol):
    """Who receives an answer. Calls come on the loop, in order; exactly one of `on_end` and `on_trouble` comes last."""

    def on_head(self, status: int, headers: Headers) -> None: ...

    def on_body(self, data: bytes) -> None: ...

    def on_end(self) -> None: ...

    def on_trouble(self, trouble: Trouble, detail: str) -> None: ...


_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
}


class Refused(Exception):  # noqa: N818 - an answer, not a fault of ours
    """What a client sent cannot be served: `status` and `code` for it, the text says what to do.

    `retry_s`: when it may be tried again; 0: not as it is.
    """

    def __init__(self, status: int, code: str, message: str, retry_s: int = 0) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.retry_s = status, code, message, retry_s


class _Detail(msgspec.Struct, frozen=True):
    message: str
    type: str
    param: None
    code: str | None


class _Body(msgspec.Struct, frozen=True):
    error: _Detail


_encode = msgspec.json.Encoder().encode


def error_body(status: int, message: str, kind: str | None = None, code: str | None = None) -> bytes:
    """`{"error": {"message", "type", "param", "code"}}`; without `kind` the type that OpenAI uses for `status`."""
    if kind is None:
        kind = _KINDS.get(status) or ("server_error" if status >= 500 else "invalid_request_error")
    return _encode(_Body(_Detail(message, kind, None, code)))
