"""Delays of one replica against its load: median and 99th percentile of every candidate, and what was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from breakeven.pages.decision_words import delay_span
from breakeven.pages.figures.axes import TICK_FORMAT, Scale, scale_of
from breakeven.pages.figures.decision_axes import (
    CUT,
    HEIGHT,
    MOST_BANDS,
    Loads,
    cast_of,
    cut,
    end_labels,
    fit_beside,
    key_of,
    loads_of,
    log_words,
    plot_width,
    y_ticks,
)
from breakeven.pages.figures.figure import INK, PAPER, Figure, Missing, data_of, slack, styled
from breakeven.pages.load_words import Unit, unit_of
from breakeven.pages.words import number
from breakeven.results.decision import CandidateResult, Decision, LatencyPoint
from breakeven.results.metrics import metric_of
from breakeven.stats.estimate import Estimate

if TYPE_CHECKING:
    import altair as alt

    from breakeven.pages.figures.figure import Drawing

P50, P99 = "p50", "p99"
# Above this many lines, those of the medians would make the tails unreadable.
MOST_LINES = 6
# Room for the words above the line of the service level.
ABOVE_ASKED = 1.3


@dataclass(frozen=True, slots=True)
class Delays:
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
    return [_curve(decision, metric, bound) for metric, bound in asked if metric != "e2e_s" or bound is not None]


def _span(point: LatencyPoint, metric: str, what: str) -> Estimate:
    found: Estimate = {
        ("ttft_s", P50): point.ttft_p50_s,
        ("ttft_s", P99): point.ttft_p99_s,
        ("tpot_s", P50): point.tpot_p50_s,
        ("tpot_s", P99): point.tpot_p99_s,
        ("e2e_s", P50): point.e2e_p50_s,
        ("e2e_s", P99): point.e2e_p99_s,
    }[metric, what]
    return found


def _curve(decision: Decision, metric: str, bound: float | None) -> Figure | Missing:
    name = metric_of(metric).title
    title = f"{name} against load on one replica"
    told = [candidate for candidate in decision.candidates if candidate.latency]
    if not told:
        return Missing(title, f"{name}: no candidate's delays were simulated or measured over load.")
    shown = (P50, P99) if 2 * len(told) <= MOST_LINES else (P99,)
    spans = [
        (candidate.name, what, point.rate_per_s, _span(point, metric, what))
        for candidate in told
        for what in shown
        for point in candidate.latency
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
    drawn = Delays(
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
        wide=_chart(decision, drawn, narrow=False),
        narrow=_chart(decision, drawn, narrow=True),
    )


def _said(candidate: CandidateResult, metric: str, shown: tuple[str, ...]) -> str:
    every = max(1, -(-len(candidate.latency) // 6))
    told = [
        f"{' and '.join(f'{what} {delay_span(_span(point, metric, what))}' for what in shown)} at "
        f"{number(point.rate_per_s)} req/s"
        for point in candidate.latency[::every]
    ]
    return f"{candidate.name}: {', '.join(told)}"


def _chart(decision: Decision, delays: Delays, narrow: bool) -> Drawing:
    import altair as alt

    cast = cast_of(decision)
    names = cast.known(row["model"] for row in delays.rows)
    ends = _ends(delays.rows)
    words = fit_beside([end["words"] for end in ends], narrow)
    width = plot_width(words, narrow)
    key = key_of(narrow, names, words)
    x = delays.loads.x(width)
    ticks = y_ticks(delays.y)
    y = alt.Y(
        "value:Q",
        scale=delays.y.scale(),
        axis=alt.Axis(title=None, domain=False, ticks=False, values=ticks, format=TICK_FORMAT),
    )
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
    dash = alt.StrokeDash(
        "what:N", scale=alt.Scale(domain=[P50, P99], range=[[1, 0], [5, 4] if both else [1, 0]])
    ).legend(None)
    layers.append(base.mark_line(strokeWidth=2).encode(y=y, strokeDash=dash))
    layers.append(
        base.transform_filter(f"datum.what == '{P50 if both else P99}'")
        .mark_point(filled=True, size=46, opacity=1)
        .encode(y=y, shape=shape)
    )
    if both:
        # Hollow for the tail; a fill of paper makes the mark cover the line beneath it.
        layers.append(
            base.transform_filter(f"datum.what == '{P99}'")
            .mark_point(filled=False, fill=PAPER.sentinel, size=40, strokeWidth=1.8, opacity=1)
            .encode(y=y, shape=shape)
        )
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
