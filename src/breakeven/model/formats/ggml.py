"""The number types ggml stores tensors in, and the bytes of their blocks."""

from __future__ import annotations

from enum import StrEnum


class GgmlType(StrEnum):
    """How ggml stores the elements of one tensor; the value is ggml's own name."""

    F32 = "F32"
    F16 = "F16"
    BF16 = "BF16"
    Q4_0 = "Q4_0"
    Q4_1 = "Q4_1"
    Q5_0 = "Q5_0"
    Q5_1 = "Q5_1"
    Q8_0 = "Q8_0"
    Q2_K = "Q2_K"
    Q3_K = "Q3_K"
    Q4_K = "Q4_K"
    Q5_K = "Q5_K"
    Q6_K = "Q6_K"
    IQ2_XXS = "IQ2_XXS"
    IQ2_XS = "IQ2_XS"
    IQ4_NL = "IQ4_NL"
    IQ4_XS = "IQ4_XS"
    MXFP4 = "MXFP4"


_T = GgmlType

BLOCKS: dict[GgmlType, tuple[int, int]] = {
    _T.F32: (1, 4),
    _T.F16: (1, 2),
    _T.BF16: (1, 2),
    _T.Q4_0: (32, 18),
    _T.Q4_1: (32, 20),
    _T.Q5_0: (32, 22),
    _T.Q5_1: (32, 24),
    _T.Q8_0: (32, 34),
    _T.IQ4_NL: (32, 18),
    _T.MXFP4: (32, 17),
    _T.Q2_K: (256, 84),
    _T.Q3_K: (256, 110),
    _T.Q4_K: (256, 144),
    _T.Q5_K: (256, 176),
    _T.Q6_K: (256, 210),
    _T.IQ2_XXS: (256, 66),
    _T.IQ2_XS: (256, 74),
    _T.IQ4_XS: (256, 136),
}
"""Elements and bytes of one block (ggml/src/ggml-common.h)."""

FALLBACKS: dict[GgmlType, GgmlType] = {
    _T.Q2_K: _T.Q4_0,
    _T.Q3_K: _T.Q4_0,
    _T.Q4_K: _T.Q5_0,
    _T.Q5_K: _T.Q5_1,
    _T.Q6_K: _T.Q8_0,
    _T.IQ2_XXS: _T.IQ4_NL,
    _T.IQ2_XS: _T.IQ4_NL,
    _T.IQ4_XS: _T.IQ4_NL,
}
"""What a tensor gets when its rows are not whole 256-element blocks (`tensor_type_fallback`)."""


def block_size(kind: GgmlType) -> int:
    """Elements in one block of this type."""
    return BLOCKS[kind][0]


def block_bytes(kind: GgmlType) -> int:
    """Bytes of one block of this type."""
    return BLOCKS[kind][1]
