"""Simulated traffic in a terminal: delays and rates by load, and what they rest on."""

from __future__ import annotations

from rich.console import Console

from breakeven.report.tables import packed, shortened
from breakeven.report.words import number
from breakeven.spec.prediction import Span
from breakeven.spec.simulation import SimulatedPoint, SimulationStudy
from breakeven.spec.slo import slo_text

NAMES = {"ttft_s": "TTFT", "tpot_s": "TPOT", "e2e_s": "E2E"}
SHOWN = (50.0, 99.0)


def print_simulation(study: SimulationStudy, console: Console) -> None:
    """Print a table with a column for each load, notes, and how the constants came about."""
    devices = f"{study.devices} x " if study.devices > 1 else ""
    where = f"{devices}{study.machine}, {study.engine}, {study.format}, {study.replicas}"
    _say(console, f"{shortened(study.model)} on {where}: simulated, not measured", style="bold")
    names = ["", *(point.load for point in study.points)]
    for index, table in enumerate(packed(names, _groups(study), console.width)):
        console.print() if index else None
        for line in table:
            _say(console, line)
    for note in study.notes:
        _say(console, note, style="dim")
    kv_tokens = study.policy.get("kv_tokens")
    room = f"room for {kv_tokens:,} tokens of keys and values" if kv_tokens is not None else "room without limit"
    _say(
        console,
        f"Batching: up to {study.policy['max_sequences']:,} sequences and {study.policy['max_step_tokens']:,} tokens a "
        f"step, {room} on each replica.",
        style="dim",
    )
    _say(console, f"Constants: {study.profile}.", style="dim")


def _groups(study: SimulationStudy) -> list[list[list[str]]]:
    points = study.points
    groups = []
    for metric, name in NAMES.items():
        groups.append([[f"{name} p{p:g} s", *(_percentile(point, metric, p) for point in points)] for p in SHOWN])
    groups.append([["Output tok/s", *(_span(point.output_tokens_per_s) for point in points)]])
    if study.slo is not None:
        shares = [_span(point.good_share, 100.0) if point.good_share else "-" for point in points]
        groups.append([[f"% within {slo_text(study.slo)}", *shares]])
    groups.append(
        [
            ["Replicas busy %", *(number(100 * point.utilisation) for point in points)],
            ["In flight", *(number(point.in_flight_mean) for point in points)],
        ]
    )
    if any(point.preemptions for point in points):
        groups.append([["Preempted", *(f"{point.preemptions:,}" for point in points)]])
    if any(point.cached_prompt_share for point in points):
        groups.append([["Prompt cached %", *(number(100 * point.cached_prompt_share) for point in points)]])
    return groups


def _percentile(point: SimulatedPoint, metric: str, p: float) -> str:
    latency = next(latency for latency in point.latencies if latency.metric == metric)
    seconds = next(entry.seconds for entry in latency.percentiles if entry.p == p)
    return "-" if seconds is None else _span(seconds)


def _span(span: Span, factor: float = 1.0) -> str:
    value, low, high = (number(factor * x) for x in (span.value, span.low, span.high))
    return value if low == high == value else f"{value} ({low}-{high})"


def _say(console: Console, line: str, style: str | None = None) -> None:
    console.print(line, style=style, highlight=False, markup=False)
