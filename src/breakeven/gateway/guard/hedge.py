"""When to ask a second backend, and how often that may happen at all."""

from __future__ import annotations

import math

SHORTEST_S = 0.02
"""Below this a second request costs more than the wait it could save."""
SAVED_MOST = 20.0
"""Hedges that may be saved up by quiet times; without a bound, a bad hour after a good day would be asked twice."""


def delay_s(predicted_ttft_s: float, width: float) -> float:
    """Seconds of silence after which a second backend is asked: the predicted 95th percentile of TTFT.

    predicted * exp(width), where `width` is the half width of the interval of ln(actual / predicted) as `View` has it.
    """
    return max(SHORTEST_S, predicted_ttft_s * math.exp(max(0.0, width)))


class HedgeBudget:
    """A bucket that each request fills by `share` and each hedge empties by 1.

    Hedges never exceed `share` times the requests so far. The bucket starts empty and holds `SAVED_MOST`.
    """

    __slots__ = ("_saved", "share")

    def __init__(self, share: float) -> None:
        """`share` 0: never."""
        self.share = share
        self._saved = 0.0

    def requested(self) -> None:
        """A request came; hedges themselves do not count as requests."""
        self._saved = min(SAVED_MOST, self._saved + self.share)

    def take(self) -> bool:
        """Whether one may be hedged now; if so it is taken off."""
        # A sum of shares may fall short of 1 by rounding.
        if self._saved < 1.0 - 1e-9:
            return False
        self._saved -= 1.0
        return True

    def give_back(self) -> None:
        """It was taken and not used: the first backend answered, or nobody else could be asked."""
        self._saved = min(SAVED_MOST, self._saved + 1.0)
