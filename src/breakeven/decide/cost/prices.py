"""The price of one replica: as the user says, else an hourly price of the catalogue, named with its date."""

from __future__ import annotations

from breakeven.errors import UserError
from breakeven.price.pricing import check_pricing
from breakeven.spec.chip import Price
from breakeven.spec.cost import Own, Rented
from breakeven.spec.profile import Profile


def replica_price(profile: Profile, said: Own | Rented | None, devices: int) -> tuple[Own | Rented, str]:
    """Price of a replica on `devices` of the profile's machine, and where it comes from, in words.

    What the user says is for a whole replica. Raises UserError where nobody says anything and the catalogue has no
    hourly price.
    """
    if said is not None:
        check_pricing(said)
        return said, "price as given"
    price = hourly(list(profile.chip.prices) if profile.chip is not None else [])
    if price is None:
        raise UserError(
            f"no hourly price of {profile.name} is known; give one with --usd-per-hour 1.50, or what it cost with "
            "--own DOLLARS,YEARS,DOLLARS_PER_KWH"
        )
    many = f"{devices} x " if devices > 1 else ""
    return (
        Rented(usd_per_hour=devices * price.usd, date=price.date),
        f"{many}${price.usd:.3g} an hour ({price.what}, {price.date}; {price.source})",
    )


def hourly(prices: list[Price]) -> Price | None:
    """The middle one of the newest hourly prices, the dearer of two middle ones; None without any."""
    found = [price for price in prices if price.kind == "hour"]
    newest = sorted((p for p in found if p.date == max(q.date for q in found)), key=lambda p: p.usd)
    return newest[len(newest) // 2] if newest else None
