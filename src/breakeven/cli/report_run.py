"""What `breakeven report` does with the words it was given."""

from __future__ import annotations

import sys
from pathlib import Path

from breakeven.errors import UserError
from breakeven.pages.figures.comparison import export_charts
from breakeven.pages.studies import save, show
from breakeven.results.comparison import Comparison
from breakeven.runs.recompute import recompute


def run(directory: Path, out: Path, *, charts: bool, as_json: bool) -> None:
    """Compute again, write `result.json` and `report.html` to `out`, print the summary or the JSON."""
    study = recompute(directory)
    if charts and not isinstance(study, Comparison):
        raise UserError("--charts writes the figures of a comparison without load; this study's are in its page")
    encoded = save(study, out)
    if charts and isinstance(study, Comparison):
        export_charts(study, out / "charts")
    if as_json:
        sys.stdout.write(encoded.decode().rstrip() + "\n")
    else:
        show(study, out)
