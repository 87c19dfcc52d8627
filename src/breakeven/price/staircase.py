"""Cost as a function of load: replicas are whole machines, so it climbs in steps; how many replicas a load needs.

    C(rate) = standing * max(1, ceil(rate / capacity)) + 3600 * added * rate          dollars an hour

`capacity` is the highest rate that one replica serves under the service level, so headroom is in it already, and
utilisation is rate / (replicas * capacity), never an input. An API has no replicas, and no cost without load.

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
from breakeven.model.quality import QualityScore
from breakeven.price.pricing import (
    JOULES_PER_KWH,
    MTOK,
    Power,
    PricedTraffic,
    check_pricing,
    machine_usd_per_hour,
    usd_per_added_request,
)
from breakeven.results.cost import Api, CostPoint, Own, Pricing
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

ROUNDING = 1e-9
"""Replicas: a load of 3.0000000001 capacities is three, not four."""
LEAST_CAPACITY = 0.01
"""Of the capacity: stands for the low end of an interval that includes serving nothing, whose cost has no upper end."""


@dataclass(frozen=True, slots=True)
class Staircase:
    """Dollars an hour of one candidate over the rate. `capacity_per_s` is infinite and `standing` 0 for an API."""

    standing_usd_per_hour: float
    capacity_per_s: float
    usd_per_added_request: float

    def replicas(self, rate_per_s: ArrayLike) -> Floats:
        """Whole machines at a rate; at least one, even with no load."""
        rate = np.asarray(rate_per_s, dtype=np.float64)
        if math.isinf(self.capacity_per_s):
            return np.zeros_like(rate)
        return np.maximum(1.0, np.ceil(rate / self.capacity_per_s - ROUNDING))

    def usd_per_hour(self, rate_per_s: ArrayLike) -> Floats:
        """Cost at a rate in requests/s; arrays of one shape."""
        rate = np.asarray(rate_per_s, dtype=np.float64)
        return self.standing_usd_per_hour * self.replicas(rate) + 3600.0 * self.usd_per_added_request * rate


def staircase(
    pricing: Pricing, capacity_per_s: float | None, traffic: PricedTraffic, power: Power | None = None
) -> Staircase:
    """The staircase of one candidate. Raises UserError for a price that means nothing or a machine without capacity."""
    check_pricing(pricing)
    if isinstance(pricing, Api):
        return Staircase(0.0, math.inf, usd_per_added_request(pricing, traffic, math.inf))
    if capacity_per_s is None or not 0 < capacity_per_s < math.inf:
        raise UserError("a machine that serves no request under the service level has no price; relax it, or drop it")
    added = usd_per_added_request(pricing, traffic, capacity_per_s, power)
    return Staircase(machine_usd_per_hour(pricing, power), capacity_per_s, added)


def capacity_ends(capacity_per_s: Estimate | None) -> tuple[float | None, float | None, float | None]:
    """Capacity at its value, its low and its high end; the low end never 0 (`LEAST_CAPACITY`)."""
    if capacity_per_s is None:
        return None, None, None
    value = capacity_per_s.value
    return value, max(capacity_per_s.least, LEAST_CAPACITY * value), max(capacity_per_s.most, value)


def cost_points(
    pricing: Pricing,
    capacity_per_s: Estimate | None,
    traffic: PricedTraffic,
    rates: Sequence[float],
    *,
    power: Power | None = None,
    prefill_share: float | None = None,
    quality: QualityScore | None = None,
) -> list[CostPoint]:
    """What each rate in requests/s costs, with intervals from that of the capacity of one replica.

    `prefill_share`: of a replica's time, what prompts take; splits the bill into input and output tokens. `quality`: a
    share of tasks solved, for the cost of a solved one. Empty for a machine that serves nothing. Raises UserError for
    rates not above 0 and prices below it.
    """
    for rate in rates:
        if not 0 < rate < math.inf:
            raise UserError(f"a rate of {rate:g} requests/s has no cost a request; give numbers above 0")
    if not isinstance(pricing, Api) and (capacity_per_s is None or not capacity_per_s.value > 0):
        check_pricing(pricing)
        return []
    value, slow, fast = (staircase(pricing, end, traffic, power) for end in capacity_ends(capacity_per_s))
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
    metered = not isinstance(pricing, Api)
    watts = None
    if power is not None and metered:
        watts = around([_watts(power, stair, n, rate) for stair, n in zip(stairs, replicas, strict=True)])
    input_share, output_share = _shares(pricing, traffic, usd_per_request.value, prefill_share)
    solved = per_solved(quality, usd_per_request, watts)
    return CostPoint(
        rate_per_s=rate,
        replicas=around(replicas) if metered else None,
        utilisation=rate / (replicas[0] * stairs[0].capacity_per_s) if metered else None,
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
    return replicas * power.idle_w + power.joules_per_request(stair.capacity_per_s) * rate


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
