"""Throughput against streams: what a machine gives as more requests run side by side.

All figures of a comparison, for the page and as files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from breakeven.pages.figures import figure as svg
from breakeven.pages.figures.figure import (
    NARROW,
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
from breakeven.pages.figures.model import memory, node_times, routing_maps
from breakeven.pages.figures.ratio import forests
from breakeven.pages.words import grouped, streams_text, with_interval
from breakeven.results.comparison import Comparison
from breakeven.results.metrics import Metric, metric_of
from breakeven.results.store import write_whole
from breakeven.stats.estimate import Estimate, Point

if TYPE_CHECKING:
    import altair as alt

    from breakeven.pages.figures.figure import Drawing

HEIGHT = 260
WIDEST_LABEL = 150
LABEL_GAP = 15


def throughput(result: Comparison, key: str) -> list[Figure | Missing]:
    """Figures of metric `key` against streams, one for each pair of prompt and output lengths."""
    metric = metric_of(key)
    title = f"{metric.title} throughput, {metric.unit}"
    lengths = sorted({(point.prompt_tokens, point.output_tokens) for point in result.points})
    made: list[Figure | Missing] = []
    for prompt, output in lengths:
        points = [
            point
            for group in grouped(result.points, lambda each: each.model).values()
            for point in sorted(group, key=lambda each: each.streams)
            if (point.prompt_tokens, point.output_tokens) == (prompt, output)
        ]
        rows = [row for point in points if (row := _row(point, key)) is not None]
        if not rows:
            continue
        suffix = f"-{prompt}-{output}" if len(lengths) > 1 else ""
        made.append(
            Figure(
                name=f"{metric.title.lower()}-throughput{suffix}",
                title=title,
                alt=_alt(title, points, key),
                caption=f"{prompt} prompt and {output} output tokens{_together(key)}. "
                "Bands and bars are 95 % intervals; a point without one rests on too few blocks.",
                wide=_chart(result, rows, metric, narrow=False),
                narrow=_chart(result, rows, metric, narrow=True),
            )
        )
    return made or [Missing(title, f"No {metric.title.lower()} rate is available for any model.")]


def _together(key: str) -> str:
    return ", all streams together" if key == "decode_tokens_per_s" else ""


def _row(point: Point, key: str) -> dict[str, Any] | None:
    estimate: Estimate | None = getattr(point, key)
    if estimate is None:
        return None
    row = {"model": point.model, "streams": point.streams, "value": estimate.value}
    if estimate.low is not None and estimate.high is not None:
        row |= {"low": estimate.low, "high": estimate.high}
    return row


def _chart(result: Comparison, rows: list[dict[str, Any]], metric: Metric, narrow: bool) -> Drawing:
    import altair as alt

    streams = sorted({row["streams"] for row in rows})
    top = 1.06 * max(row.get("high", row["value"]) for row in rows) or 1.0
    names = [name for name in series_of(result) if any(row["model"] == name for row in rows)]
    colours = alt.Scale(domain=names, range=[series_of(result)[name].sentinel for name in names])
    shapes = alt.Scale(domain=names, range=[shapes_of(result)[name] for name in names])
    key = legend(narrow) if narrow else None
    x = alt.X(
        "streams:Q",
        scale=alt.Scale(type="log", base=2, domain=[streams[0] / 1.15, streams[-1] * 1.15], nice=False),
        axis=alt.Axis(title="streams", values=streams, format="d", grid=False),
    )
    y = alt.Y(
        "value:Q",
        scale=alt.Scale(domain=[0, top], nice=False),
        axis=alt.Axis(
            title=None,
            domain=False,
            ticks=False,
            tickCount=5,
        ),
    )
    base = alt.Chart(data_of(rows)).encode(x=x, color=alt.Color("model:N", scale=colours, legend=key))
    sure = alt.Chart(data_of([row for row in rows if "low" in row])).encode(
        x=x, color=alt.Color("model:N", scale=colours, legend=key)
    )
    ends = {"y": alt.Y("low:Q"), "y2": alt.Y2("high:Q")}
    layers: list[alt.Chart] = []
    if any("low" in row for row in rows):
        layers += [sure.mark_area(opacity=0.18).encode(**ends), sure.mark_rule(strokeWidth=1.5).encode(**ends)]
    layers.append(base.mark_line(strokeWidth=2).encode(y=y))
    layers.append(
        base.mark_point(filled=True, size=55, opacity=1).encode(
            y=y, shape=alt.Shape("model:N", scale=shapes, legend=key)
        )
    )
    if not narrow:
        layers.append(
            _end_labels(rows, top, streams[-1]).encode(x=x, color=alt.Color("model:N", scale=colours, legend=None))
        )
    beside = min(WIDEST_LABEL, 22 + 8 * max(len(name) for name in names))
    width = NARROW - 50 if narrow else WIDE - 50 - beside
    room = 8.0 if narrow else slack(names, narrow)
    return styled(alt.layer(*layers).properties(width=width, height=HEIGHT), narrow, room)


def _end_labels(rows: list[dict[str, Any]], top: float, last: int) -> alt.Chart:
    """Names at the right end of the lines, pushed apart so that none covers another."""
    import altair as alt

    ends = sorted((row for row in rows if row["streams"] == last), key=lambda row: float(row["value"]))
    gap = LABEL_GAP / HEIGHT * top
    placed: list[dict[str, Any]] = []
    for row in ends:
        floor = placed[-1]["at"] + gap if placed else 0.0
        placed.append({"model": row["model"], "streams": last, "at": max(row["value"], floor)})
    labels: alt.Chart = (
        alt.Chart(data_of(placed))
        .mark_text(align="left", dx=10, fontWeight=600, limit=WIDEST_LABEL - 12)
        .encode(y=alt.Y("at:Q"), text="model:N")
    )
    return labels


def _alt(title: str, points: list[Point], key: str) -> str:
    said = [
        f"{point.model} at {streams_text(point.streams)}: {with_interval(getattr(point, key))}"
        for point in points
        if getattr(point, key) is not None
    ]
    return f"{title}. " + "; ".join(said) + "."


@dataclass(frozen=True, slots=True)
class Figures:
    """Every figure, or the sentence that says why there is none."""

    ratios: list[Figure | Missing]
    decode: list[Figure | Missing]
    prefill: list[Figure | Missing]
    time: list[Figure | Missing]
    memory: list[Figure | Missing]
    routing: list[Figure | Missing]

    @property
    def all(self) -> list[Figure | Missing]:
        """In reading order."""
        return [*self.ratios, *self.decode, *self.prefill, *self.time, *self.memory, *self.routing]


def figures_of(result: Comparison) -> Figures:
    """Build every figure of `result`. Draws nothing yet."""
    return Figures(
        ratios=forests(result),
        decode=throughput(result, "decode_tokens_per_s"),
        prefill=throughput(result, "prefill_tokens_per_s"),
        time=[node_times(result)],
        memory=[memory(result)],
        routing=routing_maps(result),
    )


def export_charts(result: Comparison, directory: Path) -> list[Path]:
    """Write each chart as an SVG with fixed colours on white paper; return the files written.

    A chart whose data the study lacks is left out. Raises `UserError` when `directory` cannot be written.
    """
    written = []
    for figure in figures_of(result).all:
        if isinstance(figure, Figure):
            drawn = svg.standalone(svg.draw(figure.wide), figure.alt)
            written.append(write_whole(directory / f"{figure.name}.svg", drawn.encode()))
    return written
