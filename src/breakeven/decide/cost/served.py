"""One candidate of `breakeven cost`: a model on a machine, predicted, simulated and priced, or a hosted one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from breakeven.decide.cost.prices import replica_price
from breakeven.decide.priced import priced_traffic, with_answers
from breakeven.decide.serving import Replica, capacity_of, prefill_share, replica_of
from breakeven.measure.traces import TraceRows
from breakeven.predict.model import StepModel, step_model
from breakeven.predict.profiles import profile_named
from breakeven.predict.run import default_format
from breakeven.predict.simulate import policy_named, policy_of
from breakeven.price.break_even import Offer
from breakeven.price.pricing import power_of
from breakeven.spec.cost import Api, Own, Rented
from breakeven.spec.resolve import resolve_spec
from breakeven.spec.workload import Slo, Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class CostOptions:
    """What costs are asked for. None: as the machine's class does it, or as its catalogue says.

    `machine`: of models that name none themselves (`MODEL@MACHINE`). `pricing`: of one replica. `apis`: hosted models
    by name. `rates`: loads in requests/s. `slo` without terms: capacity is the saturation rate. `scores`: share of
    tasks solved, and `answers`: mean output tokens, both by model as it was given; without scores, published ones of
    `benchmark` (None: the first that covers all). `changes`: also look at what would change the costs.
    """

    workload: Workload
    trace: TraceRows | None = None
    machine: str = "this"
    engine: str | None = None
    devices: int | None = None
    format_name: str | None = None
    pricing: Own | Rented | None = None
    apis: Mapping[str, Api] = field(default_factory=dict)
    rates: tuple[float, ...] | None = None
    slo: Slo = field(default_factory=Slo)
    good_share: float = 0.9
    cached_share: float = 0.0
    scores: Mapping[str, float] = field(default_factory=dict)
    benchmark: str | None = None
    answers: Mapping[str, float] = field(default_factory=dict)
    changes: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One candidate: its offer, and for a model on a machine how it is served. `share`: of its time, for prompts."""

    offer: Offer
    model: StepModel | None = None
    replica: Replica | None = None
    share: float | None = None
    notes: Sequence[str] = ()


def served_as(
    name: str,
    options: CostOptions,
    *,
    format_name: str | None = None,
    devices: int | None = None,
) -> Served:
    """A model on a machine: predicted, simulated and priced, perhaps in another format or on other devices."""
    text, _, place = name.partition("@")
    spec = resolve_spec(text)
    asked = devices or options.devices
    profile = profile_named(place or options.machine, options.engine, asked, format_name or options.format_name)
    weights = format_name or options.format_name or default_format(profile)
    model = step_model(spec, profile, weights, asked)
    workload, trace = with_answers(options.workload, options.trace, options.answers.get(name))
    pricing, note = replica_price(profile, options.pricing, model.devices)
    traffic = priced_traffic(workload, trace, options.cached_share)
    context = traffic.prompt_tokens + traffic.output_tokens
    room = model.kv_tokens(context)
    # Who has no room for a single token has no policy of its own; the capacity below comes out as 0.
    policy = policy_of(model, context) if room is None or room >= 1 else policy_named(profile.engine)
    capacity = capacity_of(model, policy, workload, options.slo, options.good_share, trace)
    replica = replica_of(model, policy, workload, trace)
    origin = "probes of this machine" if profile.origin.how == "probes" else "its data sheet"
    notes = [f"{model.format} on {profile.name} with {profile.engine}, predicted from {origin}; {note}"]
    if replica is None:
        notes.append("the weights and one request do not fit the device's memory")
    elif not capacity.value > 0:
        notes.append("keeps the service level at no load, not even alone")
    power = power_of(pricing, _times(profile.idle_w, model.devices), _times(profile.busy_w, model.devices))
    error = model.error("decode")
    return Served(
        offer=Offer(
            name=name,
            pricing=pricing,
            capacity_per_s=capacity,
            traffic=traffic,
            power=power,
            machine=f"{profile.engine} on {profile.name}",
            own_share=min(1.0, error.between_models / error.log_half_width) if error.log_half_width > 0 else 1.0,
        ),
        model=model,
        replica=replica,
        share=prefill_share(replica, capacity.value) if replica is not None and capacity.value > 0 else None,
        notes=notes,
    )


def hosted(name: str, api: Api, options: CostOptions) -> Served:
    workload, trace = with_answers(options.workload, options.trace, options.answers.get(name))
    traffic = priced_traffic(workload, trace, options.cached_share)
    return Served(offer=Offer(name=name, pricing=api, capacity_per_s=None, traffic=traffic))


def _times(watts: float | None, devices: int) -> float | None:
    return None if watts is None else watts * devices
