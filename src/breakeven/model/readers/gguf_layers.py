"""A block of a GGUF file, to the parts of a layer: from the tensors that are there, then from the header's keys.

The architecture's name is asked last, and only for what neither says: which layers slide, and a router's function.
"""

from __future__ import annotations

import math

from breakeven.errors import UserError
from breakeven.model.architecture import (
    CompressedAttention,
    DenseFfn,
    FeedForward,
    Gating,
    Gqa,
    Indexer,
    KimiDelta,
    Layer,
    Lightning,
    LinearAttention,
    Mamba1,
    Mamba2,
    Mixer,
    Mla,
    MoeFfn,
    Norms,
    OutputGate,
    QkNorm,
    ShortConv,
)
from breakeven.model.layouts.gguf_keys import GATING_CODES
from breakeven.model.readers.gguf_facts import DAMAGED, GEMMA3N_OWN_CACHES, BlockFacts
from breakeven.model.readers.gguf_facts import window as window_of

_GATINGS = {code: gating for gating, code in GATING_CODES.items()} | {4: Gating.SQRT_SOFTPLUS}

_FIXED_GATING = {"gpt-oss": Gating.SOFTMAX_AFTER_TOP_K, "llama4": Gating.SIGMOID}
"""How experts are weighed where files of an architecture do not say (llama.cpp's src/models)."""


def layer(f: BlockFacts, i: int) -> Layer:
    """The parts of block `i`. Raises UserError naming what does not fit together."""
    if i not in f.blocks:
        raise UserError(f"{f.source}: block {i} of {f.whole('block_count')} has no tensors; the file is incomplete")
    mixers, ffn = tuple(_mixers(f, i)), _feed_forward(f, i)
    return Layer(mixers, ffn, _norms(f, i, both=bool(mixers) and ffn is not None))


def _norms(f: BlockFacts, i: int, *, both: bool) -> Norms:
    after = f.has(i, "post_ffw_norm", "layer_output_norm", "post_ffw_norm_1")
    if not f.has(i, "attn_norm") and (after or f.has(i, "post_attention_norm")):
        return Norms.AFTER
    if after:
        return Norms.AROUND
    second = f.has(i, "ffn_norm", "post_attention_norm", "attn_output_norm", "ffn_norm_exps")
    # Without any, the streams that the layer reads from are normed (Qwen 4).
    return Norms.PARALLEL if both and not second and f.has(i, "attn_norm") else Norms.BEFORE


def _mixers(f: BlockFacts, i: int) -> list[Mixer]:
    """What moves information between tokens in block `i`, attention first."""
    if i in f.time_mixing:
        raise UserError(f"{f.source}: RWKV's time mixing (block {i}) cannot be described here; give another model")
    delta = f.has(i, "ssm_conv1d") and f.has(i, "ssm_ba", "ssm_beta", "ssm_alpha")
    found: list[Mixer] = []
    if f.has(i, "attn_kv_a_mqa"):
        found.append(_mla(f, i))
    elif f.has(i, "attn_output_a"):
        found.append(_compressed(f, i))
    elif f.has(i, "ssm_conv1d_q"):
        found.append(_kimi_delta(f, i))
    elif delta:
        found.append(_linear_attention(f, i))
    elif f.has(i, "attn_qkv") and f.has(i, "attn_gate") and f.has(i, "attn_sub_norm", "attn_norm_2"):
        found.append(_lightning(f, i))
    elif f.has(i, "attn_q", "attn_qkv"):
        found.append(_gqa(f, i))
    if f.has(i, "shortconv.conv"):
        found.append(ShortConv(f.block(i, "shortconv.conv", 2)[-1], bias=f.has(i, "shortconv.in_proj", suffix="bias")))
    if f.has(i, "ssm_in") and not delta:
        found.append(_mamba1(f, i) if f.has(i, "ssm_x") else _mamba2(f, i))
    return found


def _gqa(f: BlockFacts, i: int) -> Gqa:
    window = window_of(f, i)
    heads = f.at("attention.head_count", i)
    kv_heads = f.at("attention.head_count_kv", i, heads)
    key_length = _length(f, "attention.key_length", i, window)
    fused, has_keys = f.has(i, "attn_qkv"), f.has(i, "attn_k")
    if heads < 1 or ((fused or has_keys) and kv_heads < 1 and not key_length):
        raise UserError(f"{f.source}: block {i} has {heads} heads and {kv_heads} key-value heads; {DAMAGED}")
    gate = OutputGate.NONE
    if fused:
        wide = f.block(i, "attn_qkv", 2)[0]
        head_dim = value_dim = key_length or f.part(wide, heads + 2 * kv_heads, i, "fused queries, keys and values")
        if (heads + 2 * kv_heads) * head_dim != wide:
            value_dim = _length(f, "attention.value_length", i, window)
            if (heads + kv_heads) * head_dim + kv_heads * value_dim != wide:
                head_dim = value_dim = f.part(wide, heads + 2 * kv_heads, i, "fused queries, keys and values")
    elif has_keys:
        heads, kv_heads, head_dim, value_dim, twin = _heads(f, i, (heads, kv_heads), key_length)
        gate = OutputGate.TWIN if twin else gate
    else:
        # Keys and values are another layer's.
        queries = f.rows(i, "attn_q")
        head_dim = key_length if key_length and queries % key_length == 0 else f.part(queries, heads, i, "queries")
        heads = queries // head_dim
        value_dim = f.part(f.block(i, "attn_output", 2)[1], heads, i, "attention's output")
        kv_heads = kv_heads or 1
    if f.has(i, "attn_gate"):
        gate = OutputGate.HEAD if f.rows(i, "attn_gate") == heads else OutputGate.FULL
    norm = f.size(i, "attn_q_norm")
    shared = f.whole("attention.shared_kv_layers", _shared_unsaid(f))
    return Gqa(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        window=window,
        qk_norm=(QkNorm.HEAD if norm == head_dim else QkNorm.FULL) if norm else QkNorm.NONE,
        qkv_bias=f.has(i, "attn_q", "attn_qkv", suffix="bias"),
        output_bias=f.has(i, "attn_output", suffix="bias"),
        output_gate=gate,
        sinks=f.has(i, "attn_sinks"),
        value_head_dim=None if value_dim == head_dim else value_dim,
        keys_are_values=has_keys and not f.has(i, "attn_v"),
        shares_kv=not (fused or has_keys) or f.own_blocks - shared <= i < f.own_blocks,
        kv_matrices=fused or has_keys,
        indexer=_indexer(f, i, window),
    )


def _shared_unsaid(f: BlockFacts) -> int:
    return max(0, f.own_blocks - GEMMA3N_OWN_CACHES) if f.architecture == "gemma3n" else 0


def _heads(f: BlockFacts, i: int, said: tuple[int, int], key_length: int) -> tuple[int, int, int, int, bool]:
    """Heads, key-value heads, sizes of a key and a value, and whether a gate lies beside the queries: from the widths.

    What the keys say counts where it fits: one number for all layers may be wrong for some (Gemma 4's full layers).
    """
    queries, keys = f.rows(i, "attn_q"), f.rows(i, "attn_k")
    values = f.rows(i, "attn_v") if f.has(i, "attn_v") else keys
    out = f.block(i, "attn_output", 2)[1]
    heads, kv_heads = said
    for size in (keys // kv_heads if kv_heads and keys % kv_heads == 0 else 0, key_length):
        if not size or keys % size or values % (keys // size):
            continue
        value = values // (keys // size)
        if queries in (heads * size, 2 * heads * size) and out == heads * value:
            return heads, keys // size, size, value, queries == 2 * heads * size
    if key_length and queries % key_length == 0 and keys % key_length == 0:
        kv_heads = keys // key_length
        return queries // key_length, kv_heads, key_length, f.part(values, kv_heads, i, "values"), False
    raise f.refused(f"block {i} has queries of {queries} and keys of {keys} for {heads} and {kv_heads} heads")


def _length(f: BlockFacts, key: str, i: int, window: int | None) -> int:
    """A head's size; sliding layers may have their own. 0: not said."""
    usual = f.at(key, i, 0)
    return usual if window is None else f.at(f"{key}_swa", i, usual)


def _indexer(f: BlockFacts, i: int, window: int | None, *, compressed: int = 0) -> Indexer | None:
    if not f.indexed or window is not None:
        return None
    head_dim, top = f.whole("attention.indexer.key_length"), f.whole("attention.indexer.top_k")
    heads = f.whole("attention.indexer.head_count")
    every = compressed or f.whole("attention.indexer.kpool", f.whole("attention.indexer.block_size", 1)) or 1
    own = f.has(i, "indexer.attn_q_b", "indexer.q_proj")
    if own and head_dim:
        heads = f.part(f.rows(i, "indexer.attn_q_b", "indexer.q_proj"), head_dim, i, "an indexer's queries")
    kv_heads = 1
    if own and f.has(i, "indexer.attn_k", "indexer.k_proj"):
        kv_heads = f.part(f.rows(i, "indexer.attn_k", "indexer.k_proj"), head_dim, i, "an indexer's keys")
    # A layer that uses another's choice has a scorer of the same kind.
    return Indexer(
        heads,
        head_dim,
        top,
        kv_heads,
        every,
        owns_weights=own,
        pools=not compressed and "indexer_compressor_gate" in f.stems,
        weighs="indexer.proj" in f.stems,
    )


def _mla(f: BlockFacts, i: int) -> Mla:
    kv_lora_rank, window = f.block(i, "attn_kv_a_norm", 1)[0], window_of(f, i)
    rope_dim = f.block(i, "attn_kv_a_mqa", 2)[0] - kv_lora_rank
    q_lora_rank = f.rows(i, "attn_q_a") if f.has(i, "attn_q_a") else None
    split = f.has(i, "attn_k_b")
    if split:
        heads, _, nope_dim = f.block(i, "attn_k_b", 3)
        value_dim = f.block(i, "attn_v_b", 3)[1]
    else:  # files from before the key and value halves were split
        heads = f.at("attention.head_count", i)
        queries = f.rows(i, "attn_q_b" if q_lora_rank else "attn_q")
        nope_dim = f.part(queries, heads, i, "queries") - rope_dim
        value_dim = f.part(f.rows(i, "attn_kv_b"), heads, i, "keys and values") - nope_dim
    gate = OutputGate.NONE
    if f.has(i, "attn_gate"):
        gate = OutputGate.HEAD if f.rows(i, "attn_gate") == heads else OutputGate.FULL
    if min(rope_dim, nope_dim - 1, value_dim - 1) < 0:
        raise f.refused(f"block {i} has latent heads of {nope_dim} + {rope_dim} and values of {value_dim}")
    return Mla(
        heads,
        kv_lora_rank,
        nope_dim,
        rope_dim,
        value_dim,
        q_lora_rank,
        gate,
        _indexer(f, i, window),
        window,
        caches_latent=split,
    )


def _compressed(f: BlockFacts, i: int) -> CompressedAttention:
    head_dim, q_lora_rank = f.rows(i, "attn_kv"), f.rows(i, "attn_q_a")
    heads = f.part(f.rows(i, "attn_q_b"), head_dim, i, "queries")
    inside = f.shapes[f"blk.{i}.attn_output_a.weight"]
    groups = f.part(heads * head_dim, inside[-1], i, "attention's output")
    ratio = f.block(i, "attn_compressor_ape", 2)[0] if f.has(i, "attn_compressor_ape") else 0
    return CompressedAttention(
        heads=heads,
        head_dim=head_dim,
        q_lora_rank=q_lora_rank,
        output_groups=groups,
        output_lora_rank=f.part(math.prod(inside[:-1]), groups, i, "attention's output"),
        window=f.whole("attention.sliding_window"),
        ratio=ratio,
        sinks=f.has(i, "attn_sinks"),
        indexer=_indexer(f, i, None, compressed=ratio) if f.has(i, "indexer.attn_q_b") else None,
    )


def _linear_attention(f: BlockFacts, i: int) -> LinearAttention:
    value_heads, value_dim = f.block(i, "ssm_dt", 1, "bias")[0], f.block(i, "ssm_norm", 1)[0]
    channels, kernel = f.block(i, "ssm_conv1d", 2)
    key_dim = f.whole("ssm.state_size")
    keys = f.part(channels - value_heads * value_dim, 2, i, "keys")
    return LinearAttention(
        key_heads=f.part(keys, key_dim, i, "keys"),
        value_heads=value_heads,
        key_dim=key_dim,
        value_dim=value_dim,
        conv_kernel=kernel,
        # Early files keep the gate with queries, keys and values in one matrix.
        gate=f.has(i, "attn_gate") or f.has(i, "ssm_in"),
    )


def _kimi_delta(f: BlockFacts, i: int) -> KimiDelta:
    heads = f.rows(i, "ssm_beta")
    return KimiDelta(
        heads=heads,
        head_dim=f.part(f.rows(i, "attn_q"), heads, i, "queries"),
        conv_kernel=f.block(i, "ssm_conv1d_q", 2)[-1],
        # Projections of full rank have no second half.
        gate_rank=f.rows(i, "ssm_g_a") if f.has(i, "ssm_g_b") else None,
    )


def _lightning(f: BlockFacts, i: int) -> Lightning:
    queries, heads = f.block(i, "attn_output", 2)[1], f.at("attention.head_count", i)
    head_dim = f.part(queries, heads, i, "queries")
    return Lightning(
        heads=heads,
        kv_heads=f.part(f.rows(i, "attn_qkv") - queries, 2 * head_dim, i, "keys and values"),
        head_dim=head_dim,
        qk_norm=QkNorm.HEAD if f.has(i, "attn_q_norm") else QkNorm.NONE,
        qkv_bias=f.has(i, "attn_qkv", suffix="bias"),
        output_gate=f.has(i, "attn_gate"),
    )


def _mamba2(f: BlockFacts, i: int) -> Mamba2:
    inner, heads = f.block(i, "ssm_out", 2)[1], f.size(i, "ssm_a", "")
    channels, kernel = f.block(i, "ssm_conv1d", 2)
    state = f.whole("ssm.state_size")
    return Mamba2(
        heads=heads,
        head_dim=f.part(inner, heads, i, "a state-space model"),
        state=state,
        groups=f.part(channels - inner, 2 * state, i, "groups"),
        conv_kernel=kernel,
        conv_bias=f.has(i, "ssm_conv1d", suffix="bias"),
        norm=f.has(i, "ssm_norm"),
        bias=f.has(i, "ssm_in", suffix="bias"),
    )


def _mamba1(f: BlockFacts, i: int) -> Mamba1:
    inner, kernel = f.block(i, "ssm_out", 2)[1], f.block(i, "ssm_conv1d", 2)[1]
    dt_rank = f.block(i, "ssm_dt", 2)[1]
    return Mamba1(
        inner=inner,
        state=f.part(f.rows(i, "ssm_x") - dt_rank, 2, i, "a state"),
        dt_rank=dt_rank,
        conv_kernel=kernel,
        conv_bias=f.has(i, "ssm_conv1d", suffix="bias"),
        bias=f.has(i, "ssm_in", suffix="bias"),
        dt_norms=f.has(i, "ssm_dt_norm"),
    )


def _feed_forward(f: BlockFacts, i: int) -> FeedForward | None:
    if f.has(i, "ffn_down_exps"):
        n_experts, inside, width = f.block(i, "ffn_down_exps", 3)
        return _experts(f, i, n_experts, inside, width)
    if f.has(i, "ffn_down.0"):  # files from before experts were stacked
        n_experts = next(e for e in range(1, len(f.shapes) + 1) if not f.has(i, f"ffn_down.{e}"))
        return _experts(f, i, n_experts, *f.block(i, "ffn_down.0", 2))
    if not f.has(i, "ffn_down"):
        return None
    width = f.block(i, "ffn_down", 2)[1]
    # Gate and up may be one matrix of twice the width (Phi-3, GLM-4).
    gated = f.has(i, "ffn_gate") or f.rows(i, "ffn_up") == 2 * width
    return DenseFfn(width, bias=f.has(i, "ffn_down", suffix="bias"), gated=gated)


def _experts(f: BlockFacts, i: int, n_experts: int, inside: int, width: int) -> MoeFfn:
    shared = f.block(i, "ffn_down_shexp", 2)[1] if f.has(i, "ffn_down_shexp") else 0
    chunks = f.block(i, "ffn_down_chexps", 3) if f.has(i, "ffn_down_chexps") else (0, 0, 0)
    used = f.at("expert_used_count", i)
    if not 1 <= used <= n_experts:
        raise UserError(f"{f.source}: block {i} uses {used} of {n_experts} experts a token; {DAMAGED}")
    fixed = _FIXED_GATING.get(f.architecture, Gating.SOFTMAX)
    return MoeFfn(
        n_experts=n_experts,
        n_experts_per_token=used,
        expert_width=width,
        n_shared_experts=f.whole("expert_shared_count", 1) or 1 if shared else 0,
        shared_width=shared,
        shared_gate=f.has(i, "ffn_gate_inp_shexp"),
        dense_width=f.block(i, "ffn_down", 2)[1] if f.has(i, "ffn_down") else 0,
        router_bias=f.has(i, "ffn_gate_inp", suffix="bias"),
        selection_bias=f.has(i, "exp_probs_b", suffix="bias") or f.has(i, "exp_probs_b"),
        expert_bias=f.has(i, "ffn_down_exps", suffix="bias"),
        gating=_GATINGS.get(f.whole("expert_gating_func", 0), fixed),
        normalise_weights=f.get("expert_weights_norm") is not False,
        weights_scale=f.number("expert_weights_scale", 1.0),
        n_groups=f.whole("expert_group_count", 1) or 1,
        n_groups_used=f.whole("expert_group_used_count", 1) or 1,
        gated=f.has(i, "ffn_gate_exps", "ffn_gate_up_exps", "ffn_gate.0"),
        latent_width=inside if f.has(i, "ffn_latent_down", "ffn_routed_down") else 0,
        chunk_experts=chunks[0],
        chunk_width=chunks[2],
        zero_experts=max(0, f.rows(i, "ffn_gate_inp") - n_experts) if f.has(i, "ffn_gate_inp") else 0,
    )
