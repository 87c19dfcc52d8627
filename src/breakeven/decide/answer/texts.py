"""Numbers as people read them."""

from __future__ import annotations

from breakeven.spec.prediction import Span


def span_text(span: Span) -> str:
    return f"{span.value:.3g} ({span.low:.3g} to {span.high:.3g})"


def usd_text(span: Span) -> str:
    digits = 2 if span.value >= 0.1 else 4
    if span.high - span.low < 10**-digits:
        return f"${span.value:.{digits}f}"
    return f"${span.value:.{digits}f} (${span.low:.{digits}f} to ${span.high:.{digits}f})"


def rate_text(per_s: float) -> str:
    if per_s >= 0.1:
        return f"{per_s:.3g} requests/s"
    if per_s * 60 >= 0.1:
        return f"{per_s * 60:.3g} requests a minute"
    return f"{per_s * 3600:.3g} requests an hour"
