"""What `breakeven report` does with the words it was given."""

from __future__ import annotations

import sys
from pathlib import Path

from breakeven.decide.recompute import recompute
from breakeven.errors import UserError
from breakeven.report.charts import export_charts
from breakeven.report.studies import save, show
from breakeven.spec.study import Comparison


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
