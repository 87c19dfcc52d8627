"""What the edge allows, as the operator's file says it; docs/security.md has the table of what bounds what."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated

from breakeven.answer.study.values import CountAbove0, FilePart, Memory, Seconds, SecondsAbove0, read_by

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[a-z0-9.:\[\]_-]*")


def _origin(value: object) -> object:
    if not isinstance(value, str) or not _ORIGIN.fullmatch(value.lower()):
        raise ValueError("an origin as browsers send it, such as chrome-extension://abcdefgh or https://chat.example")
    return value.lower()


def _page(value: object) -> object:
    return value if value == ANY_PAGE else _origin(value)


OriginName = Annotated[str, read_by(_origin)]
PageOrigin = Annotated[str, read_by(_page)]
ANY_PAGE = "*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits(FilePart):
    """What the edge allows. Bytes, seconds, counts."""

    body_bytes: Memory = 32 * 2**20
    header_bytes: Memory = field(default=64 * 2**10, metadata={"alias": "headers"})
    json_depth: CountAbove0 = 64
    json_keys: CountAbove0 = 1024
    """Of a body's outermost object."""
    bodies_bytes: Memory = 256 * 2**20
    """Of all bodies longer than 64 KiB that a worker holds, arriving or under way; one body always has room."""
    connections: CountAbove0 = 4096
    connections_per_address: CountAbove0 | None = None
    """None: half of `connections`. An IPv6 address is its /64."""
    streams_per_key: CountAbove0 = 256
    read_s: SecondsAbove0 = 30.0
    """For a whole request to arrive, from its first byte."""
    unasked_s: SecondsAbove0 = 10.0
    """For the first request on a connection, where `idle_s` is not shorter."""
    idle_s: SecondsAbove0 = 75.0
    """For the next request on a kept connection."""
    write_s: SecondsAbove0 = 60.0
    """A client that takes next to nothing for this long is dropped."""
    response_bytes: Memory = 256 * 2**20
    drain_s: Seconds = 30.0
    """After SIGTERM, for requests under way to end."""
