"""Experiments: who is in which arm, intervals that may be looked at all the time, canaries, copies, restarts."""

from __future__ import annotations

import json
import math
import random
import subprocess
from pathlib import Path

import pytest
from gateway_experiment_fixtures import arm_record, experiment, failed, gateway, latencies, record
from hypothesis import given, settings
from hypothesis import strategies as st

from breakeven.errors import UserError
from breakeven.gateway.experiment.answer import is_refusal
from breakeven.gateway.experiment.assign import (
    MOST_BYTES,
    MOST_IN_FLIGHT,
    answer_digest,
    arm,
    copied,
    distinct_share,
    first_share,
    length_spread,
    place,
    repeated,
    sticky_unit,
)
from breakeven.gateway.experiment.compare import (
    Canary,
    canary_look,
    canary_progress,
    canary_share,
    canary_tally,
    difference,
    differences,
    progress,
    stop,
)
from breakeven.gateway.experiment.tally import BUCKETS, WAITING, ArmTally, values_of
from breakeven.gateway.experiment.watch import STATE_FILE, Experiments, read_state, status
from breakeven.gateway.plan.model import ExperimentPlan, LogPlan
from breakeven.gateway.route.choose import BROKEN
from breakeven.gateway.route.view import Score
from breakeven.gateway.seen.log import DecisionLog, log_file
from breakeven.gateway.seen.record import Attempt, DecisionRecord
from breakeven.gateway.shared.block import Shape, SharedBlock
from breakeven.gateway.shared.layout import Treatment
from breakeven.stats.moments import NOTHING, Moments
from breakeven.stats.sequential import difference_of_proportions, margin, proportion
from tests.cli_fixtures import run_here

# Who is in which arm.


@given(st.text(max_size=20), st.floats(0, 1), st.floats(0, 1))
def test_who_was_in_the_treatment_stays_when_the_share_grows(unit: str, one: float, other: float) -> None:
    plan = experiment(kind="canary")
    small, large = sorted((one, other))
    if arm(plan, small, False, unit) == "treatment":
        assert arm(plan, large, False, unit) == "treatment"
    assert arm(plan, 0.0, False, unit) == "control"
    assert arm(plan, 1.0, False, unit) == "treatment"


def test_places_are_uniform_and_independent_between_experiments() -> None:
    places = [(place("one", str(n)), place("two", str(n))) for n in range(10_000)]
    for share in (0.01, 0.25, 0.5, 0.9):
        sigma = math.sqrt(share * (1 - share) / len(places))
        assert abs(sum(a < share for a, _ in places) / len(places) - share) < 4 * sigma
    both = sum(a < 0.5 and b < 0.5 for a, b in places) / len(places)
    assert abs(both - 0.25) < 4 * math.sqrt(0.25 * 0.75 / len(places))


def test_places_never_move() -> None:
    # Users would change arms with a new version.
    assert place("try-moe", "alice") == 0.003518540606543663
    assert place("try-moe", "bob") == 0.19805092335023688


def test_a_stopped_test_decides_nothing_and_a_canary_goes_on() -> None:
    assert arm(experiment(), 0.5, True, "u") == ""
    assert arm(experiment(kind="canary"), 0.0, True, "u") == "control"
    assert arm(experiment(kind="canary"), 1.0, True, "u") == "treatment"
    assert arm(experiment(kind="shadow"), 1.0, False, "u") == ""


def test_what_holds_requests_together() -> None:
    named = {"header": "h", "user": "u", "key": "k", "request_id": "r"}
    assert sticky_unit(experiment(), **named) == "u"
    assert sticky_unit(experiment(sticky_by="key"), **named) == "k"
    assert sticky_unit(experiment(sticky_by="x-user"), **named) == "h"
    assert sticky_unit(experiment(), **(named | {"user": None})) == "r"
    assert first_share(experiment(share=0.2)) == 0.2
    assert first_share(experiment(kind="canary", steps=(0.02, 1.0))) == 0.02


# Intervals.


def test_margin_against_a_hand_computed_one() -> None:
    # n = n* = 1000, alpha 0.05: h = 1000 / (5.99146 + ln 6.99146), worked by hand to 128.92.
    h = 1000 / (5.991465 + 1.944690)
    by_hand = math.sqrt(0.001 * (1000 + h) / 1000 * math.log((1000 + h) / (h * 0.05**2)))
    assert margin(0.001, 1000, 0.05) == pytest.approx(by_hand, rel=1e-5)
    assert by_hand / math.sqrt(0.001) == pytest.approx(3.03, abs=0.02)
    assert margin(1.0, 0, 0.05) == math.inf


@given(st.integers(0, 300), st.integers(0, 300), st.sampled_from([0.2, 0.05, 0.01]))
def test_a_share_lies_in_its_interval_and_more_data_narrows_it(hits: int, misses: int, alpha: float) -> None:
    low, high = proportion(hits, hits + misses, alpha)
    assert 0 <= low <= high <= 1
    if hits + misses:
        assert low <= hits / (hits + misses) <= high
        more = proportion(10 * hits, 10 * (hits + misses), alpha)
        assert more[1] - more[0] < high - low
    wider = proportion(hits, hits + misses, alpha / 2)
    assert wider[0] <= low
    assert wider[1] >= high


def test_shares_cover_the_truth_at_all_looks_together() -> None:
    rng = random.Random(7)
    runs, wrong = 300, 0
    for _ in range(runs):
        hits, out = 0, False
        for n in range(1, 401):
            hits += rng.random() < 0.03
            if n % 8 == 0:
                low, high = proportion(hits, n, 0.1)
                out = out or not low <= 0.03 <= high
        wrong += out
    assert wrong <= 0.1 * runs + 3 * math.sqrt(0.09 * runs)


def test_nothing_against_nothing_is_not_sure() -> None:
    low, high, ratio_low, ratio_high = difference_of_proportions((0, 50), (0, 50), 0.05)
    assert low < 0 < high
    assert ratio_low == 0
    assert ratio_high is None


def first_stop(plan: ExperimentPlan, made: list[DecisionRecord], every: int = 25) -> str | None:
    """Looks again and again; the state at which it stops."""
    tally = ArmTally()
    for n, one in enumerate(made, 1):
        tally.add(plan, one)
        if n % every == 0 and (over := stop(plan, tally)):
            return f"{over.state} {over.winner}"
    return None


def test_equal_arms_are_stopped_in_at_most_one_experiment_in_twenty() -> None:
    rng = random.Random(11)
    runs = 100
    false = sum(first_stop(experiment(), latencies(rng, 1200, 1.0)) is not None for _ in range(runs))
    # An interval for one look, looked at 40 times, would stop about a quarter of them.
    assert false <= 0.05 * runs + 3 * math.sqrt(0.05 * 0.95 * runs)


def test_a_real_difference_is_found_and_named() -> None:
    rng = random.Random(3)
    ends = [first_stop(experiment(), latencies(rng, 2500, 0.7)) for _ in range(20)]
    assert ends.count("stopped moe") >= 18
    assert first_stop(experiment(), latencies(rng, 2500, 1.5)) == "stopped dense"


def test_users_that_come_again_are_counted_as_one() -> None:
    # Every user has a speed of its own; request by request this looks like a great deal of evidence.
    def run(rng: random.Random, session: bool) -> str | None:
        made = []
        for user in range(100):
            treatment, speed = rng.random() < 0.5, rng.lognormvariate(0, 0.7)
            for n in range(6):
                made.append(arm_record(n, treatment, e2e_s=speed, session=user + 1 if session else 0))
        rng.shuffle(made)
        return first_stop(experiment(), made, every=100)

    rng = random.Random(5)
    runs = 60
    assert sum(run(rng, True) is not None for _ in range(runs)) <= 0.05 * runs + 3 * math.sqrt(0.05 * 0.95 * runs)
    assert sum(run(rng, False) is not None for _ in range(runs)) > 0.2 * runs


observed = st.tuples(st.integers(1, 5), st.floats(0, 100, allow_subnormal=False)) | st.just((0, 0.0))
clusters = st.lists(st.builds(lambda a, b: (*a, *b), observed, observed), max_size=20)


@given(clusters)
def test_sums_are_of_all_products(made: list[tuple[float, ...]]) -> None:
    moments = Moments()
    for cluster in made:
        moments.add(cluster)  # type: ignore[arg-type]
    pairs = [(i, j) for i in range(4) for j in range(i, 4)]
    assert moments.products == pytest.approx([sum(c[i] * c[j] for c in made) for i, j in pairs])


@given(clusters, st.randoms(use_true_random=False))
def test_sums_do_not_hang_on_order_or_on_how_clusters_grew(made: list[tuple[float, ...]], rng: random.Random) -> None:
    at_once, grown = Moments(), Moments()
    for cluster in made:
        at_once.add(cluster)  # type: ignore[arg-type]
    shuffled = list(made)
    rng.shuffle(shuffled)
    for cluster in shuffled:
        half = tuple(value / 2 for value in cluster)
        grown.replace(NOTHING, half)  # type: ignore[arg-type]
        grown.replace(half, cluster)  # type: ignore[arg-type]
    assert grown.sums == pytest.approx(at_once.sums, rel=1e-9, abs=1e-6)
    assert grown.products == pytest.approx(at_once.products, rel=1e-9, abs=1e-6)


def test_one_observation_is_a_cluster_of_one() -> None:
    short, long = Moments(), Moments()
    for arm_, value in ((0, 2.0), (1, 3.0), (1, 5.0)):
        short.one(arm_, value)
        long.add((0, 0, 1, value) if arm_ else (1, value, 0, 0))
    assert short == long


def test_independent_requests_have_welchs_variance() -> None:
    rng = random.Random(1)
    control = [rng.gauss(5, 1) for _ in range(60)]
    treatment = [rng.gauss(6, 2) for _ in range(40)]
    moments = Moments()
    for value in control:
        moments.add((1, value, 0, 0))
    for value in treatment:
        moments.add((0, 0, 1, value))

    def squares(values: list[float]) -> float:
        mean = sum(values) / len(values)
        return sum((value - mean) ** 2 for value in values)

    variance = (squares(control) / 60**2 + squares(treatment) / 40**2) * 40 / 39
    apart = moments.difference(0.05)
    assert apart is not None
    assert apart.value == pytest.approx(sum(treatment) / 40 - sum(control) / 60)
    assert apart.high - apart.value == pytest.approx(margin(variance, 48, 0.05), rel=1e-9)


def test_a_copy_is_compared_with_its_own_request() -> None:
    # Lengths differ a hundredfold between requests; the copy always takes a tenth longer.
    plan = experiment(kind="shadow")
    rng = random.Random(2)
    paired, unpaired = ArmTally(), ArmTally()
    for n in range(200):
        e2e_s = math.exp(rng.uniform(-2.3, 2.3))
        first = arm_record(n, False, e2e_s=e2e_s)
        copy = arm_record(n, True, id=f"copy{n}", e2e_s=e2e_s * rng.uniform(1.05, 1.15), shadow_of=f"r{n}")
        for one in (copy, first) if n % 2 else (first, copy):
            paired.add(plan, one)
            unpaired.add(experiment(), one)
    assert paired.waiting == {}
    close, wide = difference(paired, "e2e", 0.05), difference(unpaired, "e2e", 0.05)
    assert close.ratio == pytest.approx(1.1, abs=0.01)
    assert close.low is not None
    assert close.low > 1.05
    assert wide.low is not None
    assert wide.low < 1
    assert (over := stop(plan, paired)) is not None
    assert over.winner == "dense"


def test_copies_without_their_request_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    from breakeven.gateway.experiment import tally as module

    monkeypatch.setattr(module, "WAITING", 10)
    assert WAITING > 10
    tally = ArmTally()
    for n in range(50):
        tally.add(experiment(kind="shadow"), arm_record(n, True, id=f"copy{n}", shadow_of=f"r{n}"))
    assert len(tally.waiting) == 10
    assert tally.count("errors", 1) == 50


# What a record counts for.


def test_a_request_that_another_backend_had_to_answer_is_an_error_of_its_arm() -> None:
    assert values_of(failed(1, True), "moe") == [None, None, None, None, None, 1.0, None]
    whole = values_of(arm_record(1, True, refusal=True), "moe")
    assert whole == [0.1, 0.01, 1.0, 1e-4, 90.0, 0.0, 1.0]
    for wrong in ({"status": 503}, {"finish": "cut"}, {"error": "reset"}, {"status": 0}):
        assert values_of(arm_record(1, True, **wrong), "moe") == [None, None, None, None, None, 1.0, None]


def test_a_backend_whose_breaker_is_open_is_an_error_of_its_arm() -> None:
    def elsewhere(why_not: str) -> DecisionRecord:
        away = Score(backend="moe", ttft_s=1, tpot_s=1, usd=0, headroom=1, running=0, why_not=why_not)
        return arm_record(1, True, backend="dense", scores=[away])

    assert values_of(elsewhere(BROKEN), "moe") == [None, None, None, None, None, 1.0, None]
    assert values_of(elsewhere("too long: 9000 tokens, it takes 4096"), "moe") is None


def test_what_says_nothing_of_the_arm_is_not_counted() -> None:
    assert values_of(arm_record(1, True, status=499), "moe") is None
    assert values_of(arm_record(1, True, backend="", status=429), "moe") is None
    hedge = Attempt(backend="dense", outcome="answered", start_s=0.5, seconds=0.5, hedge=True)
    slow = Attempt(backend="moe", outcome="hedge_lost", start_s=0.0, seconds=1.0)
    assert values_of(arm_record(1, True, backend="dense", attempts=[slow, hedge]), "moe") is None
    tally = ArmTally()
    tally.add(experiment(), record(1))
    assert tally.requests == [0, 0]


def test_every_metric_is_told_with_its_arms() -> None:
    tally = ArmTally()
    rng = random.Random(4)
    for n in range(400):
        treatment = n % 2 == 1
        # Tell apart what is compared: half as fast, twice the price, one in ten refused.
        slow = 2.0 if treatment else 1.0
        tally.add(
            experiment(),
            arm_record(
                n,
                treatment,
                ttft_s=rng.uniform(0.09, 0.11) * slow,
                tpot_s=rng.uniform(0.009, 0.011) * slow,
                e2e_s=rng.uniform(0.9, 1.1) * slow,
                usd=1e-4 * slow,
                output_tokens=rng.randint(80, 100) * (2 if treatment else 1),
                refusal=treatment and n % 20 == 1,
            ),
        )
    told = {one.metric: one for one in differences(experiment(), tally)}
    for metric in ("ttft", "tpot", "e2e", "usd", "output_tokens"):
        low, ratio, high = told[metric].low, told[metric].ratio, told[metric].high
        assert low is not None
        assert ratio is not None
        assert high is not None
        assert 1.8 < low <= ratio <= high < 2.2
    assert told["refusals"].difference == pytest.approx(0.1)
    assert told["refusals"].difference_low is not None
    assert told["refusals"].difference_low > 0
    assert told["errors"].difference == 0
    assert "distinct_answers" not in told


@given(st.floats(1e-9, 1e9), st.integers(30, 400), st.integers(30, 400))
def test_arms_that_are_exactly_equal_never_differ_by_rounding(value: float, control: int, treatment: int) -> None:
    moments = Moments()
    for n in range(control + treatment):
        moments.one(int(n >= control), value)
    ratio, apart = moments.ratio(0.05), moments.difference(0.05)
    assert ratio is not None
    assert apart is not None
    assert ratio.low < 1 < ratio.high
    assert apart.low < 0 < apart.high


def test_few_users_give_no_interval_and_say_so() -> None:
    tally = ArmTally()
    for n in range(400):
        tally.add(experiment(), arm_record(n, n % 2 == 1, e2e_s=1.0 + n % 2, session=1 + n % 6))
    assert stop(experiment(), tally) is None
    assert "too few different users" in progress(experiment(), tally)
    assert len(tally.buckets) <= 6 < BUCKETS


def test_it_ends_without_a_difference_after_the_most() -> None:
    plan = experiment(most=1000)
    assert first_stop(plan, latencies(random.Random(8), 1000, 1.0)) == "done None"


def test_shorter_is_not_better() -> None:
    plan = experiment(metric="output_tokens")
    rng = random.Random(9)
    made = [arm_record(n, n % 2 == 1, output_tokens=rng.randint(50, 60) * (1 + n % 2)) for n in range(400)]
    assert first_stop(plan, made) == "stopped None"


# Canary.


def run_canary(plan: ExperimentPlan, made: object, most: int = 3000, every: int = 20) -> tuple[Canary, list[float]]:
    """Feeds requests from `made(number, share)` and looks now and then; the end and every share there was."""
    assert callable(made)
    at, tally, shares = Canary(), ArmTally(), [plan.steps[0]]
    for n in range(most):
        tally.add(plan, made(n, canary_share(plan, at)))
        if n % every == 0:
            after = canary_look(plan, at, tally)
            if after.step != at.step:
                tally = canary_tally(plan, after, tally)
            at = after
            if canary_share(plan, at) != shares[-1]:
                shares.append(canary_share(plan, at))
    return at, shares


STEPS = (0.1, 0.5, 1.0)


def test_a_good_canary_goes_up_step_by_step() -> None:
    rng = random.Random(1)

    def made(n: int, share: float) -> DecisionRecord:
        return arm_record(n, rng.random() < share, e2e_s=rng.uniform(0.9, 1.1))

    at, shares = run_canary(experiment(kind="canary", hold=50, steps=STEPS), made)
    assert at.state == "done"
    assert shares == [0.1, 0.5, 1.0]


def test_a_canary_that_breaks_steps_back_soon() -> None:
    rng = random.Random(1)
    asked = 0

    def made(n: int, share: float) -> DecisionRecord:
        nonlocal asked
        treatment = rng.random() < share
        asked += treatment
        return failed(n, True) if treatment else arm_record(n, False)

    at, shares = run_canary(experiment(kind="canary", steps=STEPS), made)
    assert at.state == "stepped_back"
    assert shares == [0.1, 0.0]
    assert "share of errors" in at.reason
    assert asked < 30


def test_a_slow_canary_steps_back() -> None:
    rng = random.Random(1)

    def made(n: int, share: float) -> DecisionRecord:
        treatment = rng.random() < share
        return arm_record(n, treatment, e2e_s=rng.uniform(0.9, 1.1) * (1.5 if treatment else 1))

    at, shares = run_canary(experiment(kind="canary", steps=STEPS), made)
    assert at.state == "stepped_back"
    assert shares == [0.1, 0.0]


def test_a_canary_that_breaks_at_the_last_step_is_compared_with_the_control_before() -> None:
    rng = random.Random(1)

    def made(n: int, share: float) -> DecisionRecord:
        treatment = rng.random() < share
        return failed(n, True) if treatment and share == 1 else arm_record(n, treatment, e2e_s=rng.uniform(0.9, 1.1))

    at, shares = run_canary(experiment(kind="canary", hold=50, steps=STEPS), made)
    assert at.state == "stepped_back"
    assert shares == [0.1, 0.5, 1.0, 0.0]


def test_equal_canaries_are_stepped_back_rarely() -> None:
    rng = random.Random(6)

    def made(n: int, share: float) -> DecisionRecord:
        treatment = rng.random() < share
        if rng.random() < 0.02:
            return failed(n, treatment)
        return arm_record(n, treatment, e2e_s=rng.lognormvariate(0, 0.8))

    runs = 40
    plan = experiment(kind="canary", hold=50, steps=STEPS, tolerance=0.0, confidence=0.9)
    back = sum(run_canary(plan, made, 1000)[0].state == "stepped_back" for _ in range(runs))
    assert back <= 0.1 * runs + 3 * math.sqrt(0.09 * runs)


def test_a_canary_that_looks_worse_is_held_and_says_so() -> None:
    plan = experiment(kind="canary", hold=40, steps=STEPS)
    rng = random.Random(1)

    def made(n: int, share: float) -> DecisionRecord:
        treatment = rng.random() < share
        return arm_record(n, treatment, e2e_s=rng.lognormvariate(0.35 if treatment else 0, 0.8))

    at, _ = run_canary(plan, made, 600)
    tally = ArmTally()
    for n in range(600):
        tally.add(plan, made(n, 0.1))
    assert at == Canary()
    assert "held at 10% after" in canary_progress(plan, at, tally)
    assert "time to the end" in canary_progress(plan, at, tally)
    assert "0 of 40" in canary_progress(plan, at, ArmTally())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from(["ok", "failed", "slow"])), max_size=80))
def test_a_canary_never_skips_a_step_and_never_comes_back(events: list[tuple[bool, str]]) -> None:
    plan = experiment(kind="canary", hold=3, most=30, least=1, steps=STEPS)
    at, tally = Canary(), ArmTally()
    for n, (treatment, how) in enumerate(events):
        one = failed(n, treatment) if how == "failed" else arm_record(n, treatment, e2e_s=9.0 if how == "slow" else 1.0)
        tally.add(plan, one)
        after = canary_look(plan, at, tally)
        assert after.step in (at.step, at.step + 1)
        if at.state != "running":
            assert after == at
        if after.step != at.step:
            tally = canary_tally(plan, after, tally)
        at = after


# Copies, repetitions, refusals.


def test_copies_keep_to_their_budget() -> None:
    plan = experiment(kind="shadow", share=0.2)
    usual = {"endpoint": "/v1/chat/completions", "body_bytes": 2000, "under_way": 0}
    chosen = [n for n in range(5000) if copied(plan, 0.2, False, request_id=f"r{n}", **usual)]
    assert abs(len(chosen) / 5000 - 0.2) < 4 * math.sqrt(0.16 / 5000)
    name = f"r{chosen[0]}"
    assert not copied(plan, 0.2, True, request_id=name, **usual)
    assert not copied(experiment(), 1.0, False, request_id=name, **usual)
    assert copied(plan, 0.2, False, request_id=name, goes_to="dense", **usual)
    assert not copied(plan, 0.2, False, request_id=name, goes_to="moe", **usual)
    for refused in ({"endpoint": "/v1/responses"}, {"body_bytes": MOST_BYTES + 1}, {"under_way": MOST_IN_FLIGHT}):
        assert not copied(plan, 0.2, False, request_id=name, **(usual | refused))


def test_how_answers_vary() -> None:
    assert distinct_share(["a"]) is None
    assert distinct_share(["a", "a", "a"]) == 0
    assert distinct_share(["a", "b", "c"]) == 1
    assert distinct_share(["a", "a", "b"]) == pytest.approx(2 / 3)
    assert length_spread([10, 10]) == 0
    assert length_spread([0, 0]) is None
    assert answer_digest("one") == answer_digest("one") != answer_digest("one ")
    plan = experiment(repeats=100)
    assert 60 < sum(repeated(plan, f"r{n}") for n in range(1000)) < 140
    assert not any(repeated(experiment(), f"r{n}") for n in range(1000))


def test_variability_is_compared_by_prompt_and_repetitions_are_no_requests() -> None:
    tally = ArmTally()
    shadowed = ArmTally()
    for n in range(80):
        shadowed.add(experiment(kind="shadow"), arm_record(n, False, group=f"r{n}", answer_hash="a"))
        for treatment in (False, True):
            one = arm_record(n, treatment, id=f"again{n}", group=f"r{n}", answer_hash="b", shadow_of=f"r{n}")
            shadowed.add(experiment(kind="shadow"), one)
        shadowed.add(experiment(kind="shadow"), arm_record(n, True, id=f"copy{n}", shadow_of=f"r{n}"))
    assert shadowed.requests == [80, 80]
    assert shadowed.waiting == {}
    assert shadowed.count("e2e", 1) == 80
    for n in range(80):
        for again in range(4):
            for treatment in (False, True):
                # The control always says the same, the treatment never.
                said = f"{n} {again}" if treatment else str(n)
                more = {"group": f"g{n}", "answer_hash": said, "output_tokens": 50 + again * treatment}
                repetition = {"shadow_of": f"r{n}"} if again else {}
                tally.add(experiment(), arm_record(n, treatment, **more, **repetition))
    assert tally.requests == [80, 80]
    told = {one.metric: one for one in differences(experiment(), tally)}
    assert told["distinct_answers"].difference == 1
    assert told["distinct_answers"].difference_low is not None
    assert told["distinct_answers"].difference_low > 0.9
    assert told["length_spread"].difference == pytest.approx(0.0251, abs=0.001)


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("  I\u2019m sorry, but I can\u2019t assist with this request.", True),
        ("**I cannot fulfill** this request.", True),
        ("I must decline to answer.", True),
        ("I'm sorry to hear that you are ill. Here is what helps:", False),
        ("I can't wait to show you how this works.", False),
        ("Here is the recipe. I cannot provide exact times.", False),
        ("", False),
    ],
)
def test_what_counts_as_a_refusal(text: str, refused: bool) -> None:
    assert is_refusal(text) is refused


def test_what_the_backend_says_counts_first() -> None:
    assert is_refusal("Sure!", finish="content_filter")
    assert is_refusal("", finish="refusal")
    assert is_refusal("", refusal="No.")


# Running: the log in, shares and verdicts out.


def write(directory: Path, made: list[DecisionRecord], worker: int = 1) -> None:
    log = DecisionLog(directory, worker, LogPlan())
    for one in made:
        log.add(one)
    log.close()


def block() -> SharedBlock:
    return SharedBlock(Shape(workers=2, backends=2, keys=1, models=1, experiments=3))


def test_workers_are_told_shares_and_stops(tmp_path: Path) -> None:
    shared = block()
    plan = gateway(experiment(share=0.3), experiment(name="canary", kind="canary", steps=STEPS, hold=20))
    running = Experiments(plan, shared, tmp_path, {"try-moe": 2, "canary": 0})
    assert shared.share.get(0, 2, Treatment.SHARE) == 0.3
    assert shared.share.get(0, 0, Treatment.SHARE) == 0.1
    write(tmp_path, latencies(random.Random(1), 1500, 0.5))
    write(tmp_path, [arm_record(n, n % 5 == 0, experiment="canary") for n in range(200)], worker=2)
    states = {state.name: state for state in running.step(0.0)}
    assert states["try-moe"].state == "stopped"
    assert states["try-moe"].winner == "moe"
    assert "0.5" in states["try-moe"].reason
    assert (shared.share.get(0, 2, Treatment.SHARE), shared.share.get(0, 2, Treatment.STOPPED)) == (0.0, 1.0)
    assert (shared.share.get(0, 0, Treatment.SHARE), shared.share.get(0, 0, Treatment.STOPPED)) == (0.5, 0.0)
    assert states["canary"].share == 0.5


def test_a_restart_continues_and_counts_nothing_twice(tmp_path: Path) -> None:
    plan = gateway(experiment())
    made = latencies(random.Random(1), 120, 1.0)
    write(tmp_path, made[:50])
    first = Experiments(plan, None, tmp_path)
    first.step(0.0)
    write(tmp_path, made[50:80])
    first.step(1.0)  # Read, but the next save is not due: a crash loses it, and the log has it still.
    again = Experiments(plan, None, tmp_path)
    write(tmp_path, made[80:])
    again.step(0.0)
    whole = Experiments(plan, None, tmp_path, keep=False)
    assert [a.requests for a in again.states[0].arms] == [a.requests for a in status(tmp_path, plan)[0].arms]
    assert sum(a.requests for a in again.states[0].arms) == 120
    (tmp_path / STATE_FILE).unlink()
    assert whole.step(0.0)[0].arms == Experiments(plan, None, tmp_path).step(0.0)[0].arms


def test_another_plan_under_the_same_name_begins_anew(tmp_path: Path) -> None:
    write(tmp_path, latencies(random.Random(1), 1500, 0.5))
    assert Experiments(gateway(experiment()), None, tmp_path).step(0.0)[0].state == "stopped"
    changed = Experiments(gateway(experiment(metric="ttft")), None, tmp_path).step(0.0)[0]
    assert changed.state == "running"
    assert [one.requests for one in changed.arms] == [0, 0]


def test_a_verdict_stays_as_it_was_given(tmp_path: Path) -> None:
    plan = gateway(experiment())
    write(tmp_path, latencies(random.Random(1), 1500, 0.5))
    running = Experiments(plan, None, tmp_path)
    before = running.step(0.0)[0]
    write(tmp_path, latencies(random.Random(1), 500, 3.0))
    after = running.step(10.0)[0]
    assert (after.state, after.arms, after.reason) == (before.state, before.arms, before.reason)


def test_without_a_log_it_says_what_is_missing() -> None:
    states = Experiments(gateway(experiment()), block(), None).step(0.0)
    assert "log.directory" in states[0].reason


def test_without_experiments_nothing_is_read(tmp_path: Path) -> None:
    write(tmp_path, [record(1)])
    assert Experiments(gateway(), None, tmp_path).step(0.0) == []
    assert not (tmp_path / STATE_FILE).exists()


def test_a_state_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / STATE_FILE).write_text('{"experiments": 3}')
    with pytest.raises(UserError, match="move it away"):
        read_state(tmp_path)


def test_a_large_state_file_stays_small(tmp_path: Path) -> None:
    rng = random.Random(1)
    plan = gateway(experiment(least=50_000))
    made = [arm_record(n, rng.random() < 0.5, session=rng.getrandbits(40)) for n in range(3000)]
    write(tmp_path, made)
    Experiments(plan, None, tmp_path).step(0.0)
    assert (tmp_path / STATE_FILE).stat().st_size < 600_000
    assert (tmp_path / STATE_FILE).stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == [log_file(tmp_path, 1, 0).name, STATE_FILE]


# The command.


def command(*args: str) -> subprocess.CompletedProcess[str]:
    return run_here("experiment", "status", *args)


def test_the_command_tells_the_verdict(tmp_path: Path) -> None:
    write(tmp_path, latencies(random.Random(1), 1500, 0.5))
    Experiments(gateway(experiment()), None, tmp_path).step(0.0)
    done = command("--log", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "Better: moe" in done.stdout
    assert "E2E" in done.stdout
    told = json.loads(command("--log", str(tmp_path), "--json").stdout)
    assert told["schema"] == "breakeven.experiment/1"
    assert told["experiments"][0]["state"] == "stopped"


GATEWAY = """
backends:
  - {name: dense, url: http://127.0.0.1:9/v1}
  - {name: moe, url: http://127.0.0.1:9/v1}
policies:
  - {model: breakeven, backends: [dense, moe]}
experiments:
  - {name: try-moe, kind: ab, model: breakeven, control: dense, treatment: moe}
log: {directory: logs}
"""


def test_the_command_computes_from_the_gateways_file_and_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(GATEWAY)
    assert "no such directory" in command("--gateway", str(file)).stderr
    write(tmp_path / "logs", latencies(random.Random(1), 300, 0.9))
    told = json.loads(command("--gateway", str(file), "--json").stdout)
    assert sum(one["requests"] for one in told["experiments"][0]["arms"]) == 300
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["decisions-1-0.jsonl"]


def test_the_command_says_what_to_give(tmp_path: Path) -> None:
    done = command("--log", str(tmp_path))
    assert done.returncode == 2
    assert "--gateway FILE" in done.stderr
    assert command().returncode == 2
    assert "no such directory" in command("--log", str(tmp_path / "nowhere")).stderr
