"""The default: the cheapest backend that is predicted to keep what was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from breakeven.gateway.plan.model import PolicyPlan
from breakeven.gateway.route.rank import cheapest, sure, under_pressure
from breakeven.gateway.route.view import Ask, Score, View


def breakeven(
    policy: PolicyPlan, ask: Ask, views: Sequence[View], scores: Sequence[Score], usable: Sequence[int], dice: Random
) -> tuple[int, str]:
    """See docs/policies/breakeven.md."""
    if able := sure(scores, usable):
        return cheapest(scores, able, ask.output_tokens, dice), "cheapest_that_fits"
    return under_pressure(ask, scores, usable)
