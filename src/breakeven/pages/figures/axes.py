"""What every curve over load stands on: axes, ticks, bands, marks of a moment, and names at the ends of lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from breakeven.pages.decision_words import load_text
from breakeven.pages.figures.figure import LEVEL, MUTED, NARROW, WIDE, data_of, legend
from breakeven.results.decision import Decision
from breakeven.results.load import LoadPoint, LoadStudy

if TYPE_CHECKING:
    import altair as alt

# Beyond these ratios of largest to smallest, small values would be squeezed together on a linear axis.
LOG_LOAD_FROM = 5.0
LOG_DELAY_FROM = 20.0
TICK_ROOM = 30.0
# Fixed point without trailing zeros: never 1e+2.
TICK_FORMAT = ",~f"
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
class Scale:
    """From `low` to `high`, both on the axis; `low` is above 0 where `log`."""

    log: bool
    low: float
    high: float

    def share(self, value: float) -> float:
        """How far along the axis `value` lies, 0 to 1; beyond the ends it stays at them."""
        if self.log:
            position = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            position = (value - self.low) / (self.high - self.low)
        return min(1.0, max(0.0, position))

    def pixel(self, value: float, length: float) -> float:
        """`share` in pixels along an axis of `length` that runs to the right."""
        return self.share(value) * length

    def scale(self) -> alt.Scale:
        """This axis for Altair."""
        import altair as alt

        return alt.Scale(type="log" if self.log else "linear", domain=[self.low, self.high], nice=False)

    def ticks(self, length: float, room: float = TICK_ROOM) -> list[float]:
        """Round values on the axis, at least `room` pixels apart, 1-2-5 within each decade."""
        if not self.log:
            return _linear_ticks(self.low, self.high, max(2, int(length // (2 * room))))
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        # Ones first, so that they are kept where not all have room.
        wanted = [step * 10.0**decade for step in (1, 2, 5) for decade in decades]
        return self.thinned([tick for tick in wanted if self.low <= tick <= self.high], length, room)

    def thinned(self, values: Sequence[float], length: float, room: float = TICK_ROOM) -> list[float]:
        """Those of `values` that keep `room` pixels to all kept before them, in order of size."""
        kept: list[float] = []
        for value in values:
            if all(abs(self.pixel(value, length) - self.pixel(other, length)) >= room for other in kept):
                kept.append(value)
        return sorted(kept)


def _linear_ticks(low: float, high: float, most: int) -> list[float]:
    rough = (high - low) / most
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(step * index, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def scale_of(values: Sequence[float], from_zero: bool) -> Scale:
    """An axis that holds `values` with a margin: logarithmic where they span much, else linear, from 0 if asked."""
    low, high = min(values), max(values)
    if low > 0 and high / low > LOG_DELAY_FROM:
        return Scale(log=True, low=low / 1.15, high=high * 1.15)
    if from_zero:
        return Scale(log=False, low=0.0, high=1.06 * high or 1.0)
    margin = 0.05 * (high - low) or 0.5
    return Scale(log=False, low=low - margin, high=high + margin)


@dataclass(frozen=True, slots=True)
class Axis:
    """The axis of load. `key`: rate (offered, in `unit`) or streams (requests at once)."""

    key: str
    values: tuple[float, ...]
    unit: str = "req/s"

    @property
    def title(self) -> str:
        """What the axis shows."""
        return f"{self.unit.replace('req/', 'requests/')} offered" if self.key == "rate" else "requests at once"

    @property
    def scale(self) -> Scale:
        """Logarithmic where the loads span much."""
        low, high = min(self.values), max(self.values)
        if low > 0 and high / low >= LOG_LOAD_FROM:
            return Scale(log=True, low=low / 1.12, high=high * 1.12)
        margin = 0.06 * (high - low) or 0.5
        return Scale(log=False, low=low - margin, high=high + margin)

    def of(self, point: LoadPoint) -> float:
        """Where `point` lies."""
        found = point.rate_per_s if self.key == "rate" else point.concurrency
        assert found is not None
        return float(found)

    def x(self, width: float) -> alt.X:
        """This axis for Altair, `width` pixels long, with a tick at each load that has room."""
        import altair as alt

        ticks = self.scale.thinned(sorted(self.values, reverse=True), width)
        axis = alt.Axis(title=self.title, values=ticks, format=TICK_FORMAT, grid=False)
        return alt.X("x:Q", scale=self.scale.scale(), axis=axis)


def axes_of(study: LoadStudy) -> list[tuple[Axis, list[LoadPoint]]]:
    """Each axis on which `study` has two loads or more, with the points on it from low to high."""
    open_loop = [point for point in study.points if point.rate_per_s is not None]
    closed = [point for point in study.points if point.rate_per_s is None and point.concurrency is not None]
    found = []
    for key, points in (("rate", open_loop), ("streams", closed)):
        values = tuple(sorted({float((p.rate_per_s if key == "rate" else p.concurrency) or 0.0) for p in points}))
        if len(values) > 1:
            axis = Axis(key, values, study.workload.offered_unit)
            found.append((axis, sorted(points, key=axis.of)))
    return found


def apart(labels: list[dict[str, Any]], gap: float, height: float) -> list[dict[str, Any]]:
    """`labels` whose "at", in pixels along an axis that runs upwards, becomes pixels from the top, `gap` apart."""
    placed: list[dict[str, Any]] = []
    for label in sorted(labels, key=lambda each: float(each["at"])):
        floor = placed[-1]["at"] + gap if placed else 0.0
        placed.append({**label, "at": max(label["at"], floor)})
    # Pushed beyond the top, the stack is let down again as far as it must be.
    ceiling = height
    for label in reversed(placed):
        label["at"] = min(label["at"], ceiling)
        ceiling = label["at"] - gap
    return [{**label, "at": height - label["at"]} for label in placed]


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


def moment(
    scale: Scale, at: float, words: str, width: float, position: int, dash: list[int] | None = None
) -> list[alt.Chart]:
    """A rule at the load `at` with its words above the plot, `position` lines up."""
    import altair as alt

    middle = scale.pixel(at, width)
    side: Side = "left" if middle < width * 0.3 else "right" if middle > width * 0.7 else "center"
    base = alt.Chart(data_of([{"middle": middle, "words": words}])).encode(x=alt.X("middle:Q", scale=None))
    return [
        base.mark_rule(
            color=MUTED.sentinel, strokeWidth=1.2, strokeDash=alt.Undefined if dash is None else dash
        ).encode(y=alt.value(-4), y2=alt.value(HEIGHT)),
        base.mark_text(align=side, baseline="bottom", color=MUTED.sentinel).encode(
            y=alt.value(-6 - LINE * position), text="words:N"
        ),
    ]


def grey_band(ends: Sequence[tuple[float, float]], opacity: float) -> list[alt.Chart]:
    """Bands over the whole height from the first to the second pixel of each of `ends`; nothing for none."""
    import altair as alt

    if not ends:
        return []
    rows = [{"left": left, "right": right} for left, right in ends]
    return [
        alt.Chart(data_of(rows))
        .mark_rect(color=LEVEL.sentinel, opacity=opacity)
        .encode(x=alt.X("left:Q", scale=None), x2="right:Q", y=alt.value(0), y2=alt.value(HEIGHT))
    ]


def now_words(decision: Decision) -> str:
    """The study's load as a mark on an axis names it."""
    return f"now {load_text(decision.load_per_s)} req/s"


def log_words(x: Scale, y: Scale, of_y: str) -> str:
    """Which axes are logarithmic, as a sentence of a caption; empty where none is."""
    names = [name for name, log in (("load", x.log), (of_y, y.log)) if log]
    return f" Log ax{'es' if len(names) > 1 else 'is'}: {' and '.join(names)}." if names else ""
