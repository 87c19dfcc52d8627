"""A decision as files, the data and the page beside it, and the summary that points to them."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from breakeven.report.decision_html import write_decision_report
from breakeven.report.decision_json import write_decision
from breakeven.report.decision_terminal import print_decision
from breakeven.report.studies import PAGE, RESULT
from breakeven.spec.decision import Decision


def save_decision(decision: Decision, directory: Path) -> Path:
    """Write `result.json` and `report.html` into `directory`, which is returned.

    Raises `UserError` when the directory cannot be written, `BreakevenError` when a number is not finite.
    """
    write_decision(decision, directory / RESULT)
    write_decision_report(decision, directory / PAGE)
    return directory


def summary(decision: Decision, directory: Path) -> str:
    """What `print_decision` says about what was saved in `directory`: in colour and as wide as the terminal, if any."""
    console = Console(highlight=False)
    with console.capture() as captured:
        print_decision(decision, console, directory / PAGE)
    return captured.get().rstrip("\n")
