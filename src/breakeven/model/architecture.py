"""What a model is: its layers, one by one, and nothing about how it is run.

A hybrid is a model whose layers differ, so every layer carries its own attention and its own feed-forward.
This module knows shapes only. Names of tensors live in `tensors`, weight formats in `formats`, and the
arithmetic on both in `arithmetic`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class QkNorm(StrEnum):
    """Where queries and keys are normalised: not at all, per head (Qwen3), or over the whole projection (OLMoE)."""

    NONE = "none"
    HEAD = "head"
    FULL = "full"


class Gating(StrEnum):
    """How router logits become the weights of the chosen experts."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"
    SOFTMAX_AFTER_TOP_K = "softmax_after_top_k"


@dataclass(frozen=True, slots=True)
class Gqa:
    """Softmax attention over cached keys and values; MHA when `kv_heads == heads`, MQA when it is 1.

    `window`: positions a sliding-window layer sees (None: all). `output_gate` doubles the query projection
    (Qwen3-Next). `sinks`: one learned logit a head (gpt-oss).
    """

    heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None
    qk_norm: QkNorm = QkNorm.NONE
    qkv_bias: bool = False
    output_bias: bool = False
    output_gate: bool = False
    sinks: bool = False
    value_head_dim: int | None = None
    """None: as `head_dim`."""


@dataclass(frozen=True, slots=True)
class Mla:
    """Multi-head latent attention (DeepSeek-V2): the cache holds `kv_lora_rank + rope_dim` elements a token."""

    heads: int
    kv_lora_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    q_lora_rank: int | None = None


@dataclass(frozen=True, slots=True)
class LinearAttention:
    """Gated delta-net (Qwen3-Next, Qwen3.5): a constant state of `value_heads * key_dim * value_dim` elements."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    conv_kernel: int = 4


@dataclass(frozen=True, slots=True)
class ShortConv:
    """Gated short convolution (LFM2): a constant state of `hidden * (kernel - 1)` elements."""

    kernel: int = 3


Attention = Gqa | Mla | LinearAttention | ShortConv


@dataclass(frozen=True, slots=True)
class DenseFfn:
    """A gated feed-forward (up, gate, down) of `width`."""

    width: int
    bias: bool = False


@dataclass(frozen=True, slots=True)
class MoeFfn:
    """`n_experts` gated feed-forwards of `expert_width`, of which a router picks `n_experts_per_token`.

    `shared_width` is the width of all shared experts together (0: none), `shared_gate` a learned scalar gate on
    them (Qwen). `dense_width` is a dense feed-forward run beside the experts in the same layer (Gemma 4).
    `selection_bias`: a bias used to choose experts but not to weight them (DeepSeek-V3).
    """

    n_experts: int
    n_experts_per_token: int
    expert_width: int
    n_shared_experts: int = 0
    shared_width: int = 0
    shared_gate: bool = False
    dense_width: int = 0
    router_bias: bool = False
    selection_bias: bool = False
    expert_bias: bool = False
    gating: Gating = Gating.SOFTMAX
    normalise_weights: bool = True
    weights_scale: float = 1.0
    n_groups: int = 1
    n_groups_used: int = 1


FeedForward = DenseFfn | MoeFfn


@dataclass(frozen=True, slots=True)
class Layer:
    """One transformer block."""

    attention: Attention
    ffn: FeedForward
    post_norms: bool = False
    """Two further norms, after attention and after the feed-forward (Gemma 2 and 3)."""


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding: base frequency and how many of a head's dimensions turn (None: all)."""

    base: float = 10000.0
    dimensions: int | None = None


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """An architecture. `family` names an entry of `breakeven.model.layouts.registry.FAMILIES`."""

    name: str
    family: str
    hidden: int
    vocab: int
    context: int
    tied_embeddings: bool
    layers: tuple[Layer, ...]
    source: str
    rope: Rope = Rope()
    norm_epsilon: float = 1e-5
    layer_norm: bool = False
    """LayerNorm with a bias (Phi-3.5-MoE) where other families use RMSNorm."""
    output_bias: bool = False
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    scales: Scales | None = None
    published_total_params: int | None = None

    @property
    def is_moe(self) -> bool:
        """True when any layer routes."""
        return any(isinstance(layer.ffn, MoeFfn) for layer in self.layers)


@dataclass(frozen=True, slots=True)
class Scales:
    """Granite's four multipliers."""

    embedding: float = 1.0
    residual: float = 1.0
    attention: float = 1.0
    logit: float = 1.0
