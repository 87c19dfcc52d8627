"""Synthetic weight files, kept under the user's cache directory and keyed by what is in them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil

from breakeven.engines.synthesis.directory import write_tokenizer
from breakeven.engines.synthesis.routing import ExpertUse
from breakeven.engines.synthesis.write import RECIPE, Progress, synthesise
from breakeven.errors import UserError
from breakeven.hardware.system import cache_home
from breakeven.model.architecture import ModelSpec


@dataclass(frozen=True, slots=True)
class CachedFile:
    """A file in the cache: its size and when it was last used (seconds since the epoch)."""

    path: Path
    size_bytes: int
    used_at_s: float


def cache_directory() -> Path:
    """Where weight files are kept: `$XDG_CACHE_HOME/breakeven/weights`, else the platform's place for caches."""
    return cache_home() / "breakeven" / "weights"


def cached_path(spec: ModelSpec, format_name: str, routing: ExpertUse, seed: int) -> Path:
    """The file these weights have, or would have, in the cache."""
    content = msgspec.json.encode((RECIPE, spec, format_name, str(routing), seed))
    key = hashlib.sha256(content).hexdigest()[:12]
    name = "".join(c if c.isalnum() or c in ".-_" else "-" for c in spec.name.split("/")[-1].lower())
    return cache_directory() / f"{name}-{format_name.lower()}-{key}.gguf"


def provide(
    spec: ModelSpec,
    format_name: str,
    *,
    routing: ExpertUse | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Path:
    """The synthetic file of `spec`, written first if it is not there. Raises what `synthesise` raises."""
    routing = routing or ExpertUse()
    path = cached_path(spec, format_name, routing, seed)
    try:
        os.utime(path)
        return path
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError:
        return path  # somebody else's, or on a read-only disk: it can be used, and only when is not noted
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make {path.parent}: {error.strerror}; set XDG_CACHE_HOME to a writable place"
        ) from error
    return synthesise(spec, format_name, path, routing=routing, seed=seed, progress=progress)


def byte_tokenizer(vocab: int) -> Path:
    """The tokenizer of a synthetic file of so many tokens as a `tokenizer.json`, for engines that count none for us."""
    folder = cache_directory().parent / "tokenizers" / f"bytes-{vocab}"
    if not (folder / "tokenizer.json").is_file():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
            write_tokenizer(scratch, vocab)
            with contextlib.suppress(OSError):  # another process may have been first
                scratch.rename(folder)
            shutil.rmtree(scratch, ignore_errors=True)
        except OSError as error:
            raise UserError(
                f"cannot write to {folder.parent}: {error.strerror}; set XDG_CACHE_HOME to a writable place"
            ) from error
    return folder / "tokenizer.json"


def entries() -> list[CachedFile]:
    """Every file in the cache, most recently used first."""
    found = []
    for path in cache_directory().glob("*.gguf"):
        with contextlib.suppress(FileNotFoundError):  # another process may prune meanwhile
            stat = path.stat()
            found.append(CachedFile(path, stat.st_size, stat.st_mtime))
    return sorted(found, key=lambda entry: -entry.used_at_s)


def prune(unused_for_s: float = 0.0) -> list[CachedFile]:
    """Delete files not used for `unused_for_s`, and what interrupted writers left behind; return the files deleted."""
    gone = [entry for entry in entries() if time.time() - entry.used_at_s >= unused_for_s]
    for entry in gone:
        entry.path.unlink(missing_ok=True)
    for partial in cache_directory().glob(".*.partial"):
        writer = partial.name.split(".")[-2]
        if not (writer.isdigit() and psutil.pid_exists(int(writer))):
            partial.unlink(missing_ok=True)
    return gone
