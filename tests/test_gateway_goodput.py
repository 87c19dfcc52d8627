"""The goodput bench: its engines' copies tell what will be, runs repeat, and routing by speed beats blind rules."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.gateway_goodput import ratio_text
from bench.goodput.backends import server_of
from bench.goodput.cases import CASES, cuts
from bench.goodput.play import play
from breakeven.forecast.simulator.state import Jobs

TRACE = Path(__file__).parent.parent / "examples" / "traces" / "azure-conversations-5min.csv"


@pytest.mark.parametrize("name", ["gpu", "desk", "edge"])
def test_a_copy_of_a_backend_ends_as_the_backend_does_and_changes_nothing_in_it(name: str) -> None:
    case = CASES[name]
    asked = cuts(TRACE, 40, 1, (0,))[0].at(20.0)
    jobs, uncopied = Jobs(asked), Jobs(asked)
    server, alone = (server_of(case.moe, asked, each, 3) for each in (jobs, uncopied))
    told: tuple[list[float], list[float]] = ([], [])
    for i, now_s in enumerate(asked.arrival_s_N.tolist()):
        server.move(now_s)
        told = server.fork(list(range(i)), i, now_s)
        server.send(i, now_s)
        alone.move(now_s)
        alone.send(i, now_s)
    for each in (server, alone):
        each.move(float("inf"))
    assert (jobs.first_s, jobs.end_s) == (uncopied.first_s, uncopied.end_s)
    # Nobody came after the last one, so its copy said how everybody ends.
    assert told[0] == pytest.approx(jobs.first_s)
    assert told[1] == pytest.approx(jobs.end_s)


def test_a_cut_keeps_its_bursts_at_any_rate() -> None:
    cut = cuts(TRACE, 200, 10, (3,))[0]
    gaps = [np.diff(cut.at(rate).arrival_s_N) for rate in (1.0, 40.0)]
    assert np.std(gaps[0]) / np.mean(gaps[0]) == pytest.approx(np.std(gaps[1]) / np.mean(gaps[1]))
    assert len(gaps[1]) / gaps[1].sum() == pytest.approx(40.0, rel=0.02)


def test_a_run_repeats_and_knowing_speeds_keeps_more_promises() -> None:
    cut = cuts(TRACE, 300, 10, (3,))[0]
    case = CASES["gpu-strict"]
    found = {rule: play(case, rule, cut, 16.0, 3) for rule in ("round robin", "breakeven", "oracle, cheapest")}
    assert play(case, "breakeven", cut, 16.0, 3) == found["breakeven"]
    assert found["breakeven"].good > 1.15 * found["round robin"].good
    assert found["oracle, cheapest"].good > 1.15 * found["round robin"].good
    assert all(one.good <= one.requests - one.refused for one in found.values())


def test_an_interval_of_paired_ratios() -> None:
    assert ratio_text([20, 20], [10, 10]) == "2.00 [2.00, 2.00]"
    assert ratio_text([20], [10]) == "2.00"
