"""Traces whose every line stands for itself, read whole or a part at a time.

azure: Azure's LLM inference traces (github.com/Azure/AzurePublicDataset): CSV with TIMESTAMP, ContextTokens and
GeneratedTokens; that of 2025 counts pictures in NumImages. burstgpt: BurstGPT (github.com/HPMLL/BurstGPT): CSV,
seconds, "Request tokens" and "Response tokens". bailian: Alibaba's Bailian traces (github.com/alibaba-edu/
qwen-bailian-usagetraces-anon): JSON lines, seconds, hash_ids of 16 prompt tokens, conversations by parent_chat_id,
input_length counting the whole context. mooncake: Mooncake's (github.com/kvcache-ai/Mooncake, FAST25-release): JSON
lines, milliseconds, hash_ids of 512 tokens; equal ids mean equal text up to there. simple: our own, CSV with a header,
or JSON lines, of at_s, prompt_tokens, output_tokens and, optionally, session, turn and think_s.

Other tools write Mooncake's keys with other units (GuideLLM's trace_synthetic in seconds), so what contradicts
Mooncake's is asked about and never scaled in silence.

A trace too long for memory is read a part at a time. Its rows must be in order of time, as recorders write them;
conversations need the whole file and are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from breakeven.errors import UserError
from breakeven.traffic.traces.cells import (
    MOST_TOKENS,
    UNITS,
    csv_lines,
    json_lines,
    keys_of,
    lines_of,
    seconds_ns,
    tokens,
    whole,
)
from breakeven.traffic.traces.rows import TraceRows, check_one_unit, trace_rows


class TraceRow(NamedTuple):
    """One request as its line tells it. `session`: a name or number; `prompt` then counts what is new in this turn.

    `anew`: the row names a turn before it, whose text its context cannot hold; it begins a conversation.
    """

    line: int
    at_ns: int
    prompt: int
    output: int
    blocks: tuple[int, ...] = ()
    session: object = None
    turn: int = 0
    think_ns: int = -1
    images: int = 0
    anew: bool = False


@dataclass(frozen=True, slots=True)
class LineFormat:
    """One format: `needs` are the keys it is told by, `knows` all it reads; `unit` says what its numbers are.

    `at`: the key of times that are bare numbers, which a file may mix; None: they name their unit.
    """

    rows: Callable[[Path], Iterator[TraceRow]]
    needs: frozenset[str]
    knows: frozenset[str]
    unit: str
    block_tokens: int = 512
    at: str | None = None


AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
IMAGES = "NumImages"
_TIME = re.compile(r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?: ?(?:Z|UTC)|([+-][01]\d):?([0-5]\d))?")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_YEARS = range(1970, 2201)
"""That nanoseconds in 64 bits hold, and the difference of two: others are what software writes for no time at all."""


def azure(path: Path) -> Iterator[TraceRow]:
    """Time stamps of up to nine decimals stay exact. Raises UserError naming line and column, as all of these do."""
    for number, cells in csv_lines(path, AZURE_COLUMNS):
        yield TraceRow(
            number,
            time_ns(path, number, cells["TIMESTAMP"]),
            tokens(path, number, "ContextTokens", cells["ContextTokens"]),
            tokens(path, number, "GeneratedTokens", cells["GeneratedTokens"]),
            images=whole(path, number, IMAGES, cells.get(IMAGES, 0), MOST_TOKENS),
        )


def time_ns(path: Path, number: int, text: str) -> int:
    """A time stamp as nanoseconds since 1970, in UTC where it names no zone. Raises UserError naming the line."""
    match = _TIME.fullmatch(text)
    try:
        if match is None:
            raise ValueError
        when = datetime.fromisoformat(match[1])
        if when.year not in _YEARS:
            raise ValueError
        ahead_min = int(match[3] or 0) * 60
        ahead_min += int(match[4] or 0) if (match[3] or "+")[0] == "+" else -int(match[4])
        since = when.replace(tzinfo=UTC) - _EPOCH - timedelta(minutes=ahead_min)
    except ValueError as error:
        raise UserError(
            f"{path}, line {number}, column TIMESTAMP: expected a time such as 2023-11-16 18:17:03.9799600, "
            f"found {text[:60]!r}"
        ) from error
    return (since.days * 86_400 + since.seconds) * 1_000_000_000 + int((match[2] or "0").ljust(9, "0"))


BURST_COLUMNS = ("Timestamp", "Request tokens", "Response tokens")


def burstgpt(path: Path) -> Iterator[TraceRow]:
    """A row without response tokens failed when it was recorded; it came in all the same."""
    for number, cells in csv_lines(path, BURST_COLUMNS):
        yield TraceRow(
            number,
            seconds_ns(path, number, "Timestamp", cells["Timestamp"]),
            tokens(path, number, "Request tokens", cells["Request tokens"]),
            tokens(path, number, "Response tokens", cells["Response tokens"]),
        )


def bailian(path: Path) -> Iterator[TraceRow]:
    """What is new in a turn is its context less that of its parent and the parent's answer.

    A child whose parent is not in the file, or was gone on from before, begins a conversation of its own; so does one
    whose context does not exceed what was said before, because it cannot hold all of that.
    """
    talks: dict[int, tuple[int, int, int]] = {}
    """Chat -> its conversation, its turn, and the tokens said up to its answer."""
    for number, row in json_lines(path):
        chat = whole(path, number, "chat_id", row.get("chat_id"))
        context = tokens(path, number, "input_length", row.get("input_length"))
        output = tokens(path, number, "output_length", row.get("output_length"))
        named = row.get("parent_chat_id")
        parent = None if named in (None, -1) else whole(path, number, "parent_chat_id", named)
        before = None if parent is None else talks.get(parent)
        anew = before is not None and context <= before[2]
        if parent is not None and not anew:
            talks.pop(parent, None)  # a conversation goes on once, and whoever forks it begins another
        root, turn, said = (chat, 0, 0) if before is None or anew else (before[0], before[1] + 1, before[2])
        talks[chat] = root, turn, context + output
        yield TraceRow(
            number,
            seconds_ns(path, number, "timestamp", row.get("timestamp")),
            context - said,
            output,
            _ids(path, number, row),
            root,
            turn,
            anew=anew,
        )


BLOCK_TOKENS, BAILIAN_BLOCK_TOKENS = 512, 16
_MS = 1_000


def mooncake(path: Path) -> Iterator[TraceRow]:
    """As published; raises UserError for a row that cannot be in milliseconds or in blocks of 512 tokens."""
    for row, value in _mooncake(path, _MS):
        if not float(str(value)).is_integer():
            raise _unsure(path, row.line, "timestamp", f"{value} is no whole number of milliseconds")
        if len(row.blocks) > -(-row.prompt // BLOCK_TOKENS):
            told = f"{len(row.blocks)} ids for {row.prompt} tokens are no blocks of {BLOCK_TOKENS}"
            raise _unsure(path, row.line, "hash_ids", told)
        yield row


def _mooncake(path: Path, per_s: int) -> Iterator[tuple[TraceRow, object]]:
    """Rows, each with its time as written."""
    for number, row in json_lines(path):
        at_ns = seconds_ns(path, number, "timestamp", row.get("timestamp"), per_s)
        prompt = tokens(path, number, "input_length", row.get("input_length"))
        output = tokens(path, number, "output_length", row.get("output_length"))
        yield TraceRow(number, at_ns, prompt, output, _ids(path, number, row)), row.get("timestamp")


def _unsure(path: Path, number: int, key: str, why: str) -> UserError:
    return UserError(
        f"{path}, line {number}, column {key}: {why}, which Mooncake's are; say what they are with --trace-format: "
        "mooncake:s:16 for seconds and blocks of 16 tokens, mooncake:ms:512 for Mooncake's"
    )


_MOONCAKE = frozenset({"timestamp", "input_length", "output_length", "hash_ids"})


def mooncake_in(unit: str, block: str) -> LineFormat | None:
    """Mooncake's keys in another unit ("s", "ms", "us") and size of blocks ("16"); None for words that are neither."""
    per_s = {"s": 1, "ms": 1_000, "us": 1_000_000}.get(unit)
    if per_s is None or not re.fullmatch(r"[1-9]\d{0,5}", block):
        return None
    return LineFormat(
        rows=lambda path: (row for row, _ in _mooncake(path, per_s)),
        needs=frozenset({"timestamp", "input_length"}),
        knows=_MOONCAKE,
        unit=f"{UNITS[per_s]}, blocks of {block} tokens",
        block_tokens=int(block),
        at="timestamp",
    )


def _ids(path: Path, number: int, row: dict[str, object]) -> tuple[int, ...]:
    ids = row.get("hash_ids")
    if ids is None:
        return ()
    if not isinstance(ids, list):
        raise UserError(f"{path}, line {number}, column hash_ids: expected a list of ids, found {str(ids)[:60]}")
    return tuple(whole(path, number, "hash_ids", block) for block in ids)


SIMPLE_COLUMNS = ("at_s", "prompt_tokens", "output_tokens")
OPTIONAL = ("session", "turn", "think_s")
_NO_NAMES = frozenset(("nan", "none", "null", "na", "n/a", "<na>"))


def simple(path: Path) -> Iterator[TraceRow]:
    """Raises UserError also for a column that is not known, and for a turn that its session has already."""
    first = next(lines_of(path))[1]
    rows = json_lines(path) if first.lstrip().startswith("{") else csv_lines(path, SIMPLE_COLUMNS)
    seen: dict[tuple[str, int], int] = {}
    """Session and turn, where a turn is given -> its line."""
    for number, row in rows:
        unknown = [name for name in row if name not in SIMPLE_COLUMNS + OPTIONAL]
        if unknown:
            raise UserError(
                f"{path}, line {number}: column {unknown[0]!r} is not known; there are "
                f"{', '.join(SIMPLE_COLUMNS + OPTIONAL)}"
            )
        at_ns = seconds_ns(path, number, "at_s", row.get("at_s"))
        prompt = tokens(path, number, "prompt_tokens", row.get("prompt_tokens"))
        output = tokens(path, number, "output_tokens", row.get("output_tokens"))
        session: object = row.get("session")
        if isinstance(session, list | dict):
            raise UserError(
                f"{path}, line {number}, column session: expected a name or number, found {session!r}"[:300]
            )
        given, pause = row.get("turn"), row.get("think_s")
        turn = 0 if given in (None, "") else whole(path, number, "turn", given, MOST_TOKENS)
        think_ns = -1 if pause in (None, "") else seconds_ns(path, number, "think_s", pause)
        if think_ns < -1:
            raise UserError(f"{path}, line {number}, column think_s: expected 0 s or more, found {pause}")
        if isinstance(session, str) and session.lower() in _NO_NAMES:
            raise UserError(
                f"{path}, line {number}, column session: {session!r} is how software writes that there is none; leave "
                "it empty, or all such rows would be one conversation"
            )
        name = None if session in (None, "") else str(session)
        if name is not None and given not in (None, "") and (line := seen.setdefault((name, turn), number)) != number:
            raise UserError(
                f"{path}, line {number}, column turn: session {name[:60]!r} has a turn {turn} in line {line} already; "
                "give every turn a number of its own"
            )
        yield TraceRow(number, at_ns, prompt, output, (), name, turn, think_ns)


LINES: dict[str, LineFormat] = {
    "azure": LineFormat(
        azure, frozenset(AZURE_COLUMNS[:2]), frozenset({*AZURE_COLUMNS, IMAGES}), "times of day in UTC"
    ),
    "burstgpt": LineFormat(
        burstgpt,
        frozenset(BURST_COLUMNS[:2]),
        frozenset({*BURST_COLUMNS, "Total tokens"}),
        "seconds",
        at="Timestamp",
    ),
    "bailian": LineFormat(
        bailian,
        frozenset({"timestamp", "input_length", "chat_id"}),
        _MOONCAKE | {"chat_id", "parent_chat_id", "turn"},
        "seconds, blocks of 16 tokens",
        BAILIAN_BLOCK_TOKENS,
        at="timestamp",
    ),
    "mooncake": LineFormat(
        mooncake,
        frozenset({"timestamp", "input_length"}),
        _MOONCAKE,
        "milliseconds, blocks of 512 tokens",
        at="timestamp",
    ),
    "simple": LineFormat(simple, frozenset({"at_s"}), frozenset({*SIMPLE_COLUMNS, *OPTIONAL}), "seconds"),
}


def read_lines(path: Path, name: str, form: LineFormat) -> TraceRows:
    """All rows of `path`. Raises UserError as the format does, and for times of several units."""
    numbers: tuple[list[int], ...] = ([], [], [], [], [], [], [])
    blocks: list[tuple[int, ...]] = []
    sessions: list[object] = []
    anew = 0
    for row in form.rows(path):
        values = (row.line, row.at_ns, row.prompt, row.output, row.turn, row.think_ns, row.images)
        for column, value in zip(numbers, values, strict=True):
            column.append(value)
        blocks.append(row.blocks)
        sessions.append(row.session)
        anew += row.anew
    lines, at_ns, prompt, output, turn, think_ns, images = numbers
    if form.at is not None:
        check_one_unit(path, form.at, lines, at_ns)
    # A conversation of one request is a request like any other.
    named = [session for session in sessions if session is not None]
    talks = len(set(named)) < len(named)
    return trace_rows(
        path.name,
        name,
        at_ns,
        prompt,
        output,
        sessions=sessions if talks else None,
        turn=turn,
        think_ns=think_ns,
        blocks=blocks if any(blocks) else (),
        block_tokens=form.block_tokens,
        anew=anew,
        images=images if any(images) else (),
        unit=form.unit,
    )


ROWS = 200_000
"""In a part: some tens of megabytes while it is simulated."""
_BEHIND = 64
"""Rows of the parts before that a part is held against: a switch of units may lie between two of them."""


def trace_parts(path: Path, rows: int = ROWS, form: LineFormat | None = None) -> Iterator[TraceRows]:
    """The rows of `path`, `rows` at a time; `at_ns` counts from the first row of the file in every part.

    `form` None: told from its rows. Raises UserError for a format that must be read whole, for rows out of order, for
    conversations, for times of several units (of rows near each other), and as the readers do.
    """
    keys = keys_of(path) if form is None else frozenset[str]()
    form = form or next((known for known in LINES.values() if known.needs <= keys), None)
    if form is None:
        raise UserError(
            f"{path} is too long to be read whole, and only {', '.join(LINES)} traces can be read in parts; cut it"
        )
    found = form.rows(path)
    start_ns: int | None = None
    last_ns = 0
    lines: list[int] = []
    times: list[int] = []
    while part := list(islice(found, rows)):
        for row in part:
            if row.session is not None and (form.rows is simple or row.turn):
                raise UserError(
                    f"{path}, line {row.line}: a trace of conversations cannot be read in parts; cut it to fit in "
                    "memory"
                )
        lines = [*lines[-_BEHIND:], *(row.line for row in part)]
        times = [*times[-_BEHIND:], *(row.at_ns for row in part)]
        if form.at is not None:
            check_one_unit(path, form.at, lines, times)
        at_ns_N = np.array(times[-len(part) :], np.int64)
        start_ns = int(at_ns_N[0]) if start_ns is None else start_ns
        if at_ns_N[0] < last_ns or (np.diff(at_ns_N) < 0).any():
            raise UserError(f"{path} is read in parts and is not in order of time; sort it first")
        last_ns = int(at_ns_N[-1])
        yield TraceRows(
            name=path.name,
            format=next((name for name, known in LINES.items() if known is form), "mooncake"),
            at_ns=at_ns_N - start_ns,
            prompt=np.array([row.prompt for row in part], np.int32),
            output=np.array([row.output for row in part], np.int32),
            blocks=tuple(row.blocks for row in part) if any(row.blocks for row in part) else (),
            block_tokens=form.block_tokens,
            anew=sum(row.anew for row in part),
            images=np.array([row.images for row in part], np.int32) if any(row.images for row in part) else None,
            unit=form.unit,
        )
