"""The fit: constants of the step model from times of single steps.

Damped least squares (Levenberg-Marquardt) on the logarithms, so that every step counts by its relative error whatever
its size; Huber's weights, so that a disturbed block does not bend the rest (Huber 1964); priors as weak pulls, so that
what the data do not tell stays where it was. What stayed is named: a constant counts as not identified when putting it
back to its prior, and letting the others follow, costs the fit next to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from breakeven.errors import BreakevenError
from breakeven.predict.calibration.observe import Observation, Table, table
from breakeven.predict.calibration.parameters import Parameter, parameters, suggested, with_values
from breakeven.predict.step import Floats
from breakeven.spec.profile import Constants

HUBER = 1.5
"""Residuals beyond so many standard deviations count linearly."""
LEAST_NOISE = 0.02
"""No step is believed more precisely than 2 %: what several runs of one file on a quiet machine differ by, and more."""
FIRST_NOISE = 0.10
SAME = 0.5
"""How much the objective (half a sum of squared deviations) may rise when a constant returns to its prior."""
MIN_OBSERVATIONS = 8


@dataclass(frozen=True, slots=True)
class Fitted:
    """`residuals`: ln(predicted / measured) of the observations, in their order. `noise`: their robust spread."""

    constants: Constants
    at_prior: tuple[str, ...]
    residuals: Floats
    noise: float


def fit(observations: Sequence[Observation], tile: int = 1) -> Fitted:
    """Constants that explain `observations`. Raises BreakevenError when there are too few to fit.

    `tile` as in `Constants`: known of the engine, not fitted.
    """
    if len(observations) < MIN_OBSERVATIONS or len({seen.model for seen in observations}) < 2:
        raise BreakevenError(
            f"{len(observations)} measured steps are too few for a calibration; give it a longer --budget"
        )
    base = suggested(observations, tile)
    chosen = parameters(observations, base)
    data = table(observations)
    x, noise = _settle(data, base, chosen, np.array([p.to_scale(p.prior) for p in chosen]), FIRST_NOISE)
    kept, at_prior = list(range(len(chosen))), []
    for i in _least_certain_first(data, base, chosen, x, noise):
        trial = [k for k in kept if k != i]
        tried = x.copy()
        tried[i] = chosen[i].to_scale(chosen[i].prior)
        tried = _minimise(data, base, chosen, tried, noise, trial)
        if _objective(data, base, chosen, tried, noise) <= _objective(data, base, chosen, x, noise) + SAME:
            x, kept = tried, trial
            at_prior.append(chosen[i].name)
    constants = _constants(base, chosen, x)
    return Fitted(constants, (*at_prior, "routing_alpha"), data.log_predicted(constants) - data.log_seconds, noise)


def refit(observations: Sequence[Observation], near: Fitted) -> Constants:
    """A fit to other observations, started from one that is near: a few steps instead of many. Same free constants."""
    base = suggested(observations, near.constants.tile)
    chosen = parameters(observations, base)
    kept = [i for i, parameter in enumerate(chosen) if parameter.name not in near.at_prior]
    start = np.array([p.to_scale(_value(near.constants, p) if i in kept else p.prior) for i, p in enumerate(chosen)])
    return _constants(base, chosen, _minimise(table(observations), base, chosen, start, near.noise, kept))


def _settle(data: Table, base: Constants, chosen: Sequence[Parameter], x: Floats, noise: float) -> tuple[Floats, float]:
    """Alternate between the constants and the noise they leave until both stand."""
    for _ in range(4):
        x = _minimise(data, base, chosen, x, noise, range(len(chosen)))
        left = np.abs(data.log_predicted(_constants(base, chosen, x)) - data.log_seconds)
        # 1.4826 median |r| is the standard deviation of normal residuals.
        found = max(LEAST_NOISE, 1.4826 * float(np.median(left)))
        settled = abs(found / noise - 1.0) < 0.05
        noise = found
        if settled:
            break
    return x, noise


def _minimise(
    data: Table, base: Constants, chosen: Sequence[Parameter], x: Floats, noise: float, moving: Sequence[int] | range
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
    data: Table, base: Constants, chosen: Sequence[Parameter], x: Floats, free: NDArray[np.intp]
) -> tuple[Floats, Floats]:
    """Residuals and their derivatives by the free parameters, as differences."""
    here = data.log_predicted(_constants(base, chosen, x))
    jacobian = np.empty((len(here), len(free)))
    for column, i in enumerate(free):
        moved = x.copy()
        moved[i] += 1e-4
        jacobian[:, column] = (data.log_predicted(_constants(base, chosen, moved)) - here) / 1e-4
    return here - data.log_seconds, jacobian


def _objective(data: Table, base: Constants, chosen: Sequence[Parameter], x: Floats, noise: float) -> float:
    """Half the sum of squared deviations: residuals over noise by Huber's measure, parameters over their spread."""
    r = np.abs(data.log_predicted(_constants(base, chosen, x)) - data.log_seconds) / noise
    huber = np.where(r <= HUBER, 0.5 * r * r, HUBER * r - 0.5 * HUBER**2)
    pull = [(v - p.to_scale(p.prior)) / p.spread for v, p in zip(x, chosen, strict=True)]
    return float(np.sum(huber) + 0.5 * np.sum(np.square(pull)))


def _least_certain_first(
    data: Table, base: Constants, chosen: Sequence[Parameter], x: Floats, noise: float
) -> list[int]:
    """Parameters whose spread the data hardly narrowed (to more than half), least first: candidates to be put back."""
    _, jacobian = _linearised(data, base, chosen, x, np.arange(len(chosen)))
    spread = np.array([p.spread for p in chosen])
    after = np.sqrt(np.diag(np.linalg.inv(jacobian.T @ jacobian / noise**2 + np.diag(1.0 / spread**2))))
    narrowed = after / spread
    return [int(i) for i in np.argsort(-narrowed) if narrowed[i] > 0.5]


def _constants(base: Constants, chosen: Sequence[Parameter], x: Floats) -> Constants:
    return with_values(base, chosen, [p.from_scale(v) for p, v in zip(chosen, x, strict=True)])


def _value(constants: Constants, parameter: Parameter) -> float:
    held = getattr(constants, parameter.field)
    return float(held if parameter.key is None else held.get(parameter.key, parameter.prior))
