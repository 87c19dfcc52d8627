"""Weight formats of GPU engines (vLLM, SGLang, TensorRT-LLM): which matrices they quantize, and the bytes of that.

In practice only the linear layers inside the blocks are quantized: attention projections and feed-forwards, routed and
shared. The embedding, the output head, routers, norms, biases and convolutions keep 16 bits (recipes of LLM Compressor
and ModelOpt: targets Linear, ignore lm_head and the gates; vLLM's documentation, "Quantization").

Models with latent attention are published in 4 bits with that attention left as it is: DeepSeek in NVFP4 (card of
nvidia/DeepSeek-R1-FP4), Kimi in INT4, of its routed experts alone and in groups of 32 (moonshotai/Kimi-K2-Thinking,
config.json). gpt-oss quantizes its experts alone, too (arXiv 2508.10925).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from breakeven.model.architecture import Mla, ModelSpec
from breakeven.model.formats.ggml import GgmlType
from breakeven.model.tensors import Tensor, TensorGroup, tensors


class GpuType(StrEnum):
    """How a GPU engine stores one matrix, where ggml has no type like it."""

    FP8 = "FP8"
    NVFP4 = "NVFP4"
    INT8 = "INT8"
    INT4 = "INT4"
    INT4_G32 = "INT4_G32"


NumberType = GgmlType | GpuType

_LAYOUT: dict[GpuType, tuple[float, int | None, float]] = {
    GpuType.FP8: (8, None, 4),  # one scale a row (compressed-tensors, strategy channel)
    GpuType.INT8: (8, None, 4),
    GpuType.INT4: (4, 128, 2),  # one 16-bit scale for 128 weights (GPTQ, AWQ, W4A16); AWQ's zeros add 4 bits
    GpuType.INT4_G32: (4, 32, 2),
    GpuType.NVFP4: (4, 16, 1),  # one FP8 scale for 16 weights, and one a tensor (ModelOpt, group_size 16)
}
"""Bits a weight, weights that share a scale (None: a row), bytes of a scale."""


_ROUTED = frozenset({TensorGroup.ROUTED_EXPERTS})
_FEED_FORWARD = _ROUTED | {TensorGroup.SHARED_EXPERTS, TensorGroup.DENSE_FFN}
_LINEAR = _FEED_FORWARD | {TensorGroup.ATTENTION}
_KEPT = ("ssm_conv1d", "shortconv.conv", "ssm_ba", "ssm_alpha", "ssm_beta", "ffn_gate_inp", "attn_sinks")


@dataclass(frozen=True, slots=True)
class GpuFormat:
    """A weight format of GPU engines: matrices of `groups` are stored as `linear`, everything else as BF16.

    `latent_groups` and `latent_linear` replace them in Mixture-of-Experts models with latent attention.
    """

    name: str
    linear: NumberType
    summary: str
    groups: frozenset[TensorGroup] = _LINEAR
    latent_groups: frozenset[TensorGroup] = _LINEAR
    latent_linear: NumberType | None = None


GPU_FORMATS: dict[str, GpuFormat] = {
    f.name: f
    for f in (
        GpuFormat("FP8", GpuType.FP8, "linear layers in 8-bit floats"),
        GpuFormat("INT8", GpuType.INT8, "linear layers in 8-bit integers (W8A8)"),
        GpuFormat(
            "INT4",
            GpuType.INT4,
            "linear layers in 4-bit integers (GPTQ, AWQ, W4A16)",
            latent_groups=_ROUTED,
            latent_linear=GpuType.INT4_G32,
        ),
        GpuFormat("NVFP4", GpuType.NVFP4, "linear layers in NVIDIA's 4-bit floats", latent_groups=_FEED_FORWARD),
        GpuFormat(
            "MXFP4_BF16",
            GgmlType.MXFP4,
            "experts in 4-bit floats, the rest in BF16: gpt-oss as GPU engines run it",
            _ROUTED,
            _ROUTED,
        ),
    )
}


def gpu_tensor_bytes(tensor: Tensor, kind: GpuType) -> int:
    """Bytes of a tensor in this type, its scales included; a last group that is not full has a scale of its own."""
    bits, group, scale_bytes = _LAYOUT[kind]
    row = tensor.shape[-1]
    rows = math.prod(tensor.shape) // row
    scales = rows * (1 if group is None else -(-row // group))
    return math.ceil(tensor.params * bits / 8 + scales * scale_bytes)


def gpu_tensor_types(spec: ModelSpec, chosen: GpuFormat) -> dict[str, NumberType]:
    """The type of every tensor of a model, by name, in a format of GPU engines."""
    latent = spec.is_moe and any(isinstance(mixer, Mla) for layer in spec.layers for mixer in layer.mixers)
    groups = chosen.latent_groups if latent else chosen.groups
    linear = (chosen.latent_linear if latent else None) or chosen.linear
    return {
        tensor.name: linear if tensor.group in groups and _linear(tensor) else GgmlType.BF16 for tensor in tensors(spec)
    }


def _linear(tensor: Tensor) -> bool:
    matrix = len(tensor.shape) - (1 if tensor.group is TensorGroup.ROUTED_EXPERTS else 0) > 1
    return matrix and tensor.name.endswith("weight") and not any(part in tensor.name for part in _KEPT)
