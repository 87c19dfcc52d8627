"""A study in, a verdict out."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from breakeven.answer import flips as find
from breakeven.answer import next as narrow
from breakeven.answer.advice import advice_for
from breakeven.answer.along import along_context, along_precision
from breakeven.answer.candidates import (
    HOURS_PER_MONTH,
    Reasons,
    beyond_budget,
    floors_unheld,
    needed,
    result_of,
    scores_of,
    why_not,
)
from breakeven.answer.day import busiest_text, day_of
from breakeven.answer.evaluate import NO_PRICE, Assessed, errs_with, evaluate
from breakeven.answer.mixes import Mix, barred_text, for_all, mix_of
from breakeven.answer.regions import Handover, Standing, handovers_of, regions_of, standing_at
from breakeven.answer.study.load import read_study_trace, whole_hours
from breakeven.answer.study.plan import StudyPlan
from breakeven.answer.study.values import WEEK_HOURS
from breakeven.answer.words import DAY_HOURS, rate_text, turns_text, usd_text, verdict_of
from breakeven.answer.worlds import Contender, Floats, Worlds, worlds_of
from breakeven.forecast.constants import Profile
from breakeven.forecast.serving import traced_text
from breakeven.model.resolve import split_format
from breakeven.price.pricing import unpowered
from breakeven.price.workload import priced_traffic
from breakeven.results.cost import Api, Own, Pricing, Rented
from breakeven.results.decision import Assumption, Day, Decision, Flip, NextMeasurement, Region
from breakeven.results.point import nearest
from breakeven.traffic.traces.rows import TraceRows
from breakeven.traffic.workload import length_text, slo_text
from breakeven.version import __version__

LOADS = 301
"""Loads looked at, evenly spread in ln(load)."""

Phase = Callable[[str, str], None]


def decide(plan: StudyPlan, on_phase: Phase = lambda phase, subject: None) -> Decision:
    """Evaluate every candidate, compare them over all loads, and say which to run.

    Raises UserError for candidates that cannot be resolved. The same plan gives the same decision.
    """
    trace = read_study_trace(plan.trace, format=plan.load.trace_format) if plan.trace is not None else None
    plan = _in_requests(plan)
    found = []
    for candidate in plan.candidates:
        on_phase("simulating", candidate.name)
        found.append(evaluate(plan, candidate, trace))
    scores = scores_of(plan, found)
    ruled = {e.plan.name: why_not(plan, e, scores[e.plan.name]) for e in found}
    free = [e for e in found if not ruled[e.plan.name].ever and not ruled[e.plan.name].quality]
    able, barred = for_all(plan, free, scores)
    # Where nobody may serve every part, who is best at which load is still worth knowing, and said with a word.
    looked = able or (free if plan.parts else [])
    rates = np.unique([*np.geomspace(plan.low_per_s, plan.high_per_s, LOADS), plan.load_per_s])
    regions: list[Region] = []
    flips: list[Flip] = []
    maps, measurements = [], []
    contenders: list[Contender] = []
    here = Standing(None, 0.0)
    day: Day | None = None
    mix: Mix | None = None
    aside: list[str] = []
    if looked:
        contenders = [c for e in looked if (c := e.contender())]
        worlds = worlds_of(contenders, rates, plan.seed)
        regions, handovers = regions_of(worlds, plan.load_per_s), handovers_of(worlds, plan.load_per_s)
        if able:
            here = standing_at(worlds, plan.load_per_s)
        else:
            aside.append("What is best by load is said as if each might serve all parts.")
        if any(name and ruled[name].now for name in (here.winner, here.runner_up if here.same else None)):
            here = _within(plan, contenders, ruled)
        flips = find.load_flips(handovers, contenders)
        for what, ask in (("context", along_context), ("precision", along_precision)):
            on_phase("mapping", f"load and {what}")
            more, drawn = ask(plan, looked, trace)
            flips += more
            maps += [drawn] if drawn is not None else []
        flips += _other_flips(plan, looked, worlds, here, handovers)
        on_phase("looking for", "what would narrow the answer")
        measurements = _measurements(plan, looked, rates)
        if able and plan.hours_per_s:
            day, here, told = _day(plan, contenders, ruled)
            aside += told
            # Of the whole day's bills, which the verdict is on; in its busiest hour another may be cheaper.
            flips += [flip for flip in [_price_flip(here)] if flip is not None]
    # Over a day only candidates that serve all parts are priced; where none carries it, parts may be shared out.
    if day is None or (plan.parts and not day.bills):
        mix, left = mix_of(plan, found, scores, ruled)
        day = day if mix is None else None
        aside = [*left, *aside]
    skipped_h = max(0, whole_hours(trace) - WEEK_HOURS) if trace is not None else 0
    if mix is None:
        aside += _aside(plan, ruled, here, day, skipped_h)
    if plan.hours_per_s and skipped_h:
        aside.append(f"Of the {skipped_h + WEEK_HOURS:,} hours of the trace the last {WEEK_HOURS} count, a week.")
    if plan.hours_per_s and mix is not None:
        aside.append(A_SPLIT_DAY)
    unheld = floors_unheld(plan, scores)
    if mix is not None:
        aside += unheld
    results = [
        result_of(e, ruled[e.plan.name].all, scores[e.plan.name], rates, plan, barred.get(e.plan.name, []))
        for e in found
    ]
    return Decision(
        version=__version__,
        name=plan.name,
        question=plan.question,
        verdict=verdict_of(
            results,
            flips,
            mix,
            here,
            plan.load_per_s,
            needed(found, ruled),
            day,
            {e.plan.name: _capacity_of(plan, e).command for e in found if e.model is not None},
            aside,
            [*barred_text(barred), *unheld],
        ),
        load_per_s=plan.load_per_s,
        workload=plan.workload,
        slo=plan.slo,
        good_share=plan.good_share,
        candidates=results,
        regions=regions,
        flips=flips,
        maps=maps,
        advice=advice_for(plan, {e.plan.name: e.spec for e in found if e.spec is not None}),
        next_measurements=measurements,
        assumptions=assumptions_of(plan, trace, found),
        seed=plan.seed,
        day=day,
    )


def _in_requests(plan: StudyPlan) -> StudyPlan:
    """The plan with its loads in requests: as asked they count conversations, of which every turn is a request."""
    turns = plan.workload.turns if plan.trace is None else 1
    if turns == 1:
        return plan
    return replace(
        plan,
        load_per_s=plan.load_per_s * turns,
        low_per_s=plan.low_per_s * turns,
        high_per_s=plan.high_per_s * turns,
        hours_per_s=tuple(each * turns for each in plan.hours_per_s),
    )


def _within(plan: StudyPlan, contenders: Sequence[Contender], ruled: Mapping[str, Reasons]) -> Standing:
    """Who is best at the study's load among those that nothing rules out there.

    The best of all may be the faster of two that cost the same, or the cheapest in most worlds and not as predicted.
    """
    kept = [c for c in contenders if not ruled[c.name].now]
    if not kept:
        return Standing(None, 0.0)
    return standing_at(worlds_of(kept, np.array([plan.load_per_s]), plan.seed), plan.load_per_s)


def _day(
    plan: StudyPlan, contenders: Sequence[Contender], ruled: dict[str, Reasons]
) -> tuple[Day, Standing, list[str]]:
    """The hours of those whose bill of them is within the budget; of all, and without a winner, where none is.

    Notes in `ruled` whose is not. Also what must be said of the budget, such as taking turns that are within it.
    """
    day, here = day_of(contenders, plan.hours_per_s, plan.seed)
    over = set()
    for bill in day.bills:
        name = bill.candidate
        if (why := beyond_budget(plan, bill.usd_per_day.scaled(HOURS_PER_MONTH / DAY_HOURS))) is not None:
            over.add(name)
            ruled[name] = replace(ruled[name], now=[*ruled[name].now, why])
    if not over:
        return day, here, []
    kept = [c for c in contenders if c.name not in over]
    within = day_of(kept, plan.hours_per_s, plan.seed) if kept else None
    turns = day.by_hour_usd_per_day
    if turns is None or beyond_budget(plan, turns.scaled(HOURS_PER_MONTH / DAY_HOURS)) is not None:
        affordable = None
    else:
        affordable = f"is within the budget: {usd_text(turns)} a day ({turns_text(day.by_hour)})."
    if within is None or not within[0].bills:
        as_if = "The hours are told as if there were no budget."
        return day, Standing(None, 0.0), [as_if if affordable is None else f"Taking turns by the hour {affordable}"]
    others = [name for name in dict.fromkeys(day.by_hour) if name in over]
    if affordable is None or not others:
        return *within, []
    return *within, [f"With {' and '.join(others)}, alone beyond the budget, taking turns by the hour {affordable}"]


A_SPLIT_DAY = "This is of the busiest hour: what the parts cost over all hours is not computed."


def _aside(plan: StudyPlan, ruled: Mapping[str, Reasons], here: Standing, day: Day | None, skipped_h: int) -> list[str]:
    """What must be said beside an answer that is one candidate, or nobody. `skipped_h`: hours of the trace left out."""
    told = []
    if plan.budget_usd_per_month is not None and any(each.now for each in ruled.values()):
        told.append("What is best by load, and where that changes, is said as if there were no budget.")
    if plan.parts and here.winner is None and not any(each.all for each in ruled.values()):
        told.append("No candidate, and no split of the parts, carries this load on the machines there are.")
    if day is not None and day.bills and plan.parts:
        told.append("What a split of the parts costs over the hours is not computed; give one rate to see it there.")
    if day is not None and plan.trace is not None:
        start = f"{skipped_h:,} hours after the first request" if skipped_h else "the first request"
        told.append(f"Hours count from {start} of the trace, not from midnight.")
    return told


def _other_flips(
    plan: StudyPlan, able: Sequence[Assessed], worlds: Worlds, here: Standing, handovers: Sequence[Handover]
) -> list[Flip]:
    """Batch, price and growth."""
    found: list[Flip | None] = []
    cost_at = nearest(worlds.rates_R, plan.load_per_s)
    order = [worlds.names[i] for i in np.argsort(worlds.usd_per_hour_CDR[:, 0, cost_at])]
    first = {
        kind: next((e for n in order for e in able if e.plan.name == n and e.kind == kind), None)
        for kind in ("dense", "moe")
    }
    dense, moe = first["dense"], first["moe"]
    if dense is not None and moe is not None and dense.model and moe.model and dense.doubt and moe.doubt:
        context = round(dense.traffic.prompt_tokens + dense.traffic.output_tokens / 2)
        found.append(find.batch_flip(dense, moe, context, plan.seed))
    if not plan.hours_per_s:
        found.append(_price_flip(here))
    found.append(find.growth_flip(handovers, plan.load_per_s, plan.growth_per_year))
    return [flip for flip in found if flip is not None]


def _price_flip(here: Standing) -> Flip | None:
    if here.winner is None or here.runner_up is None or here.margin is None:
        return None
    return find.price_flip(here.winner, here.runner_up, here.margin)


def _measurements(plan: StudyPlan, able: Sequence[Assessed], rates: Floats) -> list[NextMeasurement]:
    """Calibrating each engine on a machine known from its data sheet, and measuring each predicted candidate."""
    local = [e for e in able if e.model is not None and e.provenance == "predicted"]
    options = []
    for _, group in itertools.groupby(sorted(local, key=_errs_with), key=_errs_with):
        mine = list(group)
        model = mine[0].model
        if model is not None and model.profile.origin.how != "probes":
            options.append(narrow.calibration_of(model.profile.name, model.profile.engine, [e.plan.name for e in mine]))
    options += [_capacity_of(plan, e) for e in local]
    contenders = [c for e in able if (c := e.contender()) is not None]
    return narrow.narrowest(contenders, options, rates, plan.load_per_s, plan.seed)


def _capacity_of(plan: StudyPlan, found: Assessed) -> narrow.Option:
    """Measuring the capacity of a candidate on its machine, as the study asks: its format, lengths and promise."""
    name, model, asked = found.plan.model or "", found.model, plan.workload
    own_file = found.spec is not None and found.spec.stored is not None
    if model is not None and not own_file and split_format(name)[1] is None:
        name = f"{name}:{model.format}"
    prompt, output = max(1, round(found.traffic.prompt_tokens)), max(1, round(found.traffic.output_tokens))
    # Prompts of a conversation hold the turns before them, and a search for a capacity has no turns.
    alone = asked.prompt is not None and asked.turns == 1
    theirs = asked.output is not None and found.plan.name not in plan.quality.answer_tokens
    words = {
        "--engine": (found.plan.engine or model.profile.engine) if model is not None else "",
        "--kv": found.plan.kv or "",
        "--slo": slo_text(plan.slo),
        "--share": f"{100 * plan.good_share:.6g}%",
        "--prompt": length_text(asked.prompt) if alone and asked.prompt is not None else str(prompt),
        "--output": length_text(asked.output) if theirs and asked.output is not None else str(output),
    }
    options = [f"{option} {shlex.quote(value)}" for option, value in words.items() if value]
    command = " ".join([f"breakeven capacity {shlex.quote(name)}", *options])
    return narrow.capacity_of(found.plan.name, command, model.profile.name if model is not None else "")


def _errs_with(found: Assessed) -> str:
    return errs_with(found.model) if found.model is not None else ""


def assumptions_of(plan: StudyPlan, trace: TraceRows | None, found: Sequence[Assessed]) -> list[Assumption]:
    """Traffic, service level, prices, machines and their errors, in the order a reader doubts them."""
    study = plan.path.name
    traffic = priced_traffic(plan.workload, trace)
    prompt, output = traffic.prompt_tokens, traffic.output_tokens
    rows = [
        Assumption(what="load", value=_load(plan), source=study),
        Assumption(
            what="requests",
            value=f"{prompt:.0f} prompt and {output:.0f} output tokens on average",
            source=plan.trace.name if plan.trace is not None else study,
        ),
        Assumption(what="arrivals", value=_arrivals(plan), source=plan.trace.name if plan.trace is not None else study),
        Assumption(what="SLO", value=f"{slo_text(plan.slo)} for {plan.good_share:.0%} of requests", source=study),
    ]
    if trace is not None:
        rows.append(Assumption(what="trace", value=trace.reading, source=trace.name))
        if simulated := traced_text(trace, plan.workload.requests):
            rows.append(Assumption(what="simulated", value=simulated, source=trace.name))
    for e in found:
        if e.pricing is not None:
            source = e.plan.price_source or next((note for note in e.notes if note.startswith(NO_PRICE)), study)
            rows.append(Assumption(what=f"price of {e.plan.name}", value=_price(e.pricing), source=source))
    if plan.quality.evaluation is not None:
        for name, tokens in plan.quality.answer_tokens.items():
            said = Assumption(
                what=f"answers of {name}", value=f"{tokens:.0f} tokens on average", source=plan.quality.evaluation.name
            )
            rows.append(said)
    profiles = {errs_with(e.model): e.model.profile for e in found if e.model is not None}
    machines = [profile.name for profile in profiles.values()]
    for under, profile in profiles.items():
        name = profile.name if machines.count(profile.name) == 1 else under
        rows.append(Assumption(what=f"speed of {name}", value=_error(profile), source=_origin(profile)))
    for e in found:
        measured = e.model is not None and e.model.profile.origin.how == "probes"
        stated = isinstance(e.pricing, Own) and e.pricing.busy_w is not None
        if e.power is not None and not measured and not stated:
            rows.append(
                Assumption(
                    what=f"power of {e.plan.name}",
                    value=f"{e.power.idle_w:.0f} W idle, {e.power.busy_w:.0f} W busy",
                    source="shares of the rated power, a judgement; nothing measured it under this load",
                )
            )
    for e in found:
        if e.pricing is not None and (dark := unpowered(e.pricing, e.power)) is not None:
            rows.append(Assumption(what=f"power of {e.plan.name}", value="not known", source=dark))
    for e in found:
        if e.model is not None and e.spec is not None and e.spec.is_moe:
            rows.append(
                Assumption(
                    what=f"routing of {e.plan.name}",
                    value="uniform over the experts",
                    source="no routing was traced; `breakeven trace` measures it on real weights",
                )
            )
    return rows


def _load(plan: StudyPlan) -> str:
    return busiest_text(plan.hours_per_s) if plan.hours_per_s else rate_text(plan.load_per_s)


def _arrivals(plan: StudyPlan) -> str:
    arrivals = plan.workload.arrivals
    if arrivals.process == "gamma":
        return f"gamma, gaps with a coefficient of variation of {arrivals.cv:g}"
    return "as recorded" if arrivals.process == "trace" else arrivals.process


def _price(pricing: Pricing) -> str:
    match pricing:
        case Rented():
            return f"${pricing.usd_per_hour:.4g} an hour a replica{_date(pricing.date)}"
        case Own():
            return f"${pricing.usd:.0f} over {pricing.life_years:g} years, ${pricing.usd_per_kwh:.3g}/kWh"
        case Api():
            both = f"${pricing.usd_per_mtok_input:.4g} in and ${pricing.usd_per_mtok_output:.4g} out per million tokens"
            return f"{both}{_date(pricing.date)}"


def _date(date: str | None) -> str:
    return f" ({date})" if date else ", date not given"


def _error(profile: Profile) -> str:
    decode = [e for e in profile.errors if e.phase == "decode"]
    told = ", ".join(
        f"{'MoE' if e.kind == 'moe' else e.kind} within a factor of {2.718281828**e.log_half_width:.2f}"
        + (f" (median error {e.median:.0%} over {e.n} models left out)" if e.n else " (a judgement, unchecked)")
        for e in decode
    )
    return f"decode steps: {told}"


def _origin(profile: Profile) -> str:
    if profile.origin.how == "probes":
        return f"{profile.origin.points} probed steps of {profile.engine}, {profile.origin.date}"
    chip = f"; {profile.chip.source}" if profile.chip is not None else ""
    return f"data sheet and the efficiencies of its class (docs/accuracy.md){chip}"
