"""From a verdict to what clients may ask for: whom it serves with, and who of them answers which public model.

A part of the traffic that only some candidates may serve becomes a public model of its own: no request says which part
it is of, so whoever sends it has to. The public model of all backends has those alone that may serve all of it.
Machines that are to be filled, with the rest elsewhere, are filled first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from breakeven.errors import UserError
from breakeven.gateway.plan.load import PUBLIC_NAME
from breakeven.gateway.plan.model import PolicyPlan
from breakeven.results.decision import ABOVE, CandidateResult, Decision, TrafficShare
from breakeven.traffic.workload import Slo


def candidates_of(decision: Decision) -> list[CandidateResult]:
    """Those worth routing to: winners and runners-up at any load, and parts of a mix; the winner of now first.

    Who may not serve all of the traffic is among them only where the verdict gives it a part. Raises UserError where
    the decision rules everybody out, or leaves nobody who may serve all of it and shares it out to nobody.
    """
    named: dict[str, None] = {}
    verdict = decision.verdict
    shared = {share.candidate for share in _shares(decision)}
    for name in (verdict.winner, *(share.candidate for share in verdict.shares)):
        if name is not None:
            named[name] = None
    for region in decision.regions:
        for name in (region.winner, region.runner_up):
            if name is not None:
                named[name] = None
    # A part with a floor of its own lets in whom the study's floor rules out.
    able = {each.name: each for each in decision.candidates if not each.ruled_out or each.name in shared}
    chosen = [able[name] for name in named if name in able] or list(able.values())
    if not chosen:
        raise UserError(f"{decision.name}: the decision rules every candidate out; change the study and decide again")
    kept = [each for each in chosen if _serves_all(each) or each.name in shared]
    if not kept:
        raise UserError(
            f"{decision.name}: nobody may serve all parts of the traffic, and the decision shares them out to nobody; "
            "change the study and decide again"
        )
    return kept


def policies_of(
    decision: Decision,
    chosen: Sequence[CandidateResult],
    backends: Mapping[str, Sequence[str]],
    whole: PolicyPlan,
) -> tuple[tuple[PolicyPlan, ...], dict[str, str]]:
    """The public models of a decision, and a comment on some by name.

    `backends`: names by candidate. `whole`: the model of all, to be cut to those that may serve all of the traffic.
    """
    shares = _shares(decision)
    if any(share.traffic == ABOVE for share in shares):
        # Paid for whether they are used or not: what one more request costs there is not what the verdict went by.
        base = next(share.candidate for share in shares if share.traffic != ABOVE)
        order = dict.fromkeys((*backends[base], *whole.backends))
        return (replace(whole, policy="spill", first=backends[base][0], backends=tuple(order)),), {}
    if all(map(_serves_all, chosen)):
        return (whole,), {}
    slo = Slo(ttft_s=decision.slo.ttft_s, tpot_s=decision.slo.tpot_s)
    taken = {PUBLIC_NAME, *(name for names in backends.values() for name in names)}
    policies: list[PolicyPlan] = []
    notes: dict[str, str] = {}
    for share in shares:
        name = _once(share.traffic, taken)
        taken.add(name)
        policies.append(PolicyPlan(model=name, backends=tuple(backends[share.candidate]), slo=slo))
        notes[name] = (
            f"The part {share.traffic!r}: {share.share:.0%} of the requests that were decided on. Clients ask for it\n"
            "by this name, as no request says which part it is of."
        )
    if everywhere := [name for each in chosen if _serves_all(each) for name in backends[each.name]]:
        policies.append(PolicyPlan(model=PUBLIC_NAME, backends=tuple(everywhere), slo=slo))
    return tuple(policies), notes


def _shares(decision: Decision) -> list[TrafficShare]:
    there = {each.name for each in decision.candidates}
    return [share for share in decision.verdict.shares if share.share > 0 and share.candidate in there]


def _serves_all(found: CandidateResult) -> bool:
    """Whom a part alone lets in is ruled out for the rest."""
    return not found.barred_from and not found.ruled_out


def _once(text: str, taken: Iterable[str]) -> str:
    stem = name = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:90] or "part"
    number = 2
    while name in taken:
        name, number = f"{stem}-{number}", number + 1
    return name
