"""Prices of serving and what they come to at a load: `breakeven cost --json`. A public contract: only added to."""

from __future__ import annotations

import msgspec

from breakeven.spec.prediction import Span

COST_SCHEMA = "breakeven.cost/1"


class Own(msgspec.Struct, frozen=True, kw_only=True, tag="own", tag_field="kind"):
    """Bought hardware of one replica: purchase spread over its life, and the power it draws, idle and busy."""

    usd: float
    life_years: float
    usd_per_kwh: float
    idle_w: float | None = None
    busy_w: float | None = None
    power_overhead: float = 1.0
    """Power of the building over power of the machine (PUE)."""
    yearly_upkeep_usd: float = 0.0


class Rented(msgspec.Struct, frozen=True, kw_only=True, tag="rented", tag_field="kind"):
    """A machine by the hour, running whether used or not; power is in the price."""

    usd_per_hour: float
    date: str | None = None


class Api(msgspec.Struct, frozen=True, kw_only=True, tag="api", tag_field="kind"):
    """A hosted model, by the token: costs follow the load exactly, and no load costs nothing."""

    usd_per_mtok_input: float
    usd_per_mtok_output: float
    usd_per_mtok_cached_input: float | None = None
    date: str | None = None


Pricing = Own | Rented | Api


class CostPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate at one load. Intervals come from that of its capacity; None: not available."""

    rate_per_s: float
    replicas: Span | None
    """Whole machines; None for an API."""
    utilisation: float | None
    """Load over the replicas' capacity under the SLO, computed."""
    usd_per_hour: Span
    usd_per_request: Span
    usd_per_mtok_output: Span
    """Everything charged to output tokens."""
    usd_per_mtok_input_share: float | None = None
    """$/Mtok of input when the cost is split by the time prefill and decode take."""
    usd_per_mtok_output_share: float | None = None
    usd_per_conversation: Span | None = None
    usd_per_solved: Span | None = None
    joules_per_output_token: Span | None = None
    energy_usd_per_hour: Span | None = None


class BreakEven(msgspec.Struct, frozen=True, kw_only=True):
    """The load from which `to` is cheaper than `from_`, for good or until the next flip. `rate_per_s` None: never."""

    from_: str = msgspec.field(name="from")
    to: str
    rate_per_s: Span | None
    meaning: str


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """`breakeven cost --json`: candidates in order, each over the same loads, and every flip between them."""

    schema: str = COST_SCHEMA
    version: str
    candidates: dict[str, list[CostPoint]]
    pricing: dict[str, Pricing]
    capacity_per_s: dict[str, Span | None]
    break_even: list[BreakEven]
