"""A backend's places and the line before them, shared fairly between keys. Pure: time comes from the caller.

At most `limit` requests are in flight; who comes then waits. Higher priority goes first. Among equals a free place goes
to the key that holds the fewest here, then to the one that has had the fewest seconds of places since the line began
(deficit round robin), then to who came first. A full line drops the newest of the lowest priority, and among equals the
newest of the key that has the most here, which may be the newcomer itself.

Answers under way cannot be taken back, however long they are. So of the last free places `kept` go only to keys that
hold none here: one tenant's long streams cannot shut another out.

Places are shared with other workers: `elsewhere` is what they have in flight. Since nobody tells this worker when a
place is freed elsewhere, the caller asks `wake` now and then while `queued` is not 0.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable
from typing import Any, Generic, Literal, NamedTuple, TypeVar

Ticket = TypeVar("Ticket", bound=Hashable)
SPARE = 64
"""Forgotten deadlines that may lie about before they are swept."""
KEPT_OF, MOST_KEPT, LEAST_LIMIT = 16, 8, 4
"""One place in sixteen is kept, eight at most, one at least from four places on: of fewer, one is too much to leave."""


def kept_places(limit: int, keys: int) -> int:
    """How many of `limit` places are kept for keys that hold none, where `keys` may ask at all."""
    if limit < LEAST_LIMIT:
        return 0
    return max(0, min(max(1, limit // KEPT_OF), MOST_KEPT, keys - 1))


class NextInLine(NamedTuple):
    """The request that goes next of a line, as other workers must know it: the highest goes first.

    `priority` as it is, `fewer`: minus the places that its key holds."""

    priority: int
    fewer: int


class Gate(Generic[Ticket]):
    """At most `limit` in flight and `queue_size` in line. A ticket is whatever the caller knows a request by."""

    __slots__ = (
        "_deadlines",
        "_had_s",
        "_held",
        "_holders",
        "_late",
        "_levels",
        "_lines",
        "_number",
        "_others",
        "_out",
        "_where",
        "kept",
        "limit",
        "size",
    )

    def __init__(
        self,
        limit: int,
        queue_size: int,
        kept: int = 0,
        held: Any = None,
        others: Callable[[int], int] | None = None,
    ) -> None:
        """Empty. `held`: this worker's cells, places by key; `others`: what a key holds here in other workers."""
        self.limit, self.size, self.kept = limit, queue_size, kept
        self._held: Any = defaultdict(int) if held is None else held
        self._others = others
        self._holders: dict[Ticket, tuple[int, float]] = {}
        """Who has a place: its key, and since when."""
        self._lines: dict[int, dict[int, OrderedDict[Ticket, tuple[int, float]]]] = {}
        """By priority and key: number in line and deadline."""
        self._levels: list[int] = []
        """Priorities in line, lowest first."""
        self._where: dict[Ticket, tuple[int, int]] = {}
        self._had_s: dict[int, float] = {}
        self._deadlines: list[tuple[float, int, Ticket]] = []
        self._number = 0
        self._late: list[Ticket] = []
        self._out: list[Ticket] = []

    @property
    def in_flight(self) -> int:
        """With a place."""
        return len(self._holders)

    @property
    def queued(self) -> int:
        """In line."""
        return len(self._where)

    def enter(
        self,
        ticket: Ticket,
        priority: int,
        deadline_s: float,
        now_s: float,
        elsewhere: int = 0,
        key: int = 0,
        ahead: NextInLine | None = None,
    ) -> Literal["go", "wait", "full"]:
        """Ask for a place. `go`: it is taken. `wait`: in line until `deadline_s`. `full`: refused.

        A newcomer passes those of lower priority that wait, and those that may not have the place that is free. When it
        takes the last place in line from another, `pushed_out` says from whom. `ahead`: who goes next elsewhere.
        """
        if self._levels:
            self._sweep(now_s)
        free = self.limit - len(self._holders) - elsewhere
        if (
            free > 0
            and (free > self.kept or self._may(key, priority))
            and (not self._levels or self._is_first(priority, free))
            and (ahead is None or not self._yields(ahead, NextInLine(priority, -self.held(key)), free))
        ):
            self._take(ticket, key, now_s)
            return "go"
        if self.size <= 0 or deadline_s <= now_s:
            return "full"
        if len(self._where) >= self.size:
            victim = self._victim(priority, key)
            if victim is None:
                return "full"
            self._forget(victim)
            self._out.append(victim)
        self._stand(ticket, priority, key, deadline_s)
        return "wait"

    def leave(self, ticket: Ticket, now_s: float, elsewhere: int = 0, ahead: NextInLine | None = None) -> list[Ticket]:
        """One that went has ended. Returns those that go now; their places are taken."""
        holder = self._holders.pop(ticket, None)
        if holder is None:
            raise AssertionError("a place was given back that nobody held")
        key, since_s = holder
        self._held[key] -= 1
        if not self._levels:
            return []
        self._had_s[key] = self._had_s.get(key, 0.0) + now_s - since_s
        return self.wake(now_s, elsewhere, ahead)

    def wake(self, now_s: float, elsewhere: int = 0, ahead: NextInLine | None = None) -> list[Ticket]:
        """Those that go now because places became free elsewhere; their places are taken."""
        going: list[Ticket] = []
        self._sweep(now_s)
        while self._levels and (free := self.limit - len(self._holders) - elsewhere) > 0:
            best = self._best(free)
            if best is None or (ahead is not None and self._yields(ahead, best[0], free)):
                break
            _, key, ticket = best
            self._forget(ticket)
            self._take(ticket, key, now_s)
            going.append(ticket)
        return going

    def claim(self) -> NextInLine | None:
        """Who would go next were a place free; None: nobody waits."""
        best = self._best(self.kept + 1) if self._levels else None
        return None if best is None else best[0]

    def expired(self, now_s: float) -> list[Ticket]:
        """Those whose deadline has passed since the last call; they are out of the line."""
        self._sweep(now_s)
        late, self._late = self._late, []
        return late

    def excuse(self, by_s: float) -> None:
        """Everybody in line may wait so much longer."""
        self._deadlines = [(deadline_s + by_s, number, ticket) for deadline_s, number, ticket in self._deadlines]

    def pushed_out(self) -> list[Ticket]:
        """Those that lost their place in line to another since the last call."""
        out, self._out = self._out, []
        return out

    def remove(self, ticket: Ticket) -> bool:
        """Take one out of the line (its client left, it went elsewhere); False when it does not wait."""
        if ticket not in self._where:
            return False
        self._forget(ticket)
        return True

    def held(self, key: int) -> int:
        """Places that a key has here, in all workers."""
        mine: int = self._held[key]
        return mine if self._others is None else mine + self._others(key)

    # Who goes.

    def _may(self, key: int, priority: int) -> bool:
        """Whether a place that is kept is this key's to take. What is shed first has no claim on it."""
        return priority >= 0 and self.held(key) == 0

    def _yields(self, ahead: NextInLine, mine: NextInLine, free: int) -> bool:
        """Whether a free place is left to who waits in another worker: unless it is kept for others than them."""
        return ahead > mine and (free > self.kept or ahead.fewer == 0)

    def _is_first(self, priority: int, free: int) -> bool:
        """Whether a newcomer passes everybody in line that could have a free place."""
        if self._levels[-1] < priority:
            return True
        best = self._best(free)
        return best is None or best[0].priority < priority

    def _best(self, free: int) -> tuple[NextInLine, int, Ticket] | None:
        """Who of the line goes next, and its key; None: what is free is kept for others."""
        for level in reversed(self._levels):
            found: tuple[int, float, int, int] | None = None
            for key, line in self._lines[level].items():
                held = self.held(key)
                if free <= self.kept and (held or level < 0):
                    continue
                number, _ = next(iter(line.values()))
                rank = (held, self._had_s.get(key, 0.0), number, key)
                if found is None or rank < found:
                    found = rank
            if found is not None:
                held, _, _, key = found
                return NextInLine(level, -held), key, next(iter(self._lines[level][key]))
        return None

    def _victim(self, priority: int, key: int) -> Ticket | None:
        """Who leaves a full line for a newcomer; None: it is the newcomer who goes without."""
        lowest = self._levels[0]
        if lowest > priority:
            return None
        lines = self._lines[lowest]
        # What a key has here counts whole: whoever fills the places must not fill the line as well.
        most, _, theirs = max((self.held(one) + len(line), len(line), one) for one, line in lines.items())
        if lowest == priority and most <= self.held(key) + len(lines.get(key, ())) + 1:
            return None
        return next(reversed(lines[theirs]))

    def _take(self, ticket: Ticket, key: int, now_s: float) -> None:
        self._holders[ticket] = (key, now_s)
        self._held[key] += 1

    # The line.

    def _stand(self, ticket: Ticket, priority: int, key: int, deadline_s: float) -> None:
        if not self._levels:
            # Nobody was short of a place until now: what each had before is nobody's debt.
            self._had_s.clear()
        lines = self._lines.get(priority)
        if lines is None:
            lines = self._lines[priority] = {}
            insort(self._levels, priority)
        line = lines.get(key)
        if line is None:
            # Who was not in line saved nothing up meanwhile.
            least_s = min((self._had_s.get(other, 0.0) for other in lines), default=0.0)
            self._had_s[key] = max(self._had_s.get(key, 0.0), least_s)
            line = lines[key] = OrderedDict()
        self._number += 1
        line[ticket] = (self._number, deadline_s)
        self._where[ticket] = (priority, key)
        heapq.heappush(self._deadlines, (deadline_s, self._number, ticket))

    def _forget(self, ticket: Ticket) -> None:
        level, key = self._where.pop(ticket)
        lines = self._lines[level]
        line = lines[key]
        del line[ticket]
        if not line:
            del lines[key]
            if not lines:
                del self._lines[level]
                self._levels.remove(level)
        if len(self._deadlines) > 2 * len(self._where) + SPARE:
            self._deadlines = [one for one in self._deadlines if self._waits(one)]
            heapq.heapify(self._deadlines)

    def _waits(self, one: tuple[float, int, Ticket]) -> bool:
        """Whether a deadline's request is still in line: the same ticket may have come back since."""
        _, number, ticket = one
        where = self._where.get(ticket)
        return where is not None and self._lines[where[0]][where[1]][ticket][0] == number

    def _sweep(self, now_s: float) -> None:
        """Take those that are late out of the line, for `expired` to return."""
        while self._deadlines and self._deadlines[0][0] <= now_s:
            one = heapq.heappop(self._deadlines)
            if self._waits(one):
                self._forget(one[2])
                self._late.append(one[2])
