"""What the charts of a decision share: one axis of load, the candidates' colours, and names at the ends of lines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from breakeven.pages.decision_words import load_text
from breakeven.pages.figures.axes import LOG_LOAD_FROM, TICK_FORMAT, TICK_ROOM, Scale, apart
from breakeven.pages.figures.figure import MUTED, NARROW, WIDE, data_of, legend, series_of, shapes_of
from breakeven.results.decision import CandidateResult, Decision

if TYPE_CHECKING:
    import altair as alt

Side = Literal["left", "center", "right"]
HEIGHT = 280
LINE = 15
LABEL_GAP = 15
WIDEST_LABEL = 170
# Longer ones would be cut off in what WIDEST_LABEL leaves, and stand in a legend instead.
LONGEST_LABEL = 21
LETTERS_IN_ONE_ROW, LONGEST_NAME = 60, 24
MOST_BANDS = 4
"""Bands of more candidates than this would hide each other."""
CUT = ", cut where they reach far beyond every line."
FAR = 4.0
"""Times the largest value, or below the smallest, up to which bands are drawn."""
LETTER = 7.5
"""Pixels a letter of a name takes at most, nearly always."""


@dataclass(frozen=True, slots=True)
class Cast:
    """The candidates in the order of the study: everyone keeps colour and mark through the whole page."""

    models: Sequence[CandidateResult]

    def colours(self, names: Sequence[str]) -> alt.Scale:
        """The colours of `names` for Altair."""
        import altair as alt

        return alt.Scale(domain=list(names), range=[series_of(self)[name].sentinel for name in names])

    def marks(self, names: Sequence[str]) -> alt.Scale:
        """The marks of `names` for Altair."""
        import altair as alt

        return alt.Scale(domain=list(names), range=[shapes_of(self)[name] for name in names])

    def known(self, names: Iterable[str]) -> list[str]:
        """Those of the candidates that stand among `names`, in the study's order."""
        wanted = set(names)
        return [name for name in series_of(self) if name in wanted]


def cast_of(decision: Decision) -> Cast:
    """The candidates of `decision`."""
    return Cast(decision.candidates)


@dataclass(frozen=True, slots=True)
class Loads:
    """The axis of load in requests per second; `title` says of what."""

    scale: Scale
    title: str

    def x(self, width: float) -> alt.X:
        """This axis for Altair, `width` pixels long, for a field called x."""
        import altair as alt

        # Small loads have long labels, and those need more room.
        longest = max(len(f"{tick:.12f}".rstrip("0")) for tick in self.scale.ticks(width))
        ticks = self.scale.ticks(width, max(TICK_ROOM, LETTER * longest))
        axis = alt.Axis(title=self.title, values=ticks, format=TICK_FORMAT, grid=False)
        return alt.X("x:Q", scale=self.scale.scale(), axis=axis)


def loads_of(rates: Sequence[float], title: str) -> Loads:
    """An axis that holds `rates`, logarithmic where they span much."""
    low, high = min(rates), max(rates)
    if low > 0 and high / low >= LOG_LOAD_FROM:
        return Loads(Scale(log=True, low=low, high=high), title)
    margin = 0.06 * (high - low) or 0.5
    return Loads(Scale(log=False, low=max(0.0, low - margin), high=high + margin), title)


def cut(rows: list[dict[str, Any]], also: Sequence[float] = ()) -> list[dict[str, Any]]:
    """`rows` with bands cut where they reach far beyond all values: a wide one would press every line flat.

    `also`: what else the axis must hold.
    """
    values = [row["value"] for row in rows] + list(also)
    top, bottom = FAR * max(values), min(values) / FAR
    return [{**row, "low": max(row["low"], bottom), "high": min(row["high"], top)} for row in rows]


def fit_beside(words: Sequence[str], narrow: bool) -> list[str]:
    """`words` where they may stand at the right of a plot; none on a phone or when one would have to be cut."""
    return [] if narrow or any(len(text) > LONGEST_LABEL for text in words) else list(words)


def plot_width(words: Sequence[str], narrow: bool) -> float:
    """Pixels of a plot beside which `words` stand."""
    beside = 20 + LETTER * max((len(text) for text in words), default=0)
    return NARROW - 56 if narrow else WIDE - 64 - (min(WIDEST_LABEL, beside) if words else 8)


def end_labels(ends: list[dict[str, Any]], y: Scale, width: float, colour: alt.Color) -> alt.Chart:
    """Names at the right of lines. `ends`: model, words and value of each line's last point; none covers another."""
    import altair as alt

    placed = apart([{**end, "at": y.pixel(end["value"], HEIGHT)} for end in ends], LABEL_GAP, HEIGHT)
    made: alt.Chart = (
        alt.Chart(data_of(placed))
        .mark_text(align="left", dx=10, fontWeight=600, limit=WIDEST_LABEL - 12)
        .encode(x=alt.value(width), y=alt.Y("at:Q", scale=None), text="words:N", color=colour)
    )
    return made


def key_of(narrow: bool, names: Sequence[str], words: Sequence[str], lines_above: int = 0) -> alt.Legend | None:
    """A legend above `lines_above` lines of words, where there is something to tell and no `words` tell it."""
    if words or len(names) < 2:
        return None
    return legend_of(narrow, names, lines_above)


def legend_of(narrow: bool, names: Sequence[str], lines_above: int = 0) -> alt.Legend:
    """A legend in one row, or in one column where long names would run into each other."""
    stacked = narrow or sum(len(name) for name in names) > LETTERS_IN_ONE_ROW or len(max(names, key=len)) > LONGEST_NAME
    key = legend(narrow, columns=1 if stacked else 0)
    key.offset = 14 + LINE * lines_above
    key.labelLimit = 260 if narrow else 500
    return key


def y_ticks(scale: Scale) -> list[float]:
    """Ticks of a vertical axis; a linear one needs them closer to have more than two."""
    return scale.ticks(HEIGHT, 30 if scale.log else 20)


def moment(loads: Loads, at: float, words: str, width: float, position: int) -> list[alt.Chart]:
    """A rule at the load `at` with its words above the plot, `position` lines up."""
    import altair as alt

    middle = loads.scale.pixel(at, width)
    side: Side = "left" if middle < width * 0.3 else "right" if middle > width * 0.7 else "center"
    base = alt.Chart(data_of([{"middle": middle, "words": words}])).encode(x=alt.X("middle:Q", scale=None))
    return [
        base.mark_rule(color=MUTED.sentinel, strokeWidth=1.2, strokeDash=[2, 2] if position == 0 else [1, 0]).encode(
            y=alt.value(-4), y2=alt.value(HEIGHT)
        ),
        base.mark_text(align=side, baseline="bottom", color=MUTED.sentinel).encode(
            y=alt.value(-6 - LINE * position), text="words:N"
        ),
    ]


def now_words(decision: Decision) -> str:
    """The study's load as a mark on an axis names it."""
    return f"now {load_text(decision.load_per_s)} req/s"


def log_words(x: Scale, y: Scale, of_y: str) -> str:
    """Which axes are logarithmic, as a sentence of a caption; empty where none is."""
    names = [name for name, log in (("load", x.log), (of_y, y.log)) if log]
    return f" Log ax{'es' if len(names) > 1 else 'is'}: {' and '.join(names)}." if names else ""
