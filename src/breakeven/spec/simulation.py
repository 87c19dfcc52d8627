"""Simulated traffic: what `breakeven simulate` returns and prints as JSON. A public contract: fields are only added."""

from __future__ import annotations

import msgspec

from breakeven.spec.prediction import Span
from breakeven.spec.workload import Slo, Workload

SIMULATE_SCHEMA = "breakeven.simulate/1"

SIMULATED = ("ttft_s", "tpot_s", "e2e_s", "gap_s")
"""Delays of a request from its arrival: to its first token, a token after it, to its last one, longest wait between."""


class SimulatedPercentile(msgspec.Struct, frozen=True, kw_only=True):
    """One percentile. `seconds` None: too few requests, or so many were refused that there is none."""

    p: float
    seconds: Span | None


class SimulatedLatency(msgspec.Struct, frozen=True, kw_only=True):
    """One delay over the requests that count; refused ones are infinitely late."""

    metric: str
    percentiles: list[SimulatedPercentile]


class OverTime(msgspec.Struct, frozen=True, kw_only=True):
    """Means over equal spans of the run, all replicas together."""

    time_s: list[float]
    """Middle of each span."""
    decoding: list[float]
    """Sequences."""
    waiting: list[float]
    """Requests."""
    kv_tokens: list[float]
    """Keys and values in use, in tokens."""
    busy: list[float]
    """Replicas that compute."""


class SimulatedPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One load. Intervals come from simulating at both ends of the step model's."""

    load: str
    rate_per_s: float | None
    """Offered, requests/s; None in a closed loop."""
    concurrency: int | None
    requests: int
    """That count: the warm-up is left out."""
    refused: int
    """Longer than the engine's context, or than its keys and values."""
    latencies: list[SimulatedLatency]
    good_share: Span | None
    """Of the requests that count; None without an SLO. `low` is the pessimistic end."""
    goodput_per_s: Span | None
    requests_per_s: Span
    """Answered over the time from first arrival to last token."""
    output_tokens_per_s: Span
    utilisation: float
    """Share of the replicas' time in which they compute."""
    replicas_mean: float
    """More than asked for only while an autoscaled fleet is larger."""
    in_flight_mean: float
    steps: int
    preemptions: int
    cached_prompt_share: float
    """Of all prompt tokens, those that a prefix cache saved."""
    queue_grows: bool
    """More comes in than goes out."""
    over_time: OverTime | None


class SimulationStudy(msgspec.Struct, frozen=True, kw_only=True):
    """`breakeven simulate --json`."""

    schema: str = SIMULATE_SCHEMA
    version: str
    model: str
    machine: str
    engine: str
    devices: int
    format: str
    policy: dict[str, int | float | bool | None]
    """How the engine fills its steps; `kv_tokens` is what fits on one replica."""
    replicas: str
    """How many, how they are balanced, and whether their number changes, in words."""
    workload: Workload
    slo: Slo | None
    points: list[SimulatedPoint]
    profile: str
    """How the step model's constants came about, in words."""
    notes: list[str]
    seed: int
