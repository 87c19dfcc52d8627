"""Rewrite a GGUF: keep its metadata byte for byte, replace some keys, and stream other tensors behind it.

The gguf package decodes and re-encodes every token of the vocabulary on the way; copying the bytes is exact by
construction. Layout of a file: `docs/gguf.md` of ggml.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader
from numpy.typing import NDArray

from breakeven.errors import BreakevenError, UserError

_MAGIC = b"GGUF"
_VERSION = 3
_UINT32 = 4
_OWN_FIELDS = "GGUF."


@dataclass(frozen=True, slots=True)
class OutTensor:
    """One tensor to write. `dims` in ggml's order, innermost first; `pieces` yields its bytes in order."""

    name: str
    dims: tuple[int, ...]
    kind: GGMLQuantizationType
    n_bytes: int
    pieces: Callable[[], Iterator[NDArray[np.uint8]]]


def open_gguf(path: Path) -> GGUFReader:
    """The parsed file, mapped. Raises UserError for one that is missing, not GGUF, truncated or big-endian."""
    try:
        reader = GGUFReader(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the path of a .gguf file") from None
    except (ValueError, IndexError, KeyError) as error:
        raise UserError(f"{path} is not a whole GGUF file ({error}); download it again or give another") from None
    if reader.byte_order != "I":
        raise UserError(f"{path} is big-endian, which llama.cpp cannot load here; give a little-endian file")
    end = max((int(tensor.data_offset) + int(tensor.n_bytes) for tensor in reader.tensors), default=0)
    if end > path.stat().st_size:
        raise UserError(f"{path} is truncated: {path.stat().st_size} bytes where its header promises {end}")
    return reader


def rewrite(reader: GGUFReader, out: Path, numbers: Mapping[str, int], tensors: list[OutTensor]) -> int:
    """Write `out`, whole or not at all: the source's metadata with `numbers` set (uint32), then `tensors`.

    Returns its size in bytes. Raises UserError when the place has no room or cannot be written, BreakevenError when
    the disk fills meanwhile.
    """
    head = _head(reader, numbers, tensors)
    total = len(head) + sum(_padded(tensor.n_bytes, reader.alignment) for tensor in tensors)
    _check_room(out, total)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(head)
            for tensor in tensors:
                _write_tensor(file, tensor, reader.alignment)
        partial.replace(out)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise BreakevenError(f"the disk of {out.parent} filled up while writing {out.name}; free some") from error
        raise UserError(f"cannot write {out}: {error.strerror}; choose another place with --out") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return total


def _head(reader: GGUFReader, numbers: Mapping[str, int], tensors: list[OutTensor]) -> bytes:
    kept = [
        reader.data[field.offset : field.offset + sum(part.nbytes for part in field.parts)].tobytes()
        for key, field in reader.fields.items()
        if not key.startswith(_OWN_FIELDS) and key not in numbers
    ]
    added = [_string(key) + struct.pack("<II", _UINT32, value) for key, value in numbers.items()]
    infos = []
    offset = 0
    for tensor in tensors:
        dims = struct.pack(f"<I{len(tensor.dims)}Q", len(tensor.dims), *tensor.dims)
        infos.append(_string(tensor.name) + dims + struct.pack("<IQ", int(tensor.kind), offset))
        offset += _padded(tensor.n_bytes, reader.alignment)
    counts = struct.pack("<IQQ", _VERSION, len(tensors), len(kept) + len(added))
    head = b"".join([_MAGIC, counts, *kept, *added, *infos])
    return head + bytes(_padded(len(head), reader.alignment) - len(head))


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _padded(n_bytes: int, alignment: int) -> int:
    return -(-n_bytes // alignment) * alignment


def _write_tensor(file: BinaryIO, tensor: OutTensor, alignment: int) -> None:
    written = 0
    for piece in tensor.pieces():
        written += file.write(np.ascontiguousarray(piece).data)
    assert written == tensor.n_bytes, f"{tensor.name}: {written} bytes written where {tensor.n_bytes} were announced"
    file.write(bytes(_padded(written, alignment) - written))


def _check_room(out: Path, needed: int) -> None:
    if not out.parent.is_dir():
        raise UserError(f"{out.parent} is not a directory; make it or choose another place with --out")
    if not os.access(out.parent, os.W_OK):
        raise UserError(f"{out.parent} is read-only; choose another place with --out")
    free = shutil.disk_usage(out.parent).free
    if free < needed:
        raise UserError(
            f"{out.name} needs {needed / 1e9:.2f} GB and {out.parent} has {free / 1e9:.2f} GB free; "
            "free some or choose another place with --out"
        )
