"""What the head of a request must be before its body is read. Framing itself is llhttp's affair.

llhttp refuses by itself: NUL, bare CR or LF and folded lines in headers, spaces before a colon, several or malformed
Content-Lengths, Content-Length beside Transfer-Encoding. Here stands what it lets through.
"""

from __future__ import annotations

from breakeven.wire.server.errors import Refused
from breakeven.wire.server.types import Headers

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"})
"""llhttp knows many more, some of other protocols."""
WATCHED = frozenset({b"host", b"content-length", b"transfer-encoding", b"expect"})
_HOST_BYTES = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~!$&'()*+,;=:[]%"
"""RFC 3986, section 3.2.2, and a port."""


def check_head(method: str, version: str, watched: Headers, body_bytes: int) -> bool:
    """Whether the client waits for "100 Continue". `watched`: the headers named in `WATCHED`. Raises Refused."""
    if version not in ("1.1", "1.0"):
        raise Refused(505, "http_version", f"HTTP/{version} is not spoken here; use HTTP/1.1")
    if method not in METHODS:
        raise Refused(501, "method", f"the method {method} is not known here")
    hosts, waits = 0, False
    for name, value in watched:
        if name == b"host":
            hosts += 1
            if value.translate(None, _HOST_BYTES):
                raise Refused(400, "bad_request", "the Host header is not a host name")
        elif name == b"content-length":
            if int(value) > body_bytes:
                raise too_large(body_bytes)
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


def too_large(body_bytes: int) -> Refused:
    """A body beyond the limit."""
    return Refused(413, "body_too_large", f"the body is larger than the {body_bytes} bytes allowed here; send less")


def without_upgrade(method: str, url: bytes, version: str, headers: Headers, keep_alive: bool) -> bytes:
    """The same head without its offer to change to another protocol, which a server may ignore (RFC 9110, 7.8).

    Such an offer comes with every first request of some clients (HTTP/2 from Java and curl); llhttp ends the request
    there and would take its body for another protocol's bytes.
    """
    lines = [b"%b %b HTTP/%b" % (method.encode(), url, version.encode())]
    lines += [b"%b: %b" % pair for pair in headers if pair[0] not in (b"upgrade", b"connection", b"http2-settings")]
    lines.append(b"connection: keep-alive" if keep_alive else b"connection: close")
    return b"\r\n".join(lines) + b"\r\n\r\n"
