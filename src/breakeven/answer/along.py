"""The study asked again at other context lengths and in other weight formats: flips along them, and maps.

A map says who wins over load and context, or over load and precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec
import numpy as np

from breakeven.answer.evaluate import Assessed, kinds_of, model_of, placed, policy_of, room_bytes
from breakeven.answer.flips import along, precision_flips
from breakeven.answer.regions import SURE, standing_at
from breakeven.answer.study.plan import StudyPlan
from breakeven.answer.worlds import Contender, Floats, Worlds, worlds_of
from breakeven.errors import UserError
from breakeven.forecast.fleet import FleetCapacity
from breakeven.forecast.serving import capacity_per_s, replica_of, saturation_per_s
from breakeven.price.pricing import PricedTraffic
from breakeven.price.staircase import scaled
from breakeven.price.workload import with_answers
from breakeven.results.decision import DecisionMap, Flip, Kind, MapCell
from breakeven.results.point import nearest
from breakeven.stats.estimate import Estimate, exactly
from breakeven.traffic.traces.rows import TraceRows
from breakeven.traffic.workload import Arrivals, Length, Workload

QUICK_MACHINES = 4
QUICK_REQUESTS, QUICK_PRECISION = 300, 0.08
"""For maps: a quarter of the requests, and a coarser search."""


FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Prompt lengths looked at, over the study's own."""


def lengths_of(workload: Workload, trace: TraceRows | None) -> tuple[Length, Length]:
    """Prompt and output lengths as distributions; a trace's as lognormals of its mean and spread."""
    found = []
    for given, column in ((workload.prompt, "prompt"), (workload.output, "output")):
        if given is not None:
            found.append(given)
            continue
        if trace is None:
            raise ValueError(f"a workload without {column} lengths needs a trace")
        values = np.asarray(trace.prompt if column == "prompt" else trace.output, dtype=np.float64)
        found.append(Length(kind="lognormal", mean=float(values.mean()), sd=float(values.std()), low=1))
    return found[0], found[1]


def with_prompt(workload: Workload, trace: TraceRows | None, factor: float, load_per_s: float) -> Workload:
    """The workload with prompts `factor` times as long. A trace gives way to its lengths, arriving as Poisson does."""
    prompt, output = lengths_of(workload, trace)
    longer = msgspec.structs.replace(
        prompt,
        mean=prompt.mean * factor,
        sd=prompt.sd * factor,
        low=max(1, round(prompt.low * factor)),
        high=None if prompt.high is None else round(prompt.high * factor),
    )
    arrivals = workload.arrivals
    if arrivals.process == "trace":
        arrivals = Arrivals(process="poisson", rate_per_s=load_per_s)
    return msgspec.structs.replace(workload, arrivals=arrivals, prompt=longer, output=output)


LOADS_SHOWN = 13
"""Columns of a map."""


def map_of(
    y: str, rows: Sequence[tuple[float | str, Worlds]], kinds: Sequence[tuple[str, Kind]], rates: Sequence[float]
) -> DecisionMap:
    """One row of cells for each value of `y`, of worlds that share contenders' names and hold `rates`."""
    return DecisionMap(
        x="load",
        y=y,
        cells=[_cell(worlds, value, rate, dict(kinds)) for value, worlds in rows for rate in rates],
    )


def shown_rates(low: float, high: float) -> list[float]:
    """Loads of a map's columns, requests/s."""
    return [float(rate) for rate in np.geomspace(low, high, LOADS_SHOWN)]


def _cell(worlds: Worlds, y: float | str, rate: float, kinds: dict[str, Kind]) -> MapCell:
    at = nearest(worlds.rates_R, rate)
    here = standing_at(worlds, rate)
    cost = {
        kind: min(
            (float(worlds.usd_per_hour_CDR[c, 0, at]) for c, n in enumerate(worlds.names) if kinds[n] == kind),
            default=float("inf"),
        )
        for kind in ("dense", "moe")
    }
    both = all(np.isfinite(value) for value in cost.values())
    ratio = cost["dense"] / cost["moe"] if both and cost["moe"] > 0 else None
    # Without a ratio no winner means that nobody can serve it.
    name = None if here.same and ratio is not None else here.winner
    return MapCell(
        x=rate,
        y=y,
        winner=name,
        kind=kinds[name] if name is not None else None,
        ratio=ratio,
        certain=here.sure >= SURE,
    )


SAME_LENGTH = 0.01
"""Contexts closer than this to the study's own are its own."""
FORMATS = {"vllm": ("BF16", "FP8", "INT4"), "llama.cpp": ("Q8_0", "Q6_K", "Q4_K_M")}
"""Formats of the precision map where the study names none, from wide to narrow."""


def along_context(
    plan: StudyPlan, able: Sequence[Assessed], trace: TraceRows | None
) -> tuple[list[Flip], DecisionMap | None]:
    """Flips and map along the length of prompts, outputs as they are."""
    able = [e for e in able if e.model is not None or e.plan.is_api]  # of the others only this workload is known
    if not able:
        return [], None
    prompt, output = able[0].traffic.prompt_tokens, able[0].traffic.output_tokens
    contexts = plan.contexts or tuple(round(prompt * factor + output) for factor in FACTORS)
    rows: list[tuple[float | str, Worlds]] = []
    rates = _with_load(plan)

    def asked(factor: float) -> list[Assessed]:
        workload = with_prompt(plan.workload, trace, factor, plan.load_per_s)
        longer = factor * prompt
        return [
            elsewhere(plan, e, None, workload=workload, traffic=replace(e.traffic, prompt_tokens=longer)) for e in able
        ]

    here = asked(1.0)
    for context in contexts:
        factor = max(context - output, 1.0) / prompt
        found = anchored(able, here, asked(factor) if abs(factor - 1.0) > SAME_LENGTH else here)
        if worlds := _worlds(able, found, rates, plan.seed):
            rows.append((float(context), worlds))
    return _flips_and_map("context", plan, able, rows)


def along_precision(
    plan: StudyPlan, able: Sequence[Assessed], trace: TraceRows | None
) -> tuple[list[Flip], DecisionMap | None]:
    """Flips and map along the weight format of all local candidates; hosted ones stay as they are."""
    engines = {e.model.profile.engine for e in able if e.model is not None}
    if len(engines) != 1 and not plan.formats:
        return [], None  # formats of one engine mean nothing to another
    formats = plan.formats or FORMATS.get(next(iter(engines)), ())
    rows: list[tuple[float | str, Worlds]] = []
    here = [elsewhere(plan, e, trace) for e in able]
    for name in formats:
        try:
            found = anchored(able, here, [elsewhere(plan, e, trace, format_name=name) for e in able])
        except UserError:
            continue  # an engine that cannot hold this format
        if worlds := _worlds(able, found, _with_load(plan), plan.seed):
            rows.append((name, worlds))
    return _flips_and_map("precision", plan, able, rows)


def anchored(able: Sequence[Assessed], here: Sequence[Assessed], there: Sequence[Assessed]) -> list[Assessed]:
    """Capacities elsewhere, from short simulations, scaled so that the same short one meets the study's own here.

    Few requests fill no queue: of bursty traffic a short run sees a larger capacity than a long one.
    """
    found = []
    for own, short, other in zip(able, here, there, strict=True):
        if own.model is None or other.fleet is None or own.fleet is None or short.fleet is None:
            found.append(other)
            continue
        was, now = short.fleet.one.value, other.fleet.one.value
        if was <= 0 and short.fleet.saturation_per_s is not None and other.fleet.saturation_per_s is not None:
            # Taken at its word here, where it only just keeps the level: elsewhere too, as much faster or slower.
            was, now = short.fleet.saturation_per_s.value, other.fleet.saturation_per_s.value
        found.append(replace(other, fleet=scaled(own.fleet, now / was) if was > 0 and now > 0 else other.fleet))
    return found


def _flips_and_map(
    y: str, plan: StudyPlan, able: Sequence[Assessed], rows: Sequence[tuple[float | str, Worlds]]
) -> tuple[list[Flip], DecisionMap | None]:
    if len(rows) < 2:
        return [], None
    at_load = [_at(worlds, plan.load_per_s) for _, worlds in rows]
    kinds = kinds_of(able)
    if y == "context":
        flips = along(y, "tokens", [float(value) for value, _ in rows], at_load, kinds)
    else:
        flips = precision_flips([str(value) for value, _ in rows], at_load, kinds)
    rates = shown_rates(plan.low_per_s, plan.high_per_s)
    return flips, map_of(y, rows, [(e.plan.name, e.kind) for e in able], rates)


def _worlds(able: Sequence[Assessed], found: Sequence[Assessed], rates: Floats, seed: int) -> Worlds | None:
    """Worlds of the same contenders in the same order, those that cannot serve this included; None if nobody can.

    Ties are broken by the speeds the study itself found, for no delays are simulated here.
    """
    contenders: list[Contender] = []
    for was, now in zip(able, found, strict=True):
        contender = was.contender()
        if contender is not None:
            contenders.append(replace(contender, fleet=now.fleet, traffic=now.traffic))
            if now.model is not None and now.fleet is None:  # does not fit any more
                contenders[-1] = replace(contenders[-1], max_replicas=0)
    return worlds_of(contenders, rates, seed) if contenders else None


def _with_load(plan: StudyPlan) -> Floats:
    return np.unique([*shown_rates(plan.low_per_s, plan.high_per_s), plan.load_per_s])


def _at(worlds: Worlds, rate_per_s: float) -> Worlds:
    """The same worlds at one load alone."""
    at = nearest(worlds.rates_R, rate_per_s)
    here = slice(at, at + 1)
    return replace(
        worlds,
        rates_R=worlds.rates_R[here],
        usd_per_hour_CDR=worlds.usd_per_hour_CDR[..., here],
        e2e_s_CDR=worlds.e2e_s_CDR[..., here],
        winners_DR=worlds.winners_DR[:, here],
    )


def elsewhere(
    study: StudyPlan,
    found: Assessed,
    trace: TraceRows | None,
    *,
    traffic: PricedTraffic | None = None,
    workload: Workload | None = None,
    format_name: str | None = None,
) -> Assessed:
    """The same candidate under another workload or in another format: its capacity alone, from a short simulation.

    The interval keeps the relative width that the study itself found. An API stays as it is. Raises UserError for a
    format the engine does not have.
    """
    if found.model is None or found.policy is None:
        return replace(found, traffic=traffic or found.traffic)
    traffic = traffic or found.traffic
    model = found.model
    if format_name is not None and format_name.upper() != model.format.upper():
        model = placed(model_of(found.plan, format_name), found.typical_tokens).scaled(found.model.scale)
    needed = model.memory_bytes(1, round(traffic.prompt_tokens + traffic.output_tokens))
    there = replace(
        found, model=model, fleet=None, needed_bytes=needed, available_bytes=room_bytes(model), traffic=traffic
    )
    if not there.fits:
        return there
    asked, trace = with_answers(workload or study.workload, trace, study.quality.answer_tokens.get(found.plan.name))
    policy = policy_of(found.plan, model, traffic.prompt_tokens + traffic.output_tokens)
    replica = replica_of(model, policy, asked, trace, QUICK_REQUESTS)
    value, top = 0.0, 0.0
    if replica is not None:
        # As many as the study's load takes here: one alone may carry next to nothing of bursts.
        promise = found.promise
        many = min(1 if promise is None or promise.machines is None else promise.machines, QUICK_MACHINES)
        top = saturation_per_s(replica)
        fleet = replace(replica, replicas=many)
        found_per_s = capacity_per_s(fleet, study.slo, study.good_share, precision=QUICK_PRECISION, highest=top * many)
        value = found_per_s / many
    was = found.capacity
    low, high = (was.least / was.value, was.most / was.value) if was is not None and was.value > 0 else (1.0, 1.0)
    each = Estimate(value=value, low=value * low, high=value * high)
    return replace(there, fleet=FleetCapacity((1,), (each,), exactly(top)))
