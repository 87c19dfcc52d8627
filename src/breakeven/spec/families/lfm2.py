"""LFM2-MoE: gated short convolutions with attention here and there, leading dense layers, then experts."""

from __future__ import annotations

from collections.abc import Mapping

from breakeven.errors import UserError
from breakeven.spec.families.base import Family, FfnOrder, GgufValue
from breakeven.spec.families.build import dense, gqa, model, moe, n_layers
from breakeven.spec.families.config import HELP, Config
from breakeven.spec.families.metadata import leading_dense, metadata
from breakeven.spec.model import Gating, Gqa, Layer, ModelSpec, QkNorm, ShortConv


def from_config(config: Mapping[str, object], name: str, source: str) -> ModelSpec:
    """Read an `lfm2_moe` configuration; `layer_types` says which layers attend."""
    c = Config(config, name, source)
    kinds = c.kinds(n_layers(c))
    if kinds is None:
        raise UserError(f"{source}: {name} does not say layer_types; add it, or {HELP}")
    attention = gqa(c, qk_norm=QkNorm.HEAD)
    conv = ShortConv(kernel=c.whole_or(3, "conv_L_cache"))
    routed = moe(c, gating=Gating.SIGMOID, selection_bias=c.flag_or(True, "use_expert_bias"))
    first = c.whole_or(0, "num_dense_layers")
    layers = [
        Layer(attention if kind == "full_attention" else conv, routed if i >= first else dense(c))
        for i, kind in enumerate(kinds)
    ]
    # The key of this name is absent from released configurations: embeddings are tied.
    return model(c, "lfm2moe", layers, tied=c.flag_or(True, "tie_embedding"), rope_base=1000000.0)


def gguf_metadata(spec: ModelSpec) -> dict[str, GgufValue]:
    """Keys of the `lfm2moe` architecture; layers without attention have no key-value heads."""
    kernel = next((a.kernel for a in (layer.attention for layer in spec.layers) if isinstance(a, ShortConv)), 3)
    return metadata("lfm2moe", spec) | leading_dense("lfm2moe", spec) | {"lfm2moe.shortconv.l_cache": kernel}


FAMILY = Family(
    "lfm2moe",
    ("lfm2_moe",),
    "lfm2moe",
    from_config,
    gguf_metadata,
    ffn_order=FfnOrder.LEADING_DENSE,
    attention=(Gqa, ShortConv),
    tensor_names={"output_norm": "token_embd_norm"},
)
