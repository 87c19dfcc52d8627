"""Event logs of made-up runs whose every number is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from breakeven.measure import events
from breakeven.traffic.workload import Arrivals, Workload

S = 1_000_000_000
POISSON = Workload(arrivals=Arrivals(process="poisson", rate_per_s=10.0))
CLOSED = Workload(arrivals=Arrivals(process="closed", concurrency=4))


def seconds(value: float) -> int:
    return round(value * S)


def request(
    index: int,
    *,
    due_s: float,
    ttft_s: float = 0.1,
    tpot_s: float = 0.02,
    tokens: int = 11,
    lag_s: float = 0.0,
    error: str | None = None,
    block: str = "b",
    model: str = "a",
    zero_ns: int = 0,
    told: bool = True,
    **more: object,
) -> events.RequestDone:
    """One streamed request, one token a piece, done when the last has come."""
    due = zero_ns + seconds(due_s)
    first = due + seconds(ttft_s)
    chunks = [first + seconds(tpot_s * k) for k in range(tokens)] if error is None else []
    fields: dict[str, object] = {
        "prompt_tokens": 100,
        "output_tokens": len(chunks),
        "first_ns": chunks[0] if chunks else None,
        "last_ns": chunks[-1] if chunks else None,
        "done_ns": chunks[-1] if chunks else first,
        "chunk_ns": chunks,
        "chunk_tokens": [1] * len(chunks) if told else None,
        **more,
    }
    return events.RequestDone(
        block=block, model=model, stream=index, due_ns=due, sent_ns=due + seconds(lag_s), error=error, **fields
    )  # type: ignore[arg-type]


def run(
    requests: Sequence[events.Event],
    *,
    model: str = "a",
    block: str = "b",
    load: str = "10 req/s",
    round: int = 0,
    workload: Workload = POISSON,
    zero_ns: int = 0,
    from_s: float = 0.0,
    to_s: float,
    ok: bool = True,
    ended: bool = True,
    **more: object,
) -> list[events.Event]:
    """The requests between their LoadStarted and LoadDone."""
    start = events.LoadStarted(
        block=block,
        model=model,
        load=load,
        workload=workload,
        schedule="schedule.jsonl",
        at_ns=zero_ns,
        measure_from_ns=zero_ns + seconds(from_s),
        round=round,
        shares_cores=bool(more.pop("shares_cores", False)),
    )
    end = events.LoadDone(
        block=block, ok=ok, at_ns=zero_ns + seconds(to_s + 5), arrivals_end_ns=zero_ns + seconds(to_s), **more
    )  # type: ignore[arg-type]
    return [start, *requests, *([end] if ended else [])]


def noisy_run(
    seed: int,
    *,
    n: int = 400,
    rate: float = 10.0,
    scale: float = 1.0,
    correlation: float = 0.0,
    noise: float = 0.1,
    tokens: int = 8,
    **more: object,
) -> list[events.Event]:
    """A Poisson run whose delays carry noise that follows itself from request to request; due times by `n` and rate.

    Due times come from one stream and are equal for every seed, as two candidates on one schedule have them.
    """
    due = np.cumsum(np.random.default_rng(7).exponential(1 / rate, n))
    rng = np.random.default_rng(seed)
    level, factors = 0.0, []
    for step in rng.normal(0, noise, n):
        level = correlation * level + float(np.sqrt(1 - correlation**2)) * float(step)
        factors.append(scale * float(np.exp(level)))
    block = str(more.get("block", "b"))
    model = str(more.get("model", "a"))
    rows = [
        request(i, due_s=float(t), ttft_s=0.1 * f, tpot_s=0.02 * f, tokens=tokens, block=block, model=model)
        for i, (t, f) in enumerate(zip(due, factors, strict=True))
    ]
    return run(rows, to_s=float(due[-1]), **more)  # type: ignore[arg-type]
