"""All figures of a decision; two of them are drawn here: the monthly bill against load, and memory needed."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from breakeven.pages.decision_words import MONTH_HOURS, flip_at, interval_of, memory_text, month_text, value_of
from breakeven.pages.figures.axes import (
    CUT,
    HEIGHT,
    MOST_BANDS,
    Loads,
    Scale,
    cut,
    end_labels,
    fit_beside,
    grey_band,
    key_of,
    loads_of,
    log_words,
    moment,
    now_words,
    plot_width,
    scale_of,
    y_ticks,
)
from breakeven.pages.figures.figure import INK, LEVEL, NARROW, WIDE, Cast, Figure, Missing, data_of, slack, styled
from breakeven.pages.figures.latency import latency_curves
from breakeven.pages.figures.maps import decision_maps, region_strip
from breakeven.pages.words import number
from breakeven.results.cost import CostPoint
from breakeven.results.decision import CandidateResult, Decision, Flip

if TYPE_CHECKING:
    import altair as alt

    from breakeven.pages.figures.figure import Drawing

TITLE = "What a month costs against load, USD"
# More words above a plot than these would push it off a phone.
MOST_FLIPS_NAMED = 3
SAID_IN_ALT = 6
# Lines are drawn in the order of their loads, so the two ends of a step may not share one.
STEP_WIDTH = 1.0001


@dataclass(frozen=True, slots=True)
class Bills:
    """What the figure draws. `rows` hold model, line, x, value, low and high; `flips` those on the axis of load."""

    rows: list[dict[str, Any]]
    loads: Loads
    y: Scale
    flips: list[Flip]


def cost_curve(decision: Decision) -> Figure | Missing:
    """The bill of every candidate that has a price, over the loads it was priced at."""
    priced = [candidate for candidate in decision.candidates if candidate.cost]
    whole = [row for candidate in priced for row in _rows(candidate)]
    rates = sorted({row["x"] for row in whole})
    if len(rates) < 2:
        return Missing(TITLE, "No candidate has a price over several loads, so there is no bill to draw.")
    rows = cut(whole)
    drawn = ("value", "low", "high") if len(priced) <= MOST_BANDS else ("value",)
    reach = [row[key] for row in rows for key in drawn]
    loads = loads_of(rates, "requests/s")
    flips = [
        flip
        for flip in decision.flips
        if flip.quantity == "load" and flip.at and rates[0] <= flip.at.value <= rates[-1]
    ]
    bills = Bills(rows, loads, scale_of(reach, from_zero=True), flips)
    said = "; ".join(_said(candidate) for candidate in priced)
    flipped = "; ".join(f"flips at {flip_at(flip)} to {flip.to or 'no difference'}" for flip in flips)
    out = " Dashed lines: candidates that a constraint rules out." if any(row["out"] for row in rows) else ""
    bands = " Bands come from the capacity's interval" if len(priced) <= MOST_BANDS else ""
    bands += "" if not bands else CUT if rows != whole else "."
    unnamed = len(flips) - MOST_FLIPS_NAMED
    more = f" {unnamed} more flip{'s are' if unnamed > 1 else ' is'} drawn without words." if unnamed > 0 else ""
    grey = " Grey: where the answer flips, with its band." + more if flips else ""
    return Figure(
        name="cost",
        title=TITLE,
        alt=f"Monthly cost against load. {said}." + (f" The answer {flipped}." if flips else ""),
        caption=f"{number(MONTH_HOURS)} hours of steady load. Machines are whole, so their bills are "
        f"stairs.{bands}{grey}{out}{log_words(loads.scale, bills.y, 'cost')}",
        wide=_chart(decision, bills, narrow=False),
        narrow=_chart(decision, bills, narrow=True),
    )


def _rows(candidate: CandidateResult) -> list[dict[str, Any]]:
    """Points of a line; where a machine is added between two loads, the step is drawn halfway between them."""
    points = sorted(candidate.cost, key=lambda point: point.rate_per_s)
    rows = [_at(candidate, point, point.rate_per_s) for point in points]
    for before, after in itertools.pairwise(points):
        if before.replicas != after.replicas and before.rate_per_s > 0:
            halfway = math.sqrt(before.rate_per_s * after.rate_per_s)
            rows += [_at(candidate, before, halfway), _at(candidate, after, halfway * STEP_WIDTH)]
    return sorted(rows, key=lambda row: float(row["x"]))


def _at(candidate: CandidateResult, point: CostPoint, rate_per_s: float) -> dict[str, Any]:
    return {
        "model": candidate.name,
        "out": bool(candidate.ruled_out),
        "x": rate_per_s,
        "value": point.usd_per_hour.value * MONTH_HOURS,
        "low": point.usd_per_hour.least * MONTH_HOURS,
        "high": point.usd_per_hour.most * MONTH_HOURS,
    }


def _said(candidate: CandidateResult) -> str:
    """A few points of a line in words: a picture of dozens of them would tire whoever listens."""
    every = max(1, -(-len(candidate.cost) // SAID_IN_ALT))
    points = candidate.cost[::every]
    told = ", ".join(f"{month_text(candidate, point.usd_per_hour)} at {number(point.rate_per_s)}" for point in points)
    return f"{candidate.name}: {told} req/s"


def _chart(decision: Decision, bills: Bills, narrow: bool) -> Drawing:
    import altair as alt

    cast = Cast(decision.candidates)
    names = cast.known(row["model"] for row in bills.rows)
    words = fit_beside(names, narrow)
    width = plot_width(words, narrow)
    named = bills.flips[:MOST_FLIPS_NAMED]
    key = key_of(narrow, names, words, 1 + len(named))
    x, y = bills.loads.x(width), _money(bills.y)
    colour = alt.Color("model:N", scale=cast.colours(names), legend=key)
    base = alt.Chart(data_of(bills.rows)).encode(x=x, color=colour)
    layers: list[alt.Chart] = [*_bands(bills, width)]
    if bills.rows[0]["x"] <= decision.load_per_s <= max(row["x"] for row in bills.rows):
        layers += moment(bills.loads.scale, decision.load_per_s, now_words(decision), width, 0, [2, 2])
    for position, flip in enumerate(bills.flips):
        said = _flip_words(flip) if flip in named else ""
        at, line = flip.at.value if flip.at else 0.0, min(position, len(named)) + 1
        layers += moment(bills.loads.scale, at, said, width, line, [1, 0])
    if len(names) <= MOST_BANDS:
        layers.append(base.mark_area(opacity=0.16).encode(y=alt.Y("low:Q"), y2=alt.Y2("high:Q"), detail="out:N"))
    layers.append(
        base.mark_line(strokeWidth=2.2).encode(
            y=y,
            strokeDash=alt.StrokeDash("out:N", scale=alt.Scale(domain=[False, True], range=[[1, 0], [4, 4]])).legend(
                None
            ),
        )
    )
    # Marks at the first and last load only: a staircase has dozens of points.
    ends = [row for name in names for row in _ends([each for each in bills.rows if each["model"] == name])]
    layers.append(
        alt.Chart(data_of(ends))
        .mark_point(filled=True, size=52, opacity=1)
        .encode(x=x, y=y, color=colour, shape=alt.Shape("model:N", scale=cast.marks(names), legend=key))
    )
    if words:
        last = {row["model"]: {**row, "words": row["model"]} for row in ends}
        layers.append(end_labels(list(last.values()), bills.y, width, colour))
    drawn = alt.layer(*layers).properties(width=width, height=HEIGHT)
    return styled(drawn, narrow, 8.0 if narrow else slack(words, narrow))


def _ends(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    ordered = sorted(rows, key=lambda row: float(row["x"]))
    return [ordered[0], ordered[-1]]


def _money(scale: Scale) -> alt.Y:
    import altair as alt

    label = (
        "datum.value >= 1e6 ? '$' + format(datum.value / 1e6, ',~f') + ' M' : "
        "datum.value >= 1e4 ? '$' + format(datum.value / 1e3, ',~f') + ' k' : '$' + format(datum.value, ',~f')"
    )
    axis = alt.Axis(title=None, domain=False, ticks=False, values=y_ticks(scale), labelExpr=label)
    return alt.Y("value:Q", scale=scale.scale(), axis=axis)


def _bands(bills: Bills, width: float) -> list[alt.Chart]:
    """Grey bands of the flips; an end beyond the loads drawn is cut at the axis' end."""
    scale = bills.loads.scale
    bands = [flip.at for flip in bills.flips if flip.at is not None and flip.at.least < flip.at.most]
    return grey_band([(scale.pixel(at.least, width), scale.pixel(at.most, width)) for at in bands], 0.15)


def _flip_words(flip: Flip) -> str:
    interval = interval_of(flip.at).replace("-", "–")
    return f"flips at {value_of(flip.at)}" + (f" ({interval})" if interval else "") + " req/s"


MEMORY_TITLE = "Memory needed, and memory there is"
TOO_MUCH = "does not fit"


def memory_bars(decision: Decision) -> Figure | Missing:
    """A bar a candidate against the memory of its machine."""
    rows = [
        {
            "model": candidate.name,
            "nothing": 0.0,
            "needed": candidate.memory_bytes / 1e9,
            "there": (candidate.memory_available_bytes or candidate.memory_bytes) / 1e9,
            "told": candidate.memory_available_bytes is not None,
            "words": memory_text(candidate)
            + (
                f", {TOO_MUCH}"
                if candidate.memory_available_bytes is not None
                and candidate.memory_bytes > candidate.memory_available_bytes
                else ""
            ),
        }
        for candidate in decision.candidates
        if candidate.memory_bytes is not None
    ]
    if not rows:
        return Missing(MEMORY_TITLE, "No candidate runs on a machine of one's own, so there is no memory to fill.")
    said = "; ".join(f"{row['model']}: {row['words']}" for row in rows)
    return Figure(
        name="memory",
        title=MEMORY_TITLE,
        alt=f"{MEMORY_TITLE}. {said}.",
        caption="Bars: weights, keys and values, and buffers of one replica. Frames: memory of its devices.",
        wide=_memory_chart(decision, rows, narrow=False),
        narrow=_memory_chart(decision, rows, narrow=True),
    )


def _memory_chart(decision: Decision, rows: list[dict[str, Any]], narrow: bool) -> Drawing:
    import altair as alt

    cast = Cast(decision.candidates)
    words = [str(row["words"]) for row in rows]
    # Bars scale to what their words leave; words stand beneath on a phone.
    room = 0 if narrow else min(260, 20 + 7 * max(len(text) for text in words))
    width = (NARROW if narrow else WIDE) - 10 - room
    names = list(dict.fromkeys(str(row["model"]) for row in rows))
    top = max(max(row["needed"], row["there"]) for row in rows)
    base = alt.Chart()
    start = alt.X("nothing:Q", axis=None, scale=alt.Scale(domain=[0, top]))
    height = 40 if narrow else 18
    bar = 16
    layers = [
        base.mark_rect().encode(
            x=start,
            x2="needed:Q",
            color=alt.Color("model:N", scale=cast.colours(names), legend=None),
            y=alt.value(3),
            y2=alt.value(bar - 3),
        ),
        base.transform_filter("datum.told")
        .mark_rect(fillOpacity=0.1, color=LEVEL.sentinel, stroke=INK.sentinel, strokeOpacity=0.7)
        .encode(x=start, x2="there:Q", y=alt.value(0), y2=alt.value(bar)),
        base.mark_text(align="left", baseline="middle").encode(
            x=alt.value(0 if narrow else width + 10), y=alt.value(bar + 12 if narrow else bar / 2), text="words:N"
        ),
    ]
    drawn = (
        alt.layer(*layers)
        .properties(width=width, height=height)
        .facet(
            row=alt.Row(
                "model:N",
                sort=names,
                title=None,
                header=alt.Header(
                    labelOrient="top", labelAnchor="start", labelAngle=0, labelAlign="left", labelLimit=NARROW
                ),
            ),
            data=data_of(rows),
        )
    )
    return styled(drawn, narrow, 8.0 if narrow else slack(words, narrow))


@dataclass(frozen=True, slots=True)
class DecisionFigures:
    """Every figure, or the sentence that says why there is none."""

    regions: list[Figure | Missing]
    cost: list[Figure | Missing]
    latency: list[Figure | Missing]
    maps: list[Figure | Missing]
    memory: list[Figure | Missing]

    @property
    def all(self) -> list[Figure | Missing]:
        """In reading order."""
        return [*self.regions, *self.cost, *self.latency, *self.maps, *self.memory]


def figures_of_decision(decision: Decision) -> DecisionFigures:
    """Build every figure of `decision`. Draws nothing yet."""
    return DecisionFigures(
        regions=[region_strip(decision)],
        cost=[cost_curve(decision)],
        latency=latency_curves(decision),
        maps=decision_maps(decision),
        memory=[memory_bars(decision)],
    )
