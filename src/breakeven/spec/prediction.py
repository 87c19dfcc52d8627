"""Predicted steps: what `breakeven predict` returns and prints as JSON. A public contract: fields are only added."""

from __future__ import annotations

from typing import Literal

import msgspec

PREDICT_SCHEMA = "breakeven.predict/1"

Bound = Literal["weights", "kv", "compute", "overhead", "host", "disk", "link"]


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """A predicted value and its interval."""

    value: float
    low: float
    high: float


class PredictedPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One model at one batch and context on one machine.

    `step_s` is one decode step of `batch` sequences of `context` tokens each; `prefill_s` reads one prompt of `context`
    tokens. `bound`: what takes the largest part of the decode step. `memory_bytes` is weights, keys and values of the
    batch, and buffers, on all devices together.
    """

    model: str
    machine: str
    engine: str
    devices: int
    batch: int
    context: int
    format: str
    kind: Literal["dense", "moe"]
    step_s: Span
    decode_tokens_per_s: float
    """Of all sequences together: batch / step_s."""
    prefill_tokens_per_s: float
    prefill_s: Span
    fits: bool
    memory_bytes: float
    bytes_read: float
    """Weights, keys and values that one decode step reads."""
    bound: Bound
    parts_s: dict[str, float]
    """The decode step's time by what takes it."""
    notes: list[str] = []
    """Extrapolations, approximations and what does not fit, in words."""


class PredictedRatio(msgspec.Struct, frozen=True, kw_only=True):
    """Decode speed of `model` over that of `over`, on one machine at one batch and context: above 1 `model` is faster.

    Surer than either speed: errors that both share cancel.
    """

    model: str
    over: str
    machine: str
    batch: int
    context: int
    decode: Span


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """`breakeven predict --json`."""

    schema: str = PREDICT_SCHEMA
    version: str
    points: list[PredictedPoint]
    profiles: dict[str, str]
    """By machine: how its constants came about, in words."""
    ratios: list[PredictedRatio] = []
    """Every other model against the first one named."""
