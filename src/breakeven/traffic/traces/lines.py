"""Traces whose every line stands for itself, read whole or a part at a time: Azure's, Mooncake's and our own.

Azure LLM inference traces (github.com/Azure/AzurePublicDataset): CSV with TIMESTAMP, ContextTokens, GeneratedTokens.
Mooncake traces (github.com/kvcache-ai/Mooncake, FAST25-release): JSON lines with timestamp (ms), input_length,
output_length and hash_ids of 512 prompt tokens each; equal ids mean equal text up to there. Our own: CSV with a header,
or JSON lines, of at_s, prompt_tokens, output_tokens and, optionally, session, turn and think_s.

A trace too long for memory is read a part at a time. Its rows must be in order of time, as recorders write them;
conversations need the whole file and are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path

import numpy as np

from breakeven.errors import UserError
from breakeven.traffic.traces.rows import (
    TraceRows,
    csv_lines,
    json_lines,
    lines_of,
    seconds_ns,
    tokens,
    trace_rows,
    whole,
)

AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_TIME = re.compile(r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:Z|\+00:00)?")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def azure_sniff(head: str) -> bool:
    """True when the file begins as this format does."""
    return {"TIMESTAMP", "ContextTokens"} <= {cell.strip() for cell in head.split("\n", 1)[0].split(",")}


def azure_read(path: Path) -> TraceRows:
    """The rows of `path`; time stamps of up to nine decimals stay exact. Raises UserError naming line and column."""
    at_ns: list[int] = []
    prompt: list[int] = []
    output: list[int] = []
    for number, cells in csv_lines(path, AZURE_COLUMNS):
        at_ns.append(time_ns(path, number, cells["TIMESTAMP"]))
        prompt.append(tokens(path, number, "ContextTokens", cells["ContextTokens"]))
        output.append(tokens(path, number, "GeneratedTokens", cells["GeneratedTokens"]))
    return trace_rows(path.name, "azure", at_ns, prompt, output)


def time_ns(path: Path, number: int, text: str) -> int:
    """A time stamp as nanoseconds since 1970. Raises UserError naming the line."""
    match = _TIME.fullmatch(text)
    try:
        if match is None:
            raise ValueError
        since = datetime.fromisoformat(match[1]).replace(tzinfo=UTC) - _EPOCH
    except ValueError as error:
        raise UserError(
            f"{path}, line {number}, column TIMESTAMP: expected a time such as 2023-11-16 18:17:03.9799600, "
            f"found {text[:60]!r}"
        ) from error
    return (since.days * 86_400 + since.seconds) * 1_000_000_000 + int((match[2] or "0").ljust(9, "0"))


BLOCK_TOKENS = 512


def mooncake_sniff(head: str) -> bool:
    """True when the file begins as this format does."""
    line = head.split("\n", 1)[0]
    return line.startswith("{") and '"input_length"' in line and '"timestamp"' in line


def mooncake_read(path: Path) -> TraceRows:
    """The rows of `path`. Raises UserError naming line and key."""
    at_ns: list[int] = []
    prompt: list[int] = []
    output: list[int] = []
    blocks: list[tuple[int, ...]] = []
    for number, row in json_lines(path):
        at_ns.append(round(seconds_ns(path, number, "timestamp", row.get("timestamp")) / 1_000))
        prompt.append(tokens(path, number, "input_length", row.get("input_length")))
        output.append(tokens(path, number, "output_length", row.get("output_length")))
        ids = row.get("hash_ids", [])
        if not isinstance(ids, list):
            raise UserError(f"{path}, line {number}, column hash_ids: expected a list of ids, found {str(ids)[:60]}")
        blocks.append(tuple(whole(path, number, "hash_ids", block) for block in ids))
    shared = blocks if any(blocks) else []
    return trace_rows(path.name, "mooncake", at_ns, prompt, output, blocks=shared, block_tokens=BLOCK_TOKENS)


SIMPLE_COLUMNS = ("at_s", "prompt_tokens", "output_tokens")
OPTIONAL = ("session", "turn", "think_s")


def simple_sniff(head: str) -> bool:
    """True when the file begins as this format does."""
    return "at_s" in head.split("\n", 1)[0]


def simple_read(path: Path) -> TraceRows:
    """The rows of `path`. Raises UserError naming line and column, also for a column that is not known."""
    first = next(lines_of(path))[1]
    rows: Iterator[tuple[int, dict[str, object]]]
    rows = json_lines(path) if first.lstrip().startswith("{") else _cells(path)
    at_ns: list[int] = []
    prompt: list[int] = []
    output: list[int] = []
    sessions: list[object] = []
    turn: list[int] = []
    think_ns: list[int] = []
    for number, row in rows:
        unknown = [name for name in row if name not in SIMPLE_COLUMNS + OPTIONAL]
        if unknown:
            raise UserError(
                f"{path}, line {number}: column {unknown[0]!r} is not known; there are "
                f"{', '.join(SIMPLE_COLUMNS + OPTIONAL)}"
            )
        at_ns.append(seconds_ns(path, number, "at_s", row.get("at_s")))
        prompt.append(tokens(path, number, "prompt_tokens", row.get("prompt_tokens")))
        output.append(tokens(path, number, "output_tokens", row.get("output_tokens")))
        session = row.get("session")
        session = None if session == "" else session
        if isinstance(session, list | dict):
            raise UserError(
                f"{path}, line {number}, column session: expected a name or number, found {session!r}"[:300]
            )
        sessions.append(None if session is None else str(session))
        given = row.get("turn")
        turn.append(0 if given in (None, "") else whole(path, number, "turn", given))
        pause = row.get("think_s")
        think_ns.append(-1 if pause in (None, "") else seconds_ns(path, number, "think_s", pause))
        if think_ns[-1] < -1:
            raise UserError(f"{path}, line {number}, column think_s: expected 0 s or more, found {pause}")
    return trace_rows(path.name, "simple", at_ns, prompt, output, sessions=sessions, turn=turn, think_ns=think_ns)


def _cells(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    rows = csv_lines(path, SIMPLE_COLUMNS)
    first = next(rows, None)
    for number, cells in chain([] if first is None else [first], rows):
        yield number, dict(cells)


Row = tuple[int, int, int, tuple[int, ...]]
"""Time in ns, prompt and output tokens, block ids."""
ROWS = 200_000
"""In a part: some tens of megabytes while it is simulated."""


def trace_parts(path: Path, rows: int = ROWS) -> Iterator[TraceRows]:
    """The rows of `path`, `rows` at a time; `at_ns` counts from the first row of the file in every part.

    Raises UserError for a format that must be read whole, for rows out of order, and as the readers do.
    """
    first_line = next(lines_of(path))[1]
    known: dict[str, tuple[Callable[[str], bool], Callable[[Path], Iterator[Row]]]] = {
        "azure": (azure_sniff, _azure),
        "mooncake": (mooncake_sniff, _mooncake),
        "simple": (simple_sniff, _simple),
    }
    name = next((name for name, (sniff, _) in known.items() if sniff(first_line)), None)
    if name is None:
        raise UserError(
            f"{path} is too long to be read whole, and only {', '.join(known)} traces can be read in parts; cut it"
        )
    found = known[name][1](path)
    start_ns: int | None = None
    last_ns = 0
    while part := list(islice(found, rows)):
        at_ns_N = np.array([row[0] for row in part], np.int64)
        start_ns = int(at_ns_N[0]) if start_ns is None else start_ns
        if at_ns_N[0] < last_ns or (np.diff(at_ns_N) < 0).any():
            raise UserError(f"{path} is read in parts and is not in order of time; sort it first")
        last_ns = int(at_ns_N[-1])
        shared = any(row[3] for row in part)
        yield TraceRows(
            name=path.name,
            format=name,
            at_ns=at_ns_N - start_ns,
            prompt=np.array([row[1] for row in part], np.int32),
            output=np.array([row[2] for row in part], np.int32),
            blocks=tuple(row[3] for row in part) if shared else (),
            block_tokens=BLOCK_TOKENS,
        )


def _azure(path: Path) -> Iterator[Row]:
    for number, cells in csv_lines(path, AZURE_COLUMNS):
        prompt = tokens(path, number, "ContextTokens", cells["ContextTokens"])
        output = tokens(path, number, "GeneratedTokens", cells["GeneratedTokens"])
        yield time_ns(path, number, cells["TIMESTAMP"]), prompt, output, ()


def _mooncake(path: Path) -> Iterator[Row]:
    for number, row in json_lines(path):
        at_ns = round(seconds_ns(path, number, "timestamp", row.get("timestamp")) / 1_000)
        prompt = tokens(path, number, "input_length", row.get("input_length"))
        output = tokens(path, number, "output_length", row.get("output_length"))
        ids = row.get("hash_ids", [])
        if not isinstance(ids, list):
            raise UserError(f"{path}, line {number}, column hash_ids: expected a list of ids, found {str(ids)[:60]}")
        yield at_ns, prompt, output, tuple(whole(path, number, "hash_ids", block) for block in ids)


def _simple(path: Path) -> Iterator[Row]:
    first = next(lines_of(path))[1]
    rows = json_lines(path) if first.lstrip().startswith("{") else csv_lines(path, SIMPLE_COLUMNS)
    for number, row in rows:
        if row.get("session") not in (None, ""):
            raise UserError(
                f"{path}, line {number}: a trace of conversations cannot be read in parts; cut it to fit in memory"
            )
        prompt = tokens(path, number, "prompt_tokens", row.get("prompt_tokens"))
        output = tokens(path, number, "output_tokens", row.get("output_tokens"))
        yield seconds_ns(path, number, "at_s", row.get("at_s")), prompt, output, ()
