"""Prices, flips, bands and loads of a decision in words."""

from __future__ import annotations

import re

import decision_fixtures as made
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from breakeven.answer.words import rate_text, usd_text
from breakeven.model.quality.scores import QualityScore
from breakeven.pages import decision_words as words
from breakeven.pages.terminal import listed_parts, print_parts
from breakeven.results.cost import Own
from breakeven.results.decision import Flip, ShareKept
from breakeven.stats.estimate import Estimate


@pytest.mark.parametrize(
    ("shown", "meant"),
    [
        (words.span_text(Estimate(value=9.0, low=8.04, high=10.08)), "9.00 (8.04-10.08)"),
        (words.span_text(made.exact(3.0)), "3"),
        (words.span_text(Estimate(value=3.0, low=2.0, high=4.0)), "3 (2-4)"),
        (words.span_text(made.exact(0.25)), "0.250"),
        (words.span_text(None), "not available"),
        (words.usd(6.98), "$6.98"),
        (words.usd(7.0), "$7"),
        (words.usd(0.5), "$0.50"),
        (words.usd(12300.4), "$12,300"),
        (words.usd(0.000412), "$0.000412"),
        (words.usd(0.025), "$0.025"),
        (words.usd(0.0), "$0"),
        (words.usd(None), "not available"),
        (words.usd_span(Estimate(value=2183.0, low=2000.0, high=2400.0)), "$2,183 (2,000-2,400)"),
        (words.usd_span(made.exact(2.99), words.MONTH_HOURS), "$2,184"),
        (words.usd_span(Estimate(value=5.7141, low=5.7112, high=5.7213)), "$5.71 (5.71-5.72)"),
        (words.load_text(0.1), "0.1"),
        (words.load_text(1234.5), "1,230"),
        (words.load_text(12.49), "12.5"),
        (words.load_words(4.0), "4 req/s"),
        (words.load_words(0.0138889), "0.0139 req/s (1,200 a day)"),
        (words.kind_words("moe"), "MoE"),
        (words.kind_words("unknown"), "not known"),
        (words.kind_words(None), "not known"),
        (words.pricing_text(None), "no price given"),
        (
            words.pricing_text(made.hosted().pricing),
            "$0.10 in, $0.025 cached and $0.40 out per million tokens (2026-02)",
        ),
        (words.pricing_text(made.moe().pricing), "$2.99 an hour (2026-02)"),
        (
            words.pricing_text(
                Own(
                    usd=2400.0,
                    life_years=1.0,
                    usd_per_kwh=0.31,
                    busy_w=420.0,
                    power_overhead=1.2,
                    yearly_upkeep_usd=90.0,
                )
            ),
            "bought for $2,400, used 1 year, 420 W busy at $0.31/kWh, building adds 20 %, upkeep $90 a year",
        ),
        (words.quality_text(QualityScore(how="none")), "quality not known"),
        (words.quality_text(made.dense().quality), "69.4 % on MMLU, published: one harness, 2025-07"),
        (words.quality_text(made.moe().quality), "78 % (74.0-82.0) on our tickets, own evaluation"),
        (words.quality_text(made.board().quality), "by size like a dense model of 4.60 B (3.30 B to 7.40 B)"),
        (words.runs_on(made.moe(devices=2)), "2 x h100-sxm, vllm, fp8, cloud"),
        (words.runs_on(made.hosted()), "hosted, paid by the token"),
        (words.memory_text(made.moe()), "34.1 GB of 80.0 GB"),
        (words.memory_text(made.hosted()), "not available"),
        (words.rests_on(made.full().candidates), "3 predicted, 1 published"),
        (words.delay_span(Estimate(value=0.298, low=0.229, high=0.387)), "298 ms (229-387)"),
        (words.delay_span(made.exact(12.0)), "12 s"),
        (words.delay_span(Estimate(value=9.951, low=5.956, high=18.4)), "9.95 s (5.96-18.4)"),
        (words.interval_of(Estimate(value=0.198, low=0.0291, high=95.221)), "0.029-95.2"),
        (words.usd_interval(Estimate(value=1022.0, low=1022.4, high=19418.3)), "1,022-19,418"),
        (words.interval_of(Estimate(value=0.0, low=0.0, high=1e-9)), ""),
        (words.delay_span(None), "not available"),
    ],
)
def test_numbers_and_names_read_as_people_say_them(shown: str, meant: str) -> None:
    assert shown == meant


def test_flips_say_where_in_numbers_in_a_name_or_not_at_all() -> None:
    load, _, context, precision = made.full().flips
    assert words.flip_line(load) == (
        "load, 1.50 (1.25-1.80) req/s: above this load llama-3.1-8b costs less than hosted-moe."
    )
    assert words.flip_at(context) == "not in the range seen"
    assert words.flip_at(precision) == "bf16 to fp8"
    ratio = Flip(quantity="price", from_="a", to="b", at=made.exact(1.25), unit="", meaning="dearer")
    assert words.flip_at(ratio) == "1.25"


def test_regions_say_by_how_much_and_whether_that_is_sure() -> None:
    first, tie, unsure, last = map(words.region_line, made.full().regions)
    assert first == "0.1 to 1.4 req/s: hosted-moe; llama-3.1-8b costs 3.40 (3.09-3.74) times as much"
    assert tie == "1.4 to 1.6 req/s: no difference worth your time"
    assert unsure.endswith("; not sure")
    assert last.startswith("above 9 req/s: qwen3-30b-a3b")


def test_a_number_of_another_load_does_not_stand_for_this_one() -> None:
    only = made.one_load().candidates[0]
    assert words.cost_at(only, 4.0) is only.cost[0]
    assert words.cost_at(only, 4.0 * 1.3) is None
    assert words.latency_at(only, 4.0) is None, "the one load that was looked at is well below"
    assert words.latency_at(only, 2.5) is only.latency[0]


def test_delays_are_those_of_one_replica_with_its_part() -> None:
    eight = made.dense()
    # 60 requests/s over 8 replicas are 7.5 each; looked at were 6.3 and 7.65.
    found = words.latency_at(eight, 60.0)
    assert found is not None
    assert found.rate_per_s == pytest.approx(7.65)
    # Between two loads the higher one is shown, never the flattering one.
    between = words.latency_at(eight, 3.0)
    assert between is not None
    assert between.rate_per_s == pytest.approx(4.5)


@given(st.floats(1e-9, 1e9), st.floats(1.0, 3.0), st.floats(1.0, 3.0))
def test_an_interval_as_shown_never_excludes_its_value(value: float, below: float, above: float) -> None:
    span = Estimate(value=value, low=value / below, high=value * above)
    shown = words.interval_of(span)
    if shown and "-0" not in words.value_of(span):
        low, high = (float(end.replace(",", "")) for end in re.fullmatch(r"([\d.,]+)-([\d.,]+)", shown).groups())  # type: ignore[union-attr]
        assert low <= float(words.value_of(span).replace(",", "")) <= high


def test_shares_are_told_from_one_machine_to_alone() -> None:
    few = [(1, 0.8996, 0.85, 0.94), (2, 0.97, 0.95, 0.98), (3, 0.99, 0.98, 1.0), (None, 0.9999, 0.99, 1.0)]
    shares = [ShareKept(machines=n, share=Estimate(v, low, high), worst=None) for n, v, low, high in few]
    edge = "borderline, 89.9 % (85 to 94) of 90 % asked"
    told = words.kept_line(made.dense(shares=shares, borderline=edge))
    assert told.startswith(f"{edge}; keeps 89.9 % (85-94) with 1 machine, 97 % (95-98) with 2,")
    assert told.endswith("99.9 % (99-100) alone")
    # Where one keeps all, more of them are no news.
    shares[0] = ShareKept(machines=1, share=made.exact(1.0))
    assert words.kept_line(made.dense(shares=shares)) == "keeps 100 % with 1 machine, 99.9 % (99-100) alone"


def test_a_share_under_overload_is_not_told_as_one() -> None:
    shares = [
        ShareKept(machines=1, share=made.exact(0.68), overloaded=True),
        ShareKept(machines=2, share=made.exact(0.4), overloaded=True),
        ShareKept(machines=3, share=made.exact(0.97)),
        ShareKept(machines=None, share=made.exact(0.99)),
    ]
    assert words.kept_line(made.dense(shares=shares)) == (
        "overloaded with up to 2 machines, keeps 97 % with 3, 99 % alone"
    )
    assert words.kept_cell(made.dense(shares=shares)) == "over/over/97/99"


def test_large_loads_and_bills_are_written_out() -> None:
    assert rate_text(1000.0) == "1,000 requests/s"
    assert rate_text(20.0) == "20 requests/s"
    assert usd_text(made.exact(14_400.0)) == "$14,400.00"


def test_a_request_a_day_costs_more_than_nothing() -> None:
    shown = [usd_text(made.exact(usd)) for usd in (0.5, 0.05, 0.005, 0.00042, 3.1e-7, 0.0)]
    assert shown == ["$0.50", "$0.0500", "$0.0050", "$0.00042", "$0.00000031", "$0.00"]
    assert usd_text(made.span(0.00042, 0.5)) == "$0.00042 ($0.00028 to $0.00063)"


def test_a_list_left_out_wholly_is_named_once() -> None:
    console = Console(width=80)
    parts = listed_parts("Why", ["because"] * 60, most=50, rank=1)
    with console.capture() as captured:
        print_parts(parts, console, full=False)
    assert captured.get().strip() == "With --full also: why."


def test_a_study_is_said_to_end_and_warm_up_nowhere_and_conversations_are_no_requests() -> None:
    asked = msgspec.structs.replace(made.full().workload, turns=3, turn_think_s=2.0, duration_s=None, requests=None)
    rows = dict(words.traffic_rows(msgspec.structs.replace(made.full(), workload=asked)))
    assert not {"Ends after", "Warm-up", "Requests"} & rows.keys()
    assert "conversations/s" in rows["Arrivals"]
    assert "req/s" not in rows["Arrivals"]
    once = msgspec.structs.replace(asked, turns=1, requests=300)
    rows = dict(words.traffic_rows(msgspec.structs.replace(made.full(), workload=once)))
    assert rows["Ends after"] == "300 requests"
    assert "req/s" in rows["Arrivals"]
