"""Rewrite a GGUF: keep its metadata byte for byte, replace some keys, and stream other tensors behind it.

The gguf package decodes and re-encodes every token of the vocabulary on the way; copying the bytes is exact by
construction. Layout of a file: `docs/gguf.md` of ggml.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from breakeven.engines.synthesis.write import check_room
from breakeven.errors import BreakevenError, UserError
from breakeven.model.readers.gguf_header import GgufHeader, read_header

_MAGIC = b"GGUF"
_VERSION = 3
_UINT32 = 4
_DEFAULT_ALIGNMENT = 32

Bytes = NDArray[np.uint8]


class NewerType(IntEnum):
    """Types that the gguf package does not know yet, by ggml's numbers; they stand where one of its own would."""

    Q2_0 = 42


@dataclass(frozen=True, slots=True)
class OutTensor:
    """One tensor to write. `dims` in ggml's order, innermost first; `pieces` yields its bytes in order.

    `kind` is ggml's number of its type.
    """

    name: str
    dims: tuple[int, ...]
    kind: int
    n_bytes: int
    pieces: Callable[[], Iterator[Bytes]]


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """One tensor of the source; `data` is its bytes, flat, in the mapped file."""

    name: str
    dims: tuple[int, ...]
    kind: GGMLQuantizationType
    data: Bytes


@dataclass(frozen=True, slots=True)
class DenseFile:
    """A GGUF whose bytes are mapped, not read."""

    header: GgufHeader
    data: Bytes
    tensors: tuple[SourceTensor, ...]

    @property
    def alignment(self) -> int:
        """To how many bytes each tensor's data is padded."""
        value = self.header.metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        assert isinstance(value, int), "the header's reader checks it"
        return value


def open_gguf(path: Path) -> DenseFile:
    """The file, mapped. Raises UserError for one that is missing, not GGUF or truncated, or of an unknown type."""
    header = read_header(path)
    data: Bytes = np.memmap(path, np.uint8, "r")
    tensors = []
    for tensor in header.tensors:
        if tensor.n_bytes is None:
            raise UserError(f"{path}: {tensor.name} is of an unknown {tensor.type_name}; update the gguf package")
        begin = header.data_offset_bytes + tensor.offset_bytes
        kind = _type_named(tensor.type_name)
        tensors.append(SourceTensor(tensor.name, tensor.shape[::-1], kind, data[begin : begin + tensor.n_bytes]))
    return DenseFile(header, data, tuple(tensors))


def _type_named(name: str) -> GGMLQuantizationType:
    if name in GGMLQuantizationType.__members__:
        return GGMLQuantizationType[name]
    # It compares, prints and is written like one; only the package's own tables do not hold it.
    return cast("GGMLQuantizationType", NewerType[name])


def rewrite(source: DenseFile, out: Path, numbers: Mapping[str, int], tensors: list[OutTensor]) -> int:
    """Write `out`, whole or not at all: the source's metadata with `numbers` set (uint32), then `tensors`.

    Returns its size in bytes. Raises UserError when the place has no room or cannot be written, BreakevenError when
    the disk fills meanwhile.
    """
    head = _head(source, numbers, tensors)
    total = len(head) + sum(_padded(tensor.n_bytes, source.alignment) for tensor in tensors)
    check_room(out, total, "free some space or choose another place with --out")
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(head)
            for tensor in tensors:
                _write_tensor(file, tensor, source.alignment)
        partial.replace(out)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise BreakevenError(f"the disk of {out.parent} filled up while writing {out.name}; free some") from error
        raise UserError(f"cannot write {out}: {error.strerror}; choose another place with --out") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return total


def _head(source: DenseFile, numbers: Mapping[str, int], tensors: list[OutTensor]) -> bytes:
    kept = [source.data[a:b].tobytes() for key, (a, b) in source.header.spans.items() if key not in numbers]
    added = [_string(key) + struct.pack("<II", _UINT32, value) for key, value in numbers.items()]
    infos = []
    offset = 0
    for tensor in tensors:
        dims = struct.pack(f"<I{len(tensor.dims)}Q", len(tensor.dims), *tensor.dims)
        infos.append(_string(tensor.name) + dims + struct.pack("<IQ", int(tensor.kind), offset))
        offset += _padded(tensor.n_bytes, source.alignment)
    counts = struct.pack("<IQQ", _VERSION, len(tensors), len(kept) + len(added))
    head = b"".join([_MAGIC, counts, *kept, *added, *infos])
    return head + bytes(_padded(len(head), source.alignment) - len(head))


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
