"""By chance, in the proportions the operator gives."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from breakeven.gateway.plan.model import PolicyPlan
from breakeven.gateway.route.view import Ask, Score, View


def weighted(
    policy: PolicyPlan, ask: Ask, views: Sequence[View], scores: Sequence[Score], usable: Sequence[int], dice: Random
) -> tuple[int, str]:
    """See docs/policies/weighted.md."""
    weights = policy.weights
    shares = [max(0.0, weights.get(views[k].name, 0.0)) for k in usable] if weights else [1.0] * len(usable)
    total = sum(shares)
    if total <= 0.0:
        # Everyone who has a weight is away: the others, evenly, are better than nobody.
        shares, total = [1.0] * len(usable), float(len(usable))
    left = dice.random() * total
    for k, share in zip(usable, shares, strict=True):
        left -= share
        if left < 0.0:
            return k, "weight"
    return next(k for k, share in zip(reversed(usable), reversed(shares), strict=True) if share > 0.0), "weight"
