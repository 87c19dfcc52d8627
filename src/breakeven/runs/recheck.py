"""Saved runs for `breakeven check`: found, read, and played once more on the very schedules that lie beside the log."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from breakeven.engines.openai_url import is_url
from breakeven.engines.source import parse_source
from breakeven.errors import UserError
from breakeven.measure.events import LoadDone, LoadStarted, iter_events
from breakeven.measure.progress import LoadState
from breakeven.model.layouts.derive import assuming
from breakeven.results.load import LoadStudy
from breakeven.results.store import LOG
from breakeven.runs.load import DEFAULT_SLOTS, LoadOptions, Session
from breakeven.runs.load_study import load_study
from breakeven.traffic.schedule import Schedule, context_of
from breakeven.traffic.schedule_file import load_schedule, save_schedule
from breakeven.traffic.workload import Workload


@dataclass(frozen=True, slots=True)
class Turn:
    """One run of the saved study, and the schedule it played."""

    load: str
    round: int
    workload: Workload
    file: str
    schedule: Schedule


def log_of(place: Path) -> Path | None:
    """The event log of a saved run, given as its directory or as the result.json in it; None when it has none."""
    log = (place if place.is_dir() else place.parent) / LOG
    return log if log.is_file() else None


def target_of(study: LoadStudy) -> str:
    """What a saved run measured, as one would type it."""
    model = study.models[0]
    if is_url(model.source):
        return f"{model.source}#{model.name}"
    return model.name if model.synthetic else model.source


def replay(
    place: Path,
    target: str | None,
    options: LoadOptions,
    *,
    on_state: Callable[[LoadState], None] = lambda state: None,
    on_phase: Callable[[str, str], None] = lambda phase, subject: None,
) -> tuple[LoadStudy, Path]:
    """Play the schedules of the saved bench at `place` again, on `target` or on what it ran on; as `bench` returns.

    Raises UserError when the run, its log or a schedule is not there.
    """
    log = log_of(place)
    if log is None:
        raise UserError(f"{place} has no {LOG} beside it, so it cannot be run again; give NEW, another saved run")
    saved = load_study(log)
    if len(saved.models) != 1:
        raise UserError(f"{place} compares {len(saved.models)} models; check takes runs of one, as `bench` saves")
    turns = _turns(log)
    if not turns:
        raise UserError(f"{log} holds no run that ended well; run bench again")
    streams = [turn.workload.arrivals.concurrency or DEFAULT_SLOTS for turn in turns]
    with assuming(options.assume):
        source = parse_source(target or target_of(saved))
    session = _Replay(
        {(turn.load, turn.round): turn for turn in turns},
        "bench",
        [source],
        turns[0].workload,
        saved.slo,
        options,
        context_tokens=context_of([turn.schedule for turn in turns], of_bytes=source.random_weights),
        slots=max(streams),
        question=tuple((turn.load, turn.round, turn.workload) for turn in turns),
        on_state=on_state,
        on_phase=on_phase,
    )
    with session:
        for turn in turns:
            session.play(0, turn.workload, load=turn.load, round=turn.round)
    return load_study(session.log_path), session.directory


def _turns(log: Path) -> list[Turn]:
    started: dict[str, LoadStarted] = {}
    found: dict[tuple[str, int], LoadStarted] = {}
    for event in iter_events(log):
        if isinstance(event, LoadStarted):
            started[event.block] = event
        elif isinstance(event, LoadDone) and event.ok and event.block in started:
            begun = started[event.block]
            found[begun.load, begun.round] = begun
    return [
        Turn(e.load, e.round, e.workload, e.schedule, load_schedule(log.parent / e.schedule)) for e in found.values()
    ]


class _Replay(Session):
    """A session whose schedules are not drawn but read."""

    def __init__(self, turns: Mapping[tuple[str, int], Turn], *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._turns = turns

    def _schedule(self, workload: Workload, load: str, round: int) -> tuple[Schedule, str]:
        turn = self._turns[load, round]
        path = self.directory / turn.file
        if not path.exists():
            save_schedule(turn.schedule, path)
        return turn.schedule, turn.file
