"""The part of a run in which delays had settled, or "none found".

The measured part is cut into equal blocks of time. Two series are looked at: mean TPOT of the requests due in a block,
and requests in flight. From each the ramp is dropped by MSER (White 1997, "An effective truncation heuristic for bias
reduction in simulation output"): at the first cut that leaves a squared standard error within `NEARLY` of the least.
Where the part before the cut differs from the rest by no more than chance would make it, nothing is dropped. Nothing is
either where it begins like the rest: a stall stands alone and must stay in the numbers. A cut past the half of the run
means that it never settled. What is left must not drift: a trend by Mann and Kendall's test at 99 %
that amounts to more than `DRIFT` of the mean says that the queue kept growing, or that the load itself was not steady.

Shapes: B blocks of time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEAST_BLOCKS = 10
DRIFT = 0.2
"""A trend of less than this share of the mean, over what is left, is not worth calling unsettled."""
NEARLY = 1.5
"""The first cut whose squared standard error is within this factor of the least: the least itself wanders in noise."""
_TREND_Z = 2.576
_EVENT_SPREADS = 5.0
"""Blocks further than this many spreads from the second half's median are drawn in before a ramp is looked for."""
_MAD_TO_SD = 1.4826
_RAMP_ERRORS = 3.0
"""Standard errors by which a ramp must differ from what follows: more than for a cut fixed beforehand, since MSER
picks it where they differ most."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Settled:
    """`start`: index of the first block that had settled; None: none found. `reason` in words."""

    start: int | None
    reason: str


def settled(tpot_B: Floats, in_flight_B: Floats) -> Settled:
    """Where a run settled, from its mean TPOT (NaN: no answer in that block) and requests in flight by block."""
    n = len(in_flight_B)
    if n < LEAST_BLOCKS:
        return Settled(None, f"too few requests to tell: {n} blocks of time, {LEAST_BLOCKS} needed")
    series = {"requests in flight": in_flight_B}
    told = np.isfinite(tpot_B)
    if told.sum() >= 0.75 * n:
        # A block without an answer says nothing; the neighbours stand in for it.
        series["TPOT"] = np.interp(np.arange(n), np.flatnonzero(told), tpot_B[told])
    start, late = 0, list[str]()
    for name, values in series.items():
        # Drawn in, a stall after the ramp is not dropped with it; as they are, a short ramp is found better.
        cuts = [cut for each in (values, _clipped(values)) if _is_ramp(each, cut := mser(each))]
        if not cuts:
            continue
        found = min(cuts)
        late += [name] if found >= n // 2 else []
        start = max(start, found)
    if late:
        # Of both the one that plainly moves: the other may only look so.
        name = max(series, key=lambda name: (abs(trend(series[name])), name in late))
        return Settled(None, f"{name} had not settled by the middle of the run{_direction(series[name])}")
    for name, values in series.items():
        drift = trend(values[start:])
        if abs(drift) > DRIFT:
            how = "grew" if drift > 0 else "fell"
            return Settled(None, f"{name} {how} by {abs(drift) * 100:.0f} % to the end of the run")
    if start == 0:
        return Settled(0, "settled from the start")
    return Settled(start, f"the first {start} of {n} blocks of time were still changing")


def mser(values_B: Floats) -> int:
    """How many leading values to drop, at most half of them, so that the rest has nearly the least squared error."""
    n = len(values_B)
    errors = [float(values_B[d:].var()) / (n - d) for d in range(n // 2 + 1)]
    least = min(errors)
    # Constants end in rounding noise, which is not worth dropping anything for.
    scale = float(np.abs(values_B).max()) ** 2
    return next(d for d, error in enumerate(errors) if error <= NEARLY * least + 1e-18 * scale)


def _is_ramp(values_B: Floats, cut: int) -> bool:
    """Whether what MSER would drop differs from the rest by more than chance: in noise it always finds some cut."""
    if cut == 0:
        return False
    ramp, rest = values_B[:cut], values_B[cut:]
    spread = float(rest.std(ddof=1))
    away = ramp - rest.mean()
    # A ramp is furthest off where it begins, and most of it is off. Anything else holds an event, not a ramp.
    if abs(float(away[0])) < _RAMP_ERRORS * spread or abs(float(np.median(away))) < spread:
        return False
    error = spread * math.sqrt(1 / len(ramp) + 1 / len(rest))
    return abs(float(away.mean())) > _RAMP_ERRORS * error


def _clipped(values_B: Floats) -> Floats:
    """`values_B` with blocks far from the second half's median drawn in, so that a stall does not look like a ramp."""
    later = values_B[len(values_B) // 2 :]
    centre = float(np.median(later))
    spread = _MAD_TO_SD * float(np.median(np.abs(later - centre)))
    if spread == 0:
        return values_B
    return np.clip(values_B, centre - _EVENT_SPREADS * spread, centre + _EVENT_SPREADS * spread)


def trend(values_B: Floats) -> float:
    """Change from the first value to the last as a share of the mean, by Sen's slope; 0 where it may be chance.

    Mann 1945 and Kendall 1975 for the test, Sen 1968 for the slope.
    """
    n = len(values_B)
    mean = float(np.abs(values_B).mean()) if n else 0.0
    if n < 4 or mean == 0:
        return 0.0
    i, j = np.triu_indices(n, 1)
    rises = np.sign(values_B[j] - values_B[i])
    score = float(rises.sum())
    sd = math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    if (abs(score) - 1) / sd < _TREND_Z:
        return 0.0
    return float(np.median((values_B[j] - values_B[i]) / (j - i))) * (n - 1) / mean


def _direction(values_B: Floats) -> str:
    drift = trend(values_B)
    if drift == 0:
        return ""
    return ", it kept growing" if drift > 0 else ", it kept falling"
