"""Two arms compared: means, ratios and differences with intervals that hold at every look; and when that is enough."""

from __future__ import annotations

import math
from dataclasses import dataclass

from breakeven.gateway.experiment.tally import METRICS, SHARES, Tally
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
class Stop:
    """Why an A/B or shadow experiment ends: `state` stopped (sure) or done (it never will be)."""

    state: str
    winner: str | None
    reason: str


def difference(tally: Tally, metric: str, alpha: float, tightest_at: float = TIGHTEST_AT) -> Difference:
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


def differences(plan: ExperimentPlan, tally: Tally) -> list[Difference]:
    """Of every metric that both arms have, each at the plan's confidence (not all of them at once)."""
    found = [difference(tally, metric, 1 - plan.confidence, tightest_at(plan)) for metric in METRICS]
    return [one for one in found if one.difference is not None]


def arms(plan: ExperimentPlan, tally: Tally) -> list[ArmState]:
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


def stop(plan: ExperimentPlan, tally: Tally) -> Stop | None:
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
            return Stop("stopped", winner, _sentence(plan, one, counts))
    if sum(tally.requests) >= plan.most:
        return Stop("done", None, f"no difference in {SAID[plan.metric]} found in {sum(tally.requests):,} requests")
    return None


def progress(plan: ExperimentPlan, tally: Tally) -> str:
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
