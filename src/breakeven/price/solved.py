"""Money and power for what people want: tasks solved, not tokens.

    usd per solved task = usd per request / share solved         (a failed task costs as much as a solved one)
    intelligence per dollar = its inverse                        tasks solved for one dollar
    intelligence per watt = share solved / mean power            (the measure of arXiv 2511.07885)

How long answers get differs between models more than speed does: a candidate's own mean output length belongs in its
traffic, and is in the cost of its requests.
"""

from __future__ import annotations

from dataclasses import dataclass

from breakeven.spec.decision import QualityScore
from breakeven.spec.prediction import Span


@dataclass(frozen=True, slots=True, kw_only=True)
class PerSolved:
    """None: no share of solved tasks is known, or no power."""

    usd_per_solved: Span | None = None
    solved_per_usd: Span | None = None
    solved_share_per_w: Span | None = None


def per_solved(quality: QualityScore | None, usd_per_request: Span, power_w: Span | None = None) -> PerSolved:
    """Cost of a solved task under `quality`; nothing where that is a guess from size, which is no share of tasks."""
    share = solved_share(quality)
    if share is None or not share.low > 0:
        return PerSolved()
    cost = over(usd_per_request, share)
    return PerSolved(
        usd_per_solved=cost,
        solved_per_usd=over(share, usd_per_request) if usd_per_request.low > 0 else None,
        solved_share_per_w=over(share, power_w) if power_w is not None and power_w.low > 0 else None,
    )


def solved_share(quality: QualityScore | None) -> Span | None:
    """Share of tasks solved, between 0 and 1; None where quality is unknown or only guessed from size."""
    if quality is None or quality.how not in ("own", "published") or quality.value is None:
        return None
    if not 0 < quality.value <= 1:
        return None
    low = quality.value if quality.low is None else quality.low
    high = quality.value if quality.high is None else quality.high
    return Span(value=quality.value, low=low, high=min(1.0, high))


def over(top: Span, bottom: Span) -> Span:
    """The quotient of two independent intervals, at their ends: never too narrow."""
    return Span(value=top.value / bottom.value, low=top.low / bottom.high, high=top.high / bottom.low)
