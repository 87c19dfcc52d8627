"""From what people name to step models: each model in its own weight format, on a machine whose engine reads it.

A format comes from the name itself (`NAME:FORMAT`), else from the call, else from the model: a weight file has its
own types, a checkpoint the format it was published in. Where nobody names an engine, formats that only one engine
reads decide, and models that leave it open go where the others go, so that what is compared runs in one engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from breakeven.forecast.constants import Profile
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


def why_of(model: StepModel) -> list[str]:
    """What stands behind a model's predictions: by phase the class, its records, and how far they were off."""
    return [f"{phase}: {_class(model)}, {model.error(phase).words()}" for phase in PHASES]


def _class(model: StepModel) -> str:
    profile, kind = model.profile, "MoE models" if model.terms.moe else "dense models"
    if profile.origin.how == "probes" or profile.chip is None:
        return f"probed {kind}"
    where = f"on {profile.chip.chip_class} machines" if model.residency.whole else "in part in host memory"
    return f"{kind} {where} ({backend_of(profile.chip) or profile.engine}) under {profile.engine}"


def known_notes(model: StepModel) -> list[str]:
    """What was assumed of the model, and that nobody published a speed of such models on such machines.

    Then the band is of others, and wide.
    """
    notes = assumed_notes(model.spec)
    missing = [phase for phase in PHASES if not model.error(phase).n]
    if model.profile.origin.how == "probes" or not missing:
        return notes
    of = f"published {missing[0]} speed" if len(missing) == 1 else "published speed"
    return [*notes, f"no {of} of {_class(model)}: typical of others, a wide band; calibrate where you can"]
