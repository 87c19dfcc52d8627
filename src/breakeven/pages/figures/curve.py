"""Delays and goodput against load, one line a candidate, with intervals and the crossing of two lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from breakeven.pages.figures.axes import TICK_FORMAT, Axis, Scale, apart, axes_of, scale_of
from breakeven.pages.figures.figure import (
    LEVEL,
    MUTED,
    NARROW,
    PAPER,
    WIDE,
    Figure,
    Missing,
    data_of,
    legend,
    series_of,
    shapes_of,
    slack,
    styled,
)
from breakeven.pages.load_words import Unit, delay_interval, delay_text, latency_of, percentile_of, unit_of
from breakeven.pages.words import number
from breakeven.results.load import Crossing, LoadPoint, LoadStudy
from breakeven.results.metrics import metric_of

if TYPE_CHECKING:
    import altair as alt

    from breakeven.pages.figures.figure import Drawing

HEIGHT = 280
Side = Literal["left", "center", "right"]
WIDEST_LABEL = 170
LABEL_GAP = 15
LINE = 15
# Percentiles that are drawn, and how: the median solid, the tail dashed.
DRAWN = ((50.0, "p50"), (99.0, "p99"))
MEAN = "mean"
OFFERED = "offered"


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
    lines += ", dashed and hollow: 99th percentile" if "p99" in drawn else ""
    return Figure(
        name=f"{title.lower()}-{axis.key}",
        title=f"{title} against load, {unit.name}",
        alt=_alt(f"{title} against {axis.title}, {unit.name}", points, metric, unit, drawn),
        caption=f"{lines}; a p99 is left out where the requests do not support it. "
        f"Bands are 95 % intervals{_crossing_words(crossings)}.{_log_words(curve)}",
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
    offered = axis.key == "rate"
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
    if means or not any(what == "p50" for _, what in found):
        found = {key: each for key, each in found.items() if key[1] == "p99"}
        for index, point in enumerate(points):
            latency = latency_of(point, metric)
            if latency is not None and latency.mean is not None:
                found[index, MEAN] = (latency.mean.value, latency.mean.low, latency.mean.high)
    unit = unit_of(value for value, _, _ in found.values())
    return [_row(points[index], what, axis, unit, *each) for (index, what), each in sorted(found.items())], unit


def _row(
    point: LoadPoint, what: str, axis: Axis, unit: Unit, value: float, low: float | None, high: float | None
) -> dict[str, Any]:
    row = {"model": point.model, "what": what, "x": axis.of(point), "value": value * unit.scale}
    if low is not None and high is not None:
        row |= {"low": low * unit.scale, "high": high * unit.scale}
    return row


def _goodput_row(point: LoadPoint, axis: Axis) -> dict[str, Any]:
    assert point.good is not None
    assert point.goodput_per_s is not None
    # The interval of the share, in the unit of the rate that it is a share of.
    per_s = point.good.n / point.measured_s if point.measured_s else 0.0
    ends = {"low": point.good.low * per_s, "high": point.good.high * per_s}
    return {"model": point.model, "what": "p50", "x": axis.of(point), "value": point.goodput_per_s, **ends}


def _chart(study: LoadStudy, curve: Curve, narrow: bool) -> Drawing:
    import altair as alt

    names = [name for name in series_of(study) if any(row["model"] == name for row in curve.rows)]
    labels = [] if narrow else _labels(curve)
    words = [str(label["words"]) for label in labels]
    beside = min(WIDEST_LABEL, 20 + 7.5 * max((len(text) for text in words), default=0))
    width = NARROW - 52 if narrow else WIDE - 56 - beside
    colours = alt.Scale(domain=names, range=[series_of(study)[name].sentinel for name in names])
    shapes = alt.Scale(domain=names, range=[shapes_of(study)[name] for name in names])
    key = legend(narrow) if narrow and len(names) > 1 else None
    crossings = curve.crossings
    if key is not None:
        key.offset = 14 + LINE * len(crossings)
    x = curve.axis.x(width)
    y = alt.Y(
        "value:Q",
        scale=curve.y.scale(),
        axis=alt.Axis(title=None, domain=False, ticks=False, values=curve.y.ticks(HEIGHT, 30), format=TICK_FORMAT),
    )
    colour = alt.Color("model:N", scale=colours, legend=key)
    base = alt.Chart(data_of(curve.rows)).encode(x=x, color=colour, detail="what:N")
    sure = [row for row in curve.rows if "low" in row]
    layers: list[alt.Chart] = [*_crossed(crossings, curve.axis, width)]
    if curve.offered:
        layers.append(_offered_line(curve, x))
    if sure:
        ends = {"y": alt.Y("low:Q"), "y2": alt.Y2("high:Q")}
        known = alt.Chart(data_of(sure)).encode(x=x, color=colour, detail="what:N")
        layers.append(known.mark_area(opacity=0.16).encode(**ends))
        layers.append(known.mark_rule(strokeWidth=1.5, opacity=0.7).encode(**ends))
    dash = alt.StrokeDash("what:N", scale=alt.Scale(domain=["p50", "p99", MEAN], range=[[1, 0], [5, 4], [1, 0]]))
    layers.append(base.mark_line(strokeWidth=2).encode(y=y, strokeDash=dash.legend(None)))
    shape = alt.Shape("model:N", scale=shapes, legend=key)
    # Hollow for p99, so that a point on its own still tells which line it belongs to.
    layers.append(
        base.transform_filter("datum.what != 'p99'")
        .mark_point(filled=True, size=50, opacity=1)
        .encode(y=y, shape=shape)
    )
    layers.append(
        base.transform_filter("datum.what == 'p99'")
        .mark_point(filled=False, fill=PAPER.sentinel, size=42, strokeWidth=1.8, opacity=1)
        .encode(y=y, shape=shape)
    )
    if labels:
        layers.append(_label_layer(labels).encode(x=alt.value(width), color=colour))
    drawn = alt.layer(*layers).properties(width=width, height=HEIGHT)
    return styled(drawn, narrow, 8.0 if narrow else slack(words, narrow))


def _labels(curve: Curve) -> list[dict[str, Any]]:
    """Names at the right of the lines' ends, in pixels from the top, pushed apart so that none covers another."""
    ends: dict[tuple[str, str], dict[str, Any]] = {}
    for row in curve.rows:
        line = (row["model"], row["what"])
        if line not in ends or row["x"] > ends[line]["x"]:
            ends[line] = row
    several = len({what for _, what in ends}) > 1
    wanted = [
        {"model": model, "words": f"{what} {model}" if several else model, "at": curve.y.pixel(row["value"], HEIGHT)}
        for (model, what), row in ends.items()
    ]
    return apart(wanted, LABEL_GAP, HEIGHT)


def _label_layer(labels: list[dict[str, Any]]) -> alt.Chart:
    import altair as alt

    made: alt.Chart = (
        alt.Chart(data_of(labels))
        .mark_text(align="left", dx=10, fontWeight=600, limit=WIDEST_LABEL - 12)
        .encode(y=alt.Y("at:Q", scale=None), text="words:N")
    )
    return made


def _offered_line(curve: Curve, x: alt.X) -> alt.Chart:
    """The rate offered, over itself, from load to load as the lines of the candidates go."""
    import altair as alt

    rows = [{"x": at, "value": at} for at in curve.axis.values]
    made: alt.Chart = (
        alt.Chart(data_of(rows))
        .mark_line(strokeWidth=1.2, strokeDash=[3, 3], color=LEVEL.sentinel)
        .encode(x=x, y=alt.Y("value:Q"))
    )
    return made


def _crossed(crossings: list[Crossing], axis: Axis, width: float) -> list[alt.Chart]:
    """Where lines cross: the band of the estimate, its middle, and its words above the plot."""
    import altair as alt

    layers: list[alt.Chart] = []
    for position, found in enumerate(crossings):
        middle = axis.scale.pixel(found.rate_per_s or 0.0, width)
        if found.low is not None or found.high is not None:
            # An end that lies beyond the loads measured is drawn as far as the axis goes.
            left = 0.0 if found.low is None else axis.scale.pixel(found.low, width)
            right = width if found.high is None else axis.scale.pixel(found.high, width)
            layers.append(
                alt.Chart(data_of([{"left": left, "right": right}]))
                .mark_rect(color=LEVEL.sentinel, opacity=0.2)
                .encode(x=alt.X("left:Q", scale=None), x2="right:Q", y=alt.value(0), y2=alt.value(HEIGHT))
            )
        row = {"middle": middle, "words": _crossing_label(found, axis)}
        side: Side = "left" if middle < width * 0.3 else "right" if middle > width * 0.7 else "center"
        at = alt.Chart(data_of([row])).encode(x=alt.X("middle:Q", scale=None))
        layers.append(at.mark_rule(color=MUTED.sentinel, strokeWidth=1.2).encode(y=alt.value(-4), y2=alt.value(HEIGHT)))
        layers.append(
            at.mark_text(align=side, baseline="bottom", color=MUTED.sentinel).encode(
                y=alt.value(-6 - LINE * position), text="words:N"
            )
        )
    return layers


def _crossing_label(found: Crossing, axis: Axis) -> str:
    low, high = (None if end is None else number(end) for end in (found.low, found.high))
    band = f"{low}–{high}" if low and high else f"{low} or more" if low else f"at most {high}" if high else ""
    unit = "req/s" if axis.key == "rate" else "at once"
    return f"cross at {number(found.rate_per_s or 0.0)}" + (f" ({band})" if band else "") + f" {unit}"


def _crossing_words(crossings: list[Crossing]) -> str:
    if any(found.low is not None or found.high is not None for found in crossings):
        return "; the grey one is that of the crossing"
    return ""


def _log_words(curve: Curve) -> str:
    axes = [name for name, log in (("load", curve.axis.scale.log), ("delay", curve.y.log)) if log]
    return f" Log ax{'es' if len(axes) > 1 else 'is'}: {' and '.join(axes)}." if axes else ""


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
