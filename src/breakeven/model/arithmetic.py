"""What a model's shapes imply: parameters, bytes and operations, before anything is run.

Pure functions over a `ModelSpec`. Notation as in the literature: B sequences decode in one step, E experts, k of them
for each token. Speed follows the bytes a step touches; memory follows all of them. Never one number for both. A
description whose weights do not add up to what was published is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache

from breakeven.errors import UserError
from breakeven.model.architecture import (
    CompressedAttention,
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
    ModelSpec,
    MoeFfn,
    ShortConv,
)
from breakeven.model.formats.named import FORMATS, format_named, tensor_bytes, tensor_types
from breakeven.model.tensors import Tensor, TensorGroup, tensors

KV_ELEMENT_BYTES = 2.0
"""llama.cpp keeps keys and values as F16 unless told otherwise (include/llama.h: type_k, type_v)."""
STATE_ELEMENT_BYTES = 4.0
"""llama.cpp keeps recurrent and convolution state as F32 (src/llama-model.cpp: recurrent_type_k, recurrent_type_v)."""


class Phase(StrEnum):
    """What a forward pass is for: reading a prompt, or writing one token of the answer."""

    PREFILL = "prefill"
    DECODE = "decode"


def total_params(spec: ModelSpec) -> int:
    """All weights, biases and norms, drafting blocks left out; a tied embedding counts once."""
    return sum(tensor.params for tensor in tensors(spec) if tensor.group is not TensorGroup.MTP)


def mtp_params(spec: ModelSpec) -> int:
    """Weights of the blocks that draft further tokens, their own tables included."""
    return sum(tensor.params for tensor in tensors(spec) if tensor.group is TensorGroup.MTP)


def active_params(spec: ModelSpec) -> int:
    """Weights one token passes through: everything but tables read by row, and k of the E experts of each layer.

    The output head counts, also when it is the embedding table (tied). Drafting blocks do not.
    """
    return sum(_active(spec, tensor) for tensor in tensors(spec))


def params_by_group(spec: ModelSpec) -> dict[TensorGroup, int]:
    """Total parameters of each group of tensors that the model has."""
    found: dict[TensorGroup, int] = {}
    for tensor in tensors(spec):
        found[tensor.group] = found.get(tensor.group, 0) + tensor.params
    return found


def bytes_by_group(spec: ModelSpec, format_name: str) -> dict[TensorGroup, int]:
    """Bytes of each group of tensors in a weight format; raises UserError for an unknown format.

    Drafting blocks are a group of checkpoints' formats; files converted for llama.cpp leave them out.
    """
    return {group: sum(by_layer.values()) for group, by_layer in _sizes(spec, format_named(format_name).name).items()}


def file_bytes(spec: ModelSpec, format_name: str) -> int:
    """Bytes of all weights in a format. A GGUF file adds its header and tokenizer, a few megabytes."""
    return sum(bytes_by_group(spec, format_name).values())


def occupancy(n_experts: int, n_per_token: int, batch: float) -> float:
    """Share of a layer's experts that a step of `batch` sequences touches when routing is uniform: 1 - (1 - k/E)^B."""
    return 1.0 - math.pow(1.0 - n_per_token / n_experts, batch)


def occupancy_of(frequencies: Sequence[float], batch: float) -> float:
    """The same for measured routing: the mean over experts of 1 - (1 - p_e)^B.

    `frequencies`: for each expert, the share p_e of tokens that use it; they sum to k. By the concavity of 1 - (1-p)^B
    it is never above uniform routing.
    """
    return math.fsum(1.0 - math.pow(1.0 - p, batch) for p in frequencies) / len(frequencies)


def batch_touching(n_experts: int, n_per_token: int, share: float) -> float:
    """The batch at which uniform routing touches this share of the experts: `occupancy` solved for B.

    Infinite for the whole (share 1) unless every token uses every expert.
    """
    if n_per_token >= n_experts:
        return 1.0
    return math.inf if share >= 1.0 else math.log1p(-share) / math.log1p(-n_per_token / n_experts)


def decode_bytes(
    spec: ModelSpec, format_name: str, batch: float, frequencies: Sequence[Sequence[float]] | None = None
) -> float:
    """Weight bytes that one decode step of `batch` sequences reads: W_f + W_r u(B).

    W_f is everything read whatever the batch: attention, dense and shared feed-forwards, routers, norms and the
    output head. The embedding lookup reads single rows and counts nothing, unless it is tied: then it is the head.
    `frequencies`: for each layer that routes, in order, the routing frequencies of its experts; uniform if None.
    Raises ValueError when they do not match the model, UserError for an unknown format.
    """
    sizes = _sizes(spec, format_named(format_name).name)
    routing = {i: layer.ffn for i, layer in enumerate(spec.layers) if isinstance(layer.ffn, MoeFfn)}
    shares = _occupancies(routing, batch, frequencies)
    touched = 0.0
    for group, by_layer in sizes.items():
        if group is TensorGroup.ROUTED_EXPERTS:
            touched += sum(nbytes * shares[layer] for layer, nbytes in by_layer.items() if layer is not None)
        elif _read_whole(spec, group):
            touched += sum(by_layer.values())
    return touched


def kv_bytes(spec: ModelSpec, context: int, element_bytes: float = KV_ELEMENT_BYTES) -> float:
    """Bytes of keys and values of one sequence of `context` tokens, sliding windows full at their width.

    `attends` says what each layer keeps; layers with a constant state keep nothing here: see `state_bytes`.
    """
    return element_bytes * sum(a.elements * a.kept(context) for layer in spec.layers for a in attends(layer))


def kv_bytes_per_token(spec: ModelSpec, context: int = 0, element_bytes: float = KV_ELEMENT_BYTES) -> float:
    """Bytes that one more token adds to a cache of `context` tokens; layers whose window is full add none."""
    return kv_bytes(spec, context + 1, element_bytes) - kv_bytes(spec, context, element_bytes)


def state_bytes(spec: ModelSpec, element_bytes: float = STATE_ELEMENT_BYTES) -> float:
    """Bytes of the state of one sequence that do not grow with it."""
    return element_bytes * sum(_state_elements(spec, mixer) for layer in spec.layers for mixer in layer.mixers)


def flops_per_token(spec: ModelSpec, context: int, phase: Phase) -> float:
    """Floating-point operations of one token: 2 for each active weight, and attention over what came before.

    Decode: the token at position `context` (itself included). Prefill: the mean over a prompt of `context` tokens,
    where the output head is computed for the last one alone. Attention: `attends`; states: `scan_flops`.
    """
    prefill = phase is Phase.PREFILL
    head = sum(t.params for t in tensors(spec) if t.group is _head_group(spec))
    weights = active_params(spec) - head + head / (max(context, 1) if prefill else 1)
    over = sum(
        a.flops * (a.mean_read(context) if prefill else a.read(context))
        for layer in spec.layers
        for a in attends(layer)
    )
    return 2.0 * weights + over + sum(scan_flops(layer) for layer in spec.layers)


@dataclass(frozen=True, slots=True)
class Attends:
    """One cache of a layer: what it keeps of a token, and what a later token does with it.

    `elements`: kept of each entry; 0 where the cache is another layer's. `reads`: elements of an entry that are read.
    `flops`: operations on an entry that is read. `window`: tokens kept at most (None: all). `every`: tokens to an
    entry. `top`: entries read at most (None: all). `kv_heads`: heads that can be parted among devices.
    """

    elements: int
    reads: int
    flops: float
    window: int | None = None
    every: int = 1
    top: int | None = None
    kv_heads: int = 1

    def kept(self, context: float) -> float:
        """Entries kept of a sequence of `context` tokens."""
        return (context if self.window is None else min(context, self.window)) / self.every

    def read(self, context: float) -> float:
        """Entries that the last of `context` tokens attends to."""
        kept = self.kept(context)
        return kept if self.top is None else min(kept, self.top)

    def mean_read(self, context: int) -> float:
        """`read` averaged over the tokens of a prompt."""
        if context < 1:
            return 0.0
        # Entries read grow by 1 / every a token until the window or the choice is full.
        limit = min(
            context,
            math.inf if self.window is None else self.window,
            math.inf if self.top is None else self.top * self.every,
        )
        full = int(limit)
        return (full * (full + 1) / 2 + (context - full) * full) / context / self.every


def attends(layer: Layer) -> tuple[Attends, ...]:
    """The caches a layer reads; none for layers with a constant state.

    GQA keeps kv_heads * (key + value width) elements a token and costs 2 heads (key + value width) operations a
    position (Kaplan et al., arXiv 2001.08361); MLA keeps kv_lora_rank + rope_dim and works on the latent,
    2 heads (2 kv_lora_rank + rope_dim) (DeepSeek-V2, arXiv 2405.04434). An indexer keeps a key beside them and limits
    what is read (DeepSeek-V3.2); DeepSeek-V4 keeps a window and, of older tokens, one entry for each `ratio`.
    """
    return tuple(a for mixer in layer.mixers for a in _attends(mixer))


def _attends(mixer: Mixer) -> tuple[Attends, ...]:
    match mixer:
        case Gqa() as a:
            each = a.kv_heads * (a.head_dim + a.value_dim)
            flops = 2.0 * a.heads * (a.head_dim + a.value_dim)
            top = a.indexer.top_k if a.indexer else None
            own = Attends(0 if a.shares_kv else each, each, flops, a.window, top=top, kv_heads=a.kv_heads)
            return (own, *_indexed(a.indexer))
        case Mla() as a:
            each = a.kv_lora_rank + a.rope_dim
            top = a.indexer.top_k if a.indexer else None
            flops = 2.0 * a.heads * (2 * a.kv_lora_rank + a.rope_dim)
            if not a.caches_latent:
                each = a.heads * (a.nope_dim + a.rope_dim + a.value_dim)
                flops = 2.0 * each
            heads = 1 if a.caches_latent else a.heads
            return (Attends(each, each, flops, a.window, top=top, kv_heads=heads), *_indexed(a.indexer))
        case CompressedAttention() as a:
            flops = 4.0 * a.heads * a.head_dim
            near = Attends(a.head_dim, a.head_dim, flops, a.window)
            if not a.ratio:
                return (near,)
            top = a.indexer.top_k if a.indexer else None
            far = Attends(a.head_dim, a.head_dim, flops, every=a.ratio, top=top)
            return (near, far, *_indexed(a.indexer))
        case _:
            return ()


def _indexed(i: Indexer | None) -> tuple[Attends, ...]:
    if i is None or not i.owns_weights:
        return ()
    elements = i.kv_heads * i.head_dim
    return (Attends(elements, elements, 2.0 * i.heads * i.head_dim, every=i.every),)


def scan_flops(layer: Layer) -> float:
    """Operations of one token on the constant states of a layer; convolution taps are weights, counted with them.

    Gated delta-nets decay, read, write and query a state matrix a head: 1 + 2 + 2 + 2 (arXiv 2412.06464). State-space
    models and fixed decay: decay, write, query, 1 + 2 + 2 (arXiv 2405.21060).
    """
    return sum(_scan(mixer) for mixer in layer.mixers)


def _scan(mixer: Mixer) -> float:
    match mixer:
        case LinearAttention() as a:
            return 7.0 * a.value_heads * a.key_dim * a.value_dim
        case KimiDelta() as a:
            return 7.0 * a.heads * a.head_dim**2
        case Lightning() as a:
            return 5.0 * a.heads * a.head_dim**2
        case Mamba2() as a:
            return 5.0 * a.inner * a.state
        case Mamba1() as a:
            return 5.0 * a.inner * a.state
        case _:
            return 0.0


@lru_cache(maxsize=32)
def _tensors(spec: ModelSpec) -> tuple[Tensor, ...]:
    return tuple(tensors(spec))


@lru_cache(maxsize=64)
def loaded(spec: ModelSpec) -> ModelSpec:
    """The model as an engine loads it when nobody drafts: without the drafting blocks that its description announces.

    A file's own stay, they are among its bytes.
    """
    return spec if spec.mtp is None or spec.stored is not None else replace(spec, mtp=None)


@lru_cache(maxsize=64)
def _sizes(spec: ModelSpec, format_name: str) -> Mapping[TensorGroup, Mapping[int | None, int]]:
    """Bytes by group and layer."""
    # Checkpoints hold the drafting blocks; who converts one for llama.cpp leaves them out.
    if format_name in FORMATS and FORMATS[format_name].quantized:
        spec = loaded(spec)
    kinds = tensor_types(spec, format_name)
    found: dict[TensorGroup, dict[int | None, int]] = {}
    for tensor in tensors(spec):
        by_layer = found.setdefault(tensor.group, {})
        by_layer[tensor.layer] = by_layer.get(tensor.layer, 0) + tensor_bytes(tensor, kinds[tensor.name])
    return found


def _head_group(spec: ModelSpec) -> TensorGroup:
    return TensorGroup.EMBEDDING if spec.tied_embeddings else TensorGroup.OUTPUT_HEAD


def _read_whole(spec: ModelSpec, group: TensorGroup) -> bool:
    """Whether a step reads all of a group; routed experts apart."""
    if group is TensorGroup.EMBEDDING:
        return spec.tied_embeddings
    return group not in (TensorGroup.TABLE, TensorGroup.MTP, TensorGroup.CONSTANT)


def _active(spec: ModelSpec, tensor: Tensor) -> int:
    if not _read_whole(spec, tensor.group):
        return 0
    if tensor.group is TensorGroup.ROUTED_EXPERTS and tensor.layer is not None:
        ffn = spec.layers[tensor.layer].ffn
        if isinstance(ffn, MoeFfn):
            return tensor.params // ffn.n_experts * ffn.n_experts_per_token
    return tensor.params


def _occupancies(
    routing: Mapping[int, MoeFfn], batch: float, frequencies: Sequence[Sequence[float]] | None
) -> dict[int, float]:
    if frequencies is None:
        return {i: occupancy(ffn.n_experts, ffn.n_experts_per_token, batch) for i, ffn in routing.items()}
    if len(frequencies) != len(routing):
        raise ValueError(f"routing frequencies of {len(frequencies)} layers, but {len(routing)} layers route")
    for (i, ffn), row in zip(routing.items(), frequencies, strict=True):
        if len(row) != ffn.n_experts:
            raise ValueError(f"layer {i} has {ffn.n_experts} experts, but frequencies for {len(row)}")
    return {i: occupancy_of(row, batch) for i, row in zip(routing, frequencies, strict=True)}


def _state_elements(spec: ModelSpec, mixer: Mixer) -> int:
    match mixer:
        case LinearAttention() as a:
            channels = 2 * a.key_heads * a.key_dim + a.value_heads * a.value_dim
            return a.value_heads * a.key_dim * a.value_dim + channels * (a.conv_kernel - 1)
        case KimiDelta() as a:
            return a.heads * a.head_dim * (a.head_dim + 3 * (a.conv_kernel - 1))
        case Lightning() as a:
            return a.heads * a.head_dim**2
        case Mamba2() as a:
            return a.inner * a.state + (a.inner + 2 * a.groups * a.state) * (a.conv_kernel - 1)
        case Mamba1() as a:
            return a.inner * (a.state + a.conv_kernel - 1)
        case ShortConv() as a:
            return spec.hidden * (a.kernel - 1)
        case _:
            return 0


TOLERANCE = 0.03
"""Published totals are rounded ("7B", "8.3B"), and some leave out norms and biases."""


def check_count(spec: ModelSpec, published_total_params: int | None) -> None:
    """Raise UserError with both numbers when the spec's weights miss the published total by over 3 %; None: unknown."""
    if published_total_params is None:
        return
    counted = total_params(spec)
    off = counted / published_total_params - 1
    if abs(off) > TOLERANCE:
        raise UserError(
            f"{spec.source}: {spec.name} counts {counted:,} parameters, {published_total_params:,} were published "
            f"({off:+.1%}, {TOLERANCE:.0%} allowed): the description is wrong or incomplete; correct it, "
            "or describe the model by hand as docs/models-yaml.md shows"
        )
