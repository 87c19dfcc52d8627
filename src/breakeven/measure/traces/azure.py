"""Azure LLM inference traces: CSV with TIMESTAMP, ContextTokens, GeneratedTokens.

Published at github.com/Azure/AzurePublicDataset.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

from breakeven.errors import UserError
from breakeven.measure.traces.rows import TraceRows, trace_rows
from breakeven.measure.traces.text import csv_lines, tokens

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_TIME = re.compile(r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:Z|\+00:00)?")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def sniff(head: str) -> bool:
    """True when the file begins as this format does."""
    return {"TIMESTAMP", "ContextTokens"} <= {cell.strip() for cell in head.split("\n", 1)[0].split(",")}


def read(path: Path) -> TraceRows:
    """The rows of `path`; time stamps of up to nine decimals stay exact. Raises UserError naming line and column."""
    at_ns: list[int] = []
    prompt: list[int] = []
    output: list[int] = []
    for number, cells in csv_lines(path, COLUMNS):
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
