"""What goes into a bill: a workload's mean tokens, a model's own length of answers, the price of a replica.

That price is what the user says, else an hourly one of the catalogue, named with its date.
"""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np

from breakeven.errors import UserError
from breakeven.forecast.constants import Profile
from breakeven.forecast.serving import unit_requests
from breakeven.hardware.chips import Price
from breakeven.price.pricing import PricedTraffic, check_pricing
from breakeven.results.cost import Own, Rented
from breakeven.traffic.traces.rows import TraceRows
from breakeven.traffic.workload import Length, Workload

SAMPLE = 4000
"""Requests drawn for the means."""


def priced_traffic(workload: Workload, trace: TraceRows | None = None, cached_share: float = 0.0) -> PricedTraffic:
    """Mean tokens of a request, earlier turns of its conversation included, and requests of a conversation.

    Lengths that a trace brings are those of all its requests; of one with conversations, of its first `SAMPLE`.
    """
    requests = unit_requests(workload, trace, SAMPLE)
    # A draw may end inside a conversation; only a trace has to be counted.
    turns = workload.turns if trace is None else len(requests) / max(1, int(np.sum(requests.heads)))
    prompt_tokens = float(np.mean(requests.prompt_tokens_N))
    output_tokens = float(np.mean(requests.output_tokens_N))
    arrivals = workload.arrivals
    cut = arrivals.start_s > 0 or arrivals.end_s is not None
    if trace is not None and trace.session is None and arrivals.process == "trace" and not cut:
        # A bill is for all of them, the busy hours that come after the sample too.
        if workload.prompt is None:
            prompt_tokens = float(np.mean(np.maximum(trace.prompt, 1)))
        if workload.output is None:
            output_tokens = float(np.mean(np.maximum(trace.output, 1)))
    return PricedTraffic(
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        cached_share=cached_share,
        turns=turns,
    )


def with_answers(
    workload: Workload, trace: TraceRows | None, tokens: float | None
) -> tuple[Workload, TraceRows | None]:
    """The same traffic with answers of `tokens` on average, their spread in proportion; None: as they are.

    Raises UserError for answers shorter than one token.
    """
    if tokens is None:
        return workload, trace
    if not tokens >= 1:
        raise UserError(f"answers of {tokens:g} tokens: give 1 or more")
    asked = workload.output
    if asked is None and trace is not None:
        longer = np.maximum(np.round(trace.output * (tokens / float(np.mean(trace.output)))), 1)
        return workload, replace(trace, output=longer.astype(trace.output.dtype))
    output = Length(mean=round(tokens))
    if asked is not None and asked.kind in ("normal", "lognormal"):
        output = msgspec.structs.replace(asked, mean=tokens, sd=asked.sd * tokens / asked.mean, high=None)
    return msgspec.structs.replace(workload, output=output), trace


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
    usd = f"{price.usd:.2f}" if price.usd >= 0.1 else f"{price.usd:.2g}"
    return (
        Rented(usd_per_hour=devices * price.usd, date=price.date),
        f"{many}${usd} an hour ({price.what}, {price.date}; {price.source})",
    )


def hourly(prices: list[Price]) -> Price | None:
    """The middle one of the newest hourly prices, the dearer of two middle ones; None without any."""
    found = [price for price in prices if price.kind == "hour"]
    newest = sorted((p for p in found if p.date == max(q.date for q in found)), key=lambda p: p.usd)
    return newest[len(newest) // 2] if newest else None
