"""IBM Granite 3, dense and routed: Llama's layout with four multipliers."""

from __future__ import annotations

from collections.abc import Mapping

from breakeven.spec.families.base import Family, FfnOrder, GgufValue
from breakeven.spec.families.build import dense, gqa, model, moe, n_layers
from breakeven.spec.families.config import Config
from breakeven.spec.families.metadata import metadata
from breakeven.spec.model import Gating, Gqa, Layer, ModelSpec, Scales


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
    return model(c, "granite", [Layer(attention, dense(c))] * n_layers(c), scales=_scales(c, attention))


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
    return model(c, "granitemoe", [Layer(attention, ffn)] * n_layers(c), tied=True, scales=_scales(c, attention))


def _metadata(arch: str, spec: ModelSpec) -> dict[str, GgufValue]:
    scales = spec.scales or Scales()
    return metadata(arch, spec) | {
        f"{arch}.embedding_scale": scales.embedding,
        f"{arch}.residual_scale": scales.residual,
        f"{arch}.attention.scale": scales.attention,
        f"{arch}.logit_scale": scales.logit,
    }


def _granite_metadata(spec: ModelSpec) -> dict[str, GgufValue]:
    return _metadata("granite", spec)


def _granitemoe_metadata(spec: ModelSpec) -> dict[str, GgufValue]:
    return _metadata("granitemoe", spec)


GRANITE = Family(
    "granite",
    ("granite",),
    "granite",
    granite_from_config,
    _granite_metadata,
    ffn_order=FfnOrder.ALIKE,
    routed_as="granitemoe",
)
GRANITEMOE = Family(
    "granitemoe",
    ("granitemoe", "granitemoeshared"),
    "granitemoe",
    granitemoe_from_config,
    _granitemoe_metadata,
    ffn_order=FfnOrder.ALIKE,
    dense_as="granite",
)
