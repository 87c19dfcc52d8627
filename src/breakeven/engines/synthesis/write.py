"""Write a synthetic GGUF: header, then every tensor streamed to disk in file order.

Whether there is a place for it, and room, is asked before the first byte. Its tokenizer is of bytes and encodes any
text: token i < 256 stands for one byte in GPT-2's printable alphabet. The rest of the vocabulary are words no text
encodes to, but which a synthetic model generates: each decodes to visible text, so every generated token reaches the
client.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize

from breakeven.engines.source import SYNTHETIC
from breakeven.engines.synthesis.fill import (
    TOKEN_TABLE,
    BlockPool,
    Bytes,
    Fill,
    Values,
    embedding_std,
    experts_by_token,
    rotary_factors,
    values_of,
)
from breakeven.engines.synthesis.routing import Doubles, ExpertUse, biases_for, router_rows
from breakeven.errors import BreakevenError, NotSupportedError, UserError
from breakeven.model.architecture import Gqa, ModelSpec, MoeFfn, QkNorm
from breakeven.model.formats.named import gguf_types
from breakeven.model.layouts.registry import FAMILIES, why_not_written
from breakeven.model.tensors import Tensor, tensors


def check_room(out: Path, needed_bytes: int, advice: str) -> None:
    """Raise UserError, ending in `advice`, unless `out`'s directory exists, is writable and has `needed_bytes` free."""
    if not out.parent.is_dir():
        raise UserError(f"{out.parent} is not a directory; make it, or choose another place")
    if not os.access(out.parent, os.W_OK):
        raise UserError(f"{out.parent} is read-only; choose another place")
    free = shutil.disk_usage(out.parent).free
    if free < needed_bytes:
        raise UserError(f"{out.name} needs {_size(needed_bytes)} and {out.parent} has {_size(free)} free; {advice}")


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 10**9 else f"{n_bytes / 1e6:.1f} MB"


N_SPECIAL = 3
BOS, EOS, PAD = 256, 257, 258
NORMAL, CONTROL = 1, 3
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-in for each byte value, in order."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    alphabet, next_free = [], 256
    for value in range(256):
        if value in printable:
            alphabet.append(chr(value))
        else:
            alphabet.append(chr(next_free))
            next_free += 1
    return alphabet


_PHI3_WORDS = ("</s>", "<s>", "<unk>", "<|endoftext|>")
"""What llama.cpp looks up in the vocabulary of every model whose name says Phi-3, and fails without."""


def tokens_of(vocab: int, name: str = "") -> tuple[list[str], list[int]]:
    """The `vocab` tokens of a model of this name, and their types.

    Raises UserError when the vocabulary cannot hold the byte alphabet.
    """
    if vocab < 256 + N_SPECIAL + len(_PHI3_WORDS):
        raise UserError(
            f"a vocabulary of {vocab} cannot be synthesised: give at least {256 + N_SPECIAL + len(_PHI3_WORDS)} tokens"
        )
    words = [f"\u0120w{i}" for i in range(vocab - 256 - N_SPECIAL)]
    if any(said in name.lower() for said in ("phi-3", "phi3")):
        words[: len(_PHI3_WORDS)] = _PHI3_WORDS
    tokens = [*byte_alphabet(), "<|bos|>", "<|eos|>", "<|pad|>", *words]
    return tokens, [NORMAL] * 256 + [CONTROL] * N_SPECIAL + [NORMAL] * len(words)


ALIGNMENT = 32
RECIPE = 2
"""Changes whenever the same request would give other bytes; part of the key of a cached file."""

ADVICE = "choose another place, a smaller --format, or prune with `breakeven cache prune`"

Progress = Callable[[int, int], None]
"""Called with bytes written and bytes in all."""


def tensor_bytes(tensor: Tensor, kind: GGMLQuantizationType) -> int:
    """Bytes of a tensor's data in a type."""
    elements, size = GGML_QUANT_SIZES[kind]
    return math.prod(tensor.shape) // elements * size


def _types(spec: ModelSpec, format_name: str) -> dict[str, GGMLQuantizationType]:
    kinds = {name: GGMLQuantizationType[str(kind)] for name, kind in gguf_types(spec, format_name).items()}
    return {name: GGMLQuantizationType.I32 if TOKEN_TABLE in name else kind for name, kind in kinds.items()}


def synthesised_bytes(spec: ModelSpec, format_name: str) -> int:
    """Size of the file's tensor data, alignment included; the header adds some megabytes of vocabulary."""
    spec = as_written(spec) if spec.stored is not None else spec
    types = _types(spec, format_name)
    return sum(-(-tensor_bytes(t, types[t.name]) // ALIGNMENT) * ALIGNMENT for t in tensors(spec))


def synthesise(
    spec: ModelSpec,
    format_name: str,
    out: Path,
    *,
    routing: ExpertUse | None = None,
    seed: int = 0,
    mtp: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write `spec` in `format_name` to `out`, whole or not at all; the same arguments give the same bytes.

    `mtp`: with the blocks that draft further tokens, where llama.cpp loads them.

    Raises NotSupportedError for a layout llama.cpp gets no file of, UserError for an unwritable place or one without
    room, BreakevenError when the disk fills meanwhile.
    """
    routing = routing or ExpertUse()
    if mtp:
        _check_drafts(spec)
    spec = as_written(spec, mtp=mtp)
    check_routable(spec, routing)
    writer = _header(spec, format_name, routing, seed)
    needed = synthesised_bytes(spec, format_name) + 64 * spec.vocab
    check_room(out, needed, ADVICE)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        writer.write_header_to_file(partial)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        _write_tensors(partial, spec, format_name, routing, seed, progress)
        partial.replace(out)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise BreakevenError(
                f"the disk of {out.parent} filled up while writing {out.name}; free {needed / 1e9:.1f} GB and run again"
            ) from error
        raise UserError(f"cannot write {out}: {error.strerror}; choose another place") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return out


def as_written(spec: ModelSpec, *, mtp: bool = False) -> ModelSpec:
    """The model that a file is made of: its layout alone, and its drafting blocks only if asked for.

    A per-layer table gets a row for every token (Gemma 3n), queries and keys get the norms that stand for a scale
    (Muse), as llama.cpp's converter adds them.
    """
    rows, layers = spec.per_layer_embedding, spec.layers
    if FAMILIES[spec.family].norms_that_scale:
        layers = tuple(
            replace(
                layer,
                mixers=tuple(replace(a, qk_norm=QkNorm.HEAD) if isinstance(a, Gqa) else a for a in layer.mixers),
            )
            for layer in layers
        )
    return replace(
        spec,
        layers=layers,
        stored=None,
        mtp=spec.mtp if mtp else None,
        per_layer_embedding=None if rows is None else replace(rows, vocab=spec.vocab),
    )


def _check_drafts(spec: ModelSpec) -> None:
    if spec.mtp is None:
        raise UserError(f"{spec.name} has no blocks that draft tokens; leave --mtp out")
    if not FAMILIES[spec.family].limits.mtp:
        raise NotSupportedError(
            f"{spec.name}: llama.cpp loads no drafting blocks of the family {spec.family}; leave --mtp out"
        )


def check_routable(spec: ModelSpec, routing: ExpertUse) -> None:
    """Raise NotSupportedError where a skew cannot be promised."""
    if FAMILIES[spec.family].gguf_architecture is None:
        raise NotSupportedError(
            f"{spec.name}: {why_not_written(spec)}: Breakeven counts it but cannot write weights for it; "
            "docs/synth.md names the families it can"
        )
    if reason := why_not_written(spec):
        raise NotSupportedError(f"{spec.name}: llama.cpp would not load a file of it: {reason}")
    if not routing.zipf:
        return
    moe = [layer.ffn for layer in spec.layers if isinstance(layer.ffn, MoeFfn)]
    if not moe:
        raise UserError(f"{spec.name} is dense: it has no routing to set, leave --routing out")
    if any(ffn.n_groups > 1 for ffn in moe):
        raise NotSupportedError(f"{spec.name} routes to groups of experts first; only --routing uniform is possible")
    if FAMILIES[spec.family].token_routed and not all(ffn.selection_bias for ffn in moe):
        raise NotSupportedError(f"{spec.name} routes by token in some layers; only --routing uniform is possible")


def _stream(seed: int, name: str) -> np.random.Generator:
    """The random stream of one purpose, so that adding a tensor changes no other."""
    return np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode())]))


def _header(spec: ModelSpec, format_name: str, routing: ExpertUse, seed: int) -> GGUFWriter:
    family = FAMILIES[spec.family]
    writer = GGUFWriter(None, str(family.gguf_architecture))
    writer.add_name(spec.name)
    writer.add_description(SYNTHETIC)
    writer.add_string("breakeven.format", format_name)
    writer.add_string("breakeven.routing", str(routing))
    writer.add_uint32("breakeven.seed", seed)
    writer.add_uint32("breakeven.recipe", RECIPE)
    for key, value in family.gguf_metadata(spec).items():
        add_value(writer, key, value)
    words, kinds = tokens_of(spec.vocab, spec.name)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(words)
    writer.add_token_types(kinds)
    writer.add_token_merges(["! !"])  # llama.cpp asks for one; no text is changed by it
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_pad_token_id(PAD)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    types = _types(spec, format_name)
    for tensor in tensors(spec):
        kind = types[tensor.name]
        elements, size = GGML_QUANT_SIZES[kind]
        byte_shape = (*tensor.shape[:-1], tensor.shape[-1] // elements * size)
        writer.add_tensor_info(tensor.name, byte_shape, np.dtype(np.uint8), tensor_bytes(tensor, kind), raw_dtype=kind)
    return writer


def add_value(writer: GGUFWriter, key: str, value: object) -> None:
    """Add one metadata value in GGUF's matching type: unsigned for counts, float32, bool, string, array."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value) if value >= 0 else writer.add_int32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, list | tuple):
        writer.add_array(key, list(value))
    else:
        raise TypeError(f"{key}: no GGUF type for {type(value).__name__}")


def _write_tensors(
    path: Path, spec: ModelSpec, format_name: str, routing: ExpertUse, seed: int, progress: Progress | None
) -> None:
    types = _types(spec, format_name)
    pools = {
        kind: BlockPool(kind, _stream(seed, f"pool {kind.name}"))
        for kind in sorted(set(types.values()) - {GGMLQuantizationType.F32, GGMLQuantizationType.I32})
    }
    total, done = synthesised_bytes(spec, format_name), 0
    skews: dict[tuple[int, int], Doubles] = {}
    first = _first_element(spec, pools.get(types["token_embd.weight"]))
    with path.open("ab", buffering=0) as file:
        file.write(b"\0" * (-file.tell() % ALIGNMENT))
        for tensor in tensors(spec):
            kind, values, rng = types[tensor.name], values_of(spec, tensor), _stream(seed, tensor.name)
            if values.fill is Fill.ROUTER:
                rows = _router(spec, tensor, routing, first, skews, rng)
                pieces: Iterator[Bytes] = iter([rows.astype(np.float32).reshape(-1).view(np.uint8)])
            elif values.fill is Fill.LOOKUP:
                n_experts, (n_tokens, used) = _experts(spec, tensor).n_experts, tensor.shape
                pieces = iter([experts_by_token(n_tokens, used, n_experts, rng).reshape(-1).view(np.uint8)])
            elif values.fill is Fill.ROTARY:
                pieces = iter([rotary_factors(spec.rope, tensor.shape[0]).view(np.uint8)])
            elif kind is GGMLQuantizationType.F32:
                pieces = iter([_plain(tensor, values, rng).view(np.uint8)])
            else:
                pieces = _random(tensor, values, pools[kind], rng)
            size = 0
            for piece in pieces:
                size += _write_all(file.fileno(), piece)
                if progress:
                    progress(done + size, total)
            done += size + _write_all(file.fileno(), np.zeros(-size % ALIGNMENT, np.uint8))


def _write_all(fd: int, piece: Bytes) -> int:
    view = np.ascontiguousarray(piece).reshape(-1).data
    written = 0
    while written < len(view):
        written += os.write(fd, view[written:])
    return written


def _plain(tensor: Tensor, values: Values, rng: np.random.Generator) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    n = tensor.params
    if values.fill is Fill.SIGNS:
        return rng.choice(np.array([-1.0, 1.0], np.float32), n)
    if values.fill in (Fill.ZEROS, Fill.ONES, Fill.CONSTANT):
        constant = {Fill.ZEROS: 0.0, Fill.ONES: 1.0, Fill.CONSTANT: values.std}[values.fill]
        return np.full(n, constant, np.float32)
    drawn = rng.standard_normal(n, dtype=np.float32) * np.float32(values.std)
    if values.fill is Fill.RESIDUAL:
        drawn[: tensor.shape[-1]] = 0.0
    return drawn


def _random(tensor: Tensor, values: Values, pool: BlockPool, rng: np.random.Generator) -> Iterator[Bytes]:
    blocks_per_row = tensor.shape[-1] // pool.block_elements
    rows = tensor.shape[-2] if len(tensor.shape) > 1 else 1
    matrices = tensor.params // (tensor.shape[-1] * rows)
    if values.fill is Fill.ZEROS:
        yield np.zeros(matrices * rows * blocks_per_row * pool.block_bytes, np.uint8)
        return
    pool.scale_to(values.std or 1.0)
    if values.fill is Fill.EMBEDDING:
        for start in range(0, rows, 1024):
            n = min(1024, rows - start)
            blocks = np.concatenate(list(pool.take(n * blocks_per_row, rng)))
            yield pool.mark_first(blocks.reshape(n, -1))
    elif values.fill is Fill.RESIDUAL:
        for _ in range(matrices):
            yield np.zeros(blocks_per_row * pool.block_bytes, np.uint8)
            yield from pool.take((rows - 1) * blocks_per_row, rng)
    else:
        yield from pool.take(matrices * rows * blocks_per_row, rng)


def _first_element(spec: ModelSpec, pool: BlockPool | None) -> float:
    """What the normalised hidden state holds in its first place: read off marked embedding rows."""
    if pool is None or not pool.marks:  # embeddings of some types are written without a mark
        return 0.0
    pool.scale_to(embedding_std(spec))
    rng = np.random.Generator(np.random.SFC64(0))
    blocks = np.concatenate(list(pool.take(256 * (spec.hidden // pool.block_elements), rng)))
    rows = dequantize(pool.mark_first(blocks.reshape(256, -1)), pool.kind)
    return float(np.mean(rows[:, 0] / np.sqrt(np.mean(rows**2, axis=1))))


def _experts(spec: ModelSpec, tensor: Tensor) -> MoeFfn:
    ffn = spec.layers[tensor.layer or 0].ffn
    assert isinstance(ffn, MoeFfn)
    return ffn


def _router(
    spec: ModelSpec,
    tensor: Tensor,
    routing: ExpertUse,
    first: float,
    skews: dict[tuple[int, int], Doubles],
    rng: np.random.Generator,
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    n_experts, hidden = tensor.shape
    k = _experts(spec, tensor).n_experts_per_token
    if (n_experts, k) not in skews:
        skews[n_experts, k] = biases_for(routing.frequencies(n_experts, k), k, np.random.default_rng(0))
    return router_rows(n_experts, hidden, skews[n_experts, k], first, rng)
