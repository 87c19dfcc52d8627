"""Shares and promises: kept by so many machines, only just, or never."""

from __future__ import annotations

import dataclasses

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakeven.answer.promise import FEW, Promise, edge_text, judged, many_text, miss_text, nobody_text, taken
from breakeven.answer.worlds import Contender, Doubt, factors
from breakeven.forecast.fleet import FleetCapacity
from breakeven.forecast.shares import Miss
from breakeven.price.pricing import PricedTraffic
from breakeven.results.cost import Rented
from breakeven.results.decision import ShareKept
from breakeven.stats.estimate import Estimate, bracketed

WORST = "long prompts take 9 s to the first token where 5 s is asked for"


def kept(*shares: tuple[float, float, float], alone: tuple[float, float, float]) -> list[ShareKept]:
    found = [ShareKept(machines=n, share=Estimate(*share)) for n, share in zip(FEW, shares, strict=True)]
    return [*found, ShareKept(machines=None, share=Estimate(*alone), worst=WORST)]


def test_alone_below_the_promise_is_never_whatever_is_bought() -> None:
    low = kept((0.8, 0.7, 0.85), (0.86, 0.8, 0.89), (0.87, 0.8, 0.89), alone=(0.88, 0.85, 0.895))
    found = judged(low, None, 0.9)
    assert found.machines is None
    assert found.never == f"cannot keep it with any number of machines: 88 % even alone, {WORST}"


def test_who_misses_alone_as_predicted_is_not_said_to_fail_for_bursts() -> None:
    slow = ShareKept(machines=None, share=Estimate(0.0, 0.0, 1.0), worst=WORST)
    assert nobody_text(slow, 0.9) == (
        f"as predicted cannot keep it with any number of machines: 0 % (0 to 100) even alone, {WORST}; "
        "a measurement may say otherwise"
    )
    assert "bursts" in nobody_text(ShareKept(machines=None, share=Estimate(0.95, 0.8, 1.0)), 0.9)


def test_one_machine_within_its_error_of_the_promise_is_borderline() -> None:
    near = kept((0.899, 0.85, 0.94), (0.95, 0.9, 0.97), (0.96, 0.9, 0.97), alone=(0.97, 0.9, 0.98))
    found = judged(near, 2, 0.9)
    assert found.machines == 1
    assert found.edge is not None
    assert edge_text(found.edge, 0.9) == "borderline, 89.9 % (85 to 94) of 90 % asked"
    assert not found.only_just


def test_two_machines_are_borderline_only_where_the_sure_fleet_is_far_larger() -> None:
    near = kept((0.5, 0.4, 0.6), (0.85, 0.82, 0.93), (0.895, 0.85, 0.93), alone=(0.95, 0.93, 0.96))
    assert judged(near, 4, 0.9) == Promise(tuple(near), 4)
    for fewest in (5, None):
        found = judged(near, fewest, 0.9)
        assert found.machines == 2
        assert found.edge is not None
        assert "with 2 machines" in edge_text(found.edge, 0.9)
        assert found.only_just is (fewest is None)


def test_a_wide_interval_makes_nobody_borderline_who_is_far_from_the_promise() -> None:
    far = kept((0.55, 0.0, 1.0), (0.94, 0.5, 1.0), (0.99, 0.6, 1.0), alone=(1.0, 0.99, 1.0))
    assert judged(far, 2, 0.9) == Promise(tuple(far), 2)
    # Of a promise for half of them, twice the misses that are allowed are all there are.
    half = kept((0.195, 0.02, 0.65), (0.54, 0.24, 0.88), (0.69, 0.39, 1.0), alone=(0.98, 0.94, 1.0))
    assert judged(half, 2, 0.5) == Promise(tuple(half), 2)
    near = kept((0.45, 0.3, 0.65), (0.54, 0.24, 0.88), (0.69, 0.39, 1.0), alone=(0.98, 0.94, 1.0))
    assert judged(near, 2, 0.5).edge == near[0]


def test_who_is_overloaded_keeps_nothing_however_well_a_short_run_ends() -> None:
    short = kept((0.97, 0.9, 1.0), (0.89, 0.8, 0.95), (0.95, 0.93, 0.97), alone=(0.97, 0.95, 0.98))
    few = [msgspec.structs.replace(share, overloaded=share.machines in (1, 2)) for share in short]
    found = judged(few, 3, 0.9)
    assert (found.machines, found.edge) == (3, None)
    crowd = FleetCapacity((1,), (bracketed(0.1, 0.1, 0.1),), bracketed(0.2, 0.2, 0.2))
    assert "bursts, and 1 machine is overloaded" in many_text(dataclasses.replace(found, machines=30), crowd, 1.0)


def test_what_was_simulated_goes_before_the_curve() -> None:
    few = kept((0.2, 0.1, 0.3), (0.5, 0.4, 0.6), (0.7, 0.6, 0.8), alone=(0.97, 0.93, 0.98))
    assert judged(few, 2, 0.9).machines == 4


def test_a_promise_that_is_kept_is_priced_by_the_simulation() -> None:
    sure = kept((0.95, 0.93, 0.97), (0.96, 0.93, 0.97), (0.97, 0.93, 0.98), alone=(0.97, 0.93, 0.98))
    assert judged(sure, 1, 0.9) == Promise(tuple(sure), 1)
    large = kept((0.1, 0.0, 0.2), (0.2, 0.1, 0.3), (0.3, 0.2, 0.4), alone=(0.97, 0.93, 0.98))
    assert judged(large, 40, 0.9) == Promise(tuple(large), 40)


def test_what_misses_is_said_in_words() -> None:
    assert miss_text(Miss("ttft", 5.0, 9.0, "long prompts", 4000, 100)) == WORST
    assert miss_text(Miss("tpot", 0.05, 0.061, "", 100, 100)) == "requests take 61 ms a token where 50 ms is asked for"


spans = st.tuples(st.floats(0.01, 50.0), st.floats(0.0, 0.9), st.floats(1.0, 3.0))


@given(st.lists(spans, min_size=1, max_size=4), st.integers(1, 60), st.floats(0.01, 200.0))
def test_the_curve_says_what_the_simulation_said(
    values: list[tuple[float, float, float]], machines: int, rate: float
) -> None:
    per_s = tuple(bracketed(v, v * low, v * high) for v, low, high in values)
    fleet = FleetCapacity(tuple(2**k for k in range(len(per_s))), per_s)
    found = taken(fleet, machines, rate)
    assert found.replicas(rate) == machines
    # Ends are those it had: slower than predicted, it needs as many as before.
    assert all(each.low is not None and each.low <= each.value for each in found.per_s_K)


def test_a_promise_only_just_kept_fails_in_slower_worlds_and_is_no_certain_winner() -> None:
    one = FleetCapacity((1,), (Estimate(10.0, 8.0, 12.0),))
    doubt = Doubt("a", "a", 0.3, 0.1)
    traffic = PricedTraffic(prompt_tokens=10, output_tokens=10)
    contender = Contender("a", "moe", Rented(usd_per_hour=1.0), one, traffic, doubt, [], only_just=True)
    factor_D = factors([doubt], 0)[:, 0]
    fleet = contender.drawn(factor_D)
    assert fleet is not None
    needed_D = fleet.needed(np.array([5.0]))[:, 0]
    assert needed_D[0] == 1
    assert np.isinf(needed_D[factor_D > 0]).all()
    assert np.isfinite(needed_D[factor_D <= 0]).all()
    assert float(np.isinf(needed_D).mean()) == pytest.approx(0.5, abs=0.1)
