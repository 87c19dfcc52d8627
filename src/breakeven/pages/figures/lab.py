"""Figures of evaluations and proofs: loss by language, and size beside speed beside loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from breakeven.pages.figures.axes import TICK_FORMAT, Scale, legend_of, scale_of
from breakeven.pages.figures.experts import before_and_after, scores_maps
from breakeven.pages.figures.figure import (
    INK,
    LEVEL,
    NARROW,
    PAPER,
    SERIES,
    WIDE,
    Cast,
    Figure,
    Missing,
    data_of,
    slack,
    styled,
)
from breakeven.pages.lab_words import (
    BITS,
    KL,
    MEASURES,
    LabModel,
    is_unusable,
    labels_of,
    loss,
    loss_interval,
    loss_text,
    measure_of,
    spelled,
    subjects_of,
)
from breakeven.pages.words import value
from breakeven.results.comparison import Comparison
from breakeven.results.lab import Evaluation, ExpertScores, Proof, Training

if TYPE_CHECKING:
    import altair as alt

    from breakeven.pages.figures.figure import Drawing

LOSS_TITLE, LINEUP_TITLE = "What each language lost", "Size, speed and loss"
GAIN_TITLE, CURVE_TITLE = "What each language gained or lost", "Loss while it was trained"
ROW, LINEUP_ROW = 19, 30
CURVE_HEIGHT = 220
SMOOTH = 0.9
"""Of the line through the batches: each step keeps so much of what it was."""
LEAST_KL = 1e-7
"""Left end of an axis of KL: below it two models are one up to the order of their sums."""
WIDEST_NAME = 150


@dataclass(frozen=True, slots=True)
class LabFigures:
    """Every figure, or the sentence that says why there is none."""

    losses: list[Figure | Missing]
    lineup: list[Figure | Missing]
    experts: list[Figure | Missing]
    training: list[Figure | Missing] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Language:
    name: str


def figures_of_lab(
    result: Evaluation | Proof | ExpertScores, others: Sequence[Proof] = (), compared: Comparison | None = None
) -> LabFigures:
    """Build every figure of `result`. Draws nothing yet."""
    if isinstance(result, ExpertScores):
        return LabFigures([], [], scores_maps(result))
    subjects = subjects_of(result, others, compared)
    maps = before_and_after(result) if isinstance(result, Proof) else []
    curve = [loss_curve(result.training)] if isinstance(result, Proof) and result.training is not None else []
    return LabFigures([losses_by_language(subjects)], [lineup(subjects)], maps, curve)


def losses_by_language(subjects: Sequence[LabModel]) -> Figure | Missing:
    """Every model's loss in every language with its interval; a grey tick where its own rounding stands."""
    measure = measure_of(subjects)
    title = LOSS_TITLE if measure != BITS else "Bits a byte by language"
    if any(each.trained for each in subjects):
        title = GAIN_TITLE
    rows = _loss_rows(subjects, measure)
    if not rows:
        return Missing(title, "No text was evaluated, so nothing is known of what a language lost.")
    scale = _scale(rows, measure)
    floor = (
        " Grey tick: a model's KL to itself, which is the engine's own rounding."
        if any("floor" in r for r in rows)
        else ""
    )
    log = " Log axis." if scale.log else ""
    return Figure(
        name="loss",
        title=title,
        alt=f"{title}, {MEASURES[measure]}. "
        + "; ".join(f"{r['model']}, {r['language']}: {r['words']}" for r in rows)
        + ".",
        caption=f"{MEASURES[measure]}, with 95 % intervals over pieces of text.{floor}{log}",
        wide=_loss_chart(rows, scale, narrow=False),
        narrow=_loss_chart(rows, scale, narrow=True),
    )


def _loss_rows(subjects: Sequence[LabModel], measure: str) -> list[dict[str, Any]]:
    rows = []
    for label in labels_of(subjects):
        for subject in subjects:
            one = subject.of(label)
            found = loss(one, measure)
            if one is None or found is None:
                continue
            interval = loss_interval(found, measure, "–")
            row: dict[str, Any] = {
                "model": subject.name,
                "language": spelled(label),
                "value": found.value,
                "short": loss_text(found.value, measure),
                "words": loss_text(found.value, measure) + (f" ({interval})" if interval else ""),
            }
            if found.low is not None and found.high is not None:
                row |= {"low": found.low, "high": found.high}
            if measure == KL and one.kl_floor is not None:
                row["floor"] = one.kl_floor.value
            rows.append(row)
    return rows


def _scale(rows: list[dict[str, Any]], measure: str) -> Scale:
    """One axis for all rows; what lies left of an axis of KL is drawn at its end."""
    ends = [float(row[key]) for row in rows for key in ("value", "low", "high", "floor") if key in row]
    if measure == KL:
        ends = [max(end, LEAST_KL) for end in ends]
    scale = scale_of(ends, from_zero=measure == KL or min(ends) >= 0)
    for row in rows:
        for key in ("value", "low", "high", "floor"):
            if key in row:
                row[key] = min(max(float(row[key]), scale.low), scale.high)
    return scale


def _loss_chart(rows: list[dict[str, Any]], scale: Scale, narrow: bool) -> Drawing:
    import altair as alt

    names = list(dict.fromkeys(str(row["model"]) for row in rows))
    several = len(names) > 1
    cast = Cast([_Language(name) for name in names])
    field = "short" if narrow else "words"
    room = 8.0 * max(len(str(row[field])) for row in rows) + 12
    labels = max(len(str(row["language"])) for row in rows) * 7.5 if not several else 0.0
    width = (NARROW if narrow else WIDE) - room - min(WIDEST_NAME, labels) - 16
    axis = alt.Axis(
        title=None, values=scale.ticks(width, 48), format=TICK_FORMAT, domain=False, ticks=False, gridOpacity=0.7
    )
    x = alt.X("value:Q", scale=scale.scale(), axis=axis)
    y_axis = None if several else alt.Axis(title=None, domain=False, ticks=False, grid=False, labelLimit=WIDEST_NAME)
    y = alt.Y("model:N" if several else "language:N", sort=None, axis=y_axis)
    colour = alt.Color("model:N", scale=cast.colours(names), legend=legend_of(narrow, names) if several else None)
    shape = alt.Shape("model:N", scale=cast.marks(names), legend=legend_of(narrow, names) if several else None)
    base = alt.Chart(data_of(rows)) if not several else alt.Chart()
    base = base.encode(y=y)
    layers = [
        base.transform_filter("isValid(datum.floor)")
        .mark_tick(color=LEVEL.sentinel, thickness=2, size=13)
        .encode(x=alt.X("floor:Q", scale=scale.scale(), axis=axis)),
        base.transform_filter("isValid(datum.low)")
        .mark_rule(strokeWidth=2.5, opacity=0.8)
        .encode(x=alt.X("low:Q", scale=scale.scale(), axis=axis), x2="high:Q", color=colour),
        base.mark_point(filled=True, size=60, opacity=1).encode(x=x, color=colour, shape=shape),
        base.mark_text(align="left").encode(x=alt.value(width + 10), text=f"{field}:N"),
    ]
    drawn: Drawing = alt.layer(*layers).properties(width=width, height=alt.Step(ROW))
    if several:
        languages = list(dict.fromkeys(str(row["language"]) for row in rows))
        header = alt.Header(labelOrient="top", labelAnchor="start", labelAngle=0, labelAlign="left", labelLimit=NARROW)
        drawn = drawn.facet(
            row=alt.Row("language:N", sort=languages, title=None, header=header), data=data_of(rows)
        ).resolve_scale(y="independent")
    return styled(drawn, narrow, slack((str(row[field]) for row in rows), narrow))


def lineup(subjects: Sequence[LabModel]) -> Figure | Missing:
    """A row a model, the source among them: bytes, tokens a second where they were measured, loss by language."""
    measure = measure_of(subjects)
    known = [each for each in subjects if each.bytes is not None or each.tokens_per_s is not None]
    if len(known) < 2:
        return Missing(
            LINEUP_TITLE, "The sizes of fewer than two models are known, so there is nothing to set side by side."
        )
    useless = [each.name for each in subjects if is_unusable(each)]
    losses = _loss_rows([each for each in subjects if each.name not in useless], measure)
    fast = any(each.tokens_per_s is not None for each in subjects)
    said = "; ".join(_said(each, measure) for each in subjects)
    speed = " Speed: tokens a second." if fast else " Speed was not measured here; breakeven compare measures it."
    out = f" Of no use, so without dots: {', '.join(useless)}." if useless else ""
    return Figure(
        name="lineup",
        title=LINEUP_TITLE if fast else "Size and loss",
        alt=f"{LINEUP_TITLE}. {said}.",
        caption=f"Dots: {MEASURES[measure]}, a colour a language; the source has none of its own.{speed}{out}",
        wide=_lineup_chart(subjects, losses, measure, narrow=False),
        narrow=_lineup_chart(subjects, losses, measure, narrow=True),
    )


def _said(subject: LabModel, measure: str) -> str:
    parts = [] if subject.bytes is None else [f"{subject.bytes / 1e6:,.1f} MB"]
    parts += [] if subject.tokens_per_s is None else [f"{value(subject.tokens_per_s)} tokens/s"]
    parts += [
        f"{label} {loss_text(found.value, measure)}"
        for label in labels_of([subject])
        if (found := loss(subject.of(label), measure)) is not None
    ]
    return f"{subject.name}{' (source)' if subject.source else ''}: {', '.join(parts)}"


def _lineup_chart(subjects: Sequence[LabModel], losses: list[dict[str, Any]], measure: str, narrow: bool) -> Drawing:
    import altair as alt

    names = [each.name for each in subjects]
    rows = [{"model": each.name, "value": 0.0 if each.bytes is None else each.bytes / 1e6} for each in subjects]
    sizes = [{**row, "words": f"{row['value']:,.1f} MB" if row["value"] else "not told"} for row in rows]
    speeds: list[dict[str, Any]] = []
    for each in subjects:
        if each.tokens_per_s is not None:
            speed = each.tokens_per_s
            speeds.append({"model": each.name, "value": speed.value, "words": value(speed)})
    labels = min(WIDEST_NAME, 7.5 * max(map(len, names)))
    panels = 1 + bool(speeds) + bool(losses)
    room = 74
    whole = NARROW - 12 if narrow else WIDE - labels - 16 - 22 * (panels - 1)
    bar = whole - labels - room if narrow else whole / panels - room
    dots = whole - labels - 20 if narrow else whole / panels - 12
    height = alt.Step(LINEUP_ROW if not narrow else 22)

    def rows_axis(first: bool) -> alt.Y:
        axis = alt.Axis(title=None, domain=False, ticks=False, grid=False, labelLimit=WIDEST_NAME, minExtent=labels)
        return alt.Y("model:N", sort=names, scale=alt.Scale(domain=names), axis=axis if first or narrow else None)

    def bars(found: list[dict[str, Any]], title: str, first: bool) -> Drawing:
        top = max(row["value"] for row in found) or 1.0
        base = alt.Chart(data_of(found)).encode(
            x=alt.X("value:Q", axis=None, scale=alt.Scale(domain=[0, top], nice=False)), y=rows_axis(first)
        )
        return _titled(
            alt.layer(
                base.mark_bar(height=12, color=LEVEL.sentinel, opacity=0.75),
                base.mark_text(align="left", dx=6).encode(text="words:N"),
            ).properties(width=bar, height=height),
            title,
        )

    drawn = [bars(sizes, "Size", True)]
    drawn += [bars(speeds, "Speed, tokens/s", False)] if speeds else []
    if losses:
        drawn.append(_titled(_dots(losses, measure, dots, rows_axis(False), narrow).properties(height=height), "Loss"))
    # Panels side by side share their rows; on a phone each has its names again.
    joined: Drawing = alt.vconcat(*drawn, spacing=14) if narrow else alt.hconcat(*drawn, spacing=22)
    return styled(joined.resolve_scale(color="shared"), narrow, right=12)


def _titled(chart: Drawing, title: str) -> Drawing:
    import altair as alt

    named: Drawing = chart.properties(
        title=alt.TitleParams(title, anchor="start", fontSize=12, fontWeight=600, color=INK.sentinel, offset=4)
    )
    return named


def _dots(losses: list[dict[str, Any]], measure: str, width: float, y: alt.Y, narrow: bool) -> Drawing:
    import altair as alt

    rows = [dict(row) for row in losses]
    scale = _scale(rows, measure)
    languages = list(dict.fromkeys(str(row["language"]) for row in rows))
    cast = Cast([_Language(name) for name in languages])
    key = legend_of(narrow, languages)
    if not narrow:
        key.columns, key.orient = min(3, len(languages)), "bottom"
    else:
        key.columns, key.orient, key.direction = 3, "bottom", "horizontal"
    axis = alt.Axis(
        title=None, values=scale.ticks(width, 48), format=TICK_FORMAT, domain=False, ticks=False, gridOpacity=0.7
    )
    return alt.layer(
        alt.Chart(data_of(rows))
        .mark_point(filled=True, size=60, opacity=0.9)
        .encode(
            x=alt.X("value:Q", scale=scale.scale(), axis=axis),
            y=y,
            color=alt.Color("language:N", scale=cast.colours(languages), legend=key),
            shape=alt.Shape("language:N", scale=cast.marks(languages), legend=key),
        )
    ).properties(width=width)


def loss_curve(told: Training) -> Figure | Missing:
    """The batches' loss by step, smoothed, and the text that chose the checkpoint, with the one that was kept."""
    if len(told.losses) < 2:
        return Missing(CURVE_TITLE, "Fewer than two steps were told, so there is no curve.")
    smooth, value_now = [], told.losses[0][1]
    for step, found in told.losses:
        value_now = SMOOTH * value_now + (1 - SMOOTH) * found
        smooth.append({"step": step, "value": value_now})
    chosen = [
        {"step": step, "value": found, "kept": step == told.best_step, "words": f"kept: {found:.3f}"}
        for step, found in told.chosen
    ]
    first, last = smooth[0], smooth[-1]
    kept = f" Step {told.best_step} was kept." if told.best_step is not None else ""
    points = " Points: the text that chose the checkpoint; the filled one was kept." if chosen else ""
    return Figure(
        name="curve",
        title=CURVE_TITLE,
        alt=f"{CURVE_TITLE}, nats a token: {first['value']:.3f} at step {first['step']:.0f}, {last['value']:.3f} at "
        f"step {last['step']:.0f}.{kept}",
        caption=f"Nats a token by step. Line: the batches' loss, smoothed.{points}",
        wide=_curve(smooth, chosen, narrow=False),
        narrow=_curve(smooth, chosen, narrow=True),
    )


def _curve(smooth: list[dict[str, Any]], chosen: list[dict[str, Any]], narrow: bool) -> Drawing:
    import altair as alt

    width = (NARROW if narrow else WIDE) - 60.0
    across = Scale(log=False, low=0.0, high=max(float(row["step"]) for row in smooth))
    up = scale_of([float(row["value"]) for row in (*smooth, *chosen)], from_zero=False)
    x = alt.X(
        "step:Q",
        scale=across.scale(),
        axis=alt.Axis(title="step", values=across.ticks(width, 48), format=TICK_FORMAT, grid=False),
    )
    y = alt.Y(
        "value:Q",
        scale=up.scale(),
        axis=alt.Axis(title=None, values=up.ticks(CURVE_HEIGHT, 20), format=TICK_FORMAT, domain=False, ticks=False),
    )
    layers: list[Any] = [alt.Chart(data_of(smooth)).mark_line(color=LEVEL.sentinel, strokeWidth=1.6).encode(x=x, y=y)]
    if chosen:
        base = alt.Chart(data_of(chosen)).encode(x=x, y=y)
        layers += [
            base.mark_point(color=SERIES[0].sentinel, fill=PAPER.sentinel, size=60, opacity=1, strokeWidth=2),
            base.transform_filter("datum.kept").mark_point(color=SERIES[0].sentinel, filled=True, size=70, opacity=1),
            base.transform_filter("datum.kept").mark_text(align="right", dy=-12).encode(text="words:N"),
        ]
    return styled(alt.layer(*layers).properties(width=width, height=CURVE_HEIGHT), narrow, right=14)
