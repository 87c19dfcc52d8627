"""What a policy is: a function that picks one of the backends that can serve a request, and says why.

The default: the cheapest backend that is predicted to keep what was asked for.

The backend that costs least, however long it takes.

This device where it serves well enough; another place for what is too long or late here; the device when cut off.

The backend that is predicted to end the answer first, whatever it costs.

One backend, or one group of replicas, is filled first; what would be late there goes to the others.

By chance, in the proportions the operator gives.

Routing policies by name: one file each, pure functions. A page each in docs/policies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from breakeven.gateway.plan.model import PolicyPlan
from breakeven.gateway.route import rank
from breakeven.gateway.route.rank import cheapest, cheapest_that_fits, drawn, most_headroom, sure, under_pressure
from breakeven.gateway.route.view import Ask, Score, View

Rule = Callable[[PolicyPlan, Ask, Sequence[View], Sequence[Score], Sequence[int], Random], tuple[int, str]]
"""(policy, ask, views, scores, usable, dice) -> (pick, reason).

`scores[k]` is of `views[k]`; `usable`: the k's without a reason against them, two at least; `pick` is one of them and
`reason` a name in `REASONS`.
"""


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
    return rank.cheapest(scores, usable, ask.output_tokens, dice), "cheapest"


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
    return rank.fastest(scores, usable, ask.output_tokens, dice), "fastest"


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
