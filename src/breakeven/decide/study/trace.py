"""The trace of a study, however long it is: what does not fit into memory is represented by its beginning."""

from __future__ import annotations

import tempfile
from itertools import islice
from pathlib import Path

from breakeven.errors import UserError
from breakeven.measure.traces import TraceRows, read_trace

WHOLE_BYTES = 256_000_000
"""A trace up to this size is read whole: some seven million requests as Azure writes them."""
HEAD_LINES = 1_000_000


def read_study_trace(path: Path, whole_bytes: int = WHOLE_BYTES, head_lines: int = HEAD_LINES) -> TraceRows:
    """The requests of `path`, or its first `head_lines` lines where it is larger than `whole_bytes`.

    Its lines are copied as they are read, so memory does not grow with the file. Raises UserError as `read_trace`, and
    for a large file that is one JSON document, which has no beginning that could be read alone.
    """
    if not path.is_file() or path.stat().st_size <= whole_bytes:
        return read_trace(path)
    with tempfile.TemporaryDirectory() as directory:
        # The same name, as results and errors show it.
        head = Path(directory) / path.name
        with path.open("rb") as lines, head.open("wb") as copy:
            first = lines.readline(whole_bytes)
            if not first.endswith(b"\n") or first.strip() in (b"{", b"["):
                size = path.stat().st_size / 1e6
                raise UserError(f"{path}: is one document of {size:,.0f} MB; convert it to one request a line first")
            copy.write(first)
            copy.writelines(islice(lines, head_lines - 1))
        return read_trace(head)
