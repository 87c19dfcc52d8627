"""Who is best where: a strip over the load alone, and maps of load by context or precision.

What is not sure lies under diagonal lines, which read on paper and without colour.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from breakeven.pages.decision_words import kind_words, region_line
from breakeven.pages.figures.axes import LETTER, Side, legend_of, loads_of, now_words
from breakeven.pages.figures.figure import (
    INK,
    LEVEL,
    MUTED,
    NARROW,
    PAPER,
    RULE,
    WIDE,
    Cast,
    Figure,
    Missing,
    data_of,
    series_of,
    shapes_of,
    styled,
)
from breakeven.pages.words import NO_DIFFERENCE, grouped, number
from breakeven.results.decision import Decision, DecisionMap, MapCell, Region

if TYPE_CHECKING:
    import altair as alt

    from breakeven.pages.figures.figure import Drawing

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels."""
STEP = 8.0


def hatch(boxes: Sequence[Box]) -> list[alt.Chart]:
    """Lines in the colour of paper over `boxes`; nothing for none."""
    import altair as alt

    rows = [dict(zip(("x1", "y1", "x2", "y2"), stroke, strict=True)) for box in boxes for stroke in strokes(box)]
    if not rows:
        return []
    return [
        alt.Chart(data_of(rows))
        .mark_rule(color=PAPER.sentinel, strokeWidth=1.8, opacity=0.85)
        .encode(x=alt.X("x1:Q", scale=None), y=alt.Y("y1:Q", scale=None), x2="x2:Q", y2="y2:Q")
    ]


def strokes(box: Box) -> list[Box]:
    """Rising diagonals clipped to `box`, each as its two ends, on lines common to all boxes so that they join up."""
    left, top, right, bottom = box
    first = (left + top) // STEP + 1
    last = (right + bottom) // STEP
    found = []
    for index in range(int(first), int(last) + 1):
        # On a rising diagonal x + y stays the same.
        total = index * STEP
        start = (max(left, total - bottom), min(bottom, total - left))
        end = (min(right, total - top), max(top, total - right))
        if end[0] - start[0] > 0.5:
            found.append((*start, *end))
    return found


NOBODY = "nobody can serve it"
OTHERS = {NO_DIFFERENCE: LEVEL, NOBODY: RULE}
"""Answers that are no candidate, and their colours."""
WIDEST_ROW_LABEL = 110
STRIP, TALLEST_CELL, TALLEST_MAP = 30, 34, 320
STRIP_TITLE = "Who is best at which load"
HATCHED = "Hatched: not sure, the intervals allow another answer."
AXES = {"load": "requests/s", "context": "context, tokens", "batch": "sequences at once"}


@dataclass(frozen=True, slots=True)
class MapGrid:
    """A map as rows and columns. `labels` stand on the axes; `cells` hold column and row of each."""

    columns: list[float]
    rows: list[float | str]
    cells: dict[tuple[int, int], MapCell]
    unit: str
    """Of the rows; empty for formats."""

    @property
    def x_labels(self) -> list[str]:
        """One a column."""
        for digits in (2, 3, 6):
            texts = [f"{float(f'{value:.{digits}g}'):,g}" for value in self.columns]
            if len(set(texts)) == len(texts):
                return texts
        return [f"{value:,}" for value in self.columns]

    @property
    def y_labels(self) -> list[str]:
        """One a row, top first."""
        return [value if isinstance(value, str) else f"{value:,.0f} {self.unit}".rstrip() for value in self.rows]


def region_strip(decision: Decision) -> Figure | Missing:
    """One bar over the axis of load, coloured by the best candidate."""
    regions = decision.regions
    ends = [end for region in regions for end in (region.low_per_s, region.high_per_s) if end]
    ends += [point.rate_per_s for candidate in decision.candidates for point in candidate.cost]
    rates = [*ends, decision.load_per_s]
    if not regions or min(rates) == max(rates):
        return Missing(STRIP_TITLE, "No candidate can be told best over a range of loads.")
    return Figure(
        name="regions",
        title=STRIP_TITLE,
        alt=f"{STRIP_TITLE}. " + "; ".join(region_line(region) for region in regions) + ".",
        caption=_strip_caption(regions),
        wide=_strip(decision, rates, narrow=False),
        narrow=_strip(decision, rates, narrow=True),
    )


def _strip_caption(regions: Sequence[Region]) -> str:
    parts = ["The best choice among the candidates that serve the load and keep every constraint."]
    parts += ["Grey: no difference worth your time."] if any(region.winner is None for region in regions) else []
    parts += [HATCHED] if any(not region.certain for region in regions) else []
    return " ".join(parts)


def _strip(decision: Decision, rates: Sequence[float], narrow: bool) -> Drawing:
    import altair as alt

    cast = Cast(decision.candidates)
    width = float(NARROW if narrow else WIDE) - 26
    loads = loads_of(rates, "requests/s")
    rows: list[dict[str, Any]] = [
        {
            "left": loads.scale.pixel(region.low_per_s, width),
            "right": width if region.high_per_s is None else loads.scale.pixel(region.high_per_s, width),
            "winner": region.winner or NO_DIFFERENCE,
        }
        for region in decision.regions
    ]
    names = _answers(cast, [region.winner or NO_DIFFERENCE for region in decision.regions])
    colour = _colour(cast, names, narrow, above=1)
    boxes: list[Box] = [
        (row["left"], 0.0, row["right"], float(STRIP))
        for row, region in zip(rows, decision.regions, strict=True)
        if not region.certain
    ]
    bars = (
        alt.Chart(data_of(rows))
        .mark_rect(stroke=PAPER.sentinel, strokeWidth=1)
        .encode(x=alt.X("left:Q", scale=None), x2="right:Q", y=alt.value(0), y2=alt.value(STRIP), color=colour)
    )
    # Nothing to see, but an axis needs marks that use it.
    axis = alt.Chart(data_of([{"x": loads.scale.low}])).mark_point(opacity=0).encode(x=loads.x(width))
    layers = [axis, bars, *hatch(boxes)]
    layers += _now(loads.scale.pixel(decision.load_per_s, width), now_words(decision), width, STRIP)
    return styled(alt.layer(*layers).properties(width=width, height=STRIP), narrow, right=22)


def decision_maps(decision: Decision) -> list[Figure | Missing]:
    """One figure for each map of `decision`."""
    if not decision.maps:
        return [Missing("Map", "No map was computed: a map needs at least one candidate that can be predicted.")]
    return [_map(decision, each, index) for index, each in enumerate(decision.maps)]


def _map(decision: Decision, found: DecisionMap, index: int) -> Figure | Missing:
    title = f"Who is best, by {found.x} and {found.y}"
    if not found.cells:
        return Missing(title, f"{title}: no place of the map could be computed.")
    grid = _grid(found)
    told = [found_cell for found_cell in found.cells if found_cell.certain]
    caption = ["The small marks tell candidates apart without colour."]
    if len(told) < len(found.cells):
        caption.append(HATCHED)
    return Figure(
        name=f"map-{index + 1}-{found.x}-{found.y}",
        title=title,
        alt=f"{title}. {_said(found)}",
        caption=" ".join(caption),
        wide=_map_chart(decision, found, grid, narrow=False),
        narrow=_map_chart(decision, found, grid, narrow=True),
    )


def _said(found: DecisionMap) -> str:
    """Row by row, runs of cells with one winner."""
    rows = []
    for y, cells in grouped(found.cells, lambda cell: cell.y).items():
        runs: list[str] = []
        last: tuple[str, bool] | None = None
        for cell in sorted(cells, key=lambda each: each.x):
            if (_answer(cell), cell.certain) != last:
                kind = f" ({kind_words(cell.kind)})" if cell.kind else ""
                sure = "" if cell.certain else ", not sure"
                runs.append(f"from {number(cell.x)} {_answer(cell)}{kind}{sure}")
                last = _answer(cell), cell.certain
        rows.append(f"{found.y} {y if isinstance(y, str) else number(y)}: {'; '.join(runs)}.")
    return " ".join(rows)


def _grid(found: DecisionMap) -> MapGrid:
    columns = sorted({cell.x for cell in found.cells})
    numbers = sorted({float(cell.y) for cell in found.cells if not isinstance(cell.y, str)}, reverse=True)
    # Numbers grow upwards as on any axis; formats stand in the order the study gives.
    texts = list(dict.fromkeys(cell.y for cell in found.cells if isinstance(cell.y, str)))
    rows: list[float | str] = [*numbers, *texts]
    places = {(columns.index(cell.x), rows.index(_row(cell))): cell for cell in found.cells}
    return MapGrid(columns, rows, places, "tokens" if found.y == "context" else "")


def _row(cell: MapCell) -> float | str:
    return cell.y if isinstance(cell.y, str) else float(cell.y)


def _map_chart(decision: Decision, found: DecisionMap, grid: MapGrid, narrow: bool) -> Drawing:
    import altair as alt

    cast = Cast(decision.candidates)
    widest = max(len(label) for label in grid.y_labels)
    left = 14 + min(WIDEST_ROW_LABEL, LETTER * widest)
    width = math.floor(((NARROW if narrow else WIDE) - left - 12) / len(grid.columns)) * len(grid.columns)
    tall = min(TALLEST_CELL, TALLEST_MAP // len(grid.rows))
    height = tall * len(grid.rows)
    wide = width / len(grid.columns)
    names = _answers(cast, [_answer(cell) for cell in grid.cells.values()])
    above = 1 if found.x == "load" else 0
    rows = [
        {
            "x": grid.x_labels[column],
            "y": grid.y_labels[row],
            "winner": _answer(cell),
            "certain": cell.certain and cell.winner is not None,
        }
        for (column, row), cell in grid.cells.items()
    ]
    boxes: list[Box] = [
        (column * wide, float(row * tall), (column + 1) * wide, float((row + 1) * tall))
        for (column, row), cell in grid.cells.items()
        if not cell.certain
    ]
    room = 1 + math.floor((9 + LETTER * max(len(label) for label in grid.x_labels)) / wide)
    x_axis = alt.Axis(title=AXES.get(found.x, found.x), values=grid.x_labels[::room], labelAngle=0, ticks=False)
    y_axis = alt.Axis(title=None, ticks=False, domain=False, labelLimit=WIDEST_ROW_LABEL)
    plain = alt.Scale(paddingInner=0, paddingOuter=0)
    base = alt.Chart(data_of(rows)).encode(
        x=alt.X("x:O", sort=grid.x_labels, axis=x_axis, scale=plain),
        y=alt.Y("y:O", sort=grid.y_labels, axis=y_axis, scale=plain),
    )
    shapes = alt.Scale(domain=names, range=[_mark(cast, name) for name in names])
    layers = [
        base.mark_rect(stroke=PAPER.sentinel, strokeWidth=0.6).encode(color=_colour(cast, names, narrow, above)),
        base.transform_filter("datum.certain")
        .mark_point(filled=True, color=PAPER.sentinel, size=22, opacity=0.9)
        .encode(shape=alt.Shape("winner:N", scale=shapes, legend=None)),
        *hatch(boxes),
    ]
    if above:
        at = _place(grid.columns, decision.load_per_s)
        if at is not None:
            layers += _now(at * wide, now_words(decision), width, height)
    return styled(alt.layer(*layers).properties(width=width, height=height), narrow, right=10)


def _place(columns: Sequence[float], value: float) -> float | None:
    """Where `value` lies among columns, in columns from the left edge; None beyond them."""
    if len(columns) < 2 or not columns[0] <= value <= columns[-1] or columns[0] <= 0:
        return None
    for index, (low, high) in enumerate(itertools.pairwise(columns)):
        if value <= high:
            return index + 0.5 + math.log(value / low) / math.log(high / low)
    return None


def _answer(cell: MapCell) -> str:
    """Who wins a cell. Without a winner, costs that could be compared were the same; else nobody can serve it."""
    return cell.winner or (NOBODY if cell.ratio is None else NO_DIFFERENCE)


def _answers(cast: Cast, answers: Sequence[str]) -> list[str]:
    """All answers once: candidates in the study's order, then what is not a candidate."""
    return [*cast.known(answers), *(name for name in OTHERS if name in answers)]


def _colour(cast: Cast, names: Sequence[str], narrow: bool, above: int) -> alt.Color:
    """Candidates in their colours, no winner in grey; the legend always there, for a field holds no names."""
    import altair as alt

    colours = [(OTHERS[name] if name in OTHERS else series_of(cast)[name]).sentinel for name in names]
    key = legend_of(narrow, names, above)
    return alt.Color("winner:N", scale=alt.Scale(domain=list(names), range=colours), legend=key)


def _mark(cast: Cast, name: str) -> str:
    return "circle" if name in OTHERS else shapes_of(cast)[name]


def _now(at: float, words: str, width: float, height: float) -> list[alt.Chart]:
    """The study's load as a rule across, with words above."""
    import altair as alt

    side: Side = "left" if at < width * 0.3 else "right" if at > width * 0.7 else "center"
    row: dict[str, Any] = {"at": at, "words": words}
    base = alt.Chart(data_of([row])).encode(x=alt.X("at:Q", scale=None))
    return [
        base.mark_rule(color=INK.sentinel, strokeWidth=1.4, strokeDash=[2, 2]).encode(
            y=alt.value(-5), y2=alt.value(height)
        ),
        base.mark_text(align=side, baseline="bottom", color=MUTED.sentinel).encode(y=alt.value(-7), text="words:N"),
    ]
