"""Weight formats by name: which number type every tensor of a model gets, and how many bytes that is.

Two worlds: files of llama.cpp (`gguf`) and the formats of GPU engines (`gpu`). What reads a format here
does not care which it is; what writes files for llama.cpp asks for `gguf_types`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping

from breakeven.errors import NotSupportedError, UserError
from breakeven.model.architecture import Gqa, ModelSpec
from breakeven.model.formats.ggml import BLOCKS, GgmlType, block_bytes, block_size
from breakeven.model.formats.gguf import FORMATS, Format, category, types_in
from breakeven.model.formats.gpu import GPU_FORMATS, GpuFormat, GpuType, NumberType, gpu_tensor_bytes, gpu_tensor_types
from breakeven.model.tensors import Tensor

__all__ = [
    "FORMATS",
    "GPU_FORMATS",
    "KV_TYPES",
    "OWN",
    "Format",
    "GgmlType",
    "GpuFormat",
    "NumberType",
    "block_bytes",
    "block_size",
    "category",
    "default_format",
    "format_for",
    "format_named",
    "gguf_types",
    "kv_element_bytes",
    "kv_for",
    "label",
    "tensor_bytes",
    "tensor_types",
]

_ALIASES = {"FP16": "F16", "FLOAT16": "F16", "BFLOAT16": "BF16"}


def format_named(name: str) -> Format | GpuFormat:
    """The format of this name, in any case; raises UserError that offers the nearest names."""
    asked = name.strip().upper()
    asked = _ALIASES.get(asked, asked)
    found = FORMATS.get(asked) or GPU_FORMATS.get(asked)
    if found is None:
        known = [*FORMATS, *GPU_FORMATS]
        near = difflib.get_close_matches(asked, known, n=3, cutoff=0.3) or known
        raise UserError(f"no weight format is called {name!r}; try {', '.join(near)}")
    return found


def format_for(engine: str, name: str) -> Format | GpuFormat:
    """The format that an engine means by this name: MXFP4 is not the same to llama.cpp as to GPU engines.

    Raises UserError for an unknown name, NotSupportedError for a format that llama.cpp cannot read.
    """
    found = format_named(name)
    if engine == "llama.cpp":
        _refuse_gpu_format(found)
    elif found.name == "MXFP4":
        return GPU_FORMATS["MXFP4_BF16"]
    return found


def tensor_bytes(tensor: Tensor, kind: NumberType) -> int:
    """Bytes of a tensor stored in this type; raises ValueError when its rows are not whole ggml blocks."""
    if isinstance(kind, GpuType):
        return gpu_tensor_bytes(tensor, kind)
    size, nbytes = BLOCKS[kind]
    if tensor.shape[-1] % size:
        raise ValueError(f"{tensor.name}: rows of {tensor.shape[-1]} elements are not whole {kind} blocks of {size}")
    return math.prod(tensor.shape) // size * nbytes


def tensor_types(spec: ModelSpec, format_name: str) -> Mapping[str, NumberType]:
    """The type of every tensor of a model, by name, in a format of llama.cpp or of GPU engines.

    Raises UserError for an unknown format.
    """
    chosen = format_named(format_name)
    return gpu_tensor_types(spec, chosen) if isinstance(chosen, GpuFormat) else types_in(spec, chosen)


def gguf_types(spec: ModelSpec, format_name: str) -> dict[str, GgmlType]:
    """`tensor_types` of a format of llama.cpp.

    Raises UserError for an unknown format, NotSupportedError for one of GPU engines.
    """
    return types_in(spec, _refuse_gpu_format(format_named(format_name)))


def _refuse_gpu_format(chosen: Format | GpuFormat) -> Format:
    if isinstance(chosen, GpuFormat):
        raise NotSupportedError(
            f"{chosen.name} is a format of GPU engines and llama.cpp cannot read it; "
            "choose one of its own, such as Q8_0, Q4_K_M or MXFP4 (`breakeven models NAME` lists them with their sizes)"
        )
    return chosen


OWN = "file"
"""Every tensor as the file that a model was read from has it."""

KV_TYPES: dict[str, float] = {
    "f32": 4.0,
    "f16": 2.0,
    "bf16": 2.0,
    "fp8": 1.0,
    "q8_0": 34 / 32,
    "q5_1": 24 / 32,
    "q5_0": 22 / 32,
    "q4_1": 20 / 32,
    "q4_0": 18 / 32,
    "iq4_nl": 18 / 32,
}
"""Bytes of an element of keys and values."""


def kv_element_bytes(name: str) -> float:
    """Bytes of an element of keys and values in a type; raises UserError for an unknown one."""
    found = KV_TYPES.get(name.strip().lower())
    if found is None:
        raise UserError(f"no type of keys and values is called {name!r}; there are {', '.join(KV_TYPES)}")
    return found


def default_format(spec: ModelSpec, engine: str) -> str:
    """The format a model is run in when nobody says."""
    if spec.stored is not None:
        return OWN
    if spec.quantization is not None and engine != "llama.cpp":
        return spec.quantization.format_name
    return "BF16" if engine == "vllm" else "Q4_K_M"


def label(spec: ModelSpec, format_name: str) -> str:
    """A format as people see it."""
    return spec.stored.label if format_name == OWN and spec.stored is not None else format_name


_KV_OF_ENGINES = {
    "llama.cpp": tuple(name for name in KV_TYPES if name != "fp8"),
    "vllm": ("f16", "bf16", "fp8"),
}


def kv_for(engine: str, name: str, spec: ModelSpec | None = None) -> str:
    """The type of keys and values that an engine is asked for, by its own name.

    Raises UserError for an unknown type, NotSupportedError for one that the engine does not keep, or not of `spec`.
    """
    size = kv_element_bytes(name)
    asked = name.strip().lower()
    able = _KV_OF_ENGINES.get(engine)
    if able is not None and asked not in able:
        others = [other for other, names in _KV_OF_ENGINES.items() if asked in names]
        elsewhere = f", or give --engine {others[0]}" if others else ""
        raise NotSupportedError(f"{engine} keeps no {asked} keys and values; give one of {', '.join(able)}{elsewhere}")
    if engine == "llama.cpp" and size < 2 and spec is not None:
        heads = [mixer for layer in spec.layers for mixer in layer.mixers if isinstance(mixer, Gqa)]
        odd = [width for a in heads for width in (a.head_dim, a.value_dim) if width % KV_BLOCK]
        if odd:
            raise NotSupportedError(
                f"{spec.name}: llama.cpp cannot keep heads of {odd[0]} elements in {asked}, whose blocks are of "
                f"{KV_BLOCK}; give --kv f16"
            )
    return asked


KV_BLOCK = 32
"""Elements of one block of every quantised type of keys and values (src/llama-context.cpp refuses a part of one)."""
