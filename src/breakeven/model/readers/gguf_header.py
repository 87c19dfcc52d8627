"""The header of a GGUF file: metadata and tensor table, read without touching the weights.

Layout (version 2 and 3, little-endian): "GGUF", uint32 version, uint64 tensors, uint64 keys; each key a string, a
uint32 type and a value; each tensor a string, uint32 dimensions, their uint64 sizes fastest first, a uint32 type and
a uint64 offset; then padding to `general.alignment` and the data. Source: ggml's docs/gguf.md.

A vocabulary is stepped over, not read: a quarter of a million words say nothing about shapes.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from breakeven.errors import UserError, printable

MetadataValue = str | bool | int | float | list["MetadataValue"]

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_LENGTH = struct.Struct("<Q")
_CHUNK_BYTES = 1 << 18
_MAX_DIMENSIONS = 4
_MAX_NESTING = 4
_MAX_HEADER_BYTES = 1 << 26
_MAX_ENTRIES = 1 << 16
_MAX_VALUES = 1 << 21
"""Bytes of a header, keys or tensors in it, and values in all its lists: over twice what the largest vocabulary takes.

A file of a few bytes can promise more of each than a machine has, and a sparse one can even hold it.
"""

TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}
"""A tensor type's code: its name, elements and bytes of a block (ggml/include/ggml.h, ggml/src/ggml-common.h)."""


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
    """All that a GGUF file says before its weights; lists of the tokenizer are left out of `metadata`."""

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
        with path.open("rb", buffering=0) as file:
            return _parse(path, file, file_bytes)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); give the path of a .gguf file") from error


def read_value(header: GgufHeader, key: str) -> MetadataValue | None:
    """The value of `key`, also of one that `metadata` leaves out; None where the file has none.

    Raises UserError for a file that cannot be read any more.
    """
    if key not in header.spans:
        return None
    try:
        with header.path.open("rb", buffering=0) as file:
            file.seek(header.spans[key][0])
            reader = _Reader(header.path, file, header.file_bytes)
            reader.string()
            return reader.value(int(reader.scalar("<I")))
    except OSError as error:
        raise UserError(f"{header.path}: cannot be read any more ({error.strerror or error})") from error


def _parse(path: Path, file: BinaryIO, file_bytes: int) -> GgufHeader:
    if (magic := file.read(4)) != b"GGUF":
        raise UserError(f"{path}: not a GGUF file ({_begins(magic)}); give a .gguf file of llama.cpp")
    reader = _Reader(path, file, file_bytes)
    version = int(reader.scalar("<I"))
    if version not in (2, 3):
        raise UserError(f"{path}: {_not_read(version)}")
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
        kind = int(reader.scalar("<I"))
        if kind == _ARRAY and key.startswith("tokenizer."):
            reader.skip_array()
        else:
            metadata[key] = reader.value(kind)
        spans[key] = (begin, reader.position)
    tensors = tuple(_tensor(reader) for _ in range(n_tensors))
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise reader.damaged(f"general.alignment is {alignment!r}")
    start = -(-reader.position // alignment) * alignment
    # A file of a vocabulary alone ends before the padding.
    promised = max((start + t.offset_bytes + (t.n_bytes or 0) for t in tensors), default=reader.position)
    if promised > file_bytes:
        raise reader.truncated(promised)
    return GgufHeader(path, metadata, tensors, start, file_bytes, spans)


def _begins(magic: bytes) -> str:
    if not magic:
        return "it is empty; fetch it again"
    if magic in (b"lmgg", b"fmgg", b"tjgg", b"algg"):
        return "it is of llama.cpp's form before GGUF, which nothing reads any more"
    return f"it begins with {magic!r}"


def _not_read(version: int) -> str:
    if version & 0xFFFF == 0 and version >> 24 in (1, 2, 3):
        return "this file is big-endian; get the little-endian one, which every other machine uses"
    advice = "get a newer file of the model, or convert it with a current llama.cpp"
    return f"GGUF version {version}; this reads 2 and 3: {advice}"


def _tensor(reader: _Reader) -> GgufTensor:
    name = reader.string()
    n_dims = int(reader.scalar("<I"))
    if n_dims > _MAX_DIMENSIONS:
        raise reader.damaged(f"tensor {name!r} has {n_dims} dimensions")
    *sizes, type_code, offset = reader.scalars(f"<{n_dims}QIQ")
    shape = tuple(sizes[::-1])
    if type_code not in TYPES:
        return GgufTensor(name, shape, f"type {type_code}", offset, None)
    type_name, elements, size = TYPES[type_code]
    return GgufTensor(name, shape, type_name, offset, math.prod(shape) // elements * size)


class _Reader:
    """Bounded reads from the header: whatever the file says, never more than it has."""

    def __init__(self, path: Path, file: BinaryIO, file_bytes: int) -> None:
        self.path, self.file, self.file_bytes = path, file, file_bytes
        self.values_left = _MAX_VALUES
        # What was read of the file, where in it that begins, and how much of it was used.
        self.buffer, self.begin, self.at = b"", file.tell(), 0

    @property
    def position(self) -> int:
        return self.begin + self.at

    def truncated(self, promised: int) -> UserError:
        return UserError(
            f"{self.path}: truncated: header promises {promised:,} bytes, file has {self.file_bytes:,}; fetch it again"
        )

    def damaged(self, what: str) -> UserError:
        return UserError(f"{self.path}: damaged GGUF header: {what}; fetch it again")

    def bounded(self, end: int) -> None:
        """Raise UserError for what ends beyond the file, or beyond any real header."""
        if end > self.file_bytes:
            raise self.truncated(end)
        if end > _MAX_HEADER_BYTES:
            raise self.damaged(f"it goes on past {_MAX_HEADER_BYTES >> 20} MiB")

    def fill(self, size: int) -> None:
        """Have the next `size` bytes in the buffer. Checked before reading, so that a damaged length asks for none."""
        position = self.position
        self.bounded(position + size)
        rest = self.buffer[self.at :]
        self.file.seek(position + len(rest))
        pieces = [rest]
        missing = max(size - len(rest), _CHUNK_BYTES)
        while missing > 0 and (piece := self.file.read(missing)):
            pieces.append(piece)
            missing -= len(piece)
        self.buffer, self.begin, self.at = b"".join(pieces), position, 0
        if len(self.buffer) < size:  # the file shrank while it was read
            raise self.truncated(position + size)

    def take(self, size: int) -> bytes:
        end = self.at + size
        if end > len(self.buffer):
            self.fill(size)
            end = size
        data = self.buffer[self.at : end]
        self.at = end
        return data

    def skip(self, size: int) -> None:
        self.bounded(self.position + size)
        self.at += size

    def scalars(self, form: str) -> tuple[int, ...]:
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def scalar(self, form: str) -> int | float | bool:
        value: int | float | bool = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return value

    def string(self) -> str:
        return printable(self.take(int(self.scalar("<Q"))).decode("utf-8", errors="replace"))

    def text(self) -> str:
        """A value, which may have lines (a chat template); names may not."""
        return self.take(int(self.scalar("<Q"))).decode("utf-8", errors="replace")

    def value(self, type_code: int, depth: int = 0) -> MetadataValue:
        if type_code in _SCALARS:
            return self.scalar(_SCALARS[type_code])
        if type_code == _STRING:
            return self.text()
        if type_code == _ARRAY and depth < _MAX_NESTING:
            return self._array(depth)
        raise self.damaged(f"a value of type {type_code}")

    def _array(self, depth: int) -> list[MetadataValue]:
        element, count = self._announced()
        if element in _SCALARS:
            form = _SCALARS[element]
            data = self.take(count * struct.calcsize(form))
            return [value for (value,) in struct.iter_unpack(form, data)]
        if element == _STRING:
            # Two million may be read, so without a call for each number.
            take, unpack = self.take, struct.Struct("<Q").unpack
            return [take(unpack(take(8))[0]).decode("utf-8", errors="replace") for _ in range(count)]
        return [self.value(element, depth + 1) for _ in range(count)]

    def skip_array(self) -> None:
        """Step over a list without making its values."""
        element, count = self._announced()
        if element in _SCALARS:
            self.skip(count * struct.calcsize(_SCALARS[element]))
        elif element == _STRING:
            self._skip_strings(count)
        else:
            for _ in range(count):
                self.value(element, 1)

    def _announced(self) -> tuple[int, int]:
        """A list's type of element and their count."""
        element, count = self.scalars("<IQ")
        # A list in a list, which no known file has, is slow to read and so counts for many.
        self.values_left -= count * (64 if element == _ARRAY else 1)
        # A string takes 8 bytes at least and an array 12, so a count beyond the file is damage.
        least = struct.calcsize(_SCALARS.get(element, "<Q"))
        if count * least > self.file_bytes:
            raise self.truncated(count * least)
        if self.values_left < 0:
            raise self.damaged(f"a list of {count:,} values, at most {_MAX_VALUES:,} are read")
        return element, count

    def _skip_strings(self, count: int) -> None:
        # Most of a header's time passes here: a vocabulary and its merges, half a million strings.
        unpack, buffer, at = _LENGTH.unpack_from, self.buffer, self.at
        end = len(buffer) - 8
        for _ in range(count):
            if at > end:
                self.at = at
                self.fill(8)
                buffer, at = self.buffer, 0
                end = len(buffer) - 8
            at += 8 + unpack(buffer, at)[0]
        self.at = at
        self.bounded(self.position)
