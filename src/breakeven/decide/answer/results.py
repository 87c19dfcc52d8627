"""What the table says of one candidate: quality, constraints, delays and costs over the loads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from breakeven.decide.answer.constraints import Facts, ruled_out
from breakeven.decide.answer.draws import Floats
from breakeven.decide.answer.evaluate import Evaluated
from breakeven.decide.study.model import StudyPlan
from breakeven.price.staircase import cost_points, scaled
from breakeven.spec.cost import Api, CostPoint
from breakeven.spec.decision import CandidateResult, QualityScore
from breakeven.spec.quality import quality_of
from breakeven.spec.workload import Slo

NO_QUALITY = QualityScore(how="none")
HOURS_PER_MONTH = 365.25 * 24 / 12
SHOWN_LOADS = 61
"""Loads in the result's cost curves."""


def scores_of(plan: StudyPlan, found: Sequence[Evaluated]) -> Mapping[str, QualityScore]:
    """Quality by candidate, from the best source that covers them all."""
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


def why_not(plan: StudyPlan, found: Evaluated, quality: QualityScore) -> Reasons:
    """Everything that keeps a candidate from being chosen."""
    busy = found.power.busy_w if found.power is not None else None
    lasting = Facts(memory_bytes=found.needed_bytes, memory_available_bytes=found.available_bytes, busy_w=busy)
    ever = ruled_out(plan, found.plan, lasting)
    if found.capacity is not None and found.capacity.value <= 0:
        ever.append(_too_slow(plan.slo, found))
    if found.plan.is_api and found.latency and found.latency[0].good_share.value <= 0:
        ever.append("misses the SLO: its provider's own speed is slower than what is asked for")
    if found.pricing is None:
        ever.append("has no price: give usd_per_hour, a purchase, or a price per token")
    if ever:
        return Reasons(ever, [], [])
    points = _costs(found, [plan.load_per_s], None)
    monthly = scaled(points[0].usd_per_hour, HOURS_PER_MONTH) if points else None
    here = Facts(capacity_per_s=found.capacity, usd_per_month=monthly)
    return Reasons([], ruled_out(plan, found.plan, Facts(quality=quality)), ruled_out(plan, found.plan, here))


def result_of(
    found: Evaluated,
    reasons: Sequence[str],
    quality: QualityScore,
    rates: Floats,
    plan: StudyPlan,
) -> CandidateResult:
    """The candidate's row, with cost curves over `rates` where it has a price and serves anything."""
    shown = sorted({*rates[np.linspace(0, len(rates) - 1, SHOWN_LOADS).astype(int)].tolist(), plan.load_per_s})
    solved = quality if quality.how in ("own", "published") else None
    cost = _costs(found, shown, solved)
    model = found.model
    top = max((p.tokens_per_s for p in found.latency), default=None) if model is not None else None
    return CandidateResult(
        name=found.plan.name,
        model=found.plan.model or found.plan.name,
        kind=found.kind,
        machine=model.profile.name if model is not None else (found.plan.machine or "hosted"),
        engine=model.profile.engine if model is not None else (found.plan.engine or "hosted"),
        format=model.format if model is not None else (found.plan.format or "as hosted"),
        devices=found.plan.devices,
        location=found.plan.location,
        provenance=found.provenance,
        capacity_per_s=found.capacity,
        saturation_tokens_per_s=top,
        memory_bytes=found.needed_bytes,
        memory_available_bytes=found.available_bytes,
        ruled_out=list(reasons),
        quality=quality,
        pricing=found.pricing,
        latency=list(found.latency),
        cost=cost,
        notes=found.notes,
    )


def needed(found: Sequence[Evaluated], reasons: Mapping[str, Reasons]) -> list[str]:
    """What it would take, when nobody can serve the workload: each candidate's first obstacle."""
    return [f"{e.plan.name} {reasons[e.plan.name].all[0]}." for e in found if reasons[e.plan.name].all]


def _costs(found: Evaluated, rates: Sequence[float], quality: QualityScore | None) -> list[CostPoint]:
    if found.pricing is None or not (isinstance(found.pricing, Api) or found.capacity is not None):
        return []
    return cost_points(found.pricing, found.capacity, found.traffic, rates, power=found.power, quality=quality)


def _too_slow(slo: Slo, found: Evaluated) -> str:
    """Which term of the SLO a single request breaks, and how much faster the machine would have to be."""
    assert found.model is not None
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
    if not over:
        return "misses the SLO: too few of its requests keep it at any load, the long ones not even alone"
    name, value, limit = max(over, key=lambda term: term[1] / term[2])
    return (
        f"misses the SLO at any load: a typical request alone has {name} {_time(value)} where {_time(limit)} is asked "
        f"for; it would need a machine {value / limit:.1f} times as fast, or a narrower format"
    )


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2g} s"
