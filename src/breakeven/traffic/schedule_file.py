"""Schedule files: a header line, then one request a line. What is written can be played again byte for byte."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import msgspec
import numpy as np

from breakeven.errors import BreakevenError, UserError
from breakeven.traffic.arrivals import MOST_ROWS
from breakeven.traffic.schedule import DEPENDS, Planned, Schedule
from breakeven.traffic.workload import Workload

SCHEMA = "breakeven.schedule/1"

_LINES_AT_ONCE = 4_096


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """The first line of a schedule file."""

    schema: str
    workload: Workload
    block_tokens: int
    requests: int


_header = msgspec.json.Decoder(Header)
_planned = msgspec.json.Decoder(Planned)


def save_schedule(schedule: Schedule, path: Path) -> None:
    """Write `schedule` to `path`, replacing what is there. Raises BreakevenError when it cannot be written."""
    encode = msgspec.json.Encoder().encode_lines
    header = Header(
        schema=SCHEMA, workload=schedule.workload, block_tokens=schedule.block_tokens, requests=len(schedule)
    )
    scratch = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("wb") as file:
            # Decoded once so that a rate typed as 2 is written as it will be read: 2.0.
            file.write(encode([_header.decode(msgspec.json.encode(header))]))
            for start in range(0, len(schedule), _LINES_AT_ONCE):
                file.write(encode(_rows(schedule, slice(start, start + _LINES_AT_ONCE))))
        scratch.replace(path)
    except OSError as error:
        raise BreakevenError(f"cannot write {path}: {error.strerror}; give another output directory") from error


def _rows(schedule: Schedule, part: slice) -> list[Planned]:
    """What `Schedule.row` gives for each index of `part`, several times faster."""
    columns = zip(
        range(*part.indices(len(schedule))),
        schedule.due_ns_N[part].tolist(),
        schedule.prompt_N[part].tolist(),
        schedule.output_N[part].tolist(),
        schedule.warm_N[part].tolist(),
        schedule.session_N[part].tolist(),
        schedule.turn_N[part].tolist(),
        schedule.think_ns_N[part].tolist(),
        schedule.blocks[part] if schedule.blocks else repeat(()),
        repeat(None) if schedule.asked_N is None else schedule.asked_N[part].tolist(),
        strict=False,
    )
    return [
        Planned(
            i=i,
            prompt=prompt,
            output=output,
            due_ns=None if due_ns == DEPENDS else due_ns,
            warm=warm,
            session=None if session < 0 else session,
            turn=turn,
            think_ns=think_ns,
            blocks=blocks,
            asked=asked,
        )
        for i, due_ns, prompt, output, warm, session, turn, think_ns, blocks, asked in columns
    ]


def load_schedule(path: Path) -> Schedule:
    """The schedule saved at `path`. Raises UserError naming file, line and field for anything else."""
    try:
        with path.open("rb") as file:
            return _load(path, iter(file))
    except OSError as error:
        raise UserError(f"cannot read the schedule {path}: {error.strerror}") from error


def _load(path: Path, lines: Iterator[bytes]) -> Schedule:
    try:
        header = _header.decode(next(lines, b""))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(
            f"{path}, line 1: not the header of a schedule ({error}); give a file that a run wrote"
        ) from error
    if header.schema != SCHEMA:
        raise UserError(f"{path}, line 1, schema: found {header.schema!r}, this version reads {SCHEMA!r}")
    n = header.requests
    if not 1 <= n <= MOST_ROWS or header.block_tokens < 1:
        raise UserError(
            f"{path}, line 1: requests must be 1 to {MOST_ROWS:,} and block_tokens 1 or more, "
            f"found {n} and {header.block_tokens}"
        )
    schedule = Schedule(
        workload=header.workload,
        due_ns_N=np.empty(n, np.int64),
        prompt_N=np.empty(n, np.int32),
        output_N=np.empty(n, np.int32),
        warm_N=np.empty(n, np.bool_),
        session_N=np.empty(n, np.int64),
        turn_N=np.empty(n, np.int32),
        think_ns_N=np.empty(n, np.int64),
        block_tokens=header.block_tokens,
        asked_N=None if header.workload.prompts is None else np.empty(n, np.int32),
    )
    blocks: list[tuple[int, ...]] = []
    i = -1
    for i, line in enumerate(lines):
        where = f"{path}, line {i + 2}"
        if i >= n:
            raise UserError(f"{where}: more than the {n} requests line 1 speaks of; remove what was added")
        try:
            planned = _planned.decode(line)
            _check(planned, i, schedule)
            _fill(schedule, i, planned)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError, OverflowError) as error:
            cut = "" if line.endswith(b"\n") else "; the file ends in the middle of this line"
            raise UserError(f"{where}: not a request ({error}){cut}") from error
        if planned.blocks:
            blocks.extend([()] * (i - len(blocks)))
            blocks.append(planned.blocks)
    if i + 1 < n:
        raise UserError(f"{path}: ends after line {i + 2}, line 1 speaks of {n} requests; copy the whole file")
    if blocks:
        blocks.extend([()] * (n - len(blocks)))
    return dataclasses.replace(schedule, blocks=tuple(blocks))


def _check(planned: Planned, i: int, schedule: Schedule) -> None:
    """Raises ValueError, naming the field, for a value no schedule can have."""
    if planned.i != i:
        raise ValueError(f"i: found {planned.i}, expected {i}")
    for name in ("prompt", "output"):
        if getattr(planned, name) < 1:
            raise ValueError(f"{name}: found {getattr(planned, name)}, expected 1 or more")
    if planned.due_ns is not None and planned.due_ns < 0:
        raise ValueError(f"due_ns: found {planned.due_ns}, expected 0 or more")
    if planned.think_ns < 0:
        raise ValueError(f"think_ns: found {planned.think_ns}, expected 0 or more")
    if planned.session is not None and planned.session < 0:
        raise ValueError(f"session: found {planned.session}, expected 0 or more")
    if (planned.asked is None) != (schedule.asked_N is None) or (planned.asked or 0) < 0:
        raise ValueError(f"asked: found {planned.asked}, expected a number of 0 or more beside prompts in line 1 alone")
    follows = i > 0 and planned.session == schedule.session_N[i - 1] and planned.turn == schedule.turn_N[i - 1] + 1
    if planned.turn != 0 and not follows:
        raise ValueError(f"turn: found {planned.turn}, which does not follow the line before")


def _fill(schedule: Schedule, i: int, planned: Planned) -> None:
    """Write one request into the columns. Raises OverflowError for a number that is too large."""
    schedule.due_ns_N[i] = DEPENDS if planned.due_ns is None else planned.due_ns
    schedule.prompt_N[i] = planned.prompt
    schedule.output_N[i] = planned.output
    schedule.warm_N[i] = planned.warm
    schedule.session_N[i] = -1 if planned.session is None else planned.session
    schedule.turn_N[i] = planned.turn
    schedule.think_ns_N[i] = planned.think_ns
    if schedule.asked_N is not None and planned.asked is not None:
        schedule.asked_N[i] = planned.asked
