"""Two arms compared: means, ratios and differences with intervals that hold at every look; and what follows from them.

An A/B or shadow experiment ends when that is enough. A canary's steps are a pure state machine: raise the share while
it goes well, go back to 0 when it is surely worse. Each step is judged by its own requests alone: while shares differ,
arms saw different hours, and adding steps up would mix that in (Simpson's paradox). Only the last step, where
everything goes to the treatment, is compared with the control of the step before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import msgspec

from breakeven.gateway.experiment.tally import METRICS, SHARES, ArmTally
from breakeven.gateway.plan.model import ExperimentPlan
from breakeven.gateway.seen.snapshot import ArmState, Difference
from breakeven.stats.moments import Interval
from breakeven.stats.sequential import TIGHTEST_AT, difference_of_proportions

SAID = {
    "ttft": "time to first token",
    "tpot": "time per output token",
    "e2e": "time to the end",
    "usd": "cost",
    "output_tokens": "length of answers",
    "errors": "share of errors",
    "refusals": "share of refusals",
}


@dataclass(frozen=True, slots=True)
class Ending:
    """Why an A/B or shadow experiment ends: `state` stopped (sure) or done (it never will be)."""

    state: str
    winner: str | None
    reason: str


def difference(tally: ArmTally, metric: str, alpha: float, tightest_at: float = TIGHTEST_AT) -> Difference:
    """Treatment against control in one metric; ends are None where nothing can be said yet (or of a ratio: no bound).

    Shares of errors and refusals have the exact interval, widened to the clustered one where users come again.
    """
    moments = tally.moments[metric]
    control, treatment = moments.mean(0), moments.mean(1)
    found = Difference(metric=metric, ratio=None, low=None, high=None)
    if metric in SHARES:
        c_hits, c_count, t_hits, t_count = tally.hits[metric]
        if not c_count or not t_count:
            return found
        low, high, ratio_low, ratio_high = difference_of_proportions((c_hits, c_count), (t_hits, t_count), alpha)
        found.difference = t_hits / t_count - c_hits / c_count
        found.difference_low, found.difference_high = low, high
        found.ratio = t_hits / t_count / (c_hits / c_count) if c_hits else None
        found.low, found.high = ratio_low, ratio_high
        if tally.clustered:
            _widen(found, moments.difference(alpha, tightest_at), moments.ratio(alpha, tightest_at))
        return found
    if control is None or treatment is None:
        return found
    found.difference = treatment - control
    found.ratio = treatment / control if control > 0 else None
    if apart := moments.difference(alpha, tightest_at):
        found.difference_low, found.difference_high = apart.low, apart.high
    if ratio := moments.ratio(alpha, tightest_at):
        found.low, found.high = ratio.low, ratio.high
    return found


def _widen(found: Difference, apart: Interval | None, ratio: Interval | None) -> None:
    """To hold the clustered intervals as well; without them (too few users) nothing is sure."""
    if apart is None or found.difference_low is None or found.difference_high is None:
        found.difference_low = found.difference_high = found.low = found.high = None
        return
    found.difference_low = min(found.difference_low, apart.low)
    found.difference_high = max(found.difference_high, apart.high)
    if ratio is not None:
        found.low = None if found.low is None else min(found.low, ratio.low)
        found.high = None if found.high is None else max(found.high, ratio.high)


def differences(plan: ExperimentPlan, tally: ArmTally) -> list[Difference]:
    """Of every metric that both arms have, each at the plan's confidence (not all of them at once)."""
    found = [difference(tally, metric, 1 - plan.confidence, tightest_at(plan)) for metric in METRICS]
    return [one for one in found if one.difference is not None]


def arms(plan: ExperimentPlan, tally: ArmTally) -> list[ArmState]:
    """Control and treatment with their means."""
    made = []
    for arm, (name, backend) in enumerate((("control", plan.control), ("treatment", plan.treatment))):
        means = {}
        for metric in METRICS:
            if metric in SHARES:
                hits, count = tally.hits[metric][2 * arm : 2 * arm + 2]
                if count:
                    means[metric] = hits / count
            elif (mean := tally.moments[metric].mean(arm)) is not None:
                means[metric] = mean
        made.append(ArmState(name=name, backend=backend, requests=tally.requests[arm], means=means))
    return made


def tightest_at(plan: ExperimentPlan) -> float:
    """Requests an arm at which intervals are tightest: ten times the least, where most stops are expected."""
    return float(max(100, min(10 * plan.least, plan.most // 2)))


def stop(plan: ExperimentPlan, tally: ArmTally) -> Ending | None:
    """Whether an A/B or shadow experiment is over; None: not yet.

    It stops when the interval of its metric leaves "no difference" after `least` requests an arm, or without a
    difference after `most` in both together. It stops for a difference that is not there in at most
    1 - `confidence` of experiments, however long they run and however often this is called.
    """
    counts = tally.count(plan.metric, 0), tally.count(plan.metric, 1)
    if min(counts) >= plan.least:
        one = difference(tally, plan.metric, 1 - plan.confidence, tightest_at(plan))
        lower = one.difference_high is not None and one.difference_high < 0
        higher = one.difference_low is not None and one.difference_low > 0
        if one.low is not None and plan.metric not in SHARES:
            # Ratios have the better normal limit where values are skewed, as times are.
            lower, higher = one.high is not None and one.high < 1, one.low > 1
        if lower or higher:
            # Fewer tokens is not better, only shorter.
            winner = None if plan.metric == "output_tokens" else plan.treatment if lower else plan.control
            return Ending("stopped", winner, _sentence(plan, one, counts))
    if sum(tally.requests) >= plan.most:
        return Ending("done", None, f"no difference in {SAID[plan.metric]} found in {sum(tally.requests):,} requests")
    return None


def progress(plan: ExperimentPlan, tally: ArmTally) -> str:
    """In words, why it still runs."""
    counts = tally.count(plan.metric, 0), tally.count(plan.metric, 1)
    if min(counts) < plan.least:
        return (
            f"{counts[0]:,} and {counts[1]:,} requests with a {SAID[plan.metric]}; "
            f"the first look is at {plan.least:,} each"
        )
    one = difference(tally, plan.metric, 1 - plan.confidence, tightest_at(plan))
    if one.difference_low is None:
        return f"too few different users for an interval on {SAID[plan.metric]}"
    return f"no difference yet: {_sentence(plan, one, counts)}"


def _sentence(plan: ExperimentPlan, one: Difference, counts: tuple[int, int]) -> str:
    after = f"after {counts[0]:,} and {counts[1]:,} requests, at {plan.confidence * 100:g} %"
    what = f"{plan.treatment}'s {SAID[plan.metric]}"
    if plan.metric in SHARES or one.low is None or one.ratio is None:
        ends = [one.difference or 0.0, one.difference_low or 0.0, one.difference_high or 0.0]
        if plan.metric in SHARES:
            points = [f"{100 * value:+.2f}" for value in ends]
            return f"{what} is {points[0]} points ({points[1]} to {points[2]}) from {plan.control}'s {after}"
        return f"{what} is {ends[0]:+.4g} ({ends[1]:+.4g} to {ends[2]:+.4g}) from {plan.control}'s {after}"
    high = math.inf if one.high is None else one.high
    return f"{what} is {one.ratio:.3g} times ({one.low:.3g} to {high:.3g}) {plan.control}'s {after}"


SLACK = 0.01
"""A share of errors or refusals this much above the control's still goes well: at a few hundred requests less is not
to be told from nothing."""


class Canary(msgspec.Struct, frozen=True):
    """Where a canary stands. `step`: index into the plan's steps."""

    step: int = 0
    state: Literal["running", "stepped_back", "done"] = "running"
    reason: str = ""


def canary_share(plan: ExperimentPlan, canary: Canary) -> float:
    """The treatment's share now."""
    if canary.state == "stepped_back":
        return 0.0
    return plan.steps[-1] if canary.state == "done" else plan.steps[canary.step]


def watched(plan: ExperimentPlan) -> tuple[str, ...]:
    """Metrics that can step it back: the plan's own and the share of errors."""
    return (plan.metric,) if plan.metric == "errors" else (plan.metric, "errors")


def canary_look(plan: ExperimentPlan, canary: Canary, tally: ArmTally) -> Canary:
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


def canary_progress(plan: ExperimentPlan, canary: Canary, tally: ArmTally) -> str:
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


def canary_tally(plan: ExperimentPlan, after: Canary, tally: ArmTally) -> ArmTally:
    """What the step that begins starts with: nothing, or at 100 % the last control there was."""
    return tally.control_only() if plan.steps[after.step] >= 1 else ArmTally()


def _went_well(plan: ExperimentPlan, tally: ArmTally, one: Difference) -> bool:
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
