"""Names as published measurements spell them: what they stand for, and what cannot be told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.published import names
from breakeven.model.arithmetic import total_params
from breakeven.model.formats.named import format_named


@pytest.mark.parametrize(
    ("text", "billions"),
    [
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", 8.03),
        ("Llama-3-70B", 70.6),
        ("llama3.2:1b", 1.24),
        ("llama-2-7b.Q4_0", 6.74),
        ("TinyLlama-1.1B", 1.1),
        ("nvidia/DeepSeek-V3.1-NVFP4", 671),
        ("DeepSeek-R1-Distill-Qwen-14B", 14.8),
        ("Ministral-3-14B-Instruct-2512-BF16", 13.5),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", 30.5),
        ("Qwen3.6-35B-A3B-UD-Q4_K_XL", 34.7),
        ("qwen3next 80B.A3B", 79.7),
        ("qwen2.5-coder-7b-instruct-q4_k_m.gguf", 7.6),
        ("google_gemma-3-1b-it-Q4_K_M.gguf", 1.0),
        ("gpt-oss:20b", 20.9),
        ("zhipuai/GLM-5", 743),
    ],
)
def test_models(text: str, billions: float) -> None:
    spec = names.model_of(text)
    assert spec is not None
    assert total_params(spec) / 1e9 == pytest.approx(billions, rel=0.02)


@pytest.mark.parametrize(
    ("quant", "model", "found"),
    [
        ("float16", "x", "F16"),
        ("fp8/fp8_block", "x", "FP8"),
        ("int4_wo", "x", "INT4"),
        (None, "x", "BF16"),
        ("Q40", "x", "Q4_0"),
        ("Q4_K_XL", "x", "Q4_K_M"),
        ("mlx q4 g32", "x", "Q4_1"),
        ("Q3_K_S mixed, 2.70 bpw", "x", "Q3_K_M"),
        ("Q4_K_M or Ollama default 4-bit (per linked issue)", "x", "Q4_K_M"),
        ("provider default", "gpt-oss:20b", "MXFP4"),
        ("nvfp4", "openai/gpt-oss-120b", "MXFP4_BF16"),
        ("not stated in the quoted text", "x", None),
    ],
)
def test_formats(quant: str | None, model: str, found: str | None) -> None:
    assert names.format_of(quant, model) == found
    assert found is None or format_named(found).name == found


@pytest.mark.parametrize(
    ("text", "slug", "devices"),
    [
        ("NVIDIA b200_sxm", "b200-sxm", 1),
        ("NVIDIA 3090 24GB * 6", "rtx-3090", 6),
        ("NVIDIA A100 PCIe 80GB * 4", "a100-80gb-pcie", 4),
        ("Intel 13900K (Nvidia 4090)", "rtx-4090", 1),
        ("Pi 5 - 8GB (AMD RX 6700 XT) 12GB", "rx-6700-xt", 1),
        ("Pi 5 - 8GB", "raspberry-pi-5", 1),
        ("Apple M3 Max 40‑Core GPU 64GB", "apple-m3-max", 1),
        ("M4 Mac mini (10 core - 32GB)", "apple-m4", 1),
        ("AMD Ryzen AI Max+ 395 (Strix Halo) 128GB", "ryzen-ai-max-395", 1),
        ("Framework Mainboard Cluster (512GB)", "ryzen-ai-max-395", None),
        ("Raspberry Pi 5 16GB x4", "raspberry-pi-5", None),
    ],
)
def test_machines(text: str, slug: str, devices: int | None) -> None:
    chip = names.chip_of(text)
    assert chip is not None
    assert chip.slug == slug
    assert names.devices_of(text) == devices


@pytest.mark.parametrize("text", ["Apple silicon (not stated)", "Radxa Dragon Q8B, 8 threads", ""])
def test_what_is_not_told_stays_unknown(text: str) -> None:
    assert names.chip_of(text) is None


def test_shapes_that_nobody_published_stay_unknown() -> None:
    assert names.model_of("Qwen3.8-27B-8bit") is None


@given(st.text(max_size=30))
def test_any_text_is_answered(text: str) -> None:
    names.model_of(text)
    names.chip_of(text)
    found = names.format_of(text, text)
    assert found is None or format_named(found).name == found


def test_every_format_named_is_one() -> None:
    for found in (*names.NEAREST.values(), "MXFP4_BF16"):
        assert format_named(found).name == found
