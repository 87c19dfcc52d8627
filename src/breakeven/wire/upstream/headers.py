"""Which headers cross the gateway, in both directions.

Hop-by-hop headers and framing belong to one connection (RFC 9110, 7.6.1). A client's credentials and cookies are for
the gateway, never for a backend; a backend's cookies are for the gateway, never for a client.
"""

from __future__ import annotations

from collections.abc import Sequence

from breakeven.wire.upstream.types import Headers

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
CREDENTIALS = frozenset({b"authorization", b"api-key", b"x-api-key", b"x-goog-api-key", b"cookie"})
"""What clients of OpenAI, Azure, Anthropic and Google send their key in."""
NOT_SENT = HOP_BY_HOP | CREDENTIALS | {b"host", b"content-length", b"expect"}
NOT_PASSED_ON = HOP_BY_HOP | {
    b"set-cookie",
    b"set-cookie2",
    b"alt-svc",
    b"strict-transport-security",
    b"clear-site-data",
    b"nel",
    b"report-to",
}
"""What a backend tells browsers about its own origin, which here would be read as ours; `alt-svc` would even tell a
client to go round the gateway. So would CORS: a backend that lets every page read its answers must not let every page
read the gateway's. `content-length` stays: the edge may keep it."""
_CORS = b"access-control-"

_HARMLESS = (b"close", b"keep-alive")


def request_lines(headers: Headers) -> bytes:
    """The lines of a request's own headers, each ended by CRLF. Raises ValueError for a line break inside one."""
    parts: list[bytes] = []
    lines = 0
    named: frozenset[bytes] = frozenset()
    for name, value in headers:
        if name in NOT_SENT:
            if name == b"connection" and value.lower() not in _HARMLESS:
                named |= _tokens(value)
            continue
        parts += (name, b": ", value, b"\r\n")
        lines += 1
    if named:
        return request_lines([(name, value) for name, value in headers if name not in named and name != b"connection"])
    block = b"".join(parts)
    if block.count(b"\n") != lines or block.count(b"\r") != lines or b"\0" in block:
        raise ValueError("a header of the request holds a line break")
    return block


def answer_headers(headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Of an answer's headers, those to pass on; names are in lower case already."""
    gone: frozenset[bytes] = NOT_PASSED_ON
    for name, value in headers:
        if name == b"connection" and value.lower() not in _HARMLESS:
            gone |= _tokens(value)
    return [pair for pair in headers if pair[0] not in gone and not pair[0].startswith(_CORS)]


def _tokens(value: bytes) -> frozenset[bytes]:
    """What a `Connection` header names. The framing is ours, whatever it says."""
    return frozenset(token.strip().lower() for token in value.split(b",")) - {b"content-length", b"content-type"}
