"""Quality: one source for all candidates, in order of trust."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakeven.errors import UserError
from breakeven.model.arithmetic import active_params, total_params
from breakeven.model.catalogue import lookup, names
from breakeven.model.quality import benchmarks, published, quality_of, sources


def test_own_scores_come_first_and_reach_apis() -> None:
    models = {"a": lookup("olmoe-1b-7b"), "b": lookup("llama-3.2-1b")}
    scores = quality_of(models, own={"a": 0.5, "b": 0.4, "api": 0.9})
    assert {name: (s.how, s.value) for name, s in scores.items()} == {
        "a": ("own", 0.5),
        "b": ("own", 0.4),
        "api": ("own", 0.9),
    }


def test_published_scores_are_of_one_source_benchmark_and_stage() -> None:
    scores = quality_of({"moe": lookup("olmoe-1b-7b"), "dense": lookup("llama-3.2-1b")})
    assert {score.how for score in scores.values()} == {"published"}
    assert len({(score.benchmark, score.source) for score in scores.values()}) == 1
    moe = scores["moe"]
    assert moe.value == 0.1915  # allenai/OLMoE-1B-7B-0125-Instruct, Open LLM Leaderboard v2, MMLU-Pro
    assert "instruct" in str(moe.source)
    assert moe.low is not None
    assert moe.high is not None
    assert moe.low < moe.value < moe.high


def test_a_benchmark_asked_for_is_taken() -> None:
    models = {"moe": lookup("mixtral-8x7b"), "dense": lookup("llama-3.1-8b")}
    assert {score.benchmark for score in quality_of(models, benchmark="ifeval").values()} == {"ifeval"}
    with pytest.raises(UserError, match="no scores of 'arena' are known"):
        quality_of(models, benchmark="arena")


def test_harnesses_are_never_mixed() -> None:
    # Llama-3.1-8B stands in one harness, Qwen3-30B-A3B in another: size is all that covers both.
    models = {"moe": lookup("qwen3-30b-a3b"), "dense": lookup("llama-3.1-8b")}
    assert {score.how for score in quality_of(models).values()} == {"size"}
    with pytest.raises(UserError, match="no one source"):
        quality_of(models, source="published")


def test_own_scores_must_cover_everybody() -> None:
    models = {"a": lookup("olmoe-1b-7b"), "b": lookup("llama-3.2-1b")}
    with pytest.raises(UserError, match="missing for b"):
        quality_of(models, source="own", own={"a": 0.5})
    assert quality_of(models, own={"a": 0.5})["a"].how == "published"


@given(st.sampled_from(names()))
def test_size_is_a_guess_with_its_band(model: str) -> None:
    spec = lookup(model)
    score = quality_of({"it": spec}, source="size")["it"]
    assert score.value is not None
    assert score.low is not None
    assert score.high is not None
    assert score.low <= score.value <= score.high <= 1.6 * total_params(spec)
    if spec.is_moe:
        root = math.sqrt(total_params(spec) * active_params(spec))
        assert (score.low, score.high) == (pytest.approx(0.72 * root), pytest.approx(1.60 * root))
    else:
        assert score.low == score.high == total_params(spec)


@given(st.lists(st.sampled_from(names()), min_size=1, max_size=4, unique=True))
def test_whatever_is_compared_compares(models: list[str]) -> None:
    scores = quality_of({name: lookup(name) for name in models})
    assert scores.keys() == set(models)
    assert len({(score.how, score.benchmark, score.source) for score in scores.values()}) == 1


def test_every_score_shipped_names_a_source_that_may_be_shipped() -> None:
    assert {row.source for row in published()} == set(sources())
    assert all(source.licence and source.via for source in sources().values())
    assert all(0 <= share <= 1 for row in published() for share in row.scores.values())
    assert "mmlu_pro" in benchmarks()


def test_the_page_says_how_many_models_each_source_has() -> None:
    page = (Path(__file__).parent.parent / "docs" / "quality.md").read_text()
    for name in sources():
        rows = sum(row.source == name for row in published())
        line = next(line for line in page.splitlines() if sources()[name].name.split(",")[0] in line)
        assert f"| {rows}" in line
    assert all(f"`{name}`" in page for name in benchmarks())
