"""Which measurements would narrow the answer most: the nearest flip's band, with one doubt at a time made small."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from breakeven.answer.regions import handovers_of
from breakeven.answer.worlds import COST_TIE, Contender, Doubt, worlds_of
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
    """The options that narrow the answer most, best first, at most MOST of them."""
    before = _band(contenders, rates, rate_per_s, seed)
    found = []
    for option in options:
        known = [_with(c, option) for c in contenders]
        after = _band(known, rates, rate_per_s, seed)
        if before is not None and after is not None and before / after >= LEAST_GAIN:
            found.append(NextMeasurement(command=option.command, why=option.why, band_before=before, band_after=after))
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


def _band(contenders: Sequence[Contender], rates: np.ndarray, rate_per_s: float, seed: int) -> float | None:
    """high / low of the flip nearest to the load; where there is none, of the ratio that decides between the best two.

    That is their costs, or, where these are the same, their speeds.
    """
    worlds = worlds_of(contenders, rates, seed)
    handovers = handovers_of(worlds)
    if handovers:
        near = min(handovers, key=lambda h: abs(math.log(h.rate_per_s.value / rate_per_s)))
        return near.rate_per_s.most / max(near.rate_per_s.least, 1e-12)
    at = nearest(rates, rate_per_s)
    order = np.argsort(worlds.usd_per_hour_CDR[:, 0, at])
    if len(order) < 2 or not np.isfinite(worlds.usd_per_hour_CDR[order[1], 0, at]):
        return None
    first, second = int(order[0]), int(order[1])
    ratio_D = worlds.usd_per_hour_CDR[second, :, at] / worlds.usd_per_hour_CDR[first, :, at]
    if ratio_D[0] <= 1.0 + COST_TIE:
        ratio_D = worlds.e2e_s_CDR[second, :, at] / worlds.e2e_s_CDR[first, :, at]
    if not np.isfinite(ratio_D).any():
        return None
    low, high = np.quantile(ratio_D[np.isfinite(ratio_D)], [0.025, 0.975])
    return float(high / max(low, 1e-12))
