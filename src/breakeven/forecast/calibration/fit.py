"""The fit: constants of the step model from times of single steps.

Damped least squares (Levenberg-Marquardt) on the logarithms, so that every step counts by its relative error whatever
its size; Huber's weights, so that a disturbed block does not bend the rest (Huber 1964); priors as weak pulls, so that
what the data do not tell stays where it was. What stayed is named: a constant counts as not identified when putting it
back to its prior, and letting the others follow, costs the fit next to nothing.

How far off a calibration is on what it has not seen: each model left out once, the rest fitted, its steps predicted.

The width of later intervals is the conformal quantile of those errors (Vovk et al. 2005; split by model as in
jackknife+, Barber et al. 2021): the ceil((m + 1) 0.9)-th smallest of m, widened by sqrt(1 + 1/models) because the
errors of one model's steps are alike and a new model is one more draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from breakeven.errors import BreakevenError
from breakeven.forecast.calibration.parameters import (
    Observation,
    Parameter,
    ParameterTable,
    Phase,
    parameters,
    suggested,
    table,
    with_values,
)
from breakeven.forecast.constants import Constants, Error, Range
from breakeven.forecast.terms import Floats

HUBER = 1.5
"""Residuals beyond so many standard deviations count linearly."""
LEAST_NOISE = 0.02
"""No step is believed more precisely than 2 %: what several runs of one file on a quiet machine differ by, and more."""
FIRST_NOISE = 0.10
SAME = 0.5
"""How much the objective (half a sum of squared deviations) may rise when a constant returns to its prior."""
MIN_OBSERVATIONS = 8


FEW_OBSERVATIONS = 3
"""Of models that people serve: one load of one model says more than nothing, and its interval says how little."""
WHOLE_STEP = ("weight_bytes_per_s", "kv_bytes_per_s", "decode_flops_per_s", "prefill_flops_per_s", "sequence_s")
"""What the loads of one model pull apart. All else is the same in every step of one shape."""
TWO_SHAPES = ("step_s", "moe_layer_s", "prefill_token_s")
"""What a second shape tells beside it."""
HOST_PATH = ("host_bytes_per_s", "host_flops_per_s", "stream_bytes_per_s", "handover_s")


@dataclass(frozen=True, slots=True)
class Fitted:
    """`residuals`: ln(predicted / measured) of the observations, in their order. `noise`: their robust spread.

    `spread`: by fitted constant, the standard deviation of its logarithm (of its logit where it is a share).
    """

    constants: Constants
    at_prior: tuple[str, ...]
    residuals: Floats
    noise: float
    spread: dict[str, float]


def fit(observations: Sequence[Observation], tile: int = 1, *, few: bool = False) -> Fitted:
    """Constants that explain `observations`. Raises BreakevenError when there are too few to fit.

    `tile` as in `Constants`: known of the engine, not fitted. `few`: of one or two models no more is fitted than they
    can tell, the rest stays at its prior.
    """
    models = len({seen.model for seen in observations})
    if len(observations) < (FEW_OBSERVATIONS if few else MIN_OBSERVATIONS) or models < (1 if few else 2):
        raise BreakevenError(
            f"{len(observations)} measured steps are too few for a calibration; give it a longer --budget"
        )
    base = suggested(observations, tile)
    chosen = parameters(observations, base)
    data = table(observations)
    told = WHOLE_STEP + HOST_PATH + (TWO_SHAPES if models > 1 else ())
    kept = [i for i, p in enumerate(chosen) if models >= FEW_MODELS or not few or p.field in told]
    at_prior = [p.name for i, p in enumerate(chosen) if i not in kept]
    x, noise = _settle(data, base, chosen, np.array([p.to_scale(p.prior) for p in chosen]), FIRST_NOISE, kept)
    for i in _least_certain_first(data, base, chosen, x, noise, kept):
        trial = [k for k in kept if k != i]
        tried = x.copy()
        tried[i] = chosen[i].to_scale(chosen[i].prior)
        tried = _minimise(data, base, chosen, tried, noise, trial)
        if _objective(data, base, chosen, tried, noise) <= _objective(data, base, chosen, x, noise) + SAME:
            x, kept = tried, trial
            at_prior.append(chosen[i].name)
    constants = _constants(base, chosen, x)
    residuals = data.log_predicted(constants) - data.log_seconds
    # Settling may stop early, and fixing a constant may leave more: what is told is what was left in the end.
    noise = _scatter(residuals)
    spread = dict(zip([chosen[i].name for i in kept], _after(data, base, chosen, x, noise, kept), strict=True))
    return Fitted(constants, (*at_prior, "routing_alpha"), residuals, noise, spread)


def refit(observations: Sequence[Observation], near: Fitted) -> Constants:
    """A fit to other observations, started from one that is near: a few steps instead of many. Same free constants."""
    base = suggested(observations, near.constants.tile)
    chosen = parameters(observations, base)
    kept = [i for i, parameter in enumerate(chosen) if parameter.name not in near.at_prior]
    start = np.array([p.to_scale(_value(near.constants, p) if i in kept else p.prior) for i, p in enumerate(chosen)])
    return _constants(base, chosen, _minimise(table(observations), base, chosen, start, near.noise, kept))


def _settle(
    data: ParameterTable, base: Constants, chosen: Sequence[Parameter], x: Floats, noise: float, kept: Sequence[int]
) -> tuple[Floats, float]:
    """Alternate between the constants and the noise they leave until both stand."""
    for _ in range(4):
        x = _minimise(data, base, chosen, x, noise, kept)
        found = _scatter(data.log_predicted(_constants(base, chosen, x)) - data.log_seconds)
        settled = abs(found / noise - 1.0) < 0.05
        noise = found
        if settled:
            break
    return x, noise


def _scatter(residuals: Floats) -> float:
    """Their robust spread: 1.4826 times the median of |r| is the standard deviation of normal residuals."""
    return max(LEAST_NOISE, 1.4826 * float(np.median(np.abs(residuals))))


def _minimise(
    data: ParameterTable,
    base: Constants,
    chosen: Sequence[Parameter],
    x: Floats,
    noise: float,
    moving: Sequence[int],
) -> Floats:
    """Levenberg-Marquardt over the parameters `moving`; the others stay where `x` has them."""
    free = np.array(list(moving), dtype=np.intp)
    spread = np.array([p.spread for p in chosen])
    centre = np.array([p.to_scale(p.prior) for p in chosen])
    least = np.array([p.to_scale(p.low) for p in chosen])
    most = np.array([p.to_scale(p.high) for p in chosen])
    damping, value = 1e-2, _objective(data, base, chosen, x, noise)
    for _ in range(60):
        residual, jacobian = _linearised(data, base, chosen, x, free)
        weight = np.minimum(1.0, HUBER * noise / np.maximum(np.abs(residual), 1e-12)) / noise**2
        hessian = (jacobian * weight[:, None]).T @ jacobian + np.diag(1.0 / spread[free] ** 2)
        slope = (jacobian * weight[:, None]).T @ residual + (x - centre)[free] / spread[free] ** 2
        before = value
        for _ in range(10):
            step = np.linalg.solve(hessian + damping * np.diag(np.diag(hessian)), slope)
            tried = x.copy()
            tried[free] = np.clip(x[free] - np.clip(step, -2.0, 2.0), least[free], most[free])
            found = _objective(data, base, chosen, tried, noise)
            if found < value:
                x, value, damping = tried, found, max(damping / 5.0, 1e-9)
                break
            damping *= 5.0
        if before - value < 1e-4 * max(1.0, before):
            break
    return x


def _linearised(
    data: ParameterTable, base: Constants, chosen: Sequence[Parameter], x: Floats, free: NDArray[np.intp]
) -> tuple[Floats, Floats]:
    """Residuals and their derivatives by the free parameters, as differences."""
    here = data.log_predicted(_constants(base, chosen, x))
    jacobian = np.empty((len(here), len(free)))
    for column, i in enumerate(free):
        moved = x.copy()
        moved[i] += 1e-4
        jacobian[:, column] = (data.log_predicted(_constants(base, chosen, moved)) - here) / 1e-4
    return here - data.log_seconds, jacobian


def _objective(data: ParameterTable, base: Constants, chosen: Sequence[Parameter], x: Floats, noise: float) -> float:
    """Half the sum of squared deviations: residuals over noise by Huber's measure, parameters over their spread."""
    r = np.abs(data.log_predicted(_constants(base, chosen, x)) - data.log_seconds) / noise
    huber = np.where(r <= HUBER, 0.5 * r * r, HUBER * r - 0.5 * HUBER**2)
    pull = [(v - p.to_scale(p.prior)) / p.spread for v, p in zip(x, chosen, strict=True)]
    return float(np.sum(huber) + 0.5 * np.sum(np.square(pull)))


def _least_certain_first(
    data: ParameterTable, base: Constants, chosen: Sequence[Parameter], x: Floats, noise: float, kept: Sequence[int]
) -> list[int]:
    """Parameters whose spread the data hardly narrowed (to more than half), least first: candidates to be put back."""
    narrowed = np.array(_after(data, base, chosen, x, noise, kept)) / np.array([chosen[i].spread for i in kept])
    return [kept[int(i)] for i in np.argsort(-narrowed) if narrowed[i] > 0.5]


def _after(
    data: ParameterTable, base: Constants, chosen: Sequence[Parameter], x: Floats, noise: float, kept: Sequence[int]
) -> list[float]:
    """Standard deviations of the parameters `kept`, on the fit's scale, after the data were seen."""
    _, jacobian = _linearised(data, base, chosen, x, np.array(kept, dtype=np.intp))
    prior = np.diag([1.0 / chosen[i].spread ** 2 for i in kept])
    found = np.linalg.inv(jacobian.T @ jacobian / noise**2 + prior)
    return [float(v) for v in np.sqrt(np.diag(found))]


def _constants(base: Constants, chosen: Sequence[Parameter], x: Floats) -> Constants:
    return with_values(base, chosen, [p.from_scale(v) for p, v in zip(chosen, x, strict=True)])


def _value(constants: Constants, parameter: Parameter) -> float:
    held = getattr(constants, parameter.field)
    return float(held if parameter.key is None else held.get(parameter.key, parameter.prior))


COVERAGE = 0.9
MAD_TO_SD = 1.4826
"""Standard deviation of a normal spread over its median distance from the middle."""
FEW_MODELS = 3
"""Fewer models of one kind than this say too little of it alone: both kinds' errors are taken together."""
UNSEEN_FACTOR = 1.5
"""How much wider an interval is for a kind no probe was of: a judgement, for there is nothing to check it against."""
ALONE_WIDTH = math.log(2.0)
"""The least half width where one model alone was measured: others are within a factor of two. A judgement: on data
sheets alone, which know no model of the machine at all, nine in ten lie within about as much."""
PHASES: tuple[Phase, ...] = ("decode", "prefill")
KINDS: tuple[Literal["dense", "moe"], ...] = ("dense", "moe")


@dataclass(frozen=True, slots=True)
class LeftOut:
    """One step of a model that the fit had not seen; `log_error` is ln(predicted / measured)."""

    seen: Observation
    log_error: float


def leave_models_out(observations: Sequence[Observation], fitted: Fitted) -> list[LeftOut]:
    """Every step, predicted by constants fitted without its model, in the order of `observations`.

    Of a single model nothing can be left out: what the fit leaves over of it is given.
    """
    if len({seen.model for seen in observations}) < 2:
        return [LeftOut(seen, float(r)) for seen, r in zip(observations, fitted.residuals, strict=True)]
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
    """The error of every phase and kind, and of MoE models in part in host memory where some lay there.

    A phase without a single step gets that of decoding, widened, with n = 0. Of one model alone nothing was left out:
    all is a judgement, and wide.
    """
    alone = len({x.seen.model for x in left_out}) < 2
    found = []
    for spilled in (False, True):
        lying = [x for x in left_out if x.seen.where.whole != spilled]
        if spilled and not lying:
            continue
        for phase in PHASES:
            of_phase = [x for x in lying if x.seen.phase == phase]
            for kind in KINDS:
                mine = [x for x in of_phase if x.seen.kind == kind]
                models = len({x.seen.model for x in mine})
                used = mine if models >= FEW_MODELS else of_phase or lying or list(left_out)
                error = _error(used, phase, kind)
                if models == 0 or alone:
                    least = ALONE_WIDTH if alone else 0.0
                    error = Error(
                        phase=phase,
                        kind=kind,
                        log_half_width=max(UNSEEN_FACTOR * error.log_half_width, least),
                        between_models=max(UNSEEN_FACTOR * error.between_models, least),
                        median=error.median,
                        n=0,
                    )
                found.append(msgspec.structs.replace(error, spilled=spilled))
    return found


def repeat_error(seen: Sequence[Observation]) -> float | None:
    """The median relative error that these measurements have of themselves; None where none was made on two visits.

    From how far visits lie from their load's mean: their pooled robust standard deviation s, of which the mean of v
    visits keeps s / sqrt(v). The median of |N(0, s)| is 0.6745 s.
    """
    away: list[float] = []
    for each in seen:
        v = len(each.visits)
        if v > 1:
            logs = np.log(each.visits)
            away += (np.abs(logs - logs.mean()) * math.sqrt(v / (v - 1))).tolist()
    if not away:
        return None
    one_visit = MAD_TO_SD * float(np.median(away))
    return math.expm1(one_visit / MAD_TO_SD * math.sqrt(float(np.mean([1 / max(1, len(x.visits)) for x in seen]))))


def model_error(median: float, repeat: float | None) -> float | None:
    """What of a median error the repeat error does not explain: independent errors add as squares."""
    return None if repeat is None else math.sqrt(max(0.0, median**2 - repeat**2))


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
    median, repeat = float(np.median(np.abs(np.expm1(errors)))), repeat_error([x.seen for x in left_out])
    return Error(
        phase=phase,
        kind=kind,
        log_half_width=half_width(errors.tolist(), len(by_model)),
        between_models=between,
        median=median,
        n=len(by_model),
        coverage=_coverage(by_model),
        repeat=repeat,
        of_model=model_error(median, repeat),
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
