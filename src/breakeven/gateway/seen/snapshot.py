"""A running gateway at one moment: what the live page shows and `/admin/state` answers. Fields are only added."""

from __future__ import annotations

import msgspec

from breakeven.gateway.seen.record import DecisionRecord

SNAPSHOT_SCHEMA = "breakeven.gateway/1"


class BackendState(msgspec.Struct, kw_only=True):
    """One backend. Counts and sums since the gateway started; the page takes differences."""

    name: str
    kind: str
    place: str
    model: str | None
    state: str
    """ready, loading, unloaded, draining, failed, away."""
    breaker: str
    """closed, open, half_open: the worst of the workers."""
    limit: int
    in_flight: int
    queued: int
    engine_running: float | None
    engine_waiting: float | None
    kv_share: float | None
    requests: int
    ok: int
    errors: int
    cut: int
    cancelled: int
    retried: int
    hedged: int
    explored: int
    shed: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    usd: float
    usd_elsewhere: float
    good: int
    judged: int
    """Requests that asked for a TTFT or TPOT; `good` of them got it."""
    ttft_buckets: list[int]
    """Counts below each of `Snapshot.time_bounds_s`, not cumulative; the last is what is above all."""
    tpot_buckets: list[int]
    ttft_ratio_buckets: list[int]
    """Of actual / predicted, below each of `Snapshot.ratio_bounds`."""
    tpot_ratio_buckets: list[int]
    ttft_factor: float
    tpot_factor: float
    expert_load: list[float] | None = None
    """Share of routed tokens by expert, where the backend reports it."""
    load_progress: float | None = None
    usd_per_hour: float | None = None


class KeyUsage(msgspec.Struct, kw_only=True):
    """One key. `model` usage is added up over keys."""

    name: str
    requests: int
    tokens: int
    usd: float


class ArmState(msgspec.Struct, kw_only=True):
    """One arm of an experiment."""

    name: str
    backend: str
    requests: int
    means: dict[str, float]
    """By metric: ttft, tpot, e2e (seconds), usd, output_tokens, errors, refusals (shares), distinct_answers (share)."""


class Difference(msgspec.Struct, kw_only=True):
    """Treatment against control in one metric. `ratio` of means, with an interval that holds at every look."""

    metric: str
    ratio: float | None
    low: float | None
    high: float | None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None


class ExperimentState(msgspec.Struct, kw_only=True):
    """An experiment so far. `state`: running, stopped, stepped_back, done. `share`: the treatment's now."""

    name: str
    kind: str
    model: str
    state: str
    share: float
    winner: str | None
    reason: str
    arms: list[ArmState]
    differences: list[Difference]


class Snapshot(msgspec.Struct, kw_only=True):
    """Everything at once."""

    schema: str = SNAPSHOT_SCHEMA
    version: str
    time_s: float
    uptime_s: float
    workers: int
    draining: bool
    generation: int
    """Raised by every reload."""
    backends: list[BackendState]
    policies: list[dict[str, object]]
    """`model`, `policy`, `backends`, `ttft_s`, `tpot_s` of each public model."""
    keys: list[KeyUsage]
    models: list[KeyUsage]
    experiments: list[ExperimentState]
    recent: list[DecisionRecord]
    time_bounds_s: list[float]
    ratio_bounds: list[float]
    log_dropped: int
    warnings: list[str]
