"""The model families Breakeven knows. To add one: a file with a `Family`, a line here, a test."""

from __future__ import annotations

from collections.abc import Mapping

from breakeven.errors import UserError
from breakeven.spec.families import (
    counted,
    custom,
    deepseek,
    gemma,
    gpt_oss,
    granite,
    lfm2,
    llama,
    llama4,
    olmoe,
    phimoe,
    qwen,
    writable,
)
from breakeven.spec.families.base import Family, GgufValue
from breakeven.spec.families.config import HELP
from breakeven.spec.model import ModelSpec

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        llama.FAMILY,
        qwen.QWEN2,
        qwen.QWEN3,
        qwen.QWEN3MOE,
        olmoe.FAMILY,
        gemma.GEMMA2,
        gemma.GEMMA3,
        granite.GRANITE,
        granite.GRANITEMOE,
        phimoe.FAMILY,
        deepseek.DEEPSEEK2,
        gpt_oss.FAMILY,
        llama4.FAMILY,
        lfm2.FAMILY,
        gemma.GEMMA4,
        deepseek.DEEPSEEK32,
        deepseek.GLM_DSA,
        deepseek.MISTRAL4,
        counted.GLM4MOE,
        counted.MINIMAX_M2,
        counted.MIMO2,
        counted.QWEN3NEXT,
        counted.QWEN35,
        custom.FAMILY,
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
    return writable.why_not_written(spec, family_of(spec))


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


__all__ = [
    "FAMILIES",
    "Family",
    "GgufValue",
    "family_of",
    "family_of_architecture",
    "spec_from_config",
    "why_not_written",
]
