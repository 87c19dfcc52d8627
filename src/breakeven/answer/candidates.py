"""What the table says of one candidate: quality, constraints it breaks, delays and costs over the loads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from breakeven.answer.evaluate import Assessed
from breakeven.answer.measured import ran_as, read_measured
from breakeven.answer.promise import band_text, edge_text, time_text
from breakeven.answer.study.plan import CandidatePlan, StudyPlan
from breakeven.answer.worlds import Floats
from breakeven.forecast.fleet import FleetCapacity
from breakeven.hardware.machine import machine_text
from breakeven.model.catalogue import licence_of
from breakeven.model.quality.scores import QualityScore, quality_of
from breakeven.model.resolve import bare_name
from breakeven.price.staircase import cost_points, endless, serves
from breakeven.results.cost import Api, CostPoint
from breakeven.results.decision import CandidateResult
from breakeven.stats.estimate import Estimate
from breakeven.traffic.workload import Slo

DOUBT = " (a prediction: the lower end of its interval would not)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of one candidate. None: not known, or does not apply; nothing is ruled out by what is not known.

    `memory_bytes` is what one replica needs, `memory_available_bytes` what its devices have together, `memory_lacking`
    which place is too small, in words.
    `fleet`: what replicas carry under the SLO; `usd_per_month` at the load of now. `loss`: a score that knows what is
    lost in bits per byte.
    """

    memory_bytes: float | None = None
    memory_available_bytes: float | None = None
    memory_lacking: str | None = None
    busy_w: float | None = None
    fleet: FleetCapacity | None = None
    usd_per_month: Estimate | None = None
    quality: QualityScore | None = None
    loss: QualityScore | None = None


def ruled_out(plan: StudyPlan, candidate: CandidatePlan, facts: Facts) -> list[str]:
    """Every constraint that `candidate` breaks, one phrase each; empty when it may be chosen."""
    found = [
        _place(plan, candidate),
        _memory(plan, facts),
        _power(plan, candidate, facts),
        _licence(plan, candidate),
        None if facts.quality is None else below_floor(plan.quality.floor, facts.quality),
        _loss(plan, facts),
        *_speed(plan, candidate, facts),
        beyond_budget(plan, facts.usd_per_month),
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
    if facts.memory_lacking is not None or needed is None:
        return facts.memory_lacking
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
    catalogued = None if candidate.model is None else licence_of(bare_name(candidate.model))
    known = candidate.licence or (None if catalogued is None else catalogued.id)
    if known is None:
        return "has a licence that is not known here; write `licence:` beside the candidate"
    if known.lower() in allowed:
        return None
    return f"is licensed under {known}; the study allows {', '.join(plan.constraints.licences)}"


def below_floor(floor: float | None, quality: QualityScore) -> str | None:
    """That `quality` is known to be below the floor of a study or of a part, in words; None: it is not, or may not be.

    `floor`: up to 1 a share of tasks solved, above 1 billions of dense parameters.
    """
    if floor is None or quality.value is None or quality.how == "bits_per_byte":
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


def floors_unheld(plan: StudyPlan, scores: Mapping[str, QualityScore]) -> list[str]:
    """Whom a floor of the study or of a part says nothing of, and so does not rule out, and why, a sentence each."""
    floors = [("The floor", plan.quality.floor), *((f"The floor of part {p.name!r}", p.floor) for p in plan.parts)]
    found = []
    for what, floor in floors:
        unheld: dict[str, list[str]] = {}
        for name, quality in scores.items():
            if floor and (why := _incomparable(floor, quality)):
                unheld.setdefault(why, []).append(name)
        found += [f"{what} ({floor:g}) was not held against {', '.join(who)}: {why}." for why, who in unheld.items()]
    return found


def _incomparable(floor: float, quality: QualityScore) -> str:
    """Why a floor says nothing of this quality; empty where it does."""
    if quality.value is None:
        return "nothing is known of their quality"
    if quality.how == "size" and floor <= 1:
        return "it is a share of tasks, and their quality is a guess from size; give quality.scores of your own"
    if quality.how in ("own", "published") and floor > 1:
        return "it is in billions of parameters, and their quality is a share of tasks; give a share, or source: size"
    return ""


def _loss(plan: StudyPlan, facts: Facts) -> str | None:
    most, lost = plan.quality.max_loss, facts.loss
    if most is None or lost is None or lost.loss is None or lost.loss <= most:
        return None
    where = "" if lost.loss_language in (None, "all") else f" in {lost.loss_language}"
    edge = lost.loss_low is not None and lost.loss_low <= most
    return (
        f"takes {100 * lost.loss:.3g} % more bits per byte than {lost.loss_against}{where}; the study allows "
        f"{100 * most:.3g} %{' (the lower end of its interval keeps it)' if edge else ''}"
    )


def _speed(plan: StudyPlan, candidate: CandidatePlan, facts: Facts) -> list[str]:
    fleet = facts.fleet
    if fleet is None or candidate.is_api:
        return []
    if not serves(fleet):
        doubt = DOUBT.replace("lower", "upper") if fleet.per_s_K[-1].most > 0 else ""
        return [f"misses the SLO at any load, even alone{doubt}"]
    if candidate.max_replicas is None or plan.parts:
        return []
    # Where traffic is split, no candidate need carry all of it.
    needed = fleet.replicas(plan.load_per_s)
    if needed <= candidate.max_replicas:
        return []
    there = f"there {'is' if candidate.max_replicas == 1 else 'are'} {candidate.max_replicas}"
    return [f"would take {needed:.0f} machines for {plan.load_per_s:.3g} requests/s under the SLO; {there}"]


def beyond_budget(plan: StudyPlan, cost: Estimate | None) -> str | None:
    """That a month of it costs more than the study's budget, in words; None: it does not, or nobody knows."""
    budget = plan.budget_usd_per_month
    if budget is None or cost is None or cost.value <= budget:
        return None
    return f"costs ${cost.value:,.0f} a month; the budget is ${budget:,.0f}{DOUBT if cost.least <= budget else ''}"


def _gb(count: float) -> str:
    return f"{count / 1e9:.3g} GB"


NO_QUALITY = QualityScore(how="none")
HOURS_PER_MONTH = 365.25 * 24 / 12
SHOWN_LOADS = 61
"""Loads in the result's cost curves."""


def scores_of(plan: StudyPlan, found: Sequence[Assessed]) -> Mapping[str, QualityScore]:
    """Quality by candidate, from the best source that covers them all."""
    if plan.quality.told is not None:
        return {e.plan.name: plan.quality.told.get(e.plan.name, NO_QUALITY) for e in found}
    specs = {e.plan.name: e.spec for e in found if e.spec is not None}
    asked = plan.quality
    scores = quality_of(specs, asked.source, asked.scores, asked.benchmark)
    return {e.plan.name: scores.get(e.plan.name, NO_QUALITY) for e in found}


@dataclass(frozen=True, slots=True)
class Reasons:
    """Why a candidate cannot be chosen, in words. `ever`: at no load and for no part of the traffic. `quality`: below
    the study's floor, though a part may ask for less. `now`: at the study's load, though another may suit it."""

    ever: list[str]
    quality: list[str]
    now: list[str]

    @property
    def all(self) -> list[str]:
        """Every reason, the gravest first."""
        return [*self.ever, *self.quality, *self.now]


def why_not(plan: StudyPlan, found: Assessed, quality: QualityScore) -> Reasons:
    """Everything that keeps a candidate from being chosen."""
    busy = found.power.busy_w if found.power is not None else None
    lasting = Facts(
        memory_bytes=found.needed_bytes,
        memory_available_bytes=found.available_bytes,
        memory_lacking=found.lacking,
        busy_w=busy,
        loss=quality,
    )
    ever = ruled_out(plan, found.plan, lasting)
    if broken := _broken_promise(plan, found):
        ever.append(broken)
    if found.pricing is None:
        ever.append("has no price: give usd_per_hour, a purchase, or a price per token")
    if ever:
        return Reasons(ever, [], [])
    # Of a day the whole bill counts, which is not made yet, and not that of its busiest hour.
    points = [] if plan.hours_per_s else _costs(found, [plan.load_per_s], None)
    monthly = points[0].usd_per_hour.scaled(HOURS_PER_MONTH) if points else None
    here = Facts(fleet=found.fleet, usd_per_month=monthly)
    return Reasons([], ruled_out(plan, found.plan, Facts(quality=quality)), ruled_out(plan, found.plan, here))


def _broken_promise(plan: StudyPlan, found: Assessed) -> str | None:
    """Why no number of its machines keeps the service level here, in words; None: some do, or nobody knows."""
    promise = found.promise
    if promise is not None and promise.never is not None:
        return promise.never + _faster(plan.slo, found)
    if found.fleet is not None and not serves(found.fleet):
        return _too_slow(plan.slo, found)
    if found.plan.is_api and found.latency and (kept := found.latency[0].good_share).value < plan.good_share:
        slower = "misses the SLO: its provider's own speed is slower than what is asked for"
        few = f": {band_text(kept)} of the answers are in time, {100 * plan.good_share:g} % must be"
        return slower + (few if kept.value > 0 else "")
    return None


def result_of(
    found: Assessed,
    reasons: Sequence[str],
    quality: QualityScore,
    rates: Floats,
    plan: StudyPlan,
    barred: Sequence[str] = (),
) -> CandidateResult:
    """The candidate's row, with cost curves over `rates` where it has a price and can keep the service level.

    `barred`: parts of the traffic that it may not serve.
    """
    of_a_day = [sum(plan.hours_per_s) / len(plan.hours_per_s)] if plan.hours_per_s else []
    looked = rates[np.linspace(0, len(rates) - 1, SHOWN_LOADS).astype(int)].tolist()
    shown = sorted({*looked, plan.load_per_s, *of_a_day})
    solved = quality if quality.how in ("own", "published") else None
    # What cannot be kept at any price has none.
    cost = [] if _broken_promise(plan, found) else _costs(found, shown, solved)
    boundless = None if found.fleet is None or found.plan.is_api else endless(found.fleet)
    model, promise = found.model, found.promise
    machine, engine, format_name = _where(found)
    top = max((p.tokens_per_s for p in found.latency), default=None) if model is not None else None
    return CandidateResult(
        name=found.plan.name,
        model=found.plan.model or found.plan.name,
        kind=found.kind,
        machine=machine,
        engine=engine,
        format=format_name,
        devices=found.plan.devices,
        location=found.plan.location,
        provenance=found.provenance,
        # `provenance` above says it for every number of the candidate.
        capacity_per_s=None if found.capacity is None else found.capacity.plain(),
        saturation_tokens_per_s=top,
        memory_bytes=found.needed_bytes,
        memory_available_bytes=found.available_bytes,
        ruled_out=list(reasons),
        quality=quality,
        pricing=found.pricing,
        latency=list(found.latency),
        cost=cost,
        notes=[*found.notes, *_stood_in(found), *([boundless] if cost and boundless is not None else [])],
        kv=model.kv if model is not None else None,
        placement=found.placement,
        placed=None if model is None or model.lies is None else model.lies.placed(),
        shares=list(promise.shares) if promise is not None else [],
        borderline=edge_text(promise.edge, plan.good_share) if promise is not None and promise.edge else None,
        barred_from=list(barred),
    )


def _where(found: Assessed) -> tuple[str, str, str]:
    """Machine, engine and format of a candidate; of one that was only measured, as its study tells them."""
    model, plan = found.model, found.plan
    if model is not None:
        return model.profile.name, plan.engine or model.profile.engine, model.format_label
    if plan.measured is None:
        return plan.machine or "hosted", plan.engine or "hosted", plan.format or "as hosted"
    study = read_measured(plan.measured)
    ran = ran_as(study, plan.model)
    # A server behind a URL may stand anywhere.
    machine = ran.settings.get("url") or machine_text(study.machine)
    engine = plan.engine or ran.settings.get("engine", "unknown")
    return plan.machine or machine, engine, plan.format or ran.format or "as measured"


def _stood_in(found: Assessed) -> list[str]:
    """That another engine's model of a step is this one's, where it is."""
    model, named = found.model, found.plan.engine
    if model is None or named in (None, model.profile.engine, model.profile.origin.engine):
        return []
    return [f"{named} is predicted by {model.profile.engine}'s model of a step"]


def needed(found: Sequence[Assessed], reasons: Mapping[str, Reasons]) -> list[str]:
    """What it would take, when nobody can serve the workload: each candidate's first obstacle."""
    return [f"{e.plan.name} {reasons[e.plan.name].all[0]}." for e in found if reasons[e.plan.name].all]


def _costs(found: Assessed, rates: Sequence[float], quality: QualityScore | None) -> list[CostPoint]:
    if found.pricing is None or not (isinstance(found.pricing, Api) or found.fleet is not None):
        return []
    return cost_points(found.pricing, found.fleet, found.traffic, rates, power=found.power, quality=quality)


def _too_slow(slo: Slo, found: Assessed) -> str:
    """Which term of the SLO a single request breaks, and how much faster the machine would have to be."""
    if found.provenance == "measured":
        # The capacity lies between nothing and the least rate that failed.
        least = None if found.capacity is None else found.capacity.high
        seen = "" if not least else f", not at {least:.3g} requests a second either"
        return f"kept the SLO at no load that was measured{seen}; measure lower rates"
    over = _worst(slo, found)
    if over is None:
        return "misses the SLO: too few of its requests keep it at any load, the long ones not even alone"
    name, value, limit = over
    return (
        f"misses the SLO at any load: a typical request alone has {name} {time_text(value)} where {time_text(limit)} "
        f"is asked for{_faster(slo, found)}"
    )


def _faster(slo: Slo, found: Assessed) -> str:
    """How much faster the machine would have to be for a typical request alone; empty where that keeps the SLO."""
    over = _worst(slo, found)
    if over is None:
        return ""
    name, value, limit = over
    times = f"{value / limit:.1f}" if value < 99.95 * limit else f"{value / limit:,.0f}"
    return f"; its {name} would need a machine {times} times as fast, or a narrower format"


def _worst(slo: Slo, found: Assessed) -> tuple[str, float, float] | None:
    """(term, value, limit) of the SLO that a typical request alone breaks most; None: it keeps all, or nobody knows."""
    if found.model is None:
        return None
    prompt, output = found.traffic.prompt_tokens, found.traffic.output_tokens
    ttft = float(found.model.step_s(0, 0, prompt, prompt / 2))
    tpot = float(found.model.step_s(1, prompt + output / 2))
    e2e = ttft + tpot * max(output - 1, 0)
    over = [
        (name, value, limit)
        for name, value, limit in (
            ("TTFT", ttft, slo.ttft_s),
            ("TPOT", tpot, slo.tpot_s),
            ("ITL", tpot, slo.itl_s),
            ("E2E", e2e, slo.e2e_s),
        )
        if limit is not None and value > limit
    ]
    return max(over, key=lambda term: term[1] / term[2], default=None)
