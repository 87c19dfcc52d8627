"""What is predicted, in a terminal: costs, speeds and simulated traffic; tables first, then what they rest on."""

from __future__ import annotations

from collections.abc import Sequence, Set
from functools import partial

from rich.console import Console

from breakeven.errors import printable
from breakeven.pages.terminal import Passage, Say, packed, print_parts, shortened
from breakeven.pages.words import bytes_text, grouped, number
from breakeven.results.cost import BreakEven, Cost, CostPoint, WhatIf
from breakeven.results.metrics import metric_of
from breakeven.results.predicted import PredictedPoint, PredictedRatio, Prediction, SimulatedPoint, SimulationStudy
from breakeven.stats.estimate import Estimate
from breakeven.traffic.workload import slo_text

MOST_FLIPS = 4
"""Shown of one pair: two staircases may overtake each other a hundred times."""


def _say(console: Console, line: str, style: str | None = None) -> None:
    console.print(printable(line), style=style, highlight=False, markup=False)


def _say_tables(console: Console, tables: Sequence[Sequence[str]], *, parted: bool) -> None:
    for index, table in enumerate(tables):
        if parted and index:
            console.print()
        for line in table:
            _say(console, line)


def print_cost(result: Cost, console: Console, *, full: bool = False) -> None:
    """Print flips, one table a load, what would change it, and the notes."""
    flips = _flips(result.break_even)

    def answer(say: Say) -> None:
        for line in flips[:MOST_FLIPS]:
            say(line, "bold")

    def more_flips(say: Say) -> None:
        for line in flips[MOST_FLIPS:]:
            say(line, "bold")

    def load(rate: float, say: Say) -> None:
        say()
        say(f"At {number(rate)} requests/s", "bold")
        shown = [
            (name, point) for name, points in result.candidates.items() for point in points if point.rate_per_s == rate
        ]
        for line in (line for table in _cost_tables(shown, console.width) for line in table):
            say(line)

    def carried(say: Say) -> None:
        say()
        for name, capacity in result.capacity_per_s.items():
            load = "any load" if capacity is None else f"{_range(capacity)} requests/s a replica"
            idle = result.idle_usd_per_hour.get(name, 0.0)
            say(f"{name}: carries {load}; costs ${number(idle)} an hour with no load at all.")

    def changes(say: Say) -> None:
        if result.what_if:
            say()
            say("What would change it", "bold")
        for line in (line for change in result.what_if for line in _changes(change)):
            say(line)

    def notes(say: Say) -> None:
        say()
        for note in result.notes:
            say(note, "dim")

    rates = list(dict.fromkeys(point.rate_per_s for points in result.candidates.values() for point in points))
    parts = [
        Passage(answer),
        Passage(more_flips, 7, "more flips"),
        *(Passage(partial(load, rate), 1 if rate == rates[0] else 6, f"{number(rate)} requests/s") for rate in rates),
        Passage(carried, 2, "what a replica carries"),
        Passage(changes, 4, "what would change it"),
        Passage(notes, 5, "notes"),
    ]
    print_parts(parts, console, full=full)


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


def _cost_tables(shown: Sequence[tuple[str, CostPoint]], width: int) -> list[list[str]]:
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
        spans: list[Estimate | None] = [getattr(point, attribute) for point in points]
        if any(span is not None for span in spans):
            groups.append([[head, *("-" if span is None else _range(span, factor) for span in spans)]])
    return packed(["Candidate", *(shortened(name) for name, _ in shown)], groups, width)


def _changes(change: WhatIf) -> list[str]:
    flips = [flip.meaning for flip in change.break_even if flip.rate_per_s is not None]
    return [change.meaning, *(f"  {meaning}" for meaning in flips[:1])]


def _range(span: Estimate, factor: float = 1.0) -> str:
    value = number(span.value * factor)
    if span.low == span.high:
        return value
    return f"{value} ({number(span.least * factor)}-{number(span.most * factor)})"


def _whole(span: Estimate) -> str:
    return f"{span.value:.0f}" if span.low == span.high else f"{span.value:.0f} ({span.low:.0f}-{span.high:.0f})"


BOUNDS = {"weights": "weights", "kv": "KV", "compute": "compute", "overhead": "overheads"}


def print_prediction(result: Prediction, console: Console, *, why: bool = False) -> None:
    """Print a table a machine, its notes, and how its constants came about; with `why` the records behind them."""
    for machine, points in grouped(result.points, lambda point: point.machine).items():
        first = points[0]
        # What all have alike; where they differ each says it in the table.
        alike = [found.pop() for found in ({p.engine for p in points}, {p.format for p in points}) if len(found) == 1]
        # Behind the machine, which in words may say its devices itself, as 8xh200-sxm does.
        devices = [f"{first.devices} devices"] if first.devices > 1 else []
        with_ = [machine, *devices, *alike, *_cache(points)]
        _say(console, f"{', '.join(with_)}: predicted, not measured", style="bold")
        ratios = [ratio for ratio in result.ratios if ratio.machine == machine]
        _say_tables(console, _prediction_tables(points, ratios, console.width), parted=True)
        for pair in grouped(ratios, lambda ratio: ratio.model).values():
            for line in _verdicts(pair, points):
                _say(console, line)
        told = [(n, p) for p in points for n in (*_lying(p, points), *p.notes)]
        for note, named in grouped(told, lambda pair: pair[0]).items():
            _say(console, f"{_where([point for _, point in named], points)}{note}", style="dim")
        _say(console, f"Constants: {result.profiles[machine]}.", style="dim")
        for reason, of in grouped(((n, p) for p in points for n in p.why) if why else (), lambda one: one[0]).items():
            _say(console, f"{_where([point for _, point in of], points)}{reason}.", style="dim")
        console.print()


def _prediction_tables(
    points: Sequence[PredictedPoint], ratios: Sequence[PredictedRatio], width: int
) -> list[list[str]]:
    several = len({(point.batch, point.context) for point in points}) > 1
    label = [("B=" + str(point.batch) + f" {point.context:,} " if several else "") for point in points]
    names = ["Model", *(f"{at}{shortened(point.model)}" for at, point in zip(label, points, strict=True))]
    may_differ = {
        "Format": [point.format for point in points],
        "Engine": [point.engine for point in points],
        "KV type": [point.kv for point in points],
    }
    own = [[[head, *told]] for head, told in may_differ.items() if len(set(told)) > 1]
    groups = [
        *own,
        [["Decode tok/s", *(_speed(point) for point in points)]],
        *([[[f"over {shortened(ratios[0].over)}", *(_over(point, ratios) for point in points)]]] if ratios else []),
        [["Step ms", *(number(point.step_s.value * 1e3) for point in points)]],
        [["Prefill tok/s", *(_prompt_speed(point) for point in points)]],
        [["Memory", *(_memory(point) for point in points)], *_memory_rows(points)],
        [["Limited by", *(BOUNDS.get(point.bound, point.bound) for point in points)]],
    ]
    return packed(names, groups, width)


def _cache(points: Sequence[PredictedPoint]) -> list[str]:
    """What is unusual about the caches: their type, and that they are made for more tokens than are in use.

    Types that differ stand in the table.
    """
    point, kinds = points[0], {point.kv for point in points}
    kv = [f"{kind} keys and values" for kind in kinds if len(kinds) == 1 and kind != "f16"]
    return [*kv, f"caches of {point.reserve:,} tokens"] if point.reserve > point.context else kv


def _speed(point: PredictedPoint) -> str:
    low, high = point.batch / point.step_s.most, point.batch / point.step_s.least
    return f"{number(point.decode_tokens_per_s)} ({number(low)}-{number(high)})"


def _prompt_speed(point: PredictedPoint) -> str:
    return number(point.prefill_tokens_per_s) if point.prefill_speed is None else _span(point.prefill_speed)


def _over(point: PredictedPoint, ratios: Sequence[PredictedRatio]) -> str:
    at = (point.model, point.batch, point.context)
    return next((_ratio(r.decode) for r in ratios if (r.model, r.batch, r.context) == at), "")


def _memory(point: PredictedPoint) -> str:
    """What it takes; what of it lies in host memory, where that is meant to; what does not fit, that it does not."""
    total = bytes_text(point.memory_bytes)
    if point.lacking is not None:
        return f"{total}, does not fit"
    return total if point.fits else f"{total}, {bytes_text(point.host_bytes)} in RAM"


MEMORY_ROWS = {"Weights": ("weights",), "KV, state": ("kv", "state"), "Buffers": ("compute", "output")}


def _memory_rows(points: Sequence[PredictedPoint]) -> list[list[str]]:
    """What the memory is made of, under its sum."""
    sums = {
        head: [sum(point.memory.get(part, 0.0) for part in parts) for point in points]
        for head, parts in MEMORY_ROWS.items()
    }
    return [[head, *(bytes_text(nbytes) for nbytes in found)] for head, found in sums.items()]


def _ratio(span: Estimate) -> str:
    return f"{span.value:.2f} ({span.low:.2f}-{span.high:.2f})"


def _lying(point: PredictedPoint, points: Sequence[PredictedPoint]) -> list[str]:
    """Where a model lies, beside one that was placed: that one's notes say it, of a model wholly on the card this."""
    if point.placement is None or point.placement in point.notes or all(p.placed is None for p in points):
        return []
    return [point.placement]


def _verdicts(pair: Sequence[PredictedRatio], points: Sequence[PredictedPoint]) -> list[str]:
    """What the intervals of two models' ratios say over all batches and contexts, decode and prefill apart.

    Of a model that cannot run there, because a place is too small and nothing is read from disk, that it cannot.
    """
    cannot = {(p.model, p.batch, p.context) for p in points if p.lacking is not None and "disk" not in p.parts_s}
    lines = []
    told: dict[str, list[tuple[PredictedRatio, Estimate]]] = {
        "Decode": [(ratio, ratio.decode) for ratio in pair],
        "Prefill": [(ratio, ratio.prefill) for ratio in pair if ratio.prefill is not None],
    }
    for phase, spans in told.items():
        said = grouped(spans, lambda each: _winner(each[0], each[1], cannot))
        words = [
            winner if len(some) == len(pair) else f"{winner} at {_loads([ratio for ratio, _ in some], pair)}"
            for winner, some in said.items()
        ]
        if words:
            lines.append(f"{phase}, {pair[0].model} against {pair[0].over}: {'; '.join(words)}.")
    return lines


def _winner(ratio: PredictedRatio, span: Estimate, cannot: Set[tuple[str, int, int]]) -> str:
    if span.least > 1:
        winner = ratio.model
    elif span.most < 1:
        winner = ratio.over
    else:
        return "too close to call"
    there = (winner, ratio.batch, ratio.context) not in cannot
    return f"{winner} is faster" if there else f"{winner} would be faster, but does not fit"


def _loads(some: Sequence[PredictedRatio], pair: Sequence[PredictedRatio]) -> str:
    one_context = len({ratio.context for ratio in pair}) == 1
    if one_context:
        return "batch " + ", ".join(str(ratio.batch) for ratio in some)
    return ", ".join(f"batch {ratio.batch} of {ratio.context:,} tokens" for ratio in some)


def _where(named: Sequence[PredictedPoint], points: Sequence[PredictedPoint]) -> str:
    """Whom a note is about: nothing when it is about all."""
    if len(named) == len(points):
        return ""
    models = list(grouped(named, lambda point: point.model))
    batches = sorted({point.batch for point in named})
    at = f" at batch {', '.join(map(str, batches))}" if batches != sorted({p.batch for p in points}) else ""
    return f"{', '.join(models)}{at}: "


DELAYS = ("ttft_s", "tpot_s", "e2e_s")
SHOWN = (50.0, 99.0)


def print_simulation(study: SimulationStudy, console: Console, *, full: bool = False) -> None:
    """Print a table with a column for each load, notes, and how the constants came about."""
    devices = f"{study.devices} x " if study.devices > 1 else ""
    kv = "" if study.kv == "f16" else f"{study.kv} keys and values, "
    where = f"{devices}{study.machine}, {study.engine}, {study.format}, {kv}{study.replicas}"
    tables = packed(["", *(point.load for point in study.points)], _groups(study), console.width)

    def head(say: Say) -> None:
        say(f"{shortened(study.model)} on {where}: simulated, not measured", "bold")

    def table(index: int, say: Say) -> None:
        if index:
            say()
        for line in tables[index]:
            say(line)

    def notes(say: Say) -> None:
        for note in study.notes:
            say(note, "dim")

    def rests_on(say: Say) -> None:
        kv_tokens = study.policy.get("kv_tokens")
        room = f"room for {kv_tokens:,} tokens of keys and values" if kv_tokens is not None else "room without limit"
        say(
            f"Batching: up to {study.policy['max_sequences']:,} sequences and {study.policy['max_step_tokens']:,} "
            f"tokens a step, {room} on each replica.",
            "dim",
        )
        say(f"Constants: {study.profile}.", "dim")

    parts = [
        Passage(head),
        *(Passage(partial(table, k), 0 if k == 0 else 2, "more columns") for k in range(len(tables))),
        Passage(notes, 3, "notes"),
        Passage(rests_on, 1, "batching and constants"),
    ]
    print_parts(parts, console, full=full)


def _groups(study: SimulationStudy) -> list[list[list[str]]]:
    points = study.points
    groups = []
    for metric in DELAYS:
        name = metric_of(metric).title
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


def _span(span: Estimate, factor: float = 1.0) -> str:
    value, low, high = (number(factor * x) for x in (span.value, span.least, span.most))
    return value if low == high == value else f"{value} ({low}-{high})"
