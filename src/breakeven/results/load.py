"""Results under load: what `breakeven bench`, `capacity` and `compare --rate` return, print as JSON and draw.

The JSON of `LoadStudy` and `CapacityStudy` is a public contract (`docs/json.md`): fields are only ever added. Every
time is in seconds, every number recomputable from `events.jsonl`. None means not available, never zero.
"""

from __future__ import annotations

import msgspec

from breakeven.hardware.machine import MachineSpec
from breakeven.hardware.placement import Placed
from breakeven.stats.estimate import Estimate
from breakeven.stats.percentiles import Percentile, Share
from breakeven.traffic.workload import Slo, Workload

LOAD_SCHEMA = "breakeven.load/1"
CAPACITY_SCHEMA = "breakeven.capacity/1"
CHECK_SCHEMA = "breakeven.check/1"


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """One delay over the requests that count. A request that failed counts as infinitely late in the percentiles of
    ttft and e2e, so `mean` is over answered ones only."""

    metric: str
    n: int
    mean: Estimate | None
    percentiles: list[Percentile]


class Steady(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a run in which delays had settled, in seconds from the run's start. `found` False: none found, and
    the numbers are of the whole run."""

    found: bool
    start_s: float
    end_s: float
    reason: str


class EngineState(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine's own `/metrics` said during the run. None: this engine does not tell."""

    samples: int
    running_mean: float | None = None
    running_max: float | None = None
    waiting_mean: float | None = None
    waiting_max: float | None = None
    kv_share_mean: float | None = None
    kv_share_max: float | None = None
    preemptions: float | None = None
    cached_prompt_tokens: float | None = None


class Ceiling(msgspec.Struct, frozen=True, kw_only=True):
    """What the client itself can drive here, measured against a built-in instant server before the run."""

    requests_per_s: float
    stream_events_per_s: float
    processes: int


class ClientHealth(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the client, not the engine, shaped the numbers. `lag` is sent minus due, open loop only."""

    ceiling: Ceiling | None
    requests_share: float | None
    """Of the ceiling, in requests/s; `events_share` the same in stream events/s."""
    events_share: float | None
    lag_p50_s: float | None
    lag_p99_s: float | None
    achieved_over_offered: float | None
    shares_cores_with_engine: bool
    flags: list[str] = []
    """Sentences, such as "the client ran above half of its own ceiling". Empty: nothing wrong."""


class LoadPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate under one load. Counts are of requests due inside the measured part, warm-up excluded."""

    model: str
    load: str
    """Name of the load in this study: "2 req/s", "8 streams", "trace x0.5"."""
    rate_per_s: float | None
    """Offered, requests/s, of several turns conversations/s; None in a closed loop."""
    concurrency: int | None
    requests: int
    answered: int
    errors: dict[str, int]
    """Failed requests by kind; those still unfinished when the run was ended are "cancelled"."""
    anomalies: dict[str, int]
    measured_s: float
    requests_per_s: float
    """Answered per second of the measured part."""
    input_tokens_per_s: float
    output_tokens_per_s: float
    prompt_tokens_mean: float | None
    output_tokens_mean: float | None
    exact_prompts: bool
    """True when every prompt had the number of tokens the schedule asked for, as the engine counted."""
    latencies: list[Latency]
    good: Share | None
    """Requests that met every term of the SLO; None without an SLO."""
    goodput_per_s: float | None
    in_flight_mean: float
    in_flight_max: int
    steady: Steady
    whole_run_ttft_s: Estimate | None
    whole_run_tpot_s: Estimate | None
    engine: EngineState | None
    client: ClientHealth
    joules_per_token: float | None = None
    joules_per_request: float | None = None
    tokens_per_conversation: float | None = None
    seconds_per_conversation: float | None = None
    flagged: list[str] = []
    """Why the machine was not quiet meanwhile."""
    cached_prompt_share: float | None = None
    """Of the prompt tokens of answered requests, those the engine says it had kept; None: it does not say."""


class LoadDifference(msgspec.Struct, frozen=True, kw_only=True):
    """`a` over `b` for one metric at one load, paired request by request and bootstrapped by block of time.

    `winner` is None for "no difference found".
    """

    a: str
    b: str
    metric: str
    """ttft_s, service_ttft_s, tpot_s, e2e_s, output_tokens_per_s, goodput_per_s (all as ratio a over b), and, over all
    rates together, capacity_per_s: the rate that keeps 90 % of the requests good."""
    load: str
    ratio: Estimate
    winner: str | None
    dropped_pairs: int = 0
    """Pairs left out of a ratio of delays because one of the two failed; they count in goodput."""


class Crossing(msgspec.Struct, frozen=True, kw_only=True):
    """Where the curves of two candidates cross, on the axis of load. `rate_per_s` None: not within the range."""

    a: str
    b: str
    metric: str
    rate_per_s: float | None
    low: float | None
    high: float | None
    sentence: str


class LoadModel(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate as it ran: where, with which engine, build and flags."""

    name: str
    source: str
    synthetic: bool
    moe: bool | None
    settings: dict[str, str] = {}
    format: str | None = None
    """Weight format of synthetic weights."""
    placed: Placed | None = None
    """Which layers and experts lay where, with bytes by device; None: the engine does not tell."""


NOTHING_ANSWERED = "every request failed"
"""Stands in the caveat that names the first of them."""


class LoadStudy(msgspec.Struct, frozen=True, kw_only=True):
    """One or more candidates under one or more loads. One candidate: a bench; two or more: a comparison."""

    schema: str = LOAD_SCHEMA
    breakeven_version: str
    started_at: str
    """ISO 8601, UTC."""
    command: str
    seed: int
    stopped_because: str
    """finished, interrupted, budget or failed."""
    machine: MachineSpec
    models: list[LoadModel]
    workload: Workload
    """As asked; where several rates were asked for, with the first of them."""
    slo: Slo | None
    points: list[LoadPoint]
    differences: list[LoadDifference] = []
    crossings: list[Crossing] = []
    headline: str = ""
    """One sentence in plain words."""
    caveats: list[str] = []

    @property
    def unanswered(self) -> str:
        """Where every request under every load failed, how the first ones did; else empty."""
        if not self.points or any(point.answered or not point.requests for point in self.points):
            return ""
        return " ".join(caveat for caveat in self.caveats if NOTHING_ANSWERED in caveat)


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One rate (or number of streams) tried by the capacity search. `meets` None: not decided within the budget."""

    load: float
    requests: int
    good: Share
    meets: bool | None


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """The highest load that meets the SLO. `low` was shown to meet it, `high` not to; None: never seen."""

    value: float | None
    low: float | None
    high: float | None
    trials: list[Trial]
    monotone: bool
    """False: a higher load met the SLO where a lower one failed, and the limit means little."""
    sentence: str


class CapacityStudy(msgspec.Struct, frozen=True, kw_only=True):
    """How much traffic one backend carries. `rate` in requests/s (open loop), `users` talking at once (closed)."""

    schema: str = CAPACITY_SCHEMA
    breakeven_version: str
    started_at: str
    command: str
    seed: int
    stopped_because: str
    machine: MachineSpec
    model: LoadModel
    workload: Workload
    slo: Slo
    target_share: float
    """Share of requests that must meet the SLO, such as 0.95."""
    confidence: float
    rate: Limit | None
    users: Limit | None
    headline: str
    caveats: list[str] = []
    think_s: float | None = None
    """What a user waited between an answer and the next request; None: no number of users was tried."""


class CheckedMetric(msgspec.Struct, frozen=True, kw_only=True):
    """One metric of a new run over the saved one. `verdict`: worse, better, same."""

    metric: str
    load: str
    new_over_old: Estimate
    verdict: str


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """A run against a saved one. `worse` decides the exit status."""

    schema: str = CHECK_SCHEMA
    baseline: str
    worse: bool
    metrics: list[CheckedMetric]
    headline: str
    caveats: list[str] = []
