"""From what a user types to a model: catalogue name, hub id, configuration, YAML or weight file; and its format.

A path that exists is read for what is in it, whatever it is called: weights come under any name.
"""

from __future__ import annotations

import errno
import json
import os
from functools import partial
from itertools import islice
from pathlib import Path

from breakeven.errors import NotSupportedError, UserError, expanded
from breakeven.model.architecture import ModelSpec
from breakeven.model.catalogue import find, lookup
from breakeven.model.formats.named import format_named
from breakeven.model.layouts.derive import assumes, assuming
from breakeven.model.readers.bounded import shown

_GIVE = "give a .gguf file, a directory with config.json, or a model's name"
_MOST_MANIFEST_BYTES = 1 << 20
_LONGEST_PATH = 4000
_MOST_FOLDERS, _MOST_FILES = 3, 10_000
"""How deep below a directory a model is looked for: a hub's cache keeps it in snapshots/REVISION/FORMAT."""


def resolve_spec(text: str, assume: bool | None = None) -> ModelSpec:
    """The architecture `text` names, whatever format stands behind it.

    Raises UserError when nothing of that name is found or it cannot be read, and for a format that is none. `assume`:
    read on past what is not known in a file and could change the layout; the model's `assumed` lists it. None: as
    `assuming` says.
    """
    reads_on = assumes() if assume is None else assume
    with assuming(reads_on):
        return _resolved(text, reads_on)


def path_of(text: str) -> Path:
    """What a user typed as a path, `~` unfolded. Raises UserError for text that no path can be."""
    encoded = os.fsencode(text)
    if b"\0" in encoded or len(encoded) > _LONGEST_PATH or any(len(part) > 255 for part in encoded.split(b"/")):
        raise UserError(f"{shown(text)} is no name or path of a model; {_GIVE}")
    return expanded(text)


def _resolved(text: str, assume: bool) -> ModelSpec:
    from breakeven.model.readers import hf

    if not text.strip():
        raise UserError(f"the model's name is empty; {_GIVE}")
    text = bare_name(text)
    path = path_of(text)
    if (weights := weight_file(text)) is not None:
        from breakeven.model.readers.gguf import read_gguf

        return read_gguf(weights, assume=assume)
    if path.suffix in (".yaml", ".yml"):
        # It takes a while to import, and only such a file needs it.
        from breakeven.model.readers.yaml import read_yaml

        return read_yaml(path, partial(resolve_spec, assume=assume))
    if path.suffix == ".json" or path.is_dir():
        return hf.read_hf(text)
    if path.is_file():
        return _described(path)
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
    if tail and not path_of(text).exists():
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
    return "/" in text or "\\" in text or Path(text).suffix.lower() in _SUFFIXES or _is_known(text)


def _is_known(text: str) -> bool:
    try:
        find(text)
    except UserError:
        return False
    return True


def is_catalogued(text: str) -> bool:
    """Whether `text` is a name, or hub id, of the catalogue, and no path that exists."""
    return _is_known(text) and not path_of(text).exists()


_SUFFIXES = (".gguf", ".yaml", ".yml", ".json", ".bin")


def weight_file(text: str) -> Path | None:
    """The GGUF that `text` means, to be given to an engine: of a split one the first part; None when it means none.

    A file by its first bytes, the model of an Ollama manifest, or the only GGUF in a directory without config.json and
    in the folders below it.
    Raises UserError for a `.gguf` that is missing or something else, for a directory with several, and for what may not
    be read.
    """
    from breakeven.model.readers.gguf_file import first_part

    path = path_of(text)
    if path.is_dir():
        return None if (path / "config.json").exists() else _only_gguf(path)
    magic = _begin(path)
    if magic[:4] == b"GGUF":
        part = first_part(path)
        return part if part.is_file() else path
    if path.suffix.lower() == ".gguf":
        raise UserError(f"{text}: {_what(path, magic)}")
    return _of_manifest(path) if magic[:1] == b"{" else None


def is_weight_file(text: str) -> bool:
    """Whether `text` is a path at which `weight_file` looks for a GGUF, and one is there or should be."""
    path = path_of(text)
    return path.suffix.lower() == ".gguf" or (path.exists() and weight_file(text) is not None)


def _begin(path: Path) -> bytes:
    """The first bytes of a file; none where there is no file. Raises UserError for one that cannot be read."""
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            # It is read from its middle, and one that nobody writes to would be waited for without end.
            raise UserError(f"{path}: a pipe or a device, from which no model is read; {_GIVE}")
        with path.open("rb") as file:
            return file.read(64)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return b""
    except OSError as error:
        if error.errno == errno.EINVAL and not path.exists():
            return b""  # on Windows, a name that no file can have
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a file that you may read") from error


def _only_gguf(directory: Path) -> Path | None:
    """The one model that a directory holds as GGUF, itself or in the folders that downloads make."""
    from breakeven.model.readers.gguf_file import first_part

    found = [p for p in _ggufs(directory) if "mmproj" not in p.name and first_part(p) == p]
    # One file under two names, as a hub's cache has it, is one model.
    found = list({os.path.realpath(p): p for p in reversed(found)}.values())[::-1]
    if len(found) > 1:
        found = [p for p in found if not _is_no_model(p)] or found
    if len(found) > 1:
        names = ", ".join(str(p.relative_to(directory)) for p in found[:4]) + (" ..." if len(found) > 4 else "")
        raise UserError(f"{directory}: holds {len(found)} models ({names}); give one of the files")
    return found[0] if found else None


def _ggufs(directory: Path) -> list[Path]:
    """Those of the first depth that has more than what belongs to models below: projectors, importance matrices."""
    beside: list[Path] = []
    for depth in range(_MOST_FOLDERS + 1):
        under = sorted(islice(directory.glob("/".join(("*",) * (depth + 1))), _MOST_FILES))
        found = [p for p in under if p.suffix.lower() == ".gguf"]
        if any("mmproj" not in p.name and "imatrix" not in p.name for p in found):
            return found
        beside = beside or found
        if any(p.name == "config.json" for p in under):
            break
    return beside


def _is_no_model(path: Path) -> bool:
    """Whether a GGUF says of itself that it is something beside a model, such as a projector."""
    from breakeven.model.readers.gguf_file import refuse_others
    from breakeven.model.readers.gguf_header import read_header

    try:
        refuse_others(read_header(path))
    except NotSupportedError:
        return True
    except UserError:
        pass
    return False


def _of_manifest(path: Path) -> Path | None:
    """The weights that an Ollama manifest names, in the store it lies in; None for any other JSON."""
    try:
        if path.stat().st_size > _MOST_MANIFEST_BYTES:
            return None
        layers = json.loads(path.read_text(encoding="utf-8"))["layers"]
        digest = next(each["digest"] for each in layers if each["mediaType"] == "application/vnd.ollama.image.model")
    except (OSError, ValueError, LookupError, TypeError, StopIteration, RecursionError):
        return None
    blob = str(digest).replace(":", "-")
    for store in path.resolve().parents:
        if (found := store / "blobs" / Path(blob).name).is_file():
            return found
    raise UserError(
        f"{path}: an Ollama manifest whose weights ({blob[:19]}...) are not in the store beside it; pull it"
    )


def _described(path: Path) -> ModelSpec:
    """The model of a file that is no GGUF and whose name does not say what it is."""
    from breakeven.model.readers import hf

    magic = _begin(path)
    if magic.lstrip()[:1] == b"{":
        return hf.read_hf(str(path))
    if _is_safetensors(magic) and (path.parent / "config.json").is_file():
        return hf.read_hf(str(path.parent))
    raise UserError(f"{path}: {_what(path, magic)}")


def _is_safetensors(magic: bytes) -> bool:
    return len(magic) > 9 and magic[8:9] == b"{" and int.from_bytes(magic[:8], "little") < 1 << 32


def _what(path: Path, magic: bytes) -> str:
    """What a file without a model in it is, and what to do."""
    if not magic:
        if not path.is_file():
            return (
                f"cannot be read ({'a directory' if path.is_dir() else 'no such file'}); give the path of a .gguf file"
            )
        return "not a model: it is empty; fetch it again"
    text = magic.lstrip().lower()
    if magic.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer, not the file itself; run `git lfs pull` there, or fetch the file by its own address"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, not a model; the address gave an error or wants a login: fetch the file itself"
    if _is_safetensors(magic):
        return "a safetensors file, which holds weights and no layout; put config.json beside it and give the directory"
    if magic[:4] in (b"lmgg", b"fmgg", b"tjgg", b"algg"):
        return "a file of llama.cpp's form before GGUF, which nothing reads any more; get a GGUF of the model"
    if magic[:2] == b"PK" or magic[:1] == b"\x80":
        return f"a PyTorch checkpoint or an archive; {_GIVE}"
    return f"not a model: it begins with {magic[:4]!r}; {_GIVE}"
