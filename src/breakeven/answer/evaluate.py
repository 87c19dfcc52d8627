"""One candidate, evaluated: whether it fits, what load it carries under the SLO, and how fast it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np

from breakeven.answer.measured import (
    anchored_at,
    bounded,
    capacity_measured,
    doubt_measured,
    latency_measured,
    measured_otherwise,
    read_measured,
)
from breakeven.answer.promise import FEW, Promise, WhatIsAsked, many_text, short_text, taken
from breakeven.answer.study.plan import CandidatePlan, StudyPlan
from breakeven.answer.worlds import Contender, Doubt, doubt_of
from breakeven.errors import UserError
from breakeven.forecast.asked import asked_model, assumed_notes, model_on, profiles_for
from breakeven.forecast.fleet import FleetCapacity
from breakeven.forecast.model import StepModel
from breakeven.forecast.predict import placement_notes
from breakeven.forecast.residency import ON_DEVICE
from breakeven.forecast.serving import has_enough_to_fill, latency_points, replica_of, unit_requests
from breakeven.forecast.simulator.policy import Policy
from breakeven.forecast.simulator.run import policy_of as engine_policy
from breakeven.hardware.placement import AUTO
from breakeven.model.architecture import ModelSpec
from breakeven.model.resolve import resolve_spec
from breakeven.price.pricing import Power, PricedTraffic, power_of, unpowered
from breakeven.price.staircase import in_proportion
from breakeven.price.workload import SAMPLE, priced_traffic, replica_price, with_answers
from breakeven.results.cost import Api, Pricing
from breakeven.results.decision import Kind, LatencyPoint
from breakeven.stats.estimate import Estimate, Provenance, exactly
from breakeven.traffic.traces.rows import TraceRows
from breakeven.traffic.workload import Workload

SLOTS_BESIDE_HOST = 4
"""Sequences whose keys and values keep their place on a device that leaves weights to the host."""
LATENCY_LOADS = (0.2, 0.5, 0.8, 1.0)
"""Loads of the latency curve, over one replica's capacity."""
NO_PRICE = "price not given: "
"""Begins the note that says where a price comes from which the study does not give."""


@dataclass(frozen=True, slots=True)
class Assessed:
    """A candidate with everything known of it. None where it does not apply or could not be found out."""

    plan: CandidatePlan
    traffic: PricedTraffic
    spec: ModelSpec | None
    model: StepModel | None
    policy: Policy | None
    fleet: FleetCapacity | None
    latency: Sequence[LatencyPoint]
    pricing: Pricing | None
    power: Power | None
    doubt: Doubt | None
    provenance: Provenance
    needed_bytes: float | None
    available_bytes: float | None
    notes: list[str] = field(default_factory=list)
    promise: Promise | None = None
    """At the study's load; None where nothing was simulated."""
    one: Estimate | None = None
    """What one replica carries, where `fleet` was made to agree with a simulation at the study's load."""

    @property
    def capacity(self) -> Estimate | None:
        """Of one replica, as simulated or measured."""
        return self.one if self.one is not None or self.fleet is None else self.fleet.one

    @property
    def kind(self) -> Kind:
        """dense, moe, or unknown for an API that does not say."""
        if self.spec is None:
            return "unknown"
        return "moe" if self.spec.is_moe else "dense"

    @property
    def typical_tokens(self) -> int:
        """Prompt and answer of a request on average."""
        return round(self.traffic.prompt_tokens + self.traffic.output_tokens)

    @property
    def lacking(self) -> str | None:
        """Which place of a placed model is too small, with the numbers; what was measured had room."""
        return None if self.model is None or self.plan.measured is not None else self.model.lacking()

    @property
    def fits(self) -> bool:
        """True where its weights and one request's keys and values have room; an API always fits."""
        if self.lacking is not None:
            return False
        return self.needed_bytes is None or self.available_bytes is None or self.needed_bytes <= self.available_bytes

    @property
    def placement(self) -> str | None:
        """Where its weights lie, in words; None where there is nothing to place."""
        return None if self.model is None else self.model.placement_words(1, self.typical_tokens)

    def contender(self) -> Contender | None:
        """As the verdict sees it; None when it has no price or serves nothing."""
        if self.pricing is None or (not isinstance(self.pricing, Api) and self.fleet is None):
            return None
        return Contender(
            name=self.plan.name,
            kind=self.kind,
            pricing=self.pricing,
            fleet=None if isinstance(self.pricing, Api) else self.fleet,
            traffic=self.traffic,
            doubt=self.doubt,
            latency=self.latency,
            power=self.power,
            max_replicas=self.plan.max_replicas,
            scale=self.plan.scale,
            only_just=self.promise is not None and self.promise.only_just,
        )


def model_of(plan: CandidatePlan, format_name: str | None = None) -> StepModel:
    """The step model of a candidate with a model and a machine. Raises UserError for what is unknown or missing."""
    if plan.model is None or plan.machine is None:
        raise UserError(
            f"candidate {plan.name}: say its machine (`breakeven machines` lists them), or give an API price"
        )
    asked = asked_model(plan.model, plan.format)
    if format_name is not None:
        asked = replace(asked, format_name=format_name)
    profile = profiles_for([asked], plan.machine, plan.engine, plan.devices)[0]
    said = {"memory_bytes": plan.memory_bytes, "host_memory_bytes": plan.host_memory_bytes}
    if changed := {name: value for name, value in said.items() if value is not None}:
        profile = msgspec.structs.replace(profile, **changed)
    return model_on(asked, profile, plan.devices, kv=plan.kv, placement=plan.placement or AUTO)


def errs_with(model: StepModel) -> str:
    """What shares the error of its step times: models under one engine on one machine are wrong together."""
    return f"{model.profile.engine} on {model.profile.name}"


def policy_of(plan: CandidatePlan, model: StepModel, context: float) -> Policy:
    """The engine's policy on that machine with what the user set of it. `context`: tokens of a usual request."""
    said = {
        name: getattr(plan.policy, name) for name in ("max_sequences", "max_step_tokens", "prefix_caching", "kv_tokens")
    }
    policy = engine_policy(model, context)
    if plan.measured is None:  # no engine answers beyond a model's context unless told how, as what was measured was
        policy = replace(policy, slot_tokens=model.spec.context or None)
    return replace(policy, **{name: value for name, value in said.items() if value is not None})


def evaluate(study: StudyPlan, plan: CandidatePlan, trace: TraceRows | None) -> Assessed:
    """Evaluate one candidate under the study's workload, with answers as long as it gives them.

    Raises UserError for what cannot be resolved.
    """
    workload, trace = with_answers(study.workload, trace, study.quality.answer_tokens.get(plan.name))
    traffic = priced_traffic(workload, trace, study.cached_share)
    if plan.model is None or plan.is_api or (plan.measured is not None and plan.machine is None):
        return _without_model(study, plan, traffic, workload, trace)
    model = placed(model_of(plan), traffic.prompt_tokens + traffic.output_tokens)
    pricing, power, notes = bill_of(plan, model)
    found = Assessed(
        plan=plan,
        traffic=traffic,
        spec=model.spec,
        model=model,
        policy=None,
        fleet=None,
        latency=[],
        pricing=pricing,
        power=power,
        doubt=doubt_of(plan.name, errs_with(model), model.error("decode")),
        provenance="predicted",
        needed_bytes=model.memory_bytes(1, round(traffic.prompt_tokens + traffic.output_tokens)),
        available_bytes=room_bytes(model),
        notes=[*assumed_notes(model.spec), *placement_notes(model), *notes],
    )
    if not found.fits and plan.measured is None:
        return found
    policy = policy_of(plan, model, found.typical_tokens)
    found = replace(found, policy=policy)
    requests = study.workload.requests
    asked = WhatIsAsked(
        policy, workload, study.slo, study.good_share, trace, study.load_per_s, study.high_per_s, requests
    )
    fleet = asked.fleet(model)
    if plan.measured is not None:
        seen = read_measured(plan.measured)
        otherwise = measured_otherwise(study, plan, traffic, seen)
        told, open_ended = bounded(capacity_measured(seen, plan.model, study.good_share), fleet.one)
        # Away from what was measured the step model says how much changes, and the measurement where it starts.
        if told.value > 0 and fleet.one.value > 0:
            model = model.scaled(fleet.one.value / told.value)
        delays = latency_measured(seen, plan.model, told)
        doubt = doubt_measured(plan.name, told)
        mine = anchored_at(told, fleet)
        shares = Promise(tuple(asked.shares(model, FEW)), None)
        return replace(
            found,
            model=model,
            fleet=mine,
            latency=delays,
            doubt=doubt,
            provenance=told.provenance,
            promise=shares,
            notes=[*found.notes, *otherwise, *open_ended],
        )
    promise = asked.promise(model, fleet)
    found = replace(found, fleet=fleet, promise=promise, one=fleet.one)
    if promise.machines is None:
        return found
    by_curve = fleet.replicas(study.load_per_s)
    if requests is not None and by_curve > promise.machines:
        one = replica_of(model, policy, workload, trace, requests)
        if one is not None and not has_enough_to_fill(one):
            found = replace(found, notes=[*found.notes, short_text(requests, promise.machines, by_curve)])
    fleet = taken(fleet, promise.machines, study.load_per_s)
    if note := many_text(promise, fleet, study.load_per_s):
        found = replace(found, notes=[*found.notes, note])
    replicas = fleet.replicas(study.load_per_s)
    # Of as many as this load takes: one alone may carry next to nothing where bursts come.
    each = fleet.per_s(int(replicas)) / replicas
    rates = sorted({*(share * each for share in LATENCY_LOADS), study.load_per_s / replicas})
    delays = latency_points(model, policy, workload, study.slo, rates, trace, requests=requests)
    return replace(found, fleet=fleet, latency=delays)


def _without_model(
    study: StudyPlan, plan: CandidatePlan, traffic: PricedTraffic, workload: Workload, trace: TraceRows | None
) -> Assessed:
    """An API, or a candidate of which only the measurement is known: nothing but this workload can be said of it."""
    power = power_of(plan.pricing) if plan.pricing is not None else None
    dark = unpowered(plan.pricing, power) if plan.pricing is not None else None
    found = Assessed(
        plan=plan,
        traffic=traffic,
        spec=resolve_spec(plan.model) if plan.model else None,
        model=None,
        policy=None,
        fleet=None,
        latency=_api_latency(study, plan, traffic, workload, trace),
        pricing=plan.pricing,
        power=power,
        doubt=None,
        provenance="published",
        needed_bytes=None,
        available_bytes=None,
        notes=[] if dark is None else [dark],
    )
    if plan.is_api:
        return found
    if plan.measured is None:
        raise UserError(f"candidate {plan.name}: give a model and a machine, a measured result, or an API price")
    seen = read_measured(plan.measured)
    otherwise = measured_otherwise(study, plan, traffic, seen)
    told, open_ended = bounded(capacity_measured(seen, plan.model, study.good_share), None)
    alone = "one replica was measured; n of them are taken to carry n times as much"
    return replace(
        found,
        fleet=in_proportion(told),
        latency=latency_measured(seen, plan.model, told),
        doubt=doubt_measured(plan.name, told),
        provenance="measured",
        notes=[*found.notes, *otherwise, *open_ended, alone],
    )


def bill_of(plan: CandidatePlan, model: StepModel) -> tuple[Pricing | None, Power | None, list[str]]:
    """The study's price, else the chip's published one by the hour; and a replica's power, as either or the chip says.

    The list says where a price comes from that the study does not give, and what the bill lacks.
    """
    profile, notes = model.profile, []
    pricing = plan.pricing
    if pricing is None:
        try:
            pricing, note = replica_price(profile, None, model.devices)
        except UserError:
            return None, None, []
        notes.append(f"{NO_PRICE}{note}")
    power = power_of(pricing, profile.idle_w, profile.busy_w, model.devices)
    if (dark := unpowered(pricing, power)) is not None:
        notes.append(dark)
    return pricing, power, notes


def placed(model: StepModel, context: float) -> StepModel:
    """With host memory beside the device, what does not fit the device moves there, as llama.cpp does it.

    A placement that was asked for stays as it is. Host memory that the study does not name is not counted on.
    """
    if model.placement != AUTO:
        return model.placed(SLOTS_BESIDE_HOST, context)
    if model.profile.host_memory_bytes is None or model.fits(1, context):
        return replace(model, residency=ON_DEVICE, lies=None)
    return model.placed(SLOTS_BESIDE_HOST, context)


def room_bytes(model: StepModel) -> float | None:
    """Bytes that weights and keys and values may take: on the devices, and on the host where weights lie there.

    What is paged from disk has no room anywhere.
    """
    usable, where = model.usable_bytes(), model.residency
    return None if usable is None else usable + where.away_bytes - where.disk_bytes


def _api_latency(
    study: StudyPlan, plan: CandidatePlan, traffic: PricedTraffic, workload: Workload, trace: TraceRows | None
) -> list[LatencyPoint]:
    """A hosted model's speed as somebody told it, the same at every load.

    Its longest gap between tokens is at least their mean; whole answers are in time or not by their lengths.
    """
    speed, slo, output = plan.api_speed, study.slo, traffic.output_tokens
    if speed is None:
        return []
    ttft, tpot = speed.ttft_s, 1.0 / speed.tokens_per_s
    e2e, good = ttft + tpot * max(output - 1.0, 0.0), 1.0
    limits = ((ttft, slo.ttft_s), (tpot, slo.tpot_s), (tpot, slo.itl_s))
    if any(limit is not None and took > limit for took, limit in limits):
        good = 0.0
    elif slo.e2e_s is not None:
        output_N = unit_requests(workload, trace, SAMPLE).output_tokens_N
        good = float(np.mean(ttft + tpot * np.maximum(output_N - 1.0, 0.0) <= slo.e2e_s))
    flat = {name: exactly(v) for name, v in (("ttft", ttft), ("tpot", tpot), ("e2e", e2e), ("good", good))}
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


def kinds_of(found: Sequence[Assessed]) -> Mapping[str, str]:
    """ "dense" or "MoE" by candidate, for sentences."""
    words = {"dense": "dense", "moe": "MoE", "unknown": "unknown architecture"}
    return {e.plan.name: words[e.kind] for e in found}
