"""Families that are Llama with small differences: one kind of layer throughout, full attention.

Llama, Mistral and Mixtral are one layout in llama.cpp. Qwen 2 has biases on queries, keys and values, Qwen 3 norms on
queries and keys. OLMoE norms them over the whole projection and does not renormalise the weights of its 64 narrow
experts. Phi-3.5-MoE has LayerNorm and biases. IBM Granite 3 has four multipliers.
"""

from __future__ import annotations

from collections.abc import Mapping

from breakeven.errors import UserError
from breakeven.model.architecture import Gating, Gqa, ModelSpec, QkNorm, Scales
from breakeven.model.layouts.config import EXPERTS, Config
from breakeven.model.layouts.parts import block, dense, gqa, model, moe, n_layers


def llama_from_config(config: Mapping[str, object], name: str, source: str) -> ModelSpec:
    """Read a `llama`, `mistral` or `mixtral` configuration."""
    c = Config(config, name, source)
    bias = c.flag_or(False, "attention_bias")
    layer = block(
        mixer=gqa(c, qkv_bias=bias, output_bias=bias),
        # Mixtral keeps the width of one expert where dense models keep theirs.
        ffn=moe(c, width=("intermediate_size",)) if c.has(*EXPERTS) else dense(c),
    )
    return model(c, "llama", [layer] * n_layers(c))


def qwen2_from_config(config: Mapping[str, object], name: str, source: str) -> ModelSpec:
    """Read a `qwen2` configuration. `sliding_window` counts only with `use_sliding_window`, which no release sets."""
    c = Config(config, name, source)
    layer = block(mixer=gqa(c, qkv_bias=True), ffn=dense(c))
    return model(c, "qwen2", [layer] * n_layers(c), rope_base=1000000.0)


def qwen3_from_config(config: Mapping[str, object], name: str, source: str) -> ModelSpec:
    """Read a `qwen3` configuration; `head_dim` is not hidden / heads."""
    c = Config(config, name, source)
    layer = block(mixer=gqa(c, head_dim_required=True, qk_norm=QkNorm.HEAD), ffn=dense(c))
    return model(c, "qwen3", [layer] * n_layers(c), rope_base=1000000.0)


def qwen3moe_from_config(config: Mapping[str, object], name: str, source: str) -> ModelSpec:
    """Read a `qwen3_moe` configuration: each `decoder_sparse_step`-th layer routes, save any in `mlp_only_layers`."""
    c = Config(config, name, source)
    attention = gqa(c, head_dim_required=True, qk_norm=QkNorm.HEAD)
    step = c.whole_or(1, "decoder_sparse_step")
    if step < 1:
        raise UserError(f"{source}: {name}: decoder_sparse_step is {step}, it must be 1 or more")
    never = set(c.list_of("mlp_only_layers") or ())
    layers = [
        block(attention, moe(c) if (i + 1) % step == 0 and i not in never else dense(c)) for i in range(n_layers(c))
    ]
    return model(c, "qwen3moe", layers, rope_base=1000000.0)


def olmoe_from_config(config: Mapping[str, object], name: str, source: str) -> ModelSpec:
    """Read an `olmoe` configuration; `intermediate_size` is the width of one expert."""
    c = Config(config, name, source)
    layer = block(mixer=gqa(c, qk_norm=QkNorm.FULL), ffn=moe(c, width=("intermediate_size",), normalise=False))
    return model(c, "olmoe", [layer] * n_layers(c))


def phimoe_from_config(config: Mapping[str, object], name: str, source: str) -> ModelSpec:
    """Read a `phimoe` configuration; `intermediate_size` is the width of one expert.

    The released model has both biases although the configuration class leaves them off by default.
    """
    c = Config(config, name, source)
    bias = c.flag_or(True, "attention_bias")
    layer = block(gqa(c, qkv_bias=bias, output_bias=bias), moe(c, width=("intermediate_size",), normalise=True))
    return model(c, "phimoe", [layer] * n_layers(c), layer_norm=True, output_bias=c.flag_or(True, "lm_head_bias"))


def _scales(c: Config, attention: Gqa) -> Scales:
    return Scales(
        embedding=c.number_or(1.0, "embedding_multiplier"),
        residual=c.number_or(1.0, "residual_multiplier"),
        attention=c.number_or(attention.head_dim**-0.5, "attention_multiplier"),
        logit=c.number_or(1.0, "logits_scaling"),
    )


def granite_from_config(config: Mapping[str, object], name: str, source: str) -> ModelSpec:
    """Read a `granite` configuration."""
    c = Config(config, name, source)
    bias = c.flag_or(False, "attention_bias")
    attention = gqa(c, qkv_bias=bias, output_bias=bias)
    return model(c, "granite", [block(attention, dense(c))] * n_layers(c), scales=_scales(c, attention))


def granitemoe_from_config(config: Mapping[str, object], name: str, source: str) -> ModelSpec:
    """Read a `granitemoe` or `granitemoeshared` configuration; `intermediate_size` is the width of one expert."""
    c = Config(config, name, source)
    attention = gqa(c)
    shared = c.whole_or(0, "shared_intermediate_size")
    ffn = moe(
        c,
        width=("intermediate_size",),
        gating=Gating.SOFTMAX_AFTER_TOP_K,
        shared_width=shared,
        n_shared=1 if shared else 0,
    )
    return model(c, "granitemoe", [block(attention, ffn)] * n_layers(c), tied=True, scales=_scales(c, attention))
