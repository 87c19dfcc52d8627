"""Models on machines at batches and contexts: every combination, with its interval and what it rests on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from breakeven.errors import UserError
from breakeven.predict.model import StepModel, step_model
from breakeven.predict.notes import notes_of, origin_text
from breakeven.predict.profiles import profile_named
from breakeven.predict.ratio import speed_ratio
from breakeven.predict.routing import Routing
from breakeven.predict.step import Floats, Parts
from breakeven.spec.prediction import Bound, PredictedPoint, PredictedRatio, Prediction, Span
from breakeven.spec.profile import Profile
from breakeven.spec.resolve import resolve_spec
from breakeven.version import __version__

DEFAULT_FORMATS = {"vllm": "BF16"}
"""By engine; Q4_K_M, the usual choice of local machines, for all others."""


@dataclass(frozen=True, slots=True)
class _Place:
    """A machine as the caller named it."""

    name: str
    profile: Profile


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
) -> Prediction:
    """Predicted steps of every model on every machine, in that order, then by context and batch.

    `frequencies`: measured routing by model, as named in `models`; see `predict.routing`. `engine`, `devices` and
    `format_name` None: as the machine's class runs models. Raises UserError for unknown models, machines and formats.
    """
    if min([*batches, *contexts], default=0) < 1:
        raise UserError("a batch and a context are 1 or more; give numbers such as --batch 1,8,32 --context 512")
    places = [_Place(name, profile_named(name, engine, devices, format_name)) for name in machines]
    specs = [(name, resolve_spec(name)) for name in models]
    points: list[PredictedPoint] = []
    ratios: list[PredictedRatio] = []
    for place in places:
        steps = {
            name: step_model(
                spec,
                place.profile,
                format_name or default_format(place.profile),
                devices,
                frequencies=(frequencies or {}).get(name),
                expert_parallel=expert_parallel,
            )
            for name, spec in specs
        }
        for name, model in steps.items():
            points += points_of(model, name, place.name, batches, contexts)
        ratios += _ratios(steps, place.name, batches, contexts)
    return Prediction(
        version=__version__,
        points=points,
        ratios=ratios,
        profiles={place.name: origin_text(place.profile) for place in places},
    )


def default_format(profile: Profile) -> str:
    """The weight format models are stored in when nobody says: the one probed, else the engine's usual one."""
    return profile.origin.format or DEFAULT_FORMATS.get(profile.engine, "Q4_K_M")


def points_of(
    model: StepModel, name: str, machine: str, batches: Sequence[int], contexts: Sequence[int]
) -> list[PredictedPoint]:
    """One model's points; `name` and `machine` as the caller calls them."""
    return [_point(model.placed(b, c), name, machine, b, c) for c in contexts for b in batches]


def _ratios(
    models: Mapping[str, StepModel], machine: str, batches: Sequence[int], contexts: Sequence[int]
) -> list[PredictedRatio]:
    first, *others = models
    return [
        PredictedRatio(
            model=name,
            over=first,
            machine=machine,
            batch=b,
            context=c,
            decode=speed_ratio(models[name].placed(b, c), models[first].placed(b, c), b, c),
        )
        for name in others
        for c in contexts
        for b in batches
    ]


def _point(model: StepModel, name: str, machine: str, batch: int, context: int) -> PredictedPoint:
    parts = model.parts(batch, context)
    step = _span(model, "decode", lambda m: float(m.step_s(batch, context)))
    prefill = _span(model, "prefill", lambda m: float(m.prefill_s(context)))
    seconds = {part: float(value) for part, value in _taken(parts).items() if value.any()}
    return PredictedPoint(
        model=name,
        machine=machine,
        engine=model.profile.engine,
        devices=model.devices,
        batch=batch,
        context=context,
        format=model.format,
        kind="moe" if model.terms.moe else "dense",
        step_s=step,
        decode_tokens_per_s=batch / step.value,
        prefill_tokens_per_s=context / prefill.value,
        prefill_s=prefill,
        fits=model.fits(batch, context),
        memory_bytes=model.memory_bytes(batch, context),
        bytes_read=float(parts.weight_bytes + parts.kv_bytes),
        bound=max(seconds, key=lambda part: seconds[part]),
        parts_s={str(part): value for part, value in seconds.items()},
        notes=notes_of(model, batch, context),
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


def _span(model: StepModel, phase: str, seconds: Callable[[StepModel], float]) -> Span:
    fast, slow = model.low_high(phase)
    return Span(value=seconds(model), low=seconds(fast), high=seconds(slow))
