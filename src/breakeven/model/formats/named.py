"""Weight formats by name: which number type every tensor of a model gets, and how many bytes that is.

Three kinds: the types a file has (`file`), mixtures of llama.cpp (`gguf`) and the formats of GPU engines and MLX
(`gpu`). What reads a format here does not care which it is; what writes files for llama.cpp asks for `gguf_types`.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from breakeven.errors import NotSupportedError, UserError
from breakeven.model.architecture import ModelSpec
from breakeven.model.formats.caches import DO_AS_ASKED, KV_TYPES, kv_element_bytes, kv_for
from breakeven.model.formats.ggml import (
    BLOCKS,
    GgmlType,
    OwnType,
    block_bytes,
    block_size,
)
from breakeven.model.formats.gguf import FORMATS, Format, category, own_types, types_in
from breakeven.model.formats.gpu import (
    COMMON,
    GPU_FORMATS,
    GpuFormat,
    GpuType,
    NumberType,
    gpu_format,
    gpu_tensor_bytes,
    gpu_tensor_types,
)
from breakeven.model.formats.published import quantization_of
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
    "OwnFormat",
    "block_bytes",
    "block_size",
    "category",
    "default_format",
    "default_kv",
    "format_for",
    "format_named",
    "gguf_types",
    "kv_element_bytes",
    "kv_for",
    "label",
    "only_format",
    "quantization_of",
    "tensor_bytes",
    "tensor_types",
]

OWN = "file"
"""The name of the format that a file has: every tensor in its own type."""


@dataclass(frozen=True, slots=True)
class OwnFormat:
    """The types that the tensors of a file have."""

    name: str = OWN
    summary: str = "the file's own types, tensor by tensor"


_OWN_FORMAT = OwnFormat()
_ALIASES = {"FP16": "F16", "FLOAT16": "F16", "BFLOAT16": "BF16", "MXFP4_MOE": "MXFP4"}

DEFAULT_FORMATS: Mapping[str, str] = {"vllm": "BF16", "sglang": "BF16"}
"""What models are stored in by engine where nobody says; Q4_K_M, the usual choice of local machines, for all others."""

_ONLY_IN: tuple[tuple[str, str], ...] = (
    ("gpt-oss", "MXFP4"),  # openai/gpt-oss-20b, -120b: config.json says mxfp4; no other weights were published
    ("kimi-k2-thinking", "INT4"),  # moonshotai/Kimi-K2-Thinking, -K2.5 and later: trained for INT4, published in it
    ("kimi-k2.5", "INT4"),
    ("kimi-k2.6", "INT4"),
    ("kimi-k2.7", "INT4"),
    ("deepseek-v3", "FP8_BLOCK"),  # deepseek-ai/DeepSeek-V3 to V3.2 and R1: trained in FP8, published in it
    ("deepseek-r1", "FP8_BLOCK"),
    ("minimax-m2", "FP8_BLOCK"),  # MiniMaxAI/MiniMax-M2 and M2.5
    ("mimo-v2", "FP8_BLOCK"),  # XiaomiMiMo/MiMo-V2-Flash
)
"""Mixtures of experts that their makers published in one format only, by the beginning of their names."""

_SAYS_FORMAT = re.compile(r"fp8|fp4|awq|gptq|int[48]|w[48]a|bnb|\dbit|\d-bit|mlx", re.IGNORECASE)


def format_named(name: str) -> Format | GpuFormat | OwnFormat:
    """The format of this name, in any case; raises UserError that offers the nearest names."""
    asked = name.strip().upper()
    asked = _ALIASES.get(asked, asked)
    if asked == OWN.upper():
        return _OWN_FORMAT
    found = FORMATS.get(asked) or gpu_format(asked)
    if found is None:
        known = [*FORMATS, *GPU_FORMATS, *COMMON]
        near = difflib.get_close_matches(asked, known, n=3, cutoff=0.3) or known
        raise UserError(f"no weight format is called {name!r}; try {', '.join(near)}")
    return found


def format_for(engine: str, name: str) -> Format | GpuFormat | OwnFormat:
    """The format that an engine means by this name: MXFP4 is not the same to llama.cpp as to GPU engines.

    Raises UserError for an unknown name, NotSupportedError for a format that the engine cannot read.
    """
    found = format_named(name)
    if engine == "llama.cpp":
        return found if isinstance(found, OwnFormat) else _refuse_gpu_format(found)
    if isinstance(found, OwnFormat):
        raise NotSupportedError(
            f"{engine} does not run a GGUF file as it is, llama.cpp does; leave --engine out, or name a format of "
            f"{engine}'s with --format, such as {DEFAULT_FORMATS.get(engine, 'BF16')}"
        )
    return GPU_FORMATS["MXFP4_BF16"] if found.name == "MXFP4" else found


def default_format(spec: ModelSpec, engine: str) -> str:
    """The format a model is stored in when nobody says.

    A file has its own types; a checkpoint is as its configuration says; some models exist in one format only; all
    others are what people run on the engine. llama.cpp reads no checkpoint: under it one counts as it is where it was
    named as such, by its own configuration or a name that says the format; of models known by name people take a GGUF.
    """
    if spec.stored is not None:
        return OWN
    if spec.quantization is not None:
        said = spec.quantization.format_name
        if said == "MXFP4_BF16":
            return "MXFP4"
        if engine != "llama.cpp" or _SAYS_FORMAT.search(spec.name) or Path(spec.source).exists():
            return said
        return DEFAULT_FORMATS.get(engine, "Q4_K_M")
    only = only_format(spec.name, spec.is_moe)
    if only is not None and (engine in DEFAULT_FORMATS or only in FORMATS):
        return only
    return DEFAULT_FORMATS.get(engine, "Q4_K_M")


def only_format(model: str, is_moe: bool) -> str | None:
    """The format that a mixture of experts was trained in, so that nothing finer of it was published; else None."""
    name = model.rsplit("/", 1)[-1].lower()
    # Small dense models taught by these bear their names, and so do copies that others widened to 16 bits.
    same = is_moe and not any(width in name for width in ("bf16", "fp16"))
    return next((chosen for start, chosen in _ONLY_IN if same and name.startswith(start)), None)


def label(spec: ModelSpec, format_name: str) -> str:
    """A format as people see it: a file's own is called what the file calls its mixture."""
    chosen = format_named(format_name)
    return spec.stored.label if isinstance(chosen, OwnFormat) and spec.stored is not None else chosen.name


def tensor_bytes(tensor: Tensor, kind: NumberType) -> int:
    """Bytes of a tensor stored in this type; raises ValueError when its rows are not whole ggml blocks."""
    if isinstance(kind, OwnType):
        return kind.n_bytes
    if isinstance(kind, GpuType):
        return gpu_tensor_bytes(tensor, kind)
    size, nbytes = BLOCKS[kind]
    if tensor.shape[-1] % size:
        raise ValueError(f"{tensor.name}: rows of {tensor.shape[-1]} elements are not whole {kind} blocks of {size}")
    return math.prod(tensor.shape) // size * nbytes


def tensor_types(spec: ModelSpec, format_name: str) -> Mapping[str, NumberType]:
    """The type of every tensor of a model, by name: in its file, in a format of llama.cpp or of GPU engines.

    Raises UserError for an unknown format, and for the file's own where the model was read from no file.
    """
    chosen = format_named(format_name)
    if isinstance(chosen, OwnFormat):
        if spec.stored is None:
            raise UserError(
                f"{spec.name} was not read from a weight file, so it has no types of its own; "
                "name a format, such as Q4_K_M, or give the path of a .gguf file"
            )
        return own_types(spec)
    return gpu_tensor_types(spec, chosen) if isinstance(chosen, GpuFormat) else types_in(spec, chosen)


def gguf_types(spec: ModelSpec, format_name: str) -> dict[str, GgmlType]:
    """`tensor_types` of a format of llama.cpp.

    Raises UserError for an unknown format, NotSupportedError for one of GPU engines and for types ggml has none like.
    """
    chosen = format_named(format_name)
    if isinstance(chosen, OwnFormat):
        kinds = tensor_types(spec, format_name)
        known = {name: kind for name, kind in kinds.items() if isinstance(kind, GgmlType)}
        if len(known) < len(kinds):
            odd = next(str(kind) for name, kind in kinds.items() if name not in known)
            raise NotSupportedError(f"{spec.name}: no tensor of type {odd} can be written; name a format with --format")
        return known
    return types_in(spec, _refuse_gpu_format(chosen))


def _refuse_gpu_format(chosen: Format | GpuFormat) -> Format:
    if isinstance(chosen, GpuFormat):
        raise NotSupportedError(
            f"{chosen.name} is a format of {chosen.home} and llama.cpp cannot read it; "
            "choose one of its own, such as Q8_0, Q4_K_M or MXFP4 (`breakeven models NAME` lists them with their sizes)"
        )
    return chosen


def default_kv(spec: ModelSpec, engine: str, format_name: str) -> str:
    """The type of keys and values a model gets when nobody says: 16 bits, or what its checkpoint asks for.

    The latter in engines that do as it says, where it runs in the format that it was published in.
    """
    asked = spec.kv_cache
    if asked not in KV_TYPES or engine not in DO_AS_ASKED:
        return "f16"
    published = format_for(engine, default_format(spec, engine)).name
    return asked if format_for(engine, format_name).name == published else "f16"
