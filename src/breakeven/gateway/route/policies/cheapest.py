"""The backend that costs least, however long it takes."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from breakeven.gateway.plan.model import PolicyPlan
from breakeven.gateway.route import rank
from breakeven.gateway.route.view import Ask, Score, View


def cheapest(
    policy: PolicyPlan, ask: Ask, views: Sequence[View], scores: Sequence[Score], usable: Sequence[int], dice: Random
) -> tuple[int, str]:
    """See docs/policies/cheapest.md."""
    return rank.cheapest(scores, usable, ask.output_tokens, dice), "cheapest"
