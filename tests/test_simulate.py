"""The simulator: every request ends once, tokens are conserved, nothing happens before its cause."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulate_fixtures import TINY_POLICY, model, naive_simulation

from breakeven.errors import UserError
from breakeven.forecast.simulator.policy import BALANCING, Autoscale, Fleet, Policy, policy_named, table_of
from breakeven.forecast.simulator.results import Simulation
from breakeven.forecast.simulator.run import policy_of, simulate, simulate_parts
from breakeven.forecast.simulator.state import NOBODY, Requests, requests_of
from breakeven.traffic.workload import Slo

DENSE, MOE = model("llama-3.2-1b"), model("olmoe-1b-7b")


@st.composite
def some_requests(draw: st.DrawFn, sharing: bool = True, most: int = 40) -> Requests:
    n = draw(st.integers(1, most))
    gaps = draw(st.lists(st.sampled_from([0.0, 0.001, 0.01, 0.1, 1.0]), min_size=n, max_size=n))
    prompts = draw(st.lists(st.integers(1, 900), min_size=n, max_size=n))
    outputs = draw(st.lists(st.integers(1, 120), min_size=n, max_size=n))
    arrival_s = np.cumsum(gaps)
    prefix: tuple[tuple[int, ...], ...] = ()
    if sharing and draw(st.booleans()):
        # Text is a tree: a request follows one of three roots and branches off somewhere.
        roots = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 20)), min_size=n, max_size=n))
        prefix = tuple(
            tuple(1000 * root + k if k < branch else 10_000 * (i + 1) + k for k in range(prompt // 64))
            for i, ((root, branch), prompt) in enumerate(zip(roots, prompts, strict=True))
        )
    after = think = streams = None
    closes_s = np.inf
    kind = draw(st.sampled_from(["open", "turns", "closed"]))
    if kind == "turns":
        after = np.array([i - 1 if i % 3 else NOBODY for i in range(n)], np.int64)
        arrival_s = np.where(after == NOBODY, arrival_s, np.nan)
        think = np.full(n, 0.02)
    elif kind == "closed":
        arrival_s, streams = np.full(n, np.nan), draw(st.integers(1, 9))
        think = np.full(n, draw(st.sampled_from([0.0, 0.05])))
        closes_s = draw(st.sampled_from([np.inf, 2.0]))
    return Requests(
        arrival_s,
        np.array(prompts, np.int64),
        np.array(outputs, np.int64),
        after,
        think,
        prefix,
        prefix_tokens=64,
        streams=streams,
        closes_s=closes_s,
    )


@st.composite
def some_policy(draw: st.DrawFn) -> Policy:
    sequences = draw(st.sampled_from([1, 3, 16]))
    return Policy(
        name="some",
        max_sequences=sequences,
        max_step_tokens=draw(st.sampled_from([max(sequences, 32), 512, 2048])),
        micro_batch=draw(st.sampled_from([None, 128])),
        chunked=draw(st.booleans()),
        kv_tokens=draw(st.sampled_from([None, 600, 1100, 4000])),
        slot_tokens=draw(st.sampled_from([None, 700])),
        block_tokens=draw(st.sampled_from([1, 16, 64])),
        prefix_caching=draw(st.booleans()),
        slot_caching=draw(st.booleans()),
        front_s=draw(st.sampled_from([0.0, 0.02])),
        ahead=draw(st.booleans()),
        apart=draw(st.booleans()),
        adjacent=draw(st.booleans()),
    )


@st.composite
def some_fleet(draw: st.DrawFn) -> Fleet:
    least = draw(st.sampled_from([None, 0, 1]))
    scale = None if least is None else Autoscale(least=least, most=3, per_replica=2, start_s=0.3, calm_s=0.5)
    return Fleet(replicas=draw(st.integers(1, 3)), balancing=draw(st.sampled_from(list(BALANCING))), autoscale=scale)


@given(some_requests(), some_policy(), some_fleet(), st.sampled_from([DENSE, MOE]))
@settings(max_examples=150, deadline=None)
def test_invariants(requests: Requests, policy: Policy, fleet: Fleet, which) -> None:
    run = simulate(requests, which, policy, fleet)
    served, refused = run.served, run.refused_N
    # Every issued request ends once, served or refused; the others never arrived.
    assert (run.issued_N == (served | refused)).all()
    assert not (served & refused).any()
    if requests.closes_s == np.inf:
        assert run.issued_N.all()
    # A request is refused exactly when it could not be served alone.
    tokens = requests.prompt_tokens_N + requests.output_tokens_N
    too_long = np.zeros(len(requests), bool)
    if policy.slot_tokens is not None:
        too_long |= tokens > policy.slot_tokens
    if policy.kv_tokens is not None:
        block = min(policy.block_tokens, 64)
        too_long |= -(-(tokens - 1) // block) > policy.kv_tokens // block
    if not policy.chunked:
        too_long |= requests.prompt_tokens_N > policy.max_step_tokens
    assert (refused == (too_long & run.issued_N)).all()
    # Tokens are conserved: each step gives one to every sequence in it, each prompt read gives one more.
    steps = run.steps
    prompts_read = int(served.sum()) + run.preemptions  # at most: one may be preempted before its prompt was read
    decoded = int((steps.steps_M * steps.decoding_M).sum())
    assert decoded <= int(run.output_tokens_N.sum()) <= decoded + prompts_read
    if not run.preemptions:
        assert decoded == int((requests.output_tokens_N - 1)[served].sum())
        read = requests.prompt_tokens_N[served].sum() - run.cached_tokens_N[served].sum()
        assert int(steps.prompt_tokens_M.sum()) == int(read)
    # Causality.
    arrival = run.arrival_s_N[served]
    assert (run.first_s_N[served] > arrival + policy.front_s - 1e-12).all()
    assert (run.end_s_N[served] >= run.first_s_N[served]).all()
    if requests.after_N is not None and requests.think_s_N is not None:
        for i, before in enumerate(requests.after_N.tolist()):
            if before != NOBODY and run.issued_N[i] and served[before]:
                assert run.arrival_s_N[i] == pytest.approx(run.end_s_N[before] + requests.think_s_N[i], abs=1e-12)
    # Limits hold in every step, and steps of a replica do not overlap.
    assert (steps.decoding_M <= policy.max_sequences).all()
    assert (steps.decoding_M * (steps.prompt_tokens_M > 0) + steps.prompt_tokens_M <= policy.max_step_tokens).all()
    if policy.kv_tokens is not None:
        assert (steps.kv_tokens_M <= policy.kv_tokens).all()
    for k in range(fleet.most):
        mine = steps.replica_M == k
        starts, ends = steps.start_s_M[mine], (steps.start_s_M + steps.step_s_M * steps.steps_M)[mine]
        assert (starts[1:] >= ends[:-1] - 1e-9).all()
    # The longest gap of a request lies between its mean and its whole time.
    several = served & (run.output_tokens_N > 1)
    assert (run.gap_s_N[several] >= run.tpot_s[several] * (1 - 1e-6)).all()
    assert (run.gap_s_N[several] <= (run.end_s_N - run.first_s_N)[several] * (1 + 1e-9) + 1e-12).all()
    assert 0.0 <= run.utilisation <= 1.0 + 1e-9
    if requests.streams is not None:
        flow = np.concatenate([arrival, run.end_s_N[served]])
        change = np.concatenate([np.ones(len(arrival)), -np.ones(len(arrival))])
        order = np.lexsort((change, flow))
        assert np.cumsum(change[order]).max(initial=0) <= requests.streams
    # Determinism, to the last bit.
    again = simulate(requests, which, policy, fleet)
    for name in ("first_s_N", "end_s_N", "gap_s_N", "replica_N"):
        assert np.array_equal(getattr(run, name), getattr(again, name), equal_nan=True)


@given(some_requests(), some_policy(), some_fleet())
@settings(max_examples=60, deadline=None)
def test_a_run_equals_its_replay(requests: Requests, policy: Policy, fleet: Fleet) -> None:
    """Arrivals that answers decided, given as fixed times, lead to the same run."""
    if requests.after_N is not None and fleet.balancing == "gateway":
        # A record of arrivals does not say which of them are turns of one conversation, which that rule keeps together.
        fleet = replace(fleet, balancing="least_loaded")
    run = simulate(requests, DENSE, policy, fleet)
    came = np.flatnonzero(run.issued_N)
    order = came[np.argsort(run.arrival_s_N[came], kind="stable")]
    if len(np.unique(run.arrival_s_N[order])) < len(order):
        return  # who of two that came at once was first is not in the record
    replay = Requests(
        run.arrival_s_N[order],
        requests.prompt_tokens_N[order],
        requests.output_tokens_N[order],
        prefix=tuple(requests.prefix[i] for i in order) if requests.prefix else (),
        prefix_tokens=requests.prefix_tokens,
    )
    again = simulate(replay, DENSE, policy, fleet)
    assert again.end_s_N == pytest.approx(run.end_s_N[order], rel=1e-6, nan_ok=True)
    assert again.first_s_N == pytest.approx(run.first_s_N[order], rel=1e-6, nan_ok=True)


def test_who_follows_an_answer_that_came_sooner_for_want_of_room_comes_in_time() -> None:
    """Of two that take a pass each one is preempted: the other's steps are half as long, and it ends sooner."""
    policy = replace(policy_named("llama.cpp"), kv_tokens=500)
    requests = Requests(
        np.array([0.0, 0.0, 0.0, np.nan]),
        np.array([100, 10, 100, 20]),
        np.array([300, 2, 300, 2]),
        after_N=np.array([NOBODY, NOBODY, NOBODY, 0]),
        think_s_N=np.array([0.0, 0.0, 0.0, 0.001]),
    )
    run = simulate(requests, DENSE, policy)
    assert run.preemptions
    replay = requests_of(run.arrival_s_N, requests.prompt_tokens_N, requests.output_tokens_N)
    assert simulate(replay, DENSE, policy).end_s_N == pytest.approx(run.end_s_N, rel=1e-6)


@given(some_requests(sharing=False, most=12), some_policy())
@settings(max_examples=100, deadline=None)
def test_skipping_steps_changes_nothing(requests: Requests, policy: Policy) -> None:
    """The same rules, written down again step by step without any skipping, give the same times."""
    policy = replace(policy, kv_tokens=None, prefix_caching=False, ahead=False)
    if requests.depends:
        return
    run = simulate(requests, DENSE, policy)
    first, end, gap = naive_simulation(requests, DENSE, policy)
    assert run.first_s_N == pytest.approx(first, rel=1e-9, nan_ok=True)
    assert run.end_s_N == pytest.approx(end, rel=1e-9, nan_ok=True)
    assert run.gap_s_N == pytest.approx(gap, rel=1e-9, nan_ok=True)


def test_who_comes_during_a_long_answer_waits_for_the_step_in_progress_only() -> None:
    """2000 steps grow by a few per cent: as many of the first one's length would end tens of steps too late."""
    requests = requests_of(np.array([0.0, 18.0]), np.array([16, 16]), np.array([4000, 40]))
    run = simulate(requests, DENSE, TINY_POLICY)
    first, end, gap = naive_simulation(requests, DENSE, TINY_POLICY)
    assert end[0] > first[1] > 18.0
    assert run.first_s_N == pytest.approx(first, rel=1e-9)
    assert run.end_s_N == pytest.approx(end, rel=1e-9)
    assert run.gap_s_N == pytest.approx(gap, rel=1e-9)
    # It comes near the end of an answer as well: fewer steps are left than the time to it would hold.
    alone_s = float(simulate(requests_of(np.zeros(1), np.array([16]), np.array([4000])), DENSE, TINY_POLICY).end_s)
    late = replace(requests, arrival_s_N=np.array([0.0, alone_s - 0.1]))
    first, _, _ = naive_simulation(late, DENSE, TINY_POLICY)
    assert simulate(late, DENSE, TINY_POLICY).first_s_N == pytest.approx(first, rel=1e-9)


@given(some_requests(most=25), some_policy(), st.sampled_from([DENSE, MOE]), st.floats(1.05, 4.0))
@settings(max_examples=100, deadline=None)
def test_more_capacity_never_hurts(requests: Requests, policy: Policy, which, factor: float) -> None:
    """A machine that is faster in every step ends all work no later; more replicas and more blocks help likewise.

    What holds of single requests holds up to the steps in progress: a request may just miss one.
    """
    if requests.depends:
        return
    policy = replace(policy, prefix_caching=False)
    run, faster = simulate(requests, which, policy), simulate(requests, which.scaled(1 / factor), policy)
    longest = float(run.steps.step_s_M.max(initial=0.0))
    assert faster.end_s <= run.end_s + longest
    if run.served.any():
        assert faster.e2e_s[run.served].mean() <= run.e2e_s[run.served].mean() + longest
    more = simulate(requests, which, policy, Fleet(replicas=3))
    if run.served.any():
        assert more.e2e_s[run.served].mean() <= run.e2e_s[run.served].mean() + longest
    if policy.kv_tokens is not None:
        roomier = simulate(requests, which, replace(policy, kv_tokens=4 * policy.kv_tokens))
        assert (roomier.refused_N <= run.refused_N).all()
    assert simulate(requests, which, replace(policy, kv_tokens=None)).preemptions == 0


@given(some_requests(sharing=False), some_policy(), st.sampled_from([0.25, 0.5, 2.0, 8.0]))
@settings(max_examples=50, deadline=None)
def test_time_has_no_scale(requests: Requests, policy: Policy, factor: float) -> None:
    """Arrivals and steps stretched alike: so is everything that follows. Powers of two, so to the last bit."""
    stretched = replace(
        requests,
        arrival_s_N=requests.arrival_s_N * factor,
        think_s_N=None if requests.think_s_N is None else requests.think_s_N * factor,
        closes_s=requests.closes_s * factor,
    )
    run = simulate(requests, DENSE, policy)
    other = simulate(stretched, DENSE.scaled(factor), replace(policy, front_s=policy.front_s * factor))
    assert np.array_equal(other.end_s_N, run.end_s_N * factor, equal_nan=True)


def test_one_request_alone_takes_the_step_models_time() -> None:
    run = simulate(requests_of(np.zeros(1), np.array([512]), np.array([101])), DENSE, TINY_POLICY)
    assert run.ttft_s[0] == pytest.approx(float(DENSE.step_s(0, 0, 512, 256)), rel=0.01)
    steps = DENSE.step_s(np.ones(100), 512 + np.arange(100))
    assert run.tpot_s[0] == pytest.approx(float(steps.mean()), rel=0.005)
    assert len(run.steps.start_s_M) == 2
    assert run.steps.total == 101


def test_work_does_not_grow_with_time() -> None:
    """A hundred times the answer: a hundred times the steps, which still change only where requests come and go."""
    short, long = (
        simulate(requests_of(np.arange(20.0) * scale, np.full(20, 64), np.full(20, tokens)), DENSE, TINY_POLICY)
        for scale, tokens in ((1e-4, 101), (1e-2, 10_001))
    )
    assert long.steps.total > 50 * short.steps.total
    assert max(len(run.steps.start_s_M) for run in (short, long)) <= 3 * 20


def test_steps_planned_ahead_make_a_newcomer_wait_one_more() -> None:
    requests = requests_of(np.array([0.0, 1.0]), np.array([64, 64]), np.array([400, 2]))
    now, ahead = (simulate(requests, DENSE, replace(TINY_POLICY, ahead=ahead)) for ahead in (False, True))
    step = float(DENSE.step_s(1, 64 + 100))
    assert ahead.ttft_s[0] == now.ttft_s[0]
    assert ahead.ttft_s[1] - now.ttft_s[1] == pytest.approx(step, rel=0.05)


def test_prompts_of_llama_cpp_hold_up_answers() -> None:
    """One long prompt in steps of 2048 tokens: whoever decodes waits for all four passes."""
    requests = requests_of(np.array([0.0, 0.5]), np.array([16, 4096]), np.array([3000, 2]))
    llama, vllm = (
        simulate(requests, DENSE, replace(policy_named("llama.cpp"), max_step_tokens=budget, micro_batch=micro))
        for budget, micro in ((2048, 512), (512, None))
    )
    assert llama.gap_s_N[0] > 3 * vllm.gap_s_N[0]


def test_llama_cpp_computes_together_only_what_lies_in_adjacent_slots() -> None:
    """Of three in slots 0, 1 and 2 the one in the middle ends: the others take a pass each from there on."""
    policy = policy_named("llama.cpp")
    requests = requests_of(np.zeros(3), np.full(3, 64), np.array([100, 50, 100]))
    steps = simulate(requests, DENSE, policy).steps
    alone = float(DENSE.step_s(1, 150.0))
    last = [s for s, d in zip(steps.step_s_M, steps.decoding_M, strict=True) if d == 2][-1]
    assert last == pytest.approx(2 * alone, rel=0.02)
    together = simulate(requests, DENSE, replace(policy, adjacent=False)).steps
    assert steps.decoding_M.max() == together.decoding_M.max() == 3
    assert together.step_s_M[-1] < 0.7 * last
    # The one that came last leaves no gap, and nothing differs.
    ends_last = requests_of(np.zeros(3), np.full(3, 64), np.array([100, 100, 50]))
    apart, joined = (simulate(ends_last, DENSE, replace(policy, adjacent=how)) for how in (True, False))
    assert (apart.end_s_N == joined.end_s_N).all()


def test_mlx_reads_prompts_beside_each_other_in_a_pass_of_their_own() -> None:
    """mlx_lm.server: 2048 tokens of each of eight prompts a step, and what decodes goes before them."""
    mlx = policy_named("mlx")
    model = replace(DENSE, profile=msgspec.structs.replace(DENSE.profile, engine="mlx"))
    assert policy_of(model).prompts == 8
    prompts, n = 4096, 10
    requests = Requests(arrival_s_N=np.zeros(n), prompt_tokens_N=np.full(n, prompts), output_tokens_N=np.full(n, 4))
    run = simulate(requests, model, mlx)
    steps = run.steps
    # Eight prompts in two steps, then the other two beside eight that decode.
    assert steps.prompt_tokens_M[:4].tolist() == [8 * 2048, 8 * 2048, 2 * 2048, 2 * 2048]
    assert steps.decoding_M[:4].tolist() == [0, 0, 8, 8]
    joined = simulate(requests, model, replace(mlx, apart=False)).steps
    assert steps.step_s_M[0] == joined.step_s_M[0]
    assert steps.step_s_M[2] > joined.step_s_M[2]  # the weights are read twice


def test_preempted_requests_are_answered_in_full() -> None:
    policy = replace(TINY_POLICY, kv_tokens=800)
    run = simulate(requests_of(np.zeros(6), np.full(6, 100), np.full(6, 300)), DENSE, policy)
    assert run.preemptions > 0
    assert run.served.all()
    assert (run.output_tokens_N == 300).all()
    late = run.preempted_N > 0
    assert run.gap_s_N[late].min() > run.gap_s_N[~late].max()


def test_shared_prefixes_are_not_read_again() -> None:
    prefix = tuple((1, 2, 3, 4, 10 + i) for i in range(8))
    requests = Requests(
        np.arange(8) * 5.0, np.full(8, 340, np.int64), np.full(8, 4, np.int64), prefix=prefix, prefix_tokens=64
    )
    cached = simulate(requests, DENSE, replace(TINY_POLICY, prefix_caching=True))
    plain = simulate(requests, DENSE, TINY_POLICY)
    assert cached.cached_tokens_N.tolist() == [0] + [256] * 7
    assert cached.ttft_s[1:].max() < plain.ttft_s.min()
    assert plain.cached_tokens_N.sum() == 0


def test_balancing_spreads_load() -> None:
    lengths = np.random.default_rng(0).integers(1, 600, 300)
    requests = requests_of(np.arange(300) * 0.03, np.full(300, 128), lengths)
    runs: dict[str, Simulation] = {
        name: simulate(requests, DENSE, TINY_POLICY, Fleet(replicas=3, balancing=name)) for name in BALANCING
    }
    assert np.bincount(runs["round_robin"].replica_N).tolist() == [100, 100, 100]
    means = {name: run.e2e_s.mean() for name, run in runs.items()}
    assert means["least_loaded"] == min(means[name] for name in ("round_robin", "least_loaded", "random"))
    # Two looked at are nearly as good as all.
    assert means["least_loaded"] == pytest.approx(means["gateway"], rel=0.01)
    assert means["gateway"] < means["random"]


def test_autoscaling_adds_and_removes() -> None:
    busy, calm = np.arange(300) * 0.02, 100.0 + np.arange(40) * 10.0
    requests = requests_of(np.concatenate([busy, calm]), np.full(340, 128), np.full(340, 200))
    scale = Autoscale(least=1, most=4, per_replica=8, start_s=2.0, calm_s=60.0)
    scaled = simulate(requests, DENSE, TINY_POLICY, Fleet(autoscale=scale))
    fixed = simulate(requests, DENSE, TINY_POLICY, Fleet(replicas=4))
    alone = simulate(requests, DENSE, TINY_POLICY, Fleet(replicas=1))
    first = {k: scaled.arrival_s_N[scaled.replica_N == k].min() for k in range(1, scaled.replica_N.max() + 1)}
    assert first
    assert min(first.values()) > 2.0
    assert alone.replica_seconds < scaled.replica_seconds < 0.5 * fixed.replica_seconds
    assert fixed.e2e_s.mean() <= scaled.e2e_s.mean() < alone.e2e_s.mean()


def test_the_last_replica_stops_and_who_comes_then_waits_for_it() -> None:
    """Two clusters an hour apart: the machine is paid for while it starts, answers and keeps calm, and not between."""
    arrival_s = np.array([0.0, 0.5, 1.0, 3600.0, 3601.0, 3640.0])
    requests = requests_of(arrival_s, np.full(6, 128), np.full(6, 50))
    scale = Autoscale(least=0, most=1, per_replica=8, start_s=30.0, calm_s=120.0)
    run = simulate(requests, DENSE, TINY_POLICY, Fleet(autoscale=scale))
    always = simulate(requests, DENSE, TINY_POLICY, Fleet(autoscale=replace(scale, least=1)))
    assert run.served.all()
    # Those who find it gone wait for what is left of its start; who comes while it is there does not.
    for k in (0, 1, 2, 3, 4):
        start_s = 0.0 if k < 3 else 3600.0
        assert start_s + 30.0 < run.first_s_N[k] < start_s + 31.0
    assert run.ttft_s[5] == pytest.approx(always.ttft_s[5])
    ended_s = run.end_s_N[:3].max()
    assert run.replica_seconds == pytest.approx((ended_s + 120.0) + (run.end_s - 3600.0))
    assert always.replica_seconds == pytest.approx(always.end_s)


def test_scaling_to_nothing_saves_most_of_a_quiet_day() -> None:
    """A day with five busy hours: machine seconds by the least that stays."""
    rng = np.random.default_rng(0)
    hours = np.concatenate([h * 3600.0 + np.sort(rng.uniform(0, 3600, 400)) for h in (9, 10, 11, 14, 15)])
    requests = requests_of(np.concatenate([[0.0], hours, [86000.0]]), np.full(2002, 128), np.full(2002, 100))
    seconds = {
        least: simulate(
            requests, DENSE, TINY_POLICY, Fleet(autoscale=Autoscale(least=least, most=4, per_replica=4))
        ).replica_seconds
        for least in (0, 1)
    }
    assert 86000 <= seconds[1] < 1.3 * 86400
    assert 5 * 3600 < seconds[0] < 8 * 3600 < 0.5 * seconds[1]


def test_percentiles_and_goodput() -> None:
    run = simulate(requests_of(np.arange(100) * 0.5, np.full(100, 256), np.full(100, 32)), DENSE, TINY_POLICY)
    ttft = np.sort(run.ttft_s)
    assert run.percentiles("ttft", [50, 99, 100]).tolist() == [ttft[49], ttft[98], ttft[99]]
    between = float(ttft[:60].max() + ttft[60:].min()) / 2
    assert run.good_share(Slo(ttft_s=between)) == pytest.approx((ttft <= between).mean())
    assert run.good_share(Slo(ttft_s=1e-9)) == 0.0
    assert run.good_share(Slo()) == 1.0
    assert run.goodput_per_s(Slo()) == pytest.approx(run.requests_per_s)
    gaps = np.sort(run.gap_s_N)
    assert run.percentiles("gap", [1, 50, 100]).tolist() == [gaps[0], gaps[49], gaps[99]]


def test_over_time_adds_up() -> None:
    run = simulate(requests_of(np.arange(50) * 0.05, np.full(50, 300), np.full(50, 40)), MOE, TINY_POLICY)
    series = run.over_time(37)
    width = run.end_s / 37
    assert float(series["busy"].sum() * width) == pytest.approx(run.busy_s)
    sequence_seconds = float((run.steps.step_s_M * run.steps.steps_M * run.steps.decoding_M).sum())
    assert float(series["decoding"].sum() * width) == pytest.approx(sequence_seconds)
    assert (series["busy"] <= 1 + 1e-9).all()
    assert (series["waiting"] >= -1e-9).all()


def test_refused_requests_count_as_infinitely_late() -> None:
    policy = replace(TINY_POLICY, slot_tokens=100)
    run = simulate(requests_of(np.zeros(4), np.array([10, 10, 10, 500]), np.full(4, 5)), DENSE, policy)
    assert run.refused_N.tolist() == [False, False, False, True]
    assert run.percentiles("e2e", [75, 100])[1] == np.inf
    assert np.isfinite(run.percentiles("e2e", 75))
    assert run.good_share(Slo(e2e_s=1e6)) == 0.75


@given(st.integers(0, 64), st.floats(1, 60_000), st.integers(1, 2048), st.floats(1, 60_000))
@settings(max_examples=200, deadline=None)
def test_the_table_is_near_the_step_model(d: int, c: float, p: int, q: float) -> None:
    for which in (DENSE, MOE):
        table = table_of(which, 64, 2048, 65_536)
        assert table.decode_s(max(d, 1), c) == pytest.approx(float(which.step_s(max(d, 1), c)), rel=0.005)
        assert table.mixed_s(d, c, p, q) == pytest.approx(float(which.step_s(d, c, p, q)), rel=0.08)


def test_the_table_leaps_where_steps_are_launched_otherwise() -> None:
    plain = model("qwen3-0.6b")
    costs = msgspec.structs.replace(plain.profile.constants, launch_layer_s=5e-3, graph_tokens=512)
    which = replace(plain, profile=msgspec.structs.replace(plain.profile, constants=costs))
    table = table_of(which, 64, 2048, 8192)
    for d, p in ((0, 512), (0, 513), (1, 512), (3, 512), (64, 600)):
        assert table.mixed_s(d, 300, p, 256) == pytest.approx(float(which.step_s(d, 300, p, 256)), rel=0.01)
    assert table.mixed_s(1, 300, 512, 256) > 1.5 * table.mixed_s(0, 300, 512, 256)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: requests_of(np.zeros(1), np.zeros(1, int), np.ones(1, int)), "1 token"),
        (lambda: requests_of(-np.ones(1), np.ones(1, int), np.ones(1, int)), "0 s or later"),
        (lambda: Requests(np.full(1, np.nan), np.ones(1, np.int64), np.ones(1, np.int64)), "without an arrival"),
        (lambda: replace(TINY_POLICY, max_step_tokens=2), "raise max_step_tokens"),
        (lambda: policy_named("sglang"), "llama.cpp"),
        (lambda: Fleet(balancing="best"), "round_robin"),
        (lambda: Autoscale(least=3, most=2), "least <= most"),
        (lambda: Autoscale(least=0, most=0), "1 at most or more"),
    ],
)
def test_bad_input_is_refused(make, says: str) -> None:
    with pytest.raises(UserError, match=says):
        make()


@given(some_requests(most=40), some_policy(), some_fleet(), st.integers(1, 15))
@settings(max_examples=60, deadline=None)
def test_parts_give_what_the_whole_gives(requests: Requests, policy: Policy, fleet: Fleet, size: int) -> None:
    """A trace served part by part, most of it forgotten on the way, ends as it does in one piece."""
    if requests.depends:
        return
    whole = simulate(requests, MOE, policy, fleet)
    parts = [
        Requests(
            requests.arrival_s_N[k : k + size],
            requests.prompt_tokens_N[k : k + size],
            requests.output_tokens_N[k : k + size],
            prefix=requests.prefix[k : k + size],
            prefix_tokens=requests.prefix_tokens,
        )
        for k in range(0, len(requests), size)
    ]
    found = list(simulate_parts(iter(parts), MOE, policy, fleet))
    ends = np.sort(np.concatenate([run.end_s_N[run.served] for run in found]))
    assert ends == pytest.approx(np.sort(whole.end_s_N[whole.served]), rel=1e-9)
    for name in ("ttft_s", "gap_s_N", "preempted_N", "cached_tokens_N"):
        values = np.sort(np.concatenate([getattr(run, name)[run.served] for run in found]))
        assert values == pytest.approx(np.sort(getattr(whole, name)[whole.served]), rel=1e-9, abs=1e-12)
    assert sum(int(run.refused_N.sum()) for run in found) == int(whole.refused_N.sum())
    assert sum(run.steps.total for run in found) == whole.steps.total
    assert found[-1].busy_s == pytest.approx(whole.busy_s)


def test_parts_must_be_independent_and_in_order() -> None:
    late, early = (requests_of(np.array([at]), np.array([8]), np.array([2])) for at in (5.0, 1.0))
    with pytest.raises(UserError, match="in order of time"):
        list(simulate_parts([late, early], DENSE, TINY_POLICY))
    loop = Requests(np.full(2, np.nan), np.full(2, 8, np.int64), np.full(2, 2, np.int64), streams=1)
    with pytest.raises(UserError, match="conversations"):
        list(simulate_parts([loop], DENSE, TINY_POLICY))
