"""One candidate, evaluated: whether it fits, what load it carries under the SLO, and how fast it answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np

from breakeven.answer.promise import FEW, Promise, WhatIsAsked, many_text, taken
from breakeven.answer.study.plan import CandidatePlan, StudyPlan
from breakeven.answer.worlds import Contender, Doubt, doubt_of
from breakeven.errors import UserError
from breakeven.forecast.asked import asked_model, assumed_notes, model_on, profiles_for
from breakeven.forecast.fleet import FleetCapacity
from breakeven.forecast.model import StepModel
from breakeven.forecast.predict import placement_notes
from breakeven.forecast.residency import ON_DEVICE
from breakeven.forecast.serving import latency_points
from breakeven.forecast.simulator.policy import Policy
from breakeven.forecast.simulator.run import policy_of as engine_policy
from breakeven.hardware.placement import AUTO
from breakeven.model.architecture import ModelSpec
from breakeven.model.resolve import resolve_spec
from breakeven.price.pricing import Power, PricedTraffic, power_of
from breakeven.price.staircase import in_proportion
from breakeven.price.workload import priced_traffic, replica_price, with_answers
from breakeven.results.cost import Api, Pricing
from breakeven.results.decision import Kind, LatencyPoint
from breakeven.results.load import CapacityStudy, LoadModel, LoadPoint, LoadStudy
from breakeven.results.point import latency_point, of_load
from breakeven.results.store import RESULT, UnreadError, read
from breakeven.stats.estimate import Estimate, Provenance, exactly, measured
from breakeven.traffic.traces.rows import TraceRows

SLOTS_BESIDE_HOST = 4
"""Sequences whose keys and values keep their place on a device that leaves weights to the host."""
LATENCY_LOADS = (0.2, 0.5, 0.8, 1.0)
"""Loads of the latency curve, over one replica's capacity."""


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


def policy_of(plan: CandidatePlan, model: StepModel, context: float) -> Policy:
    """The engine's policy on that machine with what the user set of it. `context`: tokens of a usual request."""
    said = {
        name: getattr(plan.policy, name) for name in ("max_sequences", "max_step_tokens", "prefix_caching", "kv_tokens")
    }
    policy = engine_policy(model, context)
    return replace(policy, **{name: value for name, value in said.items() if value is not None})


def evaluate(study: StudyPlan, plan: CandidatePlan, trace: TraceRows | None) -> Assessed:
    """Evaluate one candidate under the study's workload, with answers as long as it gives them.

    Raises UserError for what cannot be resolved.
    """
    workload, trace = with_answers(study.workload, trace, study.quality.answer_tokens.get(plan.name))
    traffic = priced_traffic(workload, trace, study.cached_share)
    if plan.model is None or plan.is_api or (plan.measured is not None and plan.machine is None):
        return _without_model(study, plan, traffic)
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
        doubt=doubt_of(plan.name, model.profile.name, model.error("decode")),
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
        told = capacity_measured(seen, plan.model, study.good_share)
        # Away from what was measured the step model says how much changes, and the measurement where it starts.
        if told.value > 0 and fleet.one.value > 0:
            model = model.scaled(fleet.one.value / told.value)
        delays = latency_measured(seen, plan.model, told)
        doubt = _doubt_of(plan.name, told)
        mine = anchored_at(told, fleet)
        shares = Promise(tuple(asked.shares(model, FEW)), None)
        return replace(
            found, model=model, fleet=mine, latency=delays, doubt=doubt, provenance="measured", promise=shares
        )
    promise = asked.promise(model, fleet)
    found = replace(found, fleet=fleet, promise=promise, one=fleet.one)
    if promise.machines is None:
        return found
    fleet = taken(fleet, promise.machines, study.load_per_s)
    if note := many_text(promise, fleet, study.load_per_s):
        found = replace(found, notes=[*found.notes, note])
    replicas = fleet.replicas(study.load_per_s)
    # Of as many as this load takes: one alone may carry next to nothing where bursts come.
    each = fleet.per_s(int(replicas)) / replicas
    rates = sorted({*(share * each for share in LATENCY_LOADS), study.load_per_s / replicas})
    delays = latency_points(model, policy, workload, study.slo, rates, trace, requests=requests)
    return replace(found, fleet=fleet, latency=delays)


def anchored_at(told: Estimate, predicted: FleetCapacity) -> FleetCapacity:
    """A fleet of which one replica was measured: as much more than it as was predicted, size by size."""
    if not told.value > 0 or not predicted.one.value > 0:
        return in_proportion(told)
    factor = told.value / predicted.one.value
    low, high = told.least / told.value, told.most / told.value
    per_s_K = tuple(
        Estimate(each.value * factor, each.value * factor * low, each.value * factor * high, told.n, told.provenance)
        for each in predicted.per_s_K[1:]
    )
    top = predicted.saturation_per_s
    return FleetCapacity(predicted.sizes_K, (told, *per_s_K), None if top is None else top.scaled(factor))


def _without_model(study: StudyPlan, plan: CandidatePlan, traffic: PricedTraffic) -> Assessed:
    """An API, or a candidate of which only the measurement is known: nothing but this workload can be said of it."""
    spec = resolve_spec(plan.model) if plan.model else None
    told, delays, doubt, provenance = None, _api_latency(study, plan, traffic.output_tokens), None, "published"
    if not plan.is_api:
        if plan.measured is None:
            raise UserError(f"candidate {plan.name}: give a model and a machine, a measured result, or an API price")
        seen = read_measured(plan.measured)
        told = capacity_measured(seen, plan.model, study.good_share)
        delays, doubt, provenance = latency_measured(seen, plan.model, told), _doubt_of(plan.name, told), "measured"
    notes = [] if plan.is_api else ["one replica was measured; n of them are taken to carry n times as much"]
    return Assessed(
        plan=plan,
        traffic=traffic,
        spec=spec,
        model=None,
        policy=None,
        fleet=None if told is None else in_proportion(told),
        latency=delays,
        pricing=plan.pricing,
        power=power_of(plan.pricing) if plan.pricing is not None else None,
        doubt=doubt,
        provenance="measured" if provenance == "measured" else "published",
        needed_bytes=None,
        available_bytes=None,
        notes=notes,
    )


def _doubt_of(name: str, capacity: Estimate) -> Doubt:
    """Doubt of a measured capacity: nothing shared with other candidates."""
    low = max(capacity.least, 0.5 * capacity.value)
    return Doubt(name, name, 0.0, float(np.log(max(capacity.most, capacity.value) / low)) / 2 if low > 0 else 0.0)


def bill_of(plan: CandidatePlan, model: StepModel) -> tuple[Pricing | None, Power | None, list[str]]:
    """The study's price, else the chip's published one by the hour; and a replica's power, as either or the chip says.

    The list says where a price comes from that the study does not give.
    """
    profile, notes = model.profile, []
    pricing = plan.pricing
    if pricing is None:
        try:
            pricing, note = replica_price(profile, None, model.devices)
        except UserError:
            return None, None, []
        notes.append(f"price not given: {note}")
    return pricing, power_of(pricing, profile.idle_w, profile.busy_w, model.devices), notes


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


def _api_latency(study: StudyPlan, plan: CandidatePlan, output: float) -> list[LatencyPoint]:
    """A hosted model's speed as somebody told it, the same at every load."""
    speed = plan.api_speed
    if speed is None:
        return []
    ttft, tpot = speed.ttft_s, 1.0 / speed.tokens_per_s
    e2e = ttft + tpot * max(output - 1.0, 0.0)
    good = 1.0
    if (study.slo.ttft_s is not None and ttft > study.slo.ttft_s) or (
        study.slo.tpot_s is not None and tpot > study.slo.tpot_s
    ):
        good = 0.0
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


def read_measured(path: Path) -> LoadStudy | CapacityStudy:
    """The saved study at `path`, a directory or its result.json. Raises UserError for anything else."""
    file = path / RESULT if path.is_dir() else path
    try:
        return read(file, LoadStudy, CapacityStudy)
    except UnreadError as error:
        if isinstance(error.__cause__, OSError):
            why = f"cannot be read ({error.detail}); give a study's directory"
        elif error.schema is None:
            why = f"is not a result of Breakeven ({error.detail})"
        else:
            why = (
                f"holds {error.schema or 'no schema'}; give a result of `breakeven capacity`, `bench` or "
                "`compare --rate`, which know the load a candidate carries"
            )
        raise UserError(f"measured: {file} {why}") from error


def capacity_measured(study: LoadStudy | CapacityStudy, model: str | None, good_share: float) -> Estimate:
    """The highest rate that kept the SLO, between the last that did and the first that did not.

    Raises UserError when the study does not say, or is of several models and `model` names none of them.
    """
    if isinstance(study, CapacityStudy):
        rate = study.rate
        if rate is None or rate.value is None:
            raise UserError("measured: this capacity study found no rate; run `breakeven capacity` again")
        low, high = rate.low or 0.0, rate.high or rate.value
        return measured(rate.value, min(low, rate.value), max(high, rate.value), len(rate.trials))
    points = sorted(_points(study, model), key=lambda p: p.rate_per_s or 0.0)
    if any(p.good is None for p in points) or len(points) < 2:
        raise UserError("measured: this study has no SLO or a single rate; run it with --slo and several rates")
    kept = [p.rate_per_s or 0.0 for p in points if p.good is not None and p.good.share >= good_share]
    failed = [p.rate_per_s or 0.0 for p in points if p.good is not None and p.good.share < good_share]
    low = max((rate for rate in kept if not failed or rate < min(failed)), default=0.0)
    high = min(failed, default=max(kept, default=0.0))
    value = math.sqrt(low * high) if low > 0 else 0.0
    return measured(value, low, high, len(points))


def latency_measured(study: LoadStudy | CapacityStudy, model: str | None, capacity: Estimate) -> list[LatencyPoint]:
    """Delays at every rate the study ran; empty for a capacity study, which keeps none."""
    if isinstance(study, CapacityStudy):
        return []
    found = []
    for point in map(of_load, sorted(_points(study, model), key=lambda p: p.rate_per_s or 0.0)):
        used = min((point.rate_per_s or 0.0) / capacity.value, 1.0) if capacity.value > 0 else 1.0
        if (known := latency_point(point, used)) is not None:
            found.append(known)
    return found


def ran_as(study: LoadStudy | CapacityStudy, model: str | None) -> LoadModel:
    """Which model of a study a candidate is. Raises UserError when it is of several and `model` names none of them."""
    models = [study.model] if isinstance(study, CapacityStudy) else study.models
    # A weight file is called by its stem in a study, whichever path led to it.
    stem = Path(model).stem if model is not None and model.endswith(".gguf") else model
    of = [m for m in models if m.name in (model, stem)] if len(models) > 1 else models
    if len(of) != 1:
        names = ", ".join(m.name for m in models)
        raise UserError(f"measured: the study is of {names}; name the candidate's model as one of them")
    return of[0]


def _points(study: LoadStudy, model: str | None) -> Sequence[LoadPoint]:
    name = ran_as(study, model).name
    return [p for p in study.points if p.rate_per_s is not None and p.model == name]
