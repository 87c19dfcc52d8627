"""From the event log to one `LoadPoint` per candidate and load: every formula stands in `docs/metrics.md`.

Pure functions of the log. Rounds of one candidate under one load are pooled. Failed requests stay in: as infinitely
late in the percentiles of TTFT and E2E, as not good under an SLO, and counted by kind.

Shapes: N requests, B blocks of time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from breakeven.measure.events import Event
from breakeven.measure.load.columns import UNKNOWN, LoadRun, RequestColumns, collect, gap_histogram, gap_of_code_ns
from breakeven.measure.load.health import client_health, engine_state, joules
from breakeven.measure.load.part import (
    NS,
    Bools,
    Floats,
    Part,
    arrived,
    in_flight,
    measured_part,
    meets,
    rate_span_ns,
    steady_parts,
    sums_by_block,
    tpot_ns,
)
from breakeven.results.load import Latency, LoadPoint
from breakeven.results.metrics import LATENCIES
from breakeven.stats import intervals, percentiles
from breakeven.stats.estimate import Estimate
from breakeven.stats.percentiles import Percentile, Share
from breakeven.traffic.workload import Slo

_RATED = frozenset({"constant", "poisson", "gamma"})
"""Arrival processes whose `rate_per_s` is the offered rate all the time."""
_FROM_START = frozenset({"ttft_s", "service_ttft_s", "e2e_s", "service_e2e_s"})
"""Delays that a failed request would have had, and never reached the end of."""


def load_points(log: Iterable[Event], slo: Slo | None) -> list[LoadPoint]:
    """One point for every candidate and load in the log, in order of first appearance; `log` is read once.

    Only runs that ended well count; where a candidate has none under a load, its interrupted ones are given, and the
    caller, who sees their `LoadDone`, has to say so. A run without a single request after the warm-up gives no point.
    """
    return points_of(collect(log), slo)


def points_of(runs: list[LoadRun], slo: Slo | None) -> list[LoadPoint]:
    """The points of collected runs."""
    found = []
    for _, same in itertools.groupby(runs, key=lambda run: (run.model, run.load)):
        parts = [part for part in map(measured_part, same) if part.counted_N.any()]
        if parts:
            found.append(_point(parts, slo))
    return found


def _point(measured: list[Part], slo: Slo | None) -> LoadPoint:
    run = measured[0].run
    arrivals = run.workload.arrivals
    steady, parts = steady_parts(measured)
    counted = sum(int(np.count_nonzero(part.counted_N)) for part in measured)
    answered = sum(int(np.count_nonzero(part.counted_N & part.run.requests.answered)) for part in measured)
    rated = rate_spans(parts)
    rate_s = sum(seconds for _, _, seconds in rated)
    good = _good(parts, slo)
    flights = [in_flight(part) for part in parts]
    steady_s = sum(part.seconds for part in parts)
    offered_s = sum((part.run.to_ns - part.run.from_ns) / NS for part in measured)
    spent, tokens, requests = joules(parts)
    conversations = list(_conversations(measured))
    return LoadPoint(
        model=run.model,
        load=run.load,
        rate_per_s=_offered(run, counted, offered_s),
        concurrency=arrivals.concurrency if arrivals.is_closed else None,
        requests=counted,
        answered=answered,
        errors=_errors(measured),
        anomalies=_anomalies(measured),
        measured_s=sum(part.seconds for part in measured),
        requests_per_s=sum(_ended(part, span) for part, span, _ in rated) / rate_s,
        input_tokens_per_s=sum(_prompt_tokens(part, span) for part, span, _ in rated) / rate_s,
        output_tokens_per_s=sum(output_tokens(part, span) for part, span, _ in rated) / rate_s,
        prompt_tokens_mean=_mean_count(parts, "prompt_N"),
        output_tokens_mean=_mean_count(parts, "output_N"),
        exact_prompts=_exact(measured),
        cached_prompt_share=cached_share(measured),
        latencies=[_latency(metric, parts) for metric in LATENCIES],
        good=good,
        goodput_per_s=_good_before_the_end(parts, slo) / steady_s if slo is not None and good is not None else None,
        in_flight_mean=sum(mean * part.seconds for (mean, _), part in zip(flights, parts, strict=True)) / steady_s,
        in_flight_max=max(most for _, most in flights),
        steady=steady,
        whole_run_ttft_s=_mean("ttft_s", measured),
        whole_run_tpot_s=_mean("tpot_s", measured),
        engine=engine_state(parts),
        client=client_health(measured),
        joules_per_token=spent / tokens if spent is not None and tokens > 0 else None,
        joules_per_request=spent / requests if spent is not None and requests > 0 else None,
        tokens_per_conversation=float(np.mean([c[0] for c in conversations])) if conversations else None,
        seconds_per_conversation=float(np.mean([c[1] for c in conversations])) if conversations else None,
        flagged=list(dict.fromkeys(why for part in measured for why in part.run.flagged)),
    )


def values_s(metric: str, requests: RequestColumns) -> Floats:
    """One delay of every request of N in seconds, NaN where it has none; for ITL the mean gap of each request."""
    found = np.full(len(requests), np.nan)
    there = requests.answered
    if metric == "tpot_s":
        return tpot_ns(requests) / NS
    if metric == "itl_s":
        there = there & (requests.gaps_N > 0)
        found[there] = requests.gap_sum_N[there] / requests.gaps_N[there]
        return found / NS
    start = requests.sent_N if metric.startswith("service_") else requests.due_N
    end = requests.first_N if metric.endswith("ttft_s") else requests.done_N
    found[there] = end[there] - start[there]
    return found / NS


def rate_spans(parts: list[Part]) -> list[tuple[Part, tuple[int, int], float]]:
    """Each part with the time its rates are taken over, and the length of that in seconds."""
    spans = [rate_span_ns(part) for part in parts]
    return [(part, span, (span[1] - span[0]) / NS) for part, span in zip(parts, spans, strict=True)]


def output_tokens(part: Part, span: tuple[float, float]) -> float:
    """Output tokens of all requests but the warm-up's that arrived in a span of time, whenever they were due."""
    requests = part.run.requests
    return arrived(requests, requests.output_N, requests.warm_N == 0, *span)


def _ended(part: Part, span: tuple[float, float]) -> int:
    """Answers that ended in a span, its end included: of a closed loop it is the very moment at which one ended."""
    requests = part.run.requests
    within = (requests.done_N > span[0]) & (requests.done_N <= span[1])
    return int(np.count_nonzero(requests.answered & (requests.warm_N == 0) & within))


def _prompt_tokens(part: Part, span: tuple[float, float]) -> int:
    """Prompt tokens of the requests whose first token arrived in the span: by then the prompt had been processed."""
    requests = part.run.requests
    within = (requests.first_N > span[0]) & (requests.first_N <= span[1]) & (requests.warm_N == 0)
    return int(requests.prompt_N[within].sum(dtype=np.int64))


def _latency(metric: str, parts: list[Part]) -> Latency:
    chosen = [part.counted_N & part.run.requests.answered for part in parts]
    failed = sum(int(np.count_nonzero(part.counted_N)) for part in parts) - sum(map(np.count_nonzero, chosen))
    failed = int(failed) if metric in _FROM_START else 0
    if metric.endswith("ttft_s") and not any(part.run.workload.stream for part in parts):
        return Latency(metric=metric, n=0, mean=None, percentiles=_none("not streamed"))
    if metric == "itl_s":
        n, found = _gap_percentiles(parts, chosen)
    else:
        values = np.concatenate([values_s(metric, p.run.requests)[rows] for p, rows in zip(parts, chosen, strict=True)])
        values = values[np.isfinite(values)]
        n, found = len(values), percentiles.percentiles(values, failed)
    return Latency(metric=metric, n=n + failed, mean=_mean(metric, parts), percentiles=found)


def _none(why: str) -> list[Percentile]:
    return [Percentile(p=p, value=None, why=why) for p in percentiles.PERCENTILES]


def _gap_percentiles(parts: list[Part], chosen: list[Bools]) -> tuple[int, list[Percentile]]:
    """Number of gaps between tokens and their percentiles, each value exact to `load_columns.GAP_ERROR`.

    Gaps of one request are far from independent, so whether a percentile is supported is asked of the requests, and
    no interval is given.
    """
    counts: NDArray[np.int64] = np.sum(
        [gap_histogram(part.run.requests, rows) for part, rows in zip(parts, chosen, strict=True)], axis=0
    )
    total = np.cumsum(counts)
    n = int(total[-1])
    requests = sum(
        int(np.count_nonzero(part.run.requests.gaps_N[rows])) for part, rows in zip(parts, chosen, strict=True)
    )
    found = []
    for p in percentiles.PERCENTILES:
        if n == 0 or requests < percentiles.minimum_n(p):
            found.append(Percentile(p=p, value=None, why="n too small" if n else "nothing was measured"))
            continue
        code = int(np.searchsorted(total, percentiles.nearest_rank(p, n), side="left"))
        found.append(Percentile(p=p, value=gap_of_code_ns(code) / NS))
    return n, found


def _mean(metric: str, parts: list[Part]) -> Estimate | None:
    """Mean over requests (ITL: over gaps) of the answered, with its interval from blocks of time."""
    over, under = [], []
    for part in parts:
        requests = part.run.requests
        values = values_s(metric, requests)
        blocks = intervals.cut(int(np.count_nonzero(part.counted_N & np.isfinite(values))), len(parts))
        if metric == "itl_s":
            weights = np.where(np.isfinite(values), requests.gaps_N, np.nan)
            sums, counts = sums_by_block(part, values * weights, blocks)[0], sums_by_block(part, weights, blocks)[0]
        else:
            sums, counts = sums_by_block(part, values, blocks)
        over.append(sums)
        under.append(counts)
    return intervals.ratio_estimate(over, under)


def _offered(run: LoadRun, counted: int, offered_s: float) -> float | None:
    arrivals = run.workload.arrivals
    if arrivals.is_closed:
        return None
    if arrivals.process in _RATED and arrivals.rate_per_s is not None:
        return arrivals.rate_per_s
    return counted / offered_s if offered_s > 0 else None


def _errors(parts: list[Part]) -> dict[str, int]:
    found: dict[str, int] = {}
    for part in parts:
        counts = np.bincount(part.run.requests.error_N[part.counted_N], minlength=len(part.run.error_kinds) + 1)
        for kind, count in zip(part.run.error_kinds, counts[1:].tolist(), strict=True):
            if count:
                found[kind] = found.get(kind, 0) + count
    return found


def _anomalies(parts: list[Part]) -> dict[str, int]:
    found: dict[str, int] = {}
    for part in parts:
        for kind, rows in part.run.anomalies.items():
            if count := int(np.count_nonzero(part.counted_N[rows])):
                found[kind] = found.get(kind, 0) + count
    return found


def _exact(parts: list[Part]) -> bool:
    told = np.concatenate([part.run.requests.exact_N[part.counted_N] for part in parts])
    told = told[told != UNKNOWN]
    return bool(len(told) and told.all())


def cached_share(parts: list[Part]) -> float | None:
    """Of the prompt tokens of answered requests, those an engine had kept; over the requests whose engine says so."""
    cached = prompt = 0
    for part in parts:
        requests = part.run.requests
        told_N = part.counted_N & requests.answered & (requests.cached_N != UNKNOWN)
        cached += int(requests.cached_N[told_N].sum())
        prompt += int(requests.prompt_N[told_N].sum())
    return cached / prompt if prompt else None


def _mean_count(parts: list[Part], column: str) -> float | None:
    """Mean tokens of the answered requests whose tokens are known: an answer has some, whoever told none."""
    values = [getattr(p.run.requests, column)[p.counted_N & p.run.requests.answered] for p in parts]
    every = np.concatenate(values)
    every = every[every > 0]
    return float(every.mean()) if len(every) else None


def _good(parts: list[Part], slo: Slo | None) -> Share | None:
    if slo is None:
        return None
    hits = sum(int(np.count_nonzero(part.counted_N & meets(part.run.requests, slo))) for part in parts)
    n = sum(int(np.count_nonzero(part.counted_N)) for part in parts)
    return percentiles.wilson(hits, n) if n else None


def _good_before_the_end(parts: list[Part], slo: Slo) -> int:
    """Requests that met it, but for one that was due when its part was over: there is no time here that it took."""
    return sum(
        int(np.count_nonzero(part.counted_N & (part.run.requests.due_N < part.end_ns) & meets(part.run.requests, slo)))
        for part in parts
    )


def _conversations(parts: list[Part]) -> Iterator[tuple[int, float]]:
    """Tokens (prompts and answers) and seconds of every conversation that was had to its end without a failure.

    None where every session has a single request.
    """
    for part in parts:
        requests, workload = part.run.requests, part.run.workload
        # One of somebody's own prompts is as long as it was recorded, at most `turns`.
        turns = workload.turns if workload.prompts is None else 1
        rows = np.flatnonzero(requests.session_N != UNKNOWN)
        if not len(rows):
            continue
        rows = rows[np.argsort(requests.session_N[rows], kind="stable")]
        starts = np.flatnonzero(np.diff(requests.session_N[rows], prepend=UNKNOWN))
        sizes = np.diff(np.append(starts, len(rows)))
        fine = part.counted_N & requests.answered
        whole = np.minimum.reduceat(fine[rows].astype(np.int8), starts) == 1
        if sizes.max() < 2:
            continue
        tokens = np.add.reduceat((requests.prompt_N + requests.output_N)[rows].astype(np.int64), starts)
        begun = np.minimum.reduceat(requests.due_N[rows], starts)
        ended = np.maximum.reduceat(requests.done_N[rows], starts)
        whole &= sizes >= turns if turns > 1 else sizes > 0
        for i in np.flatnonzero(whole):
            yield int(tokens[i]), float((ended[i] - begun[i]) / NS)
