"""When requests arrive: seven processes in one table, each saying until when it runs and what it gives.

constant: one request every 1/rate seconds, the first at 0. poisson: independent exponential gaps, as of many people who
do not know of each other; its rate may change evenly from one value to another (ramp) or jump at given times (steps).
gamma: independent gaps of a chosen burstiness; a coefficient of variation of 1 is Poisson. closed: `concurrency`
streams, each asking again `think_s` after its answer. agents: sessions of growing context with a long shared prefix,
Poisson, and subagents beside them. trace: the arrivals somebody recorded, gaps as they were, cut to
a window and played faster or slower.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from breakeven.errors import UserError
from breakeven.traffic.schedule import DEPENDS
from breakeven.traffic.traces.cells import MOST_TOKENS
from breakeven.traffic.traces.rows import TraceRows
from breakeven.traffic.workload import Agents, Arrivals

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


_ROWS = 4_096
"""Different lengths to draw when time ends the run: it may take more requests, and then they start over."""
_ROWS_PER_STREAM = 64


def closed(arrivals: Arrivals, span: Span, rng: np.random.Generator, trace: TraceRows | None) -> Arrived:
    """No due times. Needs `concurrency`; `requests` or a duration ends the run, which only the runner can know."""
    if arrivals.concurrency is None or arrivals.concurrency < 1:
        raise UserError(f"a closed loop needs a concurrency of 1 or more, such as 8; found {arrivals.concurrency}")
    if span.duration_s is None and span.requests is None:
        raise UserError("a closed loop goes on for ever; give a duration or a number of requests")
    n = span.requests or max(_ROWS, _ROWS_PER_STREAM * arrivals.concurrency)
    if n > MOST_ROWS:
        raise UserError(f"{n:,} requests are more than fit in one run; give fewer")
    return Arrived(
        np.full(n, DEPENDS, np.int64), think_ns_N=np.full(n, round(max(0.0, arrivals.think_s) * NS), np.int64)
    )


def constant(arrivals: Arrivals, span: Span, rng: np.random.Generator, trace: TraceRows | None) -> Arrived:
    """Needs `rate_per_s`. Every time is a multiple of the gap, so no rounding adds up."""
    rate = rate_of(arrivals)
    span.check("constant", rate)
    n = int(min(span.end_s * rate, span.warm_up_s * rate + (span.requests or np.inf))) + 2
    return Arrived(to_ns(span.cut(np.arange(n) / rate)))


def gamma(arrivals: Arrivals, span: Span, rng: np.random.Generator, trace: TraceRows | None) -> Arrived:
    """Needs `rate_per_s` and `cv`, the standard deviation of a gap over its mean: shape 1/cv^2, scale cv^2/rate."""
    rate = rate_of(arrivals)
    if not 0.01 <= arrivals.cv <= 100:
        raise UserError(f"gamma arrivals need a coefficient of variation from 0.01 to 100; found {arrivals.cv:g}")
    span.check("gamma", rate)
    variance = arrivals.cv**2
    return renewal(span, rate, lambda n: rng.gamma(1 / variance, variance, size=n) / rate)


def poisson(arrivals: Arrivals, span: Span, rng: np.random.Generator, trace: TraceRows | None) -> Arrived:
    """Needs `rate_per_s`. One seed gives the same pattern at every rate, stretched."""
    rate = rate_of(arrivals)
    span.check("Poisson", rate)
    return renewal(span, rate, lambda n: rng.exponential(size=n) / rate)


def ramp(arrivals: Arrivals, span: Span, rng: np.random.Generator, trace: TraceRows | None) -> Arrived:
    """Needs `rate_per_s`, `to_rate_per_s` and a duration or number of requests. Warm-up runs at the first rate.

    With rates a and b over T seconds, a t + (b - a) t^2 / (2 T) arrivals are expected by t; solved here for t.
    """
    low, high = arrivals.rate_per_s, arrivals.to_rate_per_s
    if low is None or high is None or min(low, high) < 0 or not 0 < max(low, high) < np.inf:
        raise UserError(f"a ramp needs two rates of 0 or more, such as ramp:1-10; found {low} and {high}")
    if span.duration_s is None and span.requests is None:
        raise UserError("a ramp needs to know how long it rises; give a duration or a number of requests")
    seconds = span.duration_s if span.duration_s is not None else 2 * (span.requests or 0) / (low + high)
    before = low * span.warm_up_s
    total = before + (low + high) / 2 * seconds
    Span(0.0, span.warm_up_s + seconds, None).check("ramp", total / (span.warm_up_s + seconds))

    def time_s(unit_N: NDArray[np.float64]) -> NDArray[np.float64]:
        in_ramp_N = np.maximum(unit_N - before, 0.0)
        slope = (high - low) / seconds
        # 2 c / (a + sqrt(a^2 + 2 s c)) is the root that stays exact when the slope is small or 0.
        root_N = np.sqrt(np.maximum(low**2 + 2 * slope * in_ramp_N, 0.0))
        ramp_s_N = np.divide(2 * in_ramp_N, low + root_N, out=np.zeros_like(in_ramp_N), where=low + root_N > 0)
        return np.where(unit_N < before, unit_N / low if low else 0.0, span.warm_up_s + ramp_s_N)

    return through(span, rng, total, time_s)


def steps(arrivals: Arrivals, span: Span, rng: np.random.Generator, trace: TraceRows | None) -> Arrived:
    """Needs `steps`. Warm-up runs at the first rate, then the steps follow; with the last of them the run ends."""
    if not arrivals.steps or any(rate < 0 or not 0 < seconds < np.inf for rate, seconds in arrivals.steps):
        raise UserError("steps need rates of 0 or more and seconds above 0 each, such as steps:2x30s,5x30s")
    parts = [(arrivals.steps[0][0], span.warm_up_s), *arrivals.steps]
    expected_K = np.cumsum([0.0] + [rate * seconds for rate, seconds in parts])
    ends_s_K = np.cumsum([0.0] + [seconds for _, seconds in parts])
    total = float(expected_K[-1])
    if total <= 0:
        raise UserError("steps of rate 0 only ask for nothing; give at least one a rate above 0")
    Span(0.0, float(ends_s_K[-1]), None).check("stepped", total / float(ends_s_K[-1]))

    def time_s(unit_N: NDArray[np.float64]) -> NDArray[np.float64]:
        # The step each belongs to first: a step of rate 0 makes two ends equal, which an interpolation cannot resolve.
        step_N = np.searchsorted(expected_K, unit_N, side="right") - 1
        rate_K = np.array([rate for rate, _ in parts])
        inside_s_N: NDArray[np.float64] = (unit_N - expected_K[step_N]) / rate_K[step_N]
        return np.asarray(ends_s_K[step_N] + inside_s_N)

    return through(span, rng, total, time_s)


SHARED_TOKENS = 64
"""What shared prefixes are told in: whole blocks of so many tokens."""
_SUB_TURNS, _SUB_PREFIX, _MOST_TURNS = 1 / 3, 1 / 2, 4


def agents(arrivals: Arrivals, span: Span, rng: np.random.Generator, trace: TraceRows | None) -> Arrived:
    """Needs `rate_per_s`, of sessions, and `agents`.

    Turns are geometric, lengths lognormal with a spread of their mean, the times of tools exponential. A
    subagent begins at an even moment of its session's time in tools.
    """
    shape = arrivals.agents or Agents()
    rate = rate_of(arrivals)
    span.check("agents'", rate * shape.turns * (1 + shape.subagents * max(1.0, shape.turns * _SUB_TURNS)))
    turn_rng, sub_rng, length_rng, tool_rng = rng.spawn(4)
    main_S = renewal(span, rate, lambda n: rng.exponential(size=n) / rate).due_ns_N
    turns_S = _geometric(turn_rng, shape.turns, len(main_S))
    subs_S = sub_rng.binomial(turns_S, shape.subagents)
    after_s_X = sub_rng.random(int(subs_S.sum())) * np.repeat(turns_S * shape.tool_s, subs_S)
    sub_X = np.repeat(main_S, subs_S) + to_ns(after_s_X)
    sub_turns_X = _geometric(sub_rng, max(1.0, shape.turns * _SUB_TURNS), len(sub_X))
    begun_S = np.concatenate([main_S, sub_X])
    is_sub_S = np.arange(len(begun_S)) >= len(main_S)
    order_S = np.argsort(begun_S, kind="stable")
    order_S = order_S[begun_S[order_S] < span.end_s * NS]
    begun_S, is_sub_S, turns_S = begun_S[order_S], is_sub_S[order_S], np.concatenate([turns_S, sub_turns_X])[order_S]
    n = int(turns_S.sum())
    if n > MOST_ROWS:
        raise UserError(f"agents' sessions would be {n:,} requests; give a lower rate or a shorter run")
    first_S = np.cumsum(turns_S) - turns_S
    prefix_S = np.where(is_sub_S, round(shape.prefix * _SUB_PREFIX), shape.prefix)
    due_ns_N, prompt_N = np.full(n, DEPENDS, np.int64), _around(length_rng, shape.new, n)
    due_ns_N[first_S] = begun_S
    prompt_N[first_S] = prefix_S + _around(length_rng, shape.task, len(first_S))
    think_ns_N = to_ns(tool_rng.exponential(shape.tool_s, n))
    think_ns_N[first_S] = 0
    whole = shape.prefix // SHARED_TOKENS
    kinds = (tuple(range(whole)), tuple(range(whole, whole + round(shape.prefix * _SUB_PREFIX) // SHARED_TOKENS)))
    blocks: list[tuple[int, ...]] = [()] * n
    for first, sub in zip(first_S.tolist(), is_sub_S.tolist(), strict=True):
        blocks[first] = kinds[sub]
    return Arrived(
        due_ns_N,
        prompt_N=prompt_N,
        output_N=_around(length_rng, shape.output, n),
        session_N=np.repeat(np.arange(len(turns_S), dtype=np.int64), turns_S),
        turn_N=(np.arange(n) - np.repeat(first_S, turns_S)).astype(np.int32),
        think_ns_N=think_ns_N,
        blocks=tuple(blocks),
        block_tokens=SHARED_TOKENS,
    )


def _geometric(rng: np.random.Generator, mean: float, n: int) -> NDArray[np.int64]:
    """Clipped at four times the mean: one in fifty, and every engine must keep room for the longest."""
    return np.minimum(rng.geometric(1 / max(1.0, mean), n), max(1, round(_MOST_TURNS * mean))).astype(np.int64)


def _around(rng: np.random.Generator, mean: float, n: int) -> NDArray[np.int32]:
    """Lognormal counts of this mean, with a standard deviation as large: s^2 = ln 2."""
    variance = np.log(2.0)
    counts_N = np.exp(np.log(mean) - variance / 2 + np.sqrt(variance) * rng.standard_normal(n))
    return np.asarray(np.clip(np.rint(counts_N), 1, 10_000_000), np.int32)


def replay(arrivals: Arrivals, span: Span, rng: np.random.Generator, trace: TraceRows | None) -> Arrived:
    """Needs the rows of the trace. The window is in the trace's own seconds, `rate_scale` is applied after it.

    The first turn of a session is due when it was; later ones wait for the answer before them. Of a conversation that
    was under way when the window begins, the first turn inside brings all that was said before it.
    """
    if trace is None:
        raise UserError(f"arrivals from the trace {arrivals.trace or ''} need its rows; give the trace file")
    if not 0 < arrivals.rate_scale < np.inf:
        raise UserError(f"a trace is scaled by a factor above 0, such as 0.5; found {arrivals.rate_scale:g}")
    start_ns = round(arrivals.start_s * NS)
    end_ns = np.iinfo(np.int64).max if arrivals.end_s is None else round(arrivals.end_s * NS)
    keep_N = np.flatnonzero((trace.at_ns >= start_ns) & (trace.at_ns < end_ns))
    if not len(keep_N):
        span_s = float(trace.at_ns[-1]) / NS if len(trace) else 0.0
        raise UserError(f"no request of {trace.name} lies in the window; the trace spans 0 s to {span_s:.1f} s")
    at_ns_N = np.rint((trace.at_ns[keep_N] - start_ns) / arrivals.rate_scale).astype(np.int64)
    due_ns_N, turn_N, think_ns_N = at_ns_N, None, None
    missing_N: NDArray[np.int64] = np.zeros(len(keep_N), np.int64)
    if trace.session is not None:
        order_N, turn_N = _by_session(trace.session[keep_N], at_ns_N, _column(trace.turn, keep_N))
        keep_N, at_ns_N = keep_N[order_N], at_ns_N[order_N]
        due_ns_N = np.where(turn_N == 0, at_ns_N, DEPENDS)
        think_ns_N = np.where(turn_N == 0, 0, np.maximum(0, np.diff(at_ns_N, prepend=at_ns_N[:1])))
        if trace.think_ns is not None:
            known_N = trace.think_ns[keep_N]
            scaled_N = np.rint(known_N / arrivals.rate_scale).astype(np.int64)
            think_ns_N = np.where((turn_N > 0) & (known_N >= 0), scaled_N, think_ns_N)
        if len(keep_N) < len(trace):
            missing_N = _missing(trace, keep_N, turn_N)
    n = _rows_inside(span, due_ns_N)
    keep_N = keep_N[:n]
    return Arrived(
        due_ns_N[:n],
        # No context holds as many as the most: what is cut there could not be asked anyway.
        prompt_N=np.minimum(np.maximum(trace.prompt[keep_N], 1) + missing_N[:n], MOST_TOKENS).astype(np.int32),
        output_N=np.maximum(trace.output[keep_N], 1),
        session_N=None if trace.session is None else trace.session[keep_N],
        turn_N=None if turn_N is None else turn_N[:n],
        think_ns_N=None if think_ns_N is None else think_ns_N[:n],
        blocks=tuple(trace.blocks[k] for k in keep_N.tolist()) if trace.blocks else (),
        block_tokens=trace.block_tokens,
    )


def _missing(trace: TraceRows, keep_N: NDArray[np.int64], turn_N: NDArray[np.int32]) -> NDArray[np.int64]:
    """Tokens of each conversation that lie outside the window, by the row before which they were said.

    `keep_N`: the rows inside, turns of a session after each other; `turn_N`: their numbers, counted anew from 0. Blocks
    need no such care: they are of the whole context, whichever turn it is.
    """
    assert trace.session is not None
    every_N = np.arange(len(trace), dtype=np.int64)
    order_N, place_N = _by_session(trace.session, trace.at_ns, _column(trace.turn, every_N))
    said_N = np.maximum(trace.prompt, 1).astype(np.int64) + np.maximum(trace.output, 1)
    sums_N = np.cumsum(said_N[order_N]) - said_N[order_N]
    before_N = np.empty(len(trace), np.int64)
    before_N[order_N] = sums_N - sums_N[every_N - place_N]
    ended_N = np.roll((before_N + said_N)[keep_N], 1)
    return np.asarray(before_N[keep_N] - np.where(turn_N > 0, ended_N, 0))


def _column(column_N: NDArray[np.int32] | None, keep_N: NDArray[np.int64]) -> NDArray[np.int32]:
    return np.zeros(len(keep_N), np.int32) if column_N is None else column_N[keep_N]


def _by_session(
    session_N: NDArray[np.int64], at_ns_N: NDArray[np.int64], turn_N: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Order in which turns of a session follow each other, and their numbers counted anew from 0.

    Sessions stand in the order of their first arrival; a row without one (-1) is a session of its own.
    """
    alone_N = session_N < 0
    key_N = session_N.copy()
    key_N[alone_N] = session_N.max(initial=0) + 1 + np.arange(int(alone_N.sum()))
    _, unit_N = np.unique(key_N, return_inverse=True)
    order_N = np.lexsort((at_ns_N, turn_N, unit_N))
    starts_ns_U = at_ns_N[order_N][np.flatnonzero(np.diff(unit_N[order_N], prepend=-1))]
    order_N = order_N[np.argsort(starts_ns_U[unit_N[order_N]], kind="stable")]
    sorted_N = unit_N[order_N]
    first_N = np.flatnonzero(np.diff(sorted_N, prepend=-1))
    counts_N = np.diff(np.append(first_N, len(sorted_N)))
    return order_N, (np.arange(len(sorted_N)) - np.repeat(first_N, counts_N)).astype(np.int32)


def _rows_inside(span: Span, due_ns_N: NDArray[np.int64]) -> int:
    """How many rows come before the run is over. A session that began inside is kept whole."""
    starts_N = np.flatnonzero(due_ns_N != DEPENDS)
    late_N = np.flatnonzero(due_ns_N[starts_N] >= span.end_s * NS)
    n = int(starts_N[late_N[0]]) if len(late_N) else len(due_ns_N)
    if span.requests is not None:
        measured_N = np.flatnonzero(due_ns_N[starts_N] >= span.warm_up_s * NS)
        if len(measured_N):
            n = min(n, int(starts_N[measured_N[0]]) + span.requests)
    return n
