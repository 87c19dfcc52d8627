"""Which reader a trace file needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from breakeven.errors import UserError
from breakeven.traffic.traces import lines, results
from breakeven.traffic.traces.rows import TraceRows, lines_of

_HEAD_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class TraceFormat:
    """One format: `sniff` looks at the beginning of a file, `read` reads all of it."""

    sniff: Callable[[str], bool]
    read: Callable[[Path], TraceRows]


TRACES: dict[str, TraceFormat] = {
    "azure": TraceFormat(lines.azure_sniff, lines.azure_read),
    "mooncake": TraceFormat(lines.mooncake_sniff, lines.mooncake_read),
    "guidellm": TraceFormat(results.guidellm_sniff, results.guidellm_read),
    "aiperf": TraceFormat(results.aiperf_sniff, results.aiperf_read),
    "simple": TraceFormat(lines.simple_sniff, lines.simple_read),
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
                f"the header {','.join(lines.SIMPLE_COLUMNS)}; found {first[:60]!r}"
            )
    if format.startswith("guidellm:") and format.removeprefix("guidellm:").isdecimal():
        return results.guidellm_read_one(path, int(format.removeprefix("guidellm:")))
    if format not in TRACES:
        raise UserError(f"trace format {format!r} is not known; one of {', '.join(TRACES)}")
    return TRACES[format].read(path)


def _head(path: Path) -> str:
    """The first bytes as text, however long the first line is."""
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES).decode("utf-8-sig", errors="replace").lstrip()
