"""What a policy is: a function that picks one of the backends that can serve a request, and says why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from breakeven.gateway.plan.model import PolicyPlan
from breakeven.gateway.route.view import Ask, Score, View

Rule = Callable[[PolicyPlan, Ask, Sequence[View], Sequence[Score], Sequence[int], Random], tuple[int, str]]
"""(policy, ask, views, scores, usable, dice) -> (pick, reason).

`scores[k]` is of `views[k]`; `usable`: the k's without a reason against them, two at least; `pick` is one of them and
`reason` a name in `REASONS`.
"""
