"""Pages of what was measured, and what every page stands on.

A page is one file that needs no network, no script and no second file, for screen, phone and paper.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from breakeven.pages import words
from breakeven.pages.figures import figure as svg
from breakeven.pages.figures.axes import axes_of
from breakeven.pages.figures.comparison import figures_of
from breakeven.pages.figures.figure import Figure, Missing
from breakeven.pages.figures.latency import delay_curve, goodput_curve
from breakeven.pages.figures.trials import dot_plots, trials_plot
from breakeven.pages.load_terminal import met_text, number_of, tokens_told, warnings_of
from breakeven.pages.load_words import (
    Unit,
    ceiling_share,
    ceiling_text,
    client_text,
    conversation_text,
    counts_text,
    delay_interval,
    delay_text,
    ended,
    ended_text,
    energy_text,
    engine_text,
    load_caveats,
    offered_text,
    percentile_of,
    prompts_text,
    rate_text,
    share_interval,
    slo_words,
    steady_short,
    steady_text,
    think_words,
    units_of,
    workload_rows,
)
from breakeven.pages.terminal import stopped_text
from breakeven.results.comparison import Comparison, Pair
from breakeven.results.load import CapacityStudy, EngineState, LoadDifference, LoadPoint, LoadStudy
from breakeven.results.metrics import COMPARED, METRICS, metric_of
from breakeven.results.store import write_whole
from breakeven.stats.estimate import Estimate
from breakeven.stats.percentiles import Share

if TYPE_CHECKING:
    from jinja2 import Environment

CONTROL = dict.fromkeys((*range(9), 11, 12, *range(14, 32), *range(127, 160)), "?")
"""Characters that no page may hold; names and messages come from files of others."""

P = TypeVar("P", Pair, LoadDifference)


@dataclass(frozen=True, slots=True)
class Drawn:
    """A figure ready for the page. `narrow` is empty where the wide drawing serves phones too."""

    title: str
    caption: str
    wide: str
    narrow: str


@dataclass(frozen=True, slots=True)
class Cell:
    """A number in a table: the value, and its interval beneath it."""

    value: str
    interval: str


def write_report(result: Comparison, path: Path) -> Path:
    """Write the page of `result` to `path`. Raises `UserError` when it cannot be written."""
    return write_whole(path, render_report(result).encode())


def render_report(result: Comparison) -> str:
    """The page of `result` as HTML. Every text that came from outside is escaped."""
    figures = figures_of(result)
    return (
        environment_of_pages()
        .get_template("report.html.jinja")
        .render(
            result=result,
            caveats=words.caveats_of(result),
            stopped=stopped_text(result),
            lengths=sorted({(point.prompt_tokens, point.output_tokens) for point in result.points}),
            points=[
                point for group in words.grouped(result.points, lambda each: each.model).values() for point in group
            ],
            pairs=by_models(result.pairs, METRICS),
            ratio_places=words.RATIO_PLACES,
            left_out=words.left_out_text(result.pairs),
            placed=[m for m in result.models if m.placed is not None and m.placed.memory],
            energy=any(point.joules_per_token for point in result.points),
            metrics=[METRICS[key] for key in COMPARED],
            ratios=drawn(figures.ratios),
            load=drawn([*figures.decode, *figures.prefill]),
            time=drawn(figures.time),
            memory=drawn(figures.memory),
            routing=drawn(figures.routing),
        )
    )


def environment_of_pages() -> Environment:
    """Jinja with the filters that every page uses. Escapes all text; an unknown name in a template is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("breakeven.pages"),
        autoescape=True,
        finalize=lambda value: value.translate(CONTROL) if isinstance(value, str) else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        bytes=words.bytes_text,
        count=words.count_text,
        seconds=words.seconds_text,
        percent=words.percent_text,
        streams=words.streams_text,
        known=lambda found: words.NOT_AVAILABLE if found is None or found == "" else found,
    )
    environment.globals.update(
        kind=words.kind_text, winner=words.winner_text, metric=metric_of, cell=cell, roles=svg.ROLES
    )
    return environment


def drawn(figures: list[Figure | Missing]) -> list[Drawn | Missing]:
    """`figures` ready for a page: our own SVG, whose text Vega has escaped, is all markup that enters as it is."""
    from markupsafe import Markup

    return [
        figure
        if isinstance(figure, Missing)
        else Drawn(
            title=figure.title,
            caption=figure.caption,
            wide=Markup(svg.inline(svg.draw(figure.wide), figure.alt)),
            narrow=Markup(svg.inline(svg.draw(figure.narrow), figure.alt)) if figure.narrow else "",
        )
        for figure in figures
    ]


def by_models(pairs: Sequence[P], known: Iterable[str]) -> dict[tuple[str, str], list[P]]:
    """Ratios under the two models they compare, in the study's order; by metric in the order of those `known`."""
    order = {key: index for index, key in enumerate(known)}
    # Sorting is stable, so a metric's loads stay as the study lists them.
    by_metric = sorted(pairs, key=lambda pair: order.get(pair.metric, len(order)))
    found = words.grouped(by_metric, lambda pair: (pair.a, pair.b))
    return {names: found[names] for names in dict.fromkeys((pair.a, pair.b) for pair in pairs)}


def cell(estimate: Estimate | None, scale: float = 1.0, places: int | None = None) -> Cell:
    """`estimate` as a table shows it."""
    if estimate is None:
        return Cell(words.NOT_AVAILABLE, "")
    interval = words.interval(estimate, scale, places)
    return Cell(words.value(estimate, scale, places), "no interval" if interval is None else interval.replace("-", "–"))


# Delays that every reader wants; all others stand in the details of a load.
SHOWN = (
    ("ttft_s", (50.0, 90.0, 99.0)),
    ("tpot_s", (50.0, 99.0)),
    ("itl_s", (99.0,)),
    ("e2e_s", (50.0, 99.0)),
)


def write_load_report(study: LoadStudy, path: Path) -> Path:
    """Write the page of `study` to `path`. Raises `UserError` when it cannot be written."""
    return write_whole(path, render_load(study).encode())


def write_capacity_report(study: CapacityStudy, path: Path) -> Path:
    """Write the page of `study` to `path`. Raises `UserError` when it cannot be written."""
    return write_whole(path, render_capacity(study).encode())


def figures_of_load(study: LoadStudy) -> list[Figure | Missing]:
    """Curves where loads lie on an axis, dots for those that do not."""
    made: list[Figure | Missing] = []
    drawn_already: list[LoadPoint] = []
    for axis, points in axes_of(study):
        made += [delay_curve(study, metric, axis, points) for metric in ("ttft_s", "tpot_s")]
        made.append(goodput_curve(study, axis, points))
        drawn_already += points
    rest = [point for point in study.points if not any(point is other for other in drawn_already)]
    return made + dot_plots(study, rest)


def render_load(study: LoadStudy) -> str:
    """The page of `study` as HTML. Every text that came from outside is escaped."""
    units = units_of(study.points)

    def delay(point: LoadPoint, metric: str, p: float) -> Cell:
        return delay_cell(point, metric, p, units[metric])

    environment = environment_of_pages()
    environment.globals.update(metric=metric_of)
    return environment.get_template("load.html.jinja").render(
        result=study,
        warnings=[*load_caveats(study), *warnings_of(study.points)],
        ended=ended_text(study.stopped_because),
        slo=slo_words(study.slo),
        figures=drawn(figures_of_load(study)),
        sentence=ended,
        shown=[
            (metric, p, f"{metric_of(metric).title} p{p:g}, {units[metric].name}")
            for metric, wanted in SHOWN
            for p in wanted
        ],
        percentiles=sorted(
            {each.p for point in study.points for found in point.latencies for each in found.percentiles}
        ),
        units=units,
        delay=delay,
        offered=offered_text,
        rate=rate_text,
        tokens=tokens_told,
        good=good_cell,
        counts=counts_text,
        about=about,
        used=ceiling_share,
        steady=steady_short,
        tells=any(point.engine is not None and point.engine.samples for point in study.points),
        queue=queue_cells,
        differences=by_models(study.differences, METRICS),
        ratio_places=words.RATIO_PLACES,
        rows=workload_rows(study.workload, study.slo, study.points, study.models),
    )


def render_capacity(study: CapacityStudy) -> str:
    """The page of `study` as HTML. Every text that came from outside is escaped."""
    kinds = (("How many requests a second", "req/s", study.rate), ("How many at once", "at once", study.users))
    limits = [
        (title, noun, limit, drawn([trials_plot(limit, title, noun, study.target_share)])[0])
        for title, noun, limit in kinds
        if limit is not None
    ]
    target = (
        "Asked for",
        f"{words.percent_text(study.target_share)} of requests within the service level, "
        f"decided at {words.percent_text(study.confidence)} confidence",
    )
    return (
        environment_of_pages()
        .get_template("load_capacity.html.jinja")
        .render(
            result=study,
            warnings=load_caveats(study),
            ended=ended_text(study.stopped_because),
            limits=limits,
            load=number_of,
            good=good_cell,
            met=met_text,
            rows=[*_capacity_rows(study), target],
        )
    )


def delay_cell(point: LoadPoint, metric: str, p: float, unit: Unit) -> Cell:
    """One percentile as a table shows it."""
    found = percentile_of(point, metric, p)
    if found is not None and found.value is None:
        return Cell("–", found.why or words.NOT_AVAILABLE)
    return Cell(delay_text(found, unit), delay_interval(found, unit).replace("-", "–"))


def good_cell(good: Share | None) -> Cell:
    """A share of good requests as a table shows it."""
    if good is None:
        return Cell(words.NOT_AVAILABLE, "")
    return Cell(words.percent_text(good.share), share_interval(good).replace("-", "–"))


def queue_cells(engine: EngineState | None) -> list[Cell]:
    """Requests running, requests waiting and share of the KV cache in use: means, and the most beneath."""
    if engine is None:
        return [Cell(words.NOT_AVAILABLE, "")] * 3
    counts = ((engine.running_mean, engine.running_max), (engine.waiting_mean, engine.waiting_max))
    cells = [
        Cell(rate_text(mean), "" if most is None else words.number(most, 0 if most == int(most) else None))
        for mean, most in counts
    ]
    most = "" if engine.kv_share_max is None else words.percent_text(engine.kv_share_max)
    return [*cells, Cell(words.percent_text(engine.kv_share_mean), most)]


def about(point: LoadPoint) -> list[tuple[str, str]]:
    """Name and value of what a table of all loads has no room for."""
    whole = [
        f"{metric_of(metric).title} {words.with_interval(mean, 1e3)} ms"
        for metric, mean in (("ttft_s", point.whole_run_ttft_s), ("tpot_s", point.whole_run_tpot_s))
        if mean is not None
    ]
    rows = [
        ("Measured for", words.seconds_text(point.measured_s)),
        ("Steady state", steady_text(point.steady)),
        ("Means, whole run", "; ".join(whole) or words.NOT_AVAILABLE),
        ("In flight", f"{words.number(point.in_flight_mean)} on average, at most {point.in_flight_max}"),
        ("Failed", counts_text(point.errors)),
        ("Odd streams", counts_text(point.anomalies)),
        ("Lengths", prompts_text(point)),
        ("Input", f"{rate_text(point.input_tokens_per_s)} tok/s"),
        ("Engine", engine_text(point.engine)),
        ("Energy", energy_text(point)),
        ("Client's ceiling", ceiling_text(point.client)),
        ("Client", client_text(point.client)),
        ("Machine", "; ".join(point.flagged) or "quiet"),
    ]
    conversation = conversation_text(point)
    return rows if conversation is None else [*rows, ("Conversations", conversation)]


def _capacity_rows(study: CapacityStudy) -> list[tuple[str, str]]:
    """The same of a search: the arrivals, warm-up and end of its workload are those of the first look alone."""
    found = workload_rows(study.workload, study.slo, models=[study.model])
    rows = [row for row in found if row[0] not in ("Arrivals", "Warm-up", "Ends after")]
    tried = ["open loop: Poisson at each rate tried"] if study.rate is not None else []
    if study.users is not None:
        tried.append(f"closed loop: so many users at once, {think_words(study) or 'with pauses that were not told'}")
    return [("Arrivals", "; ".join(tried) or "one request at a time"), *rows]
