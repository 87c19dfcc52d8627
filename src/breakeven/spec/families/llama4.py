"""Llama 4: dense and routed layers in turn, one shared expert, three chunked-attention layers to one full."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from breakeven.spec.families.base import Family, FfnOrder, GgufValue
from breakeven.spec.families.build import dense, gqa, model, moe, n_layers
from breakeven.spec.families.config import Config
from breakeven.spec.families.metadata import metadata, window_pattern
from breakeven.spec.model import Gating, Layer, ModelSpec, MoeFfn

_CHUNK = 8192
"""Positions an attention chunk holds; llama.cpp fixes it for this architecture."""


def from_config(config: Mapping[str, object], name: str, source: str) -> ModelSpec:
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
        Layer(
            full if (i + 1) % 4 == 0 else chunked,
            routed if (i + 1) % step == 0 else dense(c, "intermediate_size_mlp"),
        )
        for i in range(n_layers(c))
    ]
    return model(c, "llama4", layers, rope_base=500000.0)


def gguf_metadata(spec: ModelSpec) -> dict[str, GgufValue]:
    """Keys of the `llama4` architecture, which knows one step between routed layers and no other order."""
    first = next((i for i, layer in enumerate(spec.layers) if isinstance(layer.ffn, MoeFfn)), len(spec.layers))
    return metadata("llama4", spec) | window_pattern("llama4", spec) | {"llama4.interleave_moe_layer_step": first + 1}


FAMILY = Family(
    "llama4",
    ("llama4", "llama4_text"),
    "llama4",
    from_config,
    gguf_metadata,
    window_period=4,
    window_default=_CHUNK,
    ffn_order=FfnOrder.EVERY_STEP,
)
