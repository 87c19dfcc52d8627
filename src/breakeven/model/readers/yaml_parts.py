"""The words of a model file for what layers are made of: kinds of attention, and a key for each field of each part."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields

from breakeven.model.architecture import (
    CompressedAttention,
    DenseFfn,
    FeedForward,
    Gqa,
    Indexer,
    KimiDelta,
    Lightning,
    LinearAttention,
    Mamba1,
    Mamba2,
    Mixer,
    Mla,
    MoeFfn,
    ShortConv,
)

MIXERS: dict[str, type[Mixer]] = {
    "gqa": Gqa,
    "full": Gqa,
    "sliding": Gqa,
    "mla": Mla,
    "compressed": CompressedAttention,
    "linear": LinearAttention,
    "kimi_delta": KimiDelta,
    "lightning": Lightning,
    "mamba": Mamba2,
    "mamba2": Mamba2,
    "mamba1": Mamba1,
    "conv": ShortConv,
}
"""What `attention` may be, beside `none`; the first word of each kind is the one that is written."""

_RENAMED: dict[type[object], dict[str, str]] = {
    CompressedAttention: {"ratio": "compress_ratio"},
    LinearAttention: {"gate": "linear_gate"},
    KimiDelta: {"heads": "kda_heads", "head_dim": "kda_head_dim", "gate_rank": "kda_gate_rank"},
    Lightning: {
        "heads": "lightning_heads",
        "kv_heads": "lightning_kv_heads",
        "head_dim": "lightning_head_dim",
        "qk_norm": "lightning_qk_norm",
        "qkv_bias": "lightning_qkv_bias",
        "output_gate": "lightning_gate",
    },
    Mamba2: {
        "heads": "mamba_heads",
        "head_dim": "mamba_head_dim",
        "state": "mamba_state",
        "groups": "mamba_groups",
        "norm": "mamba_norm",
        "bias": "mamba_bias",
    },
    Mamba1: {
        "inner": "mamba_inner",
        "state": "mamba_state",
        "dt_rank": "mamba_dt_rank",
        "bias": "mamba_bias",
        "dt_norms": "mamba_dt_norms",
    },
    ShortConv: {"bias": "conv_bias"},
    DenseFfn: {"width": "ffn_width", "bias": "ffn_bias"},
}
"""Fields of a part whose key in the file is another: two parts of one layer must not share a key by chance."""


def key_of(kind: type[object], field: str) -> str:
    """The key of a part's field."""
    return _RENAMED.get(kind, {}).get(field, field)


NAMES: dict[type, str] = {
    Gqa: "attention",
    Mla: "latent attention",
    CompressedAttention: "compressed attention",
    LinearAttention: "linear attention",
    KimiDelta: "Kimi delta attention",
    Lightning: "lightning attention",
    Mamba2: "Mamba-2",
    Mamba1: "Mamba",
    ShortConv: "a short convolution",
    Indexer: "an indexer",
    DenseFfn: "a dense feed-forward",
    MoeFfn: "a layer with experts",
}

OPTIONAL = ("window", "q_lora_rank", "value_head_dim", "gate_rank")
"""Fields that may be None, for which a file says `none`."""


def keys_of(part: Mixer | FeedForward) -> dict[str, object]:
    """A part as the keys that make it."""
    return {key_of(type(part), field.name): getattr(part, field.name) for field in fields(part)}


def usual(kind: type[Mixer], keys: Mapping[str, object], hidden: int) -> Iterable[tuple[str, object]]:
    """Sizes that follow from others, in the order in which they do, unless the file says them."""
    heads = keys.get("heads")
    per_head = hidden // heads if isinstance(heads, int) and hidden % heads == 0 else None
    if kind is Gqa:
        yield from (("kv_heads", heads), ("head_dim", per_head))
    elif kind in (Lightning, KimiDelta):
        prefix = "lightning" if kind is Lightning else "kda"
        own = keys.get(f"{prefix}_heads", heads)
        yield from ((f"{prefix}_heads", own), (f"{prefix}_head_dim", keys.get("head_dim", per_head)))
        yield "lightning_kv_heads", own
    elif kind is Mamba2:  # arXiv 2405.21060: twice as wide as the model, heads of 64, a state of 128
        width = keys.get("mamba_head_dim", 64)
        fits = isinstance(width, int) and 2 * hidden % width == 0
        yield from (("mamba_head_dim", width), ("mamba_state", 128))
        yield "mamba_heads", 2 * hidden // width if fits and isinstance(width, int) else None
    elif kind is Mamba1:  # arXiv 2312.00752
        yield from (("mamba_inner", 2 * hidden), ("mamba_state", 16), ("mamba_dt_rank", -(-hidden // 16)))
