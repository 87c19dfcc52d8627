"""Candidates that do not fit side by side: planned, paired and judged by turns; run, killed and resumed for real."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

import breakeven
from breakeven.hardware.placement import MemoryAt, Placed
from breakeven.measure.events import BackendReady, BackendStopped, BlockStarted, TurnStarted, read_events
from breakeven.measure.paired.blocks import BlockMetrics, FinishedBlock, blocks_of
from breakeven.measure.paired.pairs import pairs, ratios
from breakeven.measure.paired.plan import MIN_ROUNDS, MOST_ROUNDS_A_TURN, Enough, LoadSoFar, Plan, TurnPlan, next_turn
from breakeven.results.comparison import Comparison
from breakeven.results.load import LoadStudy
from breakeven.results.store import read
from breakeven.runs.result import placed_with_peaks
from tests.test_compare import wait_for_blocks, write_config

PLAN = Plan(streams=(1, 4), budget_s=120.0, precision=0.02)


def state(streams: int, turns: int, width: float = math.inf, round_s: float | None = None) -> LoadSoFar:
    return LoadSoFar(streams, turns, width, round_s)


def test_the_first_turns_run_whatever_the_budget_and_large_loads_only_where_three_turns_fit() -> None:
    dear = Plan(streams=(1, 4), budget_s=1.0)
    assert next_turn(dear, [state(1, 0, round_s=10.0), state(4, 0)], 0.0) == TurnPlan((1,), 1)
    # A round of 1 stream takes 10 s and one of 4 is taken to need 40: three turns of both are 150 s.
    assert next_turn(PLAN, [state(1, 0, round_s=10.0), state(4, 0)], 0.0) == TurnPlan((1,), 1)
    wide = Plan(streams=(1, 4), budget_s=800.0)
    assert next_turn(wide, [state(1, 0, round_s=10.0), state(4, 0)], 0.0) == TurnPlan((1, 4), 2)


def test_a_turn_has_as_many_rounds_as_leave_time_for_the_turns_still_wanted() -> None:
    loads = [state(1, 1, round_s=1.0), state(4, 1, round_s=2.0)]
    assert next_turn(PLAN, loads, 60.0) == TurnPlan((1, 4), 6)
    assert next_turn(PLAN, loads, 0.0) == TurnPlan((1, 4), MOST_ROUNDS_A_TURN)
    assert next_turn(PLAN, loads, 119.0) == TurnPlan((1,), 1), "an interval needs three"
    assert next_turn(PLAN, [state(1, 3, 0.5, 1.0), state(4, 3, 0.5, 2.0)], 119.5) == Enough("budget")


def test_it_ends_by_precision_or_budget_and_leaves_out_what_is_known_well_enough() -> None:
    assert next_turn(PLAN, [state(1, 6, 0.01, 1.0), state(4, 6, 0.01, 2.0)], 10.0) == Enough("precision")
    turn = next_turn(PLAN, [state(1, 6, 0.01, 1.0), state(4, 6, 0.05, 2.0)], 10.0)
    assert isinstance(turn, TurnPlan)
    assert turn.streams == (4,)
    assert next_turn(PLAN, [state(1, 3, 0.01, 1.0), state(4, 3, 0.01, 2.0)], 10.0) != Enough("precision")


def block(model: str, turn: int | None, number: int, rate: float) -> FinishedBlock:
    metrics = BlockMetrics(
        streams=1,
        prompt_tokens=8,
        output_tokens=8,
        decode_tokens_per_s=rate,
        prefill_tokens_per_s=None,
        ttft_s=None,
        service_ttft_s=None,
        itl_s=None,
        itl_median_s=None,
        window_s=1.0,
        server_decode_tokens_per_s=None,
        exact=True,
    )
    return FinishedBlock(model, 1, number, 1.0, metrics, (), None, turn)


def test_the_rounds_of_a_turn_are_one_pair() -> None:
    blocks = [block(m, turn, 2 * turn + i, rate) for m in "ab" for turn in range(3) for i, rate in ((0, 1.0), (1, 4.0))]
    assert ratios(blocks, "a", "b", "decode_tokens_per_s", 1) == pytest.approx([1.0, 1.0, 1.0])
    found = pairs(blocks, Plan(streams=(1,)), ["a", "b"])
    assert [p.ratio.n for p in found] == [3]
    apart = [block(m, None, r, 1.0) for m in "ab" for r in range(6)]
    assert len(ratios(apart, "a", "b", "decode_tokens_per_s", 1)) == 6


@pytest.mark.parametrize("turns", [3, 5, 8])
def test_a_model_against_itself_seldom_wins_though_every_load_of_an_engine_differs(turns: int) -> None:
    """Each process is 15 % off in its own way and its rounds agree to 0.5 %: pairs by round would find a winner."""
    draw, won, naive = random.Random(7), 0, 0
    studies = 200
    for _ in range(studies):
        blocks = []
        for turn in range(turns):
            for model in "ab":
                process = draw.gauss(0.0, 0.15)
                blocks += [
                    block(model, turn, 4 * turn + i, 10 * math.exp(process + draw.gauss(0.0, 0.005))) for i in range(4)
                ]
        won += pairs(blocks, Plan(streams=(1,)), ["a", "b"])[0].winner is not None
        loose = [replace(b, turn=None) for b in blocks]
        naive += pairs(loose, Plan(streams=(1,)), ["a", "b"])[0].winner is not None
    assert won <= 0.04 * studies
    assert naive > 4 * won


SMALL = """
import sys
from breakeven.runs import served
served.RESERVE = float(sys.argv.pop(1))
from breakeven.cli.main import main
main()
"""


def together_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each alone fits this machine's memory, and both together do not."""
    monkeypatch.setattr("breakeven.runs.served.RESERVE", 0.0)


QUICK = {"streams": (1, 2), "prompt_tokens": 16, "output_tokens": 12, "budget_s": 30.0, "precision": 0.9}


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return [write_config(tmp_path, "olmoe"), write_config(tmp_path, "llama")]


def test_models_that_do_not_fit_together_take_turns(
    pair: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together_too_large(monkeypatch)
    said: list[str] = []
    result = breakeven.compare(
        pair, out=tmp_path / "out", look_inside=False, on_progress=lambda s: said.append(s.phase), **QUICK
    )
    assert "so they take turns" in said[0]
    assert result.loaded == "in turns"
    assert any("so they take turns" in caveat for caveat in result.caveats)
    assert any("loads took" in caveat for caveat in result.caveats)
    log = read_events(tmp_path / "out/events.jsonl")
    turns = [e for e in log if isinstance(e, TurnStarted)]
    ready = [e for e in log if isinstance(e, BackendReady)]
    assert len(turns) >= MIN_ROUNDS
    names = [m.name for m in result.models]
    forward, backward = names, names[::-1]
    assert [e.model for e in ready[:4]] == [*forward, *backward], "A B, then B A, each started afresh"
    assert len(ready) == 2 * len(turns)
    of_load = {streams: sum(streams in turn.streams for turn in turns) for streams in (1, 2)}
    for found in result.pairs:  # tokens that arrive all at once have no decode rate, which a busy machine can do
        n = of_load[found.streams]
        every = found.metric == "ttft_s" and not found.left_out  # disturbed turns stay out where five quiet ones stand
        assert found.ratio.n == n if every else found.ratio.n <= n, "a pair is a turn, not a round"
    for block in (e for e in log if isinstance(e, BlockStarted) and e.check is None):
        assert block.turn is not None
    checked = {e.model for e in log if isinstance(e, BlockStarted) and e.check is not None}
    assert checked == {names[0]}
    assert {c.model for c in result.self_checks} <= checked, "without a decode rate there is nothing to compare"
    assert all(m.peak_rss_bytes and m.load_s for m in result.models)
    assert read(tmp_path / "out/result.json", Comparison) == result
    assert breakeven.report(tmp_path / "out") == result


def test_killed_in_a_turn_it_goes_on_with_what_that_turn_lacks(pair: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["--streams", "1", "--prompt", "16", "--output", "24", "--precision", "0.1%", "--no-inside", "--quiet"]
    command = [sys.executable, "-c", SMALL, "0", "compare", *pair, *words, "--out", str(out)]
    with subprocess.Popen([*command, "--budget", "60s"], cwd=tmp_path) as process:
        wait_for_blocks(out, 3)
        process.kill()
    finished = blocks_of(read_events(out / "events.jsonl"))
    # With memory for both at once a study that began in turns goes on in turns.
    command[3] = "0.92"
    done = subprocess.run(
        [*command, "--budget", "3s", "--resume", "--json"], cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    after = blocks_of(read_events(out / "events.jsonl"))
    assert after[: len(finished)] == finished
    result = msgspec.json.decode(done.stdout.encode(), type=Comparison)
    assert result.loaded == "in turns"
    assert {m.name for m in result.models} == {b.model for b in after}
    rounds = {name: sorted({b.round for b in after if b.model == name}) for name in {b.model for b in after}}
    first, second = rounds.values()
    assert first == second


def test_under_load_they_take_turns_too(pair: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together_too_large(monkeypatch)
    monkeypatch.setattr("breakeven.runs.load.LOADED_WARM_UP_S", 0.5)
    traffic = breakeven.Traffic(rate="2,4", duration="2s", prompt="16", output="4")
    options = breakeven.LoadOptions(out=tmp_path / "out")
    study = breakeven.compare_under_load(pair, traffic, rounds=2, options=options)
    assert {(p.model, p.load) for p in study.points} == {
        (m.name, load) for m in study.models for load in ("2 req/s", "4 req/s")
    }
    assert all(m.settings["engine"] == "llama.cpp" for m in study.models)
    assert any("so they take turns" in caveat for caveat in study.caveats)
    log = read_events(tmp_path / "out/events.jsonl")
    names = [m.name for m in study.models]
    ready = [e.model for e in log if isinstance(e, BackendReady)]
    assert ready == [*names, names[0]], "who ends a round begins the next, and stays up"
    assert read(tmp_path / "out/result.json", LoadStudy) == study


def test_the_highest_peak_of_a_device_over_all_turns_is_told() -> None:
    def lies(peak: int | None) -> Placed:
        return Placed(how="asked", gpu_layers=3, memory=[MemoryAt(place="CUDA0", weights_bytes=5, peak_bytes=peak)])

    ended = [BackendStopped(model="a", placed=lies(peak)) for peak in (7, 9, 8)]
    found = placed_with_peaks(BackendReady(model="a", settings={}, placed=lies(None)), ended)
    assert found == lies(9)
    assert placed_with_peaks(BackendReady(model="a", settings={}, placed=lies(None)), []) == lies(None)
