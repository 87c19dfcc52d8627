"""The model families Breakeven knows. To add one: a `Family` beside its kin, a line here, a test.

A model described by hand may follow none of them: it can be counted, not written.
"""

from __future__ import annotations

from collections.abc import Mapping

from breakeven.errors import UserError
from breakeven.model.architecture import ModelSpec
from breakeven.model.layouts import gguf_keys, llama, mixed, windowed
from breakeven.model.layouts.config import HELP, Family
from breakeven.model.layouts.gguf_keys import none_yet


def custom_from_config(config: Mapping[str, object], name: str, source: str) -> ModelSpec:
    """No configuration is of this family."""
    raise UserError(f"{source}: {name}: a custom model has no config.json form; {HELP}")


CUSTOM = Family("custom", (), None, custom_from_config, none_yet)


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        llama.LLAMA,
        llama.QWEN2,
        llama.QWEN3,
        llama.QWEN3MOE,
        llama.OLMOE,
        windowed.GEMMA2,
        windowed.GEMMA3,
        llama.GRANITE,
        llama.GRANITEMOE,
        llama.PHIMOE,
        mixed.DEEPSEEK2,
        windowed.GPT_OSS,
        windowed.LLAMA4,
        mixed.LFM2MOE,
        windowed.GEMMA4,
        mixed.DEEPSEEK32,
        mixed.GLM_DSA,
        mixed.MISTRAL4,
        mixed.GLM4MOE,
        mixed.MINIMAX_M2,
        mixed.MIMO2,
        mixed.QWEN3NEXT,
        mixed.QWEN35,
        CUSTOM,
    )
}

_BY_MODEL_TYPE = {model_type: family for family in FAMILIES.values() for model_type in family.model_types}
_BY_ARCHITECTURE = {family.gguf_architecture: family for family in FAMILIES.values() if family.gguf_architecture}


def family_of(spec: ModelSpec) -> Family:
    """The family a spec names; raises UserError when there is none of that name."""
    try:
        return FAMILIES[spec.family]
    except KeyError:
        raise UserError(
            f"{spec.source}: {spec.name}: no family {spec.family!r}; known: {', '.join(sorted(FAMILIES))}"
        ) from None


def why_not_written(spec: ModelSpec) -> str | None:
    """Why a file of this spec would not load in llama.cpp, None when nothing known stands against it."""
    return gguf_keys.why_not_written(spec, family_of(spec))


def family_of_architecture(architecture: str) -> Family | None:
    """The family that llama.cpp calls `architecture`, None when Breakeven does not know it."""
    return _BY_ARCHITECTURE.get(architecture)


def spec_from_config(config: Mapping[str, object], name: str, source: str) -> ModelSpec:
    """Read a Hugging Face configuration by its `model_type`, or that of its `text_config`.

    Raises UserError for a family Breakeven does not know and for a missing or malformed fact.
    """
    nested = config.get("text_config")
    inner = nested.get("model_type") if isinstance(nested, Mapping) else None
    outer = config.get("model_type")
    if outer is None and inner is None:
        raise UserError(f"{source}: {name} does not say model_type, so its layout is unknown; add it, or {HELP}")
    for model_type in (inner, outer):
        if isinstance(model_type, str) and model_type in _BY_MODEL_TYPE:
            return _BY_MODEL_TYPE[model_type].from_config(config, name, source)
    raise UserError(f"{source}: {name}: the tensor layout of model_type {inner or outer!r} is not known here; {HELP}")
