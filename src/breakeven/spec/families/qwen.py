"""Qwen 2 and 2.5 (biases on queries, keys and values) and Qwen 3 (norms on queries and keys), dense and routed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from breakeven.errors import UserError
from breakeven.spec.families.base import Family, FfnOrder
from breakeven.spec.families.build import dense, gqa, model, moe, n_layers
from breakeven.spec.families.config import Config
from breakeven.spec.families.metadata import metadata
from breakeven.spec.model import Layer, ModelSpec, QkNorm


def qwen2_from_config(config: Mapping[str, object], name: str, source: str) -> ModelSpec:
    """Read a `qwen2` configuration. `sliding_window` counts only with `use_sliding_window`, which no release sets."""
    c = Config(config, name, source)
    layer = Layer(attention=gqa(c, qkv_bias=True), ffn=dense(c))
    return model(c, "qwen2", [layer] * n_layers(c), rope_base=1000000.0)


def qwen3_from_config(config: Mapping[str, object], name: str, source: str) -> ModelSpec:
    """Read a `qwen3` configuration; `head_dim` is not hidden / heads."""
    c = Config(config, name, source)
    layer = Layer(attention=gqa(c, head_dim_required=True, qk_norm=QkNorm.HEAD), ffn=dense(c))
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
        Layer(attention, moe(c) if (i + 1) % step == 0 and i not in never else dense(c)) for i in range(n_layers(c))
    ]
    return model(c, "qwen3moe", layers, rope_base=1000000.0)


QWEN2 = Family("qwen2", ("qwen2",), "qwen2", qwen2_from_config, partial(metadata, "qwen2"))
QWEN3 = Family("qwen3", ("qwen3",), "qwen3", qwen3_from_config, partial(metadata, "qwen3"), routed_as="qwen3moe")
QWEN3MOE = Family(
    "qwen3moe",
    ("qwen3_moe",),
    "qwen3moe",
    qwen3moe_from_config,
    partial(metadata, "qwen3moe"),
    ffn_order=FfnOrder.ROUTED,
    dense_as="qwen3",
)
