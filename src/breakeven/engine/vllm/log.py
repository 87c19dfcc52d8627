"""What vLLM's log says: the lines that explain an end, and the settings it reports."""

from __future__ import annotations

import os
import re
from pathlib import Path

_LINES = 4
_TAIL_BYTES = 262_144
_LINE_CHARACTERS = 300
_PREFIX = re.compile(r"^(\(\w[\w-]* pid=\d+\)\s*)?([A-Z]+ \d\d-\d\d [\d:]+ )?(\[[\w.]+:\d+\] ?)?\s*")
_TELLING = re.compile(r"^(Fatal Python error|Value error,|(\w+\.)*\w*(Error|Exception): |error: |vllm: error)")
_NEXT_STEP = {
    "Illegal instruction": "this build uses instructions this processor does not run; "
    "give other settings in BREAKEVEN_VLLM_ARGS, such as --dtype float32",
    "No package metadata was found for vllm": "the build has no package metadata under the name vllm; "
    "install one that has",
    "Failed to infer device type": "the build finds no device it is made for; install a build for this machine",
}
"""What to do about errors whose own text does not tell."""

_REPORTED = {
    "device": re.compile(r"\bdevice_config=(\w+)"),
    "dtype": re.compile(r"\bdtype=(?:torch\.)?(\w+)"),
    "max_model_len": re.compile(r"\bmax_seq_len=(\d+)"),
    "prompt_cache": re.compile(r"\benable_prefix_caching=(\w+)"),
    "quantization": re.compile(r"\bquantization=(\w+)"),
    "enforce_eager": re.compile(r"\benforce_eager=(\w+)"),
}
_KV_TOKENS = re.compile(r"KV cache size: ([\d,]+) tokens")


def last_words(log: Path) -> str:
    """The last log lines that matter, as the tail of an error's one line."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        text = ""
    found = [line for line in (_PREFIX.sub("", line).strip() for line in text.splitlines()) if line]
    if not found:
        return f"; its log {log} is empty"
    telling = [line[:_LINE_CHARACTERS] for line in found if _TELLING.match(line)]
    lines = list(dict.fromkeys(telling))[:_LINES] or [line[:_LINE_CHARACTERS] for line in found[-_LINES:]]
    advice = next((f"; {advice}" for words, advice in _NEXT_STEP.items() if words in text), "")
    return f"; its log {log} says: {' | '.join(lines)}{advice}"


def reported(log: Path) -> dict[str, str]:
    """Settings as the engine core reports them in its first line, and how many tokens its KV cache holds.

    A setting that the version does not report is left out.
    """
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return {}
    line = next((line for line in text.splitlines() if "Initializing a V1 LLM engine" in line), "")
    words = {"True": "on", "False": "off"}
    matches = {name: pattern.search(line) for name, pattern in _REPORTED.items()}
    found = {name: words.get(match[1], match[1]) for name, match in matches.items() if match}
    if tokens := _KV_TOKENS.search(text):
        found["kv_cache_tokens"] = tokens[1].replace(",", "")
    return found
