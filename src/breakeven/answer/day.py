"""What a day costs, hour by hour: machines that follow the load, and candidates that take turns.

Machines that are rented, or told how they `scale`, run as many as the hour needs, and are paid for while they start.
Bought ones are as many as the busiest hour needs; they draw power all day unless they scale. A day repeats: its first
hour follows its last. An API is paid by the token at any hour.

Legend: D draws (the first is the prediction itself), H hours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from breakeven.answer.regions import Standing
from breakeven.answer.study.plan import Scaling
from breakeven.answer.words import DAY_HOURS, part_text, period_text, rate_text, turns_text, usd_text
from breakeven.answer.worlds import (
    COST_TIE,
    UNKNOWN_S,
    Contender,
    Doubt,
    Floats,
    answer_s,
    factors,
    ratios,
    span_of,
)
from breakeven.price.pricing import machine_usd_per_hour, usd_per_added_request
from breakeven.results.cost import Api, Own, Rented
from breakeven.results.decision import Day, DayBill, DayHour
from breakeven.stats.estimate import Estimate

OFF_PEAK = 0.3
"""Of the saturation throughput of the machines that run: below it, machines are said to be idling."""
WORTH_IT = 0.02
"""Changing over must save this share of a day's bill to be worth a word of recommendation."""
SELDOM = 0.005
"""A share of the worlds that is told as 0 %."""
ROUNDING = 1e-9
"""Of a bill: less than this is left of a difference of sums that are equal."""


@dataclass(frozen=True, slots=True)
class Hourly:
    """One contender over the hours in every draw. `full_D`: saturation of one machine, infinite for an API."""

    contender: Contender
    needed_DH: Floats
    full_D: Floats

    @property
    def turns(self) -> bool:
        """Whether it may serve some hours and stand aside in others: rented, by the token, or there already."""
        pricing = self.contender.pricing
        return not isinstance(pricing, Own) or pricing.usd == 0

    @property
    def scaling(self) -> Scaling | None:
        """How its machines follow the load; None: all of them run all day."""
        if self.contender.scale is not None:
            return self.contender.scale
        return Scaling() if isinstance(self.contender.pricing, Rented) else None

    def running(self, hours_H: Floats, mine_H: NDArray[np.bool_] | None = None) -> Floats:
        """Machines that run in each hour, (D, H); `mine_H`: hours that it serves, None: all of them."""
        serves_H = np.ones(len(hours_H), bool) if mine_H is None else mine_H
        if self.contender.fleet is None:
            return np.zeros_like(self.needed_DH)
        scaling = self.scaling
        needed_DH = np.where(serves_H, self.needed_DH, 0.0)
        if scaling is None:
            return np.broadcast_to(needed_DH.max(axis=1, keepdims=True), needed_DH.shape)
        needed_DH = np.where(hours_H > 0, needed_DH, 0.0)
        # Who takes turns is sent home in hours that are not its own.
        return np.maximum(needed_DH, scaling.least if mine_H is None else 0.0)

    def usd(self, hours_H: Floats, mine_H: NDArray[np.bool_] | None = None) -> Floats:
        """Dollars over all hours, (D); infinite where no machines, or not those there are, carry an hour."""
        contender, pricing = self.contender, self.contender.pricing
        served_H = hours_H if mine_H is None else np.where(mine_H, hours_H, 0.0)
        if isinstance(pricing, Api):
            usd = 3600.0 * usd_per_added_request(pricing, contender.traffic, np.inf) * served_H.sum()
            return np.full(len(self.needed_DH), usd)
        running_DH = self.running(hours_H, mine_H)
        most_D = running_DH.max(axis=1)
        with np.errstate(invalid="ignore"):
            hours_D = running_DH.sum(axis=1) + self.starting(running_DH)[1]
            whole = machine_usd_per_hour(pricing, contender.power)
            if isinstance(pricing, Own):
                standing = machine_usd_per_hour(pricing)
                joules_D = 0.0 if contender.power is None else self._joules()
                added_D = served_H.sum() * joules_D / 1000 * pricing.usd_per_kwh
                # Bought are as many as the busiest hour needs; an hour of one running more costs its idle power.
                usd_D = standing * most_D * len(hours_H) + (whole - standing) * hours_D + added_D
            else:
                usd_D = whole * hours_D
        limit = contender.max_replicas
        unable_D = ~np.isfinite(most_D) | (most_D > (np.inf if limit is None else limit))
        return np.where(unable_D, np.inf, usd_D)

    def starting(self, running_DH: Floats) -> tuple[Floats, Floats]:
        """(machines started, hours paid for beyond those in use while they start) over all hours, each (D).

        One is paid for at every moment from which, within the time it takes to start, an hour comes that needs it: who
        would be needed again before it had started runs on.
        """
        if self.scaling is None:
            return np.zeros(len(running_DH)), np.zeros(len(running_DH))
        whole, part = divmod(self.scaling.start_s / 3600.0, 1.0)
        first_DH = running_DH
        for ahead in range(1, min(int(whole), running_DH.shape[1] - 1) + 1):
            first_DH = np.maximum(first_DH, np.roll(running_DH, -ahead, axis=1))
        # In the last part of an hour one hour more is near enough to start for.
        last_DH = np.maximum(first_DH, np.roll(running_DH, -1 - int(whole), axis=1))
        with np.errstate(invalid="ignore"):
            started_D = (last_DH - first_DH).sum(axis=1)
            beyond_D = (first_DH - running_DH).sum(axis=1) + part * started_D
        return started_D, beyond_D

    def _joules(self) -> Floats:
        """Of one request more, each draw its own, over what an hour of one a second is: watts."""
        power = self.contender.power
        assert power is not None
        return np.asarray(np.nan_to_num((power.busy_w - power.idle_w) / self.full_D, posinf=0.0))


def hourly_of(contenders: Sequence[Contender], hours_H: Floats, seed: int) -> list[Hourly]:
    """Machines needed in every hour and draw, of every contender."""
    rates, place_H = np.unique(hours_H, return_inverse=True)
    doubts = [c.doubt or Doubt(c.name, c.name, 0.0, 0.0) for c in contenders]
    found = []
    for contender, factor_D in zip(contenders, factors(doubts, seed).T, strict=True):
        fleet = contender.drawn(factor_D)
        if fleet is None:
            nothing_DH = np.zeros((len(factor_D), len(hours_H)))
            found.append(Hourly(contender, nothing_DH, np.full(len(factor_D), np.inf)))
        else:
            found.append(Hourly(contender, fleet.needed(rates)[:, place_H], fleet.full()))
    return found


def day_of(contenders: Sequence[Contender], hours_per_s: Sequence[float], seed: int) -> tuple[Day, Standing]:
    """Bills of all contenders over the hours, the best single one, and the best where candidates take turns."""
    hours_H = np.asarray(hours_per_s, np.float64)
    days = len(hours_H) / DAY_HOURS
    # Where bills are the same the first one is taken: the one that answers fastest.
    all_of = sorted(hourly_of(contenders, hours_H, seed), key=lambda each: _answer_s(each, hours_H))
    usd_CD = np.stack([each.usd(hours_H) / days for each in all_of])
    order = [int(i) for i in np.argsort(usd_CD[:, 0], kind="stable") if np.isfinite(usd_CD[i, 0])]
    if order:
        first = min(i for i in order if usd_CD[i, 0] <= usd_CD[order[0], 0] * (1.0 + COST_TIE))
        order = [first, *(i for i in order if i != first)]
    bills = [_bill(all_of[i], usd_CD[i], hours_H) for i in order]
    cost_CH = _costs(all_of, hours_H)
    by_itself = _each_hour(all_of, cost_CH, hours_H)
    if not order:
        nobody = ["Nobody carries every hour."]
        return Day(hours_per_s=list(hours_per_s), bills=[], hours=by_itself, sentences=nobody), Standing(None, 0)
    best = order[0]
    turns = _turns(cost_CH, hours_H)
    mixed_D = sum((all_of[i].usd(hours_H, turns == i) / days for i in set(turns.tolist())), np.zeros(usd_CD.shape[1]))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio_D = usd_CD[best] / mixed_D if len(set(turns.tolist())) > 1 else np.ones(1)
    worth = bool(np.isfinite(ratio_D[0]) and ratio_D[0] > 1 / (1 - WORTH_IT))
    sentences = [
        _single(bills, len(hours_H)),
        *(_unable(all_of[i], usd_CD[i]) for i in order[:2]),
        *_idling(all_of, best, hours_H),
        _by_hour(all_of, turns, mixed_D, usd_CD[best], worth),
    ]
    day = Day(
        hours_per_s=list(hours_per_s),
        bills=bills,
        hours=by_itself,
        by_hour=[all_of[i].contender.name for i in turns.tolist()] if worth else [],
        by_hour_usd_per_day=_span(mixed_D) if worth else None,
        single_over_by_hour=_span(ratio_D) if worth else None,
        sentences=[each for each in sentences if each],
    )
    return day, _standing(all_of, usd_CD, order)


def _answer_s(each: Hourly, hours_H: Floats) -> float:
    """Mean over the requests of the median time of an answer, as predicted; one that nobody knows is long."""
    machines_H = np.maximum(each.needed_DH[0], 1.0)
    seconds_H = answer_s(each.contender, (hours_H / machines_H)[None, :], np.zeros(1))[0]
    return float(np.average(np.nan_to_num(seconds_H, nan=UNKNOWN_S), weights=hours_H))


def _costs(all_of: Sequence[Hourly], hours_H: Floats) -> Floats:
    """What each costs in each hour alone, (C, H), as predicted; infinite for who may not stand aside in others."""
    cost_CH = np.full((len(all_of), len(hours_H)), np.inf)
    for i, each in enumerate(all_of):
        if each.turns:
            for h in range(len(hours_H)):
                mine_H = np.zeros(len(hours_H), bool)
                mine_H[h] = True
                cost_CH[i, h] = _running_usd(each, hours_H, mine_H)
    return cost_CH


def _each_hour(all_of: Sequence[Hourly], cost_CH: Floats, hours_H: Floats) -> list[DayHour]:
    """The cheapest of each hour on its own, as predicted."""
    found = []
    for h, per_s in enumerate(hours_H.tolist()):
        i = int(cost_CH[:, h].argmin())
        each, usd = all_of[i], float(cost_CH[i, h])
        if per_s <= 0 or not np.isfinite(usd):
            found.append(DayHour())
            continue
        machines = 0 if each.contender.fleet is None else int(each.needed_DH[0, h])
        used = per_s / (machines * float(each.full_D[0])) if machines else None
        found.append(DayHour(cheapest=each.contender.name, usd=usd, machines=machines, used=used))
    return found


def _turns(cost_CH: Floats, hours_H: Floats) -> NDArray[np.int64]:
    """Index of the cheapest in every hour. One in which nothing is asked stays with whoever served before it."""
    asked = np.flatnonzero(hours_H > 0)
    if not np.isfinite(cost_CH).any(axis=0).all() or not len(asked):
        return np.zeros(len(hours_H), np.int64)
    # The day repeats: its first hours follow the last one that was asked anything.
    before_H = asked[np.searchsorted(asked, np.arange(len(hours_H)), side="right") - 1]
    return np.asarray(cost_CH.argmin(axis=0)[before_H], np.int64)


def _running_usd(each: Hourly, hours_H: Floats, mine_H: NDArray[np.bool_]) -> float:
    """What serving these hours alone costs beyond what standing aside does, starts apart, as predicted."""
    one = Hourly(each.contender, each.needed_DH[:1], each.full_D[:1])
    usd = float(one.usd(hours_H, mine_H)[0])
    pricing = each.contender.pricing
    if isinstance(pricing, Api) or not np.isfinite(usd):
        return usd
    running_H = one.running(hours_H, mine_H)[0]
    starting_h = float(one.starting(running_H[None, :])[1][0])
    whole = machine_usd_per_hour(pricing, each.contender.power)
    if isinstance(pricing, Rented):
        return usd - whole * starting_h
    # Bought ones are paid for all day, and so is the power of those that run all day whoever serves.
    standing = machine_usd_per_hour(pricing)
    paid = whole if each.scaling is None else standing
    beyond = usd - paid * float(running_H.max()) * len(hours_H) - (whole - standing) * starting_h
    return beyond if beyond > ROUNDING * usd else 0.0


def _bill(each: Hourly, usd_D: Floats, hours_H: Floats) -> DayBill:
    running_H = each.running(hours_H)[0]
    used_H = _used(each, hours_H)
    hosted = each.contender.fleet is None
    with np.errstate(invalid="ignore", divide="ignore"):
        whole = float(hours_H.sum() / (running_H.sum() * each.full_D[0])) if not hosted else None
    return DayBill(
        candidate=each.contender.name,
        usd_per_day=_span(usd_D),
        machines=[int(n) for n in running_H],
        utilisation=whole,
        off_peak_hours=None if hosted else int((used_H < OFF_PEAK).sum()),
        starts=int(each.starting(running_H[None, :])[0][0]),
        used=[] if hosted else [float(u) if n else 0.0 for u, n in zip(used_H, running_H, strict=True)],
    )


def _used(each: Hourly, hours_H: Floats) -> Floats:
    """Share of the saturation throughput of the machines running in use in each hour, as predicted."""
    running_H = each.running(hours_H)[0]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(running_H > 0, hours_H / (running_H * each.full_D[0]), 1.0))


def _span(usd_D: Floats) -> Estimate:
    finite_D = usd_D[np.isfinite(usd_D)]
    return span_of(finite_D)


def _single(bills: Sequence[DayBill], hours: int) -> str:
    first = bills[0]
    many = sorted(set(first.machines))
    machines = "" if many[-1] == 0 else f", {many[0]} to {many[-1]} machines" if many[0] < many[-1] else ""
    second = ""
    if len(bills) > 1:
        second = f"; next {bills[1].candidate} for {usd_text(bills[1].usd_per_day)}"
    usd = usd_text(first.usd_per_day)
    return f"Over the {period_text(hours)} {first.candidate} alone is cheapest: {usd} a day{machines}{second}."


def _unable(each: Hourly, usd_D: Floats) -> str:
    """In which share of the worlds one does not carry every hour, which its bill leaves out; empty for none."""
    short = 1.0 - float(np.isfinite(usd_D).mean())
    if short < SELDOM:
        return ""
    cases = f"{short:.0%} of the cases that the predictions' errors leave open"
    return f"In {cases} {each.contender.name} does not carry every hour; its bill is of the others."


def _idling(all_of: Sequence[Hourly], best: int, hours_H: Floats) -> list[str]:
    """Who idles off-peak and what another would cost in those hours: of the best, and of the best of the other kind."""
    found = []
    for i in {best, *(_other_kind(all_of, best, hours_H))}:
        each = all_of[i]
        idle_H = _used(each, hours_H) < OFF_PEAK
        if each.contender.fleet is None or not idle_H.any():
            continue
        share = float(hours_H[idle_H].sum() / hours_H.sum())
        mine = _running_usd(each, hours_H, idle_H) if each.turns else None
        others = [(_running_usd(o, hours_H, idle_H), o.contender.name) for o in all_of if o is not each and o.turns]
        beside = ""
        if mine and others and np.isfinite(min(others)[0]):
            usd, name = min(others)
            beside = f"; {name} would cost {usd / mine:.2g} times as much in these"
        hours = f"{int(idle_H.sum())} of {len(hours_H)} hours ({part_text(share)} of the requests)"
        found.append(f"{each.contender.name} is below {OFF_PEAK:.0%} utilisation in {hours}{beside}.")
    return found


def _other_kind(all_of: Sequence[Hourly], best: int, hours_H: Floats) -> list[int]:
    """The cheapest machine of the other architecture over the day, where there is one."""
    others = [
        (float(each.usd(hours_H)[0]), i)
        for i, each in enumerate(all_of)
        if each.contender.fleet is not None and each.contender.kind != all_of[best].contender.kind
    ]
    return [min(others)[1]] if others and np.isfinite(min(others)[0]) else []


def _by_hour(all_of: Sequence[Hourly], turns: NDArray[np.int64], mixed_D: Floats, single_D: Floats, worth: bool) -> str:
    able = [each for each in all_of if each.turns and np.isfinite(each.needed_DH[0]).all()]
    if len(able) < 2:
        return ""
    if len(set(turns.tolist())) < 2:
        return "By the hour nothing is saved: one candidate is the cheapest at every hour."
    who = turns_text([all_of[i].contender.name for i in turns.tolist()])
    bills = f"{usd_text(_span(mixed_D))} a day against {usd_text(_span(single_D))}"
    if not worth:
        return f"Taking turns is not worth it ({who}: {bills})."
    return f"Taking turns is cheaper: {who}: {bills}."


def _standing(all_of: Sequence[Hourly], usd_CD: Floats, order: Sequence[int]) -> Standing:
    """Who is cheapest over the day, and in which share of the worlds."""
    best = order[0]
    # Where it does not carry every hour it wins nothing, though nobody else may either.
    wins_D = np.isfinite(usd_CD[best]) & (usd_CD[best] <= usd_CD.min(axis=0) * (1 + COST_TIE))
    sure = float(wins_D.mean())
    if len(order) < 2:
        return Standing(all_of[best].contender.name, sure)
    ratio_D = ratios(usd_CD[order[1]], usd_CD[best])
    margin = span_of(ratio_D) if len(ratio_D) else None
    return Standing(all_of[best].contender.name, sure, all_of[order[1]].contender.name, margin)


def busiest_text(hours_per_s: Sequence[float]) -> str:
    """The load of a day in words."""
    mean = sum(hours_per_s) / len(hours_per_s)
    busiest = rate_text(max(hours_per_s))
    return f"{rate_text(mean)} over the {period_text(len(hours_per_s))}, {busiest} in its busiest hour"
