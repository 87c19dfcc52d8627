"""`breakeven decide --from-log`: the same question, asked of the traffic that a gateway served."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path


def run_from_log(
    study: Path, logs: Sequence[Path], out: Path | None, json: bool, on_phase: Callable[[str, str], None]
) -> str:
    """Decide, save, and return what to print. Raises UserError for what cannot be read or decided."""
    from breakeven.gateway.loop.run import decide_from_log
    from breakeven.pages.decision_files import encode_log_decision, log_summary, save_log_decision
    from breakeven.results.store import RESULT

    directory = out or Path("results") / f"{study.stem}-from-log"
    saved = Path("results") / study.stem / RESULT
    result = decide_from_log(study, logs, directory, on_phase, saved)
    on_phase("writing", str(directory))
    save_log_decision(result, directory)
    return encode_log_decision(result).decode().rstrip() if json else log_summary(result, directory)
