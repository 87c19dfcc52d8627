"""A decision as files: the data and the page beside it."""

from __future__ import annotations

from pathlib import Path

from breakeven.report.decision_html import write_decision_report
from breakeven.report.decision_json import encode_decision
from breakeven.report.json_file import write_whole
from breakeven.report.studies import PAGE, RESULT
from breakeven.spec.decision import Decision


def save_decision(decision: Decision, directory: Path) -> bytes:
    """Write `result.json` and `report.html` into `directory`; the result's JSON.

    Raises `UserError` when the directory cannot be written, `BreakevenError` when a number is not finite.
    """
    encoded = encode_decision(decision)
    write_whole(directory / RESULT, encoded)
    write_decision_report(decision, directory / PAGE)
    return encoded
