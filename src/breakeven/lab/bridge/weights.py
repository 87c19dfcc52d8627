"""Weight files, read by mapping and written in pieces: safetensors by our own few lines, GGUF's tensors by rows.

Numpy alone. The only thing held of a model is the piece that passes. Format of a safetensors file: a uint64, that many
bytes of JSON (name to dtype, shape and offsets), then the data.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize
from numpy.typing import NDArray

from breakeven.engines.synthesis.write import check_room
from breakeven.errors import BreakevenError, NotSupportedError, UserError
from breakeven.lab.surgery.container import SourceTensor
from breakeven.model.readers.bounded import bounded_json, shown
from breakeven.model.readers.hf import INDEX, WHOLE, places_of, safetensors_rows
from breakeven.model.readers.weights import weight_files

SHARD_BYTES = 4_000_000_000
"""A file holds at most so much, unless one tensor is larger."""
PIECE_BYTES = 8 << 20
PLACE = "free some space or choose another place with --out"
_ALIGNMENT = 32

Floats = NDArray[np.float32]
Order = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class FloatType:
    """A type that weights are stored in: as safetensors and as GGUF name it, and bytes a value."""

    dtype: str
    kind: GGMLQuantizationType
    n_bytes: int

    def encode(self, values: Floats, name: str) -> NDArray[np.uint8]:
        """The bytes of `values`, rounded to nearest. Raises NotSupportedError for what the type cannot hold."""
        if self.dtype == "F32":
            return np.ascontiguousarray(values, "<f4").reshape(-1).view(np.uint8)
        if self.dtype == "F16":
            with np.errstate(over="ignore"):
                halves = values.astype("<f2")
            if not np.isfinite(halves).all() and np.isfinite(values).all():
                raise NotSupportedError(f"{name} has values that F16 cannot hold; choose --dtype bf16 or f32")
            return np.ascontiguousarray(halves).reshape(-1).view(np.uint8)
        bits = np.ascontiguousarray(values, "<f4").view(np.uint32)
        rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        # Rounding up the bits of a NaN could make an infinity or a zero of it.
        rounded = np.where(np.isnan(values), bits | np.uint32(0x400000), rounded)
        return (rounded >> np.uint32(16)).astype("<u2").reshape(-1).view(np.uint8)

    def holds(self, values: Floats) -> bool:
        """Whether every value survives."""
        if self.dtype == "F32":
            return True
        with np.errstate(over="ignore"):
            back = decode(np.frombuffer(self.encode(values, "values"), np.uint8), self.dtype)
        return bool(np.array_equal(back, values.reshape(-1)))


F32 = FloatType("F32", GGMLQuantizationType.F32, 4)
F16 = FloatType("F16", GGMLQuantizationType.F16, 2)
BF16 = FloatType("BF16", GGMLQuantizationType.BF16, 2)
FLOAT_TYPES = {"f32": F32, "f16": F16, "bf16": BF16}
_BY_DTYPE = {each.dtype: each for each in FLOAT_TYPES.values()}


def decode(data: NDArray[np.uint8], dtype: str) -> Floats:
    """Stored bytes as float32, flat."""
    flat = np.ascontiguousarray(data).reshape(-1)
    if dtype == "F32":
        return flat.view("<f4").astype(np.float32, copy=False)
    if dtype == "F16":
        return flat.view("<f2").astype(np.float32)
    return (flat.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)


class TensorRows(Protocol):
    """A matrix whose rows can be had one by one, decoded. One-dimensional weights have rows of one value."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def take(self, rows: Order) -> Floats:
        """(n, columns) of the rows asked for."""
        ...


@dataclass(frozen=True, slots=True)
class StoredRows:
    """A tensor of a safetensors file."""

    shape: tuple[int, ...]
    dtype: str
    data: NDArray[np.uint8]

    def take(self, rows: Order) -> Floats:
        """(n, columns), decoded."""
        picked = self.data.reshape(self.shape[0], -1)[rows]
        return decode(picked, self.dtype).reshape(len(rows), -1)


@dataclass(frozen=True, slots=True)
class GgufRows:
    """A tensor of a GGUF, or one expert's part of it."""

    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    data: NDArray[np.uint8]

    def take(self, rows: Order) -> Floats:
        """(n, columns), dequantized where they are quantized."""
        picked = np.ascontiguousarray(self.data.reshape(self.shape[0], -1)[rows])
        if self.kind.name in _BY_DTYPE:
            return decode(picked, self.kind.name).reshape(len(rows), -1)
        return np.asarray(dequantize(picked, self.kind), np.float32).reshape(len(rows), -1)


def gguf_rows(tensor: SourceTensor, expert: int | None = None) -> GgufRows:
    """All of a GGUF's tensor, or one expert's part. Raises NotSupportedError for a type that cannot be decoded."""
    if tensor.kind.name not in _BY_DTYPE:
        try:
            dequantize(np.zeros((1, GGML_QUANT_SIZES[tensor.kind][1]), np.uint8), tensor.kind)
        except (NotImplementedError, KeyError) as error:
            raise NotSupportedError(
                f"{tensor.name} is of type {tensor.kind.name}, which cannot be decoded here; give another file of it"
            ) from error
    shape, data = tensor.dims[::-1], tensor.data
    if expert is not None:
        data, shape = data.reshape(shape[0], -1)[expert], shape[1:]
    return GgufRows(shape, tensor.kind, data)


def pieces(rows: TensorRows, order: Order | None, into: FloatType, name: str) -> Iterator[NDArray[np.uint8]]:
    """The bytes of a matrix as `into` stores them, its rows in `order` (None: as they are), a few megabytes each."""
    count = rows.shape[0]
    columns = math.prod(rows.shape[1:])
    step = max(1, PIECE_BYTES // max(1, 4 * columns))
    for begin in range(0, count, step):
        wanted = np.arange(begin, min(begin + step, count)) if order is None else order[begin : begin + step]
        yield into.encode(rows.take(wanted), name)


class Checkpoint:
    """The safetensors files that are a directory's model, mapped."""

    def __init__(self, directory: Path) -> None:
        """Map them. Raises UserError when there are none, one is damaged, or the index names what is not there."""
        files = weight_files(directory)
        if files[0].suffix != ".safetensors":
            raise UserError(f"{directory}: holds {files[0].name} and no safetensors; convert its weights to them first")
        self.tensors: dict[str, StoredRows] = {}
        for path in files:
            self._map(path)
        absent = sorted(places_of(directory).keys() - self.tensors.keys())
        if absent:
            raise UserError(f"{directory}: {absent[0]} is in {INDEX} and in no file; fetch the missing part")

    def _map(self, path: Path) -> None:
        rows = {name: (dtype, shape) for name, dtype, shape in safetensors_rows(path)}
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            header = bounded_json(file.read(length))
        assert isinstance(header, dict), "safetensors_rows checked it"
        data: NDArray[np.uint8] = np.memmap(path, np.uint8, "r")
        for name, (dtype, shape) in rows.items():
            if dtype not in _BY_DTYPE:
                raise NotSupportedError(
                    f"{path.name}: {shown(name)} is stored as {dtype}; F32, F16 and BF16 are read: give the model "
                    "before it was quantized"
                )
            ends = header[name].get("data_offsets")
            size = math.prod(shape) * _BY_DTYPE[dtype].n_bytes
            whole = isinstance(ends, list) and len(ends) == 2 and all(isinstance(end, int) for end in ends)
            begin, end = (8 + length + at for at in ends) if whole else (0, 0)
            if not 8 + length <= begin <= end <= data.size or end - begin != size:
                raise UserError(f"{path}: damaged or cut off at {shown(name)}; fetch it again")
            if name in self.tensors:
                raise UserError(f"{path}: {shown(name)} is in two files; remove the one that does not belong")
            self.tensors[name] = StoredRows(shape, dtype, data[begin:end])


@dataclass(frozen=True, slots=True)
class NewTensor:
    """One tensor of a directory to be written."""

    name: str
    shape: tuple[int, ...]
    rows: TensorRows
    order: Order | None = None


def write_checkpoint(directory: Path, tensors: Sequence[NewTensor], into: FloatType) -> int:
    """Write safetensors files and, where there are several, their index. Returns their bytes; raises OSError."""
    shards: list[list[NewTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        size = math.prod(tensor.shape) * into.n_bytes
        if shards[-1] and filled + size > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += size
    places: dict[str, str] = {}
    total = 0
    for number, shard in enumerate(shards, 1):
        name = WHOLE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        total += _write_shard(directory / name, shard, into)
        places.update((tensor.name, name) for tensor in shard)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return total


def _write_shard(path: Path, tensors: Sequence[NewTensor], into: FloatType) -> int:
    header: dict[str, Mapping[str, object]] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in tensors:
        end = at + math.prod(tensor.shape) * into.n_bytes
        header[tensor.name] = {"dtype": into.dtype, "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        written = 0
        for tensor in tensors:
            for piece in pieces(tensor.rows, tensor.order, into, tensor.name):
                written += file.write(piece.data)
    if written != at:
        raise BreakevenError(f"{path.name}: {written} bytes written where {at} were announced")
    return at


@dataclass(frozen=True, slots=True)
class NewGgufTensor:
    """One tensor of a GGUF to be written; `shape` slowest first, `data` its bytes in pieces."""

    name: str
    shape: tuple[int, ...]
    into: FloatType
    data: Callable[[], Iterator[NDArray[np.uint8]]]

    @property
    def n_bytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * self.into.n_bytes


def write_gguf(out: Path, writer: GGUFWriter, jobs: Sequence[NewGgufTensor]) -> int:
    """Write what `writer` has been told, then the tensors, whole or not at all. Returns the file's bytes.

    Raises UserError where there is no room or nothing can be written, BreakevenError when the disk fills meanwhile.
    """
    for job in jobs:
        dtype = np.dtype(np.float32)
        writer.add_tensor_info(job.name, job.shape, dtype, job.n_bytes, raw_dtype=job.into.kind)
    check_room(out, sum(job.n_bytes + _ALIGNMENT for job in jobs) + (16 << 20), PLACE)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        writer.write_header_to_file(partial)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        with partial.open("ab") as file:
            file.write(bytes(-file.tell() % _ALIGNMENT))
            for job in jobs:
                written = sum(file.write(piece.data) for piece in job.data())
                assert written == job.n_bytes, f"{job.name}: {written} bytes written where {job.n_bytes} were announced"
                file.write(bytes(-written % _ALIGNMENT))
        n_bytes = partial.stat().st_size
        partial.replace(out)
    except OSError as error:
        raise unwritten(out, error) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return n_bytes


def unwritten(out: Path, error: OSError) -> BreakevenError:
    """What to say of a file or directory that could not be written."""
    if error.errno == errno.ENOSPC:
        return BreakevenError(f"the disk of {out.parent} filled up while writing {out.name}; free some")
    return UserError(f"cannot write {out}: {error.strerror}; choose another place with --out")
