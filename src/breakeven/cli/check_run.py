"""What `breakeven check` does with the words it was given."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from breakeven.cli.capacity_run import percent
from breakeven.errors import UserError
from breakeven.measure.events import iter_events
from breakeven.pages.load_terminal import print_check
from breakeven.pages.progress import LoadProgress
from breakeven.results import store
from breakeven.results.load import LoadStudy
from breakeven.results.store import RESULT, encode, write
from breakeven.runs.check import check
from breakeven.runs.load import LoadOptions
from breakeven.runs.load_study import load_study
from breakeven.runs.recheck import log_of, replay


def run(
    baseline: Path,
    new: Path | None,
    target: str | None,
    tolerance: str,
    options: LoadOptions,
    *,
    quiet: bool,
    as_json: bool,
) -> int:
    """Compare, print, and return the exit status: 1 when something got worse, else 0."""
    share = percent("--tolerance", tolerance)
    if new is not None and target is not None:
        raise UserError("NEW is a run that was saved and --url asks for one to be made; give one of them")
    saved = read(baseline)
    if new is None:
        shown = LoadProgress(Console(stderr=True, highlight=False), quiet=quiet or as_json)
        with shown:
            study, new = replay(baseline, target, options, on_state=shown.update, on_phase=shown.phase)
        write(study, new / RESULT)
    else:
        study = read(new)
    old_log, new_log = log_of(baseline), log_of(new)
    logs = (iter_events(old_log), iter_events(new_log)) if old_log and new_log else None
    found = check(saved, study, logs=logs, tolerance=share, name=str(baseline))
    if as_json:
        sys.stdout.write(encode(found).decode().rstrip("\n") + "\n")
    else:
        print_check(found, Console(highlight=False))
    return int(found.worse)


def read(place: Path) -> LoadStudy:
    """The saved run at a directory or file: its result.json, else computed from its log."""
    if not place.exists():
        raise UserError(f"{place} does not exist; give a directory that `breakeven bench --out` wrote")
    result = place / RESULT if place.is_dir() else place
    if result.is_file():
        return store.read(result, LoadStudy)
    log = log_of(place)
    if log is None:
        raise UserError(f"{place} holds neither {RESULT} nor events.jsonl; give what `breakeven bench --out` wrote")
    return load_study(log)
