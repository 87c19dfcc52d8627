"""A canary's steps as a pure state machine: raise the share while it goes well, go back to 0 when it is surely worse.

Each step is judged by its own requests alone: while shares differ, arms saw different hours, and adding steps up would
mix that in (Simpson's paradox). Only the last step, where everything goes to the treatment, is compared with the
control of the step before.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from breakeven.gateway.experiment.compare import SAID, difference, tightest_at
from breakeven.gateway.experiment.tally import SHARES, Tally
from breakeven.gateway.plan.model import ExperimentPlan
from breakeven.gateway.seen.snapshot import Difference

SLACK = 0.01
"""A share of errors or refusals this much above the control's still goes well: at a few hundred requests less is not
to be told from nothing."""


class Canary(msgspec.Struct, frozen=True):
    """Where a canary stands. `step`: index into the plan's steps."""

    step: int = 0
    state: Literal["running", "stepped_back", "done"] = "running"
    reason: str = ""


def share(plan: ExperimentPlan, canary: Canary) -> float:
    """The treatment's share now."""
    if canary.state == "stepped_back":
        return 0.0
    return plan.steps[-1] if canary.state == "done" else plan.steps[canary.step]


def watched(plan: ExperimentPlan) -> tuple[str, ...]:
    """Metrics that can step it back: the plan's own and the share of errors."""
    return (plan.metric,) if plan.metric == "errors" else (plan.metric, "errors")


def look(plan: ExperimentPlan, canary: Canary, tally: Tally) -> Canary:
    """The next state, from the present step's `tally`. A new `step` means: begin a new tally (`next_tally`).

    Back to 0 as soon as the lower end of treatment / control is above 1 + `tolerance` in a watched metric. The error
    1 - `confidence` is divided among metrics and steps, so an equal treatment is stepped back in at most that share of
    canaries. Up after `hold` requests of the treatment when no estimate is above 1 + `tolerance` (for shares: and not
    more than `SLACK` above). A step that does not go well for `most` requests is stepped back too.
    """
    if canary.state != "running":
        return canary
    alpha, limit = _alpha(plan), 1 + plan.tolerance
    good = True
    for metric in watched(plan):
        one = difference(tally, metric, alpha, _tightest(plan))
        if one.low is not None and one.low > limit:
            return Canary(canary.step, "stepped_back", _why_back(plan, canary, one))
        good = good and _went_well(plan, tally, one)
    seen = tally.count("errors", 1)
    at = plan.steps[canary.step]
    if seen >= plan.hold and good:
        if canary.step + 1 == len(plan.steps):
            return Canary(canary.step, "done", f"{seen:,} requests went well at {at:.0%}")
        following = plan.steps[canary.step + 1]
        return Canary(canary.step + 1, "running", f"raised to {following:.0%} after {seen:,} good requests at {at:.0%}")
    if seen >= plan.most:
        return Canary(canary.step, "stepped_back", f"{seen:,} requests at {at:.0%} and still not as good")
    return canary


def progress(plan: ExperimentPlan, canary: Canary, tally: Tally) -> str:
    """In words, what the present step waits for."""
    at, seen = plan.steps[canary.step], tally.count("errors", 1)
    if seen < plan.hold:
        return f"at {at:.0%}, {seen:,} of {plan.hold:,} requests seen"
    alpha = _alpha(plan)
    worse = [m for m in watched(plan) if not _went_well(plan, tally, difference(tally, m, alpha, _tightest(plan)))]
    said = " and ".join(SAID[metric] for metric in worse)
    return f"held at {at:.0%} after {seen:,} requests: {plan.treatment}'s {said} looks worse, not surely"


def _alpha(plan: ExperimentPlan) -> float:
    return (1 - plan.confidence) / len(watched(plan)) / len(plan.steps)


def _tightest(plan: ExperimentPlan) -> float:
    return min(tightest_at(plan), float(plan.hold))


def next_tally(plan: ExperimentPlan, after: Canary, tally: Tally) -> Tally:
    """What the step that begins starts with: nothing, or at 100 % the last control there was."""
    return tally.control_only() if plan.steps[after.step] >= 1 else Tally()


def _went_well(plan: ExperimentPlan, tally: Tally, one: Difference) -> bool:
    if one.metric in SHARES:
        hits, count = tally.hits[one.metric][:2]
        allowed = (hits / count if count else 0.0) * plan.tolerance + SLACK
        return one.difference is not None and one.difference <= allowed
    # Without a ratio the metric is not reported at all (no price, no streams), and cannot hold a canary up.
    return one.ratio is None or one.ratio <= 1 + plan.tolerance


def _why_back(plan: ExperimentPlan, canary: Canary, one: Difference) -> str:
    about = "at least" if one.ratio is None else f"{one.ratio:.3g} times, surely more than"
    return (
        f"stepped back at {plan.steps[canary.step]:.0%}: {plan.treatment}'s {SAID[one.metric]} is {about} "
        f"{one.low:.3g} times {plan.control}'s"
    )
