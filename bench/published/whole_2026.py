"""Records of 2025 and 2026 of models that lie wholly on their devices, under llama.cpp, Ollama or MLX.

Reads the rows of `local_2026.tsv` that `local_2026.py` leaves: one stream, several at once, and prompts. What another
program's fork, clock or settings made of it is left out and counted by reason.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from bench.published.local_2026 import BRIEF_PROMPT, model_from, rows
from bench.published.names import NEAREST, model_of
from breakeven.errors import UserError
from breakeven.hardware.chips import Chip, chip_named
from breakeven.model.architecture import ModelSpec
from breakeven.model.catalogue import lookup
from breakeven.model.formats.named import format_named

ENGINES = r"llama\.cpp|ollama|mlx-lm|omlx|rapid-mlx"
DOUBTS = (
    (r"fork|turboquant", "a fork"),
    (r"capped at 220 w", "a card whose clocks are held down"),
    (r"day-one", "kernels of a model's first day"),
    (r"split-mode tensor|split mode not|two cards", "a model split by rows"),
    (r"quoted in a reddit post", "second-hand"),
    (r"qwen3-coder-next", "model not known: qwen3-coder-next"),
    (r"not read|not checked", "format not known"),
    (r"deepseek-r1:\d", "model not known: a distillation"),
)
FORMATS = (
    (r"q8_k|q8_0|mlx 8", "Q8_0"), (r"q6_k", "Q6_K"), (r"q5_k", "Q5_K_M"), (r"mxfp4", "MXFP4"), (r"iq4_nl", "IQ4_NL"),
    (r"iq4_xs", "IQ4_XS"), (r"q4_1", "Q4_1"), (r"q4_0|mlx 4", "Q4_0"), (r"q3_k", "Q3_K_M"), (r"q2_k", "Q2_K"),
    (r"q4_k|default 4-bit|4-bit, quant not t|as in the tag", "Q4_K_M"), (r"\bf16", "F16"),
)  # fmt: skip
"""Anywhere in a format's words (after a file's size is taken off); the nearest in bits, as `names.NEAREST` says."""
ASIDE = re.compile(r"\s*\([\d.]+ gi?b\)|^gguf ")
BRIEF_KV = 1024.0
"""Tokens in a cache up to which its type does not matter."""
VULKAN_ROWS = 8
"""Sequences above which Vulkan multiplies experts with tiles made for prompts, a third slower (llama.cpp 25356)."""
STEPS: tuple[tuple[str, int, str, str, str, float, dict[int, float]], ...] = (
    # thread of ggml-org/llama.cpp, year, chip, model, format, tokens in the cache, tokens/s by tokens of a step
    ("15525", 2025, "rtx-3090", "deepseek-v2-lite", "Q4_0", 256.0,
     {1: 180.53, 16: 784.29, 32: 1209.58, 64: 1802.95}),
    ("15802", 2025, "rtx-3090", "llama-3.1-8b", "Q4_0", 256.0,
     {1: 156.56, 2: 279.89, 3: 390.96, 4: 470.48, 5: 509.70, 6: 541.57, 7: 559.30, 8: 583.77}),
    ("7676", 2024, "rtx-4090", "llama-3.1-8b", "Q4_0", 256.0, {16: 1937.21, 32: 3427.61, 64: 5420.06}),
    ("7676", 2024, "rtx-3090-ti", "llama-2-7b", "Q4_0", 512.0, {16: 1115.29, 32: 1779.10, 64: 2492.78}),
    ("15131", 2025, "rtx-3090", "llama-3.1-8b", "F16", 256.0, {8: 423.63, 12: 585.90, 16: 764.17}),
    ("24546", 2026, "rx-7900-xtx", "gemma-4-26b-a4b", "Q6_K", 1024.0, {8: 430.12, 64: 1553.66}),
    ("24546", 2026, "rx-7900-xtx", "gpt-oss-20b", "MXFP4", 1024.0, {8: 636.17, 64: 2116.75}),
    ("15631", 2025, "rtx-4090", "qwen3-30b-a3b", "Q4_0", 2048.0, {1: 205.87, 16: 959.90, 32: 1556.32, 64: 2508.44}),
    ("15631", 2025, "rtx-3090", "gpt-oss-20b", "MXFP4", 2048.0, {1: 186.29}),
    ("16715", 2025, "mi50", "gpt-oss-20b", "MXFP4", 64.0, {1: 119.86}),
    ("16715", 2025, "mi50", "llama-3.1-8b", "Q4_0", 64.0, {1: 91.74}),
    ("16715", 2025, "mi50", "llama-3.2-1b", "Q4_0", 64.0, {1: 326.99}),
    ("24546", 2026, "radeon-pro-w7800", "qwen3-30b-a3b", "Q4_K_M", 64.0, {1: 121.9}),
    ("20934", 2026, "rx-7900-xtx", "llama-2-7b", "Q4_0", 64.0, {1: 153.0}),
    ("26663", 2026, "rx-9070-xt", "qwen3-0.6b", "Q4_K_M", 64.0, {1: 408.8}),
    ("26663", 2026, "rx-9070-xt", "qwen3-1.7b", "Q4_K_M", 64.0, {1: 267.1}),
    ("26663", 2026, "rx-9070-xt", "qwen3-4b", "Q4_K_M", 64.0, {1: 150.1}),
    ("26663", 2026, "rx-9070-xt", "qwen3-8b", "Q4_K_M", 64.0, {1: 97.5}),
    ("28204", 2026, "h200-sxm", "gemma-4-26b-a4b", "Q4_0", 80.0, {12: 1039.2, 16: 1328.9, 24: 1662.6}),
    ("28204", 2026, "rtx-4090", "gemma-4-26b-a4b", "Q4_0", 80.0, {12: 960.3, 16: 1218.9, 24: 1559.7}),
    ("28204", 2026, "jetson-agx-thor", "gemma-4-26b-a4b", "Q4_0", 80.0, {12: 235.4, 16: 285.4, 24: 346.0}),
)  # fmt: skip
"""Steps of so many tokens as llama.cpp's threads tell them: prompts in micro-batches (llama-bench -ub), in 28204
sequences side by side (llama-batched-bench). A prompt's micro-batch takes what as many sequences take, but its head.
Of 15525 and 15631, 2 to 8 tokens are left out: pull 18958 replaced that kernel."""
PROMPTS: tuple[tuple[str, int, str, str, str, float, float], ...] = (
    ("24546", 2026, "radeon-pro-w7800", "qwen3-30b-a3b", "Q4_K_M", 512.0, 3185.67),
    ("24546", 2026, "rx-7900-xtx", "gemma-4-26b-a4b", "Q6_K", 2048.0, 3197.90),
    ("24546", 2026, "rx-7900-xtx", "gpt-oss-20b", "MXFP4", 2048.0, 4696.47),
    ("20934", 2026, "rx-7900-xtx", "llama-2-7b", "Q4_0", 512.0, 4200.0),
    ("26663", 2026, "rx-9070-xt", "qwen3-4b", "Q4_K_M", 512.0, 5903.0),
    ("26663", 2026, "rx-9070-xt", "qwen3-8b", "Q4_K_M", 512.0, 3469.0),
)
"""Prompts of so many tokens, and tokens/s, from the same threads. Where ROCm and Vulkan are told, as in `STEPS`, this
is their geometric mean: which of them a user of the card runs is not known."""


@dataclass(frozen=True, slots=True)
class Whole:
    """One row in Breakeven's words. `wall`: tokens were counted over wall-clock time, prompts included."""

    id: str
    engine: str
    year: int
    spec: ModelSpec
    format: str
    chip: Chip
    devices: int
    streams: float
    prompt: float
    output: float
    phase: str
    step_tokens: int | None
    seconds: float
    wall: bool


def read_whole(directory: Path) -> tuple[list[Whole], Counter[str]]:
    """Records of models on devices alone, and how many others were left out, by reason."""
    found: list[Whole] = []
    skipped: Counter[str] = Counter()
    for row in rows(directory):
        engine = row["engine"].lower()
        if row["placement"].startswith("all on device") and re.match(ENGINES, engine):
            made = _whole(row)
            if isinstance(made, str):
                skipped[made] += 1
            else:
                found.append(made)
    return found, skipped


def steps() -> list[Whole]:
    """`STEPS` and `PROMPTS` one by one."""
    found = [
        (pull, year, chip, model, name, float(n), context, n / rate, "decode")
        for pull, year, chip, model, name, context, rates in STEPS for n, rate in rates.items()
    ]  # fmt: skip
    found += [
        (pull, year, chip, model, name, 1.0, tokens, tokens / rate, "prefill")
        for pull, year, chip, model, name, tokens, rate in PROMPTS
    ]
    return [
        Whole(
            id=f"ggml-org/llama.cpp {pull}", engine="llama.cpp", year=year, spec=_known(model), format=name,
            chip=chip_named(chip), devices=1, streams=streams, prompt=prompt, output=1.0, phase=phase,
            step_tokens=None, seconds=seconds, wall=False,
        )
        for pull, year, chip, model, name, streams, prompt, seconds, phase in found
    ]  # fmt: skip


def _whole(row: dict[str, str]) -> Whole | str:
    keys = ("engine", "build_or_version", "model", "format", "placement", "kv_type", "note")
    about = " ".join(row[key] for key in keys).lower()
    for pattern, reason in DOUBTS:
        if re.search(pattern, about):
            return reason
    metric = row["metric"]
    if metric not in ("decode_tok_s", "decode_aggregate_tok_s", "prefill_tok_s"):
        return f"metric not used: {metric}"
    words = ASIDE.sub("", row["format"].lower())
    named = next((name for pattern, name in FORMATS if re.search(pattern, words)), None)
    tag = re.search(r":(q\w+)$", row["model"].lower())
    name = NEAREST.get(tag[1], tag[1].upper()) if tag else named
    spec = model_from(row["model"])
    if spec is None or name is None:
        return f"model or format not known: {row['model']} {row['format']}"
    if "gpt-oss" in spec.name:
        name = "MXFP4"
    try:
        chip, name = chip_named(row["chip_slug"]), format_named(name).name
    except UserError:
        return f"chip or format not known: {row['chip_slug']} {name}"
    many = re.match(r"(\d+) ", row["streams_or_load"])
    streams = float(many[1]) if many else 1.0
    if "vulkan" in row["engine"].lower() and spec.is_moe and streams > VULKAN_ROWS:
        return "experts under Vulkan, more than 8 sequences at once"
    told, output = (_number(row[key]) for key in ("prompt_or_depth_tokens", "output_tokens"))
    devices, value = int(row["n_devices"] or 1), float(row["value"])
    if metric == "prefill_tok_s":
        behind = "at depth" in row["prompt_or_depth_tokens"]
        if devices > 1 or streams > 1 or "capped" in about or "decode of" in about or behind:
            return "a prompt over several cards, with answers in between, or behind a context"
        if "at that depth" in about:
            if told:
                return "a prompt behind a context"
            told = float(found[1]) if (found := re.search(r"pp(\d+) at that depth", about)) else None
        elif found := re.search(r"llama-bench pp(\d+)", about):
            told = float(found[1])
        if not told:
            return "prompt's length not published"
        seconds = told / value
    else:
        seconds = streams / value
    prompt = BRIEF_PROMPT if told is None else told
    if "deepseek-v2" in spec.name.lower() and prompt > BRIEF_KV and row["date"] < "2025-06":
        return "a latent cache before CUDA had flash attention for it"
    if "q" in row["kv_type"] and prompt > BRIEF_KV:
        return "a long context in a quantized cache"
    ubatch = re.search(r"ubatch (\d+)|/ub(\d+)", about)
    return Whole(
        id=row["id"],
        engine=row["engine"],
        year=int(row["date"][:4] or 2025),
        spec=spec,
        format=name,
        chip=chip,
        devices=devices,
        streams=streams,
        prompt=prompt,
        output=output or 128.0,
        phase="prefill" if metric == "prefill_tok_s" else "decode",
        step_tokens=int(ubatch[1] or ubatch[2]) if ubatch else None,
        seconds=seconds,
        wall="wall" in about and metric == "decode_aggregate_tok_s",
    )


def _known(name: str) -> ModelSpec:
    found = model_of(name)
    return found if found is not None else lookup(name)


def _number(words: str) -> float | None:
    found = re.match(r"\d+", words)
    return float(found[0]) if found else None
