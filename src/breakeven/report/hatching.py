"""Diagonal lines over what is not sure: they read on paper and without colour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from breakeven.report.figure import data_of
from breakeven.report.svg import PAPER

if TYPE_CHECKING:
    import altair as alt

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
