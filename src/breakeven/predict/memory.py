"""What a model occupies while it runs, and how many tokens of keys and values fit beside it."""

from __future__ import annotations

import math

from breakeven.predict.parallel import Split, kv_ways
from breakeven.predict.terms import Terms

USABLE = 0.9
"""Share of a device's memory that weights, keys, values and buffers may take: vLLM's gpu_memory_utilization default.
The tenth left over stands for the system, the display and fragmentation on other machines too."""
LLAMA_CPP_BUFFER_TOKENS = 512
"""llama.cpp reserves a step of n_ubatch tokens (src/llama-context.cpp: graph_reserve)."""
LLAMA_CPP_BUFFER_WIDTHS = 16
"""Activations of one token that live at once, in hidden widths of 4 bytes. Build 11549 reserves 13 for SmolLM2-135M and
17 for granite-3.1-1b-a400m, after the mask of its context."""
VLLM_BUFFER_TOKENS = 8192
"""vLLM's max_num_batched_tokens on large devices."""
VLLM_BUFFER_WIDTHS = 18
"""Activations of one token that live at once, in hidden widths of 2 bytes: the gated feed-forward's, mostly. A
judgement, near vLLM's own "activation peak" of 1.2 GB for an 8 B model."""
VLLM_RUNTIME_BYTES = 1e9
"""CUDA context and captured graphs, a device. A judgement."""


def buffer_bytes(terms: Terms, engine: str, devices: int = 1) -> float:
    """Bytes that an engine holds beside weights and cache, on all devices."""
    if engine == "vllm":
        activations = VLLM_BUFFER_TOKENS * VLLM_BUFFER_WIDTHS * 2.0 * terms.hidden
        return devices * (activations + VLLM_RUNTIME_BYTES)
    return devices * LLAMA_CPP_BUFFER_TOKENS * 4.0 * LLAMA_CPP_BUFFER_WIDTHS * terms.hidden


def cache_bytes(terms: Terms, batch: float, context: float, devices: int, split: Split) -> float:
    """Keys, values and state of `batch` sequences of `context` tokens, copies on several devices included."""
    # `state_bytes` of the terms counts a read and a write.
    total = terms.state_bytes / 2.0
    for group in terms.attention:
        copies = devices / kv_ways(group, devices) if split in ("tensor", "experts") else 1.0
        span = context if group.window is None else min(context, group.window)
        total += copies * group.kv_bytes * span
    return batch * total


def cache_tokens(terms: Terms, room_bytes: float, context: float | None, devices: int, split: Split) -> int | None:
    """Tokens whose keys and values fit into `room_bytes`; None when tokens take none.

    `context`: length of the sequences, where sliding windows save memory; None: as if no window were full.
    """
    length = 1.0 if context is None else max(context, 1.0)
    per_token = cache_bytes(terms, 1, length, devices, split) - cache_bytes(terms, 1, 0, devices, split)
    if per_token <= 0:
        return None
    return max(0, math.floor(room_bytes / (per_token / length)))
