"""The search for the highest load that keeps a service level, as a pure state machine.

It asks for a trial (`next_trial`), is told what came of it (`told`), and asks again until it is `Finished`. It knows
no clock, no engine and no file: a budget is kept by whoever runs the trials, and stops by not asking any more.

    start --meets--> double until one fails --> bisect until high/low <= 1 + precision (or whole neighbours)
          --fails--> halve until one meets  -->   "
    then one trial well above, unless one was made on the way: a load that meets above one that fails is a
    contradiction; both are tried once more, and if they insist, the limit is reported as not monotone.

A trial is decided by evidence that may be looked at after every run (`stats.sequential`). The whole search may be
wrong with probability 1 - confidence; each of its at most `max_trials` trials gets an equal part of that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

from breakeven.errors import UserError
from breakeven.results.load import Limit, Trial
from breakeven.stats.percentiles import wilson
from breakeven.stats.sequential import decide, least_requests

SLACK = 1.25
"""A run has this many times the requests that decide when none is bad, so that one or two bad ones do no harm."""
ABOVE = 1.5
"""Where monotonicity is looked at, over the lowest load that failed; `NEAR` is what counts as having looked."""
NEAR = 1.2


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPlan:
    """What is searched for. Loads are requests/s, or whole numbers of users when `whole`.

    `start` is where to begin, `lowest` and `highest` where to give up, `step` the factor of the bracket. `looks`:
    runs after which an undecided load is left undecided.
    """

    start: float
    lowest: float
    highest: float
    target_share: float = 0.9
    confidence: float = 0.95
    precision: float = 0.1
    whole: bool = False
    step: float = 2.0
    max_trials: int = 12
    looks: int = 4

    def check(self) -> None:
        """Raise UserError for numbers that mean nothing."""
        if not 0 < self.target_share < 1:
            raise UserError("--share must lie between 0 and 100 %, such as 90%: of all requests none can be promised")
        if not 0.5 <= self.confidence < 1:
            raise UserError("--confidence must lie between 50 and 100 %, such as 95%")
        if not 0.01 <= self.precision <= 1:
            raise UserError("--precision must lie between 1 and 100 %, such as 10%")
        if not 0 < self.lowest <= self.highest:
            raise UserError("the highest load to try is below the lowest")

    @property
    def error(self) -> float:
        """The probability with which one trial may be wrong."""
        return (1 - self.confidence) / self.max_trials

    @property
    def requests(self) -> int:
        """Requests of one run of a trial, at the least."""
        return math.ceil(SLACK * least_requests(self.target_share, self.error))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """One trial so far. `attempt` 2: the repetition that a contradiction asked for."""

    load: float
    attempt: int = 1
    looks: int = 0
    requests: int = 0
    good: int = 0
    meets: bool | None = None


@dataclass(frozen=True, slots=True)
class Search:
    """The state: the plan and every trial in the order it was begun; only the last may still be going on."""

    plan: SearchPlan
    tried: tuple[Tried, ...] = ()


@dataclass(frozen=True, slots=True)
class Wanted:
    """Play at least `requests` requests at `load` and tell. `look` counts the runs of this trial from 0."""

    load: float
    attempt: int
    look: int
    requests: int


@dataclass(frozen=True, slots=True)
class Finished:
    """Nothing more to try. `because`: settled, trials (all of them used up)."""

    because: str


def told(search: Search, wanted: Wanted, *, requests: int, good: int, spread: float = 1.0) -> Search:
    """The state after a run: `good` of `requests` met the SLO, over all looks of this trial together."""
    decided = decide(good / spread, (requests - good) / spread, search.plan.target_share, search.plan.error)
    now = Tried(
        load=wanted.load,
        attempt=wanted.attempt,
        looks=wanted.look + 1,
        requests=requests,
        good=good,
        meets=decided,
    )
    before = search.tried[:-1] if wanted.look else search.tried
    return replace(search, tried=(*before, now))


def next_trial(search: Search) -> Wanted | Finished:
    """What to play now."""
    plan, tried = search.plan, search.tried
    if not tried:
        return Wanted(_clip(plan, plan.start), 1, 0, plan.requests)
    last = tried[-1]
    if last.meets is None and last.looks < plan.looks:
        # As many again each time: what is near the limit takes far more to decide than what is not.
        return Wanted(last.load, last.attempt, last.looks, plan.requests * 2 ** (last.looks - 1))
    if len(tried) >= plan.max_trials:
        return Finished("trials")
    if (contradiction := _contradiction(search)) is not None:
        again = next((t for t in contradiction if t.attempt == 1), None)
        return Finished("settled") if again is None else Wanted(again.load, 2, 0, plan.requests)
    load = _next_load(search)
    return Finished("settled") if load is None else Wanted(load, 1, 0, plan.requests)


def bracket(search: Search) -> tuple[float | None, float | None]:
    """The highest load that was shown to meet the SLO below any that was shown not to, and the lowest such."""
    known = _known(search)
    high = min((t.load for t in known if t.meets is False), default=None)
    low = max((t.load for t in known if t.meets and (high is None or t.load < high)), default=None)
    return low, high


def limit_of(search: Search, sentence: str) -> Limit:
    """The result as it stands."""
    low, high = bracket(search)
    trials = [
        Trial(load=t.load, requests=t.requests, good=wilson(t.good, t.requests), meets=t.meets) for t in search.tried
    ]
    return Limit(value=low, low=low, high=high, trials=trials, monotone=is_monotone(search), sentence=sentence)


def is_monotone(search: Search) -> bool:
    """False when a load met the SLO above one that did not."""
    return _contradiction(search) is None


def _known(search: Search) -> list[Tried]:
    """The last word on every load, by load."""
    latest = {t.load: t for t in search.tried}
    return [latest[load] for load in sorted(latest)]


def _contradiction(search: Search) -> tuple[Tried, Tried] | None:
    """The lowest load that failed and the highest that met above it."""
    known = _known(search)
    fails = next((t for t in known if t.meets is False), None)
    meets = next((t for t in reversed(known) if t.meets), None)
    return (fails, meets) if fails and meets and meets.load > fails.load else None


def _next_load(search: Search) -> float | None:
    plan, known = search.plan, _known(search)
    low, high = bracket(search)
    if high is None:
        if low is None:  # the first trials could not tell
            return _below(plan, known[0].load)
        top = known[-1].load
        more = _clip(plan, max(top * plan.step, top + 1 if plan.whole else 0))
        return more if more > top else None
    if low is None:
        return _below(plan, known[0].load)
    undecided = [t.load for t in known if t.meets is None and low < t.load < high]
    marks = [low, *undecided, high]
    gaps = [(b / a, a, b) for a, b in pairwise(marks) if _wide(plan, a, b)]
    if gaps:
        _, a, b = max(gaps)
        return _middle(plan, a, b)
    above = _clip(plan, max(ABOVE * high, high + 1 if plan.whole else 0))
    return above if known[-1].load < NEAR * high and above >= NEAR * high else None


def _wide(plan: SearchPlan, a: float, b: float) -> bool:
    return b / a > (1 + plan.precision) * (1 + 1e-9) and not (plan.whole and b - a <= 1)


def _middle(plan: SearchPlan, a: float, b: float) -> float:
    """Halfway on the log scale; a whole number strictly between when `whole`."""
    middle = math.sqrt(a * b)
    return float(min(max(round(middle), a + 1), b - 1)) if plan.whole else _four_digits(middle)


def _below(plan: SearchPlan, load: float) -> float | None:
    less = _clip(plan, load / plan.step)
    return less if less < load else None


def _clip(plan: SearchPlan, load: float) -> float:
    load = min(max(load, plan.lowest), plan.highest)
    return float(math.floor(load)) if plan.whole else _four_digits(load)


def _four_digits(load: float) -> float:
    """Loads have names, and a name must say all of its load."""
    return float(f"{load:.4g}")
