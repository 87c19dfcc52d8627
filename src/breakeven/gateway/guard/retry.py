"""Which endings before the first byte send a request to another backend, and which speak against a backend.

A client's own mistake (4xx) is its answer wherever it is sent. 429 and 5xx are about the backend. 501 and 505 are about
what was asked, and stay as they are.
"""

from __future__ import annotations

from email.utils import parsedate_to_datetime

from breakeven.gateway.upstream.types import Trouble

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
