"""The probes: small synthetic models whose shapes differ where the step model's terms do, and the loads they run under.

A probe is worth its seconds when it pulls two terms apart: many thin layers against few wide ones (cost a layer against
bytes), a large output head (its number type differs from the layers'), many keys and values against few, few large
experts against many small ones. Sizes are what one machine class reads in milliseconds: nothing smaller shows its
bandwidth, nothing larger is short.

What it refuses to know: how real text is routed. Random weights route at random, so `routing_alpha` stays at its prior.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from breakeven.model.architecture import DenseFfn, Gqa, Layer, ModelSpec, MoeFfn, QkNorm
from breakeven.model.arithmetic import file_bytes

CONTEXT = 8192
VOCAB = 8192


@dataclass(frozen=True, slots=True)
class ProbeLoad:
    """One block of requests: sequences at once, prompt and output tokens of each."""

    streams: int
    prompt_tokens: int
    output_tokens: int


DECODE_LOADS = (
    ProbeLoad(1, 32, 24),
    ProbeLoad(2, 32, 20),
    ProbeLoad(4, 32, 16),
    ProbeLoad(8, 32, 16),
    ProbeLoad(1, 512, 20),
    ProbeLoad(2, 512, 16),
)
"""Batches where weights, arithmetic and costs a sequence take turns; two contexts to tell keys and values from weights.
The prompts of the single streams are the prefill probes, too."""
PREFILL_LOADS = (ProbeLoad(1, 128, 2),)
WIDE_LOADS = (ProbeLoad(32, 32, 16), ProbeLoad(128, 32, 16), ProbeLoad(1, 2048, 16), ProbeLoad(8, 1024, 16))
"""For machines fast enough that small batches tell little."""


def dense(
    name: str, hidden: int, layers: int, width: int, heads: int, kv_heads: int, head_dim: int = 64, vocab: int = VOCAB
) -> ModelSpec:
    """A dense probe: `layers` alike, feed-forward of `width`, untied head."""
    layer = Layer((Gqa(heads, kv_heads, head_dim, qk_norm=QkNorm.HEAD),), DenseFfn(width))
    return _spec(name, "qwen3", hidden, vocab, (layer,) * layers)


def moe(
    name: str,
    hidden: int,
    layers: int,
    experts: tuple[int, int, int],
    heads: int,
    kv_heads: int,
    head_dim: int = 64,
    vocab: int = VOCAB,
) -> ModelSpec:
    """A probe whose every layer routes; `experts`: how many, how many a token, width of one."""
    layer = Layer((Gqa(heads, kv_heads, head_dim, qk_norm=QkNorm.HEAD),), MoeFfn(*experts))
    return _spec(name, "qwen3moe", hidden, vocab, (layer,) * layers)


def _spec(name: str, family: str, hidden: int, vocab: int, layers: tuple[Layer, ...]) -> ModelSpec:
    return ModelSpec(
        name=name,
        family=family,
        hidden=hidden,
        vocab=vocab,
        context=CONTEXT,
        tied_embeddings=False,
        layers=layers,
        source="a shape made for calibration; no such model is published",
    )


SMALL: tuple[ModelSpec, ...] = (
    dense("probe-d1024x24", 1024, 24, 2048, 16, 8),
    moe("probe-m1024x8-e32k4", 1024, 8, (32, 4, 512), 16, 8),
    dense("probe-d2048x6", 2048, 6, 8192, 32, 8),
    moe("probe-m512x12-e64k8", 512, 12, (64, 8, 256), 8, 4),
    dense("probe-d1024x4-v64k", 1024, 4, 3072, 8, 2, vocab=65536),
    moe("probe-m2048x4-e16k2", 2048, 4, (16, 2, 1536), 16, 4),
    dense("probe-d960x12", 960, 12, 2560, 15, 5),
    moe("probe-m1024x16-e8k2", 1024, 16, (8, 2, 1024), 16, 16),
    dense("probe-d1536x12", 1536, 12, 4096, 16, 16),
    moe("probe-m1536x6-e64k8", 1536, 6, (64, 8, 768), 24, 4, vocab=32768),
    dense("probe-d1024x10-h128", 1024, 10, 3072, 16, 8, 128, vocab=32768),
    moe("probe-m1024x6-e16k4-h128", 1024, 6, (16, 4, 768), 16, 4, 128),
    dense("probe-d512x4", 512, 4, 1536, 8, 2),
)
"""For CPUs and boards: 10 to 900 MB in 4 bits. Dense and MoE take turns, so that a short budget has both. One
width is no multiple of 256: such tensors get other number types (Q5_0 and Q8_0 where others are Q4_K and Q6_K)."""

LARGE: tuple[ModelSpec, ...] = (
    dense("probe-d2048x32", 2048, 32, 6144, 16, 8, 128),
    moe("probe-m2048x12-e64k8", 2048, 12, (64, 8, 1024), 16, 16, 128),
    dense("probe-d4096x12", 4096, 12, 14336, 32, 8, 128),
    moe("probe-m2048x16-e128k8", 2048, 16, (128, 8, 768), 32, 4, 128),
    dense("probe-d2048x8-v128k", 2048, 8, 8192, 32, 8, vocab=131072),
    moe("probe-m4096x4-e8k2", 4096, 4, (8, 2, 14336), 32, 8, 128),
    dense("probe-d1024x28", 1024, 28, 3072, 16, 8, 128),
    moe("probe-m1024x24-e32k8", 1024, 24, (32, 8, 512), 16, 8),
    dense("probe-d5120x6", 5120, 6, 17408, 40, 40, 128),
    moe("probe-m2880x8-e32k4", 2880, 8, (32, 4, 2880), 64, 8),
)
"""For GPUs: 0.4 to 7 GB in 16 bits."""

SETS: Mapping[str, tuple[ModelSpec, ...]] = {"small": SMALL, "large": LARGE}


def probes_for(format_name: str, *, gpu: bool, memory_bytes: float) -> tuple[ModelSpec, ...]:
    """The probes for a machine, in the order they run; those too large for a third of its memory are left out.

    A third, because an engine may hold a repacked copy of the weights beside the file.
    """
    return tuple(s for s in SETS["large" if gpu else "small"] if file_bytes(s, format_name) <= memory_bytes / 3)


def loads_for(*, gpu: bool) -> tuple[ProbeLoad, ...]:
    """The loads each probe runs under."""
    return DECODE_LOADS + PREFILL_LOADS + (WIDE_LOADS if gpu else ())


def rounds_of(cycle: int) -> tuple[int, ...]:
    """The rounds of blocks that a probe runs on one visit; every load once a round.

    The first visit has one, so that a short budget sees every probe; later ones have two, because starting an engine
    costs as much as a round and an engine's blocks scatter among themselves.
    """
    return (0,) if cycle == 0 else (2 * cycle - 1, 2 * cycle)


def cycle_of(round_number: int) -> int:
    """The visit that a round belonged to."""
    return (round_number + 1) // 2


class Visit(NamedTuple):
    """What one visit to a probe took: all of it, its blocks, and how many they were."""

    whole_s: float
    blocks_s: float
    blocks: int


def expected_s(took: Mapping[str, Visit], name: str, blocks: int) -> float:
    """Seconds that a visit with so many blocks will take: as its last one, else as the others'."""
    last = took.get(name)
    if last is None:
        return sum(visit.whole_s for visit in took.values()) / len(took) if took else 0.0
    return last.whole_s + last.blocks_s * (blocks / last.blocks - 1)


def slots_and_context(loads: Sequence[ProbeLoad]) -> tuple[int, int]:
    """Sequences at once, and tokens of each, that an engine must be started with."""
    longest = max(load.prompt_tokens + load.output_tokens for load in loads)
    return max(load.streams for load in loads), -(-(longest + 8) // 256) * 256
