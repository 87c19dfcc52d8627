"""Two arms' means and how sure they are, from sums that one observation changes in constant time.

What is independent is not the request but the *cluster*: a user whose requests all go to one arm, or a request and its
copy. Each cluster i has (n, y) in either arm: how many observations and their sum. With m = Y / N of an arm,

    ln(m_t / m_c)  varies as the sum over clusters of ((y_t - m_t n_t) / Y_t - (y_c - m_c n_c) / Y_c)^2
    m_t - m_c      varies as the sum over clusters of ((y_t - m_t n_t) / N_t - (y_c - m_c n_c) / N_c)^2

times K / (K - 1): the delta method of ratio metrics (Deng, Knoblich, Lu 2018, KDD, "Applying the delta method in metric
analytics"), which for clusters of one request is Welch's variance, and for a request and its copy the paired one.
All that it needs of the past is the sum over clusters of the products of (n_c, y_c, n_t, y_t).
"""

from __future__ import annotations

import math

import msgspec

from breakeven.stats.sequential import TIGHTEST_AT, margin

Cluster = tuple[float, float, float, float]
"""(n_c, y_c, n_t, y_t); a sum over no observation is 0."""
NOTHING: Cluster = (0.0, 0.0, 0.0, 0.0)
LEAST_CLUSTERS = 30
"""Effective clusters an arm must have for an interval: below, neither the normal limit nor a variance is to be had."""

ROUNDING = 1e-9
"""Least relative half width: arms that are exactly equal must not differ by the last bit of a sum."""


class Interval(msgspec.Struct, frozen=True):
    """An estimate with the ends that hold at every look."""

    value: float
    low: float
    high: float


class Moments(msgspec.Struct):
    """Sums over clusters. `sums`: of (n_c, y_c, n_t, y_t); `products`: of its ten products, upper triangle by rows."""

    sums: list[float] = msgspec.field(default_factory=lambda: [0.0] * 4)
    products: list[float] = msgspec.field(default_factory=lambda: [0.0] * 10)

    def one(self, arm: int, value: float) -> None:
        """A cluster of one observation in one arm: what most requests are, so it has a way of its own."""
        sums, products, k = self.sums, self.products, 7 * arm
        sums[2 * arm] += 1.0
        sums[2 * arm + 1] += value
        products[k] += 1.0
        products[k + 1] += value
        products[9 if arm else 4] += value * value

    def add(self, cluster: Cluster) -> None:
        """A cluster that was never seen and will not grow."""
        self.replace(NOTHING, cluster)

    def replace(self, old: Cluster, new: Cluster) -> None:
        """A cluster went from `old` to `new`."""
        sums, products = self.sums, self.products
        n_c, y_c, n_t, y_t = old
        m_c, z_c, m_t, z_t = new
        if n_c or m_c:
            sums[0] += m_c - n_c
            sums[1] += z_c - y_c
            products[0] += m_c * m_c - n_c * n_c
            products[1] += m_c * z_c - n_c * y_c
            products[4] += z_c * z_c - y_c * y_c
        if n_t or m_t:
            sums[2] += m_t - n_t
            sums[3] += z_t - y_t
            products[7] += m_t * m_t - n_t * n_t
            products[8] += m_t * z_t - n_t * y_t
            products[9] += z_t * z_t - y_t * y_t
        if (n_c and n_t) or (m_c and m_t):
            products[2] += m_c * m_t - n_c * n_t
            products[3] += m_c * z_t - n_c * y_t
            products[5] += z_c * m_t - y_c * n_t
            products[6] += z_c * z_t - y_c * y_t

    def count(self, arm: int) -> float:
        """Observations of arm 0 (control) or 1 (treatment)."""
        return self.sums[2 * arm]

    def mean(self, arm: int) -> float | None:
        """Of one arm; None before its first observation."""
        n, y = self.sums[2 * arm : 2 * arm + 2]
        return y / n if n else None

    def control_only(self) -> Moments:
        """The control's part, to compare a treatment with that has no control of its own time."""
        kept = [value if i in (0, 1, 4) else 0.0 for i, value in enumerate(self.products)]
        return Moments([*self.sums[:2], 0.0, 0.0], kept)

    def clusters(self, arm: int) -> float:
        """How many clusters of equal size would tell as much: N^2 / sum of n^2."""
        squares = self.products[0 if arm == 0 else 7]
        return self.sums[2 * arm] ** 2 / squares if squares > 0 else 0.0

    def ratio(self, alpha: float, tightest_at: float = TIGHTEST_AT) -> Interval | None:
        """Treatment's mean over control's; None while either has too few clusters or a mean that is not positive."""
        n_c, y_c, n_t, y_t = self.sums
        if y_c <= 0 or y_t <= 0 or not self._enough():
            return None
        half = self._margin((y_c / n_c / y_c, -1 / y_c, -y_t / n_t / y_t, 1 / y_t), alpha, tightest_at)
        log = math.log(y_t / n_t * n_c / y_c)
        half = max(half, ROUNDING)
        return Interval(math.exp(log), math.exp(log - half), math.exp(min(log + half, 700.0)))

    def difference(self, alpha: float, tightest_at: float = TIGHTEST_AT) -> Interval | None:
        """Treatment's mean minus control's; None while either has too few clusters."""
        if not self._enough():
            return None
        n_c, y_c, n_t, y_t = self.sums
        half = self._margin((y_c / n_c / n_c, -1 / n_c, -y_t / n_t / n_t, 1 / n_t), alpha, tightest_at)
        value = y_t / n_t - y_c / n_c
        half = max(half, ROUNDING * max(abs(y_t / n_t), abs(y_c / n_c)))
        return Interval(value, value - half, value + half)

    def _enough(self) -> bool:
        return min(self.clusters(0), self.clusters(1)) >= LEAST_CLUSTERS

    def _margin(self, weights: Cluster, alpha: float, tightest_at: float) -> float:
        """Half width for an estimate whose cluster terms are `weights` times (n_c, y_c, n_t, y_t)."""
        variance, k = 0.0, 0
        for i in range(4):
            for j in range(i, 4):
                variance += weights[i] * weights[j] * self.products[k] * (1 if i == j else 2)
                k += 1
        least = min(self.clusters(0), self.clusters(1))
        # Harmonic: how many of each there would be were they equal. It is the boundary's clock, and counts requests
        # rather than clusters: where users come back it runs ahead of what is learned, which only widens the interval.
        n_c, n_t = self.sums[0], self.sums[2]
        return margin(max(0.0, variance) * least / (least - 1), 2 * n_c * n_t / (n_c + n_t), alpha, tightest_at)
