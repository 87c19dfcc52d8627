"""How far another machine's monotonic clock is from ours, and how surely we know. Pure but for the pings.

A ping asks the other side for its time and brackets the answer with two readings here: the other clock was read at some
moment between them, so its offset is known to half the bracket. The shortest of many brackets says most (Cristian,
"Probabilistic clock synchronization", 1989).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from breakeven.errors import BreakevenError

PINGS = 20
MOST_UNCERTAIN_NS = 5_000_000
"""A delay is told to the millisecond; a clock that may be 5 ms off would make it a guess."""


@dataclass(frozen=True, slots=True)
class Offset:
    """Their clock plus `offset_ns` is ours, to +- `uncertainty_ns`."""

    offset_ns: int
    uncertainty_ns: int


def offset_of(pings: Sequence[tuple[int, int, int]]) -> Offset:
    """From (ours before, theirs, ours after), nanoseconds each. Raises ValueError for no pings. Pure."""
    before_ns, theirs_ns, after_ns = min(pings, key=lambda ping: ping[2] - ping[0])
    half_ns = (after_ns - before_ns) // 2
    return Offset(before_ns + half_ns - theirs_ns, (after_ns - before_ns + 1) // 2)


def measure_offset(ask: Callable[[], int], who: str, pings: int = PINGS) -> Offset:
    """Ping `ask`, which reads the other clock. Raises BreakevenError when that does not tell the offset well enough."""
    found = []
    for _ in range(pings):
        before_ns = time.monotonic_ns()
        found.append((before_ns, ask(), time.monotonic_ns()))
    offset = offset_of(found)
    if offset.uncertainty_ns > MOST_UNCERTAIN_NS:
        raise BreakevenError(
            f"the clock of {who} is known only to +-{offset.uncertainty_ns / 1e6:.1f} ms, which is worse than "
            f"{MOST_UNCERTAIN_NS / 1e6:g} ms; use workers nearer to this machine, or a less busy cluster"
        )
    return offset
