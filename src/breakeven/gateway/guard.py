"""What keeps one bad backend or one greedy client from spoiling it for all. Pure: time and dice come from the caller.

`Breaker`: whether a backend may be asked now.

    closed -> open     `failures` in a row, or a bad share of recent results (their weight halves every `half_life_s`)
    open -> half-open  when the backoff is over, at the next `allows`
    half-open -> closed after `probes` successes of requests begun since; -> open again at one failure, backoff doubled

A result belongs to the spell in which its request began (`started` says which), so that the hundred requests that were
under way when a backend stopped do not each count against it again once it is back.

`HedgeBudget`: how often a second backend may be asked at all.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Literal

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
