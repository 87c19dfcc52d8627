"""What stood around the requests: whether the client kept up, what the engine said of itself, and the energy it took.

Pure functions over parts of runs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from breakeven.measure.events import EngineSample
from breakeven.measure.load.part import NS, Part, arrived, rate_span_ns
from breakeven.results.load import Ceiling, ClientHealth, EngineState
from breakeven.stats import percentiles

HALF = 0.5
"""Share of its own ceiling above which the client is suspected of shaping the numbers."""
LAG_SHARE = 0.1
"""p99 of sent minus due, over the median TTFT, above which delays are the client's as much as the engine's."""
RATE_MISS = 0.02


def client_health(parts: list[Part]) -> ClientHealth:
    """Whether the client, rather than the engine, shaped the numbers, over the measured part of all rounds."""
    run = parts[-1].run
    closed = run.workload.arrivals.is_closed
    lag = np.concatenate([(p.run.requests.sent_N - p.run.requests.due_N)[p.counted_N] for p in parts]) / NS
    first = [p.run.requests for p in parts]
    ttft = np.concatenate([(r.first_N - r.due_N)[p.counted_N & r.answered] for r, p in zip(first, parts, strict=True)])
    lag_p50, lag_p99 = (None, None) if closed or not len(lag) else (_rank(lag, 50.0), _rank(lag, 99.0))
    achieved = None if closed else _achieved_over_offered(parts)
    ceiling = run.ceiling
    requests_share = events_share = None
    if ceiling is not None:
        busiest = [_busy(part) for part in parts]
        if ceiling.requests_per_s > 0:
            requests_share = float(max(requests for requests, _ in busiest)) / ceiling.requests_per_s
        if ceiling.stream_events_per_s > 0:
            events_share = max(pieces for _, pieces in busiest) / ceiling.stream_events_per_s
    shares_cores = any(part.run.shares_cores for part in parts)
    flags = []
    for share, what in ((requests_share, "requests"), (events_share, "stream events")):
        if share is not None and share > HALF:
            flags.append(f"the client ran at {share * 100:.0f} % of its own ceiling in {what}")
    if lag_p99 is not None and len(ttft) and lag_p99 > LAG_SHARE * float(np.median(ttft)) / NS:
        flags.append(f"1 % of the requests left {lag_p99 * 1e3:.1f} ms late or more, above a tenth of the median TTFT")
    if achieved is not None and abs(achieved - 1) > RATE_MISS:
        flags.append(f"requests were sent at {achieved * 100:.1f} % of the offered rate")
    if shares_cores:
        flags.append("client and engine share cores")
    return ClientHealth(
        ceiling=None
        if ceiling is None
        else Ceiling(
            requests_per_s=ceiling.requests_per_s,
            stream_events_per_s=ceiling.stream_events_per_s,
            processes=ceiling.processes,
        ),
        requests_share=requests_share,
        events_share=events_share,
        lag_p50_s=lag_p50,
        lag_p99_s=lag_p99,
        achieved_over_offered=achieved,
        shares_cores_with_engine=shares_cores,
        flags=flags,
    )


def engine_state(parts: list[Part]) -> EngineState | None:
    """Means and maxima of what the engine told during the parts; of its totals the rise. None: told nothing."""
    samples = [_within(part.run.engine, part) for part in parts]
    count = sum(map(len, samples))
    if count == 0:
        return None

    def of(name: str) -> list[float]:
        return [value for same in samples for sample in same if (value := getattr(sample, name)) is not None]

    running, waiting, kv_share = of("running"), of("waiting"), of("kv_share")
    return EngineState(
        samples=count,
        running_mean=_mean(running),
        running_max=max(running, default=None),
        waiting_mean=_mean(waiting),
        waiting_max=max(waiting, default=None),
        kv_share_mean=_mean(kv_share),
        kv_share_max=max(kv_share, default=None),
        preemptions=_rise("preemptions", samples),
        cached_prompt_tokens=_rise("cached_prompt_tokens", samples),
    )


def joules(parts: list[Part]) -> tuple[float | None, float, float]:
    """Energy between the first and the last sample in the parts, and the tokens and requests it bought.

    Every token that arrived meanwhile and every request answered meanwhile, warm-up included: the energy was spent on
    them. None without a counter.
    """
    spent: float | None = None
    tokens = requests = 0.0
    for part in parts:
        inside = [sample for sample in part.run.energy if part.start_ns <= sample.at_ns <= part.end_ns]
        if len(inside) < 2 or inside[-1].at_ns <= inside[0].at_ns:
            continue
        rows = part.run.requests
        start, end = inside[0].at_ns, inside[-1].at_ns
        spent = (spent or 0.0) + inside[-1].joules - inside[0].joules
        tokens += arrived(rows, rows.output_N, np.ones(len(rows), dtype=np.bool_), start, end)
        requests += np.count_nonzero(rows.answered & (rows.done_N >= start) & (rows.done_N < end))
    return spent, tokens, requests


def _rank(values: np.ndarray[tuple[int], np.dtype[np.float64]], p: float) -> float:
    """A percentile of all there was, given whatever n: it describes this run, it does not estimate."""
    return float(np.sort(values)[percentiles.nearest_rank(p, len(values)) - 1])


def _achieved_over_offered(parts: list[Part]) -> float | None:
    """Rate of sending over rate of the schedule: the time its requests should have taken over the time they took."""
    due = sent = 0
    for part in parts:
        requests = part.run.requests
        if np.count_nonzero(part.counted_N) > 1:
            due += int(np.ptp(requests.due_N[part.counted_N]))
            sent += int(np.ptp(requests.sent_N[part.counted_N]))
    return due / sent if due > 0 and sent > 0 else None


def _busy(part: Part) -> tuple[float, float]:
    """Requests sent and pieces received per second, of everything the client had to do in the part."""
    requests = part.run.requests
    start, end = rate_span_ns(part)
    seconds = (end - start) / NS
    sent = np.count_nonzero((requests.sent_N >= start) & (requests.sent_N < end))
    everything = np.ones(len(requests), dtype=np.bool_)
    return sent / seconds, arrived(requests, requests.pieces_N, everything, start, end) / seconds


def _within(samples: Sequence[EngineSample], part: Part) -> list[EngineSample]:
    return [sample for sample in samples if part.start_ns <= sample.at_ns <= part.end_ns]


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _rise(name: str, samples: list[list[EngineSample]]) -> float | None:
    """By how much a total rose within each part, summed up; an engine that started over counts from 0 again."""
    rises: list[float] = []
    for same in samples:
        totals = [value for sample in same if (value := getattr(sample, name)) is not None]
        rises += [now - before if now >= before else now for before, now in itertools.pairwise(totals)]
    return sum(rises) if rises else None
