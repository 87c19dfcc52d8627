"""How long one forward pass takes: the step model, vectorised.

A step carries D decoding sequences, whose contexts sum to C_D tokens, and P prompt tokens that attend to C_P tokens
each on average. n = D + P tokens pass through the weights. With occupancy u (share of routed-expert bytes touched):

    bytes   = W_f + W_r u(n)                         weights
    t_mem   = sum over number types (bytes * type_cost) / weight_bytes_per_s + KV(D, C_D) / kv_bytes_per_s
    t_flops = F_D / decode_flops_per_s + F_P / prefill_flops_per_s
    t = max(t_mem, t_flops) + (1 - overlap) min(t_mem, t_flops)
        + step_s + layer_s L + moe_layer_s L_moe + expert_s (experts touched) + sequence_s D + prefill_token_s P

The form, with u(B) = 1 - (1 - k/E)^B, is the roofline model of decode (Pope et al., arXiv 2211.05102) with uniform
routing's expected occupancy; the costs in seconds are what bytes and operations do not explain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from breakeven.predict.terms import Terms
from breakeven.spec.profile import Constants

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


def occupancies(terms: Terms, tokens: ArrayLike, alpha: float = 1.0) -> list[Floats]:
    """Share of experts touched by `tokens` tokens in a step, for each of the model's expert groups."""
    n = np.asarray(tokens, dtype=np.float64) ** alpha
    found = []
    for group in terms.experts:
        if group.frequencies is None:
            found.append(1.0 - (1.0 - group.per_token / group.n_experts) ** n)
        else:
            p = np.asarray(group.frequencies)
            found.append(np.mean(1.0 - (1.0 - p) ** n[..., None], axis=-1))
    return found


def step_parts(
    terms: Terms,
    constants: Constants,
    decoding: ArrayLike,
    decode_context: ArrayLike,
    prefill_tokens: ArrayLike = 0.0,
    prefill_context: ArrayLike = 0.0,
) -> Parts:
    """Times of steps. All arguments broadcast.

    `decoding`: sequences that get a token (D). `decode_context`: mean context of one of them, in tokens.
    `prefill_tokens`: prompt tokens in the step (P). `prefill_context`: tokens each attends to, on average.
    """
    d, c, p, pc = (np.asarray(x, dtype=np.float64) for x in (decoding, decode_context, prefill_tokens, prefill_context))
    n = d + p
    shape = np.broadcast(d, c, p, pc).shape
    weight_bytes = np.full(shape, sum(nbytes for _, nbytes in terms.fixed))
    weights_s = np.full(shape, _read_s(terms.fixed, constants))
    touched = np.zeros(shape)
    for group, share in zip(terms.experts, occupancies(terms, n, constants.routing_alpha), strict=True):
        weight_bytes = weight_bytes + sum(nbytes for _, nbytes in group.types) * share
        weights_s = weights_s + _read_s(group.types, constants) * share
        touched = touched + group.layers * group.n_experts * share
    kv, attention_d, attention_p = terms.state_bytes * d, np.zeros_like(d * c), np.zeros_like(p * pc)
    for attends in terms.attention:
        span = c if attends.window is None else np.minimum(c, attends.window)
        prompt_span = pc if attends.window is None else np.minimum(pc, attends.window)
        kv = kv + attends.kv_bytes * d * span
        attention_d = attention_d + attends.flops * d * span
        attention_p = attention_p + attends.flops * p * prompt_span
    kv_s = kv / constants.kv_bytes_per_s
    # A prompt needs the output head for its last token alone, which is nothing beside the prompt.
    compute_s = (terms.token_flops * d + attention_d) / constants.decode_flops_per_s + (
        (terms.token_flops - terms.head_flops) * p + attention_p
    ) / constants.prefill_flops_per_s
    overhead_s = (
        constants.step_s
        + constants.layer_s * terms.layers
        + constants.moe_layer_s * terms.moe_layers
        + constants.expert_s * touched
        + constants.sequence_s * d
        + constants.prefill_token_s * p
    )
    memory_s = weights_s + kv_s
    total = np.maximum(memory_s, compute_s) + (1.0 - constants.overlap) * np.minimum(memory_s, compute_s) + overhead_s
    return Parts(weights_s, kv_s, compute_s, overhead_s, total, weight_bytes, kv)


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


def _read_s(types: tuple[tuple[str, float], ...], constants: Constants) -> float:
    """Seconds of reading these bytes once."""
    return sum(nbytes * constants.type_cost.get(kind, 1.0) for kind, nbytes in types) / constants.weight_bytes_per_s
