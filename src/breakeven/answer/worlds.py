"""What may be wrong, drawn many times, and what every candidate costs and how fast it answers in each such world.

A verdict's bands come from here. Each draw is one possible world: every engine on a machine is off by one factor, every
model by one more. A difference between two models under one of them keeps only the second, which is why it is known
better than either speed.

A candidate's bill for whole arrays of loads and fleets is `price.staircase`, drawn many times. In one draw what fleets
of every size carry is off by the same factor of step times.

Legend: C candidates, D draws (the first is the prediction itself), K sizes of a fleet, R loads.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from breakeven.answer.study.plan import Scaling
from breakeven.forecast.constants import Error
from breakeven.forecast.fleet import FleetCapacity, carried, level, needed
from breakeven.price.pricing import JOULES_PER_KWH, Power, PricedTraffic, machine_usd_per_hour, usd_per_added_request
from breakeven.price.staircase import curve_ends, serves
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

    `machine` names what is shared: candidates under one engine on one machine are wrong together by `shared`, each by
    `own` more.
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


@dataclass(frozen=True, slots=True)
class DrawnFleet:
    """What fleets of these sizes carry in every draw, requests/s, and one replica's saturation (infinite: unknown)."""

    sizes_K: tuple[int, ...]
    per_s_DK: Floats
    saturation_D: Floats

    def needed(self, rates_R: Floats) -> Floats:
        """The fewest replicas for each rate in every draw, (D, R); infinite where none carry it."""
        return needed(self.sizes_K, self.per_s_DK, self.saturation_D, rates_R)

    def needed_each(self, rate_D: Floats) -> Floats:
        """The same for a rate of each draw's own, (D)."""
        rates, place_D = np.unique(rate_D, return_inverse=True)
        return np.asarray(self.needed(rates)[np.arange(len(rate_D)), place_D])

    def carried(self, replicas: int) -> Floats:
        """What so many carry together, (D)."""
        per_s_D = carried(self.sizes_K, self.per_s_DK, np.inf, replicas)
        return np.asarray(np.minimum(per_s_D, self.saturation_D * replicas))

    def full(self) -> Floats:
        """Requests/s of a replica that is busy all the time, (D); the most that one carries where nobody knows."""
        each_D = (level(self.sizes_K, self.per_s_DK) / np.asarray(self.sizes_K)).max(axis=1)
        return np.where(np.isfinite(self.saturation_D), self.saturation_D, each_D)


def drawn_fleet(fleet: FleetCapacity, half_width: float, factor_D: Floats) -> DrawnFleet:
    """`fleet` in every draw; `half_width` and `factor_D` as `capacities` takes them."""
    per_s_DK = np.stack([capacities(each, half_width, factor_D) for each in fleet.per_s_K], axis=-1)
    top = fleet.saturation_per_s
    full_D = np.full(len(factor_D), np.inf) if top is None else capacities(top, half_width, factor_D)
    return DrawnFleet(fleet.sizes_K, per_s_DK, full_D)


def span_of(values: Floats) -> Estimate:
    """The first draw's value and the middle 95 % of all."""
    low, high = np.quantile(values, [0.025, 0.975])
    value = float(values[0])
    return bracketed(value, float(low), float(high))


def ratios(top_D: Floats, bottom_D: Floats) -> Floats:
    """One bill over another, of the draws in which both are known; 1 where neither costs anything.

    Of something over nothing there is no ratio: such draws are left out, which may be all of them.
    """
    known_D = np.isfinite(top_D) & np.isfinite(bottom_D)
    top_D, bottom_D = top_D[known_D], bottom_D[known_D]
    free_D = bottom_D <= 0
    found_D = np.where(free_D, 1.0, top_D / np.where(free_D, 1.0, bottom_D))
    return np.asarray(found_D[~free_D | (top_D <= 0)])


def _normal(name: str, seed: int, draws: int) -> Floats:
    return np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(draws)


def bills(
    pricing: Pricing,
    rate_per_s: ArrayLike,
    replicas: ArrayLike,
    full_per_s: ArrayLike,
    traffic: PricedTraffic,
    power: Power | None = None,
    max_replicas: int | None = None,
) -> Floats:
    """Dollars an hour; `rate_per_s`, `replicas` and `full_per_s` (saturation of one of them) broadcast.

    An API needs neither. Infinite where no number of replicas would do, or where more than `max_replicas` are needed.
    """
    rate = np.asarray(rate_per_s, dtype=np.float64)
    if isinstance(pricing, Api):
        return np.asarray(3600.0 * usd_per_added_request(pricing, traffic, np.inf) * rate)
    count, full = np.asarray(replicas, np.float64), np.asarray(full_per_s, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        joules = 0.0 if power is None else np.nan_to_num((power.busy_w - power.idle_w) / full, posinf=0.0)
        hourly = machine_usd_per_hour(pricing, power) * count
    if isinstance(pricing, Own):
        hourly = hourly + 3600.0 * rate * joules / JOULES_PER_KWH * pricing.usd_per_kwh
    unable = np.isinf(count)
    if max_replicas is not None:
        unable = unable | (count > max_replicas)
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
    """A candidate that may be chosen, as the verdict sees it. `fleet` None: an API, without end."""

    name: str
    kind: Kind
    pricing: Pricing
    fleet: FleetCapacity | None
    traffic: PricedTraffic
    doubt: Doubt | None
    latency: Sequence[LatencyPoint]
    power: Power | None = None
    max_replicas: int | None = None
    scale: Scaling | None = None
    only_just: bool = False
    """No number of machines is sure to do: in draws whose steps are slower than predicted, none does."""

    def utilisation(self, rate_per_s: float) -> float | None:
        """Share of the saturation throughput of its machines in use at a load, as predicted; None for an API."""
        if self.fleet is None or not serves(self.fleet):
            return None
        return rate_per_s / (self.fleet.replicas(rate_per_s) * curve_ends(self.fleet)[0].full_per_s)

    def drawn(self, factor_D: Floats) -> DrawnFleet | None:
        """Its fleets in every draw; None for an API."""
        if self.fleet is None:
            return None
        found = drawn_fleet(self.fleet, self.doubt.total if self.doubt is not None else 0.0, factor_D)
        if not self.only_just:
            return found
        return replace(found, per_s_DK=np.where(factor_D[:, None] > 0, 0.0, found.per_s_DK))

    def bill(self, rate: Floats, replicas: ArrayLike, fleet: DrawnFleet | None) -> Floats:
        """Dollars an hour; arrays (D) or (D, R)."""
        full = np.inf if fleet is None else fleet.full() if rate.ndim == 1 else fleet.full()[:, None]
        return bills(self.pricing, rate, replicas, full, self.traffic, self.power, self.max_replicas)


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
    for contender, factor_D in zip(contenders, factors_DC.T, strict=True):
        fleet = contender.drawn(factor_D)
        replicas_DR = np.ones((len(factor_D), len(rates_R))) if fleet is None else fleet.needed(rates_R)
        hourly = contender.bill(rates_R[None, :], replicas_DR, fleet)
        costs.append(np.broadcast_to(hourly, replicas_DR.shape))
        speeds.append(answer_s(contender, rates_R[None, :] / replicas_DR, factor_D))
    usd_per_hour_CDR, e2e_s_CDR = np.stack(costs), np.stack(speeds)
    best_DR = winners(usd_per_hour_CDR, e2e_s_CDR)
    return Worlds(tuple(c.name for c in contenders), rates_R, usd_per_hour_CDR, e2e_s_CDR, best_DR)


def answer_s(contender: Contender, rate_DR: Floats, factor_D: Floats) -> Floats:
    """Median time of an answer at a replica's load: between the simulated loads, and longer by the draw's factor."""
    known = [(p.rate_per_s, p.e2e_p50_s.value) for p in contender.latency if p.e2e_p50_s is not None]
    if not known:
        return np.full(rate_DR.shape, np.nan)
    at = np.array([max(rate, 1e-12) for rate, _ in known])
    value = np.array([max(e2e_s, NOTHING_S) for _, e2e_s in known])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.exp(np.interp(np.log(rate_DR), np.log(at), np.log(value)) + factor_D[:, None]))
