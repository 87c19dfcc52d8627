"""From the event log to numbers: which blocks count, and what they say together. Pure functions over events."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from breakeven.measure import events, statistics
from breakeven.measure.paired.metrics import BlockMetrics, block_metrics
from breakeven.measure.paired.plan import LoadState, Plan
from breakeven.measure.progress import RatioRow
from breakeven.spec.estimate import Estimate, Point
from breakeven.spec.study import Pair, SelfCheck

METRICS = ("decode_tokens_per_s", "prefill_tokens_per_s", "ttft_s", "itl_s")
LOWER_IS_BETTER = frozenset({"ttft_s", "itl_s"})
HEADLINE = "decode_tokens_per_s"

PROCESS_FLOOR = 0.005
"""Relative difference that two processes running one and the same file can show on a quiet machine, as one half-width.

Blocks of one pair of processes share whatever memory layout those processes got, so their spread cannot show it. It is
a judgement, not a measurement: runs of one file repeat within 1 % on a quiet machine, and on the noisy one of
docs/benchmarks.md nothing so small could be told apart."""


@dataclass(frozen=True, slots=True)
class Block:
    """One finished block that counts."""

    model: str
    streams: int
    round: int
    seconds: float
    """From its start to its end."""
    metrics: BlockMetrics
    flagged: tuple[str, ...]
    joules: float | None

    def value(self, metric: str) -> float | None:
        """One of `METRICS`; None when this block's requests do not give it."""
        found = {
            "decode_tokens_per_s": self.metrics.decode_tokens_per_s,
            "prefill_tokens_per_s": self.metrics.prefill_tokens_per_s,
            "ttft_s": self.metrics.ttft_s,
            "itl_s": self.metrics.itl_s,
        }[metric]
        return found if found and found > 0 else None


def blocks_of(log: Sequence[events.Event]) -> list[Block]:
    """Blocks that ended well, in order; of several attempts at one only the last."""
    started: dict[str, events.BlockStarted] = {}
    requests: dict[str, list[events.RequestDone]] = {}
    found: dict[tuple[str, int, int], Block] = {}
    for event in log:
        match event:
            case events.BlockStarted(check=None):
                started[event.block] = event
                requests[event.block] = []
            case events.RequestDone() if event.block in requests:
                requests[event.block].append(event)
            case events.BlockDone(ok=True) if event.block in started:
                start = started[event.block]
                found[start.model, start.streams, start.round] = Block(
                    start.model,
                    start.streams,
                    start.round,
                    (event.at_ns - start.at_ns) / 1e9,
                    block_metrics(requests[event.block]),
                    tuple(event.flagged),
                    event.joules,
                )
    return list(found.values())


def self_checks(log: Sequence[events.Event], seed: int) -> list[SelfCheck]:
    """Decode with one prompt in all streams over decode with distinct ones, for every model that was checked."""
    started = {e.block: e for e in log if isinstance(e, events.BlockStarted) and e.check}
    rates: dict[str, dict[tuple[int, str], float]] = {}
    for event in log:
        if isinstance(event, events.BlockDone) and event.ok and event.block in started:
            start = started[event.block]
            requests = [e for e in log if isinstance(e, events.RequestDone) and e.block == event.block]
            if rate := block_metrics(requests).decode_tokens_per_s:
                rates.setdefault(start.model, {})[start.round, start.check or ""] = rate
    streams = {e.model: e.streams for e in started.values()}
    found = []
    for model, mine in rates.items():
        rounds = sorted(r for r, kind in mine if kind == "same" and (r, "distinct") in mine)
        if rounds:
            estimate = statistics.ratio([mine[r, "same"] / mine[r, "distinct"] for r in rounds], seed)
            found.append(SelfCheck(model=model, streams=streams[model], same_over_distinct=estimate))
    return found


def ratios(blocks: Sequence[Block], a: str, b: str, metric: str, streams: int) -> list[float]:
    """`a` over `b`, one value for every round in which both have the metric."""
    values: dict[str, dict[int, float]] = {a: {}, b: {}}
    for block in blocks:
        value = block.value(metric)
        if block.streams == streams and block.model in values and value is not None:
            values[block.model][block.round] = value
    return [values[a][r] / values[b][r] for r in sorted(values[a].keys() & values[b].keys())]


def load_states(blocks: Sequence[Block], plan: Plan, names: Sequence[str]) -> list[LoadState]:
    """How far each load of the plan is: rounds that every candidate finished, and its widest decode ratio."""
    states = []
    for streams in plan.streams:
        mine = [b for b in blocks if b.streams == streams]
        rounds = min(len({b.round for b in mine if b.model == name}) for name in names)
        widths = [
            statistics.relative_half_width(statistics.ratio(found, plan.seed, PROCESS_FLOOR))
            for a, b in itertools.combinations(names, 2)
            if (found := ratios(blocks, a, b, HEADLINE, streams))
        ]
        last = [b.seconds for b in mine][-len(names) :]
        states.append(LoadState(streams, rounds, max(widths, default=float("inf")), sum(last) if rounds else None))
    return states


def points(blocks: Sequence[Block], plan: Plan, names: Sequence[str]) -> list[Point]:
    """Every candidate at every load that has blocks."""
    found = []
    for streams, name in itertools.product(plan.streams, names):
        mine = [b for b in blocks if b.streams == streams and b.model == name]
        if not mine:
            continue
        levels = {
            metric: statistics.level([v for b in mine if (v := b.value(metric))], plan.seed) for metric in METRICS
        }
        joules = [b.joules / b.metrics.output_tokens for b in mine if b.joules and b.metrics.output_tokens]
        found.append(
            Point(
                model=name,
                streams=streams,
                prompt_tokens=round(sum(b.metrics.prompt_tokens for b in mine) / len(mine) / streams),
                output_tokens=round(sum(b.metrics.output_tokens for b in mine) / len(mine) / streams),
                joules_per_token=statistics.level(joules, plan.seed),
                **levels,
            )
        )
    return found


def pairs(blocks: Sequence[Block], plan: Plan, names: Sequence[str]) -> list[Pair]:
    """Every two candidates, for every metric and load that has pairs of blocks."""
    found = []
    for metric, streams in itertools.product(METRICS, plan.streams):
        for a, b in itertools.combinations(names, 2):
            values = ratios(blocks, a, b, metric, streams)
            if values:
                estimate = statistics.ratio(values, plan.seed, PROCESS_FLOOR)
                winner = winner_of(a, b, metric, estimate) if statistics.differs(values, PROCESS_FLOOR) else None
                found.append(Pair(a=a, b=b, metric=metric, streams=streams, ratio=estimate, winner=winner))
    return found


def winner_of(a: str, b: str, metric: str, estimate: Estimate) -> str:
    """Who is better, given that the ratio is not 1."""
    return a if (estimate.value > 1) != (metric in LOWER_IS_BETTER) else b


def pair_rows(blocks: Sequence[Block], names: Sequence[str]) -> list[RatioRow]:
    """The decode ratios so far, for whoever watches."""
    rows = []
    for streams in sorted({b.streams for b in blocks}):
        for a, b in itertools.combinations(names, 2):
            values = ratios(blocks, a, b, HEADLINE, streams)
            if values:
                e = statistics.ratio(values, 0, PROCESS_FLOOR)
                label = f"{a} over {b}" if len(names) > 2 else ""
                rows.append(RatioRow(streams, e.value, e.low, e.high, e.n, label))
    return rows
