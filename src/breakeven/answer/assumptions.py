"""Every number an answer rests on, and where it comes from."""

from __future__ import annotations

from collections.abc import Sequence

from breakeven.answer.evaluate import Evaluated
from breakeven.answer.study.plan import StudyPlan
from breakeven.forecast.constants import Profile
from breakeven.price.workload import priced_traffic
from breakeven.results.cost import Api, Own, Pricing, Rented
from breakeven.results.decision import Assumption
from breakeven.traffic.traces.rows import TraceRows
from breakeven.traffic.workload import slo_text


def assumptions_of(plan: StudyPlan, trace: TraceRows | None, found: Sequence[Evaluated]) -> list[Assumption]:
    """Traffic, service level, prices, machines and their errors, in the order a reader doubts them."""
    study = plan.path.name
    traffic = priced_traffic(plan.workload, trace)
    prompt, output = traffic.prompt_tokens, traffic.output_tokens
    rows = [
        Assumption(what="load", value=f"{plan.load_per_s:.4g} requests/s", source=study),
        Assumption(
            what="requests",
            value=f"{prompt:.0f} prompt and {output:.0f} output tokens on average",
            source=plan.trace.name if plan.trace is not None else study,
        ),
        Assumption(what="arrivals", value=_arrivals(plan), source=plan.trace.name if plan.trace is not None else study),
        Assumption(what="SLO", value=f"{slo_text(plan.slo)} for {plan.good_share:.0%} of requests", source=study),
    ]
    for e in found:
        if e.pricing is not None:
            source = e.plan.price_source or (e.notes[0] if e.notes else study)
            rows.append(Assumption(what=f"price of {e.plan.name}", value=_price(e.pricing), source=source))
    profiles = {e.model.profile.name: e.model.profile for e in found if e.model is not None}
    for profile in profiles.values():
        rows.append(Assumption(what=f"speed of {profile.name}", value=_error(profile), source=_origin(profile)))
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
        if e.model is not None and e.spec is not None and e.spec.is_moe:
            rows.append(
                Assumption(
                    what=f"routing of {e.plan.name}",
                    value="uniform over the experts",
                    source="no routing was traced; `breakeven trace` measures it on real weights",
                )
            )
    return rows


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
