"""From bytes to requests, without a socket: llhttp's callbacks and the limits on what arrives.

A reader that has failed is done: what it had taken whole before stands in `ahead`, why it failed in `failure`. A
request whose head is enough to refuse it stands in `ahead` as soon as that head is whole; its body is let go.

llhttp refuses by itself: NUL, bare CR or LF and folded lines in headers, spaces before a colon, several or malformed
Content-Lengths, Content-Length beside Transfer-Encoding. `_check_head` refuses what it lets through.
"""

from __future__ import annotations

import re
import time
from collections import deque
from typing import Any

import httptools

from breakeven.wire.bounds import SMALL_BODY, BodyShare, Bounds, HeldBodies
from breakeven.wire.message import Headers, Judge, Refused, Request, Unpacker

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"})
"""llhttp knows many more, some of other protocols."""
_WATCHED = frozenset({b"host", b"content-length", b"transfer-encoding", b"expect", b"content-encoding"})
_HOST_BYTES = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~!$&'()*+,;=:[]%"
"""RFC 3986, section 3.2.2, and a port."""
_ABSOLUTE = re.compile(rb"https?://([^/?#]+)(.*)", re.IGNORECASE)
"""A target as clients write it who take us for a proxy; its host goes before `Host` (RFC 9112, 3.2.2)."""
_MOST_AHEAD = 64
"""Whole requests taken from one read; a client that pipelines more has its connection closed after them."""
_MOST_HEADERS = 256
_PER_BYTE = 64
"""Bytes on the wire for one of a chunked body: sizes, line ends and extensions of the smallest pieces there may be."""
_DRAINED_BYTES = SMALL_BODY
"""A body that nobody keeps is read to its end so that the connection can be used again; a longer one ends it."""
_CHUNKED = -1


class _Enough(Exception):  # noqa: N818 - no fault: ends the parser where nothing more is to be read
    """The reader is full."""


class Reader:
    """Takes one client's bytes apart.

    `ahead`: requests, each with whether the connection is kept after it and whether it is HTTP/1.0. `begun_ns`: when
    the first byte of a request that is not whole yet came; 0: none is arriving. `waits`: its body comes after "100
    Continue". `dropping`: it is answered already. `full`: after `ahead` nothing more is read. `failure`: what to
    answer, after `ahead`, before closing; `origin`: the page that asked so, as far as its head came.
    """

    __slots__ = (
        "_bodies", "_body", "_extra", "_fed", "_headers", "_in_body", "_judge", "_late", "_limits",
        "_method", "_mixed", "_parser", "_peer", "_received_ns", "_request", "_same_read", "_share", "_size",
        "_trailers", "_unpacker", "_url", "_version", "_watched", "ahead", "begun_ns", "dropping", "failure", "full",
        "origin", "waits",
    )  # fmt: skip

    def __init__(self, limits: Bounds, peer: str, bodies: HeldBodies | None = None, judge: Judge | None = None) -> None:
        """`peer`: the client's address, put into each request. `bodies`: what all readers of a server share."""
        self._limits, self._peer, self._judge = limits, peer, judge
        self._bodies = bodies or HeldBodies(max(limits.bodies_bytes, limits.body_bytes))
        self._parser: Any = httptools.HttpRequestParser(self)
        self.ahead: deque[tuple[Request, bool, bool]] = deque()
        self.begun_ns = self._received_ns = self._fed = 0
        self.failure: Refused | None = None
        self.origin: bytes | None = None
        self.waits = self._mixed = self._late = self.full = self._same_read = False
        self._share: BodyShare | None = None
        self._next()

    def _next(self) -> None:
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._watched: list[tuple[bytes, bytes]] = []
        self._body: bytes | bytearray = b""
        self._request: Request | None = None
        self._unpacker: Unpacker | None = None
        self._extra = self._size = self._trailers = 0
        self._in_body = self.dropping = False
        self._method = self._version = ""

    @property
    def body_begun(self) -> bool:
        """Whether some of the arriving request's body is here."""
        return self._size > 0

    @property
    def in_head(self) -> bool:
        """Whether half a head is all that is here."""
        return self.begun_ns > 0 and not self._in_body

    def feed(self, data: bytes) -> None:
        """Take the next bytes, at least one. Never raises; fills `ahead` and `failure`."""
        if self.failure is not None or self.full:
            return
        if not self.begun_ns:
            if data[0] <= 13:  # line ends between requests, which belong to none
                data = data.lstrip(b"\r\n")
                if not data:
                    return
            self.begun_ns = self._received_ns = time.monotonic_ns()
            self._late = False
        self._mixed = self._same_read = False
        rest: bytes | memoryview = data
        while True:
            in_body, size = self._in_body, self._size
            self._fed = len(rest)
            try:
                self._parser.feed_data(rest)
                break
            except httptools.HttpParserUpgrade as upgrade:
                rest = memoryview(rest)[upgrade.args[0] :]
            except httptools.HttpParserError as error:
                if self.failure is None and not self.full:
                    self.fail(Refused(400, "bad_request", f"this is not a valid HTTP/1.1 request: {error}"))
                return
            if not self._ignore_upgrade() or not rest:
                return
        if self.begun_ns and not self._mixed:
            self._bound_unseen(in_body, size)

    def fail(self, refused: Refused) -> None:
        """Take nothing more."""
        self.failure = refused
        self.origin = next((value for name, value in self._headers if name == b"origin"), None)
        self.begun_ns = 0
        self._free()
        self._next()

    def forget(self) -> None:
        """What was taken is for nobody."""
        for request, _, _ in self.ahead:
            if request.share is not None:
                request.share.free()
        self.ahead.clear()

    def release(self) -> None:
        """Let go of the parser, which holds the reader: both go at once instead of with the next collection."""
        self._parser = None
        self._free()

    def _free(self) -> None:
        share, self._share = self._share, None
        if share is not None:
            share.free()

    def _bound_unseen(self, in_body: bool, size: int) -> None:
        # Bytes that reach no callback before they are whole: half a head, chunk extensions, trailers.
        limit = self._limits.header_bytes
        if in_body:
            self._extra = max(0, self._extra + self._fed - _PER_BYTE * (self._size - size))
            if self._extra > limit:
                self.fail(self._large_head())
        elif not self._in_body:
            self._extra += self._fed
            if self._extra > limit:
                self.fail(self._large_head())

    def _large_head(self) -> Refused:
        limit = self._limits.header_bytes
        return Refused(431, "headers_too_large", f"the request's head is larger than the {limit} bytes allowed here")

    def _ignore_upgrade(self) -> bool:
        """Begin the request anew without its offer. Whether there is more to read."""
        if self._method == "CONNECT":
            self.fail(Refused(501, "method", "the method CONNECT is not known here"))
            return False
        head = _without_upgrade(self._method, self._url, self._version, self._headers, self._parser.should_keep_alive())
        self._next()
        self._late = True
        self._fed = len(head)
        self._parser = httptools.HttpRequestParser(self)
        try:
            self._parser.feed_data(head)
        except httptools.HttpParserError as error:
            if self.failure is None and not self.full:
                self.fail(Refused(400, "bad_request", f"this is not a valid HTTP/1.1 request: {error}"))
        return self.failure is None and not self.full

    def _stop(self, refused: Refused) -> None:
        self.fail(refused)
        raise refused  # ends the parser

    def _take(self, request: Request, keep: bool, old: bool) -> None:
        full = len(self.ahead) + 1 >= _MOST_AHEAD
        self.ahead.append((request, keep and not full, old))
        if full:
            self._end()

    def _end(self) -> None:
        self.full = True
        self.begun_ns = 0
        raise _Enough

    # httptools' callbacks.

    def on_message_begin(self) -> None:
        if not self.begun_ns:  # the next one within the same read
            self.begun_ns = self._received_ns = time.monotonic_ns()

    def on_url(self, url: bytes) -> None:
        self._url = self._url + url if self._url else url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_body:  # trailers are dropped
            self._trailers += len(name) + len(value) + 4
            if self._trailers > self._limits.header_bytes:
                self._stop(self._large_head())
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
            length, self.waits, coding = _check_head(self._method, self._version, self._watched, limits.body_bytes)
            if coding:
                self._unpacker = Unpacker(coding, limits.body_bytes)
                headers = [pair for pair in headers if pair[0] != b"content-encoding"]
        except Refused as refused:
            self._stop(refused)
        url = self._url
        if url[:1] != b"/" and (absolute := _ABSOLUTE.fullmatch(url)) is not None:
            if absolute[1].translate(None, _HOST_BYTES):
                self._stop(Refused(400, "bad_request", "the address in the request's target is not a host name"))
            headers = [(b"host", absolute[1]), *(pair for pair in headers if pair[0] != b"host")]
            url = absolute[2] if absolute[2][:1] == b"/" else b"/" + absolute[2]
        path, _, query = url.decode("latin-1").partition("?")
        request = Request(self._method, path, query, headers, b"", self._peer, self._received_ns)
        self._request, self._same_read = request, True
        if length:
            if self._judge is not None and not self._judge(request):
                self._drop(request, 0 < length <= _DRAINED_BYTES and not self.waits)
            elif length > SMALL_BODY and not self._bodies.room(request.known or self._peer, length):
                self._stop(_too_busy())

    def _drop(self, request: Request, drained: bool) -> None:
        """Its head is enough to refuse it. Whoever waits for our word may send the body or not: that ends it all."""
        self.dropping = True
        self.waits = False
        self._take(request, drained and self._parser.should_keep_alive(), self._version == "1.0")
        if not drained:
            self._end()

    def on_body(self, data: bytes) -> None:
        grown = len(data)
        size = self._size = self._size + grown
        if self.dropping:
            return
        if self._unpacker is not None:
            # Limits are of what is held, not of what came.
            data = self._unpack(self._unpacker, data)
            grown = len(data)
            size = len(self._body) + grown
        body = self._body
        if not body:
            self._body = data
        elif isinstance(body, bytes):
            # Not a list of pieces: a body sent byte by byte would need fifty times its size.
            self._body = bytearray(body)
            self._body += data
        else:
            body += data
        if size > SMALL_BODY or size > self._limits.body_bytes:
            if size > self._limits.body_bytes:
                self._stop(_too_large(self._limits.body_bytes))
            if self._share is None:
                assert self._request is not None
                self._share, grown = self._bodies.take(self._request.known or self._peer), size
            if not self._share.grow(grown):
                self._stop(_too_busy())

    def _unpack(self, unpacker: Unpacker, data: bytes) -> bytes:
        try:
            return unpacker.feed(data)
        except Refused as refused:
            self._stop(refused)
            raise

    def on_message_complete(self) -> None:
        parser = self._parser
        if parser.should_upgrade():
            return
        request, dropped = self._request, self.dropping
        assert request is not None
        if self._unpacker is not None and not dropped and not self._unpacker.ended:
            self._stop(Refused(400, "content_encoding", "the body ends before what its Content-Encoding packs"))
        self.waits = False
        self._mixed = self._late = True
        self.begun_ns = 0
        keep, old = parser.should_keep_alive(), self._version == "1.0"
        if not dropped:
            request.body = self._body if isinstance(self._body, bytes) else bytes(self._body)
            request.share, self._share = self._share, None
            if not self._same_read:
                request.known = None  # what was true when the head came may be true no more
        self._next()
        if not dropped:
            self._take(request, keep, old)


def _check_head(method: str, version: str, watched: Headers, body_bytes: int) -> tuple[int, bool, bytes]:
    """How long the body will be, whether the client waits for "100 Continue" with it, and how it is packed.

    `watched`: the headers named in `_WATCHED`. Raises Refused.
    """
    if version not in ("1.1", "1.0"):
        raise Refused(505, "http_version", f"HTTP/{version} is not spoken here; use HTTP/1.1")
    if method not in _METHODS:
        raise Refused(501, "method", f"the method {method} is not known here")
    hosts, length, waits, coding = 0, 0, False, b""
    for name, value in watched:
        if name == b"host":
            hosts += 1
            if value.translate(None, _HOST_BYTES):
                raise Refused(400, "bad_request", "the Host header is not a host name")
        elif name == b"content-length":
            length = int(value)
            if length > body_bytes:
                raise _too_large(body_bytes)
        elif name == b"transfer-encoding":
            if version == "1.0" or value.lower() != b"chunked":
                raise Refused(400, "bad_request", "Transfer-Encoding can only be 'chunked', and not in HTTP/1.0")
            length = _CHUNKED
        elif name == b"content-encoding":
            coding = b", ".join(filter(None, (coding, value.strip().lower())))
        elif value.lower() == b"100-continue":
            waits = version == "1.1"
        else:
            raise Refused(417, "bad_request", "Expect can only be '100-continue'")
    if hosts > 1 or (not hosts and version == "1.1"):
        raise Refused(400, "bad_request", "a request has exactly one Host header")
    return length, waits, b"" if not length or coding == b"identity" else coding


def _too_busy() -> Refused:
    """No room for a large body now."""
    return Refused(503, "too_many_bodies", "too many large bodies are under way here; try again", retry_s=1)


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
