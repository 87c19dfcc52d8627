"""What would change the answer: another precision, a second device, speculative decoding, a cheaper hour.

A change of precision or devices is another capacity, which whoever can predict it passes in; a change of price is
arithmetic. Speculative decoding follows from the step model: a step that verifies m drafted tokens of B sequences sends
B (m + 1) tokens through the weights, so a Mixture-of-Experts touches u(B (m + 1)) of its experts, where a dense model
reads what it read before. Accepted with probability p each, they give (1 - p^(m + 1)) / (1 - p) tokens a step
(Leviathan et al., arXiv 2211.17192, equation 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec

from breakeven.errors import UserError
from breakeven.forecast.model import StepModel
from breakeven.price.break_even import Offer, break_evens
from breakeven.price.pricing import idle_usd_per_hour
from breakeven.results.cost import Api, Own, Rented, WhatIf
from breakeven.stats.estimate import Estimate

LARGE_FLEET = 16
"""Replicas at which what a change does to capacity is read."""
DRAFTED_TOKENS = 4
ACCEPTANCE = 0.7
DRAFT_COST = 0.1
"""Assumed where nobody says better, and printed with the result: drafted tokens a step, the share of them accepted,
and a drafted token's time over that of a plain decode step."""


def tokens_per_step(drafted: int, acceptance: float) -> float:
    """Expected tokens that one verifying step yields: between 1 and drafted + 1."""
    if drafted < 0 or not 0 <= acceptance <= 1:
        raise UserError(f"{drafted} drafted tokens, {acceptance:g} accepted: give 0 or more, and a share of 0 to 1")
    return float(sum(acceptance**i for i in range(drafted + 1)))


def speculative_speedup(
    model: StepModel,
    batch: float,
    context: float,
    drafted: int = DRAFTED_TOKENS,
    acceptance: float = ACCEPTANCE,
    draft_cost: float = DRAFT_COST,
) -> float:
    """Decode rate with speculation over the rate without, for `batch` sequences of `context` tokens each.

    `draft_cost`: time of drafting one token over that of a plain step (0 for n-gram drafting). Below 1: a loss.
    """
    plain = float(model.step_s(batch, context))
    # Keys and values are read once a sequence, not once a token: the same total over more tokens.
    verify = float(model.step_s(batch * (drafted + 1), context / (drafted + 1)))
    return tokens_per_step(drafted, acceptance) * plain / (verify + drafted * draft_cost * plain)


def what_if(
    offers: Sequence[Offer],
    index: int,
    after: Offer,
    change: str,
    label: str,
    rate_per_s: float,
    ends: tuple[float, float],
) -> WhatIf:
    """Candidate `index` of `offers` as `after`: its cost at `rate_per_s`, and its flips against the others over `ends`.

    `change` is one word of `WhatIf.change`, `label` says to what.
    """
    before = offers[index]
    ratio = None
    if before.serves and before.fleet is not None and after.fleet is not None:
        # Of the largest fleets, where bursts weigh least: one replica alone may carry next to nothing.
        ratio = after.fleet.per_s(LARGE_FLEET) / before.fleet.per_s(LARGE_FLEET)
    costs = _usd_per_request(before, rate_per_s), _usd_per_request(after, rate_per_s)
    others = (*offers[:index], *offers[index + 1 :])
    return WhatIf(
        candidate=before.name,
        change=change,
        label=label,
        capacity_per_s=after.capacity_per_s,
        capacity_ratio=ratio,
        rate_per_s=rate_per_s,
        usd_per_request_before=costs[0],
        usd_per_request=costs[1],
        break_even=[found for other in others for found in break_evens(after, other, *ends)],
        meaning=_meaning(before.name, label, ratio, costs, rate_per_s),
    )


def times(pricing: Own | Rented, factor: float) -> Own | Rented:
    """`pricing` of a replica of `factor` times the machine: rent, purchase, upkeep and power."""
    match pricing:
        case Rented():
            return msgspec.structs.replace(pricing, usd_per_hour=factor * pricing.usd_per_hour)
        case Own():
            return msgspec.structs.replace(
                pricing,
                usd=factor * pricing.usd,
                yearly_upkeep_usd=factor * pricing.yearly_upkeep_usd,
                idle_w=None if pricing.idle_w is None else factor * pricing.idle_w,
                busy_w=None if pricing.busy_w is None else factor * pricing.busy_w,
            )


def parity_usd_per_hour(offer: Offer, other: Offer, rate_per_s: float) -> Estimate | None:
    """The hourly rent of one replica at which `offer` costs what `other` does at a load, with its band.

    None for an API, for a candidate that serves nothing, or where no positive rent would do.
    """
    if isinstance(offer.pricing, Api) or not offer.serves or not other.serves:
        return None

    def rent(at: float, other_at: float) -> float:
        mine, theirs = offer.stairs(at), other.stairs(other_at)
        return float(theirs.usd_per_hour(rate_per_s)) / float(mine.replicas(rate_per_s))

    value = rent(0.0, 0.0)
    found = [rent(at, other_at) for at in (-1.0, 0.0, 1.0) for other_at in (-1.0, 0.0, 1.0)]
    return Estimate(value=value, low=min(found), high=max(found)) if value > 0 else None


def parity_what_if(offers: Sequence[Offer], index: int, other: int, rate_per_s: float) -> WhatIf | None:
    """`parity_usd_per_hour` as a line of the table; None where there is no such rent."""
    rent = parity_usd_per_hour(offers[index], offers[other], rate_per_s)
    if rent is None:
        return None
    offer, pricing = offers[index], offers[index].pricing
    now = 0.0 if isinstance(pricing, Api) else idle_usd_per_hour(pricing, offer.power)
    return WhatIf(
        candidate=offer.name,
        change="price",
        label=f"${rent.value:.3g} an hour",
        capacity_per_s=None,
        capacity_ratio=None,
        rate_per_s=rate_per_s,
        usd_per_request_before=_usd_per_request(offer, rate_per_s),
        usd_per_request=_usd_per_request(replace(offer, pricing=Rented(usd_per_hour=rent.value)), rate_per_s),
        break_even=[],
        meaning=f"At {rate_per_s:.3g} requests/s {offer.name} costs what {offers[other].name} does if a replica costs "
        f"${rent.value:.3g} an hour ({rent.low:.3g} to {rent.high:.3g}; now {now:.3g}).",
    )


def _usd_per_request(offer: Offer, rate_per_s: float) -> float | None:
    if not offer.serves:
        return None
    return float(offer.stairs().usd_per_hour(rate_per_s)) / (3600 * rate_per_s)


def _meaning(
    name: str, label: str, ratio: float | None, costs: tuple[float | None, float | None], rate_per_s: float
) -> str:
    before, after = costs
    if after is None:
        return f"{name} with {label} serves no request under the service level."
    carries = "" if ratio is None else f" carries {ratio:.2f} times the load and"
    if before is None:
        return f"{name} with {label} serves at all: ${1e3 * after:.3g} per 1,000 requests at {rate_per_s:.3g}/s."
    return f"{name} with {label}{carries} costs ${1e3 * after:.3g} per 1,000 requests at {rate_per_s:.3g}/s, " + (
        f"{after / before:.2f} times what it does now." if before > 0 else "as it does now."
    )
