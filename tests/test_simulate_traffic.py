"""From schedules and command lines to simulations."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from simulate_fixtures import TINY_POLICY, model, profile

import breakeven
from breakeven.cli.main import dispatch
from breakeven.errors import UserError
from breakeven.forecast.long_trace import simulate_long_trace
from breakeven.forecast.profiles import profile_of_chip
from breakeven.forecast.simulated import simulate_schedule, simulate_traffic
from breakeven.forecast.simulator.policy import Fleet
from breakeven.forecast.simulator.run import policy_of, simulate
from breakeven.forecast.simulator.state import Requests, requests_of_schedule
from breakeven.hardware.chips import chip_named
from breakeven.results import predicted
from breakeven.results.predicted import SimulationStudy
from breakeven.traffic.draw import draw
from breakeven.traffic.schedule import DEPENDS
from breakeven.traffic.schedule_file import save_schedule
from breakeven.traffic.traces.read import read_trace
from breakeven.traffic.workload import Agents, Arrivals, Length, Slo, Workload

DENSE = model("llama-3.2-1b")
PROMPT, OUTPUT = Length(mean=200), Length(mean=50)


def workload(**changes: object) -> Workload:
    base = Workload(arrivals=Arrivals(process="poisson", rate_per_s=4.0), prompt=PROMPT, output=OUTPUT, duration_s=20.0)
    return msgspec.structs.replace(base, **changes)


def test_turns_carry_their_history() -> None:
    requests = requests_of_schedule(draw(workload(turns=3, turn_think_s=1.5)))
    assert requests.prompt_tokens_N[:4].tolist() == [200, 450, 700, 200]
    assert requests.after_N is not None
    assert requests.after_N[:4].tolist() == [-1, 0, 1, -1]
    # The next turn's text begins with this one's, answer included, and with nobody else's.
    assert requests.prefix[1][: len(requests.prefix[0])] == requests.prefix[0]
    assert not set(requests.prefix[2]) & set(requests.prefix[3])


def test_conversations_read_only_what_is_new() -> None:
    study = simulate_traffic(
        DENSE, [workload(turns=4, turn_think_s=0.5)], policy=replace(TINY_POLICY, prefix_caching=True)
    )
    plain = simulate_traffic(DENSE, [workload(turns=4, turn_think_s=0.5)], policy=TINY_POLICY)
    assert study.points[0].cached_prompt_share > 0.4
    assert plain.points[0].cached_prompt_share == 0.0


def test_a_closed_loop_keeps_its_streams_busy_until_the_time_is_over() -> None:
    asked = workload(arrivals=Arrivals(process="closed", concurrency=5), duration_s=30.0, warm_up_s=5.0)
    schedule = draw(asked)
    assert (schedule.due_ns_N == DEPENDS).all()
    run, counted = simulate_schedule(schedule, DENSE, TINY_POLICY, Fleet())
    assert run.arrival_s_N[run.issued_N].max() <= 35.0 < run.end_s + 5.0
    assert run.arrival_s_N[counted].min() >= 5.0
    assert float(run.over_time()["decoding"][5:-5].max()) == pytest.approx(5.0)


def test_a_closed_loop_starts_over_when_its_rows_are_used_up() -> None:
    asked = workload(
        arrivals=Arrivals(process="closed", concurrency=8),
        prompt=Length(mean=1),
        output=Length(mean=1),
        duration_s=60.0,
    )
    run, _ = simulate_schedule(draw(asked), DENSE, TINY_POLICY, Fleet())
    assert run.issued_N.sum() > 4096
    assert np.nanmax(run.arrival_s_N) > 59.0


def test_what_follows_an_answer_comes_when_the_next_step_has_begun() -> None:
    """An engine does not wait for a client to ask again: who follows joins the step after the one just begun."""

    def median_first_s(streams: int) -> float:
        asked = workload(
            arrivals=Arrivals(process="closed", concurrency=streams),
            output=Length(kind="uniform", low=20, high=80),
            requests=200,
            duration_s=None,
        )
        run, counted = simulate_schedule(draw(asked), DENSE, TINY_POLICY, Fleet())
        return float(np.median((run.first_s_N - run.arrival_s_N)[counted]))

    step_s = float(DENSE.step_s(1, 225))
    alone_s, beside_s = median_first_s(1), median_first_s(2)
    # Of the other's steps, the one under way when the request comes; its own step answers both.
    assert 0.8 * step_s <= beside_s - alone_s <= 2.0 * step_s


def test_a_trace_shares_prefixes_only_where_asked(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 4000 * i, "input_length": 1100, "output_length": 5, "hash_ids": [1, 2, 10 + i]} for i in range(6)
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    trace = read_trace(tmp_path / "m.jsonl")
    asked = Workload(arrivals=Arrivals(process="trace", trace="m.jsonl"))
    policy = replace(policy_of(DENSE), prefix_caching=True)
    shares = [
        simulate_traffic(DENSE, [msgspec.structs.replace(asked, sharing=s)], trace=trace, policy=policy).points[0]
        for s in (True, False)
    ]
    assert shares[0].cached_prompt_share == pytest.approx(5 * 1024 / (6 * 1100))
    assert shares[1].cached_prompt_share == 0.0


def test_intervals_hold_the_value_and_widen_with_load() -> None:
    slo = Slo(ttft_s=0.5, tpot_s=0.05)
    loads = [workload(arrivals=Arrivals(process="poisson", rate_per_s=rate), requests=600) for rate in (1.0, 12.0)]
    study = simulate_traffic(DENSE, [msgspec.structs.replace(w, duration_s=None) for w in loads], slo=slo)
    widths = []
    for point in study.points:
        for latency in point.latencies:
            for entry in latency.percentiles:
                if entry.seconds is not None:
                    assert entry.seconds.low <= entry.seconds.value <= entry.seconds.high
        assert point.good_share is not None
        e2e = next(latency for latency in point.latencies if latency.metric == "e2e_s").percentiles[0].seconds
        assert e2e is not None
        widths.append(e2e.high / e2e.low)
    assert widths[1] > widths[0]
    assert msgspec.json.decode(msgspec.json.encode(study), type=SimulationStudy) == study


def test_a_growing_queue_is_named() -> None:
    calm, flooded = (
        simulate_traffic(DENSE, [workload(arrivals=Arrivals(process="constant", rate_per_s=rate))], policy=TINY_POLICY)
        for rate in (1.0, 200.0)
    )
    assert not calm.points[0].queue_grows
    assert flooded.points[0].queue_grows
    assert any("queue grows" in note for note in flooded.notes)


def test_percentiles_of_few_requests_are_not_given() -> None:
    study = simulate_traffic(DENSE, [workload()])
    entries = {entry.p: entry.seconds for entry in study.points[0].latencies[0].percentiles}
    assert entries[50.0] is not None
    assert entries[99.9] is None


def test_on_a_cpu_vllm_plans_no_step_ahead() -> None:
    gpu = profile_of_chip(chip_named("l40s"), "vllm")
    cpu = msgspec.structs.replace(gpu, chip=msgspec.structs.replace(chip_named("l40s"), chip_class="cpu"))
    ours, theirs = (policy_of(replace(DENSE, profile=one)) for one in (gpu, cpu))
    assert (ours.ahead, ours.max_sequences) == (True, 256)
    assert (theirs.ahead, theirs.max_sequences, theirs.max_step_tokens) == (False, 128, 2048)


@pytest.mark.parametrize(
    ("chip", "sequences", "tokens"),
    [
        ("h100-sxm", 1024, 8192),
        ("a100-80gb-sxm", 256, 2048),
        ("l40s", 256, 2048),
        ("b200-sxm", 1024, 16384),
        ("mi300x", 1024, 16384),
    ],
)
def test_vllm_takes_steps_by_its_device(chip: str, sequences: int, tokens: int) -> None:
    found = policy_of(replace(DENSE, profile=profile_of_chip(chip_named(chip), "vllm")))
    assert (found.max_sequences, found.max_step_tokens) == (sequences, tokens)


def test_a_model_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(UserError, match="leaves no room"):
        policy_of(replace(DENSE, profile=msgspec.structs.replace(profile(), memory_bytes=3 * 10**9)))


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["simulate", "llama-3.1-8b", "--machine", "h100-sxm", "--requests", "80", "--slo", "ttft=1s"]
    assert dispatch([*words, "--rate", "2,40"]) == 0
    text = capsys.readouterr().out
    assert "simulated, not measured" in " ".join(text.split())
    assert "40 req/s" in text
    assert dispatch([*words, "--rate", "2", "--replicas", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "breakeven.simulate/1"
    assert found["points"][0]["requests"] == 80
    assert found["replicas"] == "3 replicas, least loaded"
    save_schedule(draw(workload(requests=40)), tmp_path / "schedule.jsonl")
    from_file = ["simulate", "llama-3.1-8b", "--machine", "h100-sxm", "--schedule", str(tmp_path / "schedule.jsonl")]
    assert dispatch([*from_file, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["points"][0]["requests"] == 40
    for wrong, says in (
        ([*from_file, "--rate", "3"], "different kinds of load"),
        ([*words, "--rate", "2", "--autoscale", "few"], "such as 1-4"),
        ([*words, "--rate", "2", "--balancing", "best"], "round_robin"),
        (["simulate", "llama-3.1-405b", "--machine", "l4", "--rate", "1"], "leaves no room"),
    ):
        with pytest.raises(UserError, match=says):
            dispatch(wrong)


def test_every_field_is_documented() -> None:
    page = (Path(__file__).parents[1] / "docs" / "json.md").read_text()
    sections = dict(re.findall(r"^## `(\w+)`.*?\n(.*?)(?=^## |^# |\Z)", page, re.M | re.S))
    structs = [
        each for each in vars(predicted).values() if isinstance(each, type) and each.__module__ == predicted.__name__
    ]
    assert len(structs) == 8
    for each in structs:
        for field in msgspec.structs.fields(each):
            assert f"| `{field.encode_name}` |" in sections.get(each.__name__, ""), f"{each.__name__}.{field.name}"


def test_a_long_trace_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    at = np.cumsum(rng.exponential(0.2, 900))
    lengths = rng.integers(1, 400, (900, 2))
    lines = [f"{t:.6f},{p},{o}\n" for t, (p, o) in zip(at, lengths.tolist(), strict=True)]
    path = tmp_path / "long.csv"
    path.write_text("at_s,prompt_tokens,output_tokens\n" + "".join(lines))
    slo = Slo(ttft_s=0.3)
    whole = simulate_traffic(
        DENSE,
        [Workload(arrivals=Arrivals(process="trace", trace="long.csv"))],
        trace=read_trace(path),
        slo=slo,
        policy=TINY_POLICY,
        fleet=Fleet(replicas=2),
    ).points[0]
    parts = simulate_long_trace(DENSE, path, slo=slo, policy=TINY_POLICY, fleet=Fleet(replicas=2), rows=70).points[0]
    assert parts.requests == whole.requests
    assert parts.steps == whole.steps
    assert parts.good_share == whole.good_share
    assert (parts.queue_grows, whole.queue_grows) == (False, False)
    assert parts.output_tokens_per_s.value == pytest.approx(whole.output_tokens_per_s.value)
    for ours, theirs in zip(parts.latencies, whole.latencies, strict=True):
        for a, b in zip(ours.percentiles, theirs.percentiles, strict=True):
            if a.seconds is not None and b.seconds is not None:
                assert a.seconds.value == pytest.approx(b.seconds.value, rel=0.006)
    monkeypatch.setattr("breakeven.api.computed.WHOLE_BYTES", 1000)
    with pytest.raises(UserError, match="leave out --window"):
        dispatch(["simulate", "llama-3.2-1b", "--machine", "l4", "--trace", str(path), "--window", "0s-1m"])
    path.write_text("at_s,prompt_tokens,output_tokens\n" + "".join(reversed(lines)))
    with pytest.raises(UserError, match="in order of time"):
        simulate_long_trace(DENSE, path, policy=TINY_POLICY)


def test_a_queue_that_grows_is_named_in_parts_too(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    lines = [f"{0.05 * k:.6f},200,200\n" for k in range(4000)]
    path.write_text("at_s,prompt_tokens,output_tokens\n" + "".join(lines))
    study = simulate_long_trace(DENSE, path, policy=TINY_POLICY, rows=500)
    asked = [Workload(arrivals=Arrivals(process="trace", trace="long.csv"))]
    whole = simulate_traffic(DENSE, asked, trace=read_trace(path), policy=TINY_POLICY)
    assert study.points[0].queue_grows
    assert whole.points[0].queue_grows
    assert next(note for note in whole.notes if "queue grows" in note) in study.notes


def test_a_long_trace_says_what_is_not_played_as_recorded(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    path.write_text(
        "TIMESTAMP,NumImages,ContextTokens,GeneratedTokens\n2024-10-15 00:00:00,2,100,4\n"
        "2024-10-15 00:00:01,0,90,0\n2024-10-15 00:00:02,1,50,3\n"
    )
    note = simulate_long_trace(DENSE, path, policy=TINY_POLICY, rows=2).notes[0]
    assert note == (
        "long.csv is read in parts; its numbers: times of day in UTC; 1 without an answer's tokens and played with one"
        "; 3 images, in 2 of them, are counted, not sent"
    )


# --- what an engine keeps --------------------------------------------------------------------------------------------

SLOTS = replace(TINY_POLICY, prefix_caching=False, slot_caching=True)


def test_a_slot_keeps_what_it_read_of_a_conversation_but_not_the_answer() -> None:
    asked = workload(turns=3, turn_think_s=0.5, prompt=Length(mean=640), output=Length(mean=64), requests=3)
    asked = msgspec.structs.replace(asked, arrivals=Arrivals(process="closed", concurrency=1), duration_s=None)
    run, _ = simulate_schedule(draw(asked), DENSE, SLOTS, Fleet())
    # Of 640, 1344 and 2048 tokens: nothing, the first prompt, the second prompt with the first answer in it.
    assert run.cached_tokens_N.tolist() == [0, 640, 1344]


def test_slots_do_not_share_and_the_one_unused_longest_goes() -> None:
    one, two = ((7,) * 10 + (k,) for k in (1, 2))
    requests = Requests(
        np.array([0.0, 0.0, 100.0, 200.0]),
        np.full(4, 11 * 64 + 1),
        np.full(4, 2),
        prefix=(one, two, one, (5,) * 11),
        prefix_tokens=64,
    )
    run = simulate(requests, DENSE, replace(SLOTS, max_sequences=2), Fleet())
    # Together two slots read alike; later the slot of the same prompt is found again, and a stranger finds nothing.
    assert run.cached_tokens_N.tolist() == [0, 0, 11 * 64, 0]


def test_agents_share_their_prefix_in_the_simulator() -> None:
    arrivals = Arrivals(process="agents", rate_per_s=0.5, agents=Agents(prefix=1280, turns=1, subagents=0.0))
    asked = Workload(arrivals=arrivals, requests=40, sharing=True)
    shares = [
        simulate_traffic(DENSE, [asked], policy=policy).points[0].cached_prompt_share
        for policy in (replace(SLOTS, max_sequences=1), SLOTS, replace(SLOTS, slot_caching=False))
    ]
    plan = draw(asked)
    # One slot has read it since the first request.
    assert shares[0] == pytest.approx(39 * 1280 / int(plan.prompt_N.sum()))
    assert 0 < shares[1] <= shares[0]
    assert shares[2] == 0


def test_simulate_refuses_what_is_longer_than_a_context() -> None:
    """OLMoE ends at 4,096 tokens; Llama 3.2 1B does not."""
    traffic = breakeven.Traffic(rate="1", requests=20, prompt="5000", output="10")
    for name, refused in (("olmoe-1b-7b", 20), ("llama-3.2-1b", 0)):
        study = breakeven.simulate(name, traffic, machine="rtx-4090")
        assert study.points[0].refused == refused
        assert any("longer than the context" in note for note in study.notes) == bool(refused)
