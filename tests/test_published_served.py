"""Published records of served models: who was decoding, and what is left out because it is no step time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.published.records import FILES, Observation, read
from bench.published.served_2026 import read_served
from tests.test_published_local import written

ROW = {
    "machine": "2x B200", "chip_slug": "b200-sxm", "engine": "vLLM", "build_or_version": "0.16.0", "placement": "TP2",
    "model": "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-FP8", "format": "FP8", "n_devices": "2", "output_tokens": "512",
    "streams_or_load": "512 concurrent", "prompt_or_depth_tokens": "2048", "metric": "tpot_ms_mean", "value": "15.46",
}  # fmt: skip
SILICON = {
    "source": "s0", "id": "2026_04_06_minimax_m2_5_b200_sxm_vllm_fp8_c512", "model": "MiniMaxAI/MiniMax-M2.5",
    "quant": "fp8", "hardware": "NVIDIA b200_sxm", "hw_class": "datacenter_gpu", "n_dev": 2, "tp": "2",
    "attention_dp": "1", "moe_tp": "2", "moe_ep": "1", "engine": "vllm 0.19.0", "batch": 512, "concurrency": 512,
    "prompt_len": 1024, "gen_len": 1024,
}  # fmt: skip


def silicon(directory: Path, tpot_ms: float, ttft_ms: float) -> list[Observation]:
    for name in FILES:
        (directory / name).write_text(json.dumps({"records": []}))
    rows = [{**SILICON, "metric": "tpot", "value": tpot_ms}, {**SILICON, "metric": "ttft", "value": ttft_ms}]
    (directory / FILES[1]).write_text(json.dumps({"records": rows}))
    return read(directory)[0]


def test_tokens_of_all_tell_how_many_decode(tmp_path: Path) -> None:
    total = {**ROW, "metric": "decode_aggregate_tok_s", "value": "18746"}
    (found,), _ = read_served(written(tmp_path, ROW, total))
    assert found.decoding == pytest.approx(18746 * 0.01546)
    assert (found.streams, found.prompt, found.output) == (512, 2048, 512)


def test_a_total_of_another_load_tells_nothing(tmp_path: Path) -> None:
    other = {**ROW, "metric": "decode_aggregate_tok_s", "value": "18746", "streams_or_load": "256 concurrent"}
    (found,), _ = read_served(written(tmp_path, ROW, other))
    assert found.decoding is None


def test_bursts_and_held_down_clocks_are_left_out(tmp_path: Path) -> None:
    burst = {**ROW, "streams_or_load": "request rate inf, 1000 prompts"}
    capped = {**ROW, "note": "cards capped at 220 W"}
    found, skipped = read_served(written(tmp_path, burst, capped))
    assert found == []
    assert sum(skipped.values()) == 2


def test_those_who_wait_do_not_decode(tmp_path: Path) -> None:
    (found,) = silicon(tmp_path, 50.0, 12_800.0)
    assert found.decoding == pytest.approx(512 * 51.2 / 64.0)
    assert found.batched


def test_a_queue_is_no_step_time(tmp_path: Path) -> None:
    assert silicon(tmp_path, 5.0, 20_000.0) == []


def test_prompts_read_faster_than_the_chip_multiplies_were_not_read(tmp_path: Path) -> None:
    assert silicon(tmp_path, 1.0, 10.0) == []
