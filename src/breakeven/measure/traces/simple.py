"""Our own traces: CSV with a header, or JSON lines, of at_s, prompt_tokens, output_tokens and, optionally, session,
turn and think_s."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from breakeven.errors import UserError
from breakeven.measure.traces.rows import TraceRows, trace_rows
from breakeven.measure.traces.text import csv_lines, json_lines, lines_of, seconds_ns, tokens, whole

COLUMNS = ("at_s", "prompt_tokens", "output_tokens")
OPTIONAL = ("session", "turn", "think_s")


def sniff(head: str) -> bool:
    """True when the file begins as this format does."""
    return "at_s" in head.split("\n", 1)[0]


def read(path: Path) -> TraceRows:
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
        unknown = [name for name in row if name not in COLUMNS + OPTIONAL]
        if unknown:
            raise UserError(
                f"{path}, line {number}: column {unknown[0]!r} is not known; there are {', '.join(COLUMNS + OPTIONAL)}"
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
    rows = csv_lines(path, COLUMNS)
    first = next(rows, None)
    for number, cells in chain([] if first is None else [first], rows):
        yield number, dict(cells)
