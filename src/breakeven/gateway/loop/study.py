"""A study of logged traffic: an existing study with its load replaced, or one made of a gateway's own backends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec

from breakeven.decide.study.load import RANGE
from breakeven.decide.study.model import CandidatePlan, QualityPlan, StudyPlan
from breakeven.decide.study.model import PolicyPlan as EnginePolicy
from breakeven.errors import UserError
from breakeven.gateway.loop.traffic import Logged
from breakeven.gateway.plan.model import BackendPlan, GatewayPlan, PolicyPlan
from breakeven.spec.cost import Api
from breakeven.spec.workload import Arrivals, Slo, Workload

GOOD_SHARE = 0.99
"""Of requests that must keep the service level, as in a study that does not say."""


def study_on_log(plan: StudyPlan, logged: Logged, trace: Path) -> StudyPlan:
    """`plan` with the traffic of `logged`, which lies in the file `trace`. Candidates, prices and SLO stay."""
    load_per_s = logged.rate_per_s
    return replace(
        plan,
        workload=_workload(logged, trace, plan.workload),
        trace=trace,
        load_per_s=load_per_s,
        low_per_s=min(plan.low_per_s, load_per_s / RANGE),
        high_per_s=max(plan.high_per_s, load_per_s * RANGE),
        cached_share=plan.cached_share if logged.cached_share is None else logged.cached_share,
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
        slo=policy.slo,
        good_share=GOOD_SHARE,
        low_per_s=load_per_s / RANGE,
        high_per_s=load_per_s * RANGE,
        cached_share=logged.cached_share or 0.0,
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
        location=plan.place,
        pricing=plan.price,
        policy=EnginePolicy(max_sequences=plan.slots),
        api_speed=plan.speed,
        price_source="the gateway's file",
    )
