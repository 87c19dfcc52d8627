"""The table in docs/conformance.md."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from pathlib import Path

from found import Found

HEAD = """| judge | behind | cases | pass directly | pass through | | run on |
|---|---|---|---|---|---|---|"""
BEGIN, END = "<!-- judges: begin -->", "<!-- judges: end -->"


def write(path: Path, rows: Iterable[Found]) -> None:
    """Put the rows into the table between the two marks of a page, in place of those of the same judge and backend."""
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    table, _, after = rest.partition(END)
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    lines = {_first_two(line): line for line in table.splitlines() if line.startswith("| ") and line not in HEAD}
    lines |= {_first_two(row.row()): f"{row.row()} {day} |" for row in rows}
    path.write_text("\n".join([f"{before}{BEGIN}", HEAD, *lines.values(), END]) + after, encoding="utf-8")


def _first_two(line: str) -> str:
    return "|".join(line.split("|")[1:3])
