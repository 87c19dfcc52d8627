"""A candidate against itself is no difference, a real one is found, and a crossing lies where it was put."""

from __future__ import annotations

import math

import numpy as np
import pytest

from breakeven.measure import events
from breakeven.measure.load.differences import crossings, differences
from breakeven.results.load import Crossing, LoadDifference
from breakeven.stats.intervals import correlation, log_ratio_values, spread
from breakeven.traffic.workload import Arrivals, Slo, Workload
from tests.load_log_fixtures import CLOSED, noisy_run, request, run


def two(seed: int, **more: object) -> list[events.Event]:
    """`A` with the settings given, and `B` on the same schedule."""
    scale = more.pop("scale", 1.0)
    mine = noisy_run(2 * seed, block=f"A{seed}", model="A", scale=scale, **more)  # type: ignore[arg-type]
    return [*mine, *noisy_run(2 * seed + 1, block=f"B{seed}", model="B", **more)]  # type: ignore[arg-type]


def by_metric(found: list[LoadDifference]) -> dict[str, LoadDifference]:
    return {x.metric: x for x in found}


@pytest.mark.parametrize("follow", [0.0, 0.9])
def test_a_candidate_against_itself_hardly_ever_wins(follow: float) -> None:
    winners, misses = 0, 0
    for seed in range(200):
        found = by_metric(differences(two(seed, correlation=follow, tokens=2, n=300), None))["ttft_s"]
        winners += found.winner is not None
        assert found.ratio.low is not None
        assert found.ratio.high is not None
        misses += not found.ratio.low <= 1 <= found.ratio.high
    assert winners <= 4  # 2 %
    assert misses <= 18  # 10 expected at most


def test_ten_percent_is_found() -> None:
    won = [
        by_metric(differences(two(i, correlation=0.5, scale=0.9, tokens=2), None))["ttft_s"].winner for i in range(20)
    ]
    assert won.count("A") >= 19
    assert "B" not in won


def test_the_ratio_is_that_of_the_means_over_all_rounds() -> None:
    log: list[events.Event] = []
    delays = {"A": [0.1, 0.2, 0.3, 0.6] * 5, "B": [0.2, 0.1, 0.4, 0.4] * 5}
    for round in range(3):
        for model, values in delays.items():
            block = f"{model}{round}"
            rows = [request(i, due_s=float(i), ttft_s=v, block=block, model=model) for i, v in enumerate(values)]
            log += run(rows, to_s=20.0, block=block, model=model, round=round)
    found = by_metric(differences(log, Slo(ttft_s=0.25)))
    assert found["ttft_s"].ratio.value == pytest.approx(0.3 / 0.275)
    assert found["tpot_s"].ratio.value == pytest.approx(1)
    assert found["tpot_s"].winner is None
    assert found["goodput_per_s"].ratio.value == pytest.approx(1)
    assert set(found) == {"ttft_s", "service_ttft_s", "tpot_s", "e2e_s", "output_tokens_per_s", "goodput_per_s"}
    assert "goodput_per_s" not in by_metric(differences(log, None))


def test_a_failure_drops_its_pair_and_is_told() -> None:
    good = [request(i, due_s=0.1 * i, ttft_s=0.1 if i % 4 else 0.5, block="A", model="A") for i in range(200)]
    failing = [request(i, due_s=0.1 * i, error=None if i % 4 else "timeout", block="B", model="B") for i in range(200)]
    log = [*run(good, to_s=20, block="A", model="A"), *run(failing, to_s=20, block="B", model="B")]
    found = by_metric(differences(log, Slo(ttft_s=10.0)))
    assert found["ttft_s"].dropped_pairs in range(45, 51)  # a settled part may be all that counts
    assert found["ttft_s"].ratio.value == pytest.approx(1)
    assert found["goodput_per_s"].dropped_pairs == 0
    assert found["goodput_per_s"].ratio.value == pytest.approx(200 / 150, rel=0.05)
    assert found["goodput_per_s"].winner == "A"


def test_a_candidate_that_never_meets_the_slo_loses() -> None:
    log = two(1, tokens=2, scale=5.0)
    found = by_metric(differences(log, Slo(ttft_s=0.2)))["goodput_per_s"]
    assert found.winner == "B"
    assert 0 < found.ratio.value < 0.01
    assert "goodput_per_s" not in by_metric(differences(log, Slo(ttft_s=1e-9)))


def test_a_closed_loop_is_compared_by_tokens_in_the_same_time() -> None:
    fast = [request(i, due_s=0.32 * i, block="A", model="A") for i in range(150)]
    slow = [request(i, due_s=0.64 * i, block="B", model="B", ttft_s=0.2, tpot_s=0.04) for i in range(75)]
    log = [
        *run(fast, to_s=48, block="A", model="A", workload=CLOSED, load="4 streams"),
        *run(slow, to_s=48, block="B", model="B", workload=CLOSED, load="4 streams"),
    ]
    found = by_metric(differences(log, None))
    assert found["output_tokens_per_s"].ratio.value == pytest.approx(2, rel=0.03)
    assert found["output_tokens_per_s"].winner == "A"
    assert found["tpot_s"].ratio.value == pytest.approx(0.5)
    assert found["tpot_s"].ratio.n == 15  # 75 shared requests, 5 a block


def test_loads_that_only_one_has_seen_are_left_out() -> None:
    log = [*two(1), *noisy_run(5, block="x", model="A", load="99 req/s")]
    assert {x.load for x in differences(log, None)} == {"10 req/s"}


def test_swapping_gives_the_reciprocal() -> None:
    log = two(3, scale=0.9)
    half = len(log) // 2
    for one, other in zip(differences(log, None), differences([*log[half:], *log[:half]], None), strict=True):
        assert (one.a, one.b) == (other.b, other.a)
        assert one.ratio.value == pytest.approx(1 / other.ratio.value)
        assert one.winner == other.winner


def ladder(scales: dict[float, float], seed: int = 1, **more: object) -> list[events.Event]:
    """`A` and `B` under one rate after another; `scales`: delays of A over those of B at each."""
    log: list[events.Event] = []
    for k, (rate, scale) in enumerate(scales.items()):
        workload = Workload(arrivals=Arrivals(process="poisson", rate_per_s=rate))
        log += two(seed * 100 + k, rate=rate, workload=workload, load=f"{rate:g} req/s", scale=scale, tokens=4, **more)
    return log


def crossing(log: list[events.Event], metric: str = "tpot_s", slo: Slo | None = None) -> Crossing:
    return next(x for x in crossings(log, slo) if x.metric == metric)


def test_a_crossing_lies_where_it_was_put_and_its_band_holds_it() -> None:
    # log(0.8) and log(1.25) are opposite, so the curves cross in the middle of 2 and 8 on a logarithmic axis.
    inside = 0
    for seed in range(20):
        found = crossing(ladder({2.0: 0.8, 8.0: 1.25}, seed))
        assert found.rate_per_s == pytest.approx(4, rel=0.15)
        assert found.low is not None
        assert found.high is not None
        assert found.low < found.rate_per_s < found.high
        inside += found.low <= 4 <= found.high
    assert inside >= 17
    assert found.sentence.startswith("A has the lower TPOT below ")
    assert found.sentence.endswith(", B above")


def test_one_winner_everywhere() -> None:
    found = crossing(ladder({2.0: 0.8, 5.0: 0.7, 10.0: 0.8}))
    assert (found.rate_per_s, found.low, found.high) == (None, None, None)
    assert found.sentence == "A has the lower TPOT at every load measured (2 to 10 req/s)"


def test_no_winner_anywhere() -> None:
    found = crossing(ladder({2.0: 1.0, 10.0: 1.0}, seed=3))
    assert found.rate_per_s is None
    assert found.sentence == "no difference found in TPOT at any load measured (2 to 10 req/s)"


def test_a_side_the_band_runs_out_of_the_range_on_is_open() -> None:
    found = crossing(ladder({2.0: 0.7, 8.0: 1.004}, seed=2, noise=0.3))
    assert found.rate_per_s is None or found.high is None
    assert "no difference was found" in found.sentence


def test_goodput_crosses_the_other_way_round() -> None:
    found = crossing(ladder({2.0: 0.8, 8.0: 1.25}), "goodput_per_s", Slo(ttft_s=0.1))
    assert found.rate_per_s is not None
    assert found.sentence.startswith("A has the higher goodput below ")


def test_traffic_without_one_number_has_no_crossing() -> None:
    trace = Workload(arrivals=Arrivals(process="trace", trace="t.csv"))
    log = [*two(1, workload=trace, load="trace x1"), *two(2, workload=trace, load="trace x2")]
    assert crossings(log, None) == []
    assert crossings(two(1), None) == []


def test_jackknife_values_have_the_log_ratio_as_mean_and_its_error_as_spread() -> None:
    rng = np.random.default_rng(0)
    truth, hits = math.log(2), 0
    for _ in range(300):
        under = rng.gamma(20, 1, 20)
        over = 2 * under * rng.gamma(50, 1 / 50, 20)
        values = log_ratio_values(over, under)
        assert values is not None
        assert values.mean() == pytest.approx(math.log(over.sum() / under.sum()))
        hits += abs(values.mean() - truth) <= 2.093 * values.std(ddof=1) / math.sqrt(20)
    assert 0.91 <= hits / 300 <= 0.985


def test_what_has_no_log_has_no_values() -> None:
    assert log_ratio_values(np.zeros(3), np.ones(3)) is None
    assert log_ratio_values(np.array([1.0, 0, 0]), np.ones(3)) is None
    assert log_ratio_values(np.zeros(0), np.zeros(0)) is None
    single = log_ratio_values(np.array([2.0, 0.0]), np.array([1.0, 0.0]))
    assert single is not None
    assert single.tolist() == [math.log(2)]


def test_blocks_that_follow_each_other_are_spread() -> None:
    rng = np.random.default_rng(0)
    walk = np.zeros(20)
    for i in range(1, 20):
        walk[i] = 0.8 * walk[i - 1] + rng.normal()
    assert correlation([walk]) > 0.4
    assert abs(np.mean([correlation([rng.normal(size=20)]) for _ in range(300)])) < 0.06
    assert spread(walk, 0.6).std() == pytest.approx(2 * walk.std())
    assert spread(walk, -0.5).tolist() == pytest.approx(walk.tolist())
    assert correlation([np.ones(20)]) == correlation([rng.normal(size=3)]) == 0
