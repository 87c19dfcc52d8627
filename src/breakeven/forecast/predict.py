"""Models on machines at batches and contexts: every combination, with its interval and what it rests on.

How much faster one model is than another is surer than either speed, because the machine cancels. What must be said
beside a prediction: how its constants came about, extrapolation, approximation, lack of room.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from breakeven.errors import UserError
from breakeven.forecast.asked import (
    LLAMA_CPP,
    MINOR,
    asked_model,
    known_notes,
    model_on,
    origin_text,
    profiles_for,
    why_of,
)
from breakeven.forecast.constants import Range
from breakeven.forecast.devices import host_bytes, parts_evenly
from breakeven.forecast.memory import Memory
from breakeven.forecast.model import StepModel
from breakeven.forecast.residency import HOST_BYTES_PER_S, OFFLOAD_TOKENS
from breakeven.forecast.routing import Routing, routing_known, skewed
from breakeven.forecast.terms import Floats, Parts
from breakeven.hardware.placement import AUTO, HOST, Placement
from breakeven.model.formats.caches import DO_AS_ASKED, KV_TYPES
from breakeven.model.formats.gpu import MLX, GpuFormat
from breakeven.model.formats.named import OwnFormat, format_named
from breakeven.results.predicted import Bound, PredictedPoint, PredictedRatio, Prediction
from breakeven.stats.estimate import Estimate
from breakeven.version import __version__

QUANTITIES = {
    "batch": "a batch of {value:,.0f}",
    "context": "a context of {value:,.0f} tokens",
    "bytes_read": "{value:.3g} bytes read in a step",
    "active_params": "{value:.3g} active parameters",
}
WHOLE_KV = ("f32", "f16", "bf16")
"""Types of keys and values that an engine uses as they are."""
SLACK = 1.25
"""Beyond the range by less than this factor is no extrapolation worth a line."""


def notes_of(model: StepModel, batch: int, context: int, prompt: int = 1) -> list[str]:
    """What a reader of one point must know."""
    return [
        *known_notes(model),
        *_room(model, batch, context, prompt),
        *_extrapolations(model, batch, context),
        *_types(model),
        *_approximations(model, batch),
    ]


def _room(model: StepModel, batch: int, context: int, prompt: int) -> list[str]:
    usable = model.usable_bytes()
    notes = []
    if (longest := round(max(context, prompt, model.reserve))) > model.spec.context:
        notes.append(f"{longest:,} tokens are more than the model's own limit of {model.spec.context:,}")
    if usable is None or (model.lies is None and model.fits(batch, context)):
        return notes
    need = _needs(model, batch, context, usable)
    where = model.residency
    if model.lies is not None:
        return [*notes, *placement_notes(model)]
    if where.whole:
        return [*notes, f"does not fit: {need}; the times are what they would be if it did"]
    away = where.away_bytes / model.terms.total_bytes
    notes.append(f"does not fit: {need}; {away:.0%} of the weights are read from disk (first approximation)")
    return notes


def _lacking(model: StepModel, batch: int, context: int) -> str | None:
    if (why := model.lacking()) is not None or model.lies is not None:
        return why
    usable = model.usable_bytes()
    return None if usable is None or model.fits(batch, context) else _needs(model, batch, context, usable)


def _needs(model: StepModel, batch: int, context: int, usable: float) -> str:
    return f"needs {model.memory_bytes(batch, context) / 1e9:.3g} GB, {usable / 1e9:.3g} GB can be used"


def placement_notes(model: StepModel) -> list[str]:
    """Where a model lies that does not lie on its devices alone, and which place is too small."""
    lies, where = model.lies, model.residency
    if lies is None:
        return []
    notes = [] if where.whole else [lies.placed().words()]
    for room in model.rooms():
        if (need := lies.memory[room.place].total if room.place in lies.memory else 0.0) > room.free_bytes:
            short = f"{need / 1e9:.3g} GB on {room.place}; {room.free_bytes / 1e9:.3g} GB are there"
            notes.append(f"does not fit: needs {short}; the times are what they would be if it did")
    host, need = model.profile.host_memory_bytes, lies.memory[HOST].total
    if not where.whole:
        beside = f"needs {need / 1e9:.3g} GB of RAM" + (" beside the card" if lies.gpu_layers else "")
        there = host_bytes(model.profile)
        if host is None or there is None:
            notes.append(f"{beside}; how much there is was not said")
        elif need <= there or need > host:
            notes.append(f"{beside}; {host / 1e9:.3g} GB are there")
        else:
            notes.append(f"{beside}; {there / 1e9:.3g} of {host / 1e9:.3g} GB can be used")
        known = model.profile.host is not None and model.profile.host.bandwidth_bytes_per_s is not None
        if model.profile.chip is not None and not known:
            rate = model.profile.constants.host_bytes_per_s or HOST_BYTES_PER_S
            notes.append(f"how fast its RAM is was not said; read at {rate / 1e9:.3g} GB/s")
    if where.fixed_disk or where.experts_disk:
        notes.append("RAM is too small for it: the rest is paged from disk for every token (the best case is shown)")
    if not where.whole and model.profile.constants.stream_bytes_per_s is not None:
        notes.append(f"prompts of {OFFLOAD_TOKENS} tokens and more copy weights in host memory over the link")
    return notes


def _extrapolations(model: StepModel, batch: int, context: int) -> list[str]:
    parts = model.parts(batch, context)
    values = {
        "batch": float(batch),
        "context": float(context),
        "bytes_read": float(parts.weight_bytes + parts.kv_bytes),
        "active_params": model.terms.token_flops / 2.0,
    }
    return [_beyond(known, values[known.quantity]) for known in model.profile.ranges if _outside(known, values)]


def _types(model: StepModel) -> list[str]:
    """A calibration knows what unpacking costs for the number types of its probes alone."""
    profile = model.profile
    if profile.origin.how != "probes" or profile.origin.format is None:
        return []
    probed = format_named(profile.origin.format)
    if isinstance(probed, OwnFormat):
        return []
    base = probed.linear if isinstance(probed, GpuFormat) else probed.default
    seen = {base.value, "F32", *profile.constants.type_cost, *profile.constants.type_compute}
    kinds = [*model.terms.fixed, *(kind for group in model.terms.experts for kind in group.types)]
    total = sum(nbytes for _, nbytes in kinds)
    new = {kind for kind, _ in kinds if sum(n for k, n in kinds if k == kind) > MINOR * total} - seen
    if not new:
        return []
    return [f"extrapolated: {', '.join(sorted(new))} weights, probed with {probed.name}; unpacking may cost otherwise"]


def _outside(known: Range, values: dict[str, float]) -> bool:
    value = values.get(known.quantity)
    return value is not None and not known.low / SLACK <= value <= known.high * SLACK


def _beyond(known: Range, value: float) -> str:
    what = QUANTITIES[known.quantity].format(value=value)
    low, high = (f"{end:,.0f}" if end < 1e6 else f"{end:.3g}" for end in (known.low, known.high))
    span = low if known.low == known.high else f"{low} to {high}"
    return f"extrapolated: {what} lies outside the {span} that was fitted"


def _approximations(model: StepModel, batch: int) -> list[str]:
    notes = []
    engine = model.profile.engine
    chosen = format_named(model.format)
    if isinstance(chosen, GpuFormat) and (engine == LLAMA_CPP or chosen.home == MLX):
        notes.append(f"{engine} does not read {model.format}: these are the times of as many bytes")
    probed = model.profile.origin.kv or "f16"
    if probed not in WHOLE_KV and model.kv != probed:
        notes.append(f"the rate of keys and values was measured with {probed}, not {model.kv}")
    elif model.kv not in WHOLE_KV and model.kv != probed:
        said = ", as its checkpoint asks" if model.kv == model.spec.kv_cache else ""
        notes.append(f"{model.kv} keys and values{said}: the time of their bytes; what unpacking takes is not in it")
    elif (own := model.spec.kv_cache) is not None and own not in KV_TYPES and engine in DO_AS_ASKED:
        notes.append(f"its checkpoint asks for {own} keys and values, which are not known here: counted as {model.kv}")
    if model.expert_parallel and model.split != "experts":
        notes.append(f"--expert-parallel changes nothing: {engine} parts no experts of {model.spec.name} here")
    if model.split == "layers":
        notes.append(f"{model.devices} devices work one after the other on their layers: more memory, no more speed")
    elif model.split != "none":
        notes.append(f"{model.devices} devices: a first approximation of {model.split} parallelism, not checked")
        if not parts_evenly(model.spec, model.devices):
            why = f"{model.devices} devices do not divide the model's heads of attention"
            notes.append(f"{engine} does not start: {why}; the times are what they would be if it did")
    if model.profile.origin.how == "probes" and not routing_known(model.terms) and batch > 1:
        notes.append("routing taken as even; the low end allows for uneven routing (measure it: breakeven trace)")
    return notes


def speed_ratio(of: StepModel, over: StepModel, batch: float, context: float) -> Estimate:
    """Decode speed of `of` over that of `over`, both at this batch and context; above 1 `of` is faster.

    Each model's error beyond what it shares with others on its machine (`Error.between_models`) is independent of the
    other's, so squares add; in two engines they share nothing. Where the routing of one is not known and the profile
    comes from probes, that model may be as fast as uneven routing makes it.
    """
    return _ratio(of, over, "decode", lambda m: float(m.step_s(batch, context)))


def prefill_ratio(of: StepModel, over: StepModel, prompt: float) -> Estimate:
    """The same of reading one prompt, which is another world where weights lie in host memory."""
    return _ratio(of, over, "prefill", lambda m: float(m.prefill_s(prompt)))


def _ratio(of: StepModel, over: StepModel, phase: str, seconds: Callable[[StepModel], float]) -> Estimate:
    value = seconds(over) / seconds(of)
    errors = of.error(phase), over.error(phase)
    same = of.profile.engine == over.profile.engine
    # What host memory adds to one alone does not cancel.
    same = same and of.residency.whole == over.residency.whole
    width = math.hypot(*(error.between_models if same else error.log_half_width for error in errors))
    low = value * math.exp(-width) * _fastest(over, seconds)
    return Estimate(value=value, low=low, high=value * math.exp(width) / _fastest(of, seconds))


def _fastest(model: StepModel, seconds: Callable[[StepModel], float]) -> float:
    """Time under uneven routing over that under even routing; 1 where routing is known or in the errors."""
    if model.profile.origin.how != "probes" or routing_known(model.terms):
        return 1.0
    uneven = replace(model, terms=skewed(model.terms), scale=1.0)
    return seconds(uneven) * model.scale / seconds(model)


def predict(
    models: Sequence[str],
    machines: Sequence[str],
    *,
    engine: str | None = None,
    devices: int | None = None,
    batches: Sequence[int] = (1,),
    contexts: Sequence[int] = (512,),
    format_name: str | None = None,
    frequencies: Mapping[str, Routing] | None = None,
    expert_parallel: bool = False,
    kv: str | None = None,
    prompt: int | None = None,
    reserve: int | None = None,
    placement: Placement = AUTO,
) -> Prediction:
    """Predicted steps of every model on every machine, in that order, then by context and batch.

    `frequencies`: measured routing by model, as named in `models`; see `predict.routing`. `engine` and `devices` None:
    as the machine's class runs models. `format_name`: of models that name none; None: each model's own. `kv`: type of
    keys and values, None: 16 bits. `prompt`, `reserve`: tokens of a prompt, and tokens that each cache is made for;
    None: as many as the context. `placement`: what llama.cpp is told of layers and experts.
    Raises UserError for unknown models, machines and formats.
    """
    least = [*batches, *contexts, *(n for n in (prompt, reserve) if n is not None)]
    if min(least, default=0) < 1:
        raise UserError("a batch and a context are 1 or more; give numbers such as --batch 1,8,32 --context 512")
    if reserve is not None and reserve < max(contexts):
        raise UserError(
            f"--reserve {reserve} is less than the {max(contexts)} tokens of --context that are in use; "
            "give as many or more"
        )
    asked = [asked_model(name, format_name) for name in models]
    placed = [(name, profiles_for(asked, name, engine, devices)) for name in machines]
    points: list[PredictedPoint] = []
    ratios: list[PredictedRatio] = []
    for machine, profiles in placed:
        steps = {
            model.name: model_on(
                model,
                profile,
                devices,
                frequencies=(frequencies or {}).get(model.name),
                expert_parallel=expert_parallel,
                kv=kv,
                reserve=reserve,
                placement=placement,
            )
            for model, profile in zip(asked, profiles, strict=True)
        }
        for name, model in steps.items():
            points += points_of(model, name, machine, batches, contexts, prompt)
        ratios += _ratios(steps, machine, batches, contexts, prompt)
    return Prediction(
        version=__version__,
        points=points,
        ratios=ratios,
        profiles={machine: "; ".join(dict.fromkeys(map(origin_text, profiles))) for machine, profiles in placed},
    )


def points_of(
    model: StepModel,
    name: str,
    machine: str,
    batches: Sequence[int],
    contexts: Sequence[int],
    prompt: int | None = None,
) -> list[PredictedPoint]:
    """One model's points; `name` and `machine` as the caller calls them. `prompt` None: as long as the context."""
    return [_point(model.placed(b, c), name, machine, b, c, prompt or c) for c in contexts for b in batches]


def _ratios(
    models: Mapping[str, StepModel],
    machine: str,
    batches: Sequence[int],
    contexts: Sequence[int],
    prompt: int | None,
) -> list[PredictedRatio]:
    first, *others = models
    found = []
    for name in others:
        for c, b in itertools.product(contexts, batches):
            of, over = models[name].placed(b, c), models[first].placed(b, c)
            found.append(
                PredictedRatio(
                    model=name,
                    over=first,
                    machine=machine,
                    batch=b,
                    context=c,
                    decode=speed_ratio(of, over, b, c),
                    prefill=prefill_ratio(of, over, prompt or c),
                    prompt=prompt or c,
                )
            )
    return found


def _point(model: StepModel, name: str, machine: str, batch: int, context: int, prompt: int) -> PredictedPoint:
    parts = model.parts(batch, context)
    step = _span(model, "decode", lambda m: float(m.step_s(batch, context)))
    prefill = _span(model, "prefill", lambda m: float(m.prefill_s(prompt)))
    seconds = {part: float(value) for part, value in _taken(parts).items() if value.any()}
    memory = _held(model, batch, context)
    return PredictedPoint(
        model=name,
        machine=machine,
        engine=model.profile.engine,
        devices=model.devices,
        batch=batch,
        context=context,
        format=model.format_label,
        kind="moe" if model.terms.moe else "dense",
        step_s=step,
        decode_tokens_per_s=batch / step.value,
        prefill_tokens_per_s=prompt / prefill.value,
        prefill_s=prefill,
        prefill_speed=Estimate(value=prompt / prefill.value, low=prompt / prefill.most, high=prompt / prefill.least),
        why=why_of(model),
        fits=model.fits(batch, context),
        memory_bytes=memory.total,
        bytes_read=float(parts.weight_bytes + parts.kv_bytes),
        bound=max(seconds, key=lambda part: seconds[part]),
        parts_s={str(part): value for part, value in seconds.items()},
        notes=notes_of(model, batch, context, prompt),
        prompt=prompt,
        reserve=round(max(context, model.reserve)),
        kv=model.kv,
        memory=memory.rows(),
        placed=None if model.lies is None else model.lies.placed(),
        host_bytes=0.0 if model.lies is None else model.lies.memory[HOST].total,
        lacking=_lacking(model, batch, context),
        placement=model.placement_words(batch, context),
    )


def _held(model: StepModel, batch: int, context: int) -> Memory:
    """What it takes: of a placed model in all places together, with the buffers and copies that each has."""
    memory = model.memory(batch, context)
    if model.lies is None:
        return memory
    places = model.lies.memory.values()
    return Memory(
        weights=sum(at.weights for at in places),
        kv=max(sum(at.kv for at in places) - memory.state, 0.0),
        state=memory.state,
        compute=sum(at.compute for at in places),
        output=sum(at.output for at in places),
    )


def _taken(parts: Parts) -> dict[Bound, Floats]:
    return {
        "weights": parts.weights_s,
        "kv": parts.kv_s,
        "compute": parts.compute_s,
        "overhead": parts.overhead_s,
        "host": parts.host_s,
        "disk": parts.disk_s,
        "link": parts.link_s,
    }


def _span(model: StepModel, phase: str, seconds: Callable[[StepModel], float]) -> Estimate:
    fast, slow = model.low_high(phase)
    return Estimate(value=seconds(model), low=seconds(fast), high=seconds(slow))
