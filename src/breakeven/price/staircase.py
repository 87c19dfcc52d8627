"""Cost as a function of load: replicas are whole machines, so it climbs in steps; how many replicas a load needs.

    C(rate) = standing * n(rate) + 3600 * added * rate          dollars an hour

`n` is the fewest replicas that carry the rate together under the service level (`forecast.fleet`), so headroom is in it
already. Utilisation is the share of their saturation throughput in use, rate / (n * saturation), never an input; where
saturation is not known, the most that replicas carry stands for it. An API has no replicas, and no cost without load.

What people want is tasks solved, not tokens:

    usd per solved task = usd per request / share solved         (a failed task costs as much as a solved one)
    intelligence per dollar = its inverse                        tasks solved for one dollar
    intelligence per watt = share solved / mean power            (the measure of arXiv 2511.07885)

How long answers get differs between models more than speed does: a candidate's own mean output length belongs in its
traffic, and is in the cost of its requests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from breakeven.errors import UserError
from breakeven.forecast.fleet import FleetCapacity, carried, needed
from breakeven.model.quality.scores import QualityScore
from breakeven.price.pricing import (
    JOULES_PER_KWH,
    MTOK,
    Power,
    PricedTraffic,
    check_pricing,
    machine_usd_per_hour,
    usd_per_added_request,
)
from breakeven.results.cost import ENDLESS, Api, CostPoint, Own, Pricing
from breakeven.stats.estimate import Estimate, around


@dataclass(frozen=True, slots=True, kw_only=True)
class PerSolved:
    """None: no share of solved tasks is known, or no power."""

    usd_per_solved: Estimate | None = None
    solved_per_usd: Estimate | None = None
    solved_share_per_w: Estimate | None = None


def per_solved(quality: QualityScore | None, usd_per_request: Estimate, power_w: Estimate | None = None) -> PerSolved:
    """Cost of a solved task under `quality`; nothing where that is a guess from size, which is no share of tasks."""
    share = solved_share(quality)
    if share is None or not share.least > 0:
        return PerSolved()
    cost = over(usd_per_request, share)
    return PerSolved(
        usd_per_solved=cost,
        solved_per_usd=over(share, usd_per_request) if usd_per_request.least > 0 else None,
        solved_share_per_w=over(share, power_w) if power_w is not None and power_w.least > 0 else None,
    )


def solved_share(quality: QualityScore | None) -> Estimate | None:
    """Share of tasks solved, between 0 and 1; None where quality is unknown or only guessed from size."""
    if quality is None or quality.how not in ("own", "published") or quality.value is None:
        return None
    if not 0 < quality.value <= 1:
        return None
    low = quality.value if quality.low is None else quality.low
    high = quality.value if quality.high is None else quality.high
    return Estimate(value=quality.value, low=low, high=min(1.0, high))


def over(top: Estimate, bottom: Estimate) -> Estimate:
    """The quotient of two independent intervals, at their ends: never too narrow."""
    return Estimate(value=top.value / bottom.value, low=top.least / bottom.most, high=top.most / bottom.least)


Floats = NDArray[np.float64]

LEAST_CAPACITY = 0.01
"""Of the capacity: stands for the low end of an interval that includes serving nothing, whose cost has no upper end."""
MOST_STEPS = 20_000
"""Replicas of one staircase looked at: beyond so many machines one more hardly shows."""


@dataclass(frozen=True, slots=True)
class FleetCurve:
    """What fleets of these sizes carry, requests/s, at one place of an interval. `saturation_per_s`: of one replica."""

    sizes_K: tuple[int, ...]
    per_s_K: tuple[float, ...]
    saturation_per_s: float = math.inf

    @property
    def serves(self) -> bool:
        """Whether any number of replicas carries anything."""
        return max(self.per_s_K) > 0

    @property
    def full_per_s(self) -> float:
        """Requests/s of one replica that is busy all the time; the most that one carries where nobody knows."""
        if math.isfinite(self.saturation_per_s):
            return self.saturation_per_s
        return max(per_s / size for size, per_s in zip(self.sizes_K, self.per_s_K, strict=True))

    def carried(self, replicas: ArrayLike) -> Floats:
        """Requests/s that so many replicas carry together."""
        return carried(self.sizes_K, self.per_s_K, self.saturation_per_s, replicas)

    def needed(self, rate_per_s: ArrayLike) -> Floats:
        """The fewest replicas for a rate."""
        return needed(self.sizes_K, self.per_s_K, self.saturation_per_s, rate_per_s)


def in_proportion(capacity_per_s: Estimate) -> FleetCapacity:
    """A fleet of which one replica alone is known: n of them are taken to carry n times as much."""
    return FleetCapacity((1,), (capacity_per_s,))


def serves(fleet: FleetCapacity) -> bool:
    """Whether any number of replicas carries anything under the service level, as predicted."""
    return any(each.value > 0 for each in fleet.per_s_K)


def endless(fleet: FleetCapacity) -> str | None:
    """That a bill has no upper end, as the largest fleet known may carry nothing; None: it has one."""
    largest = fleet.per_s_K[-1]
    if not largest.value > 0 or largest.least >= LEAST_CAPACITY * largest.value:
        return None
    return (
        f"{ENDLESS}: at the low end of its interval no fleet that was looked at keeps the service level, and what "
        f"stands there is for {LEAST_CAPACITY:.0%} of the capacity"
    )


def curve_ends(fleet: FleetCapacity) -> tuple[FleetCurve, FleetCurve, FleetCurve]:
    """The fleet at its value, its low and its high end; the low end never 0 (`LEAST_CAPACITY`)."""
    top = fleet.saturation_per_s
    value = tuple(each.value for each in fleet.per_s_K)
    low = tuple(max(each.least, LEAST_CAPACITY * each.value) for each in fleet.per_s_K)
    high = tuple(max(each.most, each.value) for each in fleet.per_s_K)
    tops = (math.inf,) * 3 if top is None else (top.value, max(top.least, LEAST_CAPACITY * top.value), top.most)
    value_of, low_of, high_of = (
        FleetCurve(fleet.sizes_K, per_s, full) for per_s, full in zip((value, low, high), tops, strict=True)
    )
    return value_of, low_of, high_of


def curve_at(fleet: FleetCapacity, at: float) -> FleetCurve:
    """The fleet `at` of the way to its high end, as logarithms (-1: at its low end)."""
    value, low, high = curve_ends(fleet)
    end, share = high if at > 0 else low, abs(at)
    moved = tuple(v * (e / v) ** share if v > 0 else share * e for v, e in zip(value.per_s_K, end.per_s_K, strict=True))
    full = value.saturation_per_s
    if math.isfinite(full) and full > 0:
        full *= (end.saturation_per_s / full) ** share
    return FleetCurve(fleet.sizes_K, moved, full)


def scaled(fleet: FleetCapacity, factor: float) -> FleetCapacity:
    """The same fleet of replicas `factor` times as fast."""
    top = fleet.saturation_per_s
    per_s_K = tuple(each.scaled(factor) for each in fleet.per_s_K)
    return FleetCapacity(fleet.sizes_K, per_s_K, None if top is None else top.scaled(factor))


@dataclass(frozen=True, slots=True)
class Staircase:
    """Dollars an hour of one candidate over the rate. `curve` is None and `standing` 0 for an API."""

    standing_usd_per_hour: float
    curve: FleetCurve | None
    usd_per_added_request: float

    def replicas(self, rate_per_s: ArrayLike) -> Floats:
        """Whole machines at a rate; at least one, even with no load."""
        rate = np.asarray(rate_per_s, dtype=np.float64)
        return np.zeros_like(rate) if self.curve is None else self.curve.needed(rate)

    def usd_per_hour(self, rate_per_s: ArrayLike) -> Floats:
        """Cost at a rate in requests/s; arrays of one shape."""
        rate = np.asarray(rate_per_s, dtype=np.float64)
        return self.standing_usd_per_hour * self.replicas(rate) + 3600.0 * self.usd_per_added_request * rate

    def steps(self, low_per_s: float, high_per_s: float) -> Floats:
        """Rates from `low_per_s` to `high_per_s` above which one more machine is needed, ascending."""
        if self.curve is None:
            return np.empty(0)
        first, last = np.minimum(self.curve.needed([low_per_s, high_per_s]), MOST_STEPS)
        found = self.curve.carried(np.arange(first, last + 1))
        return found[(found >= low_per_s) & (found <= high_per_s)]

    @property
    def most_per_s(self) -> float:
        """The load of `MOST_STEPS` machines."""
        return math.inf if self.curve is None else float(self.curve.carried(MOST_STEPS))


def staircase(
    pricing: Pricing, curve: FleetCurve | None, traffic: PricedTraffic, power: Power | None = None
) -> Staircase:
    """The staircase of one candidate. Raises UserError for a price that means nothing or a machine without capacity."""
    check_pricing(pricing)
    if isinstance(pricing, Api):
        return Staircase(0.0, None, usd_per_added_request(pricing, traffic, math.inf))
    if curve is None or not curve.serves:
        raise UserError("a machine that serves no request under the service level has no price; relax it, or drop it")
    added = usd_per_added_request(pricing, traffic, curve.full_per_s, power)
    return Staircase(machine_usd_per_hour(pricing, power), curve, added)


def cost_points(
    pricing: Pricing,
    fleet: FleetCapacity | None,
    traffic: PricedTraffic,
    rates: Sequence[float],
    *,
    power: Power | None = None,
    prefill_share: float | None = None,
    quality: QualityScore | None = None,
) -> list[CostPoint]:
    """What each rate in requests/s costs, with intervals from those of what fleets carry.

    `prefill_share`: of a replica's time, what prompts take; splits the bill into input and output tokens. `quality`: a
    share of tasks solved, for the cost of a solved one. Empty for a machine that serves nothing. Raises UserError for
    rates not above 0 and prices below it.
    """
    for rate in rates:
        if not 0 < rate < math.inf:
            raise UserError(f"a rate of {rate:g} requests/s has no cost a request; give numbers above 0")
    if not isinstance(pricing, Api) and (fleet is None or not serves(fleet)):
        check_pricing(pricing)
        return []
    curves = (None, None, None) if fleet is None else curve_ends(fleet)
    value, slow, fast = (staircase(pricing, curve, traffic, power) for curve in curves)
    return [_point(pricing, traffic, rate, (value, fast, slow), power, prefill_share, quality) for rate in rates]


def _point(
    pricing: Pricing,
    traffic: PricedTraffic,
    rate: float,
    stairs: tuple[Staircase, Staircase, Staircase],
    power: Power | None,
    prefill_share: float | None,
    quality: QualityScore | None,
) -> CostPoint:
    """`stairs` at the capacity's value, and where it is cheapest and dearest."""
    usd_per_hour = around([float(stair.usd_per_hour(rate)) for stair in stairs])
    usd_per_request = usd_per_hour.scaled(1 / (3600 * rate))
    replicas = [float(stair.replicas(rate)) for stair in stairs]
    curve = stairs[0].curve
    metered = not isinstance(pricing, Api)
    watts = None
    if power is not None and metered:
        watts = around([_watts(power, stair, n, rate) for stair, n in zip(stairs, replicas, strict=True)])
    input_share, output_share = _shares(pricing, traffic, usd_per_request.value, prefill_share)
    solved = per_solved(quality, usd_per_request, watts)
    return CostPoint(
        rate_per_s=rate,
        replicas=around(replicas) if metered else None,
        utilisation=None if curve is None else rate / (replicas[0] * curve.full_per_s),
        capacity_used=None if curve is None else rate / float(curve.carried(replicas[0])),
        usd_per_hour=usd_per_hour,
        usd_per_request=usd_per_request,
        usd_per_mtok_output=usd_per_request.scaled(MTOK / traffic.output_tokens),
        usd_per_mtok_input_share=input_share,
        usd_per_mtok_output_share=output_share,
        usd_per_conversation=usd_per_request.scaled(traffic.turns) if traffic.turns > 1 else None,
        usd_per_solved=solved.usd_per_solved,
        solved_per_usd=solved.solved_per_usd,
        solved_share_per_w=solved.solved_share_per_w,
        power_w=watts,
        joules_per_output_token=None if watts is None else watts.scaled(1 / (rate * traffic.output_tokens)),
        energy_usd_per_hour=watts.scaled(3600 / JOULES_PER_KWH * pricing.usd_per_kwh)
        if watts is not None and isinstance(pricing, Own)
        else None,
    )


def _watts(power: Power, stair: Staircase, replicas: float, rate: float) -> float:
    assert stair.curve is not None
    return replicas * power.idle_w + power.joules_per_request(stair.curve.full_per_s) * rate


def _shares(
    pricing: Pricing, traffic: PricedTraffic, usd_per_request: float, prefill_share: float | None
) -> tuple[float | None, float | None]:
    """$/Mtok of input and of output when the bill is split between them; an API splits it itself."""
    if isinstance(pricing, Api):
        output_usd = traffic.output_tokens * pricing.usd_per_mtok_output / MTOK
        return (usd_per_request - output_usd) * MTOK / traffic.prompt_tokens, pricing.usd_per_mtok_output
    if prefill_share is None:
        return None, None
    return (
        prefill_share * usd_per_request * MTOK / traffic.prompt_tokens,
        (1 - prefill_share) * usd_per_request * MTOK / traffic.output_tokens,
    )
