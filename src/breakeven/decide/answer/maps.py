"""Who wins over load and context, and over load and precision: the study asked again, many times."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from breakeven.decide.answer.regions import SURE
from breakeven.decide.answer.worlds import Worlds
from breakeven.spec.decision import DecisionMap, Kind, MapCell

LOADS_SHOWN = 13
"""Columns of a map."""


def map_of(
    y: str, rows: Sequence[tuple[float | str, Worlds]], kinds: Sequence[tuple[str, Kind]], rates: Sequence[float]
) -> DecisionMap:
    """One row of cells for each value of `y`, of worlds that share contenders' names and hold `rates`."""
    return DecisionMap(
        x="load",
        y=y,
        cells=[_cell(worlds, value, rate, dict(kinds)) for value, worlds in rows for rate in rates],
    )


def shown_rates(low: float, high: float) -> list[float]:
    """Loads of a map's columns, requests/s."""
    return [float(rate) for rate in np.geomspace(low, high, LOADS_SHOWN)]


def _cell(worlds: Worlds, y: float | str, rate: float, kinds: dict[str, Kind]) -> MapCell:
    at = int(np.abs(np.log(worlds.rates_R / rate)).argmin())
    winners_D = worlds.winners_DR[:, at]
    found, counts = np.unique(winners_D, return_counts=True)
    best, share = int(found[counts.argmax()]), float(counts.max() / len(winners_D))
    name = worlds.names[best] if best >= 0 else None
    cost = {
        kind: min(
            (float(worlds.usd_per_hour_CDR[c, 0, at]) for c, n in enumerate(worlds.names) if kinds[n] == kind),
            default=float("inf"),
        )
        for kind in ("dense", "moe")
    }
    both = all(np.isfinite(value) for value in cost.values())
    return MapCell(
        x=rate,
        y=y,
        winner=name,
        kind=kinds[name] if name is not None else None,
        ratio=cost["dense"] / cost["moe"] if both and cost["moe"] > 0 else None,
        certain=share >= SURE,
    )
