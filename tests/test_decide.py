"""`decide` from a study file to a verdict: real profiles, real simulations, short ones."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from rich.console import Console

from breakeven.answer.candidates import result_of, why_not
from breakeven.answer.decide import _capacity_of, decide
from breakeven.answer.evaluate import evaluate
from breakeven.answer.mixes import Mix
from breakeven.answer.promise import NOBODY
from breakeven.answer.regions import Standing
from breakeven.answer.study.load import read_study
from breakeven.answer.words import verdict_of
from breakeven.cli.main import _run
from breakeven.errors import UserError
from breakeven.hardware.machine import MachineSpec
from breakeven.model.quality.scores import QualityScore
from breakeven.pages.decision_html import cost_cells, month_cell, now_cells, render_decision
from breakeven.pages.decision_terminal import print_decision
from breakeven.pages.decision_words import month_text, runs_on
from breakeven.price.pricing import NOT_BILLED
from breakeven.results.cost import ENDLESS
from breakeven.results.decision import Decision, TrafficShare
from breakeven.results.lab import Evaluated, Evaluation, Slice, TaskScore
from breakeven.results.load import CapacityStudy, Limit, LoadModel, Trial
from breakeven.results.point import OF_LATENCY
from breakeven.results.store import write
from breakeven.stats.estimate import Estimate, measured
from breakeven.stats.percentiles import Share
from breakeven.traffic.workload import Arrivals, Slo, Workload, slo_text

HEAD = """
name: a pair
question: dense or MoE on one card
load: {rate: 0.2/s, prompt: 200, output: 50, low: 0.02/s, high: 20/s, requests: 300}
slo: {ttft: 3s, tpot: 100ms, share: 95%}
contexts: [250, 1000]
formats: [Q4_K_M, Q8_0]
"""
PAIR = """
candidates:
  - {name: dense, model: llama-3.2-1b, machine: rtx-4090, format: Q4_K_M, price: {rented: {usd_per_hour: 0.6}}}
  - {name: moe, model: olmoe-1b-7b, machine: rtx-4090, format: Q4_K_M, price: {rented: {usd_per_hour: 0.6}}}
"""
HUGE = PAIR.splitlines()[2].replace("dense", "huge").replace("llama-3.2-1b", "llama-3.1-405b") + "\n"
HOSTED = """
  - name: hosted
    model: llama-3.1-8b
    price: {api: {input: 0.05, output: 0.08}}
    speed: {ttft: 0.3s, tokens_per_s: 200, source: a guess}
"""


def study(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Decision:
    return decide(read_study(study(tmp_path_factory.mktemp("pair"), HEAD + PAIR)))


def test_a_pair_gets_an_answer_with_everything_behind_it(pair: Decision) -> None:
    assert pair.verdict.outcome in ("dense", "moe", "no_difference")
    assert [c.provenance for c in pair.candidates] == ["predicted", "predicted"]
    for candidate in pair.candidates:
        assert candidate.capacity_per_s is not None
        assert candidate.capacity_per_s.low <= candidate.capacity_per_s.value <= candidate.capacity_per_s.high
        assert any(point.rate_per_s == 0.2 for point in candidate.cost)
        assert candidate.latency[-1].rate_per_s == pytest.approx(candidate.capacity_per_s.value)
        assert [kept.machines for kept in candidate.shares] == [1, 2, 3, None]
        values = [kept.share.value for kept in candidate.shares]
        assert values == sorted(values)
        assert candidate.borderline is None
    assert pair.regions[0].low_per_s == pytest.approx(0.02)
    for before, after in zip(pair.regions, pair.regions[1:], strict=False):
        assert before.high_per_s == after.low_per_s
    assert {"context", "precision"} == {drawn.y for drawn in pair.maps}
    assert any(flip.quantity == "batch" for flip in pair.flips)
    assert {a.what for a in pair.assumptions} >= {"load", "SLO", "price of dense", "routing of moe"}
    assert pair.next_measurements


def test_the_same_study_gives_the_same_decision(pair: Decision, tmp_path: Path) -> None:
    again = decide(read_study(study(tmp_path, HEAD + PAIR)))
    assert msgspec.json.encode(again) == msgspec.json.encode(pair)


def test_a_workload_nobody_can_serve_says_what_it_would_take(tmp_path: Path) -> None:
    text = HEAD.replace("tpot: 100ms", "tpot: 0.1ms") + PAIR
    result = decide(read_study(study(tmp_path, text)))
    assert result.verdict.outcome == "none"
    assert result.verdict.winner is None
    assert "times as fast" in " ".join(result.verdict.because)
    assert all(c.ruled_out for c in result.candidates)
    for candidate in result.candidates:
        assert "cannot keep it with any number of machines: 0 % even alone" in candidate.ruled_out[0]
        assert candidate.cost == []


def test_what_does_not_fit_is_ruled_out_and_the_rest_decided(tmp_path: Path) -> None:
    text = HEAD + PAIR + HUGE
    result = decide(read_study(study(tmp_path, text)))
    huge = next(c for c in result.candidates if c.name == "huge")
    assert "GB" in huge.ruled_out[0]
    assert result.verdict.winner != "huge"
    assert any("huge" in reason for reason in result.verdict.because)


def test_devices_of_a_machine_in_words_are_all_used_unless_told(tmp_path: Path) -> None:
    lines = [PAIR.splitlines()[2].replace("rtx-4090", "2xrtx-4090"), PAIR.splitlines()[3]]
    lines.append(lines[0].replace("dense,", "one,").replace("price:", "devices: 1, price:"))
    found = read_study(study(tmp_path, "\n".join([HEAD, "candidates:", *lines]))).candidates
    assert [plan.devices for plan in found] == [2, 1, 1]


def test_an_api_costs_nothing_when_nobody_asks(tmp_path: Path) -> None:
    text = HEAD + PAIR + HOSTED
    result = decide(read_study(study(tmp_path, text)))
    assert result.verdict.outcome == "api"
    assert result.verdict.winner == "hosted"
    assert result.regions[0].winner == "hosted"


def test_an_api_slower_than_the_service_level_is_ruled_out(tmp_path: Path) -> None:
    slow = HOSTED.replace("ttft: 0.3s", "ttft: 9s")
    result = decide(read_study(study(tmp_path, HEAD + "candidates:" + slow)))
    assert result.verdict.outcome == "none"
    assert "its provider's own speed" in result.verdict.because[0]
    assert result.candidates[0].cost == []


def test_what_keeps_the_promise_with_no_number_of_machines_has_no_price(tmp_path: Path) -> None:
    """Its fleets may carry other loads: what they would cost there is no price of this one."""
    plan = read_study(study(tmp_path, HEAD + PAIR))
    found = evaluate(plan, plan.candidates[0], None)
    rates = np.geomspace(plan.low_per_s, plan.high_per_s, 61)
    assert result_of(found, [], QualityScore(how="none"), rates, plan).cost
    assert found.promise is not None
    never = replace(found, promise=replace(found.promise, machines=None, never=NOBODY))
    assert why_not(plan, never, QualityScore(how="none")).ever[0].startswith(NOBODY)
    assert result_of(never, [], QualityScore(how="none"), rates, plan).cost == []


def test_every_turn_of_a_conversation_is_a_request(tmp_path: Path) -> None:
    once = decide(read_study(study(tmp_path, HEAD + "candidates:" + HOSTED)))
    text = HEAD.replace("output: 50,", "output: 50, turns: 3, think: 1s,")
    thrice = decide(read_study(study(tmp_path, text + "candidates:" + HOSTED)))
    assert thrice.load_per_s == pytest.approx(3 * once.load_per_s)
    bills = [next(p for p in d.candidates[0].cost if p.rate_per_s == d.load_per_s) for d in (once, thrice)]
    # Three requests instead of one, the later ones with the turns before them in their prompts.
    assert bills[1].usd_per_hour.value > 3 * bills[0].usd_per_hour.value
    assert bills[1].usd_per_conversation is not None
    assert bills[1].usd_per_conversation.value == pytest.approx(3 * bills[1].usd_per_request.value)


def test_the_map_agrees_with_the_verdict_where_they_meet(pair: Decision) -> None:
    drawn = next(m for m in pair.maps if m.y == "precision")
    here = [cell for cell in drawn.cells if cell.y == "Q4_K_M"]
    for region in pair.regions:
        inside = [c for c in here if region.low_per_s * 1.3 < c.x < (region.high_per_s or 1e9) / 1.3]
        if region.certain and region.winner is not None:
            assert {cell.winner for cell in inside} <= {region.winner}
    assert any(r.certain and (r.high_per_s or 20.0) > 4 * r.low_per_s for r in pair.regions)  # some cells were held


def test_beyond_the_budget_nobody_wins(tmp_path: Path) -> None:
    result = decide(read_study(study(tmp_path, HEAD + "budget_usd_per_month: 5\n" + PAIR)))
    assert result.verdict.outcome == "none"
    assert "budget" in result.verdict.because[0]


def test_a_measured_capacity_stands_in_for_the_prediction(tmp_path: Path) -> None:
    machine = MachineSpec(
        cpu="x",
        physical_cores=1,
        logical_cores=1,
        instruction_sets=[],
        cache_bytes={},
        memory_bytes=1,
        available_memory_bytes=1,
        os="x",
        virtualised=None,
        gpus=[],
    )
    share = Share(share=0.97, low=0.95, high=0.98, hits=97, n=100)
    trials = [Trial(load=7.0, requests=100, good=share, meets=True)]
    saved = CapacityStudy(
        breakeven_version="0",
        started_at="2026-11-22T00:00:00",
        command="x",
        seed=0,
        stopped_because="finished",
        machine=machine,
        model=LoadModel(name="dense", source="x", synthetic=True, moe=False, settings={"engine": "llama.cpp"}),
        workload=Workload(arrivals=Arrivals(process="poisson", rate_per_s=1.0)),
        slo=Slo(ttft_s=3.0, tpot_s=0.1),
        target_share=0.95,
        confidence=0.95,
        rate=Limit(value=7.0, low=6.5, high=7.5, trials=trials, monotone=True, sentence="x"),
        users=None,
        headline="x",
    )
    (tmp_path / "seen").mkdir()
    (tmp_path / "seen" / "result.json").write_bytes(msgspec.json.encode(saved))
    text = HEAD + PAIR.replace("{name: dense,", "{name: dense, measured: seen,")
    result = decide(read_study(study(tmp_path, text)))
    dense = result.candidates[0]
    assert dense.provenance == "measured"
    assert dense.capacity_per_s is not None
    assert (dense.capacity_per_s.low, dense.capacity_per_s.value, dense.capacity_per_s.high) == (6.5, 7.0, 7.5)
    text = text.replace("machine: rtx-4090, format: Q4_K_M,", "", 1)
    dense = decide(read_study(study(tmp_path, text))).candidates[0]
    assert (dense.machine, dense.engine, dense.format) == ("x, 1 cores, 0 GB", "llama.cpp", "as measured")
    assert saved.rate is not None
    none = msgspec.structs.replace(saved, rate=msgspec.structs.replace(saved.rate, value=0.0, low=0.0, high=0.5))
    (tmp_path / "seen" / "result.json").write_bytes(msgspec.json.encode(none))
    (ruled,) = decide(read_study(study(tmp_path, text))).candidates[0].ruled_out
    assert ruled.startswith("kept the SLO at no load that was measured, not at 0.5 requests a second either")


def test_the_command_writes_result_and_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = study(tmp_path, HEAD + PAIR)
    assert _run(["decide", str(path), "--out", "out", "--json", "--quiet"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["schema"] == "breakeven.decision/1"
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == told
    assert "<html" in (tmp_path / "out" / "report.html").read_text()


def test_without_out_the_result_is_named_after_the_study_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = study(tmp_path, HEAD + PAIR)
    (tmp_path / "latest.yaml").symlink_to(path)
    assert _run(["decide", "latest.yaml", "--quiet"]) == 0
    assert f"results/{path.stem}/report.html" in capsys.readouterr().out.replace("\n", "")
    assert [found.name for found in (tmp_path / "results").iterdir()] == [path.stem]


def test_no_study_says_what_to_give(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["decide"]) == 2
    assert "--init" in capsys.readouterr().err


@pytest.mark.parametrize("estimate", [Estimate(1.0, None, None, 1, "measured")])
def test_a_result_of_another_kind_is_refused(tmp_path: Path, estimate: Estimate) -> None:
    (tmp_path / "seen").mkdir()
    (tmp_path / "seen" / "result.json").write_bytes(
        msgspec.json.encode({"schema": "breakeven.compare/1", "x": estimate})
    )
    text = HEAD + PAIR.replace("{name: dense,", "{name: dense, measured: seen,")
    with pytest.raises(UserError, match=r"breakeven\.compare/1"):
        decide(read_study(study(tmp_path, text)))


def test_what_an_evaluation_rules_out_cannot_win_and_its_answers_are_billed(tmp_path: Path) -> None:
    def slice_of(bits: float, more: float) -> Slice:
        return Slice(
            language="en",
            domain="all",
            bytes=20_000,
            documents=1,
            blocks=10,
            tokens=5_000,
            bits_per_byte=measured(bits, bits - 0.01, bits + 0.01, 10),
            difference=measured(more, more - 0.01, more + 0.01, 10),
        )

    def model_of(name: str, bits: float, tokens: float) -> Evaluated:
        answers = TaskScore(
            name="t", language="en", tasks=9, solved=measured(1, 0.7, 1, 9), answer_tokens=measured(tokens, 1, 99, 9)
        )
        return Evaluated(
            name=name,
            path=name,
            sha256=None,
            format=None,
            bits_per_weight=None,
            experts_per_token=None,
            slices=[slice_of(bits, bits - 1)],
            tasks=[answers],
        )

    models = [model_of("dense", 1.0, 40), model_of("moe", 1.2, 60)]
    write(Evaluation(command="", text="t", against="dense", models=models, seconds=1), tmp_path / "e.json")
    decision = decide(read_study(study(tmp_path, HEAD + "quality: {evaluation: e.json, max_loss: 3%}" + PAIR)))
    dense, moe = decision.candidates
    assert decision.verdict.winner == "dense"
    assert dense.ruled_out == []
    assert moe.ruled_out == ["takes 20 % more bits per byte than dense in en; the study allows 3 %"]
    assert any(line.startswith("moe is ruled out: takes 20 % more bits per byte") for line in decision.verdict.because)
    said = {each.what: each.value for each in decision.assumptions}
    assert (said["answers of dense"], said["answers of moe"]) == ("40 tokens on average", "60 tokens on average")
    # With nothing but text the verdict says who predicts it best.
    by_text = [
        msgspec.structs.replace(each, quality=QualityScore(how="bits_per_byte", value=bits))
        for each, bits in zip((moe, dense), (1.2, 1.0), strict=True)
    ]
    here = Standing("dense", 1.0)
    verdict = verdict_of(by_text, [], None, here, decision.load_per_s, [])
    assert "In bits per byte of text, fewer is better: dense 1.000, moe 1.200." in verdict.because


def test_a_placement_in_a_study_is_what_is_predicted(tmp_path: Path) -> None:
    """Experts of more layers in host memory: more of it needed, and slower."""
    study = tmp_path / "study.yaml"

    def decided(experts: int) -> tuple[str, float]:
        study.write_text(
            f"""
load: {{rate: 0.02, prompt: 256, output: 64}}
slo: {{ttft: 60s}}
candidates:
  - name: moe
    model: gpt-oss-20b:MXFP4
    machine: rtx-3090+ddr4-3200x2:64GB
    placement: {{cpu_moe: {experts}}}
  - {{name: dense, model: qwen3-14b, format: Q4_K_M, machine: rtx-3090}}
"""
        )
        found = decide(read_study(study))
        moe = next(one for one in found.candidates if one.name == "moe")
        assert moe.capacity_per_s is not None
        return " ".join(moe.notes), moe.capacity_per_s.value

    (some, faster), (all_of_them, slower) = decided(4), decided(24)
    assert "experts of 4 in host memory" in some
    assert "experts of 24 in host memory" in all_of_them
    assert faster > slower


def test_a_run_too_short_to_see_a_queue_says_so(tmp_path: Path) -> None:
    text = """
load: {{rate: 1000/s, prompt: 100, output: 10{more}}}
slo: {{ttft: 2s, share: 95%}}
candidates:
  - {{name: a, model: llama-3.2-1b, machine: l4, format: fp8, price: {{rented: {{usd_per_hour: 1}}}}}}
"""
    short = decide(read_study(study(tmp_path, text.format(more=", requests: 400"))))
    told = [why for why in short.verdict.because if why.startswith("a: too few requests to see a queue grow")]
    assert told
    assert "load.requests, 400" in told[0]
    enough = decide(read_study(study(tmp_path, text.format(more=""))))
    assert not any("too few requests" in why for why in enough.verdict.because)


BESIDE_HOST = """
load: {{rate: 0.02, prompt: 256, output: 64, requests: 200}}
slo: {{ttft: 120s, tpot: 1s}}
candidates:
  - name: moe
    model: gpt-oss-120b:MXFP4
    machine: rtx-3090+ddr4-3200x2:{ram}GB
    price: {{rented: {{usd_per_hour: 0.2}}}}
  - name: dense
    model: qwen3-32b:Q4_K_M
    machine: rtx-3090+ddr4-3200x2:{ram}GB
    price: {{rented: {{usd_per_hour: 0.6}}}}
"""


def test_a_verdict_names_where_the_weights_lie(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = decide(read_study(study(tmp_path, BESIDE_HOST.format(ram=64))))
    moe, dense = found.candidates
    assert moe.placed is not None
    assert moe.placement == moe.placed.words()
    assert (moe.ruled_out, dense.ruled_out) == ([], [])
    assert dense.placement == "65/65 layers on the GPU"
    assert found.verdict.winner == "moe"
    assert f"moe (MoE, {moe.placement})" in found.verdict.sentence
    print_decision(found, Console(width=200), None, full=True)
    printed = capsys.readouterr().out
    for one in (moe, dense):
        assert f"{one.name}: {runs_on(one)}" in printed
        assert one.placement in runs_on(one)


def test_too_little_ram_rules_out_with_the_number(tmp_path: Path) -> None:
    """What would be paged from disk has no room: disk is no memory."""
    found = decide(read_study(study(tmp_path, BESIDE_HOST.format(ram=32))))
    moe = next(one for one in found.candidates if one.name == "moe")
    assert re.match(r"needs \d\d\.\d GB of RAM beside the card; 30\.9 GB are there", moe.ruled_out[0])
    assert moe.capacity_per_s is None
    assert moe.memory_bytes is not None
    assert moe.memory_available_bytes is not None
    # 24 GiB of the card and nine tenths of 32 GiB, and nothing of the disk.
    assert moe.memory_available_bytes < (24 + 0.9 * 32) * 2**30
    assert found.verdict.winner == "dense"
    assert any("of RAM beside the card" in why for why in found.verdict.because)


SMALL_AND_BIG = """
candidates:
  - {name: small, model: llama-3.2-1b, machine: rtx-4090, format: Q4_K_M, price: {rented: {usd_per_hour: 0.5}}}
  - {name: big, model: olmoe-1b-7b, machine: rtx-4090, format: Q4_K_M, price: {rented: {usd_per_hour: 2}}}
"""
PARTS = "parts: [{name: easy, share: 80%}, {name: hard, share: 20%, candidates: [WHO]}]\n"
APART = "parts: [{name: easy, share: 80%, candidates: [small]}, {name: hard, share: 20%, candidates: [big]}]\n"


def test_who_may_not_serve_every_part_does_not_serve_all_of_it(tmp_path: Path) -> None:
    found = decide(read_study(study(tmp_path, HEAD + PARTS.replace("WHO", "big") + SMALL_AND_BIG)))
    # Both together cost more than the large one alone, and the small one alone may not.
    assert found.verdict.winner == "big"
    assert {region.winner for region in found.regions} == {"big"}
    small, big = found.candidates
    assert (small.barred_from, big.barred_from) == (["hard"], [])
    # Right behind what the winner carries, and marked in the table: it is the cheaper one there.
    assert found.verdict.because[0].startswith("One replica of big carries")
    assert found.verdict.because[1] == "small may not serve the part 'hard', so not all of it alone."
    console = Console(width=100, file=io.StringIO())
    print_decision(found, console, None)
    printed = console.file.getvalue()
    assert "small ^" in printed
    assert "big ^" not in printed
    assert "^: may not serve every part of the traffic, so not all of it alone." in printed


def test_a_part_that_is_left_to_nobody_is_named(tmp_path: Path) -> None:
    text = HEAD + PARTS.replace("WHO", "huge") + SMALL_AND_BIG + HUGE
    verdict = decide(read_study(study(tmp_path, text))).verdict
    assert (verdict.outcome, verdict.winner) == ("none", None)
    assert verdict.because[0].startswith("huge ")
    assert "Nobody is left who may serve the part 'hard'." in verdict.because


def test_parts_bind_over_a_day_too(tmp_path: Path) -> None:
    head = HEAD.replace("rate: 0.2/s,", f"day: {[0.2] * 24},")
    whole = decide(read_study(study(tmp_path, head + PARTS.replace("WHO", "big") + SMALL_AND_BIG)))
    assert whole.day is not None
    assert [bill.candidate for bill in whole.day.bills] == ["big"]
    assert any("a split of the parts costs over the hours is not computed" in why for why in whole.verdict.because)
    apart = decide(read_study(study(tmp_path, head + APART + SMALL_AND_BIG)))
    assert (apart.verdict.outcome, apart.day) == ("both", None)
    assert apart.verdict.because[-1].startswith("This is of the busiest hour")


def test_parts_are_shared_out_over_a_day_that_nobody_carries(tmp_path: Path) -> None:
    """One machine each, of about 30 and 16 requests/s, and 36 in every hour."""
    head = HEAD.replace("rate: 0.2/s,", f"day: {[36.0] * 24},").replace("high: 20/s", "high: 80/s")
    each = SMALL_AND_BIG.replace("rtx-4090,", "rtx-4090, replicas: 1,")
    found = decide(read_study(study(tmp_path, f"{head}{PARTS.replace(', candidates: [WHO]', '')}{each}")))
    assert (found.verdict.outcome, found.day) == ("both", None)
    assert {share.candidate for share in found.verdict.shares} == {"small", "big"}
    # In some worlds they carry less than that, and have no bill.
    for share in found.verdict.shares:
        assert share.usd_per_hour is not None
        assert 0 < share.usd_per_hour.least <= share.usd_per_hour.most < 10
    # At twice as much the split does not carry it either, which is said, and the hours stay.
    more = decide(
        read_study(study(tmp_path, f"{head.replace('36.0', '72.0')}{PARTS.replace(', candidates: [WHO]', '')}{each}"))
    )
    assert more.verdict.outcome == "none"
    assert more.day is not None
    assert not any("costs over the hours is not computed" in why for why in more.verdict.because)


def test_where_nobody_may_serve_all_parts_loads_flips_and_maps_are_there(tmp_path: Path) -> None:
    found = decide(read_study(study(tmp_path, HEAD + APART + SMALL_AND_BIG)))
    assert (found.verdict.outcome, found.day) == ("both", None)
    assert {region.winner for region in found.regions} == {"small"}
    assert {drawn.y for drawn in found.maps} == {"context", "precision"}
    assert [flip.quantity for flip in found.flips] == ["batch"]
    assert "What is best by load is said as if each might serve all parts." in found.verdict.because
    assert [each.barred_from for each in found.candidates] == [["hard"], ["easy"]]
    console = Console(width=200, file=io.StringIO())
    print_decision(found, console, None)
    assert "not all of it alone; what is best by load is said as if each might." in console.file.getvalue()
    whole = decide(read_study(study(tmp_path, HEAD + SMALL_AND_BIG)))
    assert found.regions == whole.regions
    assert not any("as if each might" in why for why in whole.verdict.because)


def test_a_bill_without_an_upper_end_is_shown_without_one(pair: Decision) -> None:
    usd = Estimate(1.0, 0.5, 70.0)
    sure, edge = (msgspec.structs.replace(pair.candidates[0], notes=notes) for notes in ([], [f"{ENDLESS}: why"]))
    assert "-51,1" in month_text(sure, usd)
    assert "(from 365" in month_text(edge, usd)
    assert "51,1" not in month_text(edge, usd)
    assert month_cell(sure, usd).interval == "365–51,135"
    assert month_cell(edge, usd).interval == "from 365"
    # Nor in any other number that grows with the machines, nor in the verdict.
    load = pair.load_per_s
    point = next(each for each in sure.cost if each.rate_per_s == load)
    spans = dict.fromkeys(("usd_per_hour", "usd_per_request", "usd_per_mtok_output", "replicas"), usd)
    wide = [msgspec.structs.replace(point, **spans)]
    sure, edge = (msgspec.structs.replace(each, cost=wide, notes=each.notes, ruled_out=[]) for each in (sure, edge))
    for each, ends in ((sure, True), (edge, False)):
        heads, rows = cost_cells(each)
        cells = [*now_cells(each, load)[:3], *(rows[0][heads.index(head)] for head in ("replicas", "$/month"))]
        assert [("70" in cell.interval or "51,1" in cell.interval) for cell in cells] == [ends] * len(cells)
        said = verdict_of([each], [], None, Standing(each.name, 1.0), load, []).sentence
        assert ("($0.50 to $70.00)" in said, "(from $0.50)" in said) == (ends, not ends)


def test_electricity_that_is_not_billed_is_said_beside_any_answer(pair: Decision) -> None:
    note = f"{NOT_BILLED}: nobody says what it draws"
    dark, lit = pair.candidates[0], pair.candidates[1]
    rows = [msgspec.structs.replace(dark, notes=[note]), msgspec.structs.replace(lit, notes=[])]
    shares = [TrafficShare(candidate=each.name, traffic="half", share=0.5) for each in rows]
    cost = Estimate(1.0, 1.0, 1.0)
    both = verdict_of(rows, [], Mix(shares, cost, None, None, True), Standing(None, 0.0), pair.load_per_s, [])
    same = verdict_of(rows, [], None, Standing(lit.name, 1.0, dark.name, cost, True), pair.load_per_s, [])
    other = verdict_of(rows, [], None, Standing(lit.name, 1.0), pair.load_per_s, [])
    assert (both.outcome, same.outcome) == ("both", "no_difference")
    assert f"{dark.name}: {note}." in both.because
    assert f"{dark.name}: {note}." in same.because
    assert f"{dark.name} costs the same here, and answers as fast." in same.because
    assert not any(NOT_BILLED in why for why in other.because)
    compared = Mix(shares[1:], cost, dark.name, cost, False)
    assert f"{dark.name}: {note}." in verdict_of(rows, [], compared, Standing(None, 0.0), 1.0, []).because


def test_a_combination_beyond_the_budget_is_none(tmp_path: Path) -> None:
    rich, poor = (
        decide(read_study(study(tmp_path, f"{HEAD}budget_usd_per_month: {budget}\n{APART}{SMALL_AND_BIG}"))).verdict
        for budget in (2000, 1500)
    )
    assert rich.outcome == "both"
    assert poor.outcome == "none"
    # 2.50 an hour.
    assert any(why.startswith("The cheapest combination costs $1,826 a month; the budget") for why in poor.because)


def test_where_the_faster_of_two_alike_is_beyond_the_budget_the_other_wins(tmp_path: Path) -> None:
    """0.603 an hour are 440.49 a month, 0.6 are 438.30: within 1 % the faster one would be chosen."""
    text = """
candidates:
  - {name: fast, model: llama-3.2-1b, machine: rtx-4090, format: Q4_K_M, price: {rented: {usd_per_hour: 0.603}}}
  - {name: slow, model: llama-3.2-3b, machine: rtx-4090, format: Q8_0, price: {rented: {usd_per_hour: 0.6}}}
"""
    assert decide(read_study(study(tmp_path, HEAD + text))).verdict.winner == "fast"
    found = decide(read_study(study(tmp_path, HEAD + "budget_usd_per_month: 439\n" + text)))
    assert found.verdict.winner == "slow"
    assert found.verdict.because[-1].endswith("as if there were no budget.")


@pytest.mark.parametrize(("level", "kept"), [("e2e: 1s", False), ("ttft: 3s, itl: 50ms", False), ("e2e: 6s", True)])
def test_a_hosted_model_keeps_every_term_or_is_ruled_out(tmp_path: Path, level: str, kept: bool) -> None:
    head = HEAD.replace("ttft: 3s, tpot: 100ms", level)
    # Fifty tokens at ten a second.
    slow = HOSTED.replace("tokens_per_s: 200", "tokens_per_s: 10")
    verdict = decide(read_study(study(tmp_path, head + "candidates:" + slow))).verdict
    assert verdict.outcome == ("api" if kept else "none")
    assert kept or "its provider's own speed" in verdict.because[0]


def test_a_hosted_model_is_judged_by_how_many_answers_are_short_enough(tmp_path: Path) -> None:
    head = HEAD.replace("ttft: 3s, tpot: 100ms", "e2e: 5.8s").replace("output: 50", "output: uniform:1-100")
    slow = HOSTED.replace("tokens_per_s: 200", "tokens_per_s: 10")
    verdict = decide(read_study(study(tmp_path, head + "candidates:" + slow))).verdict
    assert verdict.outcome == "none"
    assert re.search(r"asked for: 5\d(\.\d)? % of the answers are in time, 95 % must be", verdict.because[0])


def test_engines_on_one_machine_are_wrong_apart_and_are_measured_as_the_study_asks(tmp_path: Path) -> None:
    text = PAIR.replace("format: Q4_K_M, price", "engine: vllm, format: BF16, kv: fp8, price", 1)
    head = HEAD.replace("output: 50", '"output": "lognormal:50,30[4-200]"')
    plan = read_study(study(tmp_path, head + text))
    served, local = (evaluate(plan, candidate, None) for candidate in plan.candidates)
    assert served.doubt is not None
    assert local.doubt is not None
    assert (served.doubt.machine, local.doubt.machine) == ("vllm on rtx-4090", "llama.cpp on rtx-4090")
    options = f"--slo {slo_text(plan.slo)} --share 95% --prompt 200 --output 'lognormal:50,30[4-200]'    (on rtx-4090)"
    assert _capacity_of(plan, served).command == (
        f"breakeven capacity llama-3.2-1b:BF16 --engine vllm --kv fp8 {options}"
    )
    assert _capacity_of(plan, local).command == f"breakeven capacity olmoe-1b-7b:Q4_K_M --engine llama.cpp {options}"


def test_an_engine_is_the_one_that_the_study_names(tmp_path: Path) -> None:
    pair = PAIR.replace("format: Q4_K_M, price", "engine: sglang, format: BF16, price", 1)
    plan = read_study(study(tmp_path, HEAD + pair))
    notes = {"sglang": ["sglang is predicted by vllm's model of a step"], "llama.cpp": []}
    for candidate, (engine, said) in zip(plan.candidates, notes.items(), strict=True):
        found = evaluate(plan, candidate, None)
        row = result_of(found, [], QualityScore(how="none"), np.array([0.2]), plan)
        assert row.engine == engine
        assert [note for note in row.notes if "model of a step" in note] == said
        assert f"--engine {engine} " in _capacity_of(plan, found).command


@pytest.mark.parametrize(
    ("load", "missing"),
    [
        # Labels of one token have no time between tokens.
        ("prompt: 200, output: 1", {"tpot_p50_s", "tpot_p99_s"}),
        # Three in a hundred are longer than there is room for, and refused: the last one in a hundred never ends.
        ("prompt: 'lognormal:300,500[10-8000]', output: 50", {"ttft_p99_s", "tpot_p99_s", "e2e_p99_s"}),
    ],
)
def test_delays_that_are_none_are_told_as_none(tmp_path: Path, load: str, missing: set[str]) -> None:
    text = (HEAD + PAIR).replace("prompt: 200, output: 50", load).replace("share: 95%", "share: 90%")
    plan = read_study(study(tmp_path, text.replace("format: Q4_K_M, ", "format: Q4_K_M, policy: {kv_tokens: 1500}, ")))
    found = decide(plan)
    assert found.verdict.winner == "dense"
    for candidate in found.candidates:
        for point in candidate.latency:
            told = {name: getattr(point, name) for name in OF_LATENCY.values()}
            assert {name for name, span in told.items() if span is None} == missing
        worst = candidate.shares[-1].worst
        refused = "% are longer than its context or the keys and values of one machine, and refused"
        assert (worst is not None and refused in worst) == ("ttft_p99_s" in missing)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Decision) == found
    out = io.StringIO()
    print_decision(found, Console(file=out, width=100), None, full=True)
    assert "not available" in out.getvalue()
    assert "<h1>" in render_decision(found)


def test_who_cannot_hold_the_requests_is_not_recommended_for_them(tmp_path: Path) -> None:
    """OLMoE ends at 4,096 tokens, Llama 3.2 at 131,072."""
    text = (
        (HEAD + PAIR)
        .replace("prompt: 200, output: 50", "prompt: 5000, output: 50")
        .replace("contexts: [250, 1000]\n", "")
    )
    found = decide(read_study(study(tmp_path, text)))
    dense, moe = found.candidates
    assert found.verdict.winner == "dense"
    assert dense.ruled_out == []
    assert moe.cost == []
    assert moe.ruled_out[0].startswith(
        "cannot keep it with any number of machines: 0 % even alone, 100 % are longer than its context"
    )
    drawn = next(each for each in found.maps if each.y == "context")
    assert {cell.winner for cell in drawn.cells if float(cell.y) >= 5050} == {"dense"}
