"""`result.json`: the public contract. Fields are only ever added (`docs/json.md` describes each)."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from breakeven.errors import BreakevenError, UserError
from breakeven.spec.study import SCHEMA, Comparison


class _Head(msgspec.Struct):
    """What must be read first: which schema the rest follows."""

    schema: str | None = None


def encode_result(result: Comparison) -> bytes:
    """`result` as indented UTF-8 JSON.

    Raises `BreakevenError` when it holds a number JSON cannot carry (infinite or not a number): such a file could be
    written but never read again.
    """
    encoded = msgspec.json.encode(result)
    try:
        msgspec.json.decode(encoded, type=Comparison)
    except msgspec.ValidationError as error:
        raise BreakevenError(
            f"The result holds a number that is not finite, so it was not written: {error}."
        ) from error
    return msgspec.json.format(encoded, indent=2) + b"\n"


def write_result(result: Comparison, path: Path) -> Path:
    """Write `result` to `path`, whole or not at all. Raises `UserError` when the place cannot be written."""
    return write_whole(path, encode_result(result))


def write_whole(path: Path, content: bytes) -> Path:
    """Write beside `path`, then rename over it, so that a reader never meets half a file."""
    # The process id keeps two runs that write the same file from sharing one temporary.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(
            f"Cannot write {path}: {error.strerror}. Choose another directory with --out, or make room."
        ) from error
    return path


def read_result(path: Path) -> Comparison:
    """Read what `write_result` wrote. Fields added by a newer version are ignored.

    Raises `UserError` when the file is missing, not JSON, of another schema, or lacks a field.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"Cannot read {path}: {error.strerror}. Give the result.json of a finished comparison."
        ) from error
    try:
        head = msgspec.json.decode(content, type=_Head)
    except msgspec.ValidationError as error:
        raise UserError(f"{path} is not the result of a comparison: {error}.") from error
    except msgspec.DecodeError as error:
        raise UserError(f"{path} is not JSON: {error}. Give the result.json of a finished comparison.") from error
    if head.schema != SCHEMA:
        found = "no schema" if head.schema is None else f'schema "{head.schema}"'
        raise UserError(f'{path} has {found}, this version reads "{SCHEMA}". Run the comparison again or update.')
    try:
        return msgspec.json.decode(content, type=Comparison)
    except msgspec.ValidationError as error:
        raise UserError(f"{path} is not a whole result: {error}. Run the comparison again.") from error
