"""A Hugging Face model's description: its `config.json` from a file, a directory or, when online, the hub.

Where safetensors files or their index lie beside it, the number of weights they promise is read too, without reading
the weights, so that a description that misses some is noticed.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from breakeven.errors import UserError, expanded
from breakeven.model.architecture import ModelSpec
from breakeven.model.arithmetic import check_count, mtp_params
from breakeven.model.formats.published import SAID_IN
from breakeven.model.layouts.config import text_parts
from breakeven.model.layouts.derive import spec_from_config
from breakeven.model.readers.bounded import bounded_json, read_bounded, shown

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_NOT_TEXT = re.compile(r"vision|visual|audio|image|multi_modal|mm_projector|patch_merger")
"""Towers for other senses: published beside the language model, not part of it."""
_DRAFTS = re.compile(r"(^|\.)mtp\.|eh_proj|shared_head|nextn")
"""Blocks that draft further tokens."""
_HEAD = re.compile(r"(^|\.)(lm_head|output)\.weight$")

_FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_BYTES_BY_DTYPE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
_MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""
_MAX_DIMENSIONS = 8
_MAX_CONFIG_BYTES = 4_000_000
_MAX_INDEX_BYTES = 64_000_000
_MOST_BYTES = 10**16
"""Of a checkpoint: more is damage."""


def published_total(directory: Path, config: Mapping[str, object], spec: ModelSpec) -> int | None:
    """Weights of the checkpoint whose files lie in `directory`, as `spec` counts them; None when they do not say.

    Drafting blocks, towers and a second copy of a tied head are left out, as they are in the model's own count.

    Quantised and multimodal checkpoints say nothing usable in an index; their shapes do when the files are there.
    """
    files = safetensors_files(directory)
    if files and all(file.is_file() for file in files):
        return _total_of_files(files, spec)
    index = directory / INDEX
    return total_of_index(read_json(index) if index.is_file() else {}, config, spec)


def total_of_index(index: Mapping[str, object], config: Mapping[str, object], spec: ModelSpec) -> int | None:
    """Weights that an index's `metadata` promises, by its own count or by bytes over the configuration's dtype.

    What the index names beside the model is taken off: drafting blocks as `spec` describes them, a tied head's copy.
    None for a checkpoint with towers, whose size an index does not tell.
    """
    metadata = index.get("metadata")
    if not isinstance(metadata, Mapping) or "vision_config" in config:
        return None
    if spec.quantization is not None or "quantization_config" in config:
        return None
    names = index.get("weight_map")
    tensors = [str(name) for name in names] if isinstance(names, Mapping) else []
    drafts = [name for name in tensors if _DRAFTS.search(name) or _beyond(name, len(spec.layers))]
    if any(_NOT_TEXT.search(name) for name in tensors if name not in set(drafts)) or (drafts and spec.mtp is None):
        return None
    beside = mtp_params(spec) if drafts else 0
    if spec.tied_embeddings and any(_HEAD.search(name) for name in tensors):
        beside += spec.vocab * spec.hidden
    total = metadata.get("total_parameters")
    if isinstance(total, int):
        return total - beside if 0 < total < _MOST_BYTES else None
    total_bytes = metadata.get("total_size")
    dtype = config.get("dtype", config.get("torch_dtype"))
    size = _BYTES_BY_DTYPE.get(str(dtype))
    if not size or not isinstance(total_bytes, int | float) or not size <= total_bytes < _MOST_BYTES:
        return None
    return int(total_bytes) // size - beside


def read_json(path: Path) -> dict[str, object]:
    """A JSON object from a file; raises UserError when it cannot be read or is none."""
    try:
        found = bounded_json(read_bounded(path, _MAX_INDEX_BYTES if path.name == INDEX else _MAX_CONFIG_BYTES))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); fetch it again") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds a {type(found).__name__}, it must be a JSON object")
    return found


def safetensors_files(directory: Path) -> list[Path]:
    """The files that hold a directory's model, once: those its index names, there or not; else `WHOLE`; else all.

    The same weights may lie beside them in another layout (consolidated.safetensors), and adapters. Raises UserError
    for an index that cannot be read or names what is no file of the directory.
    """
    if names := set(places_of(directory).values()):
        return [directory / name for name in sorted(names)]
    whole = directory / WHOLE
    return [whole] if whole.is_file() else sorted(directory.glob("*.safetensors"))


def places_of(directory: Path) -> dict[str, str]:
    """Which file of a directory holds which tensor, as its index says; nothing where it has no index, or one of sizes.

    Raises UserError for an index that cannot be read or names what is no file of the directory.
    """
    index = directory / INDEX
    found = read_json(index).get("weight_map") if index.is_file() else None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise UserError(f"{index}: its weight_map is no map of tensors to files; fetch it again")
    for name in found.values():
        if not isinstance(name, str) or name != Path(name).name:
            raise UserError(f"{index}: names {shown(name)}, which is no file of this directory; fetch it again")
    return found


def _total_of_files(files: list[Path], spec: ModelSpec) -> int | None:
    total = 0
    for path in files:
        for name, dtype, shape in safetensors_rows(path):
            if dtype not in _FLOATS:
                return None  # packed weights: the shape is not the model's
            apart = _NOT_TEXT.search(name) or _DRAFTS.search(name) or _beyond(name, len(spec.layers))
            if not apart and not (spec.tied_embeddings and _HEAD.search(name)):
                total += math.prod(shape)
    return total


def _beyond(name: str, layers: int) -> bool:
    index = re.search(r"\blayers\.(\d+)\.", name)
    return index is not None and int(index[1]) >= layers


def safetensors_rows(path: Path) -> Iterator[tuple[str, str, tuple[int, ...]]]:
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
        header = bounded_json(text)
    except ValueError as error:
        raise UserError(f"{path}: not a safetensors file (its header is not JSON of tensors: {error})") from error
    if not isinstance(header, dict):
        raise UserError(f"{path}: not a safetensors file (its header is no JSON object)")
    for name, row in header.items():
        if name == "__metadata__":
            continue
        shape = row.get("shape") if isinstance(row, dict) else None
        sizes: list[Any] = shape if isinstance(shape, list) and len(shape) <= _MAX_DIMENSIONS else [None]
        if not all(isinstance(n, int) and 0 <= n < _MOST_BYTES for n in sizes):
            raise UserError(f"{path}: damaged safetensors header: tensor {shown(name)} has no shape; fetch it again")
        yield name, str(row.get("dtype")), tuple(sizes)


CONFIG = "config.json"
PARAMS = "params.json"
"""What Mistral publishes in its place."""
QUANT_CONFIG = "hf_quant_config.json"
"""What ModelOpt writes beside a configuration that does not say the format."""


def read_hf(where: str) -> ModelSpec:
    """The model of a configuration file, of a directory that holds one, or of a hub id such as `org/name`.

    What lies beside the configuration gives the published total. Raises UserError for an unreadable or unknown
    configuration, for a count that misses the published total by over 3 %, and for a hub id that cannot be fetched.
    """
    path = expanded(where)
    if path.is_dir():
        found = next((path / name for name in (CONFIG, PARAMS) if (path / name).is_file()), None)
        if found is None:
            raise UserError(
                f"{where}: holds neither {CONFIG} nor a .gguf file; give a directory of a Hugging Face model, or a file"
            )
        path = found
    if path.is_file():
        return _read_file(path)
    if where.count("/") == 1 and not where.startswith(("/", ".", "~")):
        return _read_hub(where)
    raise UserError(f"{where}: no such file or directory, and not a hub id (org/name)")


def _read_file(path: Path) -> ModelSpec:
    config = read_json(path)
    if path.name == CONFIG and (path.parent / QUANT_CONFIG).is_file():
        config = _with_format(config, path.parent / QUANT_CONFIG)
    named = config.get("_name_or_path")
    fallback = path.resolve().parent.name if path.name in (CONFIG, PARAMS) else path.stem
    name = named if isinstance(named, str) and named else fallback
    spec = spec_from_config(config, name, str(path))
    return _checked(spec, published_total(path.parent, config, spec))


def _with_format(config: dict[str, object], path: Path) -> dict[str, object]:
    """A configuration with what lies beside it of its format, where it says nothing of that itself."""
    return {**config, "quantization_config": read_json(path).get("quantization")} if _is_silent(config) else config


def _is_silent(config: Mapping[str, object]) -> bool:
    return all(part.get(key) is None for part in text_parts(config) for key in SAID_IN)


def _read_hub(hub_id: str) -> ModelSpec:
    config_path = _fetch(hub_id, CONFIG) or _fetch(hub_id, PARAMS)
    if config_path is None:
        raise UserError(f"{hub_id}: has no {CONFIG} on the hub; describe the model by hand (docs/models-yaml.md)")
    config = read_json(config_path)
    if _is_silent(config) and (beside := _fetch(hub_id, QUANT_CONFIG, needed=False)) is not None:
        config = _with_format(config, beside)
    spec = spec_from_config(config, hub_id, f"huggingface:{hub_id}/{config_path.name}")
    index_path = _fetch(hub_id, INDEX)
    return _checked(spec, total_of_index(read_json(index_path), config, spec) if index_path else None)


def _checked(spec: ModelSpec, total: int | None) -> ModelSpec:
    if total == 0:
        raise UserError(f"{spec.source}: its weight files hold no tensors; give the directory as it was published")
    check_count(spec, total)
    return replace(spec, published_total_params=total)


def _fetch(hub_id: str, file: str, *, needed: bool = True) -> Path | None:
    """A small file of a hub repository through the hub's own cache; None when the repository has no such file.

    `needed`: False gives None, too, when nothing can be asked and the cache does not have it.
    """
    # The client takes a while to import, and only a hub id needs it.
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    unreachable = (
        f"{hub_id}: not in the local hub cache and the hub cannot be reached; "
        "go online, or give a config.json, a .gguf file or a name that `breakeven models` lists"
    )
    try:
        if not isinstance(try_to_load_from_cache(hub_id, file), str):
            # Without a network the download would ask five times more, for half a minute.
            get_hf_file_metadata(hf_hub_url(hub_id, file), timeout=10)
        return Path(hf_hub_download(hub_id, file, etag_timeout=10))
    except LocalEntryNotFoundError as error:
        if not needed:
            return None
        raise UserError(unreachable) from error
    except EntryNotFoundError:
        return None
    except HFValidationError as error:
        raise UserError(f"{hub_id}: not a hub id ({error})") from error
    except Exception as error:  # the client raises its transport's own errors: name, gate, network
        if not isinstance(error, HfHubHTTPError):
            if not needed:
                return None
            raise UserError(unreachable) from error
        reason = str(error).strip().splitlines()
        raise UserError(
            f"{hub_id}: cannot be fetched ({reason[0] if reason else type(error).__name__}); "
            "check the name, your access and the network"
        ) from error
