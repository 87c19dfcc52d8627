"""Where a request goes: every backend's score, replicas, shedding, exploring, and the order of failover.

What one backend would give one request at the load it has now: TTFT, TPOT, dollars, and how well that fits.

    ttft     = factor_ttft (load_s + line at the gateway + speed.ttft_s(...))
    tpot     = factor_tpot speed.tpot_s(running + 1, context with this one)
    usd      = prompt usd_per_input + output usd_per_output + usd_per_s factor_tpot speed.added_s(...)
    headroom = min(asked / predicted) over what was asked for

`line at the gateway`: with no place free, this one starts after `queued` + 1 of those running have ended, which end
one by one every output tpot / running seconds. Loading an engine is measured, so no factor touches it.

Machine seconds are what the request adds at that batch: what they could be sold for, whether or not the machine's
rent is paid anyway. A backend that is nearly idle bears its weights' reading alone; a full one shares it.

Replicas of one model: of each group two are looked at, and the less loaded one stands for the group.

Which of the two it is, and how a conversation keeps to one, is `forecast.balancing`, which simulated fleets follow too.
The load is that of peak-EWMA (Finagle, Linkerd): requests held, times the latency seen lately, which jumps up at once
and sinks slowly.

From what every backend would give to where a request goes: `choose`, a pure function of its arguments.

What every policy shares stands here: who can serve it at all, replicas, shedding, exploring, and the order of failover.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from random import Random

from breakeven.forecast.balancing import home_of, of_two
from breakeven.gateway.plan.model import PolicyPlan
from breakeven.gateway.route.learned import LEAST_BYTES, MOST_BYTES
from breakeven.gateway.route.policies import POLICIES, behind, most_headroom
from breakeven.gateway.route.speed import SpeedTable
from breakeven.gateway.route.view import Ask, Choice, Score, View

NOT_SERVED = "does not serve"
"""So begins a reason that no waiting mends."""
BROKEN = "its breaker is open"
"""The one reason against a backend that gives way when nobody else is left."""
TOO_LONG = "too long: "
"""So begins a reason that rests on what was learned of lengths; it gives way as well when nobody else is left."""
NOTHING_S = 1e-9


def score(ask: Ask, view: View, floor: float | None = None) -> Score:
    """`view`'s prediction for `ask`; `floor`: the least quality that will do, 0 to 1."""
    speed = view.speed
    output = ask.output_tokens
    prompt = ask.prompt_tokens
    line = view.waiting
    running = view.running - line
    if running < 0.0:
        running = 0.0
    if view.stale and running < view.slots:
        # What nobody has looked at for a while may be full; it is the last resort, not a free place.
        running = float(view.slots)
    # This request's own tokens count: half of its answer is there on average while it decodes.
    context = (view.context * running + prompt + 0.5 * output) / (running + 1.0)
    if type(speed) is SpeedTable:
        # The same three numbers for one look at its grids.
        ttft, tpot, added = speed.together(prompt, output, running, context, view.ahead_tokens, line)
    else:
        ttft = speed.ttft_s(prompt, running, context, view.ahead_tokens, line)
        tpot = speed.tpot_s(running + 1.0, context)
        added = speed.added_s(prompt, output, running, context)
    ttft *= view.ttft_factor
    tpot *= view.tpot_factor
    if view.free <= 0:
        ttft += (view.queued + 1) * output * tpot / (running if running > 1.0 else 1.0)
    if not view.ready and view.load_s:
        ttft += view.load_s
    usd = prompt * view.usd_per_input + output * view.usd_per_output
    if view.usd_per_s:
        usd += view.usd_per_s * view.tpot_factor * added
    headroom = inf
    if ask.ttft_s is not None:
        headroom = ask.ttft_s / (ttft or NOTHING_S)
    if ask.tpot_s is not None and output > 1.0:
        room = ask.tpot_s / (tpot or NOTHING_S)
        if room < headroom:
            headroom = room
    if ask.usd is not None and usd > 0.0:
        room = ask.usd / usd
        if room < headroom:
            headroom = room
    return Score(
        backend=view.name,
        ttft_s=ttft,
        tpot_s=tpot,
        usd=usd,
        headroom=headroom,
        running=view.running,
        why_not=_why_not(ask, view, floor),
    )


def _why_not(ask: Ask, view: View, floor: float | None) -> str:
    """Why `view` cannot serve `ask`, empty when it can. What is not for good comes last."""
    way = view.way(ask.endpoint)
    if not way:
        return f"{NOT_SERVED} {ask.endpoint}"
    if way in ask.untranslatable:
        return f"{NOT_SERVED} {ask.endpoint}, and {way} has no words for {ask.untranslatable[way]}"
    limit, most = view.context_limit, ask.most_output
    if limit is not None and ask.prompt_tokens * LEAST_BYTES / MOST_BYTES + (most or 0) > limit:
        return f"longer than its {limit} tokens, however they are counted"
    if floor is not None and (view.quality is None or view.quality < floor):
        if view.quality is None:
            return f"no quality score, and {floor:g} is asked for"
        return f"quality {view.quality:g} is below {floor:g}"
    if not view.ready and view.load_s is None:
        return "it is not there and cannot be loaded now"
    if limit is not None and (tokens := ask.prompt_tokens + (ask.output_tokens if most is None else most)) > limit:
        return f"{TOO_LONG}{tokens:.0f} tokens, it takes {limit}"
    if not view.open:
        return BROKEN
    return ""


def considered(ask: Ask, views: Sequence[View], dice: Random) -> tuple[Sequence[View], Sequence[View], View | None]:
    """(those to be scored, replicas left out, the one that a conversation kept to).

    Without groups all of `views` are scored.
    """
    groups: dict[str, list[View]] | None = None
    for view in views:
        if view.group is not None:
            if groups is None:
                groups = {}
            groups.setdefault(view.group, []).append(view)
    if groups is None:
        return views, (), None
    left_out: set[int] = set()
    kept: View | None = None
    for members in groups.values():
        if len(members) < 2:
            continue
        # A second draw only where enough are there to draw from: what is away is not worth one of the two, nor a home.
        present = [v for v in members if not v.away] or members
        there = [v for v in present if v.open and v.ready and v.free > 0] or [v for v in present if v.open] or present
        home = members[home_of(ask.session, len(members))] if ask.session else None
        if home is not None and home.away:  # of the others' conversations none moves
            home = present[home_of(ask.session, len(present))]
        taken, sticky = of_two(there, home, peak_load, dice)
        if sticky and kept is None:
            kept = taken
        left_out.update(v.index for v in members if v is not taken)
    seen = [v for v in views if v.index not in left_out]
    return seen, [v for v in views if v.index in left_out], kept


def peak_load(view: View) -> float:
    """What peak-EWMA compares: requests held and waiting, this one included, times how slow it was lately."""
    slow = view.peak if view.peak > view.ttft_factor else view.ttft_factor
    return (view.running + view.queued + 1.0) * slow


EXPLORE_LEAST = 0.5
"""Headroom below which nobody is explored: to miss by more than two would harm the request more than teach us."""


def choose(policy: PolicyPlan, ask: Ask, views: Sequence[View], dice: Random) -> Choice:
    """Where `ask` goes among `views`, those of the policy's backends.

    `Choice.order` holds `View.index` of whom to ask, best first; empty: refused. `Choice.scores` is in the order of
    `views`, less the replicas that the draw left out.
    """
    seen, others, drawn = considered(ask, views, dice)
    floor = policy.quality_floor
    scores: list[Score] = []
    usable: list[int] = []
    for k, view in enumerate(seen):
        found = score(ask, view, floor)
        scores.append(found)
        if not found.why_not:
            usable.append(k)
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
        spare = sorted((v for v in others if _serves(ask, v, floor)), key=lambda v: (v.away, v.running + v.queued))
        order.extend(v.index for v in spare[: policy.attempts - len(order)])
    # When everybody else has failed, one whose breaker is open is better than nobody: it may have come back.
    if len(usable) < len(scores):
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
    """Nobody can serve it for certain. Where only breakers are open, the least bad is tried all the same: it may have
    come back. Else it goes where it may be too long by a guess: the backend counts for itself, and says so."""
    broken = [k for k, found in enumerate(scores) if found.why_not == BROKEN]
    if not broken:
        long = [k for k, found in enumerate(scores) if found.why_not.startswith(TOO_LONG)]
        long.sort(key=lambda k: -(seen[k].context_limit or 0))
        alternative = long[1] if len(long) > 1 else None
        order = [seen[k].index for k in long]
        return Choice(order=order, scores=scores, reason="long" if long else "none", alternative=alternative)
    first = most_headroom(scores, broken, ask.output_tokens)
    rest = behind(scores, broken, first, ask.output_tokens)
    order = [seen[first].index, *[seen[k].index for k in rest]]
    return Choice(order=order, scores=scores, reason="tried_anyway", alternative=rest[0] if rest else None)
