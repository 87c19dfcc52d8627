"""What fewer bits cost: names of methods, the order of trust, the curve, and how far it is off on models left out."""

from __future__ import annotations

import itertools
import time
from importlib import resources

import pytest

from bench.fit_loss import made
from breakeven.errors import UserError
from breakeven.model.catalogue import lookup, names
from breakeven.model.quality.curve import LossFit, loss_fit, losses
from breakeven.model.quality.loss import KV_KL, Loss, expected_loss, score_lost
from breakeven.model.quality.methods import method_of
from breakeven.stats.estimate import Estimate
from tests.pace_fixtures import paced

GGUF = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K", "IQ2_XXS")
FREE = ("MIT", "Apache-2.0", "CC0")
TEXTS = {
    "MIT-like": ("--- GGUF Tool Suite ---", "Copyright (c) 2025 Thireus", "“GGUF Tool Suite” and “its contributors”"),
    "MIT": ("--- MIT: ", "Copyright (c) 2023-2025 The ggml authors", "this permission notice shall be included"),
    "Apache-2.0": ("--- Apache-2.0: ",),
    "CC0": ("--- CC0-1.0: ",),
}


@pytest.fixture(scope="module")
def refitted() -> LossFit:
    return made()


@pytest.mark.parametrize(
    ("name", "calibration", "family", "kind", "bits", "importance"),
    [
        ("Q4_K_M", "", "k", "Q4_K_M", 4.85, 0.5),
        ("q4_K", "imatrix", "k", "Q4_K", 4.5, 1.0),
        ("Q3_K_M (mradermacher)", "imatrix", "k", "Q3_K_M", 3.9, 0.0),
        ("iq2_xxs", "imatrix (WT 10m wikitext tokens)", "iq", "IQ2_XXS", 2.0625, 1.0),
        ("smol-IQ4_KSS (ubergarm)", "imatrix", "ik", "IQ4_KSS", 4.0, 1.0),
        ("iq3_kt", "imatrix", "kt", "IQ3_KT", 3.125, 1.0),
        ("pure Q5_0", "none", "q", "Q5_0", 5.5, 0.0),
        ("UD-Q4_K_XL (unsloth)", "as published", "ud", "UD-Q4_K_XL", 4.95, 1.0),
        ("FP8_BLOCK", "", "fp8", "FP8", 8.0, 0.5),
        ("NVFP4 W4A4, attention and SSM too (sakamakismile)", "", "fp4a4", "NVFP4 W4A4", 4.5, 0.5),
        ("MXFP4_MOE", "", "fp4", "MXFP4", 4.25, 0.5),
        ("AWQ INT4 (cyankiwi)", "", "int", "AWQ", 4.125, 0.5),
        ("INT4", "", "int", "GPTQ", 4.125, 0.5),
        ("ONNX pure INT4 RTN", "RTN", "int", "RTN", 4.125, 0.5),
        ("GPTQ4_G32", "", "int", "GPTQ", 4.5, 0.5),
        ("MLX4", "", "int", "MLX", 4.5, 0.5),
        ("MLX8_G32", "", "int", "MLX", 9.0, 0.5),
        ("EXL2 5.0 bpw", "", "exl", "EXL2", 5.0, 0.5),
        ("BF16", "", "exact", "16", 16.0, 0.5),
        ("something of 3.6 bpw", "", "other", "other", 3.6, 0.5),
    ],
)
def test_methods_are_known_by_their_published_names(
    name: str, calibration: str, family: str, kind: str, bits: float, importance: float
) -> None:
    found = method_of(name, calibration)
    assert (found.family, found.kind, found.bits, found.importance) == (family, kind, bits, importance)


def test_what_was_measured_of_the_very_model_comes_first() -> None:
    llama = expected_loss("dense", 8.515, "Q8_0", name="meta-llama/Meta-Llama-3-8B", total_b=8.03)
    assert (llama.source, llama.kl.value, llama.kl.provenance) == ("measured", pytest.approx(0.001355), "published")
    assert "llama.cpp" in llama.basis
    # Another format of it is predicted, and more surely than for a model that nobody measured.
    other = expected_loss("dense", 5.25, "IQ5_KS", name="Llama-3-8B", total_b=8.03)
    stranger = expected_loss("dense", 5.25, "IQ5_KS", total_b=8.03)
    assert (other.source, stranger.source) == ("formats", "prior")
    assert _width(other.kl) < _width(stranger.kl)


def test_kin_come_before_the_maker_and_that_before_strangers() -> None:
    found = [
        expected_loss("hybrid-moe", 4.9, "Q4_K_M", name=name, total_b=size, active_b=3)
        for name, size in (("Qwen3.7-35B-A3B", 35), ("Qwen4-90B-A3B", 90), ("Newcomer-35B-A3B", 35))
    ]
    assert [each.source for each in found] == ["kin", "maker", "prior"]
    assert "qwen" in found[0].basis


@pytest.mark.parametrize(
    ("name", "method"), [("llama-3.1-8b", "BF16"), ("gpt-oss-20b", "MXFP4"), ("deepseek-v3", "FP8")]
)
def test_the_format_a_model_was_trained_in_loses_nothing(name: str, method: str) -> None:
    found = expected_loss(lookup(name), None, method)
    assert (found.source, found.kl.value, found.top1.value, found.ppl_ratio.value) == ("exact", 0, 1, 1)
    assert expected_loss(lookup(name), None, "Q3_K_M").kl.value > 0.01


def test_a_model_known_by_name_and_sizes_alone_is_told_apart_as_well() -> None:
    kimi = {"name": "moonshotai/Kimi-K2-Thinking", "total_b": 1026.0, "active_b": 32.0}
    assert expected_loss("moe", 4.5, "INT4", **kimi).source == "exact"
    assert expected_loss("moe", 4.5, "AWQ", **kimi).source == "formats"


@pytest.mark.parametrize("total", [0.5, 4, 30, 400])
@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_fewer_bits_lose_more_and_all_figures_agree(kind: str, total: float) -> None:
    found = [expected_loss(kind, None, each, total_b=total, active_b=total / 10) for each in GGUF]
    for finer, coarser in itertools.pairwise(found):
        assert finer.kl.value < coarser.kl.value
        assert finer.top1.value > coarser.top1.value
        assert finer.ppl_ratio.value < coarser.ppl_ratio.value
    for each in found:
        assert _ordered(each.kl)
        assert _ordered(each.top1)
        assert _ordered(each.ppl_ratio)
        assert each.top1.most <= 1


def test_routing_has_a_higher_floor_at_eight_bits_and_loses_like_a_smaller_dense_model_at_four() -> None:
    moe, dense = (
        {m: expected_loss(k, None, m, total_b=30, active_b=3).kl.value for m in ("Q8_0", "Q4_K_M")}
        for k in ("moe", "dense")
    )
    assert moe["Q8_0"] > 2 * dense["Q8_0"]
    assert moe["Q4_K_M"] / moe["Q8_0"] < dense["Q4_K_M"] / dense["Q8_0"]


def test_an_importance_matrix_helps_and_most_where_bits_are_few() -> None:
    def gain(method: str) -> float:
        plain, weighed = (expected_loss("dense", None, method, total_b=8, importance=each) for each in (False, True))
        return plain.kl.value / weighed.kl.value

    assert gain("Q2_K") > gain("Q4_K_M") > 1


def test_cached_types_add_to_the_weights() -> None:
    def loss(kv: str, method: str = "Q4_K_M") -> Loss:
        return expected_loss("dense", None, method, total_b=8, kv=kv)

    assert loss("q8_0").kl.value == pytest.approx(loss("f16").kl.value + KV_KL["q8_0"][0])
    assert loss("f16").kl.value < loss("q8_0").kl.value < loss("q4_0").kl.value
    assert loss("q8_0", "BF16").kl.value == pytest.approx(KV_KL["q8_0"][0])
    assert _ordered(loss("q4_0").kl)
    with pytest.raises(UserError, match="no type of key-value cache is called 'q9'"):
        loss("q9")


def test_a_language_that_nobody_measured_is_said() -> None:
    mixed, english, french, hindi = (
        expected_loss("dense", None, "Q4_K_M", total_b=8, language=each) for each in (None, "en", "fr", "hi")
    )
    assert mixed.kl.value == english.kl.value < french.kl.value == hindi.kl.value
    assert _width(french.kl) > _width(mixed.kl)
    assert "hi" in hindi.basis
    assert "no loss was ever published" not in french.basis


def test_points_are_told_only_where_pairs_were_published() -> None:
    kl = expected_loss("dense", 4.9, "Q4_K_M", name="Llama-3-8B", total_b=8.03).kl
    lost = score_lost(kl, "knowledge")
    assert lost is not None
    assert 0.003 < lost.value < 0.03  # 64.64 of 65.2, where guessing gets 25
    assert _ordered(lost)
    assert score_lost(kl, "code") is None


def test_what_cannot_be_told_is_refused() -> None:
    with pytest.raises(UserError, match="how many bits 'magic' takes a weight is not known"):
        expected_loss("dense", None, "magic", total_b=8)
    with pytest.raises(UserError, match="give the size in billions of parameters"):
        expected_loss("moe", 4.5, "Q4_K_M")
    with pytest.raises(UserError, match=r"0\.5 bits a weight: a weight takes 1 to 32"):
        expected_loss("dense", 0.5, "Q4_K_M", total_b=8)


def test_a_catalogue_is_gone_through_in_no_time() -> None:
    specs = [lookup(name) for name in names()[:40]]
    formats = ("Q8_0", "Q6_K", "Q4_K_M", "IQ4_XS", "IQ2_XXS", "FP8", "NVFP4", "INT4")
    nominal = [expected_loss("dense", None, each, total_b=1) for each in formats]
    assert len(nominal) == len(formats)
    started = time.process_time()
    for spec in specs:
        for each in formats:
            expected_loss(spec, 4.5, each)
    assert time.process_time() - started < paced(4.0)  # 320 of them; counting parameters is most of it


def test_shipped_figures_may_be_shipped_and_have_a_source() -> None:
    shipped = losses()
    assert all(source.licence.startswith(FREE) and source.link.startswith("http") for source in shipped.sources)
    assert {row.source for row in shipped.rows} == set(range(len(shipped.sources)))
    assert {row.model for row in shipped.rows} == set(shipped.models)
    assert len(shipped.rows) > 2000


def test_the_texts_of_licences_travel_with_the_figures() -> None:
    text = resources.files("breakeven.model").joinpath("data", "LICENCES.txt").read_text(encoding="utf-8")
    for source in losses().sources:
        kind = max((each for each in TEXTS if source.licence.startswith(each)), key=len)
        assert all(part in text for part in TEXTS[kind]), source.licence
    free = [source.link for source in losses().sources if source.licence == "MIT" and "github" in source.link]
    projects = {link.split("/")[4] for link in free}
    assert all(project in text for project in projects), projects


def test_a_maker_nobody_measured_has_the_widest_interval(refitted: LossFit) -> None:
    """Five makers are few: their spread is in doubt, too, and each lies within what the other four would have given."""
    assert refitted.spread["prior"] > refitted.spread["maker"]
    assert refitted.reached["maker_kept_by_others"] >= 0.9


def test_the_shipped_fit_is_that_of_the_shipped_figures(refitted: LossFit) -> None:
    assert refitted.coefficients == pytest.approx(loss_fit().coefficients, abs=0.02)
    assert refitted.reached == pytest.approx(loss_fit().reached, abs=0.01)


def test_models_left_out_are_predicted_as_well_as_is_told(refitted: LossFit) -> None:
    reached = refitted.reached
    assert reached["model_within_factor_2"] >= 0.70
    assert abs(reached["model_bias"]) <= 0.15
    assert reached["model_ranked_right"] >= 0.95
    assert refitted.spread["formats"] < refitted.spread["kin"]


def _width(found: Estimate) -> float:
    return found.most / found.least


def _ordered(found: Estimate) -> bool:
    return found.least <= found.value <= found.most
