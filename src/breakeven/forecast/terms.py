"""One forward pass: what it reads and computes, where the weights lie, and how long it takes, vectorised.

`Terms` are what a model asks of a machine in one step, whatever batch and context; `step_parts` combines them.

Weights of a model larger than its device lie on the device, in host memory and on disk (`Residency`); a part that lies
elsewhere is read at that place's rate, one after the other with the device's own reading (`residency.away_s`). Where
nobody placed it (`residency`), what is never read whole leaves first (the embedding table), then routed experts, whose
bytes are read least often, then everything else.

First approximation: what has a place keeps it. An operating system that reads a file larger than memory in a circle
can throw every page away before its next use; then the whole file is read from disk in every step.

A step carries D decoding sequences, whose contexts sum to C_D tokens, and P prompt tokens that attend to C_P tokens
each on average. n = D + P tokens pass through the weights. With occupancy u (share of routed-expert bytes touched):

    bytes   = W_f + W_r u(n)                         weights
    t_mem   = sum over number types (bytes * type_cost) / weight_bytes_per_s + KV(D, C_D) / kv_bytes_per_s
    t_flops = F_V / decode_flops_per_s + (F_T + F_P) / prefill_flops_per_s
              F_V: the first vector_rows sequences, F_T: those beyond, F_P: the prompt;
              F by number type and place, each at its cost (type_compute, tile_cost, expert_compute)
    t = max(t_mem, t_flops) + (1 - overlap) min(t_mem, t_flops)
        + step_s + layer_s L + moe_layer_s L_moe + mixer_layer_s L_mixer + expert_s (experts touched)
        + sequence_s D + kv_row_s rows + prefill_token_s P + element_s L hidden n + logit_bytes vocab D / kv_bytes_per_s
        + max((weight bytes in host memory) / host_bytes_per_s, F_host / host_flops_per_s) + KV_host / host_bytes_per_s
        + (weight bytes on disk) / disk_bytes_per_s + handover_s (handovers)
    n > graph_tokens: t is no less than launch_layer_s L + launch_moe_layer_s L_moe
    n >= 32: host weights cross the link instead, (their bytes) / stream_bytes_per_s, and the device multiplies

The form, with u(B) = 1 - (1 - k/E)^B, is the roofline model of decode (Pope et al., arXiv 2211.05102) with uniform
routing's expected occupancy; the costs in seconds are what bytes and operations do not explain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from breakeven.forecast.constants import Constants
from breakeven.forecast.residency import ON_DEVICE, Residency, away_s, on_device
from breakeven.model.architecture import Mla, ModelSpec, MoeFfn
from breakeven.model.arithmetic import (
    KV_ELEMENT_BYTES,
    active_params,
    attends,
    file_bytes,
    loaded,
    scan_flops,
    state_bytes,
)
from breakeven.model.formats.named import tensor_bytes, tensor_types
from breakeven.model.tensors import TensorGroup, tensors

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ExpertGroup:
    """Layers whose experts are alike, all of them together.

    `frequencies`: probabilities that a token uses an expert, each standing for equally many of the layers' experts
    (`breakeven.forecast.routing` makes them); their mean is per_token / n_experts. None: uniform.
    """

    n_experts: int
    per_token: int
    layers: int
    types: tuple[tuple[str, float], ...]
    """Bytes by number type."""
    frequencies: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class AttentionGroup:
    """Caches that are alike: `kv_bytes` kept of an entry and `flops` on one that is read, of all of them together.

    `window`, `every` and `top` as in `breakeven.model.arithmetic.Attends`; `read_bytes`: read of an entry, more than is
    kept where layers share a cache. `kv_heads`: heads that can be parted among devices; 1 for a latent shared by all
    heads (MLA), which every device keeps whole. `rows`: heads of all layers whose keys and values are read of an entry.
    """

    window: int | None
    kv_bytes: float
    flops: float
    kv_heads: int = 1
    every: int = 1
    top: int | None = None
    read_bytes: float = 0.0
    rows: float = 0.0

    def kept(self, context: float) -> float:
        """Entries kept of a sequence of `context` tokens."""
        return (context if self.window is None else min(context, self.window)) / self.every

    def read(self, context: Floats) -> Floats:
        """Entries of sequences of `context` tokens that a token reads."""
        limit = min(self.window or math.inf, math.inf if self.top is None else self.top * self.every)
        return (context if limit == math.inf else np.minimum(context, limit)) / self.every


@dataclass(frozen=True, slots=True)
class Terms:
    """A model in a weight format, for the step model. Bytes and operations of the whole model on one device."""

    name: str
    moe: bool
    format: str
    hidden: int
    layers: int
    moe_layers: int
    fixed: tuple[tuple[str, float], ...]
    """W_f, bytes by number type: read in every step, whatever the batch."""
    head_bytes: float
    """The part of `fixed` that is the output head."""
    total_bytes: float
    """All weights, the embedding table included: what must fit."""
    state_bytes: float
    """A sequence's constant state (linear attention, convolutions), read and written in a step."""
    token_flops: float
    """Matrix products of one token, its attention excluded, the output head included."""
    head_flops: float
    experts: tuple[ExpertGroup, ...]
    attention: tuple[AttentionGroup, ...]
    latent_kv: bool
    """Keys and values are one latent shared by all heads (MLA), which tensor parallelism copies to every device."""
    work: tuple[tuple[str, float], ...] = ()
    """Shares of `token_flops` by number type of the weights, routed experts apart."""
    expert_work: tuple[tuple[str, float], ...] = ()
    """The same of routed experts. Both together are 1."""
    head_type: str = ""
    mixer_layers: int = 0
    """Layers that mix tokens by more than plain attention: a state (delta nets, state spaces) or a latent (MLA)."""
    vocab: int = 0
    """Logits of a sequence. Every device of a tensor-parallel engine gathers and samples all of them."""

    def kv_bytes(self, context: float) -> float:
        """Keys and values of one sequence of `context` tokens."""
        return sum(g.kv_bytes * g.kept(context) for g in self.attention)


@lru_cache(maxsize=256)
def terms_of(spec: ModelSpec, format_name: str, kv_element_bytes: float = KV_ELEMENT_BYTES) -> Terms:
    """The terms of `spec` in a weight format. Raises UserError for an unknown format."""
    spec = loaded(spec)
    kinds = tensor_types(spec, format_name)
    head = TensorGroup.EMBEDDING if spec.tied_embeddings else TensorGroup.OUTPUT_HEAD
    unread = {TensorGroup.TABLE, TensorGroup.MTP, TensorGroup.CONSTANT, TensorGroup.EMBEDDING} - {head}
    fixed: dict[str, float] = {}
    routed: dict[tuple[int, int, int], dict[str, float]] = {}
    head_bytes, head_type = 0.0, ""
    work: dict[str, float] = {}
    expert_work: dict[str, float] = {}
    for tensor in tensors(spec):
        kind, nbytes = kinds[tensor.name], float(tensor_bytes(tensor, kinds[tensor.name]))
        # Drafting blocks come after the model's own.
        ffn = spec.layers[tensor.layer].ffn if tensor.layer is not None and tensor.layer < len(spec.layers) else None
        if tensor.group is TensorGroup.ROUTED_EXPERTS and isinstance(ffn, MoeFfn):
            found = routed.setdefault((ffn.n_experts, ffn.n_experts_per_token, ffn.expert_width), {})
            found[kind.value] = found.get(kind.value, 0.0) + nbytes
            used = tensor.params * ffn.n_experts_per_token / ffn.n_experts
            expert_work[kind.value] = expert_work.get(kind.value, 0.0) + used
        elif tensor.group not in unread:
            fixed[kind.value] = fixed.get(kind.value, 0.0) + nbytes
            work[kind.value] = work.get(kind.value, 0.0) + tensor.params
        if tensor.group is head:
            head_bytes, head_type = head_bytes + nbytes, kind.value
    routing = [layer.ffn for layer in spec.layers if isinstance(layer.ffn, MoeFfn)]
    widths = [(ffn.n_experts, ffn.n_experts_per_token, ffn.expert_width) for ffn in routing]
    experts = tuple(
        ExpertGroup(shape[0], shape[1], widths.count(shape), tuple(found.items())) for shape, found in routed.items()
    )
    attention: dict[tuple[int | None, int, int, int | None], Floats] = {}
    for layer in spec.layers:
        for a in attends(layer):
            mine = attention.setdefault((a.window, a.kv_heads, a.every, a.top), np.zeros(4))
            mine += (kv_element_bytes * a.elements, a.flops, kv_element_bytes * a.reads, a.kv_heads)
    scans = [scan_flops(layer) for layer in spec.layers]
    head_params = spec.hidden * spec.vocab
    worked = math.fsum((*work.values(), *expert_work.values()))
    return Terms(
        name=spec.name,
        moe=spec.is_moe,
        format=format_name,
        hidden=spec.hidden,
        # What sums and norms cost is of blocks: some hybrids count a mixer and a feed-forward as a layer each.
        layers=math.ceil(sum(bool(layer.mixers) + (layer.ffn is not None) for layer in spec.layers) / 2),
        moe_layers=len(widths),
        fixed=tuple(fixed.items()),
        head_bytes=head_bytes,
        total_bytes=float(file_bytes(spec, format_name)),
        state_bytes=2.0 * state_bytes(spec),
        token_flops=2.0 * active_params(spec) + sum(scans),
        head_flops=2.0 * head_params,
        experts=experts,
        attention=tuple(
            AttentionGroup(window, float(kept), float(flops), heads, every, top, float(read), float(rows))
            for (window, heads, every, top), (kept, flops, read, rows) in attention.items()
        ),
        latent_kv=any(isinstance(mixer, Mla) for layer in spec.layers for mixer in layer.mixers),
        work=tuple((kind, n / worked) for kind, n in work.items()),
        expert_work=tuple((kind, n / worked) for kind, n in expert_work.items()),
        head_type=head_type,
        mixer_layers=sum(
            flops > 0 or any(isinstance(mixer, Mla) for mixer in layer.mixers)
            for flops, layer in zip(scans, spec.layers, strict=True)
        ),
        vocab=spec.vocab,
    )


def residency(terms: Terms, room_bytes: float, host_bytes: float | None) -> Residency:
    """Where the weights lie when the device has `room_bytes` for them and the host `host_bytes` (None: enough)."""
    over = terms.total_bytes - room_bytes
    if over <= 0:
        return ON_DEVICE
    fixed = sum(nbytes for _, nbytes in terms.fixed)
    experts = sum(nbytes for group in terms.experts for _, nbytes in group.types)
    table = max(terms.total_bytes - fixed - experts, 0.0)
    experts_away = min(max(over - table, 0.0), experts)
    fixed_away = min(max(over - table - experts, 0.0), fixed)
    in_host = 1.0 if host_bytes is None else min(max(host_bytes, 0.0) / over, 1.0)
    experts_share = experts_away / experts if experts else 0.0
    return Residency(
        fixed_host=fixed_away / fixed * in_host,
        fixed_disk=fixed_away / fixed * (1.0 - in_host),
        experts_host=experts_share * in_host,
        experts_disk=experts_share * (1.0 - in_host),
        away_bytes=min(over, terms.total_bytes),
        disk_bytes=min(over, terms.total_bytes) * (1.0 - in_host),
    )


@dataclass(frozen=True, slots=True)
class Parts:
    """A step's time by what takes it, in seconds; arrays of one shape. `total_s` is not their sum: see the equation."""

    weights_s: Floats
    kv_s: Floats
    compute_s: Floats
    overhead_s: Floats
    total_s: Floats
    weight_bytes: Floats
    kv_bytes: Floats
    host_s: Floats
    disk_s: Floats
    link_s: Floats
    """Between host memory and devices; `StepModel` adds what passes between devices."""


def occupancies(terms: Terms, tokens: ArrayLike, alpha: float = 1.0) -> list[Floats]:
    """Share of experts touched by `tokens` tokens in a step, for each of the model's expert groups."""
    n = np.asarray(tokens, dtype=np.float64)
    if alpha != 1.0:
        n = n**alpha
    found: list[Floats] = []
    for group in terms.experts:
        p = group.frequencies or (group.per_token / group.n_experts,)
        # A sum over few levels keeps arrays as long as `tokens`; expm1 and log1p are faster than a power, and exact.
        shares = [-np.expm1(n * math.log1p(-x)) if x < 1.0 else np.minimum(n, 1.0) for x in p]
        found.append(sum(shares[1:], start=shares[0]) / len(shares))
    return found


def step_parts(
    terms: Terms,
    constants: Constants,
    decoding: ArrayLike,
    decode_context: ArrayLike,
    prefill_tokens: ArrayLike = 0.0,
    prefill_context: ArrayLike = 0.0,
    where: Residency = ON_DEVICE,
) -> Parts:
    """Times of steps. All arguments broadcast.

    `decoding`: sequences that get a token (D). `decode_context`: mean context of one of them, in tokens.
    `prefill_tokens`: prompt tokens in the step (P). `prefill_context`: tokens each attends to, on average.
    `where`: where the weights lie.
    """
    d, c, p, pc = (np.asarray(x, dtype=np.float64) for x in (decoding, decode_context, prefill_tokens, prefill_context))
    zeros = np.zeros(np.broadcast(d, c, p, pc).shape)
    n = d + p
    fixed_bytes = sum(nbytes for _, nbytes in terms.fixed)
    weights_s = zeros + _read_s(terms.fixed, constants) * (1.0 - where.fixed_host - where.fixed_disk)
    expert_bytes, touched = zeros, zeros
    filled = zeros + 1.0
    for group, share in zip(terms.experts, occupancies(terms, n, constants.routing_alpha), strict=True):
        expert_bytes = expert_bytes + sum(nbytes for _, nbytes in group.types) * share
        here = 1.0 - where.experts_host - where.experts_disk
        weights_s = weights_s + experts_s(group, constants) * here * share
        touched = touched + group.layers * group.n_experts * share
        if constants.expert_tile > 1.0:  # columns multiplied over columns needed, of the group that wastes most
            columns = group.n_experts * share * np.minimum(n, constants.expert_tile)
            filled = np.maximum(filled, columns / np.maximum(n * group.per_token, 1.0))
    kv_token, rows, attention_d, attention_p = zeros, zeros, zeros, zeros
    for cache in terms.attention:
        span = cache.read(c)
        kv_token = kv_token + cache.read_bytes * span
        rows = rows + cache.rows * span
        attention_d = attention_d + cache.flops * span
        attention_p = attention_p + cache.flops * cache.read(pc)
    kv = d * (terms.state_bytes + kv_token)
    kv_s = kv * (1.0 - where.kv_host) / constants.kv_bytes_per_s
    cache_rows_s = constants.kv_row_s * rows * (1.0 - where.kv_host) * d  # whatever else goes on meanwhile
    single, tiled, routed, head = _work(terms, constants)
    plain_here, routed_here = on_device(where, constants, n + zeros)
    plain = terms.token_flops * tiled * plain_here
    in_experts = terms.token_flops * routed * routed_here
    vector = math.inf if constants.vector_rows is None else float(constants.vector_rows)
    in_tiles, by_row = np.maximum(d - vector, 0.0), np.minimum(d, vector)
    flops_d = plain * (d - in_tiles) + d * attention_d
    if constants.tile > 1:
        flops_d = flops_d + terms.token_flops * (single - tiled) * plain_here * np.mod(d, constants.tile)
    # A prompt needs the output head for its last token alone, which is nothing beside the prompt.
    flops_p = plain * (in_tiles + p) + p * (attention_p - terms.head_flops * head * plain_here)
    rate_d, rate_p = constants.decode_flops_per_s, constants.prefill_flops_per_s
    rows_s = in_experts * (by_row / rate_d + np.minimum(p, vector - by_row) / rate_p)
    # Experts go in tiles all or none; another token makes no step shorter.
    routed_s = np.where(n <= vector, rows_s, np.maximum(rows_s, in_experts * n * filled / rate_p))
    compute_s = flops_d / rate_d + flops_p / rate_p + routed_s
    overhead_s = (
        constants.step_s
        + constants.layer_s * terms.layers
        + constants.moe_layer_s * terms.moe_layers
        + constants.mixer_layer_s * terms.mixer_layers
        + constants.expert_s * touched
        + (constants.sequence_s + constants.logit_bytes * terms.vocab / constants.kv_bytes_per_s) * d
        + constants.prefill_token_s * p
        + constants.element_s * terms.layers * terms.hidden * n
    )
    outside = sum(share for _, share in terms.work)
    away = away_s(
        where,
        constants,
        n + zeros,
        fixed_bytes=fixed_bytes,
        expert_bytes=expert_bytes,
        kv_bytes=kv,
        weight_flops=(terms.token_flops * outside, terms.token_flops * (1.0 - outside)),
        attention_flops=d * attention_d + p * attention_p,
        hidden=terms.hidden,
    )
    memory_s = weights_s + kv_s
    total = np.maximum(memory_s, compute_s) + overhead_s + cache_rows_s + away.host_s + away.disk_s + away.link_s
    if constants.overlap != 1.0:
        total = total + (1.0 - constants.overlap) * np.minimum(memory_s, compute_s)
    if launch_s := constants.launch_layer_s * terms.layers + constants.launch_moe_layer_s * terms.moe_layers:
        total = np.maximum(total, np.where(n > constants.graph_tokens, launch_s, 0.0))
    return Parts(
        weights_s=weights_s,
        kv_s=kv_s + cache_rows_s,
        compute_s=compute_s,
        overhead_s=overhead_s,
        total_s=total,
        weight_bytes=fixed_bytes + expert_bytes,
        kv_bytes=kv,
        host_s=away.host_s,
        disk_s=away.disk_s,
        link_s=away.link_s,
    )


def step_s(
    terms: Terms,
    constants: Constants,
    decoding: ArrayLike,
    decode_context: ArrayLike,
    prefill_tokens: ArrayLike = 0.0,
    prefill_context: ArrayLike = 0.0,
) -> Floats:
    """`step_parts`' total alone, in seconds."""
    return step_parts(terms, constants, decoding, decode_context, prefill_tokens, prefill_context).total_s


def experts_s(group: ExpertGroup, constants: Constants) -> float:
    """Seconds of reading all experts of a group once."""
    return _read_s(group.types, constants)


def _read_s(types: tuple[tuple[str, float], ...], constants: Constants) -> float:
    """Seconds of reading these bytes once."""
    return sum(nbytes * constants.byte_cost(kind) for kind, nbytes in types) / constants.weight_bytes_per_s


def _work(terms: Terms, constants: Constants) -> tuple[float, float, float, float]:
    """What one token's matrix products cost in operations of the base type, over `token_flops`.

    Outside routed experts one by one and in full tiles, in routed experts; last the output head's, over its own.
    """
    cost, in_tile = constants.type_compute, constants.tile_cost
    if not cost and not in_tile and constants.expert_compute == 1.0 and constants.expert_tile == 1.0:
        return 1.0, 1.0, 0.0, 1.0
    single = sum(share * cost.get(kind, 1.0) for kind, share in terms.work)
    tiled = sum(share * cost.get(kind, 1.0) * in_tile.get(kind, 1.0) for kind, share in terms.work)
    routed = constants.expert_compute * sum(share * cost.get(kind, 1.0) for kind, share in terms.expert_work)
    return single, tiled, routed, cost.get(terms.head_type, 1.0) * in_tile.get(terms.head_type, 1.0)
