"""Ability on one scale: what the fit finds in made scores, what is shipped, and own scores before all others."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from bench.ability.left_out import judged, pairs_without, targets_of
from bench.ability.mixed import data_of, refined, start
from bench.ability.rows import Score
from breakeven.errors import UserError
from breakeven.model.catalogue import lookup, names
from breakeven.model.quality.ability import (
    AREAS,
    Ability,
    abilities,
    ability,
    answer_tokens,
    better,
    joint,
    languages,
    left_out,
    scored,
)
from breakeven.model.quality.kin import kin_of
from breakeven.model.quality.own import OwnScore, OwnScores, read_own
from breakeven.model.quality.posterior import ability_data
from tests.pace_fixtures import paced

PAGE = (Path(__file__).parent.parent / "docs" / "quality.md").read_text()


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", "qwen3-30b-a3b-instruct-2507"),
        ("Qwen/Qwen3-235B-A22B-Thinking-2507-FP8", "qwen3-235b-a22b-thinking-2507"),
        ("Qwen/Qwen3-8B", "qwen3-8b-thinking"),
        ("Qwen/Qwen3-8B#no-thinking", "qwen3-8b#plain"),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", "meta/llama-3.1-8b-instruct-turbo"),
        ("google/gemma-3-27b-pt", "gemma-3-27b"),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "Nemotron-3-Nano-30B-A3B"),
        ("gpt-oss-120b (high)", "openai/gpt-oss-120b#high"),
        ("MiniMaxAI/minimax-m2p5", "MiniMax-M2.5"),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", "Llama-4-Scout"),
    ],
)
def test_one_model_under_two_names(one: str, other: str) -> None:
    assert kin_of(one).key == kin_of(other).key


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B-Base"),
        ("Qwen/Qwen3-4B-Instruct-2507", "Qwen/Qwen3-4B-Thinking-2507"),
        ("deepseek-r1", "deepseek-r1-0528"),
        ("google/gemma-3-4b-it", "google/gemma-3-4b-pt"),
        ("gpt-oss-20b-low", "gpt-oss-20b-high"),
    ],
)
def test_two_models_of_one_kin(one: str, other: str) -> None:
    a, b = kin_of(one), kin_of(other)
    assert a.key != b.key
    assert (a.weights, a.series) == (b.weights, b.series)


# --- the fit ---------------------------------------------------------------------------------------------------------


def made(models: int = 24, seed: int = 1) -> tuple[list[Score], dict[str, float]]:
    """Scores in three harnesses: two that share most models, one that shares three with them."""
    rng = np.random.default_rng(seed)
    truth, scores = {}, []
    for m in range(models):
        kin = kin_of(f"m{'abcdefgh'[m % 8]}{m // 8}-{m + 1}b-instruct")
        able = 0.9 * math.log2(m + 1) / 3 + rng.normal(0, 0.3)
        truth[kin.key] = able
        for harness, level, asked in (("one", 0.4, m < 18), ("two", -0.8, m >= 2 and m < 18), ("three", 0.0, m >= 15)):
            there = rng.normal(0, 0.1)
            for task in range(3 if asked else 0):
                share = 1 / (1 + math.exp(-(level + able + there + rng.normal(0, 0.05))))
                areas = ((("knowledge", "reasoning", "code")[task], 1.0),)
                scores.append(Score(
                    kin, m + 1, m + 1, 2025.5, harness, f"{harness}: {task}", areas, None, share, 0.0, 2000, "MIT", ""
                ))  # fmt: skip
    return scores, truth


def logits(scores: list[Score], area: str = "knowledge") -> tuple[dict[str, float], dict[str, float]]:
    fit = refined(start(data_of(scores)), 2)
    asked = list({s.kin.key: replace(s, areas=((area, 1.0),)) for s in scores}.values())
    mean, shared, own = fit.effects(targets_of(fit.data, [(s, None) for s in asked]))
    var = np.einsum("ij,jk,ik->i", shared, fit.cov_PP, shared)
    for index, block in own:
        var[index] += np.diag(block)
    keys = [s.kin.key for s in asked]
    return dict(zip(keys, mean, strict=True)), dict(zip(keys, np.sqrt(var), strict=True))


def test_abilities_are_found_again_across_harnesses() -> None:
    scores, truth = made()
    found, doubt = logits(scores)
    keys = sorted(truth)
    assert np.corrcoef([found[k] for k in keys], [truth[k] for k in keys])[0, 1] > 0.95
    centred = {k: found[k] - np.mean([found[i] for i in keys]) + np.mean(list(truth.values())) for k in keys}
    assert np.mean([abs(centred[k] - truth[k]) < 1.96 * doubt[k] for k in keys]) >= 0.9


def test_how_hard_a_harness_is_says_nothing_of_a_model() -> None:
    scores, _ = made()
    harder = [
        replace(s, share=1 / (1 + math.exp(0.7) * (1 - s.share) / s.share)) if s.harness == "two" else s for s in scores
    ]
    one, other = (logits(some)[0] for some in (scores, harder))
    keys = sorted(one)
    assert [one[k] - one[keys[0]] for k in keys] == pytest.approx([other[k] - other[keys[0]] for k in keys], abs=0.08)


def test_the_interval_grows_where_overlap_is_thin() -> None:
    scores, truth = made()
    without = [s for s in scores if not (s.harness == "three" and int(s.total_b) <= 18)]
    _, bridged = logits(scores)
    _, apart = logits(without)
    lone = [k for k in truth if {s.harness for s in scores if s.kin.key == k} == {"three"}]
    many = [k for k in truth if len({s.harness for s in scores if s.kin.key == k}) == 2]
    assert np.mean([apart[k] for k in lone]) > np.mean([bridged[k] for k in lone])
    assert np.mean([bridged[k] for k in lone]) > np.mean([bridged[k] for k in many])


def test_a_harness_left_out_is_really_out() -> None:
    scores, _ = made()
    upside_down = [replace(s, share=1 - s.share) if s.harness == "two" else s for s in scores]
    sd = start(data_of(scores)).sd
    right, wrong = (pairs_without("two", some, sd) for some in (scores, upside_down))
    assert right is not None
    assert wrong is not None
    assert judged(right)["right"] > 0.8
    assert judged(wrong)["right"] < 0.2


# --- what is shipped -------------------------------------------------------------------------------------------------


def width(each: Ability) -> float:
    return each.value.most - each.value.least


def test_what_harnesses_left_out_say_is_reached() -> None:
    told = left_out()
    assert told["right"] >= 0.77
    assert told["direct_right"] >= 0.80
    assert max(told["calibration_gap"], told["direct_calibration_gap"]) <= 0.05
    assert told["right_where_90_sure"] >= 0.9
    for key in ("right", "direct_right", "right_by_harness", "by_size_right"):
        assert f"{100 * told[key]:.0f} %" in PAGE


def test_every_source_of_the_fit_is_named_with_its_terms() -> None:
    for name, source in ability_data().sources.items():
        assert source.rows > 0
        assert source.licence
        assert f"`{name}`" in PAGE


def test_every_catalogued_model_has_an_ability_in_every_area() -> None:
    for area in (*AREAS, "en", "hi", "de"):
        for each in abilities(names(), area):
            assert 0 <= each.value.least < each.value.value < each.value.most <= 100
            assert each.source in ("scores", "size")
            assert (each.n_harnesses > 0) == (each.source == "scores")


def test_size_is_the_last_resort_and_says_so() -> None:
    guess = ability("ling-1t", "code")
    assert (guess.source, guess.n_scores) == ("size", 0)
    assert "guess from parameters" in guess.note
    known = ability("qwen3-30b-a3b", "knowledge")
    assert known.source == "scores"
    assert known.n_scores > 0
    assert width(guess) > width(known)
    spec = replace(lookup("qwen3-30b-a3b"), name="my/own-thing")
    assert ability(spec, "knowledge").source == "size"


def test_a_bare_name_means_the_model_that_answers() -> None:
    assert ability("llama-3.1-8b", "knowledge").of == "llama-3.1-8b#plain"
    assert ability("llama-3.1-8b-base", "knowledge").of == "llama-3.1-8b#base"
    assert {"qwen3-32b#thinking", "qwen3-32b#plain"} <= set(scored("qwen3-32b"))


def test_one_is_better_as_the_other_is_worse() -> None:
    for a, b in (("qwen3-32b", "qwen3-0.6b"), ("gpt-oss-20b", "gemma-3-27b"), ("ling-1t", "olmoe-1b-7b")):
        for area in AREAS:
            assert better(a, b, area) + better(b, a, area) == pytest.approx(1)
    assert better("qwen3-32b", "qwen3-0.6b", "reasoning") > 0.95
    assert better("qwen3-8b", "qwen3-8b", "code") == pytest.approx(0.5)


def test_draws_agree_with_the_chance() -> None:
    both = joint(["qwen3-14b", "gemma-3-27b"], "reasoning")
    worlds = both.draws(4000, seed=3)
    assert worlds.shape == (4000, 2)
    first = float(np.mean(worlds[:, 0] > worlds[:, 1]))
    # In worlds of abilities alone no harness adds doubt.
    assert (first - 0.5) * (both.better(0, 1) - 0.5) > 0
    assert np.array_equal(worlds, both.draws(4000, seed=3))


def test_a_language_in_which_a_model_has_no_scores_is_less_sure() -> None:
    assert {"hi", "ta", "de", "en"} <= set(languages())
    de, hi = (ability("qwen3-8b", language) for language in ("de", "hi"))
    assert de.n_scores > 0
    assert hi.n_scores == 0
    assert width(hi) > width(de)
    with pytest.raises(UserError, match="no scores in 'tlh' are known"):
        ability("qwen3-8b", "tlh")


def test_guesses_by_size_have_their_rule_and_their_series_in_common() -> None:
    """So that many guesses are not as many chances."""
    both = joint(names(), "code")
    guessed = [i for i, source in enumerate(both.sources) if source == "size"]
    assert len(guessed) > 10
    series: dict[str, list[int]] = {}
    for i in guessed:
        series.setdefault(both.found[i].series, []).append(i)
    pairs = [(a, b) for each in series.values() for a in each for b in each if a < b]
    assert pairs
    for a, b in pairs:
        assert 0 < both.cov_MM[a, b] <= np.sqrt(both.cov_MM[a, a] * both.cov_MM[b, b]) + 1e-9
    apart = [(a, b) for a in guessed for b in guessed if both.found[a].series != both.found[b].series]
    assert np.mean([both.cov_MM[a, b] for a, b in apart]) > 0


def test_a_name_nobody_knows_is_refused() -> None:
    with pytest.raises(UserError, match="nothing is known of 'my-model'"):
        ability("my-model", "code")


def test_all_of_the_catalogue_is_fast() -> None:
    joint(["qwen3-8b"], "code")
    began = time.process_time()
    joint(names(), "code")
    assert time.process_time() - began < paced(1.0)


# --- own scores ------------------------------------------------------------------------------------------------------


def own_of(*scores: tuple[str, float, int], language: str | None = None) -> OwnScores:
    return OwnScores("mine.jsonl", tuple(OwnScore(model=m, score=s, n=n, language=language) for m, s, n in scores))


def test_own_scores_override() -> None:
    before = better("qwen3-32b", "qwen3-0.6b", "reasoning")
    own = own_of(("qwen3-32b", 0.40, 400), ("qwen3-0.6b", 0.60, 400))
    assert better("qwen3-32b", "qwen3-0.6b", "reasoning", own) < 0.01 < before
    mine = ability("qwen3-0.6b", "reasoning", own)
    assert mine.source == "own"
    assert "mine.jsonl" in mine.note
    few = own_of(("qwen3-32b", 0.40, 10), ("qwen3-0.6b", 0.60, 10))
    assert better("qwen3-32b", "qwen3-0.6b", "reasoning", few) > 0.05


def test_own_scores_meet_published_ones_on_one_scale() -> None:
    own = own_of(("qwen3-8b", 0.55, 500), ("qwen3-14b", 0.60, 500))
    eight, fourteen, other = abilities(["qwen3-8b", "qwen3-14b", "gemma-3-27b"], "knowledge", own)
    assert (eight.source, fourteen.source, other.source) == ("own", "own", "scores")
    published = ability("gemma-3-27b", "knowledge")
    assert other.value.value == pytest.approx(published.value.value)
    plain = [ability(name, "knowledge").value.value for name in ("qwen3-8b", "qwen3-14b")]
    assert np.mean([eight.value.value, fourteen.value.value]) == pytest.approx(np.mean(plain), abs=4)
    assert ability("an-api", "knowledge", own_of(("an-api", 0.7, 100), ("qwen3-8b", 0.5, 100))).source == "own"


def test_own_scores_in_a_language_tell_of_that_language() -> None:
    own = own_of(("qwen3-8b", 0.2, 300), ("gemma-3-27b", 0.6, 300), language="hi")
    assert ability("qwen3-8b", "hi", own).source == "own"
    assert ability("qwen3-8b", "de", own).source == "scores"


def test_own_scores_in_a_language_tell_of_no_other_area() -> None:
    """What a model does in Hindi is no score in code; tasks in English, or in no language that is said, are."""
    hindi = own_of(("qwen3-8b", 0.2, 300), ("gemma-3-27b", 0.6, 300), language="hi")
    for area in ("code", "knowledge"):
        assert ability("qwen3-8b", area, hindi).source == "scores"
        for language in ("en", None, "tlh"):
            own = own_of(("qwen3-8b", 0.2, 300), ("gemma-3-27b", 0.6, 300), language=language)
            assert ability("qwen3-8b", area, own).source == "own"
    code = OwnScores("mine.jsonl", tuple(msgspec.structs.replace(each, area="code") for each in hindi.scores))
    assert ability("qwen3-8b", "code", code).source == "own"


def test_what_a_format_costs_is_taken_off_own_scores_once() -> None:
    """A file in two bits that solves as much as one in eight is of the abler model; one loss for both moves neither."""

    def told(first: str | None, second: str | None) -> list[float]:
        scores = (("qwen3-8b", first), ("qwen3-14b", second))
        own = OwnScores("mine", tuple(OwnScore(model=m, score=0.5, n=400, format=f) for m, f in scores))
        return [each.value.value for each in abilities(["qwen3-8b", "qwen3-14b"], "knowledge", own)]

    plain, both, one = told(None, None), told("Q4_K_M", "Q4_K_M"), told("Q2_K", "Q8_0")
    assert plain[0] == pytest.approx(plain[1], abs=0.1)
    assert both == pytest.approx(plain, abs=1.0)
    assert one[0] > one[1] + 3


def test_own_scores_are_read_from_three_kinds_of_file(tmp_path: Path) -> None:
    lines = tmp_path / "mine.jsonl"
    lines.write_text('{"model": "qwen3-8b", "score": 0.5, "n": 40, "area": "code", "answer_tokens": 321}\n')
    harness = tmp_path / "results.json"
    harness.write_text(json.dumps({
        "model_name": "Qwen/Qwen3-8B", "results": {"mmlu": {"acc,none": 0.7}, "gsm8k": {"exact_match,strict": 0.8}},
        "n-samples": {"mmlu": {"original": 100, "effective": 90}, "gsm8k": {"effective": 50}},
    }))  # fmt: skip
    evaluation = tmp_path / "evaluation.json"
    evaluation.write_text(json.dumps({
        "schema": "breakeven.evaluate/1",
        "models": [{"name": "qwen3-8b", "tasks": [
            {"name": "tickets", "language": "de", "tasks": 40, "solved": {"value": 0.75},
             "answer_tokens": {"value": 90}},
        ]}],
    }))  # fmt: skip
    own = read_own(lines, harness, evaluation)
    assert [(s.model, s.score, s.n) for s in own.scores] == [
        ("qwen3-8b", 0.5, 40), ("Qwen/Qwen3-8B", 0.7, 90), ("Qwen/Qwen3-8B", 0.8, 50), ("qwen3-8b", 0.75, 40),
    ]  # fmt: skip
    told = answer_tokens("qwen3-8b", "code", own)
    assert told is not None
    assert told.value.value == pytest.approx((321 + 90) / 2)
    assert own.of_area("de", is_language=True) == own.scores[3:]


def test_a_file_of_evaluate_names_the_model_that_it_is_of(tmp_path: Path) -> None:
    task = {"name": "tickets", "language": "all", "tasks": 40, "solved": {"value": 0.75}}
    named = ("qwen3-8b-Q4_K_M", "Qwen3-14B.IQ4_XS.gguf", "gemma-3-27b-Q4_K_M", "gemma-3-27b-Q8_0")
    file = tmp_path / "e.json"
    models = [{"name": name, "tasks": [task]} for name in named]
    file.write_text(json.dumps({"schema": "breakeven.evaluate/1", "models": models}))
    own = read_own(file)
    # Two files of one model are not two scores of it: the finer one stands for it.
    assert [(s.model, s.format) for s in own.scores] == [
        ("qwen3-8b", "Q4_K_M"), ("Qwen3-14B", "IQ4_XS"), ("gemma-3-27b", "Q8_0"),
    ]  # fmt: skip
    assert own.coarser == ("gemma-3-27b in Q4_K_M",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no scores"),
        ('{"model": "a", "score": 62, "n": 10}', "no share from 0 to 1"),
        ('{"model": "a", "score": 0.5}', "n"),
        ('{"model": "a", "score": 0.5, "n": 9, "area": "coding"}', "area 'coding' is none of knowledge"),
        ('{"results": {"mmlu": {"acc,none": 0.5}}}', "does not say of which model"),
        ('{"schema": "breakeven.evaluate/1", "models": [{}]}', "is no evaluation"),
        ("[[[[", "mine.json:1"),
        ('{"model": "a", "score": 0.5, "n": 9, "format": "tiny"}', "format 'tiny' is no weight format"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_own(path)
    with pytest.raises(UserError, match="cannot read"):
        read_own(tmp_path / "none.json")


# --- answer lengths --------------------------------------------------------------------------------------------------


def test_answer_lengths_are_that_models_or_its_kind_s_and_say_so() -> None:
    r1 = answer_tokens("deepseek-r1-0528", "code")
    assert r1 is not None
    assert r1.value.value == pytest.approx(8224)
    assert "deepseek-r1-0528" in r1.source
    kind = answer_tokens("qwen3.5-9b", "reasoning")
    assert kind is not None
    assert kind.value.least < kind.value.value < kind.value.most
    assert "other models" in kind.source
    assert answer_tokens("llama-3.1-8b", "instruction") is None


def test_one_model_s_length_is_not_that_of_all_who_answer_so() -> None:
    assert answer_tokens("llama-3.1-8b", "knowledge") is None
    assert answer_tokens("llama-3.1-8b", "code") is not None
    effort = answer_tokens("gpt-oss-20b", "reasoning")
    assert effort is not None
    assert effort.value.value > 5000
