"""Published records of models in two places: what their sentences mean, and that the fit finds host memory again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.fit_prior import with_host_memory
from bench.published.local_2026 import Record, read_local
from bench.published.records import read
from bench.published.spilled import KNOBS, Predictor, by_kind, errors_of, inside, spilled, values
from breakeven.forecast.efficiencies import efficiencies

COLUMNS = [
    "id",
    "machine",
    "chip_slug",
    "host_memory",
    "engine",
    "build_or_version",
    "date",
    "model",
    "format",
    "placement",
    "kv_type",
    "n_devices",
    "streams_or_load",
    "prompt_or_depth_tokens",
    "output_tokens",
    "metric",
    "value",
    "unit",
    "source",
    "licence_of_data",
    "note",
]
ROW = {
    "machine": "RTX 3090 + PC", "chip_slug": "rtx-3090", "host_memory": "64 GB DDR4-3200, 2 channels",
    "engine": "llama.cpp (CUDA)", "model": "Qwen/Qwen3-30B-A3B", "format": "GGUF Q4_K_M", "placement": "n-cpu-moe=24",
    "n_devices": "1", "prompt_or_depth_tokens": "0", "metric": "decode_tok_s", "value": "40", "unit": "tok/s",
}  # fmt: skip
ENTRIES = [e for e in efficiencies().entries if e.engine == "llama.cpp"]


def written(directory: Path, *changes: dict[str, str]) -> Path:
    lines = ["\t".join(COLUMNS)]
    for i, change in enumerate(changes):
        row = {"id": f"r{i}", **ROW, **change}
        lines.append("\t".join(row.get(column, "") for column in COLUMNS))
    (directory / "local_2026.tsv").write_text("\n".join(lines) + "\n")
    return directory


def one(tmp_path: Path, **change: str) -> Record:
    (found,), skipped = read_local(written(tmp_path, change))
    assert not skipped
    return found


@pytest.mark.parametrize(
    ("words", "gpu_layers", "away"),
    [
        ("n-cpu-moe=24", 49, 24),
        ("n-cpu-moe=all, ubatch 2048", 49, 48),
        ("ot=exps=CPU, -ngl 48-49", 49, 48),
        ("ot=experts of the last 14 of 48 layers on CPU, rest on GPU", 49, 14),
        ("ot=ffn of layers 12-47 on CPU, 0-11 on GPU", 49, 36),
        ("ot=ffn of layers 0-4 of 48 on the GPU, other experts on CPU", 49, 43),
        ("ot=ffn_up and ffn_gate of layers 0-9 on GPU, other experts on CPU", 49, 48),
        ("ngl=30", 30, 19),
    ],
)
def test_a_placements_sentence_is_a_placement(tmp_path: Path, words: str, gpu_layers: int, away: int) -> None:
    record = one(tmp_path, placement=words)
    lies = Predictor([record], {e.chip_class: e for e in ENTRIES}).models[0].lies
    assert lies is not None
    assert (lies.gpu_layers, lies.cpu_moe) == (gpu_layers, away)


@pytest.mark.parametrize(
    ("words", "rate"),
    [
        ("64 GB DDR4-3200, 2 channels", 51.2e9),
        ("62 GB DDR4-2667 dual channel", 42.672e9),
        ("DDR4 quad channel (about 102 GB/s)", 102e9),
        ("512 of 768 GB, 12 channels DDR5-6000 (576 GB/s nominal, about 500 measured in the VM)", 576e9),
        ("", None),
    ],
)
def test_host_memorys_rate_is_read(tmp_path: Path, words: str, rate: float | None) -> None:
    host = one(tmp_path, host_memory=words).machine.host
    assert (None if host is None else host.bandwidth_bytes_per_s) == rate


def test_what_cannot_be_told_is_left_out_and_counted(tmp_path: Path) -> None:
    written(
        tmp_path,
        {"placement": "experts partly in RAM"},
        {"note": "model about the size of RAM: pages from disk likely"},
        {"note": "6 of 8 experts kept (-ser 6,1)"},
        {"model": "someone/Unheard-Of-9B"},
        {"placement": "all on device"},
    )
    found, skipped = read_local(tmp_path)
    assert found == []
    assert sum(skipped.values()) == 4


def test_records_of_cpus_join_the_fit_of_their_class(tmp_path: Path) -> None:
    for name in ("local_edge_hardware", "inferencex_silicon_sample", "cost_meter_h100_vllm", "llmservingsim_vllm_rtx"):
        (tmp_path / f"{name}.json").write_text('{"records": []}')
    written(
        tmp_path,
        {"placement": "cpu", "chip_slug": "ryzen-9-7950x", "machine": "Ryzen 9 7950X", "host_memory": ""},
        {"placement": "cpu", "chip_slug": "", "host_memory": "384 GB, 12 channels DDR5-4800"},
        {},
    )
    found, _ = read(tmp_path)
    assert [o.chip.chip_class for o in found] == ["cpu", "cpu"]
    assert found[1].chip.bandwidth_bytes_per_s == pytest.approx(460.8e9)
    assert [o.seconds for o in found] == [0.025, 0.025]


def test_the_fit_finds_host_memory_again(tmp_path: Path) -> None:
    changes = [
        {"machine": machine, "host_memory": host, "placement": f"n-cpu-moe={n}", **metric}
        for machine, host in (
            ("a", "64 GB DDR4-3200, 2 channels"), ("b", "96 GB DDR5-5600, 2 channels"),
            ("c", "384 GB, 12 channels DDR5-4800"),
        )
        for n in (12, 24, 48)
        for metric in ({}, {"metric": "prefill_tok_s", "prompt_or_depth_tokens": "2048"})
    ]  # fmt: skip
    records, _ = read_local(written(tmp_path, *changes))
    predictor = Predictor(records, by_kind(ENTRIES))
    theta = np.array([0.4, -0.3, 0.3, 0.2])
    times = predictor.seconds(theta, range(len(records)))
    spoken = [
        {**change, "value": f"{(2048 if r.phase == 'prefill' else 1) / t:.6g}"}
        for change, r, t in zip(changes, records, times, strict=True)
    ]
    found = spilled(written(tmp_path, *spoken), ENTRIES)
    for (name, _, _), share in zip(KNOBS, values(theta).values(), strict=True):
        assert found.constants[name] == pytest.approx(share, rel=0.35), name
    assert np.median(np.abs(found.errors)) < 0.1
    assert inside(found, range(len(records))) >= 0.5
    assert {(e.phase, e.kind, e.spilled) for e in errors_of(found)} == {
        (phase, kind, True) for phase in ("decode", "prefill") for kind in ("dense", "moe")
    }
    made = with_host_memory(ENTRIES, tmp_path)
    consumer = next(e for e in made if e.chip_class == "consumer")
    assert consumer.efficiency.host_share == pytest.approx(found.constants["host_share"], rel=0.01)
    assert sum(error.spilled for error in consumer.errors) >= 4
    assert not any(e.spilled for entry in made if entry.chip_class == "apple" for e in entry.errors)
