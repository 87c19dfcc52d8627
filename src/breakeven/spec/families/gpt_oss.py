"""gpt-oss: sliding and full attention in turn, one learned sink a head, biases everywhere, the second norm renamed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from breakeven.spec.families.base import Family, FfnOrder, GgufValue
from breakeven.spec.families.build import gqa, model, moe, n_layers
from breakeven.spec.families.config import Config
from breakeven.spec.families.metadata import metadata, window_pattern
from breakeven.spec.model import Gating, Layer, ModelSpec


def from_config(config: Mapping[str, object], name: str, source: str) -> ModelSpec:
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
    layers = [Layer(sliding if kind == "sliding_attention" else full, ffn) for kind in kinds]
    return model(c, "gpt-oss", layers, rope_base=150000.0)


def gguf_metadata(spec: ModelSpec) -> dict[str, GgufValue]:
    """Keys of the `gpt-oss` architecture."""
    return metadata("gpt-oss", spec) | window_pattern("gpt-oss", spec)


FAMILY = Family(
    "gpt-oss",
    ("gpt_oss",),
    "gpt-oss",
    from_config,
    gguf_metadata,
    tensor_names={"ffn_norm": "post_attention_norm"},
    window_period=2,
    ffn_order=FfnOrder.ROUTED,
)
