"""A backend's places and the line before them. Pure: time comes from the caller, who starts and refuses requests.

Higher priority goes first, then first come, first served. A full line drops the newest of the lowest priority, which
may be the newcomer. Places are shared with other workers: `elsewhere` is what they have in flight. Since nobody tells
this worker when a place is freed elsewhere, the caller asks `wake` now and then while `queued` is not 0.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, Literal, TypeVar

Ticket = TypeVar("Ticket", bound=Hashable)
SPARE = 64
"""Forgotten deadlines that may lie about before they are swept."""


class Gate(Generic[Ticket]):
    """At most `limit` in flight and `queue_size` in line. A ticket is whatever the caller knows a request by."""

    __slots__ = ("_deadlines", "_late", "_levels", "_lines", "_number", "_out", "_where", "in_flight", "limit", "size")

    def __init__(self, limit: int, queue_size: int) -> None:
        """Empty."""
        self.limit, self.size = limit, queue_size
        self.in_flight = 0
        self._lines: dict[int, OrderedDict[Ticket, tuple[int, float]]] = {}
        self._levels: list[int] = []
        """Priorities in line, lowest first."""
        self._where: dict[Ticket, int] = {}
        self._deadlines: list[tuple[float, int, Ticket]] = []
        self._number = 0
        self._late: list[Ticket] = []
        self._out: list[Ticket] = []

    @property
    def queued(self) -> int:
        """In line."""
        return len(self._where)

    def enter(
        self, ticket: Ticket, priority: int, deadline_s: float, now_s: float, elsewhere: int = 0
    ) -> Literal["go", "wait", "full"]:
        """Ask for a place. `go`: it is taken. `wait`: in line until `deadline_s`. `full`: refused.

        A newcomer passes those of lower priority that wait. When it takes the last place in line from one of them,
        `pushed_out` says from whom.
        """
        if self._levels:
            self._sweep(now_s)
        if self.in_flight + elsewhere < self.limit and (not self._levels or self._levels[-1] < priority):
            self.in_flight += 1
            return "go"
        if self.size <= 0 or deadline_s <= now_s:
            return "full"
        if len(self._where) >= self.size:
            lowest = self._levels[0]
            if lowest >= priority:
                return "full"
            newest = next(reversed(self._lines[lowest]))
            self._forget(newest)
            self._out.append(newest)
        line = self._lines.get(priority)
        if line is None:
            line = self._lines[priority] = OrderedDict()
            insort(self._levels, priority)
        self._number += 1
        line[ticket] = (self._number, deadline_s)
        self._where[ticket] = priority
        heapq.heappush(self._deadlines, (deadline_s, self._number, ticket))
        return "wait"

    def leave(self, now_s: float, elsewhere: int = 0) -> list[Ticket]:
        """One that went has ended. Returns those that go now; their places are taken."""
        if self.in_flight <= 0:
            raise AssertionError("a place was given back that nobody held")
        self.in_flight -= 1
        return self.wake(now_s, elsewhere) if self._levels else []

    def wake(self, now_s: float, elsewhere: int = 0) -> list[Ticket]:
        """Those that go now because places became free elsewhere; their places are taken."""
        going: list[Ticket] = []
        self._sweep(now_s)
        while self._levels and self.in_flight + elsewhere < self.limit:
            ticket = next(iter(self._lines[self._levels[-1]]))
            self._forget(ticket)
            self.in_flight += 1
            going.append(ticket)
        return going

    def expired(self, now_s: float) -> list[Ticket]:
        """Those whose deadline has passed since the last call; they are out of the line."""
        self._sweep(now_s)
        late, self._late = self._late, []
        return late

    def pushed_out(self) -> list[Ticket]:
        """Those that lost their place in line to a higher priority since the last call."""
        out, self._out = self._out, []
        return out

    def remove(self, ticket: Ticket) -> bool:
        """Take one out of the line (its client left, it went elsewhere); False when it does not wait."""
        if ticket not in self._where:
            return False
        self._forget(ticket)
        return True

    def _forget(self, ticket: Ticket) -> None:
        level = self._where.pop(ticket)
        line = self._lines[level]
        del line[ticket]
        if not line:
            del self._lines[level]
            self._levels.remove(level)
        if len(self._deadlines) > 2 * len(self._where) + SPARE:
            self._deadlines = [one for one in self._deadlines if self._waits(one)]
            heapq.heapify(self._deadlines)

    def _waits(self, one: tuple[float, int, Ticket]) -> bool:
        """Whether a deadline's request is still in line: the same ticket may have come back since."""
        _, number, ticket = one
        level = self._where.get(ticket)
        return level is not None and self._lines[level][ticket][0] == number

    def _sweep(self, now_s: float) -> None:
        """Take those that are late out of the line, for `expired` to return."""
        while self._deadlines and self._deadlines[0][0] <= now_s:
            one = heapq.heappop(self._deadlines)
            if self._waits(one):
                self._forget(one[2])
                self._late.append(one[2])
