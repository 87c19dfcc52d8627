"""The families Breakeven knows: llama.cpp's architectures, each with the keys its files have.

To add one: a `Family` here, a test. A model whose layout fits none of them is `custom`: it can be counted, not written.
"""

from __future__ import annotations

from functools import partial

from breakeven.errors import UserError
from breakeven.model.architecture import Gqa, Mla, ModelSpec, MoeFfn, Scales, ShortConv
from breakeven.model.layouts import gguf_keys
from breakeven.model.layouts.family import Family, FfnOrder, GgufValue
from breakeven.model.layouts.gguf_keys import leading_dense, metadata, none_yet, window_pattern


def _windowed(arch: str, spec: ModelSpec) -> dict[str, GgufValue]:
    return metadata(arch, spec) | window_pattern(arch, spec)


def _granite(arch: str, spec: ModelSpec) -> dict[str, GgufValue]:
    scales = spec.scales or Scales()
    return metadata(arch, spec) | {
        f"{arch}.embedding_scale": scales.embedding,
        f"{arch}.residual_scale": scales.residual,
        f"{arch}.attention.scale": scales.attention,
        f"{arch}.logit_scale": scales.logit,
    }


def _deepseek2(spec: ModelSpec) -> dict[str, GgufValue]:
    return metadata("deepseek2", spec) | leading_dense("deepseek2", spec)


def _llama4(spec: ModelSpec) -> dict[str, GgufValue]:
    """Keys of the `llama4` architecture, which knows one step between routed layers and no other order."""
    first = next((i for i, layer in enumerate(spec.layers) if isinstance(layer.ffn, MoeFfn)), len(spec.layers))
    return _windowed("llama4", spec) | {"llama4.interleave_moe_layer_step": first + 1}


def _lfm2moe(spec: ModelSpec) -> dict[str, GgufValue]:
    kernel = next((a.kernel for layer in spec.layers for a in layer.mixers if isinstance(a, ShortConv)), 3)
    return metadata("lfm2moe", spec) | leading_dense("lfm2moe", spec) | {"lfm2moe.shortconv.l_cache": kernel}


_SECOND_NORM = {"ffn_norm": "post_attention_norm"}

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            "llama",
            "llama",
            partial(metadata, "llama"),
            ffn_order=FfnOrder.ALIKE,
            routed_as="llama",
            dense_as="llama",
        ),
        Family("qwen2", "qwen2", partial(metadata, "qwen2")),
        Family("qwen3", "qwen3", partial(metadata, "qwen3"), routed_as="qwen3moe"),
        Family("qwen3moe", "qwen3moe", partial(metadata, "qwen3moe"), ffn_order=FfnOrder.ROUTED, dense_as="qwen3"),
        Family("olmoe", "olmoe", partial(metadata, "olmoe"), ffn_order=FfnOrder.ROUTED),
        Family("phimoe", "phimoe", partial(metadata, "phimoe"), ffn_order=FfnOrder.ROUTED),
        Family("granite", "granite", partial(_granite, "granite"), ffn_order=FfnOrder.ALIKE, routed_as="granitemoe"),
        Family(
            "granitemoe", "granitemoe", partial(_granite, "granitemoe"), ffn_order=FfnOrder.ALIKE, dense_as="granite"
        ),
        Family(
            "gemma2",
            "gemma2",
            partial(_windowed, "gemma2"),
            window_period=2,
            window_default=4096,
            scales_embeddings=True,
        ),
        Family("gemma3", "gemma3", partial(_windowed, "gemma3"), window_period=6, scales_embeddings=True),
        Family(
            "gpt-oss",
            "gpt-oss",
            partial(_windowed, "gpt-oss"),
            tensor_names=_SECOND_NORM,
            window_period=2,
            ffn_order=FfnOrder.ROUTED,
        ),
        Family(
            "llama4",
            "llama4",
            _llama4,
            window_period=4,
            # Positions an attention chunk holds; llama.cpp fixes it for this architecture.
            window_default=8192,
            ffn_order=FfnOrder.EVERY_STEP,
        ),
        Family("deepseek2", "deepseek2", _deepseek2, ffn_order=FfnOrder.LEADING_DENSE, mixers=(Mla,)),
        Family(
            "lfm2moe",
            "lfm2moe",
            _lfm2moe,
            ffn_order=FfnOrder.LEADING_DENSE,
            mixers=(Gqa, ShortConv),
            tensor_names={"output_norm": "token_embd_norm"},
        ),
        # Counted, not written.
        Family("gemma4", None, none_yet),
        Family("deepseek32", None, none_yet),
        Family("glm-dsa", None, none_yet),
        Family("mistral4", None, none_yet),
        Family("glm4moe", None, none_yet, _SECOND_NORM),
        Family("minimax-m2", None, none_yet),
        Family("mimo2", None, none_yet),
        Family("qwen3next", None, none_yet, _SECOND_NORM),
        Family("qwen35", None, none_yet, _SECOND_NORM, split={"ssm_ba": ("ssm_beta", "ssm_alpha")}),
        Family("custom", None, none_yet),
    )
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
    return gguf_keys.why_not_written(spec, family_of(spec))


def family_of_architecture(architecture: str) -> Family | None:
    """The family that llama.cpp calls `architecture`, None when Breakeven does not know it."""
    return _BY_ARCHITECTURE.get(architecture)
