"""From what a user types to a model: catalogue name, hub id, config, YAML or GGUF; and the weight format behind it."""

from __future__ import annotations

from pathlib import Path

from breakeven.errors import UserError
from breakeven.model.architecture import ModelSpec
from breakeven.model.catalogue import find, lookup
from breakeven.model.formats.named import format_named


def resolve_spec(text: str) -> ModelSpec:
    """The architecture `text` names, whatever format stands behind it.

    Raises UserError when nothing of that name is found or it cannot be read, and for a format that is none.
    """
    from breakeven.model.readers import gguf, hf, yaml

    text = bare_name(text)
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


def split_format(text: str) -> tuple[str, str | None]:
    """`NAME:FORMAT` as the name and the format's own name; `text` and None where no format stands behind it.

    The last colon parts them, and only where what follows is a format and what stands before can name a model: a
    path, a hub id, a catalogued name. URLs, ports, drive letters and tags (`llama3:8b`) stay as they are.
    """
    head, tail = _parted(text)
    if not tail:
        return text, None
    try:
        return head, format_named(tail).name
    except UserError:
        return text, None


def bare_name(text: str) -> str:
    """What `split_format` leaves of a name. Raises UserError for a word in a format's place that is none."""
    head, format_name = split_format(text)
    if format_name is not None:
        return head
    head, tail = _parted(text)
    if tail and not Path(text).expanduser().exists():
        try:
            format_named(tail)
        except UserError as error:
            raise UserError(f"{text}: {error}; or write {head} alone") from None
    return text


def _parted(text: str) -> tuple[str, str]:
    """Both sides of the last colon, where the left one can name a model; else `text` and nothing."""
    head, colon, tail = text.rpartition(":")
    # One letter before a colon is a drive.
    if not colon or "://" in text or len(head) < 2 or "/" in tail or "\\" in tail or not _names_a_model(head):
        return text, ""
    return head, tail.strip()


def _names_a_model(text: str) -> bool:
    if text.endswith((":", "/", "\\")):
        return False
    if "/" in text or "\\" in text or Path(text).suffix.lower() in _SUFFIXES:
        return True
    try:
        find(text)
    except UserError:
        return False
    return True


_SUFFIXES = (".gguf", ".yaml", ".yml", ".json", ".bin")
