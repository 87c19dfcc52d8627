"""What the lab says of a model's files: bytes and digest, format, bits a weight, experts, memory to score in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from breakeven.errors import UserError
from breakeven.hardware.reader import read_memory_room
from breakeven.model.architecture import StoredTensor
from breakeven.model.readers.gguf_file import label, parts, refuse_others, rows
from breakeven.model.readers.hf import CONFIG, read_json, safetensors_rows
from breakeven.model.readers.weights import digest_of, weight_files

GRAPH = "model.onnx"
_DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2}
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_EXPERTS_USED = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "top_k_experts")
_RESIDENT = 1.05
"""Bytes in memory over bytes of the file: tables, and what llama.cpp repacks is padded."""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """A GGUF (all parts of a split one) or a Hugging Face directory's weight files."""

    path: Path
    bytes: int
    format: str
    bits_per_weight: float
    n_experts: int
    """0 for a dense model."""
    n_experts_per_token: int | None
    """None for a dense model."""
    n_vocab: int
    n_positions: int
    """The longest context it is made for; 0 where that is not said."""
    cache_bytes_per_token: int
    """Of keys and values in 16 bits, at most: windows are not seen."""
    in_memory_bytes: int
    """Of the weights, loaded."""


def facts_of(path: Path) -> FileFacts:
    """Read the headers. Raises UserError for what is no model."""
    return _directory_facts(path) if path.is_dir() else _gguf_facts(path)


def is_onnx(path: Path) -> bool:
    """Whether a directory holds a graph for ONNX Runtime, as `export --to onnx` writes it, in single precision."""
    return (path / GRAPH).is_file()


def sha256_of(path: Path) -> str:
    """Of the file; of several that are one model, of all their bytes in order. Raises UserError."""
    return digest_of(weight_files(path))


def _gguf_facts(path: Path) -> FileFacts:
    headers = parts(path)
    first = headers[0]
    refuse_others(first)
    found: list[StoredTensor] = [row for header in headers for row in rows(header)]
    weights = sum(math.prod(row.shape) for row in found)
    if not weights:
        raise UserError(f"{path}: holds no weights; give a language model's file")

    def number(key: str) -> int:
        return _largest(first.metadata.get(f"{first.architecture}.{key}"))

    heads, kv_heads = number("attention.head_count"), number("attention.head_count_kv")
    usual = number("embedding_length") // heads if heads else 0
    width = (number("attention.key_length") or usual) + (number("attention.value_length") or usual)
    n_experts, used = number("expert_count"), number("expert_used_count")
    table = next((row for row in found if row.name == "token_embd.weight"), None)
    n_bytes = sum(header.file_bytes for header in headers)
    return FileFacts(
        path=path,
        bytes=n_bytes,
        format=label(first, found),
        bits_per_weight=sum(row.n_bytes for row in found) * 8 / weights,
        n_experts=n_experts,
        n_experts_per_token=used if n_experts else None,
        n_vocab=table.shape[0] if table else 0,
        n_positions=number("context_length"),
        cache_bytes_per_token=number("block_count") * (kv_heads or heads) * width * 2,
        in_memory_bytes=round(n_bytes * _RESIDENT),
    )


def _directory_facts(path: Path) -> FileFacts:
    config: Mapping[str, object] = read_json(path / CONFIG)
    if isinstance(inner := config.get("text_config"), Mapping):
        config = {**config, **inner}
    files = weight_files(path)
    sizes: dict[str, int] = {}
    weights = held = 0
    for file in files:
        for _, dtype, shape in safetensors_rows(file) if file.suffix == ".safetensors" else ():
            count = math.prod(shape)
            weights += count
            held += count * _DTYPE_BYTES.get(dtype, 1)
            sizes[dtype] = sizes.get(dtype, 0) + count

    def number(names: Iterable[str]) -> int:
        return next((found for name in names if (found := _largest(config.get(name)))), 0)

    heads, kv_heads = number(["num_attention_heads"]), number(["num_key_value_heads"])
    head = number(["head_dim"]) or (number(["hidden_size"]) // heads if heads else 0)
    n_experts = number(_EXPERTS)
    n_bytes = sum(file.stat().st_size for file in files)
    onnx = is_onnx(path)
    weights = weights or n_bytes // (4 if onnx else 2)
    return FileFacts(
        path=path,
        bytes=n_bytes,
        format=max(sizes, key=lambda kind: sizes[kind], default="onnx" if onnx else "unknown"),
        bits_per_weight=(held or n_bytes) * 8 / weights,
        n_experts=n_experts,
        n_experts_per_token=number(_EXPERTS_USED) or None if n_experts else None,
        n_vocab=number(["vocab_size"]),
        n_positions=number(["max_position_embeddings"]),
        cache_bytes_per_token=number(["num_hidden_layers"]) * (kv_heads or heads) * head * 2 * 4,
        in_memory_bytes=weights * 4,
    )


def _largest(value: object) -> int:
    """A whole number, the largest of a list of them; 0 for what is none."""
    if isinstance(value, list):
        return max((each for each in value if isinstance(each, int)), default=0)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def batch_that_fits(
    models: Sequence[FileFacts], positions: int, batch: int, *, small: bool, free_bytes: int | None = None
) -> int:
    """The largest batch, halved from `batch` down to 32, for which all fit into memory at once.

    `positions`: of the longest sequence; `small`: each is also run in small batches. Raises UserError, before anything
    is loaded, with what is needed and free.
    """
    free = free_memory() if free_bytes is None else free_bytes
    fixed = sum(each.in_memory_bytes + positions * each.cache_bytes_per_token * (1 + small) for each in models)
    # A batch's logits stand once in the graph and once where they are read.
    each_token = sum(2 * 4 * each.n_vocab for each in models)
    size = batch
    while size > 32 and fixed + size * each_token > free:
        size //= 2
    need = fixed + size * each_token
    if need > free:
        raise UserError(
            f"{_models(len(models))} need about {_gb(need)} in memory, and {_gb(free)} are free; "
            + ("evaluate two at a time with --against, or " if len(models) > 2 else "")
            + "end other programs, or take smaller files"
        )
    return size


def free_memory() -> int:
    """Bytes that this process may still take."""
    return min([psutil.virtual_memory().available, *(free for _, free in read_memory_room())])


def _models(count: int) -> str:
    return "the model" if count == 1 else f"the {count} models"


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.0f} MB"
