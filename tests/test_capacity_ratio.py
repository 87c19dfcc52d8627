"""The ratio of two capacities, against curves whose crossing of 90 % is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from breakeven.measure.events import Event
from breakeven.measure.load.compared import LOAD, METRIC, falls_below
from breakeven.measure.load.differences import differences
from breakeven.results.load import LoadDifference
from breakeven.traffic.workload import Arrivals, Slo, Workload
from tests.load_log_fixtures import request, run

SLO = Slo(ttft_s=0.2)
RATES = (5.0, 10.0, 20.0, 40.0)


def share_at(rate: float, capacity: float) -> float:
    """90 % at the capacity, straight on a logarithmic axis."""
    return float(np.clip(0.9 - 0.4 * math.log(rate / capacity), 0.0, 1.0))


def studied(capacities: dict[str, float], rates: tuple[float, ...] = RATES, seed: int = 0, n: int = 600) -> list[Event]:
    noise = np.random.default_rng(seed)
    log: list[Event] = []
    for rate in rates:
        for model, capacity in capacities.items():
            late = noise.random(n) > share_at(rate, capacity)
            name = f"{model}/{rate}"
            rows = [
                request(i, due_s=(i + 0.5) / rate, ttft_s=0.3 if late[i] else 0.1, block=name, model=model)
                for i in range(n)
            ]
            workload = Workload(arrivals=Arrivals(process="poisson", rate_per_s=rate))
            load = f"{rate:g} req/s"
            log += run(rows, model=model, block=name, load=load, workload=workload, to_s=n / rate)
    return log


def capacity(log: list[Event], slo: Slo | None = SLO) -> LoadDifference | None:
    return next((found for found in differences(log, slo) if found.metric == METRIC), None)


def test_the_ratio_and_its_interval_hold_the_truth() -> None:
    held = 0
    for seed in range(12):
        found = capacity(studied({"a": 24.0, "b": 12.0}, seed=seed))
        assert found is not None
        assert found.load == LOAD
        assert found.winner == "a"
        assert found.ratio.low is not None
        assert found.ratio.high is not None
        held += found.ratio.low <= 2.0 <= found.ratio.high
    assert held >= 10


def test_equals_have_no_winner() -> None:
    found = [capacity(studied({"a": 15.0, "b": 15.0}, seed=seed)) for seed in range(12)]
    assert all(one is not None and one.winner is None for one in found)


@pytest.mark.parametrize("capacities", [{"a": 90.0, "b": 12.0}, {"a": 15.0, "b": 3.0}])
def test_a_capacity_beyond_the_rates_measured_gives_no_ratio(capacities: dict[str, float]) -> None:
    assert capacity(studied(capacities)) is None


def test_neither_an_slo_missing_nor_one_rate_gives_a_ratio() -> None:
    assert capacity(studied({"a": 24.0, "b": 12.0}), None) is None
    assert capacity(studied({"a": 24.0, "b": 12.0}, rates=(20.0,))) is None


def test_where_a_curve_falls_below() -> None:
    x_L = np.log(np.array([1.0, 10.0, 100.0]))
    curves = np.array([[1.0, 0.95, 0.85], [1.0, 0.8, 1.0], [0.8, 1.0, 1.0], [1.0, 0.9, 0.9]])
    found = falls_below(x_L, curves)
    assert np.exp(found[0]) == pytest.approx(math.sqrt(1000))
    assert np.exp(found[1]) == pytest.approx(math.sqrt(10))
    assert found[2:].tolist() == [-math.inf, math.inf]
