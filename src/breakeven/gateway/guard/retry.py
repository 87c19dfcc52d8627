"""Which endings before the first byte send a request to another backend, and which speak against a backend.

A client's own mistake (4xx) is its answer wherever it is sent. 429 and 5xx are about the backend. 501 and 505 are about
what was asked, and stay as they are.

When to ask a second backend, and how often that may happen at all.
"""

from __future__ import annotations

import math
from email.utils import parsedate_to_datetime

from breakeven.wire.message import Trouble

BUSY = 429
RETRIED_STATUSES = frozenset({BUSY, 500, 502, 503, 504, 529})
"""529: "overloaded", as Anthropic's API and some proxies say it."""
BROKEN_STATUSES = RETRIED_STATUSES - {BUSY}
RETRIED_TROUBLES: frozenset[Trouble] = frozenset({"refused", "unreachable", "reset", "timeout", "garbage", "forbidden"})
"""All but `cut`, which comes after the first byte, and `too_large`, which the next backend would repeat."""
USUAL_HOLD_S = 1.0
"""How long a backend that said 429 without a time is left alone."""
LONGEST_DIGITS = 9


def status_fails_over(status: int) -> bool:
    """Whether another backend is asked after this status; never once a byte went to the client."""
    return status in RETRIED_STATUSES


def trouble_fails_over(trouble: Trouble) -> bool:
    """Whether another backend is asked after this trouble; never once a byte went to the client."""
    return trouble in RETRIED_TROUBLES


def status_is_broken(status: int) -> bool:
    """Whether this status counts as a failure of the backend in its breaker. 429 holds it off instead."""
    return status in BROKEN_STATUSES


def trouble_is_broken(trouble: Trouble) -> bool:
    """Whether this trouble counts as a failure of the backend. An answer above our own limit does not."""
    return trouble != "too_large"


def retry_after_s(value: bytes | None, unix_s: float) -> float | None:
    """Seconds that a Retry-After header asks for: a number, or an HTTP date against `unix_s`; None: not readable."""
    if not value:
        return None
    text = value.strip()
    if text.isdigit():
        return float(text) if len(text) <= LONGEST_DIGITS else None
    try:
        seconds = parsedate_to_datetime(text.decode("ascii")).timestamp() - unix_s
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return max(0.0, seconds)


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
