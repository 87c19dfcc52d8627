"""Which of a study's constraints a candidate breaks, in words."""

from __future__ import annotations

from dataclasses import dataclass

from breakeven.decide.study.model import CandidatePlan, StudyPlan
from breakeven.spec.decision import QualityScore
from breakeven.spec.licence import licence_of
from breakeven.spec.prediction import Span

DOUBT = " (a prediction: the lower end of its interval would not)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of one candidate. None: not known, or does not apply; nothing is ruled out by what is not known.

    `memory_bytes` is what one replica needs, `memory_available_bytes` what its devices have together.
    `capacity_per_s` is of one replica under the SLO; `usd_per_month` at the load of now.
    """

    memory_bytes: float | None = None
    memory_available_bytes: float | None = None
    busy_w: float | None = None
    capacity_per_s: Span | None = None
    usd_per_month: Span | None = None
    quality: QualityScore | None = None


def ruled_out(plan: StudyPlan, candidate: CandidatePlan, facts: Facts) -> list[str]:
    """Every constraint that `candidate` breaks, one phrase each; empty when it may be chosen."""
    found = [
        _place(plan, candidate),
        _memory(plan, facts),
        _power(plan, candidate, facts),
        _licence(plan, candidate),
        _quality(plan, facts),
        *_speed(plan, candidate, facts),
        _budget(plan, facts),
    ]
    return [why for why in found if why]


def _place(plan: StudyPlan, candidate: CandidatePlan) -> str | None:
    if plan.constraints.offline and (candidate.is_api or candidate.location == "cloud"):
        return "needs a network; the study must work offline"
    if plan.constraints.on_premise and candidate.location == "cloud":
        return "runs in a cloud; the study's data must stay on the premises"
    return None


def _memory(plan: StudyPlan, facts: Facts) -> str | None:
    needed, limit = facts.memory_bytes, plan.constraints.memory_bytes
    if needed is None:
        return None
    if facts.memory_available_bytes is not None and needed > facts.memory_available_bytes:
        return f"needs {_gb(needed)} of memory; the machine has {_gb(facts.memory_available_bytes)}"
    if limit is not None and needed > limit:
        return f"needs {_gb(needed)} of memory; the study allows {_gb(limit)}"
    return None


def _power(plan: StudyPlan, candidate: CandidatePlan, facts: Facts) -> str | None:
    stated = getattr(candidate.pricing, "busy_w", None)
    busy_w = stated if stated is not None else facts.busy_w
    limit = plan.constraints.power_w
    if limit is None or busy_w is None or busy_w <= limit or candidate.is_api:
        return None
    return f"draws {busy_w:.0f} W when busy; the study allows {limit:.0f} W"


def _licence(plan: StudyPlan, candidate: CandidatePlan) -> str | None:
    # Who buys answers by the token never holds the weights, so their licence does not bind.
    allowed = {name.lower() for name in plan.constraints.licences}
    if not allowed or candidate.is_api:
        return None
    known = candidate.licence or (licence.id if candidate.model and (licence := licence_of(candidate.model)) else None)
    if known is None:
        return "has a licence that is not known here; write `licence:` beside the candidate"
    if known.lower() in allowed:
        return None
    return f"is licensed under {known}; the study allows {', '.join(plan.constraints.licences)}"


def _quality(plan: StudyPlan, facts: Facts) -> str | None:
    floor, quality = plan.quality.floor, facts.quality
    if floor is None or quality is None or quality.value is None:
        return None
    if quality.how == "size":
        # Size is a guess with a wide band: only what lies below even its upper end is ruled out. A share says nothing
        # about size, so a floor up to 1 is left to better sources.
        best = (quality.high if quality.high is not None else quality.value) / 1e9
        if floor > 1 and best < floor:
            return f"is worth at most {best:.3g} billion dense parameters by size; the floor is {floor:.3g}"
        return None
    if floor <= 1 and quality.value < floor:
        where = f" on {quality.benchmark}" if quality.benchmark else ""
        return f"scores {quality.value:.3g}{where}; the floor is {floor:.3g}"
    return None


def _speed(plan: StudyPlan, candidate: CandidatePlan, facts: Facts) -> list[str]:
    capacity = facts.capacity_per_s
    if capacity is None or candidate.is_api:
        return []
    if capacity.value <= 0:
        doubt = DOUBT.replace("lower", "upper") if capacity.high > 0 else ""
        return [f"misses the SLO at any load, even alone{doubt}"]
    if candidate.max_replicas is None or plan.parts:
        return []
    # Where traffic is split, no candidate need carry all of it.
    needed = plan.load_per_s / capacity.value
    if needed <= candidate.max_replicas:
        return []
    there = f"there {'is' if candidate.max_replicas == 1 else 'are'} {candidate.max_replicas}"
    return [f"would take {needed:.3g} machines for {plan.load_per_s:.3g} requests/s under the SLO; {there}"]


def _budget(plan: StudyPlan, facts: Facts) -> str | None:
    budget, cost = plan.budget_usd_per_month, facts.usd_per_month
    if budget is None or cost is None or cost.value <= budget:
        return None
    return f"costs ${cost.value:,.0f} a month; the budget is ${budget:,.0f}{DOUBT if cost.low <= budget else ''}"


def _gb(count: float) -> str:
    return f"{count / 1e9:.3g} GB"
