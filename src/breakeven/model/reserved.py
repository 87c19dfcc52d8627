"""What llama.cpp reserves for a model beside its weights, from shapes: cells of caches, compute and output buffers.

Before it answers, llama.cpp lays out the graph of one full micro-batch over the whole context and reserves what lives
at once at its fullest moment (src/llama-context.cpp: sched_reserve; ggml/src/ggml-alloc.c). That moment is a layer's
feed-forward, its attention, or the output head. Which tensors live then was read off build 11549 by changing one size
at a time (bench/memory.py): every coefficient below is a number of such tensors.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from breakeven.model.architecture import (
    CompressedAttention,
    DenseFfn,
    FeedForward,
    Gqa,
    KimiDelta,
    Lightning,
    LinearAttention,
    Mamba1,
    Mamba2,
    Mixer,
    Mla,
    ModelSpec,
    MoeFfn,
    ShortConv,
)
from breakeven.model.arithmetic import KV_ELEMENT_BYTES, attends

MICRO_BATCH = 512
"""Tokens of one forward pass of a prompt (n_ubatch)."""
CONTEXT_STEP = 256
"""llama.cpp rounds the cells of a cache up to a multiple of this (src/llama-context.cpp, llama-kv-cache-iswa.cpp)."""
ONE_LOGIT_BUILD = 9500
"""Since about this build (June 2026, pull request 23861) llama.cpp's server asks for the logits of one token a
sequence. Older ones, and programs that do not ask, reserve them for a whole micro-batch."""

_F32 = 4.0
_MASK = 2.0
"""Bytes of an entry of the attention mask under flash attention; 4 without."""
_HELD = 5
"""Hidden widths that live beside a layer's own tensors: input embedding, residuals, a norm's output. Further
residual streams (Gemma 3n) count twice each: what they hold, and what is foretold of them."""
_HELD_LENT = 2
"""The same while a copy of a matrix lies beside them."""
_COPIED_CACHES = 1.25
"""Room for copied keys and values over their bytes, 1 to 1.5 seen: the next may not fit where the last were."""
STREAMED_ROWS = 32
"""Fewer tokens are multiplied where the weights lie, by the CPU (GGML_OP_OFFLOAD_MIN_BATCH)."""
_HELD_GPU = 3
_HELD_HEAD_GPU = 2
"""On GPUs inputs are copies that end with their last use. Under the head the residual and the norm's output are left:
Qwen3.5-9B reserves 501 MiB there at any context, 485 of logits and twice 8; Qwen3.8-27B 505, twice 10.
Without those logits that one reserves 132 MiB at 4,096 tokens: 4 of mask, 102 of its feed-forward, about 3 times 10."""


def whole_context(tokens: float) -> int:
    """Cells that a sequence gets when it is asked for so many tokens."""
    return math.ceil(tokens / CONTEXT_STEP) * CONTEXT_STEP


def cells(context: float, window: int | None) -> int:
    """Cells of one sequence in a layer's cache; a sliding window keeps room for the micro-batch that passes it."""
    whole = whole_context(context)
    return whole if window is None else min(whole, whole_context(window + MICRO_BATCH))


def reserved_kv_bytes(spec: ModelSpec, context: float, element_bytes: float = KV_ELEMENT_BYTES) -> float:
    """Bytes of keys and values that one sequence of `context` tokens is given."""
    found = (a.elements * cells(context, a.window) / a.every for layer in spec.layers for a in attends(layer))
    return element_bytes * sum(found)


def output_bytes(spec: ModelSpec, sequences: float) -> float:
    """Bytes of the buffer, in host memory, that logits are copied to: one row a sequence."""
    return _F32 * spec.vocab * max(sequences, 1)


@dataclass(frozen=True, slots=True)
class Streamed:
    """Weights of one layer that lie in host memory and are copied to a device to multiply a prompt, one at a time.

    `into`, `out`: bytes of the largest matrix that makes a feed-forward's inside, and of the one behind it; `beside`:
    of all others. `cache`: bytes of its keys and values, where they lie in host memory too; they are copied as well.
    """

    layer: int
    into: float = 0.0
    out: float = 0.0
    beside: float = 0.0
    cache: float = 0.0


@dataclass(frozen=True, slots=True)
class PlacedShapes:
    """What one device computes: `layers` by index, the output head or not, and what it is lent by host memory."""

    layers: Collection[int]
    head: bool
    streamed: Sequence[Streamed] = ()


def host_compute_bytes(spec: ModelSpec, context: float, sequences: float = 1) -> float:
    """Bytes of the buffer in host memory while devices compute: a prompt's embeddings, as tokens and given, and masks.

    What the CPU still computes of a prompt is attention over caches in host memory, and finds room in there.
    """
    tokens = _tokens(context, sequences)
    return _MASK * tokens * _mask_cells(spec, context) + _F32 * tokens * 2 * spec.hidden


def device_compute_bytes(
    spec: ModelSpec, shapes: PlacedShapes, context: float, sequences: float = 1, *, every_logit: bool
) -> float:
    """Bytes of one device's compute buffer, when it computes a part of the model."""
    if not shapes.layers and not shapes.head and not shapes.streamed:
        return 0.0
    tokens = _tokens(context, sequences)
    found = [0.0]
    if shapes.layers or shapes.head:
        # A device with the head alone has the last layer's rows to norm.
        own = replace(spec, layers=tuple(spec.layers[i] for i in sorted(shapes.layers)) or spec.layers[-1:])
        found.append(compute_bytes(own, context, sequences, gpu=True, every_logit=every_logit and shapes.head))
    rows = tokens if every_logit else max(sequences, 1)
    mask = _MASK * tokens * _mask_cells(spec, context)
    for lent in shapes.streamed:
        held = mask + _F32 * tokens * _HELD_LENT * spec.hidden
        layer = spec.layers[lent.layer]
        found += [held + lent.beside + _F32 * tokens * _mixer(m, spec.hidden) for m in layer.mixers]
        if lent.cache:
            heads = max((2 * m.heads * m.head_dim for m in layer.mixers if isinstance(m, Gqa)), default=0)
            found.append(held + _COPIED_CACHES * lent.cache + _F32 * tokens * heads)
        # The last layer's feed-forward runs for the rows whose logits are wanted; few rows are multiplied on the CPU.
        if layer.ffn is None or (lent.layer == len(spec.layers) - 1 and rows < STREAMED_ROWS):
            continue
        inside, outside = (_F32 * tokens * n for n in _inside(layer.ffn, spec.hidden))
        if isinstance(layer.ffn, MoeFfn) and layer.ffn.gated:
            found.append(held + _lent_experts(lent, inside, outside))
        else:
            found.append(held + lent.into + (3 if layer.ffn.gated else 1) * inside)
            found.append(held + lent.out + inside + outside)
    return max(found)


def _lent_experts(lent: Streamed, inside: float, outside: float) -> float:
    """Bytes at the fullest moment of experts whose matrices are copied to the device one after another.

    Up's copy takes the place that gate's left. The product of both goes there if it fits; else behind them, and then
    the outputs must find room between, beside down's copy, or go behind it.
    """
    if inside <= lent.into:
        return max(lent.into + 2 * inside, inside + lent.out + outside)
    between = lent.into + 2 * inside
    behind = 0.0
    for size in (lent.out, outside):
        if size <= between:
            between -= size
        else:
            behind += size
    return lent.into + 3 * inside + behind


def _tokens(context: float, sequences: float) -> float:
    """Tokens of the micro-batch that is reserved for."""
    return min(MICRO_BATCH, whole_context(context) * max(sequences, 1)) if context else MICRO_BATCH


def _inside(ffn: FeedForward, hidden: int) -> tuple[float, float]:
    """Elements of one token between a feed-forward's matrices, and behind them, over its experts."""
    if isinstance(ffn, DenseFfn):
        return ffn.width, hidden
    return ffn.n_experts_per_token * ffn.expert_width, ffn.n_experts_per_token * hidden


def compute_bytes(
    spec: ModelSpec, context: float, sequences: float = 1, *, gpu: bool, every_logit: bool, flash: bool = True
) -> float:
    """Bytes of the compute buffer for `sequences` of `context` tokens each; 0 tokens: no cache beside it.

    `gpu`: all layers lie on a device of their own. `every_logit`: logits are reserved for a whole micro-batch, as
    builds before `ONE_LOGIT_BUILD` do, not for one token a sequence. `flash`: flash attention is on, as llama.cpp
    decides wherever a device can.
    """
    tokens = _tokens(context, sequences)
    rows = tokens if every_logit else max(sequences, 1)
    hidden = spec.hidden
    # The last layer's feed-forward runs for the rows whose logits are wanted.
    fed = spec.layers if every_logit or len(spec.layers) == 1 else spec.layers[:-1]
    live = [tokens * _ffn(layer.ffn, hidden) for layer in fed if layer.ffn is not None]
    live += [
        tokens * (_mixer(m, hidden) + _scores(m, context, flash)) + max(sequences, 1) * _state(m)
        for layer in spec.layers
        for m in layer.mixers
    ]
    mask = (_MASK if flash else _F32) * tokens * _mask_cells(spec, context)
    # A row of the per-layer embedding stays through all layers; it is gathered, projected and added up before them.
    rows_beside = tokens * (spec.per_layer_embedding.width * len(spec.layers) if spec.per_layer_embedding else 0)
    fullest = max(max(live, default=0.0) + rows_beside, 3 * rows_beside)
    held = (_HELD_GPU if gpu else _HELD) + (2 * (spec.streams.count - 1) if spec.streams else 0)
    layers = mask + _F32 * (fullest + tokens * held * hidden)
    head = _F32 * (rows * spec.vocab + tokens * (_HELD_HEAD_GPU if gpu else _HELD) * hidden)
    return max(layers, head if gpu else mask + head)


def _mask_cells(spec: ModelSpec, context: float) -> int:
    """Positions of one token in all masks: one mask for each size of cache."""
    return sum({a.window: cells(context, a.window) for layer in spec.layers for a in attends(layer)}.values())


def _scores(mixer: Mixer, context: float, flash: bool) -> float:
    """Elements of one token's attention scores, which flash attention never writes out."""
    if flash or not isinstance(mixer, Gqa | Mla | CompressedAttention):
        return 0.0
    return mixer.heads * cells(context, mixer.window if isinstance(mixer, Gqa) else None)


def _ffn(ffn: FeedForward, hidden: int) -> float:
    """Elements of one token that live in a feed-forward beyond what is held: gate, up and their product.

    Without a gate the activation is worked out in place.
    """
    matrices = 3 if ffn.gated else 1
    if isinstance(ffn, DenseFfn):
        return matrices * ffn.width
    width, outputs = ffn.n_experts_per_token * ffn.expert_width, ffn.n_experts_per_token * hidden
    # The experts' outputs take the place that gate and up have left, where they fit in there.
    routed = matrices * width + (outputs if outputs > (matrices - 1) * width else 0)
    return max(routed, matrices * max(ffn.shared_width, ffn.dense_width))


def _mixer(mixer: Mixer, hidden: int) -> float:
    """Elements of one token that live in a mixer beyond what is held."""
    match mixer:
        case Gqa() as a:
            return 2 * a.heads * a.head_dim + a.kv_heads * (a.head_dim + a.value_dim)
        case Mla() as a:
            latent = 2 * (a.kv_lora_rank + a.rope_dim)
            return a.heads * (latent + a.nope_dim) + (a.q_lora_rank or 0)
        case CompressedAttention() as a:
            return 3 * a.heads * a.head_dim + a.q_lora_rank
        case LinearAttention() as a:
            return 2 * (2 * a.key_heads * a.key_dim + a.value_heads * a.value_dim)
        case KimiDelta() as a:
            return 8 * a.heads * a.head_dim
        case Lightning() as a:
            return 4 * a.heads * a.head_dim
        case Mamba2() as a:
            return 5 * a.inner + 4.6 * a.groups * a.state
        case Mamba1() as a:
            return 5 * a.inner
        case ShortConv():
            return 4 * hidden


def _state(mixer: Mixer) -> float:
    """Elements of one sequence's state, which a scan writes behind its outputs."""
    match mixer:
        case LinearAttention() as a:
            return a.value_heads * a.key_dim * a.value_dim
        case KimiDelta() as a:
            return a.heads * a.head_dim**2
        case Mamba2() | Mamba1() as a:
            return a.inner * a.state
        case _:
            return 0.0
