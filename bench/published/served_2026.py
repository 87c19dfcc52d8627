"""Records of 2025 and 2026 of models served by vLLM, at up to 512 sequences: times between tokens under steady loads.

Reads the rows of `local_2026.tsv` whose engine is vLLM. Kept are loads that stand still: so many requests at once, a
batch, or Poisson arrivals that the machine keeps up with. Left out and counted are bursts, figures that count prompts
too (tokens over wall-clock time), and whatever a name does not tell.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from bench.published.local_2026 import rows
from bench.published.names import model_of
from breakeven.errors import UserError
from breakeven.hardware.chips import Chip, chip_named
from breakeven.model.architecture import ModelSpec
from breakeven.model.catalogue import lookup

FORMATS = ((r"nvfp4", "NVFP4"), (r"mxfp4", "MXFP4_BF16"), (r"fp8", "FP8"), (r"int8", "INT8"), (r"int4", "INT4"),
           (r"bf16", "BF16"))  # fmt: skip
"""Anywhere in a format's words."""
NAMES = (
    (r"^nvidia-nemotron-3-nano-30b-a3b.*", "nemotron-3-nano-30b-a3b"),
    (r"^qwen3-coder-30b-a3b.*", "qwen3-coder-30b-a3b"),
    (r"^deepseek-v2-lite.*", "deepseek-v2-lite"),
    (r"^gemma-4-12b-it$", "gemma-4-12b"),
    (r"^qwen3\.6-(27b|35b-a3b)$", r"qwen3.5-\1"),
)
"""A model's name to the catalogue's; 3.6 keeps the shapes of 3.5."""
SHAREGPT = (215.0, 210.0)
"""Mean tokens of prompts and answers of ShareGPT as vLLM's benchmark draws them, where a record gives none."""
DOUBTS = (
    (r"\beager\b", "vLLM without captured graphs"),
    (r"fork|llmfit", "a fork, or another program's clock"),
    (r"rocm|weight-only on am", "kernels of another kind"),
    (r"dp2", "attention replicated over devices"),
    (r"capped at 220 w", "a card whose clocks are held down"),
    (r"dips against its neighbour", "dips against its neighbour"),
)


@dataclass(frozen=True, slots=True)
class Served:
    """One row in Breakeven's words: `streams` at once, or arrivals at `rate` a second."""

    id: str
    engine: str
    spec: ModelSpec
    format: str
    chip: Chip
    devices: int
    streams: float
    rate: float | None
    prompt: float
    output: float
    seconds: float
    decoding: float | None = None
    """Sequences that decode at a time, where tokens a second of all of them were published too."""


def read_served(directory: Path) -> tuple[list[Served], Counter[str]]:
    """Times between tokens under vLLM, and how many rows of vLLM were left out, by reason."""
    found: list[Served] = []
    skipped: Counter[str] = Counter()
    ours = [r for r in rows(directory) if r["engine"].lower().startswith("vllm") and "mlx" not in r["engine"]]
    totals = {_run(r): float(r["value"]) for r in ours if r["metric"] == "decode_aggregate_tok_s"}
    for row in ours:
        made = _served(row, totals.get(_run(row)))
        if isinstance(made, str):
            skipped[made] += 1
        else:
            found.append(made)
    return found, skipped


def _run(row: dict[str, str]) -> tuple[str, ...]:
    """Rows of one run differ in their metric alone."""
    told = ("machine", "build_or_version", "date", "model", "format", "n_devices", "streams_or_load")
    return tuple(row[key] for key in (*told, "prompt_or_depth_tokens", "output_tokens"))


def _served(row: dict[str, str], total_per_s: float | None) -> Served | str:
    about = " ".join(row[key] for key in ("engine", "build_or_version", "format", "placement", "note")).lower()
    for pattern, reason in DOUBTS:
        if re.search(pattern, about):
            return reason
    load, metric, value = row["streams_or_load"], row["metric"], float(row["value"])
    poisson = re.fullmatch(r"Poisson (\d+(?:\.\d+)?)/s", load)
    at_once = re.match(r"(?:batch )?(\d+)(?: streams?| concurrent)?\b(?! req)", load)
    if not poisson and not at_once:
        return "load that never settles"
    streams = float(at_once[1]) if at_once else 0.0
    batch = load.startswith("batch") and "prefill of 24" in about
    if metric == "tpot_ms_mean":
        seconds = value / 1e3
    elif batch and metric in ("decode_aggregate_tok_s", "decode_tok_s"):
        seconds = streams / value
    else:
        return f"metric not used: {metric}"
    spec, name = _model(row["model"]), _format(row["format"])
    if spec is None or name is None:
        return f"model or format not known: {row['model']} {row['format']}"
    try:
        chip = chip_named(row["chip_slug"])
    except UserError:
        return f"chip not known: {row['chip_slug']}"
    prompt, output = (_tokens(row[key]) for key in ("prompt_or_depth_tokens", "output_tokens"))
    if (prompt is None or output is None) and "ShareGPT" in row["prompt_or_depth_tokens"]:
        prompt, output = SHAREGPT
    if prompt is None or output is None:
        return "lengths not published"
    return Served(
        id=row["id"],
        engine=f"{row['engine']} {row['build_or_version']}".strip(),
        spec=spec,
        format=name,
        chip=chip,
        devices=int(row["n_devices"] or 1),
        streams=streams,
        rate=float(poisson[1]) if poisson else None,
        prompt=prompt,
        output=output,
        seconds=seconds,
        decoding=min(streams, max(1.0, total_per_s * seconds)) if at_once and total_per_s and not batch else None,
    )


def _tokens(words: str) -> float | None:
    found = re.match(r"(?:mean )?(\d+)\b", words)
    return float(found[1]) if found else None


def _model(name: str) -> ModelSpec | None:
    bare = name.rpartition("/")[2].lower()
    for pattern, known in NAMES:
        bare = re.sub(pattern, known, bare)
    try:
        return lookup(re.sub(r"-(instruct|fp8|2507)$", "", bare))
    except UserError:
        return model_of(name)


def _format(words: str) -> str | None:
    return next((name for pattern, name in FORMATS if re.search(pattern, words.lower())), None)
