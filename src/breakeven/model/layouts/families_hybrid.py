"""Families of llama.cpp that mix softmax attention with state-space models, delta-nets or convolutions."""

from __future__ import annotations

from breakeven.model.architecture import (
    Gqa,
    Lightning,
    LinearAttention,
    Mamba1,
    Mamba2,
    ModelSpec,
    OutputGate,
    QkNorm,
    ShortConv,
)
from breakeven.model.layouts.families_dense import SECOND_NORM
from breakeven.model.layouts.family import Family, FfnOrder, GgufValue, LayoutLimits
from breakeven.model.layouts.gguf_keys import (
    full_attention,
    layer_norm_epsilon,
    leading_dense,
    multipliers,
    rope_sections,
    says,
)


def _delta_net_refused(spec: ModelSpec) -> str | None:
    parts = [a for layer in spec.layers for a in layer.mixers if isinstance(a, LinearAttention)]
    if any(a.key_dim != a.value_dim for a in parts):
        return "has key heads as wide as value heads in its linear layers"
    return None if all(a.gate for a in parts) else "has a gate in its linear layers"


def _twice_as_wide(spec: ModelSpec) -> str | None:
    inner = {a.inner for layer in spec.layers for a in layer.mixers if isinstance(a, Mamba1 | Mamba2)}
    return "has Mamba layers twice as wide as the hidden state" if inner - {2 * spec.hidden} else None


def _residual_scale(spec: ModelSpec) -> dict[str, GgufValue]:
    return {"residual_scale": spec.scales.residual if spec.scales else 1.0}


def _minimax01_refused(spec: ModelSpec) -> str | None:
    parts = [a for layer in spec.layers for a in layer.mixers if isinstance(a, Lightning)]
    if any(a.kv_heads != a.heads or not a.output_gate or a.qk_norm is not QkNorm.NONE for a in parts):
        return "has a key head for every query head and an output gate in its linear layers"
    return None


def _falcon_h1_refused(spec: ModelSpec) -> str | None:
    heads = {len({(a.kv_heads, a.heads) for a in layer.mixers if isinstance(a, Gqa)}) for layer in spec.layers}
    return None if heads == {1} else "has the same heads in every layer"


_HEAD = (QkNorm.HEAD,)
_TWIN = (OutputGate.TWIN,)
_DELTA = (Gqa, LinearAttention)

HYBRID_FAMILIES = (
    Family(
        "lfm2",
        "lfm2",
        says("lfm2", marks_caches=True),
        mixers=(Gqa, ShortConv),
        tensor_names={"output_norm": "token_embd_norm"},
        limits=LayoutLimits(qk_norms=_HEAD, square=True),
        routed_as="lfm2moe",
    ),
    Family(
        "lfm2moe",
        "lfm2moe",
        says("lfm2moe", leading_dense, marks_caches=True),
        ffn_order=FfnOrder.LEADING_DENSE,
        mixers=(Gqa, ShortConv),
        tensor_names={"output_norm": "token_embd_norm"},
        limits=LayoutLimits(qk_norms=_HEAD, square=True, selection_bias=True),
        dense_as="lfm2",
    ),
    Family(
        "qwen3next",
        "qwen3next",
        says("qwen3next", full_attention),
        tensor_names=SECOND_NORM,
        ffn_order=FfnOrder.ROUTED,
        mixers=_DELTA,
        limits=LayoutLimits(
            qk_norms=_HEAD, gates=_TWIN, shared=True, shared_gate=True, mtp=True, more=_delta_net_refused
        ),
    ),
    Family(
        "qwen35",
        "qwen35",
        says("qwen35", full_attention, rope_sections),
        tensor_names=SECOND_NORM,
        split={"ssm_ba": ("ssm_beta", "ssm_alpha")},
        mixers=_DELTA,
        limits=LayoutLimits(qk_norms=_HEAD, gates=_TWIN, mtp=True, more=_delta_net_refused),
        routed_as="qwen35moe",
    ),
    Family(
        "qwen35moe",
        "qwen35moe",
        says("qwen35moe", full_attention, rope_sections),
        tensor_names=SECOND_NORM,
        split={"ssm_ba": ("ssm_beta", "ssm_alpha")},
        ffn_order=FfnOrder.ROUTED,
        mixers=_DELTA,
        limits=LayoutLimits(
            qk_norms=_HEAD, gates=_TWIN, shared=True, shared_gate=True, mtp=True, more=_delta_net_refused
        ),
        dense_as="qwen35",
    ),
    Family(
        "nemotron_h",
        "nemotron_h",
        says("nemotron_h", layer_norm_epsilon, marks_caches=True),
        mixers=(Gqa, Mamba2),
        limits=LayoutLimits(lone_parts=True, gated=False),
        routed_as="nemotron_h_moe",
    ),
    Family(
        "nemotron_h_moe",
        "nemotron_h_moe",
        says("nemotron_h_moe", layer_norm_epsilon, marks_caches=True),
        ffn_order=FfnOrder.ROUTED,
        mixers=(Gqa, Mamba2),
        limits=LayoutLimits(lone_parts=True, gated=False, shared=True, selection_bias=True, latent=True),
        dense_as="nemotron_h",
    ),
    Family(
        "granitehybrid",
        "granitehybrid",
        says("granitehybrid", multipliers, marks_caches=True),
        ffn_order=FfnOrder.ALIKE,
        mixers=(Gqa, Mamba2),
        limits=LayoutLimits(shared=None, more=_twice_as_wide),
        rope_table=True,
        attention_as=("granite", "granitemoe"),
        routed_as="granitehybrid",
        dense_as="granitehybrid",
    ),
    Family(
        "falcon-h1",
        "falcon-h1",
        says("falcon-h1"),
        bare=frozenset({"ffn_norm"}),
        mixers=(Mamba2, Gqa),
        limits=LayoutLimits(side_by_side=True, more=_falcon_h1_refused),
        rope_table=True,
    ),
    Family(
        "jamba",
        "jamba",
        says("jamba", marks_caches=True),
        ffn_order=FfnOrder.ANY,
        mixers=(Gqa, Mamba1),
        limits=LayoutLimits(square=True, same_width=True, more=_twice_as_wide),
    ),
    Family(
        "minimax-01",
        "minimax-01",
        says("minimax-01", full_attention, _residual_scale),
        tensor_names={"attn_sub_norm": "attn_norm_2"},
        ffn_order=FfnOrder.ROUTED,
        mixers=(Gqa, Lightning),
        limits=LayoutLimits(more=_minimax01_refused),
    ),
)
