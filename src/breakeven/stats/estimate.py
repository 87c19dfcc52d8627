"""A number with its interval, and the point where every part of Breakeven meets."""

from __future__ import annotations

from typing import Literal

import msgspec

Provenance = Literal["measured", "predicted", "published"]


class Estimate(msgspec.Struct, frozen=True):
    """A value, its 95 % interval, how many independent blocks it rests on, and where it comes from.

    `low` and `high` are None when the sample is too small to give an interval.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    provenance: Provenance = "measured"


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate at one load. None: not available here."""

    model: str
    streams: int
    prompt_tokens: int
    output_tokens: int
    decode_tokens_per_s: Estimate | None
    """All streams together, over the part of a block in which every stream decodes."""
    prefill_tokens_per_s: Estimate | None
    ttft_s: Estimate | None
    itl_s: Estimate | None
    joules_per_token: Estimate | None = None
