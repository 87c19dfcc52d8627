"""Small Mixture-of-Experts files whose experts are felt: every weight random, all in F32."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray
from small_models import small

from breakeven.engines.synthesis.write import synthesise
from breakeven.lab.surgery.container import OutTensor, SourceTensor, open_gguf, rewrite

LAYERS, EXPERTS, USED = 2, 8, 2
SMALL: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": LAYERS, "head_dim": 16, "intermediate_size": 96}
DEEPSEEK_V3: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "olmoe": {},
    "granitemoe": {},
    "deepseek2": DEEPSEEK_V3,
    "gpt-oss": {"layer_types": ["sliding_attention"]},
}


def toy(family: str, out: Path, **changes: Any) -> Path:
    """A small model in F32 whose weights are all random and large enough that each expert is felt."""
    spec = small(family, **{**SMALL, **FAMILIES.get(family, {}), **changes})
    reader = open_gguf(synthesise(spec, "F16", out.with_suffix(".plain")))
    rng = np.random.default_rng(3)
    tensors = []
    for tensor in reader.tensors:
        if "norm" in tensor.name or "rope" in tensor.name:
            data = np.array(tensor.data)
        else:
            spread = 0.3 if len(tensor.dims) == 1 or "bias" in tensor.name else tensor.dims[0] ** -0.5
            spread *= 3 if "_exps" in tensor.name or "gate_inp" in tensor.name else 1
            data = rng.normal(0, spread, math.prod(tensor.dims)).astype(np.float32).view(np.uint8)
        tensors.append(
            OutTensor(tensor.name, tensor.dims, GGMLQuantizationType.F32, data.nbytes, lambda data=data: iter((data,)))
        )
    rewrite(reader, out, {}, tensors)
    return out


def rewritten(
    source: Path, out: Path, values: Callable[[SourceTensor], NDArray[np.uint8]], numbers: dict[str, int] | None = None
) -> Path:
    """The same file with other values; a tensor that gets shorter has fewer experts, its last dimension."""
    reader = open_gguf(source)
    tensors = []
    for tensor in reader.tensors:
        data = np.ascontiguousarray(values(tensor)).ravel()
        dims = (*tensor.dims[:-1], tensor.dims[-1] * data.nbytes // tensor.data.nbytes)
        tensors.append(OutTensor(tensor.name, dims, tensor.kind, data.nbytes, lambda data=data: iter((data,))))
    rewrite(reader, out, numbers or {}, tensors)
    return out
