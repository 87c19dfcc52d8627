"""The event log of runs under load as columns of numbers: one pass, a hundred bytes a request, two a token.

Every time is in integer nanoseconds from the start of its run (`LoadStarted.at_ns`). Gaps between tokens are kept as
16-bit codes on a logarithmic scale, which is exact to `GAP_ERROR`; their sums and longest are kept as they are.

Shapes: N requests in the order they ended, G gaps of all of them, request after request.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from breakeven.measure import events
from breakeven.traffic.workload import Workload

NEVER = -(1 << 62)
"""A time that never came."""
UNKNOWN = -1

_LOG_STEP = 0.0005
GAP_ERROR = 0.00026
"""Largest relative error of a gap that was kept as a code: half a step. 65,535 steps reach from 1 ns to 47 hours."""
_BATCH = 2048

_Sample = TypeVar("_Sample", events.EngineSample, events.EnergySample)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestColumns:
    """All requests of one run, warm-up included, as columns of length N; NEVER and UNKNOWN stand for None."""

    index_N: NDArray[np.int32]
    due_N: NDArray[np.int64]
    sent_N: NDArray[np.int64]
    first_N: NDArray[np.int64]
    last_N: NDArray[np.int64]
    done_N: NDArray[np.int64]
    prompt_N: NDArray[np.int32]
    cached_N: NDArray[np.int32]
    """Of the prompt, tokens that the engine says it had kept; UNKNOWN: it does not say."""
    output_N: NDArray[np.int32]
    error_N: NDArray[np.int16]
    """0: answered; k: failed with `LoadRun.error_kinds[k - 1]`."""
    warm_N: NDArray[np.int8]
    session_N: NDArray[np.int64]
    exact_N: NDArray[np.int8]
    """1: the engine counted as many prompt tokens as asked for, 0: another number, UNKNOWN: not told."""
    pieces_N: NDArray[np.int32]
    gaps_N: NDArray[np.int32]
    gap_sum_N: NDArray[np.float64]
    """Nanoseconds."""
    gap_max_N: NDArray[np.float64]
    """Nanoseconds; 0 without gaps."""
    codes_G: NDArray[np.uint16]

    def __len__(self) -> int:
        return len(self.due_N)

    @property
    def answered(self) -> NDArray[np.bool_]:
        """Which requests got their whole answer."""
        return np.equal(self.error_N, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRun:
    """One candidate's turn on one schedule. `from_ns` and `to_ns`: the measured part, from the start of the run.

    `ok` False: it was interrupted, or the log ends in the middle of it.
    """

    block: str
    model: str
    load: str
    round: int
    workload: Workload
    ok: bool
    shares_cores: bool
    from_ns: int
    to_ns: int
    requests: RequestColumns
    error_kinds: tuple[str, ...]
    anomalies: dict[str, NDArray[np.int32]]
    """Rows that had each kind."""
    engine: tuple[events.EngineSample, ...]
    """With `at_ns` from the start of the run, as `energy`."""
    energy: tuple[events.EnergySample, ...]
    flagged: tuple[str, ...]
    ceiling: events.ClientCeiling | None


def collect(log: Iterable[events.Event]) -> list[LoadRun]:
    """The runs that count, in order of their first start.

    Only those that ended well, the last of several for one (model, load, round); of a (model, load) that never ended
    well, what there is of its interrupted ones.
    """
    under_way: dict[str, _Building] = {}
    done: dict[tuple[str, str], dict[int, LoadRun]] = {}
    torn: dict[tuple[str, str], dict[int, LoadRun]] = {}
    order: list[tuple[str, str]] = []
    ceiling: events.ClientCeiling | None = None

    def close(building: _Building, end: events.LoadDone | None) -> None:
        run = building.finish(end)
        if run is not None:
            (done if run.ok else torn).setdefault((run.model, run.load), {})[run.round] = run

    for event in log:
        match event:
            case events.RequestDone():
                if (building := under_way.get(event.block)) is not None:
                    building.add(event)
            case events.EngineSample():
                if (building := under_way.get(event.block)) is not None:
                    building.engine.append(event)
            case events.EnergySample():
                if (building := under_way.get(event.block)) is not None:
                    building.energy.append(event)
            case events.ClientCeiling():
                ceiling = event
            case events.LoadStarted():
                if event.block in under_way:
                    close(under_way.pop(event.block), None)
                under_way[event.block] = _Building(event, ceiling)
                if (event.model, event.load) not in order:
                    order.append((event.model, event.load))
            case events.LoadDone() if event.block in under_way:
                close(under_way.pop(event.block), event)
            case _:
                pass
    for building in under_way.values():
        close(building, None)
    return [run for key in order for _, run in sorted((done.get(key) or torn.get(key) or {}).items())]


def gap_code(gap_ns: NDArray[np.float64]) -> NDArray[np.uint16]:
    """Codes of gaps: 0 for less than a nanosecond, else 1 + log(gap) in steps of `_LOG_STEP`."""
    codes = np.rint(np.log(np.maximum(gap_ns, 1.0)) / _LOG_STEP) + 1
    return np.where(gap_ns < 1.0, 0, np.minimum(codes, 65_535)).astype(np.uint16)


def gap_of_code_ns(code: int) -> float:
    """The gap that a code stands for, in nanoseconds, exact to `GAP_ERROR`."""
    return math.exp((code - 1) * _LOG_STEP) if code else 0.0


def gap_histogram(requests: RequestColumns, chosen_N: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How often each of the 65,536 codes occurs among the gaps of the chosen requests."""
    counts = np.zeros(65_536, dtype=np.int64)
    ends = np.cumsum(requests.gaps_N, dtype=np.int64)
    # In slices, so that no second copy of all gaps is ever held.
    for start in range(0, len(requests), 65_536):
        rows = slice(start, start + 65_536)
        sizes = requests.gaps_N[rows]
        low = int(ends[start] - sizes[0])
        codes = requests.codes_G[low : low + int(sizes.sum())]
        counts += np.bincount(codes[np.repeat(chosen_N[rows], sizes)], minlength=65_536)
    return counts


def _column(code: str) -> array[int]:
    return array(code)


@dataclass(slots=True)
class _Building:
    """One run while its events come in."""

    started: events.LoadStarted
    ceiling: events.ClientCeiling | None
    engine: list[events.EngineSample] = field(default_factory=list)
    energy: list[events.EnergySample] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=dict)
    anomalies: dict[str, array[int]] = field(default_factory=dict)
    columns: dict[str, array[int]] = field(
        default_factory=lambda: {
            "index_N": _column("i"),
            "due_N": _column("q"),
            "sent_N": _column("q"),
            "first_N": _column("q"),
            "last_N": _column("q"),
            "done_N": _column("q"),
            "prompt_N": _column("i"),
            "cached_N": _column("i"),
            "output_N": _column("i"),
            "error_N": _column("h"),
            "warm_N": _column("b"),
            "session_N": _column("q"),
            "exact_N": _column("b"),
            "pieces_N": _column("i"),
            "gaps_N": _column("i"),
        }
    )
    gap_sum: array[float] = field(default_factory=lambda: array("d"))
    gap_max: array[float] = field(default_factory=lambda: array("d"))
    codes: array[int] = field(default_factory=lambda: array("H"))
    times: array[int] = field(default_factory=lambda: array("q"))
    tokens: array[int] = field(default_factory=lambda: array("i"))
    sizes: array[int] = field(default_factory=lambda: array("i"))

    def add(self, request: events.RequestDone) -> None:
        columns, zero = self.columns, self.started.at_ns
        row = len(columns["due_N"])
        columns["index_N"].append(request.stream)
        columns["due_N"].append(request.due_ns - zero)
        columns["sent_N"].append(request.sent_ns - zero)
        # An answer without a first piece (none was streamed, or it was empty) is there when it is over.
        never = NEVER if request.error else request.done_ns - zero
        columns["first_N"].append(never if request.first_ns is None else request.first_ns - zero)
        columns["last_N"].append(never if request.last_ns is None else request.last_ns - zero)
        columns["done_N"].append(request.done_ns - zero)
        columns["prompt_N"].append(request.prompt_tokens)
        columns["cached_N"].append(_cached(request))
        columns["output_N"].append(request.output_tokens)
        kind = request.error
        columns["error_N"].append(self.kinds.setdefault(kind, len(self.kinds) + 1) if kind else 0)
        columns["warm_N"].append(request.warm)
        columns["session_N"].append(UNKNOWN if request.session is None else request.session)
        told = request.usage is not None and request.asked_prompt_tokens is not None
        same = request.usage is not None and request.usage.prompt_tokens == request.asked_prompt_tokens
        columns["exact_N"].append(int(same) if told else UNKNOWN)
        columns["pieces_N"].append(len(request.chunk_ns))
        for name in request.anomalies:
            self.anomalies.setdefault(name, array("i")).append(row)
        self.times.extend(request.chunk_ns)
        self.tokens.extend([1] * len(request.chunk_ns) if request.chunk_tokens is None else request.chunk_tokens)
        self.sizes.append(len(request.chunk_ns))
        if len(self.sizes) >= _BATCH:
            self._fold()

    def _fold(self) -> None:
        """Turn the arrival times kept so far into gaps, by the rule of `metrics.token_gaps_s`."""
        sizes = np.array(self.sizes, dtype=np.int64)
        times, tokens = np.array(self.times, dtype=np.int64), np.array(self.tokens, dtype=np.int64)
        n = len(sizes)
        row = np.repeat(np.arange(n), sizes)
        opening = np.ones(len(row), dtype=np.bool_)
        opening[1:] = row[1:] != row[:-1]
        # A piece without tokens gives no gap; its time goes to the next piece.
        kept = opening | (tokens > 0)
        times, tokens, row, opening = times[kept], tokens[kept], row[kept], opening[kept]
        inner = np.flatnonzero(~opening)
        whole = np.maximum(times[inner] - times[inner - 1], 0).astype(np.float64)
        rows, counts = row[inner], tokens[inner]
        each = whole / counts
        longest = np.zeros(n)
        np.maximum.at(longest, rows, each)
        self.columns["gaps_N"].frombytes(
            np.bincount(rows, weights=counts, minlength=n).astype(np.int32).tobytes()  # whole numbers below 2^53
        )
        self.gap_sum.frombytes(np.bincount(rows, weights=whole, minlength=n).tobytes())
        self.gap_max.frombytes(longest.tobytes())
        self.codes.frombytes(np.repeat(gap_code(each), counts).tobytes())
        for buffer in (self.times, self.tokens, self.sizes):
            del buffer[:]

    def finish(self, end: events.LoadDone | None) -> LoadRun | None:
        """The run as columns; None when nothing happened in it."""
        self._fold()
        if not self.columns["due_N"]:
            return None
        start = self.started
        types = {"i": np.int32, "q": np.int64, "h": np.int16, "b": np.int8}
        columns = {name: np.frombuffer(column, types[column.typecode]) for name, column in self.columns.items()}
        due_end = int(columns["due_N"].max())
        return LoadRun(
            block=start.block,
            model=start.model,
            load=start.load,
            round=start.round,
            workload=start.workload,
            ok=end is not None and end.ok,
            shares_cores=start.shares_cores,
            from_ns=start.measure_from_ns - start.at_ns,
            to_ns=end.arrivals_end_ns - start.at_ns if end is not None else due_end,
            requests=RequestColumns(
                **columns,
                gap_sum_N=np.frombuffer(self.gap_sum, np.float64),
                gap_max_N=np.frombuffer(self.gap_max, np.float64),
                codes_G=np.frombuffer(self.codes, np.uint16) if self.codes else np.zeros(0, np.uint16),
            ),
            error_kinds=tuple(self.kinds),
            anomalies={kind: np.frombuffer(rows, np.int32) for kind, rows in self.anomalies.items()},
            engine=tuple(_moved(sample, start.at_ns) for sample in self.engine),
            energy=tuple(_moved(sample, start.at_ns) for sample in self.energy),
            flagged=tuple(end.flagged) if end is not None else (),
            ceiling=self.ceiling,
        )


def _cached(request: events.RequestDone) -> int:
    """Of the prompt, those kept from before. More than it has are no count of them: some count those apart."""
    usage, timings = request.usage, request.server_timings
    found = usage.cached_tokens if usage is not None else None
    if found is None and timings is not None:
        found = timings.cache_n
    return UNKNOWN if found is None or found > request.prompt_tokens else found


def _moved(sample: _Sample, zero_ns: int) -> _Sample:
    """The sample with its time counted from `zero_ns`."""
    return msgspec.structs.replace(sample, at_ns=sample.at_ns - zero_ns)
