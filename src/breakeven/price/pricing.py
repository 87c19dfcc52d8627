"""What one replica costs, by the hour for machines bought or rented, by the token for an API; and traffic as billed.

A machine's bill has two parts. The standing part runs whether or not anybody asks anything: rent, or purchase spread
over the hardware's life, and the power of an idle machine. The other follows the load: the power above idle, or the
tokens of an API. Power is taken to rise linearly from idle to busy with utilisation, busy meaning at capacity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec

from breakeven.errors import UserError
from breakeven.results.cost import Api, Own, Pricing, Rented


@dataclass(frozen=True, slots=True, kw_only=True)
class PricedTraffic:
    """Means over all requests. `prompt_tokens` as the engine sees them: in a conversation, with its whole history.

    `cached_share`: of the prompt tokens, those that a provider bills at its price for cached input. `turns`: requests
    of one conversation.
    """

    prompt_tokens: float
    output_tokens: float
    cached_share: float = 0.0
    turns: float = 1.0

    def __post_init__(self) -> None:
        if not self.prompt_tokens > 0 or not self.output_tokens > 0:
            raise UserError(
                f"{self.prompt_tokens:g} prompt and {self.output_tokens:g} output tokens: give numbers above 0"
            )
        if not 0 <= self.cached_share <= 1:
            raise UserError(f"a cached share of {self.cached_share:g}: give a share of the prompt between 0 and 1")
        if not self.turns >= 1:
            raise UserError(f"{self.turns:g} turns: a conversation has one or more")


HOURS_PER_YEAR = 365.25 * 24
JOULES_PER_KWH = 3.6e6
MTOK = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """Draw of one replica at the meter, the building's overhead included, in watts."""

    idle_w: float
    busy_w: float

    def joules_per_request(self, capacity_per_s: float) -> float:
        """Energy that one more request adds, given the capacity at which a replica is busy."""
        return (self.busy_w - self.idle_w) / capacity_per_s


def check_pricing(pricing: Pricing) -> None:
    """Raises UserError for a price that is negative, not a number, or spread over no time at all."""
    for field in msgspec.structs.fields(pricing):
        value = getattr(pricing, field.name)
        if isinstance(value, int | float) and not 0 <= value < math.inf:
            raise UserError(f"{field.name} {value:g}: give a number of 0 or more")
    if isinstance(pricing, Own):
        if not pricing.life_years > 0:
            raise UserError("life_years 0: give the years over which the purchase is written off, such as 3")
        if pricing.power_overhead < 1:
            raise UserError(f"power_overhead {pricing.power_overhead:g}: a building takes at least its machines' power")
        if pricing.idle_w is not None and pricing.busy_w is not None and pricing.busy_w < pricing.idle_w:
            raise UserError(
                f"busy_w {pricing.busy_w:g} is below idle_w {pricing.idle_w:g}; give them the other way round"
            )


def with_watts(pricing: Own, idle_w: float | None, busy_w: float | None, devices: int = 1) -> Own:
    """The price with the watts that it leaves out, from those of one of the machine's `devices`; None: not known."""
    return msgspec.structs.replace(
        pricing,
        idle_w=devices * idle_w if pricing.idle_w is None and idle_w is not None else pricing.idle_w,
        busy_w=devices * busy_w if pricing.busy_w is None and busy_w is not None else pricing.busy_w,
    )


def power_of(
    pricing: Pricing, idle_w: float | None = None, busy_w: float | None = None, devices: int = 1
) -> Power | None:
    """Power of a replica: what the pricing says of it, else `devices` times `idle_w` and `busy_w`; None: not known.

    An API's power is its provider's and not known.
    """
    if isinstance(pricing, Api):
        return None
    overhead = 1.0
    if isinstance(pricing, Own):
        full = with_watts(pricing, idle_w, busy_w, devices)
        idle_w, busy_w, overhead = full.idle_w, full.busy_w, full.power_overhead
    else:
        idle_w, busy_w = (None if w is None else devices * w for w in (idle_w, busy_w))
    if idle_w is None or busy_w is None:
        return None
    return Power(idle_w=overhead * idle_w, busy_w=overhead * max(idle_w, busy_w))


NOT_BILLED = "its electricity is NOT in the bill"
"""Begins what is said of a machine whose watts nobody knows."""


def unpowered(pricing: Pricing, power: Power | None) -> str | None:
    """That the bill of a machine that is bought lacks its electricity, and which watts to give; None: it does not."""
    if not isinstance(pricing, Own) or power is not None or not pricing.usd_per_kwh > 0:
        return None
    missing = [word for word, watts in (("idle", pricing.idle_w), ("busy", pricing.busy_w)) if watts is None]
    when = f" when {missing[0]}" if len(missing) == 1 else ""
    return f"{NOT_BILLED}: nobody says what it draws{when}; give its {' and '.join(missing)} watts beside its price"


def machine_usd_per_hour(pricing: Own | Rented, power: Power | None = None, busy: float = 0.0) -> float:
    """Dollars an hour of one replica that is busy for a share `busy` of its time; the verdict's and the gateway's.

    Verdicts count what it costs while it waits (0) and what a request adds (`usd_per_added_request`); the gateway
    charges a request its seconds of a busy machine (1).
    """
    match pricing:
        case Rented():
            return pricing.usd_per_hour
        case Own():
            yearly = pricing.usd / pricing.life_years + pricing.yearly_upkeep_usd
            watts = 0.0 if power is None else power.idle_w + busy * (power.busy_w - power.idle_w)
            return yearly / HOURS_PER_YEAR + watts / 1000 * pricing.usd_per_kwh


def idle_usd_per_hour(pricing: Pricing, power: Power | None = None) -> float:
    """What no load costs: one replica that waits; nothing for an API."""
    return 0.0 if isinstance(pricing, Api) else machine_usd_per_hour(pricing, power)


def usd_per_added_request(
    pricing: Pricing, traffic: PricedTraffic, capacity_per_s: float, power: Power | None = None
) -> float:
    """Dollars that one more request adds on replicas that run anyway. `capacity_per_s` does not matter for an API."""
    match pricing:
        case Rented():
            return 0.0
        case Own():
            joules = 0.0 if power is None else power.joules_per_request(capacity_per_s)
            return joules / JOULES_PER_KWH * pricing.usd_per_kwh
        case Api():
            cached = pricing.usd_per_mtok_cached_input
            if cached is None:
                cached = pricing.usd_per_mtok_input
            share = traffic.cached_share
            input_usd = traffic.prompt_tokens * ((1 - share) * pricing.usd_per_mtok_input + share * cached)
            return (input_usd + traffic.output_tokens * pricing.usd_per_mtok_output) / MTOK
