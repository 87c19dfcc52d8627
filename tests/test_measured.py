"""What a saved study tells of a candidate: only what was asked then stands for what is asked now."""

from __future__ import annotations

from pathlib import Path

import load_report_fixtures as made
import msgspec
import pytest

from breakeven.answer.decide import decide
from breakeven.answer.measured import bounded, capacity_measured, latency_measured, measured_otherwise
from breakeven.answer.study.load import read_study
from breakeven.answer.study.plan import StudyPlan
from breakeven.errors import UserError
from breakeven.price.pricing import PricedTraffic
from breakeven.results.load import CapacityStudy
from breakeven.results.store import write
from breakeven.stats.estimate import Estimate
from breakeven.traffic.workload import Arrivals, Length, OwnPrompts, Slo

STUDY = """
load: {rate: 2/s, prompt: 512, output: 96, requests: 200}
slo: {ttft: 1s, tpot: 80ms, share: 95%}
candidates:
  - name: box
    measured: seen.json
    price: {own: {usd: 1000, years: 4, usd_per_kwh: 0.3, busy: 300W}}
"""
TRAFFIC = PricedTraffic(prompt_tokens=512, output_tokens=96)


def plan_of(tmp_path: Path, seen: CapacityStudy, text: str = STUDY) -> StudyPlan:
    write(seen, tmp_path / "seen.json")
    (tmp_path / "study.yaml").write_text(text, encoding="utf-8")
    return read_study(tmp_path / "study.yaml")


def open_ended(rate: float = 7.0) -> CapacityStudy:
    """A search whose highest rate was kept."""
    found = made.capacity()
    assert found.rate is not None
    kept = msgspec.structs.replace(found.rate, value=rate, low=rate, high=None)
    return msgspec.structs.replace(found, rate=kept)


@pytest.mark.parametrize(
    ("was", "told"),
    [
        ({"slo": Slo(ttft_s=1.0)}, r"kept ttft=1s for 95%, the study asks ttft=1s,tpot=80ms for 95% of requests"),
        ({"slo": Slo(ttft_s=2.0, tpot_s=0.08)}, r"measure again with --slo ttft=1s,tpot=80ms --share 95%"),
        ({"target_share": 0.9}, r"kept ttft=1s,tpot=80ms for 90%"),
    ],
)
def test_a_looser_promise_is_no_measurement_of_this_one(tmp_path: Path, was: dict[str, object], told: str) -> None:
    seen = msgspec.structs.replace(made.capacity(), **was)
    plan = plan_of(tmp_path, seen)
    with pytest.raises(UserError, match=told):
        measured_otherwise(plan, plan.candidates[0], TRAFFIC, seen)
    with pytest.raises(UserError, match="candidate box: measured: "):
        decide(plan)


def test_a_bench_without_a_level_as_strict_is_refused_by_its_level_alone(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, made.capacity())
    points = [made.point("llama-3.2-1b", rate, 8.0) for rate in made.RATES]
    seen = made.study([made.dense()], points, slo=Slo(ttft_s=3.0, tpot_s=0.08))
    with pytest.raises(UserError, match=r"measure again with --slo ttft=1s,tpot=80ms$"):
        measured_otherwise(plan, plan.candidates[0], TRAFFIC, seen)


def test_the_same_question_needs_no_word_and_another_one_does(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, made.capacity())
    box, seen = plan.candidates[0], made.capacity()
    assert measured_otherwise(plan, box, TRAFFIC, seen) == []
    # A search says in its workload what it probed with; its rates are Poisson arrivals.
    probe = msgspec.structs.replace(seen.workload, arrivals=Arrivals(process="closed", concurrency=1))
    assert measured_otherwise(plan, box, TRAFFIC, msgspec.structs.replace(seen, workload=probe)) == []
    strict = msgspec.structs.replace(seen, slo=Slo(ttft_s=0.5, tpot_s=0.08), target_share=0.99)
    (word,) = measured_otherwise(plan, box, TRAFFIC, strict)
    assert word.startswith("was measured for ttft=500ms,tpot=80ms for 99%, which is more than the study asks")
    short = msgspec.structs.replace(seen.workload, prompt=Length(mean=100), output=Length(mean=90))
    (word,) = measured_otherwise(plan, box, TRAFFIC, msgspec.structs.replace(seen, workload=short))
    assert "100 prompt and 90 output tokens on average, the study has 512 and 96" in word
    untold = msgspec.structs.replace(seen.workload, prompt=None)
    (word,) = measured_otherwise(plan, box, TRAFFIC, msgspec.structs.replace(seen, workload=untold))
    assert "lengths that its study does not tell" in word
    bursts = plan_of(tmp_path, seen, STUDY.replace("rate: 2/s", "rate: 2/s, arrivals: gamma:3"))
    (word,) = measured_otherwise(bursts, box, TRAFFIC, seen)
    assert word == "was measured with poisson arrivals, the study's are gamma (coefficient of variation 3)"


def test_lengths_are_those_the_engine_counted(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, made.capacity())
    points = [
        made.point("llama-3.2-1b", rate, 8.0, prompt_tokens_mean=700.0, output_tokens_mean=96.0) for rate in made.RATES
    ]
    (word,) = measured_otherwise(plan, plan.candidates[0], TRAFFIC, made.study([made.dense()], points))
    assert "700 prompt and 96 output tokens" in word


def test_a_rate_of_conversations_carries_as_many_requests_as_they_have_turns() -> None:
    points = [made.point("llama-3.2-1b", rate, 8.0, 1000.0) for rate in made.RATES]
    talks = msgspec.structs.replace(made.WORKLOAD, turns=3)
    single, several = (made.study([made.dense()], points, workload=each) for each in (made.WORKLOAD, talks))
    one, three = (capacity_measured(study, None, 0.9) for study in (single, several))
    assert (three.value, three.low, three.high) == pytest.approx((3 * one.value, 3 * one.least, 3 * one.most))
    assert [p.rate_per_s for p in latency_measured(several, None, three)] == [3 * rate for rate in made.RATES]
    # Of a ramp the requests themselves were counted; of recorded conversations, which may be shorter, they are due.
    ramp = msgspec.structs.replace(talks, arrivals=Arrivals(process="ramp", rate_per_s=1.0, to_rate_per_s=10.0))
    assert capacity_measured(made.study([made.dense()], points, workload=ramp), None, 0.9) == one
    own = msgspec.structs.replace(talks, prompts=OwnPrompts(file="p.jsonl", sha256="0", prompts=40, most_bytes=9))
    told = capacity_measured(made.study([made.dense()], points, workload=own), None, 0.9)
    assert told.value == pytest.approx(one.value, rel=0.01)


def test_what_was_never_seen_to_fail_is_no_upper_end(tmp_path: Path) -> None:
    points = [made.point("llama-3.2-1b", rate, 1000.0) for rate in made.RATES]
    kept = capacity_measured(made.study([made.dense()], points), None, 0.9)
    assert (kept.value, kept.low, kept.high) == (10.0, 10.0, None)
    search = capacity_measured(open_ended(), None, 0.95)
    assert (search.value, search.low, search.high) == (7.0, 7.0, None)
    seen, said = bounded(search, Estimate(30.0, 25.0, 40.0))
    assert (seen.value, seen.low, seen.high, seen.provenance) == (30.0, 7.0, 40.0, "predicted")
    assert "never seen to fail: up to 40 is predicted" in said[0]
    # A prediction that was passed already adds nothing, and neither does one that is not there.
    for predicted in (Estimate(4.0, 3.0, 5.0), None):
        seen, said = bounded(search, predicted)
        assert (seen.value, seen.low, seen.high, seen.provenance) == (7.0, 7.0, 7.0, "measured")
        assert "what it carries beyond is not known" in said[0]
    both_seen = capacity_measured(made.capacity(), None, 0.95)
    assert bounded(both_seen, Estimate(30.0, 25.0, 40.0)) == (both_seen, [])
    (candidate,) = decide(plan_of(tmp_path, open_ended())).candidates
    assert any("never seen to fail" in note for note in candidate.notes)


def test_a_prediction_takes_over_where_nothing_failed(tmp_path: Path) -> None:
    text = STUDY.replace("    price:", "    model: llama-3.2-1b\n    machine: rtx-4090\n    format: Q4_K_M\n    price:")
    (candidate,) = decide(plan_of(tmp_path, open_ended(0.5), text)).candidates
    assert candidate.capacity_per_s is not None
    assert candidate.capacity_per_s.low == 0.5
    assert candidate.capacity_per_s.value > 0.5
    assert candidate.provenance == "predicted"


def test_a_bill_without_electricity_says_so_first(tmp_path: Path) -> None:
    found = decide(plan_of(tmp_path, made.capacity()))
    missing = (
        "its electricity is NOT in the bill: nobody says what it draws when idle; give its idle watts beside its price"
    )
    assert missing in found.candidates[0].notes
    assert found.verdict.because[1] == f"box: {missing}."
    said = {each.what: each for each in found.assumptions}
    assert (said["power of box"].value, said["power of box"].source) == ("not known", missing)
    lit = STUDY.replace("busy: 300W", "idle: 30W, busy: 300W")
    found = decide(plan_of(tmp_path, made.capacity(), lit))
    assert not any("NOT in the bill" in line for line in [*found.verdict.because, *found.candidates[0].notes])
