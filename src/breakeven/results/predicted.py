"""Predicted steps and simulated traffic: what `breakeven predict` and `breakeven simulate` return and print as JSON.

Public contracts: fields are only added.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from breakeven.hardware.placement import Placed
from breakeven.stats.estimate import Estimate
from breakeven.traffic.workload import Slo, Workload

PREDICT_SCHEMA = "breakeven.predict/1"

Bound = Literal["weights", "kv", "compute", "overhead", "host", "disk", "link"]


class PredictedPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One model at one batch and context on one machine.

    `step_s` is one decode step of `batch` sequences of `context` tokens each; `prefill_s` reads one prompt of `prompt`
    tokens. `format`: the model's own, and of a file what it calls its mixture. `bound`: what takes the largest part of
    the decode step. `memory_bytes` is weights, keys and values of the batch, and buffers, on all devices together.
    """

    model: str
    machine: str
    engine: str
    devices: int
    batch: int
    context: int
    format: str
    kind: Literal["dense", "moe"]
    step_s: Estimate
    decode_tokens_per_s: float
    """Of all sequences together: batch / step_s."""
    prefill_tokens_per_s: float
    prefill_s: Estimate
    fits: bool
    memory_bytes: float
    bytes_read: float
    """Weights, keys and values that one decode step reads."""
    bound: Bound
    parts_s: dict[str, float]
    """The decode step's time by what takes it."""
    notes: list[str] = []
    """Extrapolations, approximations and what does not fit, in words."""
    prompt: int = 0
    """Tokens of the prompt that `prefill_s` is of."""
    reserve: int = 0
    """Tokens that each sequence's cache is made for: memory alone, speed is that of `context`."""
    kv: str = "f16"
    """Type of keys and values."""
    memory: dict[str, float] = {}
    """`memory_bytes` by what takes it: weights, kv, state, compute (the engine's buffers), output."""
    placed: Placed | None = None
    """What llama.cpp puts where, with the memory of each place; None: everything lies on one device."""
    host_bytes: float = 0.0
    """Memory needed beside the devices."""
    lacking: str | None = None
    """Which memory is too small for it, with the numbers; None: none is, as far as is known."""
    prefill_speed: Estimate | None = None
    """`prefill_tokens_per_s` with its interval, from prompts that were left out of the fit."""
    why: list[str] = []
    """What stands behind decoding and reading prompts: the class of machine, its records, how far they were off."""
    placement: str | None = None
    """Where it lies, in words, on a machine whose devices have memory of their own; also where all lies on one."""


class PredictedRatio(msgspec.Struct, frozen=True, kw_only=True):
    """Speeds of `model` over those of `over`, on one machine at one batch and context: above 1 `model` is faster.

    Decode and prefill apart: one may go to either model. Surer than either speed: errors that both share cancel.
    """

    model: str
    over: str
    machine: str
    batch: int
    context: int
    decode: Estimate
    prefill: Estimate | None = None
    """Of reading one prompt of `prompt` tokens."""
    prompt: int = 0


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """`breakeven predict --json`."""

    schema: str = PREDICT_SCHEMA
    version: str
    points: list[PredictedPoint]
    profiles: dict[str, str]
    """By machine: how its constants came about, in words."""
    ratios: list[PredictedRatio] = []
    """Every other model against the first one named."""


SIMULATE_SCHEMA = "breakeven.simulate/1"


class SimulatedPercentile(msgspec.Struct, frozen=True, kw_only=True):
    """One percentile. `seconds` None: too few requests, or so many were refused that there is none."""

    p: float
    seconds: Estimate | None


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
    good_share: Estimate | None
    """Of the requests that count; None without an SLO. `low` is the pessimistic end."""
    goodput_per_s: Estimate | None
    requests_per_s: Estimate
    """Answered over the time from first arrival to last token."""
    output_tokens_per_s: Estimate
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
    kv: str = "f16"
    """Type of keys and values."""
