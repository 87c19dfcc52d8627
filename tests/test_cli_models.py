"""`breakeven models`, as a user runs it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from breakeven.model.arithmetic import active_params, decode_bytes, file_bytes, kv_bytes
from breakeven.model.catalogue import find, lookup, matching, names
from breakeven.model.formats.gguf import FORMATS
from breakeven.model.formats.gpu import GPU_FORMATS
from breakeven.model.readers.gguf_header import read_header
from breakeven.model.summary import LARGEST, SIZE_CLASSES
from breakeven.pages.words import bytes_text, count_text, number
from tests.cli_fixtures import run_here


def run(*args: str, columns: int = 100) -> subprocess.CompletedProcess[str]:
    return run_here("models", *args, columns=columns)


def shown(*args: str) -> Any:
    done = run(*args, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_first_screen_has_every_model_by_size_and_kind() -> None:
    done = run(columns=80)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) <= 42
    assert max(map(len, lines)) <= 80
    assert "models NAME" in lines[1]  # how to go on is said before the names scroll it away
    assert lines[0].startswith(f"{len(names())} models by total parameters: ")
    assert all(any(line.startswith(size) for line in lines) for size, _ in SIZE_CLASSES)
    assert LARGEST in done.stdout
    counts = [int(found[1]) for line in lines[1:] if (found := re.search(r"(\d+) (?:dense|MoE)", line))]
    assert sum(counts) == len(names())
    words = " ".join(lines).replace("*", "").replace(",", "").split()
    assert all(name in words or any(name.endswith(word) for word in words if word[0] == "-") for name in names())


def test_the_full_list_has_a_line_for_every_model() -> None:
    done = run("--full")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["Model", "Kind", "Total", "Active", "Q4_K_M", "KV/token"]
    assert sorted(line.split()[0] for line in lines if line.startswith(" ")) == names()
    olmoe = next(line for line in lines if line.startswith(" olmoe-1b-7b"))
    assert olmoe.split() == ["olmoe-1b-7b", "MoE", "8/64", "6.92", "B", "1.18", "B", "4.21", "GB", "131", "kB"]
    sizes = [line.strip() for line in lines if line.strip() in (*(name for name, _ in SIZE_CLASSES), LARGEST)]
    assert sizes == [*(name for name, _ in SIZE_CLASSES), LARGEST]


def test_a_part_of_names_lists_those_that_have_it() -> None:
    done = run("qwen3.5")
    assert done.returncode == 0, done.stderr
    shown_names = [line.split()[0] for line in done.stdout.splitlines() if line.startswith(" ")]
    assert shown_names
    assert set(shown_names) == {name for name in names() if name.startswith("qwen3.5")}
    listed = shown("qwen3.5")["models"]
    assert {model["name"] for model in listed} == set(shown_names)
    assert [model["name"] for model in shown("olmoe")["models"]] == ["olmoe-1b-7b"]


def test_an_exact_name_wins_over_parts_of_others() -> None:
    assert shown("qwen3-30b-a3b")["model"]["summary"]["name"] == "qwen3-30b-a3b"


@pytest.mark.parametrize("columns", [40, 60, 80])
@pytest.mark.parametrize("args", [("--full",), ("olmoe-1b-7b",), ("llama",)])
def test_narrow_terminals_lose_columns_not_names(columns: int, args: tuple[str, ...]) -> None:
    done = run(*args, columns=columns)
    assert done.returncode == 0, done.stderr
    assert max(len(line) for line in done.stdout.splitlines()) <= columns
    assert "…" not in done.stdout
    wanted = {"--full": names(), "llama": matching("llama")}.get(args[0], args)
    assert all(name in done.stdout for name in wanted)


def test_list_as_json() -> None:
    listed = shown()
    assert listed["schema"] == "breakeven.models/1"
    assert [model["name"] for model in listed["models"]] == names()
    by_name = {model["name"]: model for model in listed["models"]}
    assert by_name["qwen3-30b-a3b"]["experts"]["n_experts_per_token"] == 8
    assert by_name["qwen3-30b-a3b"]["licence"] == "apache-2.0"
    assert by_name["qwen3-30b-a3b"]["size_class"] == "10 to 40 B"
    assert by_name["gpt-oss-20b"]["native_format"] == "MXFP4"
    assert by_name["qwen3.5-35b-a3b"]["hybrid"]
    assert by_name["llama-3.2-1b"]["experts"] is None
    assert by_name["llama-3.2-1b"]["kind"] == "dense"
    assert all(model["source"] for model in listed["models"])


def test_one_model_as_json() -> None:
    answer = shown("allenai/olmoe-1b-7b-0125-instruct")
    assert answer["schema"] == "breakeven.models/1"
    model, spec = answer["model"], lookup("olmoe-1b-7b")
    assert model["summary"]["name"] == "olmoe-1b-7b"
    assert model["summary"]["active_params"] == active_params(spec)
    assert [stored["format"] for stored in model["formats"]] == [*FORMATS, *GPU_FORMATS]
    for stored in model["formats"]:
        assert stored["total_bytes"] == sum(stored["by_group"].values()) == file_bytes(spec, stored["format"])
        assert stored["decode_bytes"] == decode_bytes(spec, stored["format"], 1)
    assert [at["context"] for at in model["contexts"]] == [1024, 4096]
    assert model["contexts"][-1]["kv_bytes"] == kv_bytes(spec, 4096)
    assert sum(kind["layers"] for kind in model["layer_kinds"]) == 16
    assert sum(model["params_by_group"].values()) == model["summary"]["total_params"]


def test_one_model_in_words() -> None:
    text = run("olmoe-1b-7b").stdout
    assert text.startswith("olmoe-1b-7b (allenai/OLMoE-1B-7B-0125-Instruct)\n")
    assert "MoE, 6.92 B total (published 6.92 B), 1.18 B active" in text
    assert "16 x attention, 16 heads on 16 of 128; 8 of 64 experts of 1024" in text
    assert "50 % of the experts at a batch of 5.19, 90 % at 17.2" in text
    assert "Published: 6.92 B (the hub's tensor count), active 1.30 B" in text
    assert "Licence apache-2.0" in text
    assert "Languages: en" in text
    assert "Source: " in text
    assert "`breakeven predict olmoe-1b-7b " in text
    assert "IQ2_XXS" not in text
    assert "IQ2_XXS" in run("olmoe-1b-7b", "--full").stdout


def test_the_dense_counterparts_are_named_with_the_command() -> None:
    text = run("qwen3-30b-a3b").stdout
    assert "Compare with (`breakeven predict qwen3-30b-a3b qwen3-32b`):" in text
    assert "  qwen3-8b: same family, nearest in dense-equivalent size" in text
    assert "Compare with (`breakeven predict qwen3-32b qwen3-30b-a3b`):" in run("qwen3-32b").stdout
    assert shown("qwen3-30b-a3b")["model"]["compare_with"][0]["name"] == "qwen3-32b"


def test_a_configuration_without_a_published_total_says_so(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(find("qwen3-8b").facts.config))
    text = run(str(config)).stdout
    assert "8.19 B total (not checked: no published total)" in text
    assert "Compare with" not in text


def test_a_file_of_weights_is_shown_under_its_own_name(smollm2_gguf: Path) -> None:
    model = shown(str(smollm2_gguf))["model"]
    assert model["summary"]["total_params"] == shown("smollm2-135m")["model"]["summary"]["total_params"]
    assert model["summary"]["name"] not in names()
    assert model["formats"][0]["format"] == "file"
    assert model["formats"][0]["total_bytes"] == sum(t.n_bytes or 0 for t in read_header(smollm2_gguf).tensors)
    assert "(this file)" in run(str(smollm2_gguf)).stdout


def test_the_format_a_model_was_published_in_comes_first() -> None:
    formats = shown("gpt-oss-20b")["model"]["formats"]
    assert (formats[0]["format"], formats[0]["label"]) == ("MXFP4", "MXFP4 (published)")


def test_keys_and_values_in_another_type() -> None:
    half, eighth = shown("qwen3-8b")["model"], shown("qwen3-8b", "--kv", "q8_0")["model"]
    assert (half["kv_type"], eighth["kv_type"]) == ("f16", "q8_0")
    assert eighth["contexts"][0]["kv_bytes"] == half["contexts"][0]["kv_bytes"] * 34 / 64
    assert "KV in q8_0 at " in run("qwen3-8b", "--kv", "q8_0").stdout
    done = run("qwen3-8b", "--kv", "q9")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


def test_unknown_name_is_one_line_and_status_2() -> None:
    done = run("lama-3.2-1b")
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "llama-3.2-1b" in done.stderr


def test_a_format_behind_the_name_has_a_row_of_its_own() -> None:
    rows = {row["format"]: row for row in shown("olmoe-1b-7b:Q4_0")["model"]["formats"]}
    assert rows["Q4_0"]["label"] == "Q4_0 (asked for)"
    assert len(rows) == len(shown("olmoe-1b-7b")["model"]["formats"])
    for name, asked in (("olmoe-1b-7b", "IQ3_M"), ("qwen3-8b", "MLX4"), ("qwen3-8b", "BF16"), ("gpt-oss-20b", "Q8_0")):
        done = run(f"{name}:{asked}")
        assert done.returncode == 0, done.stderr
        assert f"\n{asked} (asked for) " in done.stdout
    assert "asked for" not in run("gpt-oss-20b:MXFP4").stdout  # the published row has it already


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_name_is_called_that(text: str) -> None:
    done = run(text)
    assert (done.returncode, done.stdout) == (2, "")
    assert "the model's name is empty" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
@pytest.mark.parametrize("args", [(), ("qwen3", "--json"), ("--help",)])
def test_a_full_disk_under_the_output_is_one_line(args: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "breakeven.cli", "models", *args]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "No space left on device" in done.stderr


def test_three_digits_stay_three_where_they_round_up() -> None:
    assert number(9.9996) == "10.0"
    assert (bytes_text(9.9995e9), bytes_text(999.9e6), bytes_text(999.4e6)) == ("10.0 GB", "1.00 GB", "999 MB")
    assert (count_text(999_890_000), count_text(999_400_000)) == ("1.00 B", "999 M")
