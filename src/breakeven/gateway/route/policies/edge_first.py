"""This device where it serves well enough; another place for what is too long or late here; the device when cut off."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from breakeven.gateway.plan.model import PolicyPlan
from breakeven.gateway.route.rank import cheapest_that_fits, most_headroom
from breakeven.gateway.route.view import Ask, Score, View


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
