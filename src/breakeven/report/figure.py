"""What a figure is, and the look that all of them share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from breakeven.report.svg import FONT, INK, LEVEL, MUTED, RULE, SERIES, SHAPES, Role

if TYPE_CHECKING:
    import altair as alt

    Drawing = alt.Chart | alt.LayerChart | alt.FacetChart | alt.VConcatChart

# Widths in CSS pixels of the whole drawing: a column of text, and a phone of 360 less its margins.
WIDE, NARROW = 640, 326
WIDE_TEXT, NARROW_TEXT = 12, 11


@dataclass(frozen=True)
class Figure:
    """A chart with everything that must stand beside it.

    `alt` says in words what the picture shows. `narrow` is drawn for a phone; None when the wide one can shrink.
    """

    name: str
    """File name without suffix."""
    title: str
    alt: str
    caption: str
    wide: Drawing
    narrow: Drawing | None


@dataclass(frozen=True, slots=True)
class Missing:
    """A figure that was left out, and the sentence that says why."""

    title: str
    why: str


class Named(Protocol):
    """Anything with a name, such as a model."""

    @property
    def name(self) -> str:
        """What it is called in the study."""


class Study(Protocol):
    """Any result that is about models: a comparison, or a run under load."""

    @property
    def models(self) -> Sequence[Named]:
        """The candidates, in the order given."""


def series_of(result: Study) -> dict[str, Role]:
    """The colour of each model, the same in every figure of a page."""
    names = dict.fromkeys(model.name for model in result.models)
    return {name: SERIES[index % len(SERIES)] for index, name in enumerate(names)}


def shapes_of(result: Study) -> dict[str, str]:
    """The mark of each model, for print and for those who do not see the colour."""
    names = dict.fromkeys(model.name for model in result.models)
    return {name: SHAPES[index % len(SHAPES)] for index, name in enumerate(names)}


def legend(narrow: bool, columns: int = 0) -> alt.Legend:
    """A legend above the plot, without title. `columns` 0: one row (one column when narrow)."""
    import altair as alt

    return alt.Legend(
        title=None,
        orient="top",
        direction="vertical" if narrow and not columns else "horizontal",
        columns=columns or (1 if narrow else 0),
        labelLimit=NARROW - 90 if narrow else 260,
        symbolStrokeWidth=0,
        symbolOpacity=1,
        columnPadding=30,
        symbolSize=90,
        offset=14,
        padding=0,
    )


def data_of(rows: list[dict[str, Any]]) -> alt.InlineData:
    """Rows as data that Altair does not touch."""
    import altair as alt

    return alt.InlineData(values=rows)


def slack(words: Iterable[str], narrow: bool) -> float:
    """Pixels to add at the right of labels: the reader's font may be wider than the one they were measured in."""
    return 0.17 * (NARROW_TEXT if narrow else WIDE_TEXT) * max((len(word) for word in words), default=0)


def styled(chart: Drawing, narrow: bool, right: float = 2) -> Drawing:
    """Apply the common look: system font, quiet axes, no frame, transparent ground. `right`: padding in pixels."""
    size = NARROW_TEXT if narrow else WIDE_TEXT
    axis = {
        "labelFont": FONT,
        "titleFont": FONT,
        "labelFontSize": size,
        "titleFontSize": size,
        "titleFontWeight": "normal",
        "labelColor": MUTED.sentinel,
        "titleColor": MUTED.sentinel,
        "gridColor": RULE.sentinel,
        "domainColor": LEVEL.sentinel,
        "tickColor": LEVEL.sentinel,
    }
    words = {"labelFont": FONT, "labelFontSize": size, "labelColor": INK.sentinel}
    configured: Drawing = chart.configure(
        background="transparent",
        font=FONT,
        padding={"left": 2, "right": right, "top": 4, "bottom": 4},
        axis=axis,
        legend=words,
        header={**words, "labelFontWeight": 600, "labelPadding": -8},
        text={"font": FONT, "fontSize": size, "color": INK.sentinel},
        view={"stroke": None},
        facet={"spacing": 14},
        aria=False,
    )
    return configured
