"""The capacity search against servers whose true limit is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from breakeven.errors import UserError
from breakeven.runs.capacity_search import (
    Finished,
    Search,
    SearchPlan,
    bracket,
    is_monotone,
    limit_of,
    next_trial,
    told,
)
from breakeven.stats import sequential

Curve = Callable[[float], float]
"""From a load to the share of requests that are good."""


def run(plan: SearchPlan, curve: Curve, seed: int = 0) -> Search:
    """Play the search against a server that draws every request's fate on its own."""
    rng, search = np.random.default_rng(seed), Search(plan)
    requests = good = 0
    for _ in range(200):
        wanted = next_trial(search)
        if isinstance(wanted, Finished):
            return search
        if wanted.look == 0:
            requests = good = 0
        requests += wanted.requests
        good += int(rng.binomial(wanted.requests, min(max(curve(wanted.load), 0.0), 1.0)))
        search = told(search, wanted, requests=requests, good=good)
    raise AssertionError("the search does not end")


def logistic(limit: float, target: float, steepness: float, best: float = 1.0) -> Curve:
    """A share that falls from `best` to 0 with the load, and is `target` exactly at `limit`."""
    shift = math.log(best / target - 1) / steepness
    return lambda load: best / (1 + math.exp(steepness * (math.log(load / limit) + shift)))


RATE = SearchPlan(start=2.0, lowest=0.125, highest=1000.0)
USERS = SearchPlan(start=4, lowest=1, highest=256, whole=True)


@pytest.mark.parametrize("steepness", [6.0, 20.0, 80.0])
def test_the_true_limit_lies_in_the_interval_at_least_as_often_as_promised(steepness: float) -> None:
    rng, held, settled = np.random.default_rng(5), 0, 0
    for seed in range(200):
        limit = float(np.exp(rng.uniform(math.log(0.5), math.log(100))))
        search = run(RATE, logistic(limit, 0.9, steepness), seed)
        low, high = bracket(search)
        held += (low is None or low <= limit) and (high is None or limit <= high)
        settled += low is not None and high is not None
    assert held >= 190
    assert settled >= 190


@given(limit=st.floats(0.2, 500.0), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_a_sharp_limit_is_found_to_the_precision_asked_for(limit: float, seed: int) -> None:
    search = run(RATE, lambda load: 0.999 if load <= limit else 0.3, seed)
    low, high = bracket(search)
    assert low is not None
    assert high is not None
    assert high / low <= 1.1 * (1 + 1e-6)
    # One in twenty may be wrong; wrong means the true limit is just outside, never far away.
    assert low <= limit * 1.1
    assert high >= limit / 1.1


@given(limit=st.integers(1, 60), start=st.integers(1, 64), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_users_are_whole_and_few_users_are_told_apart(limit: int, start: int, seed: int) -> None:
    plan = SearchPlan(start=start, lowest=1, highest=256, whole=True)
    search = run(plan, lambda load: 1.0 if load <= limit else 0.0, seed)
    low, high = bracket(search)
    assert all(t.load == int(t.load) for t in search.tried)
    assert low is not None
    assert high is not None
    assert low <= limit < high
    assert high - low == 1 or high / low <= 1.1


def test_not_even_the_lowest_load() -> None:
    search = run(USERS, lambda load: 0.2)
    limit = limit_of(search, "x")
    assert (limit.value, limit.low, limit.high) == (None, None, 1)
    assert limit.monotone


def test_the_highest_load_there_is() -> None:
    search = run(USERS, lambda load: 0.99)
    assert bracket(search) == (256, None)
    assert search.tried[-1].load == 256


def test_a_share_at_the_target_stays_undecided_and_is_not_claimed() -> None:
    claims = [t.meets for seed in range(60) for t in run(RATE, lambda load: 0.9, seed).tried if t.attempt == 1]
    decided = [c for c in claims if c is not None]
    assert len(decided) / len(claims) < 0.02


def test_undecided_loads_lie_between_low_and_high() -> None:
    search = run(RATE, logistic(10.0, 0.9, 3.0), 3)
    low, high = bracket(search)
    undecided = [t.load for t in search.tried if t.meets is None]
    assert undecided
    assert low is not None
    assert low <= 10 <= (high or math.inf)
    assert all(low < load < (high or math.inf) for load in undecided)


def test_a_load_that_meets_above_one_that_fails_is_tried_again_and_told() -> None:
    plan = SearchPlan(start=3.1, lowest=0.1, highest=100)
    odd = run(plan, lambda load: 1.0 if load < 3 or load > 3.3 else 0.0)
    assert not is_monotone(odd)
    assert sorted(t.attempt for t in odd.tried if t.attempt == 2) == [2, 2]
    low, high = bracket(odd)
    assert low is not None
    assert high is not None
    assert low < 3 <= high <= 3.3


def test_a_failure_that_does_not_repeat_is_forgotten() -> None:
    """The first look at 4 req/s meets a busy machine; asked again, it is fine, and the search goes on upwards."""
    search, seen = Search(RATE), 0
    while not isinstance(wanted := next_trial(search), Finished):
        bad = (wanted.load == 4 and wanted.attempt == 1) or wanted.load > 20
        seen += wanted.load == 4
        search = told(search, wanted, requests=wanted.requests, good=0 if bad else wanted.requests)
    assert seen == 2
    assert is_monotone(search)
    low, high = bracket(search)
    assert low is not None
    assert high is not None
    assert low <= 20 < high <= low * 1.1 * (1 + 1e-6)


def test_monotonicity_is_looked_at_above_the_limit() -> None:
    search = run(RATE, lambda load: 1.0 if load <= 3.9 else 0.0)
    _, high = bracket(search)
    assert high is not None
    assert max(t.load for t in search.tried) >= 1.2 * high


def test_trials_end() -> None:
    plan = SearchPlan(start=1, lowest=1e-3, highest=1e6, max_trials=4)
    search = run(plan, logistic(50_000.0, 0.9, 20))
    assert len(search.tried) == 4
    assert next_trial(search) == Finished("trials")


@pytest.mark.parametrize(
    ("change", "names"),
    [({"target_share": 1.0}, "--share"), ({"confidence": 0.2}, "--confidence"), ({"precision": 0.0}, "--precision")],
)
def test_numbers_that_mean_nothing_are_refused(change: dict[str, float], names: str) -> None:
    with pytest.raises(UserError, match=names):
        SearchPlan(start=1, lowest=1, highest=2, **change).check()  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_evidence_looked_at_after_every_request_errs_as_seldom_as_it_says(share: float) -> None:
    """At the target itself both answers are wrong; peeking must not make more than 5 % of runs wrong each."""
    rng, wrong = np.random.default_rng(1), 0
    for _ in range(200):
        goods = np.cumsum(rng.random(400) < share)
        wrong += any(
            sequential.decide(float(goods[n]), float(n + 1 - goods[n]), share, 0.05) is not None
            for n in range(0, 400, 5)
        )
    assert wrong <= 28  # 20 at most expected of both sides together; 29 or more once in 30 times


def test_requests_of_one_fate_count_for_less() -> None:
    rng = np.random.default_rng(2)
    alone = [list(rng.random(200) < 0.9) for _ in range(4)]
    together = [list(np.repeat(rng.random(20) < 0.9, 10)) for _ in range(4)]
    assert sequential.spread(alone) < 2.5
    assert sequential.spread(together) > 4
    assert sequential.spread([[True] * 200]) == 1
    assert sequential.spread([[True, False]]) == 1


def test_what_must_be_asked_for_is_what_decides() -> None:
    n = sequential.least_requests(0.9, 0.05 / 12)
    assert sequential.decide(n, 0, 0.9, 0.05 / 12) is True
    assert sequential.decide(n - 1, 0, 0.9, 0.05 / 12) is None
    assert 50 <= n <= 90
