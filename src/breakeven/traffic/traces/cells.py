"""Files line by line: what their rows are made of, and numbers from their cells, with errors that name the place."""

from __future__ import annotations

import csv
import os
import re
import stat
from collections.abc import Iterator
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import TypeVar

import msgspec

from breakeven.errors import UserError

MOST_TOKENS = 100_000_000
"""More tokens than any context holds: the column is not a token count."""
_MOST_S = 10**9
_NS = 1_000_000_000

HEAD_ROWS = 20
"""Rows whose keys tell a format: one row may lack what only some have."""
_HEAD_BYTES = 65_536
_KEY = re.compile(rb'"([A-Za-z_][\w. ]*)"\s*:')


def keys_of(path: Path) -> frozenset[str]:
    """What the rows of a file are made of: columns of a CSV header, or keys of its first JSON objects.

    Those objects are the first lines, the first items of a list, or the one document there is; a key within one is
    "outer.inner". Of a document that is broken, every key its beginning names. Raises UserError as `lines_of`.
    """
    lines = lines_of(path)
    number, first = next(lines)
    start = first.lstrip()[:1]
    if start not in ("{", "["):
        return frozenset(_cells(path, number, first))
    rows: list[object] = []
    try:
        if start == "{":
            rows.append(msgspec.json.decode(first))
        else:
            rows += _items(path)[:HEAD_ROWS]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        rows = _whole(path)
    else:
        for _, line in islice(lines, HEAD_ROWS):
            try:
                rows.append(msgspec.json.decode(line))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                break  # whoever reads the rows says what is wrong with this one
    found: set[str] = set()
    for row in rows:
        if isinstance(row, dict):
            found.update(row)
            found.update(f"{key}.{inner}" for key, value in row.items() if isinstance(value, dict) for inner in value)
    return frozenset(found)


def _items(path: Path) -> list[object]:
    return msgspec.json.decode(path.read_bytes().removeprefix(b"\xef\xbb\xbf"), type=list[object])


def _whole(path: Path) -> list[object]:
    """The document at `path`, or, where it is none, a row of whatever keys its beginning names."""
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    try:
        found: object = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return [{key.decode(): None for key in _KEY.findall(data[:_HEAD_BYTES])}]
    return found[:HEAD_ROWS] if isinstance(found, list) else [found]


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line number, from 1, and text without its end, of every line that is not blank.

    Raises UserError for a file that cannot be read, is none (a pipe gives its bytes once, and a file is read more than
    once), is no UTF-8 text, or is empty.
    """
    number, found = 0, False
    try:
        with path.open("rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UserError(f"{path}: is no file but a pipe or a device; save what it gives and name that file")
            for number, raw in enumerate(file, start=1):
                if raw[:2] == b"\x1f\x8b" and number == 1:
                    raise UserError(f"{path}, line 1: is compressed; unpack it first, as with gunzip")
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{path}, line {number}, column {error.start + 1}: is not UTF-8 text; save the file as UTF-8"
                    ) from error
                if line.strip():
                    found = True
                    yield number, line
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if not found:
        raise UserError(f"{path}: is empty; give a file with at least one request")


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """Line number and object of every line of a JSON-lines file. Raises UserError as `lines_of`, and for bad JSON."""
    decode = msgspec.json.Decoder(dict[str, object]).decode
    for number, line in lines_of(path):
        try:
            yield number, decode(line)
        except (msgspec.DecodeError, RecursionError) as error:
            raise UserError(
                f"{path}, line {number}: is not a JSON object ({error}); the file may be cut off or edited"
            ) from error


def _cells(path: Path, number: int, line: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line]))]
    except csv.Error as error:
        raise UserError(
            f"{path}, line {number}: is no line of a CSV file ({error}); save it as CSV with usual line ends"
        ) from error


def csv_lines(path: Path, needed: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and cells by column name of every row of a CSV file with a header that has the `needed` columns.

    A quoted cell must end on its own line. Raises UserError as `lines_of`, for a wrong header, and for a row of
    another length.
    """
    names: list[str] = []
    for number, line in lines_of(path):
        cells = _cells(path, number, line)
        if not names:
            names = cells
            if twice := [name for name in names if name and names.count(name) > 1]:
                raise UserError(f"{path}, line {number}: has two columns {twice[0]}; keep one")
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
    """A token count from a cell or a JSON value, `374.0` too. Raises UserError naming line and column for others."""
    try:
        count = _count(value)
    except (ValueError, OverflowError) as error:
        raise _wrong(path, number, column, value, "a whole number of tokens") from error
    if not 0 <= count <= MOST_TOKENS:
        raise _wrong(path, number, column, value, f"0 to {MOST_TOKENS:,} tokens")
    return count


_EXACT = 1 << 53
"""Beyond it a floating-point number is not the whole number that was written."""


def _count(value: object) -> int:
    """The whole number that `value` says. Raises ValueError or OverflowError where it says none."""
    number = value
    if isinstance(value, str):
        try:
            return int(value)  # nearly every cell
        except ValueError:
            number = float(value)  # spreadsheets and dataframes with a gap write 374.0
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise ValueError
    count = int(number)
    if isinstance(number, float) and (count != number or abs(count) > _EXACT):
        raise ValueError
    return count


def seconds_ns(path: Path, number: int, column: str, value: object, per_s: int = 1) -> int:
    """A time from a cell or a JSON value, as nanoseconds; decimal digits are taken exactly.

    `per_s`: of the file's unit in a second, 1000 for milliseconds.
    """
    right = "seconds, such as 12.5" if per_s == 1 else f"{UNITS.get(per_s, 'a time')}, such as 12500"
    try:
        if isinstance(value, bool) or not isinstance(value, int | str | float):
            raise ValueError
        seconds = Decimal(str(value)) / per_s
        if not seconds.is_finite() or abs(seconds) > 4 * _MOST_S:  # the difference of two fits 64 bits of ns
            raise ValueError
    except (ValueError, ArithmeticError) as error:  # ArithmeticError: no number, or an exponent beyond all
        raise _wrong(path, number, column, value, right) from error
    return round(seconds * _NS)


UNITS = {1: "seconds", 1_000: "milliseconds", 1_000_000: "microseconds"}
"""Of each, in a second."""


def whole(path: Path, number: int, column: str, value: object, most: int = (1 << 62) - 1) -> int:
    """A whole number from 0 to `most`, `7.0` included. Raises UserError naming line and column for anything else."""
    try:
        result = _count(value)
        if not 0 <= result <= most:
            raise ValueError
    except (ValueError, OverflowError) as error:
        raise _wrong(path, number, column, value, f"a whole number from 0 to {most:,}") from error
    return result


def _wrong(path: Path, number: int, column: str, value: object, right: str) -> UserError:
    found = "nothing" if value is None or value == "" else repr(value)[:60]
    return UserError(f"{path}, line {number}, column {column}: expected {right}, found {found}")


_Document = TypeVar("_Document")


def document(path: Path, decoder: msgspec.json.Decoder[_Document], what: str) -> _Document:
    """The one document that `path` holds. Raises UserError, which names the key, for another than `what`."""
    try:
        return decoder.decode(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: is not {what}, as read here ({error}); docs/traffic.md shows its fields") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: is not {what} ({error}); give it whole") from error
