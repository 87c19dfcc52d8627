"""One backend, or one group of replicas, is filled first; what would be late there goes to the others."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from breakeven.gateway.plan.model import PolicyPlan
from breakeven.gateway.route.rank import cheapest_that_fits, most_headroom
from breakeven.gateway.route.view import Ask, Score, View

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
