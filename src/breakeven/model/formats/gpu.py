"""Weight formats of GPU engines (vLLM, SGLang, TensorRT-LLM) and of MLX: which matrices they store how, and the bytes.

In practice only the linear layers inside the blocks are quantized: attention projections and feed-forwards, routed and
shared. The embedding, the output head, routers, norms, biases and convolutions keep 16 bits (recipes of LLM Compressor
and ModelOpt: targets Linear, ignore lm_head and the gates; vLLM's documentation, "Quantization"); so do tables read by
row, and what mixes residual streams (LLM Compressor's example for Gemma 3n ignores its per-layer inputs, AltUp and
Laurel). MLX quantizes embeddings and the head as well (mlx-lm, `quantize_model`).

Models with latent attention are published in 4 bits with that attention left as it is: DeepSeek in NVFP4 (card of
nvidia/DeepSeek-R1-FP4), Kimi in INT4, of its routed experts alone and in groups of 32 (moonshotai/Kimi-K2-Thinking,
config.json). gpt-oss quantizes its experts alone, too (arXiv 2508.10925). A checkpoint whose configuration says what
it leaves out is stored as it says.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from breakeven.model.architecture import Mla, ModelSpec, Quantization
from breakeven.model.formats.ggml import GgmlType, OwnType
from breakeven.model.formats.modules import Modules
from breakeven.model.tensors import Tensor, TensorGroup, group_of, tensors


@dataclass(frozen=True, slots=True)
class GpuType:
    """How an engine stores one matrix, where ggml has no type like it. `value` is its name.

    `bits` a weight; `group` weights of a row share a scale (None: the whole row), and so do `rows` rows (0: all of a
    matrix). `scale_bytes`: the scale with its zero point or bias.
    """

    value: str
    bits: float
    group: int | None
    scale_bytes: float
    rows: int = 1

    def __str__(self) -> str:
        return self.value


NumberType = GgmlType | GpuType | OwnType

_ROUTED = frozenset({TensorGroup.ROUTED_EXPERTS})
_FEED_FORWARD = _ROUTED | {TensorGroup.SHARED_EXPERTS, TensorGroup.DENSE_FFN}
_LINEAR = _FEED_FORWARD | {TensorGroup.ATTENTION}
_TABLES = frozenset({TensorGroup.EMBEDDING, TensorGroup.OUTPUT_HEAD, TensorGroup.TABLE})
_KEPT = (
    *("ssm_conv1d", "shortconv.conv", "ple_conv1d", "ssm_ba", "ssm_alpha", "ssm_beta"),
    *("ffn_gate_inp", "attn_sinks", "indexer.proj", "compressor_ape"),
)
"""Convolutions, gates of one number a head and tables of positions are no linear layers, or are left out as tiny."""
_STREAM_LINEAR = ("ple_key.", "ple_value.")
"""Projections among what mixes streams: of what an n-gram table returns."""


@dataclass(frozen=True, slots=True)
class GpuFormat:
    """A weight format of GPU engines: matrices of `groups` are stored as `linear`, everything else as BF16.

    `latent_groups` and `latent_linear` replace them in Mixture-of-Experts models with latent attention. `home`: whose
    format it is.
    """

    name: str
    linear: NumberType
    summary: str
    groups: frozenset[TensorGroup] = _LINEAR
    latent_groups: frozenset[TensorGroup] = _LINEAR
    latent_linear: NumberType | None = None
    home: str = "GPU engines"


MLX = "MLX"
"""The home of formats of mlx-lm."""


FP8 = GpuType("FP8", 8, None, 4)  # one scale a row (compressed-tensors, strategy channel)
INT8 = GpuType("INT8", 8, None, 4)
NVFP4 = GpuType("NVFP4", 4, 16, 1)  # one FP8 scale for 16 weights, and one a tensor (ModelOpt, group_size 16)

GPU_FORMATS: dict[str, GpuFormat] = {
    f.name: f
    for f in (
        GpuFormat("FP8", FP8, "linear layers in 8-bit floats"),
        GpuFormat("INT8", INT8, "linear layers in 8-bit integers (W8A8)"),
        GpuFormat(
            "INT4",
            GpuType("INT4", 4, 128, 2),  # one 16-bit scale for 128 weights (W4A16); AWQ's zeros add 4 bits
            "linear layers in 4-bit integers (GPTQ, AWQ, W4A16)",
            latent_groups=_ROUTED,
            latent_linear=GpuType("INT4_G32", 4, 32, 2),
        ),
        GpuFormat("NVFP4", NVFP4, "linear layers in NVIDIA's 4-bit floats", latent_groups=_FEED_FORWARD),
        GpuFormat(
            "MXFP4_BF16",
            GgmlType.MXFP4,
            "experts in 4-bit floats, the rest in BF16: gpt-oss as GPU engines run it",
            _ROUTED,
            _ROUTED,
        ),
    )
}
"""The usual ones, which lists show."""


def _linear_format(kind: GpuType, summary: str) -> GpuFormat:
    return GpuFormat(kind.value, kind, summary)


def _mlx(kind: GpuType, summary: str) -> GpuFormat:
    everything = _LINEAR | _TABLES | {TensorGroup.STREAM}
    return GpuFormat(kind.value, kind, summary, everything, everything, home=MLX)


_FURTHER: dict[str, GpuFormat] = {
    f.name: f
    for f in (
        _linear_format(GpuType("FP8_TENSOR", 8, None, 4, rows=0), "8-bit floats, one scale a matrix"),
        _linear_format(GpuType("FP8_BLOCK", 8, 128, 4, rows=128), "8-bit floats, one scale for 128 x 128 (DeepSeek)"),
        _linear_format(GpuType("MXFP8", 8, 32, 1), "8-bit floats, an 8-bit scale for every 32"),
        _linear_format(GpuType("MXFP4_LINEAR", 4, 32, 1), "all linear layers in 4-bit floats, a scale for every 32"),
        _linear_format(GpuType("AWQ", 4, 128, 2.5), "4-bit integers, a scale and a zero point for every 128"),
        # bitsandbytes: a 32-bit scale for every 64, or those scales in 8 bits with one for every 256 of them
        _linear_format(GpuType("NF4", 4, 64, 4), "4 bits from a table of values (bitsandbytes)"),
        _linear_format(GpuType("NF4_DQ", 4, 64, 1 + 4 / 256), "NF4 with its scales in 8 bits (double quantization)"),
        _mlx(GpuType("MLX_MXFP4", 4, 32, 1), "MLX's 4-bit floats, a scale for every 32"),
        _mlx(GpuType("MLX_MXFP8", 8, 32, 1), "MLX's 8-bit floats, a scale for every 32"),
        _mlx(GpuType("MLX_NVFP4", 4, 16, 1), "MLX's 4-bit floats, a scale for every 16"),
    )
}

_ALIASES = {"AWQ_G128": "AWQ", "GPTQ": "GPTQ4_G128", "INT4_G128": "INT4"}
_PATTERN = re.compile(r"(INT|GPTQ|AWQ|MLX)([234568]?)(?:_G(8|16|32|64|128|256|512|1024)|_(ROW))?")
COMMON: tuple[str, ...] = (
    *_FURTHER,
    *("INT4_G64", "INT4_G32", "AWQ_G64", "AWQ_G32", "GPTQ4_G128", "GPTQ8_G128"),
    *(f"MLX{bits}{group}" for bits in (3, 4, 5, 6, 8) for group in ("", "_G32")),
)
"""Names of further formats; others of these families follow their pattern: bits, then weights that share a scale."""


@lru_cache(maxsize=256)
def gpu_format(name: str) -> GpuFormat | None:
    """The format of this name in capitals, None when there is none.

    INT<bits>_G<group> has 16-bit scales; GPTQ<bits>_G<group> and AWQ_G<group> packed zero points too; MLX<bits> and
    MLX<bits>_G<group> a 16-bit scale and a 16-bit bias for every 64, or group. `_ROW` is one scale a row.
    """
    name = _ALIASES.get(name, name)
    known = GPU_FORMATS.get(name) or _FURTHER.get(name)
    found = _PATTERN.fullmatch(name)
    if known is not None or found is None:
        return known
    family, bits, group, row = found.groups()
    if family == "MLX":
        if not bits or row:
            return None
        # As mlx-lm does by itself, 64 goes without saying.
        return gpu_format(f"MLX{bits}") if group == "64" else _mlx_integers(name, int(bits), int(group or 64))
    if (family == "AWQ") == bool(bits) or not (group or row):
        return None
    zeros = {"INT": 0.0, "AWQ": 0.5}.get(family, int(bits or 4) / 8)
    kind = GpuType(name, int(bits or 4), int(group) if group else None, 2 + zeros)
    what = "a scale and a zero point" if zeros else "a scale"
    return _linear_format(kind, f"{kind.bits}-bit integers, {what} for every {group or 'row'}")


def _mlx_integers(name: str, bits: int, group: int) -> GpuFormat:
    return _mlx(GpuType(name, bits, group, 4), f"MLX in {bits} bits, a scale and a bias for every {group}")


def gpu_tensor_bytes(tensor: Tensor, kind: GpuType) -> int:
    """Bytes of a tensor in this type, its scales included; a last group that is not full has a scale of its own."""
    row = tensor.shape[-1]
    high = tensor.shape[-2] if len(tensor.shape) > 1 else 1
    elements = math.prod(tensor.shape)
    matrices = elements // (row * high) if row * high else 0
    across = 1 if kind.group is None or kind.rows == 0 else -(-row // kind.group)
    down = 1 if kind.rows == 0 else -(-high // kind.rows)
    return math.ceil(elements * kind.bits / 8 + matrices * across * down * kind.scale_bytes)


def gpu_tensor_types(spec: ModelSpec, chosen: GpuFormat) -> dict[str, NumberType]:
    """The type of every tensor of a model, by name, in a format of GPU engines.

    Where it is the format that the model is published in, what its configuration says of modules holds.
    """
    said = spec.quantization
    if said is not None and said.format_name == chosen.name:
        return dict(_published_types(spec, said, chosen))
    latent = spec.is_moe and any(isinstance(mixer, Mla) for layer in spec.layers for mixer in layer.mixers)
    groups = chosen.latent_groups if latent else chosen.groups
    linear = (chosen.latent_linear if latent else None) or chosen.linear
    return {t.name: linear if _linear(t, groups) and _fits(t, chosen) else GgmlType.BF16 for t in tensors(spec)}


@lru_cache(maxsize=32)
def _published_types(spec: ModelSpec, said: Quantization, chosen: GpuFormat) -> Mapping[str, NumberType]:
    modules = Modules(spec, said)
    routed = gpu_format(said.experts) if said.experts else None
    return {t.name: _published(t, chosen, routed, modules) for t in tensors(spec)}


def _published(tensor: Tensor, chosen: GpuFormat, routed: GpuFormat | None, modules: Modules) -> NumberType:
    if not _matrix(tensor):
        return GgmlType.BF16
    other = modules.other_format(tensor)
    if other is not None:
        found = gpu_format(other)
        return found.linear if found is not None else GgmlType.BF16
    if not (_linear(tensor, chosen.groups) and _fits(tensor, chosen)) or modules.is_kept(tensor):
        return GgmlType.BF16
    return routed.linear if routed is not None and _role(tensor) is TensorGroup.ROUTED_EXPERTS else chosen.linear


def _role(tensor: Tensor) -> TensorGroup:
    """What a tensor is for, in a drafting block too."""
    if tensor.group is not TensorGroup.MTP:
        return tensor.group
    stem = tensor.name.split(".", 2)[-1] if tensor.layer is not None else tensor.name
    return group_of(stem) or TensorGroup.MTP


def _matrix(tensor: Tensor) -> bool:
    stacked = _role(tensor) is TensorGroup.ROUTED_EXPERTS
    return len(tensor.shape) - (1 if stacked else 0) > 1 and tensor.name.endswith("weight")


def _linear(tensor: Tensor, groups: frozenset[TensorGroup]) -> bool:
    role = _role(tensor)
    # Projections of an n-gram table's rows are linear layers that mix streams.
    inside = role in groups or (
        TensorGroup.ATTENTION in groups
        and role is TensorGroup.STREAM
        and any(part in tensor.name for part in _STREAM_LINEAR)
    )
    return inside and _matrix(tensor) and not any(part in tensor.name for part in _KEPT)


def _fits(tensor: Tensor, chosen: GpuFormat) -> bool:
    """MLX leaves a matrix as it is when its rows are not whole groups."""
    kind = chosen.linear
    if chosen.home != MLX or not isinstance(kind, GpuType) or kind.group is None:
        return True
    return tensor.shape[-1] % kind.group == 0


def integers(bits: int, group: int | None, family: str) -> str:
    """A format's name; `family`: INT with a scale, GPTQ with a zero point beside it, AWQ in 4 bits."""
    return f"{family}{'' if family == 'AWQ' else bits}{f'_G{group}' if group else '_ROW'}"


def integer_family(bits: int, zeros: bool) -> str:
    """What `integers` calls a format with or without zero points."""
    return ("AWQ" if bits == 4 else "GPTQ") if zeros else "INT"
