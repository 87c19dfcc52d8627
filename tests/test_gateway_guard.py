"""Breaker, hedge budget and failover rules: pure, so a clock and dice are made up here."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from breakeven.gateway.guard import (
    CODES,
    LONGEST_HOLD_S,
    SAVED_MOST,
    SHORTEST_S,
    Breaker,
    BreakerSettings,
    HedgeBudget,
    delay_s,
)

SETTINGS = BreakerSettings(failures=3, open_s=1.0, most_s=8.0, jitter=0.0, probes=2, probe_s=10.0)


def opened(settings: BreakerSettings = SETTINGS, now_s: float = 100.0) -> Breaker:
    breaker = Breaker(settings, random.Random(1))
    for _ in range(settings.failures):
        breaker.failed(now_s)
    assert breaker.state == "open"
    return breaker


def test_a_row_of_failures_opens_and_a_success_breaks_the_row() -> None:
    breaker = Breaker(SETTINGS)
    for failed in (True, True, False, True, True):
        (breaker.failed if failed else breaker.succeeded)(1.0)
    assert breaker.state == "closed"
    assert breaker.allows(1.0)
    breaker.failed(1.0)
    assert breaker.state == "open"
    assert breaker.opened == 1
    assert not breaker.allows(1.0)
    assert breaker.until_s == 2.0


def test_half_of_recent_results_opens_without_a_row() -> None:
    breaker = Breaker(BreakerSettings(failures=3, share=0.5, least=10.0))
    for k in range(20):
        (breaker.failed if k % 2 else breaker.succeeded)(1.0 + k * 0.001)
        if breaker.state == "open":
            break
    assert breaker.state == "open"
    assert 9 <= k <= 11


def test_old_failures_weigh_less_and_less() -> None:
    breaker = Breaker(BreakerSettings(failures=100, share=0.5, least=10.0, half_life_s=10.0))
    for k in range(9):
        breaker.failed(float(k) * 0.01)
    for k in range(8):
        breaker.succeeded(200.0 + k)
    # Twenty half-lives later nine failures are next to nothing: three more in eleven are no half.
    for k in range(3):
        breaker.failed(208.0 + k)
    assert breaker.state == "closed"


def test_backoff_then_probes_then_closed() -> None:
    breaker = opened()
    assert not breaker.allows(100.9)
    assert breaker.state == "open"
    assert breaker.allows(101.0)
    assert breaker.state == "half_open"
    first = breaker.started(101.0)
    assert breaker.allows(101.0)
    second = breaker.started(101.0)
    assert not breaker.allows(101.0), "both probes are out"
    breaker.succeeded(101.5, first)
    assert breaker.state == "half_open"
    breaker.succeeded(101.6, second)
    assert breaker.state == "closed"
    assert breaker.allows(101.6)


def test_each_failed_probe_doubles_the_backoff_up_to_its_bound_and_success_resets_it() -> None:
    breaker = opened()
    now_s, waits = 100.0, []
    for _ in range(6):
        wait_s = breaker.until_s - now_s
        waits.append(wait_s)
        now_s += wait_s
        assert breaker.allows(now_s)
        breaker.failed(now_s, breaker.started(now_s))
    assert waits == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    now_s = breaker.until_s
    assert breaker.allows(now_s)
    for spell in [breaker.started(now_s) for _ in range(2)]:
        breaker.succeeded(now_s, spell)
    for _ in range(3):
        breaker.failed(now_s)
    assert breaker.until_s == now_s + 1.0


def test_jitter_spreads_the_backoff_upwards() -> None:
    ends = set()
    for seed in range(50):
        breaker = Breaker(BreakerSettings(failures=1, open_s=2.0, jitter=0.3), random.Random(seed))
        breaker.failed(0.0)
        assert 2.0 <= breaker.until_s < 2.6
        ends.add(breaker.until_s)
    assert len(ends) > 40


def test_results_of_requests_begun_before_do_not_count_against_it_again() -> None:
    breaker = Breaker(SETTINGS, random.Random(1))
    before = [breaker.started(99.0) for _ in range(100)]
    for spell in before[:3]:
        breaker.failed(100.0, spell)
    assert breaker.until_s == 101.0
    assert breaker.allows(101.0)
    probe = breaker.started(101.0)
    for spell in before[3:]:
        breaker.failed(101.1, spell)
    assert breaker.state == "half_open"
    breaker.succeeded(101.2, probe)
    breaker.succeeded(101.3, breaker.started(101.2))
    assert breaker.state == "closed"
    for _ in range(10):
        breaker.failed(101.4, before[0])
    assert breaker.state == "closed"


def test_a_probe_whose_client_left_gives_its_place_back() -> None:
    breaker = opened()
    assert breaker.allows(101.0)
    spells = [breaker.started(101.0) for _ in range(2)]
    assert not breaker.allows(101.0)
    breaker.ended(101.0, spells[0])
    assert breaker.state == "half_open"
    assert breaker.allows(101.0)


def test_a_silent_probe_does_not_hold_its_place_for_ever() -> None:
    breaker = opened()
    assert breaker.allows(101.0)
    for _ in range(2):
        breaker.started(101.0)
    assert not breaker.allows(111.0)
    assert breaker.allows(111.1)


def test_a_hold_is_no_failure_and_ends() -> None:
    breaker = Breaker(SETTINGS)
    breaker.hold(5.0)
    assert not breaker.allows(4.9)
    assert breaker.state == "closed"
    assert breaker.until_s == 5.0
    breaker.hold(3.0)
    assert breaker.until_s == 5.0, "a shorter one does not shorten it"
    assert breaker.allows(5.0)
    breaker.hold(1e12, now_s=10.0)
    assert breaker.until_s == 10.0 + LONGEST_HOLD_S


def test_the_least_bad_asked_through_an_open_breaker_closes_it_by_its_success() -> None:
    breaker = opened()
    for _ in range(2):
        breaker.succeeded(100.5, breaker.started(100.5))
    assert breaker.state == "closed"


def test_codes_are_those_of_the_shared_layout() -> None:
    assert CODES == {"closed": 0, "half_open": 1, "open": 2}


class BreakerMachine(RuleBasedStateMachine):
    """Any order of events that a worker can cause."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(SETTINGS, random.Random(7))
        self.now_s = 0.0
        self.out: list[int] = []

    @rule(seconds=st.floats(0.0, 20.0))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @rule()
    def ask(self) -> None:
        held = self.now_s < self.breaker.held_until_s
        if self.breaker.allows(self.now_s):
            assert not held
            assert self.breaker.state != "open"
            self.out.append(self.breaker.started(self.now_s))
        elif not held and self.breaker.state == "open":
            assert self.breaker.until_s > self.now_s

    @precondition(lambda self: self.out)
    @rule(how=st.sampled_from(["succeeded", "failed", "ended"]), which=st.integers(0, 10**6))
    def end(self, how: str, which: int) -> None:
        before = self.breaker.state
        spell = self.out.pop(which % len(self.out))
        getattr(self.breaker, how)(self.now_s, spell)
        after = self.breaker.state
        if how == "failed":
            assert after in (before, "open")
        elif how == "succeeded":
            assert after in (before, "closed")
        else:
            assert after == before

    @rule(seconds=st.floats(0.0, 5.0))
    def hold(self, seconds: float) -> None:
        before = self.breaker.state
        self.breaker.hold(self.now_s + seconds)
        assert self.breaker.state == before

    @invariant()
    def comes_back(self) -> None:
        """Whatever happened, it lets a request through once every timer has run out."""
        assert self.breaker.until_s <= self.now_s + max(SETTINGS.most_s, 20.0)

    def teardown(self) -> None:
        assert self.breaker.allows(max(self.now_s, self.breaker.until_s) + SETTINGS.probe_s + 0.1)


TestBreakerMachine = BreakerMachine.TestCase
TestBreakerMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


# Hedging and failing over.


@given(share=st.floats(0.0, 0.2), takes=st.lists(st.booleans(), max_size=400))
@settings(max_examples=50, deadline=None)
def test_hedges_never_exceed_their_share(share: float, takes: list[bool]) -> None:
    budget, hedged = HedgeBudget(share), 0
    for requests, wanted in enumerate(takes, start=1):
        budget.requested()
        if wanted and budget.take():
            hedged += 1
        assert hedged <= share * requests + 1e-6


def test_a_wanted_share_is_used_up() -> None:
    budget = HedgeBudget(0.03)
    hedged = 0
    for _ in range(1000):
        budget.requested()
        hedged += budget.take()
    assert hedged == 30
    for _ in range(10_000):
        budget.requested()
    taken = 0
    while budget.take():
        taken += 1
    assert taken == SAVED_MOST
    budget.give_back()
    assert budget.take()
    assert not HedgeBudget(0.0).take()


def test_the_delay_is_the_predicted_95th_percentile() -> None:
    assert delay_s(0.5, 0.7) == pytest.approx(0.5 * math.exp(0.7))
    assert delay_s(0.0, 0.5) == SHORTEST_S
    assert delay_s(0.5, -1.0) == 0.5
