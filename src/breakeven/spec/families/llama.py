"""Llama, Mistral and Mixtral: one layout in llama.cpp; with experts it is Mixtral."""

from __future__ import annotations

from collections.abc import Mapping

from breakeven.spec.families.base import Family, FfnOrder, GgufValue
from breakeven.spec.families.build import dense, gqa, model, moe, n_layers
from breakeven.spec.families.config import EXPERTS, Config
from breakeven.spec.families.metadata import metadata
from breakeven.spec.model import Layer, ModelSpec


def from_config(config: Mapping[str, object], name: str, source: str) -> ModelSpec:
    """Read a `llama`, `mistral` or `mixtral` configuration."""
    c = Config(config, name, source)
    bias = c.flag_or(False, "attention_bias")
    layer = Layer(
        attention=gqa(c, qkv_bias=bias, output_bias=bias),
        # Mixtral keeps the width of one expert where dense models keep theirs.
        ffn=moe(c, width=("intermediate_size",)) if c.has(*EXPERTS) else dense(c),
    )
    return model(c, "llama", [layer] * n_layers(c))


def gguf_metadata(spec: ModelSpec) -> dict[str, GgufValue]:
    """Keys of the `llama` architecture."""
    return metadata("llama", spec)


FAMILY = Family(
    name="llama",
    model_types=("llama", "mistral", "mixtral", "mistral3", "ministral3"),
    gguf_architecture="llama",
    from_config=from_config,
    gguf_metadata=gguf_metadata,
    ffn_order=FfnOrder.ALIKE,
    routed_as="llama",
    dense_as="llama",
)
