"""Schedules: arrivals have the statistics asked for, and everything is drawn once and for all."""

from __future__ import annotations

import tracemalloc
from dataclasses import fields
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from breakeven.errors import UserError
from breakeven.traffic.draw import ARRIVALS, LENGTHS, draw
from breakeven.traffic.schedule import DEPENDS, Schedule, part
from breakeven.traffic.workload import Arrivals, Length, Workload

L128 = Length(mean=128)
POISSON = Arrivals(process="poisson", rate_per_s=100.0)
OPEN = {
    "constant": Arrivals(process="constant", rate_per_s=100.0),
    "poisson": POISSON,
    "gamma": Arrivals(process="gamma", rate_per_s=100.0, cv=2.5),
    "steps": Arrivals(process="steps", steps=((50.0, 20.0), (0.0, 5.0), (200.0, 20.0))),
    "ramp": Arrivals(process="ramp", rate_per_s=0.0, to_rate_per_s=200.0),
}


def workload(arrivals: Arrivals = POISSON, **more: Any) -> Workload:
    given: dict[str, Any] = {"prompt": L128, "output": L128, **more}
    if "duration_s" not in more and "requests" not in more:
        given["duration_s"] = 40.0
    return Workload(arrivals=arrivals, **given)


def dispersion(due_ns: NDArray[np.int64], window_s: float, duration_s: float) -> float:
    """Variance over mean of the counts per window: 1 for Poisson arrivals."""
    counts = np.histogram(due_ns / 1e9, bins=int(duration_s / window_s), range=(0, duration_s))[0]
    return float(counts.var(ddof=1) / counts.mean())


def same(a: Schedule, b: Schedule) -> bool:
    return all(np.array_equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(Schedule) if f.name != "workload")


@pytest.mark.parametrize("window_s", [0.01, 0.02])
def test_poisson_arrivals_have_dispersion_one(window_s: float) -> None:
    drawn = draw(workload(requests=100_000, seed=1))
    assert len(drawn) == 100_000
    duration_s = float(drawn.due_ns_N[-1]) / 1e9
    assert 0.95 < dispersion(drawn.due_ns_N, window_s, duration_s) < 1.05
    # So have the parts of four workers, each and together.
    parts = [drawn.due_ns_N[part(drawn, worker, 4)] for worker in range(4)]
    assert 0.95 < dispersion(np.sort(np.concatenate(parts)), window_s, duration_s) < 1.05


def test_poisson_arrivals_are_pinned_to_nothing() -> None:
    due_ns = draw(workload(requests=20_000, arrivals=Arrivals(process="poisson", rate_per_s=1.0))).due_ns_N
    assert (due_ns % 1_000_000 == 0).mean() < 0.001
    assert abs((due_ns % 1_000_000_000 / 1e9).mean() - 0.5) < 0.02
    firsts = [int(draw(workload(seed=seed)).due_ns_N[0]) for seed in range(200)]
    assert min(firsts) > 0
    assert np.mean(firsts) == pytest.approx(10_000_000, rel=0.3)


@pytest.mark.parametrize("cv", [0.25, 1.0, 2.5])
def test_gamma_gaps_have_the_variation_asked_for(cv: float) -> None:
    arrivals = Arrivals(process="gamma", rate_per_s=50.0, cv=cv)
    gaps = np.diff(draw(workload(arrivals, requests=100_000, seed=3)).due_ns_N, prepend=0) / 1e9
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.02 * max(1.0, cv))
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.03)


def test_constant_arrivals_are_exact() -> None:
    due_ns = draw(workload(Arrivals(process="constant", rate_per_s=3.0), duration_s=100.0)).due_ns_N
    assert len(due_ns) == 300
    assert due_ns.tolist() == [round(k * 1e9 / 3) for k in range(300)]


def test_steps_keep_their_rates_and_their_silence() -> None:
    steps = ((50.0, 200.0), (0.0, 50.0), (200.0, 200.0))
    drawn = draw(workload(Arrivals(process="steps", steps=steps), duration_s=None, requests=None, warm_up_s=100.0))
    counts = np.histogram(drawn.due_ns_N / 1e9, bins=[0, 100, 300, 350, 550])[0]
    assert counts[2] == 0
    # Four standard deviations of a Poisson count.
    for count, expected in zip(counts[[0, 1, 3]], (5_000, 10_000, 40_000), strict=True):
        assert abs(count - expected) < 4 * expected**0.5
    assert drawn.warm_N.sum() == counts[0]
    inside = drawn.due_ns_N[drawn.due_ns_N >= 350e9] - 350_000_000_000
    assert 0.9 < dispersion(inside, 0.02, 200.0) < 1.1


@pytest.mark.parametrize(("low", "high"), [(0.0, 200.0), (200.0, 0.0), (10.0, 190.0), (100.0, 100.0)])
def test_a_ramp_rises_evenly(low: float, high: float) -> None:
    arrivals = Arrivals(process="ramp", rate_per_s=low, to_rate_per_s=high)
    due_s = draw(workload(arrivals, duration_s=400.0, warm_up_s=10.0, seed=5)).due_ns_N / 1e9
    counts = np.histogram(due_s, bins=np.linspace(10, 410, 5))[0]
    rates = low + (high - low) * (np.arange(4) + 0.5) / 4
    assert (np.abs(counts - rates * 100) < 4 * np.sqrt(rates * 100)).all()
    warm = int((due_s < 10).sum())
    assert abs(warm - 10 * low) <= 4 * (10 * low) ** 0.5
    measured = draw(workload(arrivals, requests=500, warm_up_s=10.0, seed=5))
    assert int((~measured.warm_N).sum()) == pytest.approx(500, abs=90)


@given(
    st.sampled_from(sorted(OPEN)),
    st.integers(0, 2**32),
    st.floats(0.5, 5.0),
    st.floats(0.0, 3.0),
)
@settings(max_examples=60, deadline=None)
def test_every_open_process_keeps_its_promises(name: str, seed: int, duration_s: float, warm_up_s: float) -> None:
    asked = workload(OPEN[name], duration_s=duration_s + 1, warm_up_s=warm_up_s, seed=seed)
    drawn = draw(asked)
    assert same(drawn, draw(asked))
    due_ns = drawn.due_ns_N
    assert (np.diff(due_ns) >= 0).all()
    assert due_ns[0] >= 0
    assert due_ns[-1] < (warm_up_s + duration_s + 1) * 1e9 + 1
    assert np.array_equal(drawn.warm_N, due_ns < warm_up_s * 1e9)


@pytest.mark.parametrize("name", ["constant", "poisson", "gamma", "steps"])
def test_a_longer_run_begins_as_a_shorter_one(name: str) -> None:
    short = draw(workload(OPEN[name], duration_s=10.0))
    long = draw(workload(OPEN[name], duration_s=40.0))
    assert len(short) < len(long)
    assert np.array_equal(short.due_ns_N, long.due_ns_N[: len(short)])


def test_changing_one_option_leaves_the_others() -> None:
    spread = Length(kind="lognormal", mean=300, sd=200)
    base = draw(workload(prompt=spread, output=spread))
    assert not np.array_equal(base.prompt_N, base.output_N)
    other = draw(workload(prompt=L128, output=spread))
    assert np.array_equal(base.due_ns_N, other.due_ns_N)
    assert np.array_equal(base.output_N, other.output_N)
    burst = draw(workload(OPEN["gamma"], prompt=spread, output=spread))
    n = min(len(base), len(burst))
    assert np.array_equal(base.prompt_N[:n], burst.prompt_N[:n])
    assert not np.array_equal(base.due_ns_N[:n], burst.due_ns_N[:n])
    assert not same(base, draw(workload(prompt=spread, output=spread, seed=1)))


def test_requests_count_measured_ones() -> None:
    for arrivals in OPEN.values():
        drawn = draw(workload(arrivals, requests=300, duration_s=40.0, warm_up_s=1.0))
        assert int((~drawn.warm_N).sum()) == 300, arrivals.process
    drawn = draw(workload(requests=300, warm_up_s=1.0, turns=4))
    assert int((~drawn.warm_N).sum()) == 300
    assert draw(workload(requests=10**6, duration_s=1.0)).due_ns_N[-1] < 1e9


def test_closed_loop() -> None:
    closed = Arrivals(process="closed", concurrency=8, think_s=0.25)
    drawn = draw(workload(closed, warm_up_s=5.0))
    assert len(drawn) >= 8 * 64
    assert (drawn.due_ns_N == DEPENDS).all()
    assert not drawn.warm_N.any()
    assert (drawn.think_ns_N == 250_000_000).all()
    assert drawn.row(0).due_ns is None
    assert len(draw(workload(closed, requests=37))) == 37


def test_conversations() -> None:
    spread = Length(kind="uniform", low=10, high=90)
    drawn = draw(workload(turns=3, turn_think_s=2.0, prompt=spread, output=spread, warm_up_s=4.0, duration_s=8.0))
    assert drawn.turn_N[:6].tolist() == [0, 1, 2, 0, 1, 2]
    assert drawn.session_N[:6].tolist() == [0, 0, 0, 1, 1, 1]
    assert (drawn.due_ns_N[1:3] == DEPENDS).all()
    assert drawn.think_ns_N[:4].tolist() == [0, 2_000_000_000, 2_000_000_000, 0]
    assert np.array_equal(drawn.warm_N[0::3], drawn.warm_N[2::3])
    rows = [drawn.row(k) for k in range(3, 6)]
    assert drawn.context_tokens(3) == rows[0].prompt
    assert drawn.context_tokens(5) == sum(row.prompt for row in rows) + rows[0].output + rows[1].output
    assert drawn.context_tokens(5 + len(drawn)) == drawn.context_tokens(5)
    closed = draw(workload(Arrivals(process="closed", concurrency=2, think_s=1.0), turns=2, requests=5))
    assert closed.turn_N.tolist() == [0, 1, 0, 1, 0]
    assert closed.think_ns_N[:2].tolist() == [1_000_000_000, 0]


@pytest.mark.parametrize(
    ("length", "mean", "sd"),
    [
        (Length(mean=128), 128, 0),
        (Length(kind="uniform", low=64, high=512), 288, 129.6),
        (Length(kind="normal", mean=512, sd=100), 512, 100),
        (Length(kind="lognormal", mean=1155, sd=900), 1155, 900),
    ],
)
def test_lengths(length: Length, mean: float, sd: float) -> None:
    drawn = draw(workload(requests=200_000, prompt=length)).prompt_N
    assert drawn.mean() == pytest.approx(mean, rel=0.01)
    assert drawn.std() == pytest.approx(sd, rel=0.03)
    assert drawn.min() >= 1


def test_lengths_are_clipped() -> None:
    for kind in ("normal", "lognormal"):
        drawn = draw(workload(prompt=Length(kind=kind, mean=100, sd=80, low=50, high=150))).prompt_N
        assert (drawn.min(), drawn.max()) == (50, 150)
    uniform = draw(workload(requests=20_000, prompt=Length(kind="uniform", low=3, high=5))).prompt_N
    assert np.unique(uniform, return_counts=True)[0].tolist() == [3, 4, 5]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (workload(Arrivals(process="burst")), "closed, constant, poisson, gamma, steps, ramp, agents, trace"),
        (workload(Arrivals(process="poisson")), "rate above 0"),
        (workload(Arrivals(process="poisson", rate_per_s=float("nan"))), "rate above 0"),
        (workload(Arrivals(process="closed")), "concurrency"),
        (workload(Arrivals(process="gamma", rate_per_s=1.0, cv=0.0)), "coefficient"),
        (workload(Arrivals(process="steps")), "steps need"),
        (workload(Arrivals(process="steps", steps=((0.0, 5.0),))), "rate 0 only"),
        (workload(Arrivals(process="ramp", rate_per_s=1.0)), "two rates"),
        (workload(Arrivals(process="trace", trace="x.csv")), "give the trace file"),
        (workload(duration_s=None), "for ever"),
        (workload(Arrivals(process="closed", concurrency=1), duration_s=None), "for ever"),
        (workload(Arrivals(process="ramp", rate_per_s=1.0, to_rate_per_s=2.0), duration_s=None), "how long"),
        (workload(duration_s=-1.0), "duration above 0"),
        (workload(requests=0), "1 request or more"),
        (workload(turns=0), "1 turn or more"),
        (workload(seed=-1), "seed"),
        (workload(Arrivals(process="poisson", rate_per_s=1e9)), "lower rate"),
        (workload(Arrivals(process="poisson", rate_per_s=1e-6)), "measured part"),
        (workload(prompt=None), "how long is the prompt"),
        (workload(output=None), "how long is the output"),
        (workload(prompt=Length(kind="zipf")), "fixed, uniform, normal, lognormal"),
        (workload(prompt=Length(mean=0.0)), "1 token or more"),
        (workload(prompt=Length(kind="uniform")), "two ends"),
        (workload(prompt=Length(kind="normal", mean=5.0, sd=-1.0)), "spread of 0"),
        (workload(prompt=Length(kind="normal", mean=5.0, low=9, high=3)), "low <= high"),
    ],
)
def test_nonsense_is_refused_in_one_line(asked: Workload, says: str) -> None:
    with pytest.raises(UserError) as caught:
        draw(asked)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.integers(1, 7), st.integers(1, 4), st.integers(1, 60))
@settings(max_examples=40, deadline=None)
def test_parts_share_nothing_and_are_everything(workers: int, turns: int, requests: int) -> None:
    drawn = draw(workload(requests=requests, turns=turns))
    parts = [part(drawn, worker, workers) for worker in range(workers)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(drawn)))
    for rows in parts:
        assert (np.diff(rows) > 0).all()
        others = np.setdiff1d(np.arange(len(drawn)), rows)
        if turns > 1:
            assert not np.intersect1d(drawn.session_N[rows], drawn.session_N[others]).size
    sessions = [len(rows) for rows in parts]
    assert max(sessions) - min(sessions) <= turns


def test_a_million_requests_fit() -> None:
    spread = Length(kind="lognormal", mean=300, sd=200)
    tracemalloc.start()
    drawn = draw(workload(requests=1_000_000, prompt=spread, output=spread))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(drawn) == 1_000_000
    assert peak < 150e6


def test_registries_name_what_the_words_say() -> None:
    assert set(ARRIVALS) == {"closed", "constant", "poisson", "gamma", "steps", "ramp", "agents", "trace"}
    assert set(LENGTHS) == {"fixed", "uniform", "normal", "lognormal"}
    for name in (*ARRIVALS, *LENGTHS):
        assert name in (Arrivals.__doc__ or "") + (Length.__doc__ or "")
    assert msgspec.json.encode(draw(workload()).workload)
