"""What every candidate costs and how fast it answers, at every load, in every drawn world.

Legend: C candidates, D draws (the first is the prediction itself), R loads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from breakeven.decide.answer.bills import bills
from breakeven.decide.answer.draws import Doubt, Floats, capacities, factors
from breakeven.price.pricing import Power
from breakeven.price.traffic import PricedTraffic
from breakeven.spec.cost import Pricing
from breakeven.spec.decision import Kind, LatencyPoint
from breakeven.spec.prediction import Span

COST_TIE = 0.01
"""Bills closer than this are the same: then the faster answer wins."""
SPEED_TIE = 0.05
"""Answers closer than this feel the same."""
NOTHING_S = 0.001
UNKNOWN_S = 1e9

Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Contender:
    """A candidate that may be chosen, as the verdict sees it. `capacity` None: an API, without end."""

    name: str
    kind: Kind
    pricing: Pricing
    capacity: Span | None
    traffic: PricedTraffic
    doubt: Doubt | None
    latency: Sequence[LatencyPoint]
    power: Power | None = None
    max_replicas: int | None = None


@dataclass(frozen=True, slots=True)
class Worlds:
    """Costs and speeds of all contenders over the loads, in every draw."""

    names: tuple[str, ...]
    rates_R: Floats
    usd_per_hour_CDR: Floats
    """Infinite where a candidate cannot serve the load."""
    e2e_s_CDR: Floats
    """Median time of an answer; NaN where unknown."""

    winners_DR: Indices
    """Index of the best contender; -1 where none can serve."""


def winners(usd_per_hour_CDR: Floats, e2e_s_CDR: Floats) -> Indices:
    """Who is best in every draw and at every load: the cheapest, and of those within COST_TIE of it the fastest."""
    cheapest_DR = usd_per_hour_CDR.min(axis=0)
    with np.errstate(invalid="ignore"):
        near_CDR = usd_per_hour_CDR <= cheapest_DR * (1.0 + COST_TIE)
    # Unknown speed loses a tie against a known one, and wins against none.
    speed_CDR = np.where(near_CDR, np.nan_to_num(e2e_s_CDR, nan=UNKNOWN_S), np.inf)
    return np.where(np.isfinite(cheapest_DR), speed_CDR.argmin(axis=0), -1)


def worlds_of(contenders: Sequence[Contender], rates_R: Floats, seed: int) -> Worlds:
    """Draw the worlds. `rates_R` in requests/s, ascending, above zero."""
    doubts = [c.doubt or Doubt(c.name, c.name, 0.0, 0.0) for c in contenders]
    factors_DC = factors(doubts, seed)
    costs, speeds = [], []
    for contender, doubt, factor_D in zip(contenders, doubts, factors_DC.T, strict=True):
        capacity_D1 = None
        replicas_DR = np.ones((len(factor_D), len(rates_R)))
        if contender.capacity is not None:
            capacity_D1 = capacities(contender.capacity, doubt.total, factor_D)[:, None]
            with np.errstate(divide="ignore"):
                replicas_DR = np.maximum(np.ceil(rates_R[None, :] / capacity_D1), 1.0)
        hourly = bills(
            contender.pricing, rates_R[None, :], capacity_D1, contender.traffic, contender.power, contender.max_replicas
        )
        hourly_DR = np.broadcast_to(hourly, replicas_DR.shape)
        costs.append(hourly_DR)
        speeds.append(_e2e_s(contender, rates_R[None, :] / replicas_DR, factor_D))
    usd_per_hour_CDR, e2e_s_CDR = np.stack(costs), np.stack(speeds)
    best_DR = winners(usd_per_hour_CDR, e2e_s_CDR)
    return Worlds(tuple(c.name for c in contenders), rates_R, usd_per_hour_CDR, e2e_s_CDR, best_DR)


def _e2e_s(contender: Contender, rate_DR: Floats, factor_D: Floats) -> Floats:
    """Median time of an answer at a replica's load: between the simulated loads, and longer by the draw's factor."""
    if not contender.latency:
        return np.full(rate_DR.shape, np.nan)
    at = np.array([max(p.rate_per_s, 1e-12) for p in contender.latency])
    value = np.array([max(p.e2e_p50_s.value, NOTHING_S) for p in contender.latency])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.exp(np.interp(np.log(rate_DR), np.log(at), np.log(value)) + factor_D[:, None]))
