"""A check must see what got worse and, above all, must not cry wolf."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from capacity_fixtures import queue_server, virtual_time
from load_log_fixtures import CLOSED, noisy_run, request, run

from breakeven.cli.main import dispatch
from breakeven.errors import UserError
from breakeven.hardware.reader import read_machine
from breakeven.measure.events import Event
from breakeven.measure.load.points import load_points
from breakeven.results.load import Check, CheckedMetric, LoadModel, LoadStudy
from breakeven.runs.check import ERRORS, GOODPUT, TOKENS, check, t_quantile
from breakeven.traffic.workload import Arrivals, Slo, Workload

SLO = Slo(ttft_s=0.12)
MACHINE = read_machine()


def study_of(log: list[Event], **more: object) -> LoadStudy:
    study = LoadStudy(
        breakeven_version="0",
        started_at="2026-01-01T00:00:00+00:00",
        command="breakeven bench",
        seed=0,
        stopped_because="finished",
        machine=MACHINE,
        models=[LoadModel(name="a", source="a", synthetic=False, moe=None)],
        workload=Workload(arrivals=Arrivals(process="poisson", rate_per_s=10.0)),
        slo=SLO,
        points=load_points(log, SLO),
    )
    return msgspec.structs.replace(study, **more)


def compared(old: list[Event], new: list[Event], **more: object) -> Check:
    return check(study_of(old), study_of(new), logs=(old, new), **more)  # type: ignore[arg-type]


def metric(found: Check, name: str) -> CheckedMetric:
    return next(m for m in found.metrics if m.metric == name)


def test_student_t_is_that_of_the_tables() -> None:
    # Any printed table of Student's t, two-sided.
    for level, freedom, value in ((0.95, 4, 2.776), (0.99, 9, 3.250), (0.999, 30, 3.646), (0.95, 1e9, 1.960)):
        assert t_quantile(level, freedom) == pytest.approx(value, abs=6e-4)


@pytest.mark.parametrize("correlation", [0.0, 0.6])
def test_an_unchanged_server_is_called_worse_less_than_once_in_a_hundred_times(correlation: float) -> None:
    study, worse = study_of(noisy_run(0)), 0
    for i in range(100):
        logs = [noisy_run(2 * i + k, n=200, correlation=correlation, noise=0.3, tokens=3) for k in (0, 1)]
        worse += check(study, study, logs=(logs[0], logs[1]), tolerance=0.0).worse
    assert worse <= 4  # 1 expected at most; 5 or more happen less than once in 200 times


def test_what_is_a_quarter_slower_is_worse_and_what_is_faster_is_not() -> None:
    slower = compared(noisy_run(1), noisy_run(2, scale=1.25))
    assert slower.worse
    assert {m.metric for m in slower.metrics if m.verdict == "worse"} >= {"ttft_s", "tpot_s", "itl_s", "e2e_s"}
    ratio = metric(slower, "ttft_s").new_over_old
    assert ratio.low is not None
    assert ratio.high is not None
    assert ratio.low < 1.25 < ratio.high
    assert "Worse than the saved run" in slower.headline
    faster = compared(noisy_run(1, scale=1.25), noisy_run(2))
    assert not faster.worse
    assert metric(faster, "ttft_s").verdict == "better"
    assert "Nothing got worse; better" in faster.headline


def test_within_the_tolerance_nothing_is_worse_however_sure() -> None:
    old, new = noisy_run(1, noise=0.01), noisy_run(2, noise=0.01, scale=1.04)
    assert compared(old, new, tolerance=0.02).worse
    assert not compared(old, new).worse


def test_blocks_of_one_schedule_are_paired() -> None:
    """Delays that follow the arrivals, alike in both runs, cancel; a tenth more is seen although bursts are tenfold."""
    due = np.cumsum(np.random.default_rng(3).exponential(0.1, 400))
    burst = np.exp(2 * np.sin(due / 3))

    def log(scale: float, shift_s: float, seed: int) -> list[Event]:
        noise = np.exp(np.random.default_rng(seed).normal(0, 0.02, len(due)))
        rows = [
            request(i, due_s=float(t) + shift_s, ttft_s=float(scale * 0.1 * b * e))
            for i, (t, b, e) in enumerate(zip(due, burst, noise, strict=True))
        ]
        return run(rows, to_s=float(due[-1]))

    assert metric(compared(log(1.0, 0, 1), log(1.1, 0, 2)), "ttft_s").verdict == "worse"
    # The same requests at other moments do not pair, and their bursts hide the tenth.
    apart = log(1.1, 0, 2)[:-60] + log(1.1, 0, 2)[-1:]
    assert metric(compared(log(1.0, 0, 1), apart), "ttft_s").verdict == "same"


def test_goodput_and_failures_are_compared() -> None:
    def log(bad: int) -> list[Event]:
        rows = [request(i, due_s=i / 10, error="http_500" if i % 10 < bad else None) for i in range(400)]
        return run(rows, to_s=40)

    found = compared(log(0), log(3))
    assert metric(found, GOODPUT).verdict == "worse"
    assert metric(found, GOODPUT).new_over_old.value == pytest.approx(0.7, abs=0.01)
    assert metric(found, ERRORS).verdict == "worse"
    assert metric(compared(log(3), log(0)), ERRORS).verdict == "better"
    assert not [m for m in compared(log(0), log(0)).metrics if m.metric == ERRORS]
    everything = compared(log(0), log(10))
    assert everything.worse
    assert metric(everything, GOODPUT).verdict == "worse"


def test_a_closed_loop_that_is_slower_gives_fewer_tokens() -> None:
    def log(seconds: float, seed: int) -> list[Event]:
        noise = np.random.default_rng(seed).uniform(0.97, 1.03, 300)
        due = np.cumsum(seconds * noise)
        rows = [
            request(i, due_s=float(t), ttft_s=seconds / 2, tpot_s=seconds / 20, tokens=10) for i, t in enumerate(due)
        ]
        return run(rows, to_s=float(due[-1]), workload=CLOSED, load="4 streams")

    assert metric(compared(log(0.1, 1), log(0.15, 2)), TOKENS).verdict == "worse"
    assert metric(compared(log(0.15, 1), log(0.1, 2)), TOKENS).verdict == "better"


def test_results_without_logs_are_compared_by_their_intervals() -> None:
    old, new = study_of(noisy_run(1)), study_of(noisy_run(2, scale=1.25))
    found = check(old, new)
    assert metric(found, "tpot_s").verdict == "worse"
    assert metric(found, TOKENS).new_over_old.low is None
    assert metric(found, TOKENS).verdict == "same"
    assert any("events.jsonl" in text for text in found.caveats)
    assert any("No interval" in text for text in found.caveats)
    assert not check(old, study_of(noisy_run(3))).worse


def test_too_few_requests_say_so() -> None:
    found = compared(noisy_run(1, n=6), noisy_run(2, n=6, scale=3))
    assert metric(found, "ttft_s").new_over_old.low is None
    assert metric(found, "ttft_s").verdict == "same"


def test_runs_that_cannot_be_compared_are_refused_and_differences_told() -> None:
    old = study_of(noisy_run(1))
    with pytest.raises(UserError, match="no load in common"):
        check(old, study_of(noisy_run(1, load="3 req/s")))
    with pytest.raises(UserError, match="compares 2 models"):
        check(old, study_of(noisy_run(1), models=old.models * 2))
    with pytest.raises(UserError, match="--tolerance"):
        check(old, old, tolerance=-0.1)
    other = study_of(noisy_run(2), models=[msgspec.structs.replace(old.models[0], settings={"slots": "2"})])
    assert any("engine settings" in text for text in check(old, other).caveats)
    half = study_of(noisy_run(2), stopped_because="interrupted")
    assert any("interrupted" in text for text in check(old, half).caveats)


def test_a_run_of_conversations_is_compared_with_one_that_called_their_rate_requests() -> None:
    talks = Workload(arrivals=Arrivals(process="poisson", rate_per_s=10.0), turns=3)
    old = noisy_run(1, workload=talks, load="10 req/s")
    new = noisy_run(2, scale=1.5, workload=talks, load="10 conversations/s")
    studies = [study_of(log, workload=talks) for log in (old, new)]
    for found in (check(*studies, logs=(old, new)), check(*studies)):
        assert metric(found, "tpot_s").verdict == "worse"
        assert {m.load for m in found.metrics} == {"10 conversations/s"}


def test_a_saved_run_is_played_again_and_a_slower_server_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, again, slow = (str(tmp_path / name) for name in ("base", "again", "slow"))
    quick = ["--quiet", "--processes", "1"]
    with queue_server(slots=8, service_s=0.04) as server:
        virtual_time(monkeypatch, server)
        traffic = ["--rate", "25", "--requests", "120", "--warm-up", "1s", "--prompt", "8", "--output", "4"]
        assert dispatch(["bench", server.url, *traffic, "--slo", "ttft=1s", "--out", base, *quick]) == 0
        assert dispatch(["check", base, "--out", again, "--tolerance", "200%", *quick]) == 0
        assert dispatch(["check", base, again, "--tolerance", "0%"]) == 0, "it did exactly the same"
        server.service_s = 0.2
        assert dispatch(["check", base, "--out", slow, *quick]) == 1
    saved, replayed = (next(Path(place).glob("schedule-*")) for place in (base, slow))
    assert saved.name == replayed.name
    assert saved.read_bytes() == replayed.read_bytes()
    capsys.readouterr()
    assert dispatch(["check", base, slow, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["schema"] == "breakeven.check/1"
    assert told["worse"] is True


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere"], "does not exist"),
        (["."], "neither result.json nor events.jsonl"),
        ([".", "--tolerance", "much"], "--tolerance"),
        ([".", ".", "--url", "http://127.0.0.1:1/v1#m"], "give one of them"),
    ],
)
def test_what_cannot_be_used_is_told_in_a_line(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=says):
        dispatch(["check", *words])
