"""`breakeven cost`: what models on machines, and hosted ones, cost at a load, and where the cheaper one changes.

Every capacity is that of a simulated replica under predicted step times, so a cost has the step model's interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from breakeven.decide.cost.changes import changed
from breakeven.decide.cost.served import CostOptions, Served, hosted, served_as
from breakeven.errors import UserError
from breakeven.price.break_even import Offer, break_evens_of
from breakeven.price.pricing import idle_usd_per_hour
from breakeven.price.staircase import cost_points
from breakeven.spec.cost import Cost
from breakeven.spec.decision import QualityScore
from breakeven.spec.quality import quality_of
from breakeven.spec.slo import slo_text
from breakeven.version import __version__

DEFAULT_RATES = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0)
"""Loads shown where nobody names any, over the largest capacity of one replica."""
AROUND = 10.0
"""Flips are looked for from the lowest load shown over this to the highest times this."""


def cost(models: Sequence[str], options: CostOptions) -> Cost:
    """Costs of `models` and of the APIs in `options`, over its rates, and every flip between any two of them.

    Raises UserError for what is unknown, wrong or without a price.
    """
    names = [*models, *options.apis]
    if not names:
        raise UserError("there is nothing to price; name a model, or a hosted one with --api NAME=IN,OUT")
    if len(set(names)) < len(names):
        raise UserError("two candidates have the same name; leave one out, or give the API another name")
    for given in (options.scores, options.answers):
        if strangers := [name for name in given if name not in names]:
            raise UserError(f"{strangers[0]!r} is no candidate here; there are {', '.join(names)}")
    served = [served_as(name, options) for name in models]
    served += [hosted(name, api, options) for name, api in options.apis.items()]
    offers = [one.offer for one in served]
    quality = _quality(served, options)
    rates = options.rates or _rates(offers)
    ends = min(rates) / AROUND, max(rates) * AROUND
    return Cost(
        version=__version__,
        candidates={
            one.offer.name: cost_points(
                one.offer.pricing,
                one.offer.capacity_per_s,
                one.offer.traffic,
                rates,
                power=one.offer.power,
                prefill_share=one.share,
                quality=quality.get(one.offer.name),
            )
            for one in served
        },
        pricing={offer.name: offer.pricing for offer in offers},
        capacity_per_s={offer.name: offer.capacity_per_s for offer in offers},
        break_even=break_evens_of(offers, *ends),
        idle_usd_per_hour={offer.name: idle_usd_per_hour(offer.pricing, offer.power) for offer in offers},
        what_if=changed(served, options, float(np.sqrt(min(rates) * max(rates))), ends) if options.changes else [],
        notes=[
            _level(options),
            *_solved(quality),
            *(f"{one.offer.name}: {note}" for one in served for note in one.notes),
        ],
    )


def _quality(served: Sequence[Served], options: CostOptions) -> dict[str, QualityScore]:
    """Shares of tasks solved: the user's, where any is given, else published ones that cover every model."""
    for name, score in options.scores.items():
        if not 0 < score <= 1:
            raise UserError(f"score {name}={score:g}: give the share of tasks solved, above 0 and up to 1")
    if options.scores:
        return {
            name: QualityScore(how="own", value=score, source="your evaluation")
            for name, score in options.scores.items()
        }
    specs = {one.offer.name: one.model.spec for one in served if one.model is not None}
    found = quality_of(specs, benchmark=options.benchmark) if specs else {}
    return {name: score for name, score in found.items() if score.how == "published"}


def _solved(quality: Mapping[str, QualityScore]) -> list[str]:
    """What a solved task is, in words; nothing where nobody knows."""
    if not quality:
        return []
    score = next(iter(quality.values()))
    what = f"{score.benchmark}, {score.source}" if score.how == "published" else score.source
    shares = ", ".join(
        f"{name} {100 * score.value:.3g} %" for name, score in quality.items() if score.value is not None
    )
    return [f"Solved: {shares} ({what})."]


def _rates(offers: Sequence[Offer]) -> tuple[float, ...]:
    capacities = [offer.capacity_per_s.value for offer in offers if offer.serves and offer.capacity_per_s is not None]
    if not capacities:
        return (0.1, 1.0, 10.0, 100.0)
    return tuple(float(f"{share * max(capacities):.2g}") for share in DEFAULT_RATES)


def _level(options: CostOptions) -> str:
    text = slo_text(options.slo)
    if not text:
        return "Capacity is what a replica does when it always has another request; give --slo to hold it to delays."
    return f"Capacity is the highest rate at which {options.good_share:.0%} of requests keep {text}."
