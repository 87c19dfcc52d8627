"""Decide again on the traffic that really came, and compare with the verdict before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from breakeven.decide.decide import Phase, decide
from breakeven.decide.study.load import read_study
from breakeven.decide.study.yaml_file import read_mapping
from breakeven.errors import UserError
from breakeven.gateway.loop.result import Fleet, LogDecision, LoggedTraffic
from breakeven.gateway.loop.study import study_of_gateway, study_on_log
from breakeven.gateway.loop.traffic import Logged, workload_of_log, write_trace
from breakeven.gateway.plan.load import read_gateway
from breakeven.spec.decision import DECISION_SCHEMA, CandidateResult, Decision, Verdict
from breakeven.spec.prediction import Span
from breakeven.version import __version__

TRACE = "traffic.csv"
RESULT = "result.json"


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
        fleets=[fleet_of(each, logged) for each in after.candidates],
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
    loads = f"at {before.load_per_s:.3g} requests/s as planned and at the {after.load_per_s:.3g} that came"
    if stands:
        return f"The verdict still stands, {loads}: {after.verdict.sentence}"
    return f"The verdict has changed, {loads}. Before: {before.verdict.sentence} Now: {after.verdict.sentence}"


def fleet_of(found: CandidateResult, logged: Logged) -> Fleet:
    """What `found` alone would have cost over the logged period: its hourly cost at the mean load, times the hours.

    Whole machines that run all the time, as many as keep the service level through the log's own bursts.
    """
    point = min(found.cost, key=lambda each: abs(each.rate_per_s - logged.rate_per_s), default=None)
    hours = logged.rows.span_s / 3600.0
    hourly = None if point is None else point.usd_per_hour
    return Fleet(
        candidate=found.name,
        replicas=None if point is None else point.replicas,
        usd_per_hour=hourly,
        usd=None
        if hourly is None
        else Span(value=hourly.value * hours, low=hourly.low * hours, high=hourly.high * hours),
        ruled_out=list(found.ruled_out),
    )


def _saved(path: Path | None) -> tuple[Decision | None, Path | None]:
    """A saved decision, where there is one that this version reads."""
    if path is None or not path.is_file():
        return None, None
    try:
        decision = msgspec.json.decode(path.read_bytes(), type=Decision)
    except (msgspec.DecodeError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: is no decision ({error}); remove it, or decide the study again") from None
    if decision.schema != DECISION_SCHEMA:
        raise UserError(f"{path}: has schema {decision.schema!r}, this version reads {DECISION_SCHEMA!r}; decide again")
    return decision, path
