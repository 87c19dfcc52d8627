"""A capacity search: the share of good requests at every load tried, and the share asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from breakeven.report.figure import NARROW, WIDE, Figure, Missing, data_of, legend, slack, styled
from breakeven.report.load_axes import Axis, Scale
from breakeven.report.load_words import share_text
from breakeven.report.svg import INK, LEVEL, SERIES
from breakeven.report.words import percent_text
from breakeven.spec.load import Limit

if TYPE_CHECKING:
    from breakeven.report.figure import Drawing

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
