"""How predictions correct themselves from what happened. Pure functions; a worker keeps the numbers.

    x        = ln(actual / predicted), predicted without any correction
    log_factor += GAIN (clip(x - log_factor, -SURPRISE, SURPRISE)), kept within +-bound
    width    : the 95th percentile of x - log_factor, by the stochastic approximation of Robbins and Monro (1951)

A factor forgets: half of what an answer taught is gone after `HALF_LIFE` further answers. Between answers it heals:
half of it is gone after `HEAL_S` seconds without one, so a backend that was slow once is not avoided for ever; the
exploration of `choose` brings it answers meanwhile.
"""

from __future__ import annotations

from math import exp, exp2, log

from breakeven.gateway.route.view import Speed

BOUND = log(4.0)
"""A step model that is off by more than four is wrong, not to be corrected: the page shows the factor at its bound."""
OBSERVED_BOUND = log(64.0)
"""Where nothing but a guess stands behind a prediction, what happens is all there is to know."""
HALF_LIFE = 20
"""Answers."""
GAIN: float = 1.0 - exp2(-1.0 / HALF_LIFE)
SURPRISE: float = log(8.0)
"""One answer that took minutes teaches no more than one that took eight times as long."""
HEAL_S = 300.0
P = 0.95
WIDTH_STEP = 0.05
WIDTH_LEAST, WIDTH_MOST = 0.05, log(16.0)
PEAK_HALF_LIFE_S = 5.0


def corrected(log_factor: float, predicted_s: float, actual_s: float, bound: float = BOUND) -> float:
    """The natural logarithm of a backend's factor after one more answer.

    `predicted_s`: without correction, so a score's divided by the factor it was made with. Times that are not
    positive teach nothing.
    """
    if not (predicted_s > 0.0 and actual_s > 0.0):
        return log_factor
    surprise = log(actual_s / predicted_s) - log_factor
    surprise = min(max(surprise, -SURPRISE), SURPRISE)
    return min(max(log_factor + GAIN * surprise, -bound), bound)


def healed(log_factor: float, idle_s: float) -> float:
    """The same factor after `idle_s` seconds without an answer."""
    return log_factor * exp2(-idle_s / HEAL_S) if idle_s > 0.0 else log_factor


def widened(width: float, log_factor: float, predicted_s: float, actual_s: float) -> float:
    """Half width of the interval of ln(actual / corrected) after one more answer; arguments as in `corrected`.

    p95 of the time is about predicted * exp(log_factor + width).
    """
    if not (predicted_s > 0.0 and actual_s > 0.0):
        return width
    beyond = log(actual_s / predicted_s) - log_factor > width
    return min(max(width + WIDTH_STEP * (P if beyond else P - 1.0), WIDTH_LEAST), WIDTH_MOST)


def peaked(peak: float, predicted_s: float, actual_s: float, idle_s: float) -> float:
    """Peak-EWMA of actual / uncorrected predicted: up at once, down by half in `PEAK_HALF_LIFE_S`."""
    if not (predicted_s > 0.0 and actual_s > 0.0):
        return peak
    ratio = actual_s / predicted_s
    if ratio >= peak:
        return ratio
    return ratio + (peak - ratio) * exp2(-max(idle_s, 0.0) / PEAK_HALF_LIFE_S)


def bound_of(speed: Speed) -> float:
    """How far this speed's answers may be corrected, as a logarithm."""
    bound: float = getattr(speed, "bound", BOUND)
    return bound


def factor_of(log_factor: float) -> float:
    """What predictions are multiplied with."""
    return exp(log_factor)
