"""What may be wrong, drawn many times, and what every candidate costs and how fast it answers in each such world.

A verdict's bands come from here. Each draw is one possible world: every machine's profile is off by one factor, every
model by one more. A difference between two models on one machine keeps only the second, which is why it is known
better than either speed.

A candidate's bill for whole arrays of loads and capacities is `price.staircase`, drawn many times.

Legend: C candidates, D draws (the first is the prediction itself), R loads.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from breakeven.forecast.constants import Error
from breakeven.price.pricing import JOULES_PER_KWH, Power, PricedTraffic, machine_usd_per_hour, usd_per_added_request
from breakeven.price.staircase import ROUNDING
from breakeven.results.cost import Api, Own, Pricing
from breakeven.results.decision import Kind, LatencyPoint
from breakeven.stats.estimate import Estimate, bracketed

Floats = NDArray[np.float64]

DRAWS = 400
Z95 = 1.96
"""Half-widths of 95 % intervals are this many standard deviations."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """How wrong the step times of one candidate may be, as half-widths of ln(true / predicted) at 95 %.

    `machine` names what is shared: candidates with the same profile are wrong together by `shared`, each by `own` more.
    """

    candidate: str
    machine: str
    shared: float
    own: float

    @property
    def total(self) -> float:
        """Half-width of both together."""
        return float(np.hypot(self.shared, self.own))


def doubt_of(candidate: str, machine: str, error: Error) -> Doubt:
    """Split a profile's error into what models on that machine share and what is a model's own."""
    own = min(error.between_models, error.log_half_width)
    return Doubt(candidate, machine, float(np.sqrt(error.log_half_width**2 - own**2)), own)


def factors(doubts: Sequence[Doubt], seed: int, draws: int = DRAWS) -> Floats:
    """ln(true step time / predicted), (draws, candidates). The first draw is 0: the prediction itself.

    Streams are named by machine and candidate, so that leaving a candidate out changes nobody else's draws.
    """
    found = np.zeros((draws, len(doubts)))
    for i, doubt in enumerate(doubts):
        shared = _normal(f"machine/{doubt.machine}", seed, draws)
        own = _normal(f"candidate/{doubt.candidate}", seed, draws)
        found[:, i] = (doubt.shared * shared + doubt.own * own) / Z95
    found[0] = 0.0
    return found


def capacities(span: Estimate, half_width: float, factor: Floats) -> Floats:
    """Capacity in each draw, of one candidate whose capacity is `span` at ln factors +half_width, 0, -half_width.

    `span.high` belongs to the fast end. Linear between and beyond the three, never negative.
    """
    if half_width <= 0:
        return np.full(factor.shape, span.value)
    slow, fast = (span.value - span.least) / half_width, (span.most - span.value) / half_width
    return np.maximum(span.value - np.where(factor > 0, slow, fast) * factor, 0.0)


def span_of(values: Floats) -> Estimate:
    """The first draw's value and the middle 95 % of all."""
    low, high = np.quantile(values, [0.025, 0.975])
    value = float(values[0])
    return bracketed(value, float(low), float(high))


def _normal(name: str, seed: int, draws: int) -> Floats:
    return np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(draws)


def bills(
    pricing: Pricing,
    rate_per_s: ArrayLike,
    capacity_per_s: ArrayLike | None,
    traffic: PricedTraffic,
    power: Power | None = None,
    max_replicas: int | None = None,
) -> Floats:
    """Dollars an hour; `rate_per_s` and `capacity_per_s` (of one replica, ignored for an API) broadcast.

    Infinite where a replica can serve nothing, or where more than `max_replicas` would be needed.
    """
    rate = np.asarray(rate_per_s, dtype=np.float64)
    if isinstance(pricing, Api):
        return np.asarray(3600.0 * usd_per_added_request(pricing, traffic, np.inf) * rate)
    capacity = np.asarray(0.0 if capacity_per_s is None else capacity_per_s, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        replicas = np.maximum(np.ceil(rate / capacity - ROUNDING), 1.0)
        joules = 0.0 if power is None else np.nan_to_num((power.busy_w - power.idle_w) / capacity, posinf=0.0)
    hourly = machine_usd_per_hour(pricing, power) * replicas
    if isinstance(pricing, Own):
        hourly = hourly + 3600.0 * rate * joules / JOULES_PER_KWH * pricing.usd_per_kwh
    unable = ~(capacity > 0) | (np.isinf(replicas))
    if max_replicas is not None:
        unable = unable | (replicas > max_replicas)
    return np.where(unable, np.inf, hourly)


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
    capacity: Estimate | None
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
