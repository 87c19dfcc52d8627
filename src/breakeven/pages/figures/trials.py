"""Where there is no curve to draw: the trials of a capacity search, and the percentiles of every delay as dots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from breakeven.pages.figures.axes import Axis, Scale
from breakeven.pages.figures.figure import (
    INK,
    LEVEL,
    NARROW,
    SERIES,
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
from breakeven.pages.load_words import (
    MILLISECONDS,
    SECONDS,
    delay_interval,
    delay_text,
    load_metric,
    percentile_of,
    share_text,
)
from breakeven.pages.words import grouped, percent_text
from breakeven.results.load import Limit, LoadPoint, LoadStudy, Percentile

if TYPE_CHECKING:
    from breakeven.pages.figures.figure import Drawing

HEIGHT = 220
OUTCOMES = {True: "meets it", False: "does not", None: "not decided"}
COLOURS = {True: SERIES[0], False: SERIES[1], None: LEVEL}
MARKS = {True: "circle", False: "square", None: "diamond"}


def trials_plot(limit: Limit, title: str, noun: str, target: float) -> Figure | Missing:
    """Every trial of `limit`: good share with its interval against load, the share asked for as a line."""
    trials = sorted(limit.trials, key=lambda trial: trial.load)
    if not trials:
        return Missing(title, "No load was tried to its end.")
    said = "; ".join(f"{trial.load:g} {noun}: {share_text(trial.good)}, {OUTCOMES[trial.meets]}" for trial in trials)
    return Figure(
        name="trials-users" if noun == "at once" else "trials-rate",
        title="Share of requests within the service level",
        alt=f"Share of good requests against {noun}. {said}.",
        caption=f"The line is the share asked for, {percent_text(target)}. Bars are 95 % intervals. "
        "The vertical axis starts where the worst trial needs it.",
        wide=_chart(limit, noun, target, narrow=False),
        narrow=_chart(limit, noun, target, narrow=True),
    )


def _chart(limit: Limit, noun: str, target: float, narrow: bool) -> Drawing:
    import altair as alt

    rows: list[dict[str, Any]] = [
        {
            "x": trial.load,
            "value": trial.good.share * 100,
            "low": trial.good.low * 100,
            "high": trial.good.high * 100,
            "outcome": OUTCOMES[trial.meets],
        }
        for trial in limit.trials
    ]
    axis = Axis("rate" if noun == "req/s" else "streams", tuple(sorted({trial.load for trial in limit.trials})))
    # The trials that decide lie near the share asked for, so the axis starts just under the worst of them.
    scale = Scale(log=False, low=10 * (min(target * 100, *(row["low"] for row in rows)) // 10), high=100.0)
    label = percent_text(target)
    width = NARROW - 52 if narrow else WIDE - 90
    seen = [key for key in OUTCOMES if any(row["outcome"] == OUTCOMES[key] for row in rows)]
    names = [OUTCOMES[key] for key in seen]
    key = legend(narrow, len(names))
    colour = alt.Color(
        "outcome:N", scale=alt.Scale(domain=names, range=[COLOURS[each].sentinel for each in seen]), legend=key
    )
    shape = alt.Shape("outcome:N", scale=alt.Scale(domain=names, range=[MARKS[each] for each in seen]), legend=key)
    y = alt.Y(
        "value:Q",
        scale=scale.scale(),
        axis=alt.Axis(
            title=None, domain=False, ticks=False, values=scale.ticks(HEIGHT), labelExpr="datum.label + ' %'"
        ),
    )
    x = axis.x(width)
    base = alt.Chart(data_of(rows)).encode(x=x, color=colour)
    aim = alt.Chart(data_of([{"value": target * 100, "words": label}]))
    layers = [
        aim.mark_rule(color=INK.sentinel, strokeWidth=1).encode(y=alt.Y("value:Q", scale=scale.scale())),
        base.mark_rule(strokeWidth=2.5, opacity=0.8).encode(y=alt.Y("low:Q", scale=scale.scale()), y2="high:Q"),
        base.mark_point(filled=True, size=60, opacity=1).encode(y=y, shape=shape),
    ]
    if not narrow:
        layers.append(
            aim.mark_text(align="left", dx=8, color=INK.sentinel).encode(
                x=alt.value(width), y=alt.Y("value:Q", scale=scale.scale()), text="words:N"
            )
        )
    drawn = alt.layer(*layers).properties(width=width, height=HEIGHT)
    return styled(drawn, narrow, 8.0 if narrow else slack([label], narrow))


METRICS = ("ttft_s", "tpot_s", "itl_s", "e2e_s")
PERCENTILES = (50.0, 90.0, 99.0)
ROW = 19
LEGEND_LETTERS = 60
LABELS = "datum.value < 1 ? format(datum.value * 1000, ',~f') + ' ms' : format(datum.value, ',~f') + ' s'"


def dot_plots(study: LoadStudy, points: Sequence[LoadPoint]) -> list[Figure | Missing]:
    """One figure for each load among `points`."""
    groups = grouped(points, lambda point: point.load)
    return [_dots(study, load, group, index, len(groups) > 1) for index, (load, group) in enumerate(groups.items())]


def _dots(study: LoadStudy, load: str, points: list[LoadPoint], index: int, several: bool) -> Figure | Missing:
    title = f"Delays at {load}"
    rows = _rows(study, points)
    if not any("value" in row for row in rows):
        return Missing(title, f"No delay at {load} could be measured, so there is none to draw.")
    said = "; ".join(f"{row['metric']} {row['p']} of {row['model']}: {row['words']}" for row in rows)
    return Figure(
        name=f"delays-{index + 1}" if several else "delays",
        title=title,
        alt=f"{title}. {said}.",
        caption="Dots are percentiles over the requests of this load, lines their 95 % intervals; log axis. "
        "TTFT and E2E count from when a request was due.",
        wide=_dot_chart(study, rows, narrow=False),
        narrow=_dot_chart(study, rows, narrow=True),
    )


def _rows(study: LoadStudy, points: list[LoadPoint]) -> list[dict[str, Any]]:
    order = {name: index for index, name in enumerate(series_of(study))}
    points = sorted(points, key=lambda point: order.get(point.model, len(order)))
    return [
        _row(point, position, metric, p, found)
        for metric in METRICS
        for p in PERCENTILES
        for position, point in enumerate(points)
        if (found := percentile_of(point, metric, p)) is not None
    ]


def _row(point: LoadPoint, position: int, metric: str, p: float, found: Percentile) -> dict[str, Any]:
    unit = MILLISECONDS if found.value is not None and found.value < 1 else SECONDS
    words = delay_text(found, unit)
    interval = delay_interval(found, unit).replace("-", "–")
    row: dict[str, Any] = {
        "metric": load_metric(metric).title,
        "p": f"p{p:g}",
        # The axis needs a name for each row and shows it for the first of a percentile only.
        "row": f"p{p:g}#{position}",
        "model": point.model,
        "words": words if found.value is None else f"{words} {unit.name}" + (f" ({interval})" if interval else ""),
        "short": words if found.value is None else f"{words} {unit.name}",
    }
    if found.value is not None and found.value > 0:
        row["value"] = found.value
        if found.low is not None and found.high is not None and found.low > 0:
            row |= {"low": found.low, "high": found.high}
    return row


def _dot_chart(study: LoadStudy, rows: list[dict[str, Any]], narrow: bool) -> Drawing:
    import altair as alt

    width = NARROW - 124 if narrow else WIDE - 244
    field = "short" if narrow else "words"
    cast = Cast(study.models)
    names = cast.known(row["model"] for row in rows)
    # Long names would run into each other in one row.
    stacked = narrow or sum(len(name) for name in names) > LEGEND_LETTERS
    key = legend(narrow, columns=1 if stacked else 0) if len(names) > 1 else None
    ends = [row[end] for row in rows for end in ("value", "low", "high") if end in row]
    scale = Scale(log=True, low=min(ends) / 1.3, high=max(ends) * 1.3)
    axis = alt.Axis(
        title=None, values=scale.ticks(width, 52), labelExpr=LABELS, domain=False, ticks=False, gridOpacity=0.7
    )
    y = alt.Y(
        "row:N",
        sort=None,
        axis=alt.Axis(
            title=None,
            domain=False,
            ticks=False,
            grid=False,
            labelPadding=8,
            labelExpr="split(datum.label, '#')[1] == '0' ? split(datum.label, '#')[0] : ''",
        ),
    )
    x = alt.X("value:Q", scale=scale.scale(), axis=axis)
    colour = alt.Color("model:N", scale=cast.colours(names), legend=key)
    base = alt.Chart().encode(y=y)
    layers = [
        base.transform_filter("isValid(datum.low)")
        .mark_rule(strokeWidth=2.5, opacity=0.8)
        .encode(x=alt.X("low:Q", scale=scale.scale(), axis=axis), x2="high:Q", color=colour),
        base.transform_filter("isValid(datum.value)")
        .mark_point(filled=True, size=60, opacity=1)
        .encode(x=x, color=colour, shape=alt.Shape("model:N", scale=cast.marks(names), legend=key)),
        base.mark_text(align="left").encode(x=alt.value(width + 10), text=f"{field}:N"),
    ]
    drawn = (
        alt.layer(*layers)
        .properties(width=width, height=alt.Step(ROW))
        .facet(
            row=alt.Row(
                "metric:N",
                sort=list(dict.fromkeys(row["metric"] for row in rows)),
                title=None,
                header=alt.Header(labelOrient="top", labelAnchor="start", labelAngle=0, labelAlign="left"),
            ),
            data=data_of(rows),
        )
        .resolve_scale(y="independent")
    )
    return styled(drawn, narrow, slack((row[field] for row in rows), narrow))
