"""Every number of a point, against logs whose numbers are known, and against plain arithmetic on random ones."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from breakeven.measure import events
from breakeven.measure.events import EventWriter, iter_events
from breakeven.measure.load.columns import GAP_ERROR, collect, gap_code, gap_histogram, gap_of_code_ns
from breakeven.measure.load.part import measured_part, meets, part_from, tpot_ns
from breakeven.measure.load.points import load_points
from breakeven.measure.paired.blocks import token_gaps_s
from breakeven.results.load import Latency, LoadPoint
from breakeven.results.metrics import LATENCIES
from breakeven.traffic.workload import Arrivals, OwnPrompts, Slo, Workload
from tests.load_log_fixtures import CLOSED, S, noisy_run, request, run, seconds

ZERO = 5_000 * S


def one(log: list[events.Event], slo: Slo | None = None) -> LoadPoint:
    (point,) = load_points(log, slo)
    return point


def latency(point: LoadPoint, metric: str) -> Latency:
    return next(x for x in point.latencies if x.metric == metric)


def percentile(point: LoadPoint, metric: str, p: float) -> float | None:
    return next(x for x in latency(point, metric).percentiles if x.p == p).value


def steady_requests(n: int, **more: object) -> list[events.RequestDone]:
    """`n` equal requests a tenth of a second apart, each 0.3 s long and with 11 tokens."""
    return [request(i, due_s=0.1 * i, zero_ns=ZERO, **more) for i in range(n)]  # type: ignore[arg-type]


def test_a_run_of_equal_requests() -> None:
    rows = steady_requests(100, lag_s=0.001)
    point = one(run(rows, to_s=10.0, zero_ns=ZERO), Slo(ttft_s=0.2, tpot_s=0.03))
    assert (point.model, point.load, point.rate_per_s, point.concurrency) == ("a", "10 req/s", 10.0, None)
    assert (point.requests, point.answered, point.errors, point.anomalies) == (100, 100, {}, {})
    assert point.measured_s == pytest.approx(10)
    # The first of 20 blocks of time, in which the engine filled up, is dropped.
    assert (point.steady.found, point.steady.start_s, point.steady.end_s) == (True, 0.5, 10.0)
    assert [x.metric for x in point.latencies] == list(LATENCIES)
    expected = {"ttft_s": 0.1, "service_ttft_s": 0.099, "tpot_s": 0.02, "e2e_s": 0.3, "service_e2e_s": 0.299}
    for metric, value in expected.items():
        found = latency(point, metric)
        assert found.n == 95
        assert found.mean is not None
        assert found.mean.value == pytest.approx(value)
        assert found.mean.low == pytest.approx(value)
        assert [x.value is None for x in found.percentiles] == [False, False, True, True, True]
        assert percentile(point, metric, 90) == pytest.approx(value)
    assert latency(point, "itl_s").n == 950
    assert percentile(point, "itl_s", 90) == pytest.approx(0.02, rel=GAP_ERROR)
    times = [t - ZERO for row in rows for t in row.chunk_ns]
    assert point.output_tokens_per_s == pytest.approx(sum(0.5 * S <= t <= 10 * S for t in times) / 9.5, rel=0.01)
    assert point.requests_per_s == pytest.approx(sum(0.5 * S < row.done_ns - ZERO <= 10 * S for row in rows) / 9.5)
    assert point.input_tokens_per_s == pytest.approx(1000, rel=0.02)
    assert (point.good and point.good.hits, point.goodput_per_s) == (95, pytest.approx(10))
    assert point.in_flight_max == 3
    assert point.in_flight_mean == pytest.approx(3, rel=0.02)
    assert point.whole_run_ttft_s is not None
    assert point.whole_run_ttft_s.value == pytest.approx(0.1)
    assert not point.client.flags


def test_what_is_due_after_the_end_that_rounds_share_is_not_counted() -> None:
    (loaded,) = collect(run(steady_requests(100), to_s=10.0, zero_ns=ZERO))
    part = part_from(measured_part(loaded), 2 * S, 5 * S)
    due_N = loaded.requests.due_N[part.counted_N]
    assert (len(due_N), due_N.min(), due_N.max()) == (31, 2 * S, 5 * S)


def test_failed_requests_are_infinitely_late_and_never_good() -> None:
    rows = [request(i, due_s=0.1 * i, error="timeout" if i % 11 == 5 else None) for i in range(100)]
    point = one(run(rows, to_s=10.0), Slo(ttft_s=1.0))
    assert (point.requests, point.answered, point.errors) == (100, 91, {"timeout": 9})
    assert point.good is not None
    assert (point.good.hits, point.good.n) == (91, 100)
    assert percentile(point, "ttft_s", 90) is not None
    many = [request(i, due_s=0.1 * i, error="reset" if i % 5 == 0 else None) for i in range(100)]
    worse = one(run(many, to_s=10.0))
    found = next(x for x in latency(worse, "e2e_s").percentiles if x.p == 90)
    assert (found.value, found.why) == (None, "19 of 95 requests failed")
    assert latency(worse, "ttft_s").n == 95
    assert latency(worse, "tpot_s").n == 76
    assert worse.errors == {"reset": 20}
    assert percentile(worse, "tpot_s", 90) is not None
    assert worse.good is None
    assert worse.goodput_per_s is None


def test_the_warm_up_never_counts_and_rates_start_when_it_has_left() -> None:
    warm = [request(i, due_s=0.1 * i, warm=True, tpot_s=0.2, anomalies=["no_done"]) for i in range(10)]
    early = [request(10, due_s=0.95, ttft_s=9.0)]
    rows = [request(11 + i, due_s=1 + 0.1 * i, anomalies=["no_done"] if i < 3 else []) for i in range(190)]
    point = one(run([*warm, *early, *rows], from_s=1.0, to_s=20.0))
    assert (point.requests, point.anomalies) == (190, {"no_done": 3})
    assert latency(point, "ttft_s").mean.value == pytest.approx(0.1)  # type: ignore[union-attr]
    # The last answer to the warm-up is over at 0.9 + 0.1 + 2.0 s: from then on 10 requests a second are answered.
    assert point.requests_per_s == pytest.approx(10, rel=0.02)
    assert point.output_tokens_per_s == pytest.approx(110, rel=0.02)


def test_throughput_is_what_was_served_whatever_was_asked() -> None:
    # One answer every 0.2 s, asked for every 0.1 s: the queue grows, and half of the answers come after the arrivals.
    rows = [request(i, due_s=0.1 * i, ttft_s=0.1 * i + 0.1, tpot_s=0.01, tokens=11) for i in range(200)]
    point = one(run(rows, to_s=20.0))
    assert point.requests_per_s == pytest.approx(5, rel=0.05)
    assert point.output_tokens_per_s == pytest.approx(55, rel=0.05)
    assert not point.steady.found
    assert "requests in flight" in point.steady.reason
    assert point.in_flight_mean == pytest.approx(50, rel=0.05)


@pytest.mark.parametrize("n", [2, 3, 5, 40])
@pytest.mark.parametrize("streams", [1, 2])
def test_a_closed_loop_asks_again_at_the_very_moment_of_an_answer(n: int, streams: int) -> None:
    # Answers take 0.5 s and come in one piece, so that the last request is due when the one before it ends.
    rows = [
        request(i * streams + k, due_s=0.5 * i, ttft_s=0.5, tpot_s=0.0, tokens=5)
        for i in range(n)
        for k in range(streams)
    ]
    workload = Workload(arrivals=Arrivals(process="closed", concurrency=streams))
    point = one(run(rows, to_s=0.5 * (n - 1), workload=workload), Slo(ttft_s=1.0))
    assert point.requests_per_s == pytest.approx(2 * streams)
    assert point.goodput_per_s == pytest.approx(2 * streams)
    assert (point.good and point.good.hits) == n * streams
    assert point.output_tokens_per_s == pytest.approx(10 * streams)


def test_all_at_once_is_measured_to_the_last_answer() -> None:
    point = one(run([request(i, due_s=0.0, ttft_s=0.5 + i) for i in range(4)], to_s=0.0, workload=CLOSED))
    assert point.measured_s == pytest.approx(3.7)
    assert point.requests_per_s == pytest.approx(4 / 3.7)
    assert (point.rate_per_s, point.concurrency) == (None, 4)
    assert point.in_flight_max == 4


def test_a_stall_is_in_the_headline_and_not_in_the_service_time() -> None:
    # For a second nothing can be sent: who was due in it waits for the rest of it.
    lags = [max(0.0, 6.0 - 0.01 * i) if 5.0 <= 0.01 * i < 6.0 else 0.0 for i in range(1000)]
    rows = [request(i, due_s=0.01 * i, ttft_s=lag + 0.05, lag_s=lag) for i, lag in enumerate(lags)]
    point = one(run(rows, to_s=10.0, workload=Workload(arrivals=Arrivals(process="constant", rate_per_s=100.0))))
    assert percentile(point, "ttft_s", 99) == pytest.approx(0.05 + 0.9, abs=0.011)
    assert percentile(point, "service_ttft_s", 99) == pytest.approx(0.05)
    assert point.client.lag_p99_s == pytest.approx(0.9, abs=0.011)
    assert any("late" in flag for flag in point.client.flags)


def test_only_runs_that_ended_well_count_unless_there_is_nothing_else() -> None:
    good = run(steady_requests(50), to_s=5.0, zero_ns=ZERO)
    torn = run([request(i, due_s=0.1 * i, block="c", ttft_s=5) for i in range(9)], to_s=1, block="c", ok=False)
    killed = run(
        [request(i, due_s=0.1 * i, block="d") for i in range(30)], to_s=3, block="d", load="other", ended=False
    )
    points = load_points([*torn, *good, *killed], None)
    assert [(p.load, p.requests) for p in points] == [("10 req/s", 50), ("other", 30)]
    assert points[1].measured_s == pytest.approx(2.9)
    assert load_points(run([], to_s=1.0), None) == []
    assert load_points(run([request(0, due_s=0, warm=True)], to_s=1.0), None) == []


def test_the_last_of_several_attempts_counts_and_rounds_are_pooled() -> None:
    first = run([request(i, due_s=0.1 * i, ttft_s=9.0) for i in range(20)], to_s=2.0)
    again = run(steady_requests(20), to_s=2.0, zero_ns=ZERO)
    second = run([request(i, due_s=0.1 * i, block="c", ttft_s=0.3) for i in range(20)], to_s=2.0, block="c", round=1)
    point = one([*first, *again, *second])
    assert point.requests == 40
    assert point.measured_s == pytest.approx(4.0)
    assert latency(point, "ttft_s").mean.value == pytest.approx(0.2)  # type: ignore[union-attr]


def test_two_runs_may_be_under_way_at_once() -> None:
    a = run([request(i, due_s=i, ttft_s=0.1) for i in range(4)], to_s=4.0)
    b = run([request(i, due_s=i, ttft_s=0.2, block="c", model="z") for i in range(4)], to_s=4.0, block="c", model="z")
    mixed = [event for pair in zip(a, b, strict=True) for event in pair]
    points = load_points(mixed, None)
    assert [(p.model, round(p.latencies[0].mean.value, 6)) for p in points] == [("a", 0.1), ("z", 0.2)]  # type: ignore[union-attr]


def test_what_the_engine_said_and_what_it_cost() -> None:
    rows = steady_requests(45)
    samples: list[events.Event] = []
    for i in range(11):
        told = {"running": float(i % 3), "waiting": 1.0, "preemptions": 5.0 + i if i < 8 else i - 8.0}
        samples.append(events.EngineSample(block="b", at_ns=ZERO + seconds(0.45 * i), **told))
        samples.append(events.EnergySample(block="b", at_ns=ZERO + seconds(0.45 * i), joules=100 + 22.0 * i))
    point = one(run([*samples, *rows], to_s=4.5, zero_ns=ZERO))
    assert point.engine is not None
    assert (point.engine.samples, point.engine.running_max, point.engine.waiting_mean) == (11, 2, 1)
    assert point.engine.kv_share_mean is None
    assert point.engine.preemptions == 7 + 0 + 2  # it started over between the eighth and the ninth look
    tokens = sum(t - ZERO <= 4.5 * S for row in rows for t in row.chunk_ns)
    assert point.joules_per_token == pytest.approx(220 / tokens, rel=0.01)
    assert point.joules_per_request == pytest.approx(220 / sum(row.done_ns - ZERO < 4.5 * S for row in rows))
    alone = one(run(rows, to_s=4.5, zero_ns=ZERO))
    assert (alone.engine, alone.joules_per_token) == (None, None)


def test_the_client_is_held_against_its_own_ceiling() -> None:
    ceiling = events.ClientCeiling(requests_per_s=15.0, stream_events_per_s=1000.0, processes=2)
    log = run(steady_requests(100), to_s=10.0, zero_ns=ZERO, shares_cores=True)
    client = one([ceiling, *log]).client
    assert client.ceiling is not None
    assert client.ceiling.processes == 2
    assert client.requests_share == pytest.approx(10 / 15)
    assert client.events_share == pytest.approx(0.109, abs=0.002)
    assert client.achieved_over_offered == pytest.approx(1)
    assert client.flags == [
        "the client ran at 67 % of its own ceiling in requests",
        "client and engine share cores",
    ] or (client.flags == ["the client ran at 67% of its own ceiling in requests", "client and engine share cores"])
    late = [request(i, due_s=0.1 * i, lag_s=0.01 * i, ttft_s=0.1 + 0.01 * i) for i in range(100)]
    slow = one(run(late, to_s=10.0)).client
    assert slow.achieved_over_offered == pytest.approx(1 / 1.1)
    assert any("of the offered rate" in flag for flag in slow.flags)
    closed = one(run(late, to_s=10.0, workload=CLOSED)).client
    assert (closed.lag_p99_s, closed.achieved_over_offered, closed.ceiling) == (None, None, None)


def test_exact_prompts_need_every_count_to_be_as_asked() -> None:
    def rows(counted: list[int | None]) -> list[events.RequestDone]:
        usages = [None if n is None else events.Usage(prompt_tokens=n, completion_tokens=11) for n in counted]
        return [request(i, due_s=i, asked_prompt_tokens=100, usage=usage) for i, usage in enumerate(usages)]

    assert one(run(rows([100, 100, None]), to_s=3)).exact_prompts
    assert not one(run(rows([100, 101]), to_s=3)).exact_prompts
    assert not one(run(rows([None, None]), to_s=3)).exact_prompts


def test_what_an_engine_had_kept_is_a_share_of_what_it_was_sent() -> None:
    def rows(kept: list[int | None]) -> list[events.RequestDone]:
        usages = [events.Usage(prompt_tokens=100, completion_tokens=11, cached_tokens=n) for n in kept]
        return [request(i, due_s=i, prompt_tokens=100, usage=usage) for i, usage in enumerate(usages)]

    # Who does not say is not counted as having kept nothing.
    assert one(run(rows([0, 64, None]), to_s=3)).cached_prompt_share == pytest.approx(64 / 200)
    assert one(run(rows([0, 0]), to_s=3)).cached_prompt_share == 0.0
    assert one(run(rows([None, None]), to_s=3)).cached_prompt_share is None


def test_conversations() -> None:
    workload = Workload(arrivals=Arrivals(process="poisson", rate_per_s=1.0), turns=2)
    rows = [
        *(
            request(2 * s + t, due_s=s + 2.0 * t, session=s, turn=t, prompt_tokens=100 * (t + 1))
            for s in range(3)
            for t in (0, 1)
        ),
        request(6, due_s=4, session=3, turn=0),  # never came to its second turn
        request(7, due_s=5, session=4, turn=0),
        request(8, due_s=7, session=4, turn=1, error="reset"),
    ]
    point = one(run(rows, to_s=8, workload=workload))
    assert point.tokens_per_conversation == 322
    assert point.seconds_per_conversation == pytest.approx(2.3)
    assert one(run(steady_requests(5), to_s=1, zero_ns=ZERO)).tokens_per_conversation is None


def test_more_kept_tokens_than_a_prompt_has_are_no_count_of_it() -> None:
    def share(*cached: int) -> float | None:
        told = [events.Usage(prompt_tokens=100, completion_tokens=11, cached_tokens=tokens) for tokens in cached]
        rows = [request(i, due_s=i / 10, usage=usage) for i, usage in enumerate(told)]
        return one(run(rows, to_s=2)).cached_prompt_share

    assert share(50, 100) == 0.75
    assert share(50, 1000) == 0.5
    assert share(1000) is None


def test_recorded_conversations_end_where_they_were_recorded_to_end() -> None:
    own = OwnPrompts(file="talks.json", sha256="0", prompts=2, most_bytes=10)
    workload = Workload(arrivals=Arrivals(process="poisson", rate_per_s=1.0), turns=9, prompts=own)
    lengths = (2, 3)
    rows = [request(3 * s + t, due_s=s + 2.0 * t, session=s, turn=t) for s in (0, 1) for t in range(lengths[s])]
    point = one(run(rows, to_s=8, workload=workload))
    assert point.tokens_per_conversation == 2.5 * 111
    assert point.seconds_per_conversation == pytest.approx((2.3 + 4.3) / 2)


def test_an_answer_that_was_not_streamed_is_there_when_it_is_over() -> None:
    workload = Workload(arrivals=Arrivals(process="poisson", rate_per_s=10.0), stream=False)
    rows = [request(i, due_s=0.1 * i, first_ns=None, last_ns=None, chunk_ns=[], chunk_tokens=None) for i in range(45)]
    point = one(run(rows, to_s=4.5, workload=workload), Slo(ttft_s=0.25))
    assert point.answered == 45
    assert {x.why for x in latency(point, "ttft_s").percentiles} == {"not streamed"}
    assert latency(point, "tpot_s").n == latency(point, "itl_s").n == 0
    assert latency(point, "e2e_s").mean.value == pytest.approx(0.3)  # type: ignore[union-attr]
    assert point.good is not None
    assert point.good.hits == 0
    assert point.output_tokens_per_s == pytest.approx(sum(row.done_ns <= 4.5 * S for row in rows) * 11 / 4.5)


def test_each_term_of_an_slo() -> None:
    stalls = request(0, due_s=0, chunk_ns=[seconds(t) for t in (0.1, 0.11, 0.29, 0.3)], chunk_tokens=[1] * 4)
    (loaded,) = collect(run([stalls], to_s=1.0))
    found = {
        slo: bool(meets(loaded.requests, slo)[0])
        for slo in (
            Slo(),
            Slo(ttft_s=0.1),
            Slo(ttft_s=0.099),
            Slo(itl_s=0.18),
            Slo(itl_s=0.17),
            Slo(e2e_s=0.29),
            Slo(tpot_s=0.01),
        )
    }
    assert list(found.values()) == [True, True, False, True, False, False, False]


def test_tokens_in_one_piece_are_taken_at_their_slowest() -> None:
    whole: dict[str, Any] = dict.fromkeys(("first_ns", "last_ns", "done_ns"), seconds(10))
    whole["chunk_ns"] = [seconds(10)]
    rows = [
        request(0, due_s=0, output_tokens=100, chunk_tokens=[100], **whole),
        request(1, due_s=0, output_tokens=1, chunk_tokens=[1], **whole),
        request(2, due_s=0, output_tokens=11, first_ns=None, last_ns=None, chunk_ns=[], chunk_tokens=None),  # 0.3 s
    ]
    (loaded,) = collect(run(rows, to_s=1.0))
    # 10 s over 99 tokens are 0.101 s each; 0.3 s over 10 are 0.03; one token has no other to be late after.
    for slo, good in (
        (Slo(tpot_s=0.05), [False, True, True]),
        (Slo(tpot_s=0.2), [True, True, True]),
        (Slo(tpot_s=0.02), [False, True, False]),
        (Slo(itl_s=9.9), [False, True, True]),
        (Slo(itl_s=0.2), [False, True, False]),
        (Slo(itl_s=10.0), [True, True, True]),
    ):
        assert meets(loaded.requests, slo).tolist() == good, slo


# A random answer: gaps in nanoseconds, tokens of each piece.
answers = st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 4)), min_size=1, max_size=12)


@settings(deadline=None)
@given(st.lists(st.tuples(answers, st.booleans()), min_size=1, max_size=8))
def test_gaps_are_those_of_the_plain_rule(streams: list[tuple[list[tuple[int, int]], bool]]) -> None:
    rows = []
    for i, (pieces, told) in enumerate(streams):
        times = np.cumsum([seconds(0.1), *(gap for gap, _ in pieces[1:])]).tolist()
        counts = [tokens for _, tokens in pieces]
        rows.append(
            request(
                i, due_s=0, chunk_ns=times, chunk_tokens=counts if told else None, first_ns=times[0], last_ns=times[-1],
                done_ns=times[-1], output_tokens=max(1, sum(counts)),
            )
        )  # fmt: skip
    (loaded,) = collect(run(rows, to_s=1.0))
    plain = [token_gaps_s(row) for row in rows]
    columns = loaded.requests
    assert columns.gaps_N.tolist() == [len(gaps) for gaps in plain]
    assert columns.gap_sum_N.tolist() == pytest.approx([sum(gaps) * 1e9 for gaps in plain], abs=1)
    assert columns.gap_max_N.tolist() == pytest.approx([max(gaps, default=0) * 1e9 for gaps in plain], abs=1)
    odd = np.arange(len(rows)) % 2 == 1
    histogram = gap_histogram(columns, odd)
    kept = [gap_of_code_ns(int(code)) for code in np.repeat(np.arange(65_536), histogram)]
    exact = sorted(gap * 1e9 for gaps in plain[1::2] for gap in gaps)
    assert kept == pytest.approx(exact, rel=GAP_ERROR, abs=1)


@given(st.floats(1, 1e14))
def test_a_gap_kept_as_a_code_is_as_exact_as_promised(gap: float) -> None:
    assert math.isclose(gap_of_code_ns(int(gap_code(np.array([gap]))[0])), gap, rel_tol=GAP_ERROR)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 120), st.floats(0, 0.3))
def test_counts_add_up_and_rates_never_pass_what_was_served(seed: int, n: int, failing: float) -> None:
    rng = np.random.default_rng(seed)
    due = np.cumsum(rng.exponential(0.1, n))
    rows = [
        request(
            i,
            due_s=float(due[i]),
            ttft_s=float(rng.exponential(0.5)) + 0.01,
            tpot_s=float(rng.exponential(0.02)),
            tokens=int(rng.integers(1, 30)),
            error="reset" if rng.random() < failing else None,
        )
        for i in range(n)
    ]
    point = one(run(rows, to_s=float(due[-1])), Slo(ttft_s=0.5))
    assert point.requests == n == point.answered + sum(point.errors.values())
    assert point.requests_per_s * point.measured_s <= n * 1.000001 or point.steady.found
    good = [r for r in rows if r.error is None and r.first_ns is not None and r.first_ns - r.due_ns <= 0.5 * S]
    assert point.good is not None
    assert point.good.hits <= len(good)
    if not point.steady.found:
        assert point.good.hits == len(good)
        delays = [(r.first_ns - r.due_ns) / S for r in rows if r.first_ns is not None]
        mean = latency(point, "ttft_s").mean
        assert (mean.value if mean else None) == (pytest.approx(statistics.fmean(delays)) if delays else None)
    assert point.in_flight_mean <= point.in_flight_max <= n


def test_a_mean_carries_an_interval_that_holds_the_truth_in_spite_of_autocorrelation() -> None:
    truth = math.exp(0.1**2 / 2) * 0.1
    hits = 0
    for seed in range(150):
        mean = one(noisy_run(seed, correlation=0.8, noise=0.1, tokens=2)).whole_run_ttft_s
        assert mean is not None
        assert mean.low is not None
        assert mean.high is not None
        hits += mean.low <= truth <= mean.high
    assert hits >= 135


def test_tpot_needs_two_pieces() -> None:
    (loaded,) = collect(run([request(0, due_s=0, tokens=1), request(1, due_s=0, tokens=3)], to_s=1.0))
    assert np.isnan(tpot_ns(loaded.requests)[0])
    assert tpot_ns(loaded.requests)[1] == seconds(0.02)


def test_a_long_log_fits_into_little_memory(tmp_path: Path) -> None:
    # A hundred thousand requests of 31 pieces; a million takes ten times what this adds to an empty process.
    path = tmp_path / "events.jsonl"
    n = 100_000
    shape = run([request(0, due_s=0.0, tokens=31)], to_s=n / 100)
    with EventWriter(path) as log:
        log.append(shape[0])
    line = msgspec.json.encode(shape[1]) + b"\n"
    with path.open("ab") as file:
        file.writelines(line for _ in range(n))
    with EventWriter(path) as log:
        log.append(shape[2])
    program = (
        "import sys, json; from pathlib import Path\n"
        "from breakeven.measure.events import iter_events\n"
        "from breakeven.measure.load.points import load_points\n"
        "from breakeven.engines.backend import process_memory; import os\n"
        "load_points([], None); before = process_memory(os.getpid())\n"
        "(point,) = load_points(iter_events(Path(sys.argv[1])), None)\n"
        "after = process_memory(os.getpid())\n"
        "print(json.dumps([point.requests, before and before.peak_rss_bytes, after and after.peak_rss_bytes]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    requests, before, after = json.loads(done.stdout)
    assert requests == n
    if before is None:
        pytest.skip("this system does not tell the peak memory of a process")
    assert before + (after - before) * 10 < 500e6
    assert sum(isinstance(event, events.RequestDone) for event in iter_events(path)) == n
