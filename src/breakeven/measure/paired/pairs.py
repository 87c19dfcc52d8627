"""What the blocks of a comparison say together: which pairs count, levels, ratios, winners. Pure.

A pair with a block that the noise guard flagged does not enter while enough quiet pairs stand: a neighbour does not
slow both of a pair alike. What the guard does not see, the estimator of `stats.robust` must bear.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from breakeven.measure.paired.blocks import FinishedBlock
from breakeven.measure.paired.plan import LoadSoFar, Plan
from breakeven.measure.progress import RatioRow
from breakeven.results.comparison import ComparedPoint, Pair
from breakeven.results.metrics import COMPARED, metric_of
from breakeven.stats import robust
from breakeven.stats.estimate import Estimate
from breakeven.stats.intervals import relative_half_width

HEADLINE, PREFILL = "decode_tokens_per_s", "prefill_tokens_per_s"

PROCESS_FLOOR = 0.04
"""Relative difference that two processes running one and the same file can show on a quiet machine: half its 95 %.

Blocks of one pair of processes share whatever those processes got, so their spread cannot show it: it is 2 % as a
standard deviation where it was measured (docs/noise.md). Candidates in turns are started afresh for every pair, which
shows it."""

LEAST_QUIET = 5
"""Quiet pairs from which on those with a disturbed block do not enter. Fewer say less than a disturbed pair spoils."""


@dataclass(frozen=True, slots=True)
class Paired:
    """`a` over `b`, one value a pair, and what the noise record did to them.

    `left_out`: rounds with a flagged block that did not enter; `disturbed`: that did, for want of quiet ones.
    """

    values: list[float]
    left_out: int
    disturbed: int


def paired(blocks: Sequence[FinishedBlock], a: str, b: str, metric: str, streams: int) -> Paired:
    """`a` over `b`, one value for every round in which both have the metric; of candidates in turns, for every turn.

    Rounds of one turn share their processes, so they say together what one pair says: their geometric mean. A turn is
    its quiet rounds, where it has any.
    """
    mine: dict[str, dict[int, FinishedBlock]] = {a: {}, b: {}}
    for block in blocks:
        if block.streams == streams and block.model in mine and block.value(metric) is not None:
            mine[block.model][block.round] = block
    found = []
    for number in sorted(mine[a].keys() & mine[b].keys()):
        one, two = mine[a][number], mine[b][number]
        value = (one.value(metric) or 0.0) / (two.value(metric) or 1.0)
        found.append((_unit(two), value, not one.flagged and not two.flagged))
    values, entered = _quiet_first(found)
    return Paired(values, sum(not quiet for _, _, quiet in found) - entered, entered)


def ratios(blocks: Sequence[FinishedBlock], a: str, b: str, metric: str, streams: int) -> list[float]:
    """The values of `paired` alone."""
    return paired(blocks, a, b, metric, streams).values


def _unit(block: FinishedBlock) -> int:
    """What a pair is one of: a round, or a turn."""
    return block.round if block.turn is None else block.turn


def _quiet_first(found: Sequence[tuple[int, float, bool]]) -> tuple[list[float], int]:
    """One value for each turn or round of (turn, value, quiet), quiet ones alone where there are enough.

    And how many that are not quiet entered.
    """
    turns: dict[int, list[tuple[float, bool]]] = {}
    for turn, value, quiet in found:
        turns.setdefault(turn, []).append((value, quiet))
    values: list[float] = []
    disturbed: list[int] = []
    for mine in turns.values():
        kept = [value for value, quiet in mine if quiet] or [value for value, _ in mine]
        values.append(kept[0] if len(kept) == 1 else math.exp(statistics.fmean(map(math.log, kept))))
        disturbed.append(0 if any(quiet for _, quiet in mine) else len(mine))
    quiet_values = [value for value, loud in zip(values, disturbed, strict=True) if not loud]
    return (quiet_values, 0) if len(quiet_values) >= LEAST_QUIET else (values, sum(disturbed))


def _levels(blocks: Sequence[FinishedBlock], metric: str) -> list[float]:
    """One value a block, or a turn; of quiet blocks alone where there are enough."""
    return _quiet_first([(_unit(b), value, not b.flagged) for b in blocks if (value := b.value(metric))])[0]


def _floor(blocks: Sequence[FinishedBlock]) -> float:
    """What the spread of pairs of `blocks` does not show."""
    return 0.0 if blocks and blocks[0].turn is not None else PROCESS_FLOOR


def load_states(
    blocks: Sequence[FinishedBlock], plan: Plan, names: Sequence[str], measured_s: float = 0.0
) -> list[LoadSoFar]:
    """How far each load of the plan is: rounds, or turns, that every candidate finished; its widest decode ratio.

    `measured_s`: what `blocks` took with those that noise had repeated. A next round is taken to need as much more.
    Widths are without the floor of two processes, which no further round of the same two makes narrower.
    """
    repeats = max(1.0, measured_s / sum(b.seconds for b in blocks)) if blocks else 1.0
    states = []
    for streams in plan.streams:
        mine = [b for b in blocks if b.streams == streams]
        rounds = min(len({_unit(b) for b in mine if b.model == name}) for name in names)
        widths = {
            metric: [
                relative_half_width(robust.ratio(found))
                for a, b in itertools.combinations(names, 2)
                if (found := ratios(mine, a, b, metric, streams))
            ]
            for metric in (HEADLINE, PREFILL)
        }
        last = {b.model: b.seconds for b in mine}
        seconds = repeats * sum(last.values()) if rounds else None
        decode = max(widths[HEADLINE], default=float("inf"))
        widest = max((width for found in widths.values() for width in found), default=decode)
        states.append(LoadSoFar(streams, rounds, decode, seconds, widest))
    return states


def points(blocks: Sequence[FinishedBlock], plan: Plan, names: Sequence[str]) -> list[ComparedPoint]:
    """Every candidate at every load that has blocks."""
    found = []
    for streams, name in itertools.product(plan.streams, names):
        mine = [b for b in blocks if b.streams == streams and b.model == name]
        if not mine:
            continue
        levels = {metric: robust.level(_levels(mine, metric)) for metric in COMPARED}
        # The counter counts what a neighbour draws too.
        joules = _quiet_first(
            [
                (_unit(b), b.joules / b.metrics.output_tokens, not b.flagged)
                for b in mine
                if b.joules and b.metrics.output_tokens
            ]
        )[0]
        found.append(
            ComparedPoint(
                model=name,
                streams=streams,
                prompt_tokens=round(sum(b.metrics.prompt_tokens for b in mine) / len(mine) / streams),
                output_tokens=round(sum(b.metrics.output_tokens for b in mine) / len(mine) / streams),
                joules_per_token=robust.level(joules),
                **levels,
            )
        )
    return found


def pairs(blocks: Sequence[FinishedBlock], plan: Plan, names: Sequence[str]) -> list[Pair]:
    """Every two candidates, for every metric and load that has pairs of blocks."""
    found, floor = [], _floor(blocks)
    for metric, streams in itertools.product(COMPARED, plan.streams):
        for a, b in itertools.combinations(names, 2):
            both = paired(blocks, a, b, metric, streams)
            if both.values:
                estimate = robust.ratio(both.values, floor)
                winner = winner_of(a, b, metric, estimate) if robust.differs(both.values, floor) else None
                found.append(
                    Pair(
                        a=a,
                        b=b,
                        metric=metric,
                        streams=streams,
                        ratio=estimate,
                        winner=winner,
                        left_out=both.left_out,
                        disturbed=both.disturbed,
                    )
                )
    return found


def winner_of(a: str, b: str, metric: str, estimate: Estimate) -> str:
    """Who is better, given that the ratio is not 1."""
    return a if (estimate.value > 1) != (not metric_of(metric).more_is_better) else b


def pair_rows(blocks: Sequence[FinishedBlock], names: Sequence[str]) -> list[RatioRow]:
    """The decode ratios so far, for whoever watches."""
    rows = []
    for streams in sorted({b.streams for b in blocks}):
        for a, b in itertools.combinations(names, 2):
            both = paired(blocks, a, b, HEADLINE, streams)
            if both.values:
                e = robust.ratio(both.values, _floor(blocks))
                label = f"{a} over {b}" if len(names) > 2 else ""
                rows.append(RatioRow(streams, e.value, e.low, e.high, len(both.values), label, both.left_out))
    return rows
