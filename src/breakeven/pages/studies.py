"""Any study as files and on a terminal, whichever kind it is."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from breakeven.pages.html import write_report
from breakeven.pages.load_html import write_capacity_report, write_load_report
from breakeven.pages.load_terminal import print_capacity, print_load
from breakeven.pages.terminal import print_comparison
from breakeven.results.load import CapacityStudy, LoadStudy
from breakeven.results.store import (
    encode_capacity,
    encode_load,
    encode_result,
    write_capacity,
    write_load,
    write_result,
)
from breakeven.runs.recompute import Study

RESULT, PAGE = "result.json", "report.html"


def save(study: Study, out: Path) -> bytes:
    """Write `result.json` and `report.html` into `out`; the result's JSON."""
    page, file = out / PAGE, out / RESULT
    if isinstance(study, LoadStudy):
        write_load(study, file)
        write_load_report(study, page)
        return encode_load(study)
    if isinstance(study, CapacityStudy):
        write_capacity(study, file)
        write_capacity_report(study, page)
        return encode_capacity(study)
    write_result(study, file)
    write_report(study, page)
    return encode_result(study)


def show(study: Study, out: Path) -> None:
    """Print the summary of what `save` wrote into `out`."""
    console, page = Console(highlight=False), out / PAGE
    if isinstance(study, LoadStudy):
        print_load(study, console, page)
    elif isinstance(study, CapacityStudy):
        print_capacity(study, console, page)
    else:
        print_comparison(study, console, page)
