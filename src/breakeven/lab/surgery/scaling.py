"""Multiply quantized weights by a number without decoding them: only each block's own scale and minimum change.

A value is scale times code (plus minimum) in every block format here, so k times the scale is k times the value. The
scale is a 16-bit float: exact for a power of two, otherwise rounded to 11 bits, and the rounding is reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from breakeven.errors import NotSupportedError, UserError

Bytes = NDArray[np.uint8]
_T = GGMLQuantizationType

F16_FIELDS: Mapping[GGMLQuantizationType, tuple[int, ...]] = {
    _T.Q4_0: (0,),
    _T.Q4_1: (0, 2),
    _T.Q5_0: (0,),
    _T.Q5_1: (0, 2),
    _T.Q8_0: (0,),
    _T.Q2_K: (80, 82),
    _T.Q3_K: (108,),
    _T.Q4_K: (0, 2),
    _T.Q5_K: (0, 2),
    _T.Q6_K: (208,),
    _T.IQ2_XXS: (0,),
    _T.IQ2_XS: (0,),
    _T.IQ2_S: (0,),
    _T.IQ3_XXS: (0,),
    _T.IQ3_S: (0,),
    _T.IQ4_NL: (0,),
    _T.IQ4_XS: (0,),
}
"""Where a block keeps its f16 scale, and minimum if it has one: byte offsets (ggml/src/ggml-common.h)."""

PLAIN = frozenset({_T.F32, _T.F16, _T.BF16})


@dataclass(frozen=True, slots=True)
class Scaled:
    """The new bytes and the largest relative error that rounding a scale made (0: exact)."""

    data: Bytes
    relative_error: float


def check_scalable(kind: GGMLQuantizationType, tensor: str) -> None:
    """Raise NotSupportedError unless a tensor of this type can be multiplied."""
    if kind not in PLAIN and kind not in F16_FIELDS:
        known = ", ".join(sorted(each.name for each in (*PLAIN, *F16_FIELDS)))
        raise NotSupportedError(
            f"{tensor} is {kind.name}, whose blocks have no 16-bit scale; formats that work: {known}"
        )


def scaled(data: Bytes, kind: GGMLQuantizationType, factor: float) -> Scaled:
    """`factor` times the weights in `data` (rows, bytes a row), whole blocks of `kind`.

    Raises UserError when a scale would exceed the largest 16-bit float.
    """
    if kind == _T.F32:
        return Scaled(_bytes_of(data.view(np.float32) * np.float32(factor), data.shape), 0.0)
    if kind == _T.BF16:
        return _scaled_bf16(data, factor)
    if kind == _T.F16:
        product, error = _f16_times(data.view(np.float16), factor)
        return Scaled(_bytes_of(product, data.shape), error)
    block_bytes = GGML_QUANT_SIZES[kind][1]
    result = data.copy()
    blocks = result.reshape(-1, block_bytes)
    worst = 0.0
    for offset in F16_FIELDS[kind]:
        field = np.ascontiguousarray(blocks[:, offset : offset + 2]).view(np.float16)
        product, error = _f16_times(field, factor)
        blocks[:, offset : offset + 2] = product.view(np.uint8)
        worst = max(worst, error)
    return Scaled(result, worst)


def _f16_times(values: NDArray[np.float16], factor: float) -> tuple[NDArray[np.float16], float]:
    exact = values.astype(np.float64) * factor
    with np.errstate(over="ignore"):
        product = exact.astype(np.float16)
    if not np.isfinite(product).all():
        raise UserError(f"{factor:g} times a block's scale exceeds the largest 16-bit float; use fewer experts a token")
    return product, _relative_error(product.astype(np.float64), exact)


def _scaled_bf16(data: Bytes, factor: float) -> Scaled:
    exact = (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64) * factor
    bits = exact.astype(np.float32).view(np.uint32)
    # Round half to even on the 16 bits that go.
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    back = (rounded.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return Scaled(_bytes_of(rounded, data.shape), _relative_error(back, exact))


def _relative_error(got: NDArray[np.float64], exact: NDArray[np.float64]) -> float:
    nonzero = exact != 0
    if not nonzero.any():
        return 0.0
    return float(np.max(np.abs(got[nonzero] - exact[nonzero]) / np.abs(exact[nonzero])))


def _bytes_of(array: NDArray[np.generic], shape: tuple[int, ...]) -> Bytes:
    return np.ascontiguousarray(array).view(np.uint8).reshape(shape)
