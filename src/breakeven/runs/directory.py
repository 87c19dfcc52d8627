"""The directory of a study: one study each, recognised by the opening of its log."""

from __future__ import annotations

from pathlib import Path

from breakeven.measure.events import Event, LoadStudyStarted, StudyStarted, iter_events, read_events
from breakeven.results import store
from breakeven.results.store import LOG


def open_directory(asked: Path | str | None, default: Path, wanted: str, resume: bool) -> tuple[Path, list[Event]]:
    """The directory to write to, as `store.open_directory` chooses it, and the events it already holds."""
    directory, begun = store.open_directory(None if asked is None else Path(asked), default, wanted, resume, study_of)
    return directory, read_events(directory / LOG) if begun else []


def opening_of(log: Path) -> StudyStarted | LoadStudyStarted | None:
    """What the log says was asked; None when it does not say."""
    openings = (event for event in iter_events(log) if isinstance(event, StudyStarted | LoadStudyStarted))
    return next(openings, None)


def study_of(log: Path) -> str:
    """Fingerprint of the study that `log` is of."""
    opening = opening_of(log)
    return "unknown" if opening is None else opening.fingerprint
