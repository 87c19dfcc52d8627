"""The verdict's arithmetic: worlds, regions, handovers, mixes, and what would narrow the answer."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from breakeven.answer.along import map_of
from breakeven.answer.flips import along, growth_flip, precision_flips
from breakeven.answer.mixes import MixPart, best_mix
from breakeven.answer.next import calibration_of, narrowest
from breakeven.answer.regions import handovers_of, regions_of, standing_at, winner_at
from breakeven.answer.worlds import Contender, Doubt, bills, capacities, factors, span_of, worlds_of
from breakeven.price.pricing import Power, PricedTraffic
from breakeven.price.staircase import FleetCurve, in_proportion, staircase
from breakeven.results.cost import Api, Own, Pricing, Rented
from breakeven.results.decision import Kind, LatencyPoint
from breakeven.stats.estimate import Estimate

TRAFFIC = PricedTraffic(prompt_tokens=500, output_tokens=200)
RATES = np.geomspace(0.1, 1000, 401)


def exact(value: float) -> Estimate:
    return Estimate(value=value, low=value, high=value)


def around(value: float, half_width: float) -> Estimate:
    return Estimate(value=value, low=value * math.exp(-half_width), high=value * math.exp(half_width))


def delays(e2e_s: float) -> list[LatencyPoint]:
    flat = exact(e2e_s)
    return [
        LatencyPoint(
            rate_per_s=rate,
            ttft_p50_s=flat,
            ttft_p99_s=flat,
            tpot_p50_s=flat,
            tpot_p99_s=flat,
            e2e_p50_s=flat,
            e2e_p99_s=flat,
            good_share=exact(1.0),
            utilisation=0.5,
            tokens_per_s=1.0,
        )
        for rate in (0.01, 1000.0)
    ]


def contender(
    name: str,
    kind: Kind,
    usd: float,
    capacity: Estimate,
    *,
    e2e_s: float = 1.0,
    doubt: Doubt | None = None,
    max_replicas: int | None = None,
) -> Contender:
    return Contender(
        name,
        kind,
        Rented(usd_per_hour=usd),
        in_proportion(capacity),
        TRAFFIC,
        doubt or Doubt(name, name, 0.0, 0.0),
        delays(e2e_s),
        max_replicas=max_replicas,
    )


DENSE = contender("dense", "dense", 2.0, exact(10.0), e2e_s=1.0)
MOE = contender("moe", "moe", 2.0, exact(25.0), e2e_s=2.0)


def test_at_one_bill_the_faster_wins_until_its_machine_is_full() -> None:
    worlds = worlds_of([DENSE, MOE], RATES, 0)
    first, *rest = regions_of(worlds)
    assert (first.winner, first.certain) == ("dense", True)
    assert first.high_per_s == pytest.approx(10.0, rel=0.03)
    assert rest[0].winner == "moe"
    handover = handovers_of(worlds)[0]
    assert (handover.from_, handover.to) == ("dense", "moe")
    assert handover.rate_per_s.low <= handover.rate_per_s.value <= handover.rate_per_s.high


def test_a_certain_flip_has_a_narrow_band_and_an_uncertain_one_a_wide_band_around_it() -> None:
    doubt = [Doubt(name, "gpu", 0.0, 0.3) for name in ("dense", "moe")]
    unsure = [
        contender("dense", "dense", 2.0, around(10.0, 0.3), doubt=doubt[0]),
        contender("moe", "moe", 2.0, around(25.0, 0.3), e2e_s=2.0, doubt=doubt[1]),
    ]
    near = RATES[RATES < 20]
    sharp = handovers_of(worlds_of([DENSE, MOE], near, 0))[0].rate_per_s
    wide = handovers_of(worlds_of(unsure, near, 0))[0].rate_per_s
    assert sharp.high / sharp.low < 1.1
    assert wide.low < 9 < 11 < wide.high
    assert wide.value == pytest.approx(10.0, rel=0.1)


def test_what_both_share_moves_both_and_leaves_the_winner() -> None:
    shared = [Doubt("dense", "gpu", 0.5, 0.0), Doubt("moe", "gpu", 0.5, 0.0)]
    drawn = factors(shared, 3)
    assert np.array_equal(drawn[:, 0], drawn[:, 1])
    apart = factors([Doubt("dense", "a", 0.5, 0.0), Doubt("moe", "b", 0.5, 0.0)], 3)
    assert abs(np.corrcoef(apart[1:].T)[0, 1]) < 0.2


def test_leaving_a_candidate_out_changes_nobody_elses_draws() -> None:
    three = [Doubt(name, "gpu", 0.2, 0.1) for name in "abc"]
    assert np.array_equal(factors(three, 1)[:, [0, 2]], factors([three[0], three[2]], 1))


def test_no_difference_is_an_answer() -> None:
    twin = contender("twin", "moe", 2.0, exact(10.0), e2e_s=1.02)
    assert [region.winner for region in regions_of(worlds_of([DENSE, twin], RATES[:100], 0))] == [None]


def speeds(*points: tuple[float, float]) -> list[LatencyPoint]:
    """Answers in so many seconds at so many requests/s."""
    flat = delays(1.0)[0]
    return [msgspec.structs.replace(flat, rate_per_s=rate, e2e_p50_s=exact(e2e_s)) for rate, e2e_s in points]


def test_a_sliver_of_no_difference_is_neither_a_region_nor_a_flip() -> None:
    """Two at one price: for a moment the one that is slower everywhere else is as fast, and a hair faster."""
    dips = ((0.01, 1.2), (2.1, 1.1), (2.15, 0.99), (2.25, 0.99), (2.3, 1.1), (1000.0, 1.2))
    pair = [
        contender("dense", "dense", 2.0, exact(10.0), e2e_s=1.0),
        replace(contender("moe", "moe", 2.0, exact(10.0)), latency=speeds(*dips)),
    ]
    worlds = worlds_of(pair, RATES[RATES < 9], 0)
    assert 1 in worlds.winners_DR[0]
    assert [region.winner for region in regions_of(worlds)] == ["dense"]
    assert handovers_of(worlds) == []


def test_a_sliver_of_no_difference_is_not_of_whom_it_leaves_behind() -> None:
    """Above 10 the first needs two machines; of the other two, which cost the same, one is a hair faster up to 11."""
    dips = ((0.01, 0.99), (11.0, 0.99), (11.1, 1.2), (1000.0, 1.2))
    three = [
        contender("small", "dense", 2.0, exact(10.0), e2e_s=0.5),
        replace(contender("dips", "moe", 2.0, exact(25.0)), latency=speeds(*dips)),
        contender("large", "moe", 2.0, exact(25.0), e2e_s=1.0),
    ]
    worlds = worlds_of(three, RATES[RATES < 20], 0)
    assert [region.winner for region in regions_of(worlds)] == ["small", "large"]
    (found,) = handovers_of(worlds)
    assert (found.from_, found.to) == ("small", "large")
    assert found.rate_per_s.value == pytest.approx(10.0, rel=0.03)


def test_a_sliver_of_doubt_between_two_regions_of_one_winner_is_theirs() -> None:
    dips = ((0.01, 1.2), (2.1, 1.2), (2.12, 0.9), (2.25, 0.9), (2.3, 1.2), (1000.0, 1.2))
    doubts = [Doubt(name, "gpu", 0.0, 0.3) for name in ("dense", "moe")]
    pair = [
        contender("dense", "dense", 2.0, exact(10.0), e2e_s=1.0, doubt=doubts[0]),
        replace(contender("moe", "moe", 2.0, exact(10.0), doubt=doubts[1]), latency=speeds(*dips)),
    ]
    worlds = worlds_of(pair, RATES[RATES < 9], 0)
    assert [(region.winner, region.certain) for region in regions_of(worlds)] == [("dense", False)]
    assert handovers_of(worlds) == []
    # Not where the verdict is on a load within it.
    assert [region.winner for region in regions_of(worlds, 2.2)] == ["dense", "moe", "dense"]
    assert [each.to for each in handovers_of(worlds, 2.2)] == ["moe", "dense"]


def test_a_band_up_to_the_last_load_reaches_beyond_it() -> None:
    doubt = [Doubt(name, "gpu", 0.0, 1.0) for name in ("dense", "moe")]
    unsure = [
        contender("dense", "dense", 2.0, around(10.0, 1.0), doubt=doubt[0]),
        contender("moe", "moe", 2.0, around(25.0, 1.0), e2e_s=2.0, doubt=doubt[1]),
    ]
    for last in np.linspace(12.0, 13.0, 11).tolist():
        (found,) = handovers_of(worlds_of(unsure, np.geomspace(2.0, last, 61), 0))
        assert found.rate_per_s.high == pytest.approx(last)
        assert found.clipped


drawn_contenders = st.builds(
    lambda name, usd, capacity, half_width, fast, slow: replace(
        contender(name, "moe", usd, around(capacity, half_width), doubt=Doubt(name, "gpu", 0.0, half_width)),
        latency=speeds((0.01, fast), (1000.0, slow)),
    ),
    st.sampled_from("abcdef"),
    st.sampled_from([1.0, 1.005, 2.0]),
    st.floats(1.0, 50.0),
    st.sampled_from([0.0, 0.3]),
    st.floats(0.9, 1.1),
    st.floats(1.0, 1.2),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(drawn_contenders, min_size=2, max_size=3, unique_by=lambda each: each.name), st.integers(0, 100))
def test_every_flip_is_where_one_region_ends_and_another_begins(several: list[Contender], at: int) -> None:
    worlds = worlds_of(several, np.geomspace(0.1, 100, 101), 0)
    load = float(worlds.rates_R[at])
    regions = regions_of(worlds, load)
    handovers = handovers_of(worlds, load)
    # What is said of a load is what its region says.
    here = standing_at(worlds, load)
    mine = next(each for each in regions if each.high_per_s is None or load < each.high_per_s)
    assert mine.low_per_s <= load
    assert mine.winner == (None if here.same else here.winner)
    for h in handovers:
        before, after = next(p for p in itertools.pairwise(regions) if p[1].low_per_s == h.rate_per_s.value)
        assert before.high_per_s == after.low_per_s
        assert after.winner in (h.to, None)
        assert before.winner in (h.from_, None)
        assert h.rate_per_s.low <= h.rate_per_s.value <= h.rate_per_s.high
    for region in regions:
        if region.winner is not None and region.margin is not None:
            whole = worlds.rates_R[(worlds.rates_R >= region.low_per_s) & (worlds.rates_R < (region.high_per_s or 1e9))]
            middle = int(np.flatnonzero(worlds.rates_R == whole[0])[0]) + (len(whole) - 1) // 2
            costs = {name: worlds.usd_per_hour_CDR[i, :, middle] for i, name in enumerate(worlds.names)}
            ratio_D = costs[region.runner_up or ""] / costs[region.winner]
            assert region.margin.value == pytest.approx(float(np.median(ratio_D)))
    # Whoever is named by one region and not by the next has handed over in between.
    named = [region.winner for region in regions if region.winner is not None]
    if len(set(named)) > 1:
        assert handovers


@pytest.mark.parametrize("seed", [0, 1])
def test_what_costs_nothing_has_no_ratio_and_the_next_costs_no_times_as_much(seed: int) -> None:
    free = Contender("free", "moe", Api(usd_per_mtok_input=0.0, usd_per_mtok_output=0.0), None, TRAFFIC, None, [])
    with np.errstate(divide="raise", invalid="raise"):
        here = standing_at(worlds_of([DENSE, free], RATES[:100], seed), 0.5)
        assert (here.winner, here.runner_up, here.margin, here.same) == ("free", "dense", None, False)
        again = replace(free, name="again")
        here = standing_at(worlds_of([again, free], RATES[:100], seed), 0.5)
        assert here.margin == exact(1.0)
        assert narrowest([DENSE, free], [], RATES[:100], 0.5, seed) == []


def test_a_band_is_held_against_one_of_the_same_thing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a measurement would do away with the flip, all are held against what decides instead."""
    flip = ("dense", "moe")
    options = [calibration_of(name, "vllm", ["dense"]) for name in ("a", "b", "c")]
    for after, bands in (
        ([({flip: 4.0}, 2.0), ({flip: 9.9}, 1.5), ({flip: 5.0}, 3.0)], {"a": (10.0, 4.0), "c": (10.0, 5.0)}),
        ([({}, 2.0), ({("moe", "dense"): 1.1}, 1.5), ({flip: 4.0}, 3.0)], {"b": (3.0, 1.5), "a": (3.0, 2.0)}),
    ):
        found = iter([({flip: 10.0}, 3.0), *after])
        monkeypatch.setattr("breakeven.answer.next._bands", lambda *_, found=found: next(found))
        told = [
            (each.command[-2], (each.band_before, each.band_after)) for each in narrowest([], options, RATES, 1.0, 0)
        ]
        assert told == list(bands.items())


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (2, 1, 0), (1, 0, 2)])
def test_the_next_best_is_the_same_in_whatever_order_candidates_stand(order: tuple[int, ...]) -> None:
    """Of two that cost what the winner costs, one as fast and one far slower, the fast one is next: no difference."""
    three = [
        DENSE,
        contender("slow", "dense", 2.0, exact(10.0), e2e_s=3.0),
        contender("twin", "moe", 2.0, exact(10.0), e2e_s=1.02),
    ]
    worlds = worlds_of([three[i] for i in order], RATES[:100], 0)
    here = standing_at(worlds, 0.5)
    assert (here.winner, here.runner_up, here.same, here.slower) == ("dense", "twin", True, True)
    assert [(region.winner, region.runner_up) for region in regions_of(worlds)] == [(None, "twin")]


def test_nobody_answers_slower_whose_speed_is_not_known() -> None:
    silent = replace(contender("silent", "moe", 2.0, exact(10.0)), latency=[])
    here = standing_at(worlds_of([DENSE, silent], RATES[:100], 0), 0.5)
    assert (here.winner, here.runner_up, here.same, here.slower) == ("dense", "silent", False, None)


def test_a_load_nobody_can_serve_has_no_winner() -> None:
    alone = contender("dense", "dense", 2.0, exact(10.0), max_replicas=1)
    worlds = worlds_of([alone], RATES, 0)
    assert winner_at(worlds, 5.0) == (0, 1.0)
    assert winner_at(worlds, 500.0)[0] == -1
    assert regions_of(worlds)[-1].high_per_s == pytest.approx(10.0, rel=0.03)


@pytest.mark.parametrize("first", [0, 1])
def test_where_nobody_can_serve_nobody_takes_over(first: int) -> None:
    pair = [replace(each, max_replicas=1) for each in (DENSE, MOE)]
    handovers = handovers_of(worlds_of([pair[first], pair[1 - first]], RATES, 0))
    assert [(each.from_, each.to) for each in handovers] == [("dense", "moe")]
    assert growth_flip(handovers, 15.0, 1.0) is None


def test_no_flip_leads_to_where_nobody_can_serve() -> None:
    few = replace(DENSE, max_replicas=1)
    worlds = [
        worlds_of([few, contender("moe", "moe", 2.0, exact(capacity), max_replicas=1)], np.array([20.0]), 0)
        for capacity in (30.0, 30.0, 2.0)
    ]
    kinds = {"dense": "dense", "moe": "MoE"}
    assert along("context", "tokens", [1000.0, 2000.0, 4000.0], worlds, kinds) == []
    assert precision_flips(["INT4", "FP8", "BF16"], worlds, kinds) == []


@pytest.mark.parametrize("seed", range(8))
def test_who_only_just_serves_does_not_lose_to_nobody(seed: int) -> None:
    """In about half of the worlds nobody serves; whether that is a little more than half is the seed's business."""
    doubt = Doubt("edge", "gpu", 0.2, 0.2)
    edge = replace(contender("edge", "moe", 2.0, around(10.0, 0.3), doubt=doubt), only_just=True)
    worlds = worlds_of([edge], RATES[:200], seed)
    best, sure = winner_at(worlds, 1.0)
    assert best == 0
    assert 0.35 < sure < 0.65
    assert [(region.winner, region.certain) for region in regions_of(worlds)] == [("edge", False)]


def test_a_base_of_our_own_and_the_rest_by_the_token() -> None:
    own = contender("own", "dense", 2.0, exact(10.0), max_replicas=1)
    # 12 requests/s: one machine is full, two are not allowed; by the token all of it costs 12 * 3600 * $0.0005 = $21.6.
    api = Contender("api", "moe", Api(usd_per_mtok_input=0.6, usd_per_mtok_output=1.0), None, TRAFFIC, None, [])
    mix = best_mix([own, api], [], 12.0, 0)
    assert mix is not None
    assert [(share.candidate, round(share.share, 3)) for share in mix.shares] == [("own", 0.833), ("api", 0.167)]
    assert mix.usd_per_hour.value == pytest.approx(2.0 + 2 * 3600 * 0.0005)
    assert mix.single == "api"
    assert mix.single_over_mix is not None
    assert mix.single_over_mix.value == pytest.approx(21.6 / 5.6)


def test_parts_go_to_whom_may_serve_them() -> None:
    small = contender("small", "dense", 0.1, exact(100.0))
    large = contender("large", "moe", 4.0, exact(5.0))
    parts = [MixPart("easy", 0.8, frozenset(["small", "large"])), MixPart("hard", 0.2, frozenset(["large"]))]
    mix = best_mix([small, large], parts, 20.0, 0)
    assert mix is not None
    assert {share.candidate: share.share for share in mix.shares} == {"small": 0.8, "large": pytest.approx(0.2)}
    assert mix.single == "large"
    assert mix.usd_per_hour.value == pytest.approx(4.1)


def test_of_mixes_that_cost_the_same_the_faster_wins_and_no_name_does() -> None:
    rest = contender("rest", "moe", 4.0, exact(5.0))
    for slow, fast in (("a", "b"), ("b", "a")):
        pair = [
            contender(slow, "dense", 0.1, exact(100.0), e2e_s=2.0),
            contender(fast, "dense", 0.101, exact(100.0), e2e_s=1.0),
        ]
        parts = [MixPart("easy", 0.8, frozenset([slow, fast])), MixPart("hard", 0.2, frozenset(["rest"]))]
        mix = best_mix([*pair, rest], parts, 20.0, 0)
        assert mix is not None
        assert [share.candidate for share in mix.shares] == [fast, "rest"]
        tight = best_mix([*pair, rest], parts, 20.0, 0, budget_usd_per_hour=4.1)
        assert tight is not None
        assert [share.candidate for share in tight.shares] == [slow, "rest"]


def test_one_candidate_that_is_cheapest_alone_needs_no_mix() -> None:
    assert best_mix([DENSE, MOE], [], 5.0, 0) is None


def test_calibrating_the_shared_machine_is_worth_naming_when_it_narrows() -> None:
    unsure = [
        contender("dense", "dense", 2.0, around(10.0, 0.5), doubt=Doubt("dense", "gpu", 0.4, 0.3)),
        contender("moe", "moe", 2.0, around(25.0, 0.5), e2e_s=2.0, doubt=Doubt("moe", "gpu", 0.4, 0.3)),
    ]
    option = calibration_of("gpu", "vllm", ["dense", "moe"])
    found = narrowest(unsure, [option], RATES[RATES < 20], 5.0, 0)
    assert [n.command for n in found] == [option.command]
    assert found[0].band_after < found[0].band_before


def test_growth_reaches_the_next_flip() -> None:
    handovers = handovers_of(worlds_of([DENSE, MOE], RATES[RATES < 20], 0))
    flip = growth_flip(handovers, 5.0, 1.0)
    assert flip is not None
    assert flip.at is not None
    assert flip.at.value == pytest.approx(1.0, abs=0.1)
    there = handovers[0].rate_per_s.value
    for times, when in ((1.01, "in less than a month"), (1.45, "in about 6 months"), (3.8, "in about 1.9 years")):
        near = growth_flip(handovers, there / times, 1.0)
        assert near is not None
        assert near.meaning.endswith(when)
    assert growth_flip(handovers, 15.0, 1.0) is None
    assert growth_flip(handovers, 5.0, 0.0) is None


def test_a_flip_along_context() -> None:
    contexts = [1000.0, 2000.0, 4000.0]
    worlds = []
    for capacity in (30.0, 8.0, 2.0):  # the MoE model's capacity falls with context, the dense one's does not
        long = contender("moe", "moe", 2.0, exact(capacity), e2e_s=0.5)
        worlds.append(worlds_of([DENSE, long], np.array([9.0]), 0))
    (flip,) = along("context", "tokens", contexts, worlds, {"dense": "dense", "moe": "MoE"})
    assert (flip.from_, flip.to) == ("moe", "dense")
    assert flip.at is not None
    assert 1000 < flip.at.value < 2000


def test_no_flip_and_no_winner_on_the_map_where_two_make_no_difference() -> None:
    at = np.array([9.0])
    kinds: list[tuple[str, Kind]] = [("dense", "dense"), ("moe", "moe")]
    worlds = [
        worlds_of([DENSE, contender("moe", "moe", 2.0, exact(10.0), e2e_s=e2e_s)], at, 0)
        for e2e_s in (1.2, 0.99, 1.2, 0.8)
    ]
    (flip,) = along("context", "tokens", [1e3, 2e3, 4e3, 8e3], worlds, {"dense": "dense", "moe": "MoE"})
    assert (flip.from_, flip.to) == ("dense", "moe")
    (flip,) = precision_flips(["BF16", "FP8", "INT8", "INT4"], worlds, {"dense": "dense", "moe": "MoE"})
    assert flip.at_label == "INT4"
    drawn = map_of("context", list(zip([1e3, 2e3, 4e3, 8e3], worlds, strict=True)), kinds, [9.0])
    assert [(cell.winner, cell.kind) for cell in drawn.cells] == [
        ("dense", "dense"),
        (None, None),
        ("dense", "dense"),
        ("moe", "moe"),
    ]
    assert all(cell.ratio == 1.0 for cell in drawn.cells)


prices = st.one_of(
    st.builds(Rented, usd_per_hour=st.floats(0.01, 100)),
    st.builds(Own, usd=st.floats(100, 1e5), life_years=st.floats(1, 8), usd_per_kwh=st.floats(0, 1)),
    st.builds(Api, usd_per_mtok_input=st.floats(0, 10), usd_per_mtok_output=st.floats(0, 50)),
)


@given(prices, st.floats(0.001, 1e4), st.floats(0.01, 1e3), st.floats(0.05, 1.0), st.booleans())
def test_drawn_bills_are_the_staircase(
    pricing: Pricing, rate: float, capacity: float, share: float, powered: bool
) -> None:
    power = Power(idle_w=50, busy_w=400) if powered else None
    curve = FleetCurve((1, 4), (capacity * share, 4 * capacity), 1.5 * capacity)
    stairs = staircase(pricing, curve, TRAFFIC, power)
    drawn = bills(pricing, [rate], curve.needed([rate]), [curve.full_per_s], TRAFFIC, power)
    assert drawn[0] == pytest.approx(float(stairs.usd_per_hour(rate)))


@given(st.floats(0.01, 1e4), st.floats(0.01, 0.99), st.floats(0.01, 1.0), st.lists(st.floats(-3, 3), min_size=2))
def test_drawn_capacities_pass_through_the_interval_and_never_rise_with_step_time(
    value: float, low_share: float, half_width: float, drawn: list[float]
) -> None:
    span = Estimate(value=value, low=value * low_share, high=value / low_share)
    at = capacities(span, half_width, np.array([half_width, 0.0, -half_width]))
    assert at == pytest.approx([span.low, span.value, span.high])
    ordered = capacities(span, half_width, np.sort(np.array(drawn)))
    assert (np.diff(ordered) <= 1e-9 * value).all()
    assert (ordered >= 0).all()


def test_the_first_draw_is_the_prediction() -> None:
    assert factors([Doubt("a", "gpu", 0.3, 0.2)], 0)[0, 0] == 0.0
    assert span_of(np.array([2.0, 1.0, 3.0])).value == 2.0
