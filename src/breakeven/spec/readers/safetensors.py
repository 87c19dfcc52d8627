"""How many weights a checkpoint holds, from its safetensors headers or index; the weights are not read."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

from breakeven.errors import UserError

INDEX = "model.safetensors.index.json"

_NOT_TEXT = re.compile(r"vision|visual|audio|image|multi_modal|mm_projector|(^|\.)mtp\.|eh_proj|shared_head")
"""Towers for other senses and next-token-prediction blocks: published beside the language model, not part of it."""

_FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_BYTES_BY_DTYPE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
_MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""


def params_by_tensor(path: Path) -> dict[str, int]:
    """Weights in each tensor of one `.safetensors` file.

    Layout: uint64 length of the header, then that many bytes of JSON. Raises UserError for anything else.
    """
    return {name: math.prod(shape) for name, _, shape in _rows(path)}


def published_total(directory: Path, config: Mapping[str, object]) -> int | None:
    """Weights of the checkpoint whose files lie in `directory`; None when they do not say.

    Quantised and multimodal checkpoints say nothing usable in an index; their shapes do when the files are there.
    """
    files = sorted(directory.glob("*.safetensors"))
    index_path = directory / INDEX
    index = read_json(index_path) if index_path.is_file() else {}
    if files and _complete(files, index):
        return _total_of_files(files, config)
    return total_of_index(index, config)


def total_of_index(index: Mapping[str, object], config: Mapping[str, object]) -> int | None:
    """Weights that an index's `metadata` promises, by its own count or by bytes over the configuration's dtype."""
    metadata = index.get("metadata")
    if not isinstance(metadata, Mapping) or "quantization_config" in config or "vision_config" in config:
        return None
    total = metadata.get("total_parameters")
    if isinstance(total, int):
        return total
    total_bytes = metadata.get("total_size")
    dtype = config.get("dtype", config.get("torch_dtype"))
    size = _BYTES_BY_DTYPE.get(str(dtype))
    return int(total_bytes) // size if isinstance(total_bytes, int | float) and size else None


def read_json(path: Path) -> dict[str, object]:
    """A JSON object from a file; raises UserError when it cannot be read or is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); fetch it again") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds a {type(found).__name__}, it must be a JSON object")
    return found


def _complete(files: list[Path], index: Mapping[str, object]) -> bool:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, Mapping):
        return True
    return {str(name) for name in weight_map.values()} <= {file.name for file in files}


def _total_of_files(files: list[Path], config: Mapping[str, object]) -> int | None:
    layers = config.get("num_hidden_layers")
    total = 0
    for path in files:
        for name, dtype, shape in _rows(path):
            if dtype not in _FLOATS:
                return None  # packed weights: the shape is not the model's
            if not _NOT_TEXT.search(name) and not _beyond(name, layers):
                total += math.prod(shape)
    return total


def _beyond(name: str, layers: object) -> bool:
    index = re.search(r"\blayers\.(\d+)\.", name)
    return isinstance(layers, int) and index is not None and int(index[1]) >= layers


def _rows(path: Path) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    try:
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 2 <= length <= _MAX_HEADER_BYTES:
                raise UserError(f"{path}: not a safetensors file; give the file a Hugging Face model came with")
            text = file.read(length)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(text) < length:
        raise UserError(f"{path}: truncated: header promises {length + 8:,} bytes, file has {len(text) + 8:,}")
    try:
        header = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}: not a safetensors file (its header is not JSON: {error})") from error
    if not isinstance(header, dict):
        raise UserError(f"{path}: not a safetensors file (its header is no JSON object)")
    for name, row in header.items():
        if name == "__metadata__":
            continue
        shape = row.get("shape") if isinstance(row, dict) else None
        if not isinstance(shape, list) or not all(isinstance(n, int) and n >= 0 for n in shape):
            raise UserError(f"{path}: damaged safetensors header: tensor {name!r} has no shape; fetch it again")
        yield name, str(row.get("dtype")), tuple(shape)
