"""What may be wrong, drawn many times: step-time errors that models on one machine share, and those they do not.

A verdict's bands come from here. Each draw is one possible world: every machine's profile is off by one factor, every
model by one more. A difference between two models on one machine keeps only the second, which is why it is known
better than either speed.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from breakeven.forecast.constants import Error
from breakeven.stats.estimate import Estimate, bracketed

Floats = NDArray[np.float64]

DRAWS = 400
Z95 = 1.96
"""Half-widths of 95 % intervals are this many standard deviations."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """How wrong the step times of one candidate may be, as half-widths of ln(true / predicted) at 95 %.

    `machine` names what is shared: candidates with the same profile are wrong together by `shared`, each by `own` more.
    """

    candidate: str
    machine: str
    shared: float
    own: float

    @property
    def total(self) -> float:
        """Half-width of both together."""
        return float(np.hypot(self.shared, self.own))


def doubt_of(candidate: str, machine: str, error: Error) -> Doubt:
    """Split a profile's error into what models on that machine share and what is a model's own."""
    own = min(error.between_models, error.log_half_width)
    return Doubt(candidate, machine, float(np.sqrt(error.log_half_width**2 - own**2)), own)


def factors(doubts: Sequence[Doubt], seed: int, draws: int = DRAWS) -> Floats:
    """ln(true step time / predicted), (draws, candidates). The first draw is 0: the prediction itself.

    Streams are named by machine and candidate, so that leaving a candidate out changes nobody else's draws.
    """
    found = np.zeros((draws, len(doubts)))
    for i, doubt in enumerate(doubts):
        shared = _normal(f"machine/{doubt.machine}", seed, draws)
        own = _normal(f"candidate/{doubt.candidate}", seed, draws)
        found[:, i] = (doubt.shared * shared + doubt.own * own) / Z95
    found[0] = 0.0
    return found


def capacities(span: Estimate, half_width: float, factor: Floats) -> Floats:
    """Capacity in each draw, of one candidate whose capacity is `span` at ln factors +half_width, 0, -half_width.

    `span.high` belongs to the fast end. Linear between and beyond the three, never negative.
    """
    if half_width <= 0:
        return np.full(factor.shape, span.value)
    slow, fast = (span.value - span.least) / half_width, (span.most - span.value) / half_width
    return np.maximum(span.value - np.where(factor > 0, slow, fast) * factor, 0.0)


def span_of(values: Floats) -> Estimate:
    """The first draw's value and the middle 95 % of all."""
    low, high = np.quantile(values, [0.025, 0.975])
    value = float(values[0])
    return bracketed(value, float(low), float(high))


def _normal(name: str, seed: int, draws: int) -> Floats:
    return np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(draws)
