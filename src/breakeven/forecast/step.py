"""How long one forward pass takes: the step model, vectorised.

A step carries D decoding sequences, whose contexts sum to C_D tokens, and P prompt tokens that attend to C_P tokens
each on average. n = D + P tokens pass through the weights. With occupancy u (share of routed-expert bytes touched):

    bytes   = W_f + W_r u(n)                         weights
    t_mem   = sum over number types (bytes * type_cost) / weight_bytes_per_s + KV(D, C_D) / kv_bytes_per_s
    t_flops = F_D / decode_flops_per_s + F_P / prefill_flops_per_s
              F by number type and place, each at its cost (type_compute, tile_cost, expert_compute)
    t = max(t_mem, t_flops) + (1 - overlap) min(t_mem, t_flops)
        + step_s + layer_s L + moe_layer_s L_moe + expert_s (experts touched) + sequence_s D + prefill_token_s P
        + element_s L hidden n
        + (weight bytes in host memory) / host_bytes_per_s + (weight bytes on disk) / disk_bytes_per_s

The form, with u(B) = 1 - (1 - k/E)^B, is the roofline model of decode (Pope et al., arXiv 2211.05102) with uniform
routing's expected occupancy; the costs in seconds are what bytes and operations do not explain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from breakeven.forecast.constants import Constants
from breakeven.forecast.terms import DISK_BYTES_PER_S, HOST_BYTES_PER_S, ON_DEVICE, ExpertGroup, Residency, Terms

Floats = NDArray[np.float64]


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
    """Between devices; filled in by `StepModel`."""


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
    shape = np.broadcast(d, c, p, pc).shape
    zeros = np.zeros(shape)
    n = d + p
    fixed_bytes = sum(nbytes for _, nbytes in terms.fixed)
    expert_bytes, weights_s, touched = zeros, zeros + _fixed_s(terms, constants, where), zeros
    for group, share in zip(terms.experts, occupancies(terms, n, constants.routing_alpha), strict=True):
        expert_bytes = expert_bytes + sum(nbytes for _, nbytes in group.types) * share
        here = 1.0 - where.experts_host - where.experts_disk
        weights_s = weights_s + experts_s(group, constants) * here * share
        touched = touched + group.layers * group.n_experts * share
    host_s, disk_s = zeros, zeros
    if not where.whole:
        host_bytes = fixed_bytes * where.fixed_host + expert_bytes * where.experts_host
        disk_bytes = fixed_bytes * where.fixed_disk + expert_bytes * where.experts_disk
        host_s = zeros + host_bytes / (constants.host_bytes_per_s or HOST_BYTES_PER_S)
        disk_s = zeros + disk_bytes / (constants.disk_bytes_per_s or DISK_BYTES_PER_S)
    kv_token, attention_d, attention_p = zeros, zeros, zeros
    for attends in terms.attention:
        span = c if attends.window is None else np.minimum(c, attends.window)
        prompt_span = pc if attends.window is None else np.minimum(pc, attends.window)
        kv_token = kv_token + attends.kv_bytes * span
        attention_d = attention_d + attends.flops * span
        attention_p = attention_p + attends.flops * prompt_span
    kv = d * (terms.state_bytes + kv_token)
    kv_s = kv / constants.kv_bytes_per_s
    single, tiled, routed, head = _work(terms, constants)
    flops_d = terms.token_flops * (tiled + routed) * d
    if constants.tile > 1:
        flops_d = flops_d + terms.token_flops * (single - tiled) * np.mod(d, constants.tile)
    # A prompt needs the output head for its last token alone, which is nothing beside the prompt.
    compute_s = (flops_d + d * attention_d) / constants.decode_flops_per_s + p * (
        terms.token_flops * (tiled + routed) - terms.head_flops * head + attention_p
    ) * (1.0 / constants.prefill_flops_per_s)
    overhead_s = (
        constants.step_s
        + constants.layer_s * terms.layers
        + constants.moe_layer_s * terms.moe_layers
        + constants.expert_s * touched
        + constants.sequence_s * d
        + constants.prefill_token_s * p
        + constants.element_s * terms.layers * terms.hidden * n
    )
    memory_s = weights_s + kv_s
    total = np.maximum(memory_s, compute_s) + overhead_s + host_s + disk_s
    if constants.overlap != 1.0:
        total = total + (1.0 - constants.overlap) * np.minimum(memory_s, compute_s)
    return Parts(
        weights_s=weights_s,
        kv_s=kv_s,
        compute_s=compute_s,
        overhead_s=overhead_s,
        total_s=total,
        weight_bytes=fixed_bytes + expert_bytes,
        kv_bytes=kv,
        host_s=host_s,
        disk_s=disk_s,
        link_s=zeros,
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


def _fixed_s(terms: Terms, constants: Constants, where: Residency) -> float:
    return _read_s(terms.fixed, constants) * (1.0 - where.fixed_host - where.fixed_disk)


def _read_s(types: tuple[tuple[str, float], ...], constants: Constants) -> float:
    """Seconds of reading these bytes once."""
    return sum(nbytes * constants.type_cost.get(kind, 1.0) for kind, nbytes in types) / constants.weight_bytes_per_s


def _work(terms: Terms, constants: Constants) -> tuple[float, float, float, float]:
    """What one token's matrix products cost in operations of the base type, over `token_flops`.

    Outside routed experts one by one and in full tiles, in routed experts; last the output head's, over its own.
    """
    cost, in_tile = constants.type_compute, constants.tile_cost
    if not cost and not in_tile and constants.expert_compute == 1.0:
        return 1.0, 1.0, 0.0, 1.0
    single = sum(share * cost.get(kind, 1.0) for kind, share in terms.work)
    tiled = sum(share * cost.get(kind, 1.0) * in_tile.get(kind, 1.0) for kind, share in terms.work)
    routed = constants.expert_compute * sum(share * cost.get(kind, 1.0) for kind, share in terms.expert_work)
    return single, tiled, routed, cost.get(terms.head_type, 1.0) * in_tile.get(terms.head_type, 1.0)
