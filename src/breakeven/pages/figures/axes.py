"""Axes of the curves under load: linear or logarithmic, where a value lies on them, and which ticks they show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from breakeven.results.load import LoadPoint, LoadStudy

if TYPE_CHECKING:
    import altair as alt

# Beyond these ratios of largest to smallest, small values would be squeezed together on a linear axis.
LOG_LOAD_FROM = 5.0
LOG_DELAY_FROM = 20.0
TICK_ROOM = 30.0
# Fixed point without trailing zeros: never 1e+2.
TICK_FORMAT = ",~f"


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
    """The axis of load. `key`: rate (requests/s offered) or streams (requests at once)."""

    key: str
    values: tuple[float, ...]

    @property
    def title(self) -> str:
        """What the axis shows."""
        return "requests/s offered" if self.key == "rate" else "requests at once"

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
            axis = Axis(key, values)
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
