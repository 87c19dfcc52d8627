"""From what every backend would give to where a request goes: `choose`, a pure function of its arguments.

What every policy shares stands here: who can serve it at all, replicas, shedding, exploring, and the order of failover.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from breakeven.gateway.plan.model import PolicyPlan
from breakeven.gateway.route.policies import POLICIES
from breakeven.gateway.route.rank import behind, most_headroom
from breakeven.gateway.route.replicas import considered
from breakeven.gateway.route.scores import BROKEN, score
from breakeven.gateway.route.view import Ask, Choice, Score, View

EXPLORE_LEAST = 0.5
"""Headroom below which nobody is explored: to miss by more than two would harm the request more than teach us."""


def choose(policy: PolicyPlan, ask: Ask, views: Sequence[View], dice: Random) -> Choice:
    """Where `ask` goes among `views`, those of the policy's backends.

    `Choice.order` holds `View.index` of whom to ask, best first; empty: refused. `Choice.scores` is in the order of
    `views`, less the replicas that the draw left out.
    """
    seen, others, drawn = considered(ask, views, dice)
    floor = policy.quality_floor
    scores = [score(ask, view, floor) for view in seen]
    usable = [k for k, found in enumerate(scores) if not found.why_not]
    output = ask.output_tokens
    if not usable:
        return _least_bad(ask, seen, others, scores)
    if policy.shed and not any(scores[k].headroom >= 1.0 for k in usable):
        best = most_headroom(scores, usable, output)
        return Choice(order=(), scores=scores, reason="shed", alternative=best)
    if len(usable) == 1:
        pick, reason = usable[0], "only"
    else:
        pick, reason = POLICIES[policy.policy](policy, ask, seen, scores, usable, dice)
        if drawn is not None and drawn is seen[pick] and reason != "weight":
            reason = "sticky"
    rest = behind(scores, usable, pick, output)
    explored = False
    if rest and policy.explore > 0.0 and dice.random() < policy.explore:
        able = [k for k in rest if may_explore(policy, ask, seen[k], scores[k])]
        if able:
            learned = able[int(dice.random() * len(able))]
            rest.remove(learned)
            rest.insert(0, pick)
            pick, reason, explored = learned, "explored", True
    order = [seen[pick].index, *[seen[k].index for k in rest]]
    if others and len(order) < policy.attempts:
        spare = sorted((v for v in others if _serves(ask, v, floor)), key=lambda v: v.running + v.queued)
        order.extend(v.index for v in spare[: policy.attempts - len(order)])
    # When everybody else has failed, one whose breaker is open is better than nobody: it may have come back.
    order.extend(seen[k].index for k, found in enumerate(scores) if found.why_not == BROKEN)
    return Choice(order=order, scores=scores, reason=reason, explored=explored, alternative=rest[0] if rest else None)


def may_explore(policy: PolicyPlan, ask: Ask, view: View, found: Score) -> bool:
    """Whether a request may be sent somewhere only to learn how it does.

    Only where there is a place at once, at no more dollars than asked, and not where it is predicted to miss badly
    (`EXPLORE_LEAST`). A request that is stricter than its policy, or of raised priority, only where it is predicted to
    be kept.
    """
    if view.free <= 0 or view.queued or not view.ready or view.stale:
        return False
    if ask.usd is not None and found.usd > ask.usd:
        return False
    return found.headroom >= (1.0 if is_strict(policy, ask) else EXPLORE_LEAST)


def is_strict(policy: PolicyPlan, ask: Ask) -> bool:
    """Whether a request, or its key, asks for more than the policy promises everybody."""
    return (
        ask.priority > 0
        or _tighter(ask.ttft_s, policy.slo.ttft_s)
        or _tighter(ask.tpot_s, policy.slo.tpot_s)
        or _tighter(ask.usd, policy.max_usd)
    )


def score_of(choice: Choice, backend: str) -> Score | None:
    """What `backend` was predicted to give; None when it was not considered."""
    for found in choice.scores:
        if found.backend == backend:
            return found
    return None


def _tighter(asked: float | None, promised: float | None) -> bool:
    return asked is not None and (promised is None or asked < promised)


def _serves(ask: Ask, view: View, floor: float | None) -> bool:
    return not score(ask, view, floor).why_not


def _least_bad(ask: Ask, seen: Sequence[View], others: Sequence[View], scores: list[Score]) -> Choice:
    """Nobody can serve it. Where only breakers are open, the least bad is tried all the same: it may have come back."""
    broken = [k for k, found in enumerate(scores) if found.why_not == BROKEN]
    if not broken:
        return Choice(order=(), scores=scores, reason="none")
    first = most_headroom(scores, broken, ask.output_tokens)
    rest = behind(scores, broken, first, ask.output_tokens)
    order = [seen[first].index, *[seen[k].index for k in rest]]
    return Choice(order=order, scores=scores, reason="tried_anyway", alternative=rest[0] if rest else None)
