"""When the answer is both: parts of the traffic to different candidates, or a base load here and the rest there.

Legend: D draws. Costs are dollars an hour at the study's load.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from breakeven.answer.candidates import HOURS_PER_MONTH, Reasons, below_floor, beyond_budget
from breakeven.answer.evaluate import Assessed
from breakeven.answer.study.plan import StudyPlan
from breakeven.answer.worlds import (
    COST_TIE,
    DRAWS,
    UNKNOWN_S,
    Contender,
    Doubt,
    DrawnFleet,
    Floats,
    answer_s,
    factors,
    span_of,
)
from breakeven.model.quality.scores import QualityScore
from breakeven.results.cost import Api
from breakeven.results.decision import ABOVE, TrafficShare
from breakeven.stats.estimate import Estimate

WORTH_IT = 0.05
"""A second system must save this share of the bill, or it is not worth running."""
MOST_BASE_REPLICAS = 64


@dataclass(frozen=True, slots=True)
class MixPart:
    """A share of the requests and the contenders that may serve it, by name."""

    name: str
    share: float
    allowed: frozenset[str]


@dataclass(frozen=True, slots=True)
class Mix:
    """Several candidates together: who gets what, the bill, and the bill of the best single candidate over it."""

    shares: list[TrafficShare]
    usd_per_hour: Estimate
    single: str | None
    """The best candidate that may serve everything alone; None: there is none."""
    single_over_mix: Estimate | None
    by_parts: bool


def best_mix(
    contenders: Sequence[Contender],
    parts: Sequence[MixPart],
    rate_per_s: float,
    seed: int,
    budget_usd_per_hour: float = np.inf,
) -> Mix | None:
    """The cheapest mix that saves WORTH_IT over any single candidate in the predicted world; None when none does.

    Of those within COST_TIE of it, and within the budget where it is, the one that answers fastest, as of single
    candidates.
    """
    # Who may serve every part may serve all of it; nobody else may take the rest in a split by amount.
    whole = [c for c in contenders if all(c.name in part.allowed for part in parts)]
    mixes = [
        *_base_and_rest(whole, rate_per_s, seed),
        *_by_parts(contenders, parts, rate_per_s, seed),
    ]
    alone = {c.name: _bill(c, rate_per_s, seed) for c in whole}
    single = min(alone, key=lambda name: float(alone[name][0]), default=None)
    if single is not None and not np.isfinite(alone[single][0]):
        single = None
    found: list[Mix] = []
    for shares, bill_D, by_parts in mixes:
        if not np.isfinite(bill_D[0]):
            continue
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio_D = alone[single] / bill_D if single is not None else None
        if ratio_D is not None and not ratio_D[0] >= 1.0 / (1.0 - WORTH_IT):
            continue
        over_D = ratio_D[np.isfinite(ratio_D)] if ratio_D is not None else np.empty(0)
        over = span_of(over_D) if len(over_D) else None
        found.append(Mix(shares, span_of(bill_D[np.isfinite(bill_D)]), single, over, by_parts))
    cheapest = min((mix.usd_per_hour.value for mix in found), default=0.0)
    most = max(cheapest, min(cheapest * (1.0 + COST_TIE), budget_usd_per_hour))
    near = [mix for mix in found if mix.usd_per_hour.value <= most]
    by_name = {c.name: c for c in contenders}
    return min(near, key=lambda mix: _answer_s(mix, by_name, rate_per_s), default=None)


def _answer_s(mix: Mix, by_name: Mapping[str, Contender], rate_per_s: float) -> float:
    """Mean of the median times that its candidates take for an answer, as predicted; one nobody knows is long."""
    total = 0.0
    for each in mix.shares:
        contender, rate = by_name[each.candidate], each.share * rate_per_s
        machines = 1.0 if contender.fleet is None else contender.fleet.replicas(rate)
        seconds = float(answer_s(contender, np.array([[rate / machines]]), np.zeros(1))[0, 0])
        total += each.share * (seconds if np.isfinite(seconds) else UNKNOWN_S)
    return total


def _by_parts(
    contenders: Sequence[Contender], parts: Sequence[MixPart], rate_per_s: float, seed: int
) -> list[tuple[list[TrafficShare], Floats, bool]]:
    """Every assignment of parts to two or more contenders; parts with the same contender share its machines."""
    if len(parts) < 2:
        return []
    by_name = {c.name: c for c in contenders}
    found = []
    for choice in itertools.product(*[sorted(part.allowed & by_name.keys()) for part in parts]):
        if len(set(choice)) < 2:
            continue
        costs, shares = [], []
        for name in dict.fromkeys(choice):
            mine = [part for part, chosen in zip(parts, choice, strict=True) if chosen == name]
            share = sum(part.share for part in mine)
            bill_D = _bill(by_name[name], share * rate_per_s, seed)
            costs.append(bill_D)
            what = " and ".join(part.name for part in mine)
            shares.append(_share(name, what, share, bill_D))
        found.append((shares, np.sum(costs, axis=0), True))
    return found


def _base_and_rest(
    contenders: Sequence[Contender], rate_per_s: float, seed: int
) -> list[tuple[list[TrafficShare], Floats, bool]]:
    """For every ordered pair: n full machines of the first take what they can, the second takes the rest."""
    found = []
    for base, rest in itertools.permutations(contenders, 2):
        if base.fleet is None or isinstance(base.pricing, Api) or (drawn := _drawn(base, seed)) is None:
            continue
        whole = base.fleet.replicas(rate_per_s)
        # As many as are full, and one: the last machine of a fleet that carries all of it is the one to spare.
        most = int(min(whole - 1 if np.isfinite(whole) else MOST_BASE_REPLICAS, MOST_BASE_REPLICAS))
        for n in sorted({1, most} - {0}):
            taken = min(base.fleet.per_s(n), rate_per_s)
            if taken >= rate_per_s or taken <= 0:
                continue
            # The base is filled as predicted; where it holds less, the rest gets what it cannot take.
            left_D = rate_per_s - np.minimum(drawn.carried(n), taken)
            base_D = base.bill(np.full_like(left_D, taken), np.full_like(left_D, n), drawn)
            rest_D = _bill(rest, left_D, seed)
            share = taken / rate_per_s
            shares = [
                _share(base.name, f"up to {taken:.3g} requests/s", share, base_D),
                _share(rest.name, ABOVE, 1.0 - share, rest_D),
            ]
            found.append((shares, base_D + rest_D, False))
    return found


def _drawn(contender: Contender, seed: int) -> DrawnFleet | None:
    """What its fleets carry in every draw; None for an API."""
    doubt = contender.doubt or Doubt(contender.name, contender.name, 0.0, 0.0)
    return contender.drawn(factors([doubt], seed)[:, 0])


def _bill(contender: Contender, rate: float | Floats, seed: int) -> Floats:
    """Dollars an hour for this load alone, or one of each draw's own, in every draw."""
    rate_D = np.broadcast_to(np.asarray(rate, np.float64), DRAWS)
    fleet = _drawn(contender, seed)
    return contender.bill(rate_D, 1.0 if fleet is None else fleet.needed_each(rate_D), fleet)


def _share(name: str, traffic: str, share: float, bill_D: Floats) -> TrafficShare:
    # In some worlds, or in all, the machines there are do not carry it: those have no bill.
    finite_D = bill_D[np.isfinite(bill_D)]
    usd = span_of(finite_D) if np.isfinite(bill_D[0]) else None
    return TrafficShare(candidate=name, traffic=traffic, share=share, usd_per_hour=usd)


def for_all(
    plan: StudyPlan, found: Sequence[Assessed], scores: Mapping[str, QualityScore]
) -> tuple[list[Assessed], dict[str, list[str]]]:
    """Those that may serve every part of the traffic, and of the others, by name, which parts they may not."""
    lost = {
        e.plan.name: [p.name for p in plan.parts if not _may_serve(p.candidates, p.floor, e.plan.name, scores)]
        for e in found
    }
    return [e for e in found if not lost[e.plan.name]], {name: parts for name, parts in lost.items() if parts}


def barred_text(barred: Mapping[str, Sequence[str]]) -> list[str]:
    """Who may not serve all of the traffic, a sentence for each part that keeps them from it."""
    by_part: dict[str, list[str]] = {}
    for name, parts in barred.items():
        by_part.setdefault(parts[0], []).append(name)
    return [
        f"{' and '.join(filter(None, [', '.join(names[:-1]), names[-1]]))} may not serve the part {part!r}, so not all "
        "of it alone."
        for part, names in by_part.items()
    ]


def mix_of(
    plan: StudyPlan, found: Sequence[Assessed], scores: Mapping[str, QualityScore], ruled: Mapping[str, Reasons]
) -> tuple[Mix | None, list[str]]:
    """The cheapest combination, if it is within the budget, and in words why there is none where that can be said.

    A part with a floor of its own lets in candidates the study's floor keeps out.
    """
    lower = any(part.floor is not None for part in plan.parts)
    contenders = [
        c
        for e in found
        if not ruled[e.plan.name].ever and (lower or not ruled[e.plan.name].quality) and (c := e.contender())
    ]
    parts = [
        MixPart(
            p.name, p.share, frozenset(c.name for c in contenders if _may_serve(p.candidates, p.floor, c.name, scores))
        )
        for p in plan.parts
    ]
    if lost := [part.name for part in parts if not part.allowed]:
        return None, [f"Nobody is left who may serve the part {name!r}." for name in lost]
    budget = plan.budget_usd_per_month
    hourly = np.inf if budget is None or plan.hours_per_s else budget / HOURS_PER_MONTH
    mix = best_mix(contenders, parts, plan.load_per_s, plan.seed, hourly)
    # The busiest hour of a day, all month long, is nobody's bill.
    if mix is None or plan.hours_per_s:
        return mix, []
    beyond = beyond_budget(plan, mix.usd_per_hour.scaled(HOURS_PER_MONTH))
    return (mix, []) if beyond is None else (None, [f"The cheapest combination {beyond}."])


def _may_serve(only: Sequence[str], floor: float | None, name: str, scores: Mapping[str, QualityScore]) -> bool:
    return (not only or name in only) and below_floor(floor, scores[name]) is None
