"""All figures of a comparison, for the page and as files: ratios as forests, throughput against streams, and models."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from breakeven.pages.figures import figure as svg
from breakeven.pages.figures.figure import (
    INK,
    LEVEL,
    NARROW,
    WIDE,
    Cast,
    Figure,
    Missing,
    data_of,
    legend,
    series_of,
    slack,
    styled,
)
from breakeven.pages.figures.model import memory, node_times, routing_maps
from breakeven.pages.words import RATIO_PLACES, grouped, interval, streams_text, value, winner_text, with_interval
from breakeven.results.comparison import ComparedPoint, Comparison, Pair
from breakeven.results.metrics import METRICS, Metric, metric_of
from breakeven.results.point import Point, of_compared
from breakeven.results.store import write_whole

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
        rows = [row for point in map(of_compared, points) if (row := _row(point, key)) is not None]
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
    estimate = point.metrics.get(key)
    if estimate is None:
        return None
    row = {"model": point.candidate, "streams": point.streams, "value": estimate.value}
    if estimate.low is not None and estimate.high is not None:
        row |= {"low": estimate.low, "high": estimate.high}
    return row


def _chart(result: Comparison, rows: list[dict[str, Any]], metric: Metric, narrow: bool) -> Drawing:
    import altair as alt

    streams = sorted({row["streams"] for row in rows})
    top = 1.06 * max(row.get("high", row["value"]) for row in rows) or 1.0
    cast = Cast(result.models)
    names = cast.known(row["model"] for row in rows)
    key = legend(narrow) if narrow else None
    colour = alt.Color("model:N", scale=cast.colours(names), legend=key)
    x = alt.X(
        "streams:Q",
        scale=alt.Scale(type="log", base=2, domain=[streams[0] / 1.15, streams[-1] * 1.15], nice=False),
        axis=alt.Axis(title="streams", values=streams, format="d", grid=False),
    )
    y = alt.Y(
        "value:Q",
        scale=alt.Scale(domain=[0, top], nice=False),
        axis=alt.Axis(title=None, domain=False, ticks=False, tickCount=5),
    )
    base = alt.Chart(data_of(rows)).encode(x=x, color=colour)
    sure = alt.Chart(data_of([row for row in rows if "low" in row])).encode(x=x, color=colour)
    ends = {"y": alt.Y("low:Q"), "y2": alt.Y2("high:Q")}
    layers: list[alt.Chart] = []
    if any("low" in row for row in rows):
        layers += [sure.mark_area(opacity=0.18).encode(**ends), sure.mark_rule(strokeWidth=1.5).encode(**ends)]
    layers.append(base.mark_line(strokeWidth=2).encode(y=y))
    layers.append(
        base.mark_point(filled=True, size=55, opacity=1).encode(
            y=y, shape=alt.Shape("model:N", scale=cast.marks(names), legend=key)
        )
    )
    if not narrow:
        plain = alt.Color("model:N", scale=cast.colours(names), legend=None)
        layers.append(_end_labels(rows, top, streams[-1]).encode(x=x, color=plain))
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


def _alt(title: str, points: list[ComparedPoint], key: str) -> str:
    said = [
        f"{point.model} at {streams_text(point.streams)}: {with_interval(getattr(point, key))}"
        for point in points
        if getattr(point, key) is not None
    ]
    return f"{title}. " + "; ".join(said) + "."


UNDER_1 = (0.01, 0.02, 0.05, 0.1, 0.2, 0.33, 0.5, 0.67, 0.8, 0.9, 0.95)
TICKS = (*UNDER_1, 1.0, 1.05, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0)
TICK_ROOM = 34
# An A/A run must not look like a gap, so an axis never spans less than about 8 % either side.
NARROWEST_SPAN = math.log(1.16)
LEVEL_NAME = "no difference"
ROW = 21


def forests(result: Comparison) -> list[Figure | Missing]:
    """One forest plot for each pair of models."""
    if not result.pairs:
        return [Missing("Ratios", "No two models were measured at the same load, so there is no ratio to show.")]
    order = {key: index for index, key in enumerate(METRICS)}
    groups = grouped(result.pairs, lambda pair: (pair.a, pair.b)).values()
    return [
        _forest(result, sorted(group, key=lambda pair: (order.get(pair.metric, len(order)), pair.streams)), index)
        for index, group in enumerate(groups)
    ]


def _forest(result: Comparison, pairs: list[Pair], index: int) -> Figure:
    a, b = pairs[0].a, pairs[0].b
    said = [
        f"{metric_of(pair.metric).title} at {streams_text(pair.streams)}: "
        f"{with_interval(pair.ratio, places=RATIO_PLACES)}, {winner_text(pair)}"
        for pair in pairs
    ]
    return Figure(
        name=f"ratios-{index + 1}",
        title=f"{a} over {b}",
        alt=f"Ratios of {a} over {b}. " + "; ".join(said) + ".",
        caption=f"Ratio of {a} over {b} with its 95 % interval, log axis. "
        "No difference: not surely different from 1, at 99 %. The colour says who wins. "
        "Rows are streams: requests running side by side.",
        wide=_forest_chart(result, pairs, narrow=False),
        narrow=_forest_chart(result, pairs, narrow=True),
    )


def _forest_chart(result: Comparison, pairs: list[Pair], narrow: bool) -> Drawing:
    import altair as alt

    width = NARROW - 172 if narrow else WIDE - 232
    rows = [_forest_row(pair, narrow) for pair in pairs]
    domain = _domain(rows)
    scale = alt.Scale(type="log", domain=domain, nice=False)
    axis = alt.Axis(title="ratio", values=_ticks(domain, width), format="~g", gridOpacity=0.7, domain=False)
    y = alt.Y(
        "load:N",
        sort=None,
        axis=alt.Axis(
            title=None, domain=False, ticks=False, grid=False, labelPadding=8, minExtent=12 if narrow else 74
        ),
    )
    colour = _colour(result, pairs, narrow)
    base = alt.Chart().encode(y=y)
    layers = [
        alt.Chart()
        .mark_rule(color=INK.sentinel, strokeWidth=1)
        .encode(x=alt.datum(1, type="quantitative", scale=scale)),
        base.transform_filter("isValid(datum.low)")
        .mark_rule(strokeWidth=2.5)
        .encode(x=alt.X("low:Q", scale=scale, axis=axis), x2="high:Q", color=colour),
        base.mark_point(filled=True, size=60, opacity=1).encode(
            x=alt.X("ratio:Q", scale=scale, axis=axis), color=colour
        ),
        base.mark_text(align="left").encode(x=alt.value(width + 10), text="words:N"),
    ]
    titles = list(dict.fromkeys(row["metric"] for row in rows))
    drawn = (
        alt.layer(*layers)
        .properties(width=width, height=alt.Step(ROW))
        .facet(
            row=alt.Row(
                "metric:N",
                sort=titles,
                title=None,
                header=alt.Header(labelOrient="top", labelAnchor="start", labelAngle=0, labelAlign="left"),
            ),
            data=data_of(rows),
        )
        .resolve_scale(y="independent")
    )
    return styled(drawn, narrow, slack((row["words"] for row in rows), narrow))


def _forest_row(pair: Pair, narrow: bool) -> dict[str, Any]:
    metric = metric_of(pair.metric)
    words = value(pair.ratio, places=RATIO_PLACES)
    if pair.ratio.low is not None:
        words += f" ({interval(pair.ratio, places=RATIO_PLACES)})".replace("-", "–")
    row: dict[str, Any] = {
        "metric": f"{metric.title}, {metric.direction}",
        "load": str(pair.streams) if narrow else streams_text(pair.streams),
        "ratio": pair.ratio.value,
        "outcome": LEVEL_NAME if pair.winner is None else f"{pair.winner} wins",
        "words": words,
    }
    if pair.ratio.low is not None and pair.ratio.high is not None:
        row |= {"low": pair.ratio.low, "high": pair.ratio.high}
    return row


def _colour(result: Comparison, pairs: list[Pair], narrow: bool) -> alt.Color:
    import altair as alt

    series = series_of(result)
    winners = dict.fromkeys(pair.winner for pair in pairs if pair.winner is not None)
    names = [f"{name} wins" for name in winners]
    colours = [series[name].sentinel if name in series else INK.sentinel for name in winners]
    if any(pair.winner is None for pair in pairs):
        names, colours = [*names, LEVEL_NAME], [*colours, LEVEL.sentinel]
    return alt.Color("outcome:N", scale=alt.Scale(domain=names, range=colours), legend=legend(narrow))


def _domain(rows: list[dict[str, Any]]) -> list[float]:
    """From the smallest to the largest end of any interval, 1 always inside, with a margin."""
    ends = [1.0] + [row[key] for row in rows for key in ("ratio", "low", "high") if row.get(key, 0) > 0]
    low, high = math.log(min(ends)), math.log(max(ends))
    margin = max(0.06 * (high - low), (NARROWEST_SPAN - (high - low)) / 2, 0.01)
    return [math.exp(low - margin), math.exp(high + margin)]


def _ticks(domain: list[float], width: float) -> list[float]:
    """Round ratios inside `domain`, at least `TICK_ROOM` pixels apart; 1 goes first, so it is always kept."""
    span = math.log(domain[1] / domain[0])
    kept: list[float] = []
    for tick in sorted(TICKS, key=lambda tick: abs(math.log(tick))):
        apart = all(abs(math.log(tick / other)) / span * width >= TICK_ROOM for other in kept)
        if domain[0] <= tick <= domain[1] and apart:
            kept.append(tick)
    return sorted(kept)


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
