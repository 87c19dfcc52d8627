"""Families whose layers take turns: Gemma, gpt-oss and Llama 4.

Gemma 2, 3 and 4: sliding and full attention, norms before and after both halves, tied embeddings. gpt-oss: sliding and
full attention, one learned sink a head, biases everywhere, the second norm renamed. Llama 4: dense and routed layers,
one shared expert, three chunked-attention layers to one full.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from breakeven.model.architecture import Gating, Gqa, ModelSpec, Norms, QkNorm
from breakeven.model.layouts.config import EXPERTS, Config
from breakeven.model.layouts.parts import block, dense, gqa, model, moe, n_layers


def _slides(c: Config, period: int) -> list[bool]:
    """Which layers slide: as `layer_types` says, else all but the last of every `period`."""
    count = n_layers(c)
    kinds = c.kinds(count)
    if kinds is not None:
        return [kind == "sliding_attention" for kind in kinds]
    period = c.whole_or(period, "sliding_window_pattern")
    return [(i + 1) % period != 0 for i in range(count)]


def gemma2_from_config(config: Mapping[str, object], name: str, source: str) -> ModelSpec:
    """Read a `gemma2` configuration; logits are capped in attention and at the output."""
    c = Config(config, name, source)
    full = gqa(c, head_dim_required=True)
    sliding = replace(full, window=c.whole("sliding_window"))
    layers = [block(sliding if slides else full, dense(c), norms=Norms.AROUND) for slides in _slides(c, 2)]
    return model(
        c,
        "gemma2",
        layers,
        tied=True,
        attention_softcap=c.number_or(50.0, "attn_logit_softcapping"),
        logit_softcap=c.number_or(30.0, "final_logit_softcapping"),
    )


def gemma3_from_config(config: Mapping[str, object], name: str, source: str) -> ModelSpec:
    """Read a `gemma3_text` configuration, or the text half of a `gemma3` one."""
    c = Config(config, name, source)
    full = gqa(c, head_dim_required=True, qk_norm=QkNorm.HEAD)
    sliding = replace(full, window=c.whole("sliding_window"))
    layers = [block(sliding if slides else full, dense(c), norms=Norms.AROUND) for slides in _slides(c, 6)]
    return model(c, "gemma3", layers, tied=True, rope_base=1000000.0)


def gemma4_from_config(config: Mapping[str, object], name: str, source: str) -> ModelSpec:
    """Read a `gemma4_text` configuration: full layers have other heads; experts run beside a dense feed-forward."""
    c = Config(config, name, source)
    sliding = gqa(c, head_dim_required=True, qk_norm=QkNorm.HEAD, window=c.whole("sliding_window"))
    full = Gqa(
        heads=sliding.heads,
        kv_heads=c.whole_or(sliding.kv_heads, "num_global_key_value_heads"),
        head_dim=c.whole_or(sliding.head_dim, "global_head_dim"),
        qk_norm=QkNorm.HEAD,
    )
    routed = c.has(*EXPERTS)
    ffn = moe(c, dense_width=c.whole("intermediate_size")) if routed else dense(c)
    layers = [block(sliding if slides else full, ffn, norms=Norms.AROUND) for slides in _slides(c, 6)]
    return model(c, "gemma4", layers, tied=True, rope_base=1000000.0)


def gpt_oss_from_config(config: Mapping[str, object], name: str, source: str) -> ModelSpec:
    """Read a `gpt_oss` configuration; `intermediate_size` is the width of one expert."""
    c = Config(config, name, source)
    full = gqa(c, head_dim_required=True, qkv_bias=True, output_bias=True, sinks=True)
    sliding = replace(full, window=c.whole("sliding_window"))
    ffn = moe(
        c,
        width=("intermediate_size",),
        gating=Gating.SOFTMAX_AFTER_TOP_K,
        router_bias=True,
        expert_bias=True,
    )
    count = n_layers(c)
    kinds = c.kinds(count) or ["full_attention" if i % 2 else "sliding_attention" for i in range(count)]
    layers = [block(sliding if kind == "sliding_attention" else full, ffn) for kind in kinds]
    return model(c, "gpt-oss", layers, rope_base=150000.0)


_CHUNK = 8192
"""Positions an attention chunk holds; llama.cpp fixes it for this architecture."""


def llama4_from_config(config: Mapping[str, object], name: str, source: str) -> ModelSpec:
    """Read a `llama4_text` configuration, or the text half of a `llama4` one.

    `intermediate_size` is the width of an expert and of the shared expert, `intermediate_size_mlp` that of a dense
    layer; with `interleave_moe_layer_step` 2, every second layer routes.
    """
    c = Config(config, name, source)
    full = gqa(c)
    chunked = replace(full, window=c.whole_or(_CHUNK, "attention_chunk_size"))
    step = max(1, c.whole_or(1, "interleave_moe_layer_step"))
    routed = moe(
        c,
        width=("intermediate_size",),
        gating=Gating.SIGMOID,
        normalise=False,
        n_shared=1,
        shared_width=c.whole("intermediate_size"),
    )
    layers = [
        block(
            full if (i + 1) % 4 == 0 else chunked,
            routed if (i + 1) % step == 0 else dense(c, "intermediate_size_mlp"),
        )
        for i in range(n_layers(c))
    ]
    return model(c, "llama4", layers, rope_base=500000.0)
