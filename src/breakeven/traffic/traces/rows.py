"""The requests of a trace, whichever file they came from; reading files by lines, with errors that name the place."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from breakeven.errors import UserError


@dataclass(frozen=True, slots=True)
class TraceRows:
    """Columns of equal length n, sorted by time; rows of one time keep the order of the file.

    `at_ns` int64, nanoseconds since the first request. `prompt`, `output` int32 tokens; in a session `prompt` counts
    the new tokens of that turn. `session` int64 (-1: none) and `turn` int32 are None where the trace has no sessions;
    turns of a session follow each other by `turn`, then by time. `think_ns` int64 is the pause between the answer
    before and this turn (-1: not recorded). `blocks[i]` are ids of `block_tokens` tokens of prompt i each. `images`
    int32: pictures of each request, None where the trace does not count them.
    `out_of_order` rows came later in the file than their time; `skipped` rows hold no request that could be replayed.
    `unit`: what times and blocks were taken to be, in words; `unused`: keys of the file that say nothing here.
    """

    name: str
    format: str
    at_ns: NDArray[np.int64]
    prompt: NDArray[np.int32]
    output: NDArray[np.int32]
    session: NDArray[np.int64] | None = None
    turn: NDArray[np.int32] | None = None
    think_ns: NDArray[np.int64] | None = None
    blocks: tuple[tuple[int, ...], ...] = field(default=())
    block_tokens: int = 512
    out_of_order: int = 0
    skipped: int = 0
    images: NDArray[np.int32] | None = None
    unit: str = ""
    unused: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.at_ns)

    @property
    def span_s(self) -> float:
        """Seconds from the first request to just after the last."""
        return float(self.at_ns[-1] + 1) / 1e9

    @property
    def reading(self) -> str:
        """How the file was understood, in one sentence: nobody shall learn of a wrong unit from a wrong result."""
        said = [f"{self.name} is read as {self.format}" + (f" ({self.unit})" if self.unit else "")]
        said[0] += f": {len(self):,} request{'' if len(self) == 1 else 's'} in {self.span_s:,.1f} s"
        empty = int((self.output == 0).sum())
        for count, what in (
            (self.out_of_order, "out of order of time and sorted"),
            (self.skipped, "without token counts and left out"),
            (empty, "without an answer's tokens and played with one"),
        ):
            if count:
                said.append(f"{count:,} {what}")
        if self.images is not None and self.images.any():
            said.append(
                f"{int(self.images.sum()):,} images, in {int((self.images > 0).sum()):,} of them, are counted, not sent"
            )
        if self.unused:
            said.append(f"not used: {', '.join(self.unused)}")
        return "; ".join(said)


def trace_rows(
    name: str,
    format: str,
    at_ns: Sequence[int],
    prompt: Sequence[int],
    output: Sequence[int],
    *,
    sessions: Sequence[object] | None = None,
    turn: Sequence[int] | None = None,
    think_ns: Sequence[int] | None = None,
    blocks: Sequence[tuple[int, ...]] = (),
    block_tokens: int = 512,
    skipped: int = 0,
    images: Sequence[int] = (),
    unit: str = "",
) -> TraceRows:
    """Columns in file order, made into TraceRows. `sessions` may be any names, None for a row without one.

    Raises UserError when there is no row.
    """
    if not at_ns:
        raise UserError(f"{name}: holds no request; give a trace with at least one")
    times_N = np.asarray(at_ns, np.int64)
    order_N = np.argsort(times_N, kind="stable")
    ids: dict[object, int] = {}
    session_N = turn_N = think_N = None
    if sessions is not None and any(session is not None for session in sessions):
        session_N = np.array([-1 if s is None else ids.setdefault(s, len(ids)) for s in sessions], np.int64)[order_N]
        turn_N = np.asarray([0] * len(times_N) if turn is None else turn, np.int32)[order_N]
        think_N = None if think_ns is None else np.asarray(think_ns, np.int64)[order_N]
    return TraceRows(
        name=name,
        format=format,
        at_ns=times_N[order_N] - times_N.min(),
        prompt=np.asarray(prompt, np.int32)[order_N],
        output=np.asarray(output, np.int32)[order_N],
        session=session_N,
        turn=turn_N,
        think_ns=think_N,
        blocks=tuple(blocks[k] for k in order_N.tolist()) if blocks else (),
        block_tokens=block_tokens,
        out_of_order=int((times_N < np.maximum.accumulate(times_N)).sum()),
        skipped=skipped,
        images=np.asarray(images, np.int32)[order_N] if len(images) else None,
        unit=unit,
    )


def new_tokens(
    contexts: Sequence[int], outputs: Sequence[int], sessions: Sequence[object], turns: Sequence[int]
) -> list[int]:
    """New prompt tokens of each row, where a file counts the whole context of a conversation.

    new(k) = context(k) - context(k - 1) - output(k - 1), at least 1; the context itself where turn k - 1 is missing.
    """
    totals = {
        (session, turn): context + output
        for context, output, session, turn in zip(contexts, outputs, sessions, turns, strict=True)
    }
    return [
        context if session is None or turn == 0 else max(1, context - totals.get((session, turn - 1), 0))
        for context, session, turn in zip(contexts, sessions, turns, strict=True)
    ]


_OTHER_UNIT = 1_000
_FALLS = 2.0
"""A time that goes back to less than half is looked at; jitter of a recorder is far smaller."""
_SWITCH = (900.0, 1_100.0)
_AROUND = 3
"""Rows before and after a switch of units that must be there to see it."""


def check_one_unit(path: Path, column: str, lines: Sequence[int], at_ns: Sequence[int]) -> None:
    """Raises UserError, naming line and column, where some times only make sense a thousand times as long or short.

    Either a row falls out of the order of its neighbours and falls into it when its unit is changed, or from one row
    on every time and every gap is a thousand times as long.
    """
    t_N = np.asarray(at_ns, np.float64)
    if len(t_N) < _AROUND:
        return
    for k in np.flatnonzero(t_N[1:] * _FALLS < t_N[:-1]).tolist()[:_LOOKED_AT]:
        before, after = t_N[k], t_N[k + 1]
        low = t_N[: k + 1][t_N[: k + 1] <= after].max(initial=0.0)
        if 0 < low <= before / _OTHER_UNIT <= after:
            raise _mixed(path, lines[k], column, "a thousandth")
        then = t_N[k + 2] if k + 2 < len(t_N) and t_N[k + 2] > before else 2 * before
        if before <= after * _OTHER_UNIT <= then:
            raise _mixed(path, lines[k + 1], column, "a thousand times as much")
    for k in np.flatnonzero((t_N[:-1] > 0) & (t_N[1:] >= _SWITCH[0] * t_N[:-1])).tolist()[:_LOOKED_AT]:
        if k < _AROUND or len(t_N) - k - 1 <= _AROUND or t_N[k + 1] > _SWITCH[1] * t_N[k]:
            continue
        slow, fast = np.median(np.diff(t_N[: k + 1])), np.median(np.diff(t_N[k + 1 :]))
        if slow > 0 and _OTHER_UNIT / 5 <= fast / slow <= _OTHER_UNIT * 5:
            raise _mixed(path, lines[k + 1], column, "a thousandth")


_LOOKED_AT = 100


def _mixed(path: Path, number: int, column: str, fits: str) -> UserError:
    return UserError(
        f"{path}, line {number}, column {column}: fits the rows around it only at {fits}, so the trace mixes units; "
        "write all its times in one"
    )


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
    except (ValueError, InvalidOperation) as error:
        raise _wrong(path, number, column, value, right) from error
    return round(seconds * _NS)


UNITS = {1: "seconds", 1_000: "milliseconds", 1_000_000: "microseconds"}
"""Of each, in a second."""


def whole(path: Path, number: int, column: str, value: object, most: int = (1 << 62) - 1) -> int:
    """A whole number from 0 to `most`."""
    try:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError
        result = int(value)
        if not 0 <= result <= most:
            raise ValueError
    except ValueError as error:
        raise _wrong(path, number, column, value, f"a whole number from 0 to {most:,}") from error
    return result


def _wrong(path: Path, number: int, column: str, value: object, right: str) -> UserError:
    found = "nothing" if value is None or value == "" else repr(value)[:60]
    return UserError(f"{path}, line {number}, column {column}: expected {right}, found {found}")
