"""What keeps one bad backend or one greedy client from spoiling it for all. Pure: time and dice come from the caller.

`Breaker`: whether a backend may be asked now.

    closed -> open     `failures` in a row, or a bad share of recent results (their weight halves every `half_life_s`)
    open -> half-open  when the backoff is over, at the next `allows`
    half-open -> closed after `probes` successes of requests begun since; -> open again at one failure, backoff doubled

A result belongs to the spell in which its request began (`started` says which), so that the hundred requests that were
under way when a backend stopped do not each count against it again once it is back.

`Gate`: a backend's places and the line before them. Higher priority goes first, then first come, first served. A full
line drops the newest of the lowest priority, which may be the newcomer. Places are shared with other workers:
`elsewhere` is what they have in flight. Since nobody tells this worker when a place is freed elsewhere, the caller asks
`wake` now and then while `queued` is not 0.

`HedgeBudget`: how often a second backend may be asked at all.
"""

from __future__ import annotations

import heapq
import math
import random
from bisect import insort
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

LONGEST_HOLD_S = 300.0
"""A backend's Retry-After is believed up to here; a wrong one must not send it away for good."""
USUAL_HOLD_S = 1.0
"""How long a backend that said 429 without a time is left alone."""

State = Literal["closed", "half_open", "open"]
CODES: dict[State, int] = {"closed": 0, "half_open": 1, "open": 2}
"""As `UnderWay.BREAKER` has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerSettings:
    """When to open and for how long. Seconds and counts.

    `failures` in a row open it; so does a share of failures of at least `share` once recent results weigh `least`.
    The first backoff is `open_s`, doubled by each failed probe up to `most_s`, each spread evenly by `jitter` of itself
    upwards so that workers do not probe together. Half-open lets `probes` through at once; a probe silent for `probe_s`
    frees its place.
    """

    failures: int = 5
    share: float = 0.5
    least: float = 10.0
    half_life_s: float = 10.0
    open_s: float = 1.0
    most_s: float = 60.0
    jitter: float = 0.3
    probes: int = 2
    probe_s: float = 30.0


class Breaker:
    """One backend's breaker in one worker. `until_s`: the end of its backoff or hold, 0 when neither runs."""

    __slots__ = (
        "_backoff_s",
        "_bad",
        "_dice",
        "_good",
        "_last_s",
        "_open_until_s",
        "_out",
        "_passed",
        "_probed_s",
        "_row",
        "_settings",
        "_spell",
        "held_until_s",
        "opened",
        "state",
    )

    def __init__(self, settings: BreakerSettings | None = None, dice: random.Random | None = None) -> None:
        """Closed. `dice` draws the jitter."""
        self._settings = settings or BreakerSettings()
        self._dice = dice or random.Random()
        self.state: State = "closed"
        self.opened = 0
        """How often it opened."""
        self.held_until_s = 0.0
        self._spell = 0
        self._row = 0
        self._good = self._bad = 0.0
        self._last_s = 0.0
        self._backoff_s = self._settings.open_s
        self._open_until_s = 0.0
        self._out = self._passed = 0
        self._probed_s = 0.0

    @property
    def until_s(self) -> float:
        """When it may be asked again, for the choice of the least bad when every backend is closed to requests."""
        return max(self.held_until_s, self._open_until_s if self.state == "open" else 0.0)

    def allows(self, now_s: float) -> bool:
        """Whether a request may go there now. An open breaker whose backoff is over becomes half-open."""
        if now_s < self.held_until_s:
            return False
        if self.state == "closed":
            return True
        if self.state == "open":
            if now_s < self._open_until_s:
                return False
            self._turn("half_open")
        if self._out and now_s - self._probed_s > self._settings.probe_s:
            self._out = 0
        return self._out < self._settings.probes

    def started(self, now_s: float) -> int:
        """A request goes there, allowed or not (the least bad of all is asked anyway); returns its spell."""
        if self.state != "closed":
            self._out += 1
            self._probed_s = now_s
        return self._spell

    def succeeded(self, now_s: float, spell: int | None = None) -> None:
        """It answered. `spell`: what `started` returned; None: taken as begun in this one."""
        if self.state == "closed":
            self._row = 0
            self._weigh(now_s)
            self._good += 1.0
        elif self._ours(spell):
            self._passed += 1
            # A request that was forced through an open breaker and went well is as good as a probe.
            if self._passed >= self._settings.probes:
                self._close()

    def failed(self, now_s: float, spell: int | None = None) -> None:
        """It did not answer, or with an error of its own making."""
        if self.state == "closed":
            if spell is not None and spell != self._spell:
                return
            self._row += 1
            self._weigh(now_s)
            self._bad += 1.0
            if self._row >= self._settings.failures or self._mostly_bad():
                self._open(now_s)
        elif self._ours(spell) and self.state == "half_open":
            self._backoff_s = min(self._settings.most_s, 2.0 * self._backoff_s)
            self._open(now_s)

    def ended(self, now_s: float, spell: int | None = None) -> None:
        """It ended without telling anything of the backend: the client left, or another backend was faster."""
        if self.state != "closed":
            self._ours(spell)

    def hold(self, until_s: float, now_s: float | None = None) -> None:
        """It is busy and said until when (429): send nothing before, without taking it for broken.

        With `now_s` the hold is bounded by `LONGEST_HOLD_S`.
        """
        if now_s is not None:
            until_s = min(until_s, now_s + LONGEST_HOLD_S)
        self.held_until_s = max(self.held_until_s, until_s)

    def _ours(self, spell: int | None) -> bool:
        """Whether a result is of this spell; gives its place back."""
        if spell is not None and spell != self._spell:
            return False
        self._out = max(0, self._out - 1)
        return True

    def _weigh(self, now_s: float) -> None:
        """Halve the weights of earlier results for every half-life gone by."""
        gone_s = now_s - self._last_s
        if gone_s > 0.0:
            left = 0.5 ** (gone_s / self._settings.half_life_s)
            self._good *= left
            self._bad *= left
            self._last_s = now_s

    def _mostly_bad(self) -> bool:
        both = self._good + self._bad
        return both >= self._settings.least and self._bad >= self._settings.share * both

    def _turn(self, state: State) -> None:
        self.state = state
        self._spell += 1
        self._out = self._passed = 0

    def _open(self, now_s: float) -> None:
        self._turn("open")
        self.opened += 1
        self._open_until_s = now_s + self._backoff_s * (1.0 + self._settings.jitter * self._dice.random())

    def _close(self) -> None:
        self._turn("closed")
        self._row = 0
        self._good = self._bad = 0.0
        self._backoff_s = self._settings.open_s


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


SHORTEST_S = 0.02
"""Below this a second request costs more than the wait it could save."""
SAVED_MOST = 20.0
"""Hedges that may be saved up by quiet times; without a bound, a bad hour after a good day would be asked twice."""


def delay_s(predicted_ttft_s: float, width: float) -> float:
    """Seconds of silence after which a second backend is asked: the predicted 95th percentile of TTFT.

    predicted * exp(width), where `width` is the half width of the interval of ln(actual / predicted) as `View` has it.
    """
    return max(SHORTEST_S, predicted_ttft_s * math.exp(max(0.0, width)))


class HedgeBudget:
    """A bucket that each request fills by `share` and each hedge empties by 1.

    Hedges never exceed `share` times the requests so far. The bucket starts empty and holds `SAVED_MOST`.
    """

    __slots__ = ("_saved", "share")

    def __init__(self, share: float) -> None:
        """`share` 0: never."""
        self.share = share
        self._saved = 0.0

    def requested(self) -> None:
        """A request came; hedges themselves do not count as requests."""
        self._saved = min(SAVED_MOST, self._saved + self.share)

    def take(self) -> bool:
        """Whether one may be hedged now; if so it is taken off."""
        # A sum of shares may fall short of 1 by rounding.
        if self._saved < 1.0 - 1e-9:
            return False
        self._saved -= 1.0
        return True

    def give_back(self) -> None:
        """It was taken and not used: the first backend answered, or nobody else could be asked."""
        self._saved = min(SAVED_MOST, self._saved + 1.0)
