"""What a model asks of a machine in one step, reduced to the few numbers the step model multiplies.

Nothing here depends on batch or context; `step` combines these with both.

Where the weights of a model larger than its device lie: device, host memory, disk.

What is never read whole leaves first (the embedding table), then routed experts, whose bytes are read least often,
then everything else: the order in which llama.cpp's own fitting moves tensors. A part that lies elsewhere is read at
that place's rate, one after the other with the device's own reading.

First approximation: what has a place keeps it. An operating system that reads a file larger than memory in a circle
can throw every page away before its next use; then the whole file is read from disk in every step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from breakeven.model.architecture import Gqa, Mla, ModelSpec, MoeFfn
from breakeven.model.arithmetic import (
    KV_ELEMENT_BYTES,
    active_params,
    attention_flops,
    file_bytes,
    kv_elements,
    state_bytes,
)
from breakeven.model.formats.named import tensor_bytes, tensor_types
from breakeven.model.tensors import TensorGroup, tensors


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
    """Layers that attend alike: `kv_bytes` a token and `flops` a position attended to, of all of them together.

    `kv_heads`: heads that can be parted among devices; 1 for a latent shared by all heads (MLA), which every device
    keeps whole.
    """

    window: int | None
    kv_bytes: float
    flops: float
    kv_heads: int = 1


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

    def kv_bytes(self, context: float) -> float:
        """Keys and values of one sequence of `context` tokens."""
        return sum(g.kv_bytes * (context if g.window is None else min(context, g.window)) for g in self.attention)


@lru_cache(maxsize=256)
def terms_of(spec: ModelSpec, format_name: str, kv_element_bytes: float = KV_ELEMENT_BYTES) -> Terms:
    """The terms of `spec` in a weight format. Raises UserError for an unknown format."""
    kinds = tensor_types(spec, format_name)
    head = TensorGroup.EMBEDDING if spec.tied_embeddings else TensorGroup.OUTPUT_HEAD
    fixed: dict[str, float] = {}
    routed: dict[tuple[int, int, int], dict[str, float]] = {}
    head_bytes, head_type = 0.0, ""
    work: dict[str, float] = {}
    expert_work: dict[str, float] = {}
    for tensor in tensors(spec):
        kind, nbytes = kinds[tensor.name], float(tensor_bytes(tensor, kinds[tensor.name]))
        ffn = spec.layers[tensor.layer].ffn if tensor.layer is not None else None
        if tensor.group is TensorGroup.ROUTED_EXPERTS and isinstance(ffn, MoeFfn):
            found = routed.setdefault((ffn.n_experts, ffn.n_experts_per_token, ffn.expert_width), {})
            found[kind.value] = found.get(kind.value, 0.0) + nbytes
            used = tensor.params * ffn.n_experts_per_token / ffn.n_experts
            expert_work[kind.value] = expert_work.get(kind.value, 0.0) + used
        elif tensor.group is not TensorGroup.EMBEDDING or spec.tied_embeddings:
            fixed[kind.value] = fixed.get(kind.value, 0.0) + nbytes
            work[kind.value] = work.get(kind.value, 0.0) + tensor.params
        if tensor.group is head:
            head_bytes, head_type = head_bytes + nbytes, kind.value
    widths = [
        (layer.ffn.n_experts, layer.ffn.n_experts_per_token, layer.ffn.expert_width)
        for layer in spec.layers
        if isinstance(layer.ffn, MoeFfn)
    ]
    experts = tuple(
        ExpertGroup(shape[0], shape[1], widths.count(shape), tuple(found.items())) for shape, found in routed.items()
    )
    attention: dict[tuple[int | None, int], list[float]] = {}
    for layer in spec.layers:
        if not isinstance(layer.attention, Gqa | Mla):
            continue
        gqa = layer.attention if isinstance(layer.attention, Gqa) else None
        key = (gqa.window, gqa.kv_heads) if gqa else (None, 1)
        mine = attention.setdefault(key, [0.0, 0.0])
        mine[0] += kv_element_bytes * kv_elements(layer)
        mine[1] += attention_flops(layer, 1.0)
    constant = sum(attention_flops(layer, 1.0) for layer in spec.layers if not isinstance(layer.attention, Gqa | Mla))
    head_params = spec.hidden * spec.vocab
    worked = math.fsum((*work.values(), *expert_work.values()))
    return Terms(
        name=spec.name,
        moe=spec.is_moe,
        format=format_name,
        hidden=spec.hidden,
        layers=len(spec.layers),
        moe_layers=len(widths),
        fixed=tuple(fixed.items()),
        head_bytes=head_bytes,
        total_bytes=float(file_bytes(spec, format_name)),
        state_bytes=2.0 * state_bytes(spec),
        token_flops=2.0 * active_params(spec) + constant,
        head_flops=2.0 * head_params,
        experts=experts,
        attention=tuple(AttentionGroup(window, mine[0], mine[1], heads) for (window, heads), mine in attention.items()),
        latent_kv=any(isinstance(layer.attention, Mla) for layer in spec.layers),
        work=tuple((kind, n / worked) for kind, n in work.items()),
        expert_work=tuple((kind, n / worked) for kind, n in expert_work.items()),
        head_type=head_type,
    )


HOST_BYTES_PER_S = 40e9
"""Weights in host memory, where a profile does not say: two channels of DDR5 reach about this. A judgement."""
DISK_BYTES_PER_S = 2e9
"""Weights read through a memory map from an NVMe disk, where a profile does not say. A judgement."""


@dataclass(frozen=True, slots=True)
class Residency:
    """Shares of a model's fixed bytes (W_f) and of its routed experts that lie in host memory and on disk."""

    fixed_host: float = 0.0
    fixed_disk: float = 0.0
    experts_host: float = 0.0
    experts_disk: float = 0.0
    away_bytes: float = 0.0
    """What left the device, the embedding table included."""

    @property
    def whole(self) -> bool:
        """Whether the device holds everything."""
        return not (self.fixed_host or self.fixed_disk or self.experts_host or self.experts_disk)


ON_DEVICE = Residency()


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
    )
