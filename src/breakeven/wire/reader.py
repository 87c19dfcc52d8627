"""From bytes to requests, without a socket: llhttp's callbacks and the limits on what arrives.

A reader that has failed is done: what it had taken whole before stands in `ahead`, why it failed in `failure`.

llhttp refuses by itself: NUL, bare CR or LF and folded lines in headers, spaces before a colon, several or malformed
Content-Lengths, Content-Length beside Transfer-Encoding. `_check_head` refuses what it lets through.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Protocol

import httptools

from breakeven.wire.message import Headers, Refused, Request

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"})
"""llhttp knows many more, some of other protocols."""
_WATCHED = frozenset({b"host", b"content-length", b"transfer-encoding", b"expect"})
_HOST_BYTES = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~!$&'()*+,;=:[]%"
"""RFC 3986, section 3.2.2, and a port."""
_MOST_AHEAD = 64
"""Whole requests taken from one read; a client that pipelines more has its connection closed after them."""
_MOST_HEADERS = 256
_CHUNK_OVERHEAD = 64
"""Bytes a piece of a chunked body may cost beside its payload: size, line ends, extensions."""


class Bounds(Protocol):
    """What a server allows: bytes of one request, connections, and seconds for a request, between two, and unread."""

    @property
    def body_bytes(self) -> int: ...

    @property
    def header_bytes(self) -> int: ...

    @property
    def connections(self) -> int: ...

    @property
    def read_s(self) -> float: ...

    @property
    def idle_s(self) -> float: ...

    @property
    def write_s(self) -> float: ...


class Reader:
    """Takes one client's bytes apart.

    `ahead`: whole requests, each with whether the connection is kept after it and whether it is HTTP/1.0.
    `begun_ns`: when the first byte of a request that is not whole yet came; 0: none is arriving. `waits`: its body
    comes after "100 Continue". `failure`: what to answer, after `ahead`, before closing.
    """

    __slots__ = (
        "_body", "_chunks", "_extra", "_fed", "_headers", "_in_body", "_late", "_limits", "_method", "_mixed",
        "_parser", "_peer", "_received_ns", "_url", "_version", "_watched", "ahead", "begun_ns", "failure", "waits",
    )  # fmt: skip

    def __init__(self, limits: Bounds, peer: str) -> None:
        """`peer`: the client's address, put into each request."""
        self._limits, self._peer = limits, peer
        self._parser: Any = httptools.HttpRequestParser(self)
        self.ahead: deque[tuple[Request, bool, bool]] = deque()
        self.begun_ns = self._received_ns = self._fed = 0
        self.failure: Refused | None = None
        self.waits = self._mixed = self._late = False
        self._next()

    def _next(self) -> None:
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._watched: list[tuple[bytes, bytes]] = []
        self._body: bytes | bytearray = b""
        self._chunks = self._extra = 0
        self._in_body = False
        self._method = self._version = ""

    @property
    def body_begun(self) -> bool:
        """Whether some of the arriving request's body is here."""
        return bool(self._body)

    def feed(self, data: bytes) -> None:
        """Take the next bytes, at least one. Never raises; fills `ahead` and `failure`."""
        if self.failure is not None:
            return
        if not self.begun_ns:
            if data[0] <= 13:  # line ends between requests, which belong to none
                data = data.lstrip(b"\r\n")
                if not data:
                    return
            self.begun_ns = self._received_ns = time.monotonic_ns()
            self._late = False
        in_body, payload = self._in_body, len(self._body)
        self._mixed = False
        self._fed = len(data)
        rest: bytes | None = None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            rest = data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            if self.failure is None:
                self.fail(Refused(400, "bad_request", f"this is not a valid HTTP/1.1 request: {error}"))
            return
        if rest is not None:
            self._feed_upgrade(rest)
        elif self.begun_ns and not self._mixed:
            self._bound_unseen(in_body, payload)

    def fail(self, refused: Refused) -> None:
        """Take nothing more."""
        self.failure = refused
        self.begun_ns = 0
        self._next()

    def release(self) -> None:
        """Let go of the parser, which holds the reader: both go at once instead of with the next collection."""
        self._parser = None

    def _bound_unseen(self, in_body: bool, payload: int) -> None:
        # Bytes that reach no callback before they are whole: half a head, chunk extensions, trailers.
        limit = self._limits.header_bytes
        if in_body:
            self._extra += self._fed - (len(self._body) - payload)
            if self._extra > limit + _CHUNK_OVERHEAD * self._chunks:
                self.fail(self._large_head())
        elif not self._in_body:
            self._extra += self._fed
            if self._extra > limit:
                self.fail(self._large_head())

    def _large_head(self) -> Refused:
        limit = self._limits.header_bytes
        return Refused(431, "headers_too_large", f"the request's head is larger than the {limit} bytes allowed here")

    def _feed_upgrade(self, rest: bytes) -> None:
        if self._method == "CONNECT":
            self.fail(Refused(501, "method", "the method CONNECT is not known here"))
            return
        keep = self._parser.should_keep_alive()
        head = _without_upgrade(self._method, self._url, self._version, self._headers, keep)
        self._next()
        self._parser = httptools.HttpRequestParser(self)
        self.feed(head + rest)

    def _stop(self, refused: Refused) -> None:
        self.fail(refused)
        raise refused  # ends the parser

    # httptools' callbacks.

    def on_message_begin(self) -> None:
        if not self.begun_ns:  # the next one within the same read
            self.begun_ns = self._received_ns = time.monotonic_ns()

    def on_url(self, url: bytes) -> None:
        self._url = self._url + url if self._url else url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_body:  # trailers are dropped
            return
        name = name.lower()
        if value and value[-1] <= 32:
            value = value.rstrip(b" \t")
        pair = (name, value)
        self._headers.append(pair)
        if name in _WATCHED:
            self._watched.append(pair)

    def on_headers_complete(self) -> None:
        parser, headers, limits = self._parser, self._headers, self._limits
        if self._late or self._extra + self._fed > limits.header_bytes:  # else it cannot be too large
            size = len(self._url) + sum(len(name) + len(value) + 4 for name, value in headers)  # 4: ": ", line end
            if size > limits.header_bytes:
                self._stop(self._large_head())
        if len(headers) > _MOST_HEADERS:
            self._stop(Refused(431, "headers_too_large", f"more than {_MOST_HEADERS} headers; send fewer"))
        self._in_body = True
        self._extra = 0
        self._method = parser.get_method().decode()
        self._version = parser.get_http_version()
        if parser.should_upgrade():
            return
        try:
            self.waits = _check_head(self._method, self._version, self._watched, limits.body_bytes)
        except Refused as refused:
            self._stop(refused)

    def on_body(self, data: bytes) -> None:
        self._chunks += 1
        body = self._body
        if not body:
            self._body = data
        elif isinstance(body, bytes):
            # Not a list of pieces: a body sent byte by byte would need fifty times its size.
            self._body = bytearray(body)
            self._body += data
        else:
            body += data
        if len(self._body) > self._limits.body_bytes:
            self._stop(_too_large(self._limits.body_bytes))

    def on_message_complete(self) -> None:
        parser = self._parser
        if parser.should_upgrade():
            return
        path, _, query = self._url.decode("latin-1").partition("?")
        body = self._body if isinstance(self._body, bytes) else bytes(self._body)
        request = Request(self._method, path, query, self._headers, body, self._peer, self._received_ns)
        taken = len(self.ahead) + 1
        if taken <= _MOST_AHEAD:
            self.ahead.append((request, parser.should_keep_alive() and taken < _MOST_AHEAD, self._version == "1.0"))
        self.waits = False
        self._mixed = self._late = True
        self.begun_ns = 0
        self._next()


def _check_head(method: str, version: str, watched: Headers, body_bytes: int) -> bool:
    """Whether the client waits for "100 Continue". `watched`: the headers named in `_WATCHED`. Raises Refused."""
    if version not in ("1.1", "1.0"):
        raise Refused(505, "http_version", f"HTTP/{version} is not spoken here; use HTTP/1.1")
    if method not in _METHODS:
        raise Refused(501, "method", f"the method {method} is not known here")
    hosts, waits = 0, False
    for name, value in watched:
        if name == b"host":
            hosts += 1
            if value.translate(None, _HOST_BYTES):
                raise Refused(400, "bad_request", "the Host header is not a host name")
        elif name == b"content-length":
            if int(value) > body_bytes:
                raise _too_large(body_bytes)
        elif name == b"transfer-encoding":
            if version == "1.0" or value.lower() != b"chunked":
                raise Refused(400, "bad_request", "Transfer-Encoding can only be 'chunked', and not in HTTP/1.0")
        elif value.lower() == b"100-continue":
            waits = version == "1.1"
        else:
            raise Refused(417, "bad_request", "Expect can only be '100-continue'")
    if hosts > 1 or (not hosts and version == "1.1"):
        raise Refused(400, "bad_request", "a request has exactly one Host header")
    return waits


def _too_large(body_bytes: int) -> Refused:
    """A body beyond the limit."""
    return Refused(413, "body_too_large", f"the body is larger than the {body_bytes} bytes allowed here; send less")


def _without_upgrade(method: str, url: bytes, version: str, headers: Headers, keep_alive: bool) -> bytes:
    """The same head without its offer to change to another protocol, which a server may ignore (RFC 9110, 7.8).

    Such an offer comes with every first request of some clients (HTTP/2 from Java and curl); llhttp ends the request
    there and would take its body for another protocol's bytes.
    """
    lines = [b"%b %b HTTP/%b" % (method.encode(), url, version.encode())]
    lines += [b"%b: %b" % pair for pair in headers if pair[0] not in (b"upgrade", b"connection", b"http2-settings")]
    lines.append(b"connection: keep-alive" if keep_alive else b"connection: close")
    return b"\r\n".join(lines) + b"\r\n\r\n"
