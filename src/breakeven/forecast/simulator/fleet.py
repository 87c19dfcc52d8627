"""Several replicas: which one a request goes to, and how many there are."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from random import Random

from breakeven.errors import UserError

Pick = Callable[[Sequence[int], int, Random], int]
"""From requests in flight by replica that takes new ones, the number of this request, and a random stream: which."""


def round_robin(in_flight: Sequence[int], i: int, rng: Random) -> int:
    """One after the other."""
    return i % len(in_flight)


def least_loaded(in_flight: Sequence[int], i: int, rng: Random) -> int:
    """The one with the fewest requests, the first of several."""
    return min(range(len(in_flight)), key=in_flight.__getitem__)


def random(in_flight: Sequence[int], i: int, rng: Random) -> int:
    """Any one."""
    return rng.randrange(len(in_flight))


BALANCING: dict[str, Pick] = {"round_robin": round_robin, "least_loaded": least_loaded, "random": random}


@dataclass(frozen=True, slots=True, kw_only=True)
class Autoscale:
    """Replicas come and go with the requests in flight: ceil(in flight / `per_replica`) of them, `least` to `most`.

    A new one takes requests `start_s` after it was asked for. One goes when fewer were enough for `calm_s`; it ends
    what it has. Decided whenever a request arrives.
    """

    least: int = 1
    most: int = 8
    per_replica: int = 16
    start_s: float = 60.0
    calm_s: float = 300.0

    def __post_init__(self) -> None:
        """Raises UserError for numbers that make no sense."""
        if not (1 <= self.least <= self.most and self.per_replica >= 1 and self.start_s >= 0 and self.calm_s >= 0):
            raise UserError(
                "autoscaling needs 1 <= least <= most replicas, 1 request per replica or more, and times of 0 s or "
                f"more; found {self}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Replicas and how requests are spread over them. `autoscale` replaces `replicas`."""

    replicas: int = 1
    balancing: str = "least_loaded"
    autoscale: Autoscale | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises UserError for an unknown rule or no replica."""
        if self.balancing not in BALANCING:
            raise UserError(f"balancing {self.balancing!r} is not known; one of {', '.join(BALANCING)}")
        if self.replicas < 1:
            raise UserError(f"a fleet has 1 replica or more; found {self.replicas}")

    @property
    def most(self) -> int:
        """Replicas there may be at once."""
        return self.replicas if self.autoscale is None else self.autoscale.most


class Scaler:
    """Which replicas take requests, as time goes on. Replica numbers are reused: 0 is the last to go."""

    __slots__ = ("_fleet", "_peaks", "_rule", "from_s", "paid_s", "ready_s")

    def __init__(self, fleet: Fleet) -> None:
        self._fleet, self._rule = fleet, fleet.autoscale
        n = fleet.replicas if self._rule is None else self._rule.least
        self.ready_s = [0.0] * n
        """When each of the present replicas takes requests."""
        self.from_s = [0.0] * n
        """Since when it is paid for."""
        self.paid_s = 0.0
        """Replica seconds of those that went."""
        self._peaks: deque[tuple[float, int]] = deque()
        """Replicas wanted within the last `calm_s`: falling, each the largest since its time."""

    def decide(self, now_s: float, in_flight: int, drained_s: Callable[[int], float]) -> list[int]:
        """The replicas that take a request arriving now. `drained_s(k)`: when replica k ends what it has."""
        rule = self._rule
        if rule is None:
            return list(range(len(self.ready_s)))
        wanted = min(rule.most, max(rule.least, ceil(in_flight / rule.per_replica)))
        while self._peaks and self._peaks[-1][1] <= wanted:
            self._peaks.pop()
        self._peaks.append((now_s, wanted))
        last_peak_s = now_s
        while self._peaks[0][0] < now_s - rule.calm_s and len(self._peaks) > 1:
            last_peak_s, _ = self._peaks.popleft()
        for _ in range(len(self.ready_s), wanted):
            self.ready_s.append(now_s + rule.start_s)
            self.from_s.append(now_s)
        for k in range(len(self.ready_s) - 1, self._peaks[0][1] - 1, -1):
            went_s = max(min(now_s, last_peak_s + rule.calm_s), drained_s(k), self.from_s[k])
            self.paid_s += went_s - self.from_s[k]
            self.ready_s.pop()
            self.from_s.pop()
        return [k for k, ready in enumerate(self.ready_s) if ready <= now_s]

    def replica_seconds(self, end_s: float) -> float:
        """Of all replicas, from the start of the run to its end, starting up included."""
        return self.paid_s + sum(max(0.0, end_s - since) for since in self.from_s)
