"""What each tensor of a synthetic model is filled with: which values, and valid random blocks that hold them.

Values are such that activations stay finite and routing stays known. Embeddings dominate the hidden state: every block
adds only `RESIDUAL` of their size, so the state's size is known at every depth and routing depends on the token, not on
numerical accidents. Its first element is the same for all tokens (no block writes there), which gives routers a
constant to hang a bias on. The final norm has random signs: with tied embeddings a token would otherwise always predict
itself.

Big tensors are cut from a pool of random bytes laid out as blocks of one type, whose scale fields are overwritten so
that dequantised values have mean about zero and exactly the spread asked for: drawing fresh bytes for each tensor would
be bound by the random generator, not by the disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from breakeven.model.architecture import ModelSpec, Norms
from breakeven.model.layouts.registry import family_of
from breakeven.model.tensors import Tensor, TensorGroup

RESIDUAL = 0.03
"""Size of what one attention or feed-forward adds, relative to the embedding."""
LOGIT_STD = 1.5
"""Spread of output logits: wide enough to look like text, flat enough that sampling visits the vocabulary."""
GATED_LOSS = 2.5
"""A gated feed-forward on unit inputs comes out this much smaller: 1 / rms(silu(a) * b) for unit normals a, b."""

RESIDUAL_WRITERS = ("attn_output.weight", "out_proj.weight", "ssm_out.weight")


class Fill(StrEnum):
    """How a tensor gets its values."""

    ZEROS = "zeros"
    ONES = "ones"
    SMALL = "small"
    """The gain of a norm on what a block adds (Gemma)."""
    SIGNS = "signs"
    ROUTER = "router"
    RANDOM = "random"
    EMBEDDING = "embedding"
    """Random, first element of each row constant."""
    RESIDUAL = "residual"
    """Random, first row zero."""


@dataclass(frozen=True, slots=True)
class Values:
    """`std` is the standard deviation of random values, and the value itself for SMALL."""

    fill: Fill
    std: float = 0.0


def embedding_std(spec: ModelSpec) -> float:
    """Spread of embedding values, such that a tied output head gives logits of `LOGIT_STD`."""
    return float(LOGIT_STD / spec.hidden**0.5)


def values_of(spec: ModelSpec, tensor: Tensor) -> Values:
    """What to write into `tensor` of `spec`."""
    short = tensor.name.split(".", 2)[-1] if tensor.layer is not None else tensor.name
    size = embedding_std(spec) * (spec.hidden**0.5 if family_of(spec).scales_embeddings else 1.0)
    if tensor.group is TensorGroup.ROUTER and len(tensor.shape) == 2 and tensor.shape[0] > 1:
        return Values(Fill.ROUTER)
    if short.endswith("bias") or "sinks" in short or "exp_probs_b" in short:
        return Values(Fill.ZEROS)
    if tensor.layer is None and tensor.name.endswith("norm.weight"):
        return Values(Fill.SIGNS)
    if len(tensor.shape) == 1:
        post = (
            tensor.layer is not None and spec.layers[tensor.layer].norms is Norms.AROUND and short.startswith("post_")
        )
        return Values(Fill.SMALL, RESIDUAL * size) if post else Values(Fill.ONES)
    if tensor.group is TensorGroup.EMBEDDING:
        return Values(Fill.EMBEDDING, embedding_std(spec))
    unit = float(tensor.shape[-1] ** -0.5)
    if tensor.group is TensorGroup.OUTPUT_HEAD:
        return Values(Fill.RANDOM, LOGIT_STD * unit)
    if short.endswith(RESIDUAL_WRITERS):
        return Values(Fill.RESIDUAL, RESIDUAL * size * unit)
    if short.startswith("ffn_down"):
        return Values(Fill.RESIDUAL, RESIDUAL * size * unit * GATED_LOSS)
    return Values(Fill.RANDOM, unit)


Bytes = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]

POOL_BYTES = 16 << 20
"""Large enough that a matrix rarely repeats a row, small enough to stay far under the memory target."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a block type keeps its scales. Offsets in bytes, as ggml-common.h lays the structs out."""

    scale_at: int
    """Offset of the f16 scale `d`."""
    minimum_at: int | None = None
    """Offset of the f16 minimum, and ..."""
    minimum_over_scale: float = 0.0
    """... what it must be for values to centre on zero, in units of `d`."""
    fixed: tuple[tuple[int, bytes], ...] = ()
    """Sub-scales set to one, so that every block has the same spread."""
    first_code: tuple[tuple[int, int, int], ...] = ()
    """(offset, keep mask, set bits) that give the block's first element its largest code."""


LAYOUTS: dict[GGMLQuantizationType, Layout] = {
    GGMLQuantizationType.Q4_0: Layout(0, first_code=((2, 0xF0, 0x0F),)),
    GGMLQuantizationType.IQ4_NL: Layout(0, first_code=((2, 0xF0, 0x0F),)),
    GGMLQuantizationType.Q4_1: Layout(0, 2, -7.5, first_code=((4, 0xF0, 0x0F),)),
    GGMLQuantizationType.Q5_0: Layout(0, first_code=((6, 0xF0, 0x0F), (2, 0xFE, 0x01))),
    GGMLQuantizationType.Q5_1: Layout(0, 2, -15.5, first_code=((8, 0xF0, 0x0F), (4, 0xFE, 0x01))),
    GGMLQuantizationType.Q8_0: Layout(0, first_code=((2, 0x00, 0x7F),)),
    GGMLQuantizationType.Q2_K: Layout(80, 82, 1.5, ((0, b"\x11" * 16),), ((16, 0xFC, 0x03),)),
    GGMLQuantizationType.Q3_K: Layout(
        108, fixed=((96, b"\x11" * 8 + b"\xaa" * 4),), first_code=((32, 0xFC, 0x03), (0, 0xFE, 0x01))
    ),
    GGMLQuantizationType.Q4_K: Layout(0, 2, 7.5, ((4, b"\x01" * 8 + b"\x11" * 4),), ((16, 0xF0, 0x0F),)),
    GGMLQuantizationType.Q5_K: Layout(
        0, 2, 15.5, ((4, b"\x01" * 8 + b"\x11" * 4),), ((48, 0xF0, 0x0F), (16, 0xFE, 0x01))
    ),
    GGMLQuantizationType.Q6_K: Layout(
        208, fixed=((192, b"\x01" * 16),), first_code=((0, 0xF0, 0x0F), (128, 0xFC, 0x03))
    ),
}

FLOATS = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)

FLOAT_FIRST = 1.6
"""First element of a float row, in standard deviations: what the largest code of a 4-bit block comes to."""


class BlockPool:
    """Valid random blocks of one type, re-scaled in place as tensors ask for them."""

    def __init__(self, kind: GGMLQuantizationType, rng: np.random.Generator, pool_bytes: int = POOL_BYTES) -> None:
        self.kind = kind
        self.block_elements, self.block_bytes = GGML_QUANT_SIZES[kind]
        n_blocks = max(1, pool_bytes // self.block_bytes)
        self._blocks: Bytes
        if kind in FLOATS:
            self._unit = rng.standard_normal(n_blocks, dtype=np.float32)
            self._blocks = np.empty((n_blocks, self.block_bytes), np.uint8)
        else:
            self._blocks = rng.integers(0, 256, (n_blocks, self.block_bytes), np.uint8)
            self._prepare()
        self._std = 0.0

    def _prepare(self) -> None:
        if self.kind == GGMLQuantizationType.MXFP4:
            self._spread = float(np.std(dequantize(self._with_exponent(127)[:4096], self.kind)))
            return
        layout = LAYOUTS[self.kind]
        for at, value in layout.fixed:
            self._blocks[:, at : at + len(value)] = np.frombuffer(value, np.uint8)
        self._set_scale(1.0)
        self._spread = float(np.std(dequantize(self._blocks[:4096], self.kind)))

    def _with_exponent(self, exponent: int) -> Bytes:
        self._blocks[:, 0] = exponent
        return self._blocks

    def _set_scale(self, scale: float) -> None:
        layout = LAYOUTS[self.kind]
        fields = [(layout.scale_at, scale)]
        if layout.minimum_at is not None:
            fields.append((layout.minimum_at, scale * layout.minimum_over_scale))
        for at, value in fields:
            self._blocks[:, at : at + 2] = np.frombuffer(np.float16(value).tobytes(), np.uint8)

    def scale_to(self, std: float) -> None:
        """Give every block the standard deviation `std` (MXFP4: the nearest power of two)."""
        if std == self._std:
            return
        self._std = std
        if self.kind == GGMLQuantizationType.MXFP4:
            self._with_exponent(127 + round(float(np.log2(std / self._spread))))
        elif self.kind in FLOATS:
            self._blocks = to_float_bytes(self._unit * np.float32(std), self.kind).reshape(-1, self.block_bytes)
        else:
            self._set_scale(std / self._spread)

    def take(self, n_blocks: int, rng: np.random.Generator) -> Iterator[Bytes]:
        """Yield (m, block_bytes) slices of the pool, `n_blocks` in all, each from a random place; read-only."""
        while n_blocks > 0:
            start = int(rng.integers(len(self._blocks)))
            piece = self._blocks[start : start + n_blocks]
            n_blocks -= len(piece)
            yield piece

    def mark_first(self, rows: Bytes) -> Bytes:
        """A copy of `rows` (n, row_bytes) whose first element is the same large value in every row."""
        marked = rows.copy()
        if self.kind in FLOATS:
            value = to_float_bytes(np.array([FLOAT_FIRST * self._std], np.float32), self.kind)
            marked[:, : len(value)] = value
        elif self.kind == GGMLQuantizationType.MXFP4:
            marked[:, 1] = (marked[:, 1] & 0xF0) | 0x07
        else:
            for at, keep, bits in LAYOUTS[self.kind].first_code:
                marked[:, at] = (marked[:, at] & keep) | bits
        return marked


def to_float_bytes(values: np.ndarray[tuple[int, ...], np.dtype[np.float32]], kind: GGMLQuantizationType) -> Bytes:
    """Flat float32 values as little-endian bytes of F32, F16 or BF16."""
    if kind == GGMLQuantizationType.F16:
        return values.astype(np.float16).view(np.uint8)
    if kind == GGMLQuantizationType.BF16:
        return (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16).view(np.uint8)
    return values.view(np.uint8)
