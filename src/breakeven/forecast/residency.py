"""Which shares of a model lie on the devices, in host memory and on disk, and what a step pays for what lies away.

llama.cpp computes where weights lie: on the CPU for host memory, so tokens are handed over and back. A step of
`OFFLOAD_TOKENS` or more copies weights over the link instead and multiplies on the device; caches stay where they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import msgspec
import numpy as np
from numpy.typing import NDArray

from breakeven.forecast.constants import Constants
from breakeven.forecast.placing import PlacedModel
from breakeven.hardware.placement import HOST
from breakeven.model.architecture import ModelSpec
from breakeven.model.tensors import TensorGroup

Floats = NDArray[np.float64]

HOST_BYTES_PER_S = 40e9
"""Weights in host memory, where a profile does not say: two channels of DDR5 reach about this. A judgement."""
DISK_BYTES_PER_S = 2e9
"""Weights read through a memory map from an NVMe disk, where a profile does not say. A judgement."""
OFFLOAD_TOKENS = 32
"""Tokens of a step from which llama.cpp multiplies host weights on the device (GGML_OP_OFFLOAD_MIN_BATCH)."""
PCIE_BYTES_PER_S = 31.5e9
"""One direction of PCIe 4.0 x16, where nobody says how a device hangs on its host."""
HOST_FLOPS_PER_S = 0.5e12
"""Matrix products of a CPU of unknown cores. A judgement: 12 cores at `CORE_FLOPS_PER_S`."""
CORE_FLOPS_PER_S = 40e9
"""What llama.cpp reaches with one core with AVX2 on quantized weights, many tokens at a time. A judgement."""
SERVER_BYTES_PER_S = 150e9
"""Nominal host bandwidth above which memory has more channels than a PC's: fewer of them are filled by one reader."""
HANDED_BYTES = 4.0
"""Of one element of a token's hidden state that is handed over."""
_UNREAD = (TensorGroup.TABLE, TensorGroup.MTP, TensorGroup.CONSTANT, TensorGroup.EMBEDDING)
"""Groups of which a step reads rows, or nothing."""


@dataclass(frozen=True, slots=True)
class Residency:
    """Shares of a model's fixed bytes (W_f) and of its routed experts that lie in host memory and on disk.

    `kv_host`: share of keys, values and states whose layers the CPU works on. `handovers`: times that a step passes
    between the CPU and a device. `by_device`: shares of the layers on devices, where there are several.
    """

    fixed_host: float = 0.0
    fixed_disk: float = 0.0
    experts_host: float = 0.0
    experts_disk: float = 0.0
    away_bytes: float = 0.0
    """What left the device, the embedding table included."""
    disk_bytes: float = 0.0
    """Of those, what host memory does not hold either: read from disk for every token."""
    kv_host: float = 0.0
    handovers: int = 0
    by_device: tuple[float, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether the device holds everything that a step reads."""
        return not (self.fixed_host or self.fixed_disk or self.experts_host or self.experts_disk or self.kv_host)


ON_DEVICE = Residency()


def residency_of(placed: PlacedModel, spec: ModelSpec, host_bytes: float | None) -> Residency:
    """The shares of a placed model. What overflows `host_bytes` (None: enough) is read from disk."""
    fixed = {True: 0.0, False: 0.0}
    experts = {True: 0.0, False: 0.0}
    parted: set[int] = set()
    for part in placed.parts:
        away = part.place == HOST
        if part.group is TensorGroup.ROUTED_EXPERTS:
            experts[away] += part.n_bytes
        elif part.group is TensorGroup.EMBEDDING and spec.tied_embeddings:
            # A tied head is read where the head lies; the table beside it by row.
            fixed[away] += part.n_bytes if part.place == placed.head_place else 0
        elif part.group not in _UNREAD:
            fixed[away] += part.n_bytes
        here = placed.layer_places[part.layer] if part.layer is not None else HOST
        if away and part.layer is not None and here != HOST:
            parted.add(part.layer)
    on_host = [at == HOST for at in (*placed.layer_places, placed.head_place)]
    passed = sum(a != b for a, b in pairwise(on_host))
    host = placed.memory[HOST]
    over = 0.0 if host_bytes is None else max(host.total - host_bytes, 0.0)
    on_disk = min(over / host.weights, 1.0) if host.weights else 0.0
    fixed_away, experts_away = (_share(found[True], sum(found.values())) for found in (fixed, experts))
    kv = [nbytes for nbytes, at in zip(placed.kv_by_layer, placed.layer_places, strict=False) if at == HOST]
    layers = sum(placed.layers_by_device.values())
    several = len(placed.layers_by_device) > 1
    return Residency(
        fixed_host=fixed_away * (1.0 - on_disk),
        fixed_disk=fixed_away * on_disk,
        experts_host=experts_away * (1.0 - on_disk),
        experts_disk=experts_away * on_disk,
        away_bytes=host.weights,
        disk_bytes=on_disk * host.weights,
        kv_host=_share(sum(kv), sum(placed.kv_by_layer)),
        handovers=2 * len(parted) + passed,
        by_device=tuple(_share(n, layers) for n in placed.layers_by_device.values()) if several else (),
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def copied(tokens: Floats, constants: Constants) -> NDArray[np.bool_]:
    """Whether a step of so many tokens copies host weights over the link and multiplies on the device."""
    none = constants.stream_bytes_per_s is None
    return np.zeros(np.shape(tokens), dtype=bool) if none else np.asarray(tokens >= OFFLOAD_TOKENS)


def on_device(where: Residency, constants: Constants, tokens: Floats) -> tuple[Floats, Floats]:
    """Shares of a step's matrix products that the devices compute: outside routed experts, and in them.

    All of them where nothing is known of what the CPU reaches: then it costs no more than reading.
    """
    one = np.ones(np.shape(tokens))
    if where.whole or constants.host_flops_per_s is None:
        return one, one
    here = copied(tokens, constants)
    plain, routed = where.fixed_host + where.fixed_disk, where.experts_host + where.experts_disk
    return np.where(here, 1.0, 1.0 - plain), np.where(here, 1.0, 1.0 - routed)


@dataclass(frozen=True, slots=True)
class Away:
    """What a step pays for what does not lie on the devices, in seconds."""

    host_s: Floats
    disk_s: Floats
    link_s: Floats


def away_s(
    where: Residency,
    constants: Constants,
    tokens: Floats,
    *,
    fixed_bytes: float,
    expert_bytes: Floats,
    kv_bytes: Floats,
    weight_flops: tuple[float, float],
    attention_flops: Floats,
    hidden: int,
) -> Away:
    """The time of a step of `tokens` tokens beyond the devices' own.

    `weight_flops`: of one token, outside routed experts and in them. `kv_bytes` and `attention_flops`: of the whole
    step, all layers. A profile without `stream_bytes_per_s` copies no weights over a link, one without
    `host_flops_per_s` is as fast as the memory.
    """
    if where.whole:
        none = np.zeros(np.shape(tokens))
        return Away(none, none, none)
    rate = constants.host_bytes_per_s or HOST_BYTES_PER_S
    in_host = fixed_bytes * where.fixed_host + expert_bytes * where.experts_host
    on_disk = fixed_bytes * where.fixed_disk + expert_bytes * where.experts_disk
    stream = constants.stream_bytes_per_s
    over_link = copied(tokens, constants)
    multiplied, attended = 0.0 * tokens, 0.0 * tokens
    if constants.host_flops_per_s is not None:
        plain, routed = weight_flops
        away = plain * (where.fixed_host + where.fixed_disk) + routed * (where.experts_host + where.experts_disk)
        multiplied = tokens * away / constants.host_flops_per_s
        attended = attention_flops * where.kv_host / constants.host_flops_per_s
    host_s = np.where(over_link, 0.0, np.maximum(in_host / rate, multiplied))
    host_s = host_s + np.maximum(kv_bytes * where.kv_host / rate, attended)
    link_s = where.handovers * np.where(over_link, 0.0, constants.handover_s)
    if stream is not None:
        link_s = link_s + np.where(over_link, (in_host + on_disk) / stream, 0.0)
        link_s = link_s + where.handovers * tokens * hidden * HANDED_BYTES / stream
    return Away(host_s, on_disk / (constants.disk_bytes_per_s or DISK_BYTES_PER_S) + 0.0 * tokens, link_s)


def mixed(of: list[Constants], shares: tuple[float, ...]) -> Constants:
    """Constants of unlike devices that work one after the other, each on its share of the layers."""

    def rate(name: str) -> float:
        return 1.0 / math.fsum(share / getattr(c, name) for c, share in zip(of, shares, strict=True))

    def cost(name: str) -> float:
        return float(sum(share * getattr(c, name) for c, share in zip(of, shares, strict=True)))

    rates = ("weight_bytes_per_s", "kv_bytes_per_s", "decode_flops_per_s", "prefill_flops_per_s")
    costs = ("layer_s", "moe_layer_s", "mixer_layer_s", "expert_s", "prefill_token_s", "element_s", "kv_row_s")
    return msgspec.structs.replace(
        of[0], **{name: rate(name) for name in rates}, **{name: cost(name) for name in costs}
    )
