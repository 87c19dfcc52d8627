"""Parts that families share: attention, feed-forwards and the model around them, read from a configuration."""

from __future__ import annotations

from collections.abc import Sequence

from breakeven.errors import UserError
from breakeven.model.architecture import (
    DenseFfn,
    FeedForward,
    Gating,
    Gqa,
    Layer,
    Mixer,
    Mla,
    ModelSpec,
    MoeFfn,
    Norms,
    OutputGate,
    QkNorm,
    Rope,
    Scales,
)
from breakeven.model.layouts.config import CONTEXT, EXPERT_WIDTH, EXPERTS, HELP, TOP_K, Config


def gqa(
    c: Config,
    *,
    head_dim_required: bool = False,
    window: int | None = None,
    qk_norm: QkNorm = QkNorm.NONE,
    qkv_bias: bool = False,
    output_bias: bool = False,
    output_gate: OutputGate = OutputGate.NONE,
    sinks: bool = False,
) -> Gqa:
    """Attention of one layer. `head_dim_required`: the family's head size is not hidden / heads and must be given."""
    heads = c.whole("num_attention_heads")
    if head_dim_required or c.has("head_dim"):
        head_dim = c.whole("head_dim")
    else:
        hidden = c.whole("hidden_size")
        if hidden % heads:
            raise UserError(
                f"{c.source}: {c.name}: hidden_size {hidden} is no multiple of num_attention_heads {heads} "
                f"and head_dim is not given; add head_dim, or {HELP}"
            )
        head_dim = hidden // heads
    return Gqa(
        heads=heads,
        kv_heads=c.whole("num_key_value_heads") if c.has("num_key_value_heads") else heads,
        head_dim=head_dim,
        window=window,
        qk_norm=qk_norm,
        qkv_bias=qkv_bias,
        output_bias=output_bias,
        output_gate=output_gate,
        sinks=sinks,
    )


def block(mixer: Mixer, ffn: FeedForward, norms: Norms = Norms.BEFORE) -> Layer:
    """A layer with one mixer and a feed-forward, as most are."""
    return Layer((mixer,), ffn, norms)


def mla(c: Config) -> Mla:
    """Latent attention of one layer; a null or absent `q_lora_rank` means queries are projected directly."""
    return Mla(
        heads=c.whole("num_attention_heads"),
        kv_lora_rank=c.whole("kv_lora_rank"),
        nope_dim=c.whole("qk_nope_head_dim"),
        rope_dim=c.whole("qk_rope_head_dim"),
        value_dim=c.whole("v_head_dim"),
        q_lora_rank=c.whole_or(0, "q_lora_rank") or None,
    )


def dense(c: Config, *keys: str) -> DenseFfn:
    """A dense feed-forward whose width stands under the first of `keys` (default `intermediate_size`)."""
    return DenseFfn(width=c.whole(*(keys or ("intermediate_size",))), bias=c.flag_or(False, "mlp_bias"))


def moe(
    c: Config,
    *,
    width: Sequence[str] = EXPERT_WIDTH,
    gating: Gating = Gating.SOFTMAX,
    normalise: bool = True,
    shared_width: int = 0,
    n_shared: int = 0,
    shared_gate: bool = False,
    selection_bias: bool = False,
    router_bias: bool = False,
    expert_bias: bool = False,
    dense_width: int = 0,
) -> MoeFfn:
    """Routed experts of one layer. `normalise`: what the family does when `norm_topk_prob` is not given."""
    n_experts, used = c.whole(*EXPERTS), c.whole(*TOP_K)
    if used > n_experts:
        raise UserError(
            f"{c.source}: {c.name}: {used} experts a token out of {n_experts}; it cannot use more than it has"
        )
    return MoeFfn(
        n_experts=n_experts,
        n_experts_per_token=used,
        expert_width=c.whole(*width),
        n_shared_experts=n_shared,
        shared_width=shared_width,
        shared_gate=shared_gate,
        dense_width=dense_width,
        router_bias=router_bias,
        selection_bias=selection_bias,
        expert_bias=expert_bias,
        gating=gating,
        normalise_weights=c.flag_or(normalise, "norm_topk_prob"),
        weights_scale=c.number_or(1.0, "routed_scaling_factor"),
        n_groups=max(1, c.whole_or(1, "n_group")),
        n_groups_used=max(1, c.whole_or(1, "topk_group")),
    )


def model(
    c: Config,
    family: str,
    layers: Sequence[Layer],
    *,
    tied: bool = False,
    rope_base: float = 10000.0,
    rope_dimensions: int | None = None,
    layer_norm: bool = False,
    output_bias: bool = False,
    attention_softcap: float | None = None,
    logit_softcap: float | None = None,
    scales: Scales | None = None,
) -> ModelSpec:
    """The model around its layers. `tied`: what the family does when `tie_word_embeddings` is not given."""
    return ModelSpec(
        name=c.name,
        family=family,
        hidden=c.whole("hidden_size"),
        vocab=c.whole("vocab_size"),
        context=c.whole(*CONTEXT),
        tied_embeddings=c.flag_or(tied, "tie_word_embeddings"),
        layers=tuple(layers),
        source=c.source,
        rope=Rope(base=c.rope_base(rope_base), dimensions=rope_dimensions),
        norm_epsilon=c.number_or(1e-5, "rms_norm_eps", "layer_norm_eps", "norm_eps"),
        layer_norm=layer_norm,
        output_bias=output_bias,
        attention_softcap=attention_softcap,
        logit_softcap=logit_softcap,
        scales=scales,
    )


def n_layers(c: Config) -> int:
    """How many blocks; next-token-prediction blocks beyond them are not run when decoding and not counted."""
    return c.whole("num_hidden_layers")
