"""Every weight of a model, by llama.cpp's name: what a GGUF file of this architecture holds.

Shapes are in numpy order, slowest axis first, so a matrix is (out, in) and stacked experts are (experts, out, in);
GGUF stores the same numbers reversed. Names and shapes follow llama.cpp's `src/models/<architecture>.cpp`. Where a
family stores a tensor under another name, its entry in `layouts` says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from breakeven.model.architecture import (
    DenseFfn,
    Gqa,
    Layer,
    LinearAttention,
    Mla,
    ModelSpec,
    MoeFfn,
    QkNorm,
    ShortConv,
)
from breakeven.model.layouts.registry import family_of


class TensorGroup(StrEnum):
    """What a tensor is for. A bias counts with the matrix it belongs to."""

    ROUTED_EXPERTS = "routed_experts"
    SHARED_EXPERTS = "shared_experts"
    ROUTER = "router"
    DENSE_FFN = "dense_ffn"
    ATTENTION = "attention"
    NORM = "norm"
    EMBEDDING = "embedding"
    OUTPUT_HEAD = "output_head"


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of the file. `layer` is None for the embedding, the final norm and the output head."""

    name: str
    shape: tuple[int, ...]
    group: TensorGroup
    layer: int | None

    @property
    def params(self) -> int:
        """How many weights it holds."""
        return math.prod(self.shape)


_Item = tuple[str, str, tuple[int, ...], TensorGroup]
"""Stem, suffix ("weight", "bias", "" for none), shape, group: a tensor before its layer and final name are known."""


def tensors(spec: ModelSpec) -> list[Tensor]:
    """The model's tensors in file order: embedding, blocks, final norm, output head (absent when tied)."""
    names = family_of(spec).tensor_names
    found = [_named(("token_embd", "weight", (spec.vocab, spec.hidden), TensorGroup.EMBEDDING), None, names)]
    for index, layer in enumerate(spec.layers):
        found += [_named(item, index, names) for item in _layer(spec, layer)]
    found += [_named(item, None, names) for item in _tail(spec)]
    return found


def _named(item: _Item, layer: int | None, names: Mapping[str, str]) -> Tensor:
    stem, suffix, shape, group = item
    block = "" if layer is None else f"blk.{layer}."
    return Tensor(f"{block}{names.get(stem, stem)}{'.' if suffix else ''}{suffix}", shape, group, layer)


def _tail(spec: ModelSpec) -> Iterator[_Item]:
    yield from _norm("output_norm", spec.hidden, spec.layer_norm)
    if not spec.tied_embeddings:
        yield "output", "weight", (spec.vocab, spec.hidden), TensorGroup.OUTPUT_HEAD
    if spec.output_bias:
        yield "output", "bias", (spec.vocab,), TensorGroup.OUTPUT_HEAD


def _layer(spec: ModelSpec, layer: Layer) -> Iterator[_Item]:
    hidden = spec.hidden
    yield from _norm("attn_norm", hidden, spec.layer_norm)
    match layer.attention:
        case Gqa():
            yield from _gqa(hidden, layer.attention)
        case Mla():
            yield from _mla(hidden, layer.attention)
        case LinearAttention():
            yield from _linear_attention(hidden, layer.attention)
        case ShortConv():
            yield from _short_conv(hidden, layer.attention)
    if layer.post_norms:
        yield from _norm("post_attention_norm", hidden, spec.layer_norm)
    yield from _norm("ffn_norm", hidden, spec.layer_norm)
    match layer.ffn:
        case DenseFfn():
            yield from _gated("", TensorGroup.DENSE_FFN, hidden, layer.ffn.width, bias=layer.ffn.bias)
        case MoeFfn():
            yield from _moe(hidden, layer.ffn)
    if layer.post_norms:
        yield from _norm("post_ffw_norm", hidden, spec.layer_norm)


def _norm(stem: str, width: int, bias: bool = False) -> Iterator[_Item]:
    yield stem, "weight", (width,), TensorGroup.NORM
    if bias:
        yield stem, "bias", (width,), TensorGroup.NORM


def _matrix(stem: str, out: int, width: int, bias: bool = False) -> Iterator[_Item]:
    yield stem, "weight", (out, width), TensorGroup.ATTENTION
    if bias:
        yield stem, "bias", (out,), TensorGroup.ATTENTION


def _gqa(hidden: int, a: Gqa) -> Iterator[_Item]:
    value_dim = a.head_dim if a.value_head_dim is None else a.value_head_dim
    queries, keys = a.heads * a.head_dim, a.kv_heads * a.head_dim
    yield from _matrix("attn_q", queries * (2 if a.output_gate else 1), hidden, a.qkv_bias)
    yield from _matrix("attn_k", keys, hidden, a.qkv_bias)
    yield from _matrix("attn_v", a.kv_heads * value_dim, hidden, a.qkv_bias)
    yield from _matrix("attn_output", hidden, a.heads * value_dim, a.output_bias)
    if a.qk_norm is not QkNorm.NONE:
        whole = a.qk_norm is QkNorm.FULL
        yield from _norm("attn_q_norm", queries if whole else a.head_dim)
        yield from _norm("attn_k_norm", keys if whole else a.head_dim)
    if a.sinks:
        yield "attn_sinks", "weight", (a.heads,), TensorGroup.ATTENTION


def _mla(hidden: int, a: Mla) -> Iterator[_Item]:
    queries = a.heads * (a.nope_dim + a.rope_dim)
    if a.q_lora_rank is None:
        yield from _matrix("attn_q", queries, hidden)
    else:
        yield from _matrix("attn_q_a", a.q_lora_rank, hidden)
        yield from _norm("attn_q_a_norm", a.q_lora_rank)
        yield from _matrix("attn_q_b", queries, a.q_lora_rank)
    yield from _matrix("attn_kv_a_mqa", a.kv_lora_rank + a.rope_dim, hidden)
    yield from _norm("attn_kv_a_norm", a.kv_lora_rank)
    # One matrix in the paper, kept as two so that decoding can absorb the key half into the query.
    yield "attn_k_b", "weight", (a.heads, a.kv_lora_rank, a.nope_dim), TensorGroup.ATTENTION
    yield "attn_v_b", "weight", (a.heads, a.value_dim, a.kv_lora_rank), TensorGroup.ATTENTION
    yield from _matrix("attn_output", hidden, a.heads * a.value_dim)


def _linear_attention(hidden: int, a: LinearAttention) -> Iterator[_Item]:
    keys, values = a.key_heads * a.key_dim, a.value_heads * a.value_dim
    yield from _matrix("attn_qkv", 2 * keys + values, hidden)
    yield from _matrix("attn_gate", values, hidden)
    yield "ssm_conv1d", "weight", (2 * keys + values, a.conv_kernel), TensorGroup.ATTENTION
    yield "ssm_dt", "bias", (a.value_heads,), TensorGroup.ATTENTION
    yield "ssm_a", "", (a.value_heads,), TensorGroup.ATTENTION
    yield from _matrix("ssm_ba", 2 * a.value_heads, hidden)
    yield from _norm("ssm_norm", a.value_dim)
    yield from _matrix("ssm_out", hidden, values)


def _short_conv(hidden: int, a: ShortConv) -> Iterator[_Item]:
    yield from _matrix("shortconv.conv", hidden, a.kernel)
    yield from _matrix("shortconv.in_proj", 3 * hidden, hidden)
    yield from _matrix("shortconv.out_proj", hidden, hidden)


def _moe(hidden: int, f: MoeFfn) -> Iterator[_Item]:
    yield "ffn_gate_inp", "weight", (f.n_experts, hidden), TensorGroup.ROUTER
    if f.router_bias:
        yield "ffn_gate_inp", "bias", (f.n_experts,), TensorGroup.ROUTER
    if f.selection_bias:
        yield "exp_probs_b", "bias", (f.n_experts,), TensorGroup.ROUTER
    stack = (f.n_experts,)
    yield from _gated("_exps", TensorGroup.ROUTED_EXPERTS, hidden, f.expert_width, stack=stack, bias=f.expert_bias)
    if f.shared_width:
        yield from _gated("_shexp", TensorGroup.SHARED_EXPERTS, hidden, f.shared_width)
    if f.shared_gate:
        yield "ffn_gate_inp_shexp", "weight", (hidden,), TensorGroup.SHARED_EXPERTS
    if f.dense_width:
        yield from _gated("", TensorGroup.DENSE_FFN, hidden, f.dense_width)
        # Each of the two paths is normed on its own before they are added (Gemma 4).
        yield "ffn_gate_inp", "scale", (hidden,), TensorGroup.ROUTER
        for stem in ("pre_ffw_norm_2", "post_ffw_norm_1", "post_ffw_norm_2"):
            yield from _norm(stem, hidden)


def _gated(
    suffix: str, group: TensorGroup, hidden: int, width: int, *, stack: tuple[int, ...] = (), bias: bool = False
) -> Iterator[_Item]:
    """Gate, up and down of one feed-forward, or of `stack` of them side by side."""
    for stem, out, across in (("gate", width, hidden), ("up", width, hidden), ("down", hidden, width)):
        yield f"ffn_{stem}{suffix}", "weight", (*stack, out, across), group
        if bias:
            yield f"ffn_{stem}{suffix}", "bias", (*stack, out), group
