"""What `breakeven decide --from-log --json` prints: a decision on real traffic, beside the one made before it.

A public contract: fields are only added. docs/json-gateway.md describes each.
"""

from __future__ import annotations

import msgspec

from breakeven.spec.decision import Decision, Verdict
from breakeven.spec.prediction import Span

DECIDE_LOG_SCHEMA = "breakeven.decide_log/1"


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    """The whole traffic served by one candidate alone, sized for the logged load. None: not known."""

    candidate: str
    replicas: Span | None
    usd_per_hour: Span | None
    usd: Span | None
    """Over the logged period."""
    ruled_out: list[str]


class LoggedTraffic(msgspec.Struct, frozen=True, kw_only=True):
    """What the log holds."""

    directories: list[str]
    requests: int
    left_out: int
    """Records that are no traffic: refused, shadows, repeats, embeddings."""
    estimated: int
    """Requests whose lengths are the router's estimate, as their backend told none or they did not end well."""
    first_s: float
    span_s: float
    rate_per_s: float
    usd: float
    """What it cost, as the gateway counted it."""
    cached_share: float | None
    by_backend: dict[str, int]
    trace: str
    """The file of arrivals and lengths, which `breakeven bench --trace` and `simulate` replay."""


class LogDecision(msgspec.Struct, frozen=True, kw_only=True):
    """`stands`: the same outcome, by the same candidates; None where there was no verdict before."""

    schema: str = DECIDE_LOG_SCHEMA
    version: str
    traffic: LoggedTraffic
    before: Verdict | None
    before_load_per_s: float | None
    before_from: str | None
    """The saved decision it was read from; None: the study was decided again as it stands."""
    stands: bool | None
    sentence: str
    fleets: list[Fleet]
    left_out_backends: list[str]
    decision: Decision
