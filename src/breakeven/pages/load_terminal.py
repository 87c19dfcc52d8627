"""Runs under load in a terminal or a pipe: headline, warnings, every load, then what the numbers rest on."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from breakeven.pages.load_words import (
    Unit,
    capital,
    ceiling_text,
    client_text,
    conversation_text,
    counts_text,
    delay_text,
    ended,
    ended_text,
    energy_text,
    engine_text,
    latency_of,
    load_caveats,
    offered_text,
    percentile_of,
    prompts_text,
    rate_text,
    share_text,
    slo_words,
    steady_text,
    think_words,
    units_of,
    workload_rows,
)
from breakeven.pages.terminal import (
    Passage,
    Say,
    columns,
    listed_parts,
    packed,
    print_parts,
    ratio_table,
    say_on,
    say_tables,
    shortened,
)
from breakeven.pages.words import NO_DIFFERENCE, grouped, percent_text, winner_text
from breakeven.results.load import CapacityStudy, Check, Limit, LoadModel, LoadPoint, LoadStudy, Trial
from breakeven.results.metrics import metric_of
from breakeven.stats.percentiles import Percentile

_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def warnings_of(points: Sequence[LoadPoint]) -> list[str]:
    """Flags of client and machine, each once with its loads; of those that differ by numbers only, the worst."""
    found: dict[str, dict[str, str]] = {}
    several_models = len({point.model for point in points}) > 1
    for point in points:
        where = f"{point.model} at {point.load}" if several_models else point.load
        for flag in [*point.client.flags, *point.flagged]:
            places = found.setdefault(_NUMBER.sub("#", flag), {})
            places[where] = max(places.get(where, flag), flag, key=_numbers)
    return [_warning(places, everywhere=len(places) == len(points)) for places in found.values()]


def _warning(places: dict[str, str], *, everywhere: bool) -> str:
    worst = capital(max(places.values(), key=_numbers)).rstrip(".")
    if len(set(places.values())) > 1:
        return f"{worst} (the worst of {'all loads' if everywhere else ', '.join(places)})."
    return f"{worst}." if everywhere else f"{worst} ({', '.join(places)})."


def _numbers(flag: str) -> list[float]:
    return [float(number) for number in _NUMBER.findall(flag)]


LONGEST_REASON = 12
NO_NUMBER = "-"
SHOWN_DELAYS = ("ttft_s", "tpot_s", "itl_s", "e2e_s")
VERDICT_WORDS = {"worse": "worse", "better": "better", "same": NO_DIFFERENCE}


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns that belong together and are never torn apart: heads and, for each row, as many cells."""

    heads: tuple[str, ...]
    cells: Callable[[LoadPoint], tuple[str, ...]]


def print_load(study: LoadStudy, console: Console, page: Path | None, *, full: bool = False) -> None:
    """Print `study`: headline, caveats, warnings, every load, differences, crossings, what it rests on, page.

    Readable from 60 columns on; colour only where `console` is a terminal.
    """

    def answer(say: Say) -> None:
        say(study.headline, "bold")
        for text in load_caveats(study):
            say(text, "yellow")

    def warnings(say: Say) -> None:
        for text in warnings_of(study.points):
            say(text, "yellow")
        if not study.points:
            say("No load was finished, so there is nothing to show.")

    def traffic(say: Say) -> None:
        say()
        for name, text in workload_rows(study.workload, study.slo, study.points, study.models):
            say(f"{name}: {text}.", "dim")
        say(f"The run {ended_text(study.stopped_because)}.", "dim")

    parts = [
        Passage(answer),
        Passage(warnings, 1, "warnings"),
        Passage(lambda say: _points(study, console.width, say), 2, "every load"),
        Passage(lambda say: _differences(study, say), 3, "differences at each load"),
        *listed_parts("Where the curves cross", [ended(c.sentence) for c in study.crossings], most=3, rank=1),
        Passage(lambda say: _rest(study, say), 5, "what the numbers rest on"),
        Passage(traffic, 6, "the traffic"),
    ]
    print_parts(parts, console, full=full, page=page)


def print_capacity(study: CapacityStudy, console: Console, page: Path | None, *, full: bool = False) -> None:
    """Print `study`: headline, caveats, each limit with its trials, page. Readable from 60 columns on."""

    def answer(say: Say) -> None:
        say(study.headline, "bold")
        for text in load_caveats(study):
            say(text, "yellow")
        for limit, _ in limits:
            if limit.sentence != study.headline:
                say(limit.sentence, "bold")
            if not limit.monotone:
                say("A higher load met the service level where a lower one failed: the limit means little.", "yellow")

    def terms(say: Say) -> None:
        say()
        say(
            f"Meets the service level ({slo_words(study.slo)}): {percent_text(study.target_share)} of requests or "
            f"more, decided at {percent_text(study.confidence)} confidence; brackets hold 95 % intervals.",
            "dim",
        )
        if study.users is not None and (pause := think_words(study)):
            say(f"Users: {pause}.", "dim")
        say(
            f"{_described(study.model) or study.model.name}. The search {ended_text(study.stopped_because)}.",
            "dim",
        )

    limits = [(limit, noun) for limit, noun in ((study.rate, "req/s"), (study.users, "at once")) if limit is not None]
    tables = [Passage(partial(_trials, limit, noun), 1, f"trials in {noun}") for limit, noun in limits]
    print_parts([Passage(answer), *tables, Passage(terms)], console, full=full, page=page)


def print_check(check: Check, console: Console) -> None:
    """Print `check`: headline, caveats, every metric over the saved one. Readable from 60 columns on."""
    say = say_on(console)
    say(check.headline, "bold red" if check.worse else "bold")
    for text in check.caveats:
        say(capital(text), "yellow")
    for load, group in grouped(check.metrics, lambda each: each.load).items():
        say()
        say(f"{load}: new over saved", "bold")
        rows = [
            (metric_of(each.metric).title, each.new_over_old, VERDICT_WORDS.get(each.verdict, each.verdict))
            for each in group
        ]
        ratio_table(rows, "", say)
    say()
    say(f"Saved run: {check.baseline}", "dim")


def _points(study: LoadStudy, width: int, say: Say) -> None:
    units = units_of(study.points)
    groups = _groups(study, units)
    known = {model.name: _described(model) for model in study.models}
    for name, points in grouped(study.points, lambda point: point.model).items():
        say()
        say(f"{name} ({known[name]})" if known.get(name) else name, "bold")
        first = ["load", *(shortened(point.load) for point in points)]
        say_tables(packed(first, [_filled(group, points) for group in groups], width - 2), say)
        for reason in _reasons(points):
            say(reason, "dim", 2)
    if study.points:
        named = ", ".join(f"{metric_of(key).title} in {units[key].name}" for key in SHOWN_DELAYS)
        say(f"{named}. TTFT and E2E count from when a request was due. Brackets hold 95 % intervals.", "dim")


def tokens_told(point: LoadPoint) -> float | None:
    """Output tokens a second; None where answers came and nobody counted them."""
    return point.output_tokens_per_s if point.output_tokens_mean is not None or not point.answered else None


def _groups(study: LoadStudy, units: dict[str, Unit]) -> list[Columns]:
    """Column groups in reading order; goodput only where a service level was asked for."""

    def of(metric: str, *wanted: float) -> Columns:
        title, unit = metric_of(metric).title, units[metric]
        return Columns(
            heads=tuple(f"{title} p{p:g}" if p == wanted[0] else f"p{p:g}" for p in wanted),
            cells=lambda point: tuple(_cell(percentile_of(point, metric, p), unit) for p in wanted),
        )

    groups = [
        Columns(
            ("offered", "achieved", "out tok/s"),
            lambda point: (offered_text(point), rate_text(point.requests_per_s), rate_text(tokens_told(point))),
        )
    ]
    if any(point.good is not None for point in study.points):
        groups.append(
            Columns(
                ("goodput", "good requests"), lambda point: (rate_text(point.goodput_per_s), share_text(point.good))
            )
        )
    groups += [
        of("ttft_s", 50, 90, 99),
        of("tpot_s", 50, 99),
        of("itl_s", 99),
        of("e2e_s", 50, 99),
        Columns(("failed",), lambda point: (f"{point.requests - point.answered} of {point.requests}",)),
    ]
    return groups


def _cell(found: Percentile | None, unit: Unit) -> str:
    """A percentile; a long reason for there being none is said beneath the tables instead."""
    text = delay_text(found, unit)
    return NO_NUMBER if found is not None and found.value is None and len(text) > LONGEST_REASON else text


def _reasons(points: Sequence[LoadPoint]) -> list[str]:
    """Why cells hold no number, each reason once, with the loads it concerns."""
    found: dict[str, list[str]] = {}
    for point in points:
        for metric in SHOWN_DELAYS:
            latency = latency_of(point, metric)
            for each in latency.percentiles if latency else []:
                if each.value is None and each.why is not None and len(each.why) > LONGEST_REASON:
                    found.setdefault(each.why, []).append(shortened(point.load))
    return [f'"{NO_NUMBER}": {why} ({", ".join(dict.fromkeys(loads))}).' for why, loads in found.items()]


def _filled(group: Columns, points: Sequence[LoadPoint]) -> list[list[str]]:
    """The columns of a group: heads, then a cell for each point."""
    rows = [group.heads, *(group.cells(point) for point in points)]
    return [[row[column] for row in rows] for column in range(len(group.heads))]


def _differences(study: LoadStudy, say: Say) -> None:
    for (key, a, b), group in grouped(study.differences, lambda each: (each.metric, each.a, each.b)).items():
        metric = metric_of(key)
        say()
        say(f"{metric.title}: {a} over {b} ({metric.direction})", "bold")
        ratio_table([(shortened(each.load), each.ratio, winner_text(each)) for each in group], "winner", say)
        if dropped := sum(each.dropped_pairs for each in group):
            say(f"{dropped} pairs left out because one of the two failed; goodput counts them.", "dim", 2)


def _rest(study: LoadStudy, say: Say) -> None:
    """What the numbers rest on, load by load; said once where all loads say the same."""
    several = len({point.model for point in study.points}) > 1
    about: list[tuple[str, Callable[[LoadPoint], str]]] = [
        ("Failed requests", lambda point: counts_text(point.errors)),
        ("Odd streams", lambda point: counts_text(point.anomalies)),
        ("Steady state", lambda point: steady_text(point.steady)),
        ("Engine", lambda point: engine_text(point.engine)),
        ("Energy", energy_text),
        ("Lengths", prompts_text),
        ("Client's ceiling", lambda point: ceiling_text(point.client)),
        ("Client", lambda point: client_text(point.client)),
    ]
    if any(conversation_text(point) for point in study.points):
        about.append(("Conversations", lambda point: conversation_text(point) or "none"))
    if study.points:
        say()
    for title, words in about:
        texts = [words(point) for point in study.points]
        if len(set(texts)) == 1:
            say(f"{title}: {texts[0]}.")
        elif texts:
            say(f"{title}:")
            for point, text in zip(study.points, texts, strict=True):
                say(f"- {point.model + ' at ' if several else ''}{shortened(point.load)}: {text}", indent=2)


def _trials(limit: Limit, noun: str, say: Say) -> None:
    rows = [
        [number_of(trial.load), f"{trial.good.hits} of {trial.good.n}", share_text(trial.good), met_text(trial)]
        for trial in sorted(limit.trials, key=lambda trial: trial.load)
    ]
    say()
    for line in columns([[noun, "good", "share", ""], *rows], text_columns=(3,)):
        say(line, indent=2)


def number_of(load: float) -> str:
    """A load that was tried, without decimals it never had."""
    return f"{load:.6g}"


def met_text(trial: Trial) -> str:
    """Whether a trial met the service level."""
    return {True: "meets it", False: "does not", None: "not decided"}[trial.meets]


def _described(model: LoadModel) -> str:
    """Kind, nature of the weights and source: "MoE, synthetic weights, http://127.0.0.1:8000"."""
    kind = "" if model.moe is None else "MoE" if model.moe else "dense"
    parts = [kind, "synthetic weights" if model.synthetic else "", model.source if model.source != model.name else ""]
    return ", ".join(part for part in parts if part)
