"""Writing and printing a result of any kind."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from breakeven.decide.recompute import Study, recompute
from breakeven.errors import UserError
from breakeven.report.charts import export_charts
from breakeven.report.html import write_report
from breakeven.report.json_file import encode_result, write_result
from breakeven.report.load_html import write_capacity_report, write_load_report
from breakeven.report.load_json import encode_capacity, encode_load, write_capacity, write_load
from breakeven.report.load_terminal import print_capacity, print_load
from breakeven.report.terminal import print_comparison
from breakeven.spec.load import CapacityStudy, LoadStudy


def run(directory: Path, out: Path, *, charts: bool, as_json: bool) -> None:
    """Compute again, write `result.json` and `report.html` to `out`, print the summary or the JSON."""
    study = recompute(directory)
    if charts and isinstance(study, LoadStudy | CapacityStudy):
        raise UserError("--charts writes the figures of a comparison without load; this study's are in its page")
    encoded = save(study, out)
    if charts and not isinstance(study, LoadStudy | CapacityStudy):
        export_charts(study, out / "charts")
    if as_json:
        sys.stdout.write(encoded.decode().rstrip() + "\n")
        return
    show(study, out / "report.html")


def save(study: Study, out: Path) -> bytes:
    """Write result and page; the result's JSON."""
    page, file = out / "report.html", out / "result.json"
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


def show(study: Study, page: Path) -> None:
    """Print the summary."""
    console = Console(highlight=False)
    if isinstance(study, LoadStudy):
        print_load(study, console, page)
    elif isinstance(study, CapacityStudy):
        print_capacity(study, console, page)
    else:
        print_comparison(study, console, page)
