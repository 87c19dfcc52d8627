"""A Hugging Face model's description: its `config.json` from a file, a directory or, when online, the hub."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from breakeven.errors import UserError
from breakeven.spec.families import spec_from_config
from breakeven.spec.model import ModelSpec
from breakeven.spec.readers.guard import check_count
from breakeven.spec.readers.safetensors import INDEX, published_total, read_json, total_of_index

CONFIG = "config.json"


def read_hf(where: str) -> ModelSpec:
    """The model of a configuration file, of a directory that holds one, or of a hub id such as `org/name`.

    What lies beside the configuration gives the published total. Raises UserError for an unreadable or unknown
    configuration, for a count that misses the published total by over 3 %, and for a hub id that cannot be fetched.
    """
    path = Path(where).expanduser()
    if path.is_dir():
        if not (path / CONFIG).is_file():
            raise UserError(f"{where}: no {CONFIG} in this directory; give a directory of a Hugging Face model")
        path = path / CONFIG
    if path.is_file():
        return _read_file(path)
    if where.count("/") == 1 and not where.startswith(("/", ".", "~")):
        return _read_hub(where)
    raise UserError(f"{where}: no such file or directory, and not a hub id (org/name)")


def _read_file(path: Path) -> ModelSpec:
    config = read_json(path)
    named = config.get("_name_or_path")
    fallback = path.resolve().parent.name if path.name == CONFIG else path.stem
    name = named if isinstance(named, str) and named else fallback
    spec = spec_from_config(config, name, str(path))
    return _checked(spec, published_total(path.parent, config))


def _read_hub(hub_id: str) -> ModelSpec:
    config_path = _fetch(hub_id, CONFIG)
    if config_path is None:
        raise UserError(f"{hub_id}: has no {CONFIG} on the hub; describe the model by hand (docs/models-yaml.md)")
    config = read_json(config_path)
    spec = spec_from_config(config, hub_id, f"huggingface:{hub_id}/{CONFIG}")
    index_path = _fetch(hub_id, INDEX)
    return _checked(spec, total_of_index(read_json(index_path), config) if index_path else None)


def _checked(spec: ModelSpec, total: int | None) -> ModelSpec:
    check_count(spec, total)
    return replace(spec, published_total_params=total)


def _fetch(hub_id: str, file: str) -> Path | None:
    """A small file of a hub repository through the hub's own cache; None when the repository has no such file."""
    # The client takes a while to import, and only a hub id needs it.
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(hub_id, file, etag_timeout=10))
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"{hub_id}: not in the local hub cache and the hub cannot be reached; "
            "go online, or give a config.json, a .gguf file or a name that `breakeven models` lists"
        ) from error
    except EntryNotFoundError:
        return None
    except HFValidationError as error:
        raise UserError(f"{hub_id}: not a hub id ({error})") from error
    except Exception as error:  # the client raises its transport's own errors: name, gate, network
        reason = str(error).strip().splitlines()
        raise UserError(
            f"{hub_id}: cannot be fetched ({reason[0] if reason else type(error).__name__}); "
            "check the name, your access and the network"
        ) from error
