"""Predicted memory: against llama.cpp's own report on small files, and what was measured on a graphics card."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pytest
from predict_fixtures import profile
from rich.console import Console
from small_models import MOE, small

import breakeven
from bench.memory import MIB, Case, measured, off, predicted, reported
from breakeven.engines.memory import beside_weights_bytes, need_of, needed_bytes
from breakeven.engines.source import parse_source
from breakeven.forecast.memory import every_logit, on_gpu
from breakeven.forecast.model import step_model
from breakeven.forecast.profiles import profile_named
from breakeven.hardware.chips import chip_named
from breakeven.model.architecture import ModelSpec
from breakeven.model.arithmetic import file_bytes, kv_bytes, state_bytes
from breakeven.model.catalogue import lookup
from breakeven.model.reserved import cells, compute_bytes, reserved_kv_bytes, whole_context
from breakeven.pages.predicted import print_prediction

QWEN35_9B = {
    "model_type": "qwen3_5_text",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "intermediate_size": 12288,
    "vocab_size": 248320,
    "max_position_embeddings": 262144,
    "full_attention_interval": 4,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "tie_word_embeddings": False,
}
MEASURED_MIB = {4096: 6085, 16384: 6469, 65536: 8005, 131072: 10053}
"""llama.cpp on an RTX card (jaylfc/taOS, issue 144): 5406 model, 501 compute buffer, the rest caches and state."""
CACHES_MIB = {4096: 178, 16384: 562, 65536: 2098, 131072: 4146}


def test_what_was_measured_on_a_card_is_predicted(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(QWEN35_9B))
    found = breakeven.predict([str(config)], ["rtx-4090"], contexts=[*MEASURED_MIB], format="Q4_K_M")
    assert [point.context for point in found.points] == [*MEASURED_MIB]
    for point in found.points:
        said = point.memory
        assert point.memory_bytes / MIB == pytest.approx(MEASURED_MIB[point.context], rel=0.01)
        assert (said["kv"] + said["state"]) / MIB == pytest.approx(CACHES_MIB[point.context], abs=0.5)
        assert said["compute"] / MIB == pytest.approx(501, abs=0.5)
        assert sum(said.values()) == pytest.approx(point.memory_bytes)
        assert "output" not in said
    text = io.StringIO()
    print_prediction(found, Console(file=text, width=120))
    assert "Buffers" in text.getvalue()
    assert "525 MB" in text.getvalue()


@dataclass(frozen=True, slots=True)
class Small(Case):
    """A family of the tests' small models, at widths in the proportions of real ones."""

    def spec(self) -> ModelSpec:
        return replace(
            small(
                self.model,
                hidden_size=512,
                num_attention_heads=8,
                intermediate_size=2048,
                **({"moe_intermediate_size": 512} if self.model in MOE else {}),
                vocab_size=8192,
                max_position_embeddings=65536,
            ),
            name="small",
        )


CASES = (
    Small("llama", 4, context=16384),
    Small("gemma3", 4, context=8192, slots=2),
    Small("gpt-oss", 4, context=4096, kv_type="q8_0"),
    Small("lfm2moe", 4, context=2048, slots=4),
    Small("qwen3", 4, context=4096, every_logit=True),
    Small("qwen2", 4, context=4096, flash=False),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.model)
def test_llama_cpp_reserves_what_is_predicted(case: Case, tmp_path: Path) -> None:
    said, _ = measured(case, tmp_path)
    found = predicted(case)
    assert found.weights == pytest.approx(said.weights, rel=0.01)
    assert found.kv == pytest.approx(said.kv, rel=0.001, abs=0.01 * MIB)
    assert found.compute == pytest.approx(said.compute, rel=0.06)
    assert found.output == pytest.approx(said.output, abs=0.02 * MIB)
    assert abs(off(found, said)) < 0.03


def test_a_repacked_copy_counts_once_and_no_report_is_nothing() -> None:
    line = "0.00.1 I load_tensors:   {:>10} model buffer size = {:8.2f} MiB\n"
    log = line.format("CPU_Mapped", 12.16) + line.format("CPU_REPACK", 1.09)
    assert reported(log).weights == pytest.approx(12.16 * MIB)
    assert reported("").total == 0


def test_caches_come_in_cells() -> None:
    assert [whole_context(n) for n in (0, 1, 256, 257)] == [0, 256, 256, 512]
    assert cells(100_000, None) == 100_096
    # A window keeps room for the micro-batch that passes it, and never more than the context.
    assert cells(100_000, 1024) == 1536
    assert cells(600, 1024) == 768
    spec = lookup("gemma-3-1b")
    assert reserved_kv_bytes(spec, 512) == kv_bytes(spec, 512)
    assert reserved_kv_bytes(spec, 8192) > kv_bytes(spec, 8192)


def test_logits_of_a_micro_batch_count_unless_a_newer_build_is_known() -> None:
    card = profile_named("rtx-4090", "llama.cpp")
    versions = {None: True, "xllamacpp 2026.10.11549": False, "b9100": True, "b11549": False, "0.3.1": True}
    for version, expected in versions.items():
        origin = msgspec.structs.replace(card.origin, engine_version=version)
        assert every_logit(msgspec.structs.replace(card, origin=origin)) is expected, version
    spec = lookup("qwen3.5-27b")
    older = compute_bytes(spec, 4096, gpu=True, every_logit=True)
    newer = compute_bytes(spec, 4096, gpu=True, every_logit=False)
    # 505 and 132 MiB were published of Qwen3.8-27B, which has this vocabulary and, by its buffer, this hidden width.
    assert older / MIB == pytest.approx(505, abs=1)
    assert newer / MIB == pytest.approx(132, rel=0.05)
    assert older >= 512 * spec.vocab * 4


def test_memory_is_the_sum_of_its_rows_on_every_kind_of_machine() -> None:
    for machine in ("rtx-4090", "apple-m2-pro", "raspberry-pi-5", "h100-sxm"):
        made = profile_named(machine)
        model = step_model(lookup("lfm2-8b-a1b"), made, "BF16")
        rows = model.memory(4, 3000).rows()
        assert sum(rows.values()) == pytest.approx(model.memory_bytes(4, 3000))
        assert ("output" in rows) is not (on_gpu(made) or made.engine == "vllm")
        assert rows["state"] == 4 * state_bytes(lookup("lfm2-8b-a1b"))
    assert not on_gpu(profile())
    assert chip_named("raspberry-pi-5").chip_class == "sbc"


def test_every_device_has_a_buffer_of_its_own() -> None:
    spec = lookup("qwen3-30b-a3b")
    one, two = (step_model(spec, profile(devices=n, memory_bytes=64 * 10**9), "Q4_K_M", n) for n in (1, 2))
    more = two.memory(1, 8192).compute - one.memory(1, 8192).compute
    assert more == compute_bytes(spec, 8192, gpu=False, every_logit=False)


def test_what_an_engine_here_needs(tmp_path: Path) -> None:
    spec = lookup("lfm2-8b-a1b")
    beside = beside_weights_bytes(spec, 4096, 4)
    assert beside > 4 * (reserved_kv_bytes(spec, 4096) + state_bytes(spec))
    assert needed_bytes(spec, "Q4_K_M", 4096, 4) > file_bytes(spec, "Q4_K_M") + beside
    halved = beside - beside_weights_bytes(spec, 4096, 4, element_bytes=1.0)
    assert halved == pytest.approx(4 * reserved_kv_bytes(spec, 4096) / 2)
    assert need_of(parse_source("http://127.0.0.1:1"), "Q4_K_M", 4096, 4) == 0
