"""Does a share reach a target? A test that may be looked at as often as one likes.

Evidence is a likelihood ratio against the target, averaged over a grid of shares on the other side of it. Under any
share on the wrong side such an average is a non-negative supermartingale that starts at 1, so it ever reaches 1/a with
a probability of at most a, however often it is looked at and whenever one stops (Ville's inequality; Ramdas,
Gruenwald, Vovk, Shafer 2023, "Game-theoretic statistics and safe anytime-valid inference"). A Wilson interval promises
its coverage for one look at a sample size that was fixed beforehand.

Intervals that hold at every look together: a test may stop whenever they say so, and err as rarely as promised.

A fixed-sample 95 % interval that is looked at after every request excludes the truth sooner or later for certain.
These are wider by what looking costs:

- `margin`: for an estimate that is asymptotically normal, the normal-mixture boundary of Robbins (1970) with the
  variance put in as it is estimated: Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas (2024, Annals of Statistics 52(6)),
  "Time-uniform central limit theory and asymptotic confidence sequences", Theorem 2.2. A difference of two arms'
  means is a Brownian motion with drift when seen by its information 1 / variance, whatever the arms' shares, so the
  same boundary holds for it: Johari, Koomen, Pekelis, Walsh (2022, Operations Research 70(3)), "Always valid
  inference".
- `proportion`: for a share of yes among n, exact at any n: the beta-binomial mixture likelihood ratio against p is a
  martingale under p, so by Ville's inequality {p : ratio < 1 / alpha} covers p at all n with probability 1 - alpha
  (Robbins 1970; Howard, Ramdas, McAuliffe, Sekhon 2021, Annals of Statistics 49(2)).

No numpy: the watching process looks every second at a few numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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


TIGHTEST_AT = 1000
"""Observations (of each of two arms) at which `margin` is tightest; elsewhere it is valid and a little wider."""
PRIOR = 0.5
"""Both parameters of the beta mixture: Jeffreys' prior, which is tighter near 0, where shares of errors are."""
_HALVINGS = 60


def margin(variance: float, count: float, alpha: float, tightest_at: float = TIGHTEST_AT) -> float:
    """Half width around an estimate of this `variance` from `count` observations; inf where there is none.

    sqrt(v (n + h) / n ln((n + h) / (h alpha^2))), with h = n* / (-2 ln alpha + ln(1 - 2 ln alpha)): Theorem 2.2 with
    rho^2 = 1 / h, and its appendix's choice of rho for n*.
    """
    if count <= 0 or not 0 < alpha < 1:
        return math.inf
    spread = -2 * math.log(alpha)
    h = tightest_at / (spread + math.log1p(spread))
    return math.sqrt(variance * (count + h) / count * (math.log1p(count / h) + spread))


def proportion(hits: int, count: int, alpha: float) -> tuple[float, float]:
    """Lower and upper end for a share, from `hits` of `count`. (0, 1) before anything is known."""
    if count <= 0:
        return 0.0, 1.0
    misses = count - hits
    mixture = _log_beta(hits + PRIOR, misses + PRIOR) - _log_beta(PRIOR, PRIOR) + math.log(alpha)

    def outside(p: float) -> bool:
        likelihood = (hits * math.log(p) if hits else 0.0) + (misses * math.log1p(-p) if misses else 0.0)
        return mixture >= likelihood

    seen = hits / count
    low = 0.0 if not hits else _edge(outside, 0.0, seen)
    high = 1.0 if not misses else _edge(outside, 1.0, seen)
    return low, high


def _edge(outside: Callable[[float], bool], out: float, inside: float) -> float:
    """Where `outside` changes between `out` and `inside`, on the safe side."""
    for _ in range(_HALVINGS):
        middle = (out + inside) / 2
        if outside(middle):
            out = middle
        else:
            inside = middle
    return out


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def difference_of_proportions(
    control: tuple[int, int], treatment: tuple[int, int], alpha: float
) -> tuple[float, float, float | None, float | None]:
    """Treatment minus control (low, high) and treatment over control (low, high), each arm (hits, count).

    From one interval an arm at alpha / 2: holds at any number of requests and for any pair of shares, at the price of
    width. The ratio's upper end is None (infinite) while the control's share may be 0.
    """
    c_low, c_high = proportion(*control, alpha / 2)
    t_low, t_high = proportion(*treatment, alpha / 2)
    return t_low - c_high, t_high - c_low, t_low / c_high, t_high / c_low if c_low > 0 else None
