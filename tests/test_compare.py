"""The whole way from models to a verdict: in the real engine, on servers of known speed, and through every mishap."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

import breakeven
from breakeven.errors import UserError
from breakeven.measure.events import BackendReady, RequestDone, StudyStopped, read_events
from breakeven.measure.paired.blocks import blocks_of
from breakeven.results.comparison import Comparison
from breakeven.results.store import LOG, read
from tests.cli_fixtures import run_here
from tests.golden_server import Script, golden_server
from tests.small_models import BASE, CONFIGS


def write_config(directory: Path, name: str, **changes: object) -> str:
    path = directory / name
    path.mkdir()
    (path / "config.json").write_text(json.dumps({**BASE, **CONFIGS[name], **changes}))
    return str(path)


@pytest.fixture
def pair(tmp_path: Path) -> list[str]:
    return [write_config(tmp_path, "olmoe"), write_config(tmp_path, "llama")]


@pytest.fixture
def cached(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "breakeven.cli", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
        timeout=240,
    )


SLOW = ("--streams", "1", "--prompt", "16", "--output", "64", "--budget", "60s", "--precision", "0.1%")
QUICK = ("--streams", "1,2", "--prompt", "16", "--output", "24", "--budget", "60s", "--precision", "99%")


@pytest.mark.usefixtures("cached")
def test_two_small_models_get_a_verdict_a_log_and_a_page(pair: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run("compare", *pair, *QUICK, "--json", "--out", str(out), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = msgspec.json.decode(done.stdout.encode(), type=Comparison)
    assert result == read(out / "result.json", Comparison)
    assert result.schema == "breakeven.compare/1"
    moe, dense = result.models
    assert (moe.moe, dense.moe) == (True, False)
    assert moe.total_params is not None
    assert moe.active_params is not None
    assert moe.total_params > moe.active_params > 0
    assert all(m.synthetic and m.peak_rss_bytes and m.file_bytes and m.load_s for m in result.models)
    assert {(p.model, p.streams) for p in result.points} == {(m.name, s) for m in result.models for s in (1, 2)}
    for point in result.points:
        assert point.prompt_tokens == 16
        assert point.output_tokens == 24
        assert point.decode_tokens_per_s is not None
        assert point.decode_tokens_per_s.value > 0
        assert point.joules_per_token is None or point.joules_per_token.value > 0
    assert "synthetic weights: speed and memory only" in result.caveats
    assert {(p.model, p.phase) for p in result.profiles} == {
        (m.name, phase) for m in result.models for phase in ("decode", "prefill")
    }
    assert [r.model for r in result.routings] == [moe.name]
    page = (out / "report.html").read_text()
    assert result.verdict.headline.split(":")[0] in page
    log = read_events(out / "events.jsonl")
    assert isinstance(log[-1], StudyStopped)
    blocks = blocks_of(log)
    for point in result.points:  # every number of the result is a function of the log
        mine = [b for b in blocks if (b.model, b.streams) == (point.model, point.streams)]
        assert len(mine) >= 3
        assert point.decode_tokens_per_s is not None
        told = [b for b in mine if b.value("decode_tokens_per_s") is not None]
        quiet = [b for b in told if not b.flagged]
        assert len(quiet if len(quiet) >= 5 else told) == point.decode_tokens_per_s.n
    again = run_here("report", str(out), "--out", "again", "--json", cwd=tmp_path)
    assert msgspec.json.decode(again.stdout.encode(), type=Comparison) == result
    assert (tmp_path / "again" / "report.html").read_text() == page


def golden(ttft_s: float, itl_s: float) -> Script:
    return Script(ttft_s=ttft_s, itl_s=itl_s)


@pytest.mark.alone
def test_servers_of_known_speed_come_out_at_their_known_ratio(tmp_path: Path) -> None:
    """Six times, less what a busy machine adds to every sleep of both: so far apart that none is busy enough."""
    with golden_server(golden(0.02, 0.030)) as slow, golden_server(golden(0.02, 0.005)) as fast:
        result = breakeven.compare(
            [f"{slow.url}/v1#golden", f"{fast.url}/v1#golden"],
            streams=(1, 2),
            prompt_tokens=8,
            output_tokens=12,
            precision=0.05,
            budget_s=20,
            out=tmp_path / "out",
        )
    first, second = (m.name for m in result.models)
    blocks = blocks_of(read_events(tmp_path / "out/events.jsonl"))

    def within_what_was_measured(ratio: float, metric: str, streams: int) -> bool:
        """Any average of the blocks lies between their extremes, whatever they were."""
        a, b = (
            [v for x in blocks if (x.model, x.streams) == (name, streams) and (v := x.value(metric)) is not None]
            for name in (first, second)
        )
        return min(a) / max(b) <= ratio <= max(a) / min(b)

    for pair in result.pairs:
        if pair.metric == "itl_s":
            assert pair.ratio.low is not None
            assert pair.ratio.high is not None
            assert pair.ratio.value > 1.4
            assert within_what_was_measured(pair.ratio.value, "itl_s", pair.streams)
            assert pair.winner == second
        if pair.metric == "decode_tokens_per_s":
            assert 1 / pair.ratio.value > 1.4
            assert within_what_was_measured(pair.ratio.value, "decode_tokens_per_s", pair.streams)
    assert result.verdict.winner == second
    assert all(m.peak_rss_bytes is None and m.file_bytes is None and m.load_s is None for m in result.models)
    assert first != second


@pytest.mark.usefixtures("cached")
def test_killed_in_the_middle_it_resumes_and_keeps_what_was_finished(pair: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    slow = (*SLOW, "--no-inside")
    command = [sys.executable, "-m", "breakeven.cli", "compare", *pair, *slow, "--quiet", "--out", str(out)]
    with subprocess.Popen(command, cwd=tmp_path) as process:
        wait_for_blocks(out, 5)
        process.kill()
    finished = blocks_of(read_events(out / "events.jsonl"))
    again = run_here("compare", *pair, *slow, "--out", str(out), cwd=tmp_path)
    assert again.returncode == 2
    assert "--resume" in again.stderr
    short = [*slow[:7], "2s", *slow[8:]]
    resumed = run("compare", *pair, *short, "--resume", "--json", "--out", str(out), cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    after = blocks_of(read_events(out / "events.jsonl"))
    assert after[: len(finished)] == finished
    assert msgspec.json.decode(resumed.stdout.encode(), type=Comparison).pairs


@pytest.mark.usefixtures("cached")
def test_ctrl_c_saves_what_there_is_and_says_how_to_go_on(pair: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "breakeven.cli", "compare", *pair, *SLOW, "--quiet", "--out", str(out)]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=hear_ctrl_c) as process:
        wait_for_blocks(out, 4)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in said
    assert "Traceback" not in said
    stopped = read_events(out / "events.jsonl")[-1]
    assert isinstance(stopped, StudyStopped)
    assert stopped.because == "interrupted"
    assert read(out / "result.json", Comparison).stopped_because == "interrupted"


@pytest.mark.usefixtures("cached")
def test_an_engine_that_dies_is_reported_and_its_blocks_are_kept(pair: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "breakeven.cli", "compare", *pair, *SLOW, "--quiet", "--out", str(out)]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        wait_for_blocks(out, 4)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert len(said.strip().splitlines()) == 1, said
    assert "killed by signal 9" in said
    log = read_events(out / "events.jsonl")
    assert isinstance(log[-1], StudyStopped)
    assert log[-1].because == "failed"
    assert len(blocks_of(log)) >= 4


def hear_ctrl_c() -> None:
    """A suite that runs in the background of a shell has Ctrl-C switched off, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for_blocks(out: Path, n: int) -> None:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        log = out / "events.jsonl"
        if log.exists() and len(blocks_of(read_events(log))) >= n:
            return
        time.sleep(0.05)
    raise AssertionError("no blocks were measured")


@pytest.mark.usefixtures("cached")
def test_a_model_against_itself_is_called_an_a_a_run(pair: list[str], tmp_path: Path) -> None:
    done = run("compare", pair[1], pair[1], *QUICK, "--json", "--no-inside", "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = msgspec.json.decode(done.stdout.encode(), type=Comparison)
    first, second = result.models
    assert second.name == f"{first.name} (again)"
    assert any("A/A" in caveat for caveat in result.caveats)


@pytest.mark.usefixtures("cached")
def test_engines_wait_for_their_threads_alike_whoever_else_is_there(
    pair: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads that sleep beside threads that spin would be compared with each other, not the models."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    out = tmp_path / "out"
    breakeven.compare(pair, streams=[1], prompt_tokens=8, output_tokens=8, budget_s=2, out=out, look_inside=False)
    ready = [event for event in read_events(out / LOG) if isinstance(event, BackendReady)]
    assert len(ready) == 2
    assert {event.settings["wait_policy"] for event in ready} == {"OMP_WAIT_POLICY=active"}
    monkeypatch.delenv("OMP_WAIT_POLICY")
    with pytest.raises(UserError, match="another study"):
        breakeven.compare(
            pair, streams=[1], prompt_tokens=8, output_tokens=8, budget_s=4, out=out, look_inside=False, resume=True
        )


@pytest.mark.usefixtures("cached")
def test_another_study_in_the_directory_is_not_overwritten(pair: list[str], tmp_path: Path) -> None:
    first = run("compare", *pair, *QUICK, "--no-inside", "--out", "out", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    before = (tmp_path / "out/events.jsonl").read_bytes()
    other = run_here("compare", *pair, *QUICK[2:], "--streams", "4", "--out", "out", cwd=tmp_path)
    assert other.returncode == 2
    assert "another study" in other.stderr
    assert (tmp_path / "out/events.jsonl").read_bytes() == before


def test_distinct_streams_get_distinct_prompts_and_candidates_the_same(tmp_path: Path) -> None:
    with golden_server(golden(0.0, 0.0)) as a, golden_server(golden(0.0, 0.0)) as b:
        breakeven.compare(
            [f"{a.url}/v1#golden", f"{b.url}/v1#golden"],
            streams=(4,),
            prompt_tokens=30,
            output_tokens=4,
            budget_s=1,
            precision=0.9,
            out=tmp_path / "out",
        )
        asked_a, asked_b = ([str(body["prompt"]) for body in s.bodies if body["prompt"] != "Hello"] for s in (a, b))
    assert len(set(asked_a)) == len(asked_a)
    assert sorted(asked_a) == sorted(asked_b)
    done = [e for e in read_events(tmp_path / "out/events.jsonl") if isinstance(e, RequestDone)]
    assert len(done) == 2 * (len(asked_a) - 1), "the warm-up is not in the log"


WRONG = [
    (["olmo-1b-7b", "llama-3.2-1b"], "olmoe-1b-7b"),
    (["llama-3.2-1b"], "at least two"),
    (["llama-3.2-1b", "missing.gguf"], "no such file"),
    (["llama-3.2-1b", "text.gguf"], "not a model"),
    (["llama-3.2-1b", "cut.gguf"], "truncated"),
    (["llama-3.2-1b", "wrong-count"], "counts 2,625,792 parameters, 49,500,000 were published"),
    (["llama-3.2-1b", "unknown-family"], "docs/models-yaml.md"),
    (["llama-3.2-1b", "olmoe-1b-7b", "--out", "/proc/nothing"], "cannot make"),
    (["llama-3.2-1b", "olmoe-1b-7b", "--streams", "0"], "--streams"),
    (["llama-3.2-1b", "olmoe-1b-7b", "--streams", "1,x"], "--streams"),
    (["llama-3.2-1b", "olmoe-1b-7b", "--prompt", "-5"], "--prompt"),
    (["llama-3.2-1b", "olmoe-1b-7b", "--output", "1"], "--output"),
    (["llama-3.2-1b", "olmoe-1b-7b", "--budget", "0s"], "--budget"),
    (["llama-3.2-1b", "olmoe-1b-7b", "--budget", "soon"], "--budget"),
    (["llama-3.2-1b", "olmoe-1b-7b", "--precision", "0%"], "--precision"),
    (["llama-3.2-1b", "olmoe-1b-7b", "--format", "Q9"], "Q9"),
    (["llama-3.2-1b", "deepseek-v3"], "GB"),
    (["llama-3.2-1b", "http://127.0.0.1:9/v1#x"], "127.0.0.1:9"),
    (["llama-3.2-1b", "olmoe-1b-7b", "--resume", "--out", "nothing"], "nothing to resume"),
    (["llama-3.2-1b", "olmoe-1b-7b", "--demo"], "--demo"),
]


@pytest.mark.usefixtures("cached")
@pytest.mark.parametrize(("arguments", "says"), WRONG, ids=lambda x: " ".join(x) if isinstance(x, list) else x)
def test_bad_input_is_one_clear_line_and_exit_2(arguments: list[str], says: str, tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("this is no model")
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03\0\0\0\x05\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0")
    wrong = Path(write_config(tmp_path, "qwen2", torch_dtype="bfloat16")).rename(tmp_path / "wrong-count")
    (wrong / "model.safetensors.index.json").write_text('{"metadata": {"total_size": 99000000}, "weight_map": {}}')
    unknown = Path(write_config(tmp_path, "llama", model_type="never_heard_of"))
    unknown.rename(tmp_path / "unknown-family")
    done = run_here("compare", *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert says in done.stderr
    assert not list(Path(os.environ["XDG_CACHE_HOME"]).rglob("*.gguf")), "it wrote weights first"
