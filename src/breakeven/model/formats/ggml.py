"""The number types ggml stores tensors in, and the bytes of their blocks; types a cache of keys and values can have."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum


class GgmlType(StrEnum):
    """How ggml stores the elements of one tensor; the value is ggml's own name."""

    F64 = "F64"
    F32 = "F32"
    F16 = "F16"
    BF16 = "BF16"
    I64 = "I64"
    I32 = "I32"
    I16 = "I16"
    I8 = "I8"
    Q4_0 = "Q4_0"
    Q4_1 = "Q4_1"
    Q5_0 = "Q5_0"
    Q5_1 = "Q5_1"
    Q8_0 = "Q8_0"
    Q8_1 = "Q8_1"
    Q2_K = "Q2_K"
    Q3_K = "Q3_K"
    Q4_K = "Q4_K"
    Q5_K = "Q5_K"
    Q6_K = "Q6_K"
    Q8_K = "Q8_K"
    IQ1_S = "IQ1_S"
    IQ1_M = "IQ1_M"
    IQ2_XXS = "IQ2_XXS"
    IQ2_XS = "IQ2_XS"
    IQ2_S = "IQ2_S"
    IQ3_XXS = "IQ3_XXS"
    IQ3_S = "IQ3_S"
    IQ4_NL = "IQ4_NL"
    IQ4_XS = "IQ4_XS"
    TQ1_0 = "TQ1_0"
    TQ2_0 = "TQ2_0"
    Q1_0 = "Q1_0"
    MXFP4 = "MXFP4"
    NVFP4 = "NVFP4"


_T = GgmlType

BLOCKS: dict[GgmlType, tuple[int, int]] = {
    _T.F64: (1, 8),
    _T.F32: (1, 4),
    _T.F16: (1, 2),
    _T.BF16: (1, 2),
    _T.I64: (1, 8),
    _T.I32: (1, 4),
    _T.I16: (1, 2),
    _T.I8: (1, 1),
    _T.Q4_0: (32, 18),
    _T.Q4_1: (32, 20),
    _T.Q5_0: (32, 22),
    _T.Q5_1: (32, 24),
    _T.Q8_0: (32, 34),
    _T.Q8_1: (32, 40),
    _T.IQ4_NL: (32, 18),
    _T.MXFP4: (32, 17),
    _T.NVFP4: (64, 36),
    _T.Q1_0: (128, 18),
    _T.Q2_K: (256, 84),
    _T.Q3_K: (256, 110),
    _T.Q4_K: (256, 144),
    _T.Q5_K: (256, 176),
    _T.Q6_K: (256, 210),
    _T.Q8_K: (256, 292),
    _T.IQ1_S: (256, 50),
    _T.IQ1_M: (256, 56),
    _T.IQ2_XXS: (256, 66),
    _T.IQ2_XS: (256, 74),
    _T.IQ2_S: (256, 82),
    _T.IQ3_XXS: (256, 98),
    _T.IQ3_S: (256, 110),
    _T.IQ4_XS: (256, 136),
    _T.TQ1_0: (256, 54),
    _T.TQ2_0: (256, 66),
}
"""Elements and bytes of one block (ggml/src/ggml-common.h; the gguf package's GGML_QUANT_SIZES is equal)."""

FALLBACKS: dict[GgmlType, GgmlType] = {
    _T.Q2_K: _T.Q4_0,
    _T.Q3_K: _T.Q4_0,
    _T.TQ1_0: _T.Q4_0,
    _T.TQ2_0: _T.Q4_0,
    _T.Q4_K: _T.Q5_0,
    _T.Q5_K: _T.Q5_1,
    _T.Q6_K: _T.Q8_0,
    _T.IQ1_S: _T.IQ4_NL,
    _T.IQ1_M: _T.IQ4_NL,
    _T.IQ2_XXS: _T.IQ4_NL,
    _T.IQ2_XS: _T.IQ4_NL,
    _T.IQ2_S: _T.IQ4_NL,
    _T.IQ3_XXS: _T.IQ4_NL,
    _T.IQ3_S: _T.IQ4_NL,
    _T.IQ4_XS: _T.IQ4_NL,
}
"""What a tensor gets when its rows are not whole 256-element blocks (`tensor_type_fallback`)."""


@dataclass(frozen=True, slots=True)
class OwnType:
    """A type of a file's tensor whose blocks are not known here: its name, and the bytes that the file gives it."""

    value: str
    n_bytes: int

    def __str__(self) -> str:
        return self.value


def block_size(kind: GgmlType) -> int:
    """Elements in one block of this type."""
    return BLOCKS[kind][0]


def block_bytes(kind: GgmlType) -> int:
    """Bytes of one block of this type."""
    return BLOCKS[kind][1]


def own_type(name: str, shape: tuple[int, ...], n_bytes: int) -> GgmlType | OwnType:
    """A stored tensor's type, by the name its file gives: ggml's where its blocks make up the tensor's bytes."""
    try:
        kind = GgmlType(name.upper())
    except ValueError:
        return OwnType(name, n_bytes)
    size, each = BLOCKS[kind]
    # A tensor of less or more bytes than its shape says is counted as it lies in the file.
    whole = shape and shape[-1] % size == 0 and math.prod(shape) // size * each == n_bytes
    return kind if whole else OwnType(kind.value, n_bytes)
