"""The directory of a study: one study each, recognised by a fingerprint of what was asked."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from breakeven.errors import UserError
from breakeven.measure.events import Event, LoadStudyStarted, StudyStarted, iter_events, read_events

LOG = "events.jsonl"


def fingerprint(parts: tuple[object, ...]) -> str:
    """Identifies a configuration: equal questions give equal fingerprints. Precision and budget may differ."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def open_directory(asked: Path | None, default: Path, wanted: str, resume: bool) -> tuple[Path, list[Event]]:
    """The directory to write to and the events it already holds.

    Without `asked` the first free name after `default` is taken, or with `resume` the latest one that holds this study.
    Raises UserError for a directory that holds another study, or this one when `resume` is not said.
    """
    if asked is None:
        numbered = [default, *(default.with_name(f"{default.name}-{i}") for i in range(2, 1000))]
        taken = [path for path in numbered if (path / LOG).exists()]
        same = [path for path in taken if study_of(path) == wanted]
        if resume and not same:
            raise UserError(f"nothing to resume under {default.parent}: no study there asks the same question")
        asked = same[-1] if resume else next(path for path in numbered if path not in taken)
    held = study_of(asked)
    if held is None:
        if resume:
            raise UserError(f"nothing to resume in {asked}: it holds no study; leave --resume out")
        _make_writable(asked)
        return asked, []
    if held != wanted:
        raise UserError(f"{asked} holds another study; give another --out, or delete it")
    if not resume:
        raise UserError(f"{asked} already holds this study; add --resume to go on with it, or give another --out")
    _make_writable(asked)
    return asked, read_events(asked / LOG)


def study_of(directory: Path) -> str | None:
    """Fingerprint of the study a directory holds; None when it holds none."""
    if not (directory / LOG).is_file():
        return None
    opening = (event for event in iter_events(directory / LOG) if isinstance(event, StudyStarted | LoadStudyStarted))
    first = next(opening, None)
    return first.fingerprint if first else "unknown"


def _make_writable(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {directory}: {error.strerror}; give another --out") from error
    if not os.access(directory, os.W_OK):
        raise UserError(f"{directory} is read-only; give another --out")
