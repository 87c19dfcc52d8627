"""Families whose layers differ in kind: latent attention, convolutions, leading dense layers.

DeepSeek V2 and V3, Kimi K2, Moonlight and kin: latent attention, shared experts, leading dense layers. LFM2-MoE: gated
short convolutions with attention here and there. GLM-4.5, MiniMax-M2, MiMo-V2, Qwen3-Next and Qwen 3.5 are counted but
not written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from breakeven.errors import UserError
from breakeven.model.architecture import (
    Gating,
    LinearAttention,
    ModelSpec,
    MoeFfn,
    OutputGate,
    QkNorm,
    ShortConv,
)
from breakeven.model.layouts.config import EXPERT_WIDTH, EXPERTS, HELP, Config
from breakeven.model.layouts.parts import block, dense, gqa, mla, model, moe, n_layers

_V2_TYPES = ("deepseek_v2",)
_V3_TYPES = ("deepseek_v3", "kimi_k2", "kimi_k25")


def deepseek_from_config(family: str, config: Mapping[str, object], name: str, source: str) -> ModelSpec:
    """Read a configuration with latent attention. V3 and its kin choose by sigmoid plus a bias, V2 by softmax."""
    c = Config(config, name, source)
    v2 = c.text_or("", "model_type") in _V2_TYPES
    sigmoid = c.text_or("softmax" if v2 else "sigmoid", "scoring_func") == "sigmoid"
    attention = mla(c)
    first = c.whole_or(0, "first_k_dense_replace")
    every = max(1, c.whole_or(1, "moe_layer_freq"))
    layers = []
    for i in range(n_layers(c)):
        routes = c.has(*EXPERTS) and i >= first and i % every == 0
        layers.append(block(attention, _moe(c, sigmoid=sigmoid, v2=v2) if routes else dense(c)))
    return model(c, family, layers)


def _moe(c: Config, *, sigmoid: bool, v2: bool) -> MoeFfn:
    n_shared = c.whole_or(0, "n_shared_experts")
    return moe(
        c,
        gating=Gating.SIGMOID if sigmoid else Gating.SOFTMAX,
        normalise=not v2,
        n_shared=n_shared,
        shared_width=n_shared * c.whole(*EXPERT_WIDTH),
        selection_bias=sigmoid,
    )


def lfm2_from_config(config: Mapping[str, object], name: str, source: str) -> ModelSpec:
    """Read an `lfm2_moe` configuration; `layer_types` says which layers attend."""
    c = Config(config, name, source)
    kinds = c.kinds(n_layers(c))
    if kinds is None:
        raise UserError(f"{source}: {name} does not say layer_types; add it, or {HELP}")
    attention = gqa(c, qk_norm=QkNorm.HEAD)
    conv = ShortConv(kernel=c.whole_or(3, "conv_L_cache"))
    routed = moe(c, gating=Gating.SIGMOID, selection_bias=c.flag_or(True, "use_expert_bias"))
    first = c.whole_or(0, "num_dense_layers")
    layers = [
        block(attention if kind == "full_attention" else conv, routed if i >= first else dense(c))
        for i, kind in enumerate(kinds)
    ]
    # The key of this name is absent from released configurations: embeddings are tied.
    return model(c, "lfm2moe", layers, tied=c.flag_or(True, "tie_embedding"), rope_base=1000000.0)


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
    layers = [block(attention, routed if i >= first else dense(c)) for i in range(n_layers(c))]
    return model(c, "glm4moe", layers, rope_base=1000000.0)


def minimax_m2_from_config(config: Mapping[str, object], name: str, source: str) -> ModelSpec:
    """Read a `minimax_m2` configuration; `intermediate_size` is the width of one expert."""
    c = Config(config, name, source)
    attention = gqa(c, head_dim_required=True, qk_norm=QkNorm.FULL)
    routed = moe(c, width=("intermediate_size",), gating=Gating.SIGMOID, selection_bias=True)
    return model(c, "minimax-m2", [block(attention, routed)] * n_layers(c), rope_base=5000000.0)


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
        block(sliding if slide else full, routed if route else dense(c))
        for slide, route in zip(slides, routes, strict=True)
    ]
    return model(c, "mimo2", layers, rope_base=5000000.0)


def qwen3next_from_config(family: str, config: Mapping[str, object], name: str, source: str) -> ModelSpec:
    """Read a `qwen3_next` or `qwen3_5` configuration: three gated delta-net layers to one of gated attention."""
    c = Config(config, name, source)
    attention = gqa(
        c,
        head_dim_required=True,
        qk_norm=QkNorm.HEAD,
        output_gate=OutputGate.TWIN if c.flag_or(True, "attn_output_gate") else OutputGate.NONE,
    )
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
    layers = [block(linear if kind == "linear_attention" else attention, ffn) for kind in kinds]
    return model(c, family, layers, rope_base=10000000.0)
