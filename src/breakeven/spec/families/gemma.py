"""Gemma 2, 3 and 4: sliding and full attention in turn, norms before and after both halves, tied embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from breakeven.spec.families.base import Family, GgufValue
from breakeven.spec.families.build import dense, gqa, model, moe, n_layers
from breakeven.spec.families.config import EXPERTS, Config
from breakeven.spec.families.metadata import metadata, none_yet, window_pattern
from breakeven.spec.model import Gqa, Layer, ModelSpec, QkNorm


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
    layers = [Layer(sliding if slides else full, dense(c), post_norms=True) for slides in _slides(c, 2)]
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
    layers = [Layer(sliding if slides else full, dense(c), post_norms=True) for slides in _slides(c, 6)]
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
    layers = [Layer(sliding if slides else full, ffn, post_norms=True) for slides in _slides(c, 6)]
    return model(c, "gemma4", layers, tied=True, rope_base=1000000.0)


def _metadata(arch: str, spec: ModelSpec) -> dict[str, GgufValue]:
    return metadata(arch, spec) | window_pattern(arch, spec)


GEMMA2 = Family(
    "gemma2",
    ("gemma2",),
    "gemma2",
    gemma2_from_config,
    partial(_metadata, "gemma2"),
    window_period=2,
    window_default=4096,
    scales_embeddings=True,
)
GEMMA3 = Family(
    "gemma3",
    ("gemma3", "gemma3_text"),
    "gemma3",
    gemma3_from_config,
    partial(_metadata, "gemma3"),
    window_period=6,
    scales_embeddings=True,
)
GEMMA4 = Family("gemma4", ("gemma4", "gemma4_text"), None, gemma4_from_config, none_yet)
