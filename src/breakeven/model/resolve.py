"""From what a user types to a model: catalogue name, hub id, config, YAML or GGUF."""

from __future__ import annotations

from pathlib import Path

from breakeven.errors import UserError
from breakeven.model.architecture import ModelSpec
from breakeven.model.catalogue import lookup
from breakeven.model.layouts.derive import assuming


def resolve_spec(text: str, *, assume: bool = False) -> ModelSpec:
    """The architecture `text` names. Raises UserError when nothing of that name is found or it cannot be read.

    `assume`: read a configuration on past keys that are not known and could change the layout; `assumed` of the result
    lists them.
    """
    if assume:
        with assuming():
            return resolve_spec(text)
    from breakeven.model.readers import gguf, hf, yaml

    path = Path(text).expanduser()
    if path.suffix == ".gguf":
        return gguf.read_gguf(path)
    if path.suffix in (".yaml", ".yml"):
        return yaml.read_yaml(path, resolve_spec)
    if path.suffix == ".json" or path.is_dir():
        return hf.read_hf(text)
    try:
        return lookup(text)
    except UserError:
        if text.count("/") != 1:
            raise
        return hf.read_hf(text)
