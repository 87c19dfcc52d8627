"""Prices of serving and what they come to at a load: `breakeven cost --json`. A public contract: only added to."""

from __future__ import annotations

import msgspec

from breakeven.stats.estimate import Estimate

COST_SCHEMA = "breakeven.cost/1"
ENDLESS = "its bill has no upper end"
"""Begins what is said of a machine whose fleets, at the low end of their interval, serve nothing."""


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
    replicas: Estimate | None
    """Whole machines; None for an API."""
    utilisation: float | None
    """Share of the replicas' saturation throughput in use, computed; of what they carry, where that is not known."""
    usd_per_hour: Estimate
    usd_per_request: Estimate
    usd_per_mtok_output: Estimate
    """Everything charged to output tokens."""
    usd_per_mtok_input_share: float | None = None
    """$/Mtok of input when the cost is split by the time prefill and decode take."""
    usd_per_mtok_output_share: float | None = None
    usd_per_conversation: Estimate | None = None
    usd_per_solved: Estimate | None = None
    """Of one task solved; None where no share of solved tasks is known."""
    solved_per_usd: Estimate | None = None
    """Intelligence per dollar: tasks solved for one dollar."""
    solved_share_per_w: Estimate | None = None
    """Intelligence per watt: share of tasks solved over the mean power of all replicas."""
    power_w: Estimate | None = None
    """Mean power of all replicas, the building's overhead included."""
    joules_per_output_token: Estimate | None = None
    energy_usd_per_hour: Estimate | None = None
    capacity_used: float | None = None
    """Load over what so many replicas carry together under the service level."""


class BreakEven(msgspec.Struct, frozen=True, kw_only=True):
    """The load from which `to` is cheaper than `from_`, for good or until the next flip. `rate_per_s` None: never."""

    from_: str = msgspec.field(name="from")
    to: str
    rate_per_s: Estimate | None
    meaning: str
    utilisation: float | None = None
    """There: share of `to`'s saturation throughput in use, or of `from`'s where `to` is an API."""


class WhatIf(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate changed in one thing, the others as they are."""

    candidate: str
    change: str
    """precision, devices, speculation or price."""
    label: str
    """To what: FP8, 2 devices, 4 drafted tokens, $1.20/h."""
    capacity_per_s: Estimate | None
    capacity_ratio: float | None
    """Capacity after over before; None where the price alone changes."""
    rate_per_s: float
    """Load at which the two costs below are."""
    usd_per_request_before: float | None
    usd_per_request: float | None
    break_even: list[BreakEven]
    """Against every other candidate, after the change."""
    meaning: str


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """`breakeven cost --json`: candidates in order, each over the same loads, and every flip between them."""

    schema: str = COST_SCHEMA
    version: str
    candidates: dict[str, list[CostPoint]]
    pricing: dict[str, Pricing]
    capacity_per_s: dict[str, Estimate | None]
    break_even: list[BreakEven]
    idle_usd_per_hour: dict[str, float] = {}
    """What no load costs: one replica that waits."""
    what_if: list[WhatIf] = []
    notes: list[str] = []
    """What the numbers rest on, in words: where capacities, prices and quality come from."""
