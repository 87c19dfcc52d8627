"""One message: a request as whoever answers gets it, the way back, what whoever asks is told, and refusals.

And how deep a JSON body may nest, before anybody decodes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Literal, Protocol

import msgspec

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
    """What a client sent cannot be served: `status` and `code` for it, the text says what to do."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


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


_PART_BYTES = 1 << 16
_NOT_BRACKETS = bytes(c for c in range(256) if c not in b"[]{}")
_STEPS = bytes(1 if c in b"[{" else 255 for c in range(256))
"""An opening bracket as +1, a closing one as -1, once read as signed bytes."""


def json_too_deep(body: bytes, depth: int) -> bool:
    """Whether arrays and objects in `body` nest more than `depth` deep. Brackets within strings do not count.

    Never False for JSON that nests deeper; what is not JSON gets some answer. Most bodies have fewer brackets than
    `depth` in all and are not looked at further. The rest is cut at its quotes part by part, so that memory stays
    bounded whatever is sent, by functions that run in C.
    """
    if body.count(b"[") + body.count(b"{") <= depth:
        return False
    level, in_string, at, end = 0, False, 0, len(body)
    while at < end:
        upto = min(at + _PART_BYTES, end)
        while upto < end and body[upto - 1] == 0x5C:  # a backslash belongs to what follows
            upto += 1
        part = body[at:upto]
        at = upto
        if b"\\" in part:
            part = part.replace(b"\\\\", b"").replace(b'\\"', b"")
        pieces = part.split(b'"')
        brackets = b"".join(pieces[in_string::2]).translate(None, _NOT_BRACKETS)
        in_string ^= len(pieces) % 2 == 0
        if brackets:
            levels = list(accumulate(_signed(brackets), initial=level))
            if max(levels) > depth:
                return True
            level = levels[-1]
    return False


def _signed(brackets: bytes) -> memoryview:
    return memoryview(brackets.translate(_STEPS)).cast("b")
