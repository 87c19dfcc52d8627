"""One candidate at one load, whether it was measured, predicted or published: where all results meet.

Public JSON has a type for each verb; what they have in common is here, by the names of the registry of metrics. Whoever
compares, draws or routes asks a `Point`, which says where its numbers come from.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from breakeven.results.comparison import ComparedPoint
from breakeven.results.decision import CandidateResult, LatencyPoint
from breakeven.results.load import LoadPoint
from breakeven.stats.estimate import Estimate, Provenance, bracketed, exactly, measured
from breakeven.stats.percentiles import Percentile

OF_LATENCY = {("ttft_s", 50.0): "ttft_p50_s", ("ttft_s", 99.0): "ttft_p99_s", ("tpot_s", 50.0): "tpot_p50_s",
              ("tpot_s", 99.0): "tpot_p99_s", ("e2e_s", 50.0): "e2e_p50_s", ("e2e_s", 99.0): "e2e_p99_s"}  # fmt: skip
"""Fields of a `LatencyPoint`, by the metric and percentile that each holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """`load` as people say it; `rate_per_s` None in a closed loop, `streams` None in an open one.

    `metrics`: by key, means over what counts. `percentiles`: by key and percentile. What is not known has no entry.
    """

    candidate: str
    load: str
    provenance: Provenance
    machine: str | None = None
    rate_per_s: float | None = None
    streams: int | None = None
    metrics: Mapping[str, Estimate] = field(default_factory=dict)
    percentiles: Mapping[tuple[str, float], Estimate] = field(default_factory=dict)


def of_compared(point: ComparedPoint) -> Point:
    """Streams side by side."""
    keys = ("decode_tokens_per_s", "prefill_tokens_per_s", "ttft_s", "itl_s", "joules_per_token")
    return Point(
        candidate=point.model,
        load=f"{point.streams} stream{'' if point.streams == 1 else 's'}",
        provenance="measured",
        streams=point.streams,
        metrics=_known({key: getattr(point, key) for key in keys}),
    )


def of_load(point: LoadPoint) -> Point:
    """A measured load. Rates are of the whole measured part, so without an interval of their own."""
    n = point.requests
    rates = {
        key: measured(getattr(point, key), None, None, n)
        for key in ("requests_per_s", "input_tokens_per_s", "output_tokens_per_s")
    }
    good = point.good
    return Point(
        candidate=point.model,
        load=point.load,
        provenance="measured",
        rate_per_s=point.rate_per_s,
        streams=point.concurrency,
        metrics=_known(
            {
                **rates,
                **{latency.metric: latency.mean for latency in point.latencies},
                "goodput_per_s": None if point.goodput_per_s is None else measured(point.goodput_per_s, None, None, n),
                "good_share": None if good is None else measured(good.share, good.low, good.high, good.n),
            }
        ),
        percentiles={
            (latency.metric, each.p): estimate
            for latency in point.latencies
            for each in latency.percentiles
            if (estimate := _of_percentile(each, latency.n)) is not None
        },
    )


def _of_percentile(found: Percentile, n: int) -> Estimate | None:
    return None if found.value is None else measured(found.value, found.low, found.high, n)


def of_decided(candidate: CandidateResult) -> list[Point]:
    """The loads of a candidate of a decision, with the provenance that the decision says once for all of them."""
    return [
        Point(
            candidate=candidate.name,
            load=f"{each.rate_per_s:g} req/s",
            provenance=candidate.provenance,
            machine=candidate.machine,
            rate_per_s=each.rate_per_s,
            metrics={"good_share": each.good_share, "output_tokens_per_s": exactly(each.tokens_per_s)},
            percentiles={key: e for key, name in OF_LATENCY.items() if (e := getattr(each, name)) is not None},
        )
        for each in candidate.latency
    ]


def latency_point(point: Point, utilisation: float) -> LatencyPoint | None:
    """`point` as a decision writes it; None where it lacks a rate or a percentile that every answer has.

    A percentile whose interval is open on one side ends at its value there; a share of good requests that nobody
    counted may be anything.
    """
    found = {name: point.percentiles.get(key) for key, name in OF_LATENCY.items()}
    known = {
        name: bracketed(e.value, e.low or e.value, e.high or e.value) for name, e in found.items() if e is not None
    }
    # Answers of one token have no time a token.
    needed = [name for (metric, _), name in OF_LATENCY.items() if metric != "tpot_s"]
    if point.rate_per_s is None or not known.keys() >= set(needed):
        return None
    good = point.metrics.get("good_share")
    return LatencyPoint(
        rate_per_s=point.rate_per_s,
        good_share=Estimate(1.0, 0.0, 1.0) if good is None else good.plain(),
        utilisation=utilisation,
        tokens_per_s=point.metrics["output_tokens_per_s"].value,
        **{name: known.get(name) for name in OF_LATENCY.values()},
    )


def nearest(loads: Iterable[float], load: float) -> int:
    """Place of the load that is nearest to `load` as a ratio; the first of several. Loads are above 0."""
    return min(enumerate(loads), key=lambda each: abs(math.log(each[1] / load)))[0]


def _known(estimates: Mapping[str, Estimate | None]) -> dict[str, Estimate]:
    return {key: estimate for key, estimate in estimates.items() if estimate is not None}
