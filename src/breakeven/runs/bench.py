"""`breakeven bench`: one endpoint or model under one or more loads; and `compare` under load.

Candidates of a comparison take turns on the same schedules, at several rates or along a trace.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from breakeven.engines.source import parse_source, parse_sources
from breakeven.errors import UserError
from breakeven.measure.paired.plan import order
from breakeven.measure.progress import LoadState
from breakeven.model.layouts.derive import assuming
from breakeven.results.load import LoadStudy
from breakeven.runs.load import DEFAULT_SLOTS, LoadOptions, Session
from breakeven.runs.load_study import load_study
from breakeven.traffic.draw import draw
from breakeven.traffic.schedule import context_of
from breakeven.traffic.traces.rows import TraceRows
from breakeven.traffic.workload import Slo, Workload


@dataclass(frozen=True, slots=True)
class NamedLoad:
    """One load of a study and its name in every table. `round` counts repetitions with fresh arrivals."""

    name: str
    workload: Workload
    round: int = 0


def name_of(workload: Workload) -> str:
    """What a load is called: "2 req/s", "2 conversations/s", "8 streams", "trace x0.5"."""
    arrivals, unit = workload.arrivals, workload.rate_unit
    if arrivals.is_closed:
        return f"{arrivals.concurrency} stream{'' if arrivals.concurrency == 1 else 's'}"
    if arrivals.process == "trace":
        return f"{Path(arrivals.trace or 'trace').stem} x{arrivals.rate_scale:g}"
    if arrivals.process == "steps":
        return "steps " + ", ".join(f"{rate:g} {unit} {seconds:g} s" for rate, seconds in arrivals.steps)
    if arrivals.to_rate_per_s is not None:
        return f"{arrivals.rate_per_s:g} to {arrivals.to_rate_per_s:g} {unit}"
    return f"{arrivals.rate_per_s:g} {unit}"


def rounds(workload: Workload, n: int) -> list[NamedLoad]:
    """`workload` n times, each with arrivals and lengths of its own."""
    return [
        NamedLoad(name_of(workload), msgspec.structs.replace(workload, seed=workload.seed + k), k) for k in range(n)
    ]


def bench(
    target: str,
    loads: Sequence[NamedLoad],
    slo: Slo | None = None,
    options: LoadOptions | None = None,
    *,
    trace: TraceRows | None = None,
    notes: Sequence[str] = (),
    on_state: Callable[[LoadState], None] = lambda state: None,
    on_phase: Callable[[str, str], None] = lambda phase, subject: None,
) -> tuple[LoadStudy, Path]:
    """Measure `target` (a URL with #model, or a model to start here) under every load; result and its directory.

    `notes`: how its traffic was understood, for whoever reads the result.
    Raises UserError for what cannot be asked, EngineError when an engine of ours fails, and KeyboardInterrupt, with
    the log whole, when interrupted.
    """
    return play(
        "bench",
        [target],
        loads,
        slo,
        options or LoadOptions(),
        trace=trace,
        notes=notes,
        on_state=on_state,
        on_phase=on_phase,
    )


def play(
    kind: str,
    targets: Sequence[str],
    loads: Sequence[NamedLoad],
    slo: Slo | None,
    options: LoadOptions,
    *,
    asked: Workload | None = None,
    trace: TraceRows | None,
    notes: Sequence[str] = (),
    on_state: Callable[[LoadState], None],
    on_phase: Callable[[str, str], None],
) -> tuple[LoadStudy, Path]:
    """Every target under every load, taking turns: forward in even rounds, backward in odd ones.

    `asked`: the workload the loads are parts of, the first load's where they are not.
    """
    with assuming(options.assume):
        sources = parse_sources(list(targets)) if len(targets) > 1 else [parse_source(targets[0])]
    schedules = [draw(load.workload, trace) for load in loads]
    if any(len(schedule) == 0 for schedule in schedules):
        raise UserError("no request falls into the measured time; give a higher --rate or a longer --duration")
    streams = [load.workload.arrivals.concurrency or DEFAULT_SLOTS for load in loads]
    context = context_of(schedules, of_bytes=any(source.random_weights for source in sources))
    del schedules
    session = Session(
        kind,
        sources,
        asked or loads[0].workload,
        slo,
        options,
        context_tokens=context,
        slots=max(streams),
        question=tuple(loads),
        trace=trace,
        notes=notes,
        on_state=on_state,
        on_phase=on_phase,
    )
    with session:
        # Candidates that take turns play all loads of a round while they are up; others change after every load.
        by_round = [list(group) for _, group in itertools.groupby(loads, key=lambda load: load.round)]
        for playing in by_round if session.in_turns else [[load] for load in loads]:
            for index in order(playing[0].round, len(sources)):
                for load in playing:
                    session.play(index, load.workload, load=load.name, round=load.round)
    return load_study(session.log_path), session.directory


MIN_TURNS = 4
"""Turns a candidate gets on a trace at least, so that drift of the machine falls on all alike."""
TURN_S = 120.0
"""How long one turn on a trace lasts about."""
TURN_WARM_UP_S = 10.0
"""Of the trace before a turn, played first and not counted: queues and caches are as if the trace had run on."""


def rate_loads(workloads: Sequence[Workload], n_rounds: int) -> list[NamedLoad]:
    """Every rate in every round; rounds are outermost, so that each rate is spread over the whole run."""
    repeated = [rounds(workload, n_rounds) for workload in workloads]
    return [of_rate[k] for k in range(n_rounds) for of_rate in repeated]


def trace_turns(workload: Workload, trace: TraceRows, turn_s: float = TURN_S) -> list[NamedLoad]:
    """A trace cut into turns of about `turn_s` seconds of playing time, each a round of one load.

    As in one run, the first `warm_up_s` do not count, and `duration_s` and `requests` say where what counts ends. Every
    later turn begins with as much of what lies before it, TURN_WARM_UP_S at least, which does not count either. A
    session that spans two turns would be cut there, which is why a trace with sessions is played in one piece.
    """
    arrivals, scale, requests = workload.arrivals, workload.arrivals.rate_scale, workload.requests
    start_s, last_s = arrivals.start_s + workload.warm_up_s * scale, arrivals.end_s
    if workload.duration_s is not None:
        over_s = start_s + workload.duration_s * scale
        last_s = over_s if last_s is None else min(last_s, over_s)
    end_s = trace.span_s if last_s is None else min(last_s, trace.span_s)
    if end_s <= start_s:
        raise UserError(
            f"the window of the trace is empty ({start_s:g} to {end_s:g} s); give another --window, or less --warm-up"
        )
    if trace.session is not None:
        return [NamedLoad(name_of(workload), workload)]
    first, after = np.searchsorted(trace.at_ns, [round(start_s * 1e9), round(end_s * 1e9)]).tolist()
    after = len(trace) if last_s is None else after  # the end of a long trace is no nanosecond that a float can tell
    if requests is not None and first + requests < after:
        after, end_s = first + requests, float(trace.at_ns[first + requests]) / 1e9
    n = max(MIN_TURNS, math.ceil((end_s - start_s) / scale / turn_s))
    # Between two requests, so that none is at an edge; a stretch in which nothing came belongs to the turn before it.
    at_ns_N = trace.at_ns[first:after]
    turn_N = ((at_ns_N / 1e9 - start_s) * (n / (end_s - start_s))).astype(np.int64)
    rows = [first, *(first + 1 + np.flatnonzero(np.diff(turn_N))).tolist()]
    cuts = [start_s, *((int(trace.at_ns[row - 1]) + int(trace.at_ns[row])) / 2e9 for row in rows[1:])]
    turns = []
    for k, begin_s in enumerate(cuts):
        warm_s = workload.warm_up_s if k == 0 else max(TURN_WARM_UP_S, workload.warm_up_s)
        warm_s = min(warm_s, (begin_s - arrivals.start_s) / scale)
        last = k == len(cuts) - 1
        until_s = last_s if last else cuts[k + 1]
        cut = msgspec.structs.replace(arrivals, start_s=begin_s - warm_s * scale, end_s=until_s)
        turn = msgspec.structs.replace(
            workload,
            arrivals=cut,
            warm_up_s=warm_s,
            duration_s=None,
            requests=requests - (rows[k] - first) if last and requests is not None else None,
            seed=workload.seed + k,
        )
        turns.append(NamedLoad(name_of(workload), turn, k))
    return turns


def compare_under_load(
    models: Sequence[str],
    loads: Sequence[NamedLoad],
    slo: Slo | None = None,
    options: LoadOptions | None = None,
    *,
    asked: Workload | None = None,
    trace: TraceRows | None = None,
    notes: Sequence[str] = (),
    on_state: Callable[[LoadState], None] = lambda state: None,
    on_phase: Callable[[str, str], None] = lambda phase, subject: None,
) -> tuple[LoadStudy, Path]:
    """Measure two or more candidates under the same traffic; result with differences and crossings, and its directory.

    `asked`: what the loads are parts of, where they are turns on one trace. Raises as `breakeven.runs.bench.bench`
    does.
    """
    if len(models) < 2:
        raise UserError("give at least two models to compare; `breakeven bench` measures one")
    return play(
        "compare",
        models,
        loads,
        slo,
        options or LoadOptions(),
        asked=asked,
        trace=trace,
        notes=notes,
        on_state=on_state,
        on_phase=on_phase,
    )
