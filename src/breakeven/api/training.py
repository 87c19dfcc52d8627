"""Verbs that train models.

Each imports what it needs when it is called.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from breakeven.api.lab import steps_for
from breakeven.errors import UserError, expanded, word_of

if TYPE_CHECKING:
    from breakeven.measure.progress import ProgressState
    from breakeven.results.training import TrainStudy

STUDY_SECONDS = 600.0
"""Of all trainings of a study together, where nobody says."""


def train(
    study: Path | str,
    *,
    out: Path | str | None = None,
    seconds: float | None = None,
    steps: int | None = None,
    seed: int | None = None,
    threads: int | None = None,
    on_progress: Callable[[ProgressState], None] = lambda state: None,
) -> TrainStudy:
    """Train the models of a study, equal in one number, on the same text, and say what each learned of it.

    `out`: a directory for models and result; None: named as the study, beside it. `seconds` for all trainings together
    (None: ten minutes) or `steps` of each. `seed`: the first, in place of the study's own. A study that was stopped
    goes on when it is given again. Raises UserError for a study that cannot be, NotSupportedError without torch.
    """
    from breakeven.lab.training.study import train
    from breakeven.pages.training import write_study_page

    if seconds is not None and steps is not None:
        raise UserError("--for and --steps are two ways to say how long: give one of them")
    path = expanded(study)
    place = expanded(out) if out is not None else path.with_suffix("")
    words = ["breakeven", "train", word_of(study)]
    words += [] if out is None else ["--out", word_of(out)]
    words += [] if seed is None else ["--seed", str(seed)]
    words += [] if threads is None else ["--threads", str(threads)]
    result = train(
        path,
        place,
        words=words,
        seconds=(STUDY_SECONDS if seconds is None else seconds) if steps is None else None,
        steps=steps,
        seed=seed,
        threads=threads,
        on_step=steps_for(on_progress),
    )
    write_study_page(result, place)
    return result
