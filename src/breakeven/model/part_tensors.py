"""The tensors of each part of a layer, by llama.cpp's stem: mixers and feed-forwards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from breakeven.model.architecture import (
    CompressedAttention,
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
    OutputGate,
    QkNorm,
    ShortConv,
)


class TensorGroup(StrEnum):
    """What a tensor is for. A bias counts with the matrix it belongs to."""

    ROUTED_EXPERTS = "routed_experts"
    SHARED_EXPERTS = "shared_experts"
    ROUTER = "router"
    DENSE_FFN = "dense_ffn"
    ATTENTION = "attention"
    """All mixers, state-space models and convolutions too."""
    STREAM = "stream"
    """What feeds per-layer tables into the layers and mixes residual streams."""
    NORM = "norm"
    EMBEDDING = "embedding"
    TABLE = "table"
    """Per-layer embeddings and n-gram tables: read by row."""
    OUTPUT_HEAD = "output_head"
    MTP = "mtp"
    """Blocks that draft further tokens."""
    CONSTANT = "constant"
    """Tables of constants, such as rotary factors: bytes, but no weights."""


@dataclass(frozen=True, slots=True)
class Item:
    """A tensor before its layer and final name are known; `suffix` is "weight", "bias" or "" for none."""

    stem: str
    suffix: str
    shape: tuple[int, ...]
    group: TensorGroup


def mixer_items(hidden: int, mixer: Mixer) -> Iterator[Item]:
    """A mixer's tensors in a model of this hidden size."""
    match mixer:
        case Gqa():
            yield from _gqa(hidden, mixer)
        case Mla():
            yield from _mla(hidden, mixer)
        case CompressedAttention():
            yield from _compressed(hidden, mixer)
        case LinearAttention():
            yield from _linear_attention(hidden, mixer)
        case KimiDelta():
            yield from _kimi_delta(hidden, mixer)
        case Lightning():
            yield from _lightning(hidden, mixer)
        case Mamba2():
            yield from _mamba2(hidden, mixer)
        case Mamba1():
            yield from _mamba1(hidden, mixer)
        case ShortConv():
            yield from _short_conv(hidden, mixer)


def norm(stem: str, width: int, bias: bool = False) -> Iterator[Item]:
    """A norm's gain, and its bias where it has one."""
    yield Item(stem, "weight", (width,), TensorGroup.NORM)
    if bias:
        yield Item(stem, "bias", (width,), TensorGroup.NORM)


def _matrix(stem: str, out: int, width: int, bias: bool = False) -> Iterator[Item]:
    yield Item(stem, "weight", (out, width), TensorGroup.ATTENTION)
    if bias:
        yield Item(stem, "bias", (out,), TensorGroup.ATTENTION)


def _vector(stem: str, width: int, suffix: str = "weight") -> Iterator[Item]:
    yield Item(stem, suffix, (width,), TensorGroup.ATTENTION)


def _gqa(hidden: int, a: Gqa) -> Iterator[Item]:
    queries, keys = a.heads * a.head_dim, a.kv_heads * a.head_dim
    twin = a.output_gate is OutputGate.TWIN
    yield from _matrix("attn_q", queries * (2 if twin else 1), hidden, a.qkv_bias)
    if a.kv_matrices:
        yield from _matrix("attn_k", keys, hidden, a.qkv_bias)
        if not a.keys_are_values:
            yield from _matrix("attn_v", a.kv_heads * a.value_dim, hidden, a.qkv_bias)
    yield from _matrix("attn_output", hidden, a.heads * a.value_dim, a.output_bias)
    yield from _gate(hidden, a.output_gate, a.heads, a.value_dim)
    if a.qk_norm is not QkNorm.NONE:
        whole = a.qk_norm is QkNorm.FULL
        yield from norm("attn_q_norm", queries if whole else a.head_dim)
        if a.kv_matrices:
            yield from norm("attn_k_norm", keys if whole else a.head_dim)
    if a.sinks:
        yield from _vector("attn_sinks", a.heads)
    if a.indexer is not None:
        yield from _indexer(hidden, hidden, a.indexer)


def _gate(hidden: int, gate: OutputGate, heads: int, value_dim: int) -> Iterator[Item]:
    if gate is OutputGate.FULL:
        yield from _matrix("attn_gate", heads * value_dim, hidden)
    elif gate is OutputGate.HEAD:
        yield from _matrix("attn_gate", heads, hidden)


def _indexer(hidden: int, query_width: int, i: Indexer) -> Iterator[Item]:
    if not i.owns_weights:
        return
    yield from _matrix("indexer.attn_q_b" if i.weighs else "indexer.q_proj", i.heads * i.head_dim, query_width)
    yield from _matrix("indexer.attn_k" if i.weighs else "indexer.k_proj", i.kv_heads * i.head_dim, hidden)
    yield from norm("indexer.k_norm", i.head_dim, bias=i.weighs)
    if i.weighs:
        yield from _matrix("indexer.proj", i.heads, hidden)
    else:
        yield from norm("indexer.q_norm", i.head_dim)
    if i.pools:
        yield from _matrix("indexer_compressor_gate", i.head_dim, hidden)
        yield from _matrix("indexer_compressor_ape", i.every, i.head_dim)


def _mla(hidden: int, a: Mla) -> Iterator[Item]:
    queries = a.heads * (a.nope_dim + a.rope_dim)
    if a.q_lora_rank is None:
        yield from _matrix("attn_q", queries, hidden)
    else:
        yield from _matrix("attn_q_a", a.q_lora_rank, hidden)
        yield from norm("attn_q_a_norm", a.q_lora_rank)
        yield from _matrix("attn_q_b", queries, a.q_lora_rank)
    yield from _matrix("attn_kv_a_mqa", a.kv_lora_rank + a.rope_dim, hidden)
    yield from norm("attn_kv_a_norm", a.kv_lora_rank)
    # One matrix in the paper, kept as two so that decoding can absorb the key half into the query.
    if a.caches_latent:
        yield Item("attn_k_b", "weight", (a.heads, a.kv_lora_rank, a.nope_dim), TensorGroup.ATTENTION)
        yield Item("attn_v_b", "weight", (a.heads, a.value_dim, a.kv_lora_rank), TensorGroup.ATTENTION)
    else:
        yield from _matrix("attn_kv_b", a.heads * (a.nope_dim + a.value_dim), a.kv_lora_rank)
    yield from _matrix("attn_output", hidden, a.heads * a.value_dim)
    yield from _gate(hidden, a.output_gate, a.heads, a.value_dim)
    if a.indexer is not None:
        yield from _indexer(hidden, a.q_lora_rank or hidden, a.indexer)


def _compressed(hidden: int, a: CompressedAttention) -> Iterator[Item]:
    yield from _matrix("attn_q_a", a.q_lora_rank, hidden)
    yield from norm("attn_q_a_norm", a.q_lora_rank)
    yield from _matrix("attn_q_b", a.heads * a.head_dim, a.q_lora_rank)
    yield from _matrix("attn_kv", a.head_dim, hidden)
    yield from norm("attn_kv_a_norm", a.head_dim)
    yield from _matrix("attn_output_a", a.output_groups * a.output_lora_rank, a.heads * a.head_dim // a.output_groups)
    yield from _matrix("attn_output_b", hidden, a.output_groups * a.output_lora_rank)
    if a.sinks:
        yield from _vector("attn_sinks", a.heads)
    if a.ratio:
        yield from _compressor("attn_compressor", hidden, a.head_dim, a.ratio)
    if (i := a.indexer) is not None and i.owns_weights:
        yield from _matrix("indexer.attn_q_b", i.heads * i.head_dim, a.q_lora_rank)
        yield from _matrix("indexer.proj", i.heads, hidden)
        yield from _compressor("indexer_compressor", hidden, i.head_dim, a.ratio)


def _compressor(stem: str, hidden: int, width: int, ratio: int) -> Iterator[Item]:
    # Entries of four tokens overlap: each is made of two halves.
    wide = width * (2 if ratio == 4 else 1)
    yield from _matrix(f"{stem}_kv", wide, hidden)
    yield from _matrix(f"{stem}_gate", wide, hidden)
    yield from _matrix(f"{stem}_ape", ratio, wide)
    yield from norm(f"{stem}_norm", width)


def _linear_attention(hidden: int, a: LinearAttention) -> Iterator[Item]:
    keys, values = a.key_heads * a.key_dim, a.value_heads * a.value_dim
    yield from _matrix("attn_qkv", 2 * keys + values, hidden)
    if a.gate:
        yield from _matrix("attn_gate", values, hidden)
    yield from _matrix("ssm_conv1d", 2 * keys + values, a.conv_kernel)
    yield from _vector("ssm_dt", a.value_heads, "bias")
    yield from _vector("ssm_a", a.value_heads, "")
    yield from _matrix("ssm_ba", 2 * a.value_heads, hidden)
    yield from norm("ssm_norm", a.value_dim)
    yield from _matrix("ssm_out", hidden, values)


def _kimi_delta(hidden: int, a: KimiDelta) -> Iterator[Item]:
    wide = a.heads * a.head_dim
    for part in ("q", "k", "v"):
        yield from _matrix(f"attn_{part}", wide, hidden)
        yield Item(f"ssm_conv1d_{part}", "weight", (wide, 1, a.conv_kernel), TensorGroup.ATTENTION)
    for part in ("f", "g"):
        if a.gate_rank is None:
            yield from _matrix(f"ssm_{part}", wide, hidden)
        else:
            yield from _matrix(f"ssm_{part}_a", a.gate_rank, hidden)
            yield from _matrix(f"ssm_{part}_b", wide, a.gate_rank)
    yield from _matrix("ssm_beta", a.heads, hidden)
    yield from _vector("ssm_dt", wide, "bias")
    yield Item("ssm_a", "", (a.heads, 1), TensorGroup.ATTENTION)
    yield from norm("ssm_norm", a.head_dim)
    yield from _matrix("attn_output", hidden, wide)


def _lightning(hidden: int, a: Lightning) -> Iterator[Item]:
    queries, keys = a.heads * a.head_dim, a.kv_heads * a.head_dim
    yield from _matrix("attn_qkv", queries + 2 * keys, hidden, a.qkv_bias)
    if a.output_gate:
        yield from _matrix("attn_gate", queries, hidden)
    if a.qk_norm is QkNorm.HEAD:
        yield from norm("attn_q_norm", a.head_dim)
        yield from norm("attn_k_norm", a.head_dim)
    yield from norm("attn_sub_norm", queries)
    yield from _matrix("attn_output", hidden, queries)


def _mamba2(hidden: int, a: Mamba2) -> Iterator[Item]:
    channels = a.inner + 2 * a.groups * a.state
    yield from _matrix("ssm_in", a.inner + channels + a.heads, hidden, a.bias)
    yield from _matrix("ssm_conv1d", channels, a.conv_kernel, a.conv_bias)
    yield from _vector("ssm_dt", a.heads, "bias")
    # Columns, so that the engine can broadcast them over a head.
    yield Item("ssm_a", "", (a.heads, 1), TensorGroup.ATTENTION)
    yield Item("ssm_d", "", (a.heads, 1), TensorGroup.ATTENTION)
    if a.norm:
        yield Item("ssm_norm", "weight", (a.groups, a.inner // a.groups), TensorGroup.NORM)
    yield from _matrix("ssm_out", hidden, a.inner, a.bias)


def _mamba1(hidden: int, a: Mamba1) -> Iterator[Item]:
    yield from _matrix("ssm_in", 2 * a.inner, hidden, a.bias)
    yield from _matrix("ssm_conv1d", a.inner, a.conv_kernel, a.conv_bias)
    yield from _matrix("ssm_x", a.dt_rank + 2 * a.state, a.inner)
    yield from _matrix("ssm_dt", a.inner, a.dt_rank, bias=True)
    yield Item("ssm_a", "", (a.inner, a.state), TensorGroup.ATTENTION)
    yield from _vector("ssm_d", a.inner, "")
    if a.dt_norms:
        yield from norm("ssm_dt_norm", a.dt_rank)
        yield from norm("ssm_b_norm", a.state)
        yield from norm("ssm_c_norm", a.state)
    yield from _matrix("ssm_out", hidden, a.inner, a.bias)


def _short_conv(hidden: int, a: ShortConv) -> Iterator[Item]:
    yield from _matrix("shortconv.conv", hidden, a.kernel, a.bias)
    yield from _matrix("shortconv.in_proj", 3 * hidden, hidden, a.bias)
    yield from _matrix("shortconv.out_proj", hidden, hidden, a.bias)


def moe_items(hidden: int, f: MoeFfn, *, around: bool) -> Iterator[Item]:
    """Router and experts; `around`: the layer norms both paths after them (Gemma 4)."""
    routed = f.n_experts + f.zero_experts
    yield Item("ffn_gate_inp", "weight", (routed, hidden), TensorGroup.ROUTER)
    if f.router_bias:
        yield Item("ffn_gate_inp", "bias", (routed,), TensorGroup.ROUTER)
    if f.selection_bias:
        yield Item("exp_probs_b", "bias", (routed,), TensorGroup.ROUTER)
    inside = f.latent_width or hidden
    yield from ffn_items(
        "_exps",
        TensorGroup.ROUTED_EXPERTS,
        inside,
        f.expert_width,
        stack=(f.n_experts,),
        bias=f.expert_bias,
        gated=f.gated,
    )
    if f.latent_width:
        yield Item("ffn_latent_down", "weight", (f.latent_width, hidden), TensorGroup.DENSE_FFN)
        yield Item("ffn_latent_up", "weight", (hidden, f.latent_width), TensorGroup.DENSE_FFN)
        if f.latent_norm:
            yield from norm("ffn_latent_norm", f.latent_width)
    if f.chunk_width:
        yield from ffn_items("_chexps", TensorGroup.ROUTED_EXPERTS, hidden, f.chunk_width, stack=(f.chunk_experts,))
    if f.shared_width:
        yield from ffn_items("_shexp", TensorGroup.SHARED_EXPERTS, hidden, f.shared_width, gated=f.gated)
    if f.shared_gate:
        yield Item("ffn_gate_inp_shexp", "weight", (hidden,), TensorGroup.SHARED_EXPERTS)
    if f.dense_width:
        yield from ffn_items("", TensorGroup.DENSE_FFN, hidden, f.dense_width)
        if around:
            # Each of the two paths is normed on its own before they are added (Gemma 4).
            yield Item("ffn_gate_inp", "scale", (hidden,), TensorGroup.ROUTER)
            yield Item("ffn_down_exps", "scale", (f.n_experts,), TensorGroup.ROUTER)
            for stem in ("pre_ffw_norm_2", "post_ffw_norm_1", "post_ffw_norm_2"):
                yield from norm(stem, hidden)
        else:
            yield from norm("ffn_norm_exps", hidden)


def ffn_items(
    suffix: str,
    group: TensorGroup,
    hidden: int,
    width: int,
    *,
    stack: tuple[int, ...] = (),
    bias: bool = False,
    gated: bool = True,
) -> Iterator[Item]:
    """Gate (where there is one), up and down of one feed-forward, or of `stack` of them side by side."""
    gate = (("gate", width, hidden),) if gated else ()
    for stem, out, across in (*gate, ("up", width, hidden), ("down", hidden, width)):
        yield Item(f"ffn_{stem}{suffix}", "weight", (*stack, out, across), group)
        if bias:
            yield Item(f"ffn_{stem}{suffix}", "bias", (*stack, out), group)
