"""One candidate, evaluated: whether it fits, what load it carries under the SLO, and how fast it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from breakeven.decide.answer.draws import Doubt, doubt_of
from breakeven.decide.answer.worlds import Contender
from breakeven.decide.serving import capacity_of, latency_points
from breakeven.decide.study.model import CandidatePlan, StudyPlan
from breakeven.errors import UserError
from breakeven.measure.traces import TraceRows
from breakeven.predict.model import StepModel, step_model
from breakeven.predict.profiles import profile_named
from breakeven.predict.simulate.policy import Policy, policy_named
from breakeven.price.pricing import Power, power_of
from breakeven.spec.cost import Api, Pricing, Rented
from breakeven.spec.decision import Kind, LatencyPoint
from breakeven.spec.estimate import Provenance
from breakeven.spec.model import ModelSpec
from breakeven.spec.prediction import Span
from breakeven.spec.resolve import resolve_spec
from breakeven.spec.workload import Workload

BUSY_SHARE, IDLE_SHARE = 0.6, 0.2
"""Power of a device that nobody measured, as shares of its rated power: serving H100s drew 0.36-0.6 of 700 W, idle
ones about a fifth (the public load sweep of docs/accuracy.md). A judgement, named among the assumptions."""
LATENCY_LOADS = (0.1, 0.3, 0.5, 0.7, 0.85, 0.95, 1.0)
"""Loads of the latency curve, over one replica's capacity."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A candidate with everything known of it. None where it does not apply or could not be found out."""

    plan: CandidatePlan
    spec: ModelSpec | None
    model: StepModel | None
    policy: Policy | None
    capacity: Span | None
    latency: Sequence[LatencyPoint]
    pricing: Pricing | None
    power: Power | None
    doubt: Doubt | None
    provenance: Provenance
    needed_bytes: float | None
    available_bytes: float | None
    typical: tuple[float, float] = (0.0, 0.0)
    """Mean prompt and output tokens of a request."""
    notes: list[str] = field(default_factory=list)

    @property
    def kind(self) -> Kind:
        """dense, moe, or unknown for an API that does not say."""
        if self.spec is None:
            return "unknown"
        return "moe" if self.spec.is_moe else "dense"

    @property
    def fits(self) -> bool:
        """True where its weights and one request's keys and values have room; an API always fits."""
        return self.needed_bytes is None or self.available_bytes is None or self.needed_bytes <= self.available_bytes

    def contender(self, solved_share: float = 1.0) -> Contender | None:
        """As the verdict sees it; None when it has no price or serves nothing."""
        if self.pricing is None or (not isinstance(self.pricing, Api) and self.capacity is None):
            return None
        return Contender(
            name=self.plan.name,
            kind=self.kind,
            pricing=self.pricing,
            capacity=None if isinstance(self.pricing, Api) else self.capacity,
            doubt=self.doubt,
            latency=self.latency,
            power=self.power,
            max_replicas=self.plan.max_replicas,
            solved_share=solved_share,
        )


def model_of(plan: CandidatePlan, format_name: str | None = None) -> StepModel | None:
    """The step model of a candidate; None for an API. Raises UserError for what is unknown or missing."""
    if plan.is_api or plan.model is None:
        return None
    if plan.machine is None:
        raise UserError(
            f"candidate {plan.name}: say its machine (`breakeven machines` lists them), or give an API price"
        )
    fmt = format_name or plan.format
    spec = resolve_spec(plan.model)
    profile = profile_named(plan.machine, plan.engine, plan.devices, fmt)
    changed = {
        name: value
        for name, value in (("memory_bytes", plan.memory_bytes), ("host_memory_bytes", plan.host_memory_bytes))
        if value is not None
    }
    if changed:
        import msgspec

        profile = msgspec.structs.replace(profile, **changed)
    return step_model(spec, profile, fmt or profile.origin.format or "BF16", plan.devices)


def policy_of(plan: CandidatePlan, engine: str) -> Policy:
    """The engine's policy with what the user set of it."""
    said = {name: getattr(plan.policy, name) for name in ("max_sequences", "max_step_tokens", "prefix_caching")}
    said["kv_tokens"] = plan.policy.kv_tokens
    return replace(policy_named(engine), **{name: value for name, value in said.items() if value is not None})


def evaluate(
    study: StudyPlan,
    plan: CandidatePlan,
    trace: TraceRows | None,
    *,
    workload: Workload | None = None,
    format_name: str | None = None,
    latency: bool = True,
    typical: tuple[float, float],
) -> Evaluated:
    """Evaluate one candidate under the study's workload, or another one, or in another format.

    `typical`: mean prompt and output tokens of a request, which must fit. Raises UserError for what cannot be resolved.
    """
    if plan.is_api:
        spec = resolve_spec(plan.model) if plan.model else None
        return Evaluated(
            plan, spec, None, None, None, _api_latency(study, plan), plan.pricing, None, None, "published", None, None
        )
    model = model_of(plan, format_name)
    if model is None:
        raise UserError(f"candidate {plan.name}: give a model and a machine, or an API price")
    engine = model.profile.engine
    policy = policy_of(plan, engine)
    pricing, notes = _pricing(plan, model)
    needed = model.memory_bytes(1, round(sum(typical)))
    available = _available(model)
    doubt = doubt_of(plan.name, model.profile.name, model.error("decode"))
    capacity, points = None, []
    if available is None or needed <= available:
        capacity = capacity_of(model, policy, workload or study.workload, study.slo, study.good_share, trace)
        if latency and capacity.value > 0:
            rates = [share * capacity.value for share in LATENCY_LOADS]
            points = latency_points(model, policy, workload or study.workload, study.slo, rates, trace)
    return Evaluated(
        plan,
        model.spec,
        model,
        policy,
        capacity,
        points,
        pricing,
        _power(pricing, model),
        doubt,
        "predicted",
        needed,
        available,
        typical,
        notes,
    )


def _pricing(plan: CandidatePlan, model: StepModel) -> tuple[Pricing | None, list[str]]:
    """The study's price, else the chip's published one by the hour."""
    if plan.pricing is not None:
        return plan.pricing, []
    chip = model.profile.chip
    hourly = [p for p in (chip.prices if chip else []) if p.kind == "hour"]
    if not hourly:
        return None, []
    price = sorted(hourly, key=lambda p: p.usd)[len(hourly) // 2]
    pricing = Rented(usd_per_hour=price.usd * model.devices, date=price.date)
    note = f"price not given: {price.what}, ${price.usd:.2f} an hour a device, {price.date} ({price.source})"
    return pricing, [note]


def _power(pricing: Pricing | None, model: StepModel) -> Power | None:
    """Power of a replica: measured, or as the price says, or guessed from the rated power."""
    profile = model.profile
    idle, busy = profile.idle_w, profile.busy_w
    if profile.chip is not None and profile.chip.tdp_w is not None and (idle is None or busy is None):
        idle, busy = IDLE_SHARE * profile.chip.tdp_w, BUSY_SHARE * profile.chip.tdp_w
    if idle is not None and busy is not None:
        idle, busy = idle * model.devices, busy * model.devices
    return power_of(pricing, idle, busy) if pricing is not None else None


def _available(model: StepModel) -> float | None:
    """Bytes of all devices of a replica, and of the host where the engine can leave experts there."""
    profile = model.profile
    if profile.memory_bytes is None:
        return None
    host = profile.host_memory_bytes if profile.constants.host_bytes_per_s else None
    return float(profile.memory_bytes * model.devices + (host or 0))


def _api_latency(study: StudyPlan, plan: CandidatePlan) -> list[LatencyPoint]:
    """A hosted model's speed as somebody told it, the same at every load."""
    speed = plan.api_speed
    if speed is None:
        return []
    output = study.workload.output.mean if study.workload.output is not None else 256.0
    ttft, tpot = speed.ttft_s, 1.0 / speed.tokens_per_s
    e2e = ttft + tpot * max(output - 1.0, 0.0)
    good = 1.0
    if (study.slo.ttft_s is not None and ttft > study.slo.ttft_s) or (
        study.slo.tpot_s is not None and tpot > study.slo.tpot_s
    ):
        good = 0.0
    flat = {
        name: Span(value=v, low=v, high=v) for name, v in (("ttft", ttft), ("tpot", tpot), ("e2e", e2e), ("good", good))
    }
    return [
        LatencyPoint(
            rate_per_s=rate,
            ttft_p50_s=flat["ttft"],
            ttft_p99_s=flat["ttft"],
            tpot_p50_s=flat["tpot"],
            tpot_p99_s=flat["tpot"],
            e2e_p50_s=flat["e2e"],
            e2e_p99_s=flat["e2e"],
            good_share=flat["good"],
            utilisation=0.0,
            tokens_per_s=rate * output,
        )
        for rate in np.geomspace(study.low_per_s, study.high_per_s, 5).tolist()
    ]


def kinds_of(found: Sequence[Evaluated]) -> Mapping[str, str]:
    """ "dense" or "MoE" by candidate, for sentences."""
    words = {"dense": "dense", "moe": "MoE", "unknown": "unknown architecture"}
    return {e.plan.name: words[e.kind] for e in found}
