"""Whether a candidate keeps its promise at the study's load: with how many machines, only just, or never.

The promise is the share of requests that keep the service level. A share has an interval, so there are three answers:
it is kept by so many machines; it is *borderline*, where the share lies below what is asked and its interval does not;
or no number of machines keeps it, where even requests served alone stay below it at the upper end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from breakeven.forecast.fleet import FleetCapacity, carried
from breakeven.results.decision import ShareKept
from breakeven.stats.estimate import Estimate, bracketed

FEW = (1, 2, 3)
"""Machines whose shares are told."""
FAR = 2.0
"""A sure fleet of more than this many times the borderline one is another purchase, and no rounding up."""
JUST = 1e-6
"""A fleet that does not carry a load is taken to carry this much less."""


@dataclass(frozen=True, slots=True)
class Promise:
    """At the study's load. `machines`: that the bill is for; None: no number keeps the promise.

    `edge`: the share that is borderline with so many, where it is. `never`: why none would do.
    """

    shares: tuple[ShareKept, ...]
    machines: int | None
    edge: ShareKept | None = None
    never: str | None = None


def judged(shares: Sequence[ShareKept], fewest: int | None, asked: float) -> Promise:
    """The promise by its shares. `fewest`: machines that keep it by simulation, None where none do.

    `shares`: by machines, ascending, and alone (`machines` None) among them. Borderline are the fewest whose interval
    reaches `asked` while the value does not, if that is one machine, or a sure fleet is far larger or there is none.
    """
    alone = next((each for each in shares if each.machines is None), None)
    if alone is not None and alone.share.most < asked:
        return Promise(tuple(shares), None, never=never_text(alone))
    for each in shares:
        if each.machines is None:
            continue
        if each.share.value >= asked or (fewest is not None and each.machines >= fewest):
            break
        if each.share.most >= asked:
            if each.machines == 1 or fewest is None or fewest > FAR * each.machines:
                return Promise(tuple(shares), each.machines, each)
            break
    return Promise(tuple(shares), fewest)


def taken(fleet: FleetCapacity, machines: int, rate_per_s: float) -> FleetCapacity:
    """The fleet with a curve that says the same as the simulation at a rate: so many carry it, one less does not.

    Its ends stay: where step times are longer than predicted, it takes more.
    """
    if fleet.replicas(rate_per_s) == machines:
        return fleet
    sizes = sorted({*fleet.sizes_K, machines, *([machines - 1] if machines > 1 else [])})
    spans = []
    for size in sizes:
        value, low, high = (float(carried(fleet.sizes_K, *fleet.at(end), size)) for end in ("value", "least", "most"))
        if size < machines:
            value = min(value, size / (machines - 1) * rate_per_s * (1 - JUST))
        else:
            value = max(value, size / machines * rate_per_s)
        spans.append(bracketed(value, low, high))
    top = fleet.saturation_per_s
    if top is not None and top.value * machines < rate_per_s:
        top = bracketed(rate_per_s / machines, top.least, top.most)
    return FleetCapacity(tuple(sizes), tuple(spans), top)


def edge_text(edge: ShareKept, asked: float) -> str:
    """A borderline share in words."""
    few = "" if edge.machines == 1 else f" with {edge.machines} machines"
    return f"borderline, {band_text(edge.share)} of {_percent(asked)} asked{few}"


def never_text(alone: ShareKept) -> str:
    """Why no number of machines keeps the promise."""
    worst = f", {alone.worst}" if alone.worst else ""
    return f"cannot keep it with any number of machines: {_percent(alone.share.value)} even alone{worst}"


def band_text(share: Estimate) -> str:
    """ "89.9 % (85 to 94)"."""
    low, high = (_percent(end).removesuffix(" %") for end in (share.least, share.most))
    return _percent(share.value) + ("" if low == high else f" ({low} to {high})")


def _percent(share: float) -> str:
    """To a tenth, rounded down: what misses 90 % by a hair must not read as 90 %."""
    percent = math.floor(share * 1000 + 1e-9) / 10
    return f"{percent:.0f} %" if percent == round(percent) else f"{percent:.1f} %"
