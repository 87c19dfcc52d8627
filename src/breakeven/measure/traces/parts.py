"""Traces too long for memory, a part at a time: the formats in which every line stands for itself.

Rows must be in order of time, as recorders write them; conversations need the whole file and are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from breakeven.errors import UserError
from breakeven.measure.traces import azure, mooncake, simple
from breakeven.measure.traces.rows import TraceRows
from breakeven.measure.traces.text import csv_lines, json_lines, lines_of, seconds_ns, tokens, whole

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
        "azure": (azure.sniff, _azure),
        "mooncake": (mooncake.sniff, _mooncake),
        "simple": (simple.sniff, _simple),
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
            block_tokens=mooncake.BLOCK_TOKENS,
        )


def _azure(path: Path) -> Iterator[Row]:
    for number, cells in csv_lines(path, azure.COLUMNS):
        prompt = tokens(path, number, "ContextTokens", cells["ContextTokens"])
        output = tokens(path, number, "GeneratedTokens", cells["GeneratedTokens"])
        yield azure.time_ns(path, number, cells["TIMESTAMP"]), prompt, output, ()


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
    rows = json_lines(path) if first.lstrip().startswith("{") else csv_lines(path, simple.COLUMNS)
    for number, row in rows:
        if row.get("session") not in (None, ""):
            raise UserError(
                f"{path}, line {number}: a trace of conversations cannot be read in parts; cut it to fit in memory"
            )
        prompt = tokens(path, number, "prompt_tokens", row.get("prompt_tokens"))
        output = tokens(path, number, "output_tokens", row.get("output_tokens"))
        yield seconds_ns(path, number, "at_s", row.get("at_s")), prompt, output, ()
