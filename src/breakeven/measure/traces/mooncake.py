"""Mooncake traces: JSON lines with timestamp (ms), input_length, output_length and hash_ids of 512 prompt tokens each.

Equal ids mean equal text up to there (github.com/kvcache-ai/Mooncake, FAST25-release).
"""

from __future__ import annotations

from pathlib import Path

from breakeven.errors import UserError
from breakeven.measure.traces.rows import TraceRows, trace_rows
from breakeven.measure.traces.text import json_lines, seconds_ns, tokens, whole

BLOCK_TOKENS = 512


def sniff(head: str) -> bool:
    """True when the file begins as this format does."""
    line = head.split("\n", 1)[0]
    return line.startswith("{") and '"input_length"' in line and '"timestamp"' in line


def read(path: Path) -> TraceRows:
    """The rows of `path`. Raises UserError naming line and key."""
    at_ns: list[int] = []
    prompt: list[int] = []
    output: list[int] = []
    blocks: list[tuple[int, ...]] = []
    for number, row in json_lines(path):
        at_ns.append(round(seconds_ns(path, number, "timestamp", row.get("timestamp")) / 1_000))
        prompt.append(tokens(path, number, "input_length", row.get("input_length")))
        output.append(tokens(path, number, "output_length", row.get("output_length")))
        ids = row.get("hash_ids", [])
        if not isinstance(ids, list):
            raise UserError(f"{path}, line {number}, column hash_ids: expected a list of ids, found {str(ids)[:60]}")
        blocks.append(tuple(whole(path, number, "hash_ids", block) for block in ids))
    shared = blocks if any(blocks) else []
    return trace_rows(path.name, "mooncake", at_ns, prompt, output, blocks=shared, block_tokens=BLOCK_TOKENS)
