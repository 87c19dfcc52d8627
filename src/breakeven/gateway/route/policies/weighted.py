"""By chance, in the proportions the operator gives."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from breakeven.gateway.plan.model import PolicyPlan
from breakeven.gateway.route.rank import drawn
from breakeven.gateway.route.view import Ask, Score, View


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
