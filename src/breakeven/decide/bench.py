"""`breakeven bench`: one endpoint or model under one or more loads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from breakeven.decide.load import DEFAULT_SLOTS, LoadOptions, Session, context_of
from breakeven.decide.load_study import load_study
from breakeven.engine.source import parse_source, parse_sources
from breakeven.errors import UserError
from breakeven.measure.paired.plan import order
from breakeven.measure.progress import LoadState
from breakeven.measure.schedule import draw
from breakeven.measure.traces import TraceRows
from breakeven.spec.load import LoadStudy
from breakeven.spec.workload import Slo, Workload


@dataclass(frozen=True, slots=True)
class Load:
    """One load of a study and its name in every table. `round` counts repetitions with fresh arrivals."""

    name: str
    workload: Workload
    round: int = 0


def name_of(workload: Workload) -> str:
    """What a load is called: "2 req/s", "8 streams", "trace x0.5"."""
    arrivals = workload.arrivals
    if arrivals.is_closed:
        return f"{arrivals.concurrency} stream{'' if arrivals.concurrency == 1 else 's'}"
    if arrivals.process == "trace":
        return f"{Path(arrivals.trace or 'trace').stem} x{arrivals.rate_scale:g}"
    if arrivals.process == "steps":
        return "steps " + ", ".join(f"{rate:g} req/s {seconds:g} s" for rate, seconds in arrivals.steps)
    if arrivals.to_rate_per_s is not None:
        return f"{arrivals.rate_per_s:g} to {arrivals.to_rate_per_s:g} req/s"
    return f"{arrivals.rate_per_s:g} req/s"


def rounds(workload: Workload, n: int) -> list[Load]:
    """`workload` n times, each with arrivals and lengths of its own."""
    return [Load(name_of(workload), msgspec.structs.replace(workload, seed=workload.seed + k), k) for k in range(n)]


def bench(
    target: str,
    loads: Sequence[Load],
    slo: Slo | None = None,
    options: LoadOptions | None = None,
    *,
    trace: TraceRows | None = None,
    on_state: Callable[[LoadState], None] = lambda state: None,
    on_phase: Callable[[str, str], None] = lambda phase, subject: None,
) -> tuple[LoadStudy, Path]:
    """Measure `target` (a URL with #model, or a model to start here) under every load; result and its directory.

    Raises UserError for what cannot be asked, EngineError when an engine of ours fails, and KeyboardInterrupt, with
    the log whole, when interrupted.
    """
    return play(
        "bench", [target], loads, slo, options or LoadOptions(), trace=trace, on_state=on_state, on_phase=on_phase
    )


def play(
    kind: str,
    targets: Sequence[str],
    loads: Sequence[Load],
    slo: Slo | None,
    options: LoadOptions,
    *,
    asked: Workload | None = None,
    trace: TraceRows | None,
    on_state: Callable[[LoadState], None],
    on_phase: Callable[[str, str], None],
) -> tuple[LoadStudy, Path]:
    """Every target under every load, taking turns: forward in even rounds, backward in odd ones.

    `asked`: the workload the loads are parts of, the first load's where they are not.
    """
    sources = parse_sources(list(targets)) if len(targets) > 1 else [parse_source(targets[0])]
    schedules = [draw(load.workload, trace) for load in loads]
    if any(len(schedule) == 0 for schedule in schedules):
        raise UserError("no request falls into the measured time; give a higher --rate or a longer --duration")
    streams = [load.workload.arrivals.concurrency or DEFAULT_SLOTS for load in loads]
    context = context_of(schedules)
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
        on_state=on_state,
        on_phase=on_phase,
    )
    with session:
        for load in loads:
            for index in order(load.round, len(sources)):
                session.play(index, load.workload, load=load.name, round=load.round)
    return load_study(session.log_path), session.directory
