"""OLMoE: queries and keys normed over the whole projection, 64 narrow experts, weights not renormalised."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from breakeven.spec.families.base import Family, FfnOrder
from breakeven.spec.families.build import gqa, model, moe, n_layers
from breakeven.spec.families.config import Config
from breakeven.spec.families.metadata import metadata
from breakeven.spec.model import Layer, ModelSpec, QkNorm


def from_config(config: Mapping[str, object], name: str, source: str) -> ModelSpec:
    """Read an `olmoe` configuration; `intermediate_size` is the width of one expert."""
    c = Config(config, name, source)
    layer = Layer(attention=gqa(c, qk_norm=QkNorm.FULL), ffn=moe(c, width=("intermediate_size",), normalise=False))
    return model(c, "olmoe", [layer] * n_layers(c))


FAMILY = Family("olmoe", ("olmoe",), "olmoe", from_config, partial(metadata, "olmoe"), ffn_order=FfnOrder.ROUTED)
