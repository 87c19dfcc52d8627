"""Routing policies by name, and the orders they share. Pure functions; a page each in docs/policies.

A policy picks one of the backends that can serve a request, and says why:

    breakeven   the default: the cheapest backend that is predicted to keep what was asked for
    fastest     the one that is predicted to end the answer first, whatever it costs
    cheapest    the one that costs least, however long it takes
    spill       one backend, or one group of replicas, is filled first; what would be late there goes to the others
    weighted    by chance, in the proportions the operator gives
    edge-first  this device where it serves well enough; another place for what is too long or late here

Orders work on indexes into one list of scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from random import Random

from breakeven.gateway.plan.model import PolicyPlan
from breakeven.gateway.route.view import Ask, Score, View

SURE = 3.0
"""Headroom from which a backend is taken to keep what was asked. Below it, who joins next can break the promise.

Of 1.2, 1.5, 2, 3, 4 and no such margin it kept most promises over all loads (docs/gateway-goodput.md).
"""
LOST = 1.5
"""Seconds a token over what is promised from which those who run there have broken promises already."""
USD_TIE = 0.05
"""Costs closer than this are the same: no step model knows better."""
SPEED_TIE = 0.05
"""Predicted ends closer than this are the same."""

TINY_USD, LATE_USD = 1e-12, 1e9
"""Below and above what any request costs."""

Rule = Callable[[PolicyPlan, Ask, Sequence[View], Sequence[Score], Sequence[int], Random], tuple[int, str]]
"""(policy, ask, views, scores, usable, dice) -> (pick, reason).

`scores[k]` is of `views[k]`; `usable`: the k's without a reason against them, two at least; `pick` is one of them and
`reason` a name in `REASONS`.
"""


def e2e_s(score: Score, output_tokens: float) -> float:
    """Predicted seconds to the end of the answer."""
    return score.ttft_s + output_tokens * score.tpot_s


def most_headroom(scores: Sequence[Score], among: Sequence[int], output_tokens: float) -> int:
    """Who misses least; where nothing was asked, who ends first."""
    return max(among, key=lambda k: (scores[k].headroom, -e2e_s(scores[k], output_tokens)))


def roomiest(ask: Ask, scores: Sequence[Score], among: Sequence[int]) -> int:
    """Who uses least of everything that was asked for, taken together: the sum of predicted / asked.

    The smallest headroom alone says nothing of the other promises: a line of prompts builds up unseen behind a TPOT.
    """
    a = 0.0 if ask.ttft_s is None else 1.0 / ask.ttft_s
    b = 0.0 if ask.tpot_s is None else 1.0 / ask.tpot_s
    c = 0.0 if ask.usd is None else 1.0 / ask.usd
    return min(among, key=lambda k: a * scores[k].ttft_s + b * scores[k].tpot_s + c * scores[k].usd)


def under_pressure(ask: Ask, scores: Sequence[Score], among: Sequence[int]) -> tuple[int, str]:
    """Where nobody is `sure`: the roomiest of those that fit, else where a late request does least harm."""
    if fitting := [k for k in among if scores[k].headroom >= 1.0]:
        return roomiest(ask, scores, fitting), "roomiest"
    return least_harm(ask, scores, among)


def least_harm(ask: Ask, scores: Sequence[Score], among: Sequence[int]) -> tuple[int, str]:
    """For a request that is late everywhere: where it slows down the fewest who are still in time; with the reason.

    Those who run are taken to be promised the same time a token; where none was asked nobody is harmed. Who waits for
    a first token slows down nobody. Among equals the one with most headroom.
    """
    best = most_headroom(scores, among, ask.output_tokens)
    asked_s = ask.tpot_s
    if asked_s is None:
        return best, "least_late"
    harm = {k: scores[k].running if 1.0 <= scores[k].tpot_s / asked_s < LOST else 0.0 for k in among}
    least = min(harm.values())
    if harm[best] <= least:
        return best, "least_late"
    return most_headroom(scores, [k for k in among if harm[k] <= least], ask.output_tokens), "least_harm"


def near_fastest(scores: Sequence[Score], among: Sequence[int], output_tokens: float) -> list[int]:
    """Those who are predicted to end first, within `SPEED_TIE`."""
    ends = [scores[k].ttft_s + output_tokens * scores[k].tpot_s for k in among]
    limit = min(ends) * (1.0 + SPEED_TIE)
    return [k for k, end in zip(among, ends, strict=True) if end <= limit]


def near_cheapest(scores: Sequence[Score], among: Sequence[int], output_tokens: float) -> list[int]:
    """Those who cost least, within `USD_TIE`. Where nothing costs anything the price says nothing: the near-fastest."""
    costs = [scores[k].usd for k in among]
    least = min(costs)
    if least <= 0.0:
        return near_fastest(scores, [k for k in among if scores[k].usd <= 0.0], output_tokens)
    limit = least * (1.0 + USD_TIE)
    return [k for k, usd in zip(among, costs, strict=True) if usd <= limit]


def fastest(scores: Sequence[Score], among: Sequence[int], output_tokens: float, dice: Random) -> int:
    """Who is predicted to end first; by chance among near-equals, the faster the likelier."""
    near = near_fastest(scores, among, output_tokens)
    if len(near) == 1:
        return near[0]
    return drawn(near, [1.0 / (e2e_s(scores[k], output_tokens) + 1e-9) for k in near], dice)


def cheapest(scores: Sequence[Score], among: Sequence[int], output_tokens: float, dice: Random) -> int:
    """Who costs least; among near-equals the least headroom is the likelier, which keeps room for stricter requests."""
    near = near_cheapest(scores, among, output_tokens)
    if len(near) == 1:
        return near[0]
    if scores[near[0]].usd <= 0.0 or scores[near[0]].headroom == inf:
        return fastest(scores, near, output_tokens, dice)
    return drawn(near, [1.0 / (scores[k].headroom + 1e-9) for k in near], dice)


def sure(scores: Sequence[Score], among: Sequence[int]) -> list[int]:
    """Those who are predicted to keep what was asked with `SURE` headroom."""
    return [k for k in among if scores[k].headroom >= SURE]


def cheapest_that_fits(
    scores: Sequence[Score], among: Sequence[int], output_tokens: float, dice: Random
) -> tuple[int, str]:
    """The cheapest with `SURE` headroom, else the one with most headroom; with the reason. `among` is not empty."""
    able = sure(scores, among)
    if able:
        return cheapest(scores, able, output_tokens, dice), "cheapest_that_fits"
    best = most_headroom(scores, among, output_tokens)
    return best, "roomiest" if scores[best].headroom >= 1.0 else "least_late"


def behind(scores: Sequence[Score], among: Sequence[int], first: int, output_tokens: float) -> list[int]:
    """The others in the order in which they are tried when `first` fails: who fits by cost, then by headroom."""
    if len(among) < 2:
        return []
    keys: dict[int, float] = {}
    for k in among:
        if k != first:
            score = scores[k]
            if score.headroom >= 1.0:
                # Where costs are equal, or nothing costs anything, the earlier end comes first.
                keys[k] = score.usd + TINY_USD * (score.ttft_s + output_tokens * score.tpot_s)
            else:
                keys[k] = LATE_USD / (score.headroom + 1e-9)
    return sorted(keys, key=keys.__getitem__)


def drawn(among: Sequence[int], weights: Sequence[float], dice: Random) -> int:
    """One of `among` by weight; the weights are not negative, and one of them at least is above 0."""
    left = dice.random() * sum(weights)
    for k, weight in zip(among, weights, strict=True):
        left -= weight
        if left < 0.0:
            return k
    # Rounding: the draw fell on the very end.
    return next(k for k, weight in zip(reversed(among), reversed(weights), strict=True) if weight > 0.0)


def breakeven(
    policy: PolicyPlan, ask: Ask, views: Sequence[View], scores: Sequence[Score], usable: Sequence[int], dice: Random
) -> tuple[int, str]:
    """See docs/policies/breakeven.md."""
    if able := sure(scores, usable):
        return cheapest(scores, able, ask.output_tokens, dice), "cheapest_that_fits"
    return under_pressure(ask, scores, usable)


def cheapest_rule(
    policy: PolicyPlan, ask: Ask, views: Sequence[View], scores: Sequence[Score], usable: Sequence[int], dice: Random
) -> tuple[int, str]:
    """See docs/policies/cheapest.md."""
    return cheapest(scores, usable, ask.output_tokens, dice), "cheapest"


def edge_first(
    policy: PolicyPlan, ask: Ask, views: Sequence[View], scores: Sequence[Score], usable: Sequence[int], dice: Random
) -> tuple[int, str]:
    """See docs/policies/edge-first.md."""
    output = ask.output_tokens
    here = on_device(policy, views, usable)
    away = [k for k in usable if k not in here]
    if not here:
        return cheapest_that_fits(scores, away, output, dice)
    device = most_headroom(scores, here, output)
    if not away:
        return device, "offline" if _cut_off(policy, views) else "edge"
    elsewhere, _ = cheapest_that_fits(scores, away, output, dice)
    tokens = ask.prompt_tokens + output
    if policy.longest_tokens is not None and tokens > policy.longest_tokens:
        return elsewhere, "away_long"
    if scores[device].headroom >= 1.0:
        return device, "edge"
    if scores[elsewhere].headroom > scores[device].headroom:
        return elsewhere, "away_slow"
    return device, "least_late"


def on_device(policy: PolicyPlan, views: Sequence[View], usable: Sequence[int]) -> list[int]:
    """The device's backends: what `first` names, else all whose place is the edge."""
    if policy.first is not None:
        return [k for k in usable if policy.first in (views[k].name, views[k].group)]
    return [k for k in usable if views[k].place == "edge"]


def _cut_off(policy: PolicyPlan, views: Sequence[View]) -> bool:
    """Whether there are others that would be asked, were they reachable."""
    every = range(len(views))
    here = on_device(policy, views, every)
    return any(k not in here and not (views[k].open and views[k].ready) for k in every)


def fastest_rule(
    policy: PolicyPlan, ask: Ask, views: Sequence[View], scores: Sequence[Score], usable: Sequence[int], dice: Random
) -> tuple[int, str]:
    """See docs/policies/fastest.md."""
    return fastest(scores, usable, ask.output_tokens, dice), "fastest"


KNEE = 2.0
"""Without an SLO a backend is full when a token takes this many times as long as alone."""


def spill(
    policy: PolicyPlan, ask: Ask, views: Sequence[View], scores: Sequence[Score], usable: Sequence[int], dice: Random
) -> tuple[int, str]:
    """See docs/policies/spill.md."""
    first = firsts(policy, views, usable)
    others = [k for k in usable if k not in first]
    room = [k for k in first if _has_room(ask, views[k], scores[k])]
    if room:
        return most_headroom(scores, room, ask.output_tokens), "first"
    if not others:
        return most_headroom(scores, first, ask.output_tokens), "least_late"
    pick, _ = cheapest_that_fits(scores, others, ask.output_tokens, dice)
    if scores[pick].headroom < 1.0:
        # Late everywhere: then where it is least late, the first one included.
        best = most_headroom(scores, usable, ask.output_tokens)
        return best, "least_late"
    return pick, "spilled" if first else "cheapest_that_fits"


def firsts(policy: PolicyPlan, views: Sequence[View], usable: Sequence[int]) -> list[int]:
    """Who is filled first: the backend or the group that `first` names, else the dense ones, else the first listed."""
    if policy.first is not None:
        return [k for k in usable if policy.first in (views[k].name, views[k].group)]
    if dense := [k for k in usable if views[k].kind == "dense"]:
        return dense
    return [k for k in usable if views[k].name == policy.backends[0]] if policy.backends else list(usable[:1])


def _has_room(ask: Ask, view: View, score: Score) -> bool:
    if view.free <= 0 or not view.ready or score.headroom < 1.0:
        return False
    if ask.ttft_s is not None or ask.tpot_s is not None:
        return True
    alone_s = view.tpot_factor * view.speed.tpot_s(1.0, ask.prompt_tokens + 0.5 * ask.output_tokens)
    return view.running < view.slots and score.tpot_s <= KNEE * alone_s


def weighted(
    policy: PolicyPlan, ask: Ask, views: Sequence[View], scores: Sequence[Score], usable: Sequence[int], dice: Random
) -> tuple[int, str]:
    """See docs/policies/weighted.md."""
    weights = policy.weights
    shares = [max(0.0, weights.get(views[k].name, 0.0)) for k in usable] if weights else [1.0] * len(usable)
    if not any(shares):
        # Everyone who has a weight is away: the others, evenly, are better than nobody.
        shares = [1.0] * len(usable)
    return drawn(usable, shares, dice), "weight"


POLICIES: dict[str, Rule] = {
    "breakeven": breakeven,
    "fastest": fastest_rule,
    "cheapest": cheapest_rule,
    "spill": spill,
    "weighted": weighted,
    "edge-first": edge_first,
}
