"""The forest plot: every ratio of one pair with its interval, on a log axis about 1."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from breakeven.pages.figures.figure import (
    INK,
    LEVEL,
    NARROW,
    WIDE,
    Figure,
    Missing,
    data_of,
    legend,
    series_of,
    slack,
    styled,
)
from breakeven.pages.words import RATIO_PLACES, grouped, interval, streams_text, value, winner_text, with_interval
from breakeven.results.comparison import Comparison, Pair
from breakeven.results.metrics import METRICS, metric_of

if TYPE_CHECKING:
    import altair as alt

    from breakeven.pages.figures.figure import Drawing

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
        wide=_chart(result, pairs, narrow=False),
        narrow=_chart(result, pairs, narrow=True),
    )


def _chart(result: Comparison, pairs: list[Pair], narrow: bool) -> Drawing:
    import altair as alt

    width = NARROW - 172 if narrow else WIDE - 232
    rows = [_row(pair, narrow) for pair in pairs]
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


def _row(pair: Pair, narrow: bool) -> dict[str, Any]:
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
