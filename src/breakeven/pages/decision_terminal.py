"""A decision in a terminal or a pipe: the verdict first, then what it costs, where it flips and what it rests on.

One made again on logged traffic says first what the log held, and what each fleet would have cost.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from rich.console import Console

from breakeven.pages.decision_words import (
    MONTH_HOURS,
    NOTHING,
    at_load,
    band_line,
    cost_at,
    day_rows,
    day_words,
    delay_span,
    flip_line,
    kept_cell,
    kept_line,
    kind_words,
    latency_at,
    memory_text,
    month_text,
    notes_of,
    pricing_text,
    quality_text,
    region_line,
    rests_on,
    runs_on,
    share_line,
    span_text,
    traffic_rows,
    usd,
    usd_span,
    value_of,
)
from breakeven.pages.load_words import ended
from breakeven.pages.terminal import (
    LONGEST_NAME,
    Passage,
    Say,
    listed_parts,
    packed,
    print_parts,
    say_tables,
    shortened,
)
from breakeven.pages.words import number, percent_text
from breakeven.results.decision import CandidateResult, Decision, LogDecision, LoggedFleet, ShareKept
from breakeven.stats.estimate import Estimate


def print_decision(decision: Decision, console: Console, page: Path | None, *, full: bool = False) -> None:
    """Print `decision`: verdict, why, every candidate at the study's load, flips, what to measure, advice, page.

    Readable from 60 columns on; colour only where `console` is a terminal.
    """
    ruled_out = [f"{each.name}: {'; '.join(each.ruled_out)}" for each in decision.candidates if each.ruled_out]
    shares = [share_line(share) for share in decision.verdict.shares]
    regions = [region_line(region) for region in decision.regions]
    advice = [f"{each.topic}: {ended(each.text)} Source: {each.source}" for each in decision.advice]
    narrowing = [f"{each.command}: {each.why}; {band_line(each)}" for each in decision.next_measurements]
    parts = [
        Passage(lambda say: say(decision.verdict.sentence, "bold")),
        *listed_parts("Why", [ended(text) for text in decision.verdict.because], most=2, rest=7),
        *listed_parts("Who gets what", shares, most=4, rank=1, rest=3),
        Passage(lambda say: _candidates(decision, console.width, say)),
        *(Passage(partial(_about, each, decision), 8, "each candidate") for each in decision.candidates),
        Passage(partial(_hours, decision, console.width), 9, "every hour"),
        *listed_parts("Best by load", regions, most=len(regions), rank=6),
        *listed_parts("Where the answer changes", [flip_line(flip) for flip in decision.flips], most=2, rank=1),
        *listed_parts("Ruled out", ruled_out, most=3, rank=2, rest=4),
        *listed_parts("What would narrow the answer most", narrowing, most=1, rank=2),
        *listed_parts("What arithmetic cannot settle", advice, most=len(advice), rank=9),
        Passage(lambda say: _traffic(decision, say), 7, "the traffic"),
    ]
    print_parts(parts, console, full=full, page=page)


def _traffic(decision: Decision, say: Say) -> None:
    say()
    for name, text in traffic_rows(decision):
        say(f"{name}: {text}.", "dim")
    if decision.assumptions:
        count = len(decision.assumptions)
        say(
            f"{count} number{'s' if count > 1 else ''} the answer rests on, with sources: in the page and result.json.",
            "dim",
        )


def _candidates(decision: Decision, width: int, say: Say) -> None:
    if not decision.candidates:
        return
    say()
    say(f"{at_load(decision)}: {rests_on(decision.candidates)}", "bold")
    columns = [[head] for head in ("kind", "a month", "machines", "used")]
    for each in decision.candidates:
        for column, cell in zip(columns, (kind_words(each.kind), *_bill(each, decision)), strict=True):
            column.append(cell)
    if any(each.shares for each in decision.candidates):
        heads = ["alone" if kept.machines is None else str(kept.machines) for kept in _most_shares(decision)]
        columns.append([f"% kept {'/'.join(heads)}", *(kept_cell(each) or NOTHING for each in decision.candidates)])
    # A name has what the numbers leave.
    numbers = sum(max(map(len, column)) + 2 for column in columns)
    longest = max(LONGEST_NAME, width - 4 - numbers)
    first = ["", *(shortened(each.name, longest) + _mark(each) for each in decision.candidates)]
    say_tables(packed(first, [[column] for column in columns], width - 2), say)
    if any(each.ruled_out for each in decision.candidates):
        say("*: ruled out by a constraint, for the reason below.", "dim", 2)
    if any(each.borderline and not each.ruled_out for each in decision.candidates):
        say("~: only just keeps the promise, or only just does not; a measurement would settle it.", "dim", 2)
    free = [each for each in decision.candidates if not each.ruled_out]
    if any(each.barred_from for each in free):
        best = {region.winner for region in decision.regions}
        as_if = any(each.barred_from and each.name in best for each in free)
        all_of = "; what is best by load is said as if each might" if as_if else ""
        say(f"^: may not serve every part of the traffic, so not all of it alone{all_of}.", "dim", 2)
    load = "this load" if decision.day is None else "that hour"
    say(f"A month is {number(MONTH_HOURS)} h of {load}. Brackets hold intervals.", "dim", 2)


def _hours(decision: Decision, width: int, say: Say) -> None:
    """The day hour by hour."""
    heads, rows = day_rows(decision.day)
    if decision.day is None or not rows:
        return
    say()
    say(f"{day_words(decision.day)}.", "bold")
    columns = [[head, *(shortened(row[k]) for row in rows)] for k, head in enumerate(heads)]
    say_tables(packed(columns[0], [[column] for column in columns[1:]], width - 2), say)


def _most_shares(decision: Decision) -> list[ShareKept]:
    return max((each.shares for each in decision.candidates), key=len)


def _mark(candidate: CandidateResult) -> str:
    if candidate.ruled_out:
        return " *"
    return (" ~" if candidate.borderline else "") + (" ^" if candidate.barred_from else "")


def _bill(candidate: CandidateResult, decision: Decision) -> tuple[str, str, str]:
    point = cost_at(candidate, decision.load_per_s)
    if point is None:
        return NOTHING, NOTHING, NOTHING
    return (
        month_text(candidate, point.usd_per_hour),
        NOTHING if point.replicas is None else value_of(point.replicas),
        NOTHING if point.utilisation is None else percent_text(point.utilisation),
    )


def _about(candidate: CandidateResult, decision: Decision, say: Say) -> None:
    """What a candidate is, how long people wait, what one replica can do, and what must be known beside it."""
    say()
    say(f"{candidate.name}: {runs_on(candidate)}; {candidate.provenance}", indent=2)
    if (point := latency_at(candidate, decision.load_per_s)) is not None:
        bill = cost_at(candidate, decision.load_per_s)
        # Not the fleet's: behind a balancer bursts pool, and people wait less.
        several = bill is not None and bill.replicas is not None and bill.replicas.value > 1
        each = "one machine alone with its part of the load: " if several else ""
        say(
            f"{each}TTFT p99 {delay_span(point.ttft_p99_s)}, TPOT p99 {delay_span(point.tpot_p99_s)}, "
            f"{percent_text(point.good_share.value)} within the service level",
            indent=4,
        )
    if candidate.shares:
        say(kept_line(candidate), indent=4)
    # Of one that kept the level at no load measured, the reason for ruling it out says what is known.
    if candidate.capacity_per_s is not None and candidate.capacity_per_s.value > 0:
        say(f"one replica serves {span_text(candidate.capacity_per_s)} req/s within the service level", indent=4)
    if candidate.memory_bytes is not None:
        say(f"memory: {memory_text(candidate)}", indent=4)
    say(f"{quality_text(candidate.quality)}; {pricing_text(candidate.pricing)}", indent=4)
    for note in notes_of(candidate):
        say(note, "yellow", 4)


def summary(decision: Decision, page: Path, *, full: bool = False) -> str:
    """What `print_decision` says about what was saved beside `page`: in colour and as wide as the terminal, if any."""
    console = Console(highlight=False)
    with console.capture() as captured:
        print_decision(decision, console, page, full=full)
    return captured.get().rstrip("\n")


_HOUR_S, _DAY_S = 3600.0, 86_400.0


def log_summary(result: LogDecision, page: Path) -> str:
    """What the log held, whether the verdict stands, and what each fleet would have cost."""
    traffic = result.traffic
    lines = [
        f"{traffic.requests:,} requests in {_period(traffic.span_s)}, {traffic.rate_per_s:.3g}/s on average; "
        f"{traffic.left_out:,} records were no traffic."
    ]
    if traffic.estimated:
        lines.append(f"Lengths of {traffic.estimated:,} of them are estimates: nobody counted their tokens to the end.")
    lines += ["", result.sentence, "", f"This period cost {usd(traffic.usd)} as the gateway counted it. Alone:"]
    width = max(len(fleet.candidate) for fleet in result.fleets)
    lines += [f"  {fleet.candidate:<{width}}  {_fleet_cost(fleet)}" for fleet in result.fleets]
    if result.left_out_backends:
        lines.append(f"Left out, as neither machine nor price is known: {', '.join(result.left_out_backends)}.")
    return "\n".join([*lines, "", f"Details: {page}; the traffic as a trace: {traffic.trace}"])


def _fleet_cost(fleet: LoggedFleet) -> str:
    if fleet.usd is None:
        return f"cannot: {fleet.ruled_out[0]}" if fleet.ruled_out else "no price known"
    machines = "" if fleet.replicas is None else f", {_between(fleet.replicas, '{:.0f}')} replicas"
    why = f"; ruled out: {fleet.ruled_out[0]}" if fleet.ruled_out else ""
    return f"{usd_span(fleet.usd)}{machines}{why}"


def _between(span: Estimate, form: str) -> str:
    value, low, high = (form.format(each) for each in (span.value, span.low, span.high))
    return value if low == high else f"{value} ({low} to {high})"


def _period(seconds: float) -> str:
    if seconds >= 2 * _DAY_S:
        return f"{seconds / _DAY_S:.1f} days"
    return f"{seconds / _HOUR_S:.1f} hours" if seconds >= _HOUR_S else f"{seconds / 60:.1f} minutes"
