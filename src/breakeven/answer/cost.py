"""`breakeven cost`: what models on machines, and hosted ones, cost at a load, and where the cheaper one changes.

Also what would change that: another precision, a second device, speculation, another rent. Every capacity is that of a
simulated replica under predicted step times, so a cost has the step model's interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from breakeven.errors import UserError
from breakeven.forecast.asked import AskedModel, asked_model, assumed_notes, model_on, profiles_for
from breakeven.forecast.constants import Profile
from breakeven.forecast.fleet import FleetCapacity
from breakeven.forecast.model import StepModel
from breakeven.forecast.pooled import fleet_capacity_of
from breakeven.forecast.serving import TrialReplica, mean_batch, prefill_share, replica_of, traced_text
from breakeven.forecast.simulator.policy import policy_named
from breakeven.forecast.simulator.run import policy_of
from breakeven.hardware.placement import AUTO, Placement
from breakeven.model.layouts.derive import assuming
from breakeven.model.quality.scores import QualityScore, quality_of
from breakeven.price.break_even import Offer, break_evens_of
from breakeven.price.pricing import idle_usd_per_hour, power_of, unpowered
from breakeven.price.sensitivity import (
    ACCEPTANCE,
    DRAFT_COST,
    DRAFTED_TOKENS,
    LARGE_FLEET,
    parity_what_if,
    speculative_speedup,
    times,
    what_if,
)
from breakeven.price.staircase import cost_points, endless, in_proportion, scaled, serves
from breakeven.price.workload import priced_traffic, replica_price, with_answers
from breakeven.results.cost import Api, Cost, Own, Rented, WhatIf
from breakeven.stats.estimate import exactly
from breakeven.traffic.traces.rows import TraceRows
from breakeven.traffic.workload import Slo, Workload, slo_text
from breakeven.version import __version__


@dataclass(frozen=True, slots=True, kw_only=True)
class CostOptions:
    """What costs are asked for. None: as the machine's class does it, or as its catalogue says.

    `machine`: of models that name none themselves (`MODEL@MACHINE`), and `format_name` of those without one
    (`MODEL:FORMAT`). `kv`: type of keys and values. `assume`: read models on past what is not known in their files.
    `pricing`: of one replica. `apis`: hosted models by name. `rates`: loads in requests/s. `slo` without terms:
    capacity is the saturation rate. `scores`: share of tasks solved, and `answers`: mean output tokens, both by model
    as it was given; without scores, published ones of `benchmark` (None: the first that covers all). `changes`: also
    look at what would change the costs.
    """

    workload: Workload
    trace: TraceRows | None = None
    machine: str = "this"
    engine: str | None = None
    devices: int | None = None
    format_name: str | None = None
    kv: str | None = None
    placement: Placement = AUTO
    assume: bool = False
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
    replica: TrialReplica | None = None
    share: float | None = None
    notes: Sequence[str] = ()


FLEETS, FEW_FLEETS = (1, 2, 4, 8), (1, 4)
"""Sizes of fleets that are simulated: of a candidate, and of what a change would make of it."""


def served_as(
    name: str,
    options: CostOptions,
    *,
    format_name: str | None = None,
    devices: int | None = None,
    profile: Profile | None = None,
    sizes: Sequence[int] = FLEETS,
) -> Served:
    """A model on a machine: predicted, simulated and priced, perhaps in another format or on other devices.

    `profile`: its machine's, where it is known already; None: as for this model alone. `sizes`: fleets simulated.
    """
    asked, machine = _asked(name, options)
    if format_name is not None:
        asked = replace(asked, format_name=format_name)
    count = devices or options.devices
    if profile is None:
        profile = profiles_for([asked], machine, options.engine, count)[0]
    model = model_on(asked, profile, count, kv=options.kv, placement=options.placement)
    workload, trace = with_answers(options.workload, options.trace, options.answers.get(name))
    pricing, note = replica_price(profile, options.pricing, model.devices)
    traffic = priced_traffic(workload, trace, options.cached_share)
    context = traffic.prompt_tokens + traffic.output_tokens
    room = model.kv_tokens(context)
    # Who has no room for a single token has no policy of its own; the capacity below comes out as 0.
    policy = policy_of(model, context) if room is None or room >= 1 else policy_named(profile.engine)
    policy = replace(policy, slot_tokens=model.spec.context or None)
    fleet = fleet_capacity_of(model, policy, workload, options.slo, options.good_share, trace, sizes=sizes)
    fleet = in_proportion(exactly(0.0)) if fleet is None else fleet
    replica = replica_of(model, policy, workload, trace)
    origin = "probes of this machine" if profile.origin.how == "probes" else "its data sheet"
    kept = "" if model.kv == "f16" else f", {model.kv} keys and values,"
    notes = [f"{model.format_label}{kept} on {profile.name} with {profile.engine}, predicted from {origin}; {note}"]
    notes += assumed_notes(model.spec)
    if model.lies is None and (why := model.lacking()) is not None:
        notes.append(f"{profile.engine} does not start it: it {why}; the bill is what it would be if it did")
    if replica is not None and (longer := _beyond(replica, model.spec.context)) is not None:
        notes.append(longer)
    if replica is None:
        notes.append("the weights and one request do not fit the device's memory")
    elif not serves(fleet):
        notes.append("keeps the service level at no load, not even alone")
    elif (boundless := endless(fleet)) is not None:
        notes.append(boundless)
    power = power_of(pricing, profile.idle_w, profile.busy_w, model.devices)
    if (dark := unpowered(pricing, power)) is not None:
        notes.append(dark)
    error = model.error("decode")
    return Served(
        offer=Offer(
            name=name,
            pricing=pricing,
            fleet=fleet,
            traffic=traffic,
            power=power,
            machine=f"{profile.engine} on {profile.name}",
            own_share=min(1.0, error.between_models / error.log_half_width) if error.log_half_width > 0 else 1.0,
        ),
        model=model,
        replica=replica,
        share=prefill_share(replica, _each(fleet)) if replica is not None and serves(fleet) else None,
        notes=notes,
    )


def _beyond(replica: TrialReplica, context: int) -> str | None:
    """How many requests are longer than a model's own limit, in words; None: none, or it has no limit that is known."""
    asked = replica.requests
    share = float(np.mean(asked.prompt_tokens_N + asked.output_tokens_N > context)) if context else 0.0
    told = f"{share:.1%} of the requests are longer than its context of {context:,} tokens, and refused"
    return told if share > 0 else None


def _each(fleet: FleetCapacity) -> float:
    """What each of many replicas carries."""
    return fleet.per_s(LARGE_FLEET) / LARGE_FLEET


def _asked(name: str, options: CostOptions) -> tuple[AskedModel, str]:
    """The model of `MODEL[:FORMAT][@MACHINE]`, and its machine."""
    text, _, place = name.partition("@")
    with assuming(options.assume):
        return asked_model(text, options.format_name), place or options.machine


def _profiles(models: Sequence[str], options: CostOptions) -> list[Profile]:
    """Each model's profile; those on one machine are run by one engine where that can be."""
    asked = [_asked(name, options) for name in models]
    found: dict[str, Iterator[Profile]] = {}
    for machine in dict.fromkeys(machine for _, machine in asked):
        here = [model for model, where in asked if where == machine]
        found[machine] = iter(profiles_for(here, machine, options.engine, options.devices))
    return [next(found[machine]) for _, machine in asked]


def hosted(name: str, api: Api, options: CostOptions) -> Served:
    workload, trace = with_answers(options.workload, options.trace, options.answers.get(name))
    traffic = priced_traffic(workload, trace, options.cached_share)
    return Served(offer=Offer(name=name, pricing=api, fleet=None, traffic=traffic))


OTHER_FORMAT = {
    "BF16": "FP8",
    "FP16": "FP8",
    "F16": "Q8_0",
    "FP8": "INT4",
    "Q8_0": "Q4_K_M",
    "Q4_K_M": "Q8_0",
    "Q5_K_M": "Q4_K_M",
    "Q6_K": "Q4_K_M",
}
"""The precision looked at beside the one asked for."""


def changed(
    served: Sequence[Served], options: CostOptions, rate_per_s: float, ends: tuple[float, float]
) -> list[WhatIf]:
    """One line a change and model, costs at `rate_per_s`, flips over `ends`. What an engine cannot do is left out."""
    offers = [one.offer for one in served]
    found: list[WhatIf] = []
    for index, one in enumerate(served):
        if one.model is None or one.replica is None:
            continue
        weights, devices = OTHER_FORMAT.get(one.model.format.upper()), 2 * one.model.devices
        if weights is not None and (after := _again(one, options, format_name=weights)) is not None:
            found.append(what_if(offers, index, after, "precision", weights, rate_per_s, ends))
        if (after := _again(one, options, devices=devices)) is not None:
            found.append(what_if(offers, index, after, "devices", f"{devices} devices", rate_per_s, ends))
        if one.offer.serves:
            label = f"{DRAFTED_TOKENS} drafted tokens, {ACCEPTANCE:.0%} accepted"
            found.append(what_if(offers, index, _speculating(one), "speculation", label, rate_per_s, ends))
        for at in range(len(offers)):
            if at != index and (line := parity_what_if(offers, index, at, rate_per_s)) is not None:
                found.append(line)
    return found


def _again(
    one: Served, options: CostOptions, *, format_name: str | None = None, devices: int | None = None
) -> Offer | None:
    """The same candidate served differently; None where its engine or machine cannot."""
    assert one.model is not None
    if devices is not None and options.pricing is not None:
        # A price given for one replica is that of its devices: twice the devices are twice the bill, watts included.
        options = replace(options, pricing=times(options.pricing, devices / one.model.devices))
    try:
        after = served_as(one.offer.name, options, format_name=format_name, devices=devices, sizes=FEW_FLEETS)
    except UserError:
        return None
    return after.offer


def _speculating(one: Served) -> Offer:
    """The candidate with speculative decoding: only the time of decoding changes, at the batch it runs at when full."""
    assert one.replica is not None
    fleet = one.offer.fleet
    assert fleet is not None
    batch = mean_batch(one.replica, _each(fleet))
    traffic = one.offer.traffic
    speedup = speculative_speedup(
        one.replica.model,
        max(1.0, batch),
        traffic.prompt_tokens + traffic.output_tokens / 2,
        DRAFTED_TOKENS,
        ACCEPTANCE,
        DRAFT_COST,
    )
    share = one.share or 0.0
    return replace(one.offer, fleet=scaled(fleet, 1 / (share + (1 - share) / speedup)))


DEFAULT_RATES = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0)
"""Loads shown where nobody names any, over the largest capacity of one replica."""
AROUND = 10.0
"""Flips are looked for from the lowest load shown over this to the highest times this."""


def cost(models: Sequence[str], options: CostOptions) -> Cost:
    """Costs of `models` and of the APIs in `options`, over its rates, and every flip between any two of them.

    Raises UserError for what is unknown, wrong or without a price.
    """
    names = [*models, *options.apis]
    if not names:
        raise UserError("there is nothing to price; name a model, or a hosted one with --api NAME=IN,OUT")
    if len(set(names)) < len(names):
        raise UserError("two candidates have the same name; leave one out, or give the API another name")
    for given in (options.scores, options.answers):
        if strangers := [name for name in given if name not in names]:
            raise UserError(f"{strangers[0]!r} is no candidate here; there are {', '.join(names)}")
    profiles = _profiles(models, options)
    served = [served_as(name, options, profile=profile) for name, profile in zip(models, profiles, strict=True)]
    served += [hosted(name, api, options) for name, api in options.apis.items()]
    offers = [one.offer for one in served]
    quality = _quality(served, options)
    rates = options.rates or _rates(offers)
    ends = min(rates) / AROUND, max(rates) * AROUND
    return Cost(
        version=__version__,
        candidates={
            one.offer.name: cost_points(
                one.offer.pricing,
                one.offer.fleet,
                one.offer.traffic,
                rates,
                power=one.offer.power,
                prefill_share=one.share,
                quality=quality.get(one.offer.name),
            )
            for one in served
        },
        pricing={offer.name: offer.pricing for offer in offers},
        capacity_per_s={offer.name: offer.capacity_per_s for offer in offers},
        break_even=break_evens_of(offers, *ends),
        idle_usd_per_hour={offer.name: idle_usd_per_hour(offer.pricing, offer.power) for offer in offers},
        what_if=changed(served, options, float(np.sqrt(min(rates) * max(rates))), ends) if options.changes else [],
        notes=[
            _level(options),
            *([f"Capacities of the trace are those of {first}."] if (first := traced_text(options.trace)) else []),
            *_solved(quality),
            *(f"{one.offer.name}: {note}" for one in served for note in one.notes),
        ],
    )


def _quality(served: Sequence[Served], options: CostOptions) -> dict[str, QualityScore]:
    """Shares of tasks solved: the user's, where any is given, else published ones that cover every model."""
    for name, score in options.scores.items():
        if not 0 < score <= 1:
            raise UserError(f"score {name}={score:g}: give the share of tasks solved, above 0 and up to 1")
    if options.scores:
        return {
            name: QualityScore(how="own", value=score, source="your evaluation")
            for name, score in options.scores.items()
        }
    specs = {one.offer.name: one.model.spec for one in served if one.model is not None}
    found = quality_of(specs, benchmark=options.benchmark) if specs else {}
    return {name: score for name, score in found.items() if score.how == "published"}


def _solved(quality: Mapping[str, QualityScore]) -> list[str]:
    """What a solved task is, in words; nothing where nobody knows."""
    if not quality:
        return []
    score = next(iter(quality.values()))
    what = f"{score.benchmark}, {score.source}" if score.how == "published" else score.source
    shares = ", ".join(
        f"{name} {100 * score.value:.3g} %" for name, score in quality.items() if score.value is not None
    )
    return [f"Solved: {shares} ({what})."]


def _rates(offers: Sequence[Offer]) -> tuple[float, ...]:
    capacities = [_each(offer.fleet) for offer in offers if offer.serves and offer.fleet is not None]
    if not capacities:
        return (0.1, 1.0, 10.0, 100.0)
    return tuple(float(f"{share * max(capacities):.2g}") for share in DEFAULT_RATES)


def _level(options: CostOptions) -> str:
    text = slo_text(options.slo)
    if not text:
        return "Capacity is what a replica does when it always has another request; give --slo to hold it to delays."
    return f"Capacity is the highest rate at which {options.good_share:.0%} of requests keep {text}."
