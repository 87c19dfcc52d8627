"""Latency curves: delays against load, measured or predicted, and goodput; the tail is dashed, its marks hollow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from breakeven.pages.decision_words import delay_span
from breakeven.pages.figures.axes import (
    CUT,
    HEIGHT,
    LETTER,
    LINE,
    MOST_BANDS,
    TICK_FORMAT,
    WIDEST_LABEL,
    Axis,
    Loads,
    Scale,
    axes_of,
    cut,
    end_labels,
    fit_beside,
    grey_band,
    key_of,
    loads_of,
    log_words,
    moment,
    plot_width,
    scale_of,
    y_ticks,
)
from breakeven.pages.figures.figure import (
    INK,
    LEVEL,
    NARROW,
    PAPER,
    WIDE,
    Cast,
    Figure,
    Missing,
    data_of,
    legend,
    slack,
    styled,
)
from breakeven.pages.load_words import Unit, delay_interval, delay_text, latency_of, percentile_of, unit_of
from breakeven.pages.words import number
from breakeven.results.decision import CandidateResult, Decision
from breakeven.results.load import Crossing, LoadPoint, LoadStudy
from breakeven.results.metrics import metric_of
from breakeven.results.point import of_decided

if TYPE_CHECKING:
    import altair as alt

    from breakeven.pages.figures.figure import Drawing

P50, P99, MEAN = "p50", "p99", "mean"
PERCENTILE = {P50: 50.0, P99: 99.0}
# Percentiles that are drawn: the median solid, the tail dashed.
DRAWN = ((50.0, P50), (99.0, P99))
DASHES = {P50: [1, 0], P99: [5, 4], MEAN: [1, 0]}
MOST_LINES = 6  # above these, those of the medians would make the tails unreadable
ABOVE_ASKED = 1.3  # room for the words above the line of the service level


def _lines(
    base: alt.Chart,
    y: alt.Y,
    shape: alt.Shape,
    sizes: tuple[int, int],
    dashes: Mapping[str, list[int]] = DASHES,
    hollow: bool = True,
) -> list[alt.Chart]:
    """Lines with their marks, of `sizes` filled and hollow; `hollow`: those of p99 are."""
    import altair as alt

    dash = alt.StrokeDash("what:N", scale=alt.Scale(domain=list(dashes), range=list(dashes.values()))).legend(None)
    lines = base.mark_line(strokeWidth=2).encode(y=y, strokeDash=dash)
    full = base.transform_filter(f"datum.what != '{P99}'") if hollow else base
    marks = full.mark_point(filled=True, size=sizes[0], opacity=1).encode(y=y, shape=shape)
    if not hollow:
        return [lines, marks]
    # Hollow, so that a point on its own still tells its line; a fill of paper makes it cover the line beneath it.
    tail = (
        base.transform_filter(f"datum.what == '{P99}'")
        .mark_point(filled=False, fill=PAPER.sentinel, size=sizes[1], strokeWidth=1.8, opacity=1)
        .encode(y=y, shape=shape)
    )
    return [lines, marks, tail]


def _y(scale: Scale, ticks: list[float]) -> alt.Y:
    import altair as alt

    axis = alt.Axis(title=None, domain=False, ticks=False, values=ticks, format=TICK_FORMAT)
    return alt.Y("value:Q", scale=scale.scale(), axis=axis)


@dataclass(frozen=True, slots=True)
class Curve:
    """What one figure draws. `rows` hold model, what (p50, p99, mean), x, value and, where known, low and high."""

    rows: list[dict[str, Any]]
    axis: Axis
    y: Scale
    crossings: list[Crossing]
    offered: bool = False
    """Draw the line on which every request offered is good."""


def delay_curve(study: LoadStudy, metric: str, axis: Axis, points: Sequence[LoadPoint]) -> Figure | Missing:
    """`metric` of `points` against `axis`: median and p99, or the mean where no sample supports a percentile."""
    title = metric_of(metric).title
    rows, unit = _delay_rows(points, metric, axis, means=len(study.models) > 1)
    if not rows:
        return Missing(title, f"{title}: no load had enough answers to draw a curve.")
    crossings = _crossings_of(study, metric)
    reach = [row[key] for row in rows for key in ("value", "low", "high") if key in row]
    curve = Curve(rows, axis, scale_of(reach, from_zero=True), crossings)
    drawn = {row["what"] for row in rows}
    lines = "Solid: mean over answered requests, as in the ratios" if MEAN in drawn else "Solid: median"
    lines += ", dashed and hollow: 99th percentile" if P99 in drawn else ""
    return Figure(
        name=f"{title.lower()}-{axis.key}",
        title=f"{title} against load, {unit.name}",
        alt=_alt(f"{title} against {axis.title}, {unit.name}", points, metric, unit, drawn),
        caption=f"{lines}; a p99 is left out where the requests do not support it. "
        f"Bands are 95 % intervals{_crossing_words(crossings)}.{log_words(axis.scale, curve.y, 'delay')}",
        wide=_chart(study, curve, narrow=False),
        narrow=_chart(study, curve, narrow=True),
    )


def _crossings_of(study: LoadStudy, metric: str) -> list[Crossing]:
    """Crossings to mark. None where there are two axes, since a crossing does not say on which one it lies."""
    if len(axes_of(study)) > 1:
        return []
    return [found for found in study.crossings if found.metric == metric and found.rate_per_s is not None]


def goodput_curve(study: LoadStudy, axis: Axis, points: Sequence[LoadPoint]) -> Figure | Missing:
    """Good requests per second against `axis`, with the line on which every request would be good."""
    title = "Goodput against load, req/s"
    rows = [_goodput_row(point, axis) for point in points if point.good is not None and point.goodput_per_s is not None]
    if not rows:
        return Missing(title, "No service level was asked for, so there is no goodput to draw.")
    crossings = _crossings_of(study, "goodput_per_s")
    # Of conversations it is not known from their rate how many requests there should be.
    offered = axis.key == "rate" and axis.unit == "req/s"
    reach = [row[key] for row in rows for key in ("value", "low", "high")] + ([max(axis.values)] if offered else [])
    curve = Curve(rows, axis, Scale(log=False, low=0.0, high=1.05 * max(reach) or 1.0), crossings, offered)
    said = "; ".join(f"{point.model} at {point.load}: {number(point.goodput_per_s or 0.0)}" for point in points)
    grey = " Grey dashes: every request offered is good." if offered else ""
    return Figure(
        name=f"goodput-{axis.key}",
        title=title,
        alt=f"Goodput against {axis.title}, req/s. {said}.",
        caption=f"Requests a second that met every term of the service level, with 95 % intervals.{grey}"
        + (f" Bands{_crossing_words(crossings)}." if crossings else ""),
        wide=_chart(study, curve, narrow=False),
        narrow=_chart(study, curve, narrow=True),
    )


def _delay_rows(points: Sequence[LoadPoint], metric: str, axis: Axis, means: bool) -> tuple[list[dict[str, Any]], Unit]:
    """Rows of one delay: p99, and the mean or else the median (the mean too where there is no median)."""
    found = {
        (index, what): (each.value, each.low, each.high)
        for index, point in enumerate(points)
        for p, what in DRAWN
        if (each := percentile_of(point, metric, p)) is not None and each.value is not None
    }
    if means or not any(what == P50 for _, what in found):
        found = {key: each for key, each in found.items() if key[1] == P99}
        for index, point in enumerate(points):
            latency = latency_of(point, metric)
            if latency is not None and latency.mean is not None:
                found[index, MEAN] = (latency.mean.value, latency.mean.low, latency.mean.high)
    unit = unit_of(value for value, _, _ in found.values())
    rows: list[dict[str, Any]] = []
    for (index, what), (value, low, high) in sorted(found.items()):
        point = points[index]
        rows.append({"model": point.model, "what": what, "x": axis.of(point), "value": value * unit.scale})
        if low is not None and high is not None:
            rows[-1] |= {"low": low * unit.scale, "high": high * unit.scale}
    return rows, unit


def _goodput_row(point: LoadPoint, axis: Axis) -> dict[str, Any]:
    assert point.good is not None
    assert point.goodput_per_s is not None
    # The interval of the share, in the unit of the rate that it is a share of.
    per_s = point.good.n / point.measured_s if point.measured_s else 0.0
    ends = {"low": point.good.low * per_s, "high": point.good.high * per_s}
    return {"model": point.model, "what": P50, "x": axis.of(point), "value": point.goodput_per_s, **ends}


def _chart(study: LoadStudy, curve: Curve, narrow: bool) -> Drawing:
    import altair as alt

    cast = Cast(study.models)
    names = cast.known(row["model"] for row in curve.rows)
    ends = [] if narrow else _ends(curve.rows)
    words = [str(end["words"]) for end in ends]
    beside = min(WIDEST_LABEL, 20 + LETTER * max((len(text) for text in words), default=0))
    width = NARROW - 52 if narrow else WIDE - 56 - beside
    key = legend(narrow) if narrow and len(names) > 1 else None
    if key is not None:
        key.offset = 14 + LINE * len(curve.crossings)
    x, y = curve.axis.x(width), _y(curve.y, curve.y.ticks(HEIGHT, 30))
    colour = alt.Color("model:N", scale=cast.colours(names), legend=key)
    shape = alt.Shape("model:N", scale=cast.marks(names), legend=key)
    layers: list[alt.Chart] = [*_crossed(curve.crossings, curve.axis, width)]
    if curve.offered:
        # The rate offered, over itself, from load to load as the lines of the candidates go.
        offered = alt.Chart(data_of([{"x": at, "value": at} for at in curve.axis.values]))
        grey = offered.mark_line(strokeWidth=1.2, strokeDash=[3, 3], color=LEVEL.sentinel)
        layers.append(grey.encode(x=x, y=alt.Y("value:Q")))
    if sure := [row for row in curve.rows if "low" in row]:
        reach = {"y": alt.Y("low:Q"), "y2": alt.Y2("high:Q")}
        known = alt.Chart(data_of(sure)).encode(x=x, color=colour, detail="what:N")
        layers.append(known.mark_area(opacity=0.16).encode(**reach))
        layers.append(known.mark_rule(strokeWidth=1.5, opacity=0.7).encode(**reach))
    base = alt.Chart(data_of(curve.rows)).encode(x=x, color=colour, detail="what:N")
    layers += _lines(base, y, shape, (50, 42))
    if ends:
        layers.append(end_labels(ends, curve.y, width, colour))
    drawn = alt.layer(*layers).properties(width=width, height=HEIGHT)
    return styled(drawn, narrow, 8.0 if narrow else slack(words, narrow))


def _crossed(crossings: list[Crossing], axis: Axis, width: float) -> list[alt.Chart]:
    """Where lines cross: the band of the estimate, its middle, and its words above the plot."""
    layers: list[alt.Chart] = []
    for position, found in enumerate(crossings):
        if found.low is not None or found.high is not None:
            # An end that lies beyond the loads measured is drawn as far as the axis goes.
            left = 0.0 if found.low is None else axis.scale.pixel(found.low, width)
            right = width if found.high is None else axis.scale.pixel(found.high, width)
            layers += grey_band([(left, right)], 0.2)
        layers += moment(axis.scale, found.rate_per_s or 0.0, _crossing_label(found, axis), width, position)
    return layers


def _crossing_label(found: Crossing, axis: Axis) -> str:
    low, high = (None if end is None else number(end) for end in (found.low, found.high))
    band = f"{low}–{high}" if low and high else f"{low} or more" if low else f"at most {high}" if high else ""
    unit = axis.unit if axis.key == "rate" else "at once"
    return f"cross at {number(found.rate_per_s or 0.0)}" + (f" ({band})" if band else "") + f" {unit}"


def _crossing_words(crossings: list[Crossing]) -> str:
    if any(found.low is not None or found.high is not None for found in crossings):
        return "; the grey one is that of the crossing"
    return ""


def _alt(title: str, points: Sequence[LoadPoint], metric: str, unit: Unit, drawn: set[str]) -> str:
    said = []
    for point in points:
        texts = []
        for p, what in DRAWN:
            if what in drawn:
                found = percentile_of(point, metric, p)
                interval = delay_interval(found, unit)
                texts.append(f"{what} {delay_text(found, unit)}" + (f" ({interval})" if interval else ""))
        latency = latency_of(point, metric)
        if MEAN in drawn and latency is not None and latency.mean is not None:
            texts.append(f"mean {number(latency.mean.value * unit.scale)}")
        said.append(f"{point.model} at {point.load}: {', '.join(texts)}")
    return f"{title}. " + "; ".join(said) + "."


@dataclass(frozen=True, slots=True)
class ReplicaCurve:
    """What one figure draws. `rows` hold model, what (p50, p99), x, value, low and high in `unit`."""

    rows: list[dict[str, Any]]
    unit: Unit
    loads: Loads
    y: Scale
    asked: float | None
    """The bound of the service level, in `unit`."""

    @property
    def asked_text(self) -> str:
        """The bound as people type it."""
        seconds = (self.asked or 0.0) / self.unit.scale
        return f"{seconds * 1e3:.6g} ms" if seconds < 1 else f"{seconds:.6g} s"


def latency_curves(decision: Decision) -> list[Figure | Missing]:
    """TTFT and TPOT, and E2E where the service level bounds it."""
    asked = (("ttft_s", decision.slo.ttft_s), ("tpot_s", decision.slo.tpot_s), ("e2e_s", decision.slo.e2e_s))
    return [
        _replica_curve(decision, metric, bound) for metric, bound in asked if metric != "e2e_s" or bound is not None
    ]


def _replica_curve(decision: Decision, metric: str, bound: float | None) -> Figure | Missing:
    name = metric_of(metric).title
    title = f"{name} against load on one replica"
    tail = (metric, PERCENTILE[P99])
    told = [each for each in decision.candidates if any(tail in point.percentiles for point in of_decided(each))]
    if not told:
        return Missing(title, f"{name}: no candidate's delays were simulated or measured over load.")
    shown = (P50, P99) if 2 * len(told) <= MOST_LINES else (P99,)
    spans = [
        (point.candidate, what, point.rate_per_s, point.percentiles[metric, PERCENTILE[what]])
        for candidate in told
        for what in shown
        for point in of_decided(candidate)
        if (metric, PERCENTILE[what]) in point.percentiles
    ]
    unit = unit_of([span.value for *_, span in spans])
    whole: list[dict[str, Any]] = [
        {"model": model, "what": what, "x": x, "value": span.value * unit.scale}
        | {"low": span.least * unit.scale, "high": span.most * unit.scale}
        for model, what, x, span in spans
    ]
    asked = None if bound is None else bound * unit.scale
    rows = cut(whole, [] if asked is None else [asked])
    reach = [row[key] for row in rows for key in (("value", "low", "high") if len(told) <= MOST_BANDS else ("value",))]
    loads = loads_of(sorted({row["x"] for row in rows}), "requests/s on one replica")
    drawn = ReplicaCurve(
        rows, unit, loads, scale_of([*reach, *([] if asked is None else [ABOVE_ASKED * asked])], from_zero=True), asked
    )
    lines = "Solid: median, dashed and hollow: 99th percentile." if P50 in shown else "99th percentiles."
    bands = " Bands are the prediction's or measurement's intervals" if len(told) <= MOST_BANDS else ""
    bands += "" if not bands else CUT if rows != whole else "."
    line = "" if asked is None else " The thin line is what the service level asks for."
    return Figure(
        name=f"{name.lower()}-load",
        title=f"{title}, {unit.name}",
        alt=f"{title}. " + "; ".join(_said(candidate, metric, shown) for candidate in told) + ".",
        caption=f"{lines}{bands}{line}{log_words(loads.scale, drawn.y, 'delay')}",
        wide=_replica_chart(decision, drawn, narrow=False),
        narrow=_replica_chart(decision, drawn, narrow=True),
    )


def _said(candidate: CandidateResult, metric: str, shown: tuple[str, ...]) -> str:
    every = max(1, -(-len(candidate.latency) // 6))
    told = []
    for point in of_decided(candidate)[::every]:
        delays = [f"{what} {delay_span(point.percentiles.get((metric, PERCENTILE[what])))}" for what in shown]
        told.append(f"{' and '.join(delays)} at {number(point.rate_per_s or 0.0)} req/s")
    return f"{candidate.name}: {', '.join(told)}"


def _replica_chart(decision: Decision, delays: ReplicaCurve, narrow: bool) -> Drawing:
    import altair as alt

    cast = Cast(decision.candidates)
    names = cast.known(row["model"] for row in delays.rows)
    ends = _ends(delays.rows)
    words = fit_beside([end["words"] for end in ends], narrow)
    width = plot_width(words, narrow)
    key = key_of(narrow, names, words)
    x, y = delays.loads.x(width), _y(delays.y, y_ticks(delays.y))
    colour = alt.Color("model:N", scale=cast.colours(names), legend=key)
    shape = alt.Shape("model:N", scale=cast.marks(names), legend=key)
    base = alt.Chart(data_of(delays.rows)).encode(x=x, color=colour, detail="what:N")
    both = any(row["what"] == P50 for row in delays.rows)
    layers: list[alt.Chart] = []
    if delays.asked is not None:
        bound = alt.Chart(data_of([{"value": delays.asked}]))
        layers.append(bound.mark_rule(color=INK.sentinel, strokeWidth=1).encode(y=y))
        layers.append(
            alt.Chart(data_of([{"value": delays.asked, "words": f"asked for: {delays.asked_text}"}]))
            .mark_text(align="left", dx=4, dy=-7)
            .encode(x=alt.value(0), y=y, text="words:N")
        )
    if len(names) <= MOST_BANDS:
        layers.append(base.mark_area(opacity=0.13).encode(y=alt.Y("low:Q"), y2=alt.Y2("high:Q")))
    dashes = {P50: [1, 0], P99: [5, 4] if both else [1, 0]}
    layers += _lines(base, y, shape, (46, 40), dashes, hollow=both)
    if words:
        layers.append(end_labels(ends, delays.y, width, colour))
    drawn = alt.layer(*layers).properties(width=width, height=HEIGHT)
    return styled(drawn, narrow, 8.0 if narrow else slack(words, narrow))


def _ends(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last point of each line with the words that stand beside it."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        line = (row["model"], row["what"])
        if line not in found or row["x"] > found[line]["x"]:
            found[line] = row
    several = len({what for _, what in found}) > 1
    return [{**row, "words": f"{what} {model}" if several else model} for (model, what), row in found.items()]
