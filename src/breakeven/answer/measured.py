"""A candidate that was measured: its capacity and delays from a saved study instead of the step model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from breakeven.errors import UserError
from breakeven.results.decision import LatencyPoint
from breakeven.results.load import CapacityStudy, LoadPoint, LoadStudy
from breakeven.results.store import RESULT, UnreadError, read
from breakeven.stats.estimate import Estimate, bracketed, measured


def read_measured(path: Path) -> LoadStudy | CapacityStudy:
    """The saved study at `path`, a directory or its result.json. Raises UserError for anything else."""
    file = path / RESULT if path.is_dir() else path
    try:
        return read(file, LoadStudy, CapacityStudy)
    except UnreadError as error:
        if isinstance(error.__cause__, OSError):
            why = f"cannot be read ({error.detail}); give a study's directory"
        elif error.schema is None:
            why = f"is not a result of Breakeven ({error.detail})"
        else:
            why = (
                f"holds {error.schema or 'no schema'}; give a result of `breakeven capacity`, `bench` or "
                "`compare --rate`, which know the load a candidate carries"
            )
        raise UserError(f"measured: {file} {why}") from error


def capacity_measured(study: LoadStudy | CapacityStudy, model: str | None, good_share: float) -> Estimate:
    """The highest rate that kept the SLO, between the last that did and the first that did not.

    Raises UserError when the study does not say, or is of several models and `model` names none of them.
    """
    if isinstance(study, CapacityStudy):
        rate = study.rate
        if rate is None or rate.value is None:
            raise UserError("measured: this capacity study found no rate; run `breakeven capacity` again")
        low, high = rate.low or 0.0, rate.high or rate.value
        return measured(rate.value, min(low, rate.value), max(high, rate.value), len(rate.trials))
    points = sorted(_points(study, model), key=lambda p: p.rate_per_s or 0.0)
    if any(p.good is None for p in points) or len(points) < 2:
        raise UserError("measured: this study has no SLO or a single rate; run it with --slo and several rates")
    kept = [p.rate_per_s or 0.0 for p in points if p.good is not None and p.good.share >= good_share]
    failed = [p.rate_per_s or 0.0 for p in points if p.good is not None and p.good.share < good_share]
    low = max((rate for rate in kept if not failed or rate < min(failed)), default=0.0)
    high = min(failed, default=max(kept, default=0.0))
    value = math.sqrt(low * high) if low > 0 else 0.0
    return measured(value, low, high, len(points))


def latency_measured(study: LoadStudy | CapacityStudy, model: str | None, capacity: Estimate) -> list[LatencyPoint]:
    """Delays at every rate the study ran; empty for a capacity study, which keeps none."""
    if isinstance(study, CapacityStudy):
        return []
    found = []
    for point in sorted(_points(study, model), key=lambda p: p.rate_per_s or 0.0):
        spans = {
            name: _percentile(point, metric, p)
            for name, metric, p in (
                ("ttft_p50_s", "ttft_s", 50),
                ("ttft_p99_s", "ttft_s", 99),
                ("tpot_p50_s", "tpot_s", 50),
                ("tpot_p99_s", "tpot_s", 99),
                ("e2e_p50_s", "e2e_s", 50),
                ("e2e_p99_s", "e2e_s", 99),
            )
        }
        known = {name: span for name, span in spans.items() if span is not None}
        if len(known) < len(spans) or point.rate_per_s is None:
            continue
        good = point.good
        found.append(
            LatencyPoint(
                rate_per_s=point.rate_per_s,
                good_share=Estimate(1.0, 0.0, 1.0) if good is None else Estimate(good.share, good.low, good.high),
                utilisation=min(point.rate_per_s / capacity.value, 1.0) if capacity.value > 0 else 1.0,
                tokens_per_s=point.output_tokens_per_s,
                **known,
            )
        )
    return found


def _points(study: LoadStudy, model: str | None) -> Sequence[LoadPoint]:
    names = [m.name for m in study.models]
    if len(names) > 1 and model not in names:
        raise UserError(f"measured: the study is of {', '.join(names)}; name the candidate's model as one of them")
    return [p for p in study.points if p.rate_per_s is not None and (len(names) == 1 or p.model == model)]


def _percentile(point: LoadPoint, metric: str, p: float) -> Estimate | None:
    latency = next((one for one in point.latencies if one.metric == metric), None)
    found = next((q for q in latency.percentiles if q.p == p), None) if latency is not None else None
    if found is None or found.value is None:
        return None
    return bracketed(found.value, found.low or found.value, found.high or found.value)
