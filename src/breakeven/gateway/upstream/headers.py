"""Which headers cross the gateway, in both directions.

Hop-by-hop headers and framing belong to one connection (RFC 9110, 7.6.1). A client's credentials and cookies are for
the gateway, never for a backend; a backend's cookies are for the gateway, never for a client.
"""

from __future__ import annotations

from collections.abc import Sequence

from breakeven.gateway.upstream.types import Headers

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
NOT_PASSED_ON = HOP_BY_HOP | {b"set-cookie", b"set-cookie2", b"alt-svc"}
"""`alt-svc` would tell a client to go round the gateway. `content-length` stays: the edge may keep it."""

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
    named: frozenset[bytes] = frozenset()
    for name, value in headers:
        if name == b"connection" and value.lower() not in _HARMLESS:
            named |= _tokens(value)
    if named:
        return [pair for pair in headers if pair[0] not in NOT_PASSED_ON and pair[0] not in named]
    return [pair for pair in headers if pair[0] not in NOT_PASSED_ON]


def _tokens(value: bytes) -> frozenset[bytes]:
    """What a `Connection` header names. The framing is ours, whatever it says."""
    return frozenset(token.strip().lower() for token in value.split(b",")) - {b"content-length", b"content-type"}
