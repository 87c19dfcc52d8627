"""The page of a decision: one file like the other pages, verdict first."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from breakeven.pages import decision_words as say
from breakeven.pages import words
from breakeven.pages.figures.decision import figures_of_decision
from breakeven.pages.html import Cell, drawn, environment_of_pages
from breakeven.pages.load_words import capital, ended, unit_of
from breakeven.results.cost import Api, CostPoint
from breakeven.results.decision import CandidateResult, Decision, Flip, NextMeasurement
from breakeven.results.store import write_whole
from breakeven.stats.estimate import Estimate

if TYPE_CHECKING:
    from markupsafe import Markup

PER_THOUSAND = 1000.0
_BACKTICKS = re.compile("`([^`]+)`")


def write_decision_report(decision: Decision, path: Path) -> Path:
    """Write the page of `decision` to `path`. Raises `UserError` when it cannot be written."""
    return write_whole(path, render_decision(decision).encode())


def render_decision(decision: Decision) -> str:
    """The page of `decision` as HTML. Every text that came from outside is escaped."""
    figures = figures_of_decision(decision)
    hours, by_hour = say.day_rows(decision.day)
    names = tuple(name for each in decision.candidates for name in (each.name, each.model, each.machine) if name)
    environment = environment_of_pages()
    environment.globals.update(kind=say.kind_words)
    environment.filters.update(coded=coded, capital=capital)
    return environment.get_template("decision.html.jinja").render(
        result=decision,
        sentence=lambda text: sentence(text, names),
        rests_on=say.rests_on(decision.candidates),
        shares=[say.share_line(share) for share in decision.verdict.shares],
        regions=drawn(figures.regions),
        cost=drawn(figures.cost),
        latency=drawn(figures.latency),
        maps=drawn(figures.maps),
        memory=drawn(figures.memory),
        ruled_out=[each for each in decision.candidates if each.ruled_out],
        now=say.at_load(decision),
        now_cells=lambda each: now_cells(each, decision.load_per_s),
        hours=hours,
        by_hour=[[Cell(text, "") for text in row] for row in by_hour],
        hours_are="" if decision.day is None else say.day_words(decision.day),
        cost_cells=cost_cells,
        latency_cells=latency_cells,
        about=about,
        margin=say.margin_text,
        loads=say.region_loads,
        at=flip_cell,
        band=band_cell,
        rows=say.traffic_rows(decision),
        number=words.number,
        no_winner=say.NO_WINNER,
        month_hours=words.number(say.MONTH_HOURS),
    )


def coded(text: str) -> Markup:
    """`text`, escaped, with what stands between backticks as code."""
    from markupsafe import Markup, escape

    return Markup("").join(
        Markup("<code>{}</code>").format(part) if index % 2 else escape(part)
        for index, part in enumerate(_BACKTICKS.split(text))
    )


def sentence(text: str, names: tuple[str, ...]) -> str:
    """`text` as a sentence; a candidate's name at its front stays as it is written."""
    return ended(text) if text.startswith(names) else capital(ended(text))


def span_cell(span: Estimate | None, scale: float = 1.0) -> Cell:
    """A value with its interval beneath, as a table shows it."""
    if span is None:
        return Cell("–", "")
    return Cell(say.value_of(span, scale), say.interval_of(span, scale).replace("-", "–"))


def usd_cell(span: Estimate | None, scale: float = 1.0) -> Cell:
    """An amount with its interval beneath."""
    if span is None:
        return Cell("–", "")
    interval = say.usd_interval(span, scale)
    return Cell(say.usd_span(span, scale).removesuffix(f" ({interval})"), interval.replace("-", "–"))


def month_cell(candidate: CandidateResult, span: Estimate | None) -> Cell:
    """A month of an hourly bill; of one without an upper end, from where on it lies."""
    return open_ended(candidate, usd_cell(span, say.MONTH_HOURS))


def open_ended(candidate: CandidateResult, cell: Cell) -> Cell:
    """A cell that grows with the machines; of a candidate whose bill has no upper end, from where on it lies."""
    if not cell.interval or not say.is_endless(candidate):
        return cell
    return Cell(cell.value, f"from {cell.interval.partition('–')[0]}")


def delay_cell(span: Estimate | None) -> Cell:
    """A delay in the unit that suits it, its interval beneath."""
    if span is None:
        return Cell("–", "")
    unit = unit_of([span.value, span.high])
    found = span_cell(span, unit.scale)
    return Cell(f"{found.value} {unit.name}", found.interval)


def share_cell(share: Estimate | None) -> Cell:
    """A share in percent, its interval beneath."""
    if share is None:
        return Cell("–", "")
    interval = "" if share.least == share.most else f"{share.least * 100:.1f}–{share.most * 100:.1f}"
    return Cell(words.percent_text(share.value), interval)


def now_cells(candidate: CandidateResult, load_per_s: float) -> list[Cell]:
    """A candidate at the study's load: bill, price of tokens, replicas, use, tails, share within the service level."""
    cost, delays = say.cost_at(candidate, load_per_s), say.latency_at(candidate, load_per_s)
    bill = [Cell("–", "")] * 3
    if cost is not None:
        bill = [
            month_cell(candidate, cost.usd_per_hour),
            open_ended(candidate, usd_cell(cost.usd_per_mtok_output)),
            _fleet_cell(candidate, cost),
        ]
    waits = [Cell("–", "")] * 3
    if delays is not None:
        waits = [delay_cell(delays.ttft_p99_s), delay_cell(delays.tpot_p99_s), share_cell(delays.good_share)]
    return [*bill, *waits, span_cell(candidate.capacity_per_s)]


def _fleet_cell(candidate: CandidateResult, cost: CostPoint) -> Cell:
    """Replicas, and beneath how far their number is sure and how much of them is in use."""
    found = open_ended(candidate, span_cell(cost.replicas))
    used = "" if cost.utilisation is None else words.percent_text(cost.utilisation)
    return Cell(found.value, "; ".join(part for part in (found.interval, used) if part))


def cost_cells(candidate: CandidateResult) -> tuple[list[str], list[list[Cell]]]:
    """Heads and rows of everything a candidate costs at every load; columns that no row fills are left out."""
    heads = ["req/s", "replicas", "used", "$/month", "$/1000 requests", "$/Mtok out, all charged to it"]
    heads += ["$/Mtok in, by time", "$/Mtok out, by time", "$/conversation", "$/solved task"]
    heads += ["J/token out", "energy, $/month"]
    rows = [_cost_row(candidate, point) for point in candidate.cost]
    filled = [column for column in range(len(heads)) if any(row[column].value != "–" for row in rows)]
    return [heads[column] for column in filled], [[row[column] for column in filled] for row in rows]


def _cost_row(candidate: CandidateResult, point: CostPoint) -> list[Cell]:
    def plain(amount: float | None) -> Cell:
        return Cell("–" if amount is None else say.usd(amount), "")

    def more(cell: Cell) -> Cell:
        return open_ended(candidate, cell)

    return [
        Cell(words.number(point.rate_per_s), ""),
        more(span_cell(point.replicas)),
        Cell("–" if point.utilisation is None else words.percent_text(point.utilisation), ""),
        month_cell(candidate, point.usd_per_hour),
        more(usd_cell(point.usd_per_request, PER_THOUSAND)),
        more(usd_cell(point.usd_per_mtok_output)),
        plain(point.usd_per_mtok_input_share),
        plain(point.usd_per_mtok_output_share),
        more(usd_cell(point.usd_per_conversation)),
        more(usd_cell(point.usd_per_solved)),
        more(span_cell(point.joules_per_output_token)),
        more(usd_cell(point.energy_usd_per_hour, say.MONTH_HOURS)),
    ]


def latency_cells(candidate: CandidateResult) -> tuple[list[str], list[list[Cell]]]:
    """Heads and rows of one replica's delays at every load."""
    heads = ["req/s", "TTFT p50", "p99", "TPOT p50", "p99", "E2E p50", "p99", "good", "used", "tok/s"]
    rows = [
        [
            Cell(words.number(point.rate_per_s), ""),
            delay_cell(point.ttft_p50_s),
            delay_cell(point.ttft_p99_s),
            delay_cell(point.tpot_p50_s),
            delay_cell(point.tpot_p99_s),
            delay_cell(point.e2e_p50_s),
            delay_cell(point.e2e_p99_s),
            share_cell(point.good_share),
            Cell(words.percent_text(point.utilisation), ""),
            Cell(words.number(point.tokens_per_s), ""),
        ]
        for point in candidate.latency
    ]
    return heads, rows


def about(candidate: CandidateResult) -> list[tuple[str, str]]:
    """Name and value of what a candidate is and where it runs."""
    saturation = candidate.saturation_tokens_per_s
    hosted = isinstance(candidate.pricing, Api)
    rows = [
        ("Model", f"{candidate.model}, {say.kind_words(candidate.kind)}"),
        ("Runs on", say.runs_on(candidate)),
        ("Numbers are", candidate.provenance),
        ("Price", say.pricing_text(candidate.pricing)),
        ("Quality", say.quality_text(candidate.quality)),
    ]
    if not hosted:
        most = f", at saturation {words.number(saturation)} tok/s" if saturation is not None else ""
        rows += [
            ("Memory", say.memory_text(candidate)),
            ("One replica", f"{say.span_text(candidate.capacity_per_s)} req/s within the service level{most}")
            if candidate.capacity_per_s is not None and candidate.capacity_per_s.value > 0
            else ("One replica", f"capacity {words.NOT_AVAILABLE}{most}"),
        ]
    if candidate.shares:
        rows.append(("Promise", say.kept_line(candidate)))
    return rows + [("Note", note) for note in say.notes_of(candidate)]


def flip_cell(flip: Flip) -> Cell:
    """Where an answer changes, its band beneath."""
    if flip.at is None:
        return Cell(flip.at_label or "–", "")
    return Cell(f"{say.value_of(flip.at)} {flip.unit}".rstrip(), say.interval_of(flip.at).replace("-", "–"))


def band_cell(measurement: NextMeasurement) -> str:
    """What a measurement would do to the band, as a sentence."""
    return say.band_line(measurement)
