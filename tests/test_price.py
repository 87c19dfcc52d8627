"""Bills, staircases and the loads at which the cheaper candidate changes."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from breakeven.answer.evaluate import bill_of, model_of
from breakeven.answer.study.load import read_study
from breakeven.errors import UserError
from breakeven.forecast.fleet import FleetCapacity
from breakeven.gateway.plan.model import BackendPlan
from breakeven.gateway.route.view import usd_per_s
from breakeven.gateway.seen.snapshot import standing_usd_per_hour
from breakeven.gateway.serve.loading import _powered
from breakeven.model.quality.scores import QualityScore
from breakeven.price.break_even import Offer, break_evens, break_evens_of, winners
from breakeven.price.pricing import (
    HOURS_PER_YEAR,
    Power,
    PricedTraffic,
    check_pricing,
    idle_usd_per_hour,
    machine_usd_per_hour,
    power_of,
    unpowered,
    usd_per_added_request,
)
from breakeven.price.sensitivity import parity_what_if, what_if
from breakeven.price.staircase import (
    LEAST_CAPACITY,
    FleetCurve,
    cost_points,
    endless,
    in_proportion,
    per_solved,
    staircase,
)
from breakeven.results.cost import ENDLESS, Api, BreakEven, Cost, CostPoint, Own, Pricing, Rented, WhatIf
from breakeven.stats.estimate import Estimate

TRAFFIC = PricedTraffic(prompt_tokens=512, output_tokens=256)
HOME = Own(usd=2000, life_years=4, usd_per_kwh=0.30, idle_w=60, busy_w=300)


def span(value: float, factor: float = 1.0) -> Estimate:
    return Estimate(value=value, low=value / factor, high=value * factor)


def fleet(value: float, factor: float = 1.0) -> FleetCapacity:
    """Of one replica alone, the others in proportion."""
    return in_proportion(span(value, factor))


def curve(value: float) -> FleetCurve:
    return FleetCurve((1,), (value,))


def offer(name: str, pricing: Pricing, capacity: Estimate | None, power: Power | None = None) -> Offer:
    return Offer(
        name=name,
        pricing=pricing,
        fleet=None if capacity is None else in_proportion(capacity),
        traffic=TRAFFIC,
        power=power,
    )


def rented(name: str, usd: float, capacity: float, factor: float = 1.0) -> Offer:
    return offer(name, Rented(usd_per_hour=usd), span(capacity, factor))


def at(offers: tuple[Offer, Offer], low: float, high: float) -> list[tuple[str, float | None]]:
    return [
        (flip.to, None if flip.rate_per_s is None else flip.rate_per_s.value)
        for flip in break_evens(*offers, low, high)
    ]


EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*-*.yaml"))
OWNED = Own(usd=8766.0, life_years=1.0, usd_per_kwh=0.5, power_overhead=1.5, yearly_upkeep_usd=100.0)


@pytest.mark.parametrize("file", [each for each in EXAMPLES if "candidates:" in each.read_text()], ids=lambda f: f.stem)
def test_a_verdict_and_the_gateway_count_the_same_dollars(file: Path) -> None:
    """A machine bought, rented or somebody else's; its watts named by its price, or by its profile, or by nobody."""
    study = read_study(file)
    assert study.candidates
    for plan in study.candidates:
        if plan.is_api or plan.model is None:
            backend = BackendPlan(name="b", url="http://localhost/v1", price=plan.pricing)
            assert standing_usd_per_hour(_powered(backend)) is None
            continue
        model = model_of(plan)
        known = model.profile.idle_w is not None
        named = msgspec.structs.replace(OWNED, busy_w=9000.0, idle_w=None if known else 100.0)
        for price in (plan.pricing, OWNED, named, Rented(usd_per_hour=2.0)):
            pricing, power, _ = bill_of(replace(plan, pricing=price), model)
            assert isinstance(pricing, Own | Rented)
            assert power is not None or not known
            backend = _powered(
                BackendPlan(
                    name="b",
                    url="http://localhost/v1",
                    model=plan.model,
                    machine=plan.machine,
                    engine=plan.engine,
                    format=plan.format,
                    devices=plan.devices,
                    price=pricing,
                )
            )
            assert isinstance(backend.price, Own | Rented)
            waits, busy = (machine_usd_per_hour(pricing, power, share) for share in (0.0, 1.0))
            assert standing_usd_per_hour(backend) == pytest.approx(waits)
            assert usd_per_s(backend.price) == pytest.approx(busy / 3600)
            if isinstance(pricing, Own) and power is not None:
                assert busy > waits > machine_usd_per_hour(pricing)
                # What a request adds at capacity is what being busy costs beyond waiting.
                added = usd_per_added_request(pricing, TRAFFIC, 2.0, power)
                assert waits + 2.0 * 3600 * added == pytest.approx(busy)


# --- bills -----------------------------------------------------------------------------------------------------------


def test_a_bought_machine_costs_its_purchase_over_its_life_and_its_power() -> None:
    power = power_of(HOME)
    assert power == Power(idle_w=60, busy_w=300)
    assert machine_usd_per_hour(HOME, power) == pytest.approx(500 / 8766 + 0.060 * 0.30)
    # At 2 requests/s one request takes (300 - 60) W / 2 above idle: 120 J, a 30,000th of a kWh.
    assert usd_per_added_request(HOME, TRAFFIC, 2.0, power) == pytest.approx(0.30 / 30_000)
    assert HOURS_PER_YEAR == 8766


def test_power_of_the_building_and_of_a_machine_that_says_nothing() -> None:
    assert power_of(Own(usd=1, life_years=1, usd_per_kwh=1, power_overhead=1.5), 100, 200) == Power(
        idle_w=150, busy_w=300
    )
    assert power_of(Rented(usd_per_hour=1), 100, 200) == Power(idle_w=100, busy_w=200)
    assert power_of(Rented(usd_per_hour=1)) is None
    assert power_of(Api(usd_per_mtok_input=1, usd_per_mtok_output=1), 100, 200) is None


@pytest.mark.parametrize(
    ("idle_w", "busy_w", "usd_per_kwh", "missing"),
    [
        (None, None, 0.3, "what it draws; give its idle and busy watts"),
        (None, 300.0, 0.3, "what it draws when idle; give its idle watts"),
        (60.0, None, 0.3, "what it draws when busy; give its busy watts"),
        (60.0, 300.0, 0.3, None),
        (None, None, 0.0, None),
    ],
)
def test_electricity_that_nobody_can_bill_is_named(
    idle_w: float | None, busy_w: float | None, usd_per_kwh: float, missing: str | None
) -> None:
    own = Own(usd=2000, life_years=4, usd_per_kwh=usd_per_kwh, idle_w=idle_w, busy_w=busy_w)
    told = unpowered(own, power_of(own))
    whole = f"its electricity is NOT in the bill: nobody says {missing} beside its price"
    assert told == (None if missing is None else whole)
    assert unpowered(Rented(usd_per_hour=1.0), None) is None


def test_an_api_bills_tokens_and_cached_ones_less() -> None:
    api = Api(usd_per_mtok_input=1.0, usd_per_mtok_output=4.0, usd_per_mtok_cached_input=0.25)
    half = PricedTraffic(prompt_tokens=1000, output_tokens=100, cached_share=0.5)
    assert usd_per_added_request(api, half, math.inf) == pytest.approx((500 * 1.0 + 500 * 0.25 + 100 * 4.0) / 1e6)
    assert idle_usd_per_hour(api) == 0.0


@pytest.mark.parametrize(
    ("pricing", "told"),
    [
        (Rented(usd_per_hour=-1), "usd_per_hour -1"),
        (Rented(usd_per_hour=math.nan), "usd_per_hour nan"),
        (Own(usd=1, life_years=0, usd_per_kwh=0), "life_years"),
        (Own(usd=1, life_years=1, usd_per_kwh=0, power_overhead=0.9), "power_overhead"),
        (Own(usd=1, life_years=1, usd_per_kwh=0, idle_w=9, busy_w=3), "below idle_w"),
        (Api(usd_per_mtok_input=1, usd_per_mtok_output=-2), "usd_per_mtok_output -2"),
    ],
)
def test_prices_that_mean_nothing_are_refused(pricing: Pricing, told: str) -> None:
    with pytest.raises(UserError, match=told):
        check_pricing(pricing)


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt_tokens": 0, "output_tokens": 1},
        {"prompt_tokens": 1, "output_tokens": math.nan},
        {"prompt_tokens": 1, "output_tokens": 1, "cached_share": 1.5},
        {"prompt_tokens": 1, "output_tokens": 1, "turns": 0.5},
    ],
)
def test_traffic_that_means_nothing_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError):
        PricedTraffic(**wrong)


# --- staircases ------------------------------------------------------------------------------------------------------


def test_replicas_are_whole_machines() -> None:
    stairs = staircase(Rented(usd_per_hour=2.0), curve(10.0), TRAFFIC)
    rates = np.array([0.0, 0.1, 10.0, 10.001, 20.0, 35.0])
    assert stairs.replicas(rates).tolist() == [1, 1, 1, 2, 2, 4]
    assert stairs.usd_per_hour(rates).tolist() == [2, 2, 2, 4, 4, 8]
    # 3 * 0.1 is a little more than 0.3 in binary.
    assert staircase(Rented(usd_per_hour=1.0), curve(0.1), TRAFFIC).replicas(0.1 + 0.2) == 3


def test_the_cost_of_a_token_falls_with_utilisation() -> None:
    one, full = cost_points(Rented(usd_per_hour=6.98), fleet(50.0), TRAFFIC, [1.0, 50.0])
    # One request a second of 256 tokens: 921,600 tokens an hour for $6.98.
    assert one.usd_per_mtok_output.value == pytest.approx(6.98 / 0.9216)
    assert one.utilisation == pytest.approx(0.02)
    assert full.utilisation == pytest.approx(1.0)
    assert one.usd_per_mtok_output.value / full.usd_per_mtok_output.value == pytest.approx(50)


def test_the_bill_splits_into_what_came_in_and_what_went_out() -> None:
    (point,) = cost_points(Rented(usd_per_hour=1.0), fleet(5.0), TRAFFIC, [2.0], prefill_share=0.25)
    assert point.usd_per_mtok_input_share is not None
    assert point.usd_per_mtok_output_share is not None
    parts = 512 * point.usd_per_mtok_input_share + 256 * point.usd_per_mtok_output_share
    assert parts / 1e6 == pytest.approx(point.usd_per_request.value)
    api = Api(usd_per_mtok_input=0.1, usd_per_mtok_output=0.4)
    (point,) = cost_points(api, None, TRAFFIC, [2.0])
    assert point.usd_per_mtok_input_share == pytest.approx(0.1)
    assert point.usd_per_mtok_output_share == pytest.approx(0.4)
    assert (point.replicas, point.utilisation, point.power_w) == (None, None, None)


def test_energy_is_idle_power_and_what_the_load_adds() -> None:
    power = power_of(HOME)
    (point,) = cost_points(HOME, fleet(4.0), TRAFFIC, [6.0], power=power)
    assert point.power_w is not None
    assert point.joules_per_output_token is not None
    assert point.energy_usd_per_hour is not None
    # Two replicas, together busy for one and a half.
    assert point.power_w.value == pytest.approx(2 * 60 + 1.5 * 240)
    assert point.joules_per_output_token.value == pytest.approx(480 / (6 * 256))
    assert point.energy_usd_per_hour.value == pytest.approx(0.48 * 0.30)
    assert point.usd_per_hour.value == pytest.approx(2 * 500 / 8766 + 0.48 * 0.30)


def test_a_capacity_that_may_be_nothing_has_a_bounded_bill() -> None:
    capacity = Estimate(value=10.0, low=0.0, high=12.0)
    (point,) = cost_points(Rented(usd_per_hour=1.0), in_proportion(capacity), TRAFFIC, [10.0])
    assert point.usd_per_hour.high == pytest.approx(1 / LEAST_CAPACITY)


def test_a_machine_that_serves_nothing_has_no_points() -> None:
    assert cost_points(Rented(usd_per_hour=1.0), in_proportion(Estimate(0.0, 0.0, 0.0)), TRAFFIC, [1.0]) == []
    assert cost_points(Rented(usd_per_hour=1.0), None, TRAFFIC, [1.0]) == []
    with pytest.raises(UserError, match="no price"):
        staircase(Rented(usd_per_hour=1.0), None, TRAFFIC)


@pytest.mark.parametrize("rate", [0.0, -1.0, math.inf, math.nan])
def test_rates_without_a_cost_a_request_are_refused(rate: float) -> None:
    with pytest.raises(UserError, match="above 0"):
        cost_points(Rented(usd_per_hour=1.0), fleet(1.0), TRAFFIC, [rate])


money = st.floats(0.01, 100)
capacities = st.floats(0.05, 200)
factors = st.floats(1.0, 3.0)
pricings = st.one_of(
    st.builds(Rented, usd_per_hour=money),
    st.builds(
        Own,
        usd=st.floats(10, 1e5),
        life_years=st.floats(0.5, 10),
        usd_per_kwh=st.floats(0, 1),
        idle_w=st.floats(0, 100),
        busy_w=st.floats(100, 1000),
    ),
    st.builds(Api, usd_per_mtok_input=st.floats(0.001, 10), usd_per_mtok_output=st.floats(0.001, 50)),
)


@given(pricings, capacities, factors, st.lists(st.floats(0.01, 1000), min_size=2, max_size=6, unique=True))
def test_more_load_never_costs_less_and_the_interval_holds_its_value(
    pricing: Pricing, capacity: float, factor: float, rates: list[float]
) -> None:
    points = cost_points(pricing, fleet(capacity, factor), TRAFFIC, sorted(rates), power=power_of(pricing))
    bills = [point.usd_per_hour.value for point in points]
    assert all(a <= b * (1 + 1e-12) for a, b in itertools.pairwise(bills))
    for point in points:
        assert point.usd_per_hour.low <= point.usd_per_hour.value <= point.usd_per_hour.high
        assert point.usd_per_request.value == pytest.approx(point.usd_per_hour.value / 3600 / point.rate_per_s)
        assert point.utilisation is None or 0 < point.utilisation <= 1 + 1e-8


@given(money, capacities, st.floats(1.0, 5.0), st.floats(0.01, 1000))
def test_a_larger_machine_at_the_same_price_never_costs_more(
    usd: float, capacity: float, factor: float, rate: float
) -> None:
    small, large = (staircase(Rented(usd_per_hour=usd), curve(c), TRAFFIC) for c in (capacity, factor * capacity))
    assert large.usd_per_hour(rate) <= small.usd_per_hour(rate)


# --- fleets ----------------------------------------------------------------------------------------------------------


@st.composite
def curves(draw: st.DrawFn) -> FleetCapacity:
    """What fleets of up to five sizes carry, whatever a simulation may say of them."""
    sizes = (1, *sorted(draw(st.sets(st.integers(2, 40), max_size=4))))
    each = draw(st.lists(st.floats(0.05, 20.0), min_size=len(sizes), max_size=len(sizes)))
    wide = draw(st.floats(1.0, 2.0))
    spans = tuple(span(n * value, wide) for n, value in zip(sizes, each, strict=True))
    top = span(max(each) * draw(st.floats(1.0, 3.0)), wide) if draw(st.booleans()) else None
    return FleetCapacity(sizes, spans, top)


@given(pricings, curves(), st.lists(st.floats(0.01, 1000), min_size=2, max_size=8, unique=True))
def test_more_load_never_costs_less_on_a_fleet(pricing: Pricing, carries: FleetCapacity, rates: list[float]) -> None:
    points = cost_points(pricing, carries, TRAFFIC, sorted(rates), power=power_of(pricing))
    bills = [point.usd_per_hour.value for point in points]
    assert all(a <= b * (1 + 1e-9) for a, b in itertools.pairwise(bills))
    for point in points:
        assert point.usd_per_hour.low <= point.usd_per_hour.value <= point.usd_per_hour.high
        if point.replicas is not None and point.utilisation is not None and point.capacity_used is not None:
            n = int(point.replicas.value)
            assert carries.per_s(n) >= point.rate_per_s * (1 - 1e-5)
            assert n == 1 or carries.per_s(n - 1) < point.rate_per_s * (1 + 1e-5)
            assert point.capacity_used <= 1 + 1e-4
            # What a fleet carries is never more than it does when it is full, where that is known.
            assert carries.saturation_per_s is None or point.utilisation <= point.capacity_used * (1 + 1e-9)


@given(curves(), money, st.floats(0.01, 500))
def test_a_fleet_never_costs_more_than_as_many_machines_as_one_by_one(
    carries: FleetCapacity, usd: float, rate: float
) -> None:
    alone = FleetCapacity((1,), carries.per_s_K[:1], carries.saturation_per_s)
    (together,), (apart,) = (cost_points(Rented(usd_per_hour=usd), each, TRAFFIC, [rate]) for each in (carries, alone))
    assert together.usd_per_hour.value <= apart.usd_per_hour.value * (1 + 1e-9)


def test_bursts_pool_and_the_bill_says_so() -> None:
    # One machine of two requests/s carries 0.5 within the level; four share their headroom and carry 6.
    carries = FleetCapacity((1, 4), (span(0.5), span(6.0)), span(2.0))
    (point,) = cost_points(Rented(usd_per_hour=1.0), carries, TRAFFIC, [6.0])
    assert point.replicas is not None
    assert point.replicas.value == 4
    assert point.utilisation == pytest.approx(6 / 8)
    assert point.capacity_used == pytest.approx(1.0)
    (flip,) = break_evens(
        Offer(name="many small", pricing=Rented(usd_per_hour=1.0), fleet=carries, traffic=TRAFFIC),
        rented("one large", 3.5, 100.0),
        0.01,
        20.0,
    )
    assert flip.to == "one large"
    assert flip.rate_per_s is not None
    # Where the fourth small one is needed, and not at three times half a request.
    assert flip.rate_per_s.value == pytest.approx(carries.per_s(3), rel=1e-6)
    assert flip.utilisation == pytest.approx(carries.per_s(3) / 100.0, rel=1e-6)
    assert "one large is 4% used there" in flip.meaning


# --- flips -----------------------------------------------------------------------------------------------------------


def test_with_one_price_the_flip_is_where_the_first_replica_is_full() -> None:
    (flip,) = break_evens(rented("dense", 2.0, 10.0, 1.2), rented("moe", 2.0, 25.0, 1.1), 0.1, 20.0)
    assert (flip.from_, flip.to) == ("dense", "moe")
    assert flip.rate_per_s is not None
    assert flip.rate_per_s.value == pytest.approx(10.0)
    # Only the capacity of the one that fills up matters here.
    assert flip.rate_per_s.low == pytest.approx(10 / 1.2)
    assert flip.rate_per_s.high == pytest.approx(12.0)
    assert "cost the same" in flip.meaning


def test_two_staircases_overtake_each_other_more_than_once() -> None:
    # $1 for 10, $2 for 25: one against two machines, two against one (a tie), three against one, three against two.
    pair = rented("small", 1.0, 10.0), rented("large", 2.0, 25.0)
    assert at(pair, 0.1, 45.0) == [
        ("large", pytest.approx(20.0)),
        ("small", pytest.approx(25.0)),
        ("large", pytest.approx(40.0)),
    ]


def test_loads_at_which_both_cost_the_same_again_are_told() -> None:
    """Above 10 two of the one against one of the other; from 16 to 20 two of each."""
    (flip,) = break_evens(rented("dense", 2.0, 10.0), rented("moe", 2.0, 16.0), 0.1, 30.0)
    assert "moe is cheaper than dense or costs the same, up to the end of the range, 30 requests/s" in flip.meaning
    (flip,) = break_evens(rented("dense", 2.0, 10.0), rented("moe", 2.0, 16.0), 0.1, 15.0)
    assert "moe is cheaper than dense, up to the end of the range, 15 requests/s" in flip.meaning


def test_an_api_is_left_where_its_line_crosses_the_standing_bill() -> None:
    api = offer("api", Api(usd_per_mtok_input=0.1, usd_per_mtok_output=0.4), None)
    (flip,) = break_evens(api, rented("own", 1.0, 25.0, 1.3), 0.01, 20.0)
    per_request = (512 * 0.1 + 256 * 0.4) / 1e6
    assert flip.to == "own"
    assert flip.rate_per_s is not None
    assert flip.rate_per_s.value == pytest.approx(1 / 3600 / per_request)
    assert flip.rate_per_s.low == pytest.approx(flip.rate_per_s.value)


def test_an_error_that_two_models_share_moves_both_and_hides_no_winner() -> None:
    # Apart, either may be the larger one; with nine tenths of the error in common, it is clear which.
    apart = rented("dense", 1.0, 10.0, 1.5), rented("moe", 1.0, 14.0, 1.5)
    together = tuple(replace(one, machine="h100-sxm", own_share=0.1) for one in apart)
    (loose,), (tight,) = break_evens(*apart, 0.1, 19.0), break_evens(together[0], together[1], 0.1, 19.0)
    assert loose.rate_per_s is not None
    assert tight.rate_per_s is not None
    assert loose.rate_per_s.high == pytest.approx(19.0)
    assert tight.rate_per_s.low == pytest.approx(10 / 1.5, rel=0.01)
    assert tight.rate_per_s.high == pytest.approx(15.0, rel=0.01)


def test_a_change_of_what_costs_nothing_leaves_it_at_nothing() -> None:
    free = rented("free", 0.0, 10.0)
    twice = rented("free", 0.0, 20.0)
    told = what_if([free, rented("paid", 1.0, 10.0)], 0, twice, "precision", "FP8", 1.0, (0.1, 10.0))
    assert told.usd_per_request == 0.0
    assert told.meaning.endswith("costs $0 per 1,000 requests at 1/s, as it does now.")
    assert parity_what_if([free, rented("paid", 1.0, 10.0)], 1, 0, 1.0) is None


def test_never_is_an_answer() -> None:
    (flip,) = break_evens(rented("dense", 1.0, 50.0), rented("moe", 2.0, 40.0), 0.1, 500.0)
    assert (flip.from_, flip.to, flip.rate_per_s) == ("dense", "moe", None)
    assert "at no load" in flip.meaning
    (flip,) = break_evens(rented("a", 1.0, 50.0), rented("b", 1.0, 50.0), 0.1, 500.0)
    assert flip.rate_per_s is None
    assert "cost the same" in flip.meaning


def test_who_serves_nothing_is_not_compared() -> None:
    silent = offer("silent", Rented(usd_per_hour=1.0), Estimate(value=0.0, low=0.0, high=0.0))
    for pair in ((silent, rented("b", 1.0, 5.0)), (rented("b", 1.0, 5.0), silent)):
        (flip,) = break_evens(*pair, 0.1, 10.0)
        assert (flip.from_, flip.to, flip.rate_per_s) == ("b", "silent", None)
        assert "silent cannot keep" in flip.meaning


def test_a_tie_can_go_to_the_faster() -> None:
    pair = rented("slow", 1.0, 10.0), rented("fast", 1.0, 25.0)
    (flip,) = break_evens(*pair, 0.1, 20.0, prefer="fast")
    assert (flip.from_, flip.rate_per_s) == ("fast", None)
    flips = break_evens(*pair, 0.1, 20.0, prefer="slow")
    assert [(flip.to, flip.rate_per_s and flip.rate_per_s.value) for flip in flips] == [("fast", pytest.approx(10.0))]


def test_a_flip_that_an_end_of_the_interval_does_not_have_reaches_the_end_of_the_range() -> None:
    (flip,) = break_evens(rented("dense", 1.0, 10.0, 3.0), rented("moe", 1.5, 50.0), 0.1, 20.0)
    assert flip.rate_per_s is not None
    assert flip.rate_per_s.value == pytest.approx(10.0)
    assert flip.rate_per_s.high == pytest.approx(20.0)


def test_every_pair_is_compared() -> None:
    offers = [rented("a", 1.0, 10.0), rented("b", 2.0, 30.0), rented("c", 0.5, 2.0)]
    pairs = {frozenset((flip.from_, flip.to)) for flip in break_evens_of(offers, 0.1, 50.0)}
    assert len(pairs) == 3


offers_ = st.builds(
    lambda name, pricing, capacity, factor: offer(name, pricing, span(capacity, factor), power_of(pricing)),
    st.just("x"),
    pricings,
    capacities,
    factors,
)


@settings(max_examples=60, deadline=None)
@given(offers_, offers_, st.floats(0.01, 1.0), st.floats(2.0, 100.0))
def test_flips_agree_with_costs_computed_one_by_one(a: Offer, b: Offer, low: float, high: float) -> None:
    stairs = a.stairs(), b.stairs()
    stretches = winners(stairs, low, high, 0.01)
    assert stretches[0].low == pytest.approx(low)
    assert all(left.high == right.low for left, right in itertools.pairwise(stretches))
    assert all(left.winner != right.winner for left, right in itertools.pairwise(stretches))
    generator = np.random.default_rng(7)
    for rate in generator.uniform(stretches[0].low, stretches[-1].high, 40):
        here = next(s for s in stretches if s.low < rate <= s.high)
        if min(rate - here.low, here.high - rate) < 1e-6 * rate:
            continue
        first, second = (float(s.usd_per_hour(rate)) for s in stairs)
        if here.winner == 0:
            assert first < second
        elif here.winner == 1:
            assert second < first
        else:
            assert max(first, second) <= 1.0100001 * min(first, second)


@settings(max_examples=60, deadline=None)
@given(offers_, offers_, st.floats(0.01, 1.0), st.floats(2.0, 100.0))
def test_bands_hold_their_value_and_flips_alternate(a: Offer, b: Offer, low: float, high: float) -> None:
    flips = break_evens(a, replace(b, name="y"), low, high)
    for flip in flips:
        if flip.rate_per_s is not None:
            assert low <= flip.rate_per_s.low <= flip.rate_per_s.value <= flip.rate_per_s.high <= high
    if flips[0].rate_per_s is not None:
        assert all(one.to == other.from_ for one, other in itertools.pairwise(flips))
        rates = [flip.rate_per_s.value for flip in flips if flip.rate_per_s is not None]
        assert rates == sorted(rates)


@settings(max_examples=40, deadline=None)
@given(offers_, offers_, st.floats(0.01, 1.0), st.floats(2.0, 100.0))
def test_the_order_of_the_candidates_does_not_matter(a: Offer, b: Offer, low: float, high: float) -> None:
    b = replace(b, name="y")
    one, other = break_evens(a, b, low, high), break_evens(b, a, low, high)
    assert [(f.to, f.rate_per_s) for f in one if f.rate_per_s] == [(f.to, f.rate_per_s) for f in other if f.rate_per_s]


# --- solved tasks ----------------------------------------------------------------------------------------------------


def test_a_failed_task_costs_as_much_as_a_solved_one() -> None:
    quality = QualityScore(how="own", value=0.5, low=0.4, high=0.6)
    (point,) = cost_points(Rented(usd_per_hour=3.6), fleet(10.0), TRAFFIC, [1.0], quality=quality)
    assert point.usd_per_request.value == pytest.approx(1e-3)
    assert point.usd_per_solved is not None
    assert point.solved_per_usd is not None
    assert point.usd_per_solved.value == pytest.approx(2e-3)
    assert point.usd_per_solved.low == pytest.approx(1e-3 / 0.6)
    assert point.usd_per_solved.high == pytest.approx(1e-3 / 0.4)
    assert point.solved_per_usd.value == pytest.approx(500)


def test_a_guess_from_size_solves_no_tasks() -> None:
    guess = QualityScore(how="size", value=3e9, low=2e9, high=5e9)
    for quality in (None, guess, QualityScore(how="none"), QualityScore(how="own", value=0.0)):
        assert per_solved(quality, span(1e-3)).usd_per_solved is None


def test_intelligence_per_watt() -> None:
    found = per_solved(QualityScore(how="published", value=0.6), span(1e-3), span(300.0, 1.5))
    assert found.solved_share_per_w is not None
    assert found.solved_share_per_w.value == pytest.approx(0.002)
    assert found.solved_share_per_w.high == pytest.approx(0.003)


def test_a_bill_without_an_upper_end_is_said_to_have_none() -> None:
    """What stands there is for a hundredth of the capacity, which nobody predicted."""
    edge = FleetCapacity((1, 4), (Estimate(0.5, 0.0, 1.0), Estimate(6.0, 0.0, 8.0)), span(2.0))
    told = endless(edge)
    assert told is not None
    assert told.startswith(ENDLESS)
    # One alone may carry nothing, and four of them something all the same.
    assert endless(replace(edge, per_s_K=(edge.per_s_K[0], span(6.0)))) is None
    assert endless(in_proportion(Estimate(0.0, 0.0, 1.0))) is None


# --- the contract ----------------------------------------------------------------------------------------------------


def test_every_field_is_documented() -> None:
    page = (Path(__file__).parent.parent / "docs" / "json.md").read_text()
    sections = dict(re.findall(r"^## `(\w+)`.*?\n(.*?)(?=^## |\Z)", page, re.M | re.S))
    for found in (Cost, CostPoint, BreakEven, WhatIf, Own, Rented, Api):
        for field in msgspec.structs.fields(found):
            assert f"| `{field.encode_name}` |" in sections.get(found.__name__, ""), f"{found.__name__}.{field.name}"
