"""Every number of a study again from its event log, and from nothing else: what `breakeven report` shows."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from breakeven.errors import UserError
from breakeven.measure.events import StudyStarted, read_events
from breakeven.results.comparison import Comparison
from breakeven.results.load import CapacityStudy, LoadStudy
from breakeven.results.store import LOG
from breakeven.runs.capacity_study import capacity_study
from breakeven.runs.directory import opening_of
from breakeven.runs.load_study import load_study
from breakeven.runs.result import comparison_of

Study: TypeAlias = Comparison | LoadStudy | CapacityStudy


def recompute(directory: Path) -> Study:
    """The result of whatever study `directory` holds. Raises UserError when it holds none."""
    log = directory / LOG
    if not log.is_file():
        raise UserError(f"{directory} holds no {LOG}; give the directory a study was written to")
    opening = opening_of(log)
    if opening is None:
        raise UserError(f"{log} does not say what was studied; run the study again")
    if isinstance(opening, StudyStarted):
        return comparison_of(read_events(log))
    return capacity_study(log) if opening.kind == "capacity" else load_study(log)
