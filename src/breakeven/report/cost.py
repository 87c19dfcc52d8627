"""Costs in a terminal: where the cheaper one changes first, then every load, then what it rests on."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from breakeven.report.tables import packed, shortened
from breakeven.report.words import number
from breakeven.spec.cost import BreakEven, Cost, CostPoint, WhatIf
from breakeven.spec.prediction import Span

MOST_FLIPS = 4
"""Shown of one pair: two staircases may overtake each other a hundred times."""


def print_cost(result: Cost, console: Console) -> None:
    """Print flips, one table a load, what would change it, and the notes."""
    for line in _flips(result.break_even):
        _say(console, line, style="bold")
    if result.break_even:
        console.print()
    for rate in dict.fromkeys(point.rate_per_s for points in result.candidates.values() for point in points):
        _say(console, f"At {number(rate)} requests/s", style="bold")
        shown = [
            (name, point) for name, points in result.candidates.items() for point in points if point.rate_per_s == rate
        ]
        for table in _tables(shown, console.width):
            for line in table:
                _say(console, line)
        console.print()
    for name, capacity in result.capacity_per_s.items():
        carried = "any load" if capacity is None else f"{_range(capacity)} requests/s a replica"
        idle = result.idle_usd_per_hour.get(name, 0.0)
        _say(console, f"{name}: carries {carried}; costs ${number(idle)} an hour with no load at all.")
    if result.what_if:
        console.print()
        _say(console, "What would change it", style="bold")
        for change in result.what_if:
            for line in _changes(change):
                _say(console, line)
    console.print()
    for note in result.notes:
        _say(console, note, style="dim")


def _flips(found: Sequence[BreakEven]) -> list[str]:
    pairs: dict[frozenset[str], list[BreakEven]] = {}
    for flip in found:
        pairs.setdefault(frozenset((flip.from_, flip.to)), []).append(flip)
    lines = []
    for flips in pairs.values():
        lines += [flip.meaning for flip in flips[:MOST_FLIPS]]
        if len(flips) > MOST_FLIPS:
            lines.append(f"... and {len(flips) - MOST_FLIPS} more flips of these two; --json has them all.")
    return lines


def _tables(shown: Sequence[tuple[str, CostPoint]], width: int) -> list[list[str]]:
    points = [point for _, point in shown]
    groups = [
        [["$/1,000 requests", *(_range(point.usd_per_request, 1e3) for point in points)]],
        [["$/Mtok out", *(_range(point.usd_per_mtok_output) for point in points)]],
        [["Replicas", *("-" if p.replicas is None else _whole(p.replicas) for p in points)]],
        [["Utilisation", *("-" if p.utilisation is None else f"{p.utilisation:.0%}" for p in points)]],
        [["$/hour", *(_range(point.usd_per_hour) for point in points)]],
    ]
    for head, attribute, factor in (
        ("$/1,000 conversations", "usd_per_conversation", 1e3),
        ("$/1,000 solved", "usd_per_solved", 1e3),
        ("J/token", "joules_per_output_token", 1.0),
        ("Solved %/W", "solved_share_per_w", 100.0),
    ):
        spans: list[Span | None] = [getattr(point, attribute) for point in points]
        if any(span is not None for span in spans):
            groups.append([[head, *("-" if span is None else _range(span, factor) for span in spans)]])
    return packed(["Candidate", *(shortened(name) for name, _ in shown)], groups, width)


def _changes(change: WhatIf) -> list[str]:
    flips = [flip.meaning for flip in change.break_even if flip.rate_per_s is not None]
    return [change.meaning, *(f"  {meaning}" for meaning in flips[:1])]


def _range(span: Span, factor: float = 1.0) -> str:
    value = number(span.value * factor)
    if span.low == span.high:
        return value
    return f"{value} ({number(span.low * factor)}-{number(span.high * factor)})"


def _whole(span: Span) -> str:
    return f"{span.value:.0f}" if span.low == span.high else f"{span.value:.0f} ({span.low:.0f}-{span.high:.0f})"


def _say(console: Console, line: str, style: str | None = None) -> None:
    console.print(line, style=style, highlight=False, markup=False)
