"""The pages of runs under load and of capacity searches: one file each, like the page of a comparison."""

from __future__ import annotations

from pathlib import Path

from breakeven.pages import words
from breakeven.pages.figures.axes import axes_of
from breakeven.pages.figures.figure import Figure, Missing
from breakeven.pages.figures.latency import delay_curve, goodput_curve
from breakeven.pages.figures.trials import dot_plots, trials_plot
from breakeven.pages.html import Cell, by_models, drawn, environment_of_pages
from breakeven.pages.load_terminal import met_text, number_of, warnings_of
from breakeven.pages.load_words import (
    LOAD_METRICS,
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
    load_metric,
    offered_text,
    percentile_of,
    prompts_text,
    rate_text,
    share_interval,
    slo_words,
    steady_short,
    steady_text,
    units_of,
    workload_rows,
)
from breakeven.results.load import CapacityStudy, EngineState, LoadPoint, LoadStudy, Share
from breakeven.results.store import write_whole

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
    environment.globals.update(metric=load_metric)
    return environment.get_template("load.html.jinja").render(
        result=study,
        warnings=[*load_caveats(study), *warnings_of(study.points)],
        ended=ended_text(study.stopped_because),
        slo=slo_words(study.slo),
        figures=drawn(figures_of_load(study)),
        sentence=ended,
        shown=[
            (metric, p, f"{load_metric(metric).title} p{p:g}, {units[metric].name}")
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
        good=good_cell,
        counts=counts_text,
        about=about,
        used=ceiling_share,
        steady=steady_short,
        tells=any(point.engine is not None and point.engine.samples for point in study.points),
        queue=queue_cells,
        differences=by_models(study.differences, LOAD_METRICS),
        ratio_places=words.RATIO_PLACES,
        rows=workload_rows(study.workload, study.slo, study.points),
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
            rows=[*workload_rows(study.workload, study.slo), target],
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
        f"{load_metric(metric).title} {words.with_interval(mean, 1e3)} ms"
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
