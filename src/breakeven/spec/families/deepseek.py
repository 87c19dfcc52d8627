"""Latent attention with shared experts and leading dense layers: DeepSeek V2 and V3, Kimi K2, Moonlight, and kin."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from breakeven.spec.families.base import Family, FfnOrder, GgufValue
from breakeven.spec.families.build import dense, mla, model, moe, n_layers
from breakeven.spec.families.config import EXPERT_WIDTH, EXPERTS, Config
from breakeven.spec.families.metadata import leading_dense, metadata, none_yet
from breakeven.spec.model import Gating, Layer, Mla, ModelSpec, MoeFfn

_V2_TYPES = ("deepseek_v2",)
_V3_TYPES = ("deepseek_v3", "kimi_k2", "kimi_k25")


def from_config(family: str, config: Mapping[str, object], name: str, source: str) -> ModelSpec:
    """Read a configuration with latent attention. V3 and its kin choose by sigmoid plus a bias, V2 by softmax."""
    c = Config(config, name, source)
    v2 = c.text_or("", "model_type") in _V2_TYPES
    sigmoid = c.text_or("softmax" if v2 else "sigmoid", "scoring_func") == "sigmoid"
    attention = mla(c)
    first = c.whole_or(0, "first_k_dense_replace")
    every = max(1, c.whole_or(1, "moe_layer_freq"))
    layers = []
    for i in range(n_layers(c)):
        routes = c.has(*EXPERTS) and i >= first and i % every == 0
        layers.append(Layer(attention, _moe(c, sigmoid=sigmoid, v2=v2) if routes else dense(c)))
    return model(c, family, layers)


def _moe(c: Config, *, sigmoid: bool, v2: bool) -> MoeFfn:
    n_shared = c.whole_or(0, "n_shared_experts")
    return moe(
        c,
        gating=Gating.SIGMOID if sigmoid else Gating.SOFTMAX,
        normalise=not v2,
        n_shared=n_shared,
        shared_width=n_shared * c.whole(*EXPERT_WIDTH),
        selection_bias=sigmoid,
    )


def gguf_metadata(spec: ModelSpec) -> dict[str, GgufValue]:
    """Keys of the `deepseek2` architecture."""
    return metadata("deepseek2", spec) | leading_dense("deepseek2", spec)


DEEPSEEK2 = Family(
    "deepseek2",
    (*_V2_TYPES, *_V3_TYPES),
    "deepseek2",
    partial(from_config, "deepseek2"),
    gguf_metadata,
    ffn_order=FfnOrder.LEADING_DENSE,
    attention=(Mla,),
)
# V3.2 and GLM-5 add a small indexer that picks positions; its weights, under 1 % of the total, are not counted.
DEEPSEEK32 = Family("deepseek32", ("deepseek_v32",), None, partial(from_config, "deepseek32"), none_yet)
GLM_DSA = Family("glm-dsa", ("glm_moe_dsa",), None, partial(from_config, "glm-dsa"), none_yet)
MISTRAL4 = Family("mistral4", ("mistral4",), None, partial(from_config, "mistral4"), none_yet)
