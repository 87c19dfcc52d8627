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

from breakeven.model.architecture import DenseFfn, ModelSpec, MoeFfn, Norms, Rope
from breakeven.model.layouts.registry import family_of
from breakeven.model.tensors import Tensor, TensorGroup

RESIDUAL = 0.03
"""Size of what one attention or feed-forward adds, relative to the embedding."""
LOGIT_STD = 1.5
"""Spread of output logits: wide enough to look like text, flat enough that sampling visits the vocabulary."""
GATED_LOSS = 2.5
"""A gated feed-forward on unit inputs comes out this much smaller: 1 / rms(silu(a) * b) for unit normals a, b."""

RESIDUAL_WRITERS = frozenset(
    {"attn_output", "attn_output_b", "shortconv.out_proj", "ssm_out", "ffn_latent_up", "laurel_r", "proj"}
)
"""Matrices beside `ffn_down` that write to the hidden state, by stem."""
DECAY = -1.0
"""What state-space models and delta-nets multiply time steps with: states fade, and never grow."""
COEFFICIENT = 0.03
"""Spread of the coefficients that mix residual streams (Gemma 3n, DeepSeek-V4)."""
TOKEN_TABLE = "ffn_gate_tid2eid"
"""Stem of the table that says which experts a token goes to."""


class Fill(StrEnum):
    """How a tensor gets its values."""

    ZEROS = "zeros"
    ONES = "ones"
    CONSTANT = "constant"
    """The gain of a norm on what a block adds (Gemma, OLMo 2), and decays."""
    SIGNS = "signs"
    ROUTER = "router"
    LOOKUP = "lookup"
    """The experts of each token, as whole numbers."""
    ROTARY = "rotary"
    """Factors of rotary frequencies."""
    RANDOM = "random"
    EMBEDDING = "embedding"
    """Random, first element of each row constant."""
    RESIDUAL = "residual"
    """Random, first row zero."""


@dataclass(frozen=True, slots=True)
class Values:
    """`std` is the standard deviation of random values, and the value itself for CONSTANT."""

    fill: Fill
    std: float = 0.0


def embedding_std(spec: ModelSpec) -> float:
    """Spread of embedding values, such that a tied output head gives logits of `LOGIT_STD`."""
    return float(LOGIT_STD / spec.hidden**0.5)


def values_of(spec: ModelSpec, tensor: Tensor) -> Values:
    """What to write into `tensor` of `spec`."""
    short = tensor.name.split(".", 2)[-1] if tensor.layer is not None else tensor.name
    stem = short.removesuffix(".weight")
    if tensor.group is TensorGroup.CONSTANT:
        return Values(Fill.LOOKUP if stem == TOKEN_TABLE else Fill.ROTARY)
    if tensor.group is TensorGroup.ROUTER and len(tensor.shape) == 2 and tensor.shape[0] > 1:
        return Values(Fill.ROUTER)
    if short.endswith("bias") or stem in ("attn_sinks", "exp_probs_b") or stem.endswith("_base"):
        return Values(Fill.ZEROS)
    if stem == "ssm_a":
        return Values(Fill.CONSTANT, DECAY)
    if tensor.layer is None and tensor.name in ("output_norm.weight", "token_embd_norm.weight"):
        return Values(Fill.SIGNS)
    if len(tensor.shape) == 1 or stem in ("ssm_d", "ssm_norm"):
        return _gain(spec, tensor, stem)
    unit = float(tensor.shape[-1] ** -0.5)
    if tensor.group is TensorGroup.EMBEDDING:
        return Values(Fill.EMBEDDING, embedding_std(spec))
    if tensor.group is TensorGroup.OUTPUT_HEAD:
        return Values(Fill.RANDOM, LOGIT_STD * unit)
    if stem in ("altup_correct_coef", "altup_predict_coef"):
        return Values(Fill.RANDOM, COEFFICIENT)
    if stem in ("hc_attn_fn", "hc_ffn_fn", "output_hc_fn"):
        return Values(Fill.RANDOM, COEFFICIENT * unit)
    added = RESIDUAL * _state_size(spec) * unit
    if stem in RESIDUAL_WRITERS:
        return Values(Fill.RESIDUAL, added)
    if stem.startswith("ffn_down"):
        ffn = _ffn(spec, tensor)
        loss = GATED_LOSS if ffn is None or ffn.gated else 1.0
        if isinstance(ffn, MoeFfn) and ffn.latent_width and stem == "ffn_down_exps":
            return Values(Fill.RANDOM, unit * loss)  # `ffn_latent_up` writes what it returns
        return Values(Fill.RESIDUAL, added * loss)
    return Values(Fill.RANDOM, unit)


def _gain(spec: ModelSpec, tensor: Tensor, stem: str) -> Values:
    """One, or little for a norm after a part: what it lets through is added to the hidden state."""
    if tensor.layer is not None and tensor.layer < len(spec.layers):
        after = spec.layers[tensor.layer].norms in (Norms.AROUND, Norms.AFTER)
        if after and stem.startswith(("post_", "laurel_post_norm")):
            return Values(Fill.CONSTANT, RESIDUAL * _state_size(spec))
    return Values(Fill.ONES)


def _state_size(spec: ModelSpec) -> float:
    """Size of the hidden state's elements, the embeddings' own."""
    return embedding_std(spec) * (spec.hidden**0.5 if family_of(spec).scales_embeddings else 1.0)


def _ffn(spec: ModelSpec, tensor: Tensor) -> DenseFfn | MoeFfn | None:
    layers = spec.layers + (spec.mtp.layers if spec.mtp is not None else ())
    return layers[tensor.layer].ffn if tensor.layer is not None else None


def experts_by_token(
    tokens: int, k: int, n_experts: int, rng: np.random.Generator
) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    """For each token `k` different experts, evenly spread from a random first: every expert as often as another."""
    first = rng.integers(n_experts, size=(tokens, 1))
    return ((first + np.arange(k) * (n_experts // k)) % n_experts).astype(np.int32)


def rotary_factors(rope: Rope, pairs: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """What rotary frequencies are divided by, one a pair: ones, or Llama 3.1's stretch of the slow ones.

    Source: `llama3` in transformers' `modeling_rope_utils.py`; its slow and fast limits are 1 and 4 turns.
    """
    factors = np.ones(pairs, np.float32)
    if rope.scaling == "llama3" and rope.original_context:
        turns = rope.original_context / (2 * np.pi * rope.base ** (np.arange(pairs) / pairs))
        smooth = np.clip((turns - 1.0) / 3.0, 0.0, 1.0)
        factors = (1.0 / (smooth + (1.0 - smooth) / rope.factor)).astype(np.float32)
    return factors


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
    """(offset, keep mask, set bits) that give the block's first element its largest code; none: it has no such code."""
    in_nibbles: bool = False
    """The scale lies in the high four bits of four 16-bit words from `scale_at`, whose rest is set to zero."""
    ternary: bool = False
    """Two bits an element, of which the fourth code is not used."""


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
    GGMLQuantizationType.IQ4_XS: Layout(0, fixed=((2, b"\xaa\xaa" + b"\x11" * 4),), first_code=((8, 0xF0, 0x0F),)),
    GGMLQuantizationType.IQ1_S: Layout(0),
    GGMLQuantizationType.IQ1_M: Layout(48, in_nibbles=True),
    GGMLQuantizationType.IQ2_XXS: Layout(0),
    GGMLQuantizationType.IQ2_XS: Layout(0, fixed=((66, b"\x11" * 8),)),
    GGMLQuantizationType.IQ2_S: Layout(0, fixed=((74, b"\x11" * 8),)),
    GGMLQuantizationType.IQ3_XXS: Layout(0),
    GGMLQuantizationType.IQ3_S: Layout(
        0, fixed=((106, b"\x00" * 4),), first_code=((2, 0x00, 0x04), (66, 0xFE, 0x00), (74, 0xFE, 0x00))
    ),
    GGMLQuantizationType.TQ1_0: Layout(52),
    GGMLQuantizationType.TQ2_0: Layout(64, ternary=True),
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
        if layout.ternary:
            codes = self._blocks[:, : layout.scale_at]
            codes &= ~((codes & (codes << 1)) & np.uint8(0xAA))
        self._set_scale(1.0)
        self._spread = float(np.std(dequantize(self._blocks[:4096], self.kind)))

    def _with_exponent(self, exponent: int) -> Bytes:
        self._blocks[:, 0] = exponent
        return self._blocks

    def _set_scale(self, scale: float) -> None:
        layout = LAYOUTS[self.kind]
        if layout.in_nibbles:
            bits = int.from_bytes(np.float16(scale).tobytes(), "little")
            words = np.array([((bits >> (4 * i)) & 0xF) << 12 for i in range(4)], "<u2")
            self._blocks[:, layout.scale_at : layout.scale_at + 8] = words.view(np.uint8)
            return
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

    @property
    def marks(self) -> bool:
        """Whether `mark_first` can mark rows of this type."""
        return self.kind in FLOATS or self.kind == GGMLQuantizationType.MXFP4 or bool(LAYOUTS[self.kind].first_code)

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
