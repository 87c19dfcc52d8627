"""`bench`, `compare` under load and `report`, as a user runs them: real sockets, real files, a real engine."""

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
import yaml

import breakeven
from breakeven.measure.events import LoadDone, LoadStarted, RequestDone, StudyStopped, iter_events
from breakeven.results.load import Latency, LoadPoint, LoadStudy
from tests.cli_fixtures import run_here
from tests.golden_server import Script, golden_server

# So far apart that no machine is busy enough to hide it.
FAST, SLOW = Script(ttft_s=0.02, itl_s=0.002), Script(ttft_s=0.02, itl_s=0.06)
SHORT = ("--duration", "4s", "--warm-up", "0.5s", "--prompt", "32", "--output", "12", "--quiet")


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "breakeven.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False, timeout=240)


def study_of(done: subprocess.CompletedProcess[str]) -> LoadStudy:
    assert done.returncode == 0, done.stderr
    return msgspec.json.decode(done.stdout.encode(), type=LoadStudy)


def latency(point: LoadPoint, metric: str) -> Latency:
    return next(found for found in point.latencies if found.metric == metric)


def mean(point: LoadPoint, metric: str) -> float:
    found = latency(point, metric).mean
    assert found is not None
    return found.value


def recomputed(out: Path, cwd: Path) -> LoadStudy:
    return study_of(run_here("report", str(out), "--out", str(cwd / "again"), "--json", cwd=cwd))


def test_a_server_of_known_timing_is_measured_and_computed_again_from_its_log(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with golden_server(Script(ttft_s=0.05, itl_s=0.005)) as server:
        target = (f"{server.url}/v1", "--model", "golden")
        done = run("bench", *target, "--rate", "8", *SHORT, "--slo", "ttft=10s", "--json", "--out", "out", cwd=tmp_path)
    study = study_of(done)
    (point,) = study.points
    assert study.stopped_because == "finished"
    assert (point.load, point.rate_per_s, point.concurrency) == ("8 req/s", 8.0, None)
    assert point.requests == point.answered > 0
    assert point.errors == {}
    assert point.output_tokens_mean == 12
    # The server sleeps at least this long and the client cannot see it sooner; above, the machine may be busy.
    assert mean(point, "service_ttft_s") >= 0.05
    assert mean(point, "ttft_s") >= mean(point, "service_ttft_s")
    assert mean(point, "tpot_s") >= 0.005
    assert mean(point, "e2e_s") >= 0.05 + 11 * 0.005
    assert all(p.value is None and p.why == "n too small" for p in latency(point, "ttft_s").percentiles if p.p >= 99)
    assert point.good is not None
    assert point.good.hits == point.requests
    assert point.client.ceiling is not None
    assert point.client.ceiling.requests_per_s > 0
    assert point.joules_per_token is None or point.joules_per_token > 0
    started = next(event for event in iter_events(out / "events.jsonl") if isinstance(event, LoadStarted))
    assert (out / started.schedule).is_file()
    assert recomputed(out, tmp_path) == study
    assert (out / "result.json").read_bytes() == (tmp_path / "again" / "result.json").read_bytes()
    assert (out / "report.html").read_bytes() == (tmp_path / "again" / "report.html").read_bytes()


def test_failures_are_counted_by_kind_and_pull_the_percentiles_up(tmp_path: Path) -> None:
    scripts = [
        Script(ttft_s=0.01, fault=fault) for fault in ("status_429", None, "half_event", None, "reset", None) * 6
    ]
    with golden_server(*[Script()] * 6, *scripts, Script(ttft_s=0.01)) as server:  # the first answer the probes
        done = run(
            *("bench", f"{server.url}/v1#golden", "--concurrency", "2", "--requests", "40", "--warm-up", "0s"),
            *("--prompt", "16", "--output", "4", "--quiet", "--json", "--out", "out"),
            cwd=tmp_path,
        )
    (point,) = study_of(done).points
    assert point.requests == 40
    assert point.answered == 40 - sum(point.errors.values())
    assert set(point.errors) == {"http_429", "broken_stream", "reset"}
    assert all(4 <= count <= 6 for count in point.errors.values())
    late = latency(point, "ttft_s").percentiles[-1]
    assert late.value is None


@pytest.mark.alone
def test_of_two_servers_the_faster_wins_under_the_same_schedule(tmp_path: Path) -> None:
    with golden_server(SLOW) as slow, golden_server(FAST) as fast:
        urls = (f"{slow.url}/v1#golden", f"{fast.url}/v1#golden")
        done = run(
            "compare", *urls, "--rate", "8,16", *SHORT, "--slo", "tpot=6ms", "--json", "--out", "out", cwd=tmp_path
        )
        shown = run_here("report", "out", cwd=tmp_path)
    study = study_of(done)
    slower, faster = (model.name for model in study.models)
    assert slower != faster
    tpot = [found for found in study.differences if found.metric == "tpot_s"]
    assert {found.load for found in tpot} == {"8 req/s", "16 req/s"}
    for found in tpot:
        assert found.winner == faster
        assert found.ratio.low is not None
        assert found.ratio.low > 1.5
    assert faster in study.headline
    assert {c.metric for c in study.crossings if c.rate_per_s is not None} <= {"ttft_s"}
    schedules = sorted((tmp_path / "out").glob("schedule-*.jsonl"))
    assert len(schedules) == 4  # two rates, two rounds, the same for both
    assert recomputed(tmp_path / "out", tmp_path) == study
    assert shown.returncode == 0
    assert study.headline[:40] in shown.stdout.replace("\n", " ")


def tiny(tmp_path: Path) -> list[str]:
    """A dense and a Mixture-of-Experts model of the examples, with a short context."""
    names = []
    for name in ("tiny-dense", "tiny-moe"):
        told = yaml.safe_load((Path("examples") / f"{name}.yaml").read_text())
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({**told, "n_layers": 1, "context": 2048}))
        names.append(f"{name}.yaml")
    return names


def test_two_models_replay_a_trace_and_every_number_comes_from_the_log(tmp_path: Path) -> None:
    lines = [f"2023-11-16 18:00:{k * 0.4:010.7f},{20 + 9 * (k % 5)},{4 + k % 3}" for k in range(24)]
    (tmp_path / "conv.csv").write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines, ""]))
    models = tiny(tmp_path)
    done = run(
        *("compare", *models, "--trace", "conv.csv", "--speed", "2", "--slots", "2", "--slo", "ttft=5s,tpot=1s"),
        *("--quiet", "--json", "--out", "out"),
        cwd=tmp_path,
    )
    study = study_of(done)
    assert [point.requests for point in study.points] == [24, 24]
    assert all(point.exact_prompts for point in study.points)
    assert all(point.engine is not None and point.engine.samples > 0 for point in study.points)
    asked = [20 + 9 * (k % 5) for k in range(24)]
    assert study.points[0].prompt_tokens_mean == pytest.approx(sum(asked) / 24)
    assert study.workload.arrivals.rate_scale == 2
    assert "synthetic weights: speed and memory only" in study.caveats
    assert {model.moe for model in study.models} == {True, False}
    assert recomputed(tmp_path / "out", tmp_path) == study
    counted = [e for e in iter_events(tmp_path / "out" / "events.jsonl") if isinstance(e, RequestDone) and not e.warm]
    prompts = {model.name: [] for model in study.models}
    for event in counted:
        prompts[event.model].append(event.asked_prompt_tokens)
    assert all(sorted(each) == sorted(asked) for each in prompts.values())


def test_python_gives_the_same_result_as_the_log(tmp_path: Path) -> None:
    traffic = breakeven.Traffic(concurrency="2", requests=20, prompt="16", output="4", warm_up="0s")
    with golden_server(FAST) as server:
        study = breakeven.bench(
            f"{server.url}/v1#golden", traffic, options=breakeven.LoadOptions(out=tmp_path / "out", processes=1)
        )
    assert [point.answered for point in study.points] == [20]
    assert breakeven.report(tmp_path / "out") == study
    assert (tmp_path / "out" / "report.html").is_file()


def test_answers_that_are_within_the_slo_are_waited_for(tmp_path: Path) -> None:
    traffic = breakeven.Traffic(
        rate="4", arrivals="constant", duration="1s", warm_up="0s", prompt="16", output="4", slo="e2e=60s"
    )
    with golden_server(Script(ttft_s=1.0)) as server:
        study = breakeven.bench(
            f"{server.url}/v1#golden",
            traffic,
            options=breakeven.LoadOptions(out=tmp_path / "out", processes=1, drain_s=0.1),
        )
    (point,) = study.points
    assert point.errors == {}
    assert point.good is not None
    assert point.good.share == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("http://127.0.0.1:9/v1#golden",), "cannot be reached"),
        (("URL",), "names no model"),
        (("URL", "--model", "other-name"), "has no model other-name"),
        (("URL#golden", "--rate", "1", "--concurrency", "2"), "--rate and --concurrency"),
        (("URL#golden", "--slo", "ttft=1s,speed=9"), "column 9"),
        (("URL#golden", "--trace", "bad.csv"), "bad.csv, line 3"),
        (("URL#golden", "--rate", "900000", "--duration", "2s"), "--processes"),
        (("URL#golden", "--processes", "0"), "--processes"),
        (("URL#golden", "--output", "0"), "'0'"),
        (("no-such-model",), "no model is called"),
        (("no-such-model", "--model", "x"), "--model"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(tmp_path: Path, arguments: Sequence[str], says: str) -> None:
    (tmp_path / "bad.csv").write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.97,12,10\nlater,3,4\n"
    )
    with golden_server(Script()) as server:
        given = [text.replace("URL", f"{server.url}/v1") for text in arguments]
        done = run_here("bench", "--quiet", "--processes", "1", *given, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def hear_ctrl_c() -> None:
    """A suite that runs in the background of a shell has Ctrl-C switched off, and so would its children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_ctrl_c_keeps_what_there_is_and_resume_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with golden_server(FAST) as server:
        arguments = ["bench", f"{server.url}/v1#golden", "--rate", "10,20", *SHORT, "--out", str(out)]
        command = [sys.executable, "-m", "breakeven.cli", *arguments]
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=hear_ctrl_c)
        with process:
            wait_for_second_load(out / "events.jsonl")
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
        assert process.returncode == 130, said
        assert "Traceback" not in said
        stopped = list(iter_events(out / "events.jsonl"))
        ends = [event for event in stopped if isinstance(event, LoadDone)]
        assert [(end.ok, end.because) for end in ends] == [(True, "finished"), (False, "interrupted")]
        assert isinstance(stopped[-1], StudyStopped)
        assert stopped[-1].because == "interrupted"
        assert "10 req/s" in {point.load for point in recomputed(out, tmp_path).points}
        refused = run_here(*arguments, cwd=tmp_path)
        assert refused.returncode == 2
        assert "--resume" in refused.stderr
        resumed = study_of(run(*arguments, "--resume", "--json", cwd=tmp_path))
    assert [point.load for point in resumed.points] == ["10 req/s", "20 req/s"]
    assert resumed.stopped_because == "finished"
    loads = [event.load for event in iter_events(out / "events.jsonl") if isinstance(event, LoadStarted)]
    assert loads == ["10 req/s", "20 req/s", "20 req/s"]


def wait_for_second_load(log: Path) -> None:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        events = list(iter_events(log)) if log.exists() else []
        began = [at for at, event in enumerate(events) if isinstance(event, LoadStarted)]
        if len(began) == 2 and any(isinstance(event, RequestDone) for event in events[began[1] :]):
            return
        time.sleep(0.1)
    raise AssertionError("nobody was answered in a second load")


def test_report_says_what_it_needs(tmp_path: Path) -> None:
    nothing = run_here("report", ".", cwd=tmp_path)
    assert nothing.returncode == 2
    assert "events.jsonl" in nothing.stderr
    (tmp_path / "events.jsonl").write_text('{"event":"garbage"}\n')
    garbage = run_here("report", ".", cwd=tmp_path)
    assert garbage.returncode != 0
    assert "line 1" in garbage.stderr
