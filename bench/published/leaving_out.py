"""Errors of observations that a fit has not seen: one group left out at a time, the rest fitted anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from bench.published.fitting import Fit, fitted
from bench.published.records import Observation
from breakeven.predict.prior import Entry

Floats = NDArray[np.float64]
FOLD_ROUNDS = 3
"""From the fit to everything, one group less moves the constants little."""


def by_model(o: Observation) -> str:
    """Left out together: models of one shape."""
    return o.model_group


def by_machine(o: Observation) -> str:
    """Left out together: one chip."""
    return o.chip_group


def left_out(
    observations: Sequence[Observation], judged: dict[str, Entry], whole: Fit, key: Callable[[Observation], str]
) -> Floats:
    """ln(predicted / published) of every observation under the fit that was made without its group."""
    errors = np.zeros(len(observations))
    keys = [key(o) for o in observations]
    for name in sorted(set(keys)):
        held = [i for i, k in enumerate(keys) if k == name]
        rest = [o for o, k in zip(observations, keys, strict=True) if k != name]
        fit = fitted(rest, judged, start=whole, rounds=FOLD_ROUNDS)
        some = [observations[i] for i in held]
        errors[held] = np.log(fit.predict(some)) - np.log([o.seconds for o in some])
    return errors
