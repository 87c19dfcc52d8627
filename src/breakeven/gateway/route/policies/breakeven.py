"""The default: the cheapest backend that is predicted to keep what was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from breakeven.gateway.plan.model import PolicyPlan
from breakeven.gateway.route.rank import cheapest_that_fits, least_harm
from breakeven.gateway.route.view import Ask, Score, View


def breakeven(
    policy: PolicyPlan, ask: Ask, views: Sequence[View], scores: Sequence[Score], usable: Sequence[int], dice: Random
) -> tuple[int, str]:
    """See docs/policies/breakeven.md."""
    pick, reason = cheapest_that_fits(scores, usable, ask.output_tokens, dice)
    if reason != "least_late":
        return pick, reason
    promised_s = policy.slo.tpot_s
    return least_harm(ask.tpot_s if promised_s is None else promised_s, scores, usable, ask.output_tokens)
