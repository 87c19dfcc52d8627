"""Any study as files and on a terminal, whichever kind it is."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from breakeven.pages.html import write_report
from breakeven.pages.load_html import write_capacity_report, write_load_report
from breakeven.pages.load_terminal import print_capacity, print_load
from breakeven.pages.terminal import print_comparison
from breakeven.results.load import CapacityStudy, LoadStudy
from breakeven.results.store import RESULT, encode, write
from breakeven.runs.recompute import Study

PAGE = "report.html"


def save(study: Study, out: Path) -> bytes:
    """Write `result.json` and `report.html` into `out`; the result's JSON."""
    page = out / PAGE
    write(study, out / RESULT)
    if isinstance(study, LoadStudy):
        write_load_report(study, page)
    elif isinstance(study, CapacityStudy):
        write_capacity_report(study, page)
    else:
        write_report(study, page)
    return encode(study)


def show(study: Study, out: Path) -> None:
    """Print the summary of what `save` wrote into `out`."""
    console, page = Console(highlight=False), out / PAGE
    if isinstance(study, LoadStudy):
        print_load(study, console, page)
    elif isinstance(study, CapacityStudy):
        print_capacity(study, console, page)
    else:
        print_comparison(study, console, page)
