"""`breakeven compare` under load: candidates take turns on the same schedules, at several rates or along a trace."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from breakeven.decide.bench import Load, name_of, play, rounds
from breakeven.decide.load import LoadOptions
from breakeven.errors import UserError
from breakeven.measure.progress import LoadState
from breakeven.measure.traces import TraceRows
from breakeven.spec.load import LoadStudy
from breakeven.spec.workload import Slo, Workload

MIN_TURNS = 4
"""Turns a candidate gets on a trace at least, so that drift of the machine falls on all alike."""
TURN_S = 120.0
"""How long one turn on a trace lasts about."""
TURN_WARM_UP_S = 10.0
"""Of the trace before a turn, played first and not counted: queues and caches are as if the trace had run on."""


def rate_loads(workloads: Sequence[Workload], n_rounds: int) -> list[Load]:
    """Every rate in every round; rounds are outermost, so that each rate is spread over the whole run."""
    repeated = [rounds(workload, n_rounds) for workload in workloads]
    return [of_rate[k] for k in range(n_rounds) for of_rate in repeated]


def trace_turns(workload: Workload, trace: TraceRows, turn_s: float = TURN_S) -> list[Load]:
    """A trace cut into turns of about `turn_s` seconds of playing time, each a round of one load.

    A turn begins with the TURN_WARM_UP_S before it, which do not count. A session that spans two turns is cut there,
    which is why a trace with sessions is played in one piece.
    """
    arrivals = workload.arrivals
    start_s = arrivals.start_s
    end_s = arrivals.end_s if arrivals.end_s is not None else trace.span_s
    length_s = (end_s - start_s) / arrivals.rate_scale
    if length_s <= 0:
        raise UserError(f"the window of the trace is empty ({start_s:g} to {end_s:g} s); give another --window")
    n = 1 if trace.session is not None else max(MIN_TURNS, math.ceil(length_s / turn_s))
    turns = []
    for k in range(n):
        begin, end = (start_s + (end_s - start_s) * part / n for part in (k, k + 1))
        warm_s = min(TURN_WARM_UP_S, (begin - start_s) / arrivals.rate_scale)
        cut = msgspec.structs.replace(arrivals, start_s=begin - warm_s * arrivals.rate_scale, end_s=end)
        turn = msgspec.structs.replace(workload, arrivals=cut, warm_up_s=warm_s, seed=workload.seed + k)
        turns.append(Load(name_of(workload), turn, k))
    return turns


def compare_under_load(
    models: Sequence[str],
    loads: Sequence[Load],
    slo: Slo | None = None,
    options: LoadOptions | None = None,
    *,
    asked: Workload | None = None,
    trace: TraceRows | None = None,
    on_state: Callable[[LoadState], None] = lambda state: None,
    on_phase: Callable[[str, str], None] = lambda phase, subject: None,
) -> tuple[LoadStudy, Path]:
    """Measure two or more candidates under the same traffic; result with differences and crossings, and its directory.

    `asked`: what the loads are parts of, where they are turns on one trace. Raises as `breakeven.decide.bench.bench`
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
        on_state=on_state,
        on_phase=on_phase,
    )
