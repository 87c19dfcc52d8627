"""What an arrival process is: until when it runs, and what it gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from breakeven.errors import UserError
from breakeven.measure.traces.rows import TraceRows
from breakeven.spec.workload import Arrivals

NS = 1_000_000_000
MOST_ROWS = 50_000_000
"""More requests than this are a slip of the keyboard, and would not fit into memory."""


@dataclass(frozen=True, slots=True)
class Span:
    """How long arrivals go on: `warm_up_s`, then `duration_s` or `requests` arrivals, whichever ends first."""

    warm_up_s: float
    duration_s: float | None
    requests: int | None

    @property
    def end_s(self) -> float:
        """Seconds from the start of the run to its last possible arrival; infinite when only `requests` ends it."""
        return np.inf if self.duration_s is None else self.warm_up_s + self.duration_s

    def cut(self, times_s_N: NDArray[np.float64]) -> NDArray[np.float64]:
        """The times, sorted and from the start of the run, that fall inside."""
        last = int(np.searchsorted(times_s_N, self.end_s, side="left"))
        if self.requests is not None:
            last = min(last, int(np.searchsorted(times_s_N, self.warm_up_s, side="left")) + self.requests)
        return times_s_N[:last]

    def is_full(self, times_s_N: NDArray[np.float64]) -> bool:
        """True when later times would be cut off."""
        return len(self.cut(times_s_N)) < len(times_s_N)

    def check(self, what: str, rate_per_s: float) -> None:
        """Raises UserError when nothing ends the run, or when it would be absurdly long."""
        if self.duration_s is None and self.requests is None:
            raise UserError(f"{what} arrivals go on for ever; give a duration or a number of requests")
        expected = min(self.end_s * rate_per_s, self.warm_up_s * rate_per_s + (self.requests or np.inf))
        if expected > MOST_ROWS:
            raise UserError(f"{what} arrivals would be {expected:,.0f} requests; give a lower rate or a shorter run")


@dataclass(frozen=True, slots=True)
class Arrived:
    """What a process gives: due times in ns (DEPENDS where answers decide), and what only a trace knows besides."""

    due_ns_N: NDArray[np.int64]
    prompt_N: NDArray[np.int32] | None = None
    output_N: NDArray[np.int32] | None = None
    session_N: NDArray[np.int64] | None = None
    turn_N: NDArray[np.int32] | None = None
    think_ns_N: NDArray[np.int64] | None = None
    blocks: tuple[tuple[int, ...], ...] = field(default=())
    block_tokens: int = 512


Process: TypeAlias = Callable[[Arrivals, Span, np.random.Generator, TraceRows | None], Arrived]


def rate_of(arrivals: Arrivals) -> float:
    """The rate in requests/s. Raises UserError when there is none or it is not above 0."""
    rate = arrivals.rate_per_s
    if rate is None or not 0 < rate < np.inf:
        raise UserError(f"{arrivals.process} arrivals need a rate above 0 requests/s, such as 2; found {rate}")
    return rate


def to_ns(times_s_N: NDArray[np.float64]) -> NDArray[np.int64]:
    """Seconds to the nearest nanosecond."""
    return np.rint(times_s_N * NS).astype(np.int64)


def renewal(span: Span, rate_per_s: float, gaps_s: Callable[[int], NDArray[np.float64]]) -> Arrived:
    """Arrivals one gap after another, the first one gap after the start. `gaps_s(n)` draws the next n gaps."""
    expected = min(span.end_s * rate_per_s, span.warm_up_s * rate_per_s + (span.requests or np.inf))
    return Arrived(to_ns(span.cut(_renew(gaps_s, span.is_full, expected))))


def through(
    span: Span,
    rng: np.random.Generator,
    expected: float,
    time_s: Callable[[NDArray[np.float64]], NDArray[np.float64]],
) -> Arrived:
    """Poisson arrivals at a changing rate, by time change.

    A Poisson process of rate 1 runs up to `expected`, the mean number of arrivals of the whole run, and `time_s` says
    when that many were expected (Cinlar 1975, Introduction to Stochastic Processes, 4.7).
    """
    unit_N = _renew(lambda n: rng.exponential(size=n), lambda so_far: bool(so_far[-1] > expected), expected)
    return Arrived(to_ns(span.cut(time_s(unit_N[unit_N < expected]))))


def _renew(
    gaps: Callable[[int], NDArray[np.float64]], is_full: Callable[[NDArray[np.float64]], bool], expected: float
) -> NDArray[np.float64]:
    """Cumulative sums of gaps until `is_full`. A longer run begins, to the last bit, as a shorter one does."""
    times_N = np.cumsum(gaps(int(expected) + 64))
    while not is_full(times_N):
        more = gaps(len(times_N) // 4 + 64)
        more[0] += times_N[-1]  # added before the sum, so that it does not matter where the draw was cut
        times_N = np.concatenate([times_N, np.cumsum(more)])
    return times_N
