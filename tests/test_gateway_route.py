"""Routing: who is chosen, in what order others are tried, and what never happens whatever the numbers."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from gateway_route_fixtures import ask, policy, view
from hypothesis import given, settings
from hypothesis import strategies as st

from breakeven.gateway.plan.model import PolicyPlan
from breakeven.gateway.route.choose import BROKEN, TOO_LONG, choose, may_explore, score
from breakeven.gateway.route.policies import POLICIES, SURE, USD_TIE, drawn
from breakeven.gateway.route.view import REASONS, Ask, View
from breakeven.traffic.workload import Slo

seconds = st.floats(0.001, 10.0)
maybe = st.one_of(st.none(), seconds)


@st.composite
def views(draw: st.DrawFn, least: int = 1) -> list[View]:
    """One to six backends in any state; indexes are not positions."""
    found = []
    for i in range(draw(st.integers(least, 6))):
        found.append(
            view(
                10 + 3 * i,
                f"b{i}",
                ttft=draw(seconds),
                tpot=draw(st.floats(0.001, 0.3)),
                running=draw(st.floats(0, 40)),
                queued=draw(st.integers(0, 5)),
                free=draw(st.sampled_from([0, 1, 100])),
                open=draw(st.sampled_from([True, True, True, False])),
                ready=draw(st.sampled_from([True, True, True, False])),
                load_s=draw(st.sampled_from([None, 0.0, 5.0])),
                stale=draw(st.sampled_from([False, False, True])),
                kind=draw(st.sampled_from(["dense", "moe", "unknown"])),
                place=draw(st.sampled_from(["edge", "cloud", "on-premise"])),
                group=draw(st.sampled_from([None, None, "g"])),
                usd_per_s=draw(st.sampled_from([0.0, 0.001, 0.01])),
                usd_per_output=draw(st.sampled_from([0.0, 1e-6, 1e-5])),
                context_limit=draw(st.sampled_from([None, 100, 100_000])),
                quality=draw(st.sampled_from([None, 0.3, 0.9])),
            )
        )
    return found


asks = st.builds(
    lambda ttft, tpot, usd, prompt, output, session, priority: ask(
        ttft_s=ttft,
        tpot_s=tpot,
        usd=usd,
        prompt_tokens=prompt,
        output_tokens=output,
        session=session,
        priority=priority,
    ),
    maybe,
    maybe,
    st.one_of(st.none(), st.floats(1e-6, 1.0)),
    st.floats(1, 50_000),
    st.floats(1, 5_000),
    st.integers(0, 2**63),
    st.integers(-1, 1),
)
policies = st.builds(
    lambda name, explore, shed, floor, longest, attempts: policy(
        name, explore=explore, shed=shed, quality_floor=floor, longest_tokens=longest, attempts=attempts
    ),
    st.sampled_from(sorted(POLICIES)),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.booleans(),
    st.sampled_from([None, None, 0.5]),
    st.sampled_from([None, 1000]),
    st.integers(1, 5),
)


@given(policies, asks, views(), st.integers(0, 2**32))
@settings(max_examples=120, deadline=None)
def test_a_choice_is_sound_whatever_the_state(plan: PolicyPlan, asked: Ask, there: list[View], seed: int) -> None:
    choice = choose(plan, asked, there, Random(seed))
    by_index = {v.index: v for v in there}
    assert choice.reason in REASONS
    assert len(set(choice.order)) == len(choice.order)
    assert set(choice.order) <= set(by_index)
    why = {v.index: score(asked, v, plan.quality_floor).why_not for v in there}
    reasons = [why[i] for i in choice.order]
    # Who cannot serve it is never asked; who has failed lately only after everybody else; who may be too short, alone.
    assert set(reasons) <= {"", BROKEN} or all(one.startswith(TOO_LONG) for one in reasons)
    assert reasons == sorted(reasons) or choice.reason == "long"
    if choice.alternative is not None:
        assert not choice.order or choice.scores[choice.alternative].backend != by_index[choice.order[0]].name
    if not choice.order:
        assert choice.reason in ("none", "shed")
    if choice.reason == "none":
        # A group shows one of its own: the others may be away for other reasons.
        assert all(why[v.index] not in ("", BROKEN) for v in there if v.group is None)
        assert not any(why[v.index].startswith(TOO_LONG) for v in there if v.group is None)


@given(asks, views(2), st.integers(0, 2**32))
@settings(max_examples=120, deadline=None)
def test_the_default_keeps_what_was_asked_where_anyone_can(asked: Ask, there: list[View], seed: int) -> None:
    for one in there:
        one.group = None
    choice = choose(policy(), asked, there, Random(seed))
    usable = [found for found in choice.scores if not found.why_not]
    if not usable:
        return
    picked = next(s for s, v in zip(choice.scores, there, strict=True) if v.index == choice.order[0])
    fitting = [found for found in usable if found.fits]
    assert picked.fits or not fitting
    if not fitting and choice.reason != "least_harm":
        assert picked.headroom == max(found.headroom for found in usable)
    # Nobody who surely fits is cheaper by more than a tie.
    sure = [found.usd for found in usable if found.headroom >= SURE]
    if sure:
        assert picked.usd <= min(sure) * (1 + USD_TIE) * (1 + 1e-12)


@given(asks, views(), st.floats(0, 50), st.floats(0, 5000))
@settings(max_examples=60, deadline=None)
def test_more_load_is_never_predicted_to_be_faster(asked: Ask, there: list[View], more: float, ahead: float) -> None:
    one = there[0]
    one.free = 100  # with none left, more running means more places
    before = score(asked, one)
    one.running += more
    one.ahead_tokens += ahead
    after = score(asked, one)
    assert after.ttft_s >= before.ttft_s * (1 - 1e-12)
    assert after.tpot_s >= before.tpot_s * (1 - 1e-12)


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=6).filter(any), st.integers(0, 2**32))
def test_a_draw_never_falls_on_weight_zero(weights: list[float], seed: int) -> None:
    assert weights[drawn(range(len(weights)), weights, Random(seed))] > 0


@given(asks, views(2), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_the_device_works_when_everyone_else_is_away(asked: Ask, there: list[View], seed: int) -> None:
    device = there[0]
    for one in there:
        one.group = None
        one.place = "cloud"
        one.open = one is device
    device.place, device.ready, device.context_limit = "edge", True, None
    choice = choose(policy("edge-first", longest_tokens=10), asked, there, Random(seed))
    assert choice.order[0] == device.index
    assert choice.reason in ("offline", "only")


def first(plan: PolicyPlan, asked: Ask, there: list[View], seed: int = 0) -> tuple[str, str]:
    choice = choose(plan, asked, there, Random(seed))
    name = {v.index: v.name for v in there}[choice.order[0]]
    return name, choice.reason


def test_breakeven_moves_from_the_cheap_one_to_the_one_that_still_keeps_it() -> None:
    dense = view(0, "dense", tpot=0.02, usd_per_s=0.0001)
    moe = view(1, "moe", tpot=0.01, usd_per_s=0.001)
    asked = ask(tpot_s=0.08)
    assert first(policy(), asked, [dense, moe]) == ("dense", "cheapest_that_fits")
    dense.running = 30.0
    assert first(policy(), asked, [dense, moe]) == ("moe", "cheapest_that_fits")
    moe.running = 100.0
    assert first(policy(), asked, [dense, moe]) == ("dense", "least_late")


def test_with_little_to_spare_everything_that_was_asked_counts_together() -> None:
    # The one has a little more room in its tokens and a long line of prompts, the other neither.
    queued = view(0, "queued", tpot=0.024, ahead_tokens=40_000.0)
    free = view(1, "free", tpot=0.025)
    asked = ask(ttft_s=1.0, tpot_s=0.05)
    assert first(policy(), asked, [queued, free]) == ("free", "roomiest")
    free.ahead_tokens = 80_000.0
    assert first(policy(), asked, [queued, free]) == ("queued", "roomiest")


def test_a_late_request_slows_down_nobody_who_is_in_time() -> None:
    promised = policy()
    # Both are late: one more makes every token of thirty others late, or waits in the line of the other one.
    near = view(0, "near", tpot=0.0135, running=30.0)
    line = view(1, "line", tpot=0.01, ttft=2.0, running=20.0)
    asked = ask(ttft_s=0.5, tpot_s=0.05)
    assert first(promised, asked, [near, line]) == ("line", "least_harm")
    # Who is late by far has nothing more to lose.
    near.running = 90.0
    assert first(promised, asked, [near, line])[1] == "least_late"
    # Where no time a token is promised nobody is harmed.
    near.running = 30.0
    assert first(policy(), ask(ttft_s=0.2), [near, line])[1] == "least_late"
    # Where every place harms somebody it is the place with the fewest.
    line.speed = near.speed
    line.running = 29.0
    assert first(promised, asked, [near, line])[0] == "line"


def test_fastest_and_cheapest_look_at_one_thing() -> None:
    slow = view(0, "slow", tpot=0.1, usd_per_output=1e-9)
    fast = view(1, "fast", tpot=0.01, usd_per_output=1e-6)
    assert first(policy("fastest"), ask(), [slow, fast]) == ("fast", "fastest")
    assert first(policy("cheapest"), ask(tpot_s=0.02), [slow, fast]) == ("slow", "cheapest")


def test_spill_fills_the_dense_one_to_its_knee_and_then_the_other() -> None:
    dense, moe = view(0, "dense", kind="dense"), view(1, "moe", kind="moe")
    there = [moe, dense]
    assert first(policy("spill"), ask(), there) == ("dense", "first")
    dense.running = 9.0  # 1 + 0.1 x 10 is less than twice 1 + 0.1 x 1
    assert first(policy("spill"), ask(), there) == ("dense", "first")
    dense.running = 12.0
    assert first(policy("spill"), ask(), there) == ("moe", "spilled")
    dense.running = 0.0
    assert first(policy("spill", first="moe"), ask(), there) == ("moe", "first")
    assert first(policy("spill"), ask(tpot_s=0.0115), there) == ("dense", "first")
    dense.running = 1.0
    assert first(policy("spill"), ask(tpot_s=0.0115), there) == ("moe", "spilled")
    moe.running = 1.5
    assert first(policy("spill"), ask(tpot_s=0.0115), there) == ("dense", "least_late")


def test_weights_are_kept_and_zero_means_never() -> None:
    there = [view(0, "a"), view(1, "b"), view(2, "c")]
    plan = policy("weighted", weights={"a": 3.0, "b": 1.0})
    dice = Random(5)
    seen = Counter(choose(plan, ask(), there, dice).order[0] for _ in range(4000))
    assert seen[2] == 0
    assert abs(seen[0] / 4000 - 0.75) < 0.03  # four standard errors
    there[0].open = there[1].open = False
    assert first(plan, ask(), there) == ("c", "only")


def test_edge_first_leaves_the_device_for_three_reasons() -> None:
    device, cloud = view(0, "phone", place="edge", kind="dense"), view(1, "cloud", place="cloud", ttft=0.05)
    there = [device, cloud]
    plan = policy("edge-first", longest_tokens=1000)
    assert first(plan, ask(), there) == ("phone", "edge")
    assert first(plan, ask(prompt_tokens=900.0), there) == ("cloud", "away_long")
    assert first(plan, ask(ttft_s=0.08), there) == ("cloud", "away_slow")
    cloud.open = False
    assert first(plan, ask(prompt_tokens=900.0, ttft_s=0.08), there) == ("phone", "only")


def test_who_cannot_serve_it_says_why() -> None:
    asked = ask(endpoint="/v1/embeddings")
    assert score(asked, view(0, "a")).why_not == "does not serve /v1/embeddings"
    assert score(ask(), view(0, "a", context_limit=600)).why_not == "too long: 700 tokens, it takes 600"
    assert score(ask(most_output=50), view(0, "a", context_limit=600)).why_not == ""
    assert score(ask(), view(0, "a", quality=0.4), 0.5).why_not == "quality 0.4 is below 0.5"
    assert "no quality score" in score(ask(), view(0, "a"), 0.5).why_not
    assert "cannot be loaded" in score(ask(), view(0, "a", ready=False, load_s=None)).why_not
    assert score(ask(), view(0, "a", open=False)).why_not == BROKEN
    loading = score(ask(), view(0, "a", ready=False, load_s=7.0))
    assert loading.why_not == ""
    assert loading.ttft_s == pytest.approx(7.0 + score(ask(), view(0, "a")).ttft_s)


def test_a_learned_length_orders_and_never_refuses() -> None:
    there = [view(0, "a", context_limit=600), view(1, "b", context_limit=650), view(2, "c", context_limit=9000)]
    choice = choose(policy(), ask(), there, Random(0))
    assert (list(choice.order), choice.reason) == ([2], "only")
    # Nobody holds what is guessed: whoever takes most counts for itself.
    choice = choose(policy(), ask(), there[:2], Random(0))
    assert (list(choice.order), choice.reason, choice.alternative) == ([1, 0], "long", 0)
    # What was asked for, and what no count of tokens could make short enough, is no guess.
    for asked in (ask(most_output=601), ask(prompt_tokens=16.0 * 601)):
        assert choose(policy(), asked, there[:1], Random(0)).reason == "none"


def test_with_every_breaker_open_the_least_bad_is_tried() -> None:
    there = [view(0, "a", open=False, ttft=1.0), view(1, "b", open=False, ttft=0.1)]
    choice = choose(policy(), ask(ttft_s=0.5), there, Random(0))
    assert (list(choice.order), choice.reason) == ([1, 0], "tried_anyway")


def test_shedding_refuses_what_would_be_late_everywhere_and_only_that() -> None:
    there = [view(0, "a"), view(1, "b", ttft=0.2)]
    late = choose(policy(shed=True), ask(ttft_s=0.01), there, Random(0))
    assert (list(late.order), late.reason) == ([], "shed")
    assert late.alternative == 0
    assert choose(policy(shed=True), ask(ttft_s=0.15), there, Random(0)).order[0] == 0
    assert choose(policy(shed=True), ask(), there, Random(0)).order
    assert choose(policy(), ask(ttft_s=0.01), there, Random(0)).reason == "least_late"


def test_exploring_goes_elsewhere_in_its_share_and_never_to_a_bad_miss() -> None:
    best, near, bad = view(0, "best", ttft=0.1), view(1, "near", ttft=0.3), view(2, "bad", ttft=5.0)
    dice = Random(3)
    plan = policy(explore=0.2, slo=Slo(ttft_s=0.25))
    seen = Counter()
    for _ in range(2000):
        choice = choose(plan, ask(ttft_s=0.25), [best, near, bad], dice)
        seen[choice.order[0]] += 1
        assert choice.explored == (choice.order[0] != 0)
        if choice.explored:
            assert choice.order[1] == 0
            assert choice.scores[choice.alternative or 0].backend == "best"
    assert seen[2] == 0
    assert abs(seen[1] / 2000 - 0.2) < 0.04


def test_a_strict_request_is_not_explored_with() -> None:
    plan = policy(slo=Slo(ttft_s=1.0), max_usd=0.1)
    there = view(0, "a", ttft=0.3)
    asked = ask(ttft_s=1.0, usd=0.1)
    assert may_explore(plan, asked, there, score(asked, there))
    for strict in (ask(ttft_s=0.25, usd=0.1), ask(ttft_s=0.25, priority=1)):
        assert not may_explore(plan, strict, there, score(strict, there))
    dear = view(1, "b", usd_per_output=0.01)
    assert not may_explore(plan, asked, dear, score(asked, dear))
    for busy in ({"free": 0}, {"queued": 1}, {"ready": False}, {"stale": True}):
        one = view(0, "a", **busy)
        assert not may_explore(plan, ask(), one, score(ask(), one))


def test_replicas_share_by_the_better_of_two_and_all_stand_behind() -> None:
    there = [view(i, f"r{i}", group="g", running=float(i)) for i in range(8)]
    dice = Random(1)
    seen = Counter(choose(policy(attempts=3), ask(), there, dice).order[0] for _ in range(4000))
    # Of n, the one of rank k (0: most loaded) is the better of two draws in 2 k / (n (n - 1)) of all draws.
    for i in range(8):
        assert abs(seen[i] / 4000 - 2 * (7 - i) / 56) < 0.035
    choice = choose(policy(attempts=3), ask(), there, dice)
    assert len(choice.scores) == 1
    assert len(choice.order) == 3


def test_replicas_that_nobody_has_started_take_no_request_and_no_attempt() -> None:
    there = [view(i, f"r{i}", group="g", running=0.0 if i > 1 else 9.0, away=i > 1) for i in range(16)]
    dice = Random(3)
    homes = set()
    for session in range(1, 100):
        found = [choose(policy(attempts=3), ask(session=session * 7919), there, dice) for _ in range(4)]
        assert len({choice.order[0] for choice in found}) == 1, "a conversation's home is one that is there"
        assert all(set(choice.order[:2]) == {0, 1} for choice in found)
        assert all(len(choice.order) == 3 for choice in found), "the third may have come since"
        homes.add(found[0].order[0])
    assert homes == {0, 1}
    # Where nobody is known to be there, all may be.
    assert {choose(policy(), ask(), there[2:], dice).order[0] for _ in range(500)} == set(range(2, 16))


def test_a_replica_that_goes_away_moves_its_own_conversations_alone() -> None:
    """Else one look that fails would cost all others of its group their cached prefixes."""
    homes: list[dict[int, int]] = []
    for away in (-1, 0, 3):
        there = [view(i, f"r{i}", group="g", away=i == away) for i in range(8)]
        asks = {session: ask(session=session * 7919) for session in range(1, 200)}
        homes.append({session: choose(policy(), one, there, Random(3)).order[0] for session, one in asks.items()})
        assert {session for session, home in homes[-1].items() if home != homes[0][session]} == {
            session for session, home in homes[0].items() if home == away
        }


def test_a_slow_replica_is_left_alone_while_it_is_slow() -> None:
    slow, good = view(0, "slow", group="g", peak=20.0), view(1, "good", group="g", running=10.0)
    assert first(policy(), ask(), [slow, good])[0] == "good"
    slow.peak = 1.0
    assert first(policy(), ask(), [slow, good])[0] == "slow"


def test_a_conversation_stays_at_its_replica_until_that_is_full() -> None:
    there = [view(i, f"r{i}", group="g", running=4.0) for i in range(5)] + [view(9, "other", ttft=9.0)]
    homes = set()
    for session in range(1, 60):
        found = {first(policy(), ask(session=session * 7919), there, seed) for seed in range(4)}
        assert len(found) == 1
        assert next(iter(found))[1] == "sticky"
        homes |= found
    assert len(homes) == 5
    name, _ = first(policy(), ask(session=7919), there)
    home = next(v for v in there if v.name == name)
    home.running = 40.0
    away, reason = first(policy(), ask(session=7919), there, 1)
    if away == name:  # it was drawn against itself
        away, reason = first(policy(), ask(session=7919), there, 2)
    assert away != name
    assert reason != "sticky"


def test_near_equals_share_so_that_gateways_do_not_run_after_one_another() -> None:
    there = [view(0, "a"), view(1, "b", ttft=0.101), view(2, "c", tpot=0.02)]
    dice = Random(2)
    seen = Counter(choose(policy(), ask(), there, dice).order[0] for _ in range(1000))
    assert seen[2] == 0
    assert min(seen[0], seen[1]) > 400


def test_a_stale_backend_is_the_last_resort() -> None:
    there = [view(0, "a", stale=True, slots=50), view(1, "b", ttft=0.3, tpot=0.03)]
    assert first(policy(), ask(), there)[0] == "b"


def test_no_place_at_the_gateway_costs_the_wait_for_one() -> None:
    free, full = view(0, "a", running=10.0), view(0, "a", running=10.0, free=0, queued=3)
    wait = score(ask(), full).ttft_s - score(ask(), free).ttft_s
    # The fourth of ten answers of 200 tokens that end one after the other.
    assert wait == pytest.approx(4 * 200 * score(ask(), free).tpot_s / 10)
