"""Which reader a trace file needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from breakeven.errors import UserError
from breakeven.measure.traces import aiperf, azure, guidellm, mooncake, simple
from breakeven.measure.traces.rows import TraceRows
from breakeven.measure.traces.text import lines_of

_HEAD_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class TraceFormat:
    """One format: `sniff` looks at the beginning of a file, `read` reads all of it."""

    sniff: Callable[[str], bool]
    read: Callable[[Path], TraceRows]


TRACES: dict[str, TraceFormat] = {
    "azure": TraceFormat(azure.sniff, azure.read),
    "mooncake": TraceFormat(mooncake.sniff, mooncake.read),
    "guidellm": TraceFormat(guidellm.sniff, guidellm.read),
    "aiperf": TraceFormat(aiperf.sniff, aiperf.read),
    "simple": TraceFormat(simple.sniff, simple.read),
}


def read_trace(path: Path, format: str | None = None) -> TraceRows:
    """The requests recorded in `path`; its format is told from its first line when it is not given.

    "guidellm:2" means the second benchmark of such a file. Raises UserError naming file, line and column, and what
    would be right.
    """
    if format is None:
        number, first = next(lines_of(path))
        head = _head(path) if first.startswith("{") else first
        format = next((name for name, known in TRACES.items() if known.sniff(head)), None)
        if format is None:
            raise UserError(
                f"{path}, line {number}: is no trace format known here ({', '.join(TRACES)}); the simplest is CSV with "
                f"the header {','.join(simple.COLUMNS)}; found {first[:60]!r}"
            )
    if format.startswith("guidellm:") and format.removeprefix("guidellm:").isdecimal():
        return guidellm.read_one(path, int(format.removeprefix("guidellm:")))
    if format not in TRACES:
        raise UserError(f"trace format {format!r} is not known; one of {', '.join(TRACES)}")
    return TRACES[format].read(path)


def _head(path: Path) -> str:
    """The first bytes as text, however long the first line is."""
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES).decode("utf-8-sig", errors="replace").lstrip()
