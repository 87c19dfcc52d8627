"""The header of a GGUF file: metadata and tensor table, read without touching the weights.

Layout (version 2 and 3, little-endian): "GGUF", uint32 version, uint64 tensors, uint64 keys; each key a string, a
uint32 type and a value; each tensor a string, uint32 dimensions, their uint64 sizes fastest first, a uint32 type and
a uint64 offset; then padding to `general.alignment` and the data. Source: ggml's docs/gguf.md.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from breakeven.errors import UserError

MetadataValue = str | bool | int | float | list["MetadataValue"]

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4
_MAX_NESTING = 4
_MAX_HEADER_BYTES = 1 << 26
_MAX_ENTRIES = 1 << 16
_MAX_VALUES = 1 << 21
"""Bytes of a header, keys or tensors in it, and values in all its lists: over twice what the largest vocabulary takes.

A file of a few bytes can promise more of each than a machine has, and a sparse one can even hold it.
"""


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One row of the tensor table. `shape` is in numpy order, slowest first; `offset_bytes` from the data's start.

    `n_bytes` is None for a type this version of Breakeven does not know the block size of.
    """

    name: str
    shape: tuple[int, ...]
    type_name: str
    offset_bytes: int
    n_bytes: int | None

    @property
    def params(self) -> int:
        """How many weights it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """All that a GGUF file says before its weights."""

    path: Path
    metadata: dict[str, MetadataValue]
    tensors: tuple[GgufTensor, ...]
    data_offset_bytes: int
    file_bytes: int
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Where each key's entry (name, type, value) begins and ends in the file, for copying it as it is."""

    @property
    def architecture(self) -> str:
        """`general.architecture`, llama.cpp's name of the family; raises UserError when the file does not say."""
        value = self.metadata.get("general.architecture")
        if not isinstance(value, str) or not value:
            raise UserError(f"{self.path}: the header does not say general.architecture; convert the model again")
        return value


def read_header(path: Path) -> GgufHeader:
    """Read and check the header of `path`.

    Raises UserError for a file that cannot be read, is not GGUF, is damaged, or is shorter than its header promises.
    """
    try:
        file_bytes = path.stat().st_size
        with path.open("rb") as file:
            return _parse(path, file, file_bytes)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); give the path of a .gguf file") from error


def _parse(path: Path, file: BinaryIO, file_bytes: int) -> GgufHeader:
    if (magic := file.read(4)) != b"GGUF":
        raise UserError(f"{path}: not a GGUF file (it begins with {magic!r}); give a .gguf file of llama.cpp")
    reader = _Reader(path, file, file_bytes)
    version = reader.scalar("<I")
    if version not in (2, 3):
        raise UserError(
            f"{path}: GGUF version {version}; this reads 2 and 3: convert the model with a current llama.cpp"
        )
    n_tensors, n_keys = int(reader.scalar("<Q")), int(reader.scalar("<Q"))
    # The shortest key takes 13 bytes and the shortest tensor 32, so larger counts are damage, not a long file.
    if n_keys * 13 + n_tensors * 32 > file_bytes:
        raise reader.truncated(n_keys * 13 + n_tensors * 32)
    if max(n_keys, n_tensors) > _MAX_ENTRIES:
        raise reader.damaged(f"{n_keys:,} keys and {n_tensors:,} tensors, at most {_MAX_ENTRIES:,} of each are read")
    metadata: dict[str, MetadataValue] = {}
    spans: dict[str, tuple[int, int]] = {}
    for _ in range(n_keys):
        begin = reader.position
        key = reader.string()
        metadata[key] = reader.value(int(reader.scalar("<I")))
        spans[key] = (begin, reader.position)
    tensors = tuple(_tensor(reader) for _ in range(n_tensors))
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise reader.damaged(f"general.alignment is {alignment!r}")
    start = -(-reader.position // alignment) * alignment
    promised = start + max((t.offset_bytes + (t.n_bytes or 0) for t in tensors), default=0)
    if promised > file_bytes:
        raise reader.truncated(promised)
    return GgufHeader(path, metadata, tensors, start, file_bytes, spans)


def _tensor(reader: _Reader) -> GgufTensor:
    name = reader.string()
    n_dims = int(reader.scalar("<I"))
    if n_dims > _MAX_DIMENSIONS:
        raise reader.damaged(f"tensor {name!r} has {n_dims} dimensions")
    shape = tuple(int(reader.scalar("<Q")) for _ in range(n_dims))[::-1]
    type_code = int(reader.scalar("<I"))
    type_name, n_bytes = _stored(type_code, math.prod(shape))
    return GgufTensor(name, shape, type_name, int(reader.scalar("<Q")), n_bytes)


def _stored(type_code: int, n_elements: int) -> tuple[str, int | None]:
    # gguf takes a while to import, and only files need it.
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        kind = GGMLQuantizationType(type_code)
    except ValueError:
        return f"type {type_code}", None
    elements, size = GGML_QUANT_SIZES[kind]
    return kind.name, n_elements // elements * size


class _Reader:
    """Bounded reads from the header: whatever the file says, never more than it has."""

    def __init__(self, path: Path, file: BinaryIO, file_bytes: int) -> None:
        self.path, self.file, self.file_bytes = path, file, file_bytes
        self.position = file.tell()
        self.values_left = _MAX_VALUES

    def truncated(self, promised: int) -> UserError:
        return UserError(
            f"{self.path}: truncated: header promises {promised:,} bytes, file has {self.file_bytes:,}; fetch it again"
        )

    def damaged(self, what: str) -> UserError:
        return UserError(f"{self.path}: damaged GGUF header: {what}; fetch it again")

    def take(self, size: int) -> bytes:
        self.position += size
        # Checked before reading, so that a damaged length asks for no memory.
        if self.position > self.file_bytes:
            raise self.truncated(self.position)
        if self.position > _MAX_HEADER_BYTES:
            raise self.damaged(f"it goes on past {_MAX_HEADER_BYTES >> 20} MiB")
        data = self.file.read(size)
        if len(data) != size:  # the file shrank while it was read
            raise self.truncated(self.position)
        return data

    def scalar(self, form: str) -> int | float | bool:
        value: int | float | bool = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return value

    def string(self) -> str:
        return self.take(int(self.scalar("<Q"))).decode("utf-8", errors="replace")

    def value(self, type_code: int, depth: int = 0) -> MetadataValue:
        if type_code in _SCALARS:
            return self.scalar(_SCALARS[type_code])
        if type_code == _STRING:
            return self.string()
        if type_code == _ARRAY and depth < _MAX_NESTING:
            return self._array(depth)
        raise self.damaged(f"a value of type {type_code}")

    def _array(self, depth: int) -> list[MetadataValue]:
        element, count = int(self.scalar("<I")), int(self.scalar("<Q"))
        # A list in a list, which no known file has, is slow to read and so counts for many.
        self.values_left -= count * (64 if element == _ARRAY else 1)
        # A string takes 8 bytes at least and an array 12, so a count beyond the file is damage.
        least = struct.calcsize(_SCALARS.get(element, "<Q"))
        if count * least > self.file_bytes:
            raise self.truncated(count * least)
        if self.values_left < 0:
            raise self.damaged(f"a list of {count:,} values, at most {_MAX_VALUES:,} are read")
        if element in _SCALARS:
            form = _SCALARS[element]
            data = self.take(count * struct.calcsize(form))
            return [value for (value,) in struct.iter_unpack(form, data)]
        if element == _STRING:
            # A vocabulary: most of a header's time passes here, so without a call for each number.
            take, unpack = self.take, struct.Struct("<Q").unpack
            return [take(unpack(take(8))[0]).decode("utf-8", errors="replace") for _ in range(count)]
        return [self.value(element, depth + 1) for _ in range(count)]
