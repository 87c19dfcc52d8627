"""What the gateway served, as a workload: which requests count, how long they were, what was decided on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from gateway_plan_fixtures import START_S, record, traffic, write_log
from hypothesis import given, settings
from hypothesis import strategies as st

from breakeven.answer.decide import decide
from breakeven.answer.study.load import read_study
from breakeven.cli.main import dispatch
from breakeven.errors import UserError
from breakeven.forecast.serving import unit_requests
from breakeven.gateway.loop.run import decide_from_log, fleet_of, same_verdict, study_of_gateway, study_on_log
from breakeven.gateway.loop.traffic import counts, traffic_of, workload_of_log, write_trace
from breakeven.gateway.plan.load import read_gateway
from breakeven.gateway.seen.record import DecisionRecord
from breakeven.pages.decision_terminal import log_summary
from breakeven.results.cost import Api
from breakeven.results.decision import TrafficShare, Verdict
from breakeven.results.store import write
from breakeven.traffic.traces.read import read_trace
from breakeven.traffic.workload import Arrivals, Workload

STUDY = """\
load: {rate: 0.05/s, prompt: 512, output: 128, requests: 200}
slo: {ttft: 2s, tpot: 100ms, share: 95%}
candidates:
  - name: cheap
    price: {api: {input: 0.05, output: 0.08}}
    speed: {ttft: 0.5s, tokens_per_s: 99, source: x}
  - name: dear
    price: {api: {input: 0.5, output: 0.8}}
    speed: {ttft: 0.5s, tokens_per_s: 99, source: x}
"""
GATEWAY = """\
backends:
  - &dense
    name: a
    url: http://10.0.0.1/v1
    model: qwen3-0.6b
    machine: l40s
    slots: 64
    replica_of: g
    price: {rented: {usd_per_hour: 1}}
    quality: 60%
  - {<<: *dense, name: b}
  - {name: c, url: http://10.0.0.3/v1, price: {api: {input: 0.1, output: 0.4}}, quality: 70%}
  - {name: d, url: http://10.0.0.4/v1, quality: 70%}
policies:
  - {model: other, backends: [c]}
  - {model: chat, slo: {ttft: 2s}, quality_floor: 50%}
"""


@pytest.mark.parametrize(
    ("changes", "counted"),
    [
        ({}, True),
        ({"status": 499}, True),  # the client left
        ({"status": 502, "backend": ""}, True),
        ({"status": 503, "backend": ""}, True),
        ({"finish": "cut"}, True),
        ({"status": 429, "reason": "shed"}, True),
        ({"status": 429}, False),  # a key's limit
        ({"status": 400}, False),
        ({"status": 404}, False),
        ({"status": 0}, False),
        ({"endpoint": "/v1/embeddings"}, False),
        ({"endpoint": "/v1/responses"}, True),
        ({"shadow_of": "r1"}, False),
        ({"group": "g"}, False),
    ],
)
def test_what_counts_as_traffic(changes: dict[str, Any], counted: bool) -> None:
    assert counts(record(0, **changes)) is counted


def test_lengths_are_counted_ones_else_expected() -> None:
    found = traffic_of(
        [
            record(0, prompt_tokens=300, output_tokens=20),
            record(1, prompt_tokens=None, output_tokens=None, status=503),
            record(2, prompt_tokens=300, output_tokens=20, status=499),  # left early: it asked for more
            record(3, prompt_tokens=300, output_tokens=200, finish="cut"),
            record(4, status=400),
            record(5, prompt_tokens=0, output_tokens=0),
        ]
    )
    assert found.rows.prompt.tolist() == [300, 90, 300, 300, 1]
    assert found.rows.output.tolist() == [20, 70, 70, 200, 1]
    assert (found.estimated, found.left_out) == (3, 1)
    assert found.rows.at_ns.tolist() == [0, 10**9, 2 * 10**9, 3 * 10**9, 5 * 10**9]
    assert found.first_s == START_S
    assert found.usd == pytest.approx(5e-4)
    assert found.backends == {"a": 5}


def test_a_conversation_is_told_by_its_growing_prompt() -> None:
    found = traffic_of(
        [
            record(0, session=7, prompt_tokens=100, output_tokens=50, e2e_s=2.0),
            record(5, session=7, prompt_tokens=170, output_tokens=40, e2e_s=1.0),  # 20 new tokens, 3 s later
            record(6.5, session=7, prompt_tokens=30, output_tokens=10),  # a new question of the same user
            record(7, session=8, prompt_tokens=100, output_tokens=50, e2e_s=9.0),
            record(8, session=8, prompt_tokens=160, output_tokens=50),  # beside, not after, the one before
            record(9, prompt_tokens=100, output_tokens=50),
        ]
    ).rows
    assert found.session is not None
    assert found.turn is not None
    assert found.think_ns is not None
    assert found.session.tolist() == [0, 0, -1, -1, -1, -1]
    assert found.turn.tolist()[:2] == [0, 1]
    assert found.prompt.tolist() == [100, 20, 30, 100, 160, 100]
    assert found.think_ns[1] == 3 * 10**9


def test_traffic_without_conversations_has_no_sessions() -> None:
    assert traffic_of([record(0, session=1), record(1, session=2)]).rows.session is None


def test_the_share_of_cached_tokens_is_that_of_backends_that_tell() -> None:
    told = [record(0, cached_tokens=60), record(1, cached_tokens=0), record(2)]
    assert traffic_of(told).cached_share == pytest.approx(0.3)
    assert traffic_of([record(0), record(1)]).cached_share is None


@pytest.mark.parametrize("few", [[], [record(0)], [record(0), record(0)], [record(0), record(1, status=400)]])
def test_too_little_traffic_is_refused(few: list[DecisionRecord]) -> None:
    with pytest.raises(UserError, match="serve some traffic first"):
        traffic_of(few)


def test_logs_of_several_machines_are_one_traffic(tmp_path: Path) -> None:
    one = write_log(tmp_path / "one", [record(0, id="x"), record(3, id="y")])
    write_log(one, [record(1, id="z")], worker=1)
    two = write_log(tmp_path / "two", [record(2, id="w")])
    found = workload_of_log([one, two])
    assert found.rows.at_ns.tolist() == [0, 10**9, 2 * 10**9, 3 * 10**9]
    assert found.rate_per_s == pytest.approx(4 / 3)


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such directory"):
        workload_of_log([tmp_path / "none"])


@given(
    asked=st.lists(
        st.tuples(st.floats(0, 1e5), st.integers(0, 3), st.integers(1, 9999), st.integers(1, 999)),
        min_size=2,
        max_size=30,
    )
)
@settings(max_examples=60, deadline=None)
def test_a_written_trace_is_the_same_traffic(
    tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[float, int, int, int]]
) -> None:
    asked.sort()
    if asked[-1][0] - asked[0][0] < 1e-3:
        return
    rows = traffic_of(
        record(at_s, session=session, prompt_tokens=prompt, output_tokens=output)
        for at_s, session, prompt, output in asked
    ).rows
    back = read_trace(write_trace(rows, tmp_path_factory.mktemp("trace") / "traffic.csv"))
    for column in ("at_ns", "prompt", "output"):
        assert getattr(back, column).tolist() == getattr(rows, column).tolist()
    assert (back.session is None) == (rows.session is None)
    if back.session is not None and rows.session is not None:
        assert back.turn is not None
        assert rows.turn is not None
        # Names of conversations may change, what belongs together does not.
        assert (back.session < 0).tolist() == (rows.session < 0).tolist()
        assert len(set(back.session.tolist())) == len(set(rows.session.tolist()))
        assert back.turn.tolist() == rows.turn.tolist()
    # What a simulation replays of it holds every token that the engines read.
    drawn = unit_requests(Workload(arrivals=Arrivals(process="trace", trace="t"), sharing=True), back, len(back))
    assert len(drawn) == len(asked)
    assert int(np.sum(drawn.output_tokens_N)) == int(rows.output.sum())


def test_a_gateways_own_backends_are_the_candidates(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(GATEWAY, encoding="utf-8")
    logged = traffic_of(traffic(50, 2.0))
    study, left = study_of_gateway(read_gateway(file, {}), logged, tmp_path / "traffic.csv")
    assert [each.name for each in study.candidates] == ["a", "c"]  # b is another of a
    assert left == ["d"]
    assert study.slo.ttft_s == 2.0  # of chat, which was asked for
    assert study.quality.scores == {"a": 0.6, "c": 0.7}
    assert study.quality.floor == 0.5
    assert study.candidates[0].policy.max_sequences == 64
    assert isinstance(study.candidates[1].pricing, Api)
    assert study.low_per_s < study.load_per_s == logged.rate_per_s < study.high_per_s


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (GATEWAY.replace("slo: {ttft: 2s}, ", ""), "asks for no slo"),
        ("backends: [{name: a, url: http://h/v1}]\npolicies: [{model: chat, slo: {ttft: 1s}}]", "none can be judged"),
    ],
)
def test_a_gateway_that_cannot_be_judged_says_what_is_missing(tmp_path: Path, text: str, right: str) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=right):
        study_of_gateway(read_gateway(file, {}), traffic_of(traffic(9, 2.0)), tmp_path / "traffic.csv")


def verdict(outcome: Any, winner: str | None, *mix: str) -> Verdict:
    shares = [TrafficShare(candidate=name, traffic="", share=0.5) for name in mix]
    return Verdict(outcome=outcome, winner=winner, sentence="", because=[], shares=shares)


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        (verdict("dense", "a"), verdict("dense", "a"), True),
        (verdict("dense", "a"), verdict("dense", "b"), False),
        (verdict("dense", "a"), verdict("no_difference", None), False),
        (verdict("both", None, "a", "b"), verdict("both", None, "b", "a"), True),
        (verdict("both", None, "a", "b"), verdict("both", None, "a", "c"), False),
    ],
)
def test_a_verdict_stands_when_the_same_ones_carry_it_out(before: Verdict, after: Verdict, same: bool) -> None:
    assert same_verdict(before, after) is same


def test_from_log_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("study.yaml").write_text(STUDY, encoding="utf-8")
    records = traffic(300, 2.0)
    write_log(Path("log"), [*records, record(999, status=401)])
    assert dispatch(["decide", "study.yaml", "--from-log", "log"]) == 0
    out = capsys.readouterr().out
    assert "300 requests in" in out
    assert "1 records were no traffic" in out
    assert "The verdict still stands" in out
    saved = Path("results/study-from-log")
    assert {path.name for path in saved.iterdir()} == {"from-log.json", "result.json", "report.html", "traffic.csv"}
    told = json.loads((saved / "from-log.json").read_text(encoding="utf-8"))
    assert told["schema"] == "breakeven.decide_log/1"
    assert told["stands"] is True
    assert told["before_from"] is None
    # An API is paid by the token, so what it would have cost is the sum over the log.
    prompt = sum(each.prompt_tokens or 0 for each in records)
    output = sum(each.output_tokens or 0 for each in records)
    by_name = {each["candidate"]: each["usd"]["value"] for each in told["fleets"]}
    assert by_name["cheap"] == pytest.approx((0.05 * prompt + 0.08 * output) / 1e6, rel=0.02)
    assert by_name["dear"] == pytest.approx(10 * by_name["cheap"], rel=1e-6)
    assert told["traffic"]["usd"] == pytest.approx(300e-4)
    # Its own trace replays what came.
    assert len(read_trace(saved / "traffic.csv")) == 300


def test_a_verdict_that_fell_is_told_beside_the_saved_one(tmp_path: Path) -> None:
    study, saved = tmp_path / "study.yaml", tmp_path / "result.json"
    study.write_text(STUDY, encoding="utf-8")
    log = write_log(tmp_path / "log", traffic(200, 2.0))
    write(decide(read_study(study)), saved)
    # Since then the cheap one's provider has become slow.
    study.write_text(STUDY.replace("ttft: 0.5s, tokens_per_s: 99", "ttft: 5s, tokens_per_s: 9", 1), encoding="utf-8")
    told = decide_from_log(study, [log], tmp_path / "out", saved=saved)
    assert told.stands is False
    assert told.before_from == str(saved)
    assert told.before is not None
    assert (told.before.winner, told.decision.verdict.winner) == ("cheap", "dear")
    assert "The verdict has changed" in told.sentence
    text = log_summary(told, tmp_path / "report.html")
    assert "cheap  cannot: misses the SLO: its provider's own speed" in text
    assert "200 requests in" in text
    other = decide_from_log(study, [log], tmp_path / "out", saved=None)
    assert other.stands is True  # against the study as it is now
    assert other.before_from is None


def test_a_gateway_file_is_compared_with_the_decision_beside_it(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", traffic(100, 2.0))
    file = tmp_path / "gateway.yaml"
    file.write_text(
        "backends: [{name: c, url: http://h/v1, price: {api: {input: 0.1, output: 0.4}}, "
        "speed: {ttft: 1s, tokens_per_s: 50, source: x}}]\npolicies: [{model: chat, slo: {ttft: 2s}}]",
        encoding="utf-8",
    )
    alone = decide_from_log(file, [log], tmp_path / "out")
    assert alone.stands is None
    assert alone.sentence.startswith("On the logged traffic: ")
    write(alone.decision, tmp_path / "result.json")
    again = decide_from_log(file, [log], tmp_path / "out")
    assert again.stands is True
    assert again.before_from == str(tmp_path / "result.json")
    (tmp_path / "result.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="is no decision"):
        decide_from_log(file, [log], tmp_path / "out")


def test_an_invented_day_gives_way_to_the_hours_of_the_log(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(STUDY.replace("rate: 0.05/s", f"day: {[9.0] * 24}"), encoding="utf-8")
    study = read_study(file)
    assert study.hours_per_s == (9.0,) * 24
    short = traffic_of(traffic(300, 2.0))
    found = study_on_log(study, short, tmp_path / "traffic.csv")
    assert (found.hours_per_s, found.load_per_s) == ((), short.rate_per_s)
    records = traffic(600, 600 / (24 * 3600))
    long = traffic_of(records)
    found = study_on_log(study, long, tmp_path / "traffic.csv")
    assert len(found.hours_per_s) == round(long.rows.span_s / 3600) >= 20
    assert found.load_per_s == max(found.hours_per_s) > long.rate_per_s
    told = decide_from_log(file, [write_log(tmp_path / "log", records)], tmp_path / "out")
    assert told.decision.day is not None
    came = f"{found.load_per_s:.3g} that came in the busiest hour"
    assert f"at 9 requests/s in the busiest hour as planned and at the {came}" in told.sentence
    # What an API would have cost is still the sum over the log, though the study's load is that of the busiest hour.
    prompt, output = (sum(column.tolist()) for column in (long.rows.prompt, long.rows.output))
    cheap = next(fleet for fleet in told.fleets if fleet.candidate == "cheap")
    assert cheap.usd is not None
    assert cheap.usd.value == pytest.approx((0.05 * prompt + 0.08 * output) / 1e6, rel=1e-6)


def test_a_long_log_keeps_the_question_of_a_study_of_one_load(tmp_path: Path) -> None:
    """Over a day "both" is no answer, so the verdict would have changed whatever came."""
    file = tmp_path / "study.yaml"
    parts = "parts: [{name: a, share: 80%, candidates: [cheap]}, {name: b, share: 20%, candidates: [dear]}]\n"
    file.write_text(STUDY + parts, encoding="utf-8")
    log = write_log(tmp_path / "log", traffic(600, 600 / (24 * 3600)))
    told = decide_from_log(file, [log], tmp_path / "out")
    assert told.before is not None
    assert (told.before.outcome, told.decision.verdict.outcome, told.stands) == ("both", "both", True)
    assert told.decision.load_per_s == told.traffic.rate_per_s


BOX = (
    "  - {name: box, model: llama-3.2-1b, machine: rtx-4090, format: Q4_K_M, "
    "price: {rented: {usd_per_hour: 0.6}}, scale: {least: 0, start: 0s}}\n"
)


def test_beside_a_decision_by_hours_fleets_cost_what_these_hours_do(tmp_path: Path) -> None:
    """Requests come in two hours of the 24, and the machine runs in no other."""
    file = tmp_path / "study.yaml"
    file.write_text(STUDY.replace("rate: 0.05/s", f"day: {[1.0] * 24}") + BOX, encoding="utf-8")
    records = [record(10.0 * k) for k in range(360)] + [record(23 * 3600 + 10.0 * k) for k in range(360)]
    told = decide_from_log(file, [write_log(tmp_path / "log", records)], tmp_path / "out")
    assert told.decision.day is not None
    (bill,) = [each for each in told.decision.day.bills if each.candidate == "box"]
    assert bill.usd_per_day.value == pytest.approx(2 * 0.6)
    (box,) = [each for each in told.fleets if each.candidate == "box"]
    assert box.usd is not None
    assert box.usd.value == pytest.approx(2 * 0.6 * told.traffic.span_s / 86_400)
    assert box.replicas is not None
    assert box.replicas.value == max(bill.machines) == 1
    logged = workload_of_log([tmp_path / "log"])
    (row,) = [each for each in told.decision.candidates if each.name == "box"]
    # Whoever is ruled out has no bill of these hours, and that of the mean load would look cheap beside the others'.
    others = msgspec.structs.replace(told.decision.day, bills=[msgspec.structs.replace(bill, candidate="other")])
    out = fleet_of(msgspec.structs.replace(row, ruled_out=["beyond the budget"]), logged, others)
    assert (out.usd, out.replicas) == (None, None)
    # Without hours it runs all the time.
    always = fleet_of(row, logged)
    assert always.usd is not None
    assert always.usd.value == pytest.approx(0.6 * told.traffic.span_s / 3600)
