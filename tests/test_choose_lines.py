"""Lines that `choose` prints start what they name: on a real llama-server at toy size; other engines by what they take.

What vLLM, Ollama and mlx_lm take was read from their sources: vllm/config/cache.py and config/model.py, Ollama's
api/types.go and envconfig/config.go, mlx_lm/convert.py. Where vLLM is installed its own parser reads the lines.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from vulkan_fixtures import llama_server, moe_gguf

import breakeven
from breakeven.answer.choice.machine import place_of
from breakeven.answer.choice.rows import _vllm, exact, start_lines
from breakeven.answer.choice.search import search
from breakeven.answer.choice.uses import ChoiceWords, wish_of
from breakeven.engines.keeper import free_port
from breakeven.forecast.devices import parts_evenly
from breakeven.model.catalogue import lookup
from breakeven.model.formats.named import default_format
from breakeven.results.choose import ChoiceRow, CommandLine

__all__ = ["llama_server", "moe_gguf"]

READY_S = 120.0
CELLS = 256
"""Of the cache of one slot, at toy size."""
LOCAL: tuple[dict[str, Any], ...] = (
    {"machine": "rtx-3090+ddr4-3200x2:64GB", "use": "code"},
    {"machine": "rtx-3060", "users": 4},
    {"machine": "apple-m4:16GB", "context": 65536},
    {"machine": "ddr5-5600x2:32GB:8cores", "use": "batch"},
)
SERVED: tuple[dict[str, Any], ...] = (
    {"machine": "h100-sxm", "use": "rag", "users": 4},
    {"machine": "8xh100-sxm", "use": "agent"},
)

Started = tuple[ChoiceRow, CommandLine]


def printed(choices: tuple[dict[str, Any], ...]) -> list[Started]:
    """Every line of every row."""
    rows = itertools.chain.from_iterable(breakeven.choose(**words).rows for words in choices)
    return [(row, line) for row in rows for line in row.start]


@pytest.fixture(scope="module")
def local() -> list[Started]:
    return printed(LOCAL)


@pytest.fixture(scope="module")
def served() -> list[Started]:
    return printed(SERVED)


def of_engine(lines: list[Started], engine: str) -> list[tuple[ChoiceRow, list[str]]]:
    found = [(row, shlex.split(line.line)) for row, line in lines if line.engine == engine]
    assert found, f"no line starts {engine}"
    return found


# --- llama.cpp ---


def test_llama_server_starts_with_every_kind_of_line(local: list[Started], llama_server: Path, moe_gguf: Path) -> None:
    kinds: dict[tuple[str, ...], list[str]] = {}
    for row, words in of_engine(local, "llama-server"):
        assert words[:3] == ["llama-server", "-m", f"{row.model}-{row.format}.gguf"]
        flags = (word for word in words if word.startswith("-"))
        kinds.setdefault((*flags, words[words.index("-np") + 1], row.kv), words)
    assert len(kinds) >= 3, "flags of weights that spill, of users and of a machine with one memory"
    for words in kinds.values():
        slots = int(words[words.index("-np") + 1])
        words[words.index("-c") + 1] = str(CELLS * slots)
        words[words.index("-m") + 1] = str(moe_gguf)
        told = props_of([str(llama_server), *words[1:]])
        assert told["total_slots"] == slots
        assert told["default_generation_settings"]["n_ctx"] == CELLS


def props_of(command: list[str]) -> dict[str, Any]:
    """What a server says of itself once it is ready; fails with its log where it ends before."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    whole = [*command, "--host", "127.0.0.1", "--port", str(port), "-t", "1"]
    server = subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        until = time.monotonic() + READY_S
        while server.poll() is None and time.monotonic() < until:
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                with urllib.request.urlopen(f"{url}/props", timeout=5) as answer:
                    told: dict[str, Any] = json.load(answer)
                return told
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        server.kill()
        log = b"" if server.stdout is None else server.stdout.read()
        pytest.fail(f"{shlex.join(command)} did not start: {log[-2000:].decode(errors='replace')}")
    finally:
        server.kill()
        server.wait()


# --- Ollama ---

OLLAMA_PARAMETERS = {"num_ctx", "num_gpu", "num_batch", "num_thread", "main_gpu", "use_mmap"}
OLLAMA_VARIABLES = {
    "OLLAMA_NUM_PARALLEL": str.isdigit,
    "OLLAMA_FLASH_ATTENTION": lambda value: value in ("0", "1"),
    "OLLAMA_KV_CACHE_TYPE": lambda value: value in ("f16", "q8_0", "q4_0"),
}


@pytest.mark.skipif(sys.platform == "win32", reason="the line is for a shell")
def test_ollama_s_line_writes_a_modelfile_that_it_takes(local: list[Started], tmp_path: Path) -> None:
    stub = tmp_path / "bin" / "ollama"
    stub.parent.mkdir()
    stub.write_text('#!/bin/sh\necho "$@" >> asked\n')
    stub.chmod(0o755)
    lines = [(row, line) for row, line in local if line.engine == "ollama"]
    assert lines
    for number, (row, line) in enumerate(lines):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = os.pathsep.join((str(stub.parent), os.environ["PATH"]))
        done = subprocess.run(["/bin/sh", "-c", line.line], cwd=folder, env={**os.environ, "PATH": path}, check=False)
        assert done.returncode == 0
        assert (folder / "asked").read_text().splitlines() == [f"create {row.model} -f Modelfile", f"run {row.model}"]
        first, *parameters = (folder / "Modelfile").read_text().splitlines()
        assert first == f"FROM ./{row.model}-{row.format}.gguf"
        for text in parameters:
            word, name, value = text.split(" ")
            assert (word, name in OLLAMA_PARAMETERS, value.isdigit()) == ("PARAMETER", True, True)
        for name, value in (word.split("=") for word in (line.note or "").split() if word.startswith("OLLAMA_")):
            assert OLLAMA_VARIABLES[name](value)


# --- MLX ---


def test_mlx_is_given_what_its_server_takes(local: list[Started]) -> None:
    notes = {row.model: line.note or "" for row, line in local if line.engine == "mlx"}
    for row, words in of_engine(local, "mlx"):
        assert words == ["mlx_lm.server", "--model", f"{row.model}-4bit"]
        made = notes[row.model].partition("mlx_lm.convert ")[2].removesuffix(" makes it").split()
        parser = argparse.ArgumentParser(exit_on_error=False)
        parser.add_argument("--hf-path")
        parser.add_argument("--mlx-path")
        parser.add_argument("-q", "--quantize", action="store_true")
        asked = parser.parse_args(made)
        assert (asked.hf_path, asked.mlx_path, asked.quantize) == (row.hub_id, f"{row.model}-4bit", True)


# --- vLLM ---


def vllm_parser() -> argparse.ArgumentParser:
    """What `vllm serve` takes, of its flags those that are printed."""
    parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_argument("model")
    for flag in ("--max-model-len", "--max-num-seqs", "--tensor-parallel-size"):
        parser.add_argument(flag, type=int)
    parser.add_argument("--quantization", choices=["fp8"])
    parser.add_argument("--kv-cache-dtype", choices=["auto", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2"])
    return parser


def test_vllm_serves_what_the_row_names(served: list[Started]) -> None:
    for row, words in of_engine(served, "vllm"):
        assert words[:2] == ["vllm", "serve"]
        asked = vllm_parser().parse_args(words[2:])
        spec = lookup(row.model)
        published = default_format(spec, "vllm").partition("_")[0]
        if asked.quantization == "fp8":
            assert (row.format, published, asked.model) == ("FP8", "BF16", row.hub_id)
        elif asked.model == row.hub_id:
            assert row.format == published
        else:
            assert asked.model == f"{row.model}-{row.format}"
            assert row.start[0].note
        assert parts_evenly(spec, asked.tensor_parallel_size or 1)


@pytest.mark.parametrize(
    ("name", "format_name", "model", "made"),
    [
        ("deepseek-v3", "FP8", "deepseek-ai/DeepSeek-V3", False),
        ("kimi-k2-thinking", "INT4", "moonshotai/Kimi-K2-Thinking", False),
        ("qwen3-32b", "FP8", "Qwen/Qwen3-32B", True),
        ("qwen3-32b", "BF16", "Qwen/Qwen3-32B", False),
        ("qwen3-32b", "INT4", "qwen3-32b-INT4", False),
        ("gpt-oss-120b", "MXFP4", "openai/gpt-oss-120b", False),
        ("glm-5.2", "FP8", "zai-org/GLM-5.2", True),
    ],
)
def test_what_is_quantized_already_is_not_quantized_again(name: str, format_name: str, model: str, made: bool) -> None:
    place, wish = place_of("8xb200-sxm", "vllm", None), wish_of(ChoiceWords())
    option = next(o for o in search(place, wish).options if (o.name, o.format, o.kv) == (name, format_name, "f16"))
    words = shlex.split(_vllm(option, place, wish).line)
    assert words[2] == model
    assert ("--quantization" in words) == made


@pytest.mark.parametrize(
    ("name", "loaded", "told"),
    [
        ("gemma-2-27b", "google/gemma-2-27b-it", False),
        ("qwen2.5-32b", "Qwen/Qwen2.5-32B", True),
        ("qwen2.5-7b", "Qwen/Qwen2.5-7B-Instruct", False),
    ],
)
def test_what_is_started_was_taught_to_answer_or_the_line_says_so(name: str, loaded: str, told: bool) -> None:
    wish = wish_of(ChoiceWords())
    for machine, engine in (("h100-sxm", "vllm"), ("rtx-5090+ddr5-5600x2:64GB", None), ("apple-m4-max:64GB", None)):
        place = place_of(machine, engine, None)
        options = [o for o in search(place, wish).options if o.name == name and o.kv == "f16"]
        runs = [(option, found) for option in options if (found := exact(option, place, wish)) is not None]
        assert runs, machine
        for option, found in runs:
            for line in start_lines(option, found.point, place, wish):
                assert loaded in f"{line.line} {line.note}".replace(";", " ").split()
                assert ("is a base model" in (line.note or "")) == told


def test_nothing_finer_than_was_published_is_served() -> None:
    options = search(place_of("8xb200-sxm", "vllm", None), wish_of(ChoiceWords())).options
    assert {o.format for o in options if o.name == "deepseek-v3"} == {"FP8", "INT4", "NVFP4"}
    assert {o.format for o in options if o.name == "kimi-k2-thinking"} <= {"INT4", "NVFP4"}


@pytest.mark.parametrize(("name", "devices", "even"), [("qwen2.5-7b", 8, False), ("qwen2.5-7b", 4, True)])
def test_heads_that_devices_cannot_share_are_told(name: str, devices: int, even: bool) -> None:
    assert parts_evenly(lookup(name), devices) == even


@pytest.mark.vllm
def test_vllm_s_own_parser_takes_every_line(served: list[Started]) -> None:
    pytest.importorskip("vllm")
    from vllm.entrypoints.openai.cli_args import make_arg_parser  # type: ignore[import-not-found]

    try:
        utils = importlib.import_module("vllm.utils.argparse_utils")
    except ImportError:
        utils = importlib.import_module("vllm.utils")
    for _, words in of_engine(served, "vllm"):
        asked = make_arg_parser(utils.FlexibleArgumentParser()).parse_args(["--model", words[2], *words[3:]])
        assert asked.model == words[2]
