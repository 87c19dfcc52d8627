"""The headline of a study under load: plain words that follow from its numbers."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from load_log_fixtures import POISSON, request, run
from report_fixtures import MACHINE

from breakeven.measure.events import EventWriter, LoadStudyStarted, StudyStopped, Usage
from breakeven.measure.load.points import load_points
from breakeven.results.load import Crossing, LoadDifference, LoadModel, LoadPoint
from breakeven.runs.capacity_study import capacity_study
from breakeven.runs.load_study import headline, load_study
from breakeven.stats.estimate import Estimate
from breakeven.traffic.workload import OwnPrompts, Slo, Workload
from tests.load_report_fixtures import point


def difference(metric: str, load: str, value: float, winner: str | None) -> LoadDifference:
    ratio = Estimate(value, value * 0.9, value * 1.1, 20, "measured")
    return LoadDifference(a="moe", b="dense", metric=metric, load=load, ratio=ratio, winner=winner)


def crossing(metric: str, at: float | None) -> Crossing:
    text = "dense below, moe above"
    return Crossing(a="moe", b="dense", metric=metric, rate_per_s=at, low=None, high=None, sentence=text)


POINTS = [point(name, rate, 20.0) for rate in (2.0, 5.0) for name in ("moe", "dense")]


def opening_of(workload: Workload) -> LoadStudyStarted:
    """Of a bench of one server, "a"."""
    return LoadStudyStarted(
        kind="bench",
        fingerprint="f",
        version="0.1",
        started_at="2026-01-01T00:00:00Z",
        command="breakeven bench",
        seed=1,
        machine=MACHINE,
        models=[LoadModel(name="a", source="http://a/v1", synthetic=False, moe=None)],
        workload=workload,
        slo=None,
    )


def test_nothing_measured_is_said() -> None:
    assert "No load" in headline([], [], [], None)


def test_the_winner_is_named_with_its_interval_whichever_side_of_the_ratio_it_is_on() -> None:
    won = headline(POINTS, [difference("tpot_s", "2 req/s", 0.5, "moe")], [], None)
    assert won == "moe has 0.5 times (0.45 to 0.55) the time per output token of dense at 2 req/s."
    turned = headline(POINTS, [difference("tpot_s", "2 req/s", 2.0, "dense")], [], None)
    assert turned == "dense has 0.5 times (0.455 to 0.556) the time per output token of moe at 2 req/s."


def test_goodput_speaks_before_delays_and_a_lead_everywhere_is_said() -> None:
    found = [difference(m, load, 1.5, "moe") for m in ("goodput_per_s", "tpot_s") for load in ("2 req/s", "5 req/s")]
    text = headline(POINTS, found, [crossing("goodput_per_s", None)], Slo(ttft_s=1.0))
    assert "goodput" in text
    assert text.endswith("at 5 req/s, and is ahead at every load measured.")


def test_a_crossing_is_the_headline() -> None:
    found = [difference("tpot_s", "2 req/s", 1.5, "dense"), difference("tpot_s", "5 req/s", 0.5, "moe")]
    for at in (3.0, None):
        assert headline(POINTS, found, [crossing("tpot_s", at)], None) == "dense below, moe above."


def test_no_difference_is_an_answer() -> None:
    text = headline(POINTS, [difference("tpot_s", "2 req/s", 1.01, None)], [], None)
    assert text == "No difference found between the candidates at any load measured."


@pytest.mark.parametrize("answered", [0, 50])
def test_one_candidate_is_described(answered: int) -> None:
    alone = msgspec.structs.replace(POINTS[0], answered=answered)
    text = headline([alone], [], [], Slo(ttft_s=1.0))
    assert text.startswith("moe at 2 req/s: ")
    assert ("no request was answered" in text) == (answered == 0)


def served(model: str, answered: int, requests: int = 100) -> LoadPoint:
    mine = next(one for one in POINTS if one.model == model)
    return msgspec.structs.replace(mine, requests=requests, answered=answered)


def test_who_fails_more_than_another_wins_by_no_delay() -> None:
    nothing = headline([served("moe", 0), served("dense", 100)], [], [], None)
    assert nothing == (
        "The candidates did not do the same work: "
        "at 2 req/s moe failed 100 of 100 requests, dense failed 0 of 100 requests."
    )
    quick = difference("tpot_s", "2 req/s", 0.5, "moe")
    most = headline([served("moe", 40), served("dense", 100)], [quick], [], None)
    assert most.startswith("The candidates did not do the same work: at 2 req/s moe failed 60 of 100 requests")
    goodput = difference("goodput_per_s", "2 req/s", 0.4, "dense")
    counted = headline([served("moe", 40), served("dense", 100)], [goodput, quick], [], Slo(ttft_s=1.0))
    assert counted == "dense has 2.5 times (2.27 to 2.78) the goodput of moe at 2 req/s."


def test_few_failures_leave_the_delays_to_speak() -> None:
    quick = difference("tpot_s", "2 req/s", 0.5, "moe")
    # One of a hundred may be chance; ten of two thousand is sure, and half a percent.
    for points in (
        [served("moe", 99), served("dense", 100)],
        [served("moe", 1990, 2000), served("dense", 2000, 2000)],
    ):
        assert headline(points, [quick], [], None).startswith("moe has 0.5 times")


def test_where_nobody_answered_there_was_nothing_to_compare() -> None:
    text = headline([served("moe", 0), served("dense", 0)], [], [], None)
    assert text == "No request was answered by any candidate."


def test_answers_of_different_lengths_are_said_beside_what_they_make_faster(tmp_path: Path) -> None:
    models = [LoadModel(name=name, source=f"http://{name}/v1", synthetic=False, moe=None) for name in "ab"]
    opening = LoadStudyStarted(
        kind="compare",
        fingerprint="f",
        version="0.1",
        started_at="2026-01-01T00:00:00Z",
        command="breakeven compare",
        seed=1,
        machine=MACHINE,
        models=models,
        workload=POISSON,
        slo=None,
    )

    def caveats(tokens_of_b: int) -> str:
        path = tmp_path / f"{tokens_of_b}.jsonl"
        with EventWriter(path) as log:
            log.append(opening)
            for name, tokens in (("a", 100), ("b", tokens_of_b)):
                rows = [request(i, due_s=i / 10, tokens=tokens, block=name, model=name) for i in range(50)]
                for event in run(rows, to_s=10, model=name, block=name):
                    log.append(event)
            log.append(StudyStopped(because="finished", measured_s=0.0))
        return " ".join(load_study(path).caveats)

    assert "At 10 req/s answers had different lengths, in tokens on average a 100, b 20" in caveats(20)
    assert "different lengths" not in caveats(95)


def test_an_answer_that_nobody_counted_has_no_length_of_zero() -> None:
    rows = [request(i, due_s=i / 10, output_tokens=0 if i % 2 else 30) for i in range(50)]
    (found,) = load_points(run(rows, to_s=5), None)
    assert found.output_tokens_mean == 30
    (found,) = load_points(run([request(0, due_s=0.0, output_tokens=0)], to_s=5), None)
    assert found.output_tokens_mean is None


def test_answers_cut_short_by_a_server_that_takes_no_orders_are_explained(tmp_path: Path) -> None:
    opening = opening_of(POISSON)
    rows = [request(i, due_s=i / 10, error=None if i % 2 else "short") for i in range(50)]
    with EventWriter(tmp_path / "events.jsonl") as log:
        for event in [opening, *run(rows, to_s=10)]:
            log.append(event)
    assert any(
        text.startswith("a: 25 of 50 answers had fewer tokens") and "extra_fields: false" in text
        for text in load_study(tmp_path / "events.jsonl").caveats
    )


@pytest.mark.parametrize(("kept", "says"), [(None, "is not told"), (90, "90% of their tokens"), (0, "")])
def test_own_prompts_that_were_asked_again_are_said(tmp_path: Path, kept: int | None, says: str) -> None:
    own = OwnPrompts(file="own.jsonl", sha256="0", prompts=5, most_bytes=10)
    workload = msgspec.structs.replace(POISSON, prompts=own)
    model = LoadModel(name="a", source="http://a/v1", synthetic=False, moe=None)

    def told(kind: str, requests: int) -> list[str]:
        opening = LoadStudyStarted(
            kind=kind,
            fingerprint="f",
            version="0.1",
            started_at="2026-01-01T00:00:00Z",
            command="breakeven",
            seed=1,
            machine=MACHINE,
            models=[model],
            workload=workload,
            slo=Slo(ttft_s=1.0),
            target_share=0.9,
            confidence=0.95,
        )
        usage = Usage(prompt_tokens=100, completion_tokens=11, cached_tokens=kept)
        rows = [request(i, due_s=i / 10, usage=usage) for i in range(requests)]
        path = tmp_path / f"{kind}{requests}.jsonl"
        with EventWriter(path) as log:
            for event in [opening, *run(rows, to_s=10, workload=workload)]:
                log.append(event)
        study = load_study(path) if kind == "bench" else capacity_study(path)
        return [text for text in study.caveats if "own.jsonl" in text]

    for kind in ("bench", "capacity"):
        assert told(kind, 5) == []
        found = told(kind, 50)
        assert len(found) == bool(says)
        assert all("5 prompts of own.jsonl 50 times" in text and says in text for text in found)


def test_what_was_kept_of_own_prompts_is_that_of_all_loads(tmp_path: Path) -> None:
    own = OwnPrompts(file="own.jsonl", sha256="0", prompts=5, most_bytes=10)
    workload = msgspec.structs.replace(POISSON, prompts=own)
    opening = opening_of(workload)
    with EventWriter(tmp_path / "events.jsonl") as log:
        log.append(opening)
        for block, kept in (("b", 0), ("c", 90)):
            usage = Usage(prompt_tokens=100, completion_tokens=11, cached_tokens=kept)
            rows = [request(i, due_s=i / 10, usage=usage, block=block) for i in range(50)]
            for event in run(rows, to_s=10, workload=workload, block=block, load=f"load {block}"):
                log.append(event)
    (told,) = (text for text in load_study(tmp_path / "events.jsonl").caveats if "own.jsonl" in text)
    assert "100 times in all, and 45% of their tokens" in told


def test_the_first_of_some_failures_is_told_in_the_server_s_words(tmp_path: Path) -> None:
    opening = opening_of(POISSON)
    words = "this model's maximum context length is 4096 tokens"
    rows = [request(i, due_s=i / 10, error=None if i else "http_400", detail=words) for i in range(50)]
    with EventWriter(tmp_path / "events.jsonl") as log:
        for event in [opening, *run(rows, to_s=10)]:
            log.append(event)
    study = load_study(tmp_path / "events.jsonl")
    assert study.caveats == [f"a: 1 of 50 requests failed; the first one: http_400, {words}"]
    assert not study.unanswered
