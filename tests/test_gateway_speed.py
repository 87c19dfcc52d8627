"""Speeds: tables against the step model and the simulator they come from, and the correction learned online."""

from __future__ import annotations

import pickle
from itertools import combinations
from math import exp, log
from random import Random

import numpy as np
import pytest
from gateway_route_fixtures import real_table
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.routing_goodput import SCENARIOS, good_share
from breakeven.answer.study.price import ApiSpeed
from breakeven.errors import UserError
from breakeven.forecast.model import StepModel, step_model
from breakeven.forecast.profiles import profile_named
from breakeven.forecast.simulator.run import policy_of, simulate
from breakeven.forecast.simulator.state import Requests
from breakeven.gateway.plan.model import BackendPlan, LocalPlan
from breakeven.gateway.route.build import cells, speed_of
from breakeven.gateway.route.speed import (
    BOUND,
    HALF_LIFE,
    HEAL_S,
    OBSERVED_BOUND,
    WIDTH_MOST,
    Observed,
    SpeedTable,
    bound_of,
    corrected,
    healed,
    peaked,
    widened,
)
from breakeven.model.formats.named import default_format
from breakeven.model.resolve import resolve_spec

MODELS = ("llama-3.1-8b", "qwen3-30b-a3b")
load = st.floats(0, 400)
tokens = st.floats(1, 60_000)


def model_of(name: str, machine: str):
    spec, profile = resolve_spec(name), profile_named(machine)
    return step_model(spec, profile, profile.origin.format or default_format(spec, profile.engine))


def expected_in_any_slots(model: StepModel, running: int, slots: int, context: int) -> float:
    """A step of `running` sequences that may be in any of the slots, with a pass for each run of adjacent ones."""
    found = []
    for taken in combinations(range(slots), running):
        rows = "".join("x" if slot in taken else " " for slot in range(slots)).split()
        found.append(sum(float(model.step_s(len(row), context)) for row in rows))
    return sum(found) / len(found)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("machine", ["h100-sxm", "apple-m2-pro"])
def test_a_token_of_sequences_alone_takes_a_decode_step(name: str, machine: str) -> None:
    table, model = real_table(name, machine), model_of(name, machine)
    for running in (1, 2, 3, 7, 50, 200):
        for context in (20, 300, 5000, 30_000):
            if running > table.places(context):
                continue
            table.output_tokens = 1e9  # nobody ends, so nobody's prompt comes between
            expected = float(model.step_s(running, context))
            if policy_of(model).adjacent:
                expected = expected_in_any_slots(model, running, policy_of(model).max_sequences, context)
            assert table.tpot_s(running, context) == pytest.approx(expected, rel=0.03), (running, context)
    table.output_tokens = 200.0


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("machine", ["h100-sxm", "apple-m2-pro"])
def test_a_prompt_alone_takes_its_prefill(name: str, machine: str) -> None:
    table, model = real_table(name, machine), model_of(name, machine)
    for prompt in (16, 100, 500, 1500, 6000):
        expected = float(model.prefill_s(prompt))
        assert table.ttft_s(prompt, 0, 0, 0, 0) == pytest.approx(expected, rel=0.15), prompt


@given(st.sampled_from(MODELS), tokens, load, tokens, tokens, load, st.floats(0, 20), st.floats(0, 2000))
@settings(max_examples=120, deadline=None)
def test_predictions_rise_with_every_kind_of_load(
    name: str, prompt: float, running: float, context: float, ahead: float, waiting: float, more: float, longer: float
) -> None:
    table = real_table(name)
    least = 1 - 1e-9
    ttft = table.ttft_s(prompt, running, context, ahead, waiting)
    assert ttft > 0
    assert table.ttft_s(prompt, running, context, ahead + longer, waiting) >= ttft * least
    assert table.ttft_s(prompt, running, context, ahead, waiting + more) >= ttft * least
    assert table.ttft_s(prompt + longer, running, context, ahead, waiting) >= ttft * least
    assert table.tpot_s(running + more, context) >= table.tpot_s(running, context) * 0.99
    assert table.added_s(prompt, 200, running, context) >= 0
    assert table.added_s(prompt, 400, running, context) >= table.added_s(prompt, 200, running, context)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("streams", [1, 8, 48])
def test_a_steady_load_is_predicted_as_it_is_simulated(name: str, streams: int) -> None:
    table = real_table(name)
    model = model_of(name, "h100-sxm")
    n, prompt, output = 8 * streams + 24, 600, 200
    # Answers of unequal length: equal ones would keep the streams of a closed loop in step.
    lengths_N = np.random.default_rng(1).integers(100, 301, n)
    asked = Requests(np.full(n, np.nan), np.full(n, prompt), lengths_N, streams=streams)
    run = simulate(asked, model, policy_of(model, prompt + output))
    steady = slice(2 * streams, n - streams)
    tpot = float(np.mean(run.tpot_s[steady]))
    context = prompt + output / 2
    assert table.tpot_s(streams, context) == pytest.approx(tpot, rel=0.15)


def test_a_full_engine_keeps_a_request_waiting_for_a_place() -> None:
    table = table_of_slots(4)
    free = table.ttft_s(500, 3, 700, 0, 0)
    full = table.ttft_s(500, 4, 700, 0, 0)
    # One of four places comes free every o tpot / 4 seconds.
    place_s = 200 * table.tpot_s(4, 700) / 4
    assert full - free == pytest.approx(place_s, rel=0.02)
    assert table.ttft_s(500, 7, 700, 0, 0) - full == pytest.approx(3 * place_s, rel=1e-6)
    assert table.ttft_s(500, 4, 700, 0, 3) == pytest.approx(table.ttft_s(500, 7, 700, 0, 0))
    assert table.tpot_s(9, 700) == table.tpot_s(4, 700)


def table_of_slots(slots: int) -> SpeedTable:
    made = speed_of(
        BackendPlan(name="b", url="http://localhost/v1", model="llama-3.2-1b", machine="apple-m2-pro", slots=slots)
    )
    assert isinstance(made, SpeedTable)
    return made


def test_joining_others_adds_less_than_being_alone_and_the_mixture_shares_less() -> None:
    dense, moe = (real_table(name) for name in MODELS)
    for table in (dense, moe):
        alone, beside = table.added_s(500, 200, 0, 700), table.added_s(500, 200, 8, 700)
        assert alone >= 200 * table.tpot_s(1, 700)
        assert beside < alone / 2
    # Eight sequences have touched all of a dense model's weights; an ninth one brings new experts.
    share = [table.added_s(1, 200, 8, 700) / table.added_s(1, 200, 0, 700) for table in (dense, moe)]
    assert share[1] > 2 * share[0]


def test_bilinear_cells_give_the_corners_back() -> None:
    x, y = np.asarray([0.0, 1.0, 3.0]), np.asarray([10.0, 20.0, 40.0])
    value = np.asarray([[1.0, 2.0, 5.0], [3.0, 7.0, 6.0], [4.0, 0.0, 9.0]])
    made = cells(x, y, value)
    for i in range(2):
        for j in range(2):
            a, b, c, d = made[i][j]
            for p in (0, 1):
                for q in (0, 1):
                    u, v = x[i + p] - x[i], y[j + q] - y[j]
                    assert a + u * (b + v * d) + v * c == pytest.approx(value[i + p, j + q])


def test_a_table_survives_pickling_and_backends_do_not_share_their_answers() -> None:
    first, second = table_of_slots(4), table_of_slots(4)
    first.output_tokens = 7.0
    assert second.output_tokens == 200.0
    again = pickle.loads(pickle.dumps(first))
    assert again.together(500, 200, 3, 700, 100, 1) == first.together(500, 200, 3, 700, 100, 1)


def test_where_speeds_come_from() -> None:
    plain = BackendPlan(name="a", url="http://localhost/v1")
    assert isinstance(speed_of(plain), Observed)
    local = BackendPlan(name="l", local=LocalPlan(model="llama-3.2-1b", slots=2), machine="apple-m2-pro")
    made = speed_of(local)
    assert isinstance(made, SpeedTable)
    assert made.places(100) == 2
    with pytest.raises(UserError, match=r"backend x: .*no-such-model"):
        speed_of(BackendPlan(name="x", url="http://localhost/v1", model="no-such-model", machine="h100-sxm"))
    with pytest.raises(UserError, match="backend x: "):
        speed_of(BackendPlan(name="x", url="http://localhost/v1", model="llama-3.2-1b", machine="no-such-chip"))


def test_an_api_answers_as_it_is_said_to_and_waits_only_for_places() -> None:
    api = Observed.of(ApiSpeed(ttft_s=0.4, tokens_per_s=50, source="its page"))
    assert api.ttft_s(10, 500, 0, 0, 0) == 0.4
    assert api.tpot_s(500, 0) == 0.02
    few = Observed(0.4, 0.02, places=4)
    assert few.ttft_s(10, 3, 0, 0, 0) == 0.4
    assert few.ttft_s(10, 4, 0, 0, 0) == pytest.approx(0.4 + 200 * 0.02 / 4)
    assert few.added_s(10, 100, 1, 0) == pytest.approx((0.4 + 2.0) / 2)


@given(st.lists(st.tuples(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6)), max_size=60))
def test_a_correction_stays_within_its_bounds(answers: list[tuple[float, float]]) -> None:
    factor, width, peak = 0.0, 0.5, 1.0
    for predicted, actual in answers:
        factor = corrected(factor, predicted, actual)
        width = widened(width, factor, predicted, actual)
        peak = peaked(peak, predicted, actual, 1.0)
        assert -BOUND <= factor <= BOUND
        assert 0 < width <= WIDTH_MOST
        assert peak > 0


def test_a_correction_finds_the_truth_forgets_and_heals() -> None:
    factor = 0.0
    for _ in range(HALF_LIFE):
        factor = corrected(factor, 1.0, 2.0)
    assert factor == pytest.approx(log(2) / 2)
    for _ in range(400):
        factor = corrected(factor, 1.0, 2.0)
    assert exp(factor) == pytest.approx(2.0, rel=1e-3)
    assert healed(factor, HEAL_S) == pytest.approx(factor / 2)
    assert healed(factor, 0.0) == factor
    for nonsense in ((0.0, 1.0), (1.0, 0.0), (1.0, -1.0)):
        assert corrected(factor, *nonsense) == factor
    assert bound_of(Observed()) == OBSERVED_BOUND
    assert bound_of(real_table(MODELS[0])) == BOUND


def test_the_width_comes_to_hold_nineteen_of_twenty() -> None:
    dice, width, inside = Random(4), 0.5, 0
    for i in range(12_000):
        actual = exp(dice.gauss(0.0, 0.4))
        if i >= 2000:
            inside += log(actual) <= width
        width = widened(width, 0.0, 1.0, actual)
    assert abs(inside / 10_000 - 0.95) < 0.01


def test_a_peak_is_believed_at_once_and_fades() -> None:
    assert peaked(1.0, 0.1, 2.0, 0.0) == pytest.approx(20.0)
    assert peaked(21.0, 0.1, 0.1, 5.0) == pytest.approx(11.0)


def test_routing_by_the_step_model_keeps_more_promises_than_counting_requests() -> None:
    gpu = SCENARIOS[0]
    found = {rule: good_share(gpu, rule, 20, 400, 1) for rule in ("round robin", "least busy", "breakeven")}
    # Simulated, so the same on every machine: 1.15 is what the policy is there for.
    assert found["breakeven"] > 1.15 * max(found["round robin"], found["least busy"]), found
