"""What a study and a gateway's file both say of whatever may serve: its price, a hosted model's speed, where it stands.

Apart from the study's own keys, which the gateway's workers do without.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Self

from breakeven.answer.study.values import Above0, AtLeast1, Date, FilePart, Power, SecondsAbove0, Usd, one_of, read_as
from breakeven.results.cost import Api, Own, Pricing, Rented

Location = Literal["edge", "on-premise", "cloud"]
EngineName = Annotated[str, one_of("llama.cpp", "vllm")]


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnPrice(FilePart):
    """Bought hardware of one replica."""

    usd: Usd
    years: Above0
    usd_per_kwh: Usd
    idle_w: Power | None = None
    busy_w: Power | None = None
    overhead: AtLeast1 = 1.0
    upkeep_usd_per_year: Usd = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RentedPrice(FilePart):
    """A machine by the hour, all its devices together."""

    usd_per_hour: Usd
    date: Date | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPrice(FilePart):
    """A hosted model, dollars per million tokens."""

    input: Usd
    output: Usd
    cached_input: Usd | None = None
    date: Date | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceTerms(FilePart):
    """Exactly one kind of price, and who says so."""

    own: OwnPrice | None = None
    rented: RentedPrice | None = None
    api: TokenPrice | None = None
    source: str | None = None

    def as_typed(self) -> Self:
        if sum(kind is not None for kind in (self.own, self.rented, self.api)) != 1:
            raise ValueError("exactly one of own, rented and api")
        return self

    @property
    def pricing(self) -> Pricing:
        """The price as results hold it."""
        if self.own is not None:
            own = self.own
            return Own(
                usd=own.usd,
                life_years=own.years,
                usd_per_kwh=own.usd_per_kwh,
                idle_w=own.idle_w,
                busy_w=own.busy_w,
                power_overhead=own.overhead,
                yearly_upkeep_usd=own.upkeep_usd_per_year,
            )
        if self.rented is not None:
            return Rented(usd_per_hour=self.rented.usd_per_hour, date=self.rented.date)
        assert self.api is not None
        return Api(
            usd_per_mtok_input=self.api.input,
            usd_per_mtok_output=self.api.output,
            usd_per_mtok_cached_input=self.api.cached_input,
            date=self.api.date,
        )

    @classmethod
    def of(cls, pricing: Pricing) -> PriceTerms:
        """The price as it stands in a file: `PriceTerms.of(x).pricing` is `x`."""
        if isinstance(pricing, Own):
            own = OwnPrice(
                usd=pricing.usd,
                years=pricing.life_years,
                usd_per_kwh=pricing.usd_per_kwh,
                idle_w=pricing.idle_w,
                busy_w=pricing.busy_w,
                overhead=pricing.power_overhead,
                upkeep_usd_per_year=pricing.yearly_upkeep_usd,
            )
            return cls(own=own)
        if isinstance(pricing, Rented):
            return cls(rented=RentedPrice(usd_per_hour=pricing.usd_per_hour, date=pricing.date))
        api = TokenPrice(
            input=pricing.usd_per_mtok_input,
            output=pricing.usd_per_mtok_output,
            cached_input=pricing.usd_per_mtok_cached_input,
            date=pricing.date,
        )
        return cls(api=api)


PRICE = read_as(PriceTerms, lambda price: price.pricing)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSpeed(FilePart):
    """How fast a hosted model answers, as its provider or somebody's measurement says; `source` says who."""

    ttft_s: SecondsAbove0
    tokens_per_s: Above0
    source: str
