"""Does a share reach a target? A test that may be looked at as often as one likes.

Evidence is a likelihood ratio against the target, averaged over a grid of shares on the other side of it. Under any
share on the wrong side such an average is a non-negative supermartingale that starts at 1, so it ever reaches 1/a with
a probability of at most a, however often it is looked at and whenever one stops (Ville's inequality; Ramdas,
Gruenwald, Vovk, Shafer 2023, "Game-theoretic statistics and safe anytime-valid inference"). A Wilson interval promises
its coverage for one look at a sample size that was fixed beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

GRID = 20
"""Shares on either side of the target that evidence is averaged over; more change the number needed by under 2 %."""
BATCHES = 10
"""Parts a run is cut into to see how far neighbouring requests share their fate."""


def evidence(good: float, bad: float, target: float) -> tuple[float, float]:
    """Log evidence of `good` against `bad` requests that the share reaches `target`, and that it does not.

    `target` lies between 0 and 1, exclusive. Counts may be fractions where requests are not independent.
    """
    steps = np.arange(1, GRID + 1) / GRID
    return _log_mean_ratio(good, bad, target, target + (1 - target) * steps), _log_mean_ratio(
        good, bad, target, target * (1 - steps)
    )


def _log_mean_ratio(good: float, bad: float, target: float, shares_G: NDArray[np.float64]) -> float:
    """Log of the likelihood of each share of the grid over that of the target, averaged."""
    logs = _log_likelihood(good, bad, shares_G) - _log_likelihood(good, bad, np.array([target]))
    top = float(logs.max())
    return top + math.log(float(np.exp(logs - top).mean()))


def _log_likelihood(good: float, bad: float, shares_G: NDArray[np.float64]) -> NDArray[np.float64]:
    """Zero times log 0 is zero: a share of 1 has never seen a bad request."""
    with np.errstate(divide="ignore", invalid="ignore"):
        hit = good * np.log(shares_G) if good else np.zeros_like(shares_G)
        miss = bad * np.log1p(-shares_G) if bad else np.zeros_like(shares_G)
    return np.asarray(hit + miss, dtype=np.float64)


def decide(good: float, bad: float, target: float, error: float) -> bool | None:
    """True: the share reaches `target`; False: it does not; None: not sure enough. Either is wrong with probability
    `error` at most, over all looks together."""
    reaches, misses = evidence(good, bad, target)
    enough = math.log(1 / error)
    if max(reaches, misses) < enough:
        return None
    return reaches > misses


@cache
def least_requests(target: float, error: float) -> int:
    """Requests after which a run without a single bad one is decided."""
    n = 1
    while decide(n, 0, target, error) is None:
        n += 1
    return n


def spread(runs: Sequence[Sequence[bool]]) -> float:
    """How many times wider shares spread than if every request had been on its own, from 1.

    Neighbours wait in the same queue, so they are good or bad together. `runs`: was each request good, in the order
    they were due, one sequence a run. The ratio is of the variance of the means of `BATCHES` equal parts of a run to
    what independent requests would give (batch means; Law 2015, "Simulation modeling and analysis", section 9.5.3).
    Counts divided by it carry as much evidence as independent ones.
    """
    means: list[float] = []
    sizes: list[int] = []
    for run in runs:
        size = len(run) // BATCHES
        if size < 2:
            continue
        flags = np.asarray(run[: size * BATCHES], dtype=np.float64).reshape(BATCHES, size)
        means += flags.mean(axis=1).tolist()
        sizes.append(size)
    if not means:
        return 1.0
    share = float(np.mean(means))
    alone = share * (1 - share) / float(np.mean(sizes))
    return max(1.0, float(np.var(means, ddof=1)) / alone) if alone > 0 else 1.0
