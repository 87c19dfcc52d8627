"""The families Breakeven knows: llama.cpp's architectures, each with the keys its files have.

To add one: a `Family` in the table of its kind (`families_dense`, `families_moe`, `families_latent`,
`families_hybrid`) and a test. A model whose layout fits none of them is `custom`: it can be counted, not written.
"""

from __future__ import annotations

from breakeven.errors import UserError
from breakeven.model.architecture import ModelSpec
from breakeven.model.layouts import refusals
from breakeven.model.layouts.families_dense import DENSE_FAMILIES
from breakeven.model.layouts.families_hybrid import HYBRID_FAMILIES
from breakeven.model.layouts.families_latent import LATENT_FAMILIES
from breakeven.model.layouts.families_moe import MOE_FAMILIES
from breakeven.model.layouts.family import Family
from breakeven.model.layouts.gguf_keys import none_yet

_COUNTED = (
    # Architectures of llama.cpp that Breakeven counts and does not write.
    *(Family(name, None, none_yet) for name in ("qwen4exp",)),
    # Layouts that no architecture of llama.cpp has.
    *(
        Family(name, None, none_yet, known_to_llama_cpp=False)
        for name in ("flexolmo", "olmo-hybrid", "longcat-flash", "custom")
    ),
)

FAMILIES: dict[str, Family] = {
    family.name: family for family in (*DENSE_FAMILIES, *MOE_FAMILIES, *LATENT_FAMILIES, *HYBRID_FAMILIES, *_COUNTED)
}

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
    return refusals.why_not_written(spec, family_of(spec))


def family_of_architecture(architecture: str) -> Family | None:
    """The family that llama.cpp calls `architecture`, None when Breakeven does not know it."""
    return _BY_ARCHITECTURE.get(architecture)
