"""`result.json`: the public contract. Fields are only ever added (`docs/json.md` describes each).

`result.json` of runs under load: the same contract and the same care as `json_file`.

`result.json` of a decision: the same contract and the same care as `json_file`.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from breakeven.errors import BreakevenError, UserError
from breakeven.results.comparison import SCHEMA, Comparison
from breakeven.results.decision import DECISION_SCHEMA, Decision
from breakeven.results.load import CAPACITY_SCHEMA, CHECK_SCHEMA, LOAD_SCHEMA, CapacityStudy, Check, LoadStudy

T = TypeVar("T", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """A kind of result: its type, the schema that names it in the file, and what people call it."""

    type: type[T]
    schema: str
    noun: str


COMPARISON = Kind(Comparison, SCHEMA, "comparison")


class _Head(msgspec.Struct):
    """What must be read first: which schema the rest follows."""

    schema: str | None = None


def encode(result: msgspec.Struct) -> bytes:
    """`result` as indented UTF-8 JSON.

    Raises `BreakevenError` when it holds a number JSON cannot carry (infinite or not a number): such a file could be
    written but never read again.
    """
    encoded = msgspec.json.encode(result)
    try:
        msgspec.json.decode(encoded, type=type(result))
    except msgspec.ValidationError as error:
        raise BreakevenError(
            f"The result holds a number that is not finite, so it was not written: {error}."
        ) from error
    return msgspec.json.format(encoded, indent=2) + b"\n"


def encode_result(result: Comparison) -> bytes:
    """`result` as `encode` gives it."""
    return encode(result)


def write_result(result: Comparison, path: Path) -> Path:
    """Write `result` to `path`, whole or not at all. Raises `UserError` when the place cannot be written."""
    return write_whole(path, encode(result))


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
    return read_kind(path, COMPARISON)


def read_kind(path: Path, kind: Kind[T]) -> T:
    """Read a result of `kind`, with the errors of `read_result`."""
    content, found = read_head(path, kind.noun)
    if found != kind.schema:
        raise UserError(
            f'{path} has {schema_text(found)}, this version reads "{kind.schema}". Run the {kind.noun} again or update.'
        )
    return decode(content, kind, path)


def read_head(path: Path, noun: str) -> tuple[bytes, str | None]:
    """The content of `path` and the schema it names. `noun`: what was expected, for the errors."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}. Give the result.json of a finished {noun}.") from error
    try:
        head = msgspec.json.decode(content, type=_Head)
    except msgspec.ValidationError as error:
        raise UserError(f"{path} is not the result of a {noun}: {error}.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON: {error}. Give the result.json of a finished {noun}.") from error
    return content, head.schema


def schema_text(found: str | None) -> str:
    """The schema of a file as an error names it."""
    return "no schema" if found is None else f'schema "{found}"'


def decode(content: bytes, kind: Kind[T], path: Path) -> T:
    """`content` as `kind`. Raises `UserError` naming `path` when a field is missing or wrong."""
    try:
        return msgspec.json.decode(content, type=kind.type)
    except msgspec.ValidationError as error:
        raise UserError(f"{path} is not a whole result: {error}. Run the {kind.noun} again.") from error


LOAD = Kind(LoadStudy, LOAD_SCHEMA, "run under load")
CAPACITY = Kind(CapacityStudy, CAPACITY_SCHEMA, "capacity search")
CHECK = Kind(Check, CHECK_SCHEMA, "check")


def encode_load(study: LoadStudy) -> bytes:
    """`study` as indented UTF-8 JSON. Raises `BreakevenError` when a number in it is not finite."""
    return encode(study)


def write_load(study: LoadStudy, path: Path) -> Path:
    """Write `study` to `path`, whole or not at all. Raises `UserError` when the place cannot be written."""
    return write_whole(path, encode(study))


def read_load(path: Path) -> LoadStudy:
    """Read what `write_load` wrote. Raises `UserError` when the file is missing, not JSON, or of another schema."""
    return read_kind(path, LOAD)


def encode_capacity(study: CapacityStudy) -> bytes:
    """`study` as indented UTF-8 JSON. Raises `BreakevenError` when a number in it is not finite."""
    return encode(study)


def write_capacity(study: CapacityStudy, path: Path) -> Path:
    """Write `study` to `path`, whole or not at all. Raises `UserError` when the place cannot be written."""
    return write_whole(path, encode(study))


def read_capacity(path: Path) -> CapacityStudy:
    """Read what `write_capacity` wrote, with the errors of `read_load`."""
    return read_kind(path, CAPACITY)


def encode_check(check: Check) -> bytes:
    """`check` as indented UTF-8 JSON. Raises `BreakevenError` when a number in it is not finite."""
    return encode(check)


def write_check(check: Check, path: Path) -> Path:
    """Write `check` to `path`, whole or not at all. Raises `UserError` when the place cannot be written."""
    return write_whole(path, encode(check))


def read_check(path: Path) -> Check:
    """Read what `write_check` wrote, with the errors of `read_load`."""
    return read_kind(path, CHECK)


def read_any(path: Path) -> Comparison | LoadStudy | CapacityStudy:
    """Read a result of whatever kind its schema names: a comparison, a run under load or a capacity search.

    Raises `UserError` when the file is missing, not JSON, lacks a field, or names a schema that is none of these.
    """
    content, found = read_head(path, "run")
    if found == COMPARISON.schema:
        return decode(content, COMPARISON, path)
    if found == LOAD.schema:
        return decode(content, LOAD, path)
    if found == CAPACITY.schema:
        return decode(content, CAPACITY, path)
    known = ", ".join(f'"{kind.schema}"' for kind in (COMPARISON, LOAD, CAPACITY))
    raise UserError(f"{path} has {schema_text(found)}, this version shows {known}. Give the result.json of such a run.")


DECISION = Kind(Decision, DECISION_SCHEMA, "decision")


def encode_decision(decision: Decision) -> bytes:
    """`decision` as indented UTF-8 JSON. Raises `BreakevenError` when a number in it is not finite."""
    return encode(decision)


def write_decision(decision: Decision, path: Path) -> Path:
    """Write `decision` to `path`, whole or not at all. Raises `UserError` when the place cannot be written."""
    return write_whole(path, encode(decision))


def read_decision(path: Path) -> Decision:
    """Read what `write_decision` wrote. Raises `UserError` when the file is missing, not JSON, or of another schema."""
    return read_kind(path, DECISION)
