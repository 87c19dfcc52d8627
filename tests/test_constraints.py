"""Which constraint rules out whom, and which advice a study gets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from breakeven.answer.advice import advice_for
from breakeven.answer.candidates import Facts, floors_unheld, ruled_out
from breakeven.answer.mixes import _may_serve
from breakeven.answer.study.plan import (
    CandidatePlan,
    Constraints,
    FineTuning,
    Incoming,
    QualityPlan,
    ServiceLevel,
    StudyPlan,
    TrafficPart,
)
from breakeven.model.catalogue import licence_of, lookup, names
from breakeven.model.quality.scores import QualityScore
from breakeven.price.staircase import in_proportion
from breakeven.results.cost import Api, Own
from breakeven.stats.estimate import Estimate
from breakeven.traffic.workload import Arrivals, Workload

MOE = CandidatePlan(name="moe", model="qwen3-30b-a3b", machine="h100-sxm", format="int4")
DENSE = CandidatePlan(name="dense", model="llama-3.1-8b", machine="h100-sxm", format="bf16")
HOSTED = CandidatePlan(
    name="hosted", model="gpt-oss-120b", location="cloud", pricing=Api(usd_per_mtok_input=1, usd_per_mtok_output=1)
)
PLAN = StudyPlan(
    name="study",
    question="which",
    path=Path("study.yaml"),
    candidates=(MOE, DENSE, HOSTED),
    workload=Workload(arrivals=Arrivals(process="poisson", rate_per_s=10)),
    trace=None,
    load_per_s=10,
    load=Incoming(rate=10),
    service=ServiceLevel(ttft_s=1),
    low_per_s=1,
    high_per_s=100,
)


def around(value: float, factor: float = 1.2) -> Estimate:
    return Estimate(value=value, low=value / factor, high=value * factor)


def test_nothing_is_ruled_out_by_what_nobody_asked_or_knows() -> None:
    assert [ruled_out(PLAN, each, Facts()) for each in PLAN.candidates] == [[], [], []]
    strict = replace(PLAN, constraints=Constraints(memory_bytes=1, power_w=1), quality=QualityPlan(floor=0.9))
    assert ruled_out(strict, MOE, Facts()) == []


@pytest.mark.parametrize(
    ("constraints", "candidate", "facts", "why"),
    [
        (Constraints(on_premise=True), HOSTED, Facts(), "premises"),
        (Constraints(on_premise=True), replace(DENSE, location="cloud"), Facts(), "premises"),
        (Constraints(offline=True), HOSTED, Facts(), "network"),
        (
            Constraints(),
            MOE,
            Facts(memory_bytes=61e9, memory_available_bytes=24e9),
            "61 GB of memory; the machine has 24",
        ),
        (Constraints(memory_bytes=16 * 10**9), MOE, Facts(memory_bytes=17e9), "the study allows 16 GB"),
        (Constraints(power_w=300), MOE, Facts(busy_w=700), "700 W"),
        (
            Constraints(power_w=300),
            replace(MOE, pricing=Own(usd=1, life_years=1, usd_per_kwh=0, busy_w=350)),
            Facts(busy_w=200),
            "350 W",
        ),
        (Constraints(licences=("Apache-2.0",)), DENSE, Facts(), "licensed under llama3.1"),
        (Constraints(licences=("mit",)), replace(MOE, model=None), Facts(), "not known"),
        (Constraints(), MOE, Facts(fleet=in_proportion(Estimate(value=0, low=0, high=0))), "even alone"),
    ],
)
def test_one_broken_constraint_is_one_phrase(
    constraints: Constraints, candidate: CandidatePlan, facts: Facts, why: str
) -> None:
    found = ruled_out(replace(PLAN, constraints=constraints), candidate, facts)
    assert len(found) == 1
    assert why in found[0]


@pytest.mark.parametrize(
    ("constraints", "candidate", "facts"),
    [
        (Constraints(on_premise=True, offline=True), MOE, Facts()),
        (Constraints(licences=("apache-2.0",)), MOE, Facts()),
        (Constraints(licences=("apache-2.0",)), replace(DENSE, licence="Apache-2.0"), Facts()),
        (Constraints(licences=("mit",)), HOSTED, Facts()),
        (Constraints(power_w=300), HOSTED, Facts(busy_w=700)),
        (Constraints(), HOSTED, Facts(fleet=in_proportion(around(0.001)))),
    ],
)
def test_what_keeps_its_constraints_may_be_chosen(
    constraints: Constraints, candidate: CandidatePlan, facts: Facts
) -> None:
    assert ruled_out(replace(PLAN, constraints=constraints), candidate, facts) == []


def test_machines_there_are_must_carry_the_load() -> None:
    two = replace(MOE, max_replicas=2)
    assert ruled_out(PLAN, two, Facts(fleet=in_proportion(around(6)))) == []
    (why,) = ruled_out(PLAN, two, Facts(fleet=in_proportion(around(4))))
    assert "3 machines" in why
    split = replace(PLAN, parts=(TrafficPart(name="x", share=1),))
    assert ruled_out(split, two, Facts(fleet=in_proportion(around(4)))) == []


def test_a_budget_that_only_the_middle_breaks_says_so() -> None:
    plan = replace(PLAN, budget_usd_per_month=1000)
    assert ruled_out(plan, MOE, Facts(usd_per_month=around(900))) == []
    (doubtful,) = ruled_out(plan, MOE, Facts(usd_per_month=around(1100)))
    (sure,) = ruled_out(plan, MOE, Facts(usd_per_month=around(2000)))
    assert "would not" in doubtful
    assert "would not" not in sure


@pytest.mark.parametrize(
    ("floor", "quality", "out"),
    [
        (0.5, QualityScore(how="own", value=0.4), True),
        (0.5, QualityScore(how="published", value=0.6, benchmark="mmlu_pro"), False),
        (12, QualityScore(how="size", value=10e9, low=7e9, high=16e9), False),
        (20, QualityScore(how="size", value=10e9, low=7e9, high=16e9), True),
        (0.5, QualityScore(how="size", value=10e9, low=7e9, high=16e9), False),
        (0.5, QualityScore(how="none"), False),
        (0.5, QualityScore(how="published", value=0.4, benchmark="mmlu_pro"), True),
        (1.0, QualityScore(how="bits_per_byte", value=0.7), False),
    ],
)
def test_the_floor_binds_by_what_it_can_be_compared_with(floor: float, quality: QualityScore, out: bool) -> None:
    plan = replace(PLAN, quality=QualityPlan(floor=floor))
    assert bool(ruled_out(plan, MOE, Facts(quality=quality))) is out
    # That of a part binds by the same rule.
    assert _may_serve([], floor, MOE.name, {MOE.name: quality}) is not out
    assert not _may_serve(["another"], None, MOE.name, {MOE.name: quality})


def test_whom_a_floor_says_nothing_of_is_told() -> None:
    share = QualityScore(how="published", value=0.6, benchmark="mmlu_pro")
    guess = QualityScore(how="size", value=10e9, low=7e9, high=16e9)
    unknown = QualityScore(how="none")
    hard = TrafficPart(name="hard", share=0.3, floor=25)
    plan = replace(PLAN, quality=QualityPlan(floor=0.5), parts=(hard,))
    assert floors_unheld(PLAN, {"a": share}) == []
    of_all, of_part = floors_unheld(plan, {"a": share, "b": guess})
    assert of_all.startswith("The floor (0.5) was not held against b: it is a share of tasks")
    assert of_part.startswith("The floor of part 'hard' (25) was not held against a: it is in billions")
    assert floors_unheld(replace(plan, parts=()), {"a": unknown}) == [
        "The floor (0.5) was not held against a: nothing is known of their quality."
    ]


def test_licences_are_of_catalogued_models_and_name_a_page() -> None:
    known = [licence for name in names() if (licence := licence_of(name)) is not None]
    assert len(known) > 0.95 * len(names())
    for licence in known:
        assert licence.source.startswith("https://")
        assert licence.id == licence.id.lower()
        assert licence.id != "other"
    assert licence_of("no-such-model") is None
    found = licence_of("Qwen/Qwen3-30B-A3B")
    assert found is not None
    assert found.id == "apache-2.0"


SPECS = {"moe": lookup("qwen3-30b-a3b"), "dense": lookup("llama-3.1-8b"), "hosted": lookup("gpt-oss-120b")}


def topics(plan: StudyPlan) -> set[str]:
    return {advice.topic for advice in advice_for(plan, SPECS)}


def test_advice_is_given_where_it_concerns() -> None:
    busy = replace(
        PLAN,
        candidates=(replace(MOE, devices=8), DENSE, HOSTED),
        fine_tuning=FineTuning(per_year=4, adapters=2),
        languages=("en", "de"),
        parts=(TrafficPart(name="x", share=0.5), TrafficPart(name="y", share=0.5)),
    )
    assert topics(busy) == {
        "tail latency",
        "adapters",
        "fine-tuning routers",
        "quantized experts",
        "languages",
        "who decides which request goes where",
        "per-expert monitoring",
        "answer lengths",
        "the same answer twice",
    }


def test_nobody_is_told_about_experts_they_do_not_serve() -> None:
    served_dense = replace(
        PLAN, candidates=(DENSE, HOSTED), fine_tuning=FineTuning(per_year=4, adapters=2), languages=("de",)
    )
    assert topics(served_dense) == {"answer lengths", "the same answer twice"}
    measured = replace(served_dense, quality=QualityPlan(answer_tokens={"dense": 200, "hosted": 300}))
    assert topics(measured) == {"the same answer twice"}


def test_every_piece_of_advice_names_its_source_and_whom_it_means() -> None:
    plan = replace(PLAN, fine_tuning=FineTuning(per_year=2), languages=("sw",))
    for advice in advice_for(plan, SPECS):
        assert advice.source
        assert "dense " not in advice.text or "moe" in advice.text
        assert "hosted" not in advice.text
