"""What a simulated replica carries under a service level, against what can be worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from breakeven.answer.cost import CostOptions, cost
from breakeven.cli.main import run_verb
from breakeven.errors import UserError
from breakeven.forecast.constants import Constants, Error, Profile, ProfileOrigin
from breakeven.forecast.model import StepModel, step_model
from breakeven.forecast.serving import (
    TrialReplica,
    _filling,
    _looped_per_s,
    capacity_of,
    capacity_per_s,
    highest_that_meets,
    latency_points,
    mean_batch,
    prefill_share,
    replica_of,
    saturation_per_s,
    traced_text,
    unit_requests,
)
from breakeven.forecast.simulator.policy import Policy
from breakeven.hardware.chips import Price
from breakeven.model.catalogue import lookup
from breakeven.price.sensitivity import speculative_speedup, tokens_per_step
from breakeven.price.workload import hourly, priced_traffic, replica_price
from breakeven.results.cost import COST_SCHEMA, Api, Cost, Own, Rented
from breakeven.traffic.traces.rows import TraceRows
from breakeven.traffic.workload import Arrivals, Length, Slo, Workload

CONSTANTS = Constants(
    weight_bytes_per_s=100e9, kv_bytes_per_s=100e9, decode_flops_per_s=20e12, prefill_flops_per_s=20e12, step_s=1e-3
)
ERRORS = [
    Error(phase=phase, kind=kind, log_half_width=0.2, between_models=0.1, median=0.1, n=5)
    for phase in ("decode", "prefill")
    for kind in ("dense", "moe")
]
SERIAL = Policy(name="llama.cpp", max_sequences=1, max_step_tokens=2048, block_tokens=1)
BATCHED = replace(SERIAL, max_sequences=16, max_step_tokens=4096)
WORKLOAD = Workload(
    arrivals=Arrivals(process="poisson", rate_per_s=1.0), prompt=Length(mean=200), output=Length(mean=50)
)
LEVEL = Slo(ttft_s=2.0, tpot_s=0.05)


def profile(memory_bytes: int | None = None) -> Profile:
    return Profile(
        name="here",
        engine="llama.cpp",
        constants=CONSTANTS,
        errors=ERRORS,
        ranges=[],
        origin=ProfileOrigin(how="probes", engine="llama.cpp", engine_version=None, date="2026-01-01", version="0"),
        memory_bytes=memory_bytes,
        idle_w=20.0,
        busy_w=100.0,
    )


def model(name: str = "llama-3.2-1b") -> StepModel:
    return step_model(lookup(name), profile(), "Q8_0")


def placed(policy: Policy, name: str = "llama-3.2-1b") -> TrialReplica:
    found = replica_of(model(name), policy, WORKLOAD)
    assert found is not None
    return found


# --- capacity --------------------------------------------------------------------------------------------------------


def test_one_at_a_time_saturates_at_the_inverse_of_a_request() -> None:
    replica = placed(SERIAL)
    one = replica.model
    alone_s = float(one.step_s(0, 0, 200, 100)) + sum(float(one.step_s(1, 200 + i)) for i in range(1, 50))
    assert saturation_per_s(replica) == pytest.approx(1 / alone_s, rel=0.02)
    assert mean_batch(replica, 1 / alone_s) == pytest.approx(1.0)


def test_batching_carries_more_and_a_strict_level_less() -> None:
    serial, batched = saturation_per_s(placed(SERIAL)), saturation_per_s(placed(BATCHED))
    assert batched > 2 * serial
    loose = capacity_per_s(placed(BATCHED), Slo(ttft_s=10.0), 0.9)
    strict = capacity_per_s(placed(BATCHED), LEVEL, 0.9)
    stricter = capacity_per_s(placed(BATCHED), Slo(ttft_s=0.1, tpot_s=0.05), 0.9)
    surer = capacity_per_s(placed(BATCHED), LEVEL, 0.99)
    assert 0 < stricter < 0.95 * strict
    assert strict <= 1.03 * loose
    assert loose <= batched
    assert surer <= 1.03 * strict


def test_the_level_is_kept_at_the_capacity_and_not_well_above() -> None:
    replica = placed(BATCHED)
    level = Slo(ttft_s=0.3, tpot_s=0.018)
    capacity = capacity_per_s(replica, level, 0.9)
    assert replica.good_share(capacity / 1.05, level) >= 0.9
    assert replica.good_share(capacity * 1.05, level) < 0.9


@pytest.mark.parametrize("slo", [Slo(ttft_s=0.3, tpot_s=0.018), Slo(tpot_s=0.02), Slo(e2e_s=1.5), Slo(itl_s=0.05)])
def test_a_trial_that_ends_early_has_the_verdict_of_the_whole(slo: Slo) -> None:
    for replicas in (1, 3):
        fleet = replace(placed(BATCHED), replicas=replicas)
        top = replicas * saturation_per_s(fleet)
        for share in (0.2, 0.6, 0.8, 0.95, 1.3):
            whole = fleet.good_share(share * top, slo)
            early = fleet.good_share(share * top, slo, 0.9)
            assert (early >= 0.9) == (whole >= 0.9)
            assert early == whole or max(early, whole) < 0.9


def test_twice_as_slow_carries_half_as_much() -> None:
    fast, slow = placed(BATCHED), replace(placed(BATCHED), model=model().scaled(2.0))
    assert saturation_per_s(slow) == pytest.approx(saturation_per_s(fast) / 2, rel=1e-6)
    half = Slo(ttft_s=0.3, tpot_s=0.018), Slo(ttft_s=0.6, tpot_s=0.036)
    assert capacity_per_s(slow, half[1], 0.9) == pytest.approx(capacity_per_s(fast, half[0], 0.9) / 2, rel=0.03)


def test_the_interval_is_that_of_the_step_model() -> None:
    found = capacity_of(model(), BATCHED, WORKLOAD, Slo(), 0.9)
    assert found.low == pytest.approx(found.value * math.exp(-0.2), rel=1e-6)
    assert found.high == pytest.approx(found.value * math.exp(0.2), rel=1e-6)
    level = capacity_of(model(), BATCHED, WORKLOAD, Slo(ttft_s=0.3, tpot_s=0.018), 0.9)
    assert level.low < level.value < level.high
    # A hard level loses more than the steps do: they count against delays that do not grow with them.
    assert level.value / level.low > 1.1


def test_what_prompts_are_off_by_widens_the_interval_as_they_weigh() -> None:
    def width(prefill: float, prompt: int) -> float:
        known = model()
        errors = [
            msgspec.structs.replace(e, log_half_width=prefill if e.phase == "prefill" else e.log_half_width)
            for e in known.profile.errors
        ]
        wider = replace(known, profile=msgspec.structs.replace(known.profile, errors=errors))
        workload = msgspec.structs.replace(WORKLOAD, prompt=Length(mean=prompt))
        found = capacity_of(wider, BATCHED, workload, Slo(), 0.9)
        assert found.low is not None
        return math.log(found.value / found.low)

    assert width(0.2, 500) == pytest.approx(0.2, rel=1e-6)
    short, long = width(0.8, 50), width(0.8, 1500)
    assert 0.2 <= short < long < 0.8
    assert long > 0.3


def test_who_misses_the_level_alone_carries_nothing() -> None:
    nothing = capacity_of(model(), BATCHED, WORKLOAD, Slo(tpot_s=1e-4), 0.9)
    assert (nothing.value, nothing.low, nothing.high) == (0.0, 0.0, 0.0)
    full = step_model(lookup("llama-3.2-1b"), profile(memory_bytes=10**9), "Q8_0")
    policy = replace(BATCHED, kv_tokens=100)
    assert capacity_of(full, policy, WORKLOAD, Slo(), 0.9).value == 0.0
    assert latency_points(full, policy, WORKLOAD, Slo(), [1.0]) == []


def test_the_same_question_has_the_same_answer() -> None:
    first, second = (capacity_of(model(), BATCHED, WORKLOAD, LEVEL, 0.9) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("limit", [1e-4, 0.002, 0.013, 0.4, 0.9999, 3.0])
@pytest.mark.parametrize("guess", [None, 0.4, 0.011])
def test_the_search_finds_where_it_flips(limit: float, guess: float | None) -> None:
    asked: list[float] = []

    def meets(rate: float) -> bool:
        asked.append(rate)
        return rate <= limit

    found = highest_that_meets(meets, 1.0, 0.03, guess)
    if limit < 1e-3:
        assert found == 0.0
    else:
        assert found == pytest.approx(min(limit, 1.0), rel=0.03)
    assert len(asked) <= 25


# --- requests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arrivals",
    [
        Arrivals(process="poisson", rate_per_s=7.0),
        Arrivals(process="gamma", rate_per_s=0.2, cv=2.5),
        Arrivals(process="constant", rate_per_s=3.0),
        Arrivals(process="closed", concurrency=4),
    ],
)
def test_requests_come_at_one_a_second_whatever_was_asked(arrivals: Arrivals) -> None:
    requests = unit_requests(msgspec.structs.replace(WORKLOAD, arrivals=arrivals), None, 400)
    gaps_s = np.diff(requests.arrival_s_N)
    assert len(requests) == 400
    assert requests.arrival_s_N[0] == 0.0
    assert float(gaps_s.mean()) == pytest.approx(1.0, rel=0.01)


def test_turns_of_a_conversation_count_one_by_one() -> None:
    requests = unit_requests(msgspec.structs.replace(WORKLOAD, turns=4, turn_think_s=1.0), None, 400)
    heads_s = requests.arrival_s_N[requests.heads]
    assert len(heads_s) == 100
    assert float(np.diff(heads_s).mean()) == pytest.approx(4.0, rel=0.02)
    # The history grows: the last of four prompts carries three messages and three answers before its own.
    assert requests.prompt_tokens_N[3] == 4 * 200 + 3 * 50


def test_a_conversation_is_read_once_where_prefixes_are_kept() -> None:
    talk = msgspec.structs.replace(WORKLOAD, turns=6, turn_think_s=0.5, prompt=Length(mean=400))
    kept, forgotten = (
        replica_of(model(), replace(BATCHED, prefix_caching=keeps, kv_tokens=200_000), talk) for keeps in (True, False)
    )
    assert kept is not None
    assert forgotten is not None
    assert saturation_per_s(kept) > 1.3 * saturation_per_s(forgotten)
    level = Slo(ttft_s=1.0)
    assert capacity_per_s(kept, level, 0.9) > 1.2 * capacity_per_s(forgotten, level, 0.9)


# --- latency ---------------------------------------------------------------------------------------------------------


def test_conversations_that_push_each_other_out_are_no_most_that_is_carried() -> None:
    """Twenty conversations have no room for what all of them keep: who lets fewer in gets through more."""
    asked = msgspec.structs.replace(WORKLOAD, turns=8, turn_think_s=2.0, sharing=True)
    policy = replace(BATCHED, max_sequences=24, prefix_caching=True, kv_tokens=24_000)
    found = replica_of(model(), policy, asked, requests=1200)
    assert found is not None
    top = saturation_per_s(found)
    full, fewer = (_looped_per_s(found, streams) for streams in (_filling(found), 11))
    assert fewer > 1.1 * full
    assert top == pytest.approx(fewer, rel=0.05)
    # Where nothing is kept, more at once are never fewer answers.
    forgets = replace(found, policy=replace(found.policy, prefix_caching=False))
    assert saturation_per_s(forgets) == _looped_per_s(forgets, _filling(forgets)) < full


def test_delays_grow_with_the_load_and_hold_their_intervals() -> None:
    capacity = saturation_per_s(placed(BATCHED))
    points = latency_points(model(), BATCHED, WORKLOAD, LEVEL, [0.2 * capacity, 0.6 * capacity, 0.9 * capacity])
    for metric in ("ttft_p99_s", "tpot_p50_s", "e2e_p50_s", "e2e_p99_s"):
        spans = [getattr(point, metric) for point in points]
        assert spans[0].value < spans[1].value < spans[2].value
        assert all(span.low <= span.value <= span.high for span in spans)
    assert points[0].utilisation < points[2].utilisation <= 1.0
    assert points[0].good_share.value >= points[2].good_share.value
    assert points[0].tokens_per_s == pytest.approx(0.2 * capacity * 50)


def test_prompts_take_their_share_of_the_time() -> None:
    replica = placed(SERIAL)
    one = replica.model
    prompt_s = float(one.step_s(0, 0, 200, 100))
    answer_s = sum(float(one.step_s(1, 200 + i)) for i in range(1, 50))
    assert prefill_share(replica, 0.1) == pytest.approx(prompt_s / (prompt_s + answer_s), rel=0.02)


# --- speculation -----------------------------------------------------------------------------------------------------


def test_tokens_of_a_verifying_step() -> None:
    assert tokens_per_step(0, 0.7) == 1.0
    assert tokens_per_step(4, 1.0) == 5.0
    assert tokens_per_step(4, 0.0) == 1.0
    assert tokens_per_step(2, 0.5) == pytest.approx(1.75)
    with pytest.raises(UserError):
        tokens_per_step(2, 1.5)


def test_speculation_helps_a_dense_model_more_than_one_with_experts() -> None:
    dense, moe = (speculative_speedup(model(name), 1, 512, 4, 0.7, 0.0) for name in ("llama-3.2-1b", "olmoe-1b-7b"))
    assert dense > 1.5 * moe
    # Nothing drafted changes nothing.
    assert speculative_speedup(model(), 1, 512, 0, 0.7, 0.0) == pytest.approx(1.0)


def test_once_every_expert_is_read_anyway_speculation_costs_experts_nothing() -> None:
    memory_bound = replace(
        model("olmoe-1b-7b"),
        profile=msgspec.structs.replace(
            profile(), constants=msgspec.structs.replace(CONSTANTS, decode_flops_per_s=1e18)
        ),
    )
    alone, many = (speculative_speedup(memory_bound, batch, 64, 4, 0.7, 0.0) for batch in (1, 64))
    assert many > 1.5 * alone


# --- prices ----------------------------------------------------------------------------------------------------------


def price(usd: float, date: str, kind: str = "hour") -> Price:
    return msgspec.convert({"kind": kind, "usd": usd, "what": "rental", "date": date, "source": "a list"}, Price)


def test_the_catalogue_price_is_the_middle_of_the_newest() -> None:
    prices = [price(9.0, "2025-01"), price(3.0, "2026-04"), price(1.0, "2026-04"), price(2.0, "2026-04")]
    found = hourly([*prices, price(30_000, "2026-05", "purchase")])
    assert found is not None
    assert found.usd == 2.0
    assert hourly([]) is None


def test_a_machine_without_a_price_says_how_to_give_one() -> None:
    with pytest.raises(UserError, match="--usd-per-hour"):
        replica_price(profile(), None, 1)
    assert replica_price(profile(), Rented(usd_per_hour=2.0), 4)[0] == Rented(usd_per_hour=2.0)
    with pytest.raises(UserError, match="usd -1"):
        replica_price(profile(), Own(usd=-1, life_years=1, usd_per_kwh=0), 1)


# --- the verb --------------------------------------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path: Path) -> str:
    path = tmp_path / "here.json"
    path.write_bytes(msgspec.json.encode(profile()))
    return str(path)


def options(machine: str, **changes: object) -> CostOptions:
    said = CostOptions(
        workload=WORKLOAD, machine=machine, format_name="Q8_0", pricing=Rented(usd_per_hour=1.0), rates=(0.5, 5.0, 50.0)
    )
    return replace(said, **changes)


def test_costs_of_two_models_and_an_api(machine: str) -> None:
    api = Api(usd_per_mtok_input=1.0, usd_per_mtok_output=4.0)
    found = cost(["llama-3.2-1b", "olmoe-1b-7b"], options(machine, apis={"hosted": api}, scores={"hosted": 0.5}))
    assert found.schema == COST_SCHEMA
    assert list(found.candidates) == ["llama-3.2-1b", "olmoe-1b-7b", "hosted"]
    assert [point.rate_per_s for point in found.candidates["hosted"]] == [0.5, 5.0, 50.0]
    assert found.capacity_per_s["hosted"] is None
    assert found.idle_usd_per_hour == {"llama-3.2-1b": 1.0, "olmoe-1b-7b": 1.0, "hosted": 0.0}
    for name in ("llama-3.2-1b", "olmoe-1b-7b"):
        capacity = found.capacity_per_s[name]
        assert capacity is not None
        for point in found.candidates[name]:
            assert point.replicas is not None
            assert point.replicas.value == math.ceil(point.rate_per_s / capacity.value)
            assert point.usd_per_hour.value == pytest.approx(point.replicas.value)
            assert point.power_w is not None
    assert found.candidates["hosted"][0].usd_per_solved is not None
    assert found.candidates["llama-3.2-1b"][0].usd_per_solved is None
    pairs = {frozenset((flip.from_, flip.to)) for flip in found.break_even}
    assert len(pairs) == 3
    # The API is cheaper only while its tokens come to less than the rent.
    first = next(flip for flip in found.break_even if flip.from_ == "hosted")
    assert first.rate_per_s is not None
    assert first.rate_per_s.value == pytest.approx(1 / 3600 / ((200 * 1.0 + 50 * 4.0) / 1e6), rel=0.01)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Cost) == found


def test_what_would_change_it(machine: str) -> None:
    found = cost(["llama-3.2-1b", "olmoe-1b-7b"], options(machine, changes=True))
    by_change = {(line.candidate, line.change): line for line in found.what_if}
    assert {change for _, change in by_change} == {"precision", "devices", "speculation", "price"}
    narrower = by_change["llama-3.2-1b", "precision"]
    assert narrower.label == "Q4_K_M"
    assert narrower.capacity_ratio is not None
    assert narrower.capacity_ratio > 1.2
    twice = by_change["llama-3.2-1b", "devices"]
    assert twice.usd_per_request is not None
    assert twice.usd_per_request_before is not None
    assert by_change["olmoe-1b-7b", "price"].usd_per_request == pytest.approx(
        by_change["llama-3.2-1b", "price"].usd_per_request_before
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"scores": {"nobody": 0.5}}, "nobody"),
        ({"scores": {"llama-3.2-1b": 1.5}}, "share of tasks"),
        ({"answers": {"llama-3.2-1b": 0.2}}, "1 or more"),
        ({"apis": {"llama-3.2-1b": Api(usd_per_mtok_input=1, usd_per_mtok_output=1)}}, "same name"),
        ({"pricing": Rented(usd_per_hour=-2.0)}, "usd_per_hour -2"),
    ],
)
def test_wrong_questions_are_told_what_is_wrong(changes: dict[str, object], told: str, machine: str) -> None:
    with pytest.raises(UserError, match=told):
        cost(["llama-3.2-1b"], options(machine, **changes))


def test_nothing_to_price(machine: str) -> None:
    with pytest.raises(UserError, match="nothing to price"):
        cost([], options(machine))


def test_longer_answers_carry_less_and_cost_more(machine: str) -> None:
    short = cost(["llama-3.2-1b"], options(machine))
    long = cost(["llama-3.2-1b"], options(machine, answers={"llama-3.2-1b": 200.0}))
    capacities = short.capacity_per_s["llama-3.2-1b"], long.capacity_per_s["llama-3.2-1b"]
    assert capacities[0] is not None
    assert capacities[1] is not None
    assert capacities[1].value < 0.5 * capacities[0].value


def test_the_verb_prints_json_and_tables(machine: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["llama-3.2-1b", "olmoe-1b-7b", "--machine", machine, "--rate", "1,20", "--own", "1400,4,0.30,15,60"]
    words += ["--prompt", "200", "--output", "50", "--format", "Q8_0", "--api", "hosted=0.10,0.40"]
    assert run_verb("cost", [*words, "--json"]) == 0
    found = msgspec.json.decode(capsys.readouterr().out, type=Cost)
    assert found.pricing["olmoe-1b-7b"] == Own(usd=1400, life_years=4, usd_per_kwh=0.3, idle_w=15, busy_w=60)
    assert run_verb("cost", [*words, "--full"]) == 0
    shown = capsys.readouterr().out
    assert "At 20.0 requests/s" in shown
    assert "cheaper" in shown
    assert "J/token" in shown


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--own", "1400"], "--own '1400'"),
        (["--own", "1400,x,1"], "dollars per kWh"),
        (["--api", "1"], "--api '1'"),
        (["--api", "=1,2"], "name before ="),
        (["--share", "2"], "percentage"),
        (["--share", "0%"], "above 0%"),
        (["--score", "olmoe-1b-7b"], "--score"),
        (["--usd-per-hour", "1", "--own", "1,1,1"], "two prices"),
        (["--rate", "0"], "rate above 0"),
        (["--slo", "ttf=1s"], "no term"),
    ],
)
def test_words_that_mean_nothing(words: list[str], told: str, machine: str) -> None:
    with pytest.raises(UserError, match=told):
        run_verb("cost", ["llama-3.2-1b", "--machine", machine, *words])


def test_twice_the_devices_draw_twice_the_watts(machine: str) -> None:
    """A machine that costs nothing but a dollar of electricity an hour, whether it is busy or not."""
    lit = Own(usd=0.0, life_years=1.0, usd_per_kwh=1.0, idle_w=1000.0, busy_w=1000.0)
    found = cost(["llama-3.2-1b"], options(machine, changes=True, pricing=lit, rates=(0.001,)))
    (twice,) = (line for line in found.what_if if line.change == "devices")
    assert twice.usd_per_request_before == pytest.approx(1 / 3.6)
    assert twice.usd_per_request == pytest.approx(2 / 3.6)


def test_a_bill_without_electricity_says_so(tmp_path: Path, machine: str) -> None:
    own = Own(usd=1000.0, life_years=4.0, usd_per_kwh=0.3)
    dark = tmp_path / "dark.json"
    dark.write_bytes(msgspec.json.encode(msgspec.structs.replace(profile(), idle_w=None, busy_w=None)))
    told = {
        place: [note for note in cost(["llama-3.2-1b"], options(place, pricing=own)).notes if "NOT in the bill" in note]
        for place in (machine, str(dark))
    }
    assert told[machine] == []
    (note,) = told[str(dark)]
    assert note.startswith("llama-3.2-1b: its electricity is NOT in the bill")
    assert note.endswith("give its idle and busy watts beside its price")


def test_a_bill_is_for_all_of_a_long_trace_and_says_what_was_simulated() -> None:
    at = np.arange(5000, dtype=np.int64)
    prompt = np.where(at < 4000, 100, 600).astype(np.int32)
    trace = TraceRows("t", "generic", at * 10**9, prompt, np.full(5000, 20, np.int32))
    workload = Workload(arrivals=Arrivals(process="trace", trace="t"))
    assert priced_traffic(workload, trace).prompt_tokens == pytest.approx(200)
    # What is said of lengths goes before what the trace has, and a part of a trace is that part.
    said = msgspec.structs.replace(workload, prompt=Length(mean=50))
    assert priced_traffic(said, trace).prompt_tokens == pytest.approx(50)
    part = msgspec.structs.replace(workload, arrivals=Arrivals(process="trace", trace="t", end_s=1000.0))
    assert priced_traffic(part, trace).prompt_tokens == pytest.approx(100)
    assert traced_text(trace).startswith("its first 3,000 of 5,000 requests (up to 8,000 where")
    assert traced_text(trace, 300).startswith("its first 300 of 5,000 requests, brought")
    assert traced_text(trace, 5000) == traced_text(None) == ""
