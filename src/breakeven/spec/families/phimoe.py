"""Phi-3.5-MoE: LayerNorm with biases, biases in attention and at the output."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from breakeven.spec.families.base import Family, FfnOrder
from breakeven.spec.families.build import gqa, model, moe, n_layers
from breakeven.spec.families.config import Config
from breakeven.spec.families.metadata import metadata
from breakeven.spec.model import Layer, ModelSpec


def from_config(config: Mapping[str, object], name: str, source: str) -> ModelSpec:
    """Read a `phimoe` configuration; `intermediate_size` is the width of one expert.

    The released model has both biases although the configuration class leaves them off by default.
    """
    c = Config(config, name, source)
    bias = c.flag_or(True, "attention_bias")
    layer = Layer(gqa(c, qkv_bias=bias, output_bias=bias), moe(c, width=("intermediate_size",), normalise=True))
    return model(c, "phimoe", [layer] * n_layers(c), layer_norm=True, output_bias=c.flag_or(True, "lm_head_bias"))


FAMILY = Family("phimoe", ("phimoe",), "phimoe", from_config, partial(metadata, "phimoe"), ffn_order=FfnOrder.ROUTED)
