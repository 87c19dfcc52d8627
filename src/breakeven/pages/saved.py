"""Any result as files, its data and the page beside it, and as a summary on the terminal that points to them."""

from __future__ import annotations

from pathlib import Path

import msgspec
from rich.console import Console

from breakeven.pages.decision_html import write_decision_report
from breakeven.pages.figures.comparison import export_charts
from breakeven.pages.html import write_capacity_report, write_load_report, write_report
from breakeven.pages.lab import show_evaluation, show_experts, show_proof
from breakeven.pages.lab_html import LabResult, page_beside
from breakeven.pages.load_terminal import print_capacity, print_load
from breakeven.pages.terminal import print_comparison
from breakeven.results.decision import Decision, LogDecision
from breakeven.results.lab import Evaluation, Proof
from breakeven.results.load import CapacityStudy, LoadStudy
from breakeven.results.store import RESULT as RESULT
from breakeven.results.store import encode, write
from breakeven.runs.recompute import Study

PAGE, LOG_RESULT, PROOF = "report.html", "from-log.json", "proof.json"


def save(study: Study, out: Path, *, charts: bool = False) -> None:
    """Write `result.json` and `report.html` into `out`, and with `charts` each figure of a comparison below it."""
    page = out / PAGE
    write(study, out / RESULT)
    if isinstance(study, LoadStudy):
        write_load_report(study, page)
    elif isinstance(study, CapacityStudy):
        write_capacity_report(study, page)
    else:
        write_report(study, page)
        if charts:
            export_charts(study, out / "charts")


def json_text(result: msgspec.Struct) -> str:
    """What the file of a result holds. Raises `BreakevenError` when a number in it is not finite."""
    return encode(result).decode().rstrip()


def lab_file(place: Path) -> Path | None:
    """The file of an evaluation, a proof or experts' scores at `place`: itself, or the proof of a directory."""
    if place.is_file():
        return place
    return place / PROOF if (place / PROOF).is_file() else None


def show_lab(result: LabResult, data: Path, console: Console | None = None, *, full: bool = False) -> None:
    """Print the summary of an evaluation, a proof or experts' scores, whose page lies beside `data`."""
    console, page = console or Console(highlight=False), page_beside(data)
    if isinstance(result, Evaluation):
        show_evaluation(result, console, page, full=full)
    elif isinstance(result, Proof):
        show_proof(result, console, page, full=full)
    else:
        show_experts(result, console, page, full=full)


def show(study: Study, out: Path, console: Console | None = None, *, full: bool = False) -> None:
    """Print the summary of what `save` wrote into `out`: one screen of it, or with `full` all."""
    console, page = console or Console(highlight=False), out / PAGE
    if isinstance(study, LoadStudy):
        print_load(study, console, page, full=full)
    elif isinstance(study, CapacityStudy):
        print_capacity(study, console, page, full=full)
    else:
        print_comparison(study, console, page, full=full)


def save_decision(decision: Decision, directory: Path) -> Path:
    """Write `result.json` and `report.html` into `directory`, which is returned.

    Raises `UserError` when the directory cannot be written, `BreakevenError` when a number is not finite.
    """
    write(decision, directory / RESULT)
    write_decision_report(decision, directory / PAGE)
    return directory


def save_log_decision(result: LogDecision, directory: Path) -> Path:
    """Write `from-log.json`, and the decision with its page, into `directory`, which is returned."""
    write(result, directory / LOG_RESULT)
    return save_decision(result.decision, directory)
