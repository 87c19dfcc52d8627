"""Who is cheapest over a range of loads: exact, from where the staircases step and their lines cross.

Between two steps every cost is a line in the rate, so the winner changes only at a step or where two lines meet. All
of these places are computed; nothing is sampled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from breakeven.price.staircase import ROUNDING, Floats, Staircase

MOST_STEPS = 20_000
"""Steps of one staircase looked at; the range is cut there: beyond so many machines one more hardly shows."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Rates from `low` to `high`, the low end excluded, where one candidate is cheapest. `winner` None: a tie."""

    low: float
    high: float
    winner: int | None


def winners(stairs: Sequence[Staircase], low: float, high: float, tie: float = 0.0) -> list[Stretch]:
    """The cheapest of `stairs` over the rates from `low` to `high`, as neighbouring stretches in order.

    `winner` is an index into `stairs`. `tie`: who is dearer by no more than this share ties with the cheapest.
    """
    if not 0 <= low < high < math.inf:
        raise ValueError(f"a range of loads has two ends, 0 <= low < high; found {low:g} to {high:g}")
    high = max(min([high, *(MOST_STEPS * stair.capacity_per_s for stair in stairs)]), math.nextafter(low, math.inf))
    edges = _with_crossings(stairs, _steps(stairs, low, high), tie)
    costs = np.stack([stair.usd_per_hour((edges[:-1] + edges[1:]) / 2) for stair in stairs])
    cheapest = np.argmin(costs, axis=0)
    least = np.min(costs, axis=0)
    # Rounding must not make a winner of one of two equal costs.
    near = np.sum(costs <= (1 + tie + ROUNDING) * least + 1e-15, axis=0)
    index = np.where(near > 1, -1, cheapest)
    starts = np.flatnonzero(np.concatenate(([True], index[1:] != index[:-1])))
    ends = np.append(starts[1:], len(index))
    return [
        Stretch(float(edges[start]), float(edges[end]), None if index[start] < 0 else int(index[start]))
        for start, end in zip(starts, ends, strict=True)
    ]


def _steps(stairs: Sequence[Staircase], low: float, high: float) -> Floats:
    """Both ends and every rate between them at which some candidate needs one more machine."""
    edges = [np.array([low, high])]
    for stair in stairs:
        if math.isfinite(stair.capacity_per_s):
            first, last = math.ceil(low / stair.capacity_per_s), math.floor(high / stair.capacity_per_s)
            edges.append(np.arange(max(first, 1), last + 1) * stair.capacity_per_s)
    found = np.unique(np.concatenate(edges))
    found = found[(found >= low) & (found <= high)]
    # Steps of two candidates that differ by rounding alone are one.
    keep = np.concatenate(([True], np.diff(found) > ROUNDING * found[1:]))
    kept: Floats = found[keep]
    kept[-1] = high
    return kept if len(kept) > 1 else np.array([low, high])


def _with_crossings(stairs: Sequence[Staircase], edges: Floats, tie: float) -> Floats:
    """`edges` and every rate between them where one candidate's cost becomes (1 + tie) times another's."""
    middles = (edges[:-1] + edges[1:]) / 2
    standing = [stair.standing_usd_per_hour * stair.replicas(middles) for stair in stairs]
    found = [edges]
    for i, a in enumerate(stairs):
        for j, b in enumerate(stairs):
            if i == j:
                continue
            slope = 3600.0 * (a.usd_per_added_request - (1 + tie) * b.usd_per_added_request)
            if slope == 0.0:
                continue
            with np.errstate(over="ignore"):  # two slopes all but equal: lines that meet beyond every range
                crossing = ((1 + tie) * standing[j] - standing[i]) / slope
            found.append(crossing[(crossing > edges[:-1]) & (crossing < edges[1:])])
    return np.unique(np.concatenate(found))
