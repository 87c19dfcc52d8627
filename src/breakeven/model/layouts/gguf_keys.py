"""GGUF metadata that most families share, and what it cannot express.

Keys as llama.cpp's `src/llama-arch.cpp` reads them. A file states one layout for the whole family, where a spec can say
anything of any layer; what does not fit is refused here.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import replace

from breakeven.model.architecture import DenseFfn, Gating, Gqa, LinearAttention, Mla, ModelSpec, MoeFfn, ShortConv
from breakeven.model.layouts.family import Family, FfnOrder, GgufValue

GATING_CODES = {Gating.SOFTMAX: 1, Gating.SIGMOID: 2, Gating.SOFTMAX_AFTER_TOP_K: 3}
"""llama.cpp's `llama_expert_gating_func_type`."""


def metadata(arch: str, spec: ModelSpec) -> dict[str, GgufValue]:
    """Keys every family writes: sizes, attention, rotary embedding, norm and, with experts, the router."""
    keys: dict[str, GgufValue] = {
        "block_count": len(spec.layers),
        "context_length": spec.context,
        "embedding_length": spec.hidden,
        "vocab_size": spec.vocab,
        "rope.freq_base": spec.rope.base,
        "attention.layer_norm_rms_epsilon": spec.norm_epsilon,
    }
    if spec.layer_norm:
        keys["attention.layer_norm_epsilon"] = spec.norm_epsilon
    keys |= _attention(spec) | _feed_forward(spec)
    return {f"{arch}.{key}": value for key, value in keys.items()}


def _attention(spec: ModelSpec) -> dict[str, GgufValue]:
    for layer in spec.layers:
        a = layer.mixer
        if isinstance(a, Mla):
            # llama.cpp runs latent attention as one key-value head of the latent's size.
            return {
                "attention.head_count": a.heads,
                "attention.head_count_kv": 1,
                "attention.q_lora_rank": a.q_lora_rank or 0,
                "attention.kv_lora_rank": a.kv_lora_rank,
                "attention.key_length": a.kv_lora_rank + a.rope_dim,
                "attention.value_length": a.kv_lora_rank,
                "attention.key_length_mla": a.nope_dim + a.rope_dim,
                "attention.value_length_mla": a.value_dim,
                "rope.dimension_count": a.rope_dim,
            }
    per_layer = [layer.mixer for layer in spec.layers]
    softmax = [a for a in per_layer if isinstance(a, Gqa)]
    if not softmax:
        return {}
    first = softmax[0]
    kv_heads = [a.kv_heads if isinstance(a, Gqa) else 0 for a in per_layer]
    keys: dict[str, GgufValue] = {
        "attention.head_count": first.heads,
        # Layers without a cache of keys and values say so with a zero in a list.
        "attention.head_count_kv": kv_heads[0] if len(set(kv_heads)) == 1 else kv_heads,
        "attention.key_length": first.head_dim,
        "attention.value_length": first.head_dim if first.value_head_dim is None else first.value_head_dim,
        "rope.dimension_count": spec.rope.dimensions or first.head_dim,
    }
    windows = {a.window for a in softmax if a.window is not None}
    if windows:
        keys["attention.sliding_window"] = min(windows)
    if spec.attention_softcap is not None:
        keys["attn_logit_softcapping"] = spec.attention_softcap
    if spec.logit_softcap is not None:
        keys["final_logit_softcapping"] = spec.logit_softcap
    return keys


def window_pattern(arch: str, spec: ModelSpec) -> dict[str, GgufValue]:
    """Which layers slide, one flag a layer; empty when none does."""
    slides = [isinstance(layer.mixer, Gqa) and layer.mixer.window is not None for layer in spec.layers]
    return {f"{arch}.attention.sliding_window_pattern": slides} if any(slides) else {}


def _feed_forward(spec: ModelSpec) -> dict[str, GgufValue]:
    dense = [layer.ffn.width for layer in spec.layers if isinstance(layer.ffn, DenseFfn)]
    routed = [layer.ffn for layer in spec.layers if isinstance(layer.ffn, MoeFfn)]
    if not routed:
        return {"feed_forward_length": dense[0] if len(set(dense)) == 1 else dense}
    f = routed[0]
    keys: dict[str, GgufValue] = {
        "feed_forward_length": dense[0] if dense else f.expert_width,
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
    return keys


def leading_dense(arch: str, spec: ModelSpec) -> dict[str, GgufValue]:
    """How many layers come before the first that routes."""
    count = next((i for i, layer in enumerate(spec.layers) if isinstance(layer.ffn, MoeFfn)), len(spec.layers))
    return {f"{arch}.leading_dense_block_count": count}


def none_yet(spec: ModelSpec) -> dict[str, GgufValue]:
    """For families that are counted but not written; callers ask `Family.gguf_architecture` first."""
    raise NotImplementedError(f"{spec.family} has no GGUF architecture here")


_NAMES: dict[type, str] = {
    Gqa: "softmax attention",
    Mla: "latent attention",
    LinearAttention: "linear attention",
    ShortConv: "short convolutions",
}


def why_not_written(spec: ModelSpec, family: Family) -> str | None:
    """Why a file of this spec would not load in llama.cpp, None when nothing known stands against it."""
    if family.gguf_architecture is None:
        return f"files of family {family.name} cannot be written yet"
    return _attention_refused(spec, family) or _feed_forward_refused(spec, family)


def _attention_refused(spec: ModelSpec, family: Family) -> str | None:
    found = [layer.mixer for layer in spec.layers]
    for a in found:
        if not isinstance(a, family.mixers):
            allowed = " and ".join(_NAMES[kind] for kind in family.mixers)
            return f"llama.cpp's {family.gguf_architecture} has {allowed}, not {_NAMES[type(a)]}"
    softmax = [a for a in found if isinstance(a, Gqa)]
    windows = {a.window for a in softmax if a.window is not None}
    if windows and family.window_period is None:
        return f"llama.cpp's {family.gguf_architecture} has no sliding layers"
    if len(windows) > 1:
        return f"llama.cpp's {family.gguf_architecture} has one window, not {sorted(windows)}"
    if not _alike(replace(a, window=None) for a in softmax) or not _alike(a for a in found if not isinstance(a, Gqa)):
        return f"llama.cpp's {family.gguf_architecture} has the same heads in every layer"
    return None


def _feed_forward_refused(spec: ModelSpec, family: Family) -> str | None:
    routed = [layer.ffn for layer in spec.layers if isinstance(layer.ffn, MoeFfn)]
    dense = [layer.ffn for layer in spec.layers if isinstance(layer.ffn, DenseFfn)]
    if not _alike(routed) or not _alike(dense):
        return f"llama.cpp's {family.gguf_architecture} has one width for dense layers and one kind of experts"
    order = [isinstance(layer.ffn, MoeFfn) for layer in spec.layers]
    if family.ffn_order not in _orders(order):
        return f"llama.cpp's {family.gguf_architecture} has {family.ffn_order.value}"
    return None


def _orders(routes: list[bool]) -> set[FfnOrder]:
    """The orders that layers with (True) and without experts stand in."""
    n_dense = routes.count(False)
    found = set()
    if n_dense == len(routes):
        found.add(FfnOrder.DENSE)
    if n_dense == 0:
        found |= {FfnOrder.ROUTED, FfnOrder.EVERY_STEP}
    if n_dense in (0, len(routes)):
        found.add(FfnOrder.ALIKE)
    if n_dense < len(routes):
        if all(routes[n_dense:]):
            found.add(FfnOrder.LEADING_DENSE)
        step = routes.index(True) + 1
        if all(route == ((i + 1) % step == 0) for i, route in enumerate(routes)):
            found.add(FfnOrder.EVERY_STEP)
    return found


def _alike(parts: Iterable[Hashable]) -> bool:
    return len(set(parts)) <= 1
