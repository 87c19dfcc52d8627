"""A study of logged traffic: an existing study with its load replaced, or one made of a gateway's own backends.

Decide again on the traffic that really came, and compare with the verdict before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from breakeven.answer.decide import Phase, decide
from breakeven.answer.study.load import RANGE, read_study, recorded_hours
from breakeven.answer.study.plan import CandidatePlan, Incoming, QualityPlan, SchedulerLimits, ServiceLevel, StudyPlan
from breakeven.answer.study.values import DAY_HOURS
from breakeven.errors import UserError
from breakeven.gateway.loop.traffic import Logged, workload_of_log, write_trace
from breakeven.gateway.plan.load import read_gateway
from breakeven.gateway.plan.model import BackendPlan, GatewayPlan, PolicyPlan
from breakeven.model.readers.typed import read_mapping
from breakeven.results.cost import Api
from breakeven.results.decision import (
    DECISION_SCHEMA,
    CandidateResult,
    Day,
    Decision,
    LogDecision,
    LoggedFleet,
    LoggedTraffic,
    Verdict,
)
from breakeven.results.point import nearest
from breakeven.results.store import RESULT
from breakeven.stats.estimate import exactly
from breakeven.traffic.workload import Arrivals, Slo, Workload
from breakeven.version import __version__


def study_on_log(plan: StudyPlan, logged: Logged, trace: Path) -> StudyPlan:
    """`plan` with the traffic of `logged`, which lies in the file `trace`. Candidates, prices and SLO stay.

    A long log is a day of its own hours where the study is one: of one load it asks something else, such as who shares
    the traffic. Of a shorter log nobody knows the other hours.
    """
    hours = recorded_hours(logged.rows) if plan.hours_per_s else ()
    load_per_s = max(hours, default=logged.rate_per_s)
    return replace(
        plan,
        workload=_workload(logged, trace, plan.workload),
        trace=trace,
        load_per_s=load_per_s,
        low_per_s=min(plan.low_per_s, load_per_s / RANGE),
        high_per_s=max(plan.high_per_s, load_per_s * RANGE),
        hours_per_s=hours,
        # The trace written here is our own, whatever the study's was.
        load=replace(
            plan.load,
            trace_format=None,
            cached=plan.load.cached if logged.cached_share is None else logged.cached_share,
        ),
    )


def study_of_gateway(plan: GatewayPlan, logged: Logged, trace: Path) -> tuple[StudyPlan, list[str]]:
    """A study of the backends of `plan` on its own traffic, and the backends of which no speed or price is known.

    The service level is that of the public model most requests asked for. Raises UserError where none asks for one, or
    no backend can be predicted.
    """
    policy = _busiest(plan, logged)
    backends = [plan.backend(name) for name in policy.backends]
    known = [each for each in backends if _can_judge(each)]
    # Replicas are what a fleet has several of: one candidate stands for them all.
    groups: dict[str, list[BackendPlan]] = {}
    for each in known:
        groups.setdefault(each.replica_of or each.name, []).append(each)
    left = [each.name for each in backends if each not in known]
    if not groups:
        raise UserError(
            f"{plan.path}: no backend of {policy.model} has a model and a machine, or a price by token, so none can be "
            "judged; add them, or give a study file"
        )
    if policy.slo == Slo():
        raise UserError(
            f"{plan.path}: policies: {policy.model} asks for no slo, by which a decision is made; add slo: {{ttft: 2s}}"
        )
    scores = {group[0].name: group[0].quality for group in groups.values() if group[0].quality is not None}
    whole = len(scores) == len(groups)
    load_per_s = logged.rate_per_s
    study = StudyPlan(
        name=f"{policy.model}-from-log",
        question="Does what the gateway was set up for still suit the traffic it gets?",
        path=plan.path or trace,
        candidates=tuple(_candidate(group[0]) for group in groups.values()),
        workload=_workload(logged, trace, None),
        trace=trace,
        load_per_s=load_per_s,
        service=ServiceLevel(ttft_s=policy.slo.ttft_s, tpot_s=policy.slo.tpot_s),
        low_per_s=load_per_s / RANGE,
        high_per_s=load_per_s * RANGE,
        load=Incoming(trace=str(trace), cached=logged.cached_share or 0.0),
        quality=QualityPlan(
            source="own" if whole else None,
            scores={name: score for name, score in scores.items() if score is not None} if whole else {},
            floor=policy.quality_floor if whole else None,
        ),
    )
    return study, left


def _workload(logged: Logged, trace: Path, asked: Workload | None) -> Workload:
    fresh = Workload(arrivals=Arrivals(process="trace", trace=trace.name), sharing=logged.rows.session is not None)
    if asked is None:
        return fresh
    return msgspec.structs.replace(fresh, requests=asked.requests, languages=asked.languages, seed=asked.seed)


def _busiest(plan: GatewayPlan, logged: Logged) -> PolicyPlan:
    """The policy most requests asked for; the first where all of them named a backend."""
    return max(plan.policies, key=lambda each: logged.models.get(each.model, 0))


def _can_judge(plan: BackendPlan) -> bool:
    return isinstance(plan.price, Api) or (plan.model is not None and plan.machine is not None)


def _candidate(plan: BackendPlan) -> CandidatePlan:
    return CandidatePlan(
        name=plan.name,
        model=plan.model,
        machine=plan.machine,
        engine=plan.engine,
        devices=plan.devices,
        format=plan.format,
        kv=plan.kv,
        location=plan.place,
        pricing=plan.price,
        policy=SchedulerLimits(max_sequences=plan.slots),
        api_speed=plan.speed,
        price_source="the gateway's file",
    )


TRACE = "traffic.csv"


def decide_from_log(
    study: Path,
    logs: Sequence[Path],
    out: Path,
    on_phase: Phase = lambda phase, subject: None,
    saved: Path | None = None,
) -> LogDecision:
    """Decide `study`, a study or a gateway file, on the traffic in `logs`; the trace is written into `out`.

    The verdict before is that in `saved` (a result.json), where it is of this study; else a study is decided as it
    stands, and a gateway file has the decision that lies beside it, or none. Raises UserError for what cannot be read.
    """
    on_phase("reading", "the log")
    found = read_mapping(
        study,
        too_large="give a study or a gateway file",
        give="give the study or the gateway file that was decided on",
        keys="the keys of a study (`candidates:`) or of a gateway (`backends:`)",
    )
    logged = workload_of_log(logs)
    trace = write_trace(logged.rows, out / TRACE).resolve()
    left: list[str] = []
    before: Decision | None = None
    source: Path | None = None
    if "backends" in found:
        plan, left = study_of_gateway(read_gateway(study), logged, trace)
        before, source = _saved(study.resolve().parent / RESULT)
    else:
        asked = read_study(study)
        before, source = _saved(saved)
        if before is None or before.name != asked.name:
            before, source = decide(asked, on_phase), None
        plan = study_on_log(asked, logged, trace)
    after = decide(plan, on_phase)
    stands = None if before is None else same_verdict(before.verdict, after.verdict)
    return LogDecision(
        version=__version__,
        traffic=LoggedTraffic(
            directories=[str(each) for each in logs],
            requests=len(logged.rows),
            left_out=logged.left_out,
            estimated=logged.estimated,
            first_s=logged.first_s,
            span_s=logged.rows.span_s,
            rate_per_s=logged.rate_per_s,
            usd=logged.usd,
            cached_share=logged.cached_share,
            by_backend=dict(logged.backends),
            trace=str(trace),
        ),
        before=None if before is None else before.verdict,
        before_load_per_s=None if before is None else before.load_per_s,
        before_from=None if source is None else str(source),
        stands=stands,
        sentence=sentence_of(before, after, stands),
        fleets=[fleet_of(each, logged, after.day) for each in after.candidates],
        left_out_backends=left,
        decision=after,
    )


def same_verdict(before: Verdict, after: Verdict) -> bool:
    """The same kind of answer, carried out by the same candidates."""
    who = [(each.outcome, each.winner, sorted({share.candidate for share in each.shares})) for each in (before, after)]
    return who[0] == who[1]


def sentence_of(before: Decision | None, after: Decision, stands: bool | None) -> str:
    """Whether the verdict stands, in words."""
    if before is None or stands is None:
        return f"On the logged traffic: {after.verdict.sentence}"
    busiest = [" in the busiest hour" if each.day is not None else "" for each in (before, after)]
    loads = (
        f"at {before.load_per_s:.3g} requests/s{busiest[0]} as planned and at the {after.load_per_s:.3g} that came"
        f"{busiest[1]}"
    )
    if stands:
        return f"The verdict still stands, {loads}: {after.verdict.sentence}"
    return f"The verdict has changed, {loads}. Before: {before.verdict.sentence} Now: {after.verdict.sentence}"


def fleet_of(found: CandidateResult, logged: Logged, day: Day | None = None) -> LoggedFleet:
    """What `found` alone would have cost over the logged period: its mean hourly cost, times the hours.

    Of machines that `day` has a bill of, that bill's, and as many as its busiest hour runs; None of those that are
    ruled out and have none; else those of the mean load, which run all the time, as many as keep the service level
    through the log's own bursts.
    """
    rates = [each.rate_per_s for each in found.cost]
    point = found.cost[nearest(rates, logged.rate_per_s)] if rates else None
    hours = logged.rows.span_s / 3600.0
    hourly = None if point is None else point.usd_per_hour
    if point is not None and point.replicas is None:
        # Of what is paid by the token every request counts, and the load nearest to the mean is not the mean.
        hourly = point.usd_per_hour.scaled(logged.rate_per_s / point.rate_per_s)
    replicas = None if point is None else point.replicas
    bill = next((each for each in day.bills if each.candidate == found.name), None) if day is not None else None
    if day is not None and bill is not None and replicas is not None:
        hourly, most = bill.usd_per_day.scaled(1 / DAY_HOURS), max(bill.machines)
        busiest = found.cost[nearest(rates, max(day.hours_per_s))].replicas
        replicas = busiest if busiest is not None and busiest.value == most else exactly(most)
    elif day is not None and day.bills and replicas is not None and found.ruled_out:
        hourly = replicas = None  # no bill of these hours: what the mean load costs is another question
    return LoggedFleet(
        candidate=found.name,
        replicas=replicas,
        usd_per_hour=hourly,
        usd=None if hourly is None else hourly.scaled(hours),
        ruled_out=list(found.ruled_out),
    )


def _saved(path: Path | None) -> tuple[Decision | None, Path | None]:
    """A saved decision, where there is one that this version reads."""
    if path is None or not path.is_file():
        return None, None
    try:
        decision = msgspec.json.decode(path.read_bytes(), type=Decision)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OSError) as error:
        raise UserError(f"{path}: is no decision ({error}); remove it, or decide the study again") from None
    if decision.schema != DECISION_SCHEMA:
        raise UserError(f"{path}: has schema {decision.schema!r}, this version reads {DECISION_SCHEMA!r}; decide again")
    return decision, path
