"""Reading trace files line by line, with errors that name the place."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from pathlib import Path

import msgspec

from breakeven.errors import UserError

MOST_TOKENS = 100_000_000
"""More tokens than any context holds: the column is not a token count."""
_MOST_S = 10**9
_NS = 1_000_000_000


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line number, from 1, and text without its end, of every line that is not blank.

    Raises UserError for a file that cannot be read, is no UTF-8 text, or is empty.
    """
    number, found = 0, False
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                if raw[:2] == b"\x1f\x8b" and number == 1:
                    raise UserError(f"{path}, line 1: is compressed; unpack it first, as with gunzip")
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{path}, line {number}, column {error.start + 1}: is not UTF-8 text; save the trace as UTF-8"
                    ) from error
                if line.strip():
                    found = True
                    yield number, line
    except OSError as error:
        raise UserError(f"cannot read the trace {path}: {error.strerror}") from error
    if not found:
        raise UserError(f"{path}: is empty; give a trace with at least one request")


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """Line number and object of every line of a JSON-lines file. Raises UserError as `lines_of`, and for bad JSON."""
    decode = msgspec.json.Decoder(dict[str, object]).decode
    for number, line in lines_of(path):
        try:
            yield number, decode(line)
        except msgspec.DecodeError as error:
            raise UserError(
                f"{path}, line {number}: is not a JSON object ({error}); the file may be cut off or edited"
            ) from error


def csv_lines(path: Path, needed: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and cells by column name of every row of a CSV file with a header that has the `needed` columns.

    A quoted cell must end on its own line. Raises UserError as `lines_of`, for a wrong header, and for a row of
    another length.
    """
    names: list[str] = []
    for number, line in lines_of(path):
        cells = [cell.strip() for cell in next(csv.reader([line]))]
        if not names:
            names = cells
            missing = [name for name in needed if name not in names]
            if missing:
                raise UserError(
                    f"{path}, line {number}: the header lacks {', '.join(missing)}; it should be {','.join(needed)}, "
                    f"found {line[:80]!r}"
                )
        elif len(cells) != len(names):
            raise UserError(
                f"{path}, line {number}, column {min(len(cells), len(names)) + 1}: {len(cells)} cells where the "
                f"header has {len(names)}; the line may be cut off"
            )
        else:
            yield number, dict(zip(names, cells, strict=True))


def tokens(path: Path, number: int, column: str, value: object) -> int:
    """A token count from a cell or a JSON value. Raises UserError naming line and column for anything else."""
    try:
        if isinstance(value, bool) or not isinstance(value, int | str | float):
            raise ValueError
        count = int(value)
        if count != float(value):
            raise ValueError
    except (ValueError, OverflowError) as error:
        raise _wrong(path, number, column, value, "a whole number of tokens") from error
    if not 0 <= count <= MOST_TOKENS:
        raise _wrong(path, number, column, value, f"0 to {MOST_TOKENS:,} tokens")
    return count


def seconds_ns(path: Path, number: int, column: str, value: object) -> int:
    """Seconds from a cell or a JSON value, as nanoseconds; decimal digits are taken exactly."""
    try:
        if isinstance(value, bool) or not isinstance(value, int | str | float):
            raise ValueError
        seconds = Decimal(str(value))
        if not seconds.is_finite() or abs(seconds) > 10 * _MOST_S:
            raise ValueError
    except (ValueError, InvalidOperation) as error:
        raise _wrong(path, number, column, value, "seconds, such as 12.5") from error
    return round(seconds * _NS)


def whole(path: Path, number: int, column: str, value: object) -> int:
    """A whole number of 0 or more below 2^62."""
    try:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError
        result = int(value)
        if not 0 <= result < 1 << 62:
            raise ValueError
    except ValueError as error:
        raise _wrong(path, number, column, value, "a whole number of 0 or more") from error
    return result


def _wrong(path: Path, number: int, column: str, value: object, right: str) -> UserError:
    found = "nothing" if value is None or value == "" else repr(value)[:60]
    return UserError(f"{path}, line {number}, column {column}: expected {right}, found {found}")
