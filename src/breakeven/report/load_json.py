"""`result.json` of runs under load: the same contract and the same care as `json_file`."""

from __future__ import annotations

from pathlib import Path

from breakeven.errors import UserError
from breakeven.report.json_file import COMPARISON, Kind, decode, encode, read_head, read_kind, schema_text, write_whole
from breakeven.spec.load import (
    CAPACITY_SCHEMA,
    CHECK_SCHEMA,
    LOAD_SCHEMA,
    CapacityStudy,
    Check,
    LoadStudy,
)
from breakeven.spec.study import Comparison

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
