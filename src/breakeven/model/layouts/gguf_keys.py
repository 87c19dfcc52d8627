"""GGUF metadata of a model: the keys that most families share, and the few that some add.

Keys as llama.cpp's `src/llama-arch.cpp` names them and its `src/models/*.cpp` read them. Drafting blocks count as
blocks: a list with one value a layer has values for them too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from breakeven.model.architecture import (
    CompressedAttention,
    DenseFfn,
    Gating,
    Gqa,
    KimiDelta,
    Layer,
    LinearAttention,
    Mamba1,
    Mamba2,
    Mla,
    ModelSpec,
    MoeFfn,
    Scales,
    ShortConv,
)
from breakeven.model.layouts.family import GgufValue

GATING_CODES = {Gating.SOFTMAX: 1, Gating.SIGMOID: 2, Gating.SOFTMAX_AFTER_TOP_K: 3, Gating.SQRT_SOFTPLUS: 4}
"""llama.cpp's `llama_expert_gating_func_type`."""

_Part = TypeVar("_Part")

Keys = Callable[[ModelSpec], dict[str, GgufValue]]
"""Keys that a family adds, without the architecture's name before them."""


def says(arch: str, *more: Keys, marks_caches: bool = False) -> Keys:
    """What files of `arch` say of a model; later keys replace earlier ones.

    `marks_caches`: a layer that caches no keys and values says so by 0 key-value heads in a list.
    """

    def metadata(spec: ModelSpec) -> dict[str, GgufValue]:
        keys: dict[str, GgufValue] = {
            "block_count": len(_blocks(spec)),
            "context_length": spec.context,
            "embedding_length": spec.hidden,
            "vocab_size": spec.vocab,
            "attention.layer_norm_rms_epsilon": spec.norm_epsilon,
        }
        if spec.layer_norm:
            keys["attention.layer_norm_epsilon"] = spec.norm_epsilon
        if spec.mtp is not None:
            keys["nextn_predict_layers"] = len(spec.mtp.layers)
        keys |= _attention(spec, marks_caches=marks_caches) | _state(spec) | _rope(spec) | _feed_forward(spec)
        for add in more:
            keys |= add(spec)
        # Apertus keeps its activation's constants outside the architecture's own keys.
        return {key if key.startswith("xielu.") else f"{arch}.{key}": value for key, value in keys.items()}

    return metadata


def none_yet(spec: ModelSpec) -> dict[str, GgufValue]:
    """For families that are counted but not written; callers ask `Family.gguf_architecture` first."""
    raise NotImplementedError(f"{spec.family} has no GGUF architecture here")


def _blocks(spec: ModelSpec) -> tuple[Layer, ...]:
    return spec.layers + (spec.mtp.layers if spec.mtp is not None else ())


def _attention(spec: ModelSpec, *, marks_caches: bool) -> dict[str, GgufValue]:
    latent, compressed = _first(spec, Mla), _first(spec, CompressedAttention)
    keys: dict[str, GgufValue] = {}
    if compressed is not None:
        keys = _compressed(spec, compressed)
    elif latent is not None:
        # llama.cpp runs latent attention as one key-value head of the latent's size.
        keys = {
            "attention.head_count": latent.heads,
            "attention.head_count_kv": _for_each(
                [int(any(isinstance(a, Mla) for a in layer.mixers)) for layer in _blocks(spec)]
            ),
            "attention.q_lora_rank": latent.q_lora_rank or 0,
            "attention.kv_lora_rank": latent.kv_lora_rank,
            "attention.key_length": latent.kv_lora_rank + latent.rope_dim,
            "attention.value_length": latent.kv_lora_rank,
            "attention.key_length_mla": latent.nope_dim + latent.rope_dim,
            "attention.value_length_mla": latent.value_dim,
            "rope.dimension_count": latent.rope_dim,
        }
    else:
        softmax = [a for layer in _blocks(spec) for a in layer.mixers if isinstance(a, Gqa)]
        if softmax:
            keys = _heads(spec, softmax, marks_caches=marks_caches)
    if spec.attention_softcap is not None:
        keys["attn_logit_softcapping"] = spec.attention_softcap
    if spec.logit_softcap is not None:
        keys["final_logit_softcapping"] = spec.logit_softcap
    return keys


def _compressed(spec: ModelSpec, a: CompressedAttention) -> dict[str, GgufValue]:
    """DeepSeek-V4's attention. What only its engine's arithmetic needs is as in the released configurations."""
    parts = [layer.mixer for layer in spec.layers]
    picks = next((p.indexer for p in parts if isinstance(p, CompressedAttention) and p.indexer), None)
    return {
        "attention.head_count": a.heads,
        "attention.head_count_kv": 1,
        "attention.key_length": a.head_dim,
        "attention.value_length": a.head_dim,
        "attention.q_lora_rank": a.q_lora_rank,
        "attention.sliding_window": a.window,
        "attention.output_group_count": a.output_groups,
        "attention.output_lora_rank": a.output_lora_rank,
        "attention.compress_ratios": [p.ratio if isinstance(p, CompressedAttention) else 0 for p in parts],
        "attention.compress_rope_freq_base": 160000.0,
        "attention.indexer.head_count": picks.heads if picks else 1,
        "attention.indexer.key_length": picks.head_dim if picks else a.head_dim // 2,
        "attention.indexer.top_k": picks.top_k if picks else 1,
        "rope.dimension_count": spec.rope.dimensions or 64,
    }


def _heads(spec: ModelSpec, softmax: list[Gqa], *, marks_caches: bool) -> dict[str, GgufValue]:
    by_layer = [next((a for a in layer.mixers if isinstance(a, Gqa)), None) for layer in _blocks(spec)]
    first = softmax[0]
    full = next((a for a in softmax if a.window is None), first)
    sliding = next((a for a in softmax if a.window is not None), None)
    kv_heads = [(0 if marks_caches else first.kv_heads) if a is None else a.kv_heads for a in by_layer]
    keys: dict[str, GgufValue] = {
        "attention.head_count": _for_each([first.heads if a is None else a.heads for a in by_layer]),
        "attention.head_count_kv": _for_each(kv_heads),
        "attention.key_length": full.head_dim,
        "attention.value_length": full.value_dim,
        "rope.dimension_count": spec.rope.dimensions or full.head_dim,
    }
    if sliding is not None:
        keys["attention.sliding_window"] = min(a.window for a in softmax if a.window is not None)
        if sliding.head_dim != full.head_dim or sliding.value_dim != full.value_dim:
            keys |= {
                "attention.key_length_swa": sliding.head_dim,
                "attention.value_length_swa": sliding.value_dim,
                "rope.dimension_count_swa": sliding.head_dim,
            }
    return keys


def _rope(spec: ModelSpec) -> dict[str, GgufValue]:
    rope = spec.rope
    keys: dict[str, GgufValue] = {"rope.freq_base": rope.base}
    if rope.window_base is not None:
        keys["rope.freq_base_swa"] = rope.window_base
    if rope.scaling in ("linear", "yarn", "longrope"):
        keys |= {"rope.scaling.type": rope.scaling, "rope.scaling.factor": rope.factor}
        if rope.original_context is not None:
            keys["rope.scaling.original_context_length"] = rope.original_context
    return keys


def _state(spec: ModelSpec) -> dict[str, GgufValue]:
    """Sizes of state-space models, delta-nets and convolutions."""
    if (a := _first(spec, Mamba2)) is not None:
        return _ssm(a.conv_kernel, a.inner, a.state, a.heads) | {"ssm.group_count": a.groups}
    if (b := _first(spec, Mamba1)) is not None:
        return _ssm(b.conv_kernel, b.inner, b.state, b.dt_rank)
    if (c := _first(spec, LinearAttention)) is not None:
        sizes = _ssm(c.conv_kernel, c.value_heads * c.value_dim, c.key_dim, c.value_heads)
        return sizes | {"ssm.group_count": c.key_heads}
    if (d := _first(spec, KimiDelta)) is not None:
        return {"ssm.conv_kernel": d.conv_kernel, "kda.head_dim": d.head_dim}
    if (e := _first(spec, ShortConv)) is not None:
        return {"shortconv.l_cache": e.kernel}
    return {}


def _ssm(kernel: int, inner: int, state: int, rank: int) -> dict[str, GgufValue]:
    return {
        "ssm.conv_kernel": kernel,
        "ssm.inner_size": inner,
        "ssm.state_size": state,
        "ssm.time_step_rank": rank,
    }


def _feed_forward(spec: ModelSpec) -> dict[str, GgufValue]:
    blocks = _blocks(spec)
    dense = [layer.ffn.width for layer in blocks if isinstance(layer.ffn, DenseFfn)]
    routed = [layer.ffn for layer in blocks if isinstance(layer.ffn, MoeFfn)]
    widths = [_width(layer) for layer in blocks]
    if None in widths or len(set(dense)) > 1:
        keys: dict[str, GgufValue] = {"feed_forward_length": [width or 0 for width in widths]}
    else:
        keys = {"feed_forward_length": dense[0] if dense else widths[0] or 0}
    if not routed:
        return keys
    f = routed[0]
    keys |= {
        "expert_feed_forward_length": f.expert_width,
        "expert_count": f.n_experts,
        "expert_used_count": f.n_experts_per_token,
        "expert_gating_func": GATING_CODES[f.gating],
        "expert_weights_norm": f.normalise_weights,
    }
    if f.weights_scale != 1.0:
        keys["expert_weights_scale"] = f.weights_scale
    if f.n_shared_experts:
        keys["expert_shared_count"] = f.n_shared_experts
    if f.shared_width:
        keys["expert_shared_feed_forward_length"] = f.shared_width
    if f.n_groups > 1:
        keys |= {"expert_group_count": f.n_groups, "expert_group_used_count": f.n_groups_used}
    if f.latent_width:
        keys["moe_latent_size"] = f.latent_width
    return keys


def _width(layer: Layer) -> int | None:
    """What a layer's `feed_forward_length` says, None where it has no feed-forward."""
    match layer.ffn:
        case DenseFfn() as f:
            return f.width
        case MoeFfn() as f:
            return f.dense_width or f.expert_width
        case None:
            return None


def _for_each(values: list[int]) -> int | list[int]:
    return values[0] if len(set(values)) == 1 else values


def _first(spec: ModelSpec, kind: type[_Part]) -> _Part | None:
    return next((a for layer in spec.layers for a in layer.mixers if isinstance(a, kind)), None)


def window_pattern(spec: ModelSpec) -> dict[str, GgufValue]:
    """Which layers slide, one flag a layer; empty when none does."""
    slides = [isinstance(layer.mixer, Gqa) and layer.mixer.window is not None for layer in _blocks(spec)]
    return {"attention.sliding_window_pattern": slides} if any(slides) else {}


def leading_dense(spec: ModelSpec) -> dict[str, GgufValue]:
    """How many layers come before the first that routes."""
    count = next((i for i, layer in enumerate(spec.layers) if isinstance(layer.ffn, MoeFfn)), len(spec.layers))
    return {"leading_dense_block_count": count}


def moe_step(spec: ModelSpec) -> dict[str, GgufValue]:
    """The one step between routed layers."""
    first = next((i for i, layer in enumerate(spec.layers) if isinstance(layer.ffn, MoeFfn)), len(spec.layers))
    return {"interleave_moe_layer_step": first + 1}


def multipliers(spec: ModelSpec) -> dict[str, GgufValue]:
    """Granite's four multipliers."""
    scales = spec.scales or Scales()
    return {
        "embedding_scale": scales.embedding,
        "residual_scale": scales.residual,
        "attention.scale": scales.attention,
        "logit_scale": scales.logit,
    }


def layer_norm_epsilon(spec: ModelSpec) -> dict[str, GgufValue]:
    """For families whose norms subtract the mean and have no bias."""
    return {"attention.layer_norm_epsilon": spec.norm_epsilon}


def logit_scale(spec: ModelSpec) -> dict[str, GgufValue]:
    """What logits are multiplied with."""
    return {"logit_scale": spec.scales.logit if spec.scales else 1.0}


def rope_sections(spec: ModelSpec) -> dict[str, GgufValue]:
    """How a head's pairs of dimensions are shared out to time, height and width of images."""
    a = _first(spec, Gqa)
    pairs = (spec.rope.dimensions or (a.head_dim if a else 0)) // 2
    side = pairs * 5 // 16
    return {"rope.dimension_sections": [pairs - 2 * side, side, side, 0]}


def full_attention(spec: ModelSpec) -> dict[str, GgufValue]:
    """Which layers attend: every n-th, or one flag a layer for those that do not."""
    linear = [not isinstance(layer.mixer, Gqa) for layer in _blocks(spec)]
    step = linear.index(False) + 1 if False in linear else len(linear) + 1
    if all(flag == bool((i + 1) % step) for i, flag in enumerate(linear[: len(spec.layers)])):
        return {"full_attention_interval": step}
    return {"attention.recurrent_layers": linear}


def hyper_connections(spec: ModelSpec) -> dict[str, GgufValue]:
    """Several residual streams; how they are mixed is as in the released configurations."""
    return {
        "hyper_connection.count": spec.streams.count if spec.streams else 1,
        "hyper_connection.sinkhorn_iterations": 20,
        "hyper_connection.epsilon": 1e-6,
    }


def streams(spec: ModelSpec) -> dict[str, GgufValue]:
    """Hyper-connections of DeepSeek-V4, and the first layers that route by token."""
    routed = [layer.ffn for layer in spec.layers if isinstance(layer.ffn, MoeFfn)]
    return hyper_connections(spec) | {
        "hash_layer_count": sum(not f.selection_bias for f in routed),
        "expert_weights_scale": routed[0].weights_scale if routed else 1.0,
        "swiglu_clamp_exp": [10.0] * len(spec.layers),
    }


def indexer(spec: ModelSpec) -> dict[str, GgufValue]:
    """The scorer that picks positions (DeepSeek-V3.2), and which layers have one of their own."""
    owns = [isinstance(layer.mixer, Mla) and layer.mixer.indexer is not None for layer in spec.layers]
    first = next(layer.mixer.indexer for layer in spec.layers if isinstance(layer.mixer, Mla) and layer.mixer.indexer)
    keys: dict[str, GgufValue] = {
        "attention.indexer.head_count": first.heads,
        "attention.indexer.key_length": first.head_dim,
        "attention.indexer.top_k": first.top_k,
    }
    if first.pools:
        keys["attention.indexer.kpool"] = first.every
    full = [
        own and isinstance(layer.mixer, Mla) and layer.mixer.indexer is not None and layer.mixer.indexer.owns_weights
        for own, layer in zip(owns, spec.layers, strict=True)
    ]
    return keys if all(full) else keys | {"attention.indexer.types": full}
