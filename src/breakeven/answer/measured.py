"""What a saved study tells of a candidate: the load it carried, its delays, and whether it was asked what is asked now.

A capacity is that of a promise, of lengths and of arrivals. One that was measured for a looser promise is refused;
where lengths or arrivals differ the candidate says so, for nobody can correct for them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from breakeven.answer.study.plan import CandidatePlan, StudyPlan
from breakeven.answer.worlds import Doubt
from breakeven.errors import UserError
from breakeven.forecast.fleet import FleetCapacity
from breakeven.price.pricing import PricedTraffic
from breakeven.price.staircase import in_proportion
from breakeven.price.workload import priced_traffic
from breakeven.results.decision import LatencyPoint
from breakeven.results.load import CapacityStudy, LoadModel, LoadPoint, LoadStudy
from breakeven.results.point import latency_point, of_load
from breakeven.results.store import RESULT, UnreadError, read
from breakeven.stats.estimate import Estimate, Provenance, measured
from breakeven.traffic.workload import Arrivals, Slo, Workload, slo_text

SAME = 1e-9
"""Limits and shares that differ by less are one number, read twice."""
FAR_LENGTHS = 1.1
"""Mean lengths that differ by more than this factor are worth a word."""


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

    `high` None: no rate failed, so it carries `value` and perhaps more. Raises UserError when the study does not say,
    or is of several models and `model` names none of them.
    """
    if isinstance(study, CapacityStudy):
        rate = study.rate
        if rate is None or rate.value is None:
            raise UserError("measured: this capacity study found no rate; run `breakeven capacity` again")
        high = None if rate.high is None else max(rate.high, rate.value)
        return measured(rate.value, min(rate.low or 0.0, rate.value), high, len(rate.trials))
    points = sorted(_points(study, model), key=lambda p: p.rate_per_s or 0.0)
    if any(p.good is None for p in points) or len(points) < 2:
        raise UserError("measured: this study has no SLO or a single rate; run it with --slo and several rates")
    kept = [p.rate_per_s or 0.0 for p in points if p.good is not None and p.good.share >= good_share]
    failed = [p.rate_per_s or 0.0 for p in points if p.good is not None and p.good.share < good_share]
    if not failed:
        return measured(max(kept), max(kept), None, len(points))
    low, high = max((rate for rate in kept if rate < min(failed)), default=0.0), min(failed)
    return measured(math.sqrt(low * high) if low > 0 else 0.0, low, high, len(points))


def bounded(told: Estimate, predicted: Estimate | None) -> tuple[Estimate, list[str]]:
    """A capacity with an upper end, and what must be said of it: where none was seen, the prediction's if larger.

    What was carried stays the low end. `predicted` None: there is no prediction, and what was carried is all there is.
    """
    if told.high is not None:
        return told, []
    seen = f"carried {told.value:.3g} requests/s, the highest rate that was measured, and was never seen to fail"
    if predicted is None or predicted.most <= told.value:
        more = "what it carries beyond is not known, and taken to be nothing"
        return measured(told.value, told.least, told.value, told.n or 0), [f"{seen}: {more}"]
    value = max(told.value, predicted.value)
    beyond = f"up to {predicted.most:.3g} is predicted; measure higher rates"
    how: Provenance = "predicted" if value > told.value else "measured"
    return Estimate(value, told.least, predicted.most, told.n, how), [f"{seen}: {beyond}"]


def latency_measured(study: LoadStudy | CapacityStudy, model: str | None, capacity: Estimate) -> list[LatencyPoint]:
    """Delays at every rate the study ran; empty for a capacity study, which keeps none."""
    if isinstance(study, CapacityStudy):
        return []
    found = []
    for point in map(of_load, sorted(_points(study, model), key=lambda p: p.rate_per_s or 0.0)):
        used = min((point.rate_per_s or 0.0) / capacity.value, 1.0) if capacity.value > 0 else 1.0
        if (known := latency_point(point, used)) is not None:
            found.append(known)
    return found


def ran_as(study: LoadStudy | CapacityStudy, model: str | None) -> LoadModel:
    """Which model of a study a candidate is. Raises UserError when it is of several and `model` names none of them."""
    models = [study.model] if isinstance(study, CapacityStudy) else study.models
    # A weight file is called by its stem in a study, whichever path led to it.
    stem = Path(model).stem if model is not None and model.endswith(".gguf") else model
    of = [m for m in models if m.name in (model, stem)] if len(models) > 1 else models
    if len(of) != 1:
        names = ", ".join(m.name for m in models)
        raise UserError(f"measured: the study is of {names}; name the candidate's model as one of them")
    return of[0]


def _points(study: LoadStudy, model: str | None) -> Sequence[LoadPoint]:
    name = ran_as(study, model).name
    return [_in_requests(p, study.workload) for p in study.points if p.rate_per_s is not None and p.model == name]


def _in_requests(point: LoadPoint, workload: Workload) -> LoadPoint:
    """With the rate of its requests: where conversations are offered, each of their turns is one."""
    if point.rate_per_s is None or workload.offered_unit != "conversations/s":
        return point
    # Recorded conversations may be shorter than `turns`.
    recorded = workload.prompts is not None
    per_s = point.requests / point.measured_s if recorded else point.rate_per_s * workload.turns
    return msgspec.structs.replace(point, rate_per_s=per_s)


def anchored_at(told: Estimate, predicted: FleetCapacity) -> FleetCapacity:
    """A fleet of which one replica was measured: as much more than it as was predicted, size by size."""
    if not told.value > 0 or not predicted.one.value > 0:
        return in_proportion(told)
    factor = told.value / predicted.one.value
    low, high = told.least / told.value, told.most / told.value
    per_s_K = tuple(
        Estimate(each.value * factor, each.value * factor * low, each.value * factor * high, told.n, told.provenance)
        for each in predicted.per_s_K[1:]
    )
    top = predicted.saturation_per_s
    return FleetCapacity(predicted.sizes_K, (told, *per_s_K), None if top is None else top.scaled(factor))


def doubt_measured(name: str, capacity: Estimate) -> Doubt:
    """Doubt of a measured capacity: nothing shared with other candidates."""
    low = max(capacity.least, 0.5 * capacity.value)
    return Doubt(name, name, 0.0, float(np.log(max(capacity.most, capacity.value) / low)) / 2 if low > 0 else 0.0)


def measured_otherwise(
    study: StudyPlan, plan: CandidatePlan, traffic: PricedTraffic, seen: LoadStudy | CapacityStudy
) -> list[str]:
    """In what `seen` was asked something else than `study` asks of `plan`, one phrase each.

    `traffic`: the study's, as this candidate answers it. Raises UserError where `seen` kept less than the study asks:
    a limit that is missing or longer, or a smaller share of the requests.
    """
    asked, kept = study.slo, seen.slo or Slo()
    share = seen.target_share if isinstance(seen, CapacityStudy) else study.good_share
    limits = [(getattr(kept, term), getattr(asked, term)) for term in Slo.__struct_fields__]
    looser = any(least is not None and (was is None or was > least * (1 + SAME)) for was, least in limits)
    of = f" for {_percent(share)}" if isinstance(seen, CapacityStudy) else ""
    promise = f"{slo_text(kept) or 'no service level'}{of}"
    if looser or share < study.good_share - SAME:
        again = f"--slo {slo_text(asked)}" + (f" --share {_percent(study.good_share)}" if of else "")
        raise UserError(
            f"candidate {plan.name}: measured: {plan.measured} kept {promise}, the study asks {slo_text(asked)} for "
            f"{_percent(study.good_share)} of requests; measure again with {again}"
        )
    found = []
    stricter = any(was is not None and (least is None or was < least * (1 - SAME)) for was, least in limits)
    if stricter or share > study.good_share + SAME:
        found.append(f"was measured for {promise}, which is more than the study asks: it may carry more than that")
    lengths, mine = _lengths(seen, plan.model), (traffic.prompt_tokens, traffic.output_tokens)
    if lengths is None:
        found.append("was measured with lengths that its study does not tell: they may not be this study's")
    elif any(not 1 / FAR_LENGTHS <= a / b <= FAR_LENGTHS for a, b in zip(lengths, mine, strict=True)):
        found.append(
            f"was measured with {lengths[0]:.0f} prompt and {lengths[1]:.0f} output tokens on average, the study has "
            f"{mine[0]:.0f} and {mine[1]:.0f}: what it carries of these was not seen"
        )
    # A search for a capacity sends Poisson arrivals, whichever it probed with first.
    came = "poisson" if isinstance(seen, CapacityStudy) else _arrivals(seen.workload)
    if came != _arrivals(study.workload):
        found.append(f"was measured with {came} arrivals, the study's are {_arrivals(study.workload)}")
    return found


def _lengths(seen: LoadStudy | CapacityStudy, model: str | None) -> tuple[float, float] | None:
    """Mean prompt and output tokens: as the engine counted them, else as they were asked for; None: neither is told."""
    points = [] if isinstance(seen, CapacityStudy) else [p for p in _points(seen, model) if p.answered]
    counted = [
        (p.prompt_tokens_mean, p.output_tokens_mean, p.answered)
        for p in points
        if p.prompt_tokens_mean and p.output_tokens_mean
    ]
    if counted:
        answered = sum(n for *_, n in counted)
        return sum(prompt * n for prompt, _, n in counted) / answered, sum(out * n for _, out, n in counted) / answered
    asked = seen.workload
    if asked.prompt is None or asked.output is None:
        return None
    told = priced_traffic(msgspec.structs.replace(asked, arrivals=Arrivals(process="poisson", rate_per_s=1.0)))
    return told.prompt_tokens, told.output_tokens


def _arrivals(workload: Workload) -> str:
    arrivals = workload.arrivals
    cv = f" (coefficient of variation {arrivals.cv:g})" if arrivals.process == "gamma" else ""
    return ("recorded" if arrivals.process == "trace" else arrivals.process) + cv


def _percent(share: float) -> str:
    return f"{100 * share:.6g}%"
