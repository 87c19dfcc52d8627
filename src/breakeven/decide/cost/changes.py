"""What would change the costs: another precision, a second device, speculation, another rent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from breakeven.decide.cost.served import CostOptions, Served, served_as
from breakeven.decide.serving import mean_batch
from breakeven.errors import UserError
from breakeven.price.break_even import Offer
from breakeven.price.sensitivity import (
    ACCEPTANCE,
    DRAFT_COST,
    DRAFTED_TOKENS,
    parity_what_if,
    speculative_speedup,
    times,
    what_if,
)
from breakeven.price.staircase import scaled
from breakeven.spec.cost import WhatIf

OTHER_FORMAT = {
    "BF16": "FP8",
    "FP16": "FP8",
    "F16": "Q8_0",
    "FP8": "INT4",
    "Q8_0": "Q4_K_M",
    "Q4_K_M": "Q8_0",
    "Q5_K_M": "Q4_K_M",
    "Q6_K": "Q4_K_M",
}
"""The precision looked at beside the one asked for."""


def changed(
    served: Sequence[Served], options: CostOptions, rate_per_s: float, ends: tuple[float, float]
) -> list[WhatIf]:
    """One line a change and model, costs at `rate_per_s`, flips over `ends`. What an engine cannot do is left out."""
    offers = [one.offer for one in served]
    found: list[WhatIf] = []
    for index, one in enumerate(served):
        if one.model is None or one.replica is None:
            continue
        weights, devices = OTHER_FORMAT.get(one.model.format.upper()), 2 * one.model.devices
        if weights is not None and (after := _again(one, options, format_name=weights)) is not None:
            found.append(what_if(offers, index, after, "precision", weights, rate_per_s, ends))
        if (after := _again(one, options, devices=devices)) is not None:
            found.append(what_if(offers, index, after, "devices", f"{devices} devices", rate_per_s, ends))
        if one.offer.serves:
            label = f"{DRAFTED_TOKENS} drafted tokens, {ACCEPTANCE:.0%} accepted"
            found.append(what_if(offers, index, _speculating(one), "speculation", label, rate_per_s, ends))
        for at in range(len(offers)):
            if at != index and (line := parity_what_if(offers, index, at, rate_per_s)) is not None:
                found.append(line)
    return found


def _again(
    one: Served, options: CostOptions, *, format_name: str | None = None, devices: int | None = None
) -> Offer | None:
    """The same candidate served differently; None where its engine or machine cannot."""
    assert one.model is not None
    try:
        after = served_as(one.offer.name, options, format_name=format_name, devices=devices)
    except UserError:
        return None
    if devices is not None and options.pricing is not None:
        # A price given for one replica is that of its devices: twice the devices are twice the bill.
        return replace(after.offer, pricing=times(one.offer.pricing, devices / one.model.devices))
    return after.offer


def _speculating(one: Served) -> Offer:
    """The candidate with speculative decoding: only the time of decoding changes, at the batch it runs at when full."""
    assert one.replica is not None
    capacity = one.offer.capacity_per_s
    assert capacity is not None
    batch = mean_batch(one.replica, capacity.value)
    traffic = one.offer.traffic
    speedup = speculative_speedup(
        one.replica.model,
        max(1.0, batch),
        traffic.prompt_tokens + traffic.output_tokens / 2,
        DRAFTED_TOKENS,
        ACCEPTANCE,
        DRAFT_COST,
    )
    share = one.share or 0.0
    return replace(one.offer, capacity_per_s=scaled(capacity, 1 / (share + (1 - share) / speedup)))
