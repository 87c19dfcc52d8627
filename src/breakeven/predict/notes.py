"""What must be said beside a prediction: how its constants came about, extrapolation, approximation, lack of room."""

from __future__ import annotations

from breakeven.predict.model import StepModel
from breakeven.predict.routing import routing_known
from breakeven.spec.formats import format_named
from breakeven.spec.gpu_formats import GpuFormat
from breakeven.spec.profile import Profile, Range

QUANTITIES = {
    "batch": "a batch of {value:,.0f}",
    "context": "a context of {value:,.0f} tokens",
    "bytes_read": "{value:.3g} bytes read in a step",
    "active_params": "{value:.3g} active parameters",
}
MINOR = 0.05
"""Number types with less of a model's bytes go unmentioned."""
SLACK = 1.25
"""Beyond the range by less than this factor is no extrapolation worth a line."""


def origin_text(profile: Profile) -> str:
    """How a profile's constants came about, in one line."""
    origin = profile.origin
    version = f" {origin.engine_version}" if origin.engine_version else ""
    if origin.how == "probes":
        spent = f" in {origin.seconds / 60:.0f} minutes" if origin.seconds else ""
        text = f"calibrated on {origin.date} with {origin.engine}{version}: {origin.points} probed steps{spent}"
    else:
        name = profile.chip.name if profile.chip else profile.name
        text = f"data sheet of {name} and what its class of machine reaches with {origin.engine}{version}"
        if not any(error.n for error in profile.errors):
            text += "; the intervals are judged, nothing of this class was measured"
    if origin.at_prior:
        text += f"; not identified, left at their prior: {', '.join(origin.at_prior)}"
    return text


def notes_of(model: StepModel, batch: int, context: int) -> list[str]:
    """What a reader of one point must know."""
    return [
        *_room(model, batch, context),
        *_extrapolations(model, batch, context),
        *_types(model),
        *_approximations(model, batch),
    ]


def _room(model: StepModel, batch: int, context: int) -> list[str]:
    usable = model.usable_bytes()
    notes = []
    if context > model.spec.context:
        notes.append(f"{context:,} tokens are more than the model's own limit of {model.spec.context:,}")
    if usable is None or model.fits(batch, context):
        return notes
    need = f"needs {model.memory_bytes(batch, context) / 1e9:.3g} GB, {usable / 1e9:.3g} GB can be used"
    where = model.residency
    if where.whole:
        return [*notes, f"does not fit: {need}; the times are what they would be if it did"]
    away = where.away_bytes / model.terms.total_bytes
    disk = max(where.experts_disk, where.fixed_disk) > 0
    host = max(where.experts_host, where.fixed_host) > 0
    place = "host memory and disk" if host and disk else "disk" if disk else "host memory"
    notes.append(f"does not fit: {need}; {away:.0%} of the weights are read from {place} (first approximation)")
    if model.usable_bytes() and model.memory_bytes(batch, context) - model.terms.total_bytes > (usable or 0):
        notes.append("keys and values alone are more than the device holds")
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
    if model.profile.engine == "llama.cpp" and isinstance(format_named(model.format), GpuFormat):
        notes.append(f"llama.cpp does not read {model.format}: these are the times of as many bytes")
    if model.split == "layers":
        notes.append(f"{model.devices} devices work one after the other on their layers: more memory, no more speed")
    elif model.split != "none":
        notes.append(f"{model.devices} devices: a first approximation of {model.split} parallelism, not checked")
    if model.profile.origin.how == "probes" and not routing_known(model.terms) and batch > 1:
        notes.append("routing taken as even; the low end allows for uneven routing (measure it: breakeven trace)")
    return notes
