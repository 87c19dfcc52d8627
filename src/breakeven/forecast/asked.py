"""From what people name to step models: each model in its own weight format, on a machine whose engine reads it.

A format comes from the name itself (`NAME:FORMAT`), else from the call, else from the model: a weight file has its
own types, a checkpoint the format it was published in. Where nobody names an engine, formats that only one engine
reads decide, and models that leave it open go where the others go, so that what is compared runs in one engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from breakeven.forecast.constants import Profile, kin_of
from breakeven.forecast.efficiencies import efficiencies
from breakeven.forecast.model import StepModel, step_model
from breakeven.forecast.profiles import THIS, engine_of_format, profile_named
from breakeven.forecast.routing import Routing
from breakeven.hardware.chips import backend_of
from breakeven.hardware.placement import AUTO, Placement
from breakeven.model.architecture import ModelSpec
from breakeven.model.formats.named import DEFAULT_FORMATS, OWN, default_format
from breakeven.model.resolve import is_catalogued, resolve_spec, split_format

LLAMA_CPP = "llama.cpp"
PHASES = ("decode", "prefill")
MINOR = 0.05
"""Number types with less of a model's bytes go unmentioned."""


@dataclass(frozen=True, slots=True)
class AskedModel:
    """A model as it was named. `format_name` None: nobody said. `by_name`: it is a catalogued name and no file."""

    name: str
    spec: ModelSpec
    format_name: str | None = None
    by_name: bool = False

    @property
    def is_file(self) -> bool:
        """Taken as the weight file that it is, in the file's own types."""
        return self.spec.stored is not None and self.format_name in (None, OWN)

    @property
    def own_format(self) -> str | None:
        """The format asked for, else the one that its configuration says; None for neither, and for a weight file.

        Of a model by name, people run other formats than the published one where their engine does not read that.
        """
        if self.is_file or self.by_name or self.spec.quantization is None:
            return self.format_name
        return self.format_name or default_format(self.spec, "vllm")

    def format_under(self, profile: Profile) -> str:
        """The format it is taken in: as asked, else its own, else the one probed, else the engine's usual one."""
        if self.format_name is not None:
            return self.format_name
        own, usual = default_format(self.spec, profile.engine), DEFAULT_FORMATS.get(profile.engine, "Q4_K_M")
        if self.by_name and engine_of_format(own) not in (None, profile.engine):
            own = usual
        probed = profile.origin.format if profile.origin.how == "probes" else None
        return probed if probed is not None and own == usual else own


def asked_model(text: str, format_name: str | None = None) -> AskedModel:
    """The model that `text` names, in the format behind its name, else in `format_name`. Raises UserError."""
    spec, (bare, behind) = resolve_spec(text), split_format(text)
    return AskedModel(text, spec, behind or format_name, by_name=is_catalogued(bare))


def assumed_notes(spec: ModelSpec) -> list[str]:
    """What was passed over in a model's description, for whoever reads numbers of it."""
    if not spec.assumed:
        return []
    return [f"read on past {', '.join(spec.assumed)}, which is not known here: the layout may be another"]


def profiles_for(
    models: Sequence[AskedModel], machine: str, engine: str | None = None, devices: int | None = None
) -> list[Profile]:
    """The profile of a machine for each of the models. Raises UserError as `profile_named` does.

    Of a machine that was calibrated in several formats one profile serves all, since errors cancel only under one.
    """
    first = next((model.own_format for model in models if model.own_format is not None), None)
    leads = _leads(models)
    return [_profile_for(model, machine, engine, devices, leads, first) for model in models]


def _leads(models: Sequence[AskedModel]) -> str | None:
    """A format that decides on the engine for models that leave it open; None where nothing does, or two disagree."""
    for asked in (True, False):
        deciding = [OWN if m.is_file else m.own_format for m in models if bool(m.format_name or m.is_file) == asked]
        engines = {engine: name for name in deciding if name and (engine := engine_of_format(name))}
        if engines:
            return next(iter(engines.values())) if len(engines) == 1 else None
    return None


def _profile_for(
    model: AskedModel, machine: str, engine: str | None, devices: int | None, leads: str | None, first: str | None
) -> Profile:
    own = OWN if model.is_file else model.own_format
    if machine == THIS or model.is_file:
        follows = leads == OWN and (own is None or engine_of_format(own) is None)
        engine = engine or (LLAMA_CPP if model.is_file or follows else None)
        return profile_named(machine, engine, devices, first)
    if engine is None:
        decides = own if own is not None and engine_of_format(own) else leads or own
        engine = profile_named(machine, None, devices, decides).engine
    return profile_named(machine, engine, devices, own or default_format(model.spec, engine))


def model_on(
    model: AskedModel,
    profile: Profile,
    devices: int | None = None,
    *,
    frequencies: Routing | None = None,
    expert_parallel: bool = False,
    kv: str | None = None,
    reserve: float | None = None,
    placement: Placement = AUTO,
) -> StepModel:
    """`step_model` of a model as asked. Raises UserError for what the engine cannot do."""
    return step_model(
        model.spec,
        profile,
        model.format_under(profile),
        devices,
        frequencies=frequencies,
        expert_parallel=expert_parallel,
        kv=kv,
        reserve=reserve,
        placement=placement,
    )


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


def why_of(model: StepModel) -> list[str]:
    """What stands behind a model's predictions: by phase the class, its records, and how far they were off.

    Of a data sheet also how many of those records are of the number types that its weights have.
    """
    said = [f"{phase}: {_class(model)}, {model.error(phase).words()}" for phase in PHASES]
    counted = model.profile.origin.types
    if model.profile.origin.how == "probes" or not counted:
        return said
    return [*said, "records by number type: " + ", ".join(f"{kind} {counted.get(kind, 0)}" for kind in _types(model))]


def _types(model: StepModel) -> list[str]:
    """Number types of at least `MINOR` of a model's bytes, the largest part first."""
    nbytes: dict[str, float] = {}
    for kind, n in (*model.terms.fixed, *(pair for group in model.terms.experts for pair in group.types)):
        nbytes[kind] = nbytes.get(kind, 0.0) + n
    most = sorted(nbytes, key=lambda kind: -nbytes[kind])
    return [kind for kind in most if nbytes[kind] > MINOR * sum(nbytes.values())]


def _class(model: StepModel) -> str:
    profile, kind = model.profile, "MoE models" if model.terms.moe else "dense models"
    lies = model.residency
    in_host = bool(lies.fixed_host or lies.experts_host or lies.kv_host)
    away = "" if lies.whole else "in part in host memory" if in_host else "in part read from disk"
    if profile.origin.how == "probes" or profile.chip is None:
        return " ".join(filter(None, (f"probed {kind}", away)))
    of = [f"{c.chip_class} machines ({_kernels(each)})" for each in (profile, *profile.others) if (c := each.chip)]
    where = f"on {' and '.join(dict.fromkeys(of))}"
    if in_host:
        # What lies there was fitted over all classes with memory of their own.
        where = f"({_kernels(profile)})"
    return " ".join(filter(None, (kind, away, where, f"under {profile.engine}")))


def _kernels(profile: Profile) -> str:
    """Whose kernels ran the records behind a data sheet's profile, else whose would run there."""
    own = backend_of(profile.chip) if profile.chip else ""
    return ", ".join(profile.origin.kernels) or own or profile.engine


def known_notes(model: StepModel) -> list[str]:
    """What was assumed of the model, and that nobody published a speed of such models on such machines.

    Then the band is of others, and wide. Number types that nobody published a speed of under this engine are named.
    """
    notes, profile = assumed_notes(model.spec), model.profile
    if profile.origin.how == "probes":
        return notes
    missing = [phase for phase in PHASES if not model.error(phase).n]
    if missing:
        of = f"published {missing[0]} speed" if len(missing) == 1 else "published speed"
        notes.append(f"no {of} of {_class(model)}: typical of others, a wide band; calibrate where you can")
    known = {kind for entry in efficiencies().entries if entry.engine == profile.engine for kind in entry.types}
    for kind in (kind for kind in _types(model) if kind not in known):
        kin = kin_of(kind)
        like = f"{kin}'s" if kin in profile.constants.type_cost else "those of 16 bits"
        notes.append(f"no published speed of {kind} weights under {profile.engine}: a byte is read like {like}")
    return notes
