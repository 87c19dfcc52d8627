"""What holds for all requests of a server together, and within one body before anybody takes it apart.

Bytes of large bodies (`HeldBodies`), connections of one address and of all (`Crowds`), nesting and keys of JSON
(`JsonLook`), which is looked at part by part so that a large body delays nobody else (`JsonLine`). And when whoever
looks for those who are late may judge them (`Lookout`).
"""

from __future__ import annotations

import ipaddress
import time
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, compress
from typing import Protocol

from breakeven.wire.message import Refused


class Bounds(Protocol):
    """What a server allows: bytes of one request and of all bodies, connections, and seconds.

    `connections_per_address` None: half of all. `unasked_s`: for the first request on a connection.
    """

    @property
    def body_bytes(self) -> int: ...

    @property
    def bodies_bytes(self) -> int: ...

    @property
    def header_bytes(self) -> int: ...

    @property
    def connections(self) -> int: ...

    @property
    def connections_per_address(self) -> int | None: ...

    @property
    def unasked_s(self) -> float: ...

    @property
    def read_s(self) -> float: ...

    @property
    def idle_s(self) -> float: ...

    @property
    def write_s(self) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """`Bounds` for a server that nobody set any for."""

    body_bytes: int = 32 * 2**20
    bodies_bytes: int = 2**40
    header_bytes: int = 64 * 2**10
    connections: int = 4096
    connections_per_address: int | None = None
    unasked_s: float = 3600.0
    read_s: float = 30.0
    idle_s: float = 75.0
    write_s: float = 60.0


class Lookout:
    """Whether a timer that looks for who is late may judge them.

    A process that was itself away (stopped, swapped out, held up) finds all times run out on its return, and a loop
    calls its timers before it reads its sockets: what came meanwhile would count as never sent. So a look that comes
    long after it was due judges nobody, but never two in a row; before the next one the sockets are read.
    """

    __slots__ = ("_due_ns", "_excused", "_slack_ns")

    def __init__(self) -> None:
        self._due_ns = self._slack_ns = 0
        self._excused = False

    def due_in(self, wait_s: float, slack_s: float | None = None) -> None:
        """When the next look is due. `slack_s`: so late it may be; None: as long as until then."""
        self._due_ns = time.monotonic_ns() + round(1e9 * wait_s)
        self._slack_ns = round(1e9 * (wait_s if slack_s is None else slack_s))

    def away_ns(self, now_ns: int) -> int:
        """How late this look is, which runs now, where that is so much that it may not judge; else 0."""
        late_ns = now_ns - self._due_ns
        self._excused = self._due_ns > 0 and late_ns > self._slack_ns and not self._excused
        return late_ns if self._excused else 0


SMALL_BODY = 1 << 16
"""Bodies up to here are not counted: connections bound them already. The first bytes of a larger one are."""
_SHARE = 0.75
"""Of all bytes, what one client may hold once it holds more than one large body."""


class HeldBodies:
    """Bytes of large bodies that a server holds, arriving or under way, and whose they are."""

    __slots__ = ("_of", "held", "most")

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = 0
        self._of: dict[object, int] = {}

    def room(self, owner: object, size: int, held: int = 0) -> bool:
        """Whether `size` bytes more would do, for a body of this owner's that holds `held` of them already."""
        if self.held + size > self.most:
            return False
        mine = self._of.get(owner, 0)
        return mine == held or mine + size <= self.most * _SHARE

    def take(self, owner: object) -> BodyShare:
        """A body that begins to be large."""
        return BodyShare(self, owner)

    def moved(self, owner: object, size: int) -> None:
        """So many bytes came or, below 0, went."""
        self.held += size
        left = self._of.get(owner, 0) + size
        if left:
            self._of[owner] = left
        else:
            self._of.pop(owner, None)


class BodyShare:
    """One large body's part of `HeldBodies`. Freed once, by whoever ends the request."""

    __slots__ = ("_bodies", "_owner", "held")

    def __init__(self, bodies: HeldBodies, owner: object) -> None:
        self._bodies, self._owner, self.held = bodies, owner, 0

    def grow(self, size: int) -> bool:
        """Count more bytes; False when they are too many."""
        if not self._bodies.room(self._owner, size, self.held):
            return False
        self.held += size
        self._bodies.moved(self._owner, size)
        return True

    def free(self) -> None:
        """The body is held no more."""
        held, self.held = self.held, 0
        if held:
            self._bodies.moved(self._owner, -held)


class Member(Protocol):
    """A connection as its crowd sees it."""

    def spare(self) -> tuple[int, int] | None:
        """How dispensable it is, the higher the more; None: it is at work."""

    def give_way(self) -> None:
        """Close, and leave the crowds, so that another may come."""


class Crowd:
    """Connections that count against one limit. When it is full, the most dispensable one makes room.

    Looking for it costs a look at each, so several are noted at a time, and none is looked for again right after
    there was none.
    """

    __slots__ = ("_again_ns", "_noted", "members", "most")

    _NOTED = 64
    _REST_NS = 100_000_000

    def __init__(self, most: int) -> None:
        self.most = most
        self.members: set[Member] = set()
        self._noted: list[tuple[tuple[int, int], Member]] = []
        self._again_ns = 0

    def admits(self, now_ns: int) -> bool:
        """Whether one more may come; another may have been closed for it."""
        if len(self.members) < self.most:
            return True
        while self._noted or self._note(now_ns):
            spare, member = self._noted.pop()
            if member in self.members and member.spare() == spare:
                member.give_way()
                return True
        return False

    def _note(self, now_ns: int) -> bool:
        if now_ns < self._again_ns:
            return False
        found = [(spare, member) for member in self.members if (spare := member.spare()) is not None]
        found.sort(key=lambda pair: pair[0])
        self._noted = found[-self._NOTED :]
        if not found:
            self._again_ns = now_ns + self._REST_NS
        return bool(found)


class Crowds:
    """All connections of a server, and those of each address."""

    _TOLD = 256
    """Connections beyond a limit that are told so at one time; more are closed without a word."""

    def __init__(self, limits: Bounds) -> None:
        self._most = limits.connections
        self._most_here = limits.connections_per_address or max(1, limits.connections // 2)
        self._all = Crowd(self._most)
        self._addresses: dict[str, Crowd] = {}
        self._turned_away: set[Member] = set()

    def admit(self, member: Member, address: str, now_ns: int) -> str | None:
        """Take one more in. Else what to tell it; None: nothing, for too many are being told."""
        here = self._addresses.get(address)
        if here is None:
            here = Crowd(self._most_here if address else self._most)
        if here.admits(now_ns):
            if self._all.admits(now_ns):
                self._all.members.add(member)
                here.members.add(member)
                self._addresses[address] = here
                return ""
            why = "too many connections are open here; try again"
        else:
            why = "too many connections are open from this address; close some, or try again"
        self._turned_away.add(member)
        return None if len(self._turned_away) > self._TOLD else why

    def leaves(self, member: Member, address: str) -> None:
        """It counts no more."""
        self._turned_away.discard(member)
        self._all.members.discard(member)
        here = self._addresses.get(address)
        if here is not None:
            here.members.discard(member)
            if not here.members:
                del self._addresses[address]


def neighbours(address: str) -> str:
    """What counts as one client: an IPv4 address, or the /64 of an IPv6 address, which one line is given whole."""
    if ":" not in address:
        return address
    try:
        found = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    return str(found.ipv4_mapped or ipaddress.IPv6Address(int(found) >> 64 << 64))


# JSON.

AT_ONCE = 1 << 16
"""Longer bodies are looked at part by part, with other work between the parts."""
_PART_BYTES = 1 << 16
_NOT_MARKS = bytes(c for c in range(256) if c not in b"[]{}:")
_STEPS = bytes(1 if c in b"[{" else 255 if c in b"]}" else 0 for c in range(256))
"""An opening bracket as +1, a closing one as -1, a colon as 0, once read as signed bytes."""
_COLONS = bytes(c == 0x3A for c in range(256))


_MOST_VALUES = 2_000_000
"""Commas, colons and brackets of a body, and eighths of what else stands outside its strings: beyond, taking it apart
would hold up everybody for a tenth of a second. A list of a million token numbers stays below."""


class JsonLook:
    """How deep arrays and objects of a body nest, how many keys its outermost object and values the whole has.

    Never content with JSON that goes beyond; what is not JSON gets some answer. What stands within strings does not
    count. Each part is cut at its quotes by functions that run in C, so that memory stays bounded whatever is sent.
    """

    __slots__ = ("_at", "_body", "_depth", "_in_string", "_keys", "_level", "_most_keys", "_values", "refusal")

    def __init__(self, body: bytes, depth: int, keys: int) -> None:
        """Sees nothing yet."""
        self._body, self._depth, self._most_keys = body, depth, keys
        self._at = self._level = self._keys = self._values = 0
        self._in_string = False
        self.refusal: Refused | None = None

    def step(self) -> bool:
        """See the next part. Whether that was all: the end, or something to refuse."""
        body, at = self._body, self._at
        part = body[at : at + _PART_BYTES]
        if part[-1:] == b"\\" and (len(part) - len(part.rstrip(b"\\"))) % 2:  # it belongs to what follows
            part = body[at : at + len(part) + 1]
        self._at = at + len(part)
        if b"\\" in part:
            part = part.replace(b"\\\\", b"").replace(b'\\"', b"")
        pieces = part.split(b'"')
        outside = b"".join(pieces[self._in_string :: 2])
        marks = outside.translate(None, _NOT_MARKS)
        self._in_string ^= len(pieces) % 2 == 0
        if marks:
            levels = list(accumulate(memoryview(marks.translate(_STEPS)).cast("b"), initial=self._level))
            self._level = levels[-1]
            if max(levels) > self._depth:
                self.refusal = Refused(400, "json_too_deep", f"the body is nested deeper than {self._depth}")
                return True
            del levels[0]
            self._keys += list(compress(levels, marks.translate(_COLONS))).count(1)
            if self._keys > self._most_keys:
                self.refusal = Refused(400, "too_many_keys", f"the body has more than {self._most_keys} keys")
                return True
        self._values += len(marks) + outside.count(b",") + len(outside) // 8
        if self._values > _MOST_VALUES:
            why = f"the body has more than {_MOST_VALUES} values and brackets"
            self.refusal = Refused(400, "too_many_values", why)
            return True
        return self._at >= len(body)


def json_refusal(body: bytes, depth: int, keys: int) -> Refused | None:
    """What is wrong with how a body is built, at once. Most have too few brackets and colons to be looked at."""
    size = len(body)
    if size <= AT_ONCE:
        # Leaving bytes out goes through C's memchr, which counting them does not: thirty times as fast on a long text.
        opened = 2 * size - len(body.replace(b"[", b"")) - len(body.replace(b"{", b""))
        if opened <= depth and size - len(body.replace(b":", b"")) <= keys:
            return None
    look = JsonLook(body, depth, keys)
    while not look.step():
        pass
    return look.refusal


class JsonLine:
    """Large bodies of a worker, looked at one after the other, one part in each round of the loop.

    Many of them at once delay each other, not the rest.
    """

    def __init__(self, loop: AbstractEventLoop, depth: int, keys: int) -> None:
        self._loop, self._depth, self._keys = loop, depth, keys
        self._waiting: deque[tuple[JsonLook, Callable[[], bool], Callable[[Refused | None], None]]] = deque()

    def add(self, body: bytes, gone: Callable[[], bool], then: Callable[[Refused | None], None]) -> None:
        """`then` is told the refusal, or nothing, in a later round; never if `gone` by then."""
        self._waiting.append((JsonLook(body, self._depth, self._keys), gone, then))
        if len(self._waiting) == 1:
            self._loop.call_soon(self._step)

    def _step(self) -> None:
        look, gone, then = self._waiting[0]
        # A round costs more than a part without brackets: several of those, up to a millisecond.
        until_ns = time.monotonic_ns() + 1_000_000
        over = gone() or look.step()
        while not over and time.monotonic_ns() < until_ns:
            over = look.step()
        if over:
            self._waiting.popleft()
            if not gone():
                self._loop.call_soon(then, look.refusal)
        if self._waiting:
            self._loop.call_soon(self._step)
