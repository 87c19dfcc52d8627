"""Where the answer changes along load, context, batch, precision, price and growth.

Each flip is found with everything else as in the study, and its band from the same drawn worlds as the verdict's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from breakeven.answer.evaluate import Assessed
from breakeven.answer.regions import Handover, best_of, standing_at
from breakeven.answer.words import part_text, rate_text
from breakeven.answer.worlds import COST_TIE, Contender, Floats, Worlds, factors, span_of
from breakeven.results.decision import Flip
from breakeven.stats.estimate import Estimate, bracketed

BATCHES = np.unique(np.round(np.geomspace(1, 1024, 61)))
FEW_YEARS = 10.0


def load_flips(handovers: Sequence[Handover], contenders: Sequence[Contender] = ()) -> list[Flip]:
    """One for each handover between candidates as the load rises, and how much of the machines is in use there."""
    by_name = {each.name: each for each in contenders}
    found = []
    for h in handovers:
        used, whose = None, ""
        for name in (h.to, h.from_):
            if used is None and name in by_name:
                used, whose = by_name[name].utilisation(h.rate_per_s.value), name
        meaning = f"above {rate_text(h.rate_per_s.value)} {h.to} is the better choice, below it {h.from_}"
        if used is not None:
            meaning += f"; {whose} is {part_text(used)} used there"
        found.append(
            Flip(
                quantity="load",
                from_=h.from_,
                to=h.to,
                at=h.rate_per_s,
                unit="requests/s",
                meaning=meaning + ("; the band reaches beyond the loads looked at" if h.clipped else ""),
                utilisation=used,
            )
        )
    return found


def batch_flip(dense: Assessed, moe: Assessed, context: int, seed: int) -> Flip:
    """The batch from which the slower of the two at batch 1 takes a decode step faster; both have a step model."""
    assert dense.model is not None
    assert moe.model is not None
    ratio_B = moe.model.step_s(BATCHES, context) / dense.model.step_s(BATCHES, context)
    factor_DC = factors([d for d in (dense.doubt, moe.doubt) if d is not None], seed)
    # The sign of ln(t_moe / t_dense) over the batches, in every world.
    sign_DB = np.log(ratio_B)[None, :] + (factor_DC[:, 1] - factor_DC[:, 0])[:, None]
    moe_first = ratio_B[0] < 1.0
    first, second = (moe, dense) if moe_first else (dense, moe)
    crossed_DB = sign_DB > 0 if moe_first else sign_DB < 0
    names = first.plan.name, second.plan.name
    if not crossed_DB[0].any():
        return Flip(
            quantity="batch",
            from_=names[0],
            to=None,
            at=None,
            unit="sequences",
            meaning=f"{names[0]} takes a decode step faster at every batch from 1 to {int(BATCHES[-1])}",
        )
    at_D = np.where(crossed_DB.any(axis=1), BATCHES[crossed_DB.argmax(axis=1)], BATCHES[-1])
    at = span_of(at_D)
    if at.low <= BATCHES[0] and at.high >= BATCHES[-1]:
        return Flip(
            quantity="batch",
            from_=names[0],
            to=None,
            at=None,
            unit="sequences",
            meaning=f"which of {names[0]} and {names[1]} takes a decode step faster is too close to call at any batch",
        )
    return Flip(
        quantity="batch",
        from_=names[0],
        to=names[1],
        at=at,
        unit="sequences",
        meaning=f"from a batch of about {at.value:.0f} on {names[1]} takes a decode step faster than {names[0]}",
    )


def along(
    quantity: str, unit: str, values: Sequence[float], worlds: Sequence[Worlds], kinds: Mapping[str, str]
) -> list[Flip]:
    """Flips of the winner along `values`, of which `worlds` holds the same contenders at one load each.

    A flip lies where the new winner's share of the worlds overtakes the old one's; its band, where that share goes
    from a twentieth to nineteen twentieths. Interpolated in ln(value). Where nobody can serve there is no flip.
    """
    names = worlds[0].names
    choice_V, share_CV = _choices(worlds)
    found = []
    for i, (left, right) in enumerate(itertools.pairwise(choice_V)):
        if left == right or left < 0 or right < 0:
            continue
        lead_V = share_CV[right] / np.maximum(share_CV[right] + share_CV[left], 1e-12)
        at, low, high = (_cross(lead_V[i : i + 2], values[i : i + 2], level) for level in (0.5, 0.05, 0.95))
        span = bracketed(at, low, high)
        found.append(
            Flip(
                quantity="context" if quantity == "context" else "load",
                from_=names[left],
                to=names[right],
                at=span,
                unit=unit,
                meaning=f"beyond a {quantity} of about {at:,.0f} {unit} {names[right]} ({kinds[names[right]]}) is the "
                f"better choice instead of {names[left]}",
            )
        )
    return found


def precision_flips(formats: Sequence[str], worlds: Sequence[Worlds], kinds: Mapping[str, str]) -> list[Flip]:
    """Changes of the winner from one weight format to the next, at the study's load; `formats` from wide to narrow."""
    names = worlds[0].names
    choice, _ = _choices(worlds)
    return [
        Flip(
            quantity="precision",
            from_=names[left],
            to=names[right],
            at=None,
            at_label=fmt,
            unit="weight format",
            meaning=f"in {before} {names[left]} ({kinds[names[left]]}) is the better choice, in {fmt} "
            f"{names[right]} ({kinds[names[right]]})",
        )
        for (before, fmt), (left, right) in zip(itertools.pairwise(formats), itertools.pairwise(choice), strict=True)
        if left != right and min(left, right) >= 0
    ]


def _choices(worlds: Sequence[Worlds]) -> tuple[list[int], Floats]:
    """`best_of` worlds of the same contenders, at one load each; a choice stays while no other makes a difference."""
    best_V, share_CV = best_of(np.stack([w.winners_DR[:, 0] for w in worlds], axis=1), len(worlds[0].names))
    choice_V: list[int] = []
    for best, one in zip(best_V.tolist(), worlds, strict=True):
        before = choice_V[-1] if choice_V else -1
        other = before >= 0 and best >= 0 and before != best
        here = standing_at(one, float(one.rates_R[0])) if other else None
        stays = here is not None and here.same and here.runner_up == one.names[before]
        choice_V.append(before if stays else best)
    return choice_V, share_CV


def price_flip(winner: str, runner_up: str, margin: Estimate) -> Flip | None:
    """How much dearer the winner may become before the runner-up takes its place; None when they cost the same.

    `margin`: cost of the runner-up over the winner's.
    """
    if margin.value <= 1.0 + COST_TIE:
        return None
    return Flip(
        quantity="price",
        from_=winner,
        to=runner_up,
        at=margin,
        unit="times its price",
        meaning=f"{runner_up} would cost less if {winner}'s price were {margin.value:.3g} times what it is",
    )


def growth_flip(handovers: Sequence[Handover], rate_per_s: float, growth_per_year: float) -> Flip | None:
    """In how many years a growing load reaches the next handover; None when none is above it or nothing grows."""
    above = [h for h in handovers if h.rate_per_s.value > rate_per_s]
    if not above or growth_per_year <= 0:
        return None
    flip = min(above, key=lambda h: h.rate_per_s.value)
    years = [
        max(math.log(r / rate_per_s) / math.log1p(growth_per_year), 0.0)
        for r in (flip.rate_per_s.value, flip.rate_per_s.least, flip.rate_per_s.most)
    ]
    if years[0] > FEW_YEARS:
        return None
    return Flip(
        quantity="growth",
        from_=flip.from_,
        to=flip.to,
        at=Estimate(value=years[0], low=years[1], high=years[2]),
        unit="years",
        meaning=f"growing {growth_per_year:.0%} a year, the load reaches {rate_text(flip.rate_per_s.value)}, where "
        f"{flip.to} takes over, in {_years_text(years[0])}",
    )


def _years_text(years: float) -> str:
    if years >= 1:
        return f"about {years:.1f} years"
    months = round(12 * years)
    return "less than a month" if months < 1 else f"about {months} month{'s' if months > 1 else ''}"


def _cross(share: Floats, values: Sequence[float], level: float) -> float:
    """Where a share that rises from one value to the next passes `level`; the nearer end when it does not."""
    low, high = float(share[0]), float(share[1])
    part = min(max((level - low) / (high - low), 0.0), 1.0) if high > low else 0.5
    return float(math.exp(math.log(values[0]) * (1 - part) + math.log(values[1]) * part))
