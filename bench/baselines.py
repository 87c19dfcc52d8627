"""Simpler ideas of what a Mixture-of-Experts reads in a step, for the accuracy table to stand beside.

Each replaces the occupancy u(B), nothing else, and is fitted with the same constants to the same data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
from numpy.typing import ArrayLike, NDArray

from breakeven.forecast.terms import ExpertGroup, Terms

Floats = NDArray[np.float64]
Occupancy = Callable[[ExpertGroup, Floats], Floats]


def active_only(group: ExpertGroup, n: Floats) -> Floats:
    """A step reads the active parameters, whatever the batch."""
    return np.full_like(n, group.per_token / group.n_experts)


def total_only(group: ExpertGroup, n: Floats) -> Floats:
    """A step reads every parameter."""
    return np.ones_like(n)


def bound(group: ExpertGroup, n: Floats) -> Floats:
    """min(B k, E) experts: the upper bound, as if no two tokens shared an expert until all are read."""
    return np.minimum(n * group.per_token / group.n_experts, 1.0)


def no_occupancy(group: ExpertGroup, n: Floats) -> Floats:
    """Every token reads its own k experts anew: B k, without a bound."""
    return n * group.per_token / group.n_experts


BASELINES: dict[str, Occupancy] = {
    "active only": active_only,
    "total only": total_only,
    "min(B k, E)": bound,
    "no occupancy": no_occupancy,
}


@contextmanager
def occupancy(found: Occupancy) -> Iterator[None]:
    """The step model with another occupancy, for as long as the block lasts."""

    def occupancies(terms: Terms, tokens: ArrayLike, alpha: float = 1.0) -> list[Floats]:
        n = np.asarray(tokens, dtype=np.float64)
        return [found(group, n) for group in terms.experts]

    with (
        patch("breakeven.forecast.terms.occupancies", occupancies),
        patch("breakeven.forecast.devices.occupancies", occupancies),
    ):
        yield
