"""The event log: what happened, in the order it happened, one JSON object a line.

It is the truth every statistic is computed from, so it only grows, each event is on its way to the disk when `append`
returns, and a run that was killed is resumed from it. Times in `_ns` are of one process's one monotonic clock.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Annotated, BinaryIO, TypeAlias

import msgspec

from breakeven.errors import BreakevenError, UserError
from breakeven.hardware.machine import MachineSpec
from breakeven.hardware.placement import Placed
from breakeven.results.comparison import ModelResult, NodeProfile, Routing
from breakeven.results.load import LoadModel
from breakeven.traffic.workload import Slo, Workload
from breakeven.wire.reply import ServerTimings, Usage

Ns = Annotated[int, msgspec.Meta(ge=-(2**61), le=2**61)]
"""Nanoseconds of a clock, or another number that columns of 64 bits hold, differences too."""
Count = Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**31)]
"""What columns of 32 bits hold."""


class _Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", omit_defaults=True):
    pass


class StudyStarted(_Event, frozen=True, tag="study_started"):
    """A run begins, or resumes. `fingerprint` identifies its configuration; only equal ones may share a log."""

    fingerprint: str
    version: str
    started_at: str
    """ISO 8601, UTC."""
    command: str
    seed: int
    resumed: bool = False


class BackendReady(_Event, frozen=True, tag="backend_ready"):
    """A candidate answers. `settings` repeats how it was started."""

    model: str
    settings: dict[str, str]
    load_s: float | None = None
    peak_rss_bytes: int | None = None
    placed: Placed | None = None


class BackendStopped(_Event, frozen=True, tag="backend_stopped"):
    """A candidate was stopped. `peak_rss_bytes`: its largest resident set; `placed`: with the peaks of devices."""

    model: str
    peak_rss_bytes: int | None = None
    placed: Placed | None = None


class BlockStarted(_Event, frozen=True, tag="block_started"):
    """A group of requests, issued together, starts. `round` counts its pairings; `turn`: of candidates in turns."""

    block: str
    model: str
    streams: Count
    prompt_tokens: Count
    output_tokens: Count
    at_ns: Ns
    round: Count = 0
    attempt: Count = 1
    check: str | None = None
    """Of the self-check, not of the comparison: "same" (every stream one prompt) or "distinct"."""
    turn: Count | None = None


class TurnStarted(_Event, frozen=True, tag="turn_started"):
    """Candidates take turns: what each does in this one. Loads by their streams, and the numbers of their rounds."""

    turn: Count
    streams: list[Count]
    rounds: list[Count]


class RequestDone(_Event, frozen=True, tag="request_done"):
    """One request, from its due time to its end.

    `due_ns` when the schedule wanted it sent, `sent_ns` when it was, `headers_ns` when the response began, `first_ns`
    and `last_ns` when the first and last output arrived, `done_ns` when all was over; None: it never came to that.
    `chunk_ns[i]` is when the i-th piece of output arrived and `chunk_tokens[i]` how many tokens it carried, which only
    some engines tell (None: not told). `error` is a kind from `breakeven.measure.runner.ERROR_KINDS` or
    `http_<status>`; `detail` says it in words. `anomalies` are oddities of a stream that was still usable.
    """

    block: str
    model: str
    stream: Count
    prompt_tokens: Count
    output_tokens: Count
    due_ns: Ns
    sent_ns: Ns
    done_ns: Ns
    headers_ns: Ns | None = None
    first_ns: Ns | None = None
    last_ns: Ns | None = None
    chunk_ns: list[Ns] = []
    chunk_tokens: list[Count] | None = None
    usage: Usage | None = None
    server_timings: ServerTimings | None = None
    error: str | None = None
    detail: str | None = None
    anomalies: list[str] = []
    issued_ns: Ns | None = None  # when the client took it up; `sent_ns`: when its bytes were handed to the system
    asked_prompt_tokens: Count | None = None
    asked_output_tokens: Count | None = None
    """What the schedule wanted, under load; `*_tokens` are what the engine counted."""
    warm: bool = False
    """Part of the warm-up: never counted."""
    session: Ns | None = None
    turn: Count = 0
    worker: Count = 0
    retry_after_s: float | None = None  # what a 429 or 503 asked us to wait; we do not: the schedule is fixed


class NoiseSample(_Event, frozen=True, tag="noise_sample"):
    """How quiet the machine was during one block. None: this machine does not tell."""

    block: str
    at_ns: Ns
    other_cpu_share: float | None = None
    steal_share: float | None = None
    swap_bytes: int | None = None
    clock_mhz_low: float | None = None
    clock_mhz_high: float | None = None
    temperature_c_high: float | None = None
    device_clock_mhz_low: float | None = None
    device_clock_mhz_high: float | None = None
    device_temperature_c_high: float | None = None


class BlockDone(_Event, frozen=True, tag="block_done"):
    """A block is over. Only blocks with this event and `ok` count. `flagged`: why the machine was not quiet meanwhile.

    `joules`: energy the machine's counter rose by during the block, None where there is no counter.
    """

    block: str
    ok: bool
    at_ns: Ns
    flagged: list[str] = []
    joules: float | None = None


class LoadStudyStarted(_Event, frozen=True, tag="load_study_started"):
    """A study under load begins: everything a report needs that requests do not tell. `kind`: bench, compare, capacity.

    `target_share` and `confidence` belong to a capacity search.
    """

    kind: str
    fingerprint: str
    version: str
    started_at: str
    command: str
    seed: int
    machine: MachineSpec
    models: list[LoadModel]
    workload: Workload
    slo: Slo | None = None
    target_share: float | None = None
    confidence: float | None = None
    caveats: list[str] = []
    resumed: bool = False
    salt: str = ""
    """What the front of every prompt is drawn from, with the seed: the same for all candidates, new in every study."""


class ClientCeiling(_Event, frozen=True, tag="client_ceiling"):
    """What the client can drive here, from the self-test before a run."""

    requests_per_s: float
    stream_events_per_s: float
    processes: Count


class LoadStarted(_Event, frozen=True, tag="load_started"):
    """One candidate starts on one schedule. Requests name `block`; due times count from `at_ns`.

    `load` names the load ("2 req/s"), `round` counts its repetitions; equal `load` and `round` of two candidates mean
    the same schedule. `schedule`: its file beside the log. `measure_from_ns`: end of the warm-up.
    """

    block: str
    model: str
    load: str
    workload: Workload
    schedule: str
    at_ns: Ns
    measure_from_ns: Ns
    round: Count = 0
    processes: Count = 1
    shares_cores: bool = False


class LoadWorker(_Event, frozen=True, tag="load_worker"):
    """One of several processes that play a schedule. Its clock plus `offset_ns` is the log's, to +- `uncertainty_ns`,
    onto which every time in the log has been put. Both are 0 on one machine."""

    block: str
    worker: Count
    host: str
    offset_ns: Ns = 0
    uncertainty_ns: Ns = 0


class EngineSample(_Event, frozen=True, tag="engine_sample"):
    """What the engine's `/metrics` said at one moment; the last two are totals since it started. None: not told."""

    block: str
    at_ns: Ns
    running: float | None = None
    waiting: float | None = None
    kv_share: float | None = None
    preemptions: float | None = None
    cached_prompt_tokens: float | None = None


class EnergySample(_Event, frozen=True, tag="energy_sample"):
    """The machine's energy counter at one moment, joules since it was opened."""

    block: str
    at_ns: Ns
    joules: float


class LoadDone(_Event, frozen=True, tag="load_done"):
    """A candidate's turn on a schedule is over. Only those with `ok` count.

    `arrivals_end_ns`: when the last request was due. `because`: finished, interrupted or failed. `wall_step_s`: how
    far the wall clock was moved against the monotonic one meanwhile; no time in this log is from the wall clock.
    """

    block: str
    ok: bool
    at_ns: Ns
    arrivals_end_ns: Ns
    because: str = "finished"
    flagged: list[str] = []
    wall_step_s: float | None = None


class StudyFacts(_Event, frozen=True, tag="study_facts"):
    """What a finished comparison knows that its blocks do not tell: what was asked, and what the candidates are."""

    streams: list[Count]
    prompt_tokens: Count
    output_tokens: Count
    precision: float
    machine: MachineSpec
    models: list[ModelResult]
    loaded: str = "together"
    profiles: list[NodeProfile] = []
    routings: list[Routing] = []
    caveats: list[str] = []


class StudyStopped(_Event, frozen=True, tag="study_stopped"):
    """The run ends. `because`: precision, budget, interrupted or failed."""

    because: str
    measured_s: float
    detail: str | None = None


Event: TypeAlias = (
    StudyStarted
    | BackendReady
    | BackendStopped
    | BlockStarted
    | TurnStarted
    | RequestDone
    | NoiseSample
    | BlockDone
    | LoadStudyStarted
    | ClientCeiling
    | LoadStarted
    | LoadWorker
    | EngineSample
    | EnergySample
    | LoadDone
    | StudyFacts
    | StudyStopped
)

_decoder = msgspec.json.Decoder(Event)


class EventWriter:
    """Appends events to a log, after cutting off the torn last line a killed run may have left.

    `append` hands the event to the system at once and, for the end of a block, waits until the disk has it.
    Raises BreakevenError when the log cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = path.open("a+b", buffering=0)
            _cut_torn_line(self._file)
        except OSError as error:
            raise BreakevenError(f"cannot write {path}: {error.strerror}; give another output directory") from error

    def __enter__(self) -> EventWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def append(self, event: Event) -> None:
        """Add one event. A BlockDone, and the end of the study, are on the disk when this returns."""
        self.append_encoded(
            msgspec.json.encode(event) + b"\n", sync=isinstance(event, BlockDone | LoadDone | StudyStopped)
        )

    def append_encoded(self, lines: bytes, *, sync: bool = False) -> None:
        """Add whole lines that are events already; with `sync` they are on the disk when this returns."""
        left = memoryview(lines)
        try:
            while left:
                left = left[self._file.write(left) :]
            if sync:
                os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):  # half a line would spoil whatever is appended after it
                _cut_torn_line(self._file)
            why = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else f"{error.strerror}"
            raise BreakevenError(
                f"{why}: could not write {self.path}; every block finished before this one is kept there, "
                "make room and run the same command with --resume"
            ) from error

    def close(self) -> None:
        """Close the file. Appending afterwards is an error."""
        self._file.close()


_LONGEST_LINE_BYTES = 1 << 26
"""Of an event; a file without a line's end is none of ours, however large."""


def iter_events(path: Path) -> Iterator[Event]:
    """The events of a log in order, one at a time. A last line without an end, left by a killed run, is skipped.

    Raises UserError naming file and line for any other line that is not an event.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(partial(file.readline, _LONGEST_LINE_BYTES), b""), start=1):
                if not line.endswith(b"\n") and len(line) < _LONGEST_LINE_BYTES:
                    return
                try:
                    event = _decoder.decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                    raise UserError(
                        f"{path}, line {number}: not an event ({error}); remove that line or start in another directory"
                    ) from error
                yield event
    except OSError as error:
        raise BreakevenError(f"cannot read {path}: {error.strerror}") from error


def read_events(path: Path) -> list[Event]:
    """All events of a log in order, as `iter_events` gives them."""
    return list(iter_events(path))


def _cut_torn_line(file: BinaryIO) -> None:
    """Shorten `file` to end after its last newline, so that what is appended starts on a line of its own."""
    size = file.seek(0, os.SEEK_END)
    end = size
    while end > 0:
        start = max(0, end - 65_536)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        file.truncate(end)
