"""What each candidate needs of the memory that its machine has.

All figures of a decision, in reading order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from breakeven.pages.decision_words import memory_text
from breakeven.pages.figures.cost import cost_curve
from breakeven.pages.figures.decision_axes import cast_of
from breakeven.pages.figures.figure import INK, LEVEL, NARROW, WIDE, Figure, Missing, data_of, slack, styled
from breakeven.pages.figures.latency import latency_curves
from breakeven.pages.figures.maps import decision_maps, region_strip
from breakeven.results.decision import Decision

if TYPE_CHECKING:
    from breakeven.pages.figures.figure import Drawing

TITLE = "Memory needed, and memory there is"
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
        return Missing(TITLE, "No candidate runs on a machine of one's own, so there is no memory to fill.")
    said = "; ".join(f"{row['model']}: {row['words']}" for row in rows)
    return Figure(
        name="memory",
        title=TITLE,
        alt=f"{TITLE}. {said}.",
        caption="Bars: weights, keys and values, and buffers of one replica. Frames: memory of its devices.",
        wide=_chart(decision, rows, narrow=False),
        narrow=_chart(decision, rows, narrow=True),
    )


def _chart(decision: Decision, rows: list[dict[str, Any]], narrow: bool) -> Drawing:
    import altair as alt

    cast = cast_of(decision)
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
