"""The part of a run that its numbers are about, and what arrived in it. Pure functions over `LoadRun`.

Shapes: N requests, B blocks of time. Times are in nanoseconds from the start of the run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from breakeven.measure.load.columns import NEVER, LoadRun, RequestColumns
from breakeven.results.load import Steady
from breakeven.stats import intervals
from breakeven.stats.steady import LEAST_BLOCKS, settled
from breakeven.traffic.workload import Slo

NS = 1e9
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Part:
    """Part of one run: its requests are those due from `start_ns` to `end_ns`, its rates those of that time.

    `counted_N`: those requests, warm-up excluded.
    """

    run: LoadRun
    start_ns: int
    end_ns: int
    counted_N: Bools

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return (self.end_ns - self.start_ns) / NS

    def edges_ns(self, blocks: int) -> Floats:
        """Borders of `blocks` equal blocks of time, `blocks` + 1 of them."""
        return np.linspace(self.start_ns, self.end_ns, blocks + 1)

    def block_of_due(self, blocks: int) -> NDArray[np.int64]:
        """Block of time in which each request was due; those due later belong to the last."""
        found = np.searchsorted(self.edges_ns(blocks), self.run.requests.due_N, side="right") - 1
        return np.clip(found, 0, blocks - 1).astype(np.int64)


def measured_part(run: LoadRun) -> Part:
    """From the end of the warm-up to the last arrival.

    To the last answer instead where less than half of the answers had come by then, for then most of what was served
    was served afterwards: a few requests sent at once, or a load far beyond what the engine can do.
    """
    requests = run.requests
    counted = (requests.warm_N == 0) & (requests.due_N >= run.from_ns)
    answered = counted & requests.answered
    end = run.to_ns
    if answered.any() and np.count_nonzero(requests.done_N[answered] <= end) * 2 < np.count_nonzero(answered):
        end = int(requests.done_N[answered].max()) + 1
    elif end <= run.from_ns and counted.any():
        end = int(requests.done_N[counted].max()) + 1
    return Part(run, run.from_ns, max(end, run.from_ns + 1), counted)


def part_from(part: Part, start_ns: int, end_ns: int) -> Part:
    """The same run between other borders. Rounds that share an end may have requests due after it."""
    due_N = part.run.requests.due_N
    return Part(part.run, start_ns, end_ns, part.counted_N & (due_N >= start_ns) & (due_N <= end_ns))


def rate_span_ns(part: Part) -> tuple[int, int]:
    """Where rates are taken: the part, without the time in which answers to the warm-up were still coming.

    Those answers keep the engine busy and count for nothing, so a rate over that time would be too low. Where this
    would leave less than half of the part, the whole of it is used.
    """
    requests = part.run.requests
    warm = requests.warm_N == 1
    start = max(part.start_ns, int(requests.done_N[warm].max())) if warm.any() else part.start_ns
    return (start if (part.end_ns - start) * 2 >= part.end_ns - part.start_ns else part.start_ns), part.end_ns


def steady_parts(parts: list[Part]) -> tuple[Steady, list[Part]]:
    """The steady part that all runs of one candidate under one load share, and those parts; else the parts given."""
    found, starts = [], []
    longest = max(parts, key=lambda part: part.end_ns)
    whole = (longest.start_ns / NS, longest.end_ns / NS)
    for part in parts:
        blocks = intervals.cut(int(np.count_nonzero(part.counted_N)), 1)
        mean_tpot = np.full(blocks, np.nan)
        if blocks >= LEAST_BLOCKS:
            over, under = sums_by_block(part, tpot_ns(part.run.requests), blocks)
            mean_tpot[under > 0] = over[under > 0] / under[under > 0]
        result = settled(mean_tpot, in_flight_by_block(part, blocks))
        if result.start is None:
            where = f"round {part.run.round}: " if len(parts) > 1 else ""
            return Steady(found=False, start_s=whole[0], end_s=whole[1], reason=where + result.reason), parts
        starts.append(int(part.edges_ns(blocks)[result.start]))
        found.append(result)
    start, end = max(starts), min(part.end_ns for part in parts)
    reason = found[starts.index(start)].reason
    if start >= end:
        reason = "the rounds have no settled time in common"
        return Steady(found=False, start_s=whole[0], end_s=whole[1], reason=reason), parts
    steady = Steady(found=True, start_s=start / NS, end_s=end / NS, reason=reason)
    return steady, [part_from(part, start, end) for part in parts]


def tpot_ns(requests: RequestColumns) -> Floats:
    """(last - first) / (tokens - 1) of each answered request of N; NaN with one token, or one piece."""
    tokens = requests.output_N
    there = requests.answered & (tokens > 1) & (requests.pieces_N > 1)
    found = np.full(len(requests), np.nan)
    found[there] = (requests.last_N[there] - requests.first_N[there]) / (tokens[there] - 1)
    return found


def meets(requests: RequestColumns, slo: Slo) -> Bools:
    """Which requests were answered and met every term of `slo`. A term on tokens holds where there is one token.

    Several tokens in one piece hide when each came: they are taken at their slowest, all of the time after sending.
    """
    unseen_N = (requests.output_N > 1) & (requests.pieces_N <= 1)
    whole_N = requests.done_N - requests.sent_N
    good = requests.answered
    if slo.ttft_s is not None:
        good = good & (requests.first_N - requests.due_N <= slo.ttft_s * NS)
    if slo.e2e_s is not None:
        good = good & (requests.done_N - requests.due_N <= slo.e2e_s * NS)
    if slo.itl_s is not None:
        good = good & (np.where(unseen_N, whole_N, requests.gap_max_N) <= slo.itl_s * NS)
    if slo.tpot_s is not None:
        most_N = np.where(unseen_N, whole_N / np.maximum(requests.output_N - 1, 1), tpot_ns(requests))
        with np.errstate(invalid="ignore"):
            good = good & ~(most_N > slo.tpot_s * NS)
    return good


def sums_by_block(part: Part, values_N: Floats, blocks: int) -> tuple[Floats, Floats]:
    """Sum and number of the counted requests' values that are not NaN, by block of due time."""
    there = part.counted_N & np.isfinite(values_N)
    block = part.block_of_due(blocks)[there]
    sums = np.bincount(block, weights=values_N[there], minlength=blocks).astype(np.float64)
    return sums, np.bincount(block, minlength=blocks).astype(np.float64)


def arrived(requests: RequestColumns, amounts_N: NDArray[np.int32], chosen_N: Bools, start: float, end: float) -> float:
    """How many of `amounts_N` (tokens or pieces) of the chosen requests arrived after `start` and up to `end`.

    The first arrives at the first time, the others evenly up to the last. A closed loop asks again at the very moment
    of an answer, which ends a span and belongs to it.
    """
    rows = np.flatnonzero(
        chosen_N & (requests.first_N != NEVER) & (amounts_N > 0) & (requests.first_N <= end) & (requests.last_N > start)
    )
    first, last = requests.first_N[rows], requests.last_N[rows]
    amounts = amounts_N[rows].astype(np.float64)
    span = np.maximum(last - first, 1)
    share = np.clip(np.minimum(last, end) - np.maximum(first, start), 0, None) / span
    # Everything that came in one piece came at its time.
    share = np.where(last == first, first > start, share)
    return float(((first > start) + (amounts - 1) * share).sum())


def in_flight_by_block(part: Part, blocks: int) -> Floats:
    """Requests between sent and done, warm-up included, averaged over time in each block of time."""
    edges = part.edges_ns(blocks)
    area = _area_until(part.run.requests, edges)
    return np.diff(area) / np.diff(edges)


def in_flight(part: Part) -> tuple[float, int]:
    """Mean over time, and maximum, of the requests in flight during the part."""
    requests = part.run.requests
    sent, done = np.sort(requests.sent_N), np.sort(requests.done_N)
    starts = sent[(sent >= part.start_ns) & (sent < part.end_ns)]
    moments = np.concatenate(([part.start_ns], starts))
    there = np.searchsorted(sent, moments, side="right") - np.searchsorted(done, moments, side="right")
    return float(in_flight_by_block(part, 1)[0]), int(there.max(initial=0))


def _area_until(requests: RequestColumns, times: Floats) -> Floats:
    """Request-nanoseconds in flight before each time."""
    found = [float((np.minimum(requests.done_N, t) - requests.sent_N).clip(min=0).sum(dtype=np.float64)) for t in times]
    return np.array(found)
