"""Families that are counted but not written: GLM-4.5, MiniMax-M2, MiMo-V2, Qwen3-Next and Qwen 3.5."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from breakeven.spec.families.base import Family
from breakeven.spec.families.build import dense, gqa, model, moe, n_layers
from breakeven.spec.families.config import EXPERT_WIDTH, EXPERTS, Config
from breakeven.spec.families.metadata import none_yet
from breakeven.spec.model import Gating, Layer, LinearAttention, ModelSpec, QkNorm


def glm4moe_from_config(config: Mapping[str, object], name: str, source: str) -> ModelSpec:
    """Read a `glm4_moe` configuration: biases on queries, keys and values, leading dense layers, shared experts."""
    c = Config(config, name, source)
    norm = QkNorm.HEAD if c.flag_or(False, "use_qk_norm") else QkNorm.NONE
    attention = gqa(c, head_dim_required=True, qkv_bias=c.flag_or(True, "attention_bias"), qk_norm=norm)
    n_shared = c.whole_or(0, "n_shared_experts")
    routed = moe(
        c,
        gating=Gating.SIGMOID,
        n_shared=n_shared,
        shared_width=n_shared * c.whole(*EXPERT_WIDTH),
        selection_bias=True,
    )
    first = c.whole_or(0, "first_k_dense_replace")
    layers = [Layer(attention, routed if i >= first else dense(c)) for i in range(n_layers(c))]
    return model(c, "glm4moe", layers, rope_base=1000000.0)


def minimax_m2_from_config(config: Mapping[str, object], name: str, source: str) -> ModelSpec:
    """Read a `minimax_m2` configuration; `intermediate_size` is the width of one expert."""
    c = Config(config, name, source)
    attention = gqa(c, head_dim_required=True, qk_norm=QkNorm.FULL)
    routed = moe(c, width=("intermediate_size",), gating=Gating.SIGMOID, selection_bias=True)
    return model(c, "minimax-m2", [Layer(attention, routed)] * n_layers(c), rope_base=5000000.0)


def mimo2_from_config(config: Mapping[str, object], name: str, source: str) -> ModelSpec:
    """Read a `mimo_v2_flash` configuration: sliding layers may have other heads, `moe_layer_freq` may be a list."""
    c = Config(config, name, source)
    full = gqa(c, head_dim_required=True)
    full = replace(full, value_head_dim=c.whole_or(full.head_dim, "v_head_dim"))
    sliding = replace(
        full,
        heads=c.whole_or(full.heads, "swa_num_attention_heads"),
        kv_heads=c.whole_or(full.kv_heads, "swa_num_key_value_heads"),
        head_dim=c.whole_or(full.head_dim, "swa_head_dim"),
        value_head_dim=c.whole_or(full.value_head_dim or full.head_dim, "swa_v_head_dim"),
        window=c.whole("sliding_window"),
        sinks=c.flag_or(True, "add_swa_attention_sink_bias"),
    )
    count = n_layers(c)
    slides = [bool(flag) for flag in c.list_of("hybrid_layer_pattern") or [(i + 1) % 6 for i in range(count)]]
    routes = [bool(flag) for flag in c.list_of("moe_layer_freq") or [1] * count]
    routed = moe(c, gating=Gating.SIGMOID, selection_bias=True)
    layers = [
        Layer(sliding if slide else full, routed if route else dense(c))
        for slide, route in zip(slides, routes, strict=True)
    ]
    return model(c, "mimo2", layers, rope_base=5000000.0)


def qwen3next_from_config(family: str, config: Mapping[str, object], name: str, source: str) -> ModelSpec:
    """Read a `qwen3_next` or `qwen3_5` configuration: three gated delta-net layers to one of gated attention."""
    c = Config(config, name, source)
    attention = gqa(c, head_dim_required=True, qk_norm=QkNorm.HEAD, output_gate=c.flag_or(True, "attn_output_gate"))
    linear = LinearAttention(
        key_heads=c.whole("linear_num_key_heads"),
        value_heads=c.whole("linear_num_value_heads"),
        key_dim=c.whole("linear_key_head_dim"),
        value_dim=c.whole("linear_value_head_dim"),
        conv_kernel=c.whole_or(4, "linear_conv_kernel_dim"),
    )
    shared = c.whole_or(0, "shared_expert_intermediate_size")
    ffn = (
        moe(c, n_shared=1 if shared else 0, shared_width=shared, shared_gate=bool(shared))
        if c.has(*EXPERTS)
        else dense(c)
    )
    count = n_layers(c)
    every = c.whole_or(4, "full_attention_interval")
    kinds = c.kinds(count) or ["linear_attention" if (i + 1) % every else "full_attention" for i in range(count)]
    layers = [Layer(linear if kind == "linear_attention" else attention, ffn) for kind in kinds]
    return model(c, family, layers, rope_base=10000000.0)


_SECOND_NORM = {"ffn_norm": "post_attention_norm"}

GLM4MOE = Family("glm4moe", ("glm4_moe",), None, glm4moe_from_config, none_yet, _SECOND_NORM)
MINIMAX_M2 = Family("minimax-m2", ("minimax_m2",), None, minimax_m2_from_config, none_yet)
MIMO2 = Family("mimo2", ("mimo_v2_flash",), None, mimo2_from_config, none_yet)
QWEN3NEXT = Family(
    "qwen3next", ("qwen3_next",), None, partial(qwen3next_from_config, "qwen3next"), none_yet, _SECOND_NORM
)
QWEN35 = Family(
    "qwen35",
    ("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"),
    None,
    partial(qwen3next_from_config, "qwen35"),
    none_yet,
    _SECOND_NORM,
)
