"""Figures of a study of trainings: what each arm differs by beside what chance makes, and how all of them learned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from breakeven.pages.figures.axes import HEIGHT, TICK_FORMAT, legend_of, scale_of, y_ticks
from breakeven.pages.figures.figure import (
    LEVEL,
    NARROW,
    WIDE,
    Cast,
    Figure,
    Missing,
    data_of,
    slack,
    styled,
)
from breakeven.pages.lab_words import DIFFERENCE, loss_span
from breakeven.results.training import TrainStudy

if TYPE_CHECKING:
    from breakeven.pages.figures.figure import Drawing

DIFFERENCES, CURVES = "Loss more than the reference", "How they learned"
_ROW = 34
_WIDEST_NAME = 150


def figures_of_training(study: TrainStudy) -> list[Figure | Missing]:
    """Build every figure of `study`. Draws nothing yet."""
    return [_differences(study), _curves(study)]


def _differences(study: TrainStudy) -> Figure | Missing:
    rows: list[dict[str, Any]] = []
    for arm in study.arms:
        if arm.difference is None:
            continue
        row: dict[str, Any] = {
            "arm": arm.name,
            "value": arm.difference.value,
            "words": loss_span(arm.difference, DIFFERENCE),
        }
        if arm.difference.low is not None and arm.difference.high is not None:
            row |= {"low": arm.difference.low, "high": arm.difference.high}
        rows.append(row)
    if not rows:
        return Missing(DIFFERENCES, "Only one model was trained, so there is nothing to compare it with.")
    floor = study.noise_floor
    band = "" if floor is None else " Grey: what two trainings of one shape differ by, in 95 %."
    return Figure(
        name="differences",
        title=DIFFERENCES,
        alt=f"{DIFFERENCES}, {study.reference}. " + "; ".join(f"{row['arm']}: {row['words']}" for row in rows) + ".",
        caption=f"Nats a token more than {study.reference}, left is better, with 95 % intervals.{band}",
        wide=_forest(study, rows, narrow=False),
        narrow=_forest(study, rows, narrow=True),
    )


def _forest(study: TrainStudy, rows: list[dict[str, Any]], *, narrow: bool) -> Drawing:
    import altair as alt

    names = [str(row["arm"]) for row in rows]
    labels = min(_WIDEST_NAME, 7.5 * max(map(len, names)))
    width = (NARROW if narrow else WIDE) - labels - 24
    floor = study.noise_floor or 0.0
    ends = [float(row[key]) for row in rows for key in ("value", "low", "high") if key in row]
    scale = scale_of([*ends, -floor, floor, 0.0], from_zero=False)
    axis = alt.Axis(title="nats a token", values=scale.ticks(width, 40), format=TICK_FORMAT, grid=True)
    x = alt.X("value:Q", scale=scale.scale(), axis=axis)
    y = alt.Y("arm:N", sort=names, axis=alt.Axis(title=None, domain=False, ticks=False, minExtent=labels))
    cast = Cast(study.arms)
    colour = alt.Color("arm:N", scale=cast.colours(names), legend=None)
    base = alt.Chart(data_of(rows)).encode(y=y)
    band = alt.Chart(data_of([{"from": -floor, "to": floor}])).mark_rect(color=LEVEL.sentinel, opacity=0.18)
    layers = [
        *([band.encode(x=alt.X("from:Q", scale=scale.scale(), axis=axis), x2="to:Q")] if floor else []),
        alt.Chart(data_of([{"value": 0.0}])).mark_rule(color=LEVEL.sentinel).encode(x=x),
        base.transform_filter("isValid(datum.low)")
        .mark_rule(strokeWidth=2.5, opacity=0.8)
        .encode(x=alt.X("low:Q", scale=scale.scale(), axis=axis), x2="high:Q", color=colour),
        base.mark_point(filled=True, size=70, opacity=1).encode(
            x=x, color=colour, shape=alt.Shape("arm:N", scale=cast.marks(names), legend=None)
        ),
        base.mark_text(align="center", dy=-11).encode(x=x, text="words:N"),
    ]
    chart: Drawing = alt.layer(*layers).properties(width=width, height=alt.Step(_ROW))
    return styled(chart, narrow, slack((str(row["words"]) for row in rows), narrow))


def _curves(study: TrainStudy) -> Figure | Missing:
    rows: list[dict[str, Any]] = []
    for arm in study.arms:
        runs = [run for run in study.runs if run.arm == arm.name]
        per_step = arm.tokens / arm.steps
        for points in zip(*(run.checks for run in runs), strict=False):
            loss = sum(point[1] for point in points) / len(points)
            rows.append({"arm": arm.name, "tokens": points[0][0] * per_step / 1000, "loss": loss})
    if len({row["tokens"] for row in rows}) < 2:
        return Missing(CURVES, "No training read the text that chooses more than once.")
    ends = "; ".join(
        f"{arm.name} ends at {[row['loss'] for row in rows if row['arm'] == arm.name][-1]:.3f}" for arm in study.arms
    )
    return Figure(
        name="curves",
        title=CURVES,
        alt=f"{CURVES}: loss on the text that chooses, over tokens read. {ends}.",
        caption="Nats a token on the text that chooses checkpoints, mean over seeds, by thousands of tokens read.",
        wide=_lines(study, rows, narrow=False),
        narrow=_lines(study, rows, narrow=True),
    )


def _lines(study: TrainStudy, rows: list[dict[str, Any]], *, narrow: bool) -> Drawing:
    import altair as alt

    names = [arm.name for arm in study.arms]
    width = (NARROW if narrow else WIDE) - 60
    across = scale_of([float(row["tokens"]) for row in rows], from_zero=True)
    up = scale_of([float(row["loss"]) for row in rows], from_zero=False)
    cast, key = Cast(study.arms), legend_of(narrow, names)
    base = alt.Chart(data_of(rows)).encode(
        x=alt.X(
            "tokens:Q",
            scale=across.scale(),
            axis=alt.Axis(title="thousand tokens", values=across.ticks(width, 40), format=TICK_FORMAT, grid=False),
        ),
        y=alt.Y(
            "loss:Q",
            scale=up.scale(),
            axis=alt.Axis(title="nats a token", values=y_ticks(up), format=TICK_FORMAT),
        ),
        color=alt.Color("arm:N", scale=cast.colours(names), legend=key),
    )
    chart: Drawing = alt.layer(
        base.mark_line(strokeWidth=1.5, opacity=0.8),
        base.mark_point(filled=True, size=50, opacity=1).encode(
            shape=alt.Shape("arm:N", scale=cast.marks(names), legend=key)
        ),
    ).properties(width=width, height=HEIGHT)
    return styled(chart, narrow)
