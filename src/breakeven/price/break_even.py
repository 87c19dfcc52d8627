"""Who is cheapest over a range of loads, and the break-even loads at which that changes, each with its band.

Between two steps every cost is a line in the rate, so the winner changes only at a step or where two lines meet. All
of these places are computed; nothing is sampled.

Below both capacities the cheaper standing bill wins whatever the architecture. The first flip is usually where the
cheaper replica is full; after it the two staircases can overtake each other many times.

The band of a flip comes from the intervals of what fleets carry. Each candidate's, of all sizes at once, is moved to
its low and its high end alone, and the shifts of the flip, as logarithms, are added as independent errors:
sqrt(shift_a^2 + shift_b^2). Two models on one machine are wrong together in part: that part moves both at once, as a
third error, and the rest each alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from breakeven.forecast.fleet import ROUNDING, FleetCapacity
from breakeven.price.pricing import Power, PricedTraffic
from breakeven.price.staircase import Floats, Staircase, curve_at, serves, staircase
from breakeven.results.cost import Api, BreakEven, Pricing
from breakeven.stats.estimate import Estimate


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
    high = max(min([high, *(stair.most_per_s for stair in stairs)]), math.nextafter(low, math.inf))
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
    found = np.unique(np.concatenate([np.array([low, high]), *(stair.steps(low, high) for stair in stairs)]))
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


TIE = 0.01
"""Costs that differ by no more are the same to anyone who pays them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One candidate with its price. `fleet`: what replicas carry under the service level; None for an API.

    `machine`: name of what its step times come from; offers of one machine share what of their error is not their own.
    `own_share`: half-width of a candidate's own error over that of its whole one, as logarithms.
    """

    name: str
    pricing: Pricing
    fleet: FleetCapacity | None
    traffic: PricedTraffic
    power: Power | None = None
    machine: str | None = None
    own_share: float = 1.0

    @property
    def capacity_per_s(self) -> Estimate | None:
        """Of one replica; None for an API."""
        return None if self.fleet is None else self.fleet.one

    @property
    def serves(self) -> bool:
        """False for a machine that carries no load under the service level."""
        return isinstance(self.pricing, Api) or (self.fleet is not None and serves(self.fleet))

    def stairs(self, at: float = 0.0) -> Staircase:
        """Its cost with a capacity `at` of the way to its high end, as logarithms (-1: at its low end)."""
        curve = None if self.fleet is None else curve_at(self.fleet, at)
        return staircase(self.pricing, curve, self.traffic, self.power)

    def utilisation(self, rate_per_s: float) -> float | None:
        """Share of the saturation throughput of its replicas in use at a rate; None for an API."""
        stairs = self.stairs()
        if stairs.curve is None:
            return None
        return rate_per_s / (float(stairs.replicas(rate_per_s)) * stairs.curve.full_per_s)


@dataclass(frozen=True, slots=True)
class _Flip:
    """`to` (0 or 1) is cheaper from `at` up to `until`; `tied_from`: where the tie before it began, None: no tie."""

    to: int
    at: float
    until: float
    tied_from: float | None
    ties: bool = False
    """Whether both cost the same at some loads before `until`."""


def break_evens(
    a: Offer, b: Offer, low_per_s: float, high_per_s: float, *, tie: float = TIE, prefer: str | None = None
) -> list[BreakEven]:
    """Every load between `low_per_s` and `high_per_s` at which the cheaper of two candidates changes, in order.

    Costs within `tie` (a share) keep the winner before them; with `prefer` a tie goes to the candidate of that name.
    One entry with `rate_per_s` None when the winner never changes. Raises UserError for prices below 0.
    """
    offers = (a, b)
    if not a.serves or not b.serves:
        return [_unserved(offers)]
    favourite = None if prefer is None else [a.name, b.name].index(prefer)

    def stretches(at_a: float, at_b: float) -> tuple[list[Stretch], list[Stretch]]:
        pair = [a.stairs(at_a), b.stairs(at_b)]
        found = _settled(winners(pair, low_per_s, high_per_s, tie), favourite)
        return found, winners(pair, low_per_s, high_per_s)

    middle = stretches(0.0, 0.0)
    found = _flips(*middle)
    if not found:
        return [_never(offers, middle[0], low_per_s, high_per_s)]
    ends = [(stretches(-at_a, -at_b), stretches(at_a, at_b)) for at_a, at_b in _errors(a, b)]
    result = []
    for number, flip in enumerate(found):
        order = sum(1 for other in found[:number] if other.to == flip.to)
        downs, ups = [], []
        for pair in ends:
            shifts = [math.log(_matching(*shifted, flip, order, low_per_s, high_per_s) / flip.at) for shifted in pair]
            downs.append(min(0.0, *shifts))
            ups.append(max(0.0, *shifts))
        low = max(flip.at * math.exp(-math.hypot(*downs)), low_per_s)
        high = min(flip.at * math.exp(math.hypot(*ups)), high_per_s)
        last = number + 1 == len(found)
        result.append(_entry(offers, flip, Estimate(value=flip.at, low=low, high=high), last, (low_per_s, high_per_s)))
    return result


def break_evens_of(
    offers: Sequence[Offer], low_per_s: float, high_per_s: float, *, tie: float = TIE
) -> list[BreakEven]:
    """`break_evens` of every pair, in the order of `offers`."""
    return [
        found
        for i, a in enumerate(offers)
        for b in offers[i + 1 :]
        for found in break_evens(a, b, low_per_s, high_per_s, tie=tie)
    ]


def _errors(a: Offer, b: Offer) -> list[tuple[float, float]]:
    """Independent errors of two capacities: how far along its interval each of them moves the one and the other."""
    if a.machine is None or a.machine != b.machine:
        return [(1.0, 0.0), (0.0, 1.0)]
    common = tuple(math.sqrt(1.0 - min(1.0, offer.own_share) ** 2) for offer in (a, b))
    return [(min(1.0, a.own_share), 0.0), (0.0, min(1.0, b.own_share)), (common[0], common[1])]


def _settled(stretches: list[Stretch], favourite: int | None) -> list[Stretch]:
    """Ties given to `favourite`, where there is one."""
    if favourite is None:
        return stretches
    return [Stretch(s.low, s.high, favourite if s.winner is None else s.winner) for s in stretches]


def _flips(stretches: list[Stretch], exact: list[Stretch]) -> list[_Flip]:
    """Changes of winner. Where two lines cross, costs are within the tie on both sides: `exact` has the place."""
    found: list[_Flip] = []
    standing: int | None = None
    for number, stretch in enumerate(stretches):
        if stretch.winner is None or stretch.winner == standing:
            continue
        before = stretches[number - 1] if number else None
        tied = before.low if before is not None and before.winner is None else None
        at = stretch.low
        if tied is not None and standing is not None:
            start = next(s.low for s in exact if s.winner == stretch.winner and s.high > stretch.low)
            at = min(max(start, tied), at)
        # A winner from the first load on has overtaken nobody; one that comes out of a tie at the start has.
        if before is not None:
            found.append(_Flip(stretch.winner, at, stretch.high, tied if at == stretch.low else None))
        standing = stretch.winner
    until = [*(flip.at for flip in found[1:]), stretches[-1].high][: len(found)]
    return [
        _Flip(flip.to, flip.at, end, flip.tied_from, any(flip.at <= s.low < end for s in stretches if s.winner is None))
        for flip, end in zip(found, until, strict=True)
    ]


def _matching(
    stretches: list[Stretch], exact: list[Stretch], flip: _Flip, order: int, low: float, high: float
) -> float:
    """Where `flip`, the `order`-th of its direction, happens with a capacity shifted; an end of the range if not."""
    same = [other.at for other in _flips(stretches, exact) if other.to == flip.to]
    if same:
        return same[min(order, len(same) - 1)]
    here = next((s.winner for s in stretches if s.low < flip.at <= s.high), stretches[-1].winner)
    # The range may begin at 0, which has no logarithm.
    return max(low, 1e-3 * flip.at) if here == flip.to else high


def _entry(
    offers: tuple[Offer, Offer], flip: _Flip, rate: Estimate, last: bool, ends: tuple[float, float]
) -> BreakEven:
    to, other = offers[flip.to].name, offers[1 - flip.to].name
    until = f"up to the end of the range, {_rate(ends[1])}" if last else f"up to {_rate(flip.until)}"
    tied = "" if flip.tied_from is None else f"; from {_rate(flip.tied_from)} to there they cost the same"
    where = f"Above {_rate(rate.value)} ({_number(rate.least)} to {_number(rate.most)})"
    used, whose = offers[flip.to].utilisation(rate.value), to
    if used is None:
        used, whose = offers[1 - flip.to].utilisation(rate.value), other
    there = "" if used is None else f" {whose} is {used:.0%} used there."
    same = " or costs the same" if flip.ties else ""
    meaning = f"{where} {to} is cheaper than {other}{same}, {until}{tied}.{there}"
    return BreakEven(from_=other, to=to, rate_per_s=rate, meaning=meaning, utilisation=used)


def _never(offers: tuple[Offer, Offer], stretches: list[Stretch], low: float, high: float) -> BreakEven:
    winner = next((s.winner for s in stretches if s.winner is not None), None)
    between = f"from {_rate(low)} to {_rate(high)}"
    if winner is None:
        return BreakEven(
            from_=offers[0].name,
            to=offers[1].name,
            rate_per_s=None,
            meaning=f"{offers[0].name} and {offers[1].name} cost the same at every load {between}.",
        )
    name, other = offers[winner].name, offers[1 - winner].name
    return BreakEven(
        from_=name, to=other, rate_per_s=None, meaning=f"{other} is cheaper than {name} at no load {between}."
    )


def _unserved(offers: tuple[Offer, Offer]) -> BreakEven:
    a, b = offers
    silent = [offer.name for offer in offers if not offer.serves]
    from_, to = (b.name, a.name) if a.name in silent else (a.name, b.name)
    return BreakEven(
        from_=from_,
        to=to,
        rate_per_s=None,
        meaning=f"{' and '.join(silent)} cannot keep the service level at any load, so there is nothing to compare.",
    )


def _number(rate_per_s: float) -> str:
    return f"{rate_per_s:,.0f}" if rate_per_s >= 1000 else f"{rate_per_s:.3g}"


def _rate(rate_per_s: float) -> str:
    return f"{_number(rate_per_s)} requests/s"
