"""A calibration from start to end with a real engine and tiny probes: log, resume, profile, what is printed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from breakeven.cli.main import dispatch
from breakeven.engines.vllm.directory import FORMATS as VLLM_FORMATS
from breakeven.errors import UserError
from breakeven.forecast.calibration.probes import ProbeLoad, Visit, dense, moe
from breakeven.forecast.constants import PROFILE_SCHEMA
from breakeven.forecast.model import step_model
from breakeven.forecast.profiles import load_profile, profile_named
from breakeven.hardware.reader import read_machine
from breakeven.measure.events import BlockDone, BlockStarted, Event, EventWriter, RequestDone, StudyStopped, read_events
from breakeven.measure.probe import step_s
from breakeven.measure.progress import ProgressState
from breakeven.pages.calibration import calibration_json, calibration_lines
from breakeven.runs import calibrate as runner
from breakeven.runs.calibrate import Calibration, calibrate
from breakeven.runs.observed import busy_watts, finished, observations_of
from breakeven.runs.probed import CalibrateOptions

PROBES = (
    dense("tiny-d256x4", 256, 4, 768, 4, 2),
    moe("tiny-m256x4", 256, 4, (8, 2, 256), 4, 2),
    dense("tiny-d512x4", 512, 4, 1536, 8, 2),
    moe("tiny-m512x4", 512, 4, (16, 4, 256), 8, 2),
)
LOADS = (ProbeLoad(1, 32, 16), ProbeLoad(2, 32, 16), ProbeLoad(1, 256, 8))
MS = 1_000_000


def options(directory: Path, *, resume: bool = False, budget_s: float = 0.1) -> CalibrateOptions:
    """Tiny probes once each: the budget is over before a second round."""
    return CalibrateOptions(
        budget_s=budget_s, out=directory / "here.json", resume=resume, probes=PROBES, loads=LOADS, threads=2
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    """An interrupted calibration, resumed and finished."""
    directory = tmp_path_factory.mktemp("calibration")

    def interrupt(state: ProgressState) -> None:
        if state.subject == PROBES[1].name and state.phase == "loading":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(options(directory), interrupt)
    log = directory / "here-calibration" / "events.jsonl"
    held = read_events(log)
    assert isinstance(held[-1], StudyStopped)
    assert held[-1].because == "interrupted"
    assert len(finished(held)) == len(LOADS)
    assert not (directory / "here.json").exists()
    with pytest.raises(UserError, match="--resume"):
        calibrate(options(directory))
    return calibrate(options(directory, resume=True))


def test_a_resumed_run_keeps_what_was_measured(done: Calibration) -> None:
    blocks = [(s.model, s.streams, s.prompt_tokens, s.round) for s, _ in finished(read_events(done.log_path))]
    assert len(blocks) == len(set(blocks)) == len(PROBES) * len(LOADS)


def test_the_profile_is_read_back_and_predicts(done: Calibration) -> None:
    profile = profile_named(str(done.path))
    assert profile == load_profile(done.path) == done.profile
    assert profile.origin.how == "probes"
    assert profile.origin.format == "Q4_K_M"
    assert profile.origin.points == len(done.left_out) > len(PROBES) * len(LOADS)
    assert profile.origin.engine_version is not None
    assert profile.machine is not None
    assert {(e.phase, e.kind) for e in profile.errors} == {
        (p, k) for p in ("decode", "prefill") for k in ("dense", "moe")
    }
    model = step_model(dense("unseen", 384, 6, 1024, 6, 2), profile, "Q4_K_M")
    # A bare order of magnitude: on a busy machine the probes themselves scatter by factors.
    assert 1e-5 < float(model.step_s(1, 64)) < 1.0


def test_constants_explain_the_probes(done: Calibration) -> None:
    typical = sorted(abs(float(r)) for r in done.fitted.residuals)[len(done.fitted.residuals) // 2]
    # How far they scatter depends on what else runs here; the fit must know, and half of them lie within it.
    assert typical <= done.fitted.noise
    assert done.profile.constants.tile == 4


def test_what_is_printed(done: Calibration) -> None:
    text = "\n".join(calibration_lines(done))
    assert "Left out of the fit" in text
    assert "Nothing was measured twice" in text, "one visit each"
    twice = [msgspec.structs.replace(e, median=0.1, repeat=0.06, of_model=0.08) for e in done.profile.errors]
    again = replace(done, profile=msgspec.structs.replace(done.profile, errors=twice))
    assert "  decode, dense                   10.0%     6.0%   8.0%" in "\n".join(calibration_lines(again))
    assert "routing_alpha" in text
    assert str(done.path) in text
    payload = json.loads(calibration_json(done))
    assert payload["schema"] == "breakeven.calibrate/1"
    assert payload["profile"]["schema"] == PROFILE_SCHEMA
    assert len(payload["left_out"]) == payload["profile"]["origin"]["points"]


def test_the_probes_can_be_listed_without_running_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["calibrate", "--list"]) == 0
    printed = capsys.readouterr().out
    assert "probe-d1024x24" in printed
    assert "8 x (32 in, 16 out)" in printed


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (CalibrateOptions(budget_s=0), "--budget"),
        (CalibrateOptions(engine="tensorrt"), "no engine"),
        (CalibrateOptions(format_name="Q9_Z"), "Q9_Z"),
        (CalibrateOptions(engine="vllm", format_name="Q4_K_M"), ", ".join(VLLM_FORMATS)),
    ],
)
def test_what_cannot_be_calibrated_is_refused(asked: CalibrateOptions, message: str) -> None:
    with pytest.raises(UserError, match=message):
        calibrate(asked)


def request(block: str, stream: int, chunk_ns: list[int], prompt_tokens: int = 32) -> RequestDone:
    """One answered request whose tokens came at `chunk_ns`; sent at 0."""
    return RequestDone(
        block=block,
        model="tiny-d256x4",
        stream=stream,
        prompt_tokens=prompt_tokens,
        output_tokens=len(chunk_ns),
        due_ns=0,
        sent_ns=0,
        done_ns=chunk_ns[-1],
        first_ns=chunk_ns[0],
        last_ns=chunk_ns[-1],
        chunk_ns=chunk_ns,
        chunk_tokens=[1] * len(chunk_ns),
    )


def test_a_step_is_the_median_gap_while_all_decode() -> None:
    late = [20, 30, 40, 70, 80, 90]  # one step took three times as long
    early = [5, 7, 9, *late]  # alone, the first stream was faster
    both = [request("b", 0, [t * MS for t in early]), request("b", 1, [t * MS for t in late])]
    assert step_s(both) == pytest.approx(0.010)


def test_tokens_that_came_in_bunches_give_the_mean() -> None:
    times = [10 * MS, 10 * MS + 1, 10 * MS + 2, 50 * MS, 50 * MS + 1, 50 * MS + 2, 90 * MS]
    assert step_s([request("b", 0, times)]) == pytest.approx(80e-3 / 6, rel=1e-3)


def test_streams_that_never_decode_together_give_no_step() -> None:
    assert step_s([request("b", 0, [1, 2, 3]), request("b", 1, [5, 6, 7])]) is None


def block(name: str, round_number: int, step_ms: int, flagged: list[str]) -> list[Event]:
    """A block of one stream in a log."""
    return [
        BlockStarted(
            block=name, model="tiny-d256x4", streams=1, prompt_tokens=32, output_tokens=8, at_ns=0, round=round_number
        ),
        request(name, 0, [(40 + step_ms * i) * MS for i in range(8)]),
        BlockDone(block=name, ok=True, at_ns=10**9, flagged=flagged, joules=5.0),
    ]


def test_quiet_blocks_count_before_noisy_ones() -> None:
    specs = {spec.name: spec for spec in PROBES}
    log = [*block("a", 0, 10, []), *block("b", 1, 12, []), *block("c", 2, 50, ["steal"])]
    decode, prefill = observations_of(log, specs, "Q4_K_M")
    assert (decode.phase, decode.sequences, decode.tokens, decode.n) == ("decode", 1, 36.0, 2)
    assert decode.seconds == pytest.approx((0.010 * 0.012) ** 0.5), "the middle on the scale of logarithms"
    assert decode.visits == pytest.approx((0.010, 0.012)), "rounds 0 and 1 are visits of their own"
    assert (prefill.phase, prefill.tokens) == ("prefill", 32.0)
    assert prefill.seconds == pytest.approx(0.040)
    small, _ = observations_of(log, specs, "Q4_K_M", "q8_0")
    assert small.terms.kv_bytes(36.0) == pytest.approx(34 / 64 * decode.terms.kv_bytes(36.0))
    (noisy, _) = observations_of(block("c", 0, 50, ["steal"]), specs, "Q4_K_M")
    assert noisy.seconds == pytest.approx(0.050)
    assert busy_watts(log) == pytest.approx(5.0)


def visits_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, budget_s: float, held: list[Event]
) -> list[tuple[str, list[int]]]:
    """(probe, rounds) of every visit, on a clock of its own: 4 s to start an engine, 1 s a block."""
    clock = SimpleNamespace(now=0.0)
    made: list[tuple[str, list[int]]] = []

    def probe(self: Any, subject: Any, blocks: Any, energy: object) -> Visit:
        made.append((subject.name, [number for _, number in blocks]))
        for load, number in blocks:
            name = f"{subject.name}/{load.streams}/{load.prompt_tokens}/{number}"
            at = {"model": subject.name, "streams": load.streams, "prompt_tokens": load.prompt_tokens}
            self.history.append(
                BlockStarted(block=name, output_tokens=load.output_tokens, at_ns=0, round=number, attempt=1, **at)
            )
            self.history.append(BlockDone(block=name, ok=True, at_ns=10**9, flagged=[]))
        clock.now += 4.0 + len(blocks)
        return Visit(4.0 + len(blocks), float(len(blocks)), len(blocks))

    monkeypatch.setattr(runner._Run, "_probe", probe)
    monkeypatch.setattr(runner, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(runner, "open_counter", lambda: None)
    asked = options(tmp_path, budget_s=budget_s)
    with EventWriter(tmp_path / "log.jsonl") as log:
        runner._Run(asked, runner.plan(asked, read_machine()), tmp_path, log, held, lambda state: None, 0.0).rounds()
    assert clock.now <= budget_s
    return made


def test_probes_take_turns_and_are_visited_again_within_the_budget(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = [spec.name for spec in PROBES]
    held: list[Event] = []
    made = visits_made(monkeypatch, tmp_path, 75.0, held)
    # Four first visits of 7 s, four of two rounds and 10 s; what is left is too little for a ninth.
    assert [name for name, _ in made] == names * 2
    assert made[0] == (names[0], [0, 0, 0])
    assert made[4] == (names[0], [1, 1, 1, 2, 2, 2])
    more = visits_made(monkeypatch, tmp_path, 30.0, held)
    assert [name for name, _ in more] == names[:3], "resumed, it goes on with the third visit"
    assert more[0][1] == [3, 3, 3, 4, 4, 4]
