"""What layers are made of: mixers, which move information between tokens, and feed-forwards."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class QkNorm(StrEnum):
    """Where queries and keys are normalised: not at all, per head (Qwen3), or over the whole projection (OLMoE)."""

    NONE = "none"
    HEAD = "head"
    FULL = "full"


class OutputGate(StrEnum):
    """A learned gate on what attention returns: none, one number an element (Qwen3-Next), or one a head (Laguna).

    `TWIN` is the full gate whose matrix lies inside the query projection, which is then twice as wide.
    """

    NONE = "none"
    FULL = "full"
    TWIN = "twin"
    HEAD = "head"


class Gating(StrEnum):
    """How router logits become the weights of the chosen experts."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"
    SOFTMAX_AFTER_TOP_K = "softmax_after_top_k"
    SQRT_SOFTPLUS = "sqrt_softplus"


class Norms(StrEnum):
    """Where a layer normalises: before each part, before and after (Gemma), after alone (OLMo 2), once (Cohere).

    `PARALLEL`: one norm before both parts, which then run side by side.
    """

    BEFORE = "before"
    AROUND = "around"
    AFTER = "after"
    PARALLEL = "parallel"


@dataclass(frozen=True, slots=True)
class Indexer:
    """A small scorer that picks the positions attention reads (DeepSeek-V3.2): `top_k` of them.

    It caches one key of `head_dim` for every `every` tokens. `owns_weights` False: the layer uses another's choice.
    `pools`: keys of a block are weighed by weights of their own, not averaged (GLM-5.3). `weighs` False: heads count
    alike, and queries are normed as keys are (Qwen 4).
    """

    heads: int
    head_dim: int
    top_k: int
    kv_heads: int = 1
    every: int = 1
    owns_weights: bool = True
    pools: bool = False
    weighs: bool = True


@dataclass(frozen=True, slots=True)
class Gqa:
    """Softmax attention over cached keys and values; MHA when `kv_heads == heads`, MQA when it is 1.

    `window`: positions a sliding-window layer sees (None: all). `sinks`: one learned logit a head (gpt-oss).
    `value_head_dim`: None, as `head_dim`. `keys_are_values`: no value matrix, values are made of keys (Gemma 4).
    `shares_kv`: reads another layer's cache and keeps none; `kv_matrices` False where it has no key and value matrices
    either (Gemma 4; Gemma 3n keeps them).
    """

    heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None
    qk_norm: QkNorm = QkNorm.NONE
    qkv_bias: bool = False
    output_bias: bool = False
    output_gate: OutputGate = OutputGate.NONE
    sinks: bool = False
    value_head_dim: int | None = None
    keys_are_values: bool = False
    shares_kv: bool = False
    kv_matrices: bool = True
    indexer: Indexer | None = None

    @property
    def value_dim(self) -> int:
        """Width of one value head."""
        return self.head_dim if self.value_head_dim is None else self.value_head_dim


@dataclass(frozen=True, slots=True)
class Mla:
    """Multi-head latent attention (DeepSeek-V2): the cache holds `kv_lora_rank + rope_dim` elements a token.

    `window`: positions a sliding layer sees (None: all). `caches_latent` False: a file from before its key and value
    halves were split; llama.cpp keeps whole keys and values of it.
    """

    heads: int
    kv_lora_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    q_lora_rank: int | None = None
    output_gate: OutputGate = OutputGate.NONE
    indexer: Indexer | None = None
    window: int | None = None
    caches_latent: bool = True


@dataclass(frozen=True, slots=True)
class CompressedAttention:
    """DeepSeek-V4's attention: one shared key-value head, a window of tokens, and older ones `ratio` to an entry.

    `ratio` 0: the window alone. Queries pass a low rank, outputs are projected in `output_groups` of a low rank each.
    """

    heads: int
    head_dim: int
    q_lora_rank: int
    output_groups: int
    output_lora_rank: int
    window: int
    ratio: int = 0
    sinks: bool = True
    indexer: Indexer | None = None


@dataclass(frozen=True, slots=True)
class LinearAttention:
    """Gated delta-net (Qwen3-Next, Qwen3.5): a constant state of `value_heads * key_dim * value_dim` elements.

    `gate`: a full output gate as wide as the values.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    conv_kernel: int = 4
    gate: bool = True


@dataclass(frozen=True, slots=True)
class KimiDelta:
    """Kimi delta attention: a gated delta-net with a decay for each element, and a convolution each for q, k and v.

    `gate_rank`: rank of the decay's and the output gate's projections (Kimi Linear: the head size); None: full.
    """

    heads: int
    head_dim: int
    conv_kernel: int = 4
    gate_rank: int | None = None


@dataclass(frozen=True, slots=True)
class Lightning:
    """Linear attention with a fixed decay (MiniMax-01, Ling 2.5): a state of `heads * head_dim**2` elements."""

    heads: int
    kv_heads: int
    head_dim: int
    qk_norm: QkNorm = QkNorm.NONE
    qkv_bias: bool = False
    output_gate: bool = True


@dataclass(frozen=True, slots=True)
class Mamba2:
    """Mamba-2 (arXiv 2405.21060): a state of `heads * head_dim * state` elements and a short convolution.

    `norm`: the gated norm before the output projection (Falcon-H1 leaves it out). `bias`: of both projections.
    """

    heads: int
    head_dim: int
    state: int
    groups: int = 1
    conv_kernel: int = 4
    conv_bias: bool = True
    norm: bool = True
    bias: bool = False

    @property
    def inner(self) -> int:
        """Width of the sequence that is scanned."""
        return self.heads * self.head_dim


@dataclass(frozen=True, slots=True)
class Mamba1:
    """Mamba (arXiv 2312.00752): a state of `inner * state` elements. `dt_norms`: norms on dt, B and C (Jamba)."""

    inner: int
    state: int
    dt_rank: int
    conv_kernel: int = 4
    conv_bias: bool = True
    bias: bool = False
    dt_norms: bool = False


@dataclass(frozen=True, slots=True)
class ShortConv:
    """Gated short convolution (LFM2): a constant state of `hidden * (kernel - 1)` elements."""

    kernel: int = 3
    bias: bool = False


Mixer = Gqa | Mla | CompressedAttention | LinearAttention | KimiDelta | Lightning | Mamba2 | Mamba1 | ShortConv
"""What moves information between tokens."""


@dataclass(frozen=True, slots=True)
class DenseFfn:
    """A feed-forward of `width`: up, gate and down, or up and down alone (`gated` False: Nemotron, Apertus)."""

    width: int
    bias: bool = False
    gated: bool = True


@dataclass(frozen=True, slots=True)
class MoeFfn:
    """`n_experts` feed-forwards of `expert_width`, of which a router picks `n_experts_per_token`.

    `shared_width` is the width of all shared experts together (0: none), `shared_gate` a learned scalar gate on
    them (Qwen). `dense_width` is a dense feed-forward run beside the experts in the same layer (Gemma 4, Arctic).
    `gated` False: experts of two matrices, shared ones too (Nemotron 3). `latent_width`: routed experts run on this
    width, between two projections of the layer (Nemotron 3 Super); `latent_norm`: normed before the second (Kimi K3).
    `chunk_width`, `chunk_experts`: small adjugate experts beside groups of experts (GroveMoE). `zero_experts`: further
    choices of the router that cost nothing (LongCat). `selection_bias`: a bias used to choose experts but not to weight
    them (DeepSeek-V3).
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
    gated: bool = True
    latent_width: int = 0
    latent_norm: bool = False
    chunk_experts: int = 0
    chunk_width: int = 0
    zero_experts: int = 0


FeedForward = DenseFfn | MoeFfn
