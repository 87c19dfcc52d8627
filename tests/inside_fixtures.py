"""Small real Mixture-of-Experts files, cut out of SmolLM2 by the project's own surgery."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from breakeven.lab.surgery.container import OutTensor, SourceTensor, open_gguf, rewrite

PROSE = "The lighthouse keeper climbed the stairs every evening, and on the last night of autumn the lamp stayed dark."
CODE = "def total(values):\n    result = 0\n    for value in values:\n        result += value\n    return result\n"


def decoded_shallow_copy(source: Path, out: Path, layers: int) -> Path:
    """SmolLM2's first layers with every weight decoded to F32: products without the rounding of activations."""
    reader = open_gguf(source)

    def decoded(tensor: SourceTensor) -> OutTensor:
        rows = tensor.data.view(np.float32) if tensor.kind == GGMLQuantizationType.F32 else tensor.data
        values = dequantize(rows, tensor.kind).reshape(-1).view(np.uint8)
        return OutTensor(tensor.name, tensor.dims, GGMLQuantizationType.F32, values.nbytes, lambda: iter((values,)))

    kept = [t for t in reader.tensors if not t.name.startswith("blk.") or int(t.name.split(".")[1]) < layers]
    rewrite(reader, out, {"llama.block_count": layers}, [decoded(tensor) for tensor in kept])
    return out
