"""Reading the decision log: all of it in order of arrival, what is new since the last look, or one request.

A line that is no record (cut short by a crash or a full disk) is skipped. Files that rotation removes meanwhile are
read to their end where they are open already.
"""

from __future__ import annotations

import contextlib
import heapq
import math
import mmap
import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import msgspec

from breakeven.gateway.seen.log import series
from breakeven.gateway.seen.record import DecisionRecord

STEP_BYTES = 4 * 2**20
"""Most that one look of a `Follower` reads, so that a watcher which fell behind still does its other work."""
TAIL_BYTES = 256 * 2**10
SCORES = b'"scores":[['
HUGE = 9e99
"""Stands in for an infinite number while a line is decoded; 1e308 would take five times as long to parse."""
STAND_IN = b",9e99"

_decode = msgspec.json.Decoder(DecisionRecord).decode


_NO_RECORD = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, AttributeError, TypeError, IndexError)
"""What a damaged line can raise on its way to a record."""


class _When(msgspec.Struct):
    time_s: float


_when = msgspec.json.Decoder(_When).decode


def record_of(line: bytes) -> DecisionRecord | None:
    """The record a line holds; None when it holds none.

    JSON has no infinity: a null among a score's numbers is one (nothing was asked for, or it cannot serve).
    """
    try:
        at = line.find(SCORES)
        if at < 0:
            return _decode(line)
        # Inside a string the quotes of SCORES would be escaped, so this is the field itself.
        end = line.find(b']],"', at)
        end = len(line) if end < 0 else end
        record = _decode(line[:at] + line[at:end].replace(b",null", STAND_IN) + line[end:])
    except _NO_RECORD:
        return None
    for score in record.scores:
        if score.headroom == HUGE:
            score.headroom = math.inf
        if HUGE in (score.ttft_s, score.tpot_s, score.usd, score.running):
            score.ttft_s, score.tpot_s = _open(score.ttft_s), _open(score.tpot_s)
            score.usd, score.running = _open(score.usd), _open(score.running)
    return record


def _open(value: float) -> float:
    return math.inf if value == HUGE else value


def records(directory: Path) -> Iterator[DecisionRecord]:
    """Every record of all workers' files by time of arrival. About 130 bytes of memory a record, not the log.

    Lines stand in the order in which requests ended, so arrivals are looked up first and then read in order.
    """
    with contextlib.ExitStack() as stack:
        runs: list[list[tuple[float, int, int]]] = []
        handles = []
        for _, path in chain.from_iterable(series(directory).values()):
            try:
                handles.append(stack.enter_context(path.open("rb")))
            except FileNotFoundError:
                continue
            run, at = [], 0
            for line in handles[-1]:
                with contextlib.suppress(*_NO_RECORD):
                    run.append((_when(line).time_s, len(handles) - 1, at))
                at += len(line)
            run.sort()
            runs.append(run)
        for _, file, at in heapq.merge(*runs):
            handles[file].seek(at)
            record = record_of(handles[file].readline())
            if record is not None:
                yield record


def find(directory: Path, request_id: str) -> DecisionRecord | None:
    """The record of one request, newest files first; None when it is in none of them."""
    # A record begins with its id, so neither a copy's `shadow_of` nor a stored prompt can be taken for it.
    needle = b'{"id":' + msgspec.json.encode(request_id) + b","
    files = [(number, path) for group in series(directory).values() for number, path in group]
    for _, path in sorted(files, reverse=True):
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                at = data.find(needle)
                while at >= 0:
                    if at == 0 or data[at - 1 : at] == b"\n":
                        data.seek(at)
                        if (record := record_of(data.readline())) is not None:
                            return record
                    at = data.find(needle, at + 1)
        except (FileNotFoundError, ValueError):  # Rotated away, or empty.
            continue
    return None


def latest(directory: Path, count: int) -> list[DecisionRecord]:
    """About the last `count` records of all workers by time of arrival: what the ends of the newest files hold."""
    found = []
    for files in series(directory).values():
        with contextlib.suppress(FileNotFoundError), files[-1][1].open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read().split(b"\n")
            # The first piece is the rest of a line, unless the whole file was read.
            found += [r for r in map(record_of, lines[1 if size > TAIL_BYTES else 0 :][-count - 1 :]) if r is not None]
    found.sort(key=lambda record: record.time_s)
    return found[-count:]


class Follower:
    """What was logged since the last look, all workers together; `offsets` (bytes read, by file) continues one.

    `holding`: only lines that hold these bytes are decoded.
    """

    def __init__(self, directory: Path, offsets: dict[str, int] | None = None, holding: bytes = b"") -> None:
        self.directory, self.holding = directory, holding
        self.offsets = dict(offsets or {})
        self.behind = False
        """The last look stopped at its limit: there is more already."""

    def new(self) -> list[DecisionRecord]:
        """Records that were written whole since the last call, in the order of each worker; [] when none.

        At most `STEP_BYTES` are read; the rest comes with the next calls.
        """
        found: list[DecisionRecord] = []
        present = set()
        groups = series(self.directory)
        self.behind = False
        for files in groups.values():
            left = STEP_BYTES // len(groups)
            for _, path in files:
                present.add(path.name)
                if left > 0:
                    left -= self._read(path, left, found)
                    self.behind = self.behind or left <= 0
        for name in self.offsets.keys() - present:
            del self.offsets[name]
        return found

    def skip(self) -> None:
        """Begin after what is there now."""
        for _, path in chain.from_iterable(series(self.directory).values()):
            with contextlib.suppress(FileNotFoundError):
                self.offsets[path.name] = path.stat().st_size

    def _read(self, path: Path, most: int, found: list[DecisionRecord]) -> int:
        at = self.offsets.get(path.name, 0)
        try:
            size = path.stat().st_size
            if size < at:  # Somebody emptied it.
                at = 0
            if size == at:
                return 0
            with path.open("rb") as file:
                file.seek(at)
                data = file.read(most)
                if b"\n" not in data and len(data) == most:  # A line longer than a whole look: prompts are stored.
                    data += file.readline()
        except FileNotFoundError:
            return 0
        whole = data.rfind(b"\n") + 1
        self.offsets[path.name] = at + whole
        for line in data[:whole].split(b"\n"):
            if line and self.holding in line and (record := record_of(line)) is not None:
                found.append(record)
        return len(data)
