"""The command line's verbs for Python: typed, with the same results that `--json` prints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from breakeven.decide.compare import Options
from breakeven.decide.compare import compare as run_comparison
from breakeven.measure.plan import Plan
from breakeven.measure.progress import ProgressState
from breakeven.report.html import write_report
from breakeven.report.json_file import write_result
from breakeven.spec.study import Comparison

DEFAULTS = Plan()


def compare(
    models: Sequence[str],
    *,
    format: str = "Q4_K_M",
    streams: Sequence[int] = DEFAULTS.streams,
    prompt_tokens: int = DEFAULTS.prompt_tokens,
    output_tokens: int = DEFAULTS.output_tokens,
    precision: float = DEFAULTS.precision,
    budget_s: float = DEFAULTS.budget_s,
    out: Path | str | None = None,
    resume: bool = False,
    seed: int = 0,
    threads: int | None = None,
    look_inside: bool = True,
    on_progress: Callable[[ProgressState], None] = lambda state: None,
) -> Comparison:
    """Measure `models` against each other on this machine; `breakeven compare` explains what a model may be.

    `precision` is relative (0.02: 2 %), `budget_s` seconds of measuring. Writes `result.json`, `events.jsonl` and
    `report.html` to `out` (default: a new directory under `results`). Raises UserError for what cannot be compared and
    EngineError when an engine fails.
    """
    plan = Plan(tuple(streams), prompt_tokens, output_tokens, precision, budget_s, seed)
    options = Options(plan, format, Path(out) if out is not None else None, resume, threads, look_inside)
    result, directory = run_comparison(models, options, on_progress)
    write_result(result, directory / "result.json")
    write_report(result, directory / "report.html")
    return result
