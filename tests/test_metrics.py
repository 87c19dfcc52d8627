"""Scripted arrival times give exactly the arithmetic."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakeven.measure.events import BlockDone, BlockStarted, Event, RequestDone
from breakeven.measure.load import compared, differences
from breakeven.measure.paired.blocks import (
    block_metrics,
    decode_tokens_per_s,
    decode_window_ns,
    prefill_tokens_per_s,
    self_checks,
    server_decode_tokens_per_s,
    token_gaps_s,
)
from breakeven.results import metrics
from breakeven.results.comparison import ComparedPoint
from breakeven.results.point import OF_LATENCY, latency_point, nearest, of_compared, of_decided, of_load
from breakeven.results.predicted import PredictedPoint, SimulatedPoint
from breakeven.runs import check, load_study
from breakeven.stats.estimate import Estimate, measured
from breakeven.wire.reply import ServerTimings
from tests import decision_fixtures, load_report_fixtures, report_fixtures

S = 1_000_000_000


def request(
    times: list[int], tokens: list[int] | None = None, output: int | None = None, **changes: Any
) -> RequestDone:
    """A finished request whose pieces arrived at `times`, each with one token unless told."""
    counts = [1] * len(times) if tokens is None else tokens
    fields: dict[str, Any] = {
        "block": "b",
        "model": "m",
        "stream": 0,
        "prompt_tokens": 100,
        "output_tokens": sum(counts) if output is None else output,
        "due_ns": 0,
        "sent_ns": 0,
        "headers_ns": 0,
        "first_ns": times[0] if times else None,
        "last_ns": times[-1] if times else None,
        "done_ns": times[-1] if times else 0,
        "chunk_ns": times,
        "chunk_tokens": counts,
    }
    return RequestDone(**{**fields, **changes})


increasing = st.lists(st.integers(1, 10**10), min_size=2, max_size=40).map(
    lambda gaps: [sum(gaps[: i + 1]) for i in range(len(gaps))]
)


@given(increasing)
def test_one_stream_is_tokens_less_one_over_the_time_between_first_and_last(times: list[int]) -> None:
    expected = Fraction((len(times) - 1) * S, times[-1] - times[0])
    rate = decode_tokens_per_s([request(times)])
    assert rate == pytest.approx(float(expected), rel=1e-12)
    gaps = token_gaps_s(request(times))
    assert len(gaps) == len(times) - 1
    assert sum(gaps) == pytest.approx((times[-1] - times[0]) / S, rel=1e-9)


@given(increasing, st.integers(2, 8), st.integers(1, 1000))
def test_streams_in_step_make_n_times_the_rate_wherever_they_stand_in_the_step(
    times: list[int], streams: int, jitter: int
) -> None:
    """The order of delivery within a step must not gain or lose a token."""
    spread = [[1_000_000 * t + i * jitter for t in times] for i in range(streams)]
    one = decode_tokens_per_s([request(spread[0])])
    assert one is not None
    for order in (spread, spread[::-1]):
        assert decode_tokens_per_s([request(t) for t in order]) == pytest.approx(streams * one, rel=0.01)


@given(st.integers(1, 50), st.integers(1, 10**9), st.integers(0, 10**12), st.integers(2, 8))
def test_equal_streams_give_exactly_the_sum(steps: int, itl_ns: int, start: int, streams: int) -> None:
    times = [start + i * itl_ns for i in range(steps + 1)]
    rate = decode_tokens_per_s([request(times) for _ in range(streams)])
    assert rate == pytest.approx(float(Fraction(streams * S, itl_ns)), rel=1e-12)


def test_only_the_time_in_which_all_decode_counts() -> None:
    # The first stream decodes alone at 10 tokens/s, then both at 4 each, then the second alone at 10.
    early = [0, S // 10, 2 * S // 10, *[2 * S // 10 + (i + 1) * S // 4 for i in range(8)]]
    late = [2 * S // 10 + i * S // 4 for i in range(9)]
    late += [late[-1] + (i + 1) * S // 10 for i in range(5)]
    assert decode_window_ns([request(early), request(late)]) == (2 * S // 10, 2 * S // 10 + 2 * S)
    assert decode_tokens_per_s([request(early), request(late)]) == pytest.approx(8.0)


def test_streams_that_never_decode_together_have_no_rate() -> None:
    block = [request([1, 2, 3]), request([4, 5, 6])]
    assert decode_window_ns(block) is None
    assert decode_tokens_per_s(block) is None
    assert block_metrics(block).decode_tokens_per_s is None


def test_a_single_token_has_no_decode_rate() -> None:
    metrics = block_metrics([request([S])])
    assert (metrics.decode_tokens_per_s, metrics.itl_s, metrics.window_s) == (None, None, None)
    assert metrics.ttft_s == 1.0


def test_tokens_of_a_piece_count_and_share_its_gap() -> None:
    done = request([0, 1 * S, 3 * S, 4 * S], tokens=[1, 2, 0, 3])
    assert token_gaps_s(done) == [0.5, 0.5, 1.0, 1.0, 1.0]
    assert decode_tokens_per_s([done]) == pytest.approx(5 / 4)
    # Tokens that come with the first piece took no time that was seen.
    assert decode_tokens_per_s([request([0, S], tokens=[3, 1])]) == pytest.approx(1.0)


def test_untold_tokens_are_shared_evenly_and_said_to_be_inexact() -> None:
    done = request([0, S, 2 * S], output=6, chunk_tokens=None)
    metrics = block_metrics([done])
    assert metrics.decode_tokens_per_s == pytest.approx(2.0)
    assert not metrics.exact
    assert block_metrics([request([0, S])]).exact


@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(1, 10**9), st.integers(1, 4096)), min_size=1, max_size=8))
def test_prefill_is_all_prompts_over_first_sent_to_last_first_token(streams: list[tuple[int, int, int]]) -> None:
    block = [request([sent + ttft], sent_ns=sent, due_ns=sent, prompt_tokens=prompt) for sent, ttft, prompt in streams]
    span = max(sent + ttft for sent, ttft, _ in streams) - min(sent for sent, _, _ in streams)
    expected = Fraction(sum(prompt for _, _, prompt in streams) * S, span)
    assert prefill_tokens_per_s(block) == pytest.approx(float(expected), rel=1e-12)
    mean = Fraction(sum(ttft for _, ttft, _ in streams), len(streams) * S)
    assert block_metrics(block).ttft_s == pytest.approx(float(mean), rel=1e-12)


def test_ttft_starts_when_it_was_due_and_service_ttft_when_it_was_sent() -> None:
    metrics = block_metrics([request([3 * S], due_ns=0, sent_ns=1 * S)])
    assert (metrics.ttft_s, metrics.service_ttft_s) == (3.0, 2.0)


def test_the_engines_own_account_counts_steps() -> None:
    timings = ServerTimings(prompt_n=100, prompt_ms=500.0, predicted_n=5, predicted_ms=200.0)
    done = request([0, 1], server_timings=timings)
    assert server_decode_tokens_per_s(done) == pytest.approx(20.0)
    assert block_metrics([done, done]).server_decode_tokens_per_s == pytest.approx(40.0)
    assert server_decode_tokens_per_s(request([0, 1])) is None
    assert block_metrics([done, request([0, 1])]).server_decode_tokens_per_s is None


def test_failed_or_missing_requests_have_no_metrics() -> None:
    with pytest.raises(ValueError, match="without requests"):
        block_metrics([])
    with pytest.raises(ValueError, match="reset"):
        block_metrics([request([0, 1]), request([0, 1], error="reset")])


def test_every_metric_of_a_result_is_registered_and_explained() -> None:
    page = (Path(__file__).parent.parent / "docs" / "metrics.md").read_text()
    asked = {
        *(*metrics.COMPARED, *metrics.LATENCIES, *metrics.SIMULATED),
        *(*check.DELAYS, check.TOKENS, check.GOODPUT, check.ERRORS),
        *(*compared.DELAYS, *compared.RATES, compared.METRIC, *differences.CROSSED, *load_study.HEADLINE_METRICS),
    }
    for struct in (ComparedPoint, PredictedPoint, SimulatedPoint):
        asked |= {field.name for field in msgspec.structs.fields(struct) if "Estimate" in str(field.type)}
    assert asked <= set(metrics.METRICS), asked - set(metrics.METRICS)
    for key, metric in metrics.METRICS.items():
        assert metric.key == key
        assert f"`{key}`" in page, key
        assert f"\n## {metric.computed}\n" in page, key


def test_a_metric_of_another_version_is_shown_under_its_own_name() -> None:
    found = metrics.metric_of("later_s")
    assert (found.title, found.scale, found.direction) == ("later_s", 1.0, "more is better")
    assert metrics.metric_of("ttft_s").advantage == "the lower TTFT"


def test_whatever_was_measured_simulated_or_decided_is_a_point() -> None:
    study, decision = load_report_fixtures.crossing(), decision_fixtures.full()
    delay = measured(0.2, None, 0.3, 700)
    found = [of_compared(each) for each in report_fixtures.two_models().points]
    found += [of_load(each) for each in study.points]
    found += [each for candidate in decision.candidates for each in of_decided(candidate)]
    assert {point.provenance for point in found} >= {"measured", "predicted"}
    for point in found:
        assert point.candidate
        assert set(point.metrics) <= set(metrics.METRICS)
        assert {key for key, _ in point.percentiles} <= set(metrics.LATENCIES)
    assert latency_point(of_load(study.points[0]), 0.5) is None, "too few requests for a p99"
    loaded = next(point for point in map(of_load, load_report_fixtures.one_point().points) if point.percentiles)
    loaded = replace(loaded, rate_per_s=2.0, percentiles={**loaded.percentiles, **dict.fromkeys(OF_LATENCY, delay)})
    again = latency_point(loaded, 0.5)
    assert again is not None
    assert again.ttft_p50_s == again.e2e_p99_s == Estimate(0.2, 0.2, 0.3)
    assert latency_point(replace(loaded, rate_per_s=None), 0.5) is None
    latency = decision.candidates[0].latency
    assert [point.rate_per_s for point in of_decided(decision.candidates[0])] == [each.rate_per_s for each in latency]


def test_the_nearest_load_is_so_as_a_ratio() -> None:
    assert nearest([1.0, 10.0, 100.0], 30.0) == 1
    assert nearest([1.0, 10.0, 100.0], 40.0) == 2
    assert nearest([1.0, 4.0], 2.0) == 0


def checked(number: int, start_ns: int, **gaps_ns: int) -> list[Event]:
    """One round of the self-check of "moe" from `start_ns`: two streams of eleven tokens, so far apart by kind."""
    log: list[Event] = []
    for kind, gap_ns in gaps_ns.items():
        name = f"check/{kind}/moe/2/{number}"
        log.append(
            BlockStarted(
                block=name, model="moe", streams=2, prompt_tokens=8, output_tokens=11, at_ns=start_ns, round=number,
                check=kind,
            )
        )  # fmt: skip
        times = [start_ns + k * gap_ns for k in range(1, 12)]
        for stream in range(2):
            log.append(request(times, block=name, model="moe", stream=stream, due_ns=start_ns, sent_ns=start_ns))
        log.append(BlockDone(block=name, ok=True, at_ns=times[-1]))
        start_ns = times[-1]
    return log


def test_a_self_check_that_was_run_again_is_that_of_the_later_run() -> None:
    ms = S // 1000
    former = [event for n in range(3) for event in checked(n, n * S, distinct=10 * ms, same=10 * ms)]
    later = [event for n in range(3) for event in checked(n, (100 + n) * S, distinct=20 * ms, same=10 * ms)]
    (before,), (found,) = self_checks(former, 0), self_checks([*former, *later], 0)
    assert (before.same_over_distinct.value, before.same_over_distinct.n) == (pytest.approx(1.0), 3)
    assert (found.model, found.streams) == ("moe", 2)
    assert (found.same_over_distinct.value, found.same_over_distinct.n) == (pytest.approx(2.0), 3)


def test_both_blocks_of_a_checked_round_are_of_one_run() -> None:
    ms = S // 1000
    whole = checked(0, 0, distinct=10 * ms, same=10 * ms)
    half = checked(0, 100 * S, distinct=20 * ms)
    assert self_checks(whole, 0)[0].same_over_distinct.n == 1
    assert self_checks([*whole, *half], 0) == []
