"""What n replicas carry together: more than n times one of them, because bursts pool.

A fleet behind one balancer shares one stream of arrivals. The headroom it needs over its mean load grows with the
square root of its size and not with the size, so what it carries within a service level is

    c(n) = a n - b sqrt(n)                    b >= 0

(square-root staffing: Halfin and Whitt, "Heavy-traffic limits for queues with many exponential servers", Operations
Research 29(3), 1981; Whitt, "Understanding the efficiency of multi-server service systems", Management Science 38(5),
1992). `a` and `b` are those of the two simulated fleets on either side; beyond the largest one its own are kept, and no
fleet carries more a replica than a replica does that always has another request.

c(n) / n never falls: n replicas can be run as groups of k, and pooling these does no harm. Hence
c(n + m) >= c(n) + c(m).

Legend: K fleets that were simulated, D draws, R loads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import ArrayLike, NDArray

from breakeven.stats.estimate import Estimate

Floats = NDArray[np.float64]

SIZES = (1, 2, 3, 4, 6, 8, 12, 16)
"""Fleets that are simulated."""
ROUNDING = 1e-9
"""A load of 3.0000000001 capacities is three, not four."""


@dataclass(frozen=True, slots=True)
class FleetCapacity:
    """Requests/s of the whole fleet by its size. `sizes_K` ascends from 1; `saturation_per_s`: of one replica, None
    where nobody knows it. One size alone: so many times it for every other, which is what is known of a measurement.
    """

    sizes_K: tuple[int, ...]
    per_s_K: tuple[Estimate, ...]
    saturation_per_s: Estimate | None = None

    @property
    def one(self) -> Estimate:
        """What one replica carries."""
        return self.per_s_K[0]

    def at(self, end: str) -> tuple[Floats, float]:
        """(capacities by size, saturation) at `value`, `least` or `most`, as `carried` and `needed` take them."""
        top = self.saturation_per_s
        return np.array([getattr(e, end) for e in self.per_s_K]), inf if top is None else float(getattr(top, end))

    def per_s(self, replicas: int) -> float:
        """What `replicas` of them carry together."""
        return float(carried(self.sizes_K, *self.at("value"), replicas))

    def replicas(self, rate_per_s: float, end: str = "value") -> float:
        """The fewest that carry a rate; infinite where no number does. `end`: `least` takes them to be slow."""
        return float(needed(self.sizes_K, *self.at(end), rate_per_s))


def carried(sizes_K: Sequence[int], per_s_K: ArrayLike, saturation_per_s: float, replicas: ArrayLike) -> Floats:
    """Requests/s that fleets of `replicas` carry, between and beyond those of `sizes_K`."""
    sizes, per_s = np.asarray(sizes_K, np.float64), level(sizes_K, per_s_K)
    n = np.asarray(replicas, np.float64)
    a, b = _segments(sizes, per_s)
    i = np.clip(np.searchsorted(sizes, n, side="left"), 1, max(1, len(sizes) - 1)) - 1
    found = a[..., i] * n - b[..., i] * np.sqrt(n)
    return np.asarray(np.clip(found, 0.0, saturation_per_s * n))


def needed(sizes_K: Sequence[int], per_s_K: ArrayLike, saturation_per_s: ArrayLike, rate_per_s: ArrayLike) -> Floats:
    """The fewest replicas that carry `rate_per_s`, at least one; infinite where none do.

    `per_s_K` (K) or (D, K), `saturation_per_s` a number or (D), `rate_per_s` a number or (R): the result is (D, R).
    """
    sizes, per_s = np.asarray(sizes_K, np.float64), level(sizes_K, per_s_K)
    rate = np.asarray(rate_per_s, np.float64)
    wide_DK = per_s.reshape(-1, len(sizes))
    a_DS, b_DS = _segments(sizes, wide_DK)
    rate_R = np.atleast_1d(rate) * (1.0 - ROUNDING)
    # The first simulated fleet that carries the rate ends the segment in which the answer lies.
    first_DR = (wide_DK[:, :, None] < rate_R[None, None, :]).sum(axis=1)
    segment_DR = np.clip(first_DR - 1, 0, a_DS.shape[1] - 1)
    a_DR, b_DR = (np.take_along_axis(each, segment_DR, axis=1) for each in (a_DS, b_DS))
    top_D1 = np.broadcast_to(np.asarray(saturation_per_s, np.float64), wide_DK.shape[:1])[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        root_DR = (b_DR + np.sqrt(b_DR**2 + 4.0 * a_DR * rate_R)) / (2.0 * a_DR)
        n_DR = np.ceil(np.maximum(root_DR**2, rate_R / top_D1) - 1e-6)
    n_DR = np.where(a_DR > 0, np.maximum(n_DR, 1.0), inf)
    n_DR = np.where(first_DR == 0, 1.0, n_DR)
    return np.asarray(n_DR.reshape(per_s.shape[:-1] + rate.shape))


def level(sizes_K: Sequence[int], per_s_K: ArrayLike) -> Floats:
    """Capacities made such that none falls short of what its parts would carry one by one."""
    sizes = np.asarray(sizes_K, np.float64)
    return np.asarray(np.maximum.accumulate(np.asarray(per_s_K, np.float64) / sizes, axis=-1) * sizes)


def _segments(sizes: Floats, per_s: Floats) -> tuple[Floats, Floats]:
    """(a, b) of every stretch between two sizes; of a single size, proportion."""
    if len(sizes) == 1:
        return per_s / sizes, np.zeros_like(per_s)
    roots = np.sqrt(sizes)
    each = per_s / roots
    # c / sqrt(n) = a sqrt(n) - b is a line between two sizes.
    a = np.diff(each, axis=-1) / np.diff(roots)
    return a, a * roots[:-1] - each[..., :-1]
