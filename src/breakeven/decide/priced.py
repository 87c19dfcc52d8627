"""A workload as a bill sees it, and as a model that answers at another length makes it."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np

from breakeven.decide.serving import unit_requests
from breakeven.errors import UserError
from breakeven.measure.traces import TraceRows
from breakeven.price.traffic import PricedTraffic
from breakeven.spec.workload import Length, Workload

SAMPLE = 4000
"""Requests drawn for the means."""


def priced_traffic(workload: Workload, trace: TraceRows | None = None, cached_share: float = 0.0) -> PricedTraffic:
    """Mean tokens of a request, earlier turns of its conversation included, and requests of a conversation."""
    requests = unit_requests(workload, trace, SAMPLE)
    # A draw may end inside a conversation; only a trace has to be counted.
    turns = workload.turns if trace is None else len(requests) / max(1, int(np.sum(requests.heads)))
    return PricedTraffic(
        prompt_tokens=float(np.mean(requests.prompt_tokens_N)),
        output_tokens=float(np.mean(requests.output_tokens_N)),
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
