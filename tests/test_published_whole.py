"""Published records of models that lie wholly on their devices: what a row means, and which are left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.published.records import of_threads
from bench.published.whole_2026 import STEPS, Whole, read_whole

COLUMNS = [
    "id", "machine", "chip_slug", "engine", "build_or_version", "date", "model", "format", "placement", "kv_type",
    "n_devices", "streams_or_load", "prompt_or_depth_tokens", "output_tokens", "metric", "value", "note",
]  # fmt: skip
ROW = {
    "chip_slug": "rtx-3090", "engine": "llama.cpp (CUDA)", "date": "2026-08", "model": "Qwen/Qwen3.6-35B-A3B",
    "format": "GGUF UD-Q4_K_XL", "placement": "all on device", "n_devices": "1", "streams_or_load": "1 stream",
    "prompt_or_depth_tokens": "0", "output_tokens": "128", "metric": "decode_tok_s", "value": "100",
}  # fmt: skip


def written(directory: Path, *changes: dict[str, str]) -> Path:
    rows = [{"id": f"r{i}", **ROW, **change} for i, change in enumerate(changes)]
    lines = ["\t".join(COLUMNS), *("\t".join(row.get(c, "") for c in COLUMNS) for row in rows)]
    (directory / "local_2026.tsv").write_text("\n".join(lines) + "\n")
    return directory


def one(tmp_path: Path, **change: str) -> Whole:
    (found,), skipped = read_whole(written(tmp_path, change))
    assert not skipped
    return found


def test_a_row_is_a_step(tmp_path: Path) -> None:
    found = one(tmp_path)
    assert (found.spec.name, found.format, found.year) == ("Qwen/Qwen3.6-35B-A3B", "Q4_K_M", 2026)
    assert found.seconds == pytest.approx(0.01)


def test_streams_share_what_they_make_together(tmp_path: Path) -> None:
    found = one(tmp_path, metric="decode_aggregate_tok_s", streams_or_load="8 sequences (llama-batched-bench)")
    assert (found.streams, found.wall) == (8.0, False)
    assert found.seconds == pytest.approx(0.08)
    assert one(tmp_path, metric="decode_aggregate_tok_s", note="wall-clock, prefill included").wall


def test_a_prompt_is_as_long_as_its_test_says(tmp_path: Path) -> None:
    note = "llama-bench pp2048 at that depth, ubatch 1024, batch 2048"
    found = one(tmp_path, metric="prefill_tok_s", note=note, value="1000")
    assert (found.prompt, found.step_tokens, found.phase) == (2048.0, 1024, "prefill")
    assert found.seconds == pytest.approx(2.048)


def test_an_ollama_tag_names_model_and_format(tmp_path: Path) -> None:
    found = one(tmp_path, model="glm-4.7-flash:q8_0", format="as in the tag", engine="Ollama")
    assert (found.spec.name, found.format) == ("zai-org/GLM-4.7-Flash", "Q8_0")


def test_what_another_cause_made_is_left_out_and_counted(tmp_path: Path) -> None:
    found, skipped = read_whole(
        written(
            tmp_path,
            {"note": "cards capped at 220 W"},
            {"engine": "llama.cpp (turboquant fork)"},
            {"model": "someone/Unheard-Of-9B"},
            {"engine": "llama.cpp (Vulkan RADV)", "streams_or_load": "16 clients"},
            {"metric": "prefill_tok_s", "note": "llama-bench pp2048 at that depth", "prompt_or_depth_tokens": "8192"},
            {"engine": "vLLM"},
            {"placement": "n-cpu-moe=24"},
        )
    )
    assert found == []
    assert sum(skipped.values()) == 5  # the last two are other readers'


def test_steps_of_the_threads_are_sequences_side_by_side() -> None:
    found = [o for o in of_threads() if o.phase == "decode"]
    assert len(found) == sum(len(rates) for *_, rates in STEPS)
    assert all(o.chip.slug != "dgx-spark" for o in found)  # kept apart: others judge predictions by it
    eight = next(o for o in found if o.chip.slug == "rtx-3090" and o.concurrency == 8 and o.format == "Q4_0")
    assert eight.seconds == pytest.approx(8 / 583.77)
