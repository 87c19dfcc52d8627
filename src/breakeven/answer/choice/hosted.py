"""Models behind somebody's API, beside those that run here: how able, what they cost, when renting is cheaper.

Prices are those of a dated list. A host's speed and the bits that it serves are on no list: no limit of speed is held
against it, its quality is that of 16 bits, and the answer says so. Shapes: W worlds, H hosted models.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import resources

import msgspec
import numpy as np

from breakeven.answer.choice.machine import Site
from breakeven.answer.choice.uses import Wish
from breakeven.answer.choice.worlds import WORLDS, DrawnWorlds, Floats, areas_of
from breakeven.forecast.shapes import shape_of
from breakeven.model.catalogue import find
from breakeven.model.quality.ability import Ability, abilities, answer_tokens, joint
from breakeven.results.choose import HostedRow
from breakeven.stats.estimate import Estimate

MOST_ROWS = 3
SURE = 0.8
"""A hosted model that does better than the pick in so many worlds surely does."""
MTOK = 1e6


class HostedPrice(msgspec.Struct, frozen=True, kw_only=True):
    """What a host asks for one model, in dollars a million tokens.

    `name`: the model's name there. `usd_cached`: of prompt tokens that it remembers; None: no such price. `context`:
    tokens that it takes; None: not said.
    """

    model: str
    host: str
    name: str
    usd_in: float
    usd_out: float
    usd_cached: float | None
    context: int | None

    def usd(self, prompt: float, output: float) -> float:
        """Of one request of which nothing is remembered."""
        return (prompt * self.usd_in + output * self.usd_out) / MTOK


class HostedPrices(msgspec.Struct, frozen=True, kw_only=True):
    """The data file, as `scripts/make_hosted.py` writes it. `date`: of the list."""

    about: str
    date: str
    source: str
    licence: str
    prices: list[HostedPrice]


@lru_cache(maxsize=1)
def hosted_prices() -> HostedPrices:
    """The prices that are shipped."""
    data = resources.files("breakeven.answer").joinpath("data", "hosted.json").read_bytes()
    return msgspec.json.decode(data, type=HostedPrices)


def hosted_rows(
    wish: Wish, place: Site, worlds: DrawnWorlds | None, pick: int | None, seed: int
) -> tuple[list[HostedRow], list[str]]:
    """At most three hosted models, the cheapest first, and what must be said of them.

    Beside a pick (`pick`: its place among the worlds' options) those that are abler in most worlds, and where the
    machine's rent is known the pick itself: a less able one that costs money is no gain. Without a pick the ablest.
    """
    if wish.offline_only:
        return [], ["nothing hosted is among the candidates, as asked"]
    prices = _cheapest(wish)
    said = (
        f"hosted models: prices of {hosted_prices().date}; their speed and the bits that a host serves are not known "
        "here, so no limit of speed is held against them and their quality is that of 16 bits"
    )
    if not prices:
        return [], ["no hosted model on the list of prices keeps --context and --licence"]
    told, quality_WH, better_H = _drawn(prices, wish, worlds, pick, seed)
    quality_H = np.mean([[each.value.value for each in told[area]] for area in told], axis=0)
    usd_H = np.array([each.usd(_sent(wish), wish.output) for each in prices])
    # A guess from size wins many worlds by its wide band alone.
    scored_H = np.all([[each.source != "size" for each in told[area]] for area in told], axis=0)
    pick_name = None if worlds is None or pick is None else worlds.models[worlds.of_O[pick]]
    same = [h for h, each in enumerate(prices) if each.model == pick_name]
    others = [h for h in range(len(prices)) if scored_H[h] and h not in same]
    some = [h for h in others if better_H is None or better_H[h] > 0.5]
    front = [h for h in some if not any(usd_H[o] <= usd_H[h] and quality_H[o] > quality_H[h] for o in some)]
    # The pick itself behind an API: from which load on is renting a machine for it cheaper?
    rented = same if place.usd_per_month is not None else []
    if not front and not rented:
        return [], [f"no hosted model is abler than the pick in most worlds (prices of {hosted_prices().date})"]
    by_usd = sorted(front, key=lambda h: float(usd_H[h]))
    sure = [h for h in by_usd if better_H is not None and better_H[h] >= SURE]
    ablest = sorted(front, key=lambda h: -float(quality_H[h]))
    wanted = [*by_usd[:1], *sure[:1], *ablest] if better_H is not None else ablest
    chosen = list(dict.fromkeys([*rented, *wanted]))[:MOST_ROWS]
    rows = [
        _row(prices[h], [told[area][h] for area in told], quality_WH[:, h], float(quality_H[h]),
             None if better_H is None or h in same else float(better_H[h]), wish, place)
        for h in sorted(chosen, key=lambda h: float(usd_H[h]))
    ]  # fmt: skip
    return rows, [said]


def _drawn(
    prices: tuple[HostedPrice, ...], wish: Wish, worlds: DrawnWorlds | None, pick: int | None, seed: int
) -> tuple[dict[str, tuple[Ability, ...]], Floats, Floats | None]:
    """What is known by area, (W, H) qualities, and (H,) shares of worlds in which each does better than the pick."""
    areas, _ = areas_of(wish)
    names = [each.model for each in prices]
    told = {area: tuple(abilities(names, area, wish.own)) for area in areas}
    here = [] if worlds is None or pick is None else [worlds.models[worlds.of_O[pick]]]
    # Both in the same worlds: what two models' abilities have in common counts for neither.
    drawn = np.mean([joint([*here, *names], area, wish.own).draws(WORLDS, seed) for area in areas], axis=0)
    if worlds is None or pick is None:
        return told, np.asarray(drawn), None
    kept_W = worlds.quality_WO[:, pick] / worlds.ability_WM[:, worlds.of_O[pick]]
    return told, drawn[:, 1:], np.asarray((drawn[:, 1:] > (drawn[:, 0] * kept_W)[:, None]).mean(axis=0))


def _row(
    price: HostedPrice,
    told: list[Ability],
    quality_W: Floats,
    quality: float,
    better: float | None,
    wish: Wish,
    place: Site,
) -> HostedRow:
    entry = find(price.model)
    usd = price.usd(_sent(wish), wish.output)
    low, high = np.percentile(quality_W, (2.5, 97.5))
    length = next((a for each in told if (a := answer_tokens(price.model, each.area, wish.own)) is not None), None)
    notes = ["; ".join(f"{each.area}: {each.note}" for each in told)]
    if length is not None and length.value.value > wish.output:
        dear = 1000 * price.usd(_sent(wish), length.value.value)
        notes.append(f"answers of {length.value.value:,.0f} tokens ({length.source}): {dear:.3g} dollars per 1,000")
    rent, most = place.usd_per_month, wish.max_usd_per_month
    return HostedRow(
        model=price.model,
        hub_id=entry.facts.answers,
        host=price.host,
        name=price.name,
        kind="moe" if shape_of(price.model).moe else "dense",
        quality=Estimate(quality, min(float(low), quality), max(float(high), quality)),
        better=better,
        usd_per_1000_requests=1000 * usd,
        usd_per_mtok_in=price.usd_in,
        usd_per_mtok_out=price.usd_out,
        usd_per_mtok_cached=price.usd_cached,
        requests_for_rent=None if rent is None else rent / usd,
        requests_in_limit=None if most is None else most / usd,
        context=price.context,
        licence=entry.facts.licence,
        notes=notes,
    )


def _sent(wish: Wish) -> int:
    """Tokens that a host is sent and bills: the history too, which here lies in the cache."""
    return wish.context - wish.output


def _cheapest(wish: Wish) -> tuple[HostedPrice, ...]:
    """The least price of each model for this use, of those whose context and licence are allowed."""
    best: dict[str, HostedPrice] = {}
    for price in hosted_prices().prices:
        if price.context is not None and price.context < wish.reserve:
            continue
        if wish.licences and (find(price.model).facts.licence or "").lower() not in wish.licences:
            continue
        held = best.get(price.model)
        if held is None or price.usd(_sent(wish), wish.output) < held.usd(_sent(wish), wish.output):
            best[price.model] = price
    return tuple(best[name] for name in sorted(best))
