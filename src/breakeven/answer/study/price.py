"""What a study and a gateway's file both say of whatever may serve: its price, a hosted model's speed, where it stands.

Apart from the study's own keys, which the gateway's workers do without.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Self

from breakeven.answer.study.values import (
    LIST,
    Above0,
    AtLeast1,
    Date,
    FilePart,
    Power,
    SecondsAbove0,
    Usd,
    one_of,
    read_as,
    read_by,
)
from breakeven.errors import UserError
from breakeven.hardware.placement import Placement, placement_of
from breakeven.results.cost import Api, Own, Pricing, Rented

Location = Literal["edge", "on-premise", "cloud"]
EngineName = Annotated[str, one_of("llama.cpp", "llama-server", "mlx", "ollama", "sglang", "vllm")]


def _word(value: object) -> object:
    """Numbers and lists of YAML as they would be typed."""
    return ",".join(map(str, value)) if isinstance(value, list) else value if value is None else str(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementKeys(FilePart):
    """Where weights are to lie, in the words of the command line's options. None: as the engine's own fitting chooses.

    `gpu_layers`: auto, all or how many. `cpu_moe`: auto, or the layers whose experts stay in host memory. `device`:
    CUDA0,CUDA1. `tensor_split`: 3,1. `override_tensor`: a list of PATTERN=PLACE.
    """

    gpu_layers: Annotated[str | None, read_by(_word)] = None
    cpu_moe: Annotated[str | None, read_by(_word)] = None
    device: Annotated[str | None, read_by(_word)] = None
    tensor_split: Annotated[str | None, read_by(_word)] = None
    override_tensor: Annotated[tuple[str, ...], LIST] = ()

    def placement(self) -> Placement:
        """What is asked for. Raises ValueError that says what would be right."""
        try:
            return placement_of(
                self.gpu_layers, self.cpu_moe, self.device, self.tensor_split, overrides=self.override_tensor
            )
        except UserError as error:
            raise ValueError(str(error).partition(": ")[2]) from None

    @staticmethod
    def of(placement: Placement) -> PlacementKeys:
        """The keys that give this placement."""
        return PlacementKeys(
            gpu_layers=None if placement.gpu_layers == "auto" else str(placement.gpu_layers),
            cpu_moe=None if placement.cpu_moe is None else str(placement.cpu_moe),
            device=",".join(placement.devices) or None,
            tensor_split=",".join(f"{share:g}" for share in placement.tensor_split) or None,
            override_tensor=placement.overrides,
        )


PLACED = read_as(PlacementKeys, PlacementKeys.placement)


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

    def as_typed(self) -> Self:
        if self.idle_w is not None and self.busy_w is not None and self.busy_w < self.idle_w:
            raise ValueError(f"busy watts of at least the idle ones; found idle {self.idle_w:g}, busy {self.busy_w:g}")
        return self


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
