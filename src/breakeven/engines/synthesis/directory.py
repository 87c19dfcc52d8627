"""Write a synthetic model as a Hugging Face directory, for the engines that load one: MLX and vLLM.

Names, shapes and types of the weights are asked of mlx-lm itself: its model is built without its weights, in the
quantization wanted, and says what it holds. So every architecture of the mlx-lm installed can be written, as it loads
it. vLLM draws its own random weights from a configuration (`--load-format dummy`) and gets the directory without any.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from breakeven.engines.mlx import layout
from breakeven.engines.synthesis.write import (
    ADVICE,
    BOS,
    CHAT_TEMPLATE,
    EOS,
    N_SPECIAL,
    PAD,
    Progress,
    check_room,
    tokens_of,
)
from breakeven.errors import NotSupportedError, UserError
from breakeven.model.architecture import DenseFfn, Gqa, ModelSpec
from breakeven.model.arithmetic import TOLERANCE, total_params

CONFIG = "config.json"
SHARD_BYTES = 4_000_000_000
"""A file holds at most so much, unless one tensor is larger."""
_CHUNK = 4 << 20
"""Random values are drawn once in such a block and repeated."""
MLX_FORMATS = "BF16, F16 or one of MLX, such as MLX4 or MLX8"


@dataclass(frozen=True, slots=True)
class StoredArray:
    """One array that an engine loads: `dtype` as safetensors spells it."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def n_bytes(self) -> int:
        """Bytes of its values."""
        return int(np.prod(self.shape, dtype=np.int64)) * _SIZES[self.dtype]


_SIZES = {"F32": 4, "F16": 2, "BF16": 2, "U32": 4, "U8": 1, "F8_E4M3": 1}


def mlx_parameters(
    config: Mapping[str, object], spec: ModelSpec, format_name: str, python: str | None = None
) -> tuple[list[StoredArray], dict[str, object]]:
    """What mlx-lm would load of the configuration of `spec` in a format, and the configuration that says so.

    `python`: the interpreter that has mlx-lm; None: this one. Raises NotSupportedError without mlx-lm, for a model it
    does not know and for a format it has not.
    """
    bits, group, dtype = _mlx_format(format_name)
    question: dict[str, object] = {"config": _complete(config, spec), "bits": bits, "group": group, "dtype": dtype}
    answer: dict[str, Any] = layout.ask_here(question) if python is None else layout.ask_there(question, python)
    if "missing" in answer:
        raise NotSupportedError(
            f"mlx-lm is not installed ({answer['missing']}); "
            "run `pip install mlx-lm`, on Linux with `mlx[cpu]` beside it"
        )
    if "refused" in answer:
        raise NotSupportedError(f"{spec.name}: mlx-lm cannot build it ({answer['refused']})")
    counted = sum(size for key, size in answer["counts"] if not _own_head(key, spec))
    if abs(counted / total_params(spec) - 1) > TOLERANCE:
        raise NotSupportedError(
            f"{spec.name}: mlx-lm would build {counted:,} parameters of it where the model has {total_params(spec):,}; "
            "it reads another layout from this configuration, so nothing is written"
        )
    kinds = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "uint32": "U32", "uint8": "U8"}
    rows = [StoredArray(key, tuple(shape), kinds[kind]) for key, shape, kind in answer["rows"]]
    rows = [row for row in rows if not _own_head(row.name, spec)]
    return rows, {**answer["config"], "torch_dtype": dtype}


def _own_head(name: str, spec: ModelSpec) -> bool:
    """Whether this is a head that the model has not: mlx-lm's Gemma has one until it finds none in the file."""
    return spec.tied_embeddings and "lm_head." in name


def _complete(config: Mapping[str, object], spec: ModelSpec) -> dict[str, object]:
    """The configuration without its quantization, and with what mlx-lm asks for where others have a default."""
    softmax = next((mixer for layer in spec.layers for mixer in layer.mixers if isinstance(mixer, Gqa)), None)
    dense = next((layer.ffn for layer in spec.layers if isinstance(layer.ffn, DenseFfn)), None)
    usual: dict[str, object] = {
        **dict.fromkeys(("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps"), spec.norm_epsilon),
        **dict.fromkeys(("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"), 1.0),
        **dict.fromkeys(("rope_scaling", "sliding_window", "sliding_window_pattern")),
        "rope_theta": spec.rope.base,
        "rope_local_base_freq": spec.rope.window_base or spec.rope.base,
        "attention_bias": softmax is not None and softmax.qkv_bias,
        "mlp_bias": dense is not None and dense.bias,
        "head_dim": softmax.head_dim if softmax else None,
        "tie_word_embeddings": spec.tied_embeddings,
        **dict.fromkeys(("norm_topk_prob", "use_conv_bias"), True),
        **dict.fromkeys(("use_bias", "mamba_proj_bias", "post_norm", "linear_allow_neg_eigval"), False),
    }
    said = {key: value for key, value in config.items() if key not in ("quantization_config", "quantization")}
    inner = said.get("text_config")
    if isinstance(inner, Mapping):
        said["text_config"] = {**usual, "model_type": said.get("model_type"), **inner}
    return {**usual, **said}


def _mlx_format(format_name: str) -> tuple[int | None, int, str]:
    """Bits (None: not quantized), group and the dtype of what is not quantized."""
    upper = format_name.upper()
    if upper in ("BF16", "F16"):
        return None, 0, {"BF16": "bfloat16", "F16": "float16"}[upper]
    found = re.fullmatch(r"MLX([234568])(?:_G(\d+))?", upper)
    if found is None:
        raise NotSupportedError(f"{format_name} is no format that is written for MLX; choose {MLX_FORMATS}")
    return int(found[1]), int(found[2] or 64), "bfloat16"


def synthesise_mlx(
    config: Mapping[str, object],
    spec: ModelSpec,
    format_name: str,
    out: Path,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    python: str | None = None,
    endless: bool = False,
) -> int:
    """Write `spec`, whose configuration is `config`, with random weights to the directory `out`, whole or not at all.

    `python`: the interpreter that has mlx-lm. `endless`: without a token that ends a text. Returns the bytes of its
    weights; the same arguments give the same bytes. Raises what `mlx_parameters` does, and UserError where there is no
    place or room.
    """
    rows, said = mlx_parameters(config, spec, format_name, python)
    total = sum(row.n_bytes for row in rows)
    with _directory(out, total) as scratch:
        write_config(scratch, said, spec.name, endless=endless)
        shards = list(_shards(rows))
        done = 0
        files: dict[str, str] = {}
        for index, shard in enumerate(shards, 1):
            file = f"model-{index:05d}-of-{len(shards):05d}.safetensors"
            files |= dict.fromkeys((row.name for row in shard), file)
            for written in _write_shard(scratch / file, shard, seed):
                done += written
                if progress:
                    progress(done, total)
        said_index = {"metadata": {"total_size": total}, "weight_map": files}
        (scratch / "model.safetensors.index.json").write_text(json.dumps(said_index), encoding="utf-8")
    return total


def write_without_weights(config: Mapping[str, object], out: Path, *, name: str, dtype: str = "bfloat16") -> None:
    """Write configuration and tokenizer alone, for vLLM with `--load-format dummy`.

    Raises UserError where there is no place or room.
    """
    with _directory(out, 50_000_000) as scratch:
        write_config(scratch, {**config, "torch_dtype": dtype}, name)


def write_config(directory: Path, config: Mapping[str, object], name: str, *, endless: bool = False) -> None:
    """Write `config.json` and the byte tokenizer that its vocabulary holds; `endless`: no token ends a text."""
    said = {**config, "bos_token_id": BOS, "eos_token_id": [] if endless else EOS, "pad_token_id": PAD}
    said.pop("dtype", None)
    (directory / CONFIG).write_text(json.dumps(said, indent=1), encoding="utf-8")
    write_tokenizer(directory, vocabulary(config, name), endless=endless)


@contextlib.contextmanager
def _directory(out: Path, needed_bytes: int) -> Iterator[Path]:
    """A scratch directory that becomes `out` when all went well."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already; choose a new directory")
    check_room(out, needed_bytes, ADVICE)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield scratch
        scratch.chmod(0o755)
        scratch.replace(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}; choose another place") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _shards(rows: Sequence[StoredArray]) -> Iterator[list[StoredArray]]:
    shard: list[StoredArray] = []
    size = 0
    for row in rows:
        if shard and size + row.n_bytes > SHARD_BYTES:
            yield shard
            shard, size = [], 0
        shard.append(row)
        size += row.n_bytes
    if shard:
        yield shard


def _write_shard(path: Path, rows: Sequence[StoredArray], seed: int) -> Iterator[int]:
    """Write one safetensors file; yields the bytes of each tensor as it is on disk."""
    at, header = 0, {}
    for row in rows:
        header[row.name] = {"dtype": row.dtype, "shape": list(row.shape), "data_offsets": [at, at + row.n_bytes]}
        at += row.n_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for row in rows:
            rng = np.random.Generator(np.random.SFC64([seed, zlib.crc32(row.name.encode())]))
            block, left = _values(row, rng), row.n_bytes
            while left > 0:
                left -= file.write(block if len(block) <= left else block[:left])
            yield row.n_bytes


def _values(row: StoredArray, rng: np.random.Generator) -> bytes:
    """Bytes to repeat over a tensor: gains of one, biases of zero, matrices that keep the size of what passes."""
    elements = min(int(np.prod(row.shape, dtype=np.int64)), _CHUNK // _SIZES[row.dtype])
    last = row.name.rpartition(".")[2]
    if row.dtype in ("U32", "U8"):  # packed codes
        return rng.integers(0, 256, elements * _SIZES[row.dtype], np.uint8).tobytes()
    if last == "scales":
        return _floats(np.full(elements, _SCALE), row.dtype)
    if last == "biases":  # codes are centred
        return _floats(np.full(elements, -7.5 * _SCALE), row.dtype)
    if "norm" in row.name or last in ("D", "scale"):
        return _floats(np.ones(elements), row.dtype)
    if "bias" in last or last in ("A_log", "sinks"):
        return _floats(np.zeros(elements), row.dtype)
    return _floats(rng.standard_normal(elements) * float(max(row.shape[-1], 1)) ** -0.5, row.dtype)


_SCALE = 0.004
"""Step of quantized values: of 4 bits they come to a spread of about 0.02."""


def _floats(values: np.ndarray[tuple[int], np.dtype[np.float64]], dtype: str) -> bytes:
    wide = values.astype(np.float32)
    if dtype == "BF16":
        return (wide.view(np.uint32) >> np.uint32(16)).astype(np.uint16).tobytes()
    return (wide.astype(np.float16) if dtype == "F16" else wide).tobytes()


def vocabulary(config: Mapping[str, object], name: str) -> int:
    """Tokens of a configuration's vocabulary; raises UserError when it does not say."""
    nested = config.get("text_config")
    size = config.get("vocab_size") or (nested.get("vocab_size") if isinstance(nested, dict) else None)
    if not isinstance(size, int):
        raise UserError(f"{name}: its configuration gives no vocab_size; put a tokenizer.json beside it")
    return size


def write_tokenizer(directory: Path, vocab: int, *, endless: bool = False) -> None:
    """Write the byte-level tokenizer of synthetic GGUF files in Hugging Face's form: the same text, the same ids."""
    tokens, _ = tokens_of(vocab)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer: dict[str, object] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": tokens[i], **flags} for i in range(256, 256 + N_SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [],
        },
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[BOS],
        **({} if endless else {"eos_token": tokens[EOS]}),
        "pad_token": tokens[PAD],
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
    }
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
