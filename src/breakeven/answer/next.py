"""Which measurements would narrow the answer most: the nearest flip's band, with one doubt at a time made small."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from breakeven.answer.regions import handovers_of
from breakeven.answer.worlds import COST_TIE, Contender, Doubt, ratios, worlds_of
from breakeven.forecast.fleet import FleetCapacity
from breakeven.results.decision import NextMeasurement
from breakeven.results.point import nearest
from breakeven.stats.estimate import Estimate

CALIBRATED = 0.22
"""Half-width of a calibrated machine's predictions: nine in ten unseen steps were nearer (docs/calibrate.md)."""
MEASURED = 0.05
"""Half-width of a capacity measured on the machine itself: a judgement, for runs on a quiet one."""
MOST = 3
LEAST_GAIN = 1.02
"""A measurement that narrows high / low by less than this factor is not worth naming."""


@dataclass(frozen=True, slots=True)
class Option:
    """A measurement that could be made: what it makes smaller, of which candidates, and how."""

    command: str
    why: str
    candidates: frozenset[str]
    shared: float
    own: float


def calibration_of(machine: str, engine: str, candidates: Sequence[str]) -> Option:
    """Probe the machine: removes what all its models are wrong by together."""
    return Option(
        f"breakeven calibrate --engine {engine}    (on {machine})",
        f"{machine} is predicted from its data sheet; probes there replace that for {' and '.join(candidates)}",
        frozenset(candidates),
        CALIBRATED / 2,
        CALIBRATED,
    )


def capacity_of(candidate: str, command: str, machine: str) -> Option:
    """Measure one candidate on its machine by `command`."""
    return Option(
        f"{command}    (on {machine})",
        f"the capacity of {candidate} is predicted; measured, it is known within a few per cent",
        frozenset([candidate]),
        0.0,
        MEASURED,
    )


def narrowest(
    contenders: Sequence[Contender],
    options: Sequence[Option],
    rates: np.ndarray,
    rate_per_s: float,
    seed: int,
) -> list[NextMeasurement]:
    """The options that narrow the answer most, best first, at most MOST of them.

    What they narrow is the flip nearest to the load; where there is none, or some would do away with it, the ratio that
    decides between the best two. A band is only ever held against those of the same thing.
    """
    flips, decides = _bands(contenders, rates, rate_per_s, seed)
    after = [_bands([_with(c, option) for c in contenders], rates, rate_per_s, seed) for option in options]
    flip = next(iter(flips), None)
    if flip is not None and (decides is None or all(flip in known for known, _ in after)):
        before, narrowed = flips[flip], [known.get(flip) for known, _ in after]
    elif decides is not None:
        before, narrowed = decides, [known for _, known in after]
    else:
        return []
    found = [
        NextMeasurement(command=option.command, why=option.why, band_before=before, band_after=band)
        for option, band in zip(options, narrowed, strict=True)
        if band is not None and before / band >= LEAST_GAIN
    ]
    return sorted(found, key=lambda n: n.band_after)[:MOST]


def _with(contender: Contender, option: Option) -> Contender:
    """The contender as it would be known, its fleets' intervals shrunk as its doubt is."""
    doubt = contender.doubt
    if contender.name not in option.candidates or doubt is None or contender.fleet is None or doubt.total <= 0:
        return contender
    less = Doubt(doubt.candidate, doubt.machine, min(doubt.shared, option.shared), min(doubt.own, option.own))
    part, fleet = less.total / doubt.total, contender.fleet
    per_s_K = tuple(_narrowed(each, part) for each in fleet.per_s_K)
    top = fleet.saturation_per_s
    known = FleetCapacity(fleet.sizes_K, per_s_K, None if top is None else _narrowed(top, part))
    return replace(contender, doubt=less, fleet=known)


def _narrowed(span: Estimate, part: float) -> Estimate:
    """The same value, each end at `part` of its way."""
    low, high = span.value - (span.value - span.least) * part, span.value + (span.most - span.value) * part
    return Estimate(value=span.value, low=low, high=high)


def _bands(
    contenders: Sequence[Contender], rates: np.ndarray, rate_per_s: float, seed: int
) -> tuple[dict[tuple[str, str], float], float | None]:
    """high / low of every flip by who hands over to whom, the nearest to the load first; and of what decides there.

    That is the ratio of the best two's costs, or, where these are the same, of their speeds.
    """
    worlds = worlds_of(contenders, rates, seed)
    flips: dict[tuple[str, str], float] = {}
    for h in sorted(handovers_of(worlds, rate_per_s), key=lambda h: abs(math.log(h.rate_per_s.value / rate_per_s))):
        flips.setdefault((h.from_, h.to), h.rate_per_s.most / max(h.rate_per_s.least, 1e-12))
    at = nearest(rates, rate_per_s)
    order = np.argsort(worlds.usd_per_hour_CDR[:, 0, at], kind="stable")
    if len(order) < 2 or not np.isfinite(worlds.usd_per_hour_CDR[order[1], 0, at]):
        return flips, None
    first, second = int(order[0]), int(order[1])
    ratio_D = ratios(worlds.usd_per_hour_CDR[second, :, at], worlds.usd_per_hour_CDR[first, :, at])
    if len(ratio_D) and ratio_D[0] <= 1.0 + COST_TIE:
        ratio_D = worlds.e2e_s_CDR[second, :, at] / worlds.e2e_s_CDR[first, :, at]
    if not np.isfinite(ratio_D).any():
        return flips, None
    low, high = np.quantile(ratio_D[np.isfinite(ratio_D)], [0.025, 0.975])
    return flips, float(high / max(low, 1e-12))
