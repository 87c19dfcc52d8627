"""From the log of a capacity search to its result: nothing else is read, so any number can be computed again."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from breakeven.errors import UserError
from breakeven.measure.events import Event, LoadStarted, LoadStudyStarted, StudyStopped, iter_events
from breakeven.measure.load.columns import LoadRun, collect
from breakeven.measure.load.part import measured_part, meets
from breakeven.measure.load.points import cached_share
from breakeven.results.load import CapacityStudy, Limit
from breakeven.runs.capacity_search import Search, SearchPlan, Tried, bracket, is_monotone, limit_of
from breakeven.runs.load_study import asked_again
from breakeven.stats.sequential import decide, spread
from breakeven.traffic.workload import Slo, slo_text

RATE, USERS, PROBE = "req/s", "users", "one at a time"
"""Units in the names of loads; the probe is a closed loop of one stream without think time."""
_NAME = re.compile(r"(?P<load>[\d.]+(?:e[+-]?\d+)?) (?P<axis>req/s|users?)(?P<again> again)?")


@dataclass(frozen=True, slots=True)
class Outcome:
    """All runs of one trial together: requests that count, those that met the SLO, and how far they share their fate.

    `seconds`: mean time from due to done of the answered ones; `per_s`: answered per second; None without any.
    """

    name: str
    requests: int
    good: int
    spread: float
    seconds: float | None
    per_s: float | None


def name_of(axis: str, load: float, attempt: int = 1) -> str:
    """What a trial is called in the log: "4.2 req/s", "24 users", "24 users again"."""
    unit = "user" if axis == USERS and load == 1 else axis
    return f"{load:.6g} {unit}{' again' if attempt > 1 else ''}"


def outcomes(log: Iterable[Event], slo: Slo) -> list[Outcome]:
    """What came of every load that was played to its end, in the order they were begun.

    Runs without a request that counts are left out, and interrupted ones: what we cancelled missed nothing by itself.
    """
    found = []
    for name, runs in itertools.groupby((run for run in collect(log) if run.ok), key=lambda run: run.load):
        if (outcome := _outcome(name, list(runs), slo)) is not None:
            found.append(outcome)
    return found


def _outcome(name: str, runs: list[LoadRun], slo: Slo) -> Outcome | None:
    flags: list[list[bool]] = []
    took_ns, answered, span_ns = 0.0, 0, 0
    for part in map(measured_part, runs):
        requests, counted = part.run.requests, part.counted_N
        in_order = requests.due_N[counted].argsort(kind="stable")
        flags.append(meets(requests, slo)[counted][in_order].tolist())
        done = counted & requests.answered
        took_ns += float((requests.done_N[done] - requests.due_N[done]).sum())
        answered += int(done.sum())
        if done.any():
            span_ns += int(requests.done_N[done].max()) - part.start_ns
    n = sum(map(len, flags))
    if not n:
        return None
    return Outcome(
        name=name,
        requests=n,
        good=sum(map(sum, flags)),
        spread=spread(flags),
        seconds=took_ns / answered / 1e9 if answered else None,
        per_s=answered / (span_ns / 1e9) if span_ns > 0 else None,
    )


def capacity_study(log: Path, because: str | None = None) -> CapacityStudy:
    """The result of a capacity search from its log; `because` says why it ended where the log does not yet.

    Raises UserError when `log` holds none.
    """
    opening, said, think_s = _frame(log)
    if opening is None or opening.slo is None or opening.target_share is None or opening.confidence is None:
        raise UserError(f"{log} holds no capacity search; `breakeven capacity` writes one")
    tried = outcomes(iter_events(log), opening.slo)
    plan = SearchPlan(start=1, lowest=1, highest=1, target_share=opening.target_share, confidence=opening.confidence)
    target = f"{opening.target_share:.0%} of requests meet {slo_text(opening.slo)}"
    rate, users = (_limit(axis, tried, plan, target) for axis in (RATE, USERS))
    if rate is None and users is None:
        probe = next((o for o in tried if o.name == PROBE), None)
        rate = _hopeless(probe, plan, target)
    return CapacityStudy(
        breakeven_version=opening.version,
        started_at=opening.started_at,
        command=opening.command,
        seed=opening.seed,
        stopped_because=because or said,
        machine=opening.machine,
        model=opening.models[0],
        workload=opening.workload,
        slo=opening.slo,
        target_share=opening.target_share,
        confidence=opening.confidence,
        rate=rate,
        users=users,
        headline=next((each.sentence for each in (users, rate) if each), "No load was measured to its end."),
        caveats=[*opening.caveats, *_asked_again(log, opening)],
        think_s=think_s,
    )


def _asked_again(log: Path, opening: LoadStudyStarted) -> list[str]:
    """Whether own prompts were asked again and again, as they are in nearly every search."""
    if opening.workload.prompts is None:
        return []
    runs = collect(iter_events(log))
    share = cached_share([measured_part(run) for run in runs])
    return asked_again(opening.models[0].name, opening.workload, sum(len(run.requests) for run in runs), share)


def _frame(log: Path) -> tuple[LoadStudyStarted | None, str, float | None]:
    """The opening of a search, why it ended, and how long its users think."""
    opening: LoadStudyStarted | None = None
    because, think_s = "killed", None
    for event in iter_events(log):
        if isinstance(event, LoadStudyStarted) and event.kind == "capacity":
            opening, because = opening or event, "killed"
        elif isinstance(event, StudyStopped):
            because = event.because
        elif isinstance(event, LoadStarted) and event.load != PROBE and event.workload.arrivals.is_closed:
            think_s = event.workload.arrivals.think_s
    return opening, because, think_s


def _limit(axis: str, tried: Iterable[Outcome], plan: SearchPlan, target: str) -> Limit | None:
    trials = []
    for outcome in tried:
        match = _NAME.fullmatch(outcome.name)
        if match and match["axis"].rstrip("s") == axis.rstrip("s"):
            trials.append(_tried(outcome, float(match["load"]), 2 if match["again"] else 1, plan))
    if not trials:
        return None
    search = Search(plan, tuple(trials))
    words = users_sentence if axis == USERS else rate_sentence
    return limit_of(search, words(search, target))


def _tried(outcome: Outcome, load: float, attempt: int, plan: SearchPlan) -> Tried:
    bad = outcome.requests - outcome.good
    meets = decide(outcome.good / outcome.spread, bad / outcome.spread, plan.target_share, plan.error)
    return Tried(
        load=load, attempt=attempt, looks=plan.looks, requests=outcome.requests, good=outcome.good, meets=meets
    )


def _hopeless(probe: Outcome | None, plan: SearchPlan, target: str) -> Limit | None:
    """One request at a time was not good enough, so no load was tried."""
    if probe is None or probe.per_s is None:
        return None
    trial = _tried(probe, probe.per_s, 1, plan)
    if trial.meets is not False:
        return None
    text = f"Not even one request at a time is served so that {target}: {probe.good} of {probe.requests} did."
    return limit_of(Search(plan, (trial,)), text)


def users_sentence(search: Search, target: str) -> str:
    """How many people can talk to this at once, in plain words."""
    low, high = bracket(search)
    if low is None:
        if high == 1:
            return "Not even one person can talk to this: alone, they already wait too long."
        if high is None:
            return "How many people can talk to this at once was not decided."
        return f"Fewer than {high:.0f} people can talk to this at once; how many was not decided."
    people = "1 person" if low == 1 else f"{low:.0f} people"
    if high is None:
        text = f"At least {people} can talk to this at once; more were not tried or not decided."
    elif high == low + 1:
        waits = "makes both wait" if high == 2 else "makes everyone wait"
        text = f"{people} can talk to this at once; the {_ordinal(int(high))} {waits}."
    else:
        text = f"{people} can talk to this at once; with {high:.0f} everyone waits."
    return text + _doubt(search)


def rate_sentence(search: Search, target: str) -> str:
    """How many requests a second this carries, in plain words."""
    low, high = bracket(search)
    if low is None:
        if high is None:
            return f"At no rate tried was it decided whether {target}."
        return f"Not even at {high:.3g} requests/s is it so that {target}."
    carried = f"Up to {low:.3g} requests/s, {target}"
    if high is None:
        return f"{carried}, at least: more were not tried or not decided." + _doubt(search)
    return f"{carried}; at {high:.3g} no longer." + _doubt(search)


def _doubt(search: Search) -> str:
    if is_monotone(search):
        return ""
    more = max(t.load for t in search.tried if t.meets)
    return f" But {more:.3g} met it again, so this limit means little."


def _ordinal(n: int) -> str:
    """1st, 2nd, 3rd, 4th, 11th, 21st."""
    tail = "th" if 10 <= n % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{tail}"
