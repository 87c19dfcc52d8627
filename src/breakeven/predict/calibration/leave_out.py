"""How far off a calibration is on what it has not seen: each model left out once, the rest fitted, its steps predicted.

The width of later intervals is the conformal quantile of those errors (Vovk et al. 2005; split by model as in
jackknife+, Barber et al. 2021): the ceil((m + 1) 0.9)-th smallest of m, widened by sqrt(1 + 1/models) because the
errors of one model's steps are alike and a new model is one more draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from breakeven.predict.calibration.fit import Fitted, refit
from breakeven.predict.calibration.observe import Observation, Phase, table
from breakeven.predict.step import Floats
from breakeven.spec.profile import Error, Range

COVERAGE = 0.9
FEW_MODELS = 3
"""Fewer models of one kind than this say too little of it alone: both kinds' errors are taken together."""
UNSEEN_FACTOR = 1.5
"""How much wider an interval is for a kind no probe was of: a judgement, for there is nothing to check it against."""
PHASES: tuple[Phase, ...] = ("decode", "prefill")
KINDS: tuple[Literal["dense", "moe"], ...] = ("dense", "moe")


@dataclass(frozen=True, slots=True)
class LeftOut:
    """One step of a model that the fit had not seen; `log_error` is ln(predicted / measured)."""

    seen: Observation
    log_error: float


def leave_models_out(observations: Sequence[Observation], fitted: Fitted) -> list[LeftOut]:
    """Every step, predicted by constants fitted without its model, in the order of `observations`."""
    found: dict[int, LeftOut] = {}
    for name in dict.fromkeys(seen.model for seen in observations):
        rest = [seen for seen in observations if seen.model != name]
        constants = refit(rest, fitted)
        mine = [(i, seen) for i, seen in enumerate(observations) if seen.model == name]
        data = table([seen for _, seen in mine])
        errors = data.log_predicted(constants) - data.log_seconds
        found.update({i: LeftOut(seen, float(error)) for (i, seen), error in zip(mine, errors, strict=True)})
    return [found[i] for i in range(len(observations))]


def errors_of(left_out: Sequence[LeftOut]) -> list[Error]:
    """The error of every phase and kind. A phase without a single step gets that of decoding, widened, with n = 0."""
    found = []
    for phase in PHASES:
        of_phase = [x for x in left_out if x.seen.phase == phase]
        for kind in KINDS:
            mine = [x for x in of_phase if x.seen.kind == kind]
            models = len({x.seen.model for x in mine})
            used = mine if models >= FEW_MODELS else of_phase or list(left_out)
            error = _error(used, phase, kind)
            if models == 0:
                error = Error(
                    phase=phase,
                    kind=kind,
                    log_half_width=UNSEEN_FACTOR * error.log_half_width,
                    between_models=UNSEEN_FACTOR * error.between_models,
                    median=error.median,
                    n=0,
                )
            found.append(error)
    return found


def half_width(errors: Sequence[float], models: int) -> float:
    """The conformal half width of |ln(predicted / measured)|; the largest where there are too few."""
    ordered = sorted(abs(error) for error in errors)
    rank = min(math.ceil((len(ordered) + 1) * COVERAGE), len(ordered))
    return ordered[rank - 1] * math.sqrt(1.0 + 1.0 / models)


def ranges_of(observations: Sequence[Observation]) -> list[Range]:
    """What the probes spanned of the quantities that predictions may leave."""
    decode = [seen for seen in observations if seen.phase == "decode"] or list(observations)
    quantities: dict[str, list[float]] = {
        "batch": [float(seen.sequences) for seen in decode],
        "context": [seen.tokens for seen in observations],
        "bytes_read": [sum(n for _, n in seen.terms.fixed) for seen in observations]
        + [seen.terms.total_bytes for seen in observations],
        "active_params": [seen.terms.token_flops / 2.0 for seen in observations],
    }
    return [Range(quantity=name, low=min(values), high=max(values)) for name, values in quantities.items()]


def _error(left_out: Sequence[LeftOut], phase: Phase, kind: Literal["dense", "moe"]) -> Error:
    by_model: dict[str, list[float]] = {}
    for x in left_out:
        by_model.setdefault(x.seen.model, []).append(x.log_error)
    errors: Floats = np.array([x.log_error for x in left_out])
    offsets = [float(np.mean(mine)) for mine in by_model.values()]
    # 1.645 standard deviations hold 90 % of normal offsets, as the half width holds 90 % of errors.
    between = 1.645 * float(np.std(offsets, ddof=1)) if len(offsets) > 1 else float(np.max(np.abs(errors)))
    return Error(
        phase=phase,
        kind=kind,
        log_half_width=half_width(errors.tolist(), len(by_model)),
        between_models=between,
        median=float(np.median(np.abs(np.expm1(errors)))),
        n=len(by_model),
        coverage=_coverage(by_model),
    )


def _coverage(by_model: dict[str, list[float]]) -> float | None:
    """Share of each model's errors within the width that the other models' errors give."""
    if len(by_model) < FEW_MODELS:
        return None
    inside, total = 0, 0
    for name, mine in by_model.items():
        others = [error for other, errors in by_model.items() if other != name for error in errors]
        width = half_width(others, len(by_model) - 1)
        inside += sum(abs(error) <= width for error in mine)
        total += len(mine)
    return inside / total
