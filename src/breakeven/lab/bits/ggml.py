"""The number formats of the ggml that llama.cpp runs: which there are, and weights to and from them.

Names, block sizes, codecs and whether a format needs importance are read from the running library, so a format that it
knows and the gguf package does not (Q2_0) is one more row. All of it works on memory that is given, holds no model and
lets other threads run meanwhile, so it needs no process of its own.

Shapes: R rows, C columns.
"""

from __future__ import annotations

import ctypes as c
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from breakeven.engines.inside.layout import unknown_layout
from breakeven.engines.inside.library import library_path
from breakeven.errors import BreakevenError, NotSupportedError
from breakeven.model.readers.gguf_header import TYPES

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

F32 = "F32"
_LEAST_IMPORTANCE = 1e-5
"""Of the columns' mean: a block whose columns all counted for nothing has no best scale, and would not be finite."""

_TO_FLOAT = c.CFUNCTYPE(None, c.c_void_p, c.c_void_p, c.c_int64)
"""`ggml_to_float_t`: blocks, values, how many values."""


class _Traits(c.Structure):
    """`ggml_type_traits` (ggml/include/ggml.h)."""

    _fields_ = (
        ("name", c.c_char_p),
        ("block", c.c_int64),
        ("interleave", c.c_int64),
        ("block_bytes", c.c_size_t),
        ("is_quantized", c.c_bool),
        ("to_float", c.c_void_p),
        ("from_float", c.c_void_p),
    )


_SIGNATURES: dict[str, tuple[object, list[object]]] = {
    "ggml_get_type_traits": (c.POINTER(_Traits), [c.c_int]),
    "ggml_type_name": (c.c_char_p, [c.c_int]),
    "ggml_blck_size": (c.c_int64, [c.c_int]),
    "ggml_type_size": (c.c_size_t, [c.c_int]),
    "ggml_quantize_init": (None, [c.c_int]),
    "ggml_quantize_free": (None, []),
    "ggml_quantize_requires_imatrix": (c.c_bool, [c.c_int]),
    "ggml_quantize_chunk": (
        c.c_size_t,
        [c.c_int, c.c_void_p, c.c_void_p, c.c_int64, c.c_int64, c.c_int64, c.c_void_p],
    ),
}


@dataclass(frozen=True, slots=True)
class WeightType:
    """A format that weights are stored in. `code` is ggml's number of it; a block holds `block` weights."""

    name: str
    code: int
    block: int
    block_bytes: int
    is_quantized: bool
    needs_importance: bool

    @property
    def bits(self) -> float:
        """Bits a weight."""
        return 8 * self.block_bytes / self.block

    def n_bytes(self, elements: int) -> int:
        """Bytes of so many weights, which are whole blocks."""
        return elements // self.block * self.block_bytes


class Ggml:
    """The library's formats. A context manager: tables that quantizing made are freed at its end."""

    def __init__(self) -> None:
        """Load the library. Raises NotSupportedError where it lacks a function or its structures are not the known."""
        path = library_path()
        self._c = c.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            try:
                function = getattr(self._c, name)
            except AttributeError:
                raise NotSupportedError(f"{path.name} does not export {name}: nothing can be quantized") from None
            function.restype, function.argtypes = result, arguments

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._c.ggml_quantize_free()

    @cached_property
    def types(self) -> dict[str, WeightType]:
        """Every format weights can be read from and written to, by name, from the fewest bits to the most.

        Formats of activations and whole numbers have no way back to weights, by which they are told apart.
        """
        found = []
        for code, (name, block, block_bytes) in TYPES.items():
            traits = self._traits(code)
            read = (self._c.ggml_blck_size(code), self._c.ggml_type_size(code))
            if self._c.ggml_type_name(code) != traits.name or read != (traits.block, traits.block_bytes):
                raise unknown_layout(f"ggml_type_traits of {name}")
            if (traits.name or b"").decode().upper() != name or not (traits.to_float or name == F32):
                continue  # this build has no such format, or not for weights
            if read != (block, block_bytes):
                raise unknown_layout(f"a block of {name} holds {read[0]} weights in {read[1]} bytes")
            needs = self._c.ggml_quantize_requires_imatrix(code)
            found.append(WeightType(name, code, *read, traits.is_quantized, needs))
        return {kind.name: kind for kind in sorted(found, key=lambda kind: (kind.bits, kind.name))}

    def _traits(self, code: int) -> _Traits:
        traits: _Traits = self._c.ggml_get_type_traits(code).contents
        return traits

    def decode(self, kind: WeightType, data: Bytes) -> Floats:
        """The weights in whole blocks of `data`, flat."""
        data = np.ascontiguousarray(data)
        if kind.name == F32:
            return data.view(np.float32)
        values = np.empty(data.size // kind.block_bytes * kind.block, np.float32)
        _TO_FLOAT(self._traits(kind.code).to_float)(data.ctypes.data, values.ctypes.data, values.size)
        return values

    def encode(self, kind: WeightType, values_RC: Floats, importance_C: Floats | None = None) -> Bytes:
        """Rows of whole blocks in a format. `importance_C`: how much an error in each column counts.

        Raises BreakevenError for weights that are not finite, ValueError for what the format cannot take.
        """
        rows, columns = values_RC.shape
        if columns % kind.block or (kind.needs_importance and importance_C is None):
            raise ValueError(f"{kind.name} takes rows of whole blocks of {kind.block}, and importance where needed")
        if not np.isfinite(values_RC).all():
            raise BreakevenError("holds weights that are not finite")
        values_RC = np.ascontiguousarray(values_RC)
        if kind.name == F32:
            return values_RC.reshape(-1).view(np.uint8)
        counts = None
        if importance_C is not None:
            least = max(float(importance_C.mean()) * _LEAST_IMPORTANCE, float(np.finfo(np.float32).tiny))
            counts = np.ascontiguousarray(np.maximum(importance_C, least), np.float32)
        out = np.empty(kind.n_bytes(values_RC.size), np.uint8)
        where = None if counts is None else counts.ctypes.data
        written = self._c.ggml_quantize_chunk(
            kind.code, values_RC.ctypes.data, out.ctypes.data, 0, rows, columns, where
        )
        assert written == out.size, f"{kind.name}: {written} bytes where {out.size} were expected"
        return out
