"""What simulated fleets carry and keep: more than their parts, and the same numbers for the same seeds."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from breakeven.forecast.constants import Constants, Error, Profile, ProfileOrigin
from breakeven.forecast.fleet import SIZES, FleetCapacity
from breakeven.forecast.model import StepModel, step_model
from breakeven.forecast.pooled import Stream, climb, fleet_capacity_of, stream_of
from breakeven.forecast.serving import capacity_of, has_enough_to_fill, saturation_per_s
from breakeven.forecast.shares import fewest_at, shares_at
from breakeven.forecast.simulator.policy import Policy
from breakeven.model.catalogue import lookup
from breakeven.traffic.workload import Arrivals, Length, Slo, Workload

POLICY = Policy(name="llama.cpp", max_sequences=4, max_step_tokens=2048, block_tokens=1)
LEVEL = Slo(ttft_s=1.0, tpot_s=0.05)
SHARE = 0.9
ERROR = 0.08
"""Of simulated capacities: the search's precision and the luck of about a thousand requests."""


def model() -> StepModel:
    constants = Constants(
        weight_bytes_per_s=100e9, kv_bytes_per_s=100e9, decode_flops_per_s=20e12, prefill_flops_per_s=20e12, step_s=1e-3
    )
    errors = [
        Error(phase=phase, kind=kind, log_half_width=0.1, between_models=0.05, median=0.05, n=5)
        for phase in ("decode", "prefill")
        for kind in ("dense", "moe")
    ]
    origin = ProfileOrigin(how="probes", engine="llama.cpp", engine_version=None, date="2026-01-01", version="0")
    profile = Profile(
        name="here", engine="llama.cpp", constants=constants, errors=errors, ranges=[], origin=origin, memory_bytes=None
    )
    return step_model(lookup("llama-3.2-1b"), profile, "Q8_0")


def workload(cv: float | None, **changes: object) -> Workload:
    arrivals = (
        Arrivals(process="constant", rate_per_s=1.0) if cv is None else Arrivals(process="gamma", rate_per_s=1.0, cv=cv)
    )
    asked = Workload(arrivals=arrivals, prompt=Length(mean=200), output=Length(mean=50))
    return msgspec.structs.replace(asked, **changes)


BURSTY = workload(3.0)


def capacity(asked: Workload = BURSTY, slo: Slo = LEVEL, sizes: tuple[int, ...] = SIZES) -> FleetCapacity:
    found = fleet_capacity_of(model(), POLICY, asked, slo, SHARE, sizes=sizes)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def bursty() -> FleetCapacity:
    return capacity()


def test_one_replica_carries_what_it_did(bursty: FleetCapacity) -> None:
    assert bursty.one == capacity_of(model(), POLICY, BURSTY, LEVEL, SHARE)
    assert bursty.sizes_K[0] == 1
    assert all(e.low <= e.value <= e.high for e in bursty.per_s_K)


def test_bursts_pool(bursty: FleetCapacity) -> None:
    """More replicas carry more, more a replica too, and no fleet less than its parts do."""
    each = [e.value / n for n, e in zip(bursty.sizes_K, bursty.per_s_K, strict=True)]
    assert each == sorted(each)
    assert each[-1] > 1.5 * each[0]
    assert bursty.saturation_per_s is not None
    assert each[-1] <= bursty.saturation_per_s.value
    carry = [bursty.per_s(n) for n in range(1, 33)]
    for n in range(1, 16):
        for m in range(1, 16):
            assert carry[n + m - 1] >= (carry[n - 1] + carry[m - 1]) * (1 - 1e-9)


@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_the_curve_tells_what_a_simulation_of_that_size_does(n: int, bursty: FleetCapacity) -> None:
    stream = stream_of(model(), POLICY, BURSTY, None)
    assert stream is not None
    fleet, rate = stream.before(n), bursty.per_s(n)
    assert fleet.good_share(rate * (1 - ERROR), LEVEL) >= SHARE - 0.01
    assert fleet.good_share(rate * (1 + 2 * ERROR), LEVEL) < SHARE + 0.01


def test_smooth_traffic_needs_so_many_times_as_much() -> None:
    found = capacity(workload(None))
    for n in (2, 8, 40):
        assert found.per_s(n) == pytest.approx(n * found.one.value, rel=ERROR)


def test_without_a_level_a_fleet_carries_what_it_can_do() -> None:
    found = capacity(slo=Slo())
    assert found.per_s(7) == pytest.approx(7 * found.one.value)


def test_what_is_missed_alone_no_fleet_keeps() -> None:
    found = capacity(slo=Slo(tpot_s=1e-4))
    assert found.one.value == 0.0
    assert found.replicas(1e-3) == np.inf


def test_who_never_keeps_it_alone_at_any_load_does_with_company() -> None:
    """Bursts that come at once at any mean rate: one that serves one at a time is late, several are not."""
    single = replace(POLICY, max_sequences=1)
    asked, slo = workload(8.0), Slo(ttft_s=0.3)
    found = fleet_capacity_of(model(), single, asked, slo, SHARE, sizes=(1, 2, 4, 8))
    assert found is not None
    assert found.one.value == 0.0
    assert found.per_s(max(found.sizes_K)) > 0
    rate = found.per_s(max(found.sizes_K)) / 2
    assert 1 < found.replicas(rate) < np.inf


def test_the_same_seeds_give_the_same_numbers() -> None:
    assert capacity(sizes=(1, 3)) == capacity(sizes=(1, 3))


def test_larger_fleets_get_the_requests_to_fill_them() -> None:
    few = stream_of(model(), replace(POLICY, max_sequences=64), BURSTY, None)
    assert few is not None
    assert len(few.before(2).requests) == len(few.one.requests) == 1200
    assert len(few.before(16).requests) == 4 * 64 * 16
    assert few.before(16).requests.prompt_tokens_N[:1200].tolist() == few.one.requests.prompt_tokens_N.tolist()
    assert few.fills(16)
    assert not few.fills(40)


def test_conversations_are_in_flight_while_their_users_think() -> None:
    talk = workload(3.0, turns=4, turn_think_s=5.0)
    stream = stream_of(model(), POLICY, talk, None)
    assert stream is not None
    assert stream.wanted(8) > 2 * Stream(stream.one, talk, None, 4 * 4).wanted(8)


@pytest.mark.parametrize("edge", [0.02, 0.11, 0.4, 0.405, 0.83, 0.999])
@pytest.mark.parametrize("guess", [0.1, 0.42, 0.95])
def test_the_climb_ends_where_shares_cross(edge: float, guess: float) -> None:
    asked: list[float] = []

    def over(x: float) -> float:
        asked.append(x)
        return (edge / x) ** 2 - 1 if x > edge else min(0.1, edge / x - 1)

    least = edge / 2
    found = climb(over, least, 1.0, guess, 0.05)
    assert found == pytest.approx(edge, rel=0.04)
    assert len(asked) <= 12
    # What is told to be carried already is never undercut.
    assert climb(lambda x: -0.1, 0.3, 1.0, guess, 0.05) == 0.3


# Shares


def test_shares_grow_with_the_fleet_and_end_at_those_served_alone(bursty: FleetCapacity) -> None:
    rate = 2 * bursty.one.value
    found = shares_at(model(), POLICY, BURSTY, LEVEL, SHARE, rate)
    assert found is not None
    sizes, shares = zip(*found.by_replicas, strict=True)
    assert sizes == (1, 2, 3)
    values = [share.value for share in shares]
    assert values == sorted(values)
    assert values[0] < SHARE < values[1] <= found.alone.share.value
    for (_, wide), (_, luck) in zip(found.by_replicas, found.luck, strict=True):
        assert wide.value == luck.value
        assert 0 <= wide.low <= luck.low <= luck.value <= luck.high <= wide.high <= 1
    assert found.alone.share.value == 1.0
    assert found.alone.miss is None


def test_the_luck_of_bursts_is_larger_than_that_of_single_requests(bursty: FleetCapacity) -> None:
    found = shares_at(model(), POLICY, BURSTY, LEVEL, SHARE, bursty.one.value, sizes=(1,))
    assert found is not None
    ((_, luck),) = found.luck
    n = 800
    assert luck.high - luck.low > 1.5 * 2 * 1.96 * np.sqrt(luck.value * (1 - luck.value) / n)


def test_who_misses_alone_and_by_how_much() -> None:
    asked = workload(1.0, prompt=Length(kind="lognormal", mean=400, sd=600, low=16, high=3000))
    found = shares_at(model(), POLICY, asked, Slo(ttft_s=0.3, tpot_s=0.05), SHARE, 0.1, sizes=(1,))
    assert found is not None
    assert 0.5 < found.alone.share.value < 1.0
    miss = found.alone.miss
    assert miss is not None
    assert (miss.term, miss.limit_s, miss.who) == ("ttft", 0.3, "long prompts")
    assert miss.value_s > 0.3
    assert miss.prompt_tokens > 600


@pytest.mark.parametrize("times", [0.5, 3.0, 11.0])
def test_the_fewest_keep_it_and_one_fewer_do_not(times: float, bursty: FleetCapacity) -> None:
    rate = times * bursty.one.value
    found = fewest_at(model(), POLICY, BURSTY, LEVEL, SHARE, None, rate, bursty)
    assert found.simulated
    assert found.share is not None
    assert found.share.value >= SHARE
    if found.replicas == 1:
        assert found.below is None
    else:
        assert found.below is not None
        assert found.below.value < SHARE
    wrong = FleetCapacity((1,), (bursty.one.scaled(0.25),))
    assert fewest_at(model(), POLICY, BURSTY, LEVEL, SHARE, None, rate, wrong).replicas == found.replicas


def test_a_run_that_ends_before_its_queue_is_long_makes_no_fleet_enough(bursty: FleetCapacity) -> None:
    top = bursty.saturation_per_s
    assert top is not None
    patient, rate = Slo(e2e_s=1e4), 2.5 * top.value
    found = shares_at(model(), POLICY, BURSTY, patient, SHARE, rate)
    assert found is not None
    assert [share.value for _, share in found.by_replicas] == [1.0] * 3
    assert [found.overloads(n) for n in (1, 2, 3)] == [True, True, False]
    curve = FleetCapacity((1,), (top,), top)
    assert fewest_at(model(), POLICY, BURSTY, patient, SHARE, None, rate, curve).replicas == 3


def test_too_few_conversations_to_fill_a_machine_overload_none() -> None:
    asked, many = workload(1.0, turns=10), replace(POLICY, max_sequences=64)
    stream = stream_of(model(), many, asked, None)
    assert stream is not None
    assert not has_enough_to_fill(stream.one)
    found = shares_at(model(), many, asked, Slo(e2e_s=1e4), SHARE, 2 * saturation_per_s(stream.one), sizes=(1,))
    assert found is not None
    assert not found.overloads(1)


def test_a_fleet_too_large_to_play_is_the_curves_word(bursty: FleetCapacity) -> None:
    found = fewest_at(model(), POLICY, BURSTY, LEVEL, SHARE, None, 2000 * bursty.one.value, bursty)
    assert found.replicas == bursty.replicas(2000 * bursty.one.value)
    assert (found.share, found.below, found.simulated) == (None, None, False)
    nobody = capacity(slo=Slo(tpot_s=1e-4))
    assert fewest_at(model(), POLICY, BURSTY, Slo(tpot_s=1e-4), SHARE, None, 1.0, nobody).replicas is None


def test_a_replica_that_always_has_another_request_is_the_ceiling(bursty: FleetCapacity) -> None:
    stream = stream_of(model(), POLICY, BURSTY, None)
    assert stream is not None
    assert bursty.saturation_per_s is not None
    assert bursty.saturation_per_s.value == saturation_per_s(stream.one)
