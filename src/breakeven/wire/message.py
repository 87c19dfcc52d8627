"""One message: a request as whoever answers gets it, the way back, what whoever asks is told, and refusals.

A body may come packed (`Content-Encoding`); `Unpacker` takes it out of that piece by piece, within its limit.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Sequence
from datetime import UTC
from email.message import Message
from email.utils import collapse_rfc2231_value, parsedate_to_datetime
from importlib import import_module
from typing import Any, Literal, Protocol
from weakref import WeakKeyDictionary

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


LONG_NS = 2_000_000
"""One read that took longer to deal with lets everybody else of its loop go first."""


class Line(Protocol):
    """A connection that is read from."""

    def pause(self) -> None:
        """Take no more bytes."""

    def resume(self) -> None:
        """Take bytes again."""


_in_line: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Line, None]] = WeakKeyDictionary()


def give_way(line: Line) -> None:
    """Take no more of this connection until the loop has been round once, and of all such ones, of one in each round.

    uvloop hands on up to 32 reads of one socket in a row, and of every socket in a round, so that answers which are
    made to keep us busy would stop all others for seconds.
    """
    loop = asyncio.get_running_loop()
    line.pause()
    waiting = _in_line.setdefault(loop, {})
    if not waiting:
        loop.call_soon(_next, loop, waiting)
    waiting[line] = None


def _next(loop: asyncio.AbstractEventLoop, waiting: dict[Line, None]) -> None:
    line = next(iter(waiting))
    del waiting[line]
    if waiting:
        loop.call_soon(_next, loop, waiting)
    line.resume()


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
    also: Headers
    """Headers that whatever is answered carries too."""

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


class _Unpacks(Protocol):
    """What zlib and `compression.zstd` have in common."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int = ..., /) -> bytes: ...


def _gzip() -> _Unpacks:
    return zlib.decompressobj(47)  # gzip or zlib, by its first bytes


def _codings() -> dict[bytes, Callable[[], _Unpacks]]:
    """How bodies may come packed. zstd where this Python has it: from 3.14 on."""
    found: dict[bytes, Callable[[], _Unpacks]] = dict.fromkeys((b"gzip", b"x-gzip", b"deflate"), _gzip)
    try:
        zstd: Any = import_module("compression.zstd")
    except ImportError:
        return found
    return {**found, b"zstd": zstd.ZstdDecompressor}


CODINGS = _codings()
_FREE_BYTES, _PLAIN_A_BYTE, _MOST_MEMBERS = 1 << 20, 64, 64
"""Of a packed body: what it may hold anyhow, and what more for each byte of it; what is beyond is made to keep us busy.
And how often one may end and begin anew."""


class Unpacker:
    """The body of one request, in a coding of `CODINGS`."""

    __slots__ = ("_came", "_held", "_inner", "_make", "_members", "_most")

    def __init__(self, coding: bytes, most: int) -> None:
        """`most`: bytes that it may hold. Raises Refused for a coding that is not read here."""
        make = CODINGS.get(coding)
        if make is None:
            known = ", ".join(sorted(name.decode() for name in CODINGS if name != b"x-gzip"))
            said = coding.decode("latin-1")[:40]
            message = f"a body in Content-Encoding {said!r} is not read here; send it as it is, or in one of {known}"
            raise Refused(415, "content_encoding", message)
        self._make, self._most = make, most
        self._inner: _Unpacks | None = None
        self._came = self._held = self._members = 0

    @property
    def ended(self) -> bool:
        """Whether what came is whole."""
        return self._members > 0 and self._inner is None

    def feed(self, data: bytes) -> bytes:
        """What the next bytes hold. Raises Refused for what is not packed so, or holds too much."""
        self._came += len(data)
        found = []
        while data:
            if self._inner is None:
                self._members += 1
                if self._members > _MOST_MEMBERS:
                    raise Refused(400, "content_encoding", "the body is packed in too many pieces; pack it as one")
                self._inner = self._make()
            room = min(self._most, _FREE_BYTES + _PLAIN_A_BYTE * self._came) - self._held
            try:
                plain = self._inner.decompress(data, room + 1)
            except Exception as error:  # zlib's own and zstd's have no common name
                raise Refused(400, "content_encoding", "the body is not what its Content-Encoding says") from error
            if len(plain) > room:
                if self._held + len(plain) > self._most:
                    raise Refused(
                        413, "body_too_large", f"the body holds more than the {self._most} bytes allowed here"
                    )
                message = f"the body holds more than {_PLAIN_A_BYTE} times its bytes; send it as it is"
                raise Refused(413, "content_encoding", message)
            self._held += len(plain)
            found.append(plain)
            data = b""
            if self._inner.eof:
                data, self._inner = self._inner.unused_data, None
        return b"".join(found)


def parameter(headers: Message, header: str, name: str) -> str | None:
    """What a header says of `name`, None: nothing. Raises Refused where servers would differ in what they read."""
    try:
        found: list[Any] = [value for key, value in headers.get_params([], header) if key == name]
        if len(found) > 1 or len(headers.get_all(header, [])) > 1:
            raise Refused(400, "invalid_request", f"the form says {name} more than once in one place")
        if not found:
            return None
        return found[0] if isinstance(found[0], str) else collapse_rfc2231_value(found[0])
    except (ValueError, TypeError) as error:  # of charsets and parts that are none
        raise Refused(400, "invalid_request", f"the form says {name} in a way that cannot be read") from error


_LONGEST_NUMBER = 12


def asked_wait_s(headers: Headers, unix_s: float) -> float | None:
    """Seconds that an answer asks to be left alone for; None: it asks for none that can be read.

    `retry-after-ms`, else `retry-after`: seconds, with a fraction too, or a date in any of HTTP's three forms, counted
    from the answer's own `date` where it has one and from `unix_s` where not. A date that is over asks for 0.
    """
    told = {name: value for name, value in headers if name in (b"retry-after", b"retry-after-ms", b"date")}
    wait_s = _number(told.get(b"retry-after-ms", b""))
    if wait_s is not None:
        return wait_s / 1000
    value = told.get(b"retry-after", b"")
    if (wait_s := _number(value)) is not None:
        return wait_s
    until_s = _date_s(value)
    if until_s is None:
        return None
    now_s = _date_s(told.get(b"date", b""))
    return max(0.0, until_s - (unix_s if now_s is None else now_s))


def _number(value: bytes) -> float | None:
    text = value.strip()
    good = 0 < len(text) <= _LONGEST_NUMBER and text.replace(b".", b"", 1).isdigit()
    return float(text) if good else None


def _date_s(value: bytes) -> float | None:
    try:
        found = parsedate_to_datetime(value.decode("ascii"))
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()  # HTTP knows no other zone
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
