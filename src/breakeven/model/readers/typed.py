"""What every YAML file that people type shares: how it is read, and the words in which a wrong key or value is told."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from breakeven.errors import UserError
from breakeven.model.readers.bounded import bounded_yaml, read_bounded, shown

_MOST_BYTES = 1_000_000
"""Of a file that is typed by hand, where nobody says; a larger one is something else."""


def read_mapping(
    path: Path,
    *,
    keys: str,
    give: str,
    too_large: str | None = None,
    most_bytes: int = _MOST_BYTES,
    where: str | None = None,
) -> dict[Any, Any]:
    """The top of the file, a mapping.

    `keys`: which keys it must hold, and where they are explained; `give`: what to give instead of a file that cannot be
    read; `too_large`: instead of one that nobody typed; `where`: the file as errors call it, without it its path.
    Raises UserError naming the file.
    """
    named = str(path) if where is None else where
    try:
        if too_large is not None and path.is_file() and path.stat().st_size > most_bytes:
            raise UserError(f"{named}: is {path.stat().st_size / 1e6:.0f} MB; {too_large}")
        found = bounded_yaml(read_bounded(path, most_bytes))
    except OSError as error:
        raise UserError(f"{named}: cannot be read ({error.strerror or error}); {give}") from error
    except ValueError as error:
        raise UserError(f"{named}: not YAML ({error})") from error
    if not isinstance(found, dict):
        raise UserError(f"{named}: holds {shown(found)}, it must hold {keys}")
    return found


def no_such_key(key: str, known: Iterable[str], docs: str) -> str:
    """Of a key that is none, by its whole place: with the nearest of those `known` there, and where they are listed."""
    near = difflib.get_close_matches(key.rpartition(".")[2], list(known), n=1)
    return f"{key}: no such key{f', did you mean {near[0]}?' if near else ''}; {docs}"


def missing_key(key: str, docs: str, add: str = "add it") -> str:
    """Of a key that must be there: what to write, and where keys are listed."""
    return f"{key}: missing; {add}; {docs}"


def wrong_value(key: str, value: object, right: str) -> str:
    """Of a value that cannot be: what was found, and what would be right."""
    return f"{key}: found {shown(value)}, it must be {right}"


def right_of(message: str) -> str:
    """What would be right, of what pydantic says is wrong."""
    return message.removeprefix("Input should be ").removeprefix("Value error, ")
